/*
 * A virtual machine that is the first to store to a page, which this process has only read: mapped
 * there is the zero page, or a page of a file that is not dirty or not to be changed.
 */
#ifndef FIRST_STORE_H
#define FIRST_STORE_H

#include <stdbool.h>

#include "memory.h"
#include "vm.h"

/*
 * Runs a machine twice on private memory or on a file of which no page is huge.  In the first run
 * it reads the page before it stores to it, in the second it stores at once.  Facts, with first_ and
 * again_ before them: exit; memory ("OK" when the store is seen here); fresh ("zero" as long as
 * private memory is that nobody wrote to); and of a file: file (what pread() gives: "as memory",
 * "unchanged") and written_back (the pages that a sync writes back, as trace_written_back() lists
 * them), which is not there where the kernel does not tell.
 */
void first_store(struct vm *vm, const struct mapping *memory, bool private);

#endif
