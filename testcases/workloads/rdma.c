/* Memory regions of RDMA, through the system calls that libibverbs makes: it cannot be linked statically here. */
#include <errno.h>
#include <fcntl.h>
#include <rdma/ib_user_ioctl_verbs.h>
#include <rdma/ib_user_verbs.h>
#include <stdint.h>
#include <unistd.h>

#include "nvh.h"
#include "pinner.h"

#define DEFAULT_DEVICE "/dev/infiniband/uverbs0"

static int uverbs = -1;
static uint32_t domain; /* the protection domain that regions belong to */
static uint32_t region;

/* Sends a command whose header comes first; response sizes are in 32-bit words.  Returns 0 or errno. */
static int command(uint32_t number, void *words, size_t size, size_t response)
{
	struct ib_uverbs_cmd_hdr *header = words;

	*header = (struct ib_uverbs_cmd_hdr){
		.command = number,
		.in_words = (uint16_t)(size / 4),
		.out_words = (uint16_t)(response / 4),
	};
	return write(uverbs, words, size) == (ssize_t)size ? 0 : errno;
}

static bool open_rdma(const char *device, bool write)
{
	const char *path = device ? device : DEFAULT_DEVICE;
	struct ib_uverbs_get_context_resp context = {0};
	struct ib_uverbs_alloc_pd_resp pd = {0};
	struct {
		struct ib_uverbs_cmd_hdr header;
		uint64_t response;
	} get_context = {.response = (uintptr_t)&context}, alloc_pd = {.response = (uintptr_t)&pd};
	int err;

	(void)write;
	uverbs = open(path, O_RDWR | O_CLOEXEC);
	if (uverbs < 0)
		return pinner_missing(path, errno);
	err = command(IB_USER_VERBS_CMD_GET_CONTEXT, &get_context, sizeof(get_context), sizeof(context));
	if (err)
		nvh_bail("%s: GET_CONTEXT: %s", path, nvh_errname(err));
	err = command(IB_USER_VERBS_CMD_ALLOC_PD, &alloc_pd, sizeof(alloc_pd), sizeof(pd));
	if (err)
		nvh_bail("%s: ALLOC_PD: %s", path, nvh_errname(err));
	domain = pd.pd_handle;
	return true;
}

static int register_region(void *addr, size_t size, bool write, uint32_t *handle)
{
	struct ib_uverbs_reg_mr_resp answer = {0};
	struct {
		struct ib_uverbs_cmd_hdr header;
		struct ib_uverbs_reg_mr body;
	} reg_mr = {
		.body = {
			.response = (uintptr_t)&answer,
			.start = (uintptr_t)addr,
			.length = size,
			.hca_va = (uintptr_t)addr,
			.pd_handle = domain,
			.access_flags = write ? IB_UVERBS_ACCESS_LOCAL_WRITE : 0,
		},
	};
	int err = command(IB_USER_VERBS_CMD_REG_MR, &reg_mr, sizeof(reg_mr), sizeof(answer));

	*handle = answer.mr_handle;
	return err;
}

static int end_region(uint32_t handle)
{
	struct {
		struct ib_uverbs_cmd_hdr header;
		struct ib_uverbs_dereg_mr body;
	} dereg_mr = {.body = {.mr_handle = handle}};

	return command(IB_USER_VERBS_CMD_DEREG_MR, &dereg_mr, sizeof(dereg_mr), 0);
}

static int pin(void *addr, size_t size, bool write)
{
	return register_region(addr, size, write, &region);
}

static int unpin(void)
{
	return end_region(region);
}

static int pin_more(void *addr, size_t size, bool write)
{
	uint32_t other;
	int err = register_region(addr, size, write, &other);

	return err ? err : end_region(other);
}

/* Its regions end with the descriptor. */
static int end(void)
{
	return close(uverbs) < 0 ? errno : 0;
}

const struct pinner rdma_pinner = {
	.name = "rdma", .reads = true, .open = open_rdma, .pin = pin, .pin_more = pin_more, .unpin = unpin, .end = end,
};
