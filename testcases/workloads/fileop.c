#include "fileop.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"
#include "refcount.h"

const char *const fileop_kinds[] = {"truncate", "punch", "collapse", "insert", "zero", "clone",
				    "read", "write", "fsync", "unlink", "umount", "none", NULL};

/* Clones a new file of OWNER_SECOND's pages, as many as op->count, onto the file. */
static int clone_onto(const struct fileop *op, int fd, char *page)
{
	ssize_t size = (ssize_t)memory_page();
	char path[4096];
	int source, result;

	snprintf(path, sizeof(path), "%s-source", op->path);
	source = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (source < 0)
		return -1;
	for (int i = 0; i < op->count; i++) {
		model_fill(page, OWNER_SECOND, i);
		if (pwrite(source, page, (size_t)size, i * size) != size)
			return -1;
	}
	result = ioctl(fd, FICLONE, source);
	close(source);
	return result;
}

int fileop_do(const struct fileop *op, int fd, char *page)
{
	off_t at = (off_t)op->at * (off_t)memory_page();
	off_t length = (off_t)op->count * (off_t)memory_page();
	ssize_t size = (ssize_t)memory_page(), done = size;
	int result = 0;

	switch (op->kind) {
	case OP_TRUNCATE:
		result = ftruncate(fd, at);
		break;
	case OP_PUNCH:
		result = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, length);
		break;
	case OP_COLLAPSE:
		result = fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, at, length);
		break;
	case OP_INSERT:
		result = fallocate(fd, FALLOC_FL_INSERT_RANGE, at, length);
		break;
	case OP_ZERO:
		result = fallocate(fd, FALLOC_FL_ZERO_RANGE, at, length);
		break;
	case OP_CLONE:
		result = clone_onto(op, fd, page);
		break;
	case OP_READ:
		done = pread(fd, page, (size_t)size, at);
		break;
	case OP_WRITE:
		model_fill(page, OWNER_SECOND, op->at);
		done = pwrite(fd, page, (size_t)size, at);
		break;
	case OP_FSYNC:
		result = fsync(fd);
		break;
	case OP_UNLINK:
		result = unlink(op->path);
		break;
	case OP_UMOUNT:
		result = umount2(op->path, 0);
		break;
	case OP_NONE:
		break;
	}
	if (result < 0 || done < 0)
		return errno;
	return done == size ? 0 : EIO;
}

void fileop_model(const struct fileop *op, struct model *model)
{
	switch (op->kind) {
	case OP_TRUNCATE:
		model_truncate(model, op->at);
		break;
	case OP_PUNCH:
	case OP_ZERO:
		model_zero(model, op->at, op->count);
		break;
	case OP_CLONE:
		for (int i = 0; i < op->count; i++)
			model_set(model, i, OWNER_SECOND, i);
		break;
	case OP_COLLAPSE:
		model_collapse(model, op->at, op->count);
		break;
	case OP_INSERT:
		model_insert(model, op->at, op->count);
		break;
	case OP_WRITE:
		model_write(model, op->at);
		break;
	default:
		break;
	}
}

static void ignore(int signum)
{
	(void)signum;
}

static _Noreturn void be_child(struct fileop_report *report, const struct fileop *op, bool handler)
{
	struct sigaction action = {.sa_handler = ignore};
	char *page = malloc(memory_page());
	int fd = op->fd;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	refcount_forget();
	if (handler)
		sigaction(SIGUSR1, &action, NULL);
	if (fd < 0 && op->kind < OP_UNLINK)
		fd = open(op->path, O_RDWR | O_CLOEXEC);
	report->started_at = nvh_now();
	atomic_store(&report->started, true);
	report->err = fileop_do(op, fd, page);
	report->ended_at = nvh_now();
	atomic_store(&report->done, true);
	_exit(0);
}

bool fileop_start(struct fileop_child *child, const struct fileop *op, bool handler)
{
	*child = (struct fileop_child){.pid = -1};
	child->report = mmap(NULL, memory_page(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (child->report == MAP_FAILED)
		return false;
	child->pid = fork();
	if (child->pid < 0)
		return false;
	if (child->pid == 0)
		be_child(child->report, op, handler);
	while (!atomic_load(&child->report->started) && !fileop_ended(child))
		nvh_sleep(0.001);
	return true;
}

bool fileop_ended(struct fileop_child *child)
{
	if (atomic_load(&child->report->done))
		return true;
	if (!child->reaped && waitpid(child->pid, &child->status, WNOHANG) == child->pid)
		child->reaped = true;
	return child->reaped;
}

bool fileop_wait(struct fileop_child *child, double seconds)
{
	double until = nvh_now() + seconds;

	while (!fileop_ended(child)) {
		if (nvh_now() > until)
			return false;
		nvh_sleep(0.005);
	}
	return true;
}

bool fileop_kill(struct fileop_child *child, double seconds)
{
	if (child->reaped)
		return true;
	kill(child->pid, SIGKILL);
	child->reaped = nvh_child_ends(child->pid, seconds, &child->status, NULL);
	return child->reaped;
}
