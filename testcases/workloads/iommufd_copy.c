/*
 * A mapping of iommufd copied to other IOVAs (V20): what it leads to, who keeps the pages pinned, what a
 * copy must not be, an address space that is in use, and a device that is moved to another one.
 */
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "edu.h"
#include "iommufd.h"
#include "memory.h"
#include "nvh.h"
#include "probe.h"
#include "refcount.h"
#include "vfio.h"

#define WINDOW_IOVA 0x1000000ULL
#define IOVA 0x4000000ULL
#define COPY_IOVA 0x5000000ULL
#define PART_IOVA 0x6000000ULL
#define SIZE 0x40000UL
#define PART_AT (SIZE / 2)
#define READ IOMMU_IOAS_MAP_READABLE
#define BOTH (IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE)
#define SEED 1
#define SEED_DEVICE 2

static const char *device;
static const char *type_text = "iommufd";

static const struct nvh_option options[] = {
	{"device", &device, NULL, "PCI address of an edu that is bound to vfio-pci"},
	{"type", &type_text, NULL, "iommufd: nothing else copies"},
	{0},
};

static struct vfio vfio;
static struct edu edu;
static struct mapping memory;
static struct probe probe;
static bool counts;

static int copy(uint32_t to, uint64_t dst, uint64_t src, uint64_t size, uint32_t flags)
{
	struct iommu_ioas_copy request = {.size = sizeof(request),
					  .flags = flags | IOMMU_IOAS_MAP_FIXED_IOVA,
					  .dst_ioas_id = to,
					  .src_ioas_id = vfio.ioas,
					  .length = size,
					  .dst_iova = dst,
					  .src_iova = src};

	return ioctl(vfio.container, IOMMU_IOAS_COPY, &request) < 0 ? errno : 0;
}

static int destroy(uint32_t id)
{
	struct iommu_destroy request = {.size = sizeof(request), .id = id};

	return ioctl(vfio.container, IOMMU_DESTROY, &request) < 0 ? errno : 0;
}

static void unmap(const char *key, uint64_t iova, uint64_t size)
{
	uint64_t unmapped;

	nvh_fact_errno(key, vfio_try_unmap(&vfio, iova, size, &unmapped));
}

/* What the device reads at an IOVA: the memory from an offset on, or not. */
static void device_reads(const char *key, uint64_t iova, size_t offset)
{
	edu_read(&edu, iova, EDU_MAX);
	nvh_fact_str(key, memory_check_at(edu.window, EDU_MAX, SEED, offset) == EDU_MAX ? "equal" : "differs");
}

static void look_at_pins(const char *pinned, const char *references)
{
	nvh_fact_int(pinned, memory_status("VmPin"));
	if (counts)
		probe_fact(&probe, references);
}

static void copy_and_unmap(void)
{
	look_at_pins("pinned_before", "refs_before");
	nvh_fact_errno("map", vfio_map(&vfio, memory.addr, IOVA, SIZE, true));
	nvh_fact_errno("copy", copy(vfio.ioas, COPY_IOVA, IOVA, SIZE, BOTH));
	nvh_fact_errno("copy_part", copy(vfio.ioas, PART_IOVA, IOVA + PART_AT, SIZE - PART_AT, READ));
	look_at_pins("pinned_mapped", "refs_mapped");
	device_reads("read_part", PART_IOVA, PART_AT);
	nvh_fact_errno("copy_twice", copy(vfio.ioas, COPY_IOVA, IOVA, SIZE, BOTH));
	nvh_fact_errno("copy_beyond", copy(vfio.ioas, 0x7000000, IOVA, SIZE + memory_page(), BOTH));
	nvh_fact_errno("copy_nowhere", copy(vfio.ioas, 0x7000000, 0x7000000, SIZE, BOTH));
	nvh_fact_errno("copy_nothing", copy(vfio.ioas, 0x7000000, IOVA, 0, BOTH));
	nvh_fact_errno("copy_no_access", copy(vfio.ioas, 0x7000000, IOVA, SIZE, 0));
	unmap("unmap_part", PART_IOVA, SIZE - PART_AT);
	unmap("unmap_first", IOVA, SIZE);
	look_at_pins("pinned_copy", "refs_copy");
	device_reads("read_copy", COPY_IOVA, 0);
	device_reads("read_first", IOVA, 0);
	memory_fill_at(edu.window, EDU_MAX, SEED_DEVICE, 0);
	edu_write(&edu, COPY_IOVA, EDU_MAX);
	nvh_fact_str("write_copy",
		     memory_check_at(memory.addr, EDU_MAX, SEED_DEVICE, 0) == EDU_MAX ? "equal" : "differs");
	unmap("unmap_copy", COPY_IOVA, SIZE);
	look_at_pins("pinned_after", "refs_after");
	nvh_step(true, "copied and unmapped");
}

