/*
 * Stores a pattern through a mapping, synced by it or afterwards, or writes it, or says what a file holds.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory.h"
#include "model.h"
#include "nvh.h"

enum { STORE_SYNC, STORE_FSYNC, STORE_MSYNC, STORE_DSYNC };

static const char *const map_names[] = {"sync", "fsync", "msync", "dsync", NULL};

/* A new file's name is the directory's: fsync(2). */
static void sync_directory(const char *path)
{
	char directory[4096];
	int fd;

	snprintf(directory, sizeof(directory), "%.*s", (int)(strrchr(path, '/') - path), path);
	fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fsync(fd))
		nvh_bail("%s: %s", directory, nvh_errname(errno));
	close(fd);
}

static char *pattern(int pages)
{
	size_t page = memory_page();
	char *data = malloc((size_t)pages * page);

	if (!data)
		nvh_bail("out of memory");
	for (int i = 0; i < pages; i++)
		model_fill(data + (size_t)i * page, OWNER_FIRST, i);
	return data;
}

/* No sync after the write, which has to see to its own blocks: to a hole's, so that there are some. */
static void write_dsync(const char *path, int pages)
{
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_DSYNC | O_CLOEXEC, 0600);
	size_t size = (size_t)pages * memory_page();
	char *data = pattern(pages);

	if (fd < 0 || ftruncate(fd, (off_t)size))
		nvh_bail("%s cannot be made: %s", path, nvh_errname(errno));
	nvh_fact_bool("dax", memory_is_dax(fd) == 1);
	sync_directory(path);
	if (pwrite(fd, data, size, 0) != (ssize_t)size)
		nvh_bail("O_DSYNC write: %s", nvh_errname(errno));
	free(data);
	nvh_step(true, "%d pages written", pages);
}

/*
 * What is stored to has its block from a write() that nobody synced: the block is not new to the fault,
 * and the file system has yet to make it durable (IOMAP_F_DIRTY).
 */
static void store_to_written(int fd, char *map, int pages)
{
	size_t size = (size_t)pages * memory_page();
	char *zeros = calloc(1, size);

	if (!zeros || pwrite(fd, zeros, size, 0) != (ssize_t)size)
		nvh_bail("write: %s", nvh_errname(errno));
	free(zeros);
	for (int i = 0; i < pages; i++)
		model_fill(map + (size_t)i * memory_page(), OWNER_FIRST, i);
}

static void store(const char *path, int pages, int how)
{
	int flags = how == STORE_SYNC ? MAP_SHARED_VALIDATE | MAP_SYNC : MAP_SHARED;
	size_t page = memory_page(), size = (size_t)pages * page;
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int written = how == STORE_SYNC ? pages / 4 : 0;
	char *map;

	if (fd < 0 || ftruncate(fd, (off_t)size))
		nvh_bail("%s cannot be made: %s", path, nvh_errname(errno));
	nvh_fact_bool("dax", memory_is_dax(fd) == 1);
	map = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
	nvh_fact_errno("map", map == MAP_FAILED ? errno : 0);
	if (!nvh_step(map != MAP_FAILED, "mapped"))
		return;
	/* Backwards: each fault allocates, and the last leaves no hole behind it. */
	for (int i = pages - 1; i >= written; i--)
		model_fill(map + (size_t)i * page, OWNER_FIRST, i);
	/* Last: each fault that makes a new block durable would do so for these. */
	if (written)
		store_to_written(fd, map, written);
	if ((how == STORE_FSYNC && fsync(fd)) || (how == STORE_MSYNC && msync(map, size, MS_SYNC)))
		nvh_bail("%s: %s", map_names[how], nvh_errname(errno));
	if (how != STORE_SYNC)
		sync_directory(path);
	nvh_step(true, "%d pages stored, %s", pages, map_names[how]);
}

static void look(const char *path, int pages)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	struct model model;

	nvh_fact_errno("open", fd < 0 ? errno : 0);
	if (fd < 0) {
		nvh_fact_str("content", "no file");
		nvh_fact_str("content_mapped", "no file");
	} else {
		model_init(&model, pages);
		nvh_fact_str("content", model_check(&model, fd, false));
		nvh_fact_str("content_mapped", model_check(&model, fd, true));
	}
	nvh_step(true, "looked");
}

int main(int argc, char **argv)
{
	const char *path = NULL, *pages = "64", *map = NULL;
	const struct nvh_option options[] = {
		{"file", &path, NULL, "the file to make, or to look at"},
		{"pages", &pages, NULL, "its size (default 64)"},
		{"store", &map, NULL, "make it and store into it through a mapping: sync (MAP_SYNC), or one that is synced by fsync, msync; dsync: by an O_DSYNC write"},
		{NULL, NULL, NULL, NULL},
	};
	int kind, count;

	nvh_options(argc, argv, "Store data through a mapping, or look whether it is there.", options);
	if (!path || path[0] != '/')
		nvh_usage("--file PATH is needed, from the root on");
	count = nvh_number("pages", pages, 1, MODEL_MAX);
	kind = map ? nvh_choice("store", map, map_names) : -1;
	nvh_begin("persist");
	if (kind == STORE_DSYNC)
		write_dsync(path, count);
	else if (kind >= 0)
		store(path, count, kind);
	else
		look(path, count);
	return nvh_end();
}
