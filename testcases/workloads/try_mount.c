/*
 * Mounts or remounts with mount(2) and reports its errno and the options that are then in force.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "nvh.h"

/* The options of the last mount on a path, as /proc/self/mounts has them; "not mounted" without one. */
static void report_options(const char *path)
{
	static char options[1024];
	char line[2048], at[512], words[1024];
	FILE *f = fopen("/proc/self/mounts", "re");

	strcpy(options, "not mounted");
	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%*s %511s %*s %1023s", at, words) == 2 && !strcmp(at, path))
			strcpy(options, words);
	}
	if (f)
		fclose(f);
	nvh_fact_str("options", options);
}

int main(int argc, char **argv)
{
	const char *type = NULL, *device = NULL, *path = NULL, *options = "";
	bool remount = false, readonly = false;
	const struct nvh_option table[] = {
		{"type", &type, NULL, "the file system"},
		{"device", &device, NULL, "what is mounted"},
		{"path", &path, NULL, "where"},
		{"options", &options, NULL, "its own options, such as dax=always"},
		{"remount", NULL, &remount, "change a mount that is there"},
		{"readonly", NULL, &readonly, "read-only"},
		{NULL, NULL, NULL, NULL},
	};
	unsigned long flags;
	int err;

	nvh_options(argc, argv, "Mount or remount a file system.", table);
	if (!path || (!remount && (!type || !device)))
		nvh_usage("--path PATH is needed, and --type and --device or --remount");
	flags = (remount ? MS_REMOUNT : 0UL) | (readonly ? MS_RDONLY : 0UL);
	nvh_begin("try_mount");
	err = mount(device ? device : "none", path, type, flags, options) ? errno : 0;
	nvh_fact_errno("mount", err);
	report_options(path);
	nvh_step(true, "%s: %s", remount ? "remount" : "mount", nvh_errname(err));
	return nvh_end();
}
