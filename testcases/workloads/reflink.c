/*
 * Clones a DAX file, changes one of the two through mappings and write(), and reports whether both hold
 * what they must.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"

#define HUGE_PAGE (2UL << 20)
#define SIZE (2 * HUGE_PAGE)
#define PAGES (SIZE / 4096)

/* Whose data a page holds, beside what both had at first. */
enum { SEED_FIRST = 31, SEED_SECOND, SEED_THIRD };

struct file {
	char path[4096];
	int fd;
	char *view; /* a mapping of all of it, as huge as it can be */
	uint64_t page[PAGES]; /* the model: the pattern that each page holds */
};

static struct file original, clone;

static void file_open(struct file *file, const char *directory, const char *name)
{
	snprintf(file->path, sizeof(file->path), "%s/%s", directory, name);
	file->fd = open(file->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (file->fd < 0)
		nvh_bail("%s: %s", file->path, nvh_errname(errno));
	for (size_t i = 0; i < PAGES; i++)
		file->page[i] = SEED_FIRST;
}

static void file_map(struct file *file)
{
	file->view = memory_map_aligned(file->fd, SIZE, 0, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
}

/* Every page of the file by its mapping and by read(): "OK" or the first that is wrong. */
static const char *content(const struct file *file)
{
	static char words[80], buffer[4096];

	for (size_t i = 0; i < PAGES; i++) {
		size_t at = i * 4096;

		if (memory_check_at(file->view + at, 4096, file->page[i], at) != 4096)
			snprintf(words, sizeof(words), "page %zu differs, mapped", i);
		else if (pread(file->fd, buffer, 4096, (off_t)at) != 4096 ||
			 memory_check_at(buffer, 4096, file->page[i], at) != 4096)
			snprintf(words, sizeof(words), "page %zu differs, read", i);
		else
			continue;
		return words;
	}
	return "OK";
}

/* Facts WHAT_changed and WHAT_other: the file that was changed and the one that was not. */
static void report(const char *what, const struct file *changed)
{
	char key[64];

	snprintf(key, sizeof(key), "%s_changed", what);
	nvh_fact_str(key, content(changed));
	snprintf(key, sizeof(key), "%s_other", what);
	nvh_fact_str(key, content(changed == &clone ? &original : &clone));
	nvh_step(true, "%s", what);
}

/* How many of the file's pages lie in extents that are marked shared. */
static long long shared_pages(const struct file *file)
{
	struct {
		struct fiemap map;
		struct fiemap_extent extents[64];
	} ask = {.map = {.fm_length = SIZE, .fm_flags = FIEMAP_FLAG_SYNC, .fm_extent_count = 64}};
	long long pages = 0;

	if (ioctl(file->fd, FS_IOC_FIEMAP, &ask))
		nvh_bail("FIEMAP: %s", nvh_errname(errno));
	for (unsigned i = 0; i < ask.map.fm_mapped_extents; i++) {
		if (ask.extents[i].fe_flags & FIEMAP_EXTENT_SHARED)
			pages += (long long)ask.extents[i].fe_length / 4096;
	}
	return pages;
}

/* Part of a page: the rest of it has to be copied. */
static void store(struct file *file, size_t page, uint64_t seed)
{
	char expected[4096];

	memory_fill_at(expected, 4096, seed, page * 4096);
	file->view[page * 4096 + 40] = expected[40];
	if (memory_check_at(file->view + page * 4096, 40, file->page[page], page * 4096) != 40 ||
	    memory_check_at(file->view + page * 4096 + 48, 4048, file->page[page], page * 4096 + 48) != 4048)
		nvh_fact_str("rest_of_a_page", "differs");
	memcpy(file->view + page * 4096, expected, 4096);
	file->page[page] = seed;
}

static void write_page(struct file *file, size_t page, uint64_t seed)
{
	char bytes[4096];

	/* In two parts, so that the first copies a block and keeps half of it. */
	memory_fill_at(bytes, 4096, seed, page * 4096);
	if (pwrite(file->fd, bytes, 2000, (off_t)page * 4096) != 2000)
		nvh_bail("pwrite: %s", nvh_errname(errno));
	if (memory_check_at(file->view + page * 4096 + 2000, 2096, file->page[page], page * 4096 + 2000) != 2096)
		nvh_fact_str("rest_of_a_page", "differs");
	if (pwrite(file->fd, bytes + 2000, 2096, (off_t)page * 4096 + 2000) != 2096)
		nvh_bail("pwrite: %s", nvh_errname(errno));
	file->page[page] = seed;
}

int main(int argc, char **argv)
{
	const char *directory = NULL;
	const struct nvh_option options[] = {
		{"directory", &directory, NULL, "where the files are made"},
		{NULL, NULL, NULL, NULL},
	};
	char *data = malloc(SIZE);
	int err;

	nvh_options(argc, argv, "Clone a DAX file and change one of the two.", options);
	if (!directory)
		nvh_usage("--directory PATH is needed");
	nvh_begin("reflink");
	file_open(&original, directory, "original");
	file_open(&clone, directory, "clone");
	if (!data)
		nvh_bail("out of memory");
	memory_fill(data, SIZE, SEED_FIRST);
	if (pwrite(original.fd, data, SIZE, 0) != (ssize_t)SIZE)
		nvh_bail("pwrite: %s", nvh_errname(errno));
	free(data);
	nvh_fact_bool("dax", memory_is_dax(original.fd) == 1);
	/* What is mapped and was stored to when the file is cloned must not stay writable. */
	file_map(&original);
	store(&original, 7, SEED_SECOND);
	clone.page[7] = SEED_SECOND;
	err = ioctl(clone.fd, FICLONE, original.fd) ? errno : 0;
	nvh_fact_errno("clone", err);
	nvh_step(true, "FICLONE: %s", nvh_errname(err));
	if (err)
		return nvh_end();
	nvh_fact_bool("clone_dax", memory_is_dax(clone.fd) == 1);
	nvh_fact_int("shared_pages", shared_pages(&clone));
	nvh_fact_str("rest_of_a_page", "OK");
	file_map(&clone);
	report("cloned", &clone); /* and so every page has been read through both mappings */
	store(&original, 7, SEED_THIRD);
	store(&original, 600, SEED_THIRD);
	report("stored_to_original", &original);
	store(&clone, 3, SEED_SECOND);
	store(&clone, 100, SEED_SECOND);
	report("stored_to_clone", &clone);
	write_page(&clone, 700, SEED_SECOND);
	report("written_to_clone", &clone);
	write_page(&original, 701, SEED_THIRD);
	report("written_to_original", &original);
	/* What one file gives up stays with the other. */
	if (fallocate(original.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SIZE))
		nvh_bail("punch: %s", nvh_errname(errno));
	nvh_fact_str("after_punch", content(&clone));
	return nvh_end();
}
