/*
 * Changes or shares one page of a huge DAX entry while others of the file hold stores that nobody has
 * synced, and reports which stores no sync has written back, and whether each file holds what it must.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
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
#include "trace.h"

#define HUGE_PAGE (2UL << 20)
#define SIZE (2 * HUGE_PAGE)
#define PAGES (SIZE / 4096)
#define LISTED (2 * PAGES) /* a kernel may write back what was only read, page by page */
#define CHANGED 7 /* the page that the operation is for */

/* Whose data a page holds: 0 is none, for a hole. */
enum { SEED_HOLE, SEED_FIRST, SEED_BEFORE, SEED_AFTER, SEED_OTHER };

enum operation { OP_NONE, OP_PUNCH, OP_TRUNCATE, OP_CLONE, OP_DEDUPE };
static const char *const operations[] = {"none", "punch", "truncate", "clone", "dedupe", NULL};

struct file {
	int fd;
	char *view; /* a mapping of all of it, as huge as it can be */
	size_t pages;
	uint64_t page[PAGES]; /* the model: the pattern that each page holds */
};

static struct file file, other;

static void make(struct file *made, const char *directory, const char *name, uint64_t seed)
{
	char path[4096], *data = malloc(SIZE);

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	made->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (made->fd < 0 || !data)
		nvh_bail("%s: %s", path, nvh_errname(errno));
	made->pages = PAGES;
	for (size_t i = 0; i < PAGES; i++)
		made->page[i] = seed;
	memory_fill(data, SIZE, seed);
	/* Equal in one page, for the deduplication. */
	memory_fill_at(data + CHANGED * 4096, 4096, SEED_FIRST, CHANGED * 4096);
	made->page[CHANGED] = SEED_FIRST;
	if (pwrite(made->fd, data, SIZE, 0) != (ssize_t)SIZE || fsync(made->fd))
		nvh_bail("%s cannot be written: %s", path, nvh_errname(errno));
	free(data);
	made->view = memory_map_aligned(made->fd, SIZE, 0, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
}

static bool holds(const char *page, uint64_t seed, size_t at)
{
	static const char zeros[4096];

	return seed == SEED_HOLE ? !memcmp(page, zeros, 4096) : memory_check_at(page, 4096, seed, at) == 4096;
}

/* Every page by the mapping and by read(): "OK" or the first that is wrong. */
static void report_content(const char *key, const struct file *seen)
{
	char words[80], buffer[4096];

	for (size_t i = 0; i < seen->pages; i++) {
		size_t at = i * 4096;

		if (!holds(seen->view + at, seen->page[i], at))
			snprintf(words, sizeof(words), "page %zu differs, mapped", i);
		else if (pread(seen->fd, buffer, 4096, (off_t)at) != 4096 || !holds(buffer, seen->page[i], at))
			snprintf(words, sizeof(words), "page %zu differs, read", i);
		else
			continue;
		nvh_fact_str(key, words);
		return;
	}
	nvh_fact_str(key, "OK");
}

static void store(const size_t *pages, size_t count, uint64_t seed)
{
	for (size_t i = 0; i < count; i++) {
		memory_fill_at(file.view + pages[i] * 4096, 4096, seed, pages[i] * 4096);
		file.page[pages[i]] = seed;
	}
}

/* A fact of those pages that no line of the trace says to have been written back. */
static void report_unsynced(const char *key, const size_t *pages, size_t count)
{
	static long long written[LISTED];
	long long unsynced[8];
	size_t numbers = trace_written_back(written, LISTED), left = 0;

	for (size_t i = 0; i < count; i++) {
		long long page = (long long)pages[i];
		bool found = false;

		for (size_t j = 0; j + 1 < numbers; j += 2)
			found = found || (page >= written[j] && page < written[j] + written[j + 1]);
		if (!found && left < sizeof(unsynced) / sizeof(*unsynced))
			unsynced[left++] = page;
	}
	nvh_fact_ints(key, unsynced, left);
	trace_clear();
	nvh_step(true, "%s", key);
}

/* EBADE where the two are not the same. */
static int dedupe(size_t page)
{
	struct {
		struct file_dedupe_range range;
		struct file_dedupe_range_info info;
	} ask = {
		.range = {.src_offset = page * 4096, .src_length = 4096, .dest_count = 1},
		.info = {.dest_fd = other.fd, .dest_offset = page * 4096},
	};

	if (ioctl(file.fd, FIDEDUPERANGE, &ask))
		return errno;
	if (ask.info.status < 0)
		return -ask.info.status;
	return ask.info.status == FILE_DEDUPE_RANGE_SAME && ask.info.bytes_deduped == 4096 ? 0 : EBADE;
}

static int operate(enum operation operation)
{
	struct file_clone_range range = {
		.src_fd = file.fd,
		.src_offset = CHANGED * 4096,
		.src_length = 4096,
		.dest_offset = CHANGED * 4096,
	};

	switch (operation) {
	case OP_PUNCH:
		file.page[CHANGED] = SEED_HOLE;
		return fallocate(file.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, CHANGED * 4096, 4096) ? errno : 0;
	case OP_TRUNCATE:
		file.pages--;
		return ftruncate(file.fd, SIZE - 4096) ? errno : 0;
	case OP_CLONE:
		return ioctl(other.fd, FICLONERANGE, &range) ? errno : 0;
	case OP_DEDUPE:
		return dedupe(CHANGED);
	case OP_NONE:
		break;
	}
	return 0;
}

int main(int argc, char **argv)
{
	static const size_t before[] = {3, 600}, after[] = {CHANGED, 3, 100, 601};
	const char *directory = NULL, *operation = NULL;
	const struct nvh_option options[] = {
		{"directory", &directory, NULL, "where the files are made"},
		{"operation", &operation, NULL, "none, punch, truncate, clone or dedupe"},
		{NULL, NULL, NULL, NULL},
	};
	enum operation chosen;
	int err;

	nvh_options(argc, argv, "Change or share one page of a huge DAX entry with unsynced stores beside it.", options);
	if (!directory || !operation)
		nvh_usage("--directory PATH and --operation NAME are needed");
	chosen = (enum operation)nvh_choice("operation", operation, operations);
	nvh_begin("partial");
	make(&file, directory, "file", SEED_FIRST);
	make(&other, directory, "other", SEED_OTHER);
	nvh_fact_bool("dax", memory_is_dax(file.fd) == 1);
	if (chosen == OP_DEDUPE) {
		err = dedupe(CHANGED + 1);
		nvh_fact_str("dedupe_different", err == EBADE ? "differs" : nvh_errname(err));
	}
	if (!trace_start()) {
		nvh_skip("no tracepoints of fs/dax.c");
		return nvh_end();
	}
	store(before, 2, SEED_BEFORE);
	nvh_fact_int("huge", (long long)trace_count("dax_pmd_fault_done", " NOPAGE"));
	err = operate(chosen);
	nvh_fact_errno("operation", err);
	if (fsync(file.fd))
		nvh_bail("fsync: %s", nvh_errname(errno));
	report_unsynced("unsynced_before", before, 2);
	report_content("file", &file);
	report_content("other", &other);
	trace_clear();
	store(after, 4, SEED_AFTER);
	if (fsync(file.fd))
		nvh_bail("fsync: %s", nvh_errname(errno));
	report_unsynced("unsynced_after", after, 4);
	report_content("file_after", &file);
	report_content("other_after", &other);
	trace_stop();
	return nvh_end();
}
