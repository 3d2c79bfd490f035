/*
 * A virtual machine of a few instructions whose memory is the mapping under test: did it run, with
 * pages of which size did KVM map it, what becomes of it when its memory is truncated, do it and a
 * device behind VFIO see the same memory, and where does its first store to a page go.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "edu.h"
#include "first_store.h"
#include "memory.h"
#include "nvh.h"
#include "refcount.h"
#include "roundtrip.h"
#include "vfio.h"
#include "vm.h"

/* What the device sees of the virtual machine's memory; edu's own window lies below it. */
#define WINDOW_IOVA 0x1000000ULL
#define MEMORY_IOVA 0x4000000ULL
/* The part that is filled and compared, behind the first 64 KiB, in which the machine works. */
#define TRIP_AT (1UL << 20)
#define TRIP_SIZE (8UL << 20)

/* Each wait ends long before the deadline of the workload. */
#define WAIT_SECONDS 10.0

enum { TRUNCATE_STOPPED, TRUNCATE_RUNNING };

static const char *const truncate_words[] = {"stopped", "running", NULL};

/* What may never end is done by a thread that can be left behind. */
struct task {
	pthread_t thread;
	struct vm *vm;
	int fd;
	int err;
	struct vm_run run;
	atomic_bool done;
};

static void *truncate_file(void *arg)
{
	struct task *task = arg;

	task->err = ftruncate(task->fd, 0) ? errno : 0;
	atomic_store(&task->done, true);
	return NULL;
}

static void *run_loop(void *arg)
{
	struct task *task = arg;

	vm_start_at(task->vm, VM_LOOP);
	task->run = vm_run(task->vm);
	atomic_store(&task->done, true);
	return NULL;
}

static void task_start(struct task *task, void *(*body)(void *))
{
	int err = pthread_create(&task->thread, NULL, body, task);

	if (err)
		nvh_bail("pthread_create: %s", nvh_errname(err));
}

static bool task_ends(struct task *task)
{
	for (double end = nvh_now() + WAIT_SECONDS; !atomic_load(&task->done); nvh_sleep(0.005)) {
		if (nvh_now() > end)
			return false;
	}
	pthread_join(task->thread, NULL);
	return true;
}

/* Waits until the loop has gone round; it does so for as long as its memory is there. */
static bool loop_runs(const char *bytes)
{
	double end = nvh_now() + WAIT_SECONDS;
	uint16_t first = vm_output(bytes);

	while (vm_output(bytes) == first) {
		if (nvh_now() > end)
			return false;
		nvh_sleep(0.005);
	}
	return true;
}

/*
 * Truncates the file under the virtual machine, which stands still or runs meanwhile, and lets it
 * access its memory.  Facts: truncate, access (how the run ended: never "hlt"), touch (what an access
 * of this process gives); then, with the file grown and the program laid out again: again.
 */
static void truncate_under(struct vm *vm, const struct mapping *memory, bool running)
{
	struct task cut = {.fd = memory->fd}, vcpu = {.vm = vm};
	char *bytes = memory->addr;
	struct vm_run run;

	if (running) {
		task_start(&vcpu, run_loop);
		nvh_fact_bool("ran", loop_runs(bytes));
	}
	task_start(&cut, truncate_file);
	if (!task_ends(&cut)) {
		nvh_fact_str("truncate", "blocked");
		nvh_step(true, "truncate: waits for more than %.0f s", WAIT_SECONDS);
		return;
	}
	nvh_fact_errno("truncate", cut.err);
	nvh_step(true, "truncate: %s", nvh_errname(cut.err));
	if (!running) {
		vm_start_at(vm, VM_CODE);
		run = vm_run(vm);
	} else if (task_ends(&vcpu)) {
		run = vcpu.run;
	} else {
		nvh_fact_str("access", "goes on");
		nvh_step(true, "the virtual machine goes on without its memory");
		return;
	}
	nvh_fact_str("access", vm_run_end(&run));
	nvh_step(true, "the virtual machine's next access: %s", vm_run_end(&run));
	nvh_fact_str("touch", memory_touch_safely(bytes + VM_INPUT, 1, false) == SIGBUS ? "SIGBUS" : "readable");
	if (fallocate(memory->fd, 0, memory->offset, (off_t)memory->size))
		nvh_bail("fallocate: %s", nvh_errname(errno));
	vm_lay_out(bytes, VM_VALUE);
	vm_start_at(vm, VM_CODE);
	run = vm_run(vm);
	nvh_fact_str("again", vm_output(bytes) == VM_VALUE + VM_ADDEND ? vm_run_end(&run) : "memory differs");
	nvh_step(true, "run with new memory: %s", vm_run_end(&run));
}

