/*
 * Device accesses that the IOMMU must block (V18): a write through a read-only mapping, also where a
 * writable one was before, a read through a write-only one, and any access after unmap, when other memory
 * may be there.  A blocked access shows only in what did not arrive and in the kernel log.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "edu.h"
#include "kmsg.h"
#include "memory.h"
#include "nvh.h"
#include "roundtrip.h"
#include "vfio.h"

#define WINDOW_IOVA 0x1000000ULL
/* Bytes of a forbidden access; it crosses from the first page into the second. */
#define ATTEMPT 1000
/* At most so much is mapped before the other memory of remap: less than a huge page. */
#define BEFORE_REMAP 0x10000UL

enum { CASE_READ_ONLY, CASE_WRITE_ONLY, CASE_DOWNGRADE, CASE_AFTER_UNMAP, CASE_REMAP };

static const char *const case_words[] = {"read-only", "write-only", "downgrade", "after-unmap", "remap", NULL};

static const char *device;
static const char *case_text = "read-only";
static const char *source_text = "anon";
static const char *size_text = "64K";
static const char *iova_text = "0x4000000";
static const char *type_text = "type1v2";

static const struct nvh_option options[] = {
	{"device", &device, NULL, "PCI address of an edu that is bound to vfio-pci"},
	{"case", &case_text, NULL, "read-only, write-only, downgrade (writable, used, unmapped, then read-only), "
				   "after-unmap, remap (64K of anonymous memory used, unmapped, then --source at "
				   "the same IOVA)"},
	{"source", &source_text, NULL, SOURCE_HELP " (default anon)"},
	{"size", &size_text, NULL, "bytes to map (default 64K)"},
	{"iova", &iova_text, NULL, "where the device sees it (default 64 MiB)"},
	{"type", &type_text, NULL, VFIO_BACKEND_HELP},
	{0},
};

static void map(const struct vfio *vfio, const struct roundtrip *trip, bool write)
{
	int err = vfio_map(vfio, trip->addr, trip->iova, trip->size, write);

	nvh_fact_errno(write ? "map_writable" : "map", err);
	if (!nvh_step(!err, "mapped %s: %s", write ? "writable" : "read-only", nvh_errname(err)))
		nvh_bail("VFIO_IOMMU_MAP_DMA: %s", nvh_errname(err));
}

static void map_write_only(const struct vfio *vfio, const struct roundtrip *trip)
{
	int err = vfio_map_for(vfio, trip->addr, trip->iova, trip->size, VFIO_DMA_WRITE);

	nvh_fact_errno("map_write_only", err);
	nvh_step(true, "mapped write-only: %s", nvh_errname(err));
}

static void unmap(const struct vfio *vfio, const struct roundtrip *trip)
{
	uint64_t unmapped;
	int err = vfio_unmap(vfio, trip->iova, trip->size, &unmapped);

	nvh_fact_errno("unmap", err);
	nvh_fact_int("unmapped", (long long)unmapped);
	nvh_step(true, "unmap: %s, %llu bytes", nvh_errname(err), (unsigned long long)unmapped);
}

/* The messages of intel-iommu name the access, the device and the address; 6.1 and 5.10 differ a little. */
static bool report_fault(int log, const char *key, bool write, double seconds)
{
	char line[512];
	char name[64];
	const char *at;

	while (kmsg_wait(log, "fault addr", seconds, line, sizeof(line))) {
		if (!strstr(line, write ? "DMA Write" : "DMA Read"))
			continue;
		nvh_fact_str(key, line);
		at = strstr(line, "fault addr");
		strcpy(name, key);
		strcat(name, "_address");
		nvh_fact_int(name, (long long)strtoull(at + strlen("fault addr"), NULL, 16));
		return true;
	}
	nvh_fact_str(key, "none");
	return false;
}

/* dmar_fault() is silent about more than 10 faults in 5 s: an earlier test's may have used them up. */
#define RATE_LIMIT_SECONDS 6.0
/* How long a message may take that has to come, and one that few IOMMUs have. */
#define MESSAGE_SECONDS 2.0
#define RARE_MESSAGE_SECONDS 0.2

/* Facts: memory ("unchanged" or "changed", once changed it stays so) and the fault under the given key. */
static bool attempt_write(struct edu *edu, const struct roundtrip *trip, size_t at, const char *key,
			  double seconds)
{
	static bool changed;
	int log = kmsg_open();

	memory_fill_at(edu->window, ATTEMPT, SEED_DEVICE, at);
	edu_write(edu, trip->iova + at, ATTEMPT);
	size_t same = roundtrip_check(trip, trip->addr, false);

	if (same != trip->size && !changed) {
		changed = true;
		nvh_fact_int("changed_at", (long long)same);
	}
	nvh_fact_str("memory", changed ? "changed" : "unchanged");
	nvh_step(true, "the device was told to write");
	bool told = report_fault(log, key, true, seconds);

	close(log);
	return told;
}

