/*
 * What a container says of itself and keeps count of (V15): VFIO_IOMMU_GET_INFO, the number of its
 * mappings, VFIO_DMA_UNMAP_FLAG_ALL, and the bitmap of dirty pages.
 */
#include <errno.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "edu.h"
#include "memory.h"
#include "nvh.h"
#include "vfio.h"

#define WINDOW_IOVA 0x1000000ULL
#define IOVA 0x4000000ULL
#define PAGE 0x1000ULL
#define MSI_WINDOW 0xfee00000ULL
/* No limit that is tried is as high. */
#define MOST_ENTRIES 64

static const char *device;
static const char *type_text = "type1v2";

static const struct nvh_option options[] = {
	{"device", &device, NULL, "PCI address of an edu that is bound to vfio-pci"},
	{"type", &type_text, NULL, "type1 or type1v2 (default type1v2)"},
	{0},
};

static struct vfio vfio;
static uint8_t *addr;

struct info {
	struct vfio_iommu_type1_info head;
	uint8_t capabilities[4096 - sizeof(struct vfio_iommu_type1_info)];
};

/* A capability of the container; NULL when it has none of that id. */
static const void *capability(struct info *info, uint16_t id)
{
	const struct vfio_info_cap_header *header;
	uint32_t at;

	*info = (struct info){.head.argsz = sizeof(*info)};
	if (ioctl(vfio.container, VFIO_IOMMU_GET_INFO, info) < 0)
		nvh_bail("VFIO_IOMMU_GET_INFO: %s", nvh_errname(errno));
	if (!(info->head.flags & VFIO_IOMMU_INFO_CAPS))
		return NULL;
	for (at = info->head.cap_offset; at && at + sizeof(*header) <= sizeof(*info); at = header->next) {
		header = (const void *)((const uint8_t *)info + at);
		if (header->id == id)
			return header;
	}
	return NULL;
}

static long long entries_left(void)
{
	struct info info;
	const struct vfio_iommu_type1_info_dma_avail *avail = capability(&info, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL);

	return avail ? (long long)avail->avail : -1;
}

/* Maps one page at the IOVA and takes it back. */
static void try_page(const char *key, uint64_t iova)
{
	uint64_t unmapped;
	int err = vfio_map(&vfio, addr, iova, PAGE, true);

	nvh_fact_errno(key, err);
	nvh_step(true, "%s: IOVA 0x%llx: %s", key, (unsigned long long)iova, nvh_errname(err));
	if (!err)
		vfio_unmap(&vfio, iova, PAGE, &unmapped);
}

/* The ranges that the container says it can map, and whether it does at their borders. */
static void look_at_ranges(void)
{
	struct info info;
	const struct vfio_iommu_type1_info_cap_iova_range *ranges =
		capability(&info, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE);
	uint64_t last = 0, below = 0;
	bool listed = false, ascending = true;

	nvh_fact_bool("page_size_told", info.head.iova_pgsizes & PAGE);
	nvh_fact_bool("ranges_told", ranges != NULL);
	if (!ranges)
		return;
	nvh_fact_int("ranges", ranges->nr_iovas);
	for (uint32_t i = 0; i < ranges->nr_iovas; i++) {
		uint64_t start = ranges->iova_ranges[i].start, end = ranges->iova_ranges[i].end;

		nvh_note("range 0x%llx to 0x%llx", (unsigned long long)start, (unsigned long long)end);
		ascending &= start <= end && (i == 0 || start > last);
		listed |= start <= MSI_WINDOW && MSI_WINDOW <= end;
		if (end < MSI_WINDOW)
			below = end;
		last = end;
	}
	nvh_fact_bool("ranges_ascend", ascending);
	nvh_fact_bool("msi_window_told", listed);
	try_page("last_page", last + 1 - PAGE);
	try_page("beyond_last", last + 1);
	try_page("below_msi_window", below + 1 - PAGE);
}

