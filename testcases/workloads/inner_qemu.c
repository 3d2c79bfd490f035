/*
 * The case that was reported (V21): a QEMU with the memory under test as its NVDIMM and a device of
 * this guest assigned to it.  Does it start, and does the device reach the memory?
 *
 * The inner machine is driven from outside: QMP says what it is, QEMU's qtest protocol moves its
 * device (docs/devel/qtest.rst), so that it needs no software but its firmware.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "edu.h"
#include "memory.h"
#include "nvh.h"
#include "refcount.h"
#include "vfio.h"

#define QEMU "qemu-system-x86_64"

/* Where the inner machine has the device: a slot that q35 leaves free, a BAR in its PCI hole. */
#define SLOT 0x10
#define BAR 0xe0000000ULL
#define CONFIG_ADDRESS 0xcf8
#define CONFIG_DATA 0xcfc
#define CONFIG_COMMAND 0x04
#define CONFIG_BAR0 0x10

#define SEED 0x21

struct inner {
	pid_t pid;
	FILE *qmp, *qtest; /* sockets */
	int errors; /* its standard error, a memfd */
	char line[65536]; /* the last reply; query-pci's is the longest */
};

static FILE *stream(int fd)
{
	FILE *file = fdopen(fd, "r+");

	if (!file)
		nvh_bail("fdopen: %s", nvh_errname(errno));
	return file;
}

/* Starts QEMU, stopped, with a socket for each protocol; nvh_bail() when there is none in this guest. */
static void start(struct inner *inner, const struct source *source, size_t size, size_t align, const char *device)
{
	char backend[PATH_MAX + 128], assigned[64], qmp[64], driver_chardev[64];
	int monitor[2], driver[2], failed[2];
	int err = 0;

	/* Inherited descriptors are named by number; ours are not inherited. */
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, monitor) || socketpair(AF_UNIX, SOCK_STREAM, 0, driver) ||
	    pipe2(failed, O_CLOEXEC) || fcntl(monitor[0], F_SETFD, FD_CLOEXEC) || fcntl(driver[0], F_SETFD, FD_CLOEXEC))
		nvh_bail("sockets: %s", nvh_errname(errno));
	inner->errors = memfd_create("stderr", MFD_CLOEXEC);
	if (inner->errors < 0)
		nvh_bail("memfd_create: %s", nvh_errname(errno));
	snprintf(backend, sizeof(backend), "memory-backend-file,id=mem0,share=%s,mem-path=%s,size=%zu,align=%zu",
		 source->private ? "off" : "on", source->path, size, align);
	snprintf(assigned, sizeof(assigned), "vfio-pci,id=edu,host=%s,addr=%#x", device, SLOT);
	snprintf(qmp, sizeof(qmp), "socket,id=qmp,fd=%d", monitor[1]);
	snprintf(driver_chardev, sizeof(driver_chardev), "socket,id=qtest,fd=%d", driver[1]);
	char *const argv[] = {
		QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35,nvdimm=on",
		"-accel", "tcg", "-m", "64M,slots=1,maxmem=4G", "-S",
		"-chardev", qmp, "-mon", "chardev=qmp,mode=control",
		"-chardev", driver_chardev, "-qtest", "chardev:qtest", "-qtest-log", "none",
		"-object", backend, "-device", "nvdimm,id=nv0,memdev=mem0", "-device", assigned, NULL,
	};
	inner->pid = fork();
	if (inner->pid < 0)
		nvh_bail("fork: %s", nvh_errname(errno));
	if (inner->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* the watchdog's end is its end too */
		dup2(inner->errors, STDOUT_FILENO);
		dup2(inner->errors, STDERR_FILENO);
		execvp(QEMU, argv);
		err = errno;
		if (write(failed[1], &err, sizeof(err)) < 0)
			_exit(126);
		_exit(127);
	}
	close(monitor[1]);
	close(driver[1]);
	close(failed[1]);
	if (read(failed[0], &err, sizeof(err)) > 0)
		nvh_bail("%s: %s", QEMU, nvh_errname(err));
	close(failed[0]);
	inner->qmp = stream(monitor[0]);
	inner->qtest = stream(driver[0]);
}

/* Reports what QEMU wrote to its standard error. */
static void report_words(const struct inner *inner)
{
	char words[4096];
	ssize_t length = pread(inner->errors, words, sizeof(words) - 1, 0);

	words[length < 0 ? 0 : length] = '\0';
	nvh_fact_str("words", words);
}

