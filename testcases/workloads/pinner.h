/*
 * A part of the kernel that pins memory of a process for as long as the process wants.
 */
#ifndef PINNER_H
#define PINNER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct pinner {
	const char *name;
	/* Can pin for reading only; the others pin for writing whatever they are asked for. */
	bool reads;
	/* pin() takes the pages and gives them back at once: nothing is held, unpin() is NULL. */
	bool passing;
	/* Holds one piece of memory at a time: pin() says EBUSY while it does. */
	bool once;
	/*
	 * Makes ready to pin, write says what for.  False with the facts of pinner_missing() when the
	 * kernel does not have it.  device is where its device lies, NULL when nobody said.
	 */
	bool (*open)(const char *device, bool write);
	/* Pins.  Returns 0 or errno. */
	int (*pin)(void *addr, size_t size, bool write);
	/*
	 * Writes size bytes at addr, which it has pinned, to a file at an offset, or reads them from there.
	 * NULL where it cannot.  Returns 0 or errno.
	 */
	int (*transfer)(void *addr, size_t size, int fd, off_t at, bool read);
	/*
	 * Pins besides what it has pinned, and lets go of that at once.  NULL where RLIMIT_MEMLOCK is
	 * not for it.  Returns 0 or errno.
	 */
	int (*pin_more)(void *addr, size_t size, bool write);
	/* Lets go.  The kernel may do so a little later. */
	int (*unpin)(void);
	/* Lets go by closing what it has pinned with; NULL where unpin() does so, or nothing is to be closed. */
	int (*end)(void);
};

extern const struct pinner rdma_pinner;
extern const struct pinner xdp_pinner;
extern const struct pinner vivid_pinner;
extern const struct pinner gup_pinner;      /* pin_user_pages() */
extern const struct pinner gup_fast_pinner; /* pin_user_pages_fast() */
extern const struct pinner gup_once_pinner; /* pinned and let go in one call */

/* The facts "missing" (what) and "missing_why" (the error's name), and a skipped step; returns false. */
bool pinner_missing(const char *what, int err);

#endif
