/*
 * What a pin does to a mapping from outside: reference counts of three of its pages, and whether
 * its file can be truncated.
 */
#ifndef PROBE_H
#define PROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PROBES 3

/* The first, middle and last page of a mapping; a frame that is not known is 0. */
struct probe {
	uint64_t pfn[PROBES];
};

/* Finds the pages that are at start now.  False, and nothing is changed, when pagemap does not tell one. */
bool probe_find(struct probe *probe, const void *start, size_t size);

/* How many pages are another frame than in before, among those that both know. */
size_t probe_moved(const struct probe *probe, const struct probe *before);

/* Reads the reference counts; false when one cannot be read. */
bool probe_counts(const struct probe *probe, long long counts[PROBES]);

/* As probe_counts(), and writes them as a fact. */
bool probe_fact(const struct probe *probe, const char *key);

/*
 * Truncates a file to nothing in a child, which can be left behind when it waits for a pin that never
 * ends.  Facts: "truncate" is "OK", an error's name or "blocked", and truncate_seconds.
 */
void probe_truncate(int fd);

#endif
