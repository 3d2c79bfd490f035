#include "refcount.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"
#include "tracefs.h"

/* x86-64: every wrapper of a system call gets its pt_regs in %di, where di lies at 0x70. */
#define PROBED "__x64_sys_getpgid"
#define PROBE_ARGS "at=+0x70(%di):x64 value=+0(+0x70(%di)):x64"
#define PROBE_BASE " base=@vmemmap_base:x64"
#define GROUP "nvh"
#define PREFIX "refcount_"

/* struct page is 64 bytes on x86-64; _mapcount and _refcount share the word at 0x30.  The
 * trial in refcount_open() turns a kernel away whose layout differs. */
#define PAGE_STRUCT 64
#define COMPOUND_HEAD 0x08
#define COUNTS 0x30

/* Where struct pages start on a kernel without CONFIG_DYNAMIC_MEMORY_LAYOUT. */
#define FIXED_VMEMMAP 0xffffea0000000000ULL

#define RING_PAGES 2 /* one page of control data, one of records */

static struct {
	bool tried, usable, registered;
	pid_t owner;
	const char *tracefs;
	char event[64];
	int perf, cpu;
	size_t page, at_offset, value_offset, base_offset;
	struct perf_event_mmap_page *ring;
	uint64_t vmemmap;
} oracle = {.perf = -1, .vmemmap = FIXED_VMEMMAP};

__attribute__((format(printf, 1, 2))) static bool missing(const char *fmt, ...)
{
	char reason[200];
	va_list args;

	va_start(args, fmt);
	vsnprintf(reason, sizeof(reason), fmt, args);
	va_end(args);
	nvh_fact_str("refcount_missing", reason);
	nvh_note("no reference counts: %s", reason);
	return false;
}

static int kprobe_command(const char *text)
{
	return tracefs_put(text, O_APPEND, "%s/kprobe_events", oracle.tracefs);
}

/* Removes events whose makers are dead. */
static void sweep(void)
{
	char path[128], line[512], command[96];
	long stale[64];
	size_t n = 0;
	FILE *f;

	snprintf(path, sizeof(path), "%s/kprobe_events", oracle.tracefs);
	f = fopen(path, "re");
	if (!f)
		return;
	while (n < 64 && fgets(line, sizeof(line), f)) {
		const char *name = strstr(line, ":" GROUP "/" PREFIX);
		long pid;

		if (!name)
			continue;
		pid = strtol(name + strlen(":" GROUP "/" PREFIX), NULL, 10);
		/* The pid may be ours, of an earlier life: then the event is stale as well. */
		if (pid == getpid() || (pid > 0 && kill((pid_t)pid, 0) && errno == ESRCH))
			stale[n++] = pid;
	}
	fclose(f);
	while (n--) {
		snprintf(command, sizeof(command), "-:%s/%s%ld\n", GROUP, PREFIX, stale[n]);
		kprobe_command(command);
	}
}

/* Reads the event's id and the places of its fields from tracefs. */
static bool read_format(uint64_t *id)
{
	char path[200], line[256];
	FILE *f;

	*id = 0;
	oracle.at_offset = oracle.value_offset = oracle.base_offset = 0;
	snprintf(path, sizeof(path), "%s/events/%s/%s/format", oracle.tracefs, GROUP, oracle.event);
	f = fopen(path, "re");
	if (!f)
		return false;
	while (fgets(line, sizeof(line), f)) {
		unsigned long long number;
		const char *offset = strstr(line, "offset:");

		if (sscanf(line, "ID: %llu", &number) == 1)
			*id = number;
		if (!offset || sscanf(offset, "offset:%llu", &number) != 1)
			continue;
		if (strstr(line, " at;"))
			oracle.at_offset = number;
		else if (strstr(line, " value;"))
			oracle.value_offset = number;
		else if (strstr(line, " base;"))
			oracle.base_offset = number;
	}
	fclose(f);
	return *id && oracle.at_offset && oracle.value_offset;
}

