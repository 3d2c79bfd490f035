/*
 * Wakes up in a clone: started in the template's guest on ttyS1 with the addresses of PCI devices, it
 * notes their configuration and waits for one line of the harness, so that the first thing which
 * runs in every clone is this read() returning.
 *
 *     NONCE SECONDS SEED [ADDRESS...]
 *
 * It sets the clock (SECONDS since the epoch, with a fraction), feeds SEED (hexadecimal) to the
 * kernel's random generator and has it reseeded, lets the SSH port go on, gives the devices that have
 * no migration state (edu) their configuration back, and sees to it that those at ADDRESS are bound
 * to vfio-pci; one that is being plugged in is waited for.  Its answer is one line in the pipe
 * /run/nvh/resumed, read over SSH: whoever reads this NONCE there is connected to the guest whose
 * serial line it was sent to.
 *
 *     NONCE [ADDRESS=DRIVER,GROUP,IOMMU,VENDOR:DEVICE...]
 *
 * Then it waits until something is said on the serial line, and leaves that to the shell which has
 * started it: that shell does nothing in a clone until it is asked for.
 *
 * The answer does not go back over the serial line: QEMU's 16550A (7.2) sometimes loses a transmit
 * interrupt, and what the driver still holds waits for the next byte that comes in.
 *
 * System calls rather than programs: under TCG each fork and exec costs tens of milliseconds.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PCI "/sys/bus/pci/"
#define ANSWER "/run/nvh/resumed"
#define SEED_MAX 64
#define DEVICES_MAX 32
#define PLUG_DEADLINE_S 10

/* The registers of a configuration header that a reset clears, the command register last. */
static const off_t registers[] = { 0x0c, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30, 0x3c, 0x04 };
#define REGISTERS (sizeof(registers) / sizeof(registers[0]))

static struct device {
	const char *address;
	uint32_t saved[REGISTERS];
} devices[DEVICES_MAX];

static bool put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return done;
}

static void set_clock(const char *text)
{
	char *end;
	long long seconds = strtoll(text, &end, 10);
	double fraction = *end == '.' ? strtod(end, NULL) : 0;
	struct timespec t = { .tv_sec = (time_t)seconds, .tv_nsec = (long)(fraction * 1e9) };

	if (clock_settime(CLOCK_REALTIME, &t) < 0)
		printf("nvh-resume: clock: %s\n", strerror(errno));
}

static bool reseed(const char *hex)
{
	struct {
		struct rand_pool_info info;
		unsigned char data[SEED_MAX];
	} pool = { 0 };
	int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
	int size = 0;
	unsigned int byte;

	while (size < SEED_MAX && sscanf(hex + 2 * (size_t)size, "%2x", &byte) == 1)
		pool.data[size++] = (unsigned char)byte;
	pool.info.buf_size = size;
	pool.info.entropy_count = size * 8;

	bool done = fd >= 0 && size > 0 && ioctl(fd, RNDADDENTROPY, &pool) == 0;

	/* Without it the generator would go on with the template's key for minutes. */
	done = done && ioctl(fd, RNDRESEEDCRNG) == 0;
	if (fd >= 0)
		close(fd);
	return done;
}

static void link_name(const char *address, const char *entry, char *name, size_t size)
{
	char path[256], target[256];
	ssize_t length;

	snprintf(path, sizeof(path), PCI "devices/%s/%s", address, entry);
	length = readlink(path, target, sizeof(target) - 1);
	target[length < 0 ? 0 : length] = '\0';

	const char *slash = strrchr(target, '/');

	snprintf(name, size, "%.*s", (int)size - 1,
		 length < 0 ? "none" : slash ? slash + 1 : target);
}

static void read_id(const char *address, const char *entry, char *id)
{
	char path[256];
	FILE *file;

	snprintf(path, sizeof(path), PCI "devices/%s/%s", address, entry);
	file = fopen(path, "re");
	if (!file || fscanf(file, "0x%4s", id) != 1)
		strcpy(id, "none");
	if (file)
		fclose(file);
}

static int open_config(const char *address)
{
	char path[256];

	snprintf(path, sizeof(path), PCI "devices/%s/config", address);
	return open(path, O_RDWR | O_CLOEXEC);
}

