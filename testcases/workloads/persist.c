/*
 * Stores a pattern through a mapping and leaves it there unsynced, or says what a file holds.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory.h"
#include "model.h"
#include "nvh.h"

static const char *const map_names[] = {"sync", "shared", NULL};

static void store(const char *path, int pages, int flags)
{
	size_t page = memory_page(), size = (size_t)pages * page;
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	char *map;

	if (fd < 0 || ftruncate(fd, (off_t)size))
		nvh_bail("%s cannot be made: %s", path, nvh_errname(errno));
	nvh_fact_bool("dax", memory_is_dax(fd) == 1);
	map = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
	nvh_fact_errno("map", map == MAP_FAILED ? errno : 0);
	if (!nvh_step(map != MAP_FAILED, "mapped"))
		return;
	/* Backwards: each fault allocates, and the last leaves no hole behind it. */
	for (int i = pages - 1; i >= 0; i--)
		model_fill(map + (size_t)i * page, OWNER_FIRST, i);
	nvh_step(true, "%d pages stored, none synced", pages);
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
		{"store", &map, NULL, "make it and store into it through a mapping: sync (MAP_SYNC), shared"},
		{NULL, NULL, NULL, NULL},
	};
	int kind, count;

	nvh_options(argc, argv, "Store data without syncing it, or look whether it is there.", options);
	if (!path)
		nvh_usage("--file PATH is needed");
	count = nvh_number("pages", pages, 1, MODEL_MAX);
	kind = map ? nvh_choice("store", map, map_names) : -1;
	nvh_begin("persist");
	if (kind >= 0)
		store(path, count, kind == 0 ? MAP_SHARED_VALIDATE | MAP_SYNC : MAP_SHARED);
	else
		look(path, count);
	return nvh_end();
}