/* Executes a QMP command; its reply is then in inner->line.  False when QEMU has ended. */
static bool try_execute(struct inner *inner, const char *command)
{
	fprintf(inner->qmp, "{\"execute\": \"%s\"}\n", command);
	fflush(inner->qmp);
	while (fgets(inner->line, sizeof(inner->line), inner->qmp)) {
		if (strncmp(inner->line, "{\"error\"", 8) == 0)
			nvh_bail("QMP %s: %s", command, inner->line);
		if (strncmp(inner->line, "{\"return\"", 9) == 0)
			return true;
	}
	return false;
}

static void execute(struct inner *inner, const char *command)
{
	if (try_execute(inner, command))
		return;
	report_words(inner);
	nvh_bail("the inner QEMU ended before it answered QMP %s", command);
}

/* Sends a line of the qtest protocol and returns the value of the reply, 0 when it has none. */
__attribute__((format(printf, 2, 3))) static uint64_t qtest(struct inner *inner, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vfprintf(inner->qtest, fmt, args);
	va_end(args);
	fputc('\n', inner->qtest);
	fflush(inner->qtest);
	if (!fgets(inner->line, sizeof(inner->line), inner->qtest)) {
		report_words(inner);
		nvh_bail("the inner QEMU ended before it answered qtest \"%s\"", fmt);
	}
	if (strncmp(inner->line, "OK", 2) != 0)
		nvh_bail("qtest \"%s\": %s", fmt, inner->line);
	return strtoull(inner->line + 2, NULL, 0);
}

/* Finds the value of a key in the last reply; NULL when it is not there. */
static const char *value_of(const struct inner *inner, const char *key)
{
	char quoted[64];
	const char *at;

	snprintf(quoted, sizeof(quoted), "\"%s\": ", key);
	at = strstr(inner->line, quoted);
	return at ? at + strlen(quoted) : NULL;
}

static void report_status(struct inner *inner, const char *fact)
{
	char word[32] = "";
	const char *value;

	execute(inner, "query-status");
	value = value_of(inner, "status");
	if (value)
		sscanf(value, "\"%31[^\"]", word);
	nvh_fact_str(fact, word);
}

static void write_config(struct inner *inner, unsigned int reg, uint32_t value)
{
	qtest(inner, "outl %#x %#x", CONFIG_ADDRESS, 0x80000000 | SLOT << 11 | reg);
	qtest(inner, "outl %#x %#x", CONFIG_DATA, value);
}

static void transfer(struct inner *inner, uint64_t source, uint64_t target, unsigned int command)
{
	qtest(inner, "writeq %#llx %#llx", BAR + EDU_DMA_SOURCE, (unsigned long long)source);
	qtest(inner, "writeq %#llx %#llx", BAR + EDU_DMA_TARGET, (unsigned long long)target);
	qtest(inner, "writeq %#llx %#x", BAR + EDU_DMA_COUNT, EDU_MAX);
	qtest(inner, "writeq %#llx %#x", BAR + EDU_DMA_COMMAND, EDU_DMA_START | command);
	nvh_sleep(EDU_TRANSFER_SECONDS);
	while (qtest(inner, "readq %#llx", BAR + EDU_DMA_COMMAND) & EDU_DMA_START)
		nvh_sleep(0.01);
}

/*
 * The inner machine's device copies from the start of the NVDIMM to its middle, at guest-physical
 * addresses; this process looks at both through a mapping of its own.
 */
static void use_device(struct inner *inner, uint64_t nvdimm, const struct mapping *memory)
{
	size_t middle = memory->size / 2;
	uint8_t *bytes = memory->addr;

	write_config(inner, CONFIG_BAR0, BAR);
	write_config(inner, CONFIG_COMMAND, VFIO_MEMORY | VFIO_MASTER);
	uint64_t id = qtest(inner, "readl %#llx", BAR);

	if (!nvh_step((id & 0xffff) == 0x00ed, "the inner machine's device is an edu: 0x%08llx", (unsigned long long)id))
		return;
	memory_fill(bytes, EDU_MAX, SEED);
	memset(bytes + middle, 0, memory_page());
	transfer(inner, nvdimm, EDU_BUFFER, 0);
	transfer(inner, EDU_BUFFER, nvdimm + middle, EDU_DMA_TO_MEMORY);
	bool equal = memory_check(bytes + middle, EDU_MAX, SEED) == EDU_MAX && bytes[middle + EDU_MAX] == 0;

	nvh_fact_str("dma", equal ? "equal" : "differs");
	nvh_step(true, "the device copied from one page of the NVDIMM to another");
}

