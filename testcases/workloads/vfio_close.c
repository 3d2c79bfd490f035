/*
 * How the use of a VFIO device ends (V22): closed with an interrupt armed and its configuration
 * changed, its group taken from the container, and vfio-pci unbound from under its user.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "edu.h"
#include "irq.h"
#include "nvh.h"
#include "vfio.h"

/* An unbind that does not wait for the device's user has ended by then. */
#define WAITS_SECONDS 0.2
#define END_SECONDS 30

static const char *device;

static const struct nvh_option options[] = {
	{"device", &device, NULL, "PCI address of an edu that is bound to vfio-pci"},
	{0},
};

static struct vfio vfio;
static struct vfio_bar bar;
static int event; /* of interrupts */
static uint8_t cache_line; /* PCI_CACHE_LINE_SIZE as the first use found it */

static void open_device(void)
{
	vfio_open(&vfio, device, VFIO_BACKEND_TYPE1V2);
	vfio_command(&vfio, VFIO_MEMORY | VFIO_MASTER);
	edu_bar_map(&vfio, &bar);
	/* One that was left raised is not this user's. */
	vfio_bar_put(&bar, EDU_ACKNOWLEDGE, vfio_bar_get(&bar, EDU_STATUS));
}

/* The device's configuration space as everybody sees it, without VFIO. */
static void read_config(uint8_t *bytes, size_t size)
{
	char path[PATH_MAX];
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/config", device);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || pread(fd, bytes, size, 0) != (ssize_t)size)
		nvh_bail("%s: %s", path, nvh_errname(errno));
	close(fd);
}

/* Whether the device's MSI is enabled. */
static bool msi_enabled(const uint8_t *bytes)
{
	unsigned int at = bytes[PCI_CAPABILITY_LIST];

	for (int left = 48; left && at >= PCI_STD_HEADER_SIZEOF && at < 252; left--) {
		if (bytes[at] == PCI_CAP_ID_MSI)
			return bytes[at + PCI_MSI_FLAGS] & PCI_MSI_FLAGS_ENABLE;
		at = bytes[at + PCI_CAP_LIST_NEXT];
	}
	nvh_bail("%s has no MSI", device);
}

/* How many of /proc/interrupts are the device's and vfio-pci's; *shared where another has the line too. */
static long long interrupt_lines(bool *shared)
{
	FILE *file = fopen("/proc/interrupts", "re");
	char address[64], *line = NULL;
	long long lines = 0;
	size_t size = 0;

	if (!file)
		nvh_bail("/proc/interrupts: %s", nvh_errname(errno));
	snprintf(address, sizeof(address), "(%s)", device);
	*shared = false;
	while (getline(&line, &size, file) > 0) {
		if (!strstr(line, "vfio-") || !strstr(line, address))
			continue;
		nvh_note("%.*s", (int)strcspn(line, "\n"), line);
		*shared = strchr(line, ',') != NULL;
		lines++;
	}
	free(line);
	fclose(file);
	return lines;
}

/* MSI, bus mastering, interrupt lines, whether the byte is another: as the next user finds them. */
static bool look(const char *key)
{
	uint8_t bytes[256];
	long long seen[4];
	bool shared;

	read_config(bytes, sizeof(bytes));
	seen[0] = msi_enabled(bytes);
	seen[1] = !!(bytes[PCI_COMMAND] & PCI_COMMAND_MASTER);
	seen[2] = interrupt_lines(&shared);
	seen[3] = bytes[PCI_CACHE_LINE_SIZE] != cache_line;
	nvh_fact_ints(key, seen, 4);
	return shared;
}

static void change_config(void)
{
	uint8_t byte = cache_line ^ 0x10;

	if (pwrite(vfio.device, &byte, 1, vfio.config + PCI_CACHE_LINE_SIZE) != 1)
		nvh_bail("PCI_CACHE_LINE_SIZE: %s", nvh_errname(errno));
}

/* Arms it and has it come twice; INTx is unmasked in between. */
static void use_interrupt(const char *armed, const char *events, uint32_t index)
{
	long long seen[2];

	nvh_fact_errno(armed, irq_set(&vfio, IRQ_EVENTFD, index, 0, 1, event));
	for (int i = 0; i < 2; i++) {
		irq_raise(&bar);
		seen[i] = irq_events(event, true);
		irq_acknowledge(&bar);
		if (index == VFIO_PCI_INTX_IRQ_INDEX)
			irq_set(&vfio, IRQ_UNMASK, index, 0, 1, 0);
	}
	nvh_fact_ints(events, seen, 2);
}

/* What a group refuses while its device is open. */
static void try_open_group(void)
{
	int err = ioctl(vfio.group, VFIO_GROUP_SET_CONTAINER, &vfio.container) < 0 ? errno : 0;

	nvh_fact_errno("container_again", err);
	err = ioctl(vfio.group, VFIO_GROUP_UNSET_CONTAINER) < 0 ? errno : 0;
	nvh_fact_errno("unset_while_open", err);
	nvh_step(true, "tried a group whose device is open: %s", nvh_errname(err));
	/* A device without a container: what it does from here on says nothing. */
	if (!err)
		exit(nvh_end());
}

