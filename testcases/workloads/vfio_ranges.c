/*
 * DMA mappings with IOVA ranges that must be refused (V15, V16), unmaps of parts and of many mappings
 * at once, and what each leaves behind.
 */
#include <stdint.h>
#include <sys/mman.h>

#include "edu.h"
#include "memory.h"
#include "nvh.h"
#include "vfio.h"

#define WINDOW_IOVA 0x1000000ULL
#define IOVA 0x4000000ULL
#define SIZE (2ULL << 20)
#define PAGE 0x1000ULL
/* What the device reads to see whether it still reaches the mapping: across a page border of its tail. */
#define LOOK_AT (SIZE / 2 + PAGE - 504)
#define LOOK_SIZE 1000
#define ANYWHERE (16 * PAGE)
/* Beyond what a process can have mapped: the range starts in the last page of all. */
#define LAST_PAGE (UINT64_MAX - PAGE + 1)

static const char *device;
static const char *type_text = "type1v2";

static const struct nvh_option options[] = {
	{"device", &device, NULL, "PCI address of an edu that is bound to vfio-pci"},
	{"type", &type_text, NULL, VFIO_BACKEND_HELP},
	{0},
};

static struct vfio vfio;
static struct edu edu;
static uint8_t *addr;

/* Pages that are accounted to this process, in KiB: type1 locks them, iommufd pins them. */
static long accounted(void)
{
	return memory_status("VmLck") + memory_status("VmPin");
}

/* Maps and, when that worked, unmaps again, so that each case starts from nothing. */
static void attempt(const char *key, void *at, uint64_t iova, uint64_t size, unsigned int access)
{
	uint64_t unmapped = 0;
	int err = vfio_map_for(&vfio, at, iova, size, access);

	nvh_fact_errno(key, err);
	nvh_step(true, "%s: IOVA 0x%llx, 0x%llx bytes: %s", key, (unsigned long long)iova, (unsigned long long)size,
		 nvh_errname(err));
	if (!err)
		vfio_unmap(&vfio, iova, size, &unmapped);
}

/* Facts: the answer, and how many bytes the kernel says it unmapped. */
static uint64_t attempt_unmap(const char *key, const char *bytes, uint64_t iova, uint64_t size)
{
	uint64_t unmapped = 0;
	int err = vfio_try_unmap(&vfio, iova, size, &unmapped);

	nvh_fact_errno(key, err);
	if (bytes)
		nvh_fact_int(bytes, (long long)unmapped);
	nvh_step(true, "%s: IOVA 0x%llx, 0x%llx bytes: %s, %llu unmapped", key, (unsigned long long)iova,
		 (unsigned long long)size, nvh_errname(err), (unsigned long long)unmapped);
	return unmapped;
}

static void map_or_bail(uint64_t iova, uint64_t offset, uint64_t size)
{
	int err = vfio_map(&vfio, addr + offset, iova, size, true);

	if (err)
		nvh_bail("VFIO_IOMMU_MAP_DMA: %s", nvh_errname(err));
}

/* "equal" when the device reads what is there, "blocked" when it reads nothing of it. */
static void look(const char *key)
{
	size_t same = 0;

	edu_read(&edu, IOVA + LOOK_AT, LOOK_SIZE);
	for (size_t word = 0; word < LOOK_SIZE; word += 8)
		same += memory_check_at(edu.window + word, 8, 1, LOOK_AT + word) == 8;
	nvh_fact_str(key, same == LOOK_SIZE / 8 ? "equal" : same ? "differs" : "blocked");
}

static void unmap_parts(void)
{
	long before = accounted();
	uint64_t unmapped;

	map_or_bail(IOVA, 0, SIZE);
	nvh_fact_int("accounted_mapped", accounted() - before);
	nvh_fact_errno("twice", vfio_map(&vfio, addr, IOVA, SIZE, true));
	nvh_fact_errno("overlap", vfio_map(&vfio, addr, IOVA + SIZE - PAGE, SIZE, true));
	nvh_fact_errno("inside", vfio_map(&vfio, addr, IOVA + PAGE, PAGE, true));
	nvh_step(true, "mapped the same IOVA twice, an overlapping range and one inside");
	memory_fill(addr, SIZE, 1);
	attempt_unmap("misaligned_unmap", NULL, IOVA, SIZE - 0x800);
	attempt_unmap("misaligned_iova_unmap", NULL, IOVA + 0x800, SIZE);
	attempt_unmap("size_zero_unmap", NULL, IOVA, 0);
	attempt_unmap("unmap_wrap", NULL, LAST_PAGE, 2 * PAGE);
	attempt_unmap("tail_unmap", "tail_unmapped", IOVA + SIZE / 2, SIZE / 2);
	nvh_fact_int("accounted_tail", accounted() - before);
	look("still_mapped");
	unmapped = attempt_unmap("partial_unmap", "partial_unmapped", IOVA, SIZE / 2);
	nvh_fact_int("accounted_partial", accounted() - before);
	look("after_partial");
	if (unmapped == 0)
		attempt_unmap("unmap", "unmapped", IOVA, SIZE);
	nvh_fact_int("accounted_unmapped", accounted() - before);
	attempt_unmap("again", "again_unmapped", IOVA, SIZE);
}

