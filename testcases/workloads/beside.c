/*
 * Punches a pinned page of a DAX file while another thread syncs the file, which locks an entry of its page
 * cache for as long as it flushes what the entry stands for.  Reports whether a punch came back under the pin.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"
#include "pin.h"
#include "watch.h"

#define SIZE (2UL << 20)
#define STORED 64 /* into the first page */
/* Rounds go on for so long, and for so many, and end with the first loss; alone there are so many. */
#define SECONDS 3.0
#define FEWEST 100
#define ALONE 10
/* How long a punch is given to come back under a pin, in seconds, where it is not seen to wait. */
#define PATIENCE 0.05
/* How late a punch begins: each round another one, in times that the processor is given away. */
#define LATEST 8

static struct {
	int fd;
	volatile char *view;
	atomic_int tid, err;
	atomic_bool punched;
} run;

static void *sync_once(void *unused)
{
	(void)unused;
	if (fdatasync(run.fd))
		nvh_bail("fdatasync: %s", nvh_errname(errno));
	return NULL;
}

static void *punch(void *unused)
{
	(void)unused;
	atomic_store(&run.tid, (int)syscall(SYS_gettid));
	atomic_store(&run.err, fallocate(run.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SIZE) ? errno : 0);
	atomic_store(&run.punched, true);
	return NULL;
}

static void start(pthread_t *thread, void *(*work)(void *unused))
{
	if (pthread_create(thread, NULL, work, NULL))
		nvh_bail("no thread");
}

/* Waits until the punch is over or seen to wait for the pin; returns whether it is over. */
static bool comes_back(void)
{
	double until = nvh_now() + PATIENCE;

	while (nvh_now() < until && !atomic_load(&run.punched)) {
		int tid = atomic_load(&run.tid);
		struct sight sight;

		if (tid && watch_look(tid, &sight) && watch_layout_break(&sight))
			break;
		sched_yield();
	}
	return atomic_load(&run.punched);
}

/* One round; returns whether the punch came back while the page was pinned. */
static bool lost(bool synced, int late)
{
	static char data[4096];
	pthread_t syncing, punching;
	struct pin pin = {0};
	const char *why = "";
	bool early;

	if (fallocate(run.fd, 0, 0, SIZE))
		nvh_bail("fallocate: %s", nvh_errname(errno));
	run.view[STORED]++; /* the block, and not a page of zeroes, is what gets pinned */
	if (!pin_start(&pin, PIN_VMSPLICE, (void *)run.view, sizeof(data), -1, &why))
		nvh_bail("no pin: %s", why);
	atomic_store(&run.punched, false);
	atomic_store(&run.tid, 0);
	if (synced)
		start(&syncing, sync_once);
	while (late-- > 0)
		sched_yield();
	start(&punching, punch);
	early = comes_back();
	if (pin_release(&pin, data, 10) || pthread_join(punching, NULL))
		nvh_bail("the pin does not end");
	close(pin.pipe_read);
	close(pin.pipe_write);
	if (synced)
		pthread_join(syncing, NULL);
	if (atomic_load(&run.err))
		nvh_bail("punch: %s", nvh_errname(atomic_load(&run.err)));
	return early;
}

int main(int argc, char **argv)
{
	const char *path = NULL;
	bool seen = false;
	const struct nvh_option options[] = {
		{"file", &path, NULL, "the DAX file to make"},
		{NULL, NULL, NULL, NULL},
	};
	int alone = 0, rounds = 0;
	double until;

	nvh_options(argc, argv, "Punch a pinned page of a DAX file beside a sync of it.", options);
	if (!path)
		nvh_usage("--file PATH is needed");
	nvh_begin("beside");
	run.fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (run.fd < 0 || fallocate(run.fd, 0, 0, SIZE))
		nvh_bail("%s: %s", path, nvh_errname(errno));
	nvh_fact_bool("dax", memory_is_dax(run.fd) == 1);
	run.view = memory_map_aligned(run.fd, SIZE, 0, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	for (int i = 0; i < ALONE; i++)
		alone += lost(false, 0);
	nvh_fact_int("returned_while_pinned_alone", alone);
	nvh_step(true, "punched with nobody beside");
	for (until = nvh_now() + SECONDS; (nvh_now() < until || rounds < FEWEST) && !seen; rounds++)
		seen = lost(true, rounds % LATEST);
	nvh_fact_int("rounds", rounds);
	nvh_fact_bool("returned_while_pinned", seen);
	nvh_step(true, "punched beside syncs");
	return nvh_end();
}
