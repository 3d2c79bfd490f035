/*
 * Appends from a buffer that ends in nothing, and reports how large the file is then and what it has
 * beyond its end.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"

#define SEED 5

int main(int argc, char **argv)
{
	size_t page = memory_page(), there = page + 1000, asked = 4 * page, whole;
	const char *path = NULL;
	const struct nvh_option options[] = {
		{"file", &path, NULL, "the file to make and append to"},
		{NULL, NULL, NULL, NULL},
	};
	char *room, *data;
	struct stat info;
	ssize_t got;
	int fd, err;

	nvh_options(argc, argv, "Append to a file from a buffer that ends early.", options);
	if (!path)
		nvh_usage("--file PATH is needed");
	nvh_begin("short_write");
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	room = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (fd < 0 || room == MAP_FAILED || munmap(room + 2 * page, 2 * page))
		nvh_bail("%s: %s", path, nvh_errname(errno));
	nvh_fact_bool("dax", memory_is_dax(fd) == 1);
	data = room + 2 * page - there;
	memory_fill_at(data, there, SEED, 0);
	got = write(fd, data, asked);
	err = got < 0 ? errno : 0;
	nvh_fact_errno("write", err);
	nvh_fact_int("written", got);
	nvh_step(got > 0 && (size_t)got < asked, "a part was written");
	if (got < 0 || fstat(fd, &info))
		nvh_bail("%s: %s", path, nvh_errname(errno));
	whole = ((size_t)got + page - 1) / page * page;
	nvh_fact_int("missing_in_size", got - info.st_size);
	nvh_fact_int("bytes_beyond", info.st_blocks * 512 - (long long)whole);
	nvh_fact_str("short_data", (size_t)pread(fd, room, page, 0) == page &&
					   memory_check_at(room, page, SEED, 0) == page
				   ? "OK" : "differs");
	return nvh_end();
}
