/*
 * Maps memory of any source for DMA through VFIO (V1-V10, V17) and reports what came of it.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "edu.h"
#include "memory.h"
#include "nvh.h"
#include "probe.h"
#include "refcount.h"
#include "roundtrip.h"
#include "uring.h"
#include "vfio.h"

/* edu's own window lies below the memory under test; see --iova. */
#define WINDOW_IOVA 0x1000000ULL
/* What is filled and checked of a larger mapping: hashing 1 GiB takes too long under TCG. */
#define CHECKED (64UL << 20)

enum { PROT_WORD_NONE, PROT_WORD_R, PROT_WORD_RW };
enum { TOUCH_NONE, TOUCH_READ, TOUCH_WRITE };

static const char *const prot_words[] = {"none", "r", "rw", NULL};
static const char *const dma_words[] = {"r", "rw", NULL};
static const char *const touch_words[] = {"none", "read", "write", NULL};

static const char *device;
static const char *source_text = "anon";
static const char *size_text = "2M";
static const char *offset_text = "0";
static const char *iova_text = "0x4000000";
static const char *prot_text = "rw";
static const char *dma_text = "rw";
static const char *touch_text = "none";
static const char *type_text = "type1v2";
static const char *lead_text = "0";
static const char *skip_text = "0";
static const char *seed_text = "0";
static const char *memlock_text;
static bool dma_test;
static bool truncate_test;
static bool unmapped_test;
static bool look;
static bool uring;
static bool fork_test;
static bool reattach_test;

static const struct nvh_option options[] = {
	{"device", &device, NULL, "PCI address of an edu that is bound to vfio-pci"},
	{"source", &source_text, NULL, SOURCE_HELP " (default anon)"},
	{"size", &size_text, NULL, "bytes to map (default 2M)"},
	{"offset", &offset_text, NULL, "file offset of the mapping (default 0)"},
	{"iova", &iova_text, NULL, "where the device sees it (default 64 MiB; edu reaches up to 256 MiB)"},
	{"prot", &prot_text, NULL, "of the mmap: none, r, rw (default rw)"},
	{"dma", &dma_text, NULL, "of the DMA mapping: r, rw (default rw)"},
	{"touch", &touch_text, NULL, "before mapping for DMA: none, read, write (default none)"},
	{"type", &type_text, NULL, VFIO_BACKEND_HELP},
	{"lead", &lead_text, NULL, "bytes of touched anonymous memory in front, in the same DMA mapping"},
	{"skip", &skip_text, NULL, "bytes at the start of the memory that are not mapped for DMA"},
	{"seed", &seed_text, NULL, "of the patterns: two guests with seeds of their own share none (default 0)"},
	{"memlock", &memlock_text, NULL, "RLIMIT_MEMLOCK in bytes, and no CAP_IPC_LOCK"},
	{"dma-test", NULL, &dma_test, "the device reads and, with --dma rw, writes patterns"},
	{"truncate", NULL, &truncate_test, "truncate the file while all is still open"},
	{"unmapped", NULL, &unmapped_test, "munmap the memory before mapping it for DMA"},
	{"uring", NULL, &uring, "register the memory as an io_uring buffer first, and let go of it"},
	{"fork", NULL, &fork_test, "have a child that shares the memory from then on, once it is mapped for DMA"},
	{"reattach", NULL, &reattach_test, "iommufd: detach the device from the mappings and attach it to them again"},
	{"look", NULL, &look, "only report the pages' reference counts: map nothing for DMA"},
	{0},
};

static struct source source;
static struct mapping memory;
static struct roundtrip trip;
static struct probe probe;
static bool probe_works;

