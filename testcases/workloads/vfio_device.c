/*
 * What a VFIO device gives beside mappings (V22): its registers by pread() and pwrite(), and its
 * interrupts by eventfd, INTx and MSI.
 */
#include <errno.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "edu.h"
#include "irq.h"
#include "nvh.h"
#include "vfio.h"

static const char *device;

static const struct nvh_option options[] = {
	{"device", &device, NULL, "PCI address of an edu that is bound to vfio-pci"},
	{0},
};

static struct vfio vfio;
static struct vfio_bar bar;
static off_t bar0;
static int first, second; /* eventfds */

/* How many bytes, or which error. */
static void try_read(const char *key, off_t at, size_t count)
{
	char bytes[16];
	ssize_t got = pread(vfio.device, bytes, count, at);

	if (got < 0)
		nvh_fact_errno(key, errno);
	else
		nvh_fact_int(key, got);
}

static void read_and_write(void)
{
	struct vfio_region_info info = {.argsz = sizeof(info), .index = VFIO_PCI_BAR0_REGION_INDEX};
	struct vfio_region_info none = {.argsz = sizeof(none), .index = VFIO_PCI_BAR1_REGION_INDEX};
	struct vfio_region_info config = {.argsz = sizeof(config), .index = VFIO_PCI_CONFIG_REGION_INDEX};
	uint32_t value = 0x5ca1ab1e;
	off_t end;

	if (ioctl(vfio.device, VFIO_DEVICE_GET_REGION_INFO, &info) ||
	    ioctl(vfio.device, VFIO_DEVICE_GET_REGION_INFO, &none) ||
	    ioctl(vfio.device, VFIO_DEVICE_GET_REGION_INFO, &config))
		nvh_bail("VFIO_DEVICE_GET_REGION_INFO: %s", nvh_errname(errno));
	bar0 = (off_t)info.offset;
	end = bar0 + (off_t)info.size;
	if (pwrite(vfio.device, &value, sizeof(value), bar0 + EDU_ALIVE) != sizeof(value))
		nvh_note("pwrite of BAR0: %s", nvh_errname(errno));
	nvh_fact_str("written", vfio_bar_get(&bar, EDU_ALIVE) == ~value ? "equal" : "differs");
	vfio_bar_put(&bar, EDU_ALIVE, 0x600df00d);
	if (pread(vfio.device, &value, sizeof(value), bar0 + EDU_ALIVE) != sizeof(value))
		nvh_note("pread of BAR0: %s", nvh_errname(errno));
	nvh_fact_str("read", value == ~0x600df00dU ? "equal" : "differs");
	try_read("last_bytes", end - 8, 8);
	try_read("across_end", end - 4, 8);
	try_read("at_end", end, 4);
	try_read("behind_end", end + (1 << 20), 4);
	try_read("no_bar", (off_t)none.offset, 4);
	try_read("config_end", (off_t)(config.offset + config.size), 4);
	nvh_fact_errno("write_at_end", pwrite(vfio.device, &value, sizeof(value), end) < 0 ? errno : 0);
	vfio_command(&vfio, 0);
	try_read("disabled_read", bar0 + EDU_ALIVE, 4);
	nvh_fact_errno("disabled_write", pwrite(vfio.device, &value, 4, bar0 + EDU_ALIVE) < 0 ? errno : 0);
	vfio_command(&vfio, VFIO_MEMORY | VFIO_MASTER);
	try_read("enabled_read", bar0 + EDU_ALIVE, 4);
	nvh_step(true, "read and wrote BAR0");
}

static int set_irqs(uint32_t flags, uint32_t index, uint32_t start, uint32_t count, int data)
{
	return irq_set(&vfio, flags, index, start, count, data);
}

/* What failed first of that which is there to be used, or NULL. */
static const char *failed;

static void use(int err, const char *what)
{
	if (err)
		nvh_note("VFIO_DEVICE_SET_IRQS, %s: %s", what, nvh_errname(err));
	if (err && !failed)
		failed = what;
}

static void write_eventfd(int fd)
{
	const uint64_t one = 1;

	if (write(fd, &one, sizeof(one)) != sizeof(one))
		nvh_bail("write of an eventfd: %s", nvh_errname(errno));
}