/* Three mappings with gaps between them, unmapped by one call. */
static void unmap_many(void)
{
	long before = accounted();

	map_or_bail(IOVA, 0, 4 * PAGE);
	map_or_bail(IOVA + 8 * PAGE, 16 * PAGE, 2 * PAGE);
	map_or_bail(IOVA + 16 * PAGE, 32 * PAGE, PAGE);
	nvh_fact_int("accounted_many", accounted() - before);
	attempt_unmap("bisect_unmap", "bisect_unmapped", IOVA + PAGE, 63 * PAGE);
	nvh_fact_int("accounted_bisected", accounted() - before);
	attempt_unmap("many_unmap", "many_unmapped", IOVA, 64 * PAGE);
	nvh_fact_int("accounted_gone", accounted() - before);
}

/* Twice where the kernel likes; then all that the device reaches goes at once, its window too. */
static void map_anywhere(void)
{
	long before = accounted();
	uint64_t iova = 0, other = 0;

	nvh_fact_errno("anywhere", vfio_map_anywhere(&vfio, addr, &iova, ANYWHERE));
	nvh_fact_errno("anywhere_again", vfio_map_anywhere(&vfio, addr + ANYWHERE, &other, ANYWHERE));
	nvh_fact_bool("apart", iova + ANYWHERE <= other || other + ANYWHERE <= iova);
	nvh_step(true, "mapped at 0x%llx and 0x%llx", (unsigned long long)iova, (unsigned long long)other);
	nvh_fact_int("accounted_anywhere", accounted() - before);
	attempt_unmap("unmap_all", "all_unmapped", 0, UINT64_MAX);
	nvh_fact_int("accounted_none", accounted());
}

int main(int argc, char **argv)
{
	const unsigned int both = VFIO_DMA_READ | VFIO_DMA_WRITE;
	struct mapping memory;
	int err;

	nvh_options(argc, argv, "Map IOVA ranges for DMA that must be refused, and unmap parts and many.", options);
	enum vfio_backend backend = nvh_choice("type", type_text, vfio_backend_words);

	nvh_begin("vfio_ranges");
	vfio_open(&vfio, device, backend);
	edu_open(&edu, &vfio, WINDOW_IOVA);
	err = memory_map(&memory, &(struct source){.kind = SOURCE_ANON}, SIZE, 0, PROT_READ | PROT_WRITE, NULL);
	if (err)
		nvh_bail("mmap: %s", nvh_errname(err));
	addr = memory.addr;

	nvh_fact_int("locked_before", accounted());
	attempt("good", addr, IOVA, SIZE, both);
	attempt("msi_window", addr, 0xfee00000ULL, PAGE, both);
	attempt("across_msi_window", addr, 0xfee00000ULL - SIZE / 2, SIZE, both);
	attempt("beyond_width", addr, 1ULL << 60, SIZE, both);
	attempt("misaligned_iova", addr, IOVA + 0x800, SIZE, both);
	attempt("misaligned_address", addr + 0x800, IOVA, SIZE / 2, both);
	attempt("misaligned_size", addr, IOVA, SIZE - 0x800, both);
	attempt("size_zero", addr, IOVA, 0, both);
	attempt("no_access", addr, IOVA, SIZE, 0);
	attempt("wrap", addr, LAST_PAGE, 2 * PAGE, both);
	attempt("address_wrap", (void *)LAST_PAGE, IOVA, 2 * PAGE, both);
	unmap_parts();
	unmap_many();
	nvh_fact_int("locked_after", accounted());
	if (backend == VFIO_BACKEND_IOMMUFD)
		map_anywhere();
	memory_unmap(&memory);
	edu_close(&edu);
	vfio_close(&vfio);
	return nvh_end();
}
