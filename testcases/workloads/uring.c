#include "uring.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

int uring_register(void *addr, size_t size)
{
	struct io_uring_params params = {0};
	struct iovec buffer = {.iov_base = addr, .iov_len = size};
	int ring = (int)syscall(SYS_io_uring_setup, 1, &params);
	int err;

	if (ring < 0)
		return errno;
	err = syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &buffer, 1) < 0 ? errno : 0;
	close(ring);
	return err;
}