/* The device's side of the same memory. */
struct dma {
	struct vfio vfio;
	struct edu edu;
	struct roundtrip trip;
};

/* Maps the virtual machine's memory for the device as well, which then writes the machine's input. */
static bool dma_open(struct dma *dma, const char *device, const struct mapping *memory)
{
	uint16_t input = VM_VALUE;
	char *bytes = memory->addr;
	int err;

	vfio_open(&dma->vfio, device, VFIO_BACKEND_TYPE1V2);
	edu_open(&dma->edu, &dma->vfio, WINDOW_IOVA);
	dma->trip = (struct roundtrip){
		.addr = memory->addr,
		.iova = MEMORY_IOVA,
		.size = TRIP_SIZE,
		.mapped = memory->size,
	};
	dma->trip.addr += TRIP_AT;
	dma->trip.iova += TRIP_AT;
	memory_fill(dma->trip.addr, TRIP_SIZE, SEED_CPU);
	err = vfio_map(&dma->vfio, memory->addr, MEMORY_IOVA, memory->size, true);
	nvh_fact_errno("map", err);
	nvh_step(true, "VFIO_IOMMU_MAP_DMA of %zu bytes: %s", memory->size, nvh_errname(err));
	if (err)
		return false;
	memset(bytes + VM_INPUT, 0, sizeof(input));
	memcpy(dma->edu.window, &input, sizeof(input));
	edu_write(&dma->edu, MEMORY_IOVA + VM_INPUT, sizeof(input));
	return true;
}

/* The device reads what the machine wrote, and patterns go to and fro. */
static void dma_use(struct dma *dma)
{
	uint16_t output;

	edu_read(&dma->edu, MEMORY_IOVA + VM_OUTPUT, sizeof(output));
	memcpy(&output, dma->edu.window, sizeof(output));
	nvh_fact_str("device_output", output == VM_VALUE + VM_ADDEND ? "equal" : "differs");
	roundtrip_read(&dma->edu, &dma->trip);
	roundtrip_write(&dma->edu, &dma->trip);
	nvh_step(true, "the device read and wrote the memory");
}

static void dma_close(struct dma *dma)
{
	uint64_t unmapped;
	int err = vfio_unmap(&dma->vfio, MEMORY_IOVA, dma->trip.mapped, &unmapped);

	nvh_fact_errno("unmap", err);
	nvh_fact_bool("whole_unmapped", unmapped == dma->trip.mapped);
	nvh_step(true, "unmap: %s, %llu bytes", nvh_errname(err), (unsigned long long)unmapped);
	edu_close(&dma->edu);
	vfio_close(&dma->vfio);
}

static void run_again(struct vm *vm, const char *key)
{
	struct vm_run run;

	vm_start_at(vm, VM_CODE);
	run = vm_run(vm);
	nvh_fact_str(key, vm_run_end(&run));
	nvh_step(true, "%s: %s", key, vm_run_end(&run));
}

/*
 * Which pages the machine wrote since this was asked last: "output" that of its output, "none", and
 * "others" when the last page is among them, which it never accesses.
 */
static void dirty_fact(const struct vm *vm, const struct mapping *slot, const char *key)
{
	size_t pages = slot->size / memory_page();
	unsigned char *bits = calloc(1, (pages + 63) / 64 * 8);
	struct kvm_dirty_log dirty = {.dirty_bitmap = bits};
	size_t output = VM_OUTPUT / memory_page(), last = pages - 1;
	const char *seen = "none";

	if (!bits)
		nvh_bail("no memory for %zu pages' bits", pages);
	if (ioctl(vm->fd, KVM_GET_DIRTY_LOG, &dirty))
		nvh_bail("KVM_GET_DIRTY_LOG: %s", nvh_errname(errno));
	if (bits[last / 8] >> last % 8 & 1)
		seen = "others";
	else if (bits[output / 8] >> output % 8 & 1)
		seen = "output";
	nvh_fact_str(key, seen);
	nvh_step(true, "%s: %s", key, seen);
	free(bits);
}

/*
 * For a live migration KVM says page by page what the machine wrote, and must not map it with huge pages
 * meanwhile.  Facts: log_exit, log_pages_*, and of the log: dirty, dirty_idle (it did not run),
 * dirty_again (it ran once more, log_again_exit); log_end_exit and log_end_pages_* when the migration was
 * called off.
 */
