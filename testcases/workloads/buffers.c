/*
 * Buffers of io_uring that are more than registered and let go of: replaced by others, idle and in use
 * (--case update), shared by two rings (clone), or of parts of large folios side by side (pieces).  Who
 * has the pages is told by their reference counts.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"
#include "pinner.h"
#include "probe.h"
#include "refcount.h"
#include "uring.h"

#define SIZE (64UL << 10)
#define HUGE (2UL << 20)
/* How long the references of pages that were let go of may stay. */
#define RETURN_SECONDS 10.0

#define REGISTER_CLONE_BUFFERS 30 /* since 6.12 */

/* struct io_uring_clone_buffers as of 6.12. */
struct clone_buffers {
	uint32_t src_fd, flags, pad[6];
};

/* Memory, and what its pages' counts are when nobody has pinned it. */
struct area {
	char *addr;
	size_t size;
	struct probe probe;
	long long before[PROBES];
};

enum { CASE_UPDATE, CASE_CLONE, CASE_PIECES };

static const char *const case_words[] = {"update", "clone", "pieces", NULL};
static const char *case_text = "update";
static const char *file_text;

static const struct nvh_option options[] = {
	{"case", &case_text, NULL, "update, clone, pieces (default update)"},
	{"file", &file_text, NULL, "of a file system with large folios, for pieces: it is made"},
	{0},
};

static void watch(struct area *area)
{
	if (!probe_find(&area->probe, area->addr, area->size) || !probe_counts(&area->probe, area->before))
		nvh_bail("the pages' reference counts cannot be read");
}

static struct area make_area(uint64_t seed)
{
	struct area area = {.size = SIZE};

	area.addr = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (area.addr == MAP_FAILED)
		nvh_bail("mmap: %s", nvh_errname(errno));
	memory_fill(area.addr, SIZE, seed);
	watch(&area);
	return area;
}

/* How many of the watched pages have more references than before. */
static int held(const struct area *area)
{
	long long now[PROBES];
	int count = 0;

	if (!probe_counts(&area->probe, now))
		nvh_bail("the pages' reference counts cannot be read");
	for (size_t i = 0; i < PROBES; i++)
		count += now[i] > area->before[i];
	return count;
}

/* "pinned", "free", or how many of the pages that are watched are pinned.  The kernel may take a while to let go. */
static int fact_held(const char *key, const struct area *area, bool expected)
{
	double begin = nvh_now();
	char text[32];
	int count;

	while ((count = held(area)) && !expected && nvh_now() - begin < RETURN_SECONDS)
		nvh_sleep(0.02);
	snprintf(text, sizeof(text), "%d of %d", count, PROBES);
	nvh_fact_str(key, count == 0 ? "free" : count == PROBES ? "pinned" : text);
	nvh_step(true, "%s: %s", key, text);
	return count;
}

static void fact_errno(const char *key, int err)
{
	nvh_fact_errno(key, err);
	nvh_step(true, "%s: %s", key, nvh_errname(err));
}

static void make_ring(struct uring *ring)
{
	int err = uring_make(ring);

	if (err)
		nvh_bail("io_uring_setup: %s", nvh_errname(err));
}

/* IORING_REGISTER_BUFFERS_UPDATE of nr slots, each with the same area.  Returns 0 or errno; ERANGE: not all. */
static int update(const struct uring *ring, uint32_t slot, uint32_t nr, const struct area *area)
{
	struct iovec with = {area ? area->addr : NULL, area ? area->size : 0}, buffers[] = {with, with};
	struct io_uring_rsrc_update2 request = {.offset = slot, .nr = nr, .data = (uintptr_t)buffers};
	long done = syscall(SYS_io_uring_register, ring->fd, IORING_REGISTER_BUFFERS_UPDATE, &request,
			    sizeof(request));

	return done < 0 ? errno : done == nr ? 0 : ERANGE;
}

static int register_buffers(const struct uring *ring, const struct iovec *buffers, unsigned int nr)
{
	return syscall(SYS_io_uring_register, ring->fd, IORING_REGISTER_BUFFERS, buffers, nr) < 0 ? errno : 0;
}

static int clone_buffers(const struct uring *to, int from)
{
	struct clone_buffers request = {.src_fd = (uint32_t)from};

	return syscall(SYS_io_uring_register, to->fd, REGISTER_CLONE_BUFFERS, &request, 1) < 0 ? errno : 0;
}

