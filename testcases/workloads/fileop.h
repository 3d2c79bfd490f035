/*
 * An operation on a file, done by a child process so that it may block while the parent looks on.
 */
#ifndef FILEOP_H
#define FILEOP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>

#include "model.h"

enum fileop_kind {
	OP_TRUNCATE, OP_PUNCH, OP_COLLAPSE, OP_INSERT, OP_ZERO, /* change the layout */
	OP_CLONE, /* too: another file's blocks take the place of its own */
	OP_READ, OP_WRITE, OP_FSYNC,                            /* do not */
	OP_UNLINK, OP_UMOUNT, OP_NONE,
};
extern const char *const fileop_kinds[]; /* their names, for nvh_choice() */

/* at and count are pages; a truncate leaves the first "at" of them. */
struct fileop {
	enum fileop_kind kind;
	const char *path; /* of the file; where an OP_UMOUNT unmounts */
	int fd;           /* -1: the child opens path itself */
	int at, count;
};

/* What the child says; shared memory. */
struct fileop_report {
	atomic_bool started, done;
	int err;
	double started_at, ended_at; /* nvh_now() */
};

struct fileop_child {
	pid_t pid;
	struct fileop_report *report;
	bool reaped;
	int status; /* of waitpid(), valid with reaped */
};

/* Does it here and now; returns 0 or an errno.  page is room for what OP_READ and OP_WRITE move. */
int fileop_do(const struct fileop *op, int fd, char *page);

/* Brings the model to what the file must hold after a successful operation. */
void fileop_model(const struct fileop *op, struct model *model);

/*
 * Forks the child; with handler it catches SIGUSR1 without SA_RESTART.  Returns when it is about
 * to do the operation.
 */
bool fileop_start(struct fileop_child *child, const struct fileop *op, bool handler);

/* Whether the operation returned, or the child died of a signal. */
bool fileop_ended(struct fileop_child *child);

/* Waits for that; false when it did not come within seconds. */
bool fileop_wait(struct fileop_child *child, double seconds);

/* SIGKILLs a child that still is; false when it does not even die of that within seconds. */
bool fileop_kill(struct fileop_child *child, double seconds);

#endif
