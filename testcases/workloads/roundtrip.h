/*
 * Proves by content that a DMA mapping reaches the right pages: patterns out through the device and back.
 */
#ifndef ROUNDTRIP_H
#define ROUNDTRIP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "edu.h"
#include "memory.h"

/* Seeds of the patterns: what the CPU wrote, and what the device writes over it. */
enum { SEED_CPU = 1, SEED_DEVICE = 2 };

struct roundtrip {
	uint8_t *addr; /* holds the pattern of SEED_CPU, from offset 0 */
	uint64_t iova;
	size_t size; /* filled and checked; the device reaches what lies below EDU_IOVA_END */
	size_t mapped; /* of the whole mapping; device-dax maps nothing smaller than its alignment */
};

/*
 * The device reads at several places: the first bytes, across page and 2 MiB borders, the last bytes.
 * Facts: device_read ("equal" or "differs"), device_read_at (offset of the first place that differs).
 */
void roundtrip_read(struct edu *edu, const struct roundtrip *trip);

/*
 * The device writes the pattern of SEED_DEVICE at the same places; afterwards the whole range must hold
 * it there and the CPU's pattern everywhere else.  Facts: device_write, device_write_at.
 */
void roundtrip_write(struct edu *edu, const struct roundtrip *trip);

/*
 * The offset of the first byte that is not what it must be after roundtrip_write() (or, without
 * written, before), or size.  For any view of the same bytes.
 */
size_t roundtrip_check(const struct roundtrip *trip, const void *view, bool written);

/*
 * Maps the source anew in another process and checks there what roundtrip_check() checks; files are
 * also read with read(2).  Facts: other_process, and file_read for files.  A step that is not ok when it
 * cannot be looked at.
 */
void roundtrip_elsewhere(const struct roundtrip *trip, const struct source *source, off_t offset, bool written);

#endif
