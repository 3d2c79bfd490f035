#include "nvh.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *program = "workload";
static unsigned int deadline = 60;
static int steps;
static int failures;

/* The inside of the JSON object; the watchdog prints it from a signal handler, hence no malloc. */
static char facts[65536];
static volatile size_t facts_length;
/* Where the opening quote of each key is, and how long the key is. */
static struct {
	size_t start;
	size_t key;
} fact[256];
static size_t fact_count;
static char last_step[256] = "the start";

double nvh_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

void nvh_sleep(double seconds)
{
	struct timespec left = {
		.tv_sec = (time_t)seconds,
		.tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9),
	};

	while (clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR)
		;
}

bool nvh_child_ends(pid_t child, double seconds, int *status, struct rusage *usage)
{
	double until = nvh_now() + seconds;

	while (wait4(child, status, WNOHANG, usage) == 0) {
		if (nvh_now() > until)
			return false;
		nvh_sleep(0.002);
	}
	return true;
}

const char *nvh_errname(int err)
{
	static char number[32];
	const char *name;

	if (err == 0)
		return "OK";
	if (err == 524) /* internal to the kernel, yet some ioctls let it out */
		return "ENOTSUPP";
	name = strerrorname_np(err);
	if (name)
		return name;
	snprintf(number, sizeof(number), "errno %d", err);
	return number;
}

/* Keeps one line one line, and '#' (the start of a directive) out of a step's name. */
static void clean(char *text)
{
	for (; *text; text++) {
		if ((unsigned char)*text < 0x20 || *text == 0x7f)
			*text = '?';
		else if (*text == '#')
			*text = '_';
	}
}

static void put(const char *text)
{
	if (write(STDOUT_FILENO, text, strlen(text)) < 0)
		_exit(4); /* nobody reads any more */
}

static void watchdog(int signum)
{
	(void)signum;
	put("Bail out! ");
	put(program);
	put(": no end within its deadline; the last step was: ");
	put(last_step);
	put("\n# facts {");
	if (write(STDOUT_FILENO, facts, facts_length) < 0)
		_exit(4);
	put("}\n");
	_exit(4);
}

void nvh_begin(const char *name)
{
	struct sigaction action = {.sa_handler = watchdog};

	program = name;
	setvbuf(stdout, NULL, _IOLBF, 0);
	sigaction(SIGALRM, &action, NULL);
	alarm(deadline);
	printf("KTAP version 1\n# %s\n", name);
}

bool nvh_step(bool ok, const char *fmt, ...)
{
	char name[256];
	va_list args;

	va_start(args, fmt);
	vsnprintf(name, sizeof(name), fmt, args);
	va_end(args);
	clean(name);
	memcpy(last_step, name, sizeof(last_step));
	if (!ok)
		failures++;
	printf("%sok %d - %s\n", ok ? "" : "not ", ++steps, name);
	return ok;
}

void nvh_skip(const char *fmt, ...)
{
	char reason[256];
	va_list args;

	va_start(args, fmt);
	vsnprintf(reason, sizeof(reason), fmt, args);
	va_end(args);
	clean(reason);
	printf("ok %d # SKIP %s\n", ++steps, reason);
}

void nvh_note(const char *fmt, ...)
{
	char note[512];
	va_list args;

	va_start(args, fmt);
	vsnprintf(note, sizeof(note), fmt, args);
	va_end(args);
	clean(note);
	printf("# %s\n", note);
}

/* Forgets an earlier fact of the same key: a reader may take a key that comes twice as an error. */
static void fact_drop(const char *key)
{
	for (size_t i = 0; i < fact_count; i++) {
		size_t start = fact[i].start;

		if (fact[i].key != strlen(key) || strncmp(facts + start + 1, key, fact[i].key) != 0)
			continue;
		/* From its quote to the quote of the next; the last one goes with the comma before it. */
		size_t end = i + 1 < fact_count ? fact[i + 1].start : facts_length;

		if (i + 1 == fact_count && i > 0)
			start -= 2;
		memmove(facts + start, facts + end, facts_length - end);
		facts_length -= end - start;
		fact_count--;
		for (size_t j = i; j < fact_count; j++) {
			fact[j] = fact[j + 1];
			fact[j].start -= end - start;
		}
		return;
	}
}

static void fact_add(const char *key, const char *json)
{
	fact_drop(key);
	size_t used = facts_length;
	int more = snprintf(facts + used, sizeof(facts) - used, "%s\"%s\": %s", used ? ", " : "", key, json);

	if (more < 0 || (size_t)more >= sizeof(facts) - used || fact_count == sizeof(fact) / sizeof(fact[0]))
		return; /* half a fact would break the line */
	fact[fact_count].start = used ? used + 2 : 0;
	fact[fact_count++].key = strlen(key);
	facts_length = used + (size_t)more;
}

void nvh_fact_str(const char *key, const char *value)
{
	char json[8192];
	size_t used = 0;

	json[used++] = '"';
	for (; *value && used < sizeof(json) - 8; value++) {
		unsigned char byte = (unsigned char)*value;

		if (byte == '"' || byte == '\\') {
			json[used++] = '\\';
			json[used++] = (char)byte;
		} else if (byte < 0x20 || byte >= 0x7f) {
			used += (size_t)sprintf(json + used, "\\u%04x", byte);
		} else {
			json[used++] = (char)byte;
		}
	}
	json[used++] = '"';
	json[used] = '\0';
	fact_add(key, json);
}

