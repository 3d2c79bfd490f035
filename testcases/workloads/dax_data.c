/*
 * What a DAX file holds, seen through mappings of every kind, through read() and write(), after each of
 * the things that make fs/dax.c change what is mapped.  Each check has a file of its own and one fact:
 * "OK", or what was seen instead.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ballast.h"
#include "check.h"
#include "dax_file.h"
#include "dax_pipes.h"
#include "memory.h"
#include "nvh.h"

/* As look() for the window [FROM, TO): seed in [at, end), rest elsewhere. */
static void look_window(const char *who, const char *bytes, size_t at, size_t end, uint64_t seed, uint64_t rest)
{
	look(who, bytes, FROM, at, rest);
	look(who, bytes, at, end, seed);
	look(who, bytes, end, TO, rest);
}

/* The same of what read() gives. */
static void read_window(int fd, size_t at, size_t end, uint64_t seed, uint64_t rest)
{
	char *bytes = malloc(TO);

	must(bytes && pread(fd, bytes + FROM, TO - FROM, FROM) == (ssize_t)(TO - FROM), "pread");
	look_window("read()", bytes, at, end, seed, rest);
	free(bytes);
}

static void write_at(int fd, size_t at, size_t end, uint64_t seed)
{
	char *bytes = malloc(end - at);

	must(bytes != NULL, "malloc");
	memory_fill_at(bytes, end - at, seed, at);
	must(pwrite(fd, bytes, end - at, (off_t)at) == (ssize_t)(end - at), "pwrite");
	free(bytes);
}

/* A page that two mappings have read as a hole is allocated by a store through one of them. */
static void store_in(const char *name, int start)
{
	int fd = file_make(name, start);
	char *one = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED), *two = map(fd, PROT_READ, MAP_SHARED);

	look_window("first look", one, AT, AT, 0, 0);
	look_window("first look", two, AT, AT, 0, 0);
	memory_fill_at(one + AT, 4096, SEED_NEW, AT);
	look_window("its mapping", one, AT, AT + 4096, SEED_NEW, 0);
	look_window("another mapping", two, AT, AT + 4096, SEED_NEW, 0);
	read_window(fd, AT, AT + 4096, SEED_NEW, 0);
	close(fd);
}

/* The same by write(), of a part of two pages: the rest of the new blocks is zero. */
static void write_with(const char *name, int start, int flags, size_t at, size_t end)
{
	int fd = file_make(name, start), other = file_open(name, flags);
	char *view = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED);
	uint64_t rest = start == WRITTEN ? SEED_OLD : 0;

	look_window("first look", view, AT, AT, rest, rest);
	if (flags & O_DIRECT) {
		char *bytes = aligned_alloc(4096, end - at);

		must(bytes != NULL, "malloc");
		memory_fill_at(bytes, end - at, SEED_NEW, at);
		must(pwrite(other, bytes, end - at, (off_t)at) == (ssize_t)(end - at), "O_DIRECT write");
		free(bytes);
	} else {
		write_at(other, at, end, SEED_NEW);
	}
	look_window("mapping", view, at, end, SEED_NEW, rest);
	read_window(fd, at, end, SEED_NEW, rest);
	close(other);
	close(fd);
}

static void write_in(const char *name, int start)
{
	size_t at = start == WRITTEN ? HUGE_PAGE - 4196 : AT + 100; /* data: across the border */

	write_with(name, start, 0, at, at + 4496);
}

static void direct_write_in(const char *name, int start)
{
	write_with(name, start, O_DIRECT, AT, AT + 8192);
}

static bool same_mtime(const struct stat *one, const struct stat *two)
{
	return one->st_mtim.tv_sec == two->st_mtim.tv_sec && one->st_mtim.tv_nsec == two->st_mtim.tv_nsec;
}

/* A page that was only read is stored to: the entry becomes writable, and others see it; mtime tells. */
static void store_after_read(const char *name, int start)
{
	int fd = file_make(name, start);
	char *one = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED), *two = map(fd, PROT_READ, MAP_SHARED);
	struct stat before, after;

	look_window("first look", one, AT, AT, 0, SEED_OLD);
	look_window("first look", two, AT, AT, 0, SEED_OLD);
	must(fstat(fd, &before) == 0, "fstat");
	nvh_sleep(0.03); /* more than a tick */
	memory_fill_at(one + AT, 4096, SEED_NEW, AT);
	look_window("another mapping", two, AT, AT + 4096, SEED_NEW, SEED_OLD);
	read_window(fd, AT, AT + 4096, SEED_NEW, SEED_OLD);
	must(msync(one, SIZE, MS_SYNC) == 0 && fstat(fd, &after) == 0, "msync");
	if (same_mtime(&before, &after))
		check_differs("mtime is that from before the store");
	/* Clean again: the next store is a fault again, and arrives all the same. */
	memory_fill_at(one + AT, 4096, SEED_OTHER, AT);
	look_window("after msync()", two, AT, AT + 4096, SEED_OTHER, SEED_OLD);
	close(fd);
}

