/*
 * PID 1 of the guest: from the initramfs to a root shell on ttyS1, without systemd or udev.
 *
 * Loads the modules that /modules.list names, finds the disks by their serial numbers, puts a tmpfs
 * over the read-only root, hands /nvh over to /run/nvh, switches root and runs /run/nvh/rc.  After
 * that it reaps orphans and keeps a shell on ttyS1, for when the network is gone.
 *
 * Mounts and modules are system calls here rather than programs: under TCG each fork and exec costs
 * tens of milliseconds.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/watchdog.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define NEWROOT "/newroot"
#define DISK_DEADLINE_S 10
/* A set-up script that hangs must not cost us the shell that can look at it. */
#define RC_PATIENCE_S 20
/*
 * The watchdog of the machine: when nobody has fed it for so long, QEMU pauses the guest.  The kernel
 * tells of a soft lockup after 20 s and some.
 */
#define WATCHDOG "/dev/watchdog"
#define WATCHDOG_S 50
#define FEED_S 5

/* Through the kernel log, so that a printk cannot cut the line in two. */
static void say(const char *fmt, ...)
{
	char line[512];
	int len = snprintf(line, sizeof(line), "<2>nvh-init: ");
	va_list args;

	va_start(args, fmt);
	len += vsnprintf(line + len, sizeof(line) - (size_t)len, fmt, args);
	va_end(args);
	if (len >= (int)sizeof(line))
		len = (int)sizeof(line) - 1;

	int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);

	if (fd < 0) {
		dprintf(STDERR_FILENO, "%s\n", line + 3);
		return;
	}
	if (write(fd, line, (size_t)len) < 0)
		dprintf(STDERR_FILENO, "%s\n", line + 3);
	close(fd);
}

static _Noreturn void power_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

#define fatal(...)                          \
	do {                                \
		say("FATAL: " __VA_ARGS__); \
		power_off();                \
	} while (0)

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* A file system that the guest cannot do without; `config` is what the kernel lacks if it fails. */
static void must_mount(const char *source, const char *target, const char *type,
		       unsigned long flags, const char *options, const char *config)
{
	mkdir(target, 0755);
	if (mount(source, target, type, flags, options) < 0 && errno != EBUSY)
		fatal("mount of %s (%s): %s (%s)", target, type, strerror(errno), config);
}

static void may_mount(const char *source, const char *target, const char *type, const char *options)
{
	mkdir(target, 0755);
	if (mount(source, target, type, 0, options) < 0 && errno != EBUSY && errno != ENODEV &&
	    errno != ENOENT)
		say("mount of %s (%s): %s", target, type, strerror(errno));
}

static void load_modules(const char *list)
{
	FILE *file = fopen(list, "re");
	char path[512];

	while (file && fgets(path, sizeof(path), file)) {
		path[strcspn(path, "\n")] = '\0';
		int fd = open(path, O_RDONLY | O_CLOEXEC);

		if (fd < 0) {
			say("%s: %s", path, strerror(errno));
			continue;
		}
		/* ENODEV: the CPU or the machine has no such thing, for instance crc32c_intel. */
		if (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST && errno != ENODEV)
			say("module %s: %s", path, strerror(errno));
		close(fd);
		unlink(path); /* The initramfs is memory, and memory is saved in every template. */
	}
	if (file)
		fclose(file);
}

/* Look once through the block devices for a serial number. */
static bool find_disk(const char *serial, char *device, size_t size)
{
	DIR *dir = opendir("/sys/block");
	struct dirent *entry;
	bool found = false;

	while (dir && !found && (entry = readdir(dir))) {
		char path[300], seen[32] = "";

		snprintf(path, sizeof(path), "/sys/block/%s/serial", entry->d_name);
		int fd = open(path, O_RDONLY | O_CLOEXEC);

		if (fd < 0)
			continue;
		if (read(fd, seen, sizeof(seen) - 1) > 0) {
			seen[strcspn(seen, "\n")] = '\0';
			found = strcmp(seen, serial) == 0;
		}
		close(fd);
		if (found)
			snprintf(device, size, "/dev/%.32s", entry->d_name);
	}
	if (dir)
		closedir(dir);
	return found;
}

