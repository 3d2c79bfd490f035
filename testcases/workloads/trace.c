#include "trace.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nvh.h"
#include "tracefs.h"

enum { FLUSH, UNCACHED, PROBES };

/* Their second argument is the number of bytes. */
static const struct {
	const char *name, *function;
} functions[PROBES] = {
	/* dax_flush() calls it unless the device says that it has no write cache. */
	[FLUSH] = {"flush", "arch_wb_cache_pmem"},
	/* dax_copy_from_iter() calls it for a device that is to be written past the caches (DAXDEV_NOCACHE). */
	[UNCACHED] = {"uncached", "_copy_from_iter_flushcache"},
};

static struct {
	const char *tracefs;
	char instance[96], probe[PROBES][64];
	bool probed[PROBES];
	pid_t owner;
	char *text; /* what was read of the trace last */
} trace;

static bool lacks(const char *key, const char *what, int err)
{
	char reason[160];

	snprintf(reason, sizeof(reason), "%s: %s", what, nvh_errname(err));
	nvh_fact_str(key, reason);
	return false;
}

static bool missing(const char *what, int err)
{
	return lacks("trace_missing", what, err);
}

static void put_probe(int which)
{
	char command[160], *name = trace.probe[which];
	int err;

	snprintf(name, sizeof(trace.probe[which]), "nvh/%s_%d", functions[which].name, (int)getpid());
	snprintf(command, sizeof(command), "p:%s %s size=%%si:u64\n", name, functions[which].function);
	err = tracefs_put(command, O_APPEND, "%s/kprobe_events", trace.tracefs);
	if (!err)
		err = tracefs_put("1", 0, "%s/events/%s/enable", trace.instance, name);
	trace.probed[which] = !err;
	if (err)
		lacks("probe_missing", functions[which].function, err);
}

bool trace_start(void)
{
	char pid[16];
	int err;

	trace.tracefs = tracefs_with("instances");
	if (!trace.tracefs)
		return missing("tracefs", ENOENT);
	snprintf(trace.instance, sizeof(trace.instance), "%s/instances/nvh_%d", trace.tracefs, (int)getpid());
	if (mkdir(trace.instance, 0700))
		return missing("a trace instance", errno);
	trace.owner = getpid();
	atexit(trace_stop);
	snprintf(pid, sizeof(pid), "%d", (int)getpid());
	err = tracefs_put(pid, 0, "%s/set_event_pid", trace.instance);
	if (err)
		return missing("set_event_pid", err);
	err = tracefs_put("1", 0, "%s/options/event-fork", trace.instance); /* threads as well */
	if (err)
		return missing("options/event-fork", err);
	/* The order of what two processors tell is looked at. */
	err = tracefs_put("global", 0, "%s/trace_clock", trace.instance);
	if (err)
		return missing("trace_clock", err);
	err = tracefs_put("1", 0, "%s/events/fs_dax/enable", trace.instance);
	if (err)
		return missing("events/fs_dax", err);
	for (int i = 0; i < PROBES; i++)
		put_probe(i);
	trace_clear();
	return true;
}

void trace_clear(void)
{
	if (trace.owner && tracefs_put("", O_TRUNC, "%s/trace", trace.instance))
		nvh_bail("%s/trace cannot be emptied", trace.instance);
}

static const char *read_trace(void)
{
	size_t used = 0, room = 1UL << 16;
	char path[128];
	ssize_t got;
	int fd;

	snprintf(path, sizeof(path), "%s/trace", trace.instance);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	free(trace.text);
	trace.text = malloc(room);
	if (fd < 0 || !trace.text)
		nvh_bail("%s: %s", path, nvh_errname(errno));
	while ((got = read(fd, trace.text + used, room - used - 1)) > 0) {
		used += (size_t)got;
		if (room - used > 1)
			continue;
		room *= 2;
		trace.text = realloc(trace.text, room);
		if (!trace.text)
			nvh_bail("out of memory");
	}
	trace.text[used] = '\0';
	close(fd);
	return trace.text;
}

/* Calls found() for the words of each recorded line of the event. */
static void each(const char *event, void (*found)(const char *words, void *arg), void *arg)
{
	char name[64], *rest, *line;

	read_trace();
	rest = trace.text;
	snprintf(name, sizeof(name), ": %s: ", event);
	while ((line = strsep(&rest, "\n"))) {
		const char *at = line[0] == '#' ? NULL : strstr(line, name);

		if (at)
			found(at + strlen(name), arg);
	}
}

struct counter {
	const char *words;
	size_t count;
};

static void count_one(const char *words, void *arg)
{
	struct counter *counter = arg;

	counter->count += !counter->words || strstr(words, counter->words);
}

size_t trace_count(const char *event, const char *words)
{
	struct counter counter = {.words = words};

	each(event, count_one, &counter);
	return counter.count;
}

bool trace_begins(const char *event, const char *other)
{
	char names[2][64];
	const char *first, *second;

	snprintf(names[0], sizeof(names[0]), ": %s: ", event);
	snprintf(names[1], sizeof(names[1]), ": %s: ", other);
	read_trace();
	first = strstr(trace.text, names[0]);
	second = strstr(trace.text, names[1]);
	return first && (!second || first < second);
}

struct list {
	long long *numbers;
	size_t room, count;
};

static void list_one(const char *words, void *arg)
{
	struct list *list = arg;
	const char *at = strstr(words, "pgoff ");
	unsigned long first, length;

	if (!at || sscanf(at, "pgoff %lx pglen %lx", &first, &length) != 2)
		nvh_bail("dax_writeback_one says: %s", words);
	if (list->count + 2 > list->room)
		return;
	list->numbers[list->count++] = (long long)first;
	list->numbers[list->count++] = (long long)length;
}

size_t trace_written_back(long long *pages, size_t room)
{
	struct list list = {.numbers = pages, .room = room};

	each("dax_writeback_one", list_one, &list);
	return list.count;
}

static void add_size(const char *words, void *arg)
{
	const char *at = strstr(words, "size=");

	if (at)
		*(long long *)arg += atoll(at + strlen("size="));
}

static long long sizes(int which)
{
	long long bytes = 0;

	if (!trace.probed[which])
		return -1;
	each(strchr(trace.probe[which], '/') + 1, add_size, &bytes);
	return bytes;
}

long long trace_flushed(void)
{
	return sizes(FLUSH);
}

long long trace_uncached(void)
{
	return sizes(UNCACHED);
}

void trace_stop(void)
{
	char command[96];

	if (!trace.owner || trace.owner != getpid())
		return;
	trace.owner = 0;
	rmdir(trace.instance); /* switches its events off */
	for (int i = 0; i < PROBES; i++) {
		snprintf(command, sizeof(command), "-:%s\n", trace.probe[i]);
		if (trace.probed[i])
			tracefs_put(command, O_APPEND, "%s/kprobe_events", trace.tracefs);
	}
}
