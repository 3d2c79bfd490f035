/*
 * What a file or directory says of DAX: its statx attribute, its flag, which mappings it accepts
 * and with how many faults 2 MiB of it are mapped.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"
#include "trace.h"

#ifndef STATX_ATTR_DAX
#define STATX_ATTR_DAX 0x00200000 /* since 5.8 */
#endif
#ifndef FS_XFLAG_DAX
#define FS_XFLAG_DAX 0x00008000
#endif

#define HUGE_PAGE (2UL << 20)
#define UNKNOWN_MAP_FLAG 0x2000000 /* no MAP_ flag has this bit, up to 7.0 */
#define SEED 7

static const char *const switches[] = {"off", "on", NULL};

static void report_state(const char *path)
{
	struct statx info;
	struct fsxattr flags;
	int fd;

	if (statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &info))
		nvh_bail("statx %s: %s", path, nvh_errname(errno));
	nvh_fact_str("type", S_ISDIR(info.stx_mode) ? "directory" : S_ISREG(info.stx_mode) ? "file" : "other");
	nvh_fact_bool("dax", info.stx_attributes & STATX_ATTR_DAX);
	/* Before 5afa7e8b70d6 (v5.13, 5.10.37) the bit is in the attributes only. */
	nvh_fact_bool("dax_in_mask", info.stx_attributes_mask & STATX_ATTR_DAX);
	nvh_fact_int("attributes", (long long)info.stx_attributes);
	fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		nvh_bail("%s: %s", path, nvh_errname(errno));
	if (ioctl(fd, FS_IOC_FSGETXATTR, &flags) == 0)
		nvh_fact_bool("flag", flags.fsx_xflags & FS_XFLAG_DAX);
	else
		nvh_fact_str("flag_missing", nvh_errname(errno));
	close(fd);
	nvh_step(true, "state read");
}

static void set_flag(const char *path, bool on)
{
	struct fsxattr flags;
	int fd = open(path, O_RDONLY | O_CLOEXEC), err = 0;

	if (fd < 0)
		nvh_bail("%s: %s", path, nvh_errname(errno));
	if (ioctl(fd, FS_IOC_FSGETXATTR, &flags))
		nvh_bail("FS_IOC_FSGETXATTR: %s", nvh_errname(errno));
	flags.fsx_xflags &= ~(uint32_t)FS_XFLAG_DAX;
	if (on)
		flags.fsx_xflags |= FS_XFLAG_DAX;
	if (ioctl(fd, FS_IOC_FSSETXATTR, &flags))
		err = errno;
	close(fd);
	nvh_fact_errno("set_flag", err);
	nvh_step(true, "flag %s tried", on ? "on" : "off");
}

/* Whether the mapping at addr carries VM_SYNC: "sf" among the VmFlags of smaps. */
static bool is_sync(const void *addr)
{
	unsigned long start, end;
	bool here = false, sync = false;
	char line[512];
	FILE *f = fopen("/proc/self/smaps", "re");

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			here = start <= (unsigned long)addr && (unsigned long)addr < end;
		else if (here && !strncmp(line, "VmFlags:", 8))
			sync = strstr(line, " sf") != NULL;
	}
	if (f)
		fclose(f);
	return sync;
}

/* Tries one kind of mapping; facts NAME (errno) and, when it came to be, NAME_vm_sync and
 * NAME_data: what is stored through it is what read() gives. */
static void try_mapping(int fd, const char *name, int flags)
{
	size_t size = memory_page();
	char key[64], *back = malloc(size);
	void *addr = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

	nvh_fact_errno(name, addr == MAP_FAILED ? errno : 0);
	if (addr != MAP_FAILED) {
		snprintf(key, sizeof(key), "%s_vm_sync", name);
		nvh_fact_bool(key, is_sync(addr));
		memory_fill(addr, size, SEED + (uint64_t)flags);
		snprintf(key, sizeof(key), "%s_data", name);
		nvh_fact_str(key, pread(fd, back, size, 0) == (ssize_t)size &&
					  memory_check(back, size, SEED + (uint64_t)flags) == size
				  ? "OK" : "differs");
		munmap(addr, size);
	}
	free(back);
}

static void try_mappings(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		nvh_bail("%s: %s", path, nvh_errname(errno));
	try_mapping(fd, "shared", MAP_SHARED);
	try_mapping(fd, "validate", MAP_SHARED_VALIDATE);
	try_mapping(fd, "sync", MAP_SHARED_VALIDATE | MAP_SYNC);
	/* MAP_SHARED ignores flags that it does not know, MAP_SYNC among them. */
	try_mapping(fd, "unvalidated_sync", MAP_SHARED | MAP_SYNC);
	try_mapping(fd, "unknown", MAP_SHARED_VALIDATE | UNKNOWN_MAP_FLAG);
	close(fd);
	nvh_step(true, "mappings tried");
}

