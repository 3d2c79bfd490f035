#include "refusals.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"

static char *map(size_t size, int prot, int flags, int fd)
{
	char *at = mmap(NULL, size, prot, flags, fd, 0);

	if (at == MAP_FAILED)
		nvh_bail("mmap: %s", nvh_errname(errno));
	return at;
}

static void try_it(const struct pinner *pinner, const char *key, char *at, size_t size)
{
	int err = pinner->pin_more(at, size, true);

	nvh_fact_errno(key, err);
	nvh_step(true, "%s pins what is %s: %s", pinner->name, key, nvh_errname(err));
	munmap(at, size);
}

void refusals_readonly(const struct pinner *pinner, size_t length)
{
	int fd = memfd_create("read", MFD_CLOEXEC), reader;
	char path[64], *at = map(length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	memory_touch(at, length, true); /* they are in the page table, for reading */
	if (mprotect(at, length, PROT_READ) < 0)
		nvh_bail("mprotect: %s", nvh_errname(errno));
	try_it(pinner, "readonly_private", at, length);

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (fd < 0 || ftruncate(fd, (off_t)length) < 0 || (reader = open(path, O_RDONLY | O_CLOEXEC)) < 0)
		nvh_bail("memfd: %s", nvh_errname(errno));
	at = map(length, PROT_READ, MAP_SHARED, reader);
	memory_touch(at, length, false);
	try_it(pinner, "readonly_shared", at, length);
	close(reader);
	close(fd);
}

void refusals_partly(const struct pinner *pinner, size_t length)
{
	char *at = map(length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	if (mprotect(at, memory_page(), PROT_READ | PROT_WRITE) < 0)
		nvh_bail("mprotect: %s", nvh_errname(errno));
	memory_touch(at, memory_page(), true);
	try_it(pinner, "partly", at, length);
}
