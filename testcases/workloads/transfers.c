#include "transfers.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"

#define SEED_READ 3
#define EDGE 100UL /* bytes at an end of what is pinned */

static void fact_equal(const char *key, int err, bool equal)
{
	if (err)
		nvh_fact_errno(key, err);
	else
		nvh_fact_str(key, equal ? "equal" : "differs");
}

/* Up to the last byte, and then a byte too far at either end, and around the end of all addresses. */
static void check_ends(const struct pinner *pinner, char *start, size_t length, int fd, const char *copy)
{
	const struct {
		const char *key;
		char *from;
		size_t size;
	} outside[] = {
		{"outside_end", start + length - EDGE, EDGE + 1},
		{"outside_begin", start - 1, EDGE},
		{"outside_memory", (char *)(UINTPTR_MAX - EDGE / 2), EDGE},
	};
	int err = pinner->transfer(start + length - EDGE, EDGE, fd, 0, false);

	fact_equal("copied_end", err, memcmp(copy, start + length - EDGE, EDGE) == 0);
	nvh_step(true, "%s copies the last bytes: %s", pinner->name, nvh_errname(err));
	for (size_t i = 0; i < sizeof(outside) / sizeof(*outside); i++) {
		err = pinner->transfer(outside[i].from, outside[i].size, fd, 0, false);
		nvh_fact_errno(outside[i].key, err);
		nvh_step(true, "%s copies what it has not pinned, %s: %s", pinner->name, outside[i].key,
			 nvh_errname(err));
	}
}

void transfers_check(const struct pinner *pinner, char *start, size_t length, bool read)
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
	if (read) {
		memory_fill(copy + at, piece, SEED_READ);
		err = pinner->transfer(start + at, piece, fd, (off_t)at, true);
		fact_equal("read_piece", err, memcmp(copy, start, length) == 0);
		nvh_step(true, "%s reads a piece: %s", pinner->name, nvh_errname(err));
		memcpy(start + at, copy + length, piece);
	}
	check_ends(pinner, start, length, fd, copy);
	munmap(copy, length + piece);
	close(fd);
}
