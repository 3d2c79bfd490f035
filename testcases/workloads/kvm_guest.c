/*
 * A virtual machine of a few instructions whose memory is the mapping under test: did it run,
 * and with pages of which size did KVM map it.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"
#include "refcount.h"

/* Guest physical addresses: below 64 KiB, for the guest stays in real mode with segments at 0. */
#define CODE 0x1000
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

static void vm_create(struct vm *vm, const struct mapping *memory)
{
	struct kvm_userspace_memory_region region = {
		.memory_size = memory->size,
		.userspace_addr = (uintptr_t)memory->addr,
	};
	struct kvm_sregs sregs;
	struct kvm_regs regs = {.rip = CODE, .rflags = 2};
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
	if (ioctl(vm->vcpu, KVM_SET_SREGS, &sregs) || ioctl(vm->vcpu, KVM_SET_REGS, &regs))
		nvh_bail("KVM_SET_SREGS: %s", nvh_errname(errno));
}

/* Runs to the hlt; the fact "exit" says how it ended: "hlt", or the number of the exit. */
static void vm_run(struct vm *vm)
{
	unsigned int said = 0;
	char number[32];

	for (int exits = 0; exits < 8; exits++) {
		if (ioctl(vm->vcpu, KVM_RUN, 0)) {
			nvh_fact_errno("run", errno);
			nvh_fact_str("exit", "error");
			return;
		}
		if (vm->run->exit_reason != KVM_EXIT_IO)
			break;
		if (vm->run->io.port == PORT && vm->run->io.size == 2)
			said = *(uint16_t *)((char *)vm->run + vm->run->io.data_offset);
	}
	nvh_fact_errno("run", 0);
	snprintf(number, sizeof(number), "exit %u", vm->run->exit_reason);
	nvh_fact_str("exit", vm->run->exit_reason == KVM_EXIT_HLT ? "hlt" : number);
	nvh_fact_bool("said_right", said == INPUT_VALUE + ADDEND);
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
	const char *spec = NULL, *size = "2M", *offset = "0", *failed;
	const struct nvh_option options[] = {
		{"source", &spec, NULL, SOURCE_HELP},
		{"size", &size, NULL, "bytes of guest memory (default 2M)"},
		{"offset", &offset, NULL, "where in the file it starts (default 0)"},
		{NULL, NULL, NULL, NULL},
	};
	uint16_t input = INPUT_VALUE, output = 0;
	struct mapping memory;
	struct source source;
	uint64_t pfn = 0;
	struct vm vm;
	char *bytes;
	int err;

	nvh_options(argc, argv, "Run a small virtual machine on the memory under test.", options);
	if (!spec)
		nvh_usage("--source SPEC is needed");
	source_parse(spec, &source);
	nvh_begin("kvm_guest");
	if (!vm_open(&vm))
		return nvh_end();
	err = memory_map(&memory, &source, nvh_size("size", size), (off_t)nvh_size("offset", offset),
			 PROT_READ | PROT_WRITE, &failed);
	if (err)
		nvh_bail("%s: %s", failed, nvh_errname(err));
	if (memory.size < 0x10000)
		nvh_bail("the guest needs 64 KiB at least");
	if (source.kind == SOURCE_FILE)
		nvh_fact_bool("dax", memory_is_dax(memory.fd) == 1);
	bytes = memory.addr;
	nvh_fact_int("hva_alignment", (long long)((uintptr_t)bytes & -(uintptr_t)bytes));
	memory_touch(bytes, 0x10000, true);
	memcpy(bytes + CODE, code, sizeof(code));
	memcpy(bytes + INPUT, &input, sizeof(input));
	memset(bytes + OUTPUT, 0, sizeof(output));
	/* pagemap does not tell the frame of a 1 GiB mapping: then there are no counts. */
	if (refcount_open() && !refcount_pfn(bytes, &pfn))
		pfn = 0;
	refs_fact("refs_before", pfn);
	vm_create(&vm, &memory);
	nvh_step(true, "virtual machine made");
	vm_run(&vm);
	memcpy(&output, bytes + OUTPUT, sizeof(output));
	nvh_fact_str("memory", output == INPUT_VALUE + ADDEND ? "OK" : "differs");
	page_counters(&vm);
	refs_fact("refs_running", pfn);
	close(vm.vcpu);
	munmap(vm.run, (size_t)ioctl(vm.kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	close(vm.fd);
	nvh_step(true, "virtual machine ended");
	refs_fact("refs_after", pfn);
	memory_unmap(&memory);
	return nvh_end();
}
