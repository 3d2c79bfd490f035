#include "vfio.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "iommufd.h"
#include "nvh.h"

/* The last component of a link below the device's sysfs directory; false when it is not there. */
static bool device_link(const char *address, const char *name, char *target, size_t size)
{
	char path[PATH_MAX];
	char full[PATH_MAX];
	ssize_t length;
	const char *base;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", address, name);
	length = readlink(path, full, sizeof(full) - 1);
	if (length < 0)
		return false;
	full[length] = '\0';
	base = strrchr(full, '/');
	base = base ? base + 1 : full;
	if (strlen(base) >= size)
		return false;
	strcpy(target, base);
	return true;
}

static off_t region_offset(const struct vfio *vfio, unsigned int index, uint64_t *size, uint32_t *flags)
{
	struct vfio_region_info info = {.argsz = sizeof(info), .index = index};

	if (ioctl(vfio->device, VFIO_DEVICE_GET_REGION_INFO, &info) < 0)
		nvh_bail("VFIO_DEVICE_GET_REGION_INFO %u: %s", index, nvh_errname(errno));
	if (size)
		*size = info.size;
	if (flags)
		*flags = info.flags;
	return (off_t)info.offset;
}

const char *const vfio_backend_words[] = {"type1", "type1v2", "compat", "compat-type1", "iommufd", NULL};

/* The kernel was built without what was asked for: nothing more can be said. */
static _Noreturn void without(const char *option, const char *what)
{
	int err = errno;

	nvh_fact_str("missing", option);
	nvh_skip("%s: %s (%s=y)", what, nvh_errname(err), option);
	exit(nvh_end());
}

static int open_iommufd(void)
{
	int fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);

	if (fd < 0 && (errno == ENOENT || errno == ENODEV))
		without("CONFIG_IOMMUFD", "/dev/iommu");
	if (fd < 0)
		nvh_bail("/dev/iommu: %s", nvh_errname(errno));
	return fd;
}

static void open_by_group(struct vfio *vfio, const char *address, const char *group, const char *driver)
{
	struct vfio_group_status status = {.argsz = sizeof(status)};
	struct vfio_iommu_type1_info info = {.argsz = sizeof(info)};
	bool compat = vfio->backend >= VFIO_BACKEND_COMPAT;
	bool old = vfio->backend == VFIO_BACKEND_TYPE1 || vfio->backend == VFIO_BACKEND_COMPAT_TYPE1;
	int type = old ? VFIO_TYPE1_IOMMU : VFIO_TYPE1v2_IOMMU;
	char path[PATH_MAX];

	if (compat)
		vfio->container = open_iommufd();
	else
		vfio->container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	if (vfio->container < 0)
		nvh_bail("/dev/vfio/vfio: %s", nvh_errname(errno));
	snprintf(path, sizeof(path), "/dev/vfio/%s", group);
	vfio->group = open(path, O_RDWR | O_CLOEXEC);
	if (vfio->group < 0)
		nvh_bail("%s: %s (the driver of %s is %s)", path, nvh_errname(errno), address, driver);
	if (ioctl(vfio->group, VFIO_GROUP_GET_STATUS, &status) < 0 || !(status.flags & VFIO_GROUP_FLAGS_VIABLE))
		nvh_bail("IOMMU group %s is not viable: a device of it has another driver than vfio-pci", group);
	if (ioctl(vfio->group, VFIO_GROUP_SET_CONTAINER, &vfio->container) < 0)
		nvh_bail("VFIO_GROUP_SET_CONTAINER: %s", nvh_errname(errno));
	if (ioctl(vfio->container, VFIO_SET_IOMMU, type) < 0)
		nvh_bail("VFIO_SET_IOMMU %d: %s (EPERM: the vIOMMU lacks interrupt remapping)", type, nvh_errname(errno));
	if (ioctl(vfio->container, VFIO_IOMMU_GET_INFO, &info) == 0)
		vfio->page_sizes = info.iova_pgsizes;
	vfio->device = ioctl(vfio->group, VFIO_GROUP_GET_DEVICE_FD, address);
	if (vfio->device < 0)
		nvh_bail("VFIO_GROUP_GET_DEVICE_FD %s: %s", address, nvh_errname(errno));
}

/* The device's own character device, whose name is that of a directory in sysfs. */
static int open_cdev(const char *address)
{
	char path[PATH_MAX];
	struct dirent *entry;
	DIR *directory;
	int fd = -1;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev", address);
	directory = opendir(path);
	if (!directory)
		without("CONFIG_VFIO_DEVICE_CDEV", path);
	while ((entry = readdir(directory)) && fd < 0) {
		if (strncmp(entry->d_name, "vfio", 4) != 0)
			continue;
		snprintf(path, sizeof(path), "/dev/vfio/devices/%s", entry->d_name);
		fd = open(path, O_RDWR | O_CLOEXEC);
		/* vfio-dev/ is there without the option, a device node is not (v6.6). */
		if (fd < 0 && errno == ENOENT)
			without("CONFIG_VFIO_DEVICE_CDEV", path);
		if (fd < 0)
			nvh_bail("%s: %s", path, nvh_errname(errno));
	}
	closedir(directory);
	if (fd < 0)
		nvh_bail("%s has no vfio device: its driver is not vfio-pci", address);
	return fd;
}