/* The last record of the ring that has our address in it; empties the ring. */
static bool take_record(uint64_t address, uint64_t *value)
{
	const char *data = (const char *)oracle.ring + oracle.page;
	uint64_t head = __atomic_load_n(&oracle.ring->data_head, __ATOMIC_ACQUIRE);
	uint64_t tail = oracle.ring->data_tail;
	bool found = false;

	while (tail < head) {
		unsigned char record[512];
		struct perf_event_header header;
		uint64_t at;
		uint32_t raw_size;
		size_t i;

		for (i = 0; i < sizeof(header); i++)
			((char *)&header)[i] = data[(tail + i) % oracle.page];
		if (header.size < sizeof(header))
			break;
		for (i = 0; i < header.size && i < sizeof(record); i++)
			record[i] = (unsigned char)data[(tail + i) % oracle.page];
		tail += header.size;
		if (header.type != PERF_RECORD_SAMPLE || header.size > sizeof(record))
			continue;
		memcpy(&raw_size, record + sizeof(header), sizeof(raw_size));
		if (raw_size < oracle.at_offset + 8 || raw_size < oracle.value_offset + 8 ||
		    raw_size > sizeof(record) - sizeof(header) - sizeof(raw_size))
			continue;
		const unsigned char *raw = record + sizeof(header) + sizeof(raw_size);
		memcpy(&at, raw + oracle.at_offset, 8);
		if (at != address)
			continue;
		memcpy(value, raw + oracle.value_offset, 8);
		if (oracle.base_offset && raw_size >= oracle.base_offset + 8)
			memcpy(&oracle.vmemmap, raw + oracle.base_offset, 8);
		found = true;
	}
	__atomic_store_n(&oracle.ring->data_tail, head, __ATOMIC_RELEASE);
	return found;
}

/*
 * Eight bytes of kernel memory; an address that faults reads as 0.
 *
 * The event is bound to a processor and not to this task: one for a task makes the kernel patch
 * its scheduler while the other processors run it, and QEMU's TCG now and then executes the
 * breakpoint of such a patch after it is gone ("Oops: int3" in __schedule, QEMU 7.2).
 */
static bool peek(uint64_t address, uint64_t *value)
{
	cpu_set_t before, here;
	bool found;

	CPU_ZERO(&here);
	CPU_SET(oracle.cpu, &here);
	if (sched_getaffinity(0, sizeof(before), &before) || sched_setaffinity(0, sizeof(here), &here))
		return false;
	ioctl(oracle.perf, PERF_EVENT_IOC_ENABLE, 0);
	syscall(SYS_getpgid, address);
	ioctl(oracle.perf, PERF_EVENT_IOC_DISABLE, 0);
	found = take_record(address, value);
	sched_setaffinity(0, sizeof(before), &before);
	return found;
}

/* Pins an anonymous page by vmsplice() and looks whether the count goes up by one and back. */
static bool trial(void)
{
	char *memory = mmap(NULL, oracle.page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			    -1, 0);
	int pipes[2], before = 0, during = 0, after = 0;
	bool right = false;

	if (memory == MAP_FAILED)
		return false;
	if (pipe2(pipes, O_CLOEXEC)) {
		munmap(memory, oracle.page);
		return false;
	}
	memset(memory, 0x5a, oracle.page);
	/* Again: the kernel may drop a reference of its own (LRU batch) between two looks. */
	for (int attempt = 0; attempt < 5 && !right; attempt++) {
		struct iovec part = {memory, oracle.page};
		char *back = malloc(oracle.page);
		bool looked = refcount_read(memory, &before) &&
			      vmsplice(pipes[1], &part, 1, 0) == (ssize_t)oracle.page;

		if (looked) {
			looked = refcount_read(memory, &during);
			if (read(pipes[0], back, oracle.page) != (ssize_t)oracle.page)
				looked = false;
		}
		free(back);
		looked = looked && refcount_read(memory, &after);
		right = looked && before > 0 && before < 64 && during > before &&
			after == before;
	}
	close(pipes[0]);
	close(pipes[1]);
	munmap(memory, oracle.page);
	return right ? true : missing("trial on an anonymous page: %d, pinned %d, released %d",
				      before, during, after);
}

static bool open_perf(uint64_t id)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_TRACEPOINT,
		.size = sizeof(attr),
		.config = id,
		.sample_period = 1,
		.sample_type = PERF_SAMPLE_RAW,
		.disabled = 1,
	};
	void *ring;

	oracle.cpu = sched_getcpu();
	oracle.perf = (int)syscall(SYS_perf_event_open, &attr, -1, oracle.cpu, -1, PERF_FLAG_FD_CLOEXEC);
	if (oracle.perf < 0)
		return false;
	ring = mmap(NULL, RING_PAGES * oracle.page, PROT_READ | PROT_WRITE, MAP_SHARED, oracle.perf, 0);
	if (ring == MAP_FAILED)
		return false;
	oracle.ring = ring;
	return true;
}

