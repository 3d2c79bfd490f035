#include "dax_pipes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <unistd.h>

#include "check.h"
#include "dax_file.h"
#include "memory.h"
#include "nvh.h"

#define PAGE 4096UL

/* What goes through a pipe: five pages' worth that is in six. */
#define BEGIN (AT + 77)
#define END (BEGIN + 5 * PAGE)

/* What moves bytes may move fewer; false where it moves none. */
static bool moved(const char *how, ssize_t done)
{
	if (done <= 0)
		check_differs("%s: %s", how, done ? nvh_errname(errno) : "nothing");
	return done > 0;
}

static void make_pipe(int ends[2], int flags)
{
	must(pipe2(ends, O_CLOEXEC | flags) == 0, "pipe");
}

/* sendfile() to a file that is not DAX. */
void sent(const char *name, int start)
{
	int fd = file_make(name, start), copy = memfd_create("copy", MFD_CLOEXEC);
	char *bytes = malloc(SIZE);
	off_t from = BEGIN;

	must(copy >= 0 && bytes, "memfd");
	while (from < (off_t)END)
		if (!moved("sendfile()", sendfile(copy, fd, &from, END - (size_t)from)))
			return;
	if (from != (off_t)END || lseek(copy, 0, SEEK_END) != (off_t)(END - BEGIN))
		check_differs("sendfile() is at %lld", (long long)from);
	must(pread(copy, bytes + BEGIN, END - BEGIN, 0) >= 0, "pread");
	look("what was sent", bytes, BEGIN, END, SEED_OLD);
	must(ftruncate(fd, 0) == 0, "ftruncate"); /* nothing is left to be compared */
}

/* splice() into a pipe, and from there into another DAX file: into a hole of it. */
void spliced(const char *name, int start)
{
	int fd = file_make(name, start), other = file_make("spliced_into", HOLE), ends[2];
	char *view = map(other, PROT_READ, MAP_SHARED);
	loff_t from = BEGIN, to = BEGIN;
	ssize_t got = 0, put;

	make_pipe(ends, 0);
	look("first look", view, AT, END, 0);
	while (from < (loff_t)END) {
		got = splice(fd, &from, ends[1], NULL, END - (size_t)from, 0);
		if (!moved("splice() from the file", got))
			return;
		for (; got > 0; got -= put) {
			put = splice(ends[0], NULL, other, &to, (size_t)got, 0);
			if (!moved("splice() into a file", put))
				return;
		}
	}
	if (from != (loff_t)END || to != (loff_t)END)
		check_differs("splice() is at %lld and %lld", (long long)from, (long long)to);
	look("before what was spliced", view, FROM, BEGIN, 0);
	look("what was spliced", view, BEGIN, END, SEED_OLD);
	look("behind what was spliced", view, END, END + 2 * PAGE, 0);
	must(ftruncate(fd, 0) == 0, "ftruncate");
}

/* vmsplice() of more pages than the pipe has room for: the file's own, and it lets go of each. */
void vmspliced(const char *name, int start)
{
	int fd = file_make(name, start), ends[2];
	char *view = map(fd, PROT_READ | PROT_WRITE, MAP_SHARED), *bytes = malloc(SIZE);
	struct iovec from = {view + BEGIN, 12 * PAGE};
	ssize_t taken, got, all = 0;

	must(bytes != NULL, "malloc");
	memory_touch(view, SIZE, true);
	make_pipe(ends, O_NONBLOCK);
	must(fcntl(ends[1], F_SETPIPE_SZ, 4 * PAGE) == 4 * PAGE, "F_SETPIPE_SZ");
	taken = vmsplice(ends[1], &from, 1, SPLICE_F_NONBLOCK);
	if (!moved("vmsplice()", taken))
		return;
	if ((size_t)taken > 4 * PAGE)
		check_differs("a pipe of four pages has taken %zd bytes", taken);
	while ((got = read(ends[0], bytes + BEGIN + all, SIZE - BEGIN - (size_t)all)) > 0)
		all += got;
	if (all != taken)
		check_differs("%zd bytes of %zd are in the pipe", all, taken);
	look("what was vmspliced", bytes, BEGIN, BEGIN + (size_t)all, SEED_OLD);
	/* Who still held a page would be waited for. */
	must(ftruncate(fd, 0) == 0, "ftruncate");
}
