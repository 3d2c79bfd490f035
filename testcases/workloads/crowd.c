/*
 * Many threads that come to one entry of a DAX file's page cache at once.  Who finds it locked sleeps,
 * one at a time is woken, and has to wake the next, whatever has become of the entry: who forgets that
 * leaves a thread asleep for ever.  Each check has a file of its own and two facts: "OK" or what was seen
 * instead, and how many were there to be woken.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "memory.h"
#include "nvh.h"
#include "tracefs.h"
#include "watch.h"

#define HUGE_PAGE (2UL << 20)
#define PAGE 4096UL
#define THREADS 8
#define SYNCING 2
/*
 * What none of the threads does a step in is a hang; a step is some milliseconds.  Both the time and
 * the looks: in a guest that its host does not run, time passes and nothing happens.
 */
#define STALL_SECONDS 10
#define STALL_LOOKS 250
#define CHECK_SECONDS 25
/* A check in which nobody was there to be woken is done again. */
#define ENOUGH 4
#define ATTEMPTS 10

static struct {
	int fd, rounds;
	size_t size;
	char *huge, *small; /* the whole file, as huge as it can be and in pages alone */
	bool hung, writes;
	void (*work)(int me);
	atomic_int tids[THREADS], ended, synced;
	atomic_uint steps, met;
} run;

static struct {
	const char *tracefs; /* NULL: nothing is probed */
	char name[32];
} probe;

/*
 * Counts the calls of fs/dax.c's own wake-up function, one for each who sleeps when somebody unlocks an
 * entry; false where it cannot be probed.
 */
static bool probe_start(void)
{
	char command[96];
	int err = ENOENT;

	probe.tracefs = tracefs_with("kprobe_events");
	snprintf(probe.name, sizeof(probe.name), "woken_%d", (int)getpid());
	snprintf(command, sizeof(command), "p:nvh/%s wake_exceptional_entry_func", probe.name);
	if (probe.tracefs)
		err = tracefs_put(command, O_APPEND, "%s/kprobe_events", probe.tracefs);
	if (!err)
		err = tracefs_put("1", 0, "%s/events/nvh/%s/enable", probe.tracefs, probe.name);
	if (err) {
		nvh_fact_str("probe_missing", nvh_errname(err));
		probe.tracefs = NULL;
	}
	return !err;
}

static long long probe_hits(void)
{
	char path[128], line[256], name[64];
	long long hits = 0, number;
	FILE *f;

	if (!probe.tracefs)
		return 0;
	snprintf(path, sizeof(path), "%s/kprobe_profile", probe.tracefs);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%63s %lld", name, &number) == 2 && !strcmp(name, probe.name))
			hits = number;
	if (f)
		fclose(f);
	return hits;
}

