/*
 * Watching a child that does an operation on a file: does it wait, and where.
 */
#ifndef WAITING_H
#define WAITING_H

#include <stdbool.h>

#include "fileop.h"
#include "pin.h"
#include "watch.h"

/* How the child was seen while it was watched. */
struct waiting {
	int samples, in_break;
	char waits_in[128];
	char states[16]; /* each state seen, once */
	double since;    /* nvh_now() of the first look that found it waiting; 0 where none did */
	struct sight last;
};

/*
 * Watches the operation until it ended or is known to wait, until the pin (may be NULL) ends, and
 * at most so many seconds.
 */
void waiting_watch(struct waiting *waiting, struct fileop_child *child, const struct pin *pin, double seconds);

/* Twice at least: one look may catch a function that was only passing through. */
bool waiting_seen(const struct waiting *waiting);

/* samples, samples_in_break, states, seen_waiting, waits_in and the last sight, each with a prefix. */
void waiting_facts(const char *prefix, const struct waiting *waiting);

#endif
