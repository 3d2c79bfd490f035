/*
 * Many threads that pin pages of one file and change its layout, for a fixed number of rounds each.
 *
 * Each thread owns pages of the lower part of the file: it alone writes, pins, punches and zeroes
 * them, and notes in the model what they hold.  Behind them is the tail, where the file grows,
 * shrinks and shifts: who works there holds size_lock.  So at every moment the model is exact, while
 * each change of the layout waits for the pins of all threads.  A thread that pins does nothing to
 * the file until it has let go: whoever waits for it waits for a timer alone.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fileop.h"
#include "hang.h"
#include "memory.h"
#include "model.h"
#include "nvh.h"
#include "watch.h"

#define MAX_THREADS 32
#define OWN 8   /* pages of each thread */
#define TAIL 32 /* pages of the tail at most */

/* The longest that a vmsplice pin is held, in milliseconds. */
#define HOLD_MS 8

static const char *const pin_names[] = {"vmsplice", "odirect", NULL};
enum { PINS_VMSPLICE, PINS_ODIRECT };

struct thread {
	pthread_t handle;
	int number, first; /* its first page */
	uint64_t random;
	int versions;      /* pages that it has written */
	int pipe[2];
	char *map, *buffer; /* of its own pages; one page for direct I/O */
	atomic_int tid, pinned; /* the page that it holds, or -1 */
	_Atomic(const char *) doing;
	int pins, ops[OP_NONE], met_pins;
};

static struct {
	const char *path;
	int threads, rounds, pins, fd, slow, base; /* base: the tail's first page */
	bool keep;
	struct model model;
	struct thread thread[MAX_THREADS];
	pthread_mutex_t size_lock, word_lock;
	atomic_int holding, finished;
	atomic_uint steps;
	atomic_bool failed;
	char error[160], mismatch[160];
} run = {.size_lock = PTHREAD_MUTEX_INITIALIZER, .word_lock = PTHREAD_MUTEX_INITIALIZER, .slow = -1};

/* Notes the first of what went wrong; all threads then end. */
__attribute__((format(printf, 2, 3))) static void complain(char *where, const char *fmt, ...)
{
	va_list args;

	pthread_mutex_lock(&run.word_lock);
	if (!*where) {
		va_start(args, fmt);
		vsnprintf(where, sizeof(run.error), fmt, args);
		va_end(args);
	}
	pthread_mutex_unlock(&run.word_lock);
	atomic_store(&run.failed, true);
}

static unsigned int draw(struct thread *me, unsigned int below)
{
	me->random ^= me->random << 13; /* xorshift64 */
	me->random ^= me->random >> 7;
	me->random ^= me->random << 17;
	return (unsigned int)((me->random >> 32) % below);
}

static void step(struct thread *me, const char *doing)
{
	atomic_store(&me->doing, doing);
	atomic_fetch_add(&run.steps, 1);
}

/* A page that nobody has written before. */
static int new_version(struct thread *me)
{
	return me->number + run.threads * me->versions++;
}

static void check(struct thread *me, const char *what, int at)
{
	char right[32], seen[32];
	size_t size = memory_page();
	char *page = malloc(size);

	model_fill(page, run.model.page[at].owner, run.model.page[at].index);
	if (memcmp(page, me->buffer, size)) {
		model_whose(page, run.model.patterns, right);
		model_whose(me->buffer, run.model.patterns, seen);
		complain(run.mismatch, "%s of page %d is %s, not %s", what, at, seen, right);
	}
	free(page);
}

static void failed_call(struct thread *me, const char *what)
{
	complain(run.error, "thread %d: %s: %s", me->number, what, nvh_errname(errno));
}

static bool map_own(struct thread *me)
{
	size_t size = memory_page();

	step(me, "mmap");
	me->map = mmap(NULL, OWN * size, PROT_READ | PROT_WRITE, MAP_SHARED, run.fd, (off_t)me->first * (off_t)size);
	if (me->map == MAP_FAILED)
		failed_call(me, "mmap");
	return me->map != MAP_FAILED;
}

static void unmap_own(struct thread *me)
{
	if (me->map && munmap(me->map, OWN * memory_page()))
		failed_call(me, "munmap");
	me->map = NULL;
}

/* Gives a page new content, by write() or through the mapping. */
static void write_page(struct thread *me, int at)
{
	size_t size = memory_page();
	int version = new_version(me);

	step(me, "write");
	model_fill(me->buffer, OWNER_FIRST, version);
	if (draw(me, 2) || at >= run.base) {
		if (pwrite(run.fd, me->buffer, size, (off_t)at * (off_t)size) != (ssize_t)size)
			return failed_call(me, "pwrite");
	} else {
		memcpy(me->map + (size_t)(at - me->first) * size, me->buffer, size);
	}
	model_set(&run.model, at, OWNER_FIRST, version);
}

