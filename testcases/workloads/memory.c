#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/stat.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "nvh.h"

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447 /* x86-64, since 5.14 */
#endif
#ifndef STATX_ATTR_DAX
#define STATX_ATTR_DAX 0x00200000 /* since 5.8 */
#endif

static bool cut_suffix(char *text, const char *suffix)
{
	size_t length = strlen(text);
	size_t cut = strlen(suffix);

	if (length <= cut || strcmp(text + length - cut, suffix) != 0)
		return false;
	text[length - cut] = '\0';
	return true;
}

void source_parse(const char *spec, struct source *source)
{
	const char *path = NULL;

	memset(source, 0, sizeof(*source));
	if (strcmp(spec, "anon") == 0) {
		source->kind = SOURCE_ANON;
	} else if (strcmp(spec, "anon-private") == 0) {
		source->kind = SOURCE_ANON;
		source->private = true;
	} else if (strcmp(spec, "memfd") == 0) {
		source->kind = SOURCE_MEMFD;
	} else if (strcmp(spec, "hugetlb") == 0) {
		source->kind = SOURCE_HUGETLB;
	} else if (strcmp(spec, "secret") == 0) {
		source->kind = SOURCE_SECRET;
	} else if (strncmp(spec, "file:", 5) == 0) {
		source->kind = SOURCE_FILE;
		path = spec + 5;
	} else if (strncmp(spec, "dax:", 4) == 0) {
		source->kind = SOURCE_DAX;
		path = spec + 4;
	} else {
		nvh_usage("--source %s: one of %s", spec, SOURCE_HELP);
	}
	if (!path)
		return;
	if (strlen(path) >= sizeof(source->path))
		nvh_usage("--source: the path is longer than %zu bytes", sizeof(source->path) - 1);
	strcpy(source->path, path);
	for (;;) {
		if (cut_suffix(source->path, ":private"))
			source->private = true;
		else if (cut_suffix(source->path, ":ro"))
			source->readonly = true;
		else
			break;
	}
	if (source->path[0] != '/')
		nvh_usage("--source %s: the path must start with a slash", spec);
}

