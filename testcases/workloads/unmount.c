/*
 * Pins a page of a file that is then unmapped, closed and, if asked, unlinked, lets a child unmount
 * the file system, and reports whether that waits for the pin and ends after it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fileop.h"
#include "hang.h"
#include "memory.h"
#include "model.h"
#include "nvh.h"
#include "pin.h"
#include "waiting.h"

#define PAGES 16
#define PINNED 3

/* Seconds: how long each child is watched while the page is pinned, and how long it has afterwards. */
static double observe = 3, end_deadline = 20;
static struct pin pin;
static struct fileop_child unlinking, unmounting;

static bool pin_page_of(const char *path)
{
	size_t page = memory_page(), size = PAGES * page;
	const char *why;
	bool proven;
	char *map;
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || posix_fallocate(fd, 0, (off_t)size))
		nvh_bail("%s cannot be made: %s", path, nvh_errname(errno));
	nvh_fact_bool("dax", memory_is_dax(fd) == 1);
	map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		nvh_bail("mmap: %s", nvh_errname(errno));
	for (int i = 0; i < PAGES; i++)
		model_fill(map + (size_t)i * page, OWNER_FIRST, i);
	if (fsync(fd))
		nvh_bail("fsync: %s", nvh_errname(errno));
	proven = pin_start(&pin, PIN_VMSPLICE, map + PINNED * page, page, -1, &why);
	nvh_fact_bool("pinned", proven);
	nvh_fact_str("pin_proof", why);
	if (pin.refs_known) {
		nvh_fact_int("refs_before", pin.refs_before);
		nvh_fact_int("refs_pinned", pin.refs_pinned);
	}
	if (munmap(map, size) || close(fd))
		nvh_bail("munmap and close: %s", nvh_errname(errno));
	return nvh_step(proven, "page %d pinned: %s", PINNED, why);
}

/* What became of a child: "OK", an errno, "WAITS" while it has not returned. */
static const char *outcome(const struct fileop_child *child)
{
	return atomic_load(&child->report->done) ? nvh_errname(child->report->err) : "WAITS";
}

static void start(struct fileop_child *child, enum fileop_kind kind, const char *path, const char *prefix)
{
	struct fileop op = {.kind = kind, .path = path, .fd = -1};
	struct waiting waiting = {0};

	if (!fileop_start(child, &op, false))
		nvh_bail("no child for %s", fileop_kinds[kind]);
	waiting_watch(&waiting, child, &pin, observe);
	waiting_facts(prefix, &waiting);
	nvh_step(true, "%s: %s", fileop_kinds[kind], outcome(child));
}

/* Drains the pipe: it must still give what was in the page when it was pinned. */
static void release(void)
{
	size_t size = memory_page();
	char *page = malloc(size), seen[32] = "nothing";
	int err = pin_release(&pin, page, end_deadline);

	nvh_step(!err, "pin released: %s", nvh_errname(err));
	if (!err)
		model_whose(page, PAGES, seen);
	nvh_fact_str("pipe", seen);
	nvh_fact_bool("pipe_kept",
		      !err && memory_check_at(page, size, OWNER_FIRST, PINNED * size) == size);
	free(page);
}

static bool wait_for(struct fileop_child *child, const char *doing)
{
	if (fileop_wait(child, end_deadline)) {
		fileop_kill(child, end_deadline);
		return true;
	}
	hang_tell(doing, child->pid, pin_holds(&pin) ? "the page is pinned" : "no pin held");
	fileop_kill(child, 1);
	return false;
}

/* An unmount that was refused, as a file was still on its way out, is tried again. */
static void unmount_again(const char *mount)
{
	struct fileop op = {.kind = OP_UMOUNT, .path = mount, .fd = -1};
	double until = nvh_now() + end_deadline;

	while (atomic_load(&unmounting.report->done) && unmounting.report->err == EBUSY && nvh_now() < until) {
		nvh_sleep(0.05);
		if (!fileop_start(&unmounting, &op, false))
			nvh_bail("no child for umount");
		if (!wait_for(&unmounting, "umount"))
			return;
	}
}

int main(int argc, char **argv)
{
	const char *path = NULL, *mount = NULL, *observe_text = "3", *end_text = "20";
	bool unlinks = false, ended = true;
	const struct nvh_option options[] = {
		{"file", &path, NULL, "the file to make and pin"},
		{"mount", &mount, NULL, "where its file system is mounted"},
		{"unlink", NULL, &unlinks, "unlink the file before the unmount"},
		{"observe", &observe_text, NULL, "seconds to watch while pinned until it is seen waiting (default 3)"},
		{"end-deadline", &end_text, NULL, "seconds that unlink and unmount have once the pin is gone (default 20)"},
		{NULL, NULL, NULL, NULL},
	};

	nvh_options(argc, argv, "Unmount a file system while a page of a file that nobody has open is pinned.", options);
	if (!path || !mount)
		nvh_usage("--file PATH and --mount DIR are needed");
	observe = nvh_number("observe", observe_text, 1, 3600);
	end_deadline = nvh_number("end-deadline", end_text, 1, 3600);
	nvh_begin("unmount");
	nvh_fact_str("hung_in", "none");
	if (!pin_page_of(path))
		return nvh_end();
	if (unlinks) {
		start(&unlinking, OP_UNLINK, path, "unlink_");
		nvh_fact_str("unlink_while_pinned", outcome(&unlinking));
	}
	start(&unmounting, OP_UMOUNT, mount, "umount_");
	nvh_fact_str("umount_while_pinned", outcome(&unmounting));
	nvh_fact_bool("unmounted_while_pinned", !strcmp(outcome(&unmounting), "OK"));
	release();
	if (unlinks) {
		ended = wait_for(&unlinking, "unlink");
		nvh_fact_str("unlink", outcome(&unlinking));
	}
	if (wait_for(&unmounting, "umount"))
		unmount_again(mount);
	else
		ended = false;
	nvh_fact_str("umount", outcome(&unmounting));
	nvh_fact_bool("hung", !ended || !atomic_load(&unmounting.report->done));
	if (atomic_load(&unmounting.report->done))
		nvh_fact_seconds("end_seconds", unmounting.report->ended_at - pin.ended);
	return nvh_end();
}
