/*
 * A virtual machine of a few instructions whose memory is the mapping under test: did it run, with
 * pages of which size did KVM map it, what becomes of it when its memory is truncated, and do it and
 * a device behind VFIO see the same memory.
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
#include "memory.h"
#include "nvh.h"
#include "refcount.h"
#include "roundtrip.h"
#include "vfio.h"

/* Guest physical addresses: below 64 KiB, for the guest stays in real mode with segments at 0. */
#define CODE 0x1000
#define LOOP 0x2000
#define INPUT 0x4000
#define OUTPUT 0x5000
#define PORT 0x10

#define INPUT_VALUE 0x1234
#define ADDEND 0x1111

static const uint8_t code[] = {
	0xa1, INPUT & 0xff, INPUT >> 8,   /* mov ax, [INPUT] */
	0x05, ADDEND & 0xff, ADDEND >> 8, /* add ax, ADDEND */
	0xa3, OUTPUT & 0xff, OUTPUT >> 8, /* mov [OUTPUT], ax */
	0xe7, PORT,                       /* out PORT, ax */
	0xf4,                             /* hlt */
};

/* Never exits by itself: it reads one page and writes another for as long as they are there. */
static const uint8_t loop[] = {
	0xa1, INPUT & 0xff, INPUT >> 8,         /* mov ax, [INPUT] */
	0xff, 0x06, OUTPUT & 0xff, OUTPUT >> 8, /* inc word [OUTPUT] */
	0xeb, 0xf7,                             /* jmp to the mov */
};

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

struct vm {
	int kvm, fd, vcpu;
	struct kvm_run *run;
};

static bool vm_open(struct vm *vm)
{
	vm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm >= 0)
		return true;
	nvh_fact_str("missing", "/dev/kvm");
	nvh_skip("/dev/kvm: %s (a CPU with svm or vmx, CONFIG_KVM_AMD or CONFIG_KVM_INTEL)", nvh_errname(errno));
	return false;
}

static void vm_start_at(const struct vm *vm, uint64_t address)
{
	struct kvm_regs regs = {.rip = address, .rflags = 2};

	if (ioctl(vm->vcpu, KVM_SET_REGS, &regs))
		nvh_bail("KVM_SET_REGS: %s", nvh_errname(errno));
}

static void vm_create(struct vm *vm, const struct mapping *memory)
{
	struct kvm_userspace_memory_region region = {
		.memory_size = memory->size,
		.userspace_addr = (uintptr_t)memory->addr,
	};
	struct kvm_sregs sregs;
	int size;

	vm->fd = ioctl(vm->kvm, KVM_CREATE_VM, 0);
	if (vm->fd < 0)
		nvh_bail("KVM_CREATE_VM: %s", nvh_errname(errno));
	if (ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region))
		nvh_bail("KVM_SET_USER_MEMORY_REGION: %s", nvh_errname(errno));
	vm->vcpu = ioctl(vm->fd, KVM_CREATE_VCPU, 0);
	size = ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (vm->vcpu < 0 || size < 0)
		nvh_bail("KVM_CREATE_VCPU: %s", nvh_errname(errno));
	vm->run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu, 0);
	if (vm->run == MAP_FAILED || ioctl(vm->vcpu, KVM_GET_SREGS, &sregs))
		nvh_bail("KVM_GET_SREGS: %s", nvh_errname(errno));
	sregs.cs.base = sregs.ds.base = 0;
	sregs.cs.selector = sregs.ds.selector = 0;
	if (ioctl(vm->vcpu, KVM_SET_SREGS, &sregs))
		nvh_bail("KVM_SET_SREGS: %s", nvh_errname(errno));
	vm_start_at(vm, CODE);
}

/* How a run of the virtual machine ended. */
struct run {
	int err; /* of KVM_RUN */
	unsigned int exit;
	unsigned int said; /* what the machine wrote to PORT */
};

/* Runs to the hlt, or to whatever else ends it. */
static struct run vm_run(struct vm *vm)
{
	struct run run = {0};

	for (int exits = 0; exits < 8; exits++) {
		if (ioctl(vm->vcpu, KVM_RUN, 0)) {
			run.err = errno;
			break;
		}
		run.exit = vm->run->exit_reason;
		if (run.exit != KVM_EXIT_IO)
			break;
		if (vm->run->io.port == PORT && vm->run->io.size == 2)
			run.said = *(uint16_t *)((char *)vm->run + vm->run->io.data_offset);
	}
	return run;
}

/* "hlt", the name of KVM_RUN's errno, or the number of the exit. */
static const char *run_end(const struct run *run)
{
	static char number[32];

	if (run->err)
		return nvh_errname(run->err);
	if (run->exit == KVM_EXIT_HLT)
		return "hlt";
	snprintf(number, sizeof(number), "exit %u", run->exit);
	return number;
}

/* Puts the program and its input in place. */
static void lay_out(char *bytes)
{
	uint16_t input = INPUT_VALUE;

	memcpy(bytes + CODE, code, sizeof(code));
	memcpy(bytes + LOOP, loop, sizeof(loop));
	memcpy(bytes + INPUT, &input, sizeof(input));
	memset(bytes + OUTPUT, 0, sizeof(input));
}

