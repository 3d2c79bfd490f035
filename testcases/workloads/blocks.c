/*
 * Writes patterns to blocks all over a block device, past the page cache and some of them many times over,
 * or looks whether these blocks and their neighbours hold what was written last.  Or has two CPUs
 * write the same few blocks at once, and looks whether each sector is one that was written there.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
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
#define WRITERS 2
#define CONTENDED 4 /* blocks that all writers write; what a round does */
#define REWRITTEN 64 /* blocks that are written once more, those among them, each by one writer */

static cpu_set_t cpus;

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
	size_t skip = spot % (size_t)CPU_COUNT(&cpus) + 1;
	cpu_set_t one;
	int cpu = -1;

	for (; skip; skip -= CPU_ISSET((size_t)cpu, &cpus))
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

/* One who writes what others write as well, and what he has seen of it. */
struct writer {
	pthread_t thread;
	unsigned number;
	char *buffer;
	long long read; /* sectors */
	long long of_others; /* of these, what another one had written */
	long long torn; /* that hold more than one stamp */
	long long misplaced; /* whose stamp is another sector's, an earlier one, or none */
	long long first_wrong; /* an LBA, or -1 */
};

static int contended;
static size_t sector_size;
static unsigned contentions;
static pthread_barrier_t together;

/* What every word of a sector holds. */
static uint64_t stamp(size_t sector, unsigned writer, unsigned round)
{
	return (uint64_t)(writer + 1) << 56 | (uint64_t)round << 32 | (uint32_t)sector;
}

static bool is_whole(const uint64_t *words)
{
	for (size_t i = 1; i < sector_size / sizeof(*words); i++)
		if (words[i] != words[0])
			return false;
	return true;
}

static void write_stamped(struct writer *writer, size_t block, unsigned round)
{
	uint64_t *words = (uint64_t *)writer->buffer;

	for (size_t i = 0; i < BLOCK / sizeof(*words); i++) {
		size_t at = block * BLOCK + i * sizeof(*words);

		words[i] = stamp(at / sector_size, writer->number, round);
	}
	if (pwrite(contended, words, BLOCK, (off_t)(block * BLOCK)) != (ssize_t)BLOCK)
		nvh_bail("write of block %zu: %s", block, nvh_errname(errno));
}

static void read_block(struct writer *writer, size_t block)
{
	if (pread(contended, writer->buffer, BLOCK, (off_t)(block * BLOCK)) != (ssize_t)BLOCK)
		nvh_bail("read of block %zu: %s", block, nvh_errname(errno));
}

/* What is right: a whole stamp of this sector, this writer's last or any of another's. */
static void read_stamped(struct writer *writer, size_t block, unsigned round)
{
	read_block(writer, block);
	for (size_t at = 0; at < BLOCK; at += sector_size) {
		const uint64_t *words = (const uint64_t *)(writer->buffer + at);
		size_t sector = (block * BLOCK + at) / sector_size;
		unsigned from = (unsigned)(words[0] >> 56);
		bool whole = is_whole(words), own = from == writer->number + 1;

		writer->read++;
		if (whole && (own ? words[0] == stamp(sector, writer->number, round) :
				    from >= 1 && from <= WRITERS && (uint32_t)words[0] == sector)) {
			writer->of_others += !own;
			continue;
		}
		writer->torn += !whole;
		writer->misplaced += whole;
		if (writer->first_wrong < 0)
			writer->first_wrong = (long long)sector;
	}
}

static void *contend(void *arg)
{
	struct writer *writer = arg;

	move_to_cpu_of(writer->number);
	pthread_barrier_wait(&together);
	for (unsigned round = 0; round < contentions; round++) {
		/* Now after each other, now towards each other, so that they meet anywhere. */
		size_t flip = writer->number && round % 2 ? CONTENDED - 1 : 0;

		for (size_t i = 0; i < CONTENDED; i++)
			write_stamped(writer, i ^ flip, round);
		for (size_t i = 0; i < CONTENDED; i++)
			read_stamped(writer, i ^ flip, round);
	}
	pthread_barrier_wait(&together);
	for (size_t block = writer->number; block < REWRITTEN; block += WRITERS)
		write_stamped(writer, block, contentions);
	return NULL;
}

