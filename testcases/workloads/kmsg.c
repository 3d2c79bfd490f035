#include "kmsg.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "nvh.h"

int kmsg_open(void)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0 || lseek(fd, 0, SEEK_END) < 0)
		nvh_bail("/dev/kmsg: %s", nvh_errname(errno));
	return fd;
}

bool kmsg_wait(int fd, const char *text, double seconds, char *message, size_t size)
{
	double end = nvh_now() + seconds;
	char record[8192];

	for (;;) {
		ssize_t length = read(fd, record, sizeof(record) - 1);

		if (length > 0) {
			record[length] = '\0';
			/* "priority,number,time,flags;message\n KEY=value..." */
			char *body = strchr(record, ';');

			body = body ? body + 1 : record;
			body[strcspn(body, "\n")] = '\0';
			if (!strstr(body, text))
				continue;
			snprintf(message, size, "%s", body);
			return true;
		}
		if (length < 0 && errno == EPIPE) /* messages were overwritten before they were read */
			continue;
		double left = end - nvh_now();

		if (left <= 0)
			return false;
		poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, (int)(left * 1000) + 1);
	}
}
