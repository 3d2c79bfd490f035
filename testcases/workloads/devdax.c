/*
 * Maps a device-dax device, stores into it and looks at it through a second mapping.
 */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "memory.h"
#include "nvh.h"

#define SEED 11

int main(int argc, char **argv)
{
	const char *device = NULL, *length = "2M", *failed = "none";
	const struct nvh_option options[] = {
		{"device", &device, NULL, "/dev/daxX.Y"},
		{"size", &length, NULL, "how much of it (default 2M; a multiple of its alignment)"},
		{NULL, NULL, NULL, NULL},
	};
	struct mapping first, second;
	struct source source;
	char spec[128];
	size_t size;
	int err, signal;

	nvh_options(argc, argv, "Map a device-dax device and store into it.", options);
	if (!device || strlen(device) > 64)
		nvh_usage("--device /dev/daxX.Y is needed");
	size = nvh_size("size", length);
	snprintf(spec, sizeof(spec), "dax:%s", device);
	source_parse(spec, &source);
	nvh_begin("devdax");
	err = memory_map(&first, &source, size, 0, PROT_READ | PROT_WRITE, &failed);
	nvh_fact_errno("map", err);
	nvh_fact_str("failed", err ? failed : "none");
	nvh_step(true, "mmap: %s", nvh_errname(err));
	if (err)
		return nvh_end();
	signal = memory_touch_safely(first.addr, size, true);
	nvh_fact_int("signal", signal);
	nvh_step(true, "touched: signal %d", signal);
	if (signal)
		return nvh_end();
	memory_fill(first.addr, size, SEED);
	err = memory_map(&second, &source, size, 0, PROT_READ, &failed);
	nvh_fact_errno("map_again", err);
	if (nvh_step(!err, "a second mapping: %s", nvh_errname(err)))
		nvh_fact_str("data", memory_check(second.addr, size, SEED) == size ? "equal" : "differs");
	return nvh_end();
}
