/*
 * Maps a device-dax device, stores into it and looks at it through a second mapping; with --whole looks at
 * all of the device, and at what lies beyond it and what cannot be done with it.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"

#define SEED 11
#define PAGE 4096UL
#define HUGE_PAGE (2UL << 20)

/*
 * Which pages of the whole are touched: several of each unit of the alignment, or every fifth page.  All of
 * them would cost the host as much memory as the device has.
 */
static size_t step_of(size_t align)
{
	return align == PAGE ? 5 * PAGE : align / 32;
}

/* One load or store: "OK", "SIGBUS", "SIGSEGV", or that its address was another one. */
static const char *touch(char *at, bool store)
{
	struct memory_fault fault = memory_access(at, store);

	if (fault.signum && fault.addr != at)
		return "a signal with another address";
	return fault.signum == 0 ? "OK" : fault.signum == SIGBUS ? "SIGBUS" : "SIGSEGV";
}

/* KernelPageSize of the mapping at addr, in bytes. */
static long long kernel_page_size(const void *addr)
{
	unsigned long start, end;
	long long size = 0, value;
	bool here = false;
	char line[512];
	FILE *f = fopen("/proc/self/smaps", "re");

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			here = start <= (unsigned long)addr && (unsigned long)addr < end;
		else if (here && sscanf(line, "KernelPageSize: %lld", &value) == 1)
			size = value * 1024;
	}
	if (f)
		fclose(f);
	return size;
}

static const char *map_error(int fd, size_t size, int prot, int flags)
{
	void *addr = mmap(NULL, size, prot, flags, fd, 0);
	int err = addr == MAP_FAILED ? errno : 0;

	if (!err)
		munmap(addr, size);
	return nvh_errname(err);
}

/* Each page is stamped with where it lies, and found there through a mapping that starts elsewhere. */
static void stamp(const char *start, size_t size, size_t align, int fd)
{
	size_t wrong = 0, step = step_of(align), other = size > align ? align : 0;
	char *again;

	for (size_t at = 0; at < size; at += step)
		*(volatile uint64_t *)(uintptr_t)(start + at + 8) = at ^ 0x9e3779b97f4a7c15ULL;
	again = mmap(NULL, size - other, PROT_READ, MAP_SHARED, fd, (off_t)other);
	if (again == MAP_FAILED)
		nvh_bail("mmap at %zu: %s", other, nvh_errname(errno));
	for (size_t at = (other + step - 1) / step * step; at < size; at += step)
		wrong += *(volatile uint64_t *)(uintptr_t)(again + at - other + 8) != (at ^ 0x9e3779b97f4a7c15ULL);
	nvh_fact_int("misplaced_pages", (long long)wrong);
	munmap(again, size - other);
	nvh_step(true, "%zu pages stamped, %zu misplaced", size / step, wrong);
}

/* How many frames are not where the device's resource says. */
static void frames(const char *start, size_t size, size_t align, uint64_t resource)
{
	size_t wrong = 0, unknown = 0, step = 64 * step_of(align);

	for (size_t at = 0; at < size; at += step) {
		uint64_t pfn = memory_pfn(start + at);

		unknown += pfn == 0;
		wrong += pfn && pfn != (resource + at) / PAGE;
	}
	nvh_fact_int("frames_unknown", (long long)unknown);
	nvh_fact_int("frames_wrong", (long long)wrong);
}

/*
 * A mapping at an aligned address whose offset is one page off.  Fact part_offset: the errno, or whose data
 * its first page shows.
 */
static const char *map_part_offset(char *start, size_t align, int fd)
{
	char *addr = memory_map_aligned(fd, align, 0, PROT_READ, MAP_SHARED, 0);
	uint64_t marks[2] = {0x5a5a5a5a00000000ULL, 0x5a5a5a5a00000001ULL}, seen;
	const char *access;

	memcpy(start + 16, &marks[0], sizeof(marks[0]));
	memcpy(start + PAGE + 16, &marks[1], sizeof(marks[1]));
	/* In place of one that is aligned, so that only the offset is wrong. */
	if (mmap(addr, align, PROT_READ, MAP_SHARED | MAP_FIXED, fd, (off_t)PAGE) == MAP_FAILED)
		return nvh_errname(errno);
	access = touch(addr, false);
	if (strcmp(access, "OK") != 0)
		return access;
	memcpy(&seen, addr + 16, sizeof(seen));
	return seen == marks[1] ? "the data of its offset" : seen == marks[0] ? "the data of offset 0" : "other data";
}

