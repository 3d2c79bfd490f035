/*
 * Writes the kernel's log as dmesg(1) does: every test reads it, and under TCG a small static program
 * costs its guest half of what dmesg does.
 *
 *     log [kernel]
 *
 * With "kernel" only what the kernel itself wrote: any program can write into /dev/kmsg.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>

/* <linux/syslog.h> is the kernel's own. */
#define SYSLOG_ACTION_READ_ALL 3
#define SYSLOG_ACTION_SIZE_BUFFER 10

int main(int argc, char **argv)
{
	int size = klogctl(SYSLOG_ACTION_SIZE_BUFFER, NULL, 0);
	int kernels = argc == 2 && !strcmp(argv[1], "kernel");
	char *text, *line, *next = NULL;
	int got;

	if (argc > 1 && !kernels) {
		fprintf(stderr, "usage: log [kernel]\n");
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
	return fflush(stdout) ? 1 : 0;
}
