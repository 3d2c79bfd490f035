/*
 * Watching a process or thread from outside: is it running, waiting, and for what.
 */
#ifndef WATCH_H
#define WATCH_H

#include <stdbool.h>
#include <sys/types.h>

struct sight {
	char state;       /* of /proc/PID/stat: R S D Z ...; 0 when there is no such process */
	char wchan[64];   /* "0" on kernels before 5.16 or so: then only the stack tells */
	char stack[2048]; /* functions from the innermost outwards, separated by spaces */
};

/* Looks at one moment.  The process may move on while it is looked at. */
bool watch_look(pid_t pid, struct sight *seen);

/*
 * The innermost function of the stack that breaks layouts for DAX (ext4_break_layouts,
 * xfs_break_dax_layouts, dax_break_layout ...), or NULL.  The result lives until the next call.
 */
const char *watch_layout_break(const struct sight *seen);

/* A short description for people and facts: state, wchan, stack. */
void watch_facts(const char *prefix, const struct sight *seen);

#endif
