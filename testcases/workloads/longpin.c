/*
 * Asks a part of the kernel other than VFIO to pin memory of any source (P rows) and reports what
 * came of it: the answer, the pages' reference counts, locked memory, and whether the file can be
 * truncated.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"
#include "pinner.h"
#include "probe.h"
#include "refcount.h"
#include "uring.h"

/* How long the references of pages that were let go of may stay. */
#define RETURN_SECONDS 10.0

#define SEED_FILE 1
#define SEED_COPY 2

enum { TOUCH_NONE, TOUCH_READ, TOUCH_WRITE };

static const char *const touch_words[] = {"none", "read", "write", NULL};
static const char *const access_words[] = {"r", "rw", NULL};
static const char *const prot_words[] = {"r", "rw", NULL};

static const struct pinner *const pinners[] = {
	&uring_pinner, &rdma_pinner, &xdp_pinner, &vivid_pinner, &gup_pinner, &gup_fast_pinner, &gup_once_pinner,
};

#define PINNERS (sizeof(pinners) / sizeof(*pinners))

static const char *pinner_text;
static const char *device;
static const char *source_text = "anon";
static const char *size_text = "2M";
static const char *offset_text = "0";
static const char *prot_text = "rw";
static const char *access_text = "rw";
static const char *touch_text = "write";
static bool truncate_test;

static const struct nvh_option options[] = {
	{"pinner", &pinner_text, NULL, "io_uring, rdma, xdp, vivid, gup_test, gup_test-fast, gup_test-once"},
	{"device", &device, NULL, "of rdma, vivid, gup_test (default: where it is found)"},
	{"source", &source_text, NULL, SOURCE_HELP " (default anon)"},
	{"size", &size_text, NULL, "bytes to pin (default 2M)"},
	{"offset", &offset_text, NULL, "file offset of the mapping (default 0)"},
	{"prot", &prot_text, NULL, "of the mmap: r, rw (default rw)"},
	{"access", &access_text, NULL, "what the pinner is to do with the memory: r, rw (default rw)"},
	{"touch", &touch_text, NULL, "before pinning: none, read, write (default write)"},
	{"truncate", NULL, &truncate_test, "truncate the file while the pinner is still open"},
	{0},
};

static struct source source;
static struct mapping memory;
static struct mapping view; /* the file's own pages, through another mapping */
static struct probe probe;
static struct probe file_probe;

static const struct pinner *find_pinner(void)
{
	if (!pinner_text)
		nvh_usage("--pinner is missing");
	for (size_t i = 0; i < PINNERS; i++) {
		if (strcmp(pinners[i]->name, pinner_text) == 0)
			return pinners[i];
	}
	nvh_usage("--pinner %s: one of %s", pinner_text, options[0].help);
}

/* Maps what is behind the source a second time and fills it: blocks are there, and their pages known. */
static void map_view(off_t offset)
{
	struct source shared = source;
	const char *failed = "mmap";
	int err;

	if ((source.kind != SOURCE_FILE && source.kind != SOURCE_DAX) || source.readonly)
		return;
	shared.private = false;
	err = memory_map(&view, &shared, memory.size, offset, PROT_READ | PROT_WRITE, &failed);
	if (err)
		nvh_bail("%s of the source: %s", failed, nvh_errname(err));
	memory_fill(view.addr, view.size, SEED_FILE);
	probe_find(&file_probe, view.addr, view.size);
}

static void touch(int how)
{
	if (how == TOUCH_NONE)
		return;
	if (how == TOUCH_READ) {
		memory_touch(memory.addr, memory.size, false);
	} else if (source.private && view.addr) {
		memory_fill(memory.addr, memory.size, SEED_COPY);
		nvh_fact_bool("file_kept", memory_check(view.addr, view.size, SEED_FILE) == view.size);
	} else if (!view.addr) {
		memory_fill(memory.addr, memory.size, SEED_COPY);
	} else {
		memory_touch(memory.addr, memory.size, true);
	}
}

/* The pages to watch: those of the mapping, or, before it was ever touched, those of the file. */
static void choose_pages(int touched)
{
	if (touched == TOUCH_NONE)
		probe = file_probe;
	else if (!probe_find(&probe, memory.addr, memory.size))
		return;
	if (view.addr && file_probe.pfn[0])
		nvh_fact_int("pages_copied", (long long)probe_moved(&probe, &file_probe));
	probe_fact(&probe, "refs_before");
}

/*
 * Some pinners give pages back by a work queue, and writeback holds pages for a moment: wait until none
 * has more references than before.
 */
static void await_return(const long long before[PROBES])
{
	double start = nvh_now();
	long long now[PROBES];
	bool more;

	do {
		more = false;
		if (!probe_counts(&probe, now))
			return;
		for (size_t i = 0; i < PROBES; i++)
			more |= now[i] > before[i];
		if (more)
			nvh_sleep(0.02);
	} while (more && nvh_now() - start < RETURN_SECONDS);
	nvh_fact_seconds("return_seconds", nvh_now() - start);
}