/* Maps single pages until the container has enough of them; then all go at once. */
static void fill_with_entries(void)
{
	long locked = memory_status("VmLck");
	long long left = entries_left();
	uint64_t unmapped = 0;
	int err = 0, entries = 0;
	struct vfio_iommu_type1_dma_unmap all = {.argsz = sizeof(all), .flags = VFIO_DMA_UNMAP_FLAG_ALL};
	struct vfio_iommu_type1_dma_unmap part = all;

	nvh_fact_int("entries_left", left);
	while (entries < MOST_ENTRIES) {
		err = vfio_map(&vfio, addr + PAGE * (uint64_t)entries, IOVA + 2 * PAGE * (uint64_t)entries, PAGE, true);
		if (err)
			break;
		entries++;
	}
	nvh_fact_int("entries", entries);
	nvh_fact_errno("too_many", err);
	nvh_fact_int("entries_left_full", entries_left());
	nvh_step(true, "%d mappings, then: %s", entries, nvh_errname(err));
	vfio_unmap(&vfio, IOVA, PAGE, &unmapped);
	nvh_fact_int("entries_left_unmapped", entries_left());
	nvh_fact_errno("map_again", vfio_map(&vfio, addr, IOVA, PAGE, true));
	nvh_fact_int("accounted", memory_status("VmLck") - locked);
	part.iova = IOVA;
	part.size = PAGE;
	nvh_fact_errno("unmap_all_of_a_range", ioctl(vfio.container, VFIO_IOMMU_UNMAP_DMA, &part) < 0 ? errno : 0);
	nvh_fact_errno("unmap_all", ioctl(vfio.container, VFIO_IOMMU_UNMAP_DMA, &all) < 0 ? errno : 0);
	nvh_fact_int("all_unmapped", (long long)all.size);
	nvh_fact_int("entries_left_after", entries_left());
	nvh_fact_int("accounted_after", memory_status("VmLck") - locked);
	nvh_step(true, "unmapped all: %llu bytes", (unsigned long long)all.size);
}

struct get_bitmap {
	struct vfio_iommu_type1_dirty_bitmap head;
	struct vfio_iommu_type1_dirty_bitmap_get get;
};

static int dirty_pages(unsigned int flag)
{
	struct vfio_iommu_type1_dirty_bitmap request = {.argsz = sizeof(request), .flags = flag};

	return ioctl(vfio.container, VFIO_IOMMU_DIRTY_PAGES, &request) < 0 ? errno : 0;
}

static int get_bitmap(uint64_t iova, uint64_t size, uint64_t page, uint64_t *words, uint64_t bytes)
{
	struct get_bitmap request = {
		.head = {.argsz = sizeof(request), .flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP},
		.get = {.iova = iova, .size = size, .bitmap = {.pgsize = page, .size = bytes, .data = (void *)words}},
	};

	return ioctl(vfio.container, VFIO_IOMMU_DIRTY_PAGES, &request) < 0 ? errno : 0;
}

#define UNTOUCHED 0x5555555555555555ULL

static void report_words(const char *key, const uint64_t *words)
{
	char text[80];

	snprintf(text, sizeof(text), "%016llx %016llx %s", (unsigned long long)words[0], (unsigned long long)words[1],
		 words[2] == UNTOUCHED ? "untouched" : "overwritten");
	nvh_fact_str(key, text);
}

/*
 * Two mappings, of pages 0 to 4 and 70 to 72 of a range of 128 pages: the second does not start at a
 * word of the bitmap.  A device that does not tell what it wrote makes every pinned page dirty, always.
 */
