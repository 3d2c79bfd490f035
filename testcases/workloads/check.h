/*
 * Checks of a workload, each in a process of its own and with one fact: "OK", or what was seen instead.
 * A check that is killed or never ends is something seen too: a kernel that cannot serve a page fault
 * may have it come again and again.
 */
#ifndef CHECK_H
#define CHECK_H

#include <stdbool.h>

/* What a check cannot do without: nvh_bail() with errno's name where it is not so. */
void must(bool ok, const char *what);

/* Why the running check is not OK, also from its children; the first reason counts. */
void check_differs(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* One load or store of a check, and the signal with its code that it must end in; 0 for none. */
void check_access(const char *what, char *addr, bool store, int signum, int code);

/*
 * Runs a check, at most so many seconds, and tells its fact and step; one that bails out ends the
 * workload.  Returns whether it ended: what another still uses is not to be trusted.
 */
bool check_run(const char *name, void (*check)(const char *name, int arg), int arg, double seconds);

#endif
