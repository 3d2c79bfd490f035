/*
 * Wakes up in a clone: started in the template's guest on ttyS1, it waits there for one line of the
 * harness, so that the first thing which runs in every clone is this read() returning.
 *
 *     NONCE SECONDS SEED [ADDRESS...]
 *
 * It sets the clock (SECONDS since the epoch, with a fraction), feeds SEED (hexadecimal) to the
 * kernel's random generator and has it reseeded, looks for the PCI devices that a template cannot
 * carry, and binds those at ADDRESS to vfio-pci.  Its answer is one line in the pipe
 * /run/nvh/resumed, read over SSH: whoever reads this NONCE there is connected to the guest whose
 * serial line it was sent to.
 *
 *     NONCE [ADDRESS=DRIVER,GROUP,IOMMU,VENDOR:DEVICE...]
 *
 * The answer does not go back over the serial line: QEMU's 16550A (7.2) sometimes loses a transmit
 * interrupt, and what the driver still holds waits for the next byte that comes in.
 *
 * System calls rather than programs: under TCG each fork and exec costs tens of milliseconds.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <signal.h>
#include <stdbool.h>
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

/* Bind a device to vfio-pci before any other driver has seen it, and say what it is then. */
static void bind(FILE *answer, const char *address)
{
	char path[256], driver[64], group[64], iommu[64], vendor[8], device[8];

	snprintf(path, sizeof(path), PCI "devices/%s/driver_override", address);
	put(path, "vfio-pci");
	put(PCI "drivers_probe", address);
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

int main(void)
{
	static char line[4096];
	char *save = NULL;

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

	const char *nonce = strtok_r(line, " \n", &save);
	const char *seconds = strtok_r(NULL, " \n", &save);
	const char *seed = strtok_r(NULL, " \n", &save);

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
	put(PCI "drivers_autoprobe", "0");
	put(PCI "rescan", "1");
	put(PCI "drivers_autoprobe", "1");

	FILE *answer = fopen(ANSWER, "we"); /* waits for the reader */

	if (!answer)
		return 1;
	fprintf(answer, "%s", nonce);
	for (char *address; (address = strtok_r(NULL, " \n", &save));)
		bind(answer, address);
	fputc('\n', answer);
	fclose(answer);
	/* What is not for vfio gets its own driver, when nobody waits for it any more. */
	return system("for d in " PCI "devices/*; do [ -e $d/driver ] || "
		      "echo ${d##*/} > " PCI "drivers_probe; done 2>/dev/null");
}
