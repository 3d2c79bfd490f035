#include "dax_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"
#include "memory.h"
#include "nvh.h"

const char *dax_directory;
bool dax_small;

static char *data; /* SIZE bytes of SEED_OLD */

void file_prepare(void)
{
	must((data = malloc(SIZE)) != NULL, "malloc");
	memory_fill(data, SIZE, SEED_OLD);
}

int file_open(const char *name, int flags)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dax_directory, name);
	fd = open(path, O_RDWR | O_CLOEXEC | flags, 0600);
	if (fd < 0)
		nvh_bail("%s: %s", path, nvh_errname(errno));
	return fd;
}

int file_make(const char *name, int start)
{
	int fd = file_open(name, O_CREAT | O_TRUNC);

	must(ftruncate(fd, SIZE) == 0, "ftruncate");
	if (start != HOLE)
		must(fallocate(fd, 0, 0, SIZE) == 0, "fallocate");
	if (start == WRITTEN) {
		must(pwrite(fd, data, SIZE, 0) == (ssize_t)SIZE, "pwrite");
		must(fsync(fd) == 0, "fsync");
	}
	return fd;
}

char *map_as(int fd, int prot, int flags, bool off_by_a_page)
{
	return memory_map_aligned(fd, SIZE, 0, prot, flags, off_by_a_page ? memory_page() : 0);
}

char *map(int fd, int prot, int flags)
{
	return map_as(fd, prot, flags, dax_small);
}

void look(const char *who, const char *bytes, size_t from, size_t to, uint64_t seed)
{
	if (from >= to)
		return;
	if (!seed && !memory_is_zero(bytes + from, to - from))
		check_differs("%s: not all zero in 0x%zx-0x%zx", who, from, to);
	if (seed && memory_check_at(bytes + from, to - from, seed, from) != to - from)
		check_differs("%s: differs at 0x%zx", who,
			      from + memory_check_at(bytes + from, to - from, seed, from));
}
