#include "waiting.h"

#include <stdio.h>
#include <string.h>

#include "nvh.h"

/* An operation that has waited for so long, in seconds, and in so many looks one after the other,
 * does wait. */
#define ENOUGH_SECONDS 0.3
#define ENOUGH_LOOKS 8
/* Between two looks, each of which reads a stack: two milliseconds of the processor under TCG. */
#define APART_SECONDS 0.035

void waiting_watch(struct waiting *waiting, struct fileop_child *child, const struct pin *pin, double seconds)
{
	double until = nvh_now() + seconds, since = 0;
	int looks = 0;

	while (nvh_now() < until && !fileop_ended(child)) {
		const char *function;
		size_t known = strlen(waiting->states);

		if (pin && !pin_holds(pin))
			break;
		if (looks >= ENOUGH_LOOKS && nvh_now() >= since + ENOUGH_SECONDS)
			break;
		if (!watch_look(child->pid, &waiting->last))
			break;
		waiting->samples++;
		if (!strchr(waiting->states, waiting->last.state) && known + 1 < sizeof(waiting->states))
			waiting->states[known] = waiting->last.state;
		function = watch_layout_break(&waiting->last);
		if (function && (waiting->last.state == 'S' || waiting->last.state == 'D')) {
			if (!waiting->in_break++)
				waiting->since = nvh_now();
			snprintf(waiting->waits_in, sizeof(waiting->waits_in), "%s", function);
			if (!looks++)
				since = nvh_now();
		} else {
			looks = 0;
		}

		double left = until - nvh_now();

		if (left > 0)
			nvh_sleep(left < APART_SECONDS ? left : APART_SECONDS);
	}
}

bool waiting_seen(const struct waiting *waiting)
{
	return waiting->in_break >= 2;
}

void waiting_facts(const char *prefix, const struct waiting *waiting)
{
	char key[64];

	snprintf(key, sizeof(key), "%ssamples", prefix);
	nvh_fact_int(key, waiting->samples);
	snprintf(key, sizeof(key), "%ssamples_in_break", prefix);
	nvh_fact_int(key, waiting->in_break);
	snprintf(key, sizeof(key), "%sstates", prefix);
	nvh_fact_str(key, waiting->states);
	snprintf(key, sizeof(key), "%sseen_waiting", prefix);
	nvh_fact_bool(key, waiting_seen(waiting));
	snprintf(key, sizeof(key), "%swaits_in", prefix);
	nvh_fact_str(key, waiting->waits_in);
	watch_facts(prefix, &waiting->last);
}