static bool save(struct device *device, const char *address)
{
	int fd = open_config(address);
	bool done = fd >= 0;

	device->address = address;
	for (size_t i = 0; i < REGISTERS; i++)
		done = done && pread(fd, &device->saved[i], 4, registers[i]) == 4;
	if (fd >= 0)
		close(fd);
	return done;
}

/* A device with migration state still has its registers, and is left alone. */
static void restore(const struct device *device)
{
	int fd = open_config(device->address);
	uint32_t now;

	for (size_t i = 0; fd >= 0 && i < REGISTERS; i++)
		if (pread(fd, &now, 4, registers[i]) == 4 && now != device->saved[i] &&
		    pwrite(fd, &device->saved[i], 4, registers[i]) != 4)
			fprintf(stderr, "nvh-resume: %s: %s\n", device->address, strerror(errno));
	if (fd >= 0)
		close(fd);
}

/* A device that the harness plugs in shows up when the kernel has found it. */
static void wait_for(const char *address)
{
	char path[256];

	snprintf(path, sizeof(path), PCI "devices/%s/vendor", address);
	for (int tries = 0; tries < PLUG_DEADLINE_S * 200 && access(path, F_OK) < 0; tries++)
		nanosleep(&(struct timespec){ .tv_nsec = 5 * 1000 * 1000 }, NULL);
}

/* See to it that a device is bound to vfio-pci, and say what it is then. */
static void bind(FILE *answer, const char *address)
{
	char path[256], driver[64], group[64], iommu[64], vendor[8], device[8];

	wait_for(address);
	link_name(address, "driver", driver, sizeof(driver));
	if (strcmp(driver, "vfio-pci") != 0) {
		snprintf(path, sizeof(path), PCI "devices/%s/driver_override", address);
		put(path, "vfio-pci");
		snprintf(path, sizeof(path), PCI "devices/%s/driver/unbind", address);
		put(path, address);
		put(PCI "drivers_probe", address);
	}
	link_name(address, "driver", driver, sizeof(driver));
	link_name(address, "iommu_group", group, sizeof(group));
	link_name(address, "iommu", iommu, sizeof(iommu));
	read_id(address, "vendor", vendor);
	read_id(address, "device", device);
	fprintf(answer, " %s=%s,%s,%s,%s:%s", address, driver, group, iommu, vendor, device);
}

/* The SSH port was stopped in the template: nobody gets in before the generator is reseeded. */
static void open_door(void)
{
	FILE *file = fopen("/run/nvh/door.pid", "re");
	int pid;

	if (file && fscanf(file, "%d", &pid) == 1 && pid > 1)
		kill(pid, SIGCONT);
	if (file)
		fclose(file);
}

int main(int argc, char **argv)
{
	static char line[4096];
	char *next = NULL;

	for (int i = 1; i < argc; i++)
		if (i > DEVICES_MAX || !save(&devices[i - 1], argv[i])) {
			fprintf(stderr, "nvh-resume: cannot note %s\n", argv[i]);
			return 1;
		}
	umask(077);
	unlink(ANSWER);
	if (mkfifo(ANSWER, 0600) < 0) {
		perror("nvh-resume: " ANSWER);
		return 1;
	}
	puts("nvh-resume: waiting");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 1;

	const char *nonce = strtok_r(line, " \n", &next);
	const char *seconds = strtok_r(NULL, " \n", &next);
	const char *seed = strtok_r(NULL, " \n", &next);

	if (!seed) {
		puts("nvh-resume: NONCE SECONDS SEED [ADDRESS...] expected");
		return 2;
	}
	set_clock(seconds);
	if (!reseed(seed)) {
		puts("nvh-resume: the random generator was not reseeded");
		return 3;
	}
	open_door();
	for (int i = 1; i < argc; i++)
		restore(&devices[i - 1]);

	FILE *answer = fopen(ANSWER, "we"); /* waits for the reader */

	if (!answer)
		return 1;
	fprintf(answer, "%s", nonce);
	for (char *address; (address = strtok_r(NULL, " \n", &next));)
		bind(answer, address);
	fputc('\n', answer);
	fclose(answer);

	struct pollfd said = { .fd = STDIN_FILENO, .events = POLLIN };

	while (poll(&said, 1, -1) < 0 && errno == EINTR)
		;
	return 0;
}
