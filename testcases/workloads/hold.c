/*
 * Holds memory mapped or a block device open while a command runs, and reports how the command ended
 * and what became of what was held.  A command that waits is let go on: then what it waited for ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"

#define SEED 11
#define SIZE (2UL << 20)

/* A command of the shell, its output in a pipe. */
struct command {
	pid_t pid;
	int output;
	char words[2048]; /* all that it said */
};

static void command_start(struct command *command, const char *line)
{
	int ends[2];

	*command = (struct command){0};
	if (pipe2(ends, O_CLOEXEC))
		nvh_bail("pipe: %s", nvh_errname(errno));
	command->pid = fork();
	if (command->pid < 0)
		nvh_bail("fork: %s", nvh_errname(errno));
	if (command->pid == 0) {
		setpgid(0, 0);
		dup2(ends[1], STDOUT_FILENO);
		dup2(ends[1], STDERR_FILENO);
		execl("/bin/sh", "sh", "-c", line, (char *)NULL);
		_exit(127);
	}
	close(ends[1]);
	command->output = ends[0];
}

/* Waits for its end; returns whether it came in time. */
static bool command_ends(struct command *command, double seconds, int *status)
{
	double end = nvh_now() + seconds;
	size_t used = strlen(command->words);

	while (nvh_now() < end) {
		struct pollfd ready = {.fd = command->output, .events = POLLIN};

		if (poll(&ready, 1, 50) > 0) {
			size_t left = sizeof(command->words) - 1 - used;
			char spill[512];
			ssize_t got = left ? read(command->output, command->words + used, left)
					   : read(command->output, spill, sizeof(spill));

			if (got > 0) {
				used += left ? (size_t)got : 0;
				continue;
			}
			nvh_sleep(0.01); /* it has closed its output and not ended yet */
		}
		if (waitpid(command->pid, status, WNOHANG) == command->pid)
			return true;
	}
	return false;
}

static void report_command(const struct command *command, int status)
{
	nvh_fact_int("status", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	nvh_fact_str("words", command->words);
}

/* Whoever has memory of a device that goes may be sent a SIGBUS then, without having touched it. */
static volatile sig_atomic_t told;

static void on_told(int signum)
{
	told = signum;
}

/* What is held now gives: OK, differs, or the signal's or error's name. */
static const char *look(const struct mapping *memory, int block)
{
	static char page[65536];
	size_t size = memory_page();
	int signum;

	if (block >= 0) {
		ssize_t got;

		/* What the page cache keeps says nothing about the device. */
		posix_fadvise(block, 0, 0, POSIX_FADV_DONTNEED);
		got = pread(block, page, size, 0);
		return got < 0 ? nvh_errname(errno) : got != (ssize_t)size ? "short" : "OK";
	}
	signum = memory_touch_safely(memory->addr, memory->size, false);
	if (signum)
		return signum == SIGBUS ? "SIGBUS" : "SIGSEGV";
	return memory_check(memory->addr, memory->size, SEED) == memory->size ? "OK" : "differs";
}

int main(int argc, char **argv)
{
	const char *spec = NULL, *path = NULL, *line = NULL, *wait_text = "20", *failed;
	bool exclusive = false;
	const struct nvh_option options[] = {
		{"source", &spec, NULL, "map the first 2 MiB of file:PATH or dax:/dev/daxX.Y, filled with a pattern"},
		{"block", &path, NULL, "open this block device instead"},
		{"exclusive", NULL, &exclusive, "open it O_EXCL, as a mount does"},
		{"run", &line, NULL, "the shell command to run meanwhile"},
		{"wait", &wait_text, NULL, "seconds after which the command is said to wait (default 20)"},
		{NULL, NULL, NULL, NULL},
	};
	struct mapping memory = {.fd = -1};
	struct command command;
	struct source source;
	int block = -1, status = 0, err;
	double begin, limit;

	nvh_options(argc, argv, "Hold memory or a block device while a command runs.", options);
	if (!line || !spec == !path)
		nvh_usage("--run COMMAND and either --source SPEC or --block PATH are needed");
	limit = (double)nvh_size("wait", wait_text);
	if (spec)
		source_parse(spec, &source);
	nvh_begin("hold");
	if (spec) {
		err = memory_map(&memory, &source, SIZE, 0, PROT_READ | PROT_WRITE, &failed);
		if (err)
			nvh_bail("%s: %s", failed, nvh_errname(err));
		memory_fill(memory.addr, memory.size, SEED);
		if (source.kind == SOURCE_FILE && fsync(memory.fd))
			nvh_bail("fsync: %s", nvh_errname(errno));
	} else {
		block = open(path, O_RDWR | O_CLOEXEC | (exclusive ? O_EXCL : 0));
		if (block < 0)
			nvh_bail("%s: %s", path, nvh_errname(errno));
	}
	nvh_fact_str("before", look(&memory, block));
	nvh_step(true, "%s is held", spec ? spec : path);
	sigaction(SIGBUS, &(struct sigaction){.sa_handler = on_told}, NULL);
	begin = nvh_now();
	command_start(&command, line);
	bool waits = !command_ends(&command, limit, &status);

	nvh_fact_str("command", waits ? "waits" : "ended");
	if (!waits)
		report_command(&command, status);
	nvh_fact_str("told", told ? "SIGBUS" : "nothing");
	nvh_fact_seconds("command_seconds", nvh_now() - begin);
	nvh_step(true, "the command has ended or waits");
	nvh_fact_str("held", look(&memory, block));
	memory_unmap(&memory);
	if (block >= 0)
		close(block);
	if (waits) {
		bool ended = command_ends(&command, limit, &status);

		nvh_fact_str("command_after", ended ? "ended" : "hung");
		if (ended)
			report_command(&command, status);
		else
			kill(-command.pid, SIGKILL);
	}
	nvh_step(true, "nothing is held any more");
	return nvh_end();
}
