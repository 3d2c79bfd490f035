/*
 * Stores into a DAX file through mappings and reports which of its pages each fsync() or msync() writes
 * back, as the kernel's tracepoints tell it, and how many bytes were flushed out of the processor's caches.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"
#include "trace.h"

#define HUGE_PAGE (2UL << 20)
#define SIZE (2 * HUGE_PAGE)
#define LISTED 32

/* The pages that are mapped once more, within what may be one entry. */
#define PART_AT 16
#define PART 16

#define ZEROED 200 /* bytes */

static int fd;

static void store(char *view, size_t page)
{
	((volatile char *)view)[page * 4096 + 64] = (char)page;
}

/*
 * What write() brings is dirty in no entry that a sync would write back: it goes past the caches on its
 * way, or is flushed at once.  Fact uncached: how many bytes; -1 where that is not told.  Nor are the
 * zeros dirty that a part of a page is given, which are stored: fact zeroed_flushed.
 */
static void report_write(void)
{
	char page[4096];
	long long past, flushed;

	memset(page, 2, sizeof(page));
	trace_clear();
	if (pwrite(fd, page, sizeof(page), 900 * 4096L) != (ssize_t)sizeof(page) || fsync(fd))
		nvh_bail("write: %s", nvh_errname(errno));
	past = trace_uncached();
	flushed = trace_flushed();
	nvh_fact_int("uncached", past < 0 || flushed < 0 ? -1 : past + flushed);
	nvh_step(true, "written");
	trace_clear();
	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 900 * 4096L + 100, ZEROED))
		nvh_bail("punch: %s", nvh_errname(errno));
	nvh_fact_int("zeroed_flushed", trace_flushed());
	trace_clear();
	nvh_step(true, "zeroed a part of a page");
}

/* Facts WHAT (pages and how many, by turns) and WHAT_flushed (bytes, -1 where they are not told). */
static void report(const char *what, int err)
{
	long long pages[LISTED];
	char key[64];

	if (err)
		nvh_bail("%s: %s", what, nvh_errname(errno));
	nvh_fact_ints(what, pages, trace_written_back(pages, LISTED));
	snprintf(key, sizeof(key), "%s_flushed", what);
	nvh_fact_int(key, trace_flushed());
	trace_clear();
	nvh_step(true, "%s", what);
}

/*
 * A device's transfer into a page that is mapped and clean: no sync knows of what it leaves there
 * unless the page was taken for it as one that is stored to.
 */
static void report_direct_read(const char *device, char *page)
{
	int from = open(device, O_RDONLY | O_DIRECT | O_CLOEXEC);

	if (from < 0 || pread(from, page, 4096, 0) != 4096)
		nvh_bail("%s cannot be read: %s", device, nvh_errname(errno));
	close(from);
	report("direct_read", fsync(fd));
}

/* A mapping of a few pages in the middle of an entry: it, too, is no longer writable after a sync. */
static void report_part(size_t skew)
{
	char *part = memory_map_aligned(fd, PART * 4096, PART_AT * 4096, PROT_READ | PROT_WRITE,
					MAP_SHARED, skew);

	store(part, 4);
	report("part", fsync(fd));
	store(part, 4);
	report("part_again", fsync(fd));
	munmap(part, PART * 4096);
}

/* Clean pages that may not be stored to and then may again: the store has to be noticed. */
static void report_protect(char *view)
{
	struct memory_fault fault;

	if (mprotect(view, SIZE, PROT_READ))
		nvh_bail("mprotect: %s", nvh_errname(errno));
	fault = memory_access(view + 10 * 4096, true);
	nvh_fact_str("store_to_read_only",
		     fault.signum == SIGSEGV ? "SIGSEGV" : fault.signum ? "SIGBUS" : "OK");
	if (mprotect(view, SIZE, PROT_READ | PROT_WRITE))
		nvh_bail("mprotect: %s", nvh_errname(errno));
	store(view, 10);
	report("protected", fsync(fd));
}

/*
 * A store through MAP_SYNC: its fault makes the new block durable and maps it on a way of its own
 * (dax_finish_sync_fault()), and the data is as dirty as any.
 */
static void report_map_sync(const char *path, size_t skew)
{
	char beside[4096], *view;

	snprintf(beside, sizeof(beside), "%s-sync", path);
	fd = open(beside, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || fallocate(fd, 0, 0, SIZE))
		nvh_bail("%s cannot be made: %s", beside, nvh_errname(errno));
	view = memory_map_aligned(fd, SIZE, 0, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_SYNC, skew);
	store(view, 6);
	nvh_fact_int("sync_faults", (long long)trace_count("dax_insert_pfn_mkwrite", " NOPAGE"));
	trace_clear();
	report("map_sync", fsync(fd));
	munmap(view, SIZE);
	close(fd);
}

int main(int argc, char **argv)
{
	const char *path = NULL, *device = NULL;
	bool small = false;
	const struct nvh_option options[] = {
		{"file", &path, NULL, "the file to make"},
		{"device", &device, NULL, "a block device to read from, past the page cache"},
		{"small", NULL, &small, "map so that no entry can be huge"},
		{NULL, NULL, NULL, NULL},
	};
	char *view, *other;
	size_t skew;

	nvh_options(argc, argv, "Report which pages of a DAX file are written back.", options);
	if (!path)
		nvh_usage("--file PATH is needed");
	skew = small ? memory_page() : 0;
	nvh_begin("writeback");
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, SIZE))
		nvh_bail("%s cannot be made: %s", path, nvh_errname(errno));
	view = malloc(SIZE);
	if (!view || pwrite(fd, memset(view, 1, SIZE), SIZE, 0) != (ssize_t)SIZE || fsync(fd))
		nvh_bail("%s cannot be written: %s", path, nvh_errname(errno));
	free(view);
	nvh_fact_bool("dax", memory_is_dax(fd) == 1);
	if (!trace_start()) {
		nvh_skip("no tracepoints of fs/dax.c");
		return nvh_end();
	}
	view = memory_map_aligned(fd, SIZE, 0, PROT_READ | PROT_WRITE, MAP_SHARED, skew);
	other = memory_map_aligned(fd, SIZE, 0, PROT_READ | PROT_WRITE, MAP_SHARED, skew);
	store(view, 3);
	store(view, 4);
	store(view, 700);
	report("stored", fsync(fd));
	report("nothing", fsync(fd));
	/* What has been written back is clean in every page table: the next store is noticed again. */
	store(view, 4);
	report("again", fdatasync(fd));
	store(other, 700);
	report("elsewhere", fsync(fd));
	/* A page that was only read before. */
	if (madvise(view, SIZE, MADV_DONTNEED))
		nvh_bail("madvise: %s", nvh_errname(errno));
	memory_touch(view, SIZE, false);
	report("read", fsync(fd));
	store(view, 5);
	nvh_fact_int("huge", (long long)trace_count("dax_pmd_fault_done", " NOPAGE"));
	report("read_before", fsync(fd));
	if (device)
		report_direct_read(device, view + 5 * 4096);
	report_part(skew);
	/* A range: the rest stays dirty until its turn. */
	store(view, 8);
	store(view, 800);
	report("range", msync(view + 8 * 4096, 4096, MS_SYNC));
	report("rest", fsync(fd));
	report_protect(view);
	/* Unmapped before it is synced. */
	store(other, 9);
	munmap(other, SIZE);
	report("unmapped", fsync(fd));
	report_write();
	close(fd);
	report_map_sync(path, skew);
	trace_stop();
	return nvh_end();
}
