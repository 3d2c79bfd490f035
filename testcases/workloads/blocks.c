/*
 * Writes patterns to blocks all over a block device, past the page cache and some of them many times over,
 * or looks whether these blocks and their neighbours hold what was written last.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"

#define BLOCK 4096UL
#define SPOTS 48 /* groups of blocks, the first at the start and the last at the end of the device */
#define GROUP 3 /* blocks of a group; those in the middle are written again */
#define SEED 100

/* A few more rounds for some spots than for others, so that a lost write leaves a pattern that tells. */
static unsigned rounds(size_t spot)
{
	return 1 + spot % 3;
}

static size_t first_of(size_t spot, size_t blocks)
{
	return (blocks - GROUP) * spot / (SPOTS - 1);
}

static uint64_t seed_of(size_t spot, size_t member)
{
	return SEED + (member == 1 ? rounds(spot) : 0);
}

/* A BTT has a free block and a log for each CPU: in turn, so that each has a write of every run. */
static void move_to_cpu_of(size_t spot)
{
	static cpu_set_t all;
	cpu_set_t one;
	int cpu = -1;

	if (CPU_COUNT(&all) == 0 && sched_getaffinity(0, sizeof(all), &all))
		nvh_bail("sched_getaffinity: %s", nvh_errname(errno));
	for (size_t skip = spot % (size_t)CPU_COUNT(&all) + 1; skip; skip -= CPU_ISSET((size_t)cpu, &all))
		cpu++;
	CPU_ZERO(&one);
	CPU_SET((size_t)cpu, &one);
	if (sched_setaffinity(0, sizeof(one), &one))
		nvh_bail("sched_setaffinity: %s", nvh_errname(errno));
}

static void store(int fd, size_t blocks, char *buffer)
{
	for (size_t spot = 0; spot < SPOTS; spot++) {
		size_t at = first_of(spot, blocks) * BLOCK;

		move_to_cpu_of(spot);
		memory_fill_at(buffer, GROUP * BLOCK, SEED, at);
		if (pwrite(fd, buffer, GROUP * BLOCK, (off_t)at) != (ssize_t)(GROUP * BLOCK))
			nvh_bail("write at %zu: %s", at, nvh_errname(errno));
	}
	for (unsigned round = 1; round <= 3; round++) {
		for (size_t spot = 0; spot < SPOTS; spot++) {
			size_t at = (first_of(spot, blocks) + 1) * BLOCK;

			if (round > rounds(spot))
				continue;
			move_to_cpu_of(spot);
			memory_fill_at(buffer, BLOCK, SEED + round, at);
			if (pwrite(fd, buffer, BLOCK, (off_t)at) != (ssize_t)BLOCK)
				nvh_bail("write at %zu: %s", at, nvh_errname(errno));
		}
	}
	if (fsync(fd))
		nvh_bail("fsync: %s", nvh_errname(errno));
	nvh_step(true, "%d groups of blocks written", SPOTS);
}

static void look(int fd, size_t blocks, char *buffer)
{
	long long wrong = 0, first = -1;

	for (size_t spot = 0; spot < SPOTS; spot++) {
		size_t start = first_of(spot, blocks) * BLOCK;

		if (pread(fd, buffer, GROUP * BLOCK, (off_t)start) != (ssize_t)(GROUP * BLOCK))
			nvh_bail("read at %zu: %s", start, nvh_errname(errno));
		for (size_t member = 0; member < GROUP; member++) {
			size_t at = start + member * BLOCK;

			if (memory_check_at(buffer + member * BLOCK, BLOCK, seed_of(spot, member), at) == BLOCK)
				continue;
			wrong++;
			first = first < 0 ? (long long)at : first;
		}
	}
	nvh_fact_int("wrong_blocks", wrong);
	if (wrong)
		nvh_fact_int("first_wrong", first);
	nvh_step(true, "%lld of %d blocks differ", wrong, SPOTS * GROUP);
}

int main(int argc, char **argv)
{
	const char *device = NULL;
	bool keep = false;
	const struct nvh_option options[] = {
		{"device", &device, NULL, "the block device"},
		{"keep", NULL, &keep, "write nothing: an earlier run has"},
		{NULL, NULL, NULL, NULL},
	};
	uint64_t size;
	char *buffer;
	int fd;

	nvh_options(argc, argv, "Write blocks of a block device and look at them.", options);
	if (!device)
		nvh_usage("--device PATH is needed");
	nvh_begin("blocks");
	fd = open(device, O_RDWR | O_DIRECT | O_CLOEXEC);
	buffer = aligned_alloc(BLOCK, GROUP * BLOCK);
	if (fd < 0 || !buffer || ioctl(fd, BLKGETSIZE64, &size) || size / BLOCK < (uint64_t)SPOTS * GROUP)
		nvh_bail("%s: %s", device, fd < 0 ? nvh_errname(errno) : "no block device of this size");
	if (!keep)
		store(fd, size / BLOCK, buffer);
	look(fd, size / BLOCK, buffer);
	return nvh_end();
}