/*
 * Facts: cpus, sectors_read and sectors_of_other while all wrote, torn and misplaced sectors among
 * them with first_wrong; of blocks that were written anew, wrong_sectors with first_wrong_sector.
 */
static void have_contended(int fd, int rounds)
{
	struct writer writers[WRITERS], *all = &writers[0];
	long long wrong = 0, first = -1;
	int size;

	contended = fd;
	contentions = (unsigned)rounds;
	if (ioctl(fd, BLKSSZGET, &size))
		nvh_bail("BLKSSZGET: %s", nvh_errname(errno));
	sector_size = (size_t)size;
	nvh_fact_int("cpus", CPU_COUNT(&cpus));
	pthread_barrier_init(&together, NULL, WRITERS);
	for (unsigned i = 0; i < WRITERS; i++) {
		struct writer *one = &writers[i];

		*one = (struct writer){.number = i, .first_wrong = -1};
		one->buffer = aligned_alloc(BLOCK, BLOCK);
		if (!one->buffer || pthread_create(&one->thread, NULL, contend, one))
			nvh_bail("no thread");
	}
	for (unsigned i = 0; i < WRITERS; i++)
		pthread_join(writers[i].thread, NULL);
	for (unsigned i = 1; i < WRITERS; i++) {
		all->read += writers[i].read;
		all->of_others += writers[i].of_others;
		all->torn += writers[i].torn;
		all->misplaced += writers[i].misplaced;
		if (all->first_wrong < 0)
			all->first_wrong = writers[i].first_wrong;
	}
	nvh_fact_int("sectors_read", all->read);
	nvh_fact_int("sectors_of_other", all->of_others);
	nvh_fact_int("torn", all->torn);
	nvh_fact_int("misplaced", all->misplaced);
	if (all->first_wrong >= 0)
		nvh_fact_int("first_wrong", all->first_wrong);
	nvh_step(true, "%d writers: of %lld sectors %lld torn, %lld misplaced", WRITERS, all->read,
		 all->torn, all->misplaced);
	for (size_t block = 0; block < REWRITTEN; block++) {
		read_block(all, block);
		for (size_t at = 0; at < BLOCK; at += sector_size) {
			const uint64_t *words = (const uint64_t *)(all->buffer + at);
			size_t sector = (block * BLOCK + at) / sector_size;
			uint64_t right = stamp(sector, block % WRITERS, contentions);

			if (is_whole(words) && words[0] == right)
				continue;
			wrong++;
			first = first < 0 ? (long long)sector : first;
		}
	}
	nvh_fact_int("wrong_sectors", wrong);
	if (wrong)
		nvh_fact_int("first_wrong_sector", first);
	nvh_step(true, "%lld sectors wrong of %d blocks written anew", wrong, REWRITTEN);
}

int main(int argc, char **argv)
{
	const char *device = NULL, *rounds_text = NULL;
	bool keep = false;
	const struct nvh_option options[] = {
		{"device", &device, NULL, "the block device"},
		{"keep", NULL, &keep, "write nothing: an earlier run has"},
		{"contend", &rounds_text, NULL, "instead, two CPUs write the same blocks so often"},
		{NULL, NULL, NULL, NULL},
	};
	uint64_t size;
	int fd, rounds;
	char *buffer;

	nvh_options(argc, argv, "Write blocks of a block device and look at them.", options);
	if (!device)
		nvh_usage("--device PATH is needed");
	rounds = rounds_text ? nvh_number("contend", rounds_text, 1, 1 << 20) : 0;
	nvh_begin("blocks");
	fd = open(device, O_RDWR | O_DIRECT | O_CLOEXEC);
	buffer = aligned_alloc(BLOCK, GROUP * BLOCK);
	if (fd < 0 || !buffer || ioctl(fd, BLKGETSIZE64, &size) || size / BLOCK < (uint64_t)SPOTS * GROUP)
		nvh_bail("%s: %s", device, fd < 0 ? nvh_errname(errno) : "no block device of this size");
	if (sched_getaffinity(0, sizeof(cpus), &cpus))
		nvh_bail("sched_getaffinity: %s", nvh_errname(errno));
	if (rounds) {
		have_contended(fd, rounds);
		return nvh_end();
	}
	if (!keep)
		store(fd, size / BLOCK, buffer);
	look(fd, size / BLOCK, buffer);
	return nvh_end();
}
