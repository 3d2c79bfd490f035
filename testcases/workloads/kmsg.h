/*
 * Kernel messages that a workload waits for, read from /dev/kmsg.
 */
#ifndef NVH_KMSG_H
#define NVH_KMSG_H

#include <stdbool.h>
#include <stddef.h>

/* Starts reading after the newest message; nvh_bail() when /dev/kmsg cannot be read. */
int kmsg_open(void);

/*
 * Waits up to seconds for the next message that contains text; copies the message (its first line,
 * without the record's header) and returns true, or false when none came.
 */
bool kmsg_wait(int fd, const char *text, double seconds, char *message, size_t size);

#endif
