/*
 * Asks a part of the kernel other than VFIO to pin memory of any source (P rows) and reports what
 * came of it: the answer, the pages' reference counts, locked memory, and whether the file can be
 * truncated.  What is pinned may begin anywhere in a page, and may be refused for its last page.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"
#include "pinner.h"
#include "probe.h"
#include "refcount.h"
#include "uring.h"

/* How long the references of pages that were let go of may stay. */
#define RETURN_SECONDS 10.0

#define HUGE (2UL << 20)

#define SEED_FILE 1
#define SEED_COPY 2
#define SEED_READ 3

enum { TOUCH_NONE, TOUCH_READ, TOUCH_WRITE };

static const char *const touch_words[] = {"none", "read", "write", NULL};
static const char *const access_words[] = {"r", "rw", NULL};
static const char *const prot_words[] = {"r", "rw", NULL};

static const struct pinner *const pinners[] = {
	&uring_pinner, &rdma_pinner, &xdp_pinner, &vivid_pinner, &gup_pinner, &gup_fast_pinner, &gup_once_pinner,
};

#define PINNERS (sizeof(pinners) / sizeof(*pinners))

static const char *pinner_text;
static const char *device;
static const char *source_text = "anon";
static const char *size_text = "2M";
static const char *offset_text = "0";
static const char *inside_text = "0";
static const char *memlock_text;
static const char *prot_text = "rw";
static const char *access_text = "rw";
static const char *touch_text = "write";
static bool beyond_test;
static bool repeat;
static bool truncate_test;

static const struct nvh_option options[] = {
	{"pinner", &pinner_text, NULL, "io_uring, rdma, xdp, vivid, gup_test, gup_test-fast, gup_test-once"},
	{"device", &device, NULL, "of rdma, vivid, gup_test (default: where it is found)"},
	{"source", &source_text, NULL, SOURCE_HELP " (default anon)"},
	{"size", &size_text, NULL, "bytes to pin (default 2M)"},
	{"offset", &offset_text, NULL, "file offset of the mapping (default 0)"},
	{"inside", &inside_text, NULL, "begin to pin so many bytes behind the mapping's begin (default 0)"},
	{"repeat", NULL, &repeat, "have one page of the file at every address, and tell whether it is of a large folio"},
	{"prot", &prot_text, NULL, "of the mmap: r, rw (default rw)"},
	{"access", &access_text, NULL, "what the pinner is to do with the memory: r, rw (default rw)"},
	{"touch", &touch_text, NULL, "before pinning: none, read, write (default write)"},
	{"beyond", NULL, &beyond_test, "first have a page pinned with it that is not mapped"},
	{"memlock", &memlock_text, NULL, "RLIMIT_MEMLOCK in bytes, and no CAP_IPC_LOCK: pin more, then again"},
	{"truncate", NULL, &truncate_test, "truncate the file while the pinner is still open"},
	{0},
};

static struct source source;
static struct mapping memory;
static struct mapping view; /* the file's own pages, through another mapping */
static char *start; /* of what is to be pinned */
static size_t length;
static struct probe probe;
static struct probe file_probe;

static const struct pinner *find_pinner(void)
{
	if (!pinner_text)
		nvh_usage("--pinner is missing");
	for (size_t i = 0; i < PINNERS; i++) {
		if (strcmp(pinners[i]->name, pinner_text) == 0)
			return pinners[i];
	}
	nvh_usage("--pinner %s: one of %s", pinner_text, options[0].help);
}

/* Maps what is behind the source a second time and fills it: blocks are there, and their pages known. */
static void map_view(off_t offset)
{
	struct source shared = source;
	const char *failed = "mmap";
	int err;

	if ((source.kind != SOURCE_FILE && source.kind != SOURCE_DAX) || source.readonly)
		return;
	shared.private = false;
	err = memory_map(&view, &shared, memory.size, offset, PROT_READ | PROT_WRITE, &failed);
	if (err)
		nvh_bail("%s of the source: %s", failed, nvh_errname(err));
	memory_fill(view.addr, view.size, SEED_FILE);
	probe_find(&file_probe, view.addr, view.size);
}

