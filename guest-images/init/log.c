/*
 * Writes the kernel's log as dmesg(1) does: every test reads it, and under TCG a small static program
 * costs its guest half of what dmesg does.
 *
 *     log [kernel | pins N [known]]
 *
 * With "kernel" only what the kernel itself wrote: any program can write into /dev/kmsg.  With "pins"
 * a line "pins left: M" follows, where the kernel counts them: what was pinned and not unpinned.  Other
 * than N is looked at again for two seconds: io_uring lets go behind a process's end.  With "known" it
 * was to be expected, and is looked at twice.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <unistd.h>

/* <linux/syslog.h> is the kernel's own. */
#define SYSLOG_ACTION_READ_ALL 3
#define SYSLOG_ACTION_SIZE_BUFFER 10

/* Reads a file of /proc, whole. */
static void contents(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t have = 0;
	ssize_t got;

	while (fd >= 0 && have < size - 1 && (got = read(fd, text + have, size - 1 - have)) > 0)
		have += (size_t)got;
	if (fd >= 0)
		close(fd);
	text[have] = '\0';
}

/* Returns whether the kernel counts pins, and how many are not given back. */
static int pins(long *left)
{
	static const char *const names[] = { "\nnr_foll_pin_acquired ", "\nnr_foll_pin_released " };
	static char text[1 << 16];
	long seen[2];

	/* What each processor has counted for itself is added up. */
	contents("/proc/sys/vm/stat_refresh", text, sizeof(text));
	contents("/proc/vmstat", text, sizeof(text));
	for (int i = 0; i < 2; i++) {
		char *line = strstr(text, names[i]);

		if (!line)
			return 0;
		seen[i] = strtol(line + strlen(names[i]), NULL, 10);
	}
	*left = seen[0] - seen[1];
	return 1;
}

static void print_pins(long usual, int tries)
{
	long left = usual;

	for (; pins(&left); tries--, usleep(100000))
		if (left == usual || !tries) {
			printf("pins left: %ld\n", left);
			return;
		}
}

int main(int argc, char **argv)
{
	int size = klogctl(SYSLOG_ACTION_SIZE_BUFFER, NULL, 0);
	int kernels = argc == 2 && !strcmp(argv[1], "kernel");
	int known = argc == 4 && !strcmp(argv[3], "known");
	int pinned = (argc == 3 || known) && !strcmp(argv[1], "pins");
	char *text, *line, *next = NULL;
	int got;

	if (argc > 1 && !kernels && !pinned) {
		fprintf(stderr, "usage: log [kernel | pins N [known]]\n");
		return 2;
	}
	/* The stamp before each line is made when it is read. */
	text = size > 0 ? malloc(4 * (size_t)size + 1) : NULL;
	got = text ? klogctl(SYSLOG_ACTION_READ_ALL, text, 4 * size) : -1;
	if (got < 0) {
		perror("the kernel's log");
		return 1;
	}
	text[got] = '\0';
	for (line = strtok_r(text, "\n", &next); line; line = strtok_r(NULL, "\n", &next)) {
		char *end = line;
		/* <N> before a line: eight times the facility, which is 0 for the kernel, and the level. */
		long priority = *line == '<' ? strtol(line + 1, &end, 10) : 0;

		if (!kernels || priority < 8)
			puts(*end == '>' ? end + 1 : line);
	}
	if (pinned)
		print_pins(atol(argv[2]), known ? 1 : 20);
	return fflush(stdout) ? 1 : 0;
}
