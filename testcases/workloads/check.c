#include "check.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"
#include "watch.h"

static char *wrong; /* shared with the checks */
#define WRONG_SIZE 200

void must(bool ok, const char *what)
{
	if (!ok)
		nvh_bail("%s: %s", what, nvh_errname(errno));
}

void check_differs(const char *fmt, ...)
{
	va_list args;

	if (wrong[0])
		return;
	va_start(args, fmt);
	vsnprintf(wrong, WRONG_SIZE, fmt, args);
	va_end(args);
}

void check_access(const char *what, char *addr, bool store, int signum, int code)
{
	struct memory_fault fault = memory_access(addr, store);

	if (fault.signum != signum)
		check_differs("%s: %s", what, fault.signum ? sigabbrev_np(fault.signum) : "no signal");
	else if (signum && (fault.code != code || fault.addr != addr))
		check_differs("%s: signal with code %d and an address %ld bytes off", what, fault.code,
			      (long)((const char *)fault.addr - addr));
}

/* Says where it is, and ends it. */
static void give_up(pid_t child)
{
	struct sight seen = {.state = '-'};
	struct rusage usage = {0}; /* not known of one that stays in D state */
	char where[64];
	int status;

	watch_look(child, &seen);
	snprintf(where, sizeof(where), "%.*s", (int)strcspn(seen.stack, " "), seen.stack);
	kill(child, SIGKILL);
	nvh_child_ends(child, 3, &status, &usage);
	check_differs("no end: %c in %s, %ld page faults", seen.state, where[0] ? where : "no stack",
		      usage.ru_minflt + usage.ru_majflt);
}

bool check_run(const char *name, void (*check)(const char *name, int arg), int arg, double seconds)
{
	bool ended;
	int status = 0;
	pid_t child;

	if (!wrong)
		wrong = mmap(NULL, WRONG_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (wrong == MAP_FAILED)
		nvh_bail("mmap: %s", nvh_errname(errno));
	wrong[0] = '\0';
	child = fork();
	if (child < 0)
		nvh_bail("fork: %s", nvh_errname(errno));
	if (child == 0) {
		check(name, arg);
		_exit(0);
	}
	ended = nvh_child_ends(child, seconds, &status, NULL);
	if (!ended)
		give_up(child);
	else if (WIFEXITED(status) && WEXITSTATUS(status))
		_exit(WEXITSTATUS(status)); /* it has said why */
	else if (WIFSIGNALED(status))
		check_differs("killed by %s", sigabbrev_np(WTERMSIG(status)));
	nvh_fact_str(name, wrong[0] ? wrong : "OK");
	nvh_step(true, "%s: %s", name, wrong[0] ? wrong : "OK");
	return ended;
}