/* A page from the middle of the file at every address, with the file's other pages around it in memory. */
static void repeat_page(off_t offset, int prot)
{
	size_t page = memory_page(), at = memory.size / page / 2 * page + page;
	struct page_refs refs;
	uint64_t pfn;

	for (size_t i = 0; i < memory.size; i += page) {
		if (mmap((char *)memory.addr + i, page, prot, MAP_SHARED | MAP_FIXED, memory.fd, offset + (off_t)at) ==
		    MAP_FAILED)
			nvh_bail("mmap of one page: %s", nvh_errname(errno));
	}
	/* Of a page with an odd number, it is no head that is looked for. */
	if (refcount_pfn((char *)view.addr + at, &pfn) && refcount_look(pfn, &refs))
		nvh_fact_bool("large_folio", refs.compound);
}

static void touch(int how)
{
	if (how == TOUCH_NONE)
		return;
	if (how == TOUCH_READ) {
		memory_touch(memory.addr, memory.size, false);
	} else if (source.private && view.addr) {
		memory_fill(memory.addr, memory.size, SEED_COPY);
		nvh_fact_bool("file_kept", memory_check(view.addr, view.size, SEED_FILE) == view.size);
	} else if (!view.addr) {
		memory_fill(memory.addr, memory.size, SEED_COPY);
	} else {
		memory_touch(memory.addr, memory.size, true);
	}
}

/* The pages to watch: those of the mapping, or, before it was ever touched, those of the file. */
static void choose_pages(int touched)
{
	if (touched == TOUCH_NONE)
		probe = file_probe;
	else if (!probe_find(&probe, start, length))
		return;
	if (view.addr && file_probe.pfn[0])
		nvh_fact_int("pages_copied", (long long)probe_moved(&probe, &file_probe));
	probe_fact(&probe, "refs_before");
}

/* How many of the pages have more references than before; -1 when that cannot be read. */
static int held(const long long before[PROBES])
{
	long long now[PROBES];
	int count = 0;

	if (!probe_counts(&probe, now))
		return -1;
	for (size_t i = 0; i < PROBES; i++)
		count += now[i] > before[i];
	return count;
}

/*
 * Some pinners give pages back by a work queue, and writeback holds pages for a moment: wait until none
 * has more references than before.
 */
static void await_return(const long long before[PROBES])
{
	double begin = nvh_now();
	int count;

	while ((count = held(before)) > 0 && nvh_now() - begin < RETURN_SECONDS)
		nvh_sleep(0.02);
	if (count >= 0)
		nvh_fact_seconds("return_seconds", nvh_now() - begin);
}

/* Since 6.15 a mapping of a DAX page counts as a reference: take back the one that the pin has made. */
static void forget_mapping(void)
{
	if (view.addr && madvise(memory.addr, memory.size, MADV_DONTNEED) < 0)
		nvh_note("MADV_DONTNEED: %s", nvh_errname(errno));
}

static void fact_equal(const char *key, int err, bool equal)
{
	if (err)
		nvh_fact_errno(key, err);
	else
		nvh_fact_str(key, equal ? "equal" : "differs");
}

/*
 * Has the pinner write what it has pinned to a file, all of it and a piece, and read something else into the
 * piece: "equal" is said of what the mapping, and so the process, has as well.
 */
