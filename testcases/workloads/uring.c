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

/* What the ring shares with us, mapped when the first request is made. */
static char *queue;
static char *done;
static struct io_uring_sqe *request;
static uint32_t requests;

static int make_ring(int *fd, struct io_uring_params *made)
{
	*made = (struct io_uring_params){0};
	*fd = (int)syscall(SYS_io_uring_setup, 1, made);
	return *fd < 0 ? errno : 0;
}

static int register_buffer(int fd, void *addr, size_t size)
{
	struct iovec buffer = {.iov_base = addr, .iov_len = size};

	return syscall(SYS_io_uring_register, fd, IORING_REGISTER_BUFFERS, &buffer, 1) < 0 ? errno : 0;
}

static int pin(void *addr, size_t size, bool write)
{
	(void)write; /* a registered buffer is always pinned for writing */
	return register_buffer(ring, addr, size);
}

static int unregister_buffer(int fd)
{
	return syscall(SYS_io_uring_register, fd, IORING_UNREGISTER_BUFFERS, NULL, 0) < 0 ? errno : 0;
}

static int unpin(void)
{
	return unregister_buffer(ring);
}

static char *map_ring(size_t size, off_t which)
{
	char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, which);

	if (at == MAP_FAILED)
		nvh_bail("mmap of the ring: %s", nvh_errname(errno));
	return at;
}

static void set_index(char *at, uint32_t index)
{
	__atomic_store_n((uint32_t *)(void *)at, index, __ATOMIC_RELEASE);
}

/* One request at a time, in a ring of one entry: its index is always 0. */
static int transfer(void *addr, size_t size, int fd, off_t at, bool read)
{
	const struct io_uring_cqe *answer;

	if (!queue) {
		queue = map_ring(params.sq_off.array + params.sq_entries * sizeof(uint32_t), IORING_OFF_SQ_RING);
		done = map_ring(params.cq_off.cqes + params.cq_entries * sizeof(*answer), IORING_OFF_CQ_RING);
		request = (void *)map_ring(params.sq_entries * sizeof(*request), IORING_OFF_SQES);
	}
	*request = (struct io_uring_sqe){
		.opcode = read ? IORING_OP_READ_FIXED : IORING_OP_WRITE_FIXED,
		.fd = fd, .off = (uint64_t)at, .addr = (uintptr_t)addr, .len = (uint32_t)size,
	};
	*(uint32_t *)(void *)(queue + params.sq_off.array) = 0;
	answer = (const struct io_uring_cqe *)(void *)(done + params.cq_off.cqes) + requests++ % params.cq_entries;
	set_index(queue + params.sq_off.tail, requests);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return errno;
	set_index(done + params.cq_off.head, requests);
	if (answer->res < 0)
		return -answer->res;
	return (size_t)answer->res == size ? 0 : EIO;
}

static bool open_uring(const char *device, bool write)
{
	int err = make_ring(&ring, &params);

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
	struct io_uring_params made;
	int other;
	int err = make_ring(&other, &made);

	if (err)
		return err;
	err = register_buffer(other, addr, size);
	if (!err) /* a ring that is closed gives them back later */
		err = unregister_buffer(other);
	close(other);
	return err;
}

/* A ring has one set of buffers, but the limit is for all that the user has registered. */
static int pin_more(void *addr, size_t size, bool write)
{
	(void)write;
	return uring_register(addr, size);
}

const struct pinner uring_pinner = {
	.name = "io_uring", .open = open_uring, .pin = pin, .transfer = transfer, .pin_more = pin_more, .unpin = unpin,
};