static void pinned(struct thread *me, int at)
{
	atomic_store(&me->pinned, at);
	atomic_fetch_add(&run.holding, 1);
	me->pins++;
}

static void released(struct thread *me)
{
	atomic_store(&me->pinned, -1);
	atomic_fetch_sub(&run.holding, 1);
}

/* The page goes into a pipe; what comes out must be what the page held. */
static void pin_by_vmsplice(struct thread *me, int at)
{
	size_t size = memory_page(), got = 0;
	char *addr = me->map + (size_t)(at - me->first) * size;
	struct iovec part = {addr, size};

	step(me, "vmsplice");
	pinned(me, at);
	if (vmsplice(me->pipe[1], &part, 1, 0) != (ssize_t)size) {
		failed_call(me, "vmsplice");
		return released(me);
	}
	if (run.keep) {
		nvh_sleep(draw(me, HOLD_MS) / 1e3);
		step(me, "touch");
		memory_touch(addr, size, true);
	} else {
		unmap_own(me);
	}
	step(me, "hold");
	nvh_sleep(draw(me, HOLD_MS) / 1e3);
	while (got < size) {
		ssize_t n = read(me->pipe[0], me->buffer + got, size - got);

		if (n <= 0) {
			failed_call(me, "read of the pipe");
			break;
		}
		got += (size_t)n;
	}
	released(me);
	if (got == size)
		check(me, "the pipe's copy", at);
}

/* The page is read from or written to a page of a slow device that is this thread's. */
static void pin_by_odirect(struct thread *me, int at)
{
	size_t size = memory_page();
	char *addr = me->map + (size_t)(at - me->first) * size;
	off_t there = (off_t)me->number * (off_t)size;
	bool reads = draw(me, 2);
	ssize_t done;

	if (reads) {
		int version = new_version(me);

		step(me, "slow write");
		model_fill(me->buffer, OWNER_FIRST, version);
		if (pwrite(run.slow, me->buffer, size, there) != (ssize_t)size)
			return failed_call(me, "write of the slow device");
		model_set(&run.model, at, OWNER_FIRST, version);
	}
	step(me, reads ? "O_DIRECT read" : "O_DIRECT write");
	pinned(me, at);
	done = reads ? pread(run.slow, addr, size, there) : pwrite(run.slow, addr, size, there);
	released(me);
	if (done != (ssize_t)size)
		return failed_call(me, reads ? "O_DIRECT read" : "O_DIRECT write");
	step(me, "slow read");
	done = reads ? pread(run.fd, me->buffer, size, (off_t)at * (off_t)size)
		     : pread(run.slow, me->buffer, size, there);
	if (done != (ssize_t)size)
		return failed_call(me, "reading back");
	check(me, reads ? "the file's copy" : "the device's copy", at);
}

static void operate(struct thread *me, const struct fileop *op)
{
	int err;

	step(me, fileop_kinds[op->kind]);
	if (atomic_load(&run.holding))
		me->met_pins++;
	err = fileop_do(op, run.fd, me->buffer);
	if (err)
		complain(run.error, "thread %d: %s at page %d, %d pages: %s", me->number, fileop_kinds[op->kind],
			 op->at, op->count, nvh_errname(err));
	else
		fileop_model(op, &run.model);
	me->ops[op->kind]++;
}

static void change_own(struct thread *me)
{
	struct fileop op = {.kind = draw(me, 2) ? OP_PUNCH : OP_ZERO};

	op.at = me->first + (int)draw(me, OWN);
	op.count = 1 + (int)draw(me, (unsigned int)(me->first + OWN - op.at));
	operate(me, &op);
}

static void change_tail(struct thread *me)
{
	static const enum fileop_kind kinds[] = {OP_TRUNCATE, OP_TRUNCATE, OP_COLLAPSE, OP_INSERT, OP_WRITE};
	struct fileop op = {.kind = kinds[draw(me, 5)]};
	int have;

	step(me, "lock");
	pthread_mutex_lock(&run.size_lock);
	have = run.model.pages - run.base;
	op.at = run.base + (have ? (int)draw(me, (unsigned int)have) : 0);
	op.count = 1 + (int)draw(me, 4);
	if (op.kind == OP_WRITE && have < TAIL) {
		op.at = run.base + (int)draw(me, (unsigned int)have + 1);
		if (op.at == run.model.pages)
			run.model.pages++;
		write_page(me, op.at);
	} else if ((op.kind == OP_COLLAPSE && op.at + op.count < run.model.pages) ||
		   (op.kind == OP_INSERT && have && have + op.count <= TAIL)) {
		operate(me, &op);
	} else {
		op.kind = OP_TRUNCATE;
		op.at = run.base + (int)draw(me, TAIL + 1);
		operate(me, &op);
	}
	pthread_mutex_unlock(&run.size_lock);
}

