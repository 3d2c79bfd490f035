/*
 * Pins pages of a file mapping, lets a child change the file's layout, and reports whether and
 * where the operation waits, when it ends after the pin does, and what the file holds then.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ballast.h"
#include "fileop.h"
#include "hang.h"
#include "memory.h"
#include "model.h"
#include "nvh.h"
#include "pin.h"
#include "refcount.h"
#include "trace.h"
#include "waiting.h"
#include "watch.h"

#define MAX_PINS 64
#define HUGE_PAGES 512

static const char *const signals[] = {"handler", "kill", NULL};

static struct {
	const char *path, *pin_path, *refill_path, *backing;
	int pages, pin_count, pin_pages[MAX_PINS];
	enum pin_kind kind;
	struct fileop op;
	int signal; /* index into signals[], -1 for none */
	bool munmap, close, touch;
	double observe, between, end_deadline;
	int fd, map_fd, slow;
	uint64_t pinned_at; /* of the first page to pin, on the device */
	char *map;
	struct pin pins[MAX_PINS];
	struct model model;
	struct fileop_child child;
} run = {.fd = -1, .map_fd = -1, .slow = -1, .signal = -1};

static double seconds_option(const char *name, const char *text, double otherwise)
{
	char *end;
	double value;

	if (!text)
		return otherwise;
	value = strtod(text, &end);
	if (*end || end == text || !(value >= 0 && value <= 3600))
		nvh_usage("--%s %s: seconds, 0 to 3600", name, text);
	return value;
}

/* A number of pages or the number of a page. */
static int pages_option(const char *name, const char *text, int otherwise, int least, int most)
{
	return text ? nvh_number(name, text, least, most) : otherwise;
}

/* "3,9" or "0-63". */
static void parse_pin_pages(const char *text)
{
	char copy[64], *rest = copy, *one;

	if (strlen(text) >= sizeof(copy))
		nvh_usage("--pin-page %s: too long", text);
	strcpy(copy, text);
	while ((one = strsep(&rest, ","))) {
		const char *from = strsep(&one, "-");
		int page = nvh_number("pin-page", from, 0, run.pages - 1);
		int last = pages_option("pin-page", one, page, page, run.pages - 1);

		for (; page <= last; page++) {
			if (run.pin_count == MAX_PINS)
				nvh_usage("--pin-page: at most %d pages", MAX_PINS);
			run.pin_pages[run.pin_count++] = page;
		}
	}
}

static void make_file(const char *path, int *fd)
{
	size_t page = memory_page();
	char *buffer = malloc(page);

	*fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (*fd < 0)
		nvh_bail("%s: %s", path, nvh_errname(errno));
	/* In one piece, for an entry of 2 MiB. */
	if (run.pages >= HUGE_PAGES && fallocate(*fd, 0, 0, (off_t)run.pages * (off_t)page))
		nvh_bail("fallocate of %s: %s", path, nvh_errname(errno));
	for (int i = 0; i < run.pages; i++) {
		model_fill(buffer, OWNER_FIRST, i);
		if (pwrite(*fd, buffer, page, (off_t)i * (off_t)page) != (ssize_t)page)
			nvh_bail("%s cannot be written: %s", path, nvh_errname(errno));
	}
	free(buffer);
	if (fsync(*fd))
		nvh_bail("fsync of %s: %s", path, nvh_errname(errno));
}

