/*
 * QEMU's edu device (1234:11e8) as a DMA engine behind the IOMMU, driven from user space.
 *
 * Source: QEMU docs/specs/edu.txt.  Its DMA mask is 28 bits: every IOVA must lie below 256 MiB.  A
 * transfer takes 100 ms, and one that the IOMMU blocks "completes" like any other: only the content
 * that arrived tells.
 */
#ifndef NVH_EDU_H
#define NVH_EDU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vfio.h"

/* Offsets in BAR0, and the bits of the command. */
enum {
	EDU_ID = 0x00, /* reads 0x....00ed */
	EDU_ALIVE = 0x04, /* reads the complement of what was written */
	EDU_STATUS = 0x24, /* of interrupts: what was raised and not acknowledged */
	EDU_RAISE = 0x60,
	EDU_ACKNOWLEDGE = 0x64,
	EDU_DMA_SOURCE = 0x80,
	EDU_DMA_TARGET = 0x88,
	EDU_DMA_COUNT = 0x90,
	EDU_DMA_COMMAND = 0x98,
	EDU_DMA_START = 1,
	EDU_DMA_TO_MEMORY = 2, /* from the device's buffer */
	EDU_BUFFER = 0x40000,
};

/* The first IOVA that edu cannot reach. */
#define EDU_IOVA_END 0x10000000ULL
/* The device's buffer is 4096 bytes, and QEMU 7.2 aborts on a transfer of all of them. */
#define EDU_MAX 4088
/* What every transfer takes, by QEMU's timer (hw/misc/edu.c, dma_rw()): before that there is nothing
 * to look for. */
#define EDU_TRANSFER_SECONDS 0.1

/* A window of ordinary memory, mapped for the device, through which data come and go. */
struct edu {
	const struct vfio *vfio;
	struct vfio_bar bar;
	uint8_t *window; /* of EDU_WINDOW bytes */
	uint64_t window_iova;
};

#define EDU_WINDOW 0x2000

/* Maps BAR0; nvh_bail() when it cannot be mapped or is no edu's. */
void edu_bar_map(const struct vfio *vfio, struct vfio_bar *bar);

/*
 * Turns memory decoding and bus mastering on, maps BAR0, checks that it is an edu and maps the window
 * at window_iova.  nvh_bail() when any of it fails.
 */
void edu_open(struct edu *edu, const struct vfio *vfio, uint64_t window_iova);
void edu_close(struct edu *edu);

/*
 * The device copies count (at most EDU_MAX) bytes from the IOVA to the window, or from the window to the
 * IOVA.  Always by way of the device's own buffer, whose old content is overwritten first, so that a
 * blocked read cannot show what an earlier one brought.  nvh_bail() when the device does not end.
 */
void edu_read(struct edu *edu, uint64_t iova, size_t count);

/* edu_read() in two: one edu_blank() will do before fetches whose data all differ. */
void edu_blank(struct edu *edu);
void edu_fetch(struct edu *edu, uint64_t iova, size_t count);

void edu_write(struct edu *edu, uint64_t iova, size_t count);

#endif
