/*
 * Has two files share blocks, both ways: by cloning one onto the other, and by deduplication.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"

static int open_file(const char *path, const char *key)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		nvh_bail("%s: %s", path, nvh_errname(errno));
	nvh_fact_bool(key, memory_is_dax(fd) == 1);
	return fd;
}

/* Fact: "OK", the errno, or "differs". */
static void dedupe(const char *key, int from, int to)
{
	struct {
		struct file_dedupe_range range;
		struct file_dedupe_range_info info;
	} ask = {
		.range = {.src_length = memory_page(), .dest_count = 1},
		.info = {.dest_fd = to},
	};

	if (ioctl(from, FIDEDUPERANGE, &ask))
		nvh_fact_errno(key, errno);
	else if (ask.info.status == FILE_DEDUPE_RANGE_DIFFERS)
		nvh_fact_str(key, "differs");
	else
		nvh_fact_errno(key, -ask.info.status);
	nvh_step(true, "%s tried", key);
}

static void clone(const char *key, int from, int to)
{
	nvh_fact_errno(key, ioctl(to, FICLONE, from) ? errno : 0);
	nvh_step(true, "%s tried", key);
}

int main(int argc, char **argv)
{
	const char *first = NULL, *second = NULL;
	const struct nvh_option options[] = {
		{"first", &first, NULL, "a file"},
		{"second", &second, NULL, "another one, whose first page is the same"},
		{NULL, NULL, NULL, NULL},
	};
	int one, two;

	nvh_options(argc, argv, "Have two files share blocks.", options);
	if (!first || !second)
		nvh_usage("--first PATH and --second PATH are needed");
	nvh_begin("share");
	one = open_file(first, "first_dax");
	two = open_file(second, "second_dax");
	dedupe("dedupe_onto_second", one, two);
	dedupe("dedupe_onto_first", two, one);
	clone("clone_onto_second", one, two);
	clone("clone_onto_first", two, one);
	return nvh_end();
}