static void track_dirty_pages(void)
{
	struct {
		struct vfio_iommu_type1_dma_unmap head;
		struct vfio_bitmap bitmap;
	} unmap = {.head = {.argsz = sizeof(unmap), .flags = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, .iova = IOVA}};
	uint64_t words[3] = {0, 0, UNTOUCHED};
	uint64_t unmapped;
	int err = dirty_pages(VFIO_IOMMU_DIRTY_PAGES_FLAG_START);

	nvh_fact_errno("start", err);
	nvh_step(true, "start of dirty tracking: %s", nvh_errname(err));
	if (err)
		return;
	if (vfio_map(&vfio, addr, IOVA, 5 * PAGE, true) || vfio_map(&vfio, addr, IOVA + 70 * PAGE, 3 * PAGE, true))
		nvh_bail("VFIO_IOMMU_MAP_DMA with dirty tracking: %s", nvh_errname(errno));
	nvh_fact_errno("get", get_bitmap(IOVA, 128 * PAGE, PAGE, words, 16));
	report_words("dirty", words);
	words[0] = words[1] = 0;
	nvh_fact_errno("get_again", get_bitmap(IOVA, 128 * PAGE, PAGE, words, 16));
	report_words("dirty_again", words);
	nvh_fact_errno("get_bisecting", get_bitmap(IOVA, 4 * PAGE, PAGE, words, 8));
	nvh_fact_errno("get_too_small", get_bitmap(IOVA, 128 * PAGE, PAGE, words, 8));
	nvh_fact_errno("get_of_2m", get_bitmap(IOVA, 2UL << 20, 2UL << 20, words, 8));
	nvh_fact_errno("get_misaligned", get_bitmap(IOVA + 0x800, 128 * PAGE, PAGE, words, 16));
	nvh_fact_errno("get_nowhere", get_bitmap(IOVA, 128 * PAGE, PAGE, (uint64_t *)0x1000, 16));
	/* Anew: what the bitmap has become by being asked for is not the unmap's doing. */
	nvh_fact_errno("stop", dirty_pages(VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP));
	nvh_fact_errno("get_stopped", get_bitmap(IOVA, 128 * PAGE, PAGE, words, 16));
	nvh_fact_errno("start_again", dirty_pages(VFIO_IOMMU_DIRTY_PAGES_FLAG_START));
	words[0] = words[1] = 0;
	unmap.head.size = 128 * PAGE;
	unmap.bitmap = (struct vfio_bitmap){.pgsize = PAGE, .size = 16, .data = (void *)words};
	nvh_fact_errno("unmap_dirty", ioctl(vfio.container, VFIO_IOMMU_UNMAP_DMA, &unmap) < 0 ? errno : 0);
	nvh_fact_int("unmapped_dirty", (long long)unmap.head.size);
	report_words("dirty_unmapped", words);
	dirty_pages(VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP);
	vfio_unmap(&vfio, IOVA, 128 * PAGE, &unmapped);
	nvh_step(true, "dirty tracking stopped");
}

int main(int argc, char **argv)
{
	struct mapping memory;
	struct edu edu;
	int err;

	nvh_options(argc, argv, "Ask a container what it can map, fill it with mappings, track dirty pages.", options);
	enum vfio_backend backend = nvh_choice("type", type_text, vfio_backend_words);

	if (backend > VFIO_BACKEND_TYPE1V2)
		nvh_usage("--type %s: type1 or type1v2", type_text);
	nvh_begin("vfio_container");
	vfio_open(&vfio, device, backend);
	edu_open(&edu, &vfio, WINDOW_IOVA);
	err = memory_map(&memory, &(struct source){.kind = SOURCE_ANON}, MOST_ENTRIES * PAGE, 0, PROT_READ | PROT_WRITE,
			 NULL);
	if (err)
		nvh_bail("mmap: %s", nvh_errname(err));
	addr = memory.addr;
	memory_touch(addr, memory.size, true);
	look_at_ranges();
	track_dirty_pages();
	fill_with_entries();
	if (vfio_map(&vfio, addr, IOVA, 16 * PAGE, true))
		nvh_bail("VFIO_IOMMU_MAP_DMA: %s", nvh_errname(errno));
	/* The process lives on, and gets back what the container had locked. */
	vfio_bar_unmap(&edu.bar);
	vfio_close(&vfio);
	nvh_fact_int("accounted_closed", memory_status("VmLck"));
	nvh_step(true, "closed the container with a mapping in place");
	memory_unmap(&memory);
	return nvh_end();
}
