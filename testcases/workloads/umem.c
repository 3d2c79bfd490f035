/*
 * Asks AF_XDP for packet memories (umems) that it must not take, of the same three pages, and for those
 * beside them that it must: what is wrong with each is one number.
 */
#include <errno.h>
#include <linux/if_xdp.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"
#include "pinner.h"

#define PAGE 4096UL
#define SIZE (3 * PAGE)
#define TX_METADATA_LEN 4 /* the flag XDP_UMEM_TX_METADATA_LEN, since 6.8 */

/* The call's argument at its full length, which the headers of 6.8 gave it. */
struct registration {
	uint64_t addr, len;
	uint32_t chunk_size, headroom, flags, tx_metadata_len;
};

static const struct nvh_option options[] = {{0}};

int main(int argc, char **argv)
{
	nvh_options(argc, argv, "Ask AF_XDP for packet memories whose numbers are wrong.", options);
	nvh_begin("umem");
	if (memory_page() != PAGE)
		nvh_bail("the page size is not %lu", PAGE);

	char *start = mmap(NULL, SIZE + 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t at = (uintptr_t)start + PAGE;
	const struct {
		const char *key;
		struct registration asked;
	} table[] = {
		{"good", {at, SIZE, PAGE, 0, 0, 0}},
		{"good_half_pages", {at, SIZE - PAGE / 2, PAGE / 2, 0, 0, 0}},
		{"good_headroom", {at, SIZE, PAGE, PAGE / 2, 0, 0}},
		{"good_unaligned_chunks", {at, SIZE - 1, 3000, 0, XDP_UMEM_UNALIGNED_CHUNK_FLAG, 0}},
		{"address_unaligned", {at + 2048, SIZE, PAGE, 0, 0, 0}},
		{"address_off_by_8", {at + 8, SIZE, PAGE, 0, XDP_UMEM_UNALIGNED_CHUNK_FLAG, 0}},
		{"chunk_too_small", {at, SIZE, 1024, 0, 0, 0}},
		{"chunk_too_large", {at, 2 * PAGE, 2 * PAGE, 0, 0, 0}},
		{"chunk_no_power_of_2", {at, 3000, 3000, 0, 0, 0}},
		{"size_zero", {at, 0, PAGE, 0, 0, 0}},
		{"size_below_chunk", {at, PAGE - 1, PAGE, 0, XDP_UMEM_UNALIGNED_CHUNK_FLAG, 0}},
		{"size_no_multiple", {at, SIZE - 2048, PAGE, 0, 0, 0}},
		{"size_wraps", {at, -PAGE, PAGE, 0, 0, 0}},
		{"size_of_too_many_pages", {at, PAGE << 32, PAGE, 0, 0, 0}},
		/* 256 bytes of XDP's own are to fit besides; commit 99e3a236dd43 (v5.7), CVE-2020-12659. */
		{"headroom_without_room", {at, SIZE, PAGE, PAGE - 256, 0, 0}},
		{"headroom_of_a_chunk", {at, SIZE, PAGE, PAGE, 0, 0}},
		{"headroom_sign", {at, SIZE, PAGE, 0x80000000, 0, 0}},
		{"headroom_wraps", {at, SIZE, PAGE, -1U, 0, 0}},
		{"flags_unknown", {at, SIZE, PAGE, 0, 1U << 31, 0}},
		{"metadata_too_long", {at, SIZE, PAGE, 0, TX_METADATA_LEN, 256}},
		{"metadata_unaligned", {at, SIZE, PAGE, 0, TX_METADATA_LEN, 20}},
	};

	if (start == MAP_FAILED)
		nvh_bail("mmap: %s", nvh_errname(errno));
	memory_touch(start, SIZE + 2 * PAGE, true);
	for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
		int fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0), err;

		if (fd < 0 && errno == EAFNOSUPPORT) {
			pinner_missing("AF_XDP", errno);
			break;
		}
		if (fd < 0)
			nvh_bail("socket(AF_XDP): %s", nvh_errname(errno));
		err = setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &table[i].asked, sizeof(table[i].asked)) < 0 ? errno : 0;
		nvh_fact_errno(table[i].key, err);
		nvh_step(true, "%s: %s", table[i].key, nvh_errname(err));
		close(fd);
	}
	return nvh_end();
}