static void open_by_iommufd(struct vfio *vfio, const char *address)
{
	struct vfio_device_bind_iommufd bind = {.argsz = sizeof(bind)};
	struct iommu_ioas_alloc alloc = {.size = sizeof(alloc)};

	vfio->container = open_iommufd();
	vfio->device = open_cdev(address);
	bind.iommufd = vfio->container;
	if (ioctl(vfio->device, VFIO_DEVICE_BIND_IOMMUFD, &bind) < 0)
		nvh_bail("VFIO_DEVICE_BIND_IOMMUFD: %s", nvh_errname(errno));
	if (ioctl(vfio->container, IOMMU_IOAS_ALLOC, &alloc) < 0)
		nvh_bail("IOMMU_IOAS_ALLOC: %s", nvh_errname(errno));
	vfio->ioas = alloc.out_ioas_id;
	int err = vfio_attach(vfio);

	if (err)
		nvh_bail("VFIO_DEVICE_ATTACH_IOMMUFD_PT: %s (EPERM: the vIOMMU lacks interrupt remapping)",
			 nvh_errname(err));
}

int vfio_attach(const struct vfio *vfio)
{
	struct vfio_device_attach_iommufd_pt attach = {.argsz = sizeof(attach), .pt_id = vfio->ioas};

	return ioctl(vfio->device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) < 0 ? errno : 0;
}

int vfio_detach(const struct vfio *vfio)
{
	struct vfio_device_detach_iommufd_pt detach = {.argsz = sizeof(detach)};

	return ioctl(vfio->device, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach) < 0 ? errno : 0;
}

void vfio_open(struct vfio *vfio, const char *address, enum vfio_backend backend)
{
	char driver[64] = "none";
	char group[64];
	char iommu[64];

	if (!address || strlen(address) > 32 || strchr(address, '/'))
		nvh_usage("--device: a full PCI address such as 0000:00:05.0");
	*vfio = (struct vfio){.backend = backend, .container = -1, .group = -1, .device = -1};
	nvh_fact_str("address", address);
	device_link(address, "driver", driver, sizeof(driver));
	if (!device_link(address, "iommu_group", group, sizeof(group)))
		nvh_bail("%s has no IOMMU group: no such device, or no vIOMMU (intel_iommu=on)", address);
	nvh_fact_int("group", strtol(group, NULL, 10));
	if (!device_link(address, "iommu", iommu, sizeof(iommu)))
		strcpy(iommu, "none");
	nvh_fact_str("iommu", iommu);
	nvh_fact_str("iommu_type", vfio_backend_words[backend]);
	if (backend == VFIO_BACKEND_IOMMUFD)
		open_by_iommufd(vfio, address);
	else
		open_by_group(vfio, address, group, driver);
	vfio->config = region_offset(vfio, VFIO_PCI_CONFIG_REGION_INDEX, NULL, NULL);
	nvh_step(strncmp(iommu, "dmar", 4) == 0 || strncmp(iommu, "ivhd", 4) == 0, "%s is behind an IOMMU: group %s, %s",
		 address, group, iommu);
}

void vfio_close_device(struct vfio *vfio)
{
	if (vfio->device >= 0)
		close(vfio->device);
	vfio->device = -1;
}

void vfio_close(struct vfio *vfio)
{
	vfio_close_device(vfio);
	if (vfio->group >= 0)
		close(vfio->group);
	if (vfio->container >= 0)
		close(vfio->container);
	vfio->group = -1;
	vfio->container = -1;
}

static int ioas_map(const struct vfio *vfio, void *addr, uint64_t *iova, uint64_t size, uint32_t flags)
{
	struct iommu_ioas_map map = {
		.size = sizeof(map),
		.flags = flags,
		.ioas_id = vfio->ioas,
		.user_va = (uintptr_t)addr,
		.length = size,
		.iova = *iova,
	};
	int err = ioctl(vfio->container, IOMMU_IOAS_MAP, &map) < 0 ? errno : 0;

	*iova = map.iova;
	return err;
}

int vfio_map_anywhere(const struct vfio *vfio, void *addr, uint64_t *iova, uint64_t size)
{
	return ioas_map(vfio, addr, iova, size, IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE);
}

static int ioas_unmap(const struct vfio *vfio, uint64_t iova, uint64_t size, uint64_t *unmapped)
{
	struct iommu_ioas_unmap unmap = {
		.size = sizeof(unmap),
		.ioas_id = vfio->ioas,
		.iova = iova,
		.length = size,
	};
	int err = ioctl(vfio->container, IOMMU_IOAS_UNMAP, &unmap) < 0 ? errno : 0;

	*unmapped = err ? 0 : unmap.length;
	return err;
}