/* Disks of a built-in driver may be probed while we already run: look until a deadline. */
static void wait_for_disk(const char *serial, char *device, size_t size)
{
	double deadline = now() + DISK_DEADLINE_S;

	while (!find_disk(serial, device, size)) {
		if (now() > deadline)
			fatal("no disk with serial %s after %d s (CONFIG_VIRTIO_PCI=y CONFIG_VIRTIO_BLK=y)",
			      serial, DISK_DEADLINE_S);
		nanosleep(&(struct timespec){ .tv_nsec = 10 * 1000 * 1000 }, NULL);
	}
}

static void copy_file(const char *from, const char *to)
{
	int in = open(from, O_RDONLY | O_CLOEXEC);
	int out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	char buffer[16384];
	ssize_t got;

	if (in < 0 || out < 0)
		fatal("copy of %s to %s: %s", from, to, strerror(errno));
	while ((got = read(in, buffer, sizeof(buffer))) > 0)
		if (write(out, buffer, (size_t)got) != got)
			fatal("copy of %s to %s: %s", from, to, strerror(errno));
	close(in);
	close(out);
}

/* Hand the per-run files (keys, boot.env, rc) over and leave nothing of them in the initramfs. */
static void move_files(const char *from, const char *to)
{
	DIR *dir = opendir(from);
	struct dirent *entry;

	if (mkdir(to, 0700) < 0 && errno != EEXIST)
		fatal("mkdir %s: %s", to, strerror(errno));
	while (dir && (entry = readdir(dir))) {
		char source[600], target[600];

		if (entry->d_name[0] == '.')
			continue;
		snprintf(source, sizeof(source), "%s/%s", from, entry->d_name);
		snprintf(target, sizeof(target), "%s/%s", to, entry->d_name);
		copy_file(source, target);
		unlink(source);
	}
	if (dir)
		closedir(dir);
}

static void mount_modules(void)
{
	struct utsname kernel;
	char device[64], target[256];

	if (uname(&kernel) < 0 || !find_disk("nvhmods", device, sizeof(device)))
		return;
	mkdir(NEWROOT "/usr/lib/modules", 0755);
	snprintf(target, sizeof(target), NEWROOT "/usr/lib/modules/%s", kernel.release);
	must_mount(device, target, "ext4", MS_RDONLY | MS_NODEV | MS_NOATIME, "noload",
		   "CONFIG_EXT4_FS=y");
}

static void switch_root(void)
{
	static const char *const moved[] = { "/dev", "/proc", "/sys" };

	for (size_t i = 0; i < sizeof(moved) / sizeof(moved[0]); i++) {
		char target[64];

		snprintf(target, sizeof(target), NEWROOT "%s", moved[i]);
		if (mount(moved[i], target, NULL, MS_MOVE, NULL) < 0)
			fatal("move of %s: %s", moved[i], strerror(errno));
	}
	unlink("/init");
	unlink("/modules.list");
	if (chdir(NEWROOT) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 ||
	    chdir("/") < 0)
		fatal("switch to the new root: %s", strerror(errno));
}

static pid_t start(char *const argv[], void (*prepare)(void))
{
	pid_t child = fork();

	if (child != 0)
		return child;

	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	if (prepare)
		prepare();
	execv(argv[0], argv);
	say("%s: %s", argv[0], strerror(errno));
	_exit(127);
}

static pid_t start_rc(void)
{
	char *const argv[] = { "/bin/sh", "/run/nvh/rc", NULL };

	return start(argv, NULL);
}

/* Make ttyS1 the controlling terminal: no echo and no CR/LF games, a program talks to us there. */
static void take_serial_console(void)
{
	int fd = open("/dev/ttyS1", O_RDWR);
	struct termios mode;

	if (fd < 0 || tcgetattr(fd, &mode) < 0)
		_exit(126);
	mode.c_lflag &= ~(tcflag_t)(ECHO | ECHONL);
	mode.c_oflag &= ~(tcflag_t)ONLCR;
	mode.c_cflag |= CLOCAL;
	tcsetattr(fd, TCSANOW, &mode);
	ioctl(fd, TIOCSCTTY, 1);
	for (int target = 0; target < 3; target++)
		dup2(fd, target);
	if (fd > 2)
		close(fd);
	setenv("PS1", "nvh# ", 1);
	setenv("TERM", "dumb", 1);
	if (chdir("/root") < 0)
		say("/root: %s", strerror(errno));
}

static pid_t start_shell(void)
{
	char *const argv[] = { "/bin/sh", "-i", NULL };

	return start(argv, take_serial_console);
}

