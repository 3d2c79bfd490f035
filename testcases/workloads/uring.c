#include "uring.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "nvh.h"

static int ring = -1;

static int make_ring(void)
{
	struct io_uring_params params = {0};

	ring = (int)syscall(SYS_io_uring_setup, 1, &params);
	return ring < 0 ? errno : 0;
}

static int pin(void *addr, size_t size, bool write)
{
	struct iovec buffer = {.iov_base = addr, .iov_len = size};

	(void)write; /* a registered buffer is always pinned for writing */
	return syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &buffer, 1) < 0 ? errno : 0;
}

static int unpin(void)
{
	return syscall(SYS_io_uring_register, ring, IORING_UNREGISTER_BUFFERS, NULL, 0) < 0 ? errno : 0;
}

static bool open_uring(const char *device, bool write)
{
	int err = make_ring();

	(void)device;
	(void)write;
	if (!err)
		return true;
	if (err != ENOSYS && err != EPERM)
		nvh_bail("io_uring_setup: %s", nvh_errname(err));
	return pinner_missing("io_uring", err);
}

int uring_register(void *addr, size_t size)
{
	int err = make_ring();

	if (err)
		return err;
	err = pin(addr, size, true);
	close(ring);
	return err;
}

const struct pinner uring_pinner = {.name = "io_uring", .open = open_uring, .pin = pin, .unpin = unpin};