static uint16_t output_of(const char *bytes)
{
	return *(const volatile uint16_t *)(const void *)(bytes + OUTPUT);
}

/* What may never end is done by a thread that can be left behind. */
struct task {
	pthread_t thread;
	struct vm *vm;
	int fd;
	int err;
	struct run run;
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

	vm_start_at(task->vm, LOOP);
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
	uint16_t first = output_of(bytes);

	while (output_of(bytes) == first) {
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
	struct run run;

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
		vm_start_at(vm, CODE);
		run = vm_run(vm);
	} else if (task_ends(&vcpu)) {
		run = vcpu.run;
	} else {
		nvh_fact_str("access", "goes on");
		nvh_step(true, "the virtual machine goes on without its memory");
		return;
	}
	nvh_fact_str("access", run_end(&run));
	nvh_step(true, "the virtual machine's next access: %s", run_end(&run));
	nvh_fact_str("touch", memory_touch_safely(bytes + INPUT, 1, false) == SIGBUS ? "SIGBUS" : "readable");
	if (fallocate(memory->fd, 0, memory->offset, (off_t)memory->size))
		nvh_bail("fallocate: %s", nvh_errname(errno));
	lay_out(bytes);
	vm_start_at(vm, CODE);
	run = vm_run(vm);
	nvh_fact_str("again", output_of(bytes) == INPUT_VALUE + ADDEND ? run_end(&run) : "memory differs");
	nvh_step(true, "run with new memory: %s", run_end(&run));
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
	uint16_t input = INPUT_VALUE;
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
	memset(bytes + INPUT, 0, sizeof(input));
	memcpy(dma->edu.window, &input, sizeof(input));
	edu_write(&dma->edu, MEMORY_IOVA + INPUT, sizeof(input));
	return true;
}

/* The device reads what the machine wrote, and patterns go to and fro. */
static void dma_use(struct dma *dma)
{
	uint16_t output;

	edu_read(&dma->edu, MEMORY_IOVA + OUTPUT, sizeof(output));
	memcpy(&output, dma->edu.window, sizeof(output));
	nvh_fact_str("device_output", output == INPUT_VALUE + ADDEND ? "equal" : "differs");
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

/* Reads the VM's counters; one that this kernel does not have is left out. */
static void page_counters(const struct vm *vm)
{
	static const char *const names[] = {"pages_4k", "pages_2m", "pages_1g", "largepages"};
	bool any = false;

	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		long long value;
		char path[128];
		FILE *f;

		snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%d-%d/%s", (int)getpid(), vm->fd, names[i]);
		f = fopen(path, "re");
		if (!f)
			continue;
		if (fscanf(f, "%lld", &value) == 1) {
			nvh_fact_int(names[i], value);
			any = true;
		}
		fclose(f);
	}
	nvh_step(any, "page counters in /sys/kernel/debug/kvm/PID-FD");
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
	const char *shift_text = "0";
	const struct nvh_option options[] = {
		{"source", &spec, NULL, SOURCE_HELP},
		{"size", &size, NULL, "bytes of guest memory (default 2M)"},
		{"offset", &offset, NULL, "where in the file it starts (default 0)"},
		{"shift", &shift_text, NULL, "how far in the mapping the machine's memory begins (default 0)"},
		{"truncate", &cut, NULL, "then truncate the file under the machine: stopped, running"},
		{"device", &device, NULL, "PCI address of an edu on vfio-pci, which is given the same memory"},
		{NULL, NULL, NULL, NULL},
	};
	struct mapping memory, slot;
	struct source source;
	struct dma dma = {0};
	uint64_t pfn = 0;
	size_t shift;
	struct run run;
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
	nvh_begin("kvm_guest");
	if (!vm_open(&vm))
		return nvh_end();
	err = memory_map(&memory, &source, nvh_size("size", size), (off_t)nvh_size("offset", offset),
			 PROT_READ | PROT_WRITE, &failed);
	if (err)
		nvh_bail("%s: %s", failed, nvh_errname(err));
	if (source.kind == SOURCE_FILE)
		nvh_fact_bool("dax", memory_is_dax(memory.fd) == 1);
	slot = memory;
	slot.addr = bytes = (char *)memory.addr + shift;
	slot.size -= shift;
	nvh_fact_int("hva_alignment", (long long)((uintptr_t)bytes & -(uintptr_t)bytes));
	memory_touch(bytes, 0x10000, true);
	lay_out(bytes);
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
	nvh_fact_str("exit", run_end(&run));
	nvh_fact_bool("said_right", run.said == INPUT_VALUE + ADDEND);
	nvh_fact_str("memory", output_of(bytes) == INPUT_VALUE + ADDEND ? "OK" : "differs");
	if (device)
		dma_use(&dma);
	page_counters(&vm);
	refs_fact("refs_running", pfn);
	if (cut)
		truncate_under(&vm, &memory, how == TRUNCATE_RUNNING);
	if (device)
		dma_close(&dma);
	close(vm.vcpu);
	munmap(vm.run, (size_t)ioctl(vm.kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	close(vm.fd);
	nvh_step(true, "virtual machine ended");
	refs_fact("refs_after", pfn);
	memory_unmap(&memory);
	return nvh_end();
}
