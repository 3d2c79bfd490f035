#include "uring.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "nvh.h"

static int ring = -1;
static struct io_uring_params params;

static int make_ring(void)
{
	params = (struct io_uring_params){0};
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

static char *map_ring(size_t size, off_t which)
{
	char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, which);

	if (at == MAP_FAILED)
		nvh_bail("mmap of the ring: %s", nvh_errname(errno));
	return at;
}

/* The ring has one entry, and this is its only use: there are neither indices to wrap nor races. */
static int copy(void *addr, size_t size, int fd)
{
	char *queue = map_ring(params.sq_off.array + params.sq_entries * sizeof(uint32_t), IORING_OFF_SQ_RING);
	char *done = map_ring(params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe), IORING_OFF_CQ_RING);
	struct io_uring_sqe *request = (void *)map_ring(params.sq_entries * sizeof(*request), IORING_OFF_SQES);
	const struct io_uring_cqe *answer = (const void *)(done + params.cq_off.cqes);

	*request = (struct io_uring_sqe){
		.opcode = IORING_OP_WRITE_FIXED, .fd = fd, .addr = (uintptr_t)addr, .len = (uint32_t)size,
	};
	*(uint32_t *)(void *)(queue + params.sq_off.array) = 0;
	__atomic_store_n((uint32_t *)(void *)(queue + params.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return errno;
	if (answer->res < 0)
		return -answer->res;
	return (size_t)answer->res == size ? 0 : EIO;
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

const struct pinner uring_pinner = {.name = "io_uring", .open = open_uring, .pin = pin, .copy = copy, .unpin = unpin};
