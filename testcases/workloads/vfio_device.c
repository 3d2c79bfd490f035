/*
 * What a VFIO device gives beside mappings (V22): its registers by pread() and pwrite(), and its
 * interrupts by eventfd, INTx and MSI.
 */
#include <errno.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"
#include "vfio.h"

enum {
	REG_ID = 0x00,
	REG_ALIVE = 0x04, /* reads the complement of what was written */
	REG_STATUS = 0x24, /* of interrupts: what was raised and not acknowledged */
	REG_RAISE = 0x60,
	REG_ACK = 0x64,
};

#define NONE (VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER)
#define BOOL (VFIO_IRQ_SET_DATA_BOOL | VFIO_IRQ_SET_ACTION_TRIGGER)
#define EVENTFD (VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER)
/* One that comes is waited for; one that must not come has come by then. */
#define QUIET_SECONDS 0.02
#define COME_MS 10000

static const char *device;

static const struct nvh_option options[] = {
	{"device", &device, NULL, "PCI address of an edu that is bound to vfio-pci"},
	{0},
};

static struct vfio vfio;
static struct vfio_bar bar;
static off_t bar0;
static int first, second; /* eventfds */

static uint32_t get(unsigned int reg)
{
	return *(volatile uint32_t *)(void *)(bar.addr + reg);
}

static void put(unsigned int reg, uint32_t value)
{
	*(volatile uint32_t *)(void *)(bar.addr + reg) = value;
}

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
	if (pwrite(vfio.device, &value, sizeof(value), bar0 + REG_ALIVE) != sizeof(value))
		nvh_note("pwrite of BAR0: %s", nvh_errname(errno));
	nvh_fact_str("written", get(REG_ALIVE) == ~value ? "equal" : "differs");
	put(REG_ALIVE, 0x600df00d);
	if (pread(vfio.device, &value, sizeof(value), bar0 + REG_ALIVE) != sizeof(value))
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
	try_read("disabled_read", bar0 + REG_ALIVE, 4);
	nvh_fact_errno("disabled_write", pwrite(vfio.device, &value, 4, bar0 + REG_ALIVE) < 0 ? errno : 0);
	vfio_command(&vfio, VFIO_MEMORY | VFIO_MASTER);
	try_read("enabled_read", bar0 + REG_ALIVE, 4);
	nvh_step(true, "read and wrote BAR0");
}

/* VFIO_DEVICE_SET_IRQS; one byte or descriptor of data, whatever count says.  Returns 0 or errno. */
static int set_irqs(uint32_t flags, uint32_t index, uint32_t start, uint32_t count, int data)
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
	return ioctl(vfio.device, VFIO_DEVICE_SET_IRQS, &set) < 0 ? errno : 0;
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

/* Events since it was last asked; waits for the first one where one must come. */
static long long events(int fd, bool expected)
{
	struct pollfd wait = {.fd = fd, .events = POLLIN};
	uint64_t count = 0;

	if (!expected)
		nvh_sleep(QUIET_SECONDS);
	if (poll(&wait, 1, expected ? COME_MS : 0) > 0 && read(fd, &count, sizeof(count)) != sizeof(count))
		nvh_bail("read of an eventfd: %s", nvh_errname(errno));
	return (long long)count;
}

static void raise_interrupt(void)
{
	put(REG_RAISE, 1);
	if (get(REG_STATUS) != 1)
		nvh_bail("edu's interrupt is not raised: status 0x%x", get(REG_STATUS));
}

static void acknowledge(void)
{
	put(REG_ACK, 1);
	if (get(REG_STATUS) != 0)
		nvh_bail("edu's interrupt is not acknowledged: status 0x%x", get(REG_STATUS));
}

/* A level: it comes once, is masked until it is unmasked, and comes again where it is still raised. */
static void use_intx(void)
{
	const uint32_t index = VFIO_PCI_INTX_IRQ_INDEX;
	const uint32_t mask = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_MASK;
	const uint32_t unmask = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK;
	long long seen[6];

	nvh_fact_errno("intx", set_irqs(EVENTFD, index, 0, 1, first));
	nvh_fact_errno("intx_two", set_irqs(EVENTFD, index, 0, 2, first));
	nvh_fact_errno("msi_beside_intx", set_irqs(EVENTFD, VFIO_PCI_MSI_IRQ_INDEX, 0, 1, second));
	raise_interrupt();
	seen[0] = events(first, true);
	seen[1] = events(first, false);
	use(set_irqs(unmask, index, 0, 1, 0), "unmask of INTx");
	seen[2] = events(first, true);
	acknowledge();
	use(set_irqs(unmask, index, 0, 1, 0), "unmask of INTx");
	seen[3] = events(first, false);
	use(set_irqs(mask, index, 0, 1, 0), "mask of INTx");
	raise_interrupt();
	seen[4] = events(first, false);
	use(set_irqs(unmask, index, 0, 1, 0), "unmask of INTx");
	seen[5] = events(first, true);
	nvh_fact_ints("intx_events", seen, 6);
	/* It has come, and so is masked: once disabled it must not reach whoever shares the line. */
	use(set_irqs(NONE, index, 0, 0, 0), "no INTx");
	seen[0] = events(first, false);
	acknowledge();
	nvh_fact_int("intx_events_disabled", seen[0]);
	nvh_step(true, "INTx raised, masked and unmasked");
}