/*
 * As use_intx(), which hands it over raised and masked, and takes it back so; but an eventfd unmasks, as
 * KVM's resample irqfd does when the guest has served its interrupt.
 */
static void unmask_by_eventfd(void)
{
	const uint32_t index = VFIO_PCI_INTX_IRQ_INDEX;
	int closed = irq_eventfd();
	long long seen[6];

	/* Who goes away without taking it back leaves room for the next. */
	use(set_irqs(IRQ_UNMASK_EVENTFD, index, 0, 1, closed), "an eventfd to unmask INTx");
	close(closed);
	nvh_fact_errno("unmask_fd", set_irqs(IRQ_UNMASK_EVENTFD, index, 0, 1, second));
	nvh_fact_errno("unmask_fd_again", set_irqs(IRQ_UNMASK_EVENTFD, index, 0, 1, second));
	write_eventfd(second);
	seen[0] = irq_events(first, true);
	irq_acknowledge(&bar);
	write_eventfd(second);
	seen[1] = irq_events(first, false);
	irq_raise(&bar);
	seen[2] = irq_events(first, true);
	seen[3] = irq_events(second, false);
	use(set_irqs(IRQ_UNMASK_EVENTFD, index, 0, 1, -1), "no eventfd to unmask INTx");
	write_eventfd(second);
	seen[4] = irq_events(first, false);
	/* What was written before counts: it may have been in time for whoever had it set. */
	use(set_irqs(IRQ_UNMASK_EVENTFD, index, 0, 1, second), "a written eventfd to unmask INTx");
	seen[5] = irq_events(first, true);
	use(set_irqs(IRQ_UNMASK_EVENTFD, index, 0, 1, -1), "no eventfd to unmask INTx");
	nvh_fact_ints("unmask_fd_events", seen, 6);
	nvh_step(true, "INTx unmasked by an eventfd");
}

/* A level: it comes once, is masked until it is unmasked, and comes again where it is still raised. */
static void use_intx(void)
{
	const uint32_t index = VFIO_PCI_INTX_IRQ_INDEX;
	long long seen[6];

	nvh_fact_errno("intx", set_irqs(IRQ_EVENTFD, index, 0, 1, first));
	nvh_fact_errno("intx_two", set_irqs(IRQ_EVENTFD, index, 0, 2, first));
	nvh_fact_errno("msi_beside_intx", set_irqs(IRQ_EVENTFD, VFIO_PCI_MSI_IRQ_INDEX, 0, 1, second));
	irq_raise(&bar);
	seen[0] = irq_events(first, true);
	seen[1] = irq_events(first, false);
	use(set_irqs(IRQ_UNMASK, index, 0, 1, 0), "unmask of INTx");
	seen[2] = irq_events(first, true);
	irq_acknowledge(&bar);
	use(set_irqs(IRQ_UNMASK, index, 0, 1, 0), "unmask of INTx");
	seen[3] = irq_events(first, false);
	use(set_irqs(IRQ_MASK, index, 0, 1, 0), "mask of INTx");
	irq_raise(&bar);
	seen[4] = irq_events(first, false);
	use(set_irqs(IRQ_UNMASK, index, 0, 1, 0), "unmask of INTx");
	seen[5] = irq_events(first, true);
	nvh_fact_ints("intx_events", seen, 6);
	unmask_by_eventfd();
	/* It has come, and so is masked: once disabled it must not reach whoever shares the line. */
	use(set_irqs(IRQ_NONE, index, 0, 0, 0), "no INTx");
	seen[0] = irq_events(first, false);
	irq_acknowledge(&bar);
	nvh_fact_int("intx_events_disabled", seen[0]);
	nvh_step(true, "INTx raised, masked and unmasked");
}