/* What the process gave to be read only. */
static void copy_read_only(void)
{
	memory_fill(memory.addr, SIZE, SEED);
	nvh_fact_errno("map_read_only", vfio_map(&vfio, memory.addr, IOVA, SIZE, false));
	nvh_fact_errno("copy_writable", copy(vfio.ioas, COPY_IOVA, IOVA, SIZE, BOTH));
	nvh_fact_errno("copy_read_only", copy(vfio.ioas, PART_IOVA, IOVA, SIZE, READ));
	device_reads("read_read_only", PART_IOVA, 0);
	memory_fill_at(edu.window, EDU_MAX, SEED_DEVICE, 0);
	edu_write(&edu, PART_IOVA, EDU_MAX);
	nvh_fact_str("memory", memory_check(memory.addr, SIZE, SEED) == SIZE ? "unchanged" : "changed");
	unmap("left_writable", COPY_IOVA, SIZE);
	unmap("unmap_read_only", IOVA, SIZE);
	unmap("unmap_copy_read_only", PART_IOVA, SIZE);
	nvh_step(true, "copied what is read only");
}

/* Another address space, that no device uses. */
static void copy_elsewhere(void)
{
	struct iommu_ioas_alloc other = {.size = sizeof(other)};

	if (ioctl(vfio.container, IOMMU_IOAS_ALLOC, &other) < 0)
		nvh_bail("IOMMU_IOAS_ALLOC: %s", nvh_errname(errno));
	nvh_fact_errno("map_again", vfio_map(&vfio, memory.addr, IOVA, SIZE, true));
	nvh_fact_errno("copy_elsewhere", copy(other.out_ioas_id, IOVA, IOVA, SIZE, BOTH));
	unmap("unmap_here", IOVA, SIZE);
	/* No IOMMU needs them any more. */
	look_at_pins("pinned_elsewhere", "refs_elsewhere");
	nvh_fact_errno("destroy_in_use", destroy(vfio.ioas));
	nvh_fact_errno("destroy", destroy(other.out_ioas_id));
	nvh_fact_errno("destroy_again", destroy(other.out_ioas_id));
	nvh_fact_errno("copy_to_destroyed", copy(other.out_ioas_id, IOVA, WINDOW_IOVA, EDU_WINDOW, BOTH));
	nvh_fact_errno("map_at_last", vfio_map(&vfio, memory.addr, IOVA, SIZE, true));
	memory_fill(memory.addr, SIZE, SEED);
	device_reads("read_at_last", IOVA, 0);
	unmap("unmap_at_last", IOVA, SIZE);
	look_at_pins("pinned_end", "refs_end");
	nvh_step(true, "copied to another address space");
}

/*
 * The device goes to an address space where the first half is at another IOVA, and back, and is attached all
 * the time: no page table needs what is mapped only where it is not.
 */
static void move_device(void)
{
	struct iommu_ioas_alloc alloc = {.size = sizeof(alloc)};
	struct vfio other = vfio;

	if (ioctl(vfio.container, IOMMU_IOAS_ALLOC, &alloc) < 0)
		nvh_bail("IOMMU_IOAS_ALLOC: %s", nvh_errname(errno));
	other.ioas = alloc.out_ioas_id;
	nvh_fact_errno("map_to_move", vfio_map(&vfio, memory.addr, IOVA, SIZE, true));
	nvh_fact_errno("copy_window", copy(other.ioas, WINDOW_IOVA, WINDOW_IOVA, EDU_WINDOW, BOTH));
	nvh_fact_errno("copy_half", copy(other.ioas, COPY_IOVA, IOVA, PART_AT, BOTH));
	look_at_pins("pinned_to_move", "refs_to_move");
	nvh_fact_errno("move", vfio_attach(&other));
	look_at_pins("pinned_moved", "refs_moved");
	device_reads("read_moved", COPY_IOVA, 0);
	device_reads("read_only_before", IOVA, 0);
	nvh_fact_errno("destroy_moved_to", destroy(other.ioas));
	nvh_fact_errno("move_back", vfio_attach(&vfio));
	look_at_pins("pinned_back", "refs_back");
	device_reads("read_back", IOVA, 0);
	device_reads("read_only_there", COPY_IOVA, 0);
	nvh_fact_errno("destroy_left", destroy(other.ioas));
	unmap("unmap_moved", IOVA, SIZE);
	look_at_pins("pinned_last", "refs_last");
	nvh_step(true, "moved the device to another address space and back");
}

int main(int argc, char **argv)
{
	int err;

	nvh_options(argc, argv, "Copy mappings of iommufd.", options);
	if (strcmp(type_text, "iommufd") != 0)
		nvh_usage("--type %s: iommufd", type_text);
	nvh_begin("iommufd_copy");
	vfio_open(&vfio, device, VFIO_BACKEND_IOMMUFD);
	edu_open(&edu, &vfio, WINDOW_IOVA);
	err = memory_map(&memory, &(struct source){.kind = SOURCE_MEMFD}, SIZE, 0, PROT_READ | PROT_WRITE, NULL);
	if (err)
		nvh_bail("mmap: %s", nvh_errname(err));
	memory_fill(memory.addr, SIZE, SEED);
	counts = refcount_open() && probe_find(&probe, memory.addr, SIZE);
	copy_and_unmap();
	copy_read_only();
	copy_elsewhere();
	move_device();
	memory_unmap(&memory);
	edu_close(&edu);
	vfio_close(&vfio);
	return nvh_end();
}