/* Makes the event there with these arguments and proves that it fires; NULL, or why not. */
static const char *arm(const char *place, const char *args)
{
	static char reason[128];
	char command[256];
	uint64_t id, value = 0;
	int err;

	snprintf(command, sizeof(command), "p:%s/%s %s %s\n", GROUP, oracle.event, place, args);
	err = kprobe_command(command);
	if (!err)
		oracle.registered = true;
	snprintf(reason, sizeof(reason), "kprobe on %s: %s", place, nvh_errname(err));
	if (err)
		return reason;
	if (!read_format(&id))
		return "the format of the kprobe event is not as expected";
	err = open_perf(id) ? 0 : errno;
	snprintf(reason, sizeof(reason), "perf_event_open of the kprobe event: %s", nvh_errname(err));
	if (err)
		return reason;
	/* Not 0, as which any address that faults reads. */
	return peek((uintptr_t)&value, &value) ? NULL : "the kprobe event does not fire";
}

/*
 * Behind the call that begins the function, with endbr64 before it and without: a probe on that
 * call is ftrace's, which for its coming and its going looks at every function of the kernel
 * several times.  A place within an instruction is refused by the kernel
 * (can_probe() in arch/x86/kernel/kprobes/core.c), one at which %di is overwritten by the event's
 * not firing for the address given.
 */
static const char *const places[] = {PROBED "+9", PROBED "+5", PROBED};

static bool set_up(void)
{
	/*
	 * With dynamic memory layout vmemmap_base says where struct pages start; without it there is no
	 * such symbol and the place is fixed.  A kernel without modules then takes the event all the
	 * same, for a module that might come (kernel/trace/trace_kprobe.c), and it never fires.
	 */
	static const char *const arguments[] = {PROBE_ARGS PROBE_BASE, PROBE_ARGS};
	const char *reason = NULL;

	oracle.tracefs = tracefs_with("kprobe_events");
	if (!oracle.tracefs)
		return missing("no kprobe_events in tracefs (CONFIG_KPROBE_EVENTS=y, mount tracefs)");
	sweep();
	/*
	 * Else a worker puts a jump in the breakpoint's place, and holds the lock of all kprobes until
	 * each task has slept (kprobe_optimizer()): one that spins would keep this process at its end.
	 */
	tracefs_put("0", 0, "/proc/sys/debug/kprobes-optimization");
	snprintf(oracle.event, sizeof(oracle.event), PREFIX "%d", (int)getpid());
	for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++) {
		for (size_t j = 0; j < sizeof(arguments) / sizeof(*arguments); j++) {
			reason = arm(places[i], arguments[j]);
			if (!reason)
				return trial();
			refcount_close();
		}
	}
	return missing("%s", reason);
}

bool refcount_open(void)
{
	if (oracle.tried)
		return oracle.usable;
	oracle.tried = true;
	oracle.owner = getpid();
	oracle.page = memory_page();
	atexit(refcount_close);
	oracle.usable = set_up();
	if (!oracle.usable)
		refcount_close();
	return oracle.usable;
}

void refcount_forget(void)
{
	if (oracle.ring)
		munmap(oracle.ring, RING_PAGES * oracle.page);
	if (oracle.perf >= 0)
		close(oracle.perf);
	oracle.ring = NULL;
	oracle.perf = -1;
	oracle.usable = false;
}

void refcount_close(void)
{
	char command[128];

	if (oracle.owner != getpid())
		return;
	refcount_forget();
	if (!oracle.registered)
		return;
	snprintf(command, sizeof(command), "-:%s/%s\n", GROUP, oracle.event);
	if (!kprobe_command(command))
		oracle.registered = false;
}

bool refcount_pfn(const void *addr, uint64_t *pfn)
{
	*pfn = memory_pfn(addr);
	return *pfn != 0;
}

bool refcount_look(uint64_t pfn, struct page_refs *seen)
{
	uint64_t page = oracle.vmemmap + pfn * PAGE_STRUCT, head, counts;

	if (oracle.perf < 0 || !peek(page + COMPOUND_HEAD, &head))
		return false;
	seen->compound = head & 1;
	if (seen->compound) {
		/* A tail names its head by address or, in newer kernels, by a mask of its own
		 * address; no mask lies in the range of addresses below. */
		if (head - 1 >= oracle.vmemmap && head - 1 <= page)
			page = head - 1;
		else
			page &= head;
	}
	if (!peek(page + COUNTS, &counts) || !counts)
		return false;
	seen->mapcount = (int)(uint32_t)counts + 1;
	seen->refs = (int)(uint32_t)(counts >> 32);
	return true;
}

bool refcount_read_pfn(uint64_t pfn, int *count)
{
	struct page_refs seen;

	if (!refcount_look(pfn, &seen))
		return false;
	*count = seen.refs;
	return true;
}

bool refcount_read(void *addr, int *count)
{
	uint64_t pfn;

	return refcount_pfn(addr, &pfn) && refcount_read_pfn(pfn, count);
}
