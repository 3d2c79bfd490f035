/*
 * The files of dax_data: how they begin, how they are mapped, and what they hold.
 */
#ifndef DAX_FILE_H
#define DAX_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HUGE_PAGE (2UL << 20)
#define SIZE (2 * HUGE_PAGE) /* of each file; what matters lies around the border in its middle */

/* The pages around the middle are looked at; a whole file each time would take TCG too long. */
#define FROM (HUGE_PAGE - 8 * 4096UL)
#define TO (HUGE_PAGE + 8 * 4096UL)

/* The page in which things happen: not the first of its 2 MiB. */
#define AT (HUGE_PAGE + 3 * 4096UL)

enum { SEED_OLD = 21, SEED_NEW, SEED_OTHER };

/* A file of SIZE bytes: nothing but a hole, allocated and unwritten, or the pattern SEED_OLD. */
enum start { HOLE, UNWRITTEN, WRITTEN };

extern const char *dax_directory; /* where the files are made */
extern bool dax_small;            /* mappings lie one page off, so that none can be huge */

/* Has what WRITTEN files hold; checks inherit it. */
void file_prepare(void);

int file_open(const char *name, int flags);
int file_make(const char *name, int start);

/* A mapping of the whole file whose addresses are aligned as its offsets are, or one page off. */
char *map_as(int fd, int prot, int flags, bool off_by_a_page);
char *map(int fd, int prot, int flags);

/* What [from, to) must hold: a pattern by the file's offsets, or zeros (seed 0). */
void look(const char *who, const char *bytes, size_t from, size_t to, uint64_t seed);

#endif