/*
 * Faults are counted: a page table entry for 2 MiB takes one, 4 KiB entries take 512.  The kernel's
 * tracepoints say the same in their own words: pmd_mapped, pmd_fallbacks, pte_faults.
 */
static void count_faults(const char *path, off_t offset, bool misaligned)
{
	struct rusage before, after;
	int fd = open(path, O_RDWR | O_CLOEXEC);
	char *addr, *back;
	bool traced;

	if (fd < 0)
		nvh_bail("%s: %s", path, nvh_errname(errno));
	addr = memory_map_aligned(fd, HUGE_PAGE, offset, PROT_READ | PROT_WRITE, MAP_SHARED,
				  misaligned ? memory_page() : 0);
	traced = trace_start();
	getrusage(RUSAGE_SELF, &before);
	for (size_t at = 0; at < HUGE_PAGE; at += memory_page())
		((volatile char *)addr)[at] = 1; /* stored at once: a load would be a fault of its own */
	getrusage(RUSAGE_SELF, &after);
	nvh_fact_int("faults", after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt);
	if (traced) {
		nvh_fact_int("pmd_mapped", (long long)trace_count("dax_pmd_fault_done", " NOPAGE"));
		nvh_fact_int("pmd_fallbacks", (long long)trace_count("dax_pmd_fault_done", " FALLBACK"));
		nvh_fact_int("pte_faults", (long long)trace_count("dax_pte_fault_done", NULL));
		trace_stop();
	}
	/* A page table entry that leads elsewhere is no use, however large it is. */
	memory_fill(addr, HUGE_PAGE, SEED);
	back = malloc(HUGE_PAGE);
	nvh_fact_str("mapped_data", back && pread(fd, back, HUGE_PAGE, offset) == (ssize_t)HUGE_PAGE &&
					    memory_check(back, HUGE_PAGE, SEED) == HUGE_PAGE
				    ? "OK" : "differs");
	free(back);
	close(fd);
	nvh_step(true, "2 MiB touched");
}

/* Writes the pattern to the file with write(), and leaves it where that puts it. */
static void fill(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	struct stat info;
	char *data;

	if (fd < 0 || fstat(fd, &info) || !(data = malloc((size_t)info.st_size)))
		nvh_bail("%s: %s", path, nvh_errname(errno));
	memory_fill(data, (size_t)info.st_size, SEED);
	if (write(fd, data, (size_t)info.st_size) != info.st_size)
		nvh_bail("write to %s: %s", path, nvh_errname(errno));
	free(data);
	close(fd);
	nvh_step(true, "%s written", path);
}

/* Facts content and content_mapped: is what fill() wrote still there. */
static void check(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat info;
	size_t size;
	char *data, *map;

	if (fd < 0 || fstat(fd, &info) || !(data = malloc((size_t)info.st_size)))
		nvh_bail("%s: %s", path, nvh_errname(errno));
	size = (size_t)info.st_size;
	nvh_fact_str("content", read(fd, data, size) == (ssize_t)size && memory_check(data, size, SEED) == size
				? "OK" : "differs");
	map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
	nvh_fact_str("content_mapped", map != MAP_FAILED && memory_check(map, size, SEED) == size ? "OK" : "differs");
	free(data);
	close(fd);
	nvh_step(true, "content looked at");
}

/* Fact journal: may the file have its data in the journal, chattr +j. */
static void journal_data(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), flags, err = 0;

	if (fd < 0 || ioctl(fd, FS_IOC_GETFLAGS, &flags))
		nvh_bail("FS_IOC_GETFLAGS of %s: %s", path, nvh_errname(errno));
	flags |= FS_JOURNAL_DATA_FL;
	if (ioctl(fd, FS_IOC_SETFLAGS, &flags))
		err = errno;
	close(fd);
	nvh_fact_errno("journal", err);
	nvh_step(true, "data in the journal tried");
}

/* Fact move_extent: may the first block change places with the donor's, as e4defrag has it done. */
static void move_extent(const char *path, const char *donor)
{
	struct {
		uint32_t reserved, donor_fd;
		uint64_t orig_start, donor_start, len, moved_len;
	} move = {.len = 1};
	int fd = open(path, O_RDWR | O_CLOEXEC), other = open(donor, O_RDWR | O_CLOEXEC), err = 0;

	if (fd < 0 || other < 0)
		nvh_bail("%s, %s: %s", path, donor, nvh_errname(errno));
	move.donor_fd = (uint32_t)other;
	if (ioctl(fd, _IOWR('f', 15, move), &move)) /* EXT4_IOC_MOVE_EXT */
		err = errno;
	close(other);
	close(fd);
	nvh_fact_errno("move_extent", err);
	nvh_step(true, "online defrag tried");
}