static void *weather(void *arg)
{
	struct thread *me = arg;

	atomic_store(&me->tid, (int)syscall(SYS_gettid));
	for (int i = 0; i < run.rounds && !atomic_load(&run.failed); i++) {
		int at = me->first + (int)draw(me, OWN);

		if (!me->map && !map_own(me))
			break;
		if (draw(me, 4))
			write_page(me, at);
		if (run.pins == PINS_VMSPLICE)
			pin_by_vmsplice(me, at);
		else
			pin_by_odirect(me, at);
		if (!run.keep)
			unmap_own(me);
		if (draw(me, 2))
			change_own(me);
		else
			change_tail(me);
	}
	step(me, "done");
	atomic_fetch_add(&run.finished, 1);
	return NULL;
}

/* Who is where; and the blocked tasks' stacks into the kernel's log, by sysrq. */
static void tell_hung(void)
{
	char all[2048] = "", held[256] = "no pin held", in[512] = "";
	size_t used = 0;

	hang_sysrq();
	for (int i = 0; i < run.threads; i++) {
		int page = atomic_load(&run.thread[i].pinned);

		if (page >= 0)
			snprintf(held, sizeof(held), "thread %d holds page %d", i, page);
	}
	for (int i = 0; i < run.threads; i++) {
		const char *doing = atomic_load(&run.thread[i].doing), *where;
		struct sight sight;

		if (!strcmp(doing, "done") || !watch_look(atomic_load(&run.thread[i].tid), &sight))
			continue;
		where = watch_layout_break(&sight);
		if (where || !*in)
			hang_words(in, sizeof(in), doing, &sight, held);
		nvh_note("thread %d in %s: %c %s", i, doing, sight.state, sight.stack);
		if (used < sizeof(all))
			used += (size_t)snprintf(all + used, sizeof(all) - used, "%s%d %s %c %s", used ? "; " : "", i,
						 doing, sight.state, where ? where : sight.wchan);
	}
	nvh_fact_str("hung_threads", all);
	nvh_fact_str("hung_in", in);
}

/* Whether a thread waits in a layout break at this moment. */
static bool look_for_wait(char *waits_in, size_t size)
{
	for (int i = 0; i < run.threads; i++) {
		const char *where;
		struct sight sight;

		if (atomic_load(&run.thread[i].pinned) >= 0 || !watch_look(atomic_load(&run.thread[i].tid), &sight))
			continue;
		where = watch_layout_break(&sight);
		if (!where || (sight.state != 'S' && sight.state != 'D'))
			continue;
		snprintf(waits_in, size, "%s", where);
		return true;
	}
	return false;
}

/* Watches until all threads are done; false when none of them made a step for so many seconds. */
static bool watch_threads(double stall)
{
	unsigned int steps = 0;
	double since = nvh_now();
	char waits_in[128] = "";
	int seen = 0;

	while (atomic_load(&run.finished) < run.threads && nvh_now() < since + stall) {
		unsigned int now = atomic_load(&run.steps);

		if (now != steps) {
			steps = now;
			since = nvh_now();
		}
		if (seen < 5 && look_for_wait(waits_in, sizeof(waits_in)))
			seen++;
		nvh_sleep(0.02);
	}
	nvh_fact_int("seen_waiting", seen);
	nvh_fact_str("waits_in", waits_in);
	return atomic_load(&run.finished) == run.threads;
}

static void counts(void)
{
	int pins = 0, met = 0, ops[OP_NONE] = {0};

	for (int i = 0; i < run.threads; i++) {
		pins += run.thread[i].pins;
		met += run.thread[i].met_pins;
		for (int kind = 0; kind < OP_NONE; kind++)
			ops[kind] += run.thread[i].ops[kind];
	}
	for (int kind = 0; kind < OP_NONE; kind++) {
		char key[32];

		snprintf(key, sizeof(key), "ops_%s", fileop_kinds[kind]);
		if (ops[kind])
			nvh_fact_int(key, ops[kind]);
	}
	nvh_fact_int("pins", pins);
	nvh_fact_int("ops_that_met_pins", met);
}

