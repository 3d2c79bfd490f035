/*
 * A process ends with DMA mappings in place (V19), in one of several ways: are the pages pinned until
 * then and not after, and does the device still reach them?
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "edu.h"
#include "memory.h"
#include "nvh.h"
#include "probe.h"
#include "refcount.h"
#include "roundtrip.h"
#include "vfio.h"

#define WINDOW_IOVA 0x1000000ULL
#define IOVA 0x4000000ULL
/* Bytes of an access that must be blocked; it crosses from the first page into the second. */
#define ATTEMPT 1000
/* How long the references of a dead process may stay. */
#define RETURN_SECONDS 1.0

enum { HOW_KILL, HOW_EXIT, HOW_EXEC, HOW_HEIR };

static const char *const how_words[] = {"kill", "exit", "exec", "heir", NULL};

static const char *device;
static const char *source_text = "memfd";
static const char *size_text = "2M";
static const char *how_text = "kill";
static const char *type_text = "type1v2";

static const struct nvh_option options[] = {
	{"device", &device, NULL, "PCI address of an edu that is bound to vfio-pci"},
	{"source", &source_text, NULL, "memfd, file:PATH, dax:/dev/daxX.Y (default memfd)"},
	{"size", &size_text, NULL, "bytes to map (default 2M)"},
	{"how", &how_text, NULL, "kill, exit, exec (another program), heir (killed, and a child has its files)"},
	{"type", &type_text, NULL, VFIO_BACKEND_HELP},
	{0},
};

static enum vfio_backend backend;
static struct mapping memory;
static struct roundtrip trip;
static FILE *said; /* by the process that ends: this one speaks KTAP */

/* Waits for ever; dies with its parent. */
static _Noreturn void idle(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		pause();
}

/* Tells the parent which process is there now. */
static void tell(int to, pid_t who)
{
	if (write(to, &who, sizeof(who)) != sizeof(who))
		_exit(1);
}

/* Maps the memory, lets the device write to it, and ends as it was told to. */
static _Noreturn void hold(int to, int from, int how)
{
	struct vfio vfio;
	struct edu edu;
	pid_t heir = 0;
	char go;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	refcount_forget();
	dup2(fileno(said), STDOUT_FILENO);
	vfio_open(&vfio, device, backend);
	edu_open(&edu, &vfio, WINDOW_IOVA);
	if (vfio_map(&vfio, memory.addr, IOVA, memory.size, true))
		_exit(1);
	/* The device has used the translation when the process ends. */
	memory_fill_at(edu.window, ATTEMPT, SEED_DEVICE, 0);
	edu_write(&edu, IOVA, ATTEMPT);
	if (how == HOW_HEIR) {
		heir = fork();
		if (heir == 0) {
			/* Not of this process's pipe: its end tells the parent. */
			close(to);
			alarm(50);
			for (;;)
				pause();
		}
	}
	tell(to, heir);
	if (read(from, &go, 1) < 0 || how == HOW_KILL || how == HOW_HEIR)
		idle();
	if (how == HOW_EXEC)
		execl("/bin/sleep", "sleep", "50", (char *)NULL);
	_exit(how == HOW_EXEC);
}

static _Noreturn void bail_unmapped(void)
{
	char line[256] = "";

	rewind(said);
	while (fgets(line, sizeof(line), said) && strncmp(line, "Bail out!", 9) != 0)
		;
	line[strcspn(line, "\n")] = '\0';
	nvh_bail("the process that was to map the memory ended before it had: %s", line);
}

/* The counts of the pages, once they are no longer above those of before, or else after a while. */
static void report_returned(const struct probe *probe, const long long before[PROBES])
{
	double end = nvh_now() + RETURN_SECONDS;
	long long now[PROBES];
	bool more = true;

	while (more && nvh_now() < end && probe_counts(probe, now)) {
		more = false;
		for (size_t i = 0; i < PROBES; i++)
			more |= now[i] > before[i];
		if (more)
			nvh_sleep(0.02);
	}
	probe_fact(probe, "refs_after");
}

