/*
 * Poisons a page of a mapping with madvise(MADV_HWPOISON) and reports the signals that this process and
 * another one get for it; then looks at every page: which can still be read, is their data
 * right, and which can be written.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"

#define SEED 9
/* What is filled and looked at of a larger mapping: 1 GiB takes too long under TCG. */
#define CHECKED (8UL << 20)
#define LISTED 16

static const char *const other_words[] = {"late", "early", NULL};

/* What a signal said; nothing of it counts while signum is 0. */
struct seen {
	int signum;
	int code;
	int lsb;
	uintptr_t addr;
};

static struct seen caught;
static sigjmp_buf escape;
static volatile sig_atomic_t escaping;

static void on_bus(int signum, siginfo_t *info, void *context)
{
	(void)context;
	if (!caught.signum)
		caught = (struct seen){signum, info->si_code, info->si_addr_lsb, (uintptr_t)info->si_addr};
	if (escaping)
		siglongjmp(escape, 1);
}

static const char *code_name(int code)
{
	static char number[32];

	switch (code) {
	case BUS_MCEERR_AR:
		return "BUS_MCEERR_AR";
	case BUS_MCEERR_AO:
		return "BUS_MCEERR_AO";
	case BUS_ADRERR:
		return "BUS_ADRERR";
	case BUS_OBJERR:
		return "BUS_OBJERR";
	}
	snprintf(number, sizeof(number), "code %d", code);
	return number;
}

/* Facts PREFIXsignal and, when there was one, PREFIXcode, PREFIXlsb, PREFIXat (an offset in the mapping). */
static void report(const char *prefix, const struct seen *seen, const void *start)
{
	char key[64];

	snprintf(key, sizeof(key), "%ssignal", prefix);
	nvh_fact_str(key, seen->signum ? sigabbrev_np(seen->signum) : "none");
	if (!seen->signum)
		return;
	snprintf(key, sizeof(key), "%scode", prefix);
	nvh_fact_str(key, code_name(seen->code));
	snprintf(key, sizeof(key), "%slsb", prefix);
	/* The field is there for machine checks only (sigaction(2)). */
	nvh_fact_int(key, seen->code == BUS_MCEERR_AR || seen->code == BUS_MCEERR_AO ? seen->lsb : 0);
	snprintf(key, sizeof(key), "%sat", prefix);
	nvh_fact_int(key, (long long)(seen->addr - (uintptr_t)start));
}

static void handle_bus(void)
{
	struct sigaction action = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO};

	sigemptyset(&action.sa_mask);
	if (sigaction(SIGBUS, &action, NULL))
		nvh_bail("sigaction: %s", nvh_errname(errno));
}

/* Reads one page into a buffer, with the signal that this may end in. */
static struct seen read_page(const void *page, void *into)
{
	caught = (struct seen){0};
	escaping = 1;
	if (sigsetjmp(escape, 1) == 0)
		memcpy(into, page, memory_page());
	escaping = 0;
	return caught;
}

/*
 * The other process: maps the source anew, touches the page, says so, and when it is told that the page
 * is poisoned tells which signal it was sent and whether the page is still in its page tables.
 */
struct other {
	pid_t pid;
	int line; /* one end of a socket pair */
};

struct answer {
	struct seen seen; /* addr counts from the start of the mapping */
	uint64_t pfn; /* before */
	bool mapped;
};

static _Noreturn void other_run(const struct source *source, size_t size, off_t offset, size_t at, bool write_too,
				int line)
{
	struct timespec now = {0};
	struct answer answer;
	struct mapping view;
	siginfo_t info;
	sigset_t bus;
	char byte = 0;

	sigemptyset(&bus);
	sigaddset(&bus, SIGBUS);
	sigprocmask(SIG_BLOCK, &bus, NULL);
	if (memory_map(&view, source, size, offset, PROT_READ | PROT_WRITE, NULL))
		_exit(1);
	if (write_too)
		memory_touch((char *)view.addr + at, 1, true);
	else
		memory_touch(view.addr, size, false);
	memset(&answer, 0, sizeof(answer));
	/* Whoever reads pagemap takes a mapping of 1 GiB down (walk_pud_range() splits it). */
	if (!write_too)
		answer.pfn = memory_pfn((char *)view.addr + at);
	if (write(line, &byte, 1) != 1 || read(line, &byte, 1) != 1)
		_exit(1);
	answer.mapped = memory_pfn((char *)view.addr + at) != 0;
	/* Signals are sent within madvise(), so it is there by now or never. */
	if (sigtimedwait(&bus, &info, &now) > 0) {
		uintptr_t from = (uintptr_t)info.si_addr - (uintptr_t)view.addr;

		answer.seen = (struct seen){info.si_signo, info.si_code, info.si_addr_lsb, from};
	}
	if (write(line, &answer, sizeof(answer)) != sizeof(answer))
		_exit(1);
	_exit(0);
}

