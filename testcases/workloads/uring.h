/*
 * The other common long-term pin: buffers registered with io_uring.
 */
#ifndef URING_H
#define URING_H

#include <linux/io_uring.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "pinner.h"

/* A ring of one entry.  What it shares with us is mapped when the first request is made. */
struct uring {
	int fd;
	struct io_uring_params params;
	char *queue;
	char *done;
	struct io_uring_sqe *request;
	uint32_t requests;
	uint16_t slot; /* of the buffer that requests name */
};

/* Each returns 0 or errno; uring_make() ENOSYS or EPERM when there is no io_uring or we are not let. */
int uring_make(struct uring *ring);
int uring_set(const struct uring *ring, void *addr, size_t size); /* IORING_REGISTER_BUFFERS of one */
int uring_forget(const struct uring *ring);                       /* IORING_UNREGISTER_BUFFERS */
/*
 * Writes size bytes at addr of a registered buffer to a file at an offset, or reads them from
 * there; EIO when it is done by half.
 */
int uring_transfer(struct uring *ring, void *addr, size_t size, int fd, off_t at, bool read);
/* Its two halves: what is asked for may be waited for later, before anything else is. */
int uring_submit(struct uring *ring, void *addr, size_t size, int fd, off_t at, bool read);
int uring_wait(struct uring *ring, size_t size);
/* Closes the ring with all that holds it; the kernel gives back what it pins a little later. */
int uring_close(struct uring *ring);

/* One buffer in a ring of its own, ended at once. */
int uring_register(void *addr, size_t size);

extern const struct pinner uring_pinner;

#endif
