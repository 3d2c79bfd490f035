/*
 * A full file system: the only blocks to be had are those that an operation under test frees.
 */
#ifndef BALLAST_H
#define BALLAST_H

#include <stdbool.h>
#include <stdint.h>

/* Makes PATH, empty, and PATH.ballast, which takes every free block; false where there was none. */
bool ballast_fill(const char *path);

/* Removes both. */
void ballast_drop(const char *path);

/* Where on the device a page of the file lies, in bytes; false when it has no block. */
bool ballast_where(int fd, int page, uint64_t *physical);

/*
 * Writes pages of the second pattern into PATH until there is no block left; the fact
 * "refill_pages" says how many came, "refill_reuses" whether one of them lies at physical
 * (0: not asked).
 */
void ballast_refill(const char *path, uint64_t physical);

/* Compares PATH with what was written (fact "refill_content") and removes both files. */
void ballast_check(const char *path);

#endif
