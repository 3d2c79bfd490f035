#include "first_store.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "nvh.h"
#include "trace.h"

static const char *prefix;
static bool traced;

static const char *key(const char *name)
{
	static char text[64];

	snprintf(text, sizeof(text), "%s_%s", prefix, name);
	return text;
}

static const char *fresh_page(void)
{
	const struct source anon = {.kind = SOURCE_ANON, .private = true};
	struct mapping fresh;
	bool zero;

	if (memory_map(&fresh, &anon, memory_page(), 0, PROT_READ, NULL))
		nvh_bail("mmap of a fresh page: %s", nvh_errname(errno));
	zero = memory_is_zero(fresh.addr, memory_page());
	memory_unmap(&fresh);
	return zero ? "zero" : "differs";
}

static uint16_t file_output(const struct mapping *memory)
{
	uint16_t output;

	if (pread(memory->fd, &output, sizeof(output), memory->offset + VM_OUTPUT) != sizeof(output))
		nvh_bail("pread: %s", nvh_errname(errno));
	return output;
}

/* A file's page with a block that was written to: there is more than the zero page to map. */
static void write_output_page(const struct mapping *memory)
{
	const char zeros[4096] = {0};

	if (pwrite(memory->fd, zeros, sizeof(zeros), memory->offset + VM_OUTPUT) != sizeof(zeros))
		nvh_bail("pwrite: %s", nvh_errname(errno));
}

/* What was written so far becomes clean, and a private page of the output is given up. */
static void settle(const struct mapping *memory, bool private)
{
	if (private && madvise((char *)memory->addr + VM_OUTPUT, memory_page(), MADV_DONTNEED))
		nvh_bail("madvise: %s", nvh_errname(errno));
	if (memory->fd >= 0 && fsync(memory->fd))
		nvh_bail("fsync: %s", nvh_errname(errno));
	if (traced)
		trace_clear();
}

static void run_from(struct vm *vm, uint64_t start, const struct mapping *memory, bool private,
		     uint16_t input)
{
	const uint16_t right = input + VM_ADDEND;
	const char *file = "differs";
	uint16_t before = 0, after;
	long long pages[16];
	struct vm_run run;
	size_t count;

	vm_lay_out_program(memory->addr, input);
	settle(memory, private);
	if (memory->fd >= 0)
		before = file_output(memory);
	(void)vm_output(memory->addr);
	vm_start_at(vm, start);
	run = vm_run(vm);
	nvh_fact_str(key("exit"), vm_run_end(&run));
	nvh_fact_str(key("memory"), vm_output(memory->addr) == right ? "OK" : "differs");
	nvh_fact_str(key("fresh"), fresh_page());
	nvh_step(true, "%s run: %s", prefix, vm_run_end(&run));
	if (memory->fd < 0)
		return;
	after = file_output(memory);
	if (after == before)
		file = "unchanged";
	else if (after == right)
		file = "as memory";
	nvh_fact_str(key("file"), file);
	if (fsync(memory->fd))
		nvh_bail("fsync: %s", nvh_errname(errno));
	if (!traced)
		return;
	count = trace_written_back(pages, sizeof(pages) / sizeof(*pages));
	nvh_fact_ints(key("written_back"), pages, count);
}

void first_store(struct vm *vm, const struct mapping *memory, bool private)
{
	traced = memory->fd >= 0 && trace_start();
	if (memory->fd >= 0 && private)
		write_output_page(memory);
	vm_create(vm, memory);
	prefix = "first";
	run_from(vm, VM_READ_FIRST, memory, private, VM_VALUE);
	prefix = "again";
	run_from(vm, VM_CODE, memory, private, VM_VALUE ^ 0x0ff0);
	vm_close(vm);
	if (traced)
		trace_stop();
}