static void log_writes(struct vm *vm, const struct mapping *slot)
{
	vm_set_memory(vm, slot, KVM_MEM_LOG_DIRTY_PAGES);
	run_again(vm, "log_exit");
	vm_page_counters(vm, "log_");
	dirty_fact(vm, slot, "dirty");
	dirty_fact(vm, slot, "dirty_idle");
	run_again(vm, "log_again_exit");
	dirty_fact(vm, slot, "dirty_again");
	vm_set_memory(vm, slot, 0);
	run_again(vm, "log_end_exit");
	vm_page_counters(vm, "log_end_");
}

/*
 * The machine's next run must work on its new memory only, and without any it must not run.  Facts:
 * moved_exit, moved_output, old_memory, without_exit.
 */
static void move_memory(struct vm *vm, const struct mapping *slot)
{
	const struct source anon = {.kind = SOURCE_ANON};
	const uint16_t input = VM_VALUE ^ 0x0ff0;
	char *old = slot->addr, *bytes;
	struct mapping memory;
	int err = memory_map(&memory, &anon, slot->size, 0, PROT_READ | PROT_WRITE, NULL);

	if (err)
		nvh_bail("mmap of other memory: %s", nvh_errname(err));
	bytes = memory.addr;
	vm_lay_out(old, VM_VALUE);
	vm_lay_out(bytes, input);
	vm_set_memory(vm, NULL, 0);
	vm_set_memory(vm, &memory, 0);
	run_again(vm, "moved_exit");
	nvh_fact_str("moved_output", vm_output(bytes) == input + VM_ADDEND ? "right" : "differs");
	nvh_fact_str("old_memory", vm_output(old) ? "written" : "unchanged");
	vm_set_memory(vm, NULL, 0);
	run_again(vm, "without_exit");
	memory_unmap(&memory);
}

/*
 * A machine may read the memory of a read-only slot; its store comes to this process and goes
 * nowhere.  Facts: readonly_exit, readonly_store (whether the exit tells of the store),
 * readonly_goes_on (how it ends then), readonly_memory; and when the same memory may be written
 * again: writable_exit and writable_memory.
 */
static void forbid_writes(struct vm *vm, const struct mapping *slot)
{
	const uint16_t right = VM_VALUE + VM_ADDEND;
	char *bytes = slot->addr;
	struct vm_run run;
	bool told;

	vm_lay_out(bytes, VM_VALUE);
	/* A slot's flag cannot be changed (EINVAL). */
	vm_set_memory(vm, NULL, 0);
	vm_set_memory(vm, slot, KVM_MEM_READONLY);
	vm_start_at(vm, VM_READ_FIRST);
	run = vm_run(vm);
	nvh_fact_str("readonly_exit", vm_run_end(&run));
	if (!run.err && run.exit == KVM_EXIT_MMIO) {
		told = vm->run->mmio.is_write && vm->run->mmio.phys_addr == VM_OUTPUT &&
		       vm->run->mmio.len == sizeof(right) &&
		       !memcmp(vm->run->mmio.data, &right, sizeof(right));
		nvh_fact_str("readonly_store", told ? "told" : "differs");
		run = vm_run(vm);
		nvh_fact_str("readonly_goes_on", vm_run_end(&run));
	}
	nvh_fact_str("readonly_memory", vm_output(bytes) ? "written" : "unchanged");
	nvh_step(true, "ran on a read-only slot");
	vm_set_memory(vm, NULL, 0);
	vm_set_memory(vm, slot, 0);
	run_again(vm, "writable_exit");
	nvh_fact_str("writable_memory", vm_output(bytes) == right ? "OK" : "differs");
}

static void refs_fact(const char *key, uint64_t pfn)
{
	int count;

	if (pfn && refcount_read_pfn(pfn, &count))
		nvh_fact_int(key, count);
}