static void refuse_msi(void)
{
	const uint32_t index = VFIO_PCI_MSI_IRQ_INDEX;
	struct vfio_irq_info info = {.argsz = sizeof(info), .index = index};
	struct vfio_irq_set small = {.argsz = sizeof(small), .flags = EVENTFD, .index = index, .count = 1};

	if (ioctl(vfio.device, VFIO_DEVICE_GET_IRQ_INFO, &info))
		nvh_bail("VFIO_DEVICE_GET_IRQ_INFO: %s", nvh_errname(errno));
	nvh_fact_int("msi_vectors", info.count);
	nvh_fact_bool("msi_by_eventfd", info.flags & VFIO_IRQ_INFO_EVENTFD);
	nvh_fact_errno("start_beyond", set_irqs(EVENTFD, index, 1, 1, first));
	nvh_fact_errno("count_beyond", set_irqs(EVENTFD, index, 0, 2, first));
	nvh_fact_errno("count_wraps", set_irqs(EVENTFD, index, 2, UINT32_MAX - 1, first));
	nvh_fact_errno("no_such_index", set_irqs(EVENTFD, VFIO_PCI_NUM_IRQS, 0, 1, first));
	nvh_fact_errno("two_kinds_of_data", set_irqs(EVENTFD | NONE, index, 0, 1, first));
	nvh_fact_errno("unknown_flag", set_irqs(EVENTFD | 1 << 10, index, 0, 1, first));
	nvh_fact_errno("data_missing", ioctl(vfio.device, VFIO_DEVICE_SET_IRQS, &small) < 0 ? errno : 0);
	nvh_fact_errno("no_eventfd", set_irqs(EVENTFD, index, 0, 1, vfio.device));
	nvh_fact_errno("trigger_unset", set_irqs(NONE, index, 0, 1, 0));
}

/* An edge: each that is raised comes, to the eventfd that was set last. */
static void use_msi(void)
{
	const uint32_t index = VFIO_PCI_MSI_IRQ_INDEX;
	long long seen[7];

	refuse_msi();
	nvh_fact_errno("msi", set_irqs(EVENTFD, index, 0, 1, first));
	nvh_fact_errno("intx_beside_msi", set_irqs(EVENTFD, VFIO_PCI_INTX_IRQ_INDEX, 0, 1, second));
	/* To disable all of an index is asked for with no vector from the first on. */
	nvh_fact_errno("none_from_beyond", set_irqs(NONE, index, 1, 0, 0));
	raise_interrupt();
	seen[0] = events(first, true);
	acknowledge();
	raise_interrupt();
	seen[1] = events(first, true);
	acknowledge();
	use(set_irqs(NONE, index, 0, 1, 0), "trigger");
	seen[2] = events(first, true);
	use(set_irqs(BOOL, index, 0, 1, 0), "trigger nothing");
	seen[3] = events(first, false);
	use(set_irqs(BOOL, index, 0, 1, 1), "trigger by BOOL");
	seen[4] = events(first, true);
	use(set_irqs(EVENTFD, index, 0, 1, second), "another eventfd");
	raise_interrupt();
	seen[5] = events(second, true);
	seen[6] = events(first, false);
	acknowledge();
	nvh_fact_ints("msi_events", seen, 7);
	use(set_irqs(NONE, index, 0, 0, 0), "no MSI");
	nvh_fact_errno("trigger_disabled", set_irqs(NONE, index, 0, 1, 0));
	nvh_step(true, "MSI raised, triggered and set anew");
}

int main(int argc, char **argv)
{
	int err;

	nvh_options(argc, argv, "Read and write a device's registers, and take its interrupts.", options);
	nvh_begin("vfio_device");
	vfio_open(&vfio, device, VFIO_BACKEND_TYPE1V2);
	vfio_command(&vfio, VFIO_MEMORY | VFIO_MASTER);
	err = vfio_bar_map(&vfio, 0, PROT_READ | PROT_WRITE, &bar);
	if (err)
		nvh_bail("mmap of BAR0: %s", nvh_errname(err));
	if ((get(REG_ID) & 0xffff) != 0x00ed)
		nvh_bail("the device is no edu: it identifies itself as 0x%08x", get(REG_ID));
	first = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	second = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (first < 0 || second < 0)
		nvh_bail("eventfd: %s", nvh_errname(errno));
	read_and_write();
	use_msi();
	use_intx();
	nvh_fact_str("failed", failed ? failed : "nothing");
	vfio_bar_unmap(&bar);
	vfio_close(&vfio);
	return nvh_end();
}