/* The next owner of the device has mapped nothing there: what is in an IOTLB is not its own. */
static void look_what_device_reaches(void)
{
	struct vfio vfio;
	struct edu edu;
	size_t same = 0;

	vfio_open(&vfio, device, backend);
	edu_open(&edu, &vfio, WINDOW_IOVA);
	memory_fill_at(edu.window, ATTEMPT, SEED_DEVICE, 0);
	edu_write(&edu, IOVA, ATTEMPT);
	nvh_fact_str("memory", roundtrip_check(&trip, trip.addr, false) == trip.size ? "unchanged" : "changed");
	memory_fill(trip.addr, trip.size, SEED_CPU);
	edu_read(&edu, IOVA, ATTEMPT);
	for (size_t word = 0; word < ATTEMPT; word += 8)
		same += memory_check_at(edu.window + word, 8, SEED_CPU, word) == 8;
	nvh_fact_str("read", same ? "arrived" : "blocked");
	nvh_step(true, "the device was told to write and to read where the mapping was");
	edu_close(&edu);
	vfio_close(&vfio);
}

int main(int argc, char **argv)
{
	const char *failed = NULL;
	struct source source;
	struct probe probe = {0};
	long long before[PROBES] = {0};
	int ready[2], go[2], err;
	pid_t holder, heir = 0;

	nvh_options(argc, argv, "End a process that has memory mapped for DMA.", options);
	source_parse(source_text, &source);
	int how = nvh_choice("how", how_text, how_words);
	backend = nvh_choice("type", type_text, vfio_backend_words);
	size_t size = nvh_size("size", size_text);

	if (!device)
		nvh_usage("--device is missing");
	if (source.private || source.kind == SOURCE_ANON)
		nvh_usage("--source %s: the memory must outlive the process that mapped it for DMA", source_text);
	if (size < 0x2000 || IOVA + size > EDU_IOVA_END)
		nvh_usage("--size %s: 8K or more, and 192M at most", size_text);
	nvh_begin("vfio_death");
	err = memory_map(&memory, &source, size, 0, PROT_READ | PROT_WRITE, &failed);
	if (err)
		nvh_bail("%s: %s", failed, nvh_errname(err));
	trip = (struct roundtrip){.addr = memory.addr, .iova = IOVA, .size = size, .mapped = size};
	memory_fill(memory.addr, size, SEED_CPU);
	nvh_fact_str("source", source_text);
	bool counts = refcount_open() && probe_find(&probe, memory.addr, size) && probe_counts(&probe, before);

	said = tmpfile();
	if (!said)
		nvh_bail("tmpfile: %s", nvh_errname(errno));
	if (pipe2(ready, O_CLOEXEC) || pipe2(go, O_CLOEXEC))
		nvh_bail("pipe: %s", nvh_errname(errno));
	holder = fork();
	if (holder < 0)
		nvh_bail("fork: %s", nvh_errname(errno));
	if (holder == 0) {
		close(ready[0]);
		close(go[1]);
		hold(ready[1], go[0], how);
	}
	close(ready[1]);
	close(go[0]);
	/* The holder's own page tables refer to the pages as well, but not yet: it has touched none. */
	if (counts)
		probe_fact(&probe, "refs_before");
	if (read(ready[0], &heir, sizeof(heir)) != sizeof(heir))
		bail_unmapped();
	if (counts)
		probe_fact(&probe, "refs_mapped");
	nvh_fact_str("device_write",
		     memory_check_at(memory.addr, ATTEMPT, SEED_DEVICE, 0) == ATTEMPT ? "equal" : "differs");
	memory_fill(memory.addr, size, SEED_CPU);
	nvh_step(true, "the memory is mapped, and the device wrote to it");

	if (how == HOW_KILL || how == HOW_HEIR) {
		kill(holder, SIGKILL);
	} else {
		char end;

		if (write(go[1], "", 1) != 1)
			nvh_bail("write: %s", nvh_errname(errno));
		/* Its end of the pipe is closed by exec and exit. */
		while (read(ready[0], &end, 1) > 0)
			;
	}
	if (how != HOW_EXEC)
		waitpid(holder, NULL, 0);
	nvh_step(true, "the process has ended: %s", how_text);
	if (how == HOW_HEIR) {
		if (counts)
			probe_fact(&probe, "refs_inherited");
		kill(heir, SIGKILL);
		while (kill(heir, 0) == 0) /* its parent is dead: pid 1 reaps it */
			nvh_sleep(0.01);
		nvh_step(true, "so has the child that had its files");
	}
	if (counts)
		report_returned(&probe, before);
	look_what_device_reaches();
	if (how == HOW_EXEC) {
		kill(holder, SIGKILL);
		waitpid(holder, NULL, 0);
	}
	memory_unmap(&memory);
	return nvh_end();
}
