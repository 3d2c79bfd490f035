/*
 * Has a process of its own hold memory mapped or a block device open while a command runs, and reports
 * how the command ended and what became of what was held.  When the command waits, the holder lets go.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
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

/* Whoever has memory of a device that goes may be sent a SIGBUS for each page, without having touched it. */
static volatile sig_atomic_t told, looking;
static sigjmp_buf failed_look;

static void on_signal(int signum, siginfo_t *info, void *context)
{
	(void)context;
	if (signum == SIGBUS && info->si_code == BUS_MCEERR_AO)
		told = 1;
	else if (looking)
		siglongjmp(failed_look, signum);
	else
		_exit(3);
}

/*
 * The holder.  It answers each byte that it is sent with what it holds, and ends when the line is closed.
 * A kernel that fails may not let it end, so it is not this process.
 */
struct holder {
	pid_t pid;
	int line; /* one end of a socket pair */
};

struct answer {
	bool told;
	char held[32]; /* OK, differs, short, or the signal's or error's name */
};

static const char *look(const struct mapping *memory, int block)
{
	static char page[65536];
	size_t size = memory_page();
	const char *words;
	int signum;

	if (block >= 0) {
		ssize_t got;

		/* What the page cache keeps says nothing about the device. */
		posix_fadvise(block, 0, 0, POSIX_FADV_DONTNEED);
		got = pread(block, page, size, 0);
		return got < 0 ? nvh_errname(errno) : got != (ssize_t)size ? "short" : "OK";
	}
	signum = sigsetjmp(failed_look, 1);
	looking = signum == 0;
	if (signum)
		return signum == SIGBUS ? "SIGBUS" : "SIGSEGV";
	words = memory_check(memory->addr, memory->size, SEED) == memory->size ? "OK" : "differs";
	looking = 0;
	return words;
}

static void hold(const struct source *source, const char *path, bool exclusive, int line)
{
	struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
	struct mapping memory = {.fd = -1};
	struct answer answer;
	const char *failed;
	int block = -1, err;
	char byte;

	if (path) {
		block = open(path, O_RDWR | O_CLOEXEC | (exclusive ? O_EXCL : 0));
		if (block < 0)
			nvh_bail("%s: %s", path, nvh_errname(errno));
	} else {
		err = memory_map(&memory, source, SIZE, 0, PROT_READ | PROT_WRITE, &failed);
		if (err)
			nvh_bail("%s: %s", failed, nvh_errname(err));
		memory_fill(memory.addr, memory.size, SEED);
		if (source->kind == SOURCE_FILE && fsync(memory.fd))
			nvh_bail("fsync: %s", nvh_errname(errno));
	}
	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	while (read(line, &byte, 1) == 1) {
		memset(&answer, 0, sizeof(answer));
		answer.told = told != 0;
		snprintf(answer.held, sizeof(answer.held), "%s", look(&memory, block));
		if (write(line, &answer, sizeof(answer)) != sizeof(answer))
			break;
	}
}

static struct holder holder_start(const struct source *source, const char *path, bool exclusive)
{
	struct holder holder;
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
		nvh_bail("socketpair: %s", nvh_errname(errno));
	holder.pid = fork();
	if (holder.pid < 0)
		nvh_bail("fork: %s", nvh_errname(errno));
	if (holder.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(ends[0]);
		hold(source, path, exclusive, ends[1]);
		/* A hung holder must not keep the reader of this output waiting. */
		close(STDOUT_FILENO);
		close(STDERR_FILENO);
		_exit(0);
	}
	close(ends[1]);
	holder.line = ends[0];
	return holder;
}

/* Asks what is held; false when there is no answer in time. */
static bool holder_says(const struct holder *holder, double seconds, struct answer *answer)
{
	struct pollfd ready = {.fd = holder->line, .events = POLLIN};

	return send(holder->line, "", 1, MSG_NOSIGNAL) == 1 && poll(&ready, 1, (int)(seconds * 1000)) > 0 &&
	       read(holder->line, answer, sizeof(*answer)) == sizeof(*answer);
}

static bool holder_ends(struct holder *holder, double seconds, int *status)
{
	close(holder->line);
	return nvh_child_ends(holder->pid, seconds, status, NULL);
}

int main(int argc, char **argv)
{
	const char *spec = NULL, *path = NULL, *line = NULL, *wait_text = "20";
	bool exclusive = false;
	const struct nvh_option options[] = {
		{"source", &spec, NULL, "map the first 2 MiB of file:PATH or dax:/dev/daxX.Y, filled with a pattern"},
		{"block", &path, NULL, "open this block device instead"},
		{"exclusive", NULL, &exclusive, "open it O_EXCL, as a mount does"},
		{"run", &line, NULL, "the shell command to run meanwhile"},
		{"wait", &wait_text, NULL, "seconds after which the command is said to wait (1 to 20, default 20)"},
		{NULL, NULL, NULL, NULL},
	};
	struct command command;
	struct answer answer;
	struct holder holder;
	struct source source;
	int status = 0;
	double begin, limit;
	bool waits, ended;

	nvh_options(argc, argv, "Hold memory or a block device while a command runs.", options);
	if (!line || !spec == !path)
		nvh_usage("--run COMMAND and either --source SPEC or --block PATH are needed");
	limit = (double)nvh_size("wait", wait_text);
	if (limit < 1 || limit > 20)
		nvh_usage("--wait %s: 1 to 20 seconds", wait_text);
	if (spec)
		source_parse(spec, &source);
	nvh_begin("hold");
	holder = holder_start(&source, path, exclusive);
	if (!holder_says(&holder, 20, &answer)) {
		if (holder_ends(&holder, 5, &status) && WIFEXITED(status) && WEXITSTATUS(status))
			_exit(WEXITSTATUS(status)); /* it has said why */
		nvh_bail("the holder does not answer");
	}
	nvh_fact_str("before", answer.held);
	nvh_step(true, "%s is held", spec ? spec : path);
	begin = nvh_now();
	command_start(&command, line);
	waits = !command_ends(&command, limit, &status);
	nvh_fact_str("command", waits ? "waits" : "ended");
	if (!waits)
		report_command(&command, status);
	nvh_fact_seconds("command_seconds", nvh_now() - begin);
	nvh_step(true, "the command %s", waits ? "waits" : "has ended");
	if (holder_says(&holder, limit, &answer)) {
		nvh_fact_str("held", answer.held);
		nvh_fact_bool("told", answer.told);
	} else {
		nvh_fact_str("held", "no answer");
	}
	ended = holder_ends(&holder, limit, NULL);
	nvh_fact_str("holder", ended ? "ended" : "hung");
	nvh_step(true, "the holder %s", ended ? "has let go" : "does not end");
	if (waits) {
		ended = command_ends(&command, limit, &status);
		nvh_fact_str("command_after", ended ? "ended" : "hung");
		if (ended)
			report_command(&command, status);
		else
			kill(-command.pid, SIGKILL);
		nvh_step(true, "the command %s", ended ? "has ended" : "does not end");
	}
	return nvh_end();
}