/* A huge and a small mapping of the same pages. */
static void huge_and_small(const char *name, int start)
{
	int fd = file_make(name, start);
	char *huge = map_as(fd, PROT_READ | PROT_WRITE, MAP_SHARED, dax_small);
	char *page = map_as(fd, PROT_READ | PROT_WRITE, MAP_SHARED, !dax_small);

	memory_fill_at(huge + AT, 4096, SEED_NEW, AT);
	look_window("the other size", page, AT, AT + 4096, SEED_NEW, SEED_OLD);
	memory_fill_at(page + AT, 4096, SEED_OTHER, AT);
	look_window("the first size", huge, AT, AT + 4096, SEED_OTHER, SEED_OLD);
	read_window(fd, AT, AT + 4096, SEED_OTHER, SEED_OLD);
	close(fd);
}

/* MAP_PRIVATE: a store stays with it; what it has not stored to it shares. */
static void private_copy(const char *name, int start)
{
	int fd = file_make(name, start);
	char *own = map(fd, PROT_READ | PROT_WRITE, MAP_PRIVATE), *file = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED);
	uint64_t rest = start == WRITTEN ? SEED_OLD : 0;
	struct stat before, info;

	look_window("first look", own, AT, AT, rest, rest);
	must(fstat(fd, &before) == 0, "fstat");
	nvh_sleep(0.03); /* more than a tick */
	memory_fill_at(own + AT, 4096, SEED_NEW, AT);
	/* A page never read is copied from the file, not from nowhere; that is no write to the file. */
	own[TO] = 1;
	look("the rest of a copied page", own, TO + 8, TO + 4096, rest);
	look_window("the private mapping", own, AT, AT + 4096, SEED_NEW, rest);
	look_window("the shared mapping", file, AT, AT, rest, rest);
	read_window(fd, AT, AT, rest, rest);
	must(fstat(fd, &info) == 0, "fstat");
	if (!same_mtime(&before, &info))
		check_differs("a store into a private mapping has changed the mtime");
	if (start == HOLE && info.st_blocks)
		check_differs("the hole has %lld blocks now", (long long)info.st_blocks);
	memory_fill_at(file + AT, 4096, SEED_OTHER, AT);
	look("the private page", own, AT, AT + 4096, SEED_NEW);
	memory_fill_at(file + AT + 4096, 4096, SEED_OTHER, AT + 4096);
	look("the private mapping's shared page", own, AT + 4096, AT + 8192, SEED_OTHER);
	read_window(fd, AT, AT + 8192, SEED_OTHER, rest);
	close(fd);
}

/* Beyond the last page of the file there is nothing, however its blocks lie and whatever is mapped. */
static void beyond_the_end(const char *name, int start)
{
	size_t end = HUGE_PAGE + 5000;
	int fd = file_make(name, start);
	char *view = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED);
	char *own = map(fd, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	uint64_t block, last;

	memory_touch(view, SIZE, true);
	memory_touch(own, SIZE, false);
	must(ftruncate(fd, (off_t)end) == 0, "ftruncate");
	/* Blocks beyond the end, so that an entry for 2 MiB would find its memory. */
	must(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, SIZE) == 0, "fallocate");
	look("the last pages", view, HUGE_PAGE - 4096, end, SEED_OLD);
	look("the rest of the last page", view, end, HUGE_PAGE + 8192, 0);
	check_access("load beyond the end", view + HUGE_PAGE + 8192, false, SIGBUS, BUS_ADRERR);
	check_access("store beyond the end", view + SIZE - 8, true, SIGBUS, BUS_ADRERR);
	check_access("private load beyond the end", own + HUGE_PAGE + 8200, false, SIGBUS, BUS_ADRERR);
	check_access("private store beyond the end", own + HUGE_PAGE + 8200, true, SIGBUS, BUS_ADRERR);
	check_access("load of the last page", view + HUGE_PAGE + 8191, false, 0, 0);
	must(ftruncate(fd, SIZE) == 0, "ftruncate");
	look("what has been given back", view, end, TO, 0);
	check_access("store beyond the old end", view + SIZE - 8, true, 0, 0);
	read_window(fd, FROM, end, SEED_OLD, 0);
	close(fd);
	/* Of 2 MiB the last page alone is not there, and its block is.  In a mapping that can be huge anew. */
	fd = file_make(name, HOLE);
	view = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED);
	must(ftruncate(fd, SIZE - 4096) == 0 && fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, SIZE) == 0, "fallocate");
	must(ballast_where(fd, HUGE_PAGE / 4096, &block) && block % HUGE_PAGE == 0 &&
	     ballast_where(fd, SIZE / 4096 - 1, &last) && last == block + HUGE_PAGE - 4096, "2 MiB in one piece");
	check_access("store before the end", view + HUGE_PAGE, true, 0, 0);
	check_access("store into the page beyond", view + SIZE - 8, true, SIGBUS, BUS_ADRERR);
	close(fd);
}