/* A file that is one hole, all of it read already: zero pages in the page tables, to be taken down again. */
static void prepare(const char *name, size_t size)
{
	run.fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	must(run.fd >= 0 && ftruncate(run.fd, (off_t)size) == 0, name);
	run.size = size;
	run.huge = memory_map_aligned(run.fd, size, 0, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	run.small = memory_map_aligned(run.fd, size, 0, PROT_READ | PROT_WRITE, MAP_SHARED, PAGE);
}

/*
 * Waits for the others without sleeping: a processor that runs this program has to be told when a page
 * table changes, and QEMU, which without KVM runs one processor at a time, turns to it just then.
 */
static void meet(void)
{
	unsigned int mine = atomic_fetch_add(&run.met, 1), all = mine - mine % THREADS + THREADS;

	atomic_fetch_add(&run.steps, 1);
	for (int i = 1; (int)(atomic_load(&run.met) - all) < 0; i++) {
		sched_yield();
		if (i % 32 == 0) /* QEMU turns to the other processor, which is told to wait just then otherwise */
			__builtin_ia32_pause();
	}
}

static void *thread_main(void *arg)
{
	int me = (int)(intptr_t)arg;
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET((size_t)me % (size_t)sysconf(_SC_NPROCESSORS_ONLN), &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);
	atomic_store(&run.tids[me], (int)syscall(SYS_gettid));
	run.work(me);
	atomic_fetch_add(&run.ended, 1);
	return NULL;
}

/* The first thread that sleeps; the others wait for it. */
static void tell_hung(void)
{
	for (int i = 0; i < THREADS; i++) {
		struct sight seen;

		if (watch_look(atomic_load(&run.tids[i]), &seen) && seen.state == 'D')
			check_differs("thread %d waits for ever: %c in %.*s", i, seen.state,
				      (int)strcspn(seen.stack, " "), seen.stack);
	}
	check_differs("threads wait for one another for ever");
}

/* Has all of them work, and watches; false when no end came of it. */
static bool together(void (*work)(int me))
{
	double since = nvh_now();
	unsigned int looks = 0, steps = 0;
	pthread_t thread;

	run.work = work;
	atomic_store(&run.met, 0);
	atomic_store(&run.ended, 0);
	atomic_store(&run.synced, 0);
	for (intptr_t i = 0; i < THREADS; i++)
		must(pthread_create(&thread, NULL, thread_main, (void *)i) == 0, "pthread_create");
	while (atomic_load(&run.ended) < THREADS) {
		unsigned int now = atomic_load(&run.steps);

		if (now != steps) {
			since = nvh_now();
			looks = 0;
		}
		steps = now;
		if (++looks > STALL_LOOKS && nvh_now() > since + STALL_SECONDS) {
			tell_hung();
			run.hung = true;
			/* Who waits for the output's end would wait for that thread. */
			close(STDOUT_FILENO);
			close(STDERR_FILENO);
			return false;
		}
		nvh_sleep(0.02);
	}
	return true;
}

/* Each thread's own bytes: one of every page, or one page of every 2 MiB. */
static size_t byte_of_page(size_t page, int me)
{
	return page * PAGE + 64 * (size_t)me;
}

/* Its page is one of the first 64, as an entry of 2 MiB is found under its first page beyond those. */
static size_t page_of(size_t huge, int me)
{
	return huge * HUGE_PAGE / PAGE + 1 + 7 * (size_t)me;
}

static void expect_bytes(size_t (*at)(size_t place, int me), size_t places, size_t unit)
{
	char *data = malloc(run.size);

	must(data && pread(run.fd, data, run.size, 0) == (ssize_t)run.size, "pread");
	for (size_t place = 0; place < places; place++)
		for (int me = 0; me < THREADS; me++)
			if (data[at(place, me) * unit] != (char)(me + 1))
				check_differs("thread %d's store to 0x%zx is lost", me, at(place, me) * unit);
	free(data);
}

/* They go from page to page: who is behind finds what others have stored to, up to the page that one is at. */
static void store_to_every_page(int me)
{
	for (size_t page = 0; page < run.size / PAGE; page++) {
		char byte = (char)(me + 1);

		if (me || !run.writes)
			((volatile char *)run.small)[byte_of_page(page, me)] = byte;
		else if (pwrite(run.fd, &byte, 1, (off_t)byte_of_page(page, me)) != 1)
			check_differs("pwrite: %s", nvh_errname(errno));
		atomic_fetch_add(&run.steps, 1);
	}
}

static void stores_to_one_page(const char *name, int arg)
{
	prepare(name, (size_t)arg * PAGE);
	memory_touch(run.small, run.size, false);
	if (together(store_to_every_page))
		expect_bytes(byte_of_page, run.size / PAGE, 1);
}

/* One of them by write(), which takes the zero page away from those who store to it. */
static void stores_and_writes(const char *name, int arg)
{
	run.writes = true;
	stores_to_one_page(name, arg);
}

/* To pages of their own, by turns all in small entries and half of them in a huge one. */
static void store_to_every_hole(int me)
{
	for (size_t huge = 0; huge < run.size / HUGE_PAGE; huge++) {
		char *view = huge % 2 && me % 2 ? run.huge : run.small;

		meet();
		((volatile char *)view)[page_of(huge, me) * PAGE] = (char)(me + 1);
	}
}

static void stores_to_one_hole(const char *name, int arg)
{
	prepare(name, (size_t)arg * HUGE_PAGE);
	memory_touch(run.huge, run.size, false);
	if (together(store_to_every_hole))
		expect_bytes(page_of, run.size / HUGE_PAGE, PAGE);
}

/* Two of them have the entry made clean, each by its own page, while the others make it dirty again. */
static void store_or_sync(int me)
{
	off_t own = (off_t)(page_of(0, me) * PAGE);

	for (int round = 1; round <= run.rounds; round++) {
		((volatile char *)run.huge)[own] = (char)(me + 1);
		meet();
		/* Not fsync(): what it waits for in a journal comes on top. */
		if (me < SYNCING && sync_file_range(run.fd, own, PAGE, SYNC_FILE_RANGE_WRITE_AND_WAIT))
			check_differs("sync_file_range: %s", nvh_errname(errno));
		if (me < SYNCING)
			atomic_fetch_add(&run.synced, 1);
		while (atomic_load(&run.synced) < SYNCING * round) {
			((volatile char *)run.huge)[own] = (char)(me + 1);
			sched_yield();
		}
	}
}

static void stores_while_synced(const char *name, int arg)
{
	run.rounds = arg;
	prepare(name, HUGE_PAGE);
	if (together(store_or_sync))
		expect_bytes(page_of, 1, PAGE);
}

static const struct {
	const char *name;
	void (*run)(const char *name, int amount);
	int amount;
} checks[] = {
	{"stores_to_one_page", stores_to_one_page, 128},
	{"stores_and_writes", stores_and_writes, 512},
	{"stores_to_one_hole", stores_to_one_hole, 6},
	{"stores_while_synced", stores_while_synced, 30},
};

/* Once more where nobody was there to be woken, as far as that is known. */
static void attempt(const char *name, int which)
{
	long long before = probe_hits();

	for (int i = 0; i < ATTEMPTS && !run.hung; i++) {
		checks[which].run(name, checks[which].amount);
		if (!probe.tracefs || probe_hits() - before >= ENOUGH)
			break;
		close(run.fd);
	}
}

int main(int argc, char **argv)
{
	const char *directory = NULL;
	const struct nvh_option options[] = {
		{"directory", &directory, NULL, "where the files are made"},
		{NULL, NULL, NULL, NULL},
	};
	long long before = 0;
	char key[64];
	bool probed, hung = false;

	nvh_options(argc, argv, "Have many threads come to one entry of a DAX file at once.", options);
	if (!directory)
		nvh_usage("--directory PATH is needed");
	nvh_begin("crowd");
	must(chdir(directory) == 0, directory);
	probed = probe_start();
	for (size_t i = 0; i < sizeof(checks) / sizeof(*checks); i++) {
		hung = !check_run(checks[i].name, attempt, (int)i, CHECK_SECONDS);
		if (hung)
			break;
		snprintf(key, sizeof(key), "%s_woken", checks[i].name);
		if (probed)
			nvh_fact_int(key, probe_hits() - before);
		before = probe_hits();
	}
	nvh_fact_bool("hung", hung);
	if (probed) {
		tracefs_put("0", 0, "%s/events/nvh/%s/enable", probe.tracefs, probe.name);
		snprintf(key, sizeof(key), "-:nvh/%s", probe.name);
		tracefs_put(key, O_APPEND, "%s/kprobe_events", probe.tracefs);
	}
	return nvh_end();
}
