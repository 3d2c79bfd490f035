/*
 * Pins on pages of this process that start and end when asked: by vmsplice() into a pipe, which
 * holds the page until it is drained, and by O_DIRECT with a slow block device, which holds it
 * until the device is told to hurry (dm-delay) or its completion time is over.
 */
#ifndef PIN_H
#define PIN_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum pin_kind { PIN_NONE, PIN_VMSPLICE, PIN_ODIRECT_READ, PIN_ODIRECT_WRITE };
extern const char *const pin_kinds[]; /* their names, for nvh_choice() */

struct pin {
	enum pin_kind kind;
	void *addr;
	size_t size;
	uint64_t pfn; /* 0 when unknown */
	int refs_before, refs_pinned; /* valid with refs_known */
	int extra_before;             /* references beyond those of mappings */
	bool refs_known;
	double started, ended; /* nvh_now() around the pin's life; ended is 0 while it lasts */
	double releasing;      /* when its end was asked for; 0 where it ends by itself */
	/* vmsplice */
	int pipe_read, pipe_write;
	/* O_DIRECT */
	int slow;
	pthread_t thread;
	atomic_int tid;
	atomic_bool finished;
	int io_errno;
};

/*
 * Pins size bytes at addr and proves it: the reference count rose or, where it cannot be read,
 * the thread that does the I/O waits in D state.  Nothing but the proof returns true; the
 * reason goes to *why.  slow is the slow device, opened with O_DIRECT.
 */
bool pin_start(struct pin *pin, enum pin_kind kind, void *addr, size_t size, int slow, const char **why);

/* Whether the pin is still in place; a vmsplice pin is until it is released. */
bool pin_holds(const struct pin *pin);

/* Whether the reference count is back; false also when it cannot be read. */
bool pin_refs_restored(const struct pin *pin);

/*
 * Ends a vmsplice pin by draining the pipe into data (size bytes); has dm-delay end the I/O that
 * it holds back, and waits up to seconds until I/O has ended.  Returns 0 or an errno; ETIMEDOUT when the I/O is still under way.
 */
int pin_release(struct pin *pin, void *data, double seconds);

#endif
