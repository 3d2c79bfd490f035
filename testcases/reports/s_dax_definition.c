/*
 * Maps device-dax as only DAX memory can be mapped, and as it must not be.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "nvh.h"

#define SIZE (2UL << 20)

static const char *device;

static const struct nvh_option options[] = {
	{"device", &device, NULL, "a character device of device-dax, of 2 MiB alignment"},
	{0},
};

static char *map(int fd, size_t size, int flags)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
}

/* The error of a mapping that device-dax has to refuse (drivers/dax/device.c, check_vma). */
static int refused(int fd, size_t size, int flags)
{
	char *addr = map(fd, size, flags);

	if (addr == MAP_FAILED)
		return errno;
	munmap(addr, size);
	return 0;
}

int main(int argc, char **argv)
{
	static const char pattern[] = "written through the first mapping";

	nvh_options(argc, argv, "Map device-dax.", options);
	if (!device)
		nvh_usage("--device is needed");
	nvh_begin("s_dax_definition");

	int fd = open(device, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		nvh_bail("%s: %s", device, nvh_errname(errno));
	char *first = map(fd, SIZE, MAP_SHARED);

	nvh_fact_errno("map", first == MAP_FAILED ? errno : 0);
	if (nvh_step(first != MAP_FAILED, "mmap of %s", device)) {
		memcpy(first + SIZE / 2, pattern, sizeof(pattern));
		char *second = map(fd, SIZE, MAP_SHARED);
		bool same = second != MAP_FAILED && !memcmp(second + SIZE / 2, pattern, sizeof(pattern));

		nvh_fact_str("second_mapping", same ? "equal" : "differs");
	}
	nvh_fact_errno("unaligned", refused(fd, SIZE / 2, MAP_SHARED));
	nvh_fact_errno("private", refused(fd, SIZE, MAP_PRIVATE));
	return nvh_end();
}
