/*
 * The other common long-term pin: buffers registered with io_uring.
 */
#ifndef URING_H
#define URING_H

#include <stddef.h>

#include "pinner.h"

/*
 * IORING_REGISTER_BUFFERS of one buffer, ended at once.  Returns 0 or errno; ENOSYS or EPERM when the
 * kernel has no io_uring or does not let us.
 */
int uring_register(void *addr, size_t size);

extern const struct pinner uring_pinner;

#endif