/* Since 6.15 a mapping of a DAX page counts as a reference: take back the one that the pin has made. */
static void forget_mapping(void)
{
	if (view.addr && madvise(memory.addr, memory.size, MADV_DONTNEED) < 0)
		nvh_note("MADV_DONTNEED: %s", nvh_errname(errno));
}

/* Has the pinner tell what it has pinned: "equal" when that is what the mapping holds. */
static void check_copy(const struct pinner *pinner)
{
	int fd = memfd_create("copy", MFD_CLOEXEC);
	char *copied;
	int err;

	if (fd < 0 || ftruncate(fd, (off_t)memory.size) < 0)
		nvh_bail("memfd: %s", nvh_errname(errno));
	err = pinner->copy(memory.addr, memory.size, fd);
	if (err) {
		nvh_fact_errno("copied", err);
	} else {
		copied = mmap(NULL, memory.size, PROT_READ, MAP_SHARED, fd, 0);
		if (copied == MAP_FAILED)
			nvh_bail("mmap of the copy: %s", nvh_errname(errno));
		nvh_fact_str("copied", memcmp(copied, memory.addr, memory.size) == 0 ? "equal" : "differs");
		munmap(copied, memory.size);
	}
	nvh_step(true, "%s copies what it has pinned: %s", pinner->name, nvh_errname(err));
	close(fd);
}

static void try_to_pin(const struct pinner *pinner, bool write, bool touched)
{
	long long before[PROBES];
	bool counted = probe_counts(&probe, before);
	double start = nvh_now();
	int err = pinner->pin(memory.addr, memory.size, write);

	nvh_fact_seconds("pin_seconds", nvh_now() - start);
	if (err && pinner->passing)
		nvh_fact_str("pin", "refused");
	else
		nvh_fact_errno("pin", err);
	nvh_step(true, "%s pins %zu bytes: %s", pinner->name, memory.size, nvh_errname(err));
	if (!touched)
		forget_mapping();
	if (!err && !pinner->passing) {
		nvh_fact_int("pinned_kib", memory_status("VmPin"));
		probe_fact(&probe, "refs_pinned");
		if (pinner->copy) {
			check_copy(pinner);
			if (!touched) /* the comparison maps the pages as well */
				forget_mapping();
		}
		if (view.addr)
			nvh_fact_bool("data_kept", memory_check(view.addr, view.size, SEED_FILE) == view.size);
		err = pinner->unpin();
		nvh_fact_errno("unpin", err);
		nvh_step(true, "unpin: %s", nvh_errname(err));
	}
	if (counted)
		await_return(before);
	probe_fact(&probe, "refs_after");
	nvh_fact_int("pinned_after_kib", memory_status("VmPin"));
}

int main(int argc, char **argv)
{
	const char *failed = NULL;
	int err;

	nvh_options(argc, argv, "Have memory pinned for long by a part of the kernel other than VFIO.", options);
	const struct pinner *pinner = find_pinner();
	source_parse(source_text, &source);
	size_t size = nvh_size("size", size_text);
	off_t offset = (off_t)nvh_size("offset", offset_text);
	int prot = nvh_choice("prot", prot_text, prot_words) ? PROT_READ | PROT_WRITE : PROT_READ;
	bool write = nvh_choice("access", access_text, access_words) == 1;
	int touched = nvh_choice("touch", touch_text, touch_words);

	if (size == 0 || size % memory_page())
		nvh_usage("--size %s: no whole pages", size_text);
	if (!write && !pinner->reads)
		nvh_usage("--access r: %s pins for writing only", pinner->name);
	if (touched == TOUCH_WRITE && !(prot & PROT_WRITE))
		nvh_usage("--touch write needs --prot rw");
	if (truncate_test && (source.kind != SOURCE_FILE || source.readonly))
		nvh_usage("--truncate needs a --source file:PATH that is not :ro");

	nvh_begin("longpin");
	nvh_fact_str("pinner", pinner->name);
	nvh_fact_str("source", source_text);
	if (!pinner->open(device, write))
		return nvh_end();
	refcount_open();
	memory.size = size;
	view.fd = -1;
	map_view(offset);
	err = memory_map(&memory, &source, size, offset, prot, &failed);
	if (err)
		nvh_bail("%s: %s", failed, nvh_errname(err));
	if (source.kind == SOURCE_FILE)
		nvh_fact_int("dax", memory_is_dax(memory.fd));
	touch(touched);
	choose_pages(touched);
	nvh_fact_int("pinned_before_kib", memory_status("VmPin"));
	try_to_pin(pinner, write, touched != TOUCH_NONE);
	if (truncate_test)
		probe_truncate(memory.fd);
	memory_unmap(&memory);
	memory_unmap(&view);
	return nvh_end();
}
