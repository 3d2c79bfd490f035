/*
 * Has two threads sync a DAX file at once that was stored to before, and reports by the kernel's tracepoints
 * whether one of them was done before anybody had brought the store to the medium.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"
#include "trace.h"

#define SIZE (2UL << 20)
/* Rounds go on for so long, and for so many, and end with the first store that is passed over. */
#define SECONDS 2.0
#define FEWEST 40
/* How much later than the first the second sync begins: each round so many more times that the processor is given away. */
#define LATEST 8

static int fd;

static void *sync_late(void *arg)
{
	for (intptr_t late = (intptr_t)arg; late > 0; late--)
		sched_yield();
	if (fdatasync(fd))
		nvh_bail("fdatasync: %s", nvh_errname(errno));
	return NULL;
}

/* One round of one or two syncs; returns whether the first that was done had not written the store back. */
static bool passed_over(volatile char *view, bool alone, int late)
{
	pthread_t thread;

	(*view)++;
	trace_clear();
	if (!alone && pthread_create(&thread, NULL, sync_late, (void *)(intptr_t)late))
		nvh_bail("no thread");
	sync_late(NULL);
	if (!alone)
		pthread_join(thread, NULL);
	return trace_begins("dax_writeback_range_done", "dax_writeback_one");
}

int main(int argc, char **argv)
{
	const char *path = NULL;
	const struct nvh_option options[] = {
		{"file", &path, NULL, "the DAX file to make"},
		{NULL, NULL, NULL, NULL},
	};
	int alone = 0, rounds = 0;
	bool seen = false;
	double until;
	char *view;

	nvh_options(argc, argv, "Sync a DAX file twice at once.", options);
	if (!path)
		nvh_usage("--file PATH is needed");
	nvh_begin("syncs");
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || fallocate(fd, 0, 0, SIZE))
		nvh_bail("%s: %s", path, nvh_errname(errno));
	nvh_fact_bool("dax", memory_is_dax(fd) == 1);
	if (!trace_start()) {
		nvh_skip("no tracepoints of fs/dax.c");
		return nvh_end();
	}
	view = memory_map_aligned(fd, SIZE, 0, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
	for (int i = 0; i < FEWEST; i++)
		alone += passed_over(view, true, 0);
	nvh_fact_int("passed_over_alone", alone);
	nvh_step(true, "one sync after the other");
	for (until = nvh_now() + SECONDS; (nvh_now() < until || rounds < FEWEST) && !seen; rounds++)
		seen = passed_over(view, false, rounds % LATEST);
	nvh_fact_int("rounds", rounds);
	nvh_fact_bool("passed_over", seen);
	nvh_step(true, "two syncs at once");
	trace_stop();
	return nvh_end();
}
