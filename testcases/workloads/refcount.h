/*
 * The reference count of a physical page, read from struct page of the running kernel.
 *
 * Needs no special configuration: a kprobe event on getpgid(2) dereferences the system call's
 * first argument as a kernel address, and perf hands the value back.
 */
#ifndef NVH_REFCOUNT_H
#define NVH_REFCOUNT_H

#include <stdbool.h>
#include <stdint.h>

/* One look at a page.  For a tail of a compound page both numbers are those of its head. */
struct page_refs {
	int refs;      /* page_ref_count() */
	int mapcount;  /* page->_mapcount + 1; 0 for DAX pages before 6.15 */
	bool compound; /* refs and mapcount were read from the head page */
};

/*
 * Sets the oracle up and tries it on an anonymous page that is pinned and released.  Returns
 * false when the kernel offers no kprobe events or the try gives a wrong answer, with the
 * reason in the fact "refcount_missing".  May be called again; then it only returns what is.
 */
bool refcount_open(void);

/* Removes the kprobe event.  Done at exit() too; what a killed process leaves, the next
 * refcount_open() of any process removes.  That kprobes are not optimized stays so. */
void refcount_close(void);

/* In a forked child: lets go of the parent's event, so that a hung child does not keep it. */
void refcount_forget(void);

/* The page frame behind addr, which must be mapped and touched.  False for mappings that
 * pagemap does not walk (1 GiB device-dax). */
bool refcount_pfn(const void *addr, uint64_t *pfn);

bool refcount_look(uint64_t pfn, struct page_refs *seen);
bool refcount_read_pfn(uint64_t pfn, int *count);
bool refcount_read(void *addr, int *count);

#endif
