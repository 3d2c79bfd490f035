/*
 * Mounts a file system and says what it is: mount(8), mkdir, touch, xfs_io, grep and rm in one program,
 * since under TCG each of them costs a guest more than the mount itself.  Unmounts as well.
 *
 *     mount TYPE DEVICE PATH OPTIONS
 *     mount PATH
 *
 * It makes PATH, mounts, and writes two lines: the stx_attributes of a fresh regular file on the mount,
 * in hexadecimal, and the options that /proc/mounts shows.  Status 1 and a line on stderr when refused.
 */
#include <errno.h>
#include <fcntl.h>
#include <mntent.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static int fail(const char *what, const char *path)
{
	fprintf(stderr, "%s %s: %s\n", what, path, strerror(errno));
	return 1;
}

int main(int argc, char **argv)
{
	char probe[4096], shown[4096] = "";
	struct mntent *entry;
	struct statx st;
	FILE *mounts;
	int fd;

	if (argc == 2)
		return umount2(argv[1], 0) ? fail("umount", argv[1]) : 0;
	if (argc != 5) {
		fprintf(stderr, "usage: mount [TYPE DEVICE] PATH [OPTIONS]\n");
		return 2;
	}
	if (mkdir(argv[3], 0755) && errno != EEXIST)
		return fail("mkdir", argv[3]);
	if (mount(argv[2], argv[3], argv[1], 0, argv[4]))
		return fail("mount", argv[2]);
	snprintf(probe, sizeof(probe), "%s/.nvh-probe", argv[3]);
	fd = open(probe, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, "x\n", 2) != 2 || statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &st))
		return fail("a file on the mount:", probe);
	close(fd);
	unlink(probe);
	mounts = setmntent("/proc/mounts", "r");
	if (!mounts)
		return fail("open", "/proc/mounts");
	while ((entry = getmntent(mounts)))
		if (!strcmp(entry->mnt_dir, argv[3]))
			snprintf(shown, sizeof(shown), "%s", entry->mnt_opts);
	endmntent(mounts);
	printf("0x%llx\n%s\n", (unsigned long long)st.stx_attributes, shown);
	return 0;
}