static void make_mapping(void)
{
	size_t size = (size_t)run.pages * memory_page();

	make_file(run.path, &run.fd);
	nvh_fact_bool("dax", memory_is_dax(run.fd) == 1);
	run.map_fd = run.fd;
	if (run.pin_path)
		make_file(run.pin_path, &run.map_fd);
	run.map = memory_map_aligned(run.map_fd, size, 0, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	/* The child of the operation must not hold mappings of its own. */
	madvise(run.map, size, MADV_DONTFORK);
	/* A page that was never touched is not in the mapping and cannot be seen as busy. */
	bool traced = run.pages >= HUGE_PAGES && trace_start();

	memory_touch(run.map, size, true);
	if (traced)
		nvh_fact_bool("huge", trace_count("dax_pmd_fault_done", " NOPAGE") > 0);
	trace_stop();
	nvh_step(memory_check(run.map, size, OWNER_FIRST) == size, "the mapping holds the pattern");
}

/* The slow device's first page gets the device's pattern, past the delay. */
static void fill_backing(void)
{
	int fd = open(run.backing, O_WRONLY | O_CLOEXEC);
	size_t size = memory_page();
	char *page = malloc(size);

	model_fill(page, OWNER_DEVICE, 0);
	if (fd < 0 || pwrite(fd, page, size, 0) != (ssize_t)size || fsync(fd))
		nvh_bail("%s: %s", run.backing, nvh_errname(errno));
	close(fd);
	free(page);
}

/* One of the count facts of the first pin's page. */
static void refs_fact(const char *key)
{
	struct page_refs seen;

	if (run.pins[0].refs_known && refcount_look(run.pins[0].pfn, &seen))
		nvh_fact_int(key, seen.refs);
}

static bool make_pins(void)
{
	const char *why = "no pin was asked for";
	bool proven = true;

	for (int i = 0; i < run.pin_count && proven; i++) {
		char *addr = run.map + (size_t)run.pin_pages[i] * memory_page();

		proven = pin_start(&run.pins[i], run.kind, addr, memory_page(), run.slow, &why);
		if (run.kind == PIN_ODIRECT_READ && !run.pin_path)
			run.model.page[run.pin_pages[i]].or_io = true;
	}
	nvh_fact_bool("pinned", proven && run.pin_count > 0);
	nvh_fact_str("pin_proof", why);
	if (!run.pin_count)
		return true;
	if (run.pins[0].refs_known) {
		nvh_fact_int("refs_before", run.pins[0].refs_before);
		nvh_fact_int("refs_pinned", run.pins[0].refs_pinned);
	}
	return nvh_step(proven, "pages pinned: %s", why);
}

static void drop_mapping(void)
{
	if (run.munmap && munmap(run.map, (size_t)run.pages * memory_page()))
		nvh_bail("munmap: %s", nvh_errname(errno));
	if (!run.close)
		return;
	if (run.map_fd != run.fd)
		close(run.map_fd);
	close(run.fd);
	run.fd = run.map_fd = -1;
}

/* Blocks that the file owns, and that the file system has free, at this moment. */
static void blocks_facts(const char *when)
{
	struct stat st;
	char key[64];

	snprintf(key, sizeof(key), "blocks_%s", when);
	if (run.fd >= 0 && !fstat(run.fd, &st))
		nvh_fact_int(key, st.st_blocks);
}

static atomic_bool touched;

static void *touch_page(void *addr)
{
	nvh_fact_int("touch_signal", memory_touch_safely(addr, memory_page(), true));
	atomic_store(&touched, true);
	return NULL;
}

/* In a thread: on a broken kernel the fault may wait for the operation, and that for us. */
static void touch_while_waiting(void)
{
	double until = nvh_now() + run.end_deadline;
	pthread_t thread;

	if (pthread_create(&thread, NULL, touch_page, run.map + (size_t)run.pin_pages[0] * memory_page()))
		nvh_bail("no thread");
	while (!atomic_load(&touched) && nvh_now() < until)
		nvh_sleep(0.01);
	nvh_fact_bool("touched_while_waiting", atomic_load(&touched) && !fileop_ended(&run.child));
	if (atomic_load(&touched))
		pthread_join(thread, NULL);
}

static void send_signal(void)
{
	kill(run.child.pid, run.signal == 0 ? SIGUSR1 : SIGKILL);
	nvh_fact_bool("signal_ended", fileop_wait(&run.child, run.end_deadline));
	nvh_fact_bool("pinned_after_signal", run.pin_count && pin_holds(&run.pins[0]));
	nvh_fact_int("killed_by", run.child.reaped && WIFSIGNALED(run.child.status) ? WTERMSIG(run.child.status) : 0);
}

/* Whether the operation returned before the last pin ended.  A device that is told to hurry ends all
 * its I/O.  When an I/O ended by itself is known a little late, by its thread's clock: a tenth of
 * its life is left out of the judgement. */
static bool returned_before_release(void)
{
	const struct pin *last = &run.pins[run.pin_count - 1];
	const struct pin *asked = run.kind == PIN_VMSPLICE ? last : &run.pins[0];
	double ended = run.child.report->ended_at;

	if (!atomic_load(&run.child.report->done))
		return false;
	if (asked->releasing > 0)
		return ended < asked->releasing;
	return !atomic_load(&last->finished) || ended < last->ended - 0.1 * (last->ended - last->started);
}

/* Ends the pins one after the other; the operation must outlast all but the last. */
static void release_pins(void)
{
	size_t size = memory_page();
	char *page = malloc(size), seen[32] = "nothing";
	struct waiting again = {0};
	bool kept = true;

	for (int i = 0; i < run.pin_count; i++) {
		int err;

		if (i > 0 && run.kind == PIN_VMSPLICE)
			waiting_watch(&again, &run.child, &run.pins[i], run.between);
		err = pin_release(&run.pins[i], page, run.end_deadline);
		nvh_step(!err, "pin of page %d released: %s", run.pin_pages[i], nvh_errname(err));
		if (run.kind != PIN_VMSPLICE || err)
			continue;
		if (kept) /* what is told is the first page that is not right, or the last */
			model_whose(page, run.pages, seen);
		kept = kept && memory_check_at(page, size, OWNER_FIRST, (size_t)run.pin_pages[i] * size) == size;
	}
	free(page);
	if (run.kind != PIN_VMSPLICE)
		return;
	nvh_fact_str("pipe", seen);
	nvh_fact_bool("pipe_kept", kept);
}

/* Who still holds one of the pages; a pin that is gone must have given its reference back. */
static const char *holder(void)
{
	static char text[64];

	for (int i = 0; i < run.pin_count; i++) {
		const struct pin *pin = &run.pins[i];
		struct page_refs seen;

		if (pin_holds(pin))
			snprintf(text, sizeof(text), "page %d is pinned", run.pin_pages[i]);
		else if (pin->refs_known && !pin_refs_restored(pin) && refcount_look(pin->pfn, &seen))
			snprintf(text, sizeof(text), "page %d has %d references, %d of mappings", run.pin_pages[i],
				 seen.refs, seen.mapcount);
		else
			continue;
		return text;
	}
	return "no pin held";
}

static void wait_for_end(void)
{
	const struct pin *last = run.pin_count ? &run.pins[run.pin_count - 1] : NULL;
	double released = last ? last->ended : run.child.report->started_at;
	bool ended = fileop_wait(&run.child, run.end_deadline);
	bool done = atomic_load(&run.child.report->done);

	if (last && last->refs_known)
		nvh_fact_bool("refs_restored", pin_refs_restored(last));
	refs_fact("refs_after");
	nvh_fact_bool("hung", !ended);
	nvh_fact_str("hung_in", "none");
	if (done) {
		nvh_fact_errno("op", run.child.report->err);
		nvh_fact_seconds("op_seconds", run.child.report->ended_at - run.child.report->started_at);
		nvh_fact_seconds("end_seconds", run.child.report->ended_at - released);
	} else {
		nvh_fact_str("op", ended ? "KILLED" : "HUNG");
	}
	if (!ended) {
		hang_tell(fileop_kinds[run.op.kind], run.child.pid, holder());
		nvh_fact_bool("dies_of_kill", fileop_kill(&run.child, run.end_deadline));
	} else {
		fileop_kill(&run.child, run.end_deadline);
	}
	if (done && run.child.report->err == 0)
		fileop_model(&run.op, &run.model);
}

/* What the file holds, by read() or by a mapping.  The signal that ended a hung operation may have let it
 * finish as well as abort it: then either is right. */
static void content_fact(const char *key, int fd, bool mapped, bool or_done)
{
	struct model model = run.model;
	const char *words = model_check(&model, fd, mapped);

	if (or_done && strcmp(words, "OK") != 0) {
		fileop_model(&run.op, &model);
		if (!strcmp(model_check(&model, fd, mapped), "OK"))
			words = "OK";
		else
			words = model_check(&run.model, fd, mapped);
	}
	nvh_fact_str(key, words);
}

/* When all of that was, in seconds since the start: the report draws it. */
static void moments(double begun, const struct waiting *waiting)
{
	const struct pin *last = run.pin_count ? &run.pins[run.pin_count - 1] : NULL;
	const struct fileop_report *report = run.child.report;

	if (last)
		nvh_fact_seconds("pinned_at", run.pins[0].started - begun);
	nvh_fact_seconds("op_started_at", report->started_at - begun);
	if (waiting_seen(waiting))
		nvh_fact_seconds("waits_seen_at", waiting->since - begun);
	if (last && last->ended > 0) /* as the test judges: when its end was asked for */
		nvh_fact_seconds("released_at", (last->releasing > 0 ? last->releasing : last->ended) - begun);
	if (atomic_load(&report->done))
		nvh_fact_seconds("ended_at", report->ended_at - begun);
	else
		nvh_fact_seconds("given_up_at", nvh_now() - begun);
}

static void content_facts(void)
{
	bool ended_by_us = !atomic_load(&run.child.report->done) && run.signal < 0;
	struct stat st;
	int fd;

	if (run.op.kind == OP_UNLINK && !stat(run.path, &st)) {
		nvh_fact_str("content", "still there");
		return;
	}
	if (run.op.kind == OP_UNLINK)
		return;
	if (!run.child.reaped) { /* it does not even die */
		nvh_fact_str("content", "not compared");
		return;
	}
	fd = run.fd >= 0 ? run.fd : open(run.path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st))
		nvh_bail("%s: %s", run.path, nvh_errname(errno));
	nvh_fact_int("size_after", st.st_size);
	content_fact("content", fd, false, ended_by_us);
	content_fact("content_mapped", fd, true, ended_by_us);
}