/* Mapped pages become zeros by fallocate() of that mode, which begins and ends within pages. */
static void zeroed_by(const char *name, int start, int mode)
{
	int fd = file_make(name, start);
	char *one = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED), *two = map(fd, PROT_READ, MAP_SHARED);
	char *own = map(fd, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	size_t at = HUGE_PAGE - 4096 - 100, end = HUGE_PAGE + 4096 + 300;

	memory_fill_at(own + TO, 4096, SEED_NEW, TO);
	memory_touch(one, SIZE, true);
	memory_touch(two, SIZE, false);
	mode |= FALLOC_FL_KEEP_SIZE;
	must(fallocate(fd, mode, (off_t)at, (off_t)(end - at)) == 0, "fallocate");
	look_window("mapping", one, at, end, 0, SEED_OLD);
	look_window("another mapping", two, at, end, 0, SEED_OLD);
	read_window(fd, at, end, 0, SEED_OLD);
	/* The pages in between may have been given away: what is stored now is new. */
	memory_fill_at(one + HUGE_PAGE, 4096, SEED_NEW, HUGE_PAGE);
	look("another mapping", two, HUGE_PAGE, HUGE_PAGE + 4096, SEED_NEW);
	look("the zeroed page before", two, HUGE_PAGE - 4096, HUGE_PAGE, 0);
	look("a private copy elsewhere", own, TO, TO + 4096, SEED_NEW);
	close(fd);
}

static void punched(const char *name, int start)
{
	zeroed_by(name, start, FALLOC_FL_PUNCH_HOLE);
}

static void zeroed(const char *name, int start)
{
	zeroed_by(name, start, FALLOC_FL_ZERO_RANGE);
}

/* Old contents of the device's blocks never come to light. */
static void nothing_stale(const char *name, int start)
{
	int fd = file_make(name, start);
	char *view;

	must(ftruncate(fd, 0) == 0 && fsync(fd) == 0, "ftruncate");
	sync(); /* the blocks are free when the journal says so */
	must(ftruncate(fd, SIZE) == 0, "ftruncate");
	view = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED);
	view[AT + 8] = 0; /* allocates */
	look("stored page", view, AT & ~(HUGE_PAGE - 1), SIZE, 0);
	write_at(fd, 5000, 5100, SEED_NEW);
	look("written page", view, 4096, 5000, 0);
	look("written page", view, 5000, 5100, SEED_NEW);
	look("written page", view, 5100, HUGE_PAGE, 0);
	close(fd);
}

/* write() and read() with a buffer that ends in nothing move what there is, and say how much. */
static void short_copy(const char *name, int start)
{
	size_t page = 4096, whole = page + 1000;
	int fd = file_make(name, start);
	char *room = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *buffer;
	ssize_t got;

	must(room != MAP_FAILED && munmap(room + 2 * page, 2 * page) == 0, "mmap");
	buffer = room + 2 * page - whole;
	memory_fill_at(buffer, whole, SEED_NEW, AT);
	got = pwrite(fd, buffer, whole + 3000, AT);
	if (got <= 0 || (size_t)got > whole)
		check_differs("write: %zd of %zu bytes that are there (%s)", got, whole,
			      got < 0 ? nvh_errname(errno) : "OK");
	else
		read_window(fd, AT, AT + (size_t)got, SEED_NEW, SEED_OLD);
	memset(buffer, 0, whole);
	got = pread(fd, buffer, whole + 3000, HUGE_PAGE - 8192);
	if (got <= 0 || (size_t)got > whole)
		check_differs("read: %zd of %zu bytes that are there (%s)", got, whole,
			      got < 0 ? nvh_errname(errno) : "OK");
	else if (memory_check_at(buffer, (size_t)got, SEED_OLD, HUGE_PAGE - 8192) != (size_t)got)
		check_differs("read: other bytes than the file's");
	got = pwrite(fd, room + 2 * page, page, AT);
	if (got != -1 || errno != EFAULT)
		check_differs("write of nothing: %zd, %s", got, nvh_errname(errno));
	close(fd);
}

