#include "ballast.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "memory.h"
#include "model.h"
#include "nvh.h"

#define CHUNK (256L << 20)
#define RETRIES 4 /* freed blocks may come back only with the next commit of the journal */

static int pages_written;

static const char *ballast_path(const char *path)
{
	static char name[PATH_MAX];

	snprintf(name, sizeof(name), "%s.ballast", path);
	return name;
}

static int must_open(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0600);

	if (fd < 0)
		nvh_bail("%s: %s", path, nvh_errname(errno));
	return fd;
}

bool ballast_fill(const char *path)
{
	int fd = must_open(path, O_RDWR | O_CREAT | O_TRUNC);
	off_t at = 0;

	fsync(fd);
	close(fd);
	fd = must_open(ballast_path(path), O_RDWR | O_CREAT | O_TRUNC);
	for (off_t chunk = CHUNK; chunk >= (off_t)memory_page();) {
		if (fallocate(fd, 0, at, chunk) == 0)
			at += chunk;
		else if (errno == ENOSPC)
			chunk /= 2;
		else
			nvh_bail("the file system cannot be filled: %s", nvh_errname(errno));
	}
	fsync(fd);
	close(fd);
	nvh_fact_int("ballast_bytes", at);
	return at > 0;
}

bool ballast_where(int fd, int page, uint64_t *physical)
{
	struct {
		struct fiemap map;
		struct fiemap_extent extent;
	} ask = {.map = {.fm_start = (uint64_t)page * memory_page(), .fm_length = memory_page(),
			 .fm_flags = FIEMAP_FLAG_SYNC, .fm_extent_count = 1}};

	if (ioctl(fd, FS_IOC_FIEMAP, &ask) || ask.map.fm_mapped_extents != 1 ||
	    (ask.extent.fe_flags & FIEMAP_EXTENT_UNKNOWN))
		return false;
	*physical = ask.extent.fe_physical + ask.map.fm_start - ask.extent.fe_logical;
	return true;
}

void ballast_refill(const char *path, uint64_t physical)
{
	int fd = must_open(path, O_RDWR), failed = 0;
	size_t size = memory_page();
	char *page = malloc(size);
	bool reuses = false;
	uint64_t at;

	while (failed < RETRIES && pages_written < MODEL_MAX) {
		model_fill(page, OWNER_SECOND, pages_written);
		if (pwrite(fd, page, size, (off_t)pages_written * (off_t)size) == (ssize_t)size) {
			pages_written++;
			continue;
		}
		failed++;
		fsync(fd);
		nvh_sleep(0.05);
	}
	fsync(fd);
	free(page);
	nvh_fact_int("refill_pages", pages_written);
	for (int i = 0; i < pages_written && !reuses; i++)
		reuses = physical && ballast_where(fd, i, &at) && at == physical;
	nvh_fact_bool("refill_reuses", reuses);
	close(fd);
}

void ballast_drop(const char *path)
{
	unlink(path);
	unlink(ballast_path(path));
}

void ballast_check(const char *path)
{
	int fd = must_open(path, O_RDONLY);
	struct model model = {.pages = pages_written, .patterns = MODEL_MAX};

	for (int i = 0; i < pages_written; i++)
		model_write(&model, i);
	nvh_fact_str("refill_content", model_check(&model, fd, false));
	close(fd);
	ballast_drop(path);
}
