/*
 * What a pinner writes and reads of memory that it has pinned, and that it keeps to it.
 */
#ifndef TRANSFERS_H
#define TRANSFERS_H

#include <stdbool.h>
#include <stddef.h>

#include "pinner.h"

/*
 * Has the pinner write what it has pinned to a file, all of it and a piece; with read also read something
 * else into the piece.  Then asks for a byte more at each end.  Facts: "copied", "copied_piece", "copied_end",
 * "read_piece" are "equal" where the mapping, and so the process, has the same; "outside_begin",
 * "outside_end" and "outside_memory" the errors' names.
 */
void transfers_check(const struct pinner *pinner, char *start, size_t length, bool read);

#endif
