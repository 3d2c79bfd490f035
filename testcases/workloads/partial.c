/*
 * Changes, moves or shares one page of a DAX file while others of the file hold stores that nobody has
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

#include "ballast.h"
#include "memory.h"
#include "nvh.h"
#include "trace.h"

#define HUGE_PAGE (2UL << 20)
#define SIZE (2 * HUGE_PAGE)
#define PAGES (SIZE / 4096)
#define LISTED (2 * PAGES) /* a kernel may write back what was only read, page by page */
#define CHANGED 7 /* the page that the operation is for */
#define COPIED 700 /* 0x2bc, in the other 2 MiB */
#define UNSHARED 40

/* Whose data a page holds. */
enum { SEED_FIRST = 1, SEED_BEFORE, SEED_AFTER, SEED_OTHER };

enum operation { OP_NONE, OP_PUNCH, OP_TRUNCATE, OP_COLLAPSE, OP_INSERT, OP_CLONE, OP_DEDUPE };
static const char *const operations[] = {
	"none", "punch", "truncate", "collapse", "insert", "clone", "dedupe", NULL,
};

struct file {
	int fd;
	char *view; /* a mapping of all of it, with room for one more page */
	char *model; /* what it has to hold, with room for one more page */
	size_t pages;
};

static struct file file, other;

static void make(struct file *made, const char *directory, const char *name, uint64_t seed, size_t skew)
{
	char path[4096], *data = malloc(SIZE + 4096);

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	made->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (made->fd < 0 || !data)
		nvh_bail("%s: %s", path, nvh_errname(errno));
	made->model = data;
	made->pages = PAGES;
	memory_fill(data, SIZE, seed);
	/* Equal in one page, for the deduplication. */
	memory_fill_at(data + CHANGED * 4096, 4096, SEED_FIRST, CHANGED * 4096);
	if (pwrite(made->fd, data, SIZE, 0) != (ssize_t)SIZE || fsync(made->fd))
		nvh_bail("%s cannot be written: %s", path, nvh_errname(errno));
	made->view = memory_map_aligned(made->fd, SIZE + 4096, 0, PROT_READ | PROT_WRITE, MAP_SHARED, skew);
}