static int open_source(struct mapping *mapping, const struct source *source, size_t size, off_t offset,
		       const char **failed)
{
	struct stat info;

	switch (source->kind) {
	case SOURCE_ANON:
	case SOURCE_HUGETLB:
		return 0;
	case SOURCE_MEMFD:
		*failed = "memfd_create";
		mapping->fd = memfd_create("nvh", MFD_CLOEXEC);
		break;
	case SOURCE_SECRET:
		*failed = "memfd_secret";
		mapping->fd = (int)syscall(SYS_memfd_secret, O_CLOEXEC);
		break;
	case SOURCE_FILE:
		*failed = "open";
		mapping->fd = open(source->path, (source->readonly ? O_RDONLY : O_RDWR | O_CREAT) | O_CLOEXEC, 0600);
		break;
	case SOURCE_DAX:
		*failed = "open";
		mapping->fd = open(source->path, (source->readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC);
		break;
	}
	if (mapping->fd < 0)
		return errno;
	if (source->kind == SOURCE_DAX || source->readonly)
		return 0;
	*failed = "fstat";
	if (fstat(mapping->fd, &info) < 0)
		return errno;
	if (info.st_size >= offset + (off_t)size)
		return 0;
	if (source->kind == SOURCE_FILE) {
		*failed = "fallocate";
		return fallocate(mapping->fd, 0, 0, offset + (off_t)size) < 0 ? errno : 0;
	}
	*failed = "ftruncate";
	return ftruncate(mapping->fd, offset + (off_t)size) < 0 ? errno : 0;
}

int memory_map(struct mapping *mapping, const struct source *source, size_t size, off_t offset, int prot,
	       const char **failed)
{
	const char *ignored;
	int flags = source->private ? MAP_PRIVATE : MAP_SHARED;
	int err;

	if (!failed)
		failed = &ignored;
	*mapping = (struct mapping){.fd = -1, .size = size, .offset = offset};
	err = open_source(mapping, source, size, offset, failed);
	if (!err) {
		if (source->kind == SOURCE_ANON)
			flags |= MAP_ANONYMOUS;
		if (source->kind == SOURCE_HUGETLB)
			flags |= MAP_ANONYMOUS | MAP_HUGETLB | (21 << MAP_HUGE_SHIFT);
		*failed = "mmap";
		mapping->addr = mmap(NULL, size, prot, flags, mapping->fd, mapping->fd < 0 ? 0 : offset);
		if (mapping->addr != MAP_FAILED)
			return 0;
		err = errno;
		mapping->addr = NULL;
	}
	if (mapping->fd >= 0)
		close(mapping->fd);
	mapping->fd = -1;
	return err;
}

void memory_unmap(struct mapping *mapping)
{
	if (mapping->addr)
		munmap(mapping->addr, mapping->size);
	if (mapping->fd >= 0)
		close(mapping->fd);
	mapping->addr = NULL;
	mapping->fd = -1;
}

char *memory_map_aligned(int fd, size_t size, off_t offset, int prot, int flags, size_t skew)
{
	const size_t huge = 2UL << 20;
	char *room = mmap(NULL, size + 2 * huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *addr;

	addr = (char *)(((uintptr_t)room + huge - 1) & ~(huge - 1)) + skew;
	if (room == MAP_FAILED || mmap(addr, size, prot, flags | MAP_FIXED, fd, offset) == MAP_FAILED)
		nvh_bail("mmap: %s", nvh_errname(errno));
	return addr;
}

size_t memory_page(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

void memory_touch(void *addr, size_t size, bool write)
{
	volatile unsigned char *byte = addr;

	for (size_t at = 0; at < size; at += memory_page()) {
		unsigned char seen = byte[at];

		if (write)
			byte[at] = seen;
	}
}

static sigjmp_buf touch_failed;

static void on_touch_failed(int signum)
{
	siglongjmp(touch_failed, signum);
}

int memory_touch_safely(void *addr, size_t size, bool write)
{
	struct sigaction action = {.sa_handler = on_touch_failed};
	struct sigaction old_bus;
	struct sigaction old_segv;
	int signum;

	sigaction(SIGBUS, &action, &old_bus);
	sigaction(SIGSEGV, &action, &old_segv);
	signum = sigsetjmp(touch_failed, 1);
	if (signum == 0)
		memory_touch(addr, size, write);
	sigaction(SIGBUS, &old_bus, NULL);
	sigaction(SIGSEGV, &old_segv, NULL);
	return signum;
}

static struct memory_fault fault;
static sigjmp_buf access_failed;

static void on_access_failed(int signum, siginfo_t *info, void *context)
{
	(void)context;
	fault = (struct memory_fault){signum, info->si_code, info->si_addr};
	siglongjmp(access_failed, 1);
}

struct memory_fault memory_access(char *addr, bool store)
{
	struct sigaction action = {.sa_sigaction = on_access_failed, .sa_flags = SA_SIGINFO};
	struct sigaction old_bus, old_segv;

	sigaction(SIGBUS, &action, &old_bus);
	sigaction(SIGSEGV, &action, &old_segv);
	fault = (struct memory_fault){0};
	if (sigsetjmp(access_failed, 1) == 0) {
		if (store)
			*(volatile char *)addr = 1;
		else
			(void)*(volatile char *)addr;
	}
	sigaction(SIGBUS, &old_bus, NULL);
	sigaction(SIGSEGV, &old_segv, NULL);
	return fault;
}

static uint64_t own_seed;

void memory_seed(uint32_t seed)
{
	own_seed = (uint64_t)seed << 32;
}

/* The finalizer of splitmix64: a bijection, so different words of one seed never collide. */
static uint64_t word(uint64_t seed, uint64_t index)
{
	uint64_t x = ((seed + own_seed) * 0x2545f4914f6cdd1dULL) ^ (index + 0x9e3779b97f4a7c15ULL);

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

static unsigned char pattern_byte(uint64_t seed, size_t at)
{
	return (unsigned char)(word(seed, at / 8) >> (8 * (at % 8)));
}

void memory_fill_at(void *addr, size_t size, uint64_t seed, size_t first)
{
	unsigned char *bytes = addr;
	size_t at = 0;

	while (at < size) {
		if ((first + at) % 8 == 0 && size - at >= 8) {
			uint64_t value = word(seed, (first + at) / 8);

			memcpy(bytes + at, &value, 8);
			at += 8;
		} else {
			bytes[at] = pattern_byte(seed, first + at);
			at++;
		}
	}
}

void memory_fill(void *addr, size_t size, uint64_t seed)
{
	memory_fill_at(addr, size, seed, 0);
}

size_t memory_check_at(const void *addr, size_t size, uint64_t seed, size_t first)
{
	const unsigned char *bytes = addr;

	for (size_t at = 0; at < size; at++) {
		if ((first + at) % 8 == 0 && size - at >= 8) {
			uint64_t value = word(seed, (first + at) / 8);

			if (memcmp(bytes + at, &value, 8) == 0) {
				at += 7;
				continue;
			}
		}
		if (bytes[at] != pattern_byte(seed, first + at))
			return at;
	}
	return size;
}

bool memory_is_zero(const void *addr, size_t size)
{
	const char *bytes = addr;

	return size == 0 || (bytes[0] == 0 && !memcmp(bytes, bytes + 1, size - 1));
}

size_t memory_check(const void *addr, size_t size, uint64_t seed)
{
	return memory_check_at(addr, size, seed, 0);
}

int memory_is_dax(int fd)
{
	struct statx info;

	if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &info) < 0)
		return -1;
	if (!(info.stx_attributes_mask & STATX_ATTR_DAX))
		return -1;
	return (info.stx_attributes & STATX_ATTR_DAX) ? 1 : 0;
}

long memory_status(const char *key)
{
	char line[256];
	long value = -1;
	size_t length = strlen(key);
	FILE *file = fopen("/proc/self/status", "re");

	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file)) {
		if (strncmp(line, key, length) == 0 && line[length] == ':') {
			value = strtol(line + length + 1, NULL, 10);
			break;
		}
	}
	fclose(file);
	return value;
}

