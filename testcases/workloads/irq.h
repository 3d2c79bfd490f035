/*
 * The interrupts of a device held through VFIO, by eventfd, and how QEMU's edu is made to raise one.
 */
#ifndef NVH_IRQ_H
#define NVH_IRQ_H

#include <linux/vfio.h>
#include <stdbool.h>
#include <stdint.h>

#include "vfio.h"

#define IRQ_NONE (VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER)
#define IRQ_BOOL (VFIO_IRQ_SET_DATA_BOOL | VFIO_IRQ_SET_ACTION_TRIGGER)
#define IRQ_EVENTFD (VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER)
#define IRQ_MASK (VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_MASK)
#define IRQ_UNMASK (VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK)
#define IRQ_UNMASK_EVENTFD (VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_UNMASK)

/* VFIO_DEVICE_SET_IRQS; one byte or descriptor of data, whatever count says.  Returns 0 or errno. */
int irq_set(const struct vfio *vfio, uint32_t flags, uint32_t index, uint32_t start, uint32_t count, int data);

/* A new one; nvh_bail() when there is none to be had. */
int irq_eventfd(void);

/*
 * Events since it was last asked.  Waits for the first one where one must come, and a moment where
 * none must.
 */
long long irq_events(int fd, bool expected);

/* Has edu raise its interrupt, or lower it; nvh_bail() when its status does not say so. */
void irq_raise(const struct vfio_bar *bar);
void irq_acknowledge(const struct vfio_bar *bar);

#endif
