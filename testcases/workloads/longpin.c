/*
 * Asks a part of the kernel other than VFIO to pin memory of any source (P rows) and reports what
 * came of it: the answer, the pages' reference counts, locked memory, and whether the file can be
 * truncated.  What is pinned may begin anywhere in a page, and may be refused for its last page.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"
#include "pinner.h"
#include "probe.h"
#include "refcount.h"
#include "refusals.h"
#include "transfers.h"
#include "uring.h"

/* How long the references of pages that were let go of may stay. */
#define RETURN_SECONDS 10.0

#define HUGE (2UL << 20)

#define SEED_FILE 1
#define SEED_COPY 2
#define SEED_FORKED 4 /* transfers.c has the one between */

enum { TOUCH_NONE, TOUCH_READ, TOUCH_WRITE, TOUCH_HALF };

static const char *const touch_words[] = {"none", "read", "write", "half", NULL};
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
static bool partly_test;
static bool fork_test;
static bool fork_after_test;
static bool end_test;
static bool repeat;
static bool truncate_test;

static const struct nvh_option options[] = {
	{"pinner", &pinner_text, NULL, "io_uring, rdma, xdp, vivid, gup_test, gup_test-fast, gup_test-once"},
	{"device", &device, NULL, "of rdma, vivid, gup_test (default: where it is found)"},
	{"source", &source_text, NULL, SOURCE_HELP " (default anon)"},
	{"size", &size_text, NULL, "bytes to pin (default 2M)"},
	{"offset", &offset_text, NULL, "file offset of the mapping (default 0)"},
	{"inside", &inside_text, NULL, "begin to pin so many bytes behind the mapping's begin (default 0)"},
	{"repeat", NULL, &repeat, "have one page of the file at every address, and tell if it is of a large folio"},
	{"prot", &prot_text, NULL, "of the mmap: r, rw (default rw)"},
	{"access", &access_text, NULL, "what the pinner is to do with the memory: r, rw (default rw)"},
	{"touch", &touch_text, NULL, "before pinning: none, read, write, half of what was written (default write)"},
	{"fork", NULL, &fork_test, "before pinning, have a child that shares the memory; write to it when pinned"},
	{"fork-after", NULL, &fork_after_test, "when pinned, fork a child, then write to the memory"},
	{"beyond", NULL, &beyond_test, "first have a page pinned with it that is not mapped"},
	{"memlock", &memlock_text, NULL, "RLIMIT_MEMLOCK in bytes, and no CAP_IPC_LOCK: pin more, then again"},
	{"partly", NULL, &partly_test, "with --memlock: first as much of which all but a page is not mapped"},
	{"end", NULL, &end_test, "let go by closing what was pinned with"},
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
static long pinned_before; /* KiB */
static pid_t child;

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

/* Takes the second half out of the page table; the pages stay, shared memory has them. */
static void forget_half(void)
{
	size_t half = memory.size / 2 / memory_page() * memory_page();

	if (madvise((char *)memory.addr + half, memory.size - half, MADV_DONTNEED) < 0)
		nvh_bail("MADV_DONTNEED: %s", nvh_errname(errno));
	nvh_fact_bool("half_absent", memory_pfn(memory.addr) && !memory_pfn((char *)memory.addr + half) &&
					     !memory_pfn(start + length - 1));
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
 * Some pinners give back by a work queue, and writeback holds pages for a moment: wait until no page has
 * more references than before, and the process is charged for no more.
 */
static void await_return(const long long before[PROBES])
{
	double begin = nvh_now();
	int count;

	while (((count = held(before)) > 0 || memory_status("VmPin") > pinned_before) &&
	       nvh_now() - begin < RETURN_SECONDS)
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

/* Maps private memory anew, for a huge page where one fits, whatever the system does by itself. */
static void map_for_huge(int prot)
{
	munmap(memory.addr, memory.size);
	memory.addr = memory_map_aligned(-1, memory.size, 0, prot, MAP_PRIVATE | MAP_ANONYMOUS, 0);
	if (madvise(memory.addr, memory.size, MADV_HUGEPAGE) < 0)
		nvh_note("MADV_HUGEPAGE: %s", nvh_errname(errno));
}

/* All of the mapping is there to be pinned, and behind it a page that is not. */
static void try_beyond(const struct pinner *pinner, bool write)
{
	size_t page = memory_page();
	long long before[PROBES] = {0};
	int err;

	probe_counts(&probe, before);
	munmap(start + length, page);
	err = pinner->pin(start, length + page, write);
	fact_answer("beyond", pinner, err);
	nvh_step(true, "%s pins a page that is not mapped: %s", pinner->name, nvh_errname(err));
	if (!err && pinner->unpin)
		pinner->unpin();
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

/* Where there are movable zones: how many of the pages lie in one. */
static void report_movable(const char *key)
{
	long pages = memory_movable(start, length);

	if (pages >= 0)
		nvh_fact_int(key, pages);
}

/* A child that does nothing: what was private memory of one process is copy-on-write now. */
static void fork_idle(void)
{
	child = fork();
	if (child < 0)
		nvh_bail("fork: %s", nvh_errname(errno));
	if (child == 0) {
		refcount_forget();
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
}

static void fork_sharing(void)
{
	struct page_refs seen;

	fork_idle();
	probe_fact(&probe, "refs_shared");
	if (refcount_look(probe.pfn[1], &seen)) /* the first page would be a head */
		nvh_fact_bool("large_folio", seen.compound);
}

static void let_go(const struct pinner *pinner)
{
	int err = end_test ? pinner->end() : pinner->unpin();

	nvh_fact_errno("unpin", err);
	nvh_step(true, "%s: %s", end_test ? "closed what it pinned with" : "unpin", nvh_errname(err));
}

/* While a child shares the memory: what was pinned is to stay what the process has. */
static void while_shared(const struct pinner *pinner)
{
	struct probe pinned, written;
	long long with[PROBES], without[PROBES];
	double begin = nvh_now();
	size_t fallen = 0;

	if (!probe_find(&pinned, start, length))
		return;
	memory_touch(memory.addr, memory.size, true);
	if (!probe_find(&written, start, length) || !probe_counts(&written, with))
		return;
	nvh_fact_int("moved_by_write", (long long)probe_moved(&written, &pinned));
	nvh_step(true, "wrote to all pages while they were pinned");
	let_go(pinner);
	do {
		nvh_sleep(0.02);
		fallen = 0;
		for (size_t i = 0; probe_counts(&written, without) && i < PROBES; i++)
			fallen += without[i] < with[i];
	} while (fallen < PROBES && nvh_now() - begin < RETURN_SECONDS);
	nvh_fact_int("let_go_of", (long long)fallen);
}

static void while_pinned(const struct pinner *pinner, bool write, bool touched, bool pinned)
{
	int err;

	nvh_fact_int("pinned_kib", memory_status("VmPin"));
	probe_fact(&probe, "refs_pinned");
	report_movable("movable_pinned");
	if (fork_after_test) {
		fork_idle();
		memory_fill(start, length, SEED_FORKED);
	}
	if (pinner->transfer && pinned) { /* else what it transfers may be anybody's */
		/* where one page is everywhere, it cannot hold all that is read */
		transfers_check(pinner, start, length, write && !repeat);
		if (!touched) /* the comparison maps the pages as well */
			forget_mapping();
	}
	if (view.addr)
		nvh_fact_bool("data_kept", memory_check(view.addr, view.size, SEED_FILE) == view.size);
	if (pinner->once) {
		err = pinner->pin(start, length, write);
		nvh_fact_errno("pin_twice", err);
		nvh_step(true, "%s pins besides what it has: %s", pinner->name, nvh_errname(err));
	}
	if (memlock_text) {
		err = pinner->pin_more(start, length, write);
		nvh_fact_errno("pin_more", err);
		nvh_step(true, "%s pins as much again: %s", pinner->name, nvh_errname(err));
	}
	let_go(pinner);
}

static void try_to_pin(const struct pinner *pinner, bool write, int how)
{
	long long before[PROBES] = {0};
	bool counted = probe_counts(&probe, before), touched = how != TOUCH_NONE;
	double begin = nvh_now();
	int err;

	if (how == TOUCH_HALF)
		forget_half();
	err = pinner->pin(start, length, write);
	nvh_fact_seconds("pin_seconds", nvh_now() - begin);
	fact_answer("pin", pinner, err);
	nvh_step(true, "%s pins %zu bytes: %s", pinner->name, length, nvh_errname(err));
	if (!touched)
		forget_mapping();
	if (!err && fork_test) {
		while_shared(pinner);
		return; /* the pages are others by now */
	}
	if (!err && !pinner->passing)
		while_pinned(pinner, write, touched, !counted || held(before) == PROBES);
	if (!err && memlock_text)
		pin_again(pinner, write);
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
	if (partly_test && !memlock_text)
		nvh_usage("--partly needs --memlock");
	if (end_test && !pinner->end)
		nvh_usage("--end: %s has nothing to close", pinner->name);
	if (fork_test && (source.kind != SOURCE_ANON || !source.private || !pinner->unpin || touched != TOUCH_WRITE))
		nvh_usage("--fork needs --source anon-private, --touch write and a pin that lasts");
	if (fork_after_test && (source.kind != SOURCE_ANON || !source.private || fork_test))
		nvh_usage("--fork-after needs --source anon-private, and no --fork");
	if (fork_after_test && !pinner->transfer)
		nvh_usage("--fork-after: %s copies nothing", pinner->name);
	if (touched == TOUCH_HALF && (source.private || (source.kind != SOURCE_ANON && source.kind != SOURCE_MEMFD)))
		nvh_usage("--touch half needs a --source anon or memfd");
	if (!write && !pinner->reads)
		nvh_usage("--access r: %s pins for writing only", pinner->name);
	if (touched >= TOUCH_WRITE && !(prot & PROT_WRITE))
		nvh_usage("--touch %s needs --prot rw", touch_text);
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
	if (err == ENOSYS && source.kind == SOURCE_SECRET) {
		pinner_missing(failed, err);
		return nvh_end();
	}
	if (err)
		nvh_bail("%s: %s", failed, nvh_errname(err));
	if (source.kind == SOURCE_FILE)
		nvh_fact_int("dax", memory_is_dax(memory.fd));
	if (beyond_test)
		move_before_hole();
	if (fork_test)
		map_for_huge(prot);
	start = (char *)memory.addr + inside;
	if (repeat)
		repeat_page(offset, prot);
	touch(touched);
	choose_pages(touched);
	pinned_before = memory_status("VmPin");
	nvh_fact_int("pinned_before_kib", pinned_before);
	report_movable("movable_before");
	if (beyond_test)
		try_beyond(pinner, write);
	if (memlock_text && write)
		refusals_readonly(pinner, length);
	if (partly_test)
		refusals_partly(pinner, length);
	if (fork_test)
		fork_sharing();
	try_to_pin(pinner, write, touched);
	if (child && kill(child, SIGKILL) == 0)
		waitpid(child, NULL, 0);
	if (truncate_test)
		probe_truncate(memory.fd);
	memory_unmap(&memory);
	memory_unmap(&view);
	return nvh_end();
}
