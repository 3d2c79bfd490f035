/*
 * What every workload shares: KTAP on stdout, one line of JSON facts at the end, options, a watchdog.
 *
 * A workload does one thing to the kernel and reports what happened.  It never judges the kernel:
 * a step is "not ok" only when the workload could not do or prove what it was asked for.
 *
 * Exit status: 0 all steps ok, 1 a step not ok, 2 started wrongly, 3 set-up failed, 4 deadline.
 */
#ifndef NVH_H
#define NVH_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct rusage;

/* Prints the KTAP header, makes stdout line buffered and starts the watchdog (see nvh_options). */
void nvh_begin(const char *name);

/* Prints "ok N - ..." or "not ok N - ..." at once; returns ok. */
bool nvh_step(bool ok, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Prints "ok N # SKIP reason". */
void nvh_skip(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Prints "# ...", for people. */
void nvh_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* A fact set twice keeps its last value. */
void nvh_fact_str(const char *key, const char *value);
void nvh_fact_int(const char *key, long long value);
void nvh_fact_ints(const char *key, const long long *values, size_t count);
void nvh_fact_bool(const char *key, bool value);
void nvh_fact_seconds(const char *key, double value);
/* 0 becomes "OK", anything else the name of the error: "EOPNOTSUPP". */
void nvh_fact_errno(const char *key, int err);

/* Prints the plan and the facts; returns the exit status: 0 when all steps were ok, else 1. */
int nvh_end(void);

/* Started wrongly: "Bail out! usage: ...", exit 2. */
_Noreturn void nvh_usage(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Set-up failed: "Bail out! ..." and the facts so far, exit 3. */
_Noreturn void nvh_bail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

const char *nvh_errname(int err);

/* Seconds on CLOCK_MONOTONIC. */
double nvh_now(void);

/* Sleeps through signals. */
void nvh_sleep(double seconds);

/* Waits so long at most for a child's end; true when it is gone.  The usage may be NULL. */
bool nvh_child_ends(pid_t child, double seconds, int *status, struct rusage *usage);

/*
 * One long option: it takes a value when "value" is set and is a flag when "flag" is set.
 * A table ends with an entry whose name is NULL.
 */
struct nvh_option {
	const char *name; /* without the dashes */
	const char **value;
	bool *flag;
	const char *help; /* one line */
};

/*
 * Reads --NAME VALUE, --NAME=VALUE and --FLAG; anything unknown ends in nvh_usage().
 * --help and --deadline SECONDS (default 60) are added to every table.  Call it before nvh_begin().
 */
void nvh_options(int argc, char **argv, const char *summary, const struct nvh_option *options);

/* Reads a whole number of bytes: 4096, 0x1000, 4K, 2M, 1G; nvh_usage() names the option when it is none. */
unsigned long long nvh_size(const char *option, const char *text);

/* As nvh_size(), for a number that lies between least and most. */
int nvh_number(const char *option, const char *text, int least, int most);

/* Returns the index of text in the NULL-terminated list; nvh_usage() names the option when it is not there. */
int nvh_choice(const char *option, const char *text, const char *const *list);

#endif
