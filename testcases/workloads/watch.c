#include "watch.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "nvh.h"

static ssize_t slurp(pid_t pid, const char *name, char *text, size_t size)
{
	char path[64];
	ssize_t got;
	int fd;

	text[0] = '\0';
	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	got = read(fd, text, size - 1);
	close(fd);
	text[got > 0 ? got : 0] = '\0';
	return got;
}

/* "[<0>] ext4_break_layouts+0x61/0x80 [ext4]" becomes "ext4_break_layouts". */
static void read_stack(pid_t pid, char *stack, size_t size)
{
	char text[4096], *line, *rest = text;
	size_t used = 0;

	stack[0] = '\0';
	if (slurp(pid, "stack", text, sizeof(text)) <= 0)
		return;
	while ((line = strsep(&rest, "\n"))) {
		char name[128];

		if (sscanf(line, "[<%*[^]]] %127[^+ ]", name) != 1)
			continue;
		if (used + strlen(name) + 2 > size)
			break;
		used += (size_t)sprintf(stack + used, "%s%s", used ? " " : "", name);
	}
}

bool watch_look(pid_t pid, struct sight *seen)
{
	char text[512];
	const char *after_name;

	memset(seen, 0, sizeof(*seen));
	/* The stack first: a process that has moved on by the time its state is read is then
	 * never taken for one that waits. */
	read_stack(pid, seen->stack, sizeof(seen->stack));
	slurp(pid, "wchan", seen->wchan, sizeof(seen->wchan));
	if (slurp(pid, "stat", text, sizeof(text)) <= 0)
		return false;
	after_name = strrchr(text, ')');
	if (!after_name || strlen(after_name) < 3)
		return false;
	seen->state = after_name[2];
	return true;
}

const char *watch_layout_break(const struct sight *seen)
{
	static char name[128];
	const char *at = seen->stack;

	while (*at) {
		size_t length = strcspn(at, " ");

		if (length < sizeof(name)) {
			memcpy(name, at, length);
			name[length] = '\0';
			/* xfs_break_leased_layouts() waits for pNFS clients, not for pages. */
			if (strstr(name, "break") && !strstr(name, "lease") &&
			    (strstr(name, "layout") || strstr(name, "dax")))
				return name;
		}
		at += length;
		at += strspn(at, " ");
	}
	return NULL;
}

void watch_facts(const char *prefix, const struct sight *seen)
{
	char key[64], state[2] = {seen->state ? seen->state : '-', '\0'};

	snprintf(key, sizeof(key), "%sstate", prefix);
	nvh_fact_str(key, state);
	snprintf(key, sizeof(key), "%swchan", prefix);
	nvh_fact_str(key, seen->wchan);
	snprintf(key, sizeof(key), "%sstack", prefix);
	nvh_fact_str(key, seen->stack);
}
