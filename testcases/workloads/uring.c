#include "uring.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "nvh.h"

static struct uring ours = {.fd = -1};

int uring_make(struct uring *ring)
{
	*ring = (struct uring){0};
	ring->fd = (int)syscall(SYS_io_uring_setup, 1, &ring->params);
	return ring->fd < 0 ? errno : 0;
}

int uring_set(const struct uring *ring, void *addr, size_t size)
{
	struct iovec buffer = {.iov_base = addr, .iov_len = size};

	return syscall(SYS_io_uring_register, ring->fd, IORING_REGISTER_BUFFERS, &buffer, 1) < 0 ? errno : 0;
}

int uring_forget(const struct uring *ring)
{
	return syscall(SYS_io_uring_register, ring->fd, IORING_UNREGISTER_BUFFERS, NULL, 0) < 0 ? errno : 0;
}

static size_t queue_size(const struct uring *ring)
{
	return ring->params.sq_off.array + ring->params.sq_entries * sizeof(uint32_t);
}

static size_t done_size(const struct uring *ring)
{
	return ring->params.cq_off.cqes + ring->params.cq_entries * sizeof(struct io_uring_cqe);
}

static char *map_ring(const struct uring *ring, size_t size, off_t which)
{
	char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd, which);

	if (at == MAP_FAILED)
		nvh_bail("mmap of the ring: %s", nvh_errname(errno));
	return at;
}

static void set_index(char *at, uint32_t index)
{
	__atomic_store_n((uint32_t *)(void *)at, index, __ATOMIC_RELEASE);
}

/* One request at a time, in a ring of one entry: its index is always 0. */
int uring_submit(struct uring *ring, void *addr, size_t size, int fd, off_t at, bool read)
{
	const struct io_uring_params *params = &ring->params;

	if (!ring->queue) {
		ring->queue = map_ring(ring, queue_size(ring), IORING_OFF_SQ_RING);
		ring->done = map_ring(ring, done_size(ring), IORING_OFF_CQ_RING);
		ring->request = (void *)map_ring(ring, params->sq_entries * sizeof(*ring->request), IORING_OFF_SQES);
	}
	*ring->request = (struct io_uring_sqe){
		.opcode = read ? IORING_OP_READ_FIXED : IORING_OP_WRITE_FIXED,
		.fd = fd, .off = (uint64_t)at, .addr = (uintptr_t)addr, .len = (uint32_t)size,
		.buf_index = ring->slot,
	};
	*(uint32_t *)(void *)(ring->queue + params->sq_off.array) = 0;
	set_index(ring->queue + params->sq_off.tail, ++ring->requests);
	return syscall(SYS_io_uring_enter, ring->fd, 1, 0, 0, NULL, 0) < 0 ? errno : 0;
}

int uring_wait(struct uring *ring, size_t size)
{
	const struct io_uring_params *params = &ring->params;
	const struct io_uring_cqe *answer;

	answer = (const struct io_uring_cqe *)(void *)(ring->done + params->cq_off.cqes) +
		 (ring->requests - 1) % params->cq_entries;
	if (syscall(SYS_io_uring_enter, ring->fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return errno;
	set_index(ring->done + params->cq_off.head, ring->requests);
	if (answer->res < 0)
		return -answer->res;
	return (size_t)answer->res == size ? 0 : EIO;
}

int uring_transfer(struct uring *ring, void *addr, size_t size, int fd, off_t at, bool read)
{
	int err = uring_submit(ring, addr, size, fd, at, read);

	return err ? err : uring_wait(ring, size);
}

int uring_close(struct uring *ring)
{
	if (ring->queue) {
		munmap(ring->queue, queue_size(ring));
		munmap(ring->done, done_size(ring));
		munmap(ring->request, ring->params.sq_entries * sizeof(*ring->request));
		ring->queue = NULL;
	}
	return close(ring->fd) < 0 ? errno : 0;
}

int uring_register(void *addr, size_t size)
{
	struct uring other;
	int err = uring_make(&other);

	if (err)
		return err;
	err = uring_set(&other, addr, size);
	if (!err) /* a ring that is closed gives them back later */
		err = uring_forget(&other);
	uring_close(&other);
	return err;
}

static bool open_uring(const char *device, bool write)
{
	int err = uring_make(&ours);

	(void)device;
	(void)write;
	if (!err)
		return true;
	if (err != ENOSYS && err != EPERM)
		nvh_bail("io_uring_setup: %s", nvh_errname(err));
	return pinner_missing("io_uring", err);
}

static int pin(void *addr, size_t size, bool write)
{
	(void)write; /* a registered buffer is always pinned for writing */
	return uring_set(&ours, addr, size);
}

static int transfer(void *addr, size_t size, int fd, off_t at, bool read)
{
	return uring_transfer(&ours, addr, size, fd, at, read);
}

/* A ring has one set of buffers, but the limit is for all that the user has registered. */
static int pin_more(void *addr, size_t size, bool write)
{
	(void)write;
	return uring_register(addr, size);
}

static int unpin(void)
{
	return uring_forget(&ours);
}

static int end(void)
{
	return uring_close(&ours);
}

const struct pinner uring_pinner = {
	.name = "io_uring", .once = true, .open = open_uring, .pin = pin, .transfer = transfer,
	.pin_more = pin_more, .unpin = unpin, .end = end,
};
