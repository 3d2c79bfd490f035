/*
 * What a report tells of a task that does not end when it should.
 */
#ifndef HANG_H
#define HANG_H

#include <stddef.h>
#include <sys/types.h>

#include "watch.h"

/* Has the kernel write the stacks of all tasks in D state into its log (sysrq-w). */
void hang_sysrq(void);

/*
 * "punch: S in ext4_break_layouts, no pin held": what the task is doing, its state, the layout break or
 * else the innermost function that it is in, and who still holds a page.
 */
void hang_words(char *text, size_t size, const char *doing, const struct sight *seen, const char *held);

/* Looks at a task: hang_words() as the fact "hung_in", its state, wchan and stack as "hung_...", sysrq-w. */
void hang_tell(const char *doing, pid_t pid, const char *held);

#endif
