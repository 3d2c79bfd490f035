/*
 * Whose memory a container's mappings are (V15): VFIO_DMA_UNMAP_FLAG_VADDR and VFIO_DMA_MAP_FLAG_VADDR,
 * and a child that has the container by inheritance and unmaps, or takes over, what its parent mapped.
 */
#include <errno.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "edu.h"
#include "memory.h"
#include "nvh.h"
#include "vfio.h"

#define WINDOW_IOVA 0x1000000ULL
#define IOVA 0x4000000ULL
#define SIZE 0x40000UL
/* Right before it. */
#define OTHER_SIZE (SIZE / 4)
#define OTHER_IOVA (IOVA - OTHER_SIZE)
#define SEED_BEFORE 1
#define SEED_ANEW 2

static const char *device;

static const struct nvh_option options[] = {
	{"device", &device, NULL, "PCI address of an edu that is bound to vfio-pci"},
	{0},
};

static struct vfio vfio;
static struct edu edu;
static struct mapping memory;
/* A child unmaps what its parent mapped; makes it its own first; or cannot, as it may lock less. */
enum how { HOW_UNMAP, HOW_TAKE_OVER, HOW_BEYOND_LIMIT };

/* Of the child, for its parent. */
static struct {
	int take_over, unmap;
	long long unmapped;
	long locked_before, locked_mapped, locked_after;
} *child;

/* VmLck of this process, in KiB. */
static long locked(void)
{
	return memory_status("VmLck");
}

static int unmap_vaddr(uint64_t iova, uint64_t size, uint64_t *told)
{
	struct vfio_iommu_type1_dma_unmap request = {
		.argsz = sizeof(request), .flags = VFIO_DMA_UNMAP_FLAG_VADDR, .iova = iova, .size = size};
	int err = ioctl(vfio.container, VFIO_IOMMU_UNMAP_DMA, &request) < 0 ? errno : 0;

	*told = request.size;
	return err;
}

static int map_vaddr(void *addr, uint64_t iova, uint64_t size, uint32_t flags)
{
	struct vfio_iommu_type1_dma_map request = {.argsz = sizeof(request),
						   .flags = VFIO_DMA_MAP_FLAG_VADDR | flags,
						   .vaddr = (uintptr_t)addr,
						   .iova = iova,
						   .size = size};

	return ioctl(vfio.container, VFIO_IOMMU_MAP_DMA, &request) < 0 ? errno : 0;
}

static void map(uint64_t iova, void *addr, uint64_t size)
{
	int err = vfio_map(&vfio, addr, iova, size, true);

	if (err)
		nvh_bail("VFIO_IOMMU_MAP_DMA: %s", nvh_errname(err));
}

static void device_reads(const char *key, uint64_t seed)
{
	memory_fill(memory.addr, SIZE, seed);
	edu_read(&edu, IOVA, EDU_MAX);
	nvh_fact_str(key, memory_check(edu.window, EDU_MAX, seed) == EDU_MAX ? "equal" : "differs");
}

static void change_address(void)
{
	long before = locked();
	uint64_t size, unmapped;
	void *anew;

	map(IOVA, memory.addr, SIZE);
	nvh_fact_errno("valid", map_vaddr(memory.addr, IOVA, SIZE, 0));
	nvh_fact_errno("nowhere", map_vaddr(memory.addr, OTHER_IOVA, OTHER_SIZE, 0));
	nvh_fact_errno("unmap_vaddr", unmap_vaddr(IOVA, SIZE, &size));
	nvh_fact_int("unmap_vaddr_size", (long long)size);
	nvh_fact_errno("unmap_vaddr_twice", unmap_vaddr(IOVA, SIZE, &size));
	nvh_fact_int("accounted_without", locked() - before);
	/* One that has its address beside the one that has none: it keeps it. */
	map(OTHER_IOVA, memory.addr, OTHER_SIZE);
	nvh_fact_errno("unmap_vaddr_of_both", unmap_vaddr(OTHER_IOVA, OTHER_SIZE + SIZE, &size));
	nvh_fact_errno("other_valid", map_vaddr(memory.addr, OTHER_IOVA, OTHER_SIZE, 0));
	vfio_unmap(&vfio, OTHER_IOVA, OTHER_SIZE, &unmapped);

	anew = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memory.fd, 0);
	if (anew == MAP_FAILED)
		nvh_bail("mmap: %s", nvh_errname(errno));
	munmap(memory.addr, SIZE);
	memory.addr = anew;
	device_reads("read_without", SEED_BEFORE);
	nvh_fact_errno("map_again", vfio_map(&vfio, anew, IOVA, SIZE, true));
	nvh_fact_errno("map_vaddr_prot", map_vaddr(anew, IOVA, SIZE, VFIO_DMA_MAP_FLAG_READ));
	nvh_fact_errno("map_vaddr_part", map_vaddr(anew, IOVA, SIZE / 2, 0));
	nvh_fact_errno("map_vaddr", map_vaddr(anew, IOVA, SIZE, 0));
	nvh_fact_errno("map_vaddr_twice", map_vaddr(anew, IOVA, SIZE, 0));
	nvh_fact_int("accounted_anew", locked() - before);
	device_reads("read_anew", SEED_ANEW);
	vfio_unmap(&vfio, IOVA, SIZE, &unmapped);
	nvh_fact_int("unmapped", (long long)unmapped);
	nvh_fact_int("accounted_unmapped", locked() - before);
	nvh_step(true, "gave a mapping another address");
}

