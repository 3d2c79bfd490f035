/* The packet memory (umem) of an AF_XDP socket. */
#include <errno.h>
#include <linux/if_xdp.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"
#include "pinner.h"

static int xsk = -1;

static bool open_xdp(const char *device, bool write)
{
	(void)device;
	(void)write;
	xsk = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (xsk >= 0)
		return true;
	if (errno != EAFNOSUPPORT)
		nvh_bail("socket(AF_XDP): %s", nvh_errname(errno));
	return pinner_missing("AF_XDP", errno);
}

/* In chunks of a page, or of half a page where the last page is to be used by half. */
static int set_umem(int fd, void *addr, size_t size)
{
	size_t page = memory_page(), chunk = size % page ? page / 2 : page;
	struct xdp_umem_reg umem = {.addr = (uintptr_t)addr, .len = size, .chunk_size = (uint32_t)chunk};

	return setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &umem, sizeof(umem)) < 0 ? errno : 0;
}

static int pin(void *addr, size_t size, bool write)
{
	(void)write; /* packets are received into it */
	return set_umem(xsk, addr, size);
}

static int pin_more(void *addr, size_t size, bool write)
{
	int other = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
	int err;

	(void)write;
	if (other < 0)
		nvh_bail("socket(AF_XDP): %s", nvh_errname(errno));
	err = set_umem(other, addr, size);
	close(other);
	return err;
}

/* A socket keeps its umem to its end; the pages are given back by a work queue. */
static int unpin(void)
{
	return close(xsk) < 0 ? errno : 0;
}

const struct pinner xdp_pinner = {
	.name = "xdp", .once = true, .open = open_xdp, .pin = pin, .pin_more = pin_more, .unpin = unpin,
};
