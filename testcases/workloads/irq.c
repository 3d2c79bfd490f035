#include "irq.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "edu.h"
#include "nvh.h"

/* One that comes is waited for; one that must not come has come by then. */
#define QUIET_SECONDS 0.02
#define COME_MS 10000
/* Once one has not come, what is right is not seen any more, and the next may be missing as well. */
#define COME_MISSED_MS 500

int irq_set(const struct vfio *vfio, uint32_t flags, uint32_t index, uint32_t start, uint32_t count, int data)
{
	struct {
		struct vfio_irq_set head;
		int32_t data[4];
	} set = {.head = {.argsz = sizeof(set), .flags = flags, .index = index, .start = start, .count = count}};

	if ((flags & VFIO_IRQ_SET_DATA_TYPE_MASK) == VFIO_IRQ_SET_DATA_BOOL)
		memset(set.data, data, sizeof(set.data));
	else
		for (size_t i = 0; i < sizeof(set.data) / sizeof(set.data[0]); i++)
			set.data[i] = data;
	return ioctl(vfio->device, VFIO_DEVICE_SET_IRQS, &set) < 0 ? errno : 0;
}

int irq_eventfd(void)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	if (fd < 0)
		nvh_bail("eventfd: %s", nvh_errname(errno));
	return fd;
}

long long irq_events(int fd, bool expected)
{
	static bool missed;
	struct pollfd wait = {.fd = fd, .events = POLLIN};
	uint64_t count = 0;
	int ms = missed ? COME_MISSED_MS : COME_MS;

	if (!expected)
		nvh_sleep(QUIET_SECONDS);
	if (poll(&wait, 1, expected ? ms : 0) > 0 && read(fd, &count, sizeof(count)) != sizeof(count))
		nvh_bail("read of an eventfd: %s", nvh_errname(errno));
	missed |= expected && count == 0;
	return (long long)count;
}

void irq_raise(const struct vfio_bar *bar)
{
	vfio_bar_put(bar, EDU_RAISE, 1);
	if (vfio_bar_get(bar, EDU_STATUS) != 1)
		nvh_bail("edu's interrupt is not raised: status 0x%x", vfio_bar_get(bar, EDU_STATUS));
}

void irq_acknowledge(const struct vfio_bar *bar)
{
	vfio_bar_put(bar, EDU_ACKNOWLEDGE, 1);
	if (vfio_bar_get(bar, EDU_STATUS) != 0)
		nvh_bail("edu's interrupt is not acknowledged: status 0x%x", vfio_bar_get(bar, EDU_STATUS));
}
