/*
 * Memory that a pinner must not take while it writes what it pins, whatever else it would: tried besides
 * what it holds, and let go of at once where it is taken.
 */
#ifndef REFUSALS_H
#define REFUSALS_H

#include <stddef.h>

#include "pinner.h"

/* Both need pinner->pin_more. */

/*
 * So much that the process may only read.  Facts: "readonly_private" of pages that it had written to,
 * "readonly_shared" of a file's that it opened for reading.
 */
void refusals_readonly(const struct pinner *pinner, size_t length);

/* So much of which only the first page is there: the fact "partly". */
void refusals_partly(const struct pinner *pinner, size_t length);

#endif