static void try_closed_group(void)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", vfio.group);
	fd = open(path, O_RDWR | O_CLOEXEC);
	nvh_fact_errno("group_again", fd < 0 ? errno : 0);
	if (fd >= 0)
		close(fd);
	nvh_fact_errno("unset", ioctl(vfio.group, VFIO_GROUP_UNSET_CONTAINER) < 0 ? errno : 0);
	nvh_fact_errno("unset_again", ioctl(vfio.group, VFIO_GROUP_UNSET_CONTAINER) < 0 ? errno : 0);
	fd = ioctl(vfio.group, VFIO_GROUP_GET_DEVICE_FD, device);
	nvh_fact_errno("device_without_container", fd < 0 ? errno : 0);
	if (fd >= 0)
		close(fd);
	nvh_step(true, "took the group from its container");
}

static void close_armed(void)
{
	change_config();
	use_interrupt("msi", "msi_events", VFIO_PCI_MSI_IRQ_INDEX);
	look("msi_held");
	try_open_group();
	vfio_bar_unmap(&bar);
	vfio_close_device(&vfio);
	look("msi_closed");
	nvh_step(true, "closed with MSI armed");
	try_closed_group();
	vfio_close(&vfio);

	open_device();
	change_config();
	use_interrupt("intx_after_msi", "intx_after_msi_events", VFIO_PCI_INTX_IRQ_INDEX);
	irq_raise(&bar);
	irq_events(event, true);
	/* Nobody would serve who shares the line: a device without a reset goes on raising it. */
	if (look("intx_held"))
		irq_acknowledge(&bar);
	vfio_bar_unmap(&bar);
	vfio_close(&vfio);
	look("intx_closed");
	nvh_step(true, "closed with INTx armed");

	open_device();
	use_interrupt("msi_after_intx", "msi_after_intx_events", VFIO_PCI_MSI_IRQ_INDEX);
	nvh_fact_errno("disarm", irq_set(&vfio, IRQ_NONE, VFIO_PCI_MSI_IRQ_INDEX, 0, 0, 0));
}

/* Writes the device's address to a file of its driver; returns 0 or errno. */
static int write_driver(const char *file)
{
	char path[PATH_MAX];
	int err = 0;
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/drivers/vfio-pci/%s", file);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, device, strlen(device)) < 0)
		err = errno;
	if (fd >= 0)
		close(fd);
	return err;
}

/* A child that unbinds the driver, and holds nothing itself that the unbind would wait for. */
static pid_t unbind_start(void)
{
	pid_t child = fork();

	if (child < 0)
		nvh_bail("fork: %s", nvh_errname(errno));
	if (child == 0) {
		/* A hung one must not keep the reader of this output waiting. */
		close(STDOUT_FILENO);
		close(STDERR_FILENO);
		vfio_close(&vfio);
		_exit(write_driver("unbind"));
	}
	return child;
}

static bool file_there(const char *format, const char *name)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), format, name);
	return access(path, F_OK) == 0;
}

/* The user is asked for the device, keeps it a moment, and lets go of it. */
static void unbind_open(void)
{
	char link[64], node[64] = "";
	uint16_t vendor = 0;
	long long seen;
	int status = 0;
	bool ended;
	pid_t child;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", vfio.group);
	if (readlink(link, node, sizeof(node) - 1) < 0)
		nvh_bail("%s: %s", link, nvh_errname(errno));
	nvh_fact_errno("request", irq_set(&vfio, IRQ_EVENTFD, VFIO_PCI_REQ_IRQ_INDEX, 0, 1, event));
	irq_set(&vfio, IRQ_NONE, VFIO_PCI_REQ_IRQ_INDEX, 0, 1, 0);
	nvh_fact_int("request_triggered", irq_events(event, true));
	/* A child inherits what is mapped, and would hold the device by it. */
	vfio_bar_unmap(&bar);
	child = unbind_start();
	/* It is repeated every 10 s. */
	seen = irq_events(event, true);
	nvh_fact_bool("requested", seen > 0);
	ended = nvh_child_ends(child, WAITS_SECONDS, &status, NULL);
	nvh_fact_bool("waits", !ended);
	nvh_fact_bool("still_there", pread(vfio.device, &vendor, 2, vfio.config) == 2 && vendor == 0x1234);
	vfio_close(&vfio);
	ended = ended || nvh_child_ends(child, END_SECONDS, &status, NULL);
	nvh_fact_bool("ended", ended);
	nvh_step(true, "the unbind %s", ended ? "ended" : "goes on");
	if (!ended)
		exit(nvh_end());
	nvh_fact_errno("unbind", WIFEXITED(status) ? WEXITSTATUS(status) : EINTR);
	nvh_fact_bool("driver_left", file_there("/sys/bus/pci/devices/%s/driver", device));
	nvh_fact_bool("group_left", file_there("%s", node));
	nvh_fact_errno("bind", write_driver("bind"));
}

int main(int argc, char **argv)
{
	uint8_t bytes[PCI_STD_HEADER_SIZEOF];

	nvh_options(argc, argv, "Close a device with its interrupts armed, unbind vfio-pci from an open one.", options);
	nvh_begin("vfio_close");
	event = irq_eventfd();
	open_device();
	read_config(bytes, sizeof(bytes));
	cache_line = bytes[PCI_CACHE_LINE_SIZE];
	close_armed();
	unbind_open();
	open_device();
	use_interrupt("msi_after_bind", "msi_after_bind_events", VFIO_PCI_MSI_IRQ_INDEX);
	vfio_bar_unmap(&bar);
	vfio_close(&vfio);
	return nvh_end();
}