static void be_child(enum how how)
{
	uint64_t unmapped = 0;

	child->locked_before = locked();
	if (how == HOW_BEYOND_LIMIT)
		memory_limit_locked(SIZE / 2);
	if (how != HOW_UNMAP)
		child->take_over = map_vaddr(memory.addr, IOVA, SIZE, 0);
	child->locked_mapped = child->locked_after = locked();
	if (how == HOW_BEYOND_LIMIT)
		_exit(0);
	child->unmap = vfio_unmap(&vfio, IOVA, SIZE, &unmapped);
	child->unmapped = (long long)unmapped;
	child->locked_after = locked();
	_exit(0);
}

/* What is accounted to the parent: mapped, afterwards; to the child: at first, then, afterwards. */
static void let_child(const char *key, enum how how)
{
	long before = locked();
	long long accounted[5];
	uint64_t size;
	int status;
	pid_t pid;

	map(IOVA, memory.addr, SIZE);
	accounted[0] = locked() - before;
	if (how != HOW_UNMAP)
		nvh_fact_errno("unmap_vaddr_again", unmap_vaddr(IOVA, SIZE, &size));
	pid = fork();
	if (pid == 0)
		be_child(how);
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		nvh_bail("the child did not end as it should: %s", pid < 0 ? nvh_errname(errno) : "its status");
	accounted[1] = locked() - before;
	accounted[2] = child->locked_before;
	accounted[3] = child->locked_mapped;
	accounted[4] = child->locked_after;
	nvh_fact_ints(key, accounted, 5);
	if (how == HOW_BEYOND_LIMIT) {
		nvh_fact_errno("take_over_beyond", child->take_over);
		nvh_fact_errno("keep", map_vaddr(memory.addr, IOVA, SIZE, 0));
		vfio_unmap(&vfio, IOVA, SIZE, &size);
		nvh_fact_int("accounted_kept", locked() - before);
		nvh_step(true, "a child could not take over: %s", nvh_errname(child->take_over));
		return;
	}
	if (how == HOW_TAKE_OVER)
		nvh_fact_errno("take_over", child->take_over);
	nvh_fact_errno("child_unmap", child->unmap);
	nvh_fact_int("child_unmapped", child->unmapped);
	nvh_step(true, "a child unmapped: %s", nvh_errname(child->unmap));
}

int main(int argc, char **argv)
{
	int err;

	nvh_options(argc, argv, "Give DMA mappings another address and another owner.", options);
	nvh_begin("vfio_vaddr");
	vfio_open(&vfio, device, VFIO_BACKEND_TYPE1V2);
	edu_open(&edu, &vfio, WINDOW_IOVA);
	err = memory_map(&memory, &(struct source){.kind = SOURCE_MEMFD}, SIZE, 0, PROT_READ | PROT_WRITE, NULL);
	child = mmap(NULL, memory_page(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (err || child == MAP_FAILED)
		nvh_bail("mmap: %s", nvh_errname(err ? err : errno));
	let_child("accounted_of_child", HOW_UNMAP);
	bool update = ioctl(vfio.container, VFIO_CHECK_EXTENSION, VFIO_UPDATE_VADDR) == 1;

	nvh_fact_bool("update", update);
	if (update) {
		change_address();
		let_child("accounted_of_heir", HOW_TAKE_OVER);
		let_child("accounted_of_limited", HOW_BEYOND_LIMIT);
	}
	memory_unmap(&memory);
	edu_close(&edu);
	vfio_close(&vfio);
	return nvh_end();
}
