/*
 * A PCI device held through VFIO: container, group, device, DMA mappings (type1 or iommufd), regions,
 * PCI_COMMAND.
 */
#ifndef NVH_VFIO_H
#define NVH_VFIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * Who makes the DMA mappings, in the order of vfio_backend_words: a container of type1; /dev/iommu in
 * the place of the container, which understands the same ioctls, and the same as a type1 of old; /dev/iommu
 * with its own ioctls and the device opened without its group.
 */
enum vfio_backend {
	VFIO_BACKEND_TYPE1,
	VFIO_BACKEND_TYPE1V2,
	VFIO_BACKEND_COMPAT,
	VFIO_BACKEND_COMPAT_TYPE1,
	VFIO_BACKEND_IOMMUFD,
};

extern const char *const vfio_backend_words[];
#define VFIO_BACKEND_HELP \
	"who maps: type1, type1v2, compat (/dev/iommu as container), compat-type1, iommufd (default type1v2)"

struct vfio {
	enum vfio_backend backend;
	int container; /* or /dev/iommu */
	int group; /* -1 without one */
	int device;
	uint32_t ioas; /* of iommufd: the I/O address space */
	uint64_t page_sizes; /* bit mask of the IOMMU's page sizes */
	off_t config; /* file offset of the PCI configuration space */
};

/* A memory region (BAR) of the device, mmap'ed. */
struct vfio_bar {
	uint8_t *addr;
	size_t size;
};

/*
 * Opens the device at a full PCI address (0000:00:05.0), which must be bound to vfio-pci.  Reports the
 * facts address, group, iommu (the vIOMMU that translates for it, such as dmar0) and iommu_type, and the
 * step that proves the vIOMMU.  nvh_bail() when it cannot be opened; where the kernel has no such
 * backend, the fact missing names the option and the workload ends here with a skipped step.
 */
void vfio_open(struct vfio *vfio, const char *address, enum vfio_backend backend);

/* Closes the device, then group and container, which ends all mappings. */
void vfio_close(struct vfio *vfio);
void vfio_close_device(struct vfio *vfio);

/* VFIO_IOMMU_MAP_DMA or IOMMU_IOAS_MAP, readable by the device and, with write, writable; returns 0 or errno. */
int vfio_map(const struct vfio *vfio, void *addr, uint64_t iova, uint64_t size, bool write);

/* As vfio_map(), for any access or none by the device. */
#define VFIO_DMA_READ 0x1
#define VFIO_DMA_WRITE 0x2
int vfio_map_for(const struct vfio *vfio, void *addr, uint64_t iova, uint64_t size, unsigned int access);

/*
 * VFIO_IOMMU_UNMAP_DMA or IOMMU_IOAS_UNMAP; *unmapped is the size that the kernel says it unmapped.
 * Returns 0 or errno; where nothing was mapped 0, and *unmapped is 0.
 */
int vfio_unmap(const struct vfio *vfio, uint64_t iova, uint64_t size, uint64_t *unmapped);

/* As vfio_unmap(), but an error is told as it is, also where nothing was mapped. */
int vfio_try_unmap(const struct vfio *vfio, uint64_t iova, uint64_t size, uint64_t *unmapped);

/* Of iommufd alone: as vfio_map(), at an IOVA that the kernel chooses. */
int vfio_map_anywhere(const struct vfio *vfio, void *addr, uint64_t *iova, uint64_t size);

/* Of iommufd alone: takes the device off its I/O address space, and puts it back.  Return 0 or errno. */
int vfio_detach(const struct vfio *vfio);
int vfio_attach(const struct vfio *vfio);

/* The bits of PCI_COMMAND that workloads turn on and off. */
#define VFIO_MEMORY 0x2
#define VFIO_MASTER 0x4

/* Sets these two bits of PCI_COMMAND as given and reads them back; nvh_bail() when they do not stay. */
void vfio_command(const struct vfio *vfio, unsigned int bits);

/*
 * Maps a BAR with the given PROT_ bits.  Returns 0 or errno: ENODEV when the BAR cannot be mapped.
 */
int vfio_bar_map(const struct vfio *vfio, unsigned int index, int prot, struct vfio_bar *bar);

/* As vfio_bar_map(), for size bytes from an offset in the BAR, with the given MAP_ flags. */
int vfio_bar_map_at(const struct vfio *vfio, unsigned int index, int prot, int flags, size_t from, size_t size,
		    struct vfio_bar *bar);
void vfio_bar_unmap(struct vfio_bar *bar);

/* A register of 32 bits. */
uint32_t vfio_bar_get(const struct vfio_bar *bar, size_t reg);
void vfio_bar_put(const struct vfio_bar *bar, size_t reg, uint32_t value);

#endif