static void refuse_msi(void)
{
	const uint32_t index = VFIO_PCI_MSI_IRQ_INDEX;
	struct vfio_irq_info info = {.argsz = sizeof(info), .index = index};
	struct vfio_irq_set small = {.argsz = sizeof(small), .flags = IRQ_EVENTFD, .index = index, .count = 1};

	if (ioctl(vfio.device, VFIO_DEVICE_GET_IRQ_INFO, &info))
		nvh_bail("VFIO_DEVICE_GET_IRQ_INFO: %s", nvh_errname(errno));
	nvh_fact_int("msi_vectors", info.count);
	nvh_fact_bool("msi_by_eventfd", info.flags & VFIO_IRQ_INFO_EVENTFD);
	nvh_fact_errno("start_beyond", set_irqs(IRQ_EVENTFD, index, 1, 1, first));
	nvh_fact_errno("count_beyond", set_irqs(IRQ_EVENTFD, index, 0, 2, first));
	nvh_fact_errno("count_wraps", set_irqs(IRQ_EVENTFD, index, 2, UINT32_MAX - 1, first));
	nvh_fact_errno("no_such_index", set_irqs(IRQ_EVENTFD, VFIO_PCI_NUM_IRQS, 0, 1, first));
	nvh_fact_errno("two_kinds_of_data", set_irqs(IRQ_EVENTFD | IRQ_NONE, index, 0, 1, first));
	nvh_fact_errno("unknown_flag", set_irqs(IRQ_EVENTFD | 1 << 10, index, 0, 1, first));
	nvh_fact_errno("data_missing", ioctl(vfio.device, VFIO_DEVICE_SET_IRQS, &small) < 0 ? errno : 0);
	nvh_fact_errno("no_eventfd", set_irqs(IRQ_EVENTFD, index, 0, 1, vfio.device));
	nvh_fact_errno("trigger_unset", set_irqs(IRQ_NONE, index, 0, 1, 0));
}

/* An edge: each that is raised comes, to the eventfd that was set last. */
static void use_msi(void)
{
	const uint32_t index = VFIO_PCI_MSI_IRQ_INDEX;
	long long seen[7];

	refuse_msi();
	nvh_fact_errno("msi", set_irqs(IRQ_EVENTFD, index, 0, 1, first));
	nvh_fact_errno("intx_beside_msi", set_irqs(IRQ_EVENTFD, VFIO_PCI_INTX_IRQ_INDEX, 0, 1, second));
	/* To disable all of an index is asked for with no vector from the first on. */
	nvh_fact_errno("none_from_beyond", set_irqs(IRQ_NONE, index, 1, 0, 0));
	irq_raise(&bar);
	seen[0] = irq_events(first, true);
	irq_acknowledge(&bar);
	irq_raise(&bar);
	seen[1] = irq_events(first, true);
	irq_acknowledge(&bar);
	use(set_irqs(IRQ_NONE, index, 0, 1, 0), "trigger");
	seen[2] = irq_events(first, true);
	use(set_irqs(IRQ_BOOL, index, 0, 1, 0), "trigger nothing");
	seen[3] = irq_events(first, false);
	use(set_irqs(IRQ_BOOL, index, 0, 1, 1), "trigger by BOOL");
	seen[4] = irq_events(first, true);
	use(set_irqs(IRQ_EVENTFD, index, 0, 1, second), "another eventfd");
	irq_raise(&bar);
	seen[5] = irq_events(second, true);
	seen[6] = irq_events(first, false);
	irq_acknowledge(&bar);
	nvh_fact_ints("msi_events", seen, 7);
	use(set_irqs(IRQ_NONE, index, 0, 0, 0), "no MSI");
	nvh_fact_errno("trigger_disabled", set_irqs(IRQ_NONE, index, 0, 1, 0));
	nvh_step(true, "MSI raised, triggered and set anew");
}

int main(int argc, char **argv)
{
	nvh_options(argc, argv, "Read and write a device's registers, and take its interrupts.", options);
	nvh_begin("vfio_device");
	vfio_open(&vfio, device, VFIO_BACKEND_TYPE1V2);
	vfio_command(&vfio, VFIO_MEMORY | VFIO_MASTER);
	edu_bar_map(&vfio, &bar);
	first = irq_eventfd();
	second = irq_eventfd();
	read_and_write();
	use_msi();
	use_intx();
	nvh_fact_str("failed", failed ? failed : "nothing");
	vfio_bar_unmap(&bar);
	vfio_close(&vfio);
	return nvh_end();
}
