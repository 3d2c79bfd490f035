#include "edu.h"

#include <string.h>
#include <sys/mman.h>

#include "memory.h"
#include "nvh.h"

#define STALE 0xa5

static void write64(struct edu *edu, unsigned int reg, uint64_t value)
{
	*(volatile uint64_t *)(void *)(edu->bar.addr + reg) = value;
}

static uint64_t read64(struct edu *edu, unsigned int reg)
{
	return *(volatile uint64_t *)(void *)(edu->bar.addr + reg);
}

static void transfer(struct edu *edu, uint64_t iova, size_t count, bool to_memory)
{
	double end = nvh_now() + 10;

	if (count == 0 || count > EDU_MAX || iova + count > EDU_IOVA_END)
		nvh_bail("edu cannot move %zu bytes at IOVA 0x%llx", count, (unsigned long long)iova);
	write64(edu, EDU_DMA_SOURCE, to_memory ? EDU_BUFFER : iova);
	write64(edu, EDU_DMA_TARGET, to_memory ? iova : EDU_BUFFER);
	write64(edu, EDU_DMA_COUNT, count);
	__sync_synchronize();
	write64(edu, EDU_DMA_COMMAND, EDU_DMA_START | (to_memory ? EDU_DMA_TO_MEMORY : 0));
	nvh_sleep(EDU_TRANSFER_SECONDS);
	while (read64(edu, EDU_DMA_COMMAND) & EDU_DMA_START) {
		if (nvh_now() > end)
			nvh_bail("edu's DMA does not end within 10 s");
		nvh_sleep(0.002);
	}
	__sync_synchronize();
}

void edu_bar_map(const struct vfio *vfio, struct vfio_bar *bar)
{
	int err = vfio_bar_map(vfio, 0, PROT_READ | PROT_WRITE, bar);
	uint32_t id;

	if (err)
		nvh_bail("mmap of edu's BAR0: %s", nvh_errname(err));
	id = vfio_bar_get(bar, EDU_ID);
	if ((id & 0xffff) != 0x00ed)
		nvh_bail("the device is no edu: it identifies itself as 0x%08x", id);
}

void edu_open(struct edu *edu, const struct vfio *vfio, uint64_t window_iova)
{
	struct source source = {.kind = SOURCE_ANON};
	struct mapping window;
	int err;

	*edu = (struct edu){.vfio = vfio, .window_iova = window_iova};
	vfio_command(vfio, VFIO_MEMORY | VFIO_MASTER);
	edu_bar_map(vfio, &edu->bar);
	err = memory_map(&window, &source, EDU_WINDOW, 0, PROT_READ | PROT_WRITE, NULL);
	if (err)
		nvh_bail("mmap of the DMA window: %s", nvh_errname(err));
	edu->window = window.addr;
	memset(edu->window, STALE, EDU_WINDOW);
	err = vfio_map(vfio, edu->window, window_iova, EDU_WINDOW, true);
	if (err)
		nvh_bail("VFIO_IOMMU_MAP_DMA of the DMA window: %s", nvh_errname(err));
}

void edu_close(struct edu *edu)
{
	uint64_t unmapped;

	if (edu->window) {
		vfio_unmap(edu->vfio, edu->window_iova, EDU_WINDOW, &unmapped);
		munmap(edu->window, EDU_WINDOW);
	}
	vfio_bar_unmap(&edu->bar);
	edu->window = NULL;
}

void edu_blank(struct edu *edu)
{
	memset(edu->window, STALE, EDU_WINDOW);
	transfer(edu, edu->window_iova, EDU_MAX, false);
}

void edu_fetch(struct edu *edu, uint64_t iova, size_t count)
{
	memset(edu->window, (unsigned char)~STALE, EDU_WINDOW);
	transfer(edu, iova, count, false);
	transfer(edu, edu->window_iova, count, true);
}

void edu_read(struct edu *edu, uint64_t iova, size_t count)
{
	edu_blank(edu);
	edu_fetch(edu, iova, count);
}

void edu_write(struct edu *edu, uint64_t iova, size_t count)
{
	transfer(edu, edu->window_iova, count, false);
	transfer(edu, iova, count, true);
}