static void check_transfers(const struct pinner *pinner, bool write)
{
	size_t at = length / 2 + 1000, piece = length - at - 500; /* no page's begin or end */
	int fd = memfd_create("copy", MFD_CLOEXEC), err;
	char *copy;

	if (fd < 0 || ftruncate(fd, (off_t)(length + piece)) < 0)
		nvh_bail("memfd: %s", nvh_errname(errno));
	copy = mmap(NULL, length + piece, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (copy == MAP_FAILED)
		nvh_bail("mmap of the copy: %s", nvh_errname(errno));
	err = pinner->transfer(start, length, fd, 0, false);
	fact_equal("copied", err, memcmp(copy, start, length) == 0);
	nvh_step(true, "%s copies what it has pinned: %s", pinner->name, nvh_errname(err));
	err = pinner->transfer(start + at, piece, fd, (off_t)length, false);
	fact_equal("copied_piece", err, memcmp(copy + length, start + at, piece) == 0);
	nvh_step(true, "%s copies a piece: %s", pinner->name, nvh_errname(err));
	if (write && !repeat) { /* where one page is everywhere, it cannot hold all that is read */
		memory_fill(copy + at, piece, SEED_READ);
		err = pinner->transfer(start + at, piece, fd, (off_t)at, true);
		fact_equal("read_piece", err, memcmp(copy, start, length) == 0);
		nvh_step(true, "%s reads a piece: %s", pinner->name, nvh_errname(err));
		memcpy(start + at, copy + length, piece);
	}
	munmap(copy, length + piece);
	close(fd);
}

static void fact_answer(const char *key, const struct pinner *pinner, int err)
{
	if (err && pinner->passing)
		nvh_fact_str(key, "refused");
	else
		nvh_fact_errno(key, err);
}

/*
 * Moves the mapping, of which nothing is touched, to an address that has nothing behind it.  It is one
 * for huge pages: where they come to lie is told by no chance.
 */
static void move_before_hole(void)
{
	char *room = mmap(NULL, memory.size + 2 * HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *to = (char *)(((uintptr_t)room + HUGE - 1) & ~(HUGE - 1));

	if (room == MAP_FAILED ||
	    mremap(memory.addr, memory.size, memory.size, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED)
		nvh_bail("mremap: %s", nvh_errname(errno));
	memory.addr = to;
}

/* All of the mapping is there to be pinned, and behind it a page that is not. */
static void try_beyond(const struct pinner *pinner, bool write)
{
	size_t page = memory_page();
	long long before[PROBES];
	bool counted = probe_counts(&probe, before);
	int err;

	munmap(start + length, page);
	err = pinner->pin(start, length + page, write);
	fact_answer("beyond", pinner, err);
	nvh_step(true, "%s pins a page that is not mapped: %s", pinner->name, nvh_errname(err));
	if (!err && pinner->unpin)
		pinner->unpin();
	if (counted)
		await_return(before);
	probe_fact(&probe, "refs_beyond");
	nvh_fact_int("pinned_beyond_kib", memory_status("VmPin"));
}

/* As much again, now that nothing is pinned.  The kernel may give back what was charged a little later. */
static void pin_again(const struct pinner *pinner, bool write)
{
	double begin = nvh_now();
	int err;

	while ((err = pinner->pin_more(start, length, write)) && nvh_now() - begin < RETURN_SECONDS)
		nvh_sleep(0.02);
	nvh_fact_errno("pin_again", err);
	nvh_step(true, "%s pins again: %s", pinner->name, nvh_errname(err));
}

static void while_pinned(const struct pinner *pinner, bool write, bool touched, bool pinned)
{
	int err;

	nvh_fact_int("pinned_kib", memory_status("VmPin"));
	probe_fact(&probe, "refs_pinned");
	if (pinner->transfer && pinned) { /* else what it transfers may be anybody's */
		check_transfers(pinner, write);
		if (!touched) /* the comparison maps the pages as well */
			forget_mapping();
	}
	if (view.addr)
		nvh_fact_bool("data_kept", memory_check(view.addr, view.size, SEED_FILE) == view.size);
	if (memlock_text) {
		err = pinner->pin_more(start, length, write);
		nvh_fact_errno("pin_more", err);
		nvh_step(true, "%s pins as much again: %s", pinner->name, nvh_errname(err));
	}
	err = pinner->unpin();
	nvh_fact_errno("unpin", err);
	nvh_step(true, "unpin: %s", nvh_errname(err));
}

static void try_to_pin(const struct pinner *pinner, bool write, bool touched)
{
	long long before[PROBES];
	bool counted = probe_counts(&probe, before);
	double begin = nvh_now();
	int err = pinner->pin(start, length, write);

	nvh_fact_seconds("pin_seconds", nvh_now() - begin);
	fact_answer("pin", pinner, err);
	nvh_step(true, "%s pins %zu bytes: %s", pinner->name, length, nvh_errname(err));
	if (!touched)
		forget_mapping();
	if (!err && !pinner->passing)
		while_pinned(pinner, write, touched, !counted || held(before) == PROBES);
	if (!err && memlock_text)
		pin_again(pinner, write);
	if (counted)
		await_return(before);
	probe_fact(&probe, "refs_after");
	nvh_fact_int("pinned_after_kib", memory_status("VmPin"));
}

int main(int argc, char **argv)
{
	const char *failed = NULL;
	int err;

	nvh_options(argc, argv, "Have memory pinned for long by a part of the kernel other than VFIO.", options);
	const struct pinner *pinner = find_pinner();
	source_parse(source_text, &source);
	size_t page = memory_page(), inside = nvh_size("inside", inside_text);
	off_t offset = (off_t)nvh_size("offset", offset_text);
	int prot = nvh_choice("prot", prot_text, prot_words) ? PROT_READ | PROT_WRITE : PROT_READ;
	bool write = nvh_choice("access", access_text, access_words) == 1;
	int touched = nvh_choice("touch", touch_text, touch_words);

	length = nvh_size("size", size_text);
	if (length < page)
		nvh_usage("--size %s: less than a page", size_text);
	if (beyond_test && ((source.kind != SOURCE_ANON && source.kind != SOURCE_MEMFD) || (inside + length) % page))
		nvh_usage("--beyond needs a --source anon, anon-private or memfd, and to end with a page");
	if (repeat && (source.kind != SOURCE_FILE || source.private || source.readonly))
		nvh_usage("--repeat needs a --source file:PATH");
	if (memlock_text && !pinner->pin_more)
		nvh_usage("--memlock: %s is not held to it", pinner->name);
	if (!write && !pinner->reads)
		nvh_usage("--access r: %s pins for writing only", pinner->name);
	if (touched == TOUCH_WRITE && !(prot & PROT_WRITE))
		nvh_usage("--touch write needs --prot rw");
	if (truncate_test && (source.kind != SOURCE_FILE || source.readonly))
		nvh_usage("--truncate needs a --source file:PATH that is not :ro");

	nvh_begin("longpin");
	nvh_fact_str("pinner", pinner->name);
	nvh_fact_str("source", source_text);
	if (memlock_text)
		memory_limit_locked(nvh_size("memlock", memlock_text));
	if (!pinner->open(device, write))
		return nvh_end();
	refcount_open();
	memory.size = (inside + length + page - 1) / page * page;
	if (source.kind == SOURCE_HUGETLB)
		memory.size = (memory.size + HUGE - 1) / HUGE * HUGE;
	view.fd = -1;
	map_view(offset);
	err = memory_map(&memory, &source, memory.size, offset, prot, &failed);
	if (err)
		nvh_bail("%s: %s", failed, nvh_errname(err));
	if (source.kind == SOURCE_FILE)
		nvh_fact_int("dax", memory_is_dax(memory.fd));
	if (beyond_test)
		move_before_hole();
	start = (char *)memory.addr + inside;
	if (repeat)
		repeat_page(offset, prot);
	touch(touched);
	choose_pages(touched);
	nvh_fact_int("pinned_before_kib", memory_status("VmPin"));
	if (beyond_test)
		try_beyond(pinner, write);
	try_to_pin(pinner, write, touched != TOUCH_NONE);
	if (truncate_test)
		probe_truncate(memory.fd);
	memory_unmap(&memory);
	memory_unmap(&view);
	return nvh_end();
}