/* Every page by the mapping and by read(): "OK" or the first that is wrong. */
static void report_content(const char *key, const struct file *seen)
{
	static char data[SIZE + 4096];
	ssize_t size = (ssize_t)(seen->pages * 4096);
	char words[80];

	if (pread(seen->fd, data, sizeof(data), 0) != size) {
		nvh_fact_str(key, "its size is wrong");
		return;
	}
	for (size_t i = 0; i < seen->pages; i++) {
		size_t at = i * 4096;

		if (memcmp(seen->view + at, seen->model + at, 4096))
			snprintf(words, sizeof(words), "page %zu differs, mapped", i);
		else if (memcmp(data + at, seen->model + at, 4096))
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
		size_t at = pages[i] * 4096;

		memory_fill_at(file.model + at, 4096, seed, at);
		memcpy(file.view + at, file.model + at, 4096);
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

/* The page's place in memory is then another one than that of the page before it. */
static void clone_page(const struct file *from, size_t page, const struct file *to, size_t at)
{
	struct file_clone_range range = {
		.src_fd = from->fd,
		.src_offset = page * 4096,
		.src_length = 4096,
		.dest_offset = at * 4096,
	};

	if (ioctl(to->fd, FICLONERANGE, &range))
		nvh_bail("FICLONERANGE: %s", nvh_errname(errno));
	memcpy(to->model + at * 4096, from->model + page * 4096, 4096);
}

/* EBADE where the two are not the same. */
static int dedupe(const struct file *from, const struct file *to, size_t page, size_t count)
{
	struct {
		struct file_dedupe_range range;
		struct file_dedupe_range_info info;
	} ask = {
		.range = {.src_offset = page * 4096, .src_length = count * 4096, .dest_count = 1},
		.info = {.dest_fd = to->fd, .dest_offset = page * 4096},
	};

	if (ioctl(from->fd, FIDEDUPERANGE, &ask))
		return errno;
	if (ask.info.status < 0)
		return -ask.info.status;
	return ask.info.status == FILE_DEDUPE_RANGE_SAME && ask.info.bytes_deduped == count * 4096 ? 0 : EBADE;
}

static void refuse_to_dedupe(const char *key, const struct file *from, const struct file *to, size_t page, size_t count)
{
	int err = dedupe(from, to, page, count);

	nvh_fact_str(key, err == EBADE ? "differs" : nvh_errname(err));
}

/* What is not the same: other data; a hole and data, whichever of the two is given up for the other. */
static void dedupe_what_differs(void)
{
	size_t page = CHANGED + 2;
	off_t at = (off_t)page * 4096;

	refuse_to_dedupe("dedupe_different", &file, &other, CHANGED + 1, 1);
	/* The same page and a different one, which lies elsewhere on the device. */
	clone_page(&other, CHANGED + 30, &other, CHANGED + 1);
	refuse_to_dedupe("dedupe_second_different", &file, &other, CHANGED, 2);
	refuse_to_dedupe("dedupe_onto_second_different", &other, &file, CHANGED, 2);
	memcpy(other.model + at, file.model + at, 4096);
	if (pwrite(other.fd, other.model + at, 4096, at) != 4096)
		nvh_bail("pwrite: %s", nvh_errname(errno));
	refuse_to_dedupe("dedupe_first_different", &file, &other, CHANGED + 1, 2);
	if (fallocate(other.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, 4096))
		nvh_bail("punch: %s", nvh_errname(errno));
	memset(other.model + at, 0, 4096);
	refuse_to_dedupe("dedupe_onto_a_hole", &file, &other, page, 1);
	refuse_to_dedupe("dedupe_a_hole", &other, &file, page, 1);
}

static int operate(enum operation operation)
{
	struct file_clone_range range = {
		.src_fd = file.fd,
		.src_offset = CHANGED * 4096,
		.src_length = 4096,
		.dest_offset = CHANGED * 4096,
	};

	char *page = file.model + CHANGED * 4096;
	size_t behind = (PAGES - CHANGED) * 4096; /* that page and what follows */

	switch (operation) {
	case OP_PUNCH:
		memset(page, 0, 4096);
		return fallocate(file.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, CHANGED * 4096, 4096) ? errno : 0;
	case OP_TRUNCATE:
		file.pages--;
		return ftruncate(file.fd, SIZE - 4096) ? errno : 0;
	case OP_COLLAPSE:
		file.pages--;
		memmove(page, page + 4096, behind - 4096);
		return fallocate(file.fd, FALLOC_FL_COLLAPSE_RANGE, CHANGED * 4096, 4096) ? errno : 0;
	case OP_INSERT:
		file.pages++;
		memmove(page + 4096, page, behind);
		memset(page, 0, 4096);
		return fallocate(file.fd, FALLOC_FL_INSERT_RANGE, CHANGED * 4096, 4096) ? errno : 0;
	case OP_CLONE:
		return ioctl(other.fd, FICLONERANGE, &range) ? errno : 0;
	case OP_DEDUPE:
		return dedupe(&file, &other, CHANGED, 1);
	case OP_NONE:
		break;
	}
	return 0;
}

/*
 * An entry that is still for the page's old block is made clean by the first sync, and the mapping of the new
 * one is not: then nobody notices the second store.
 */
static void store_and_sync_twice(const size_t *page, const char *key, const char *key_again)
{
	for (int again = 0; again < 2; again++) {
		trace_clear();
		store(page, 1, again ? SEED_AFTER : SEED_BEFORE);
		if (fsync(file.fd))
			nvh_bail("fsync: %s", nvh_errname(errno));
		report_unsynced(again ? key_again : key, page, 1);
	}
}

/*
 * A page is copied when it is written to although nobody shares it: its neighbour was shared, and the
 * copy of that one took blocks for more.  It is dirty by a mapping, which then leads to the new block.
 */
static void copy_unshared(void)
{
	static const size_t page[] = {COPIED};
	char data[2 * 4096];
	uint64_t before, after;
	bool dirty;

	if (!ballast_where(file.fd, COPIED, &before)) /* which syncs the file */
		nvh_bail("page %d has no block", COPIED);
	trace_clear();
	store(page, 1, SEED_BEFORE);
	clone_page(&file, COPIED + 1, &other, COPIED + 1);
	memory_fill(data, sizeof(data), SEED_OTHER);
	memcpy(file.model + COPIED * 4096, data, sizeof(data));
	if (pwrite(file.fd, data + 4096, 4096, (COPIED + 1) * 4096) != 4096 ||
	    pwrite(file.fd, data, 4096, COPIED * 4096) != 4096)
		nvh_bail("page %d cannot be written: %s", COPIED, nvh_errname(errno));
	dirty = !trace_count("dax_writeback_one", " pgoff 0x2bc ");
	nvh_fact_bool("copied", dirty && ballast_where(file.fd, COPIED, &after) && before != after);
	report_content("file_copied", &file);
	report_content("other_copied", &other);
	store_and_sync_twice(page, "unsynced_copied", "unsynced_copied_again");
}

/*
 * A page that both share, and that is mapped and was only read, gets a block of its own: neither the mapping
 * nor the entry must stay with the one that is now the other file's alone.
 */
static void unshare_mapped(void)
{
	static const size_t page[] = {UNSHARED};
	uint64_t mine, others;
	int err;

	clone_page(&file, UNSHARED, &other, UNSHARED);
	report_content("file_shared", &file); /* reads every page of the mapping */
	report_content("other_shared", &other);
	err = fallocate(file.fd, FALLOC_FL_UNSHARE_RANGE, UNSHARED * 4096, 4096) ? errno : 0;
	nvh_fact_errno("unshare", err);
	nvh_fact_bool("unshared", ballast_where(file.fd, UNSHARED, &mine) &&
				  ballast_where(other.fd, UNSHARED, &others) && mine != others);
	memory_fill(other.model + UNSHARED * 4096, 4096, SEED_OTHER);
	memcpy(other.view + UNSHARED * 4096, other.model + UNSHARED * 4096, 4096);
	report_content("file_unshared", &file);
	store_and_sync_twice(page, "unsynced_unshared", "unsynced_unshared_again");
	report_content("file_stored", &file);
	report_content("other_unshared", &other);
}

int main(int argc, char **argv)
{
	static const size_t before[] = {3, 600}, after[] = {CHANGED, 3, 100, 601};
	const char *directory = NULL, *operation = NULL;
	bool small = false;
	const struct nvh_option options[] = {
		{"directory", &directory, NULL, "where the files are made"},
		{"operation", &operation, NULL, "none, punch, truncate, collapse, insert, clone or dedupe"},
		{"small", NULL, &small, "with entries of 4 KiB, not of 2 MiB"},
		{NULL, NULL, NULL, NULL},
	};
	enum operation chosen;
	int err;

	nvh_options(argc, argv, "Change, move or share one page of a DAX file with unsynced stores beside it.", options);
	if (!directory || !operation)
		nvh_usage("--directory PATH and --operation NAME are needed");
	chosen = (enum operation)nvh_choice("operation", operation, operations);
	nvh_begin("partial");
	/* At an address that is not aligned like the file no page of 2 MiB can be mapped. */
	make(&file, directory, "file", SEED_FIRST, small ? 4096 : 0);
	make(&other, directory, "other", SEED_OTHER, small ? 4096 : 0);
	nvh_fact_bool("dax", memory_is_dax(file.fd) == 1);
	if (chosen == OP_DEDUPE)
		dedupe_what_differs();
	if (!trace_start()) {
		nvh_skip("no tracepoints of fs/dax.c");
		return nvh_end();
	}
	store(before, 2, SEED_BEFORE);
	nvh_fact_int("huge", (long long)trace_count("dax_pmd_fault_done", " NOPAGE"));
	nvh_fact_int("small", (long long)trace_count("dax_pte_fault_done", NULL));
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
	if (chosen == OP_CLONE && small) {
		copy_unshared();
		unshare_mapped();
	}
	trace_stop();
	return nvh_end();
}