static void prepare(uint64_t seed)
{
	size_t page = memory_page();

	run.base = run.threads * OWN;
	run.fd = open(run.path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (run.fd < 0)
		nvh_bail("%s: %s", run.path, nvh_errname(errno));
	nvh_fact_bool("dax", memory_is_dax(run.fd) == 1);
	model_init(&run.model, run.base);
	run.model.patterns = run.threads * (3 * run.rounds + OWN + 1);
	for (int i = 0; i < run.threads; i++) {
		struct thread *thread = &run.thread[i];

		*thread = (struct thread){.number = i, .first = i * OWN, .doing = "start", .pinned = -1};
		thread->random = (seed + 1) * 0x9e3779b97f4a7c15ULL ^ ((uint64_t)i + 1) * 0xbf58476d1ce4e5b9ULL;
		thread->buffer = aligned_alloc(page, page);
		if (!thread->buffer || pipe2(thread->pipe, O_CLOEXEC))
			nvh_bail("thread %d: %s", i, nvh_errname(errno));
		for (int at = thread->first; at < thread->first + OWN; at++) {
			model_set(&run.model, at, OWNER_FIRST, new_version(thread));
			model_fill(thread->buffer, OWNER_FIRST, run.model.page[at].index);
			if (pwrite(run.fd, thread->buffer, page, (off_t)at * (off_t)page) != (ssize_t)page)
				nvh_bail("%s cannot be written: %s", run.path, nvh_errname(errno));
		}
	}
	/* Pins of a file that nobody maps are another question. */
	if (mmap(NULL, (size_t)run.base * page, PROT_READ, MAP_SHARED, run.fd, 0) == MAP_FAILED)
		nvh_bail("mmap: %s", nvh_errname(errno));
}

int main(int argc, char **argv)
{
	const char *pins = "vmsplice", *threads = "8", *rounds = "40", *seed = "1", *stall = "10", *slow = NULL;
	const struct nvh_option options[] = {
		{"file", &run.path, NULL, "the file to make, pin and change"},
		{"pins", &pins, NULL, "vmsplice (default), odirect"},
		{"slow", &slow, NULL, "the slow block device of the odirect pins; it keeps what is written to it"},
		{"keep", NULL, &run.keep, "keep the mappings, and touch pages while they are pinned; else pages are unmapped"},
		{"threads", &threads, NULL, "how many (default 8)"},
		{"rounds", &rounds, NULL, "of each thread (default 40)"},
		{"seed", &seed, NULL, "of all that is drawn by lot (default 1)"},
		{"stall", &stall, NULL, "seconds without a step of any thread that are a hang (default 10)"},
		{NULL, NULL, NULL, NULL},
	};
	unsigned long long number;
	double begun, stalled;
	bool ended;

	nvh_options(argc, argv, "Pin pages of one file and change its layout, with many threads.", options);
	if (!run.path)
		nvh_usage("--file PATH is needed");
	run.pins = nvh_choice("pins", pins, pin_names);
	run.threads = nvh_number("threads", threads, 1, MAX_THREADS);
	run.rounds = nvh_number("rounds", rounds, 1, 100000);
	stalled = nvh_number("stall", stall, 1, 3600);
	number = nvh_size("seed", seed);
	if (run.pins == PINS_ODIRECT) {
		run.slow = slow ? open(slow, O_RDWR | O_DIRECT | O_CLOEXEC) : -1;
		if (run.slow < 0)
			nvh_usage("--pins odirect needs --slow DEVICE%s%s", slow ? ": " : "", slow ? nvh_errname(errno) : "");
		if (run.keep)
			nvh_usage("--keep touches pages that are pinned by vmsplice");
	}
	nvh_begin("storm");
	nvh_fact_int("seed", (long long)number);
	prepare(number);
	begun = nvh_now();
	for (int i = 0; i < run.threads; i++) {
		if (pthread_create(&run.thread[i].handle, NULL, weather, &run.thread[i]))
			nvh_bail("no thread");
	}
	ended = watch_threads(stalled);
	nvh_fact_bool("hung", !ended);
	nvh_fact_str("hung_in", "none");
	nvh_fact_seconds("seconds", nvh_now() - begun);
	counts();
	nvh_fact_str("error", *run.error ? run.error : "none");
	nvh_fact_str("mismatch", *run.mismatch ? run.mismatch : "none");
	if (!nvh_step(ended, "every thread ended")) {
		tell_hung();
		return nvh_end(); /* the others are killed with it */
	}
	for (int i = 0; i < run.threads; i++)
		pthread_join(run.thread[i].handle, NULL);
	nvh_fact_str("content", model_check(&run.model, run.fd, false));
	nvh_fact_str("content_mapped", model_check(&run.model, run.fd, true));
	return nvh_end();
}