/* Reading stops at the end; writing beyond it leaves a hole. */
static void ends_of_files(const char *name, int start)
{
	size_t end = HUGE_PAGE - 4096 + 10;
	int fd = file_make(name, start);
	char bytes[8192], *view;
	ssize_t got;

	must(ftruncate(fd, (off_t)end) == 0, "ftruncate");
	got = pread(fd, bytes, sizeof(bytes), HUGE_PAGE - 8192);
	if (got != 4096 + 10)
		check_differs("read at the end: %zd", got);
	got = pread(fd, bytes, sizeof(bytes), HUGE_PAGE);
	if (got != 0)
		check_differs("read beyond the end: %zd", got);
	write_at(fd, AT + 50, TO, SEED_NEW);
	if (lseek(fd, 0, SEEK_END) != (off_t)TO)
		check_differs("size %lld", (long long)lseek(fd, 0, SEEK_END));
	view = map(fd, PROT_READ, MAP_SHARED);
	look("before", view, FROM, end, SEED_OLD);
	look("between", view, end, AT + 50, 0);
	look("behind", view, AT + 50, TO, SEED_NEW);
	close(fd);
}

/* A huge entry is split, moved, dropped and inherited; the file stays what it is. */
static void mapping_changed(const char *name, int start)
{
	int fd = file_make(name, start), status = 0;
	char *view = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED), *room, *moved;
	pid_t child;

	memory_touch(view, SIZE, true);
	must(munmap(view + HUGE_PAGE - 4096, 4096) == 0, "munmap");
	look("around an unmapped page", view, FROM, HUGE_PAGE - 4096, SEED_OLD);
	look("around an unmapped page", view, HUGE_PAGE, TO, SEED_OLD);
	must(mprotect(view + AT, 4096, PROT_READ) == 0, "mprotect");
	check_access("store to a protected page", view + AT + 16, true, SIGSEGV, SEGV_ACCERR);
	check_access("store beside it", view + AT + 4096, true, 0, 0);
	memory_fill_at(view + AT + 4096, 4096, SEED_OLD, AT + 4096);
	must(mprotect(view + AT, 4096, PROT_READ | PROT_WRITE) == 0, "mprotect");
	child = fork();
	must(child >= 0, "fork");
	if (child == 0) {
		look("child", view, HUGE_PAGE, TO, SEED_OLD);
		memory_fill_at(view + AT, 4096, SEED_NEW, AT);
		_exit(0);
	}
	if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status))
		check_differs("a child did not end well");
	look("what a child stored", view, AT, AT + 4096, SEED_NEW);
	must(madvise(view + HUGE_PAGE, HUGE_PAGE, MADV_DONTNEED) == 0, "madvise");
	look("after MADV_DONTNEED", view, AT, AT + 4096, SEED_NEW);
	room = mmap(NULL, 2 * HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(room != MAP_FAILED, "mmap");
	room = (char *)(((uintptr_t)room + 8191) & ~4095UL);
	moved = mremap(view + HUGE_PAGE, 64 * 4096, 64 * 4096, MREMAP_MAYMOVE | MREMAP_FIXED, room);
	must(moved != MAP_FAILED, "mremap");
	look("moved", moved - HUGE_PAGE, AT, AT + 4096, SEED_NEW);
	look("moved", moved - HUGE_PAGE, AT + 4096, TO, SEED_OLD);
	read_window(fd, AT, AT + 4096, SEED_NEW, SEED_OLD);
	close(fd);
}