static struct other other_start(const struct source *source, const struct mapping *memory, size_t at, bool early,
				bool write_too)
{
	struct other other;
	int ends[2];
	char byte;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
		nvh_bail("socketpair: %s", nvh_errname(errno));
	other.pid = fork();
	if (other.pid < 0)
		nvh_bail("fork: %s", nvh_errname(errno));
	if (other.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (prctl(PR_MCE_KILL, PR_MCE_KILL_SET, early ? PR_MCE_KILL_EARLY : PR_MCE_KILL_LATE, 0, 0))
			_exit(1);
		/* Not the inherited mapping: its own, at an address of its own. */
		munmap(memory->addr, memory->size);
		close(ends[0]);
		other_run(source, memory->size, memory->offset, at, write_too, ends[1]);
	}
	close(ends[1]);
	other.line = ends[0];
	if (!nvh_step(read(other.line, &byte, 1) == 1, "another process has the page mapped"))
		nvh_bail("the other process could not map the page");
	return other;
}

/* Facts other_signal and so on, other_mapped, and same_frame: that both had the page whose frame is given. */
static void other_report(struct other *other, uint64_t pfn)
{
	struct answer answer;
	int status = 0;

	if (write(other->line, "", 1) == 1 && read(other->line, &answer, sizeof(answer)) == sizeof(answer)) {
		report("other_", &answer.seen, NULL);
		nvh_fact_bool("other_mapped", answer.mapped);
		nvh_fact_bool("same_frame", pfn && answer.pfn == pfn);
	}
	waitpid(other->pid, &status, 0);
	if (WIFSIGNALED(status))
		nvh_fact_str("other_signal", sigabbrev_np(WTERMSIG(status)));
	nvh_step(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the other process told what it saw");
}

/* The range that the signal gave up: the page's own bytes, or all that its mapping covers. */
static void extent_of(const struct seen *seen, const struct mapping *memory, size_t at, size_t *from, size_t *to)
{
	size_t size = memory_page();

	if (seen->signum && seen->lsb > 0 && seen->lsb < 48)
		size = 1UL << seen->lsb;
	/* Aligned as addresses are: device-dax and huge mappings start at a multiple of it. */
	*from = (((uintptr_t)memory->addr + at) & ~(size - 1)) - (uintptr_t)memory->addr;
	*to = *from + size;
}

static void poison(const struct mapping *memory, size_t at, size_t *from, size_t *to)
{
	char *page = (char *)memory->addr + at;
	struct seen again;
	char buffer[65536];
	int err;

	caught = (struct seen){0};
	err = madvise(page, memory_page(), MADV_HWPOISON) ? errno : 0;
	/* The signal is delivered when the call returns, so it has been handled by now. */
	nvh_fact_errno("poison", err);
	if (err == EINVAL || err == EPERM)
		nvh_fact_str("missing", err == EPERM ? "CAP_SYS_ADMIN" : "MADV_HWPOISON");
	report("", &caught, memory->addr);
	nvh_fact_bool("mapped", memory_pfn(page) != 0);
	extent_of(&caught, memory, at, from, to);
	nvh_fact_int("extent", (long long)(*to - *from));
	nvh_fact_bool("extent_holds", caught.signum && caught.addr - (uintptr_t)memory->addr >= *from &&
					      caught.addr - (uintptr_t)memory->addr < *to);
	nvh_step(true, "madvise(MADV_HWPOISON): %s, signal %d", nvh_errname(err), caught.signum);
	again = read_page(page, buffer);
	report("again_", &again, memory->addr);
}

/*
 * Reads every page through the mapping and, of a file, with pread() as well.  Facts: faulted and
 * unreadable (pages outside [from, to), at most LISTED), fault_* (the first signal), faulted_inside (how
 * many pages of the range), read_error, rest (is the data of all that can be read right).
 */
static void survey(const struct mapping *memory, const struct source *source, size_t from, size_t to)
{
	size_t page = memory_page(), size = memory->size < CHECKED ? memory->size : CHECKED;
	long long faulted[LISTED], unreadable[LISTED];
	size_t faults = 0, inside = 0, errors = 0, wrong = 0;
	struct seen first = {0};
	char buffer[65536];

	for (size_t at = 0; at < size; at += page) {
		struct seen seen = read_page((char *)memory->addr + at, buffer);

		if (!seen.signum) {
			wrong += memory_check_at(buffer, page, SEED, at) != page;
			continue;
		}
		if (!first.signum)
			first = seen;
		if (at >= from && at < to)
			inside++;
		else if (faults++ < LISTED)
			faulted[faults - 1] = (long long)(at / page);
	}
	report("fault_", &first, memory->addr);
	nvh_fact_ints("faulted", faulted, faults < LISTED ? faults : LISTED);
	nvh_fact_int("faulted_inside", (long long)inside);
	for (size_t at = 0; source->kind == SOURCE_FILE && at < size; at += page) {
		ssize_t got = pread(memory->fd, buffer, page, memory->offset + (off_t)at);

		if (got == (ssize_t)page) {
			wrong += memory_check_at(buffer, page, SEED, at) != page;
			continue;
		}
		nvh_fact_errno("read_error", got < 0 ? errno : 0);
		if (errors++ < LISTED)
			unreadable[errors - 1] = (long long)(at / page);
	}
	if (source->kind == SOURCE_FILE)
		nvh_fact_ints("unreadable", unreadable, errors < LISTED ? errors : LISTED);
	nvh_fact_str("rest", wrong ? "differs" : "equal");
	nvh_step(true, "%zu pages looked at: %zu faulted, %zu cannot be read, %zu differ", size / page, faults + inside,
		 errors, wrong);
}

/* How many bytes were written, or the errno. */
static void report_written(const char *key, ssize_t bytes)
{
	if (bytes < 0)
		nvh_fact_errno(key, errno);
	else
		nvh_fact_int(key, bytes);
}

/*
 * Writes the page anew with pwrite(), alone and then between its neighbours, and reads these.
 * Facts: written and written_around (of three pages: bytes, or an errno); page_before and
 * page_behind, whether these hold the new data or the old.
 */
static void overwrite(const struct mapping *memory, size_t at)
{
	const char *const names[] = {"page_before", "page_behind"};
	size_t page = memory_page(), first = at - page;
	char buffer[3 * 65536];
	ssize_t alone, around;

	memory_fill_at(buffer, 3 * page, SEED + 1, first);
	alone = pwrite(memory->fd, buffer + page, page, memory->offset + (off_t)at);
	report_written("written", alone);
	around = pwrite(memory->fd, buffer, 3 * page, memory->offset + (off_t)first);
	report_written("written_around", around);
	for (size_t i = 0; i < 2; i++) {
		size_t from = first + i * 2 * page;
		const char *seen = "neither";

		if (pread(memory->fd, buffer, page, memory->offset + (off_t)from) != (ssize_t)page)
			seen = "unreadable";
		else if (memory_check_at(buffer, page, SEED + 1, from) == page)
			seen = "new";
		else if (memory_check_at(buffer, page, SEED, from) == page)
			seen = "old";
		nvh_fact_str(names[i], seen);
	}
	nvh_step(true, "write() of the page: %zd, of three around it: %zd", alone, around);
}

/* The other one maps a clone of the file, and may only read it: a store would make its page another. */
static void make_clone(const struct mapping *memory, struct source *source)
{
	int fd = open(source->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (fd < 0)
		nvh_bail("%s: %s", source->path, nvh_errname(errno));
	nvh_fact_errno("clone", ioctl(fd, FICLONE, memory->fd) ? errno : 0);
	close(fd);
}

int main(int argc, char **argv)
{
	const char *spec = NULL, *size_text = "4M", *offset = "0", *at_text = "0", *failed;
	const char *other_text = NULL, *clone_path = NULL;
	bool madvised = false, keep = false, overwritten = false;
	const struct nvh_option options[] = {
		{"source", &spec, NULL, "file:PATH or dax:/dev/daxX.Y"},
		{"size", &size_text, NULL, "bytes to map (default 4M)"},
		{"offset", &offset, NULL, "where in the file the mapping starts (default 0)"},
		{"at", &at_text, NULL, "where in the mapping the page lies (default 0)"},
		{"poison", NULL, &madvised, "poison that page with MADV_HWPOISON"},
		{"other", &other_text, NULL, "another process maps and touches it first; its PR_MCE_KILL: late, early"},
		{"clone", &clone_path, NULL, "the other process maps this file, made as a clone of --source, and reads all of it"},
		{"keep", NULL, &keep, "do not write the pattern: an earlier run has"},
		{"overwrite", NULL, &overwritten, "then write() that page, alone and with others"},
		{NULL, NULL, NULL, NULL},
	};
	struct source source, others;
	struct other other = {0};
	struct mapping memory;
	size_t at, size, from = 0, to = 0;
	bool early = false;
	int err;

	nvh_options(argc, argv, "Poison a page of DAX memory and look at what can be read.", options);
	if (!spec)
		nvh_usage("--source SPEC is needed");
	source_parse(spec, &source);
	if (source.kind != SOURCE_FILE && source.kind != SOURCE_DAX)
		nvh_usage("--source %s: file:PATH or dax:/dev/daxX.Y", spec);
	size = nvh_size("size", size_text);
	at = nvh_size("at", at_text);
	if (at % memory_page() || at >= size || at >= CHECKED)
		nvh_usage("--at %s: the start of a page within --size and the first 8 MiB", at_text);
	if (other_text)
		early = nvh_choice("other", other_text, other_words) == 1;
	if (other_text && !madvised)
		nvh_usage("--other needs --poison");
	if (clone_path && (!other_text || source.kind != SOURCE_FILE || strlen(clone_path) >= sizeof(others.path)))
		nvh_usage("--clone needs --other, a --source file:PATH and a path");
	if (overwritten && source.kind != SOURCE_FILE)
		nvh_usage("--overwrite needs a --source file:PATH");
	if (overwritten && (at < memory_page() || at + 2 * memory_page() > size))
		nvh_usage("--overwrite needs a page on both sides of --at");
	nvh_begin("poison");
	err = memory_map(&memory, &source, size, (off_t)nvh_size("offset", offset), PROT_READ | PROT_WRITE, &failed);
	if (err)
		nvh_bail("%s: %s", failed, nvh_errname(err));
	if (source.kind == SOURCE_FILE)
		nvh_fact_bool("dax", memory_is_dax(memory.fd) == 1);
	if (!keep) {
		/*
		 * The first fault of its unit is at the page that is poisoned: a page's place in the file is
		 * counted from where the unit starts, not from where the fault was (dax_set_mapping() in
		 * drivers/dax/device.c, dax_associate_entry() in fs/dax.c).
		 */
		memory_touch((char *)memory.addr + at, 1, true);
		memory_fill(memory.addr, size < CHECKED ? size : CHECKED, SEED);
		if (msync(memory.addr, size, MS_SYNC) && source.kind == SOURCE_FILE)
			nvh_bail("msync: %s", nvh_errname(errno));
	}
	others = source;
	if (clone_path) {
		strcpy(others.path, clone_path);
		make_clone(&memory, &others);
		memory_touch((char *)memory.addr + at, 1, false);
	}
	uint64_t pfn = memory_pfn((char *)memory.addr + at);

	nvh_fact_int("pfn", (long long)pfn);
	handle_bus();
	if (other_text)
		other = other_start(&others, &memory, at, early, !clone_path);
	if (madvised) {
		poison(&memory, at, &from, &to);
		if (other_text)
			other_report(&other, pfn);
	}
	survey(&memory, &source, from, to);
	if (overwritten)
		overwrite(&memory, at);
	memory_unmap(&memory);
	return nvh_end();
}
