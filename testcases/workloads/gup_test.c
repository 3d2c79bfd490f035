/*
 * The kernel's own test of pin_user_pages(): /sys/kernel/debug/gup_test (CONFIG_GUP_TEST, since v5.11).
 *
 * Pins that last are there since v6.2 (c77369b437f9); before there is only the benchmark, which lets
 * go at once, and tells how much it pinned and not why it did not.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/ioctl.h>
#include <linux/types.h>
#include <stdint.h>
#include <sys/ioctl.h>

#include "memory.h"
#include "nvh.h"
#include "pinner.h"

#define GUP_TEST "/sys/kernel/debug/gup_test"

/* mm/gup_test.h is no header for user space: these are its binary interface, equal from 6.2 to 7.2. */
struct longterm_test {
	__u64 addr, size;
	__u32 flags;
};

struct benchmark {
	__u64 get_usec, put_usec, addr, size;
	__u32 pages_per_call, gup_flags, test_flags, which_pages[8];
};

#define LONGTERM_BENCHMARK _IOWR('g', 3, struct benchmark)
#define LONGTERM_START _IOW('g', 7, struct longterm_test)
#define LONGTERM_STOP _IO('g', 8)
#define FLAG_WRITE 1U
#define FLAG_FAST 2U

/* FOLL_WRITE of include/linux/mm_types.h; it has never been another bit. */
#define FOLL_WRITE 1U

static int gup_test = -1;

static bool open_gup_test(const char *device, bool write)
{
	(void)write;
	gup_test = open(device ? device : GUP_TEST, O_RDWR | O_CLOEXEC);
	return gup_test >= 0 || pinner_missing(GUP_TEST, errno);
}

/* Letting go of nothing is allowed where pins that last are known. */
static bool open_longterm(const char *device, bool write)
{
	if (!open_gup_test(device, write))
		return false;
	return ioctl(gup_test, LONGTERM_STOP) == 0 || pinner_missing("PIN_LONGTERM_TEST_START", errno);
}

static int pin_with(void *addr, size_t size, unsigned int flags)
{
	struct longterm_test test = {.addr = (uintptr_t)addr, .size = size, .flags = flags};

	return ioctl(gup_test, LONGTERM_START, &test) < 0 ? errno : 0;
}

static int pin_slowly(void *addr, size_t size, bool write)
{
	return pin_with(addr, size, write ? FLAG_WRITE : 0);
}

static int pin_fast(void *addr, size_t size, bool write)
{
	return pin_with(addr, size, FLAG_FAST | (write ? FLAG_WRITE : 0));
}

static int unpin(void)
{
	return ioctl(gup_test, LONGTERM_STOP) < 0 ? errno : 0;
}

/* The reason of a refusal is not told: EACCES, which pinning never gives, stands for it. */
static int pin_once(void *addr, size_t size, bool write)
{
	struct benchmark test = {
		.addr = (uintptr_t)addr,
		.size = size,
		.pages_per_call = (__u32)(size / memory_page()),
		.gup_flags = write ? FOLL_WRITE : 0,
	};

	if (ioctl(gup_test, LONGTERM_BENCHMARK, &test) < 0)
		nvh_bail("PIN_LONGTERM_BENCHMARK: %s", nvh_errname(errno));
	return test.size == size ? 0 : EACCES;
}

const struct pinner gup_pinner = {
	.name = "gup_test", .reads = true, .open = open_longterm, .pin = pin_slowly, .unpin = unpin,
};
const struct pinner gup_fast_pinner = {
	.name = "gup_test-fast", .reads = true, .open = open_longterm, .pin = pin_fast, .unpin = unpin,
};
const struct pinner gup_once_pinner = {
	.name = "gup_test-once", .reads = true, .passing = true, .open = open_gup_test, .pin = pin_once,
};
