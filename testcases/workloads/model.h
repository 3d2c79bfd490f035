/*
 * What a file must contain, page by page, after each operation on its layout.
 */
#ifndef MODEL_H
#define MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MODEL_MAX 512 /* pages */

/* Whose pattern a page carries; each is a seed of memory_fill_at(). */
enum owner { OWNER_ZERO, OWNER_FIRST, OWNER_SECOND, OWNER_DEVICE, OWNER_ANY };

struct model {
	int pages;
	int patterns; /* how many pages of an owner's pattern may be found, for naming them */
	struct {
		enum owner owner;
		int index; /* which page of the owner's pattern */
		bool or_io; /* a device may have written here: its data, zeros and the above are right */
	} page[MODEL_MAX];
};

/* The page's bytes as page "index" of owner's pattern. */
void model_fill(void *page, enum owner owner, int index);

/* Names what a page holds: "first 3", "second 0", "device 1", "zero", "other"; in text[32]. */
const char *model_whose(const void *page, int pages, char *text);

void model_init(struct model *model, int pages);
void model_truncate(struct model *model, int pages);
void model_zero(struct model *model, int at, int count);
void model_collapse(struct model *model, int at, int count);
void model_insert(struct model *model, int at, int count);
void model_write(struct model *model, int at);
void model_set(struct model *model, int at, enum owner owner, int index);

/*
 * Compares the file with the model, by read() and by a new mapping.  "OK", or what is wrong:
 * "size 4096, not 8192", "page 3 is zero, not first 3".  The text lives until the next call.
 */
const char *model_check(const struct model *model, int fd, bool mapped);

#endif
