#include "roundtrip.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "nvh.h"

struct spot {
	size_t at;
	size_t count;
};

enum { SPOTS = 3 };

/* Where the device reads and writes, in ascending order; some may touch or overlap.  Each transfer
 * takes edu 100 ms, so few spots cross much: the first page's end, a huge page's, the last byte. */
static size_t spots(const struct roundtrip *trip, struct spot *spot)
{
	const size_t huge = 2UL << 20;
	size_t page = memory_page();
	size_t reach = trip->size;
	size_t count = 0;

	if (trip->iova + reach > EDU_IOVA_END)
		reach = EDU_IOVA_END - trip->iova;
	spot[count++] = (struct spot){24, reach >= 2 * page ? EDU_MAX : 1000};
	if (reach > huge + page)
		spot[count++] = (struct spot){huge - 504, EDU_MAX};
	else if (reach >= 4 * page)
		spot[count++] = (struct spot){reach / 2 / page * page - 504, EDU_MAX};
	spot[count++] = (struct spot){reach - 1000, 1000};
	return count;
}

size_t roundtrip_check(const struct roundtrip *trip, const void *view, bool written)
{
	struct spot spot[SPOTS];
	size_t count = written ? spots(trip, spot) : 0;
	const uint8_t *bytes = view;
	size_t at = 0;

	while (at < trip->size) {
		uint64_t seed = SEED_CPU;
		size_t end = trip->size;

		for (size_t i = 0; i < count; i++) {
			if (at >= spot[i].at && at < spot[i].at + spot[i].count) {
				seed = SEED_DEVICE;
				end = spot[i].at + spot[i].count;
				break;
			}
			if (spot[i].at > at && spot[i].at < end)
				end = spot[i].at;
		}
		size_t same = memory_check_at(bytes + at, end - at, seed, at);

		if (same < end - at)
			return at + same;
		at = end;
	}
	return trip->size;
}

static void report(const char *what, const char *where, size_t wrong, size_t size)
{
	nvh_fact_str(what, wrong == size ? "equal" : "differs");
	if (wrong == size)
		return;
	nvh_fact_int(where, (long long)wrong);
	nvh_note("%s differs from byte 0x%zx of 0x%zx on", what, wrong, size);
}

void roundtrip_read(struct edu *edu, const struct roundtrip *trip)
{
	struct spot spot[SPOTS];
	size_t count = spots(trip, spot);
	size_t wrong = trip->size;

	/* Each spot holds other data than the one before, which is all that the device still has. */
	edu_blank(edu);
	for (size_t i = 0; i < count && wrong == trip->size; i++) {
		edu_fetch(edu, trip->iova + spot[i].at, spot[i].count);
		size_t same = memory_check_at(edu->window, spot[i].count, SEED_CPU, spot[i].at);

		if (same < spot[i].count)
			wrong = spot[i].at + same;
	}
	report("device_read", "device_read_at", wrong, trip->size);
}

void roundtrip_write(struct edu *edu, const struct roundtrip *trip)
{
	struct spot spot[SPOTS];
	size_t count = spots(trip, spot);

	for (size_t i = 0; i < count; i++) {
		memory_fill_at(edu->window, spot[i].count, SEED_DEVICE, spot[i].at);
		edu_write(edu, trip->iova + spot[i].at, spot[i].count);
	}
	report("device_write", "device_write_at", roundtrip_check(trip, trip->addr, true), trip->size);
}

/* 0 equal, 1 differs, 2 cannot be looked at. */
static int look_mapped(const struct roundtrip *trip, const struct source *source, off_t offset, bool written)
{
	struct source view = *source;
	struct mapping mapping;

	view.private = false;
	view.readonly = true;
	if (memory_map(&mapping, &view, trip->mapped, offset, PROT_READ, NULL))
		return 2;
	return roundtrip_check(trip, mapping.addr, written) == trip->size ? 0 : 1;
}

static int look_read(const struct roundtrip *trip, const struct source *source, off_t offset, bool written)
{
	int fd = open(source->path, O_RDONLY | O_CLOEXEC);
	uint8_t *data = malloc(trip->size);
	size_t have = 0;

	if (fd < 0 || !data)
		return 2;
	while (have < trip->size) {
		ssize_t got = pread(fd, data + have, trip->size - have, offset + (off_t)have);

		if (got <= 0)
			return 2;
		have += (size_t)got;
	}
	return roundtrip_check(trip, data, written) == trip->size ? 0 : 1;
}

void roundtrip_elsewhere(const struct roundtrip *trip, const struct source *source, off_t offset, bool written)
{
	static int (*const looks[])(const struct roundtrip *, const struct source *, off_t, bool) = {
		look_mapped,
		look_read,
	};
	static const char *const keys[] = {"other_process", "file_read"};

	for (int i = 0; i < (source->kind == SOURCE_FILE ? 2 : 1); i++) {
		int status = 0;
		pid_t child = fork();

		if (child < 0)
			nvh_bail("fork failed");
		if (child == 0)
			_exit(looks[i](trip, source, offset, written));
		while (waitpid(child, &status, 0) != child)
			;
		bool seen = WIFEXITED(status) && WEXITSTATUS(status) < 2;

		if (!seen)
			nvh_step(false, "another process looks at the data (%s)", keys[i]);
		nvh_fact_str(keys[i], !seen ? "unseen" : WEXITSTATUS(status) ? "differs" : "equal");
	}
}
