#include "pin.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "nvh.h"
#include "refcount.h"
#include "watch.h"

const char *const pin_kinds[] = {"none", "vmsplice", "odirect-read", "odirect-write", NULL};

/* How long the I/O thread may take to get its pages pinned; a guest under TCG is slow. */
#define PROOF_SECONDS 10.0

static void *do_io(void *arg)
{
	struct pin *pin = arg;
	ssize_t done;

	atomic_store(&pin->tid, (int)syscall(SYS_gettid));
	if (pin->kind == PIN_ODIRECT_READ)
		done = pread(pin->slow, pin->addr, pin->size, 0);
	else
		done = pwrite(pin->slow, pin->addr, pin->size, 0);
	pin->ended = nvh_now();
	if (done != (ssize_t)pin->size)
		pin->io_errno = done < 0 ? errno : EIO;
	atomic_store(&pin->finished, true);
	return NULL;
}

static int look(const struct pin *pin, struct page_refs *seen)
{
	return pin->pfn && refcount_look(pin->pfn, seen);
}

static bool proven(struct pin *pin, const char **why)
{
	double until = nvh_now() + PROOF_SECONDS;
	struct page_refs seen;
	struct sight sight;

	do {
		if (pin->kind != PIN_VMSPLICE && atomic_load(&pin->finished)) {
			*why = "the I/O was over at once: the device is not slow";
			return false;
		}
		if (pin->refs_known) {
			if (look(pin, &seen) && seen.refs > pin->refs_before) {
				pin->refs_pinned = seen.refs;
				*why = "the reference count rose";
				return true;
			}
		} else if (pin->kind == PIN_VMSPLICE) {
			*why = "vmsplice took the page";
			return true;
		} else if (atomic_load(&pin->tid) && watch_look(atomic_load(&pin->tid), &sight) &&
			   sight.state == 'D') {
			*why = "the I/O waits in D state";
			return true;
		}
		nvh_sleep(0.01);
	} while (nvh_now() < until);
	*why = "the reference count did not rise";
	return false;
}

bool pin_start(struct pin *pin, enum pin_kind kind, void *addr, size_t size, int slow, const char **why)
{
	struct iovec part = {addr, size};
	struct page_refs seen;
	int pipes[2];

	*pin = (struct pin){.kind = kind, .addr = addr, .size = size, .slow = slow, .pipe_read = -1,
			    .pipe_write = -1};
	if (!refcount_pfn(addr, &pin->pfn))
		pin->pfn = 0;
	pin->refs_known = look(pin, &seen);
	pin->refs_before = pin->refs_known ? seen.refs : 0;
	pin->extra_before = pin->refs_known ? seen.refs - seen.mapcount : 0;
	pin->started = nvh_now();
	if (kind == PIN_VMSPLICE) {
		if (pipe2(pipes, O_CLOEXEC)) {
			*why = "no pipe";
			return false;
		}
		pin->pipe_read = pipes[0];
		pin->pipe_write = pipes[1];
		if (vmsplice(pin->pipe_write, &part, 1, SPLICE_F_NONBLOCK) != (ssize_t)size) {
			*why = "vmsplice did not take the page";
			return false;
		}
	} else if (pthread_create(&pin->thread, NULL, do_io, pin)) {
		*why = "no thread";
		return false;
	}
	return proven(pin, why);
}

bool pin_holds(const struct pin *pin)
{
	if (pin->kind == PIN_VMSPLICE)
		return pin->ended == 0;
	return !atomic_load(&pin->finished);
}

bool pin_refs_restored(const struct pin *pin)
{
	struct page_refs seen;

	/* From 6.15 each mapping counts as well, and operations on the layout remove mappings. */
	return pin->refs_known && look(pin, &seen) && seen.refs - seen.mapcount <= pin->extra_before;
}

/*
 * Has a device of dm-delay end what it holds back: suspending it issues its I/O at once
 * (drivers/md/dm-delay.c, delay_presuspend(), since 2.6.22).  Any other device is left to its own time.
 */
static void hurry(struct pin *pin)
{
	struct dm_ioctl control = {
		.version = {DM_VERSION_MAJOR, 0, 0},
		.data_size = sizeof(control),
		.flags = DM_SUSPEND_FLAG | DM_SKIP_LOCKFS_FLAG,
	};
	int fd = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
	struct stat st;

	if (fd < 0)
		return;
	if (!fstat(pin->slow, &st)) {
		double now = nvh_now();

		control.dev = st.st_rdev;
		if (!ioctl(fd, DM_DEV_SUSPEND, &control)) {
			pin->releasing = now;
			control.flags = 0; /* go on */
			ioctl(fd, DM_DEV_SUSPEND, &control);
		}
	}
	close(fd);
}

int pin_release(struct pin *pin, void *data, double seconds)
{
	double until = nvh_now() + seconds;
	size_t got = 0;

	if (pin->kind == PIN_VMSPLICE) {
		pin->releasing = nvh_now();
		while (got < pin->size) {
			ssize_t n = read(pin->pipe_read, (char *)data + got, pin->size - got);

			if (n <= 0)
				return n < 0 ? errno : EPIPE;
			got += (size_t)n;
		}
		pin->ended = nvh_now();
		return 0;
	}
	if (!atomic_load(&pin->finished))
		hurry(pin);
	while (!atomic_load(&pin->finished)) {
		if (nvh_now() > until)
			return ETIMEDOUT;
		nvh_sleep(0.005);
	}
	pthread_join(pin->thread, NULL);
	return pin->io_errno;
}
