/*
 * Maps a BAR of a VFIO device for DMA (V11-V14): PFNMAP memory, which may be turned off underneath.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "edu.h"
#include "memory.h"
#include "nvh.h"
#include "vfio.h"

#define WINDOW_IOVA 0x1000000ULL

enum { ORDER_UNMAP, ORDER_DISABLE, ORDER_CLOSE };

static const char *const prot_words[] = {"r", "rw", NULL};
static const char *const dma_words[] = {"r", "rw", NULL};
static const char *const touch_words[] = {"none", "read", NULL};
static const char *const memory_words[] = {"off", "on", NULL};
static const char *const order_words[] = {"unmap", "disable", "close", NULL};

static const char *device;
static const char *prot_text = "rw";
static const char *dma_text = "rw";
static const char *touch_text = "none";
static const char *memory_text = "on";
static const char *order_text = "unmap";
static const char *type_text = "type1v2";
static const char *iova_text = "0x4000000";
static const char *bar_text = "0";
static bool dma_test;

static const struct nvh_option options[] = {
	{"device", &device, NULL, "PCI address of an edu that is bound to vfio-pci"},
	{"prot", &prot_text, NULL, "of the mmap of BAR0: r, rw (default rw)"},
	{"dma", &dma_text, NULL, "of the DMA mapping: r, rw (default rw)"},
	{"touch", &touch_text, NULL, "before mapping for DMA: none, read (default none)"},
	{"memory", &memory_text, NULL, "memory decoding while mapping for DMA: on, off (default on)"},
	{"order", &order_text, NULL, "at the end: unmap; disable memory decoding first; close the device first"},
	{"type", &type_text, NULL, VFIO_BACKEND_HELP},
	{"iova", &iova_text, NULL, "where the device sees the BAR (default 64 MiB)"},
	{"bar", &bar_text, NULL, "of any device: only access this BAR while memory decoding is on, off and on (1 to 5)"},
	{"dma-test", NULL, &dma_test, "the device reads and, with --dma rw, writes its own registers through the IOMMU"},
	{0},
};

/*
 * Which page of the BAR is behind each page of its mapping, and behind one that begins in its middle;
 * how mappings that must not be end.  The registers tell: only the first page has any, all else reads as
 * ones.  (pagemap would name the frames, but skips PFNMAP memory.)  Facts: pages_like_first, part_page,
 * beyond_end, private.
 */
static void look_at_pages(const struct vfio *vfio, const struct vfio_bar *bar)
{
	const size_t page = memory_page();
	struct vfio_bar part;
	int alike = 0, err;

	for (size_t at = page; at < bar->size; at += page)
		alike += vfio_bar_get(bar, at) == vfio_bar_get(bar, EDU_ID);
	nvh_fact_int("pages_like_first", alike);
	nvh_step(true, "%d of the other pages of the BAR are like its first", alike);
	err = vfio_bar_map_at(vfio, 0, PROT_READ, MAP_SHARED, page, page, &part);
	if (err)
		nvh_bail("mmap of the second page of BAR0: %s", nvh_errname(err));
	nvh_fact_str("part_page", vfio_bar_get(&part, EDU_ID) == vfio_bar_get(bar, EDU_ID) ? "the first" : "another");
	vfio_bar_unmap(&part);
	nvh_fact_errno("beyond_end", vfio_bar_map_at(vfio, 0, PROT_READ, MAP_SHARED, page, bar->size, &part));
	vfio_bar_unmap(&part);
	nvh_fact_errno("private", vfio_bar_map_at(vfio, 0, PROT_READ, MAP_PRIVATE, 0, bar->size, &part));
	vfio_bar_unmap(&part);
}

/* How reading each page of the BAR ends. */
static void access_pages(const struct vfio_bar *bar, const char *key)
{
	size_t pages = bar->size / memory_page(), dead = 0;

	for (size_t i = 0; i < pages; i++)
		dead += memory_touch_safely(bar->addr + i * memory_page(), 1, false) == SIGBUS;
	nvh_fact_str(key, dead == pages ? "SIGBUS" : dead ? "SIGBUS in part" : "read");
	nvh_step(true, "%s: %zu of %zu pages end in SIGBUS", key, dead, pages);
}

/* A BAR that is mapped by nobody but this process. */
static void switch_memory(const struct vfio *vfio, unsigned int index)
{
	struct vfio_bar bar;
	int err;

	vfio_command(vfio, VFIO_MEMORY);
	err = vfio_bar_map(vfio, index, PROT_READ, &bar);
	if (err)
		nvh_bail("mmap of BAR%u: %s", index, nvh_errname(err));
	access_pages(&bar, "enabled_access");
	vfio_command(vfio, 0);
	access_pages(&bar, "disabled_access");
	vfio_command(vfio, VFIO_MEMORY);
	access_pages(&bar, "again_access");
	vfio_bar_unmap(&bar);
}