static void parse(int argc, char **argv)
{
	const char *pages = NULL, *pin = "vmsplice", *pin_page = "3", *op = "truncate", *signal = NULL;
	const char *at = NULL, *count = NULL, *observe = NULL, *between = NULL, *end_deadline = NULL, *slow = NULL;
	const struct nvh_option options[] = {
		{"file", &run.path, NULL, "the file to make, pin and change"},
		{"pages", &pages, NULL, "its size in pages (default 16)"},
		{"pin", &pin, NULL, "none, vmsplice, odirect-read, odirect-write"},
		{"pin-page", &pin_page, NULL, "the pages to pin, N[-N][,...] (default 3), released in this order"},
		{"pin-file", &run.pin_path, NULL, "pin pages of this file instead"},
		{"slow", &slow, NULL, "the slow block device of the odirect pins"},
		{"slow-backing", &run.backing, NULL, "the quick device below it: give it a pattern of its own first"},
		{"op", &op, NULL, "truncate, punch, collapse, insert, zero, clone, read, write, fsync, unlink, none"},
		{"op-page", &at, NULL, "where the operation starts (default 0; read and write: the last page)"},
		{"op-pages", &count, NULL, "how many pages it covers (default all; collapse and insert: half)"},
		{"observe", &observe, NULL, "seconds to watch while pinned until it is seen waiting (default 3)"},
		{"between", &between, NULL, "the same between the ends of two pins (default: as --observe)"},
		{"end-deadline", &end_deadline, NULL, "seconds the operation has once the pin is gone (default 20)"},
		{"munmap", NULL, &run.munmap, "unmap the file between pin and operation"},
		{"close", NULL, &run.close, "close it too"},
		{"signal", &signal, NULL, "handler or kill: send the waiting operation a signal"},
		{"touch-while-waiting", NULL, &run.touch, "touch the pinned page again while the operation waits"},
		{"refill", &run.refill_path, NULL,
		 "fill the file system, and while the pin holds write what came free into this file"},
		{NULL, NULL, NULL, NULL},
	};
	bool elsewhere, half;

	nvh_options(argc, argv, "Change a file's layout while its pages are pinned.", options);
	if (!run.path)
		nvh_usage("--file PATH is needed");
	run.op.kind = (enum fileop_kind)nvh_choice("op", op, fileop_kinds);
	run.pages = pages_option("pages", pages, 16, 2, run.op.kind == OP_INSERT ? MODEL_MAX / 2 : MODEL_MAX);
	run.kind = (enum pin_kind)nvh_choice("pin", pin, pin_kinds);
	run.op.path = run.path;
	if (run.op.kind == OP_UMOUNT)
		nvh_usage("--op umount: the workload unmount does that");
	run.signal = signal ? nvh_choice("signal", signal, signals) : -1;
	parse_pin_pages(pin_page);
	if (run.kind == PIN_NONE)
		run.pin_count = 0;
	elsewhere = run.op.kind == OP_READ || run.op.kind == OP_WRITE;
	half = run.op.kind == OP_COLLAPSE || run.op.kind == OP_INSERT;
	run.op.at = pages_option("op-page", at, elsewhere ? run.pages - 1 : 0, 0, run.pages);
	run.op.count = pages_option("op-pages", count, half ? run.pages / 2 : run.pages - run.op.at,
				    0, run.pages - run.op.at);
	run.observe = seconds_option("observe", observe, 3);
	run.between = seconds_option("between", between, run.observe);
	run.end_deadline = seconds_option("end-deadline", end_deadline, 20);
	if (run.touch && run.munmap)
		nvh_usage("--touch-while-waiting needs the mapping that --munmap removes");
	if (run.kind != PIN_ODIRECT_READ && run.kind != PIN_ODIRECT_WRITE)
		return;
	if (!slow)
		nvh_usage("--pin %s needs --slow DEVICE", pin);
	run.slow = open(slow, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (run.slow < 0)
		nvh_usage("--slow %s: %s", slow, nvh_errname(errno));
}

int main(int argc, char **argv)
{
	struct waiting waiting = {0};
	double begun = nvh_now();
	bool still_pinned;

	parse(argc, argv);
	nvh_begin("layout");
	nvh_fact_str("op_name", fileop_kinds[run.op.kind]);
	nvh_fact_bool("refcount", refcount_open());
	if (run.backing)
		fill_backing();
	make_mapping();
	model_init(&run.model, run.pages);
	if (run.refill_path) {
		nvh_step(ballast_fill(run.refill_path), "the file system is full");
		nvh_step(ballast_where(run.map_fd, run.pin_pages[0], &run.pinned_at), "the page's block is known");
		nvh_fact_int("page_at", (long long)run.pinned_at);
	}
	if (!make_pins())
		return nvh_end();
	blocks_facts("before");
	drop_mapping();
	run.op.fd = run.fd;
	if (!nvh_step(fileop_start(&run.child, &run.op, run.signal == 0), "%s started",
		      fileop_kinds[run.op.kind]))
		return nvh_end();
	waiting_watch(&waiting, &run.child, run.pin_count ? &run.pins[0] : NULL, run.observe);
	waiting_facts("", &waiting);
	blocks_facts("pinned");
	refs_fact("refs_waiting");
	if (run.touch)
		touch_while_waiting();
	if (run.refill_path)
		ballast_refill(run.refill_path, run.pinned_at);
	if (run.signal >= 0)
		send_signal();
	still_pinned = run.pin_count && pin_holds(&run.pins[0]);
	nvh_fact_bool("pinned_while_watched", still_pinned);
	nvh_step(still_pinned || !run.pin_count, "the pin outlasted the observation");
	release_pins();
	if (run.pin_count)
		nvh_fact_bool("returned_while_pinned", returned_before_release());
	wait_for_end();
	moments(begun, &waiting);
	if (run.refill_path)
		ballast_check(run.refill_path);
	content_facts();
	return nvh_end();
}