/* A port that is not there opens, but has no terminal modes. */
static bool have_serial_console(void)
{
	int fd = open("/dev/ttyS1", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	struct termios mode;
	bool usable = fd >= 0 && tcgetattr(fd, &mode) == 0;

	if (fd >= 0)
		close(fd);
	return usable;
}

/* A machine or a kernel without one does without. */
static int open_watchdog(void)
{
	int fd = open(WATCHDOG, O_WRONLY | O_CLOEXEC), timeout = WATCHDOG_S;

	if (fd >= 0 && ioctl(fd, WDIOC_SETTIMEOUT, &timeout) < 0)
		say(WATCHDOG ": %s", strerror(errno));
	return fd;
}

static _Noreturn void serve(void)
{
	const struct timespec patience = { .tv_sec = RC_PATIENCE_S }, second = { .tv_sec = 1 };
	const struct timespec feeding = { .tv_sec = FEED_S };
	int watchdog = -1;
	const bool console = have_serial_console();
	pid_t rc = start_rc(), shell = 0;
	double shell_started = 0;
	sigset_t awaited;

	if (rc < 0)
		fatal("fork: %s", strerror(errno));
	sigemptyset(&awaited);
	sigaddset(&awaited, SIGCHLD);
	sigaddset(&awaited, SIGTERM);
	sigaddset(&awaited, SIGUSR2);
	for (;;) {
		/* A shell that ends at once, on a broken port, is started again once a second. */
		const struct timespec *timeout = shell < 0 ? &second : shell == 0 ? &patience :
						 watchdog < 0 ? NULL : &feeding;
		int signal = sigtimedwait(&awaited, NULL, timeout);
		bool out_of_patience = signal < 0 && errno == EAGAIN && !shell;
		int status;
		pid_t child;

		if (watchdog >= 0)
			ioctl(watchdog, WDIOC_KEEPALIVE);
		if (signal == SIGTERM || signal == SIGUSR2)
			power_off();
		while ((child = waitpid(-1, &status, WNOHANG)) > 0) {
			if (child == shell)
				shell = -1;
			if (child != rc)
				continue;
			rc = 0;
			if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
				fatal("rc ended with status 0x%x", (unsigned int)status);
			watchdog = open_watchdog();
		}
		if (!console || (rc > 0 && !shell && !out_of_patience))
			continue;
		if (shell <= 0 && now() - shell_started > 1) {
			shell_started = now();
			shell = start_shell();
		}
	}
}

int main(void)
{
	char root[64];
	sigset_t all;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	reboot(RB_DISABLE_CAD);
	umask(022);
	sethostname("nvh", 3);
	must_mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755", "CONFIG_DEVTMPFS=y");
	must_mount("proc", "/proc", "proc", 0, NULL, "CONFIG_PROC_FS=y");
	must_mount("sysfs", "/sys", "sysfs", 0, NULL, "CONFIG_SYSFS=y");
	load_modules("/modules.list");

	wait_for_disk("nvhroot", root, sizeof(root));
	must_mount(root, "/lower", "ext4", MS_RDONLY | MS_NODEV | MS_NOATIME, "noload",
		   "CONFIG_EXT4_FS=y");
	must_mount("tmpfs", "/upper", "tmpfs", 0, "mode=0755", "CONFIG_TMPFS=y");
	mkdir("/upper/files", 0755);
	mkdir("/upper/work", 0755);
	must_mount("overlay", NEWROOT, "overlay", MS_NOATIME,
		   "lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work",
		   "CONFIG_OVERLAY_FS=y");
	must_mount("tmpfs", NEWROOT "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755",
		   "CONFIG_TMPFS=y");
	must_mount("tmpfs", NEWROOT "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777",
		   "CONFIG_TMPFS=y");
	mount_modules();
	move_files("/nvh", NEWROOT "/run/nvh");
	switch_root();

	may_mount("devpts", "/dev/pts", "devpts", "gid=5,mode=0620,ptmxmode=0666");
	may_mount("tmpfs", "/dev/shm", "tmpfs", "mode=1777");
	may_mount("debugfs", "/sys/kernel/debug", "debugfs", NULL);
	may_mount("tracefs", "/sys/kernel/tracing", "tracefs", NULL);
	may_mount("cgroup2", "/sys/fs/cgroup", "cgroup2", NULL);
	serve();
}
