/*
 * Clones a DAX file, changes one of the two through mappings, write() and fallocate(), and reports
 * whether both hold what they must.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
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
#define PAGE 4096UL
#define PAGES (SIZE / PAGE)

/* A part of a page, off every border, with a head and a tail. */
#define PART_AT 1000UL
#define PART 2000UL

/* Whose data a page holds, beside what both had at first. */
enum { SEED_FIRST = 31, SEED_SECOND, SEED_THIRD };

/*
 * The pages that are changed in part, all of them in one unit of what is copied at once: the first change
 * takes blocks for the whole unit, which stay with the file until they are needed.  What is changed later
 * lies before, as content() names the first page that is wrong.
 */
enum { MIDDLE = 718, ZEROED = 715, HOLE = 712, UNSHARED = 96 };

struct file {
	char path[4096];
	int fd;
	char *view; /* a mapping of all of it, as huge as it can be; NULL: nobody maps it */
	char *model; /* what it has to hold */
};

struct blocks {
	struct fiemap map;
	struct fiemap_extent extents[64];
};

static struct file original, clone;
static struct file third, fourth; /* another pair, into which nobody stores */

static void file_open(struct file *file, const char *directory, const char *name)
{
	snprintf(file->path, sizeof(file->path), "%s/%s", directory, name);
	file->fd = open(file->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (file->fd < 0)
		nvh_bail("%s: %s", file->path, nvh_errname(errno));
	file->model = malloc(SIZE);
	if (!file->model)
		nvh_bail("out of memory");
}

static void file_map(struct file *file)
{
	file->view = memory_map_aligned(file->fd, SIZE, 0, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
}

static void file_unmap(struct file *file)
{
	munmap(file->view, SIZE);
	file->view = NULL;
}

static void file_fill(struct file *file, uint64_t seed)
{
	memory_fill(file->model, SIZE, seed);
	if (pwrite(file->fd, file->model, SIZE, 0) != (ssize_t)SIZE)
		nvh_bail("%s: %s", file->path, nvh_errname(errno));
}

static int file_clone(struct file *to, const struct file *from)
{
	memcpy(to->model, from->model, SIZE);
	return ioctl(to->fd, FICLONE, from->fd) ? errno : 0;
}

/* Every page of the file by its mapping and by read(): "OK" or the first that is wrong. */
static const char *content(const struct file *file)
{
	static char words[80], data[SIZE];

	if (pread(file->fd, data, SIZE, 0) != (ssize_t)SIZE)
		return "cannot be read";
	for (size_t at = 0; at < SIZE; at += PAGE) {
		if (file->view && memcmp(file->view + at, file->model + at, PAGE))
			snprintf(words, sizeof(words), "page %zu differs, mapped", at / PAGE);
		else if (memcmp(data + at, file->model + at, PAGE))
			snprintf(words, sizeof(words), "page %zu differs, read", at / PAGE);
		else
			continue;
		return words;
	}
	return "OK";
}

/* Facts WHAT_changed and WHAT_other: the file that was changed and the one that was not. */
static void report(const char *what, const struct file *changed, const struct file *other)
{
	char key[64];

	snprintf(key, sizeof(key), "%s_changed", what);
	nvh_fact_str(key, content(changed));
	snprintf(key, sizeof(key), "%s_other", what);
	nvh_fact_str(key, content(other));
	nvh_step(true, "%s", what);
}

static void ask_blocks(int fd, uint64_t first, uint64_t length, struct blocks *blocks)
{
	blocks->map = (struct fiemap){
		.fm_start = first,
		.fm_length = length,
		.fm_flags = FIEMAP_FLAG_SYNC,
		.fm_extent_count = sizeof(blocks->extents) / sizeof(*blocks->extents),
	};
	if (ioctl(fd, FS_IOC_FIEMAP, &blocks->map))
		nvh_bail("FIEMAP: %s", nvh_errname(errno));
	if (blocks->map.fm_mapped_extents == blocks->map.fm_extent_count)
		nvh_bail("the file lies in too many extents");
}

/* How many of the file's pages lie in extents that are marked shared. */
static long long shared_pages(const struct file *file)
{
	static struct blocks blocks;
	long long pages = 0;

	ask_blocks(file->fd, 0, SIZE, &blocks);
	for (unsigned i = 0; i < blocks.map.fm_mapped_extents; i++) {
		if (blocks.extents[i].fe_flags & FIEMAP_EXTENT_SHARED)
			pages += (long long)(blocks.extents[i].fe_length / PAGE);
	}
	return pages;
}

/* Where on the device a page lies, in bytes; 0 for a hole. */
static uint64_t block_of(const struct file *file, size_t page)
{
	static struct blocks blocks;

	ask_blocks(file->fd, page * PAGE, PAGE, &blocks);
	if (!blocks.map.fm_mapped_extents)
		return 0;
	return blocks.extents[0].fe_physical + page * PAGE - blocks.extents[0].fe_logical;
}

/* Fills a block that the file system has for a file and that nothing was written to yet. */
static void leave_old_data(const char *device, uint64_t block)
{
	/* Without CONFIG_BLK_DEV_WRITE_MOUNTED (v6.8) EBUSY. */
	int fd = open(device, O_WRONLY | O_DIRECT | O_CLOEXEC);
	void *data = aligned_alloc(PAGE, PAGE);

	if (fd < 0 || !data)
		nvh_bail("%s: %s", device, nvh_errname(errno));
	memset(data, 0x5a, PAGE);
	if (pwrite(fd, data, PAGE, (off_t)block) != (ssize_t)PAGE || close(fd))
		nvh_bail("%s: %s", device, nvh_errname(errno));
	free(data);
}

static void expect_page(const struct file *file, size_t page)
{
	if (memcmp(file->view + page * PAGE, file->model + page * PAGE, PAGE))
		nvh_fact_str("rest_of_a_page", "differs");
}

/* Part of a page: the rest of it has to be copied. */
static void store(struct file *file, size_t page, uint64_t seed)
{
	char *model = file->model + page * PAGE, *view = file->view + page * PAGE, bytes[PAGE];

	memory_fill_at(bytes, PAGE, seed, page * PAGE);
	model[40] = view[40] = bytes[40];
	expect_page(file, page);
	memcpy(model, bytes, PAGE);
	memcpy(view, bytes, PAGE);
}

/* Writes a part of a page of the pattern, in the model as well. */
static void write_part(struct file *file, size_t page, size_t first, size_t length, uint64_t seed)
{
	char *model = file->model + page * PAGE + first, bytes[PAGE];

	memory_fill_at(bytes, PAGE, seed, page * PAGE);
	memcpy(model, bytes + first, length);
	if (pwrite(file->fd, model, length, (off_t)(page * PAGE + first)) != (ssize_t)length)
		nvh_bail("pwrite: %s", nvh_errname(errno));
}

static void write_page(struct file *file, size_t page, uint64_t seed)
{
	/* In two parts, so that the first copies a block and keeps half of it. */
	write_part(file, page, 0, 2000, seed);
	expect_page(file, page);
	write_part(file, page, 2000, 2096, seed);
}

static void change(struct file *file, int mode, size_t first, size_t length, const char *what)
{
	int err = fallocate(file->fd, mode, (off_t)first, (off_t)length) ? errno : 0;

	nvh_fact_errno(what, err);
	if (!err && mode != FALLOC_FL_UNSHARE_RANGE)
		memset(file->model + first, 0, length);
}

/* Parts of pages: the rest of each is copied, or zero where there is nothing to copy. */
static void change_parts(const char *directory, const char *device)
{
	uint64_t block;
	int err;

	file_open(&third, directory, "third");
	file_open(&fourth, directory, "fourth");
	file_fill(&third, SEED_THIRD);
	err = file_clone(&fourth, &third);
	if (err)
		nvh_bail("FICLONE: %s", nvh_errname(err));
	file_map(&third);
	file_map(&fourth);
	report("mapped", &fourth, &third);
	write_part(&fourth, MIDDLE, PART_AT, PART, SEED_SECOND);
	report("written_in_the_middle", &fourth, &third);
	change(&fourth, FALLOC_FL_ZERO_RANGE, ZEROED * PAGE + PART_AT, PART, "zero_range");
	report("zeroed_in_the_middle", &fourth, &third);
	change(&fourth, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, HOLE * PAGE, PAGE, "punch_a_page");
	nvh_fact_bool("hole", block_of(&fourth, HOLE) == 0);
	block = block_of(&fourth, MIDDLE);
	if (block <= (MIDDLE - HOLE) * PAGE)
		nvh_bail("page %d has no block of its own", MIDDLE);
	block -= (MIDDLE - HOLE) * PAGE;
	leave_old_data(device, block);
	write_part(&fourth, HOLE, PART_AT, PART, SEED_SECOND);
	nvh_fact_bool("hole_gets_the_old_block", block_of(&fourth, HOLE) == block);
	report("written_into_a_hole", &fourth, &third);
}

/* Blocks get to be the file's own, of a pair that nobody maps any more: what is shared by and by. */
static void unshare(void)
{
	long long shared[3];

	file_unmap(&third);
	file_unmap(&fourth);
	shared[0] = shared_pages(&fourth);
	change(&fourth, FALLOC_FL_UNSHARE_RANGE, (UNSHARED + 2) * PAGE, 14 * PAGE, "unshare_pages");
	shared[1] = shared_pages(&fourth);
	change(&fourth, FALLOC_FL_UNSHARE_RANGE, PART_AT, 2 * PAGE, "unshare_part");
	shared[2] = shared_pages(&fourth);
	nvh_fact_ints("shared_by_and_by", shared, 3);
	report("unshared", &fourth, &third);
}

int main(int argc, char **argv)
{
	const char *directory = NULL, *device = NULL;
	const struct nvh_option options[] = {
		{"directory", &directory, NULL, "where the files are made"},
		{"device", &device, NULL, "what that file system lies on"},
		{NULL, NULL, NULL, NULL},
	};
	int err;

	nvh_options(argc, argv, "Clone a DAX file and change one of the two.", options);
	if (!directory || !device)
		nvh_usage("--directory PATH and --device PATH are needed");
	nvh_begin("reflink");
	file_open(&original, directory, "original");
	file_open(&clone, directory, "clone");
	file_fill(&original, SEED_FIRST);
	nvh_fact_bool("dax", memory_is_dax(original.fd) == 1);
	/* What is mapped and was stored to when the file is cloned must not stay writable. */
	file_map(&original);
	store(&original, 7, SEED_SECOND);
	err = file_clone(&clone, &original);
	nvh_fact_errno("clone", err);
	nvh_step(true, "FICLONE: %s", nvh_errname(err));
	if (err)
		return nvh_end();
	nvh_fact_bool("clone_dax", memory_is_dax(clone.fd) == 1);
	nvh_fact_int("shared_pages", shared_pages(&clone));
	nvh_fact_str("rest_of_a_page", "OK");
	file_map(&clone);
	report("cloned", &clone, &original); /* and so every page has been read through both mappings */
	store(&original, 7, SEED_THIRD);
	store(&original, 600, SEED_THIRD);
	report("stored_to_original", &original, &clone);
	store(&clone, 3, SEED_SECOND);
	store(&clone, 100, SEED_SECOND);
	report("stored_to_clone", &clone, &original);
	write_page(&clone, 700, SEED_SECOND);
	report("written_to_clone", &clone, &original);
	write_page(&original, 701, SEED_THIRD);
	report("written_to_original", &original, &clone);
	/* What one file gives up stays with the other. */
	change(&original, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SIZE, "punch");
	report("punched", &original, &clone);
	change_parts(directory, device);
	unshare();
	return nvh_end();
}
