/*
 * The memory that workloads pin, map and truncate: where it comes from, and patterns that tell pages apart.
 */
#ifndef MEMORY_H
#define MEMORY_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum source_kind { SOURCE_ANON, SOURCE_FILE, SOURCE_DAX, SOURCE_MEMFD, SOURCE_HUGETLB, SOURCE_SECRET };

/*
 * A parsed --source: anon, anon-private, file:PATH[:private][:ro], dax:/dev/daxX.Y[:private][:ro],
 * memfd, hugetlb (2 MiB pages, reserved by the caller), secret (memfd_secret).
 */
struct source {
	enum source_kind kind;
	bool private; /* MAP_PRIVATE */
	bool readonly; /* opened O_RDONLY */
	char path[PATH_MAX];
};

struct mapping {
	void *addr; /* NULL when nothing is mapped */
	size_t size;
	int fd; /* -1 when there is none */
	off_t offset;
};

#define SOURCE_HELP "anon, anon-private, file:PATH[:private][:ro], dax:/dev/daxX.Y[:private][:ro], memfd, hugetlb, secret"

/* nvh_usage() when the spec is none of the above. */
void source_parse(const char *spec, struct source *source);

/*
 * Maps size bytes from offset with the given PROT_ bits; a regular file that is too small is grown
 * with fallocate() first.  Returns 0 or the errno of the call that failed; *failed (may be NULL)
 * then names it.
 */
int memory_map(struct mapping *mapping, const struct source *source, size_t size, off_t offset, int prot,
	       const char **failed);
void memory_unmap(struct mapping *mapping);

/*
 * Maps so much of a file at an address that lies skew bytes behind a multiple of 2 MiB: with 0 an aligned
 * file can be mapped with huge pages, with one page it cannot.  nvh_bail() when it is refused.
 */
char *memory_map_aligned(int fd, size_t size, off_t offset, int prot, int flags, size_t skew);

/* The system's page size; steps of page walks. */
size_t memory_page(void);

/* Reads (or, with write, reads and writes back) one byte of every page, so that each is faulted in. */
void memory_touch(void *addr, size_t size, bool write);

/* As memory_touch(), but a SIGBUS or SIGSEGV is caught: returns 0 or that signal's number. */
int memory_touch_safely(void *addr, size_t size, bool write);

/* How one access ended: signum is 0 when it came to be. */
struct memory_fault {
	int signum;
	int code;
	const void *addr;
};

/* Loads or stores one byte. */
struct memory_fault memory_access(char *addr, bool store);

/*
 * Every 8-byte word is a hash of seed and its own offset: no two pages are alike, and data that
 * lands at a wrong offset or page does not match.
 */
void memory_fill(void *addr, size_t size, uint64_t seed);
void memory_fill_at(void *addr, size_t size, uint64_t seed, size_t first);

/* Makes all patterns of this process and its children others than those of another seed; 0 at first. */
void memory_seed(uint32_t seed);

/* Returns the offset of the first byte that differs from memory_fill(), or size when all are equal. */
size_t memory_check(const void *addr, size_t size, uint64_t seed);
size_t memory_check_at(const void *addr, size_t size, uint64_t seed, size_t first);

bool memory_is_zero(const void *addr, size_t size);

/* STATX_ATTR_DAX of the file: 1, 0, or -1 when the kernel does not tell (before 5.8). */
int memory_is_dax(int fd);

/* VmLck, VmPin, VmRSS and the like of this process in KiB, -1 when there is no such line. */
long memory_status(const char *key);

/* Sets RLIMIT_MEMLOCK and drops CAP_IPC_LOCK, which is not held to it; nvh_bail() when that fails. */
void memory_limit_locked(size_t bytes);

/* The page frame number behind addr, from /proc/self/pagemap; 0 when it is not given. */
uint64_t memory_pfn(const void *addr);

/* How many pages of the range lie in a ZONE_MOVABLE; -1 when the system has none. */
long memory_movable(const void *addr, size_t size);

#endif
