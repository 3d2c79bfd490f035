/*
 * A virtual machine of a few instructions, whose memory is some of this process: it adds to a word of
 * one page, writes the sum to another page, says it and halts; or it goes on and on.
 */
#ifndef VM_H
#define VM_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "memory.h"

/* Guest physical addresses: below 64 KiB, for the guest stays in real mode with segments at 0. */
#define VM_CODE 0x1000
#define VM_LOOP 0x2000
#define VM_READ_FIRST 0x2100 /* reads the page of the output and goes on at VM_CODE */
#define VM_INPUT 0x4000
#define VM_OUTPUT 0x5000
#define VM_PORT 0x10

#define VM_VALUE 0x1234
#define VM_ADDEND 0x1111

struct vm {
	int kvm, fd, vcpu;
	struct kvm_run *run;
};

/* Opens /dev/kvm; where there is none, the fact missing says so and the step is skipped. */
bool vm_open(struct vm *vm);

/* Makes the machine with this memory from the address 0 on; it starts at VM_CODE. */
void vm_create(struct vm *vm, const struct mapping *memory);
void vm_close(struct vm *vm);

/* Gives the machine other memory, or the same with other flags; NULL takes it away. */
void vm_set_memory(const struct vm *vm, const struct mapping *memory, uint32_t flags);

void vm_start_at(const struct vm *vm, uint64_t address);

/* How a run of the virtual machine ended. */
struct vm_run {
	int err; /* of KVM_RUN */
	unsigned int exit;
	unsigned int said; /* what the machine wrote to VM_PORT */
};

/* Runs to the hlt, or to whatever else ends it. */
struct vm_run vm_run(struct vm *vm);

/* "hlt", "mmio", the name of KVM_RUN's errno, or the number of another exit. */
const char *vm_run_end(const struct vm_run *run);

/* Puts the program and its input in place, and leaves the page of the output alone. */
void vm_lay_out_program(char *bytes, uint16_t input);

/* As vm_lay_out_program(), and empties the output. */
void vm_lay_out(char *bytes, uint16_t input);

/* What it has written. */
uint16_t vm_output(const char *bytes);

/*
 * Reports how much of the machine's memory KVM maps with pages of which size: pages_4k, pages_2m and
 * pages_1g, before 5.13 largepages, each with this prefix.  One that this kernel does not have is left out.
 */
void vm_page_counters(const struct vm *vm, const char *prefix);

#endif
