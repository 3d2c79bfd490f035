/*
 * DMA mappings with IOVA ranges that must be refused (V15, V16), and what a refusal leaves behind.
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

static const char *device;
static const char *type_text = "type1v2";

static const struct nvh_option options[] = {
	{"device", &device, NULL, "PCI address of an edu that is bound to vfio-pci"},
	{"type", &type_text, NULL, VFIO_BACKEND_HELP},
	{0},
};

/* Maps and, when that worked, unmaps again, so that each case starts from nothing. */
static void attempt(const struct vfio *vfio, const char *key, uint8_t *addr, uint64_t iova, uint64_t size)
{
	uint64_t unmapped = 0;
	int err = vfio_map(vfio, addr, iova, size, true);

	nvh_fact_errno(key, err);
	nvh_step(true, "%s: IOVA 0x%llx, 0x%llx bytes: %s", key, (unsigned long long)iova, (unsigned long long)size,
		 nvh_errname(err));
	if (!err)
		vfio_unmap(vfio, iova, size, &unmapped);
}

int main(int argc, char **argv)
{
	struct mapping memory;
	struct vfio vfio;
	struct edu edu;
	uint64_t unmapped;
	int err;

	nvh_options(argc, argv, "Map IOVA ranges for DMA that must be refused.", options);
	enum vfio_backend backend = nvh_choice("type", type_text, vfio_backend_words);

	nvh_begin("vfio_ranges");
	vfio_open(&vfio, device, backend);
	edu_open(&edu, &vfio, WINDOW_IOVA);
	err = memory_map(&memory, &(struct source){.kind = SOURCE_ANON}, SIZE, 0, PROT_READ | PROT_WRITE, NULL);
	if (err)
		nvh_bail("mmap: %s", nvh_errname(err));
	uint8_t *addr = memory.addr;

	nvh_fact_int("locked_before", memory_status("VmLck"));
	attempt(&vfio, "good", addr, IOVA, SIZE);
	attempt(&vfio, "msi_window", addr, 0xfee00000ULL, PAGE);
	attempt(&vfio, "across_msi_window", addr, 0xfee00000ULL - SIZE / 2, SIZE);
	attempt(&vfio, "beyond_width", addr, 1ULL << 60, SIZE);
	attempt(&vfio, "misaligned_iova", addr, IOVA + 0x800, SIZE);
	attempt(&vfio, "misaligned_address", addr + 0x800, IOVA, SIZE / 2);
	attempt(&vfio, "misaligned_size", addr, IOVA, SIZE - 0x800);
	attempt(&vfio, "size_zero", addr, IOVA, 0);
	attempt(&vfio, "wrap", addr, UINT64_MAX - PAGE + 1, 2 * PAGE);

	err = vfio_map(&vfio, addr, IOVA, SIZE, true);
	if (err)
		nvh_bail("VFIO_IOMMU_MAP_DMA: %s", nvh_errname(err));
	nvh_fact_errno("twice", vfio_map(&vfio, addr, IOVA, SIZE, true));
	nvh_fact_errno("overlap", vfio_map(&vfio, addr, IOVA + SIZE - PAGE, SIZE, true));
	nvh_step(true, "mapped the same IOVA twice, and an overlapping range");
	nvh_fact_errno("partial_unmap", vfio_unmap(&vfio, IOVA, SIZE / 2, &unmapped));
	nvh_fact_int("partial_unmapped", (long long)unmapped);
	nvh_step(true, "unmap of half of it: %llu bytes", (unsigned long long)unmapped);
	if (unmapped == 0) {
		/* type1 lets go of the whole mapping where type1v2 refuses to split it. */
		const size_t at = SIZE / 2 + PAGE - 504;

		memory_fill(addr, SIZE, 1);
		edu_read(&edu, IOVA + at, 1000);
		nvh_fact_str("still_mapped", memory_check_at(edu.window, 1000, 1, at) == 1000 ? "equal" : "differs");
	}
	nvh_fact_errno("misaligned_unmap", vfio_unmap(&vfio, IOVA, SIZE - 0x800, &(uint64_t){0}));
	nvh_fact_errno("unmap", vfio_unmap(&vfio, IOVA, SIZE, &unmapped));
	nvh_fact_int("unmapped", (long long)unmapped);
	nvh_step(true, "unmapped all: %llu bytes", (unsigned long long)unmapped);
	nvh_fact_int("locked_after", memory_status("VmLck"));
	memory_unmap(&memory);
	edu_close(&edu);
	vfio_close(&vfio);
	return nvh_end();
}