static void fact_copied(const char *key, struct uring *ring, const char *addr, size_t size)
{
	int fd = memfd_create("copy", MFD_CLOEXEC), err;
	char *copy;

	if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
		nvh_bail("memfd: %s", nvh_errname(errno));
	copy = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
	if (copy == MAP_FAILED)
		nvh_bail("mmap of the copy: %s", nvh_errname(errno));
	err = uring_transfer(ring, (char *)(uintptr_t)addr, size, fd, 0, false);
	if (err)
		nvh_fact_errno(key, err);
	else
		nvh_fact_str(key, memcmp(copy, addr, size) == 0 ? "equal" : "differs");
	nvh_step(true, "%s: %s", key, nvh_errname(err));
	munmap(copy, size);
	close(fd);
}

/* What is no set of buffers; the last one begins well. */
static void try_bad_sets(const struct uring *ring, const struct area *area)
{
	char *hole = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const struct iovec half[] = {{area->addr, area->size}, {hole, SIZE}}, empty = {area->addr, 0},
			   nowhere = {NULL, SIZE};

	fact_errno("unregister_none", uring_forget(ring));
	fact_errno("register_none", register_buffers(ring, half, 0));
	fact_errno("register_too_many", register_buffers(ring, half, (1U << 14) + 1));
	fact_errno("register_empty", register_buffers(ring, &empty, 1));
	fact_errno("register_nowhere", register_buffers(ring, &nowhere, 1));
	fact_errno("register_half", register_buffers(ring, half, 2));
	fact_held("half", area, false);
	munmap(hole, SIZE);
}

/* A slot's buffer makes room for another, or for none; there is no other slot. */
static void try_update(void)
{
	struct area first = make_area(1), second = make_area(2);
	struct uring ring;

	make_ring(&ring);
	try_bad_sets(&ring, &first);
	fact_errno("register", uring_set(&ring, first.addr, first.size));
	fact_held("registered", &first, true);
	fact_errno("beyond", update(&ring, 1, 1, &second));
	fact_errno("across_the_end", update(&ring, 0, 2, &second));
	fact_held("registered_yet", &first, true);
	fact_held("refused", &second, false);
	fact_errno("update", update(&ring, 0, 1, &second));
	fact_held("replaced", &first, false);
	fact_held("replacing", &second, true);
	fact_copied("replacing_copied", &ring, second.addr, second.size);
	fact_copied("replaced_copied", &ring, first.addr, first.size);
	ring.slot = 1;
	fact_copied("other_slot_copied", &ring, second.addr, second.size);
	ring.slot = 0;
	fact_errno("update_with_none", update(&ring, 0, 1, NULL));
	fact_held("removed", &second, false);
	fact_copied("removed_copied", &ring, second.addr, second.size);
	fact_errno("update_of_none", update(&ring, 0, 1, &first));
	fact_held("put_back", &first, true);
	fact_errno("unregister", uring_forget(&ring));
	fact_held("unregistered", &first, false);
	uring_close(&ring);
}

/* A buffer is replaced that a request is still to fill: it stays until that is done. */
static void try_pending(void)
{
	struct area first = make_area(1), second = make_area(2);
	size_t page = memory_page(), at = 1000; /* of two pages a part */
	char *bytes = malloc(page);
	struct uring ring;
	int ends[2], err;
	bool same;

	if (!bytes || pipe2(ends, O_CLOEXEC) < 0)
		nvh_bail("pipe: %s", nvh_errname(errno));
	memory_fill(bytes, page, 3);
	make_ring(&ring);
	fact_errno("pending_register", uring_set(&ring, first.addr, first.size));
	err = uring_submit(&ring, first.addr + at, page, ends[0], 0, true);
	fact_errno("pending_submit", err);
	fact_errno("pending_update", update(&ring, 0, 1, &second));
	/* What was given away is not written to, and a request that was refused not waited for. */
	if (fact_held("pending_replaced", &first, true) == PROBES && !err) {
		if (write(ends[1], bytes, page) != (ssize_t)page)
			nvh_bail("write to a pipe: %s", nvh_errname(errno));
		fact_errno("pending_read", uring_wait(&ring, page));
		same = memcmp(first.addr + at, bytes, page) == 0;
		nvh_fact_str("pending_data", same ? "equal" : "differs");
		fact_held("pending_done", &first, false);
		uring_forget(&ring);
	}
	uring_close(&ring);
	close(ends[0]);
	close(ends[1]);
	free(bytes);
}

