#include "probe.h"

#include <errno.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"
#include "refcount.h"

/* A truncate that has not ended by then waits for a pin. */
#define TRUNCATE_SECONDS 5.0

bool probe_find(struct probe *probe, const void *start, size_t size)
{
	struct probe found;

	for (size_t i = 0; i < PROBES; i++) {
		if (!refcount_pfn((const char *)start + (size - 1) / (PROBES - 1) * i, &found.pfn[i]))
			return false;
	}
	*probe = found;
	return true;
}

size_t probe_moved(const struct probe *probe, const struct probe *before)
{
	size_t moved = 0;

	for (size_t i = 0; i < PROBES; i++)
		moved += before->pfn[i] && probe->pfn[i] && probe->pfn[i] != before->pfn[i];
	return moved;
}

bool probe_counts(const struct probe *probe, long long counts[PROBES])
{
	for (size_t i = 0; i < PROBES; i++) {
		int count;

		if (!probe->pfn[i] || !refcount_read_pfn(probe->pfn[i], &count))
			return false;
		counts[i] = count;
	}
	return true;
}

bool probe_fact(const struct probe *probe, const char *key)
{
	long long counts[PROBES];

	if (!probe_counts(probe, counts))
		return false;
	nvh_fact_ints(key, counts, PROBES);
	return true;
}

void probe_truncate(int fd)
{
	double start = nvh_now();
	int status = 0;
	pid_t child = fork();

	if (child < 0)
		nvh_bail("fork: %s", nvh_errname(errno));
	if (child == 0)
		_exit(ftruncate(fd, 0) < 0 ? errno : 0);
	if (!nvh_child_ends(child, TRUNCATE_SECONDS, &status, NULL)) {
		nvh_fact_str("truncate", "blocked");
		nvh_step(true, "truncate: waits for more than %.0f s", TRUNCATE_SECONDS);
		kill(child, SIGKILL);
		return;
	}
	nvh_fact_seconds("truncate_seconds", nvh_now() - start);
	nvh_fact_errno("truncate", WIFEXITED(status) ? WEXITSTATUS(status) : EINTR);
	nvh_step(true, "truncate: %s", nvh_errname(WIFEXITED(status) ? WEXITSTATUS(status) : EINTR));
}
