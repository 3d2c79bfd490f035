#include "vm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "nvh.h"

static const uint8_t code[] = {
	0xa1, VM_INPUT & 0xff, VM_INPUT >> 8,   /* mov ax, [VM_INPUT] */
	0x05, VM_ADDEND & 0xff, VM_ADDEND >> 8, /* add ax, VM_ADDEND */
	0xa3, VM_OUTPUT & 0xff, VM_OUTPUT >> 8, /* mov [VM_OUTPUT], ax */
	0xe7, VM_PORT,                       /* out VM_PORT, ax */
	0xf4,                             /* hlt */
};

/* Never exits by itself: it reads one page and writes another for as long as they are there. */
static const uint8_t loop[] = {
	0xa1, VM_INPUT & 0xff, VM_INPUT >> 8,         /* mov ax, [VM_INPUT] */
	0xff, 0x06, VM_OUTPUT & 0xff, VM_OUTPUT >> 8, /* inc word [VM_OUTPUT] */
	0xeb, 0xf7,                             /* jmp to the mov */
};

#define JUMP_BACK (VM_CODE - (VM_READ_FIRST + 7))

static const uint8_t read_first[] = {
	0x8b, 0x1e, VM_OUTPUT & 0xff, VM_OUTPUT >> 8,         /* mov bx, [VM_OUTPUT] */
	0xe9, JUMP_BACK & 0xff, JUMP_BACK >> 8 & 0xff,        /* jmp VM_CODE */
};

bool vm_open(struct vm *vm)
{
	vm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm >= 0)
		return true;
	nvh_fact_str("missing", "/dev/kvm");
	nvh_skip("/dev/kvm: %s (a CPU with svm or vmx, CONFIG_KVM_AMD or CONFIG_KVM_INTEL)", nvh_errname(errno));
	return false;
}

void vm_start_at(const struct vm *vm, uint64_t address)
{
	struct kvm_regs regs = {.rip = address, .rflags = 2};

	if (ioctl(vm->vcpu, KVM_SET_REGS, &regs))
		nvh_bail("KVM_SET_REGS: %s", nvh_errname(errno));
}

void vm_set_memory(const struct vm *vm, const struct mapping *memory, uint32_t flags)
{
	struct kvm_userspace_memory_region region = {.flags = flags};

	if (memory) {
		region.memory_size = memory->size;
		region.userspace_addr = (uintptr_t)memory->addr;
	}
	if (ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region))
		nvh_bail("KVM_SET_USER_MEMORY_REGION: %s", nvh_errname(errno));
}

void vm_create(struct vm *vm, const struct mapping *memory)
{
	struct kvm_sregs sregs;
	int size;

	vm->fd = ioctl(vm->kvm, KVM_CREATE_VM, 0);
	if (vm->fd < 0)
		nvh_bail("KVM_CREATE_VM: %s", nvh_errname(errno));
	vm_set_memory(vm, memory, 0);
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
	vm_start_at(vm, VM_CODE);
}

struct vm_run vm_run(struct vm *vm)
{
	struct vm_run run = {0};

	for (int exits = 0; exits < 8; exits++) {
		if (ioctl(vm->vcpu, KVM_RUN, 0)) {
			run.err = errno;
			break;
		}
		run.exit = vm->run->exit_reason;
		if (run.exit != KVM_EXIT_IO)
			break;
		if (vm->run->io.port == VM_PORT && vm->run->io.size == 2)
			run.said = *(uint16_t *)((char *)vm->run + vm->run->io.data_offset);
	}
	return run;
}

const char *vm_run_end(const struct vm_run *run)
{
	static char number[32];

	if (run->err)
		return nvh_errname(run->err);
	if (run->exit == KVM_EXIT_HLT)
		return "hlt";
	if (run->exit == KVM_EXIT_MMIO)
		return "mmio";
	snprintf(number, sizeof(number), "exit %u", run->exit);
	return number;
}

void vm_lay_out_program(char *bytes, uint16_t input)
{
	memcpy(bytes + VM_CODE, code, sizeof(code));
	memcpy(bytes + VM_LOOP, loop, sizeof(loop));
	memcpy(bytes + VM_READ_FIRST, read_first, sizeof(read_first));
	memcpy(bytes + VM_INPUT, &input, sizeof(input));
}

void vm_lay_out(char *bytes, uint16_t input)
{
	vm_lay_out_program(bytes, input);
	memset(bytes + VM_OUTPUT, 0, sizeof(input));
}

uint16_t vm_output(const char *bytes)
{
	return *(const volatile uint16_t *)(const void *)(bytes + VM_OUTPUT);
}

void vm_close(struct vm *vm)
{
	close(vm->vcpu);
	munmap(vm->run, (size_t)ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	close(vm->fd);
}

void vm_page_counters(const struct vm *vm, const char *prefix)
{
	static const char *const names[] = {"pages_4k", "pages_2m", "pages_1g", "largepages"};
	bool any = false;

	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		long long value;
		char path[128], key[64];
		FILE *f;

		snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%d-%d/%s", (int)getpid(), vm->fd, names[i]);
		f = fopen(path, "re");
		if (!f)
			continue;
		if (fscanf(f, "%lld", &value) == 1) {
			snprintf(key, sizeof(key), "%s%s", prefix, names[i]);
			nvh_fact_int(key, value);
			any = true;
		}
		fclose(f);
	}
	nvh_step(any, "page counters in /sys/kernel/debug/kvm/PID-FD");
}