int main(int argc, char **argv)
{
	const char *spec = NULL, *size = "2M", *offset = "0", *cut = NULL, *device = NULL, *failed;
	const char *shift_text = "0", *slot_text = NULL;
	bool log = false, move = false, readonly = false, untouched = false;
	const struct nvh_option options[] = {
		{"source", &spec, NULL, SOURCE_HELP},
		{"size", &size, NULL, "bytes of guest memory (default 2M)"},
		{"offset", &offset, NULL, "where in the file it starts (default 0)"},
		{"shift", &shift_text, NULL, "how far in the mapping the machine's memory begins (default 0)"},
		{"slot", &slot_text, NULL, "bytes of it that the machine gets (default all)"},
		{"untouched", NULL, &untouched, "the machine stores to a page that was only read; no more"},
		{"truncate", &cut, NULL, "then truncate the file under the machine: stopped, running"},
		{"device", &device, NULL, "PCI address of an edu on vfio-pci, which is given the same memory"},
		{"log", NULL, &log, "then have KVM log what the machine writes, and end that again"},
		{"readonly", NULL, &readonly, "then forbid it to write, and end that again"},
		{"move", NULL, &move, "then take its memory away and give it other memory at the same address"},
		{NULL, NULL, NULL, NULL},
	};
	struct mapping memory, slot;
	struct source source;
	struct dma dma = {0};
	uint64_t pfn = 0;
	size_t shift;
	struct vm_run run;
	struct vm vm;
	char *bytes;
	int err, how = 0;

	nvh_options(argc, argv, "Run a small virtual machine on the memory under test.", options);
	if (!spec)
		nvh_usage("--source SPEC is needed");
	source_parse(spec, &source);
	if (cut)
		how = nvh_choice("truncate", cut, truncate_words);
	if (cut && (source.kind != SOURCE_FILE || source.readonly))
		nvh_usage("--truncate needs a --source file:PATH that is not :ro");
	shift = nvh_size("shift", shift_text);
	if (shift % memory_page() || (shift && (cut || device)))
		nvh_usage("--shift %s: whole pages, and neither --truncate nor --device", shift_text);
	if (nvh_size("size", size) < shift + (device ? TRIP_AT + TRIP_SIZE : 0x10000))
		nvh_usage("--size %s: the machine needs 64 KiB, with --device 9 MiB", size);
	if (slot_text && (nvh_size("slot", slot_text) % memory_page() ||
			  nvh_size("slot", slot_text) < 0x10000))
		nvh_usage("--slot %s: whole pages, at least 64 KiB", slot_text);
	if (untouched && source.kind != SOURCE_FILE && !(source.kind == SOURCE_ANON && source.private))
		nvh_usage("--untouched needs a --source anon-private or file:PATH");
	if (untouched && nvh_size("size", size) >= 2UL << 20)
		nvh_usage("--size %s: with --untouched no page may be huge", size);
	nvh_begin("kvm_guest");
	if (!vm_open(&vm))
		return nvh_end();
	err = memory_map(&memory, &source, nvh_size("size", size), (off_t)nvh_size("offset", offset),
			 PROT_READ | PROT_WRITE, &failed);
	if (err)
		nvh_bail("%s: %s", failed, nvh_errname(err));
	if (source.kind == SOURCE_FILE)
		nvh_fact_bool("dax", memory_is_dax(memory.fd) == 1);
	if (untouched) {
		first_store(&vm, &memory, source.private);
		memory_unmap(&memory);
		return nvh_end();
	}
	slot = memory;
	slot.addr = bytes = (char *)memory.addr + shift;
	slot.size -= shift;
	if (slot_text && nvh_size("slot", slot_text) < slot.size)
		slot.size = nvh_size("slot", slot_text);
	nvh_fact_int("hva_alignment", (long long)((uintptr_t)bytes & -(uintptr_t)bytes));
	memory_touch(bytes, 0x10000, true);
	vm_lay_out(bytes, VM_VALUE);
	/* pagemap does not tell the frame of a 1 GiB mapping: then there are no counts. */
	if (refcount_open() && !refcount_pfn(bytes, &pfn))
		pfn = 0;
	refs_fact("refs_before", pfn);
	vm_create(&vm, &slot);
	nvh_step(true, "virtual machine made");
	if (device && !dma_open(&dma, device, &memory))
		return nvh_end();
	run = vm_run(&vm);
	nvh_fact_errno("run", run.err);
	nvh_fact_str("exit", vm_run_end(&run));
	nvh_fact_bool("said_right", run.said == VM_VALUE + VM_ADDEND);
	nvh_fact_str("memory", vm_output(bytes) == VM_VALUE + VM_ADDEND ? "OK" : "differs");
	if (device)
		dma_use(&dma);
	vm_page_counters(&vm, "");
	if (log)
		log_writes(&vm, &slot);
	if (readonly)
		forbid_writes(&vm, &slot);
	if (move)
		move_memory(&vm, &slot);
	refs_fact("refs_running", pfn);
	if (cut)
		truncate_under(&vm, &memory, how == TRUNCATE_RUNNING);
	if (device)
		dma_close(&dma);
	vm_close(&vm);
	nvh_step(true, "virtual machine ended");
	refs_fact("refs_after", pfn);
	memory_unmap(&memory);
	return nvh_end();
}