/* Fact private_store: a store into a private mapping is a page of the process's own; "OK" or the signal. */
static void store_privately(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	char *addr = fd < 0 ? MAP_FAILED : mmap(NULL, memory_page(), PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	struct memory_fault fault;

	if (addr == MAP_FAILED)
		nvh_bail("%s: %s", path, nvh_errname(errno));
	fault = memory_access(addr, true); /* not read before, which would leave the file system out of it */
	nvh_fact_str("private_store", fault.signum ? sigabbrev_np(fault.signum) : "OK");
	munmap(addr, memory_page());
	close(fd);
	nvh_step(true, "stored into a private mapping");
}

static bool is_dax_by_fd(int fd)
{
	struct statx info;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &info))
		nvh_bail("statx: %s", nvh_errname(errno));
	return info.stx_attributes & STATX_ATTR_DAX;
}

/* MAP_SYNC is what only a DAX file accepts: it tells what statx() promises. */
static const char *map_sync(int fd)
{
	void *addr = mmap(NULL, memory_page(), PROT_READ, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0);
	int err = addr == MAP_FAILED ? errno : 0;

	if (!err)
		munmap(addr, memory_page());
	return nvh_errname(err);
}

/* The file stays open while its flag changes and while it is opened once more.  Facts held_*, second_*. */
static void change_while_held(const char *path, bool on)
{
	int held = open(path, O_RDWR | O_CLOEXEC), second;

	if (held < 0)
		nvh_bail("%s: %s", path, nvh_errname(errno));
	nvh_fact_bool("held_before", is_dax_by_fd(held));
	set_flag(path, on);
	nvh_fact_bool("held_dax", is_dax_by_fd(held));
	nvh_fact_str("held_map_sync", map_sync(held));
	second = open(path, O_RDWR | O_CLOEXEC);
	if (second < 0)
		nvh_bail("%s: %s", path, nvh_errname(errno));
	nvh_fact_bool("second_dax", is_dax_by_fd(second));
	close(second);
	/* One user goes, another stays. */
	nvh_fact_bool("held_dax_after_a_close", is_dax_by_fd(held));
	close(held);
	nvh_step(true, "flag changed while the file was open");
}

static void create(const char *path, unsigned long long size)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0 || posix_fallocate(fd, 0, (off_t)size))
		nvh_bail("%s cannot be made: %s", path, nvh_errname(errno));
	close(fd);
	nvh_step(true, "%s made", path);
}

int main(int argc, char **argv)
{
	const char *path = NULL, *size = NULL, *flag = NULL, *donor = NULL, *offset = "0";
	bool map = false, journal = false, private = false, fault = false, misaligned = false, filled = false, checked = false, held = false;
	const struct nvh_option options[] = {
		{"path", &path, NULL, "the file or directory"},
		{"create", &size, NULL, "first make it a file of this size"},
		{"fill", NULL, &filled, "then write a pattern to it, unsynced"},
		{"journal", NULL, &journal, "then have its data in the journal (ext4)"},
		{"flag", &flag, NULL, "then set FS_XFLAG_DAX: on, off"},
		{"held", NULL, &held, "--flag: keep the file open meanwhile, and open it once more"},
		{"check", NULL, &checked, "then look whether --fill's pattern is there"},
		{"donor", &donor, NULL, "then move an extent of this file to it (ext4)"},
		{"map", NULL, &map, "then try MAP_SHARED, MAP_SHARED_VALIDATE and MAP_SYNC on its first page"},
		{"private", NULL, &private, "then store into a private mapping of its first page"},
		{"fault", NULL, &fault, "then map 2 MiB of it, 2 MiB aligned in memory, and count the faults"},
		{"offset", &offset, NULL, "where in the file --fault maps (default 0)"},
		{"misaligned", NULL, &misaligned, "--fault: one page off in memory"},
		{NULL, NULL, NULL, NULL},
	};
	int on;

	nvh_options(argc, argv, "Report the DAX state of a file or directory.", options);
	if (!path)
		nvh_usage("--path PATH is needed");
	if (held && !flag)
		nvh_usage("--held needs --flag");
	on = flag ? nvh_choice("flag", flag, switches) : -1;
	nvh_begin("dax_state");
	if (size)
		create(path, nvh_size("create", size));
	if (filled)
		fill(path);
	if (journal)
		journal_data(path);
	if (on >= 0 && held)
		change_while_held(path, on);
	else if (on >= 0)
		set_flag(path, on);
	report_state(path);
	if (checked)
		check(path);
	if (donor)
		move_extent(path, donor);
	if (map)
		try_mappings(path);
	if (private)
		store_privately(path);
	if (fault)
		count_faults(path, (off_t)nvh_size("offset", offset), misaligned);
	return nvh_end();
}
