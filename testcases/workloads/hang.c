#include "hang.h"

#include <stdio.h>
#include <string.h>

#include "nvh.h"

void hang_sysrq(void)
{
	FILE *sysrq = fopen("/proc/sysrq-trigger", "we");

	/* The text reaches the kernel with fclose(). */
	if (!sysrq || fputs("w", sysrq) < 0 || fclose(sysrq))
		nvh_note("no sysrq");
}

void hang_words(char *text, size_t size, const char *doing, const struct sight *seen, const char *held)
{
	const char *where = watch_layout_break(seen);
	char innermost[128] = "no stack"; /* it runs */

	if (!where && *seen->stack)
		snprintf(innermost, sizeof(innermost), "%.*s", (int)strcspn(seen->stack, " "), seen->stack);
	snprintf(text, size, "%s: %c in %s, %s", doing, seen->state, where ? where : innermost, held);
}

void hang_tell(const char *doing, pid_t pid, const char *held)
{
	struct sight sight;
	char words[512];

	if (!watch_look(pid, &sight))
		sight.state = '-';
	hang_words(words, sizeof(words), doing, &sight, held);
	nvh_fact_str("hung_in", words);
	watch_facts("hung_", &sight);
	nvh_note("hung: %s: %s", words, sight.stack);
	hang_sysrq();
}