int vfio_map_for(const struct vfio *vfio, void *addr, uint64_t iova, uint64_t size, unsigned int access)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = (access & VFIO_DMA_READ ? VFIO_DMA_MAP_FLAG_READ : 0) |
			 (access & VFIO_DMA_WRITE ? VFIO_DMA_MAP_FLAG_WRITE : 0),
		.vaddr = (uintptr_t)addr,
		.iova = iova,
		.size = size,
	};

	if (vfio->backend == VFIO_BACKEND_IOMMUFD)
		return ioas_map(vfio, addr, &iova, size,
				IOMMU_IOAS_MAP_FIXED_IOVA | (access & VFIO_DMA_READ ? IOMMU_IOAS_MAP_READABLE : 0) |
					(access & VFIO_DMA_WRITE ? IOMMU_IOAS_MAP_WRITEABLE : 0));
	return ioctl(vfio->container, VFIO_IOMMU_MAP_DMA, &map) < 0 ? errno : 0;
}

int vfio_map(const struct vfio *vfio, void *addr, uint64_t iova, uint64_t size, bool write)
{
	return vfio_map_for(vfio, addr, iova, size, VFIO_DMA_READ | (write ? VFIO_DMA_WRITE : 0));
}

int vfio_try_unmap(const struct vfio *vfio, uint64_t iova, uint64_t size, uint64_t *unmapped)
{
	struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof(unmap), .iova = iova, .size = size};
	int err;

	if (vfio->backend == VFIO_BACKEND_IOMMUFD) {
		err = ioas_unmap(vfio, iova, size, unmapped);
	} else {
		err = ioctl(vfio->container, VFIO_IOMMU_UNMAP_DMA, &unmap) < 0 ? errno : 0;
		*unmapped = err ? 0 : unmap.size;
	}
	return err;
}

int vfio_unmap(const struct vfio *vfio, uint64_t iova, uint64_t size, uint64_t *unmapped)
{
	int err = vfio_try_unmap(vfio, iova, size, unmapped);

	/* Nothing was there: type1 says so by the size alone, and compat since afb47765f923 (v6.18). */
	return err == ENOENT && vfio->backend >= VFIO_BACKEND_COMPAT ? 0 : err;
}

void vfio_command(const struct vfio *vfio, unsigned int bits)
{
	const unsigned int mask = VFIO_MEMORY | VFIO_MASTER;
	uint16_t command;
	uint16_t seen;

	if (pread(vfio->device, &command, 2, vfio->config + PCI_COMMAND) != 2)
		nvh_bail("PCI_COMMAND cannot be read: %s", nvh_errname(errno));
	command = (uint16_t)((command & ~mask) | (bits & mask));
	if (pwrite(vfio->device, &command, 2, vfio->config + PCI_COMMAND) != 2)
		nvh_bail("PCI_COMMAND cannot be written: %s", nvh_errname(errno));
	if (pread(vfio->device, &seen, 2, vfio->config + PCI_COMMAND) != 2 || (seen & mask) != (bits & mask))
		nvh_bail("PCI_COMMAND: wrote 0x%x, reads 0x%x", command, seen);
}

int vfio_bar_map(const struct vfio *vfio, unsigned int index, int prot, struct vfio_bar *bar)
{
	uint64_t size;
	uint32_t flags;

	*bar = (struct vfio_bar){0};
	region_offset(vfio, VFIO_PCI_BAR0_REGION_INDEX + index, &size, &flags);
	if (size == 0 || !(flags & VFIO_REGION_INFO_FLAG_MMAP))
		return ENODEV;
	return vfio_bar_map_at(vfio, index, prot, MAP_SHARED, 0, size, bar);
}

int vfio_bar_map_at(const struct vfio *vfio, unsigned int index, int prot, int flags, size_t from, size_t size,
		    struct vfio_bar *bar)
{
	off_t offset = region_offset(vfio, VFIO_PCI_BAR0_REGION_INDEX + index, NULL, NULL);
	void *addr = mmap(NULL, size, prot, flags, vfio->device, offset + (off_t)from);

	*bar = (struct vfio_bar){0};
	if (addr == MAP_FAILED)
		return errno;
	*bar = (struct vfio_bar){.addr = addr, .size = size};
	return 0;
}

void vfio_bar_unmap(struct vfio_bar *bar)
{
	if (bar->addr)
		munmap(bar->addr, bar->size);
	*bar = (struct vfio_bar){0};
}

uint32_t vfio_bar_get(const struct vfio_bar *bar, size_t reg)
{
	return *(volatile uint32_t *)(void *)(bar->addr + reg);
}

void vfio_bar_put(const struct vfio_bar *bar, size_t reg, uint32_t value)
{
	*(volatile uint32_t *)(void *)(bar->addr + reg) = value;
}