/* Maps a part of a file as its 2 MiB would lie, or one page off; nothing around it may be touched. */
static char *map_window(int fd, size_t from, size_t size, bool off_by_a_page)
{
	const int prot = PROT_READ | PROT_WRITE;
	char *room, *view;

	room = mmap(NULL, size + 2 * HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(room != MAP_FAILED, "mmap");
	view = (char *)(((uintptr_t)room + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1)) + from % HUGE_PAGE;
	view += off_by_a_page ? 4096 : 0;
	must(mmap(view, size, prot, MAP_SHARED | MAP_FIXED, fd, (off_t)from) == view, "mmap");
	return view;
}

/* A mapping that is smaller than its 2 MiB, at either end, shows what belongs there. */
static void small_window(const char *name, int start)
{
	int fd = file_make(name, start);
	size_t from = HUGE_PAGE + 4 * 4096, size = 32 * 4096;
	uint64_t block, last;
	char *whole = map(fd, PROT_READ, MAP_SHARED), *first;
	char *view = map_window(fd, from, size, false);

	memory_fill_at(view, size, SEED_NEW, from);
	check_access("the page before", view - 8, false, SIGSEGV, SEGV_ACCERR);
	check_access("the page behind", view + size, false, SIGSEGV, SEGV_ACCERR);
	look("the whole mapping", whole, from, from + size, SEED_NEW);
	look("before", whole, HUGE_PAGE, from, SEED_OLD);
	look("behind", whole, from + size, from + 2 * size, SEED_OLD);
	/* One that begins with 2 MiB of which nobody has touched anything, and ends too early. */
	must(dax_small ||
	     (ballast_where(fd, 0, &block) && block % HUGE_PAGE == 0 &&
	      ballast_where(fd, HUGE_PAGE / 4096 - 1, &last) && last == block + HUGE_PAGE - 4096),
	     "2 MiB in one piece");
	first = map_window(fd, 0, size, dax_small);
	memory_fill_at(first, 4096, SEED_NEW, 0);
	check_access("the page behind the first ones", first + size, false, SIGSEGV, SEGV_ACCERR);
	look("the whole mapping", whole, 0, 4096, SEED_NEW);
	look("the rest of it", whole, 4096, size, SEED_OLD);
	close(fd);
}

/* No block is left: a store into a hole is SIGBUS, and none any more when there is room again. */
static void no_room(const char *name, int start)
{
	int fd = file_make(name, start);
	char *view = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED), path[4096];

	snprintf(path, sizeof(path), "%s/../room", dax_directory); /* where no hint rounds allocations up */
	must(ballast_fill(path), "ballast");
	check_access("store into a hole without room", view + AT, true, SIGBUS, BUS_ADRERR);
	check_access("load of that hole", view + AT, false, 0, 0);
	ballast_drop(path);
	sync(); /* the blocks are free when the journal says so */
	memory_fill_at(view + AT, 4096, SEED_NEW, AT);
	look_window("with room", view, AT, AT + 4096, SEED_NEW, 0);
	close(fd);
}

#define CHECK_SECONDS 30 /* each takes a few */

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(const char *name, int start);
		enum start start;
	} checks[] = {
		{"store_in_a_read_hole", store_in, HOLE},
		{"store_in_unwritten", store_in, UNWRITTEN},
		{"write_in_a_read_hole", write_in, HOLE},
		{"write_in_unwritten", write_in, UNWRITTEN},
		{"write_in_written", write_in, WRITTEN},
		{"direct_write_in_a_read_hole", direct_write_in, HOLE},
		{"store_after_read", store_after_read, WRITTEN},
		{"huge_and_small", huge_and_small, WRITTEN},
		{"private_over_data", private_copy, WRITTEN},
		{"private_over_a_hole", private_copy, HOLE},
		{"beyond_the_end", beyond_the_end, WRITTEN},
		{"punched", punched, WRITTEN},
		{"zeroed", zeroed, WRITTEN},
		{"nothing_stale", nothing_stale, WRITTEN},
		{"short_copy", short_copy, WRITTEN},
		{"ends_of_files", ends_of_files, WRITTEN},
		{"mapping_changed", mapping_changed, WRITTEN},
		{"small_window", small_window, WRITTEN},
		{"no_room", no_room, HOLE},
		{"sent", sent, WRITTEN},
		{"spliced", spliced, WRITTEN},
		{"vmspliced", vmspliced, WRITTEN},
	};
	const struct nvh_option options[] = {
		{"directory", &dax_directory, NULL, "where the files are made"},
		{"small", NULL, &dax_small, "map so that no entry can be huge"},
		{NULL, NULL, NULL, NULL},
	};

	nvh_options(argc, argv, "Change the files of a DAX file system in every way and look at them.", options);
	if (!dax_directory)
		nvh_usage("--directory PATH is needed");
	nvh_begin("dax_data");
	nvh_fact_bool("dax", memory_is_dax(file_make("empty", HOLE)) == 1);
	file_prepare();
	for (size_t i = 0; i < sizeof(checks) / sizeof(*checks); i++)
		if (!check_run(checks[i].name, checks[i].run, checks[i].start, CHECK_SECONDS))
			break;
	return nvh_end();
}