/* Whether the DMA mapping leads to the BAR: the device's own registers, seen through its own DMA. */
static void peer_test(struct edu *edu, uint64_t iova, bool write)
{
	const uint32_t value = 0x5ca1ab1e;
	uint32_t id;

	edu_read(edu, iova + EDU_ID, sizeof(id));
	memcpy(&id, edu->window, sizeof(id));
	nvh_fact_str("peer_read", id == vfio_bar_get(&edu->bar, EDU_ID) ? "equal" : "differs");
	nvh_step(true, "the device read 0x%08x from its register at 0", id);
	/* Its second page has no registers and reads as ones. */
	edu_fetch(edu, iova + memory_page(), sizeof(id));
	memcpy(&id, edu->window, sizeof(id));
	nvh_fact_str("peer_second_page", id == vfio_bar_get(&edu->bar, EDU_ID) ? "the first" : "another");
	nvh_step(true, "the device read 0x%08x from its second page", id);
	if (!write)
		return;
	memcpy(edu->window, &value, sizeof(value));
	edu_write(edu, iova + EDU_ALIVE, sizeof(value));
	nvh_fact_str("peer_write", vfio_bar_get(&edu->bar, EDU_ALIVE) == ~value ? "equal" : "differs");
	nvh_step(true, "after the device's write its register at 4 reads 0x%08x", vfio_bar_get(&edu->bar, EDU_ALIVE));
}

static int map(const struct vfio *vfio, const struct vfio_bar *bar, uint64_t iova, bool write, const char *key)
{
	double start = nvh_now();
	int err = vfio_map(vfio, bar->addr, iova, bar->size, write);

	nvh_fact_errno(key, err);
	nvh_step(true, "mapping the BAR for DMA: %s after %.6f s", nvh_errname(err), nvh_now() - start);
	return err;
}

static void unmap(const struct vfio *vfio, uint64_t iova, uint64_t size, const char *key)
{
	uint64_t unmapped;
	int err = vfio_unmap(vfio, iova, size, &unmapped);

	if (err)
		nvh_fact_errno(key, err);
	else
		nvh_fact_int(key, (long long)unmapped);
	nvh_step(true, "unmap: %s, %llu bytes", nvh_errname(err), (unsigned long long)unmapped);
}

int main(int argc, char **argv)
{
	struct vfio_bar bar;
	struct vfio vfio;
	struct edu edu;
	int err;

	nvh_options(argc, argv, "Map a BAR of a device for DMA.", options);
	uint64_t iova = nvh_size("iova", iova_text);
	int prot = nvh_choice("prot", prot_text, prot_words) == 1 ? PROT_READ | PROT_WRITE : PROT_READ;
	bool write = nvh_choice("dma", dma_text, dma_words) == 1;
	bool touch = nvh_choice("touch", touch_text, touch_words) == 1;
	bool on = nvh_choice("memory", memory_text, memory_words) == 1;
	int order = nvh_choice("order", order_text, order_words);
	enum vfio_backend backend = nvh_choice("type", type_text, vfio_backend_words);
	unsigned int index = (unsigned int)nvh_number("bar", bar_text, 0, 5);

	if (iova < WINDOW_IOVA + EDU_WINDOW)
		nvh_usage("--iova must lie above the window of the device at 16 MiB");

	nvh_begin("vfio_bar");
	vfio_open(&vfio, device, backend);
	if (index) {
		switch_memory(&vfio, index);
		vfio_close(&vfio);
		return nvh_end();
	}
	edu_open(&edu, &vfio, WINDOW_IOVA);
	/* Not the mapping that edu_open() made and touched: a VMA of its own. */
	err = vfio_bar_map(&vfio, 0, prot, &bar);
	if (err)
		nvh_bail("mmap of BAR0: %s", nvh_errname(err));
	uint64_t size = bar.size;

	nvh_fact_int("size", (long long)size);
	if (touch) {
		for (size_t at = 0; at < size; at += memory_page())
			(void)vfio_bar_get(&bar, at);
		nvh_step((vfio_bar_get(&bar, EDU_ID) & 0xffff) == 0xed, "the BAR was touched");
	}
	nvh_fact_bool("touched", touch);
	if (!on)
		vfio_command(&vfio, VFIO_MASTER);
	nvh_fact_int("locked_before", memory_status("VmLck"));
	err = map(&vfio, &bar, iova, write, "map");
	if (!on)
		access_pages(&bar, "disabled_access");
	if (err) {
		unmap(&vfio, iova, size, "left_mapped");
		if (!on) {
			vfio_command(&vfio, VFIO_MEMORY | VFIO_MASTER);
			err = map(&vfio, &bar, iova, write, "map_enabled");
		}
	}
	if (!err) {
		if (dma_test) {
			peer_test(&edu, iova, write);
			look_at_pages(&vfio, &bar);
		}
		if (order == ORDER_DISABLE)
			vfio_command(&vfio, VFIO_MASTER);
		if (order == ORDER_CLOSE) {
			/* The VMAs hold the device open as the descriptor does. */
			edu_close(&edu);
			vfio_bar_unmap(&bar);
			vfio_close_device(&vfio);
		}
		unmap(&vfio, iova, size, "unmapped");
	}
	nvh_fact_int("locked_after", memory_status("VmLck"));
	vfio_bar_unmap(&bar);
	edu_close(&edu);
	vfio_close(&vfio);
	return nvh_end();
}