void memory_limit_locked(size_t bytes)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];
	struct rlimit limit = {.rlim_cur = bytes, .rlim_max = bytes};

	if (setrlimit(RLIMIT_MEMLOCK, &limit) < 0 || syscall(SYS_capget, &header, data) < 0)
		nvh_bail("RLIMIT_MEMLOCK: %s", nvh_errname(errno));
	data[0].effective &= ~(1U << CAP_IPC_LOCK);
	data[0].permitted &= ~(1U << CAP_IPC_LOCK);
	if (syscall(SYS_capset, &header, data) < 0)
		nvh_bail("CAP_IPC_LOCK cannot be dropped: %s", nvh_errname(errno));
}

uint64_t memory_pfn(const void *addr)
{
	uint64_t entry = 0;
	off_t at = (off_t)((uintptr_t)addr / memory_page() * sizeof(entry));
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return 0;
	if (pread(fd, &entry, sizeof(entry), at) != (ssize_t)sizeof(entry))
		entry = 0;
	close(fd);
	if (!(entry >> 63)) /* not present */
		return 0;
	return entry & ((1ULL << 55) - 1);
}

struct zone {
	uint64_t start, end;
};

/* Where the movable zones start and end, in page frames; each node has at most one. */
static size_t movable_zones(struct zone *zones, size_t room)
{
	FILE *file = fopen("/proc/zoneinfo", "re");
	unsigned long long spanned = 0, start;
	char line[256], name[32] = "";
	size_t count = 0;

	while (file && fgets(line, sizeof(line), file)) {
		/* A zone without pages has no start_pfn. */
		if (sscanf(line, "Node %*d, zone %31s", name) == 1)
			spanned = 0;
		else if (strcmp(name, "Movable") != 0 || sscanf(line, " spanned %llu", &spanned) == 1)
			continue;
		else if (sscanf(line, " start_pfn: %llu", &start) == 1 && spanned && count < room)
			zones[count++] = (struct zone){start, start + spanned};
	}
	if (file)
		fclose(file);
	return count;
}

long memory_movable(const void *addr, size_t size)
{
	struct zone zones[8];
	size_t count = movable_zones(zones, sizeof(zones) / sizeof(zones[0]));
	long pages = 0;

	for (size_t at = 0; count && at < size; at += memory_page()) {
		uint64_t pfn = memory_pfn((const char *)addr + at);

		for (size_t i = 0; i < count; i++)
			pages += zones[i].start <= pfn && pfn < zones[i].end;
	}
	return count ? pages : -1;
}