static void try_clone(void)
{
	struct area area = make_area(1);
	struct uring source, ring;
	int err;

	make_ring(&source);
	make_ring(&ring);
	/* An operation that the kernel does not have is EINVAL before it looks at any descriptor. */
	err = clone_buffers(&ring, -1);
	if (err == EINVAL) {
		pinner_missing("IORING_REGISTER_CLONE_BUFFERS", err);
		return;
	}
	fact_errno("clone_of_no_ring", err);
	fact_errno("clone_of_no_buffers", clone_buffers(&ring, source.fd));
	fact_errno("register", uring_set(&source, area.addr, area.size));
	fact_held("registered", &area, true);
	fact_errno("clone", clone_buffers(&ring, source.fd));
	fact_errno("clone_twice", clone_buffers(&ring, source.fd));
	fact_errno("unregister", uring_forget(&source));
	fact_held("cloned", &area, true);
	fact_copied("cloned_copied", &ring, area.addr, area.size);
	fact_errno("unregister_clone", uring_forget(&ring));
	fact_held("unregistered", &area, false);
	uring_close(&ring);
	uring_close(&source);
}

/* Parts of a file, one behind the other in memory. */
static void try_piece(const char *key, int file, const off_t *parts, size_t count)
{
	size_t page = memory_page(), part = 4 * page;
	struct area area = {.size = count * part};
	char name[32];
	struct uring ring;
	int err;

	area.addr = mmap(NULL, area.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (size_t i = 0; i < count; i++) {
		if (area.addr == MAP_FAILED || mmap(area.addr + i * part, part, PROT_READ | PROT_WRITE,
						    MAP_SHARED | MAP_FIXED, file, parts[i]) == MAP_FAILED)
			nvh_bail("mmap of a part: %s", nvh_errname(errno));
	}
	memory_touch(area.addr, area.size, true);
	watch(&area);
	make_ring(&ring);
	err = uring_set(&ring, area.addr, area.size);
	snprintf(name, sizeof(name), "%s_register", key);
	fact_errno(name, err);
	snprintf(name, sizeof(name), "%s_copied", key);
	if (!err)
		fact_copied(name, &ring, area.addr, area.size);
	if (!err)
		uring_forget(&ring);
	uring_close(&ring);
	snprintf(name, sizeof(name), "%s_after", key);
	fact_held(name, &area, false);
	munmap(area.addr, area.size);
}

/* What lies side by side for a program does not for the kernel: not the next pages of a folio are meant. */
static void try_pieces(void)
{
	const off_t page = (off_t)memory_page(), huge = (off_t)HUGE, part = 4 * page;
	const off_t begins[] = {0, huge}, ends[] = {huge - part, huge + page}, middle[] = {huge - part, huge, 2 * huge};
	int file = open(file_text, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	struct page_refs refs;
	bool large = true;
	uint64_t pfn;
	char *view;

	if (file < 0 || ftruncate(file, 3 * huge) < 0)
		nvh_bail("%s: %s", file_text, nvh_errname(errno));
	view = memory_map_aligned(file, 3 * HUGE, 0, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	for (size_t i = 0; i < 3; i++) {
		memory_fill_at(view + i * HUGE, SIZE, 1, i * HUGE);
		memory_fill_at(view + (i + 1) * HUGE - SIZE, SIZE, 1, (i + 1) * HUGE - SIZE);
		large &= refcount_pfn(view + i * HUGE + page, &pfn) && refcount_look(pfn, &refs) && refs.compound &&
			 pfn % 512 == 1;
	}
	if (!large) {
		pinner_missing("2 MiB of memory in one piece", ENOMEM);
		return;
	}
	try_piece("begins", file, begins, 2);
	try_piece("ends", file, ends, 2);
	try_piece("middle", file, middle, 3);
	close(file);
}

int main(int argc, char **argv)
{
	struct uring ring;
	int which, err;

	nvh_options(argc, argv, "Replace, share and piece together buffers of io_uring.", options);
	which = nvh_choice("case", case_text, case_words);
	if ((which == CASE_PIECES) != (file_text != NULL))
		nvh_usage("--case pieces needs a --file, and no other does");
	nvh_begin("buffers");
	err = uring_make(&ring);
	if (err) {
		pinner_missing("io_uring", err);
		return nvh_end();
	}
	uring_close(&ring);
	if (!refcount_open())
		return nvh_end();
	if (which == CASE_UPDATE) {
		try_update();
		try_pending();
	} else if (which == CASE_CLONE) {
		try_clone();
	} else {
		try_pieces();
	}
	nvh_fact_int("pinned_after_kib", memory_status("VmPin"));
	return nvh_end();
}