static bool attempt_read(struct edu *edu, const struct roundtrip *trip, size_t at)
{
	int log = kmsg_open();
	size_t same = 0;

	memory_fill(trip->addr, trip->size, SEED_CPU); /* a write that was not blocked has spoilt it */
	edu_read(edu, trip->iova + at, ATTEMPT);
	/* The patterns are hashes: one right word in its place is no accident. */
	for (size_t word = 0; word + 8 <= ATTEMPT; word += 8)
		same += memory_check_at(edu->window + word, 8, SEED_CPU, at + word) == 8;
	nvh_fact_str("read", same ? "arrived" : "blocked");
	nvh_step(true, "the device was told to read");
	bool told = report_fault(log, "read_fault", false, same ? RARE_MESSAGE_SECONDS : MESSAGE_SECONDS);

	close(log);
	return told || same; /* what has arrived is no fault, however often it is asked for */
}

static void attempt(struct edu *edu, const struct roundtrip *trip, size_t at, bool write)
{
	for (int i = 0; i < 2; i++) {
		if (write ? attempt_write(edu, trip, at, "write_fault", MESSAGE_SECONDS) : attempt_read(edu, trip, at))
			return;
		if (i == 0)
			nvh_sleep(RATE_LIMIT_SECONDS);
	}
}

/*
 * Other memory at an IOVA that the device has just used: it must see that and leave the old alone,
 * whatever translations it or the IOMMU have kept.
 */
static void use_other_memory(const struct vfio *vfio, struct edu *edu, const struct roundtrip *trip,
			     const struct source *source, size_t size)
{
	struct roundtrip other = {.iova = trip->iova, .size = size, .mapped = size};
	struct mapping memory;
	int err = memory_map(&memory, source, size, 0, PROT_READ | PROT_WRITE, NULL);

	if (err)
		nvh_bail("mmap of %s: %s", source_text, nvh_errname(err));
	other.addr = memory.addr;
	memory_fill(trip->addr, trip->size, SEED_DEVICE);
	memory_fill(other.addr, other.size, SEED_CPU);
	map(vfio, &other, true);
	roundtrip_read(edu, &other);
	/* What the device writes is not what the old memory holds now. */
	memory_fill(trip->addr, trip->size, SEED_CPU);
	roundtrip_write(edu, &other);
	nvh_fact_str("memory", roundtrip_check(trip, trip->addr, false) == trip->size ? "unchanged" : "changed");
	unmap(vfio, &other);
	memory_unmap(&memory);
}

int main(int argc, char **argv)
{
	struct mapping memory;
	struct source source, first;
	struct vfio vfio;
	struct edu edu;
	int err;

	nvh_options(argc, argv, "Let a device touch what it must not.", options);
	source_parse(source_text, &source);
	int which = nvh_choice("case", case_text, case_words);
	size_t at = memory_page() - 504;
	size_t size = nvh_size("size", size_text);
	struct roundtrip trip = {.iova = nvh_size("iova", iova_text), .size = size};

	enum vfio_backend backend = nvh_choice("type", type_text, vfio_backend_words);

	if (trip.size < 0x2000 || trip.iova < WINDOW_IOVA + EDU_WINDOW || trip.iova + trip.size > EDU_IOVA_END)
		nvh_usage("--size 8K or more, --iova between 17 MiB and 256 MiB");

	first = source;
	if (which == CASE_REMAP) {
		first = (struct source){.kind = SOURCE_ANON};
		trip.size = size < BEFORE_REMAP ? size : BEFORE_REMAP;
	}
	nvh_begin("vfio_fault");
	vfio_open(&vfio, device, backend);
	edu_open(&edu, &vfio, WINDOW_IOVA);
	err = memory_map(&memory, &first, trip.size, 0, PROT_READ | PROT_WRITE, NULL);
	if (err)
		nvh_bail("mmap of %s: %s", source_text, nvh_errname(err));
	trip.addr = memory.addr;
	memory_fill(trip.addr, trip.size, SEED_CPU);

	if (which != CASE_READ_ONLY && which != CASE_WRITE_ONLY) {
		/* Real traffic first, so that the IOMMU has the writable translation cached. */
		map(&vfio, &trip, true);
		roundtrip_write(&edu, &trip);
		memory_fill(trip.addr, trip.size, SEED_CPU);
		unmap(&vfio, &trip);
	}
	if (which == CASE_REMAP) {
		use_other_memory(&vfio, &edu, &trip, &source, size);
	} else if (which == CASE_AFTER_UNMAP) {
		attempt(&edu, &trip, at, true);
		attempt(&edu, &trip, at, false);
		/* The end of the range as well: a flush may have covered a part of it. */
		attempt_write(&edu, &trip, trip.size - ATTEMPT, "last_write_fault", MESSAGE_SECONDS);
	} else if (which == CASE_WRITE_ONLY) {
		map_write_only(&vfio, &trip);
		/* The read comes first, as below the write does. */
		attempt(&edu, &trip, at, false);
		memory_fill(trip.addr, trip.size, SEED_CPU);
		roundtrip_write(&edu, &trip);
		unmap(&vfio, &trip);
	} else {
		map(&vfio, &trip, false);
		/*
		 * The write comes first: QEMU's intel-iommu reports a fault when it walks the page tables,
		 * and not when its own IOTLB already says that the page is read-only.
		 */
		attempt(&edu, &trip, at, true);
		roundtrip_read(&edu, &trip);
		attempt_write(&edu, &trip, at, "cached_write_fault", RARE_MESSAGE_SECONDS);
		unmap(&vfio, &trip);
	}
	memory_unmap(&memory);
	edu_close(&edu);
	vfio_close(&vfio);
	return nvh_end();
}