static void look_at_whole(const char *path, size_t size, size_t align, uint64_t resource)
{
	struct rusage before, after;
	char *start, *second, byte = 1;
	size_t touched = 0;
	int fd = open(path, O_RDWR | O_CLOEXEC), readonly = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || readonly < 0)
		nvh_bail("%s: %s", path, nvh_errname(errno));
	/* More than there is: mmap(2) does not look at the device's size, an access does. */
	start = mmap(NULL, size + align, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	nvh_fact_errno("map", start == MAP_FAILED ? errno : 0);
	if (start == MAP_FAILED)
		return;
	getrusage(RUSAGE_SELF, &before);
	for (size_t at = 0; at < size; at += step_of(align), touched++)
		((volatile char *)start)[at] = 1;
	getrusage(RUSAGE_SELF, &after);
	nvh_fact_int("touched", (long long)touched);
	nvh_fact_int("faults", after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt);
	nvh_fact_int("kernel_page_size", kernel_page_size(start));
	nvh_fact_str("last_byte", touch(start + size - 1, true));
	nvh_fact_str("beyond", touch(start + size, false));
	nvh_fact_str("beyond_store", touch(start + size + align - 8, true));
	nvh_step(true, "touched all of it and what lies beyond");
	frames(start, size, align, resource);
	stamp(start, size, align, fd);
	if (align > PAGE) {
		nvh_fact_errno("split", munmap(start + PAGE, PAGE) ? errno : 0);
		nvh_fact_errno("split_protect", mprotect(start, align / 2, PROT_READ) ? errno : 0);
		nvh_fact_str("after_split", touch(start + PAGE, true));
		if (align == HUGE_PAGE && size > align)
			nvh_fact_str("part_offset", map_part_offset(start, align, fd));
		nvh_fact_str("part_length", map_error(fd, align / 2, PROT_READ, MAP_SHARED));
	}
	nvh_fact_str("map_sync", map_error(fd, align, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_SYNC));
	second = mmap(NULL, align, PROT_READ, MAP_SHARED, fd, 0);
	nvh_fact_str("store_to_read_only", second == MAP_FAILED ? nvh_errname(errno) : touch(second, true));
	nvh_fact_str("writable_of_read_only", map_error(readonly, align, PROT_READ | PROT_WRITE, MAP_SHARED));
	nvh_fact_errno("read", pread(fd, &byte, 1, 0) < 0 ? errno : 0);
	nvh_fact_errno("write", pwrite(fd, &byte, 1, 0) < 0 ? errno : 0);
	nvh_step(true, "tried what cannot be done");
}

int main(int argc, char **argv)
{
	const char *device = NULL, *length = "2M", *align = NULL, *resource = "0", *failed = "none";
	const struct nvh_option options[] = {
		{"device", &device, NULL, "/dev/daxX.Y"},
		{"size", &length, NULL, "how much of it (default 2M; a multiple of its alignment)"},
		{"whole", &align, NULL, "--size is all of it, and this is its alignment: look at everything"},
		{"resource", &resource, NULL, "--whole: its first byte's physical address"},
		{NULL, NULL, NULL, NULL},
	};
	struct mapping first, second;
	struct source source;
	char spec[128];
	size_t size;
	int err, signal;

	nvh_options(argc, argv, "Map a device-dax device and store into it.", options);
	if (!device || strlen(device) > 64)
		nvh_usage("--device /dev/daxX.Y is needed");
	size = nvh_size("size", length);
	snprintf(spec, sizeof(spec), "dax:%s", device);
	source_parse(spec, &source);
	if (align && (nvh_size("whole", align) < PAGE || size % nvh_size("whole", align)))
		nvh_usage("--whole %s: --size is a multiple of it", align);
	nvh_begin("devdax");
	if (align) {
		look_at_whole(device, size, nvh_size("whole", align), nvh_size("resource", resource));
		return nvh_end();
	}
	err = memory_map(&first, &source, size, 0, PROT_READ | PROT_WRITE, &failed);
	nvh_fact_errno("map", err);
	nvh_fact_str("failed", err ? failed : "none");
	nvh_step(true, "mmap: %s", nvh_errname(err));
	if (err)
		return nvh_end();
	signal = memory_touch_safely(first.addr, size, true);
	nvh_fact_int("signal", signal);
	nvh_step(true, "touched: signal %d", signal);
	if (signal)
		return nvh_end();
	memory_fill(first.addr, size, SEED);
	err = memory_map(&second, &source, size, 0, PROT_READ, &failed);
	nvh_fact_errno("map_again", err);
	if (nvh_step(!err, "a second mapping: %s", nvh_errname(err)))
		nvh_fact_str("data", memory_check(second.addr, size, SEED) == size ? "equal" : "differs");
	return nvh_end();
}