/* Lets the source hold the CPU's pattern without touching it through the mapping under test. */
static void prepare(off_t offset)
{
	struct source view = source;
	struct mapping mapping;
	const char *failed = "mmap";
	int err;

	if (source.kind != SOURCE_FILE && source.kind != SOURCE_DAX)
		return;
	view.private = false;
	view.readonly = false;
	if (source.kind == SOURCE_DAX) {
		err = memory_map(&mapping, &view, memory.size, offset, PROT_READ | PROT_WRITE, &failed);
	} else {
		err = memory_map(&mapping, &(struct source){.private = true}, trip.size, 0, PROT_READ | PROT_WRITE,
				 &failed);
	}
	if (err) {
		nvh_note("the pattern could not be laid out: %s: %s", failed, nvh_errname(err));
		return;
	}
	memory_fill(mapping.addr, trip.size, SEED_CPU);
	if (source.kind == SOURCE_FILE) {
		/* write(2), not mmap: the pages are not in any page table before the test touches them. */
		int fd = open(source.path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

		for (size_t at = 0; fd >= 0 && at < trip.size;) {
			ssize_t put = pwrite(fd, (char *)mapping.addr + at, trip.size - at, offset + (off_t)at);

			if (put <= 0)
				nvh_bail("write %s: %s", source.path, nvh_errname(errno));
			at += (size_t)put;
		}
		if (fd < 0 || fsync(fd) < 0)
			nvh_bail("write %s: %s", source.path, nvh_errname(errno));
		close(fd);
	}
	memory_unmap(&mapping);
}

/* Moves the mapping behind fresh anonymous memory, so that one DMA mapping covers both. */
static void *put_lead(size_t lead)
{
	const size_t huge = 2UL << 20;
	char *room = mmap(NULL, lead + memory.size + 2 * huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *at;

	if (room == MAP_FAILED)
		nvh_bail("mmap: %s", nvh_errname(errno));
	at = (char *)(((uintptr_t)room + lead + huge - 1) / huge * huge);
	if (mmap(at - lead, lead, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		nvh_bail("mmap of the lead: %s", nvh_errname(errno));
	if (mremap(memory.addr, memory.size, memory.size, MREMAP_MAYMOVE | MREMAP_FIXED, at) == MAP_FAILED)
		nvh_bail("mremap behind the lead: %s", nvh_errname(errno));
	memory.addr = at;
	trip.addr = (uint8_t *)at;
	memory_touch(at - lead, lead, true);
	return at - lead;
}

static void touch(int how, int prot)
{
	int signum = 0;

	if (how == TOUCH_NONE)
		return;
	if (!(prot & (how == TOUCH_WRITE ? PROT_WRITE : PROT_READ)))
		nvh_usage("--touch %s needs --prot %s", touch_text, how == TOUCH_WRITE ? "rw" : "r or rw");
	if (how == TOUCH_READ) {
		signum = memory_touch_safely(memory.addr, memory.size, false);
	} else if (source.kind == SOURCE_FILE && source.private) {
		/* Whole pages of another pattern: that the file keeps the first one proves the copies. */
		memory_fill(memory.addr, trip.size, SEED_DEVICE);
		bool copied = memory_check(memory.addr, trip.size, SEED_DEVICE) == trip.size;

		roundtrip_elsewhere(&trip, &source, memory.offset, false);
		nvh_fact_bool("private_written", copied);
		memory_fill(memory.addr, trip.size, SEED_CPU);
	} else {
		memory_fill(memory.addr, trip.size, SEED_CPU);
		signum = memory_touch_safely(memory.addr, memory.size, true);
	}
	if (signum)
		nvh_bail("a touch of the mapping ended in signal %d (%s)", signum, strsignal(signum));
}

/* The reference counts of the first, middle and last page; with fresh the pages are found anew. */
static void probe_refcounts(const char *key, const void *start, size_t size, bool fresh)
{
	struct probe before = probe;

	if (!probe_works || (fresh && !probe_find(&probe, start, size)))
		return;
	if (probe_fact(&probe, key) && fresh)
		nvh_fact_int("pages_moved", (long long)probe_moved(&probe, &before));
}

/* The pages that hold the IOMMUs' tables, since v6.11; each CPU's part is added up first. */
static void report_iommu_pages(const char *key)
{
	FILE *file = fopen("/proc/sys/vm/stat_refresh", "w");
	char line[128];
	long pages;

	if (file) {
		fputs("1", file);
		fclose(file);
	}
	file = fopen("/proc/vmstat", "r");
	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "nr_iommu_pages %ld", &pages) == 1)
			nvh_fact_int(key, pages);
	}
	if (file)
		fclose(file);
}

/* Where there are movable zones: how many of the pages lie in one. */
static void report_movable(const char *key, const void *start, size_t size)
{
	long pages = memory_movable(start, size);

	if (pages >= 0)
		nvh_fact_int(key, pages);
}

/*
 * The part of a refused mapping that had been pinned and mapped before the refusal: does the device
 * still reach it?  When all is well the IOMMU reports a fault.
 */
static void check_lead_unreachable(struct edu *edu, void *lead, uint64_t iova)
{
	size_t same = 0;

	memory_fill(lead, memory_page(), SEED_CPU);
	edu_read(edu, iova, 1000);
	for (size_t word = 0; word < 1000; word += 8)
		same += memory_check_at(edu->window + word, 8, SEED_CPU, word) == 8;
	nvh_fact_str("refused_read", same ? "arrived" : "blocked");
	nvh_step(true, "the device was told to read from the refused range");
}

/* After a refused mapping: is anything left in the IOVA range, and can the range be used? */
static void check_nothing_left(const struct vfio *vfio, uint64_t iova, uint64_t size)
{
	struct mapping other;
	uint64_t unmapped;
	int err = vfio_unmap(vfio, iova, size, &unmapped);

	nvh_fact_int("left_mapped", (long long)unmapped);
	nvh_step(true, "unmap after the refusal: %s, %llu bytes", nvh_errname(err), (unsigned long long)unmapped);
	err = memory_map(&other, &(struct source){.kind = SOURCE_ANON}, 2 * memory_page(), 0, PROT_READ | PROT_WRITE,
			 NULL);
	if (err)
		nvh_bail("mmap: %s", nvh_errname(err));
	err = vfio_map(vfio, other.addr, iova, other.size, true);
	nvh_fact_errno("reuse", err);
	nvh_step(true, "anonymous memory at the same IOVA: %s", nvh_errname(err));
	if (!err)
		vfio_unmap(vfio, iova, other.size, &unmapped);
	memory_unmap(&other);
}

static void use_mapping(struct edu *edu, int prot, bool write)
{
	bool elsewhere = source.kind == SOURCE_FILE || source.kind == SOURCE_DAX;

	if (prot & PROT_WRITE)
		memory_fill(trip.addr, trip.size, SEED_CPU);
	roundtrip_read(edu, &trip);
	if (write)
		roundtrip_write(edu, &trip);
	if (elsewhere)
		roundtrip_elsewhere(&trip, &source, memory.offset, write && !source.private);
	nvh_step(true, "the device %s the memory", write ? "read and wrote" : "read");
}

/* What is mapped stays so in the I/O address space; no page table is there to need the pages pinned. */
static void reattach(const struct vfio *vfio, const void *start, size_t length)
{
	int err = vfio_detach(vfio);

	nvh_fact_errno("detach", err);
	probe_refcounts("refs_detached", start, length, false);
	nvh_fact_int("pinned_detached", memory_status("VmPin"));
	err = err ? err : vfio_attach(vfio);
	if (!nvh_step(!err, "detached the device and attached it again: %s", nvh_errname(err)))
		nvh_bail("the device could not be detached and attached: %s", nvh_errname(err));
}

/* With a limit of locked memory: is there room for it once more? */
static void map_again(const struct vfio *vfio, void *start, uint64_t iova, size_t length, bool write)
{
	uint64_t unmapped;
	int err = vfio_map(vfio, start, iova, length, write);

	nvh_fact_errno("map_again", err);
	nvh_step(true, "mapping it once more: %s", nvh_errname(err));
	if (!err)
		vfio_unmap(vfio, iova, length, &unmapped);
}

/* A child that does nothing: what was private memory of one process is copy-on-write now. */
static pid_t fork_idle(void)
{
	pid_t child = fork();

	if (child < 0)
		nvh_bail("fork: %s", nvh_errname(errno));
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	nvh_step(true, "forked a child");
	return child;
}

int main(int argc, char **argv)
{
	static const int prots[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE};
	const char *failed = NULL;
	struct vfio vfio;
	struct edu edu;
	uint64_t unmapped;
	pid_t child = 0;
	int err;

	nvh_options(argc, argv, "Map memory for DMA by a device behind the IOMMU.", options);
	source_parse(source_text, &source);
	size_t size = nvh_size("size", size_text);
	off_t offset = (off_t)nvh_size("offset", offset_text);
	uint64_t iova = nvh_size("iova", iova_text);
	size_t lead = nvh_size("lead", lead_text);
	size_t skip = nvh_size("skip", skip_text);
	int prot = prots[nvh_choice("prot", prot_text, prot_words)];
	bool write = nvh_choice("dma", dma_text, dma_words) == 1;
	int touch_how = nvh_choice("touch", touch_text, touch_words);
	enum vfio_backend backend = nvh_choice("type", type_text, vfio_backend_words);
	uint64_t seed = nvh_size("seed", seed_text);

	if (size == 0)
		nvh_usage("--size 0");
	if (skip >= size || (skip && (lead || source.kind == SOURCE_FILE || source.kind == SOURCE_DAX)))
		nvh_usage("--skip %s: less than --size, of memory that is no file, and without --lead", skip_text);
	if (reattach_test && backend != VFIO_BACKEND_IOMMUFD)
		nvh_usage("--reattach needs --type iommufd");
	if (seed > UINT32_MAX)
		nvh_usage("--seed %s is more than 32 bits", seed_text);
	if (truncate_test && (source.kind != SOURCE_FILE || source.readonly))
		nvh_usage("--truncate needs a --source file:PATH that is not :ro");
	if (dma_test && (iova + lead + 0x1000 > EDU_IOVA_END || !(prot & PROT_READ) || size - skip < 0x1000))
		nvh_usage("--dma-test needs --prot r or rw, 4K or more and an IOVA below 256 MiB");
	if (dma_test && iova < WINDOW_IOVA + EDU_WINDOW && iova + lead + size > WINDOW_IOVA)
		nvh_usage("the mapping overlaps the window of the device at 16 MiB");

	nvh_begin("vfio_map");
	memory_seed((uint32_t)seed);
	report_iommu_pages("iommu_pages_first");
	vfio_open(&vfio, device, backend);
	edu_open(&edu, &vfio, WINDOW_IOVA);
	probe_works = refcount_open();
	nvh_fact_str("source", source_text);
	size_t length = lead + size - skip;

	nvh_fact_int("size", (long long)length);
	memory.size = size;
	trip = (struct roundtrip){.iova = iova + lead, .size = size - skip, .mapped = size};
	if (trip.size > CHECKED)
		trip.size = CHECKED;
	prepare(offset);
	err = memory_map(&memory, &source, size, offset, prot, &failed);
	nvh_fact_errno("mmap", err);
	if (err) {
		nvh_fact_str("failed", failed);
		nvh_step(true, "%s: %s", failed, nvh_errname(err));
		return nvh_end();
	}
	trip.addr = (uint8_t *)memory.addr + skip;
	if (memory.fd >= 0 && source.kind == SOURCE_FILE) {
		nvh_fact_int("dax", memory_is_dax(memory.fd));
		nvh_note("STATX_ATTR_DAX: %d", memory_is_dax(memory.fd));
	}
	void *start = lead ? put_lead(lead) : trip.addr;

	touch(touch_how, prot);
	if (unmapped_test)
		munmap(memory.addr, memory.size);
	if (memlock_text)
		memory_limit_locked(nvh_size("memlock", memlock_text));
	if (!unmapped_test)
		probe_refcounts("refs_before", start, length, true);
	report_movable("movable_before", start, length);
	nvh_fact_int("locked_before", memory_status("VmLck"));
	nvh_fact_int("pinned_before", memory_status("VmPin"));

	if (uring) {
		nvh_fact_errno("uring", uring_register(start, length));
		nvh_step(true, "IORING_REGISTER_BUFFERS");
	}
	if (look) {
		nvh_step(true, "looked at the reference counts");
		return nvh_end();
	}
	report_iommu_pages("iommu_pages_before");
	double begin = nvh_now();

	err = vfio_map(&vfio, start, iova, length, write);
	nvh_fact_seconds("map_seconds", nvh_now() - begin);
	nvh_fact_errno("map", err);
	nvh_step(true, "mapping %zu bytes for DMA: %s", length, nvh_errname(err));
	nvh_fact_int("locked_mapped", memory_status("VmLck"));
	nvh_fact_int("pinned_mapped", memory_status("VmPin"));
	if (err) {
		if (lead)
			check_lead_unreachable(&edu, start, iova);
		check_nothing_left(&vfio, iova, length);
		nvh_fact_int("locked_after", memory_status("VmLck"));
		nvh_fact_int("pinned_after", memory_status("VmPin"));
		probe_refcounts("refs_after", start, length, false);
	} else {
		probe_refcounts("refs_mapped", start, length, true);
		report_movable("movable_mapped", start, length);
		report_iommu_pages("iommu_pages_mapped");
		if (reattach_test)
			reattach(&vfio, start, length);
		if (fork_test)
			child = fork_idle();
		if (dma_test)
			use_mapping(&edu, prot, write);
		if (child > 0) {
			kill(child, SIGKILL);
			waitpid(child, NULL, 0);
		}
	}
	if (truncate_test)
		probe_truncate(memory.fd);
	if (!err) {
		begin = nvh_now();
		err = vfio_unmap(&vfio, iova, length, &unmapped);
		nvh_fact_seconds("unmap_seconds", nvh_now() - begin);
		nvh_fact_errno("unmap", err);
		nvh_fact_int("unmapped", (long long)unmapped);
		nvh_step(true, "unmap: %s, %llu bytes", nvh_errname(err), (unsigned long long)unmapped);
		nvh_fact_int("locked_after", memory_status("VmLck"));
		nvh_fact_int("pinned_after", memory_status("VmPin"));
		probe_refcounts("refs_after", start, length, false);
		if (memlock_text)
			map_again(&vfio, start, iova, length, write);
	}
	if (unmapped_test)
		memory.addr = NULL;
	memory_unmap(&memory);
	edu_close(&edu);
	vfio_close(&vfio);
	report_iommu_pages("iommu_pages_last");
	return nvh_end();
}