void nvh_fact_int(const char *key, long long value)
{
	char json[32];

	snprintf(json, sizeof(json), "%lld", value);
	fact_add(key, json);
}

void nvh_fact_ints(const char *key, const long long *values, size_t count)
{
	char json[8192] = "[";
	size_t used = 1;

	for (size_t i = 0; i < count && used < sizeof(json) - 32; i++)
		used += (size_t)sprintf(json + used, "%s%lld", i ? ", " : "", values[i]);
	strcpy(json + used, "]");
	fact_add(key, json);
}

void nvh_fact_bool(const char *key, bool value)
{
	fact_add(key, value ? "true" : "false");
}

void nvh_fact_seconds(const char *key, double value)
{
	char json[64];

	snprintf(json, sizeof(json), "%.6f", value);
	fact_add(key, json);
}

void nvh_fact_errno(const char *key, int err)
{
	nvh_fact_str(key, nvh_errname(err));
}

static void print_facts(void)
{
	printf("# facts {%.*s}\n", (int)facts_length, facts);
	fflush(stdout);
}

int nvh_end(void)
{
	alarm(0);
	printf("1..%d\n", steps);
	print_facts();
	return failures ? 1 : 0;
}

void nvh_usage(const char *fmt, ...)
{
	char text[512];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	clean(text);
	printf("Bail out! usage: %s\n", text);
	fflush(stdout);
	exit(2);
}

void nvh_bail(const char *fmt, ...)
{
	char text[512];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	clean(text);
	printf("Bail out! %s: %s\n", program, text);
	print_facts();
	exit(3);
}

static _Noreturn void help(const char *name, const char *summary, const struct nvh_option *options)
{
	printf("usage: %s [OPTION]...\n%s\n\n", name, summary);
	for (; options->name; options++)
		printf("  --%s%s\n\t%s\n", options->name, options->value ? " VALUE" : "", options->help);
	printf("  --deadline SECONDS\n\tgive up after so long (default %u)\n", deadline);
	printf("  --help\n\tprint this and end\n");
	exit(0);
}

void nvh_options(int argc, char **argv, const char *summary, const struct nvh_option *options)
{
	for (int i = 1; i < argc; i++) {
		const struct nvh_option *option = options;
		const char *name = argv[i];
		const char *value;
		size_t length;

		if (strcmp(name, "--help") == 0)
			help(argv[0], summary, options);
		if (strncmp(name, "--", 2) != 0)
			nvh_usage("%s is no option; try --help", name);
		name += 2;
		length = strcspn(name, "=");
		value = name[length] == '=' ? name + length + 1 : NULL;
		while (option->name &&
		       (strlen(option->name) != length || strncmp(option->name, name, length) != 0))
			option++;
		bool is_deadline = length == strlen("deadline") && strncmp(name, "deadline", length) == 0;

		if (!option->name && !is_deadline)
			nvh_usage("there is no option --%.*s; try --help", (int)length, name);
		if (!is_deadline && option->flag) {
			if (value)
				nvh_usage("--%s takes no value", option->name);
			*option->flag = true;
			continue;
		}
		if (!value && i + 1 < argc)
			value = argv[++i];
		if (!value)
			nvh_usage("--%.*s needs a value", (int)length, name);
		if (!is_deadline) {
			*option->value = value;
			continue;
		}
		unsigned long long seconds = nvh_size("deadline", value);

		if (seconds == 0 || seconds > 86400)
			nvh_usage("--deadline %s: 1 to 86400 seconds", value);
		deadline = (unsigned int)seconds;
	}
}

unsigned long long nvh_size(const char *option, const char *text)
{
	unsigned long long factor = 1;
	unsigned long long number;
	char *end;

	errno = 0;
	number = strtoull(text, &end, 0);
	if (*end == 'K')
		factor = 1ULL << 10;
	else if (*end == 'M')
		factor = 1ULL << 20;
	else if (*end == 'G')
		factor = 1ULL << 30;
	if (factor != 1)
		end++;
	if (errno || end == text || *end || *text == '-' || number > ULLONG_MAX / factor)
		nvh_usage("--%s %s: not a size such as 4096, 0x1000, 4K, 2M", option, text);
	return number * factor;
}

int nvh_number(const char *option, const char *text, int least, int most)
{
	unsigned long long value = nvh_size(option, text);

	if (value > INT_MAX || (int)value < least || (int)value > most)
		nvh_usage("--%s %s: %d to %d", option, text, least, most);
	return (int)value;
}

int nvh_choice(const char *option, const char *text, const char *const *list)
{
	char known[256] = "";

	for (int i = 0; list[i]; i++) {
		if (strcmp(list[i], text) == 0)
			return i;
		snprintf(known + strlen(known), sizeof(known) - strlen(known), "%s%s", i ? ", " : "", list[i]);
	}
	nvh_usage("--%s %s: one of %s", option, text, known);
}