/* What the inner machine has, what its device does, and that it runs. */
static void use_machine(struct inner *inner, const struct mapping *memory)
{
	const char *address;
	uint64_t nvdimm;
	bool listed;

	execute(inner, "query-memory-devices");
	address = value_of(inner, "addr");
	nvdimm = address ? strtoull(address, NULL, 10) : 0;
	nvh_fact_int("nvdimm_address", (long long)nvdimm);
	execute(inner, "query-pci");
	listed = strstr(inner->line, "\"qdev_id\": \"edu\"") != NULL;
	nvh_fact_bool("listed", listed);
	if (nvh_step(nvdimm && listed, "the inner machine has the NVDIMM and the device"))
		use_device(inner, nvdimm, memory);
	execute(inner, "cont");
	report_status(inner, "state");
}

/* The reference counts of the first and the middle page. */
static void report_refs(const char *fact, const struct mapping *memory)
{
	uint64_t pfn[2];
	int count;
	long long counts[2];

	for (size_t i = 0; i < 2; i++) {
		if (!refcount_pfn((char *)memory->addr + i * memory->size / 2, &pfn[i]) ||
		    !refcount_read_pfn(pfn[i], &count))
			return;
		counts[i] = count;
	}
	nvh_fact_ints(fact, counts, 2);
}

/* Waits for QEMU's end and reports how it ended and what it said. */
static void report_end(struct inner *inner)
{
	int status;

	fclose(inner->qmp);
	fclose(inner->qtest);
	while (waitpid(inner->pid, &status, 0) < 0 && errno == EINTR)
		;
	report_words(inner);
	nvh_fact_int("status", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	nvh_step(true, "the inner QEMU ended with status %d", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
}

int main(int argc, char **argv)
{
	const char *device = NULL, *spec = NULL, *size_text = "64M", *align_text = "4K", *failed;
	const struct nvh_option options[] = {
		{"device", &device, NULL, "PCI address of an edu that is bound to vfio-pci"},
		{"source", &spec, NULL, "what is behind the NVDIMM: file:PATH[:private] or dax:/dev/daxX.Y"},
		{"size", &size_text, NULL, "of the NVDIMM (default 64M)"},
		{"align", &align_text, NULL, "of the mapping in the inner QEMU (default 4K)"},
		{NULL, NULL, NULL, NULL},
	};
	static struct inner inner;
	struct mapping memory;
	struct source source, view;
	struct vfio vfio;
	int err;

	nvh_options(argc, argv, "Start a QEMU with an NVDIMM and an assigned device.", options);
	size_t size = nvh_size("size", size_text);
	size_t align = nvh_size("align", align_text);

	if (!device || !spec)
		nvh_usage("--device and --source are needed");
	source_parse(spec, &source);
	if ((source.kind != SOURCE_FILE && source.kind != SOURCE_DAX) || source.readonly)
		nvh_usage("--source %s: file:PATH[:private] or dax:/dev/daxX.Y", spec);
	if (strchr(source.path, ','))
		nvh_usage("--source: a comma ends the path of a QEMU option");
	if (size < (2UL << 20) || size > (1UL << 30) || size % (2UL << 20))
		nvh_usage("--size %s: a multiple of 2M up to 1G", size_text);

	nvh_begin("inner_qemu");
	signal(SIGPIPE, SIG_IGN);
	vfio_open(&vfio, device, VFIO_BACKEND_TYPE1V2); /* for its facts: what holds the device, and what stands before it */
	vfio_close(&vfio);
	view = source;
	view.private = false;
	err = memory_map(&memory, &view, size, 0, PROT_READ | PROT_WRITE, &failed);
	if (err)
		nvh_bail("%s: %s", failed, nvh_errname(err));
	nvh_fact_int("dax", memory_is_dax(memory.fd));
	memory_touch(memory.addr, memory.size, true);
	bool counted = refcount_open();

	if (counted)
		report_refs("refs_before", &memory);
	double begun = nvh_now();

	start(&inner, &source, size, align, device);
	bool started = try_execute(&inner, "qmp_capabilities");

	nvh_fact_seconds("start_seconds", nvh_now() - begun);
	nvh_fact_bool("started", started);
	nvh_step(true, "the inner QEMU %s", started ? "answers" : "does not start");
	if (started) {
		if (counted)
			report_refs("refs_started", &memory);
		use_machine(&inner, &memory);
		execute(&inner, "quit");
	}
	report_end(&inner);
	if (counted)
		report_refs("refs_after", &memory);
	memory_unmap(&memory);
	return nvh_end();
}
