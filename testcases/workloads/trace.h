/*
 * What the kernel's tracepoints and two probes say of DAX while something is done: evidence that a page
 * size, a fallback or a flush is real.
 */
#ifndef TRACE_H
#define TRACE_H

#include <stdbool.h>
#include <stddef.h>

/*
 * Starts recording the events of fs/dax.c (include/trace/events/fs_dax.h) of this thread and of those that
 * it makes from now on.  False
 * where the kernel has none, with the reason in the fact "trace_missing"; "probe_missing" has what cannot
 * be probed.
 */
bool trace_start(void);

/* Forgets what was recorded so far. */
void trace_clear(void);

/* How many recorded lines are of this event and hold these words, which may be NULL. */
size_t trace_count(const char *event, const char *words);

/* Whether the first recorded line of either event is of this one and not of the other. */
bool trace_begins(const char *event, const char *other);

/* The pages that dax_writeback_one names, first page and number by turns; returns how many numbers. */
size_t trace_written_back(long long *pages, size_t room);

/* The bytes that the processor's caches were flushed for, -1 where they cannot be probed. */
long long trace_flushed(void);

/* The bytes that write() copied past the processor's caches, -1 where they cannot be probed. */
long long trace_uncached(void);

/* Ends it; done at exit() as well. */
void trace_stop(void);

#endif
