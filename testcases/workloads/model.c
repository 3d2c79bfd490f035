#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory.h"
#include "nvh.h"

static const char *const owner_names[] = {"zero", "first", "second", "device", "any"};

static bool is_zero(const void *page)
{
	const char *bytes = page;

	return bytes[0] == 0 && !memcmp(bytes, bytes + 1, memory_page() - 1);
}

void model_fill(void *page, enum owner owner, int index)
{
	size_t size = memory_page();

	if (owner == OWNER_ZERO)
		memset(page, 0, size);
	else
		memory_fill_at(page, size, owner, (size_t)index * size);
}

static bool is_page(const void *page, enum owner owner, int index)
{
	size_t size = memory_page();

	if (owner == OWNER_ANY)
		return true;
	if (owner == OWNER_ZERO)
		return is_zero(page);
	return memory_check_at(page, size, owner, (size_t)index * size) == size;
}

const char *model_whose(const void *page, int pages, char *text)
{
	if (is_zero(page))
		return strcpy(text, "zero");
	for (int owner = OWNER_FIRST; owner <= OWNER_DEVICE; owner++) {
		for (int i = 0; i < pages; i++) {
			if (!is_page(page, (enum owner)owner, i))
				continue;
			snprintf(text, 32, "%s %d", owner_names[owner], i);
			return text;
		}
	}
	return strcpy(text, "other");
}

void model_set(struct model *model, int at, enum owner owner, int index)
{
	model->page[at].owner = owner;
	model->page[at].index = index;
	model->page[at].or_io = false;
}

void model_init(struct model *model, int pages)
{
	model->pages = pages;
	model->patterns = MODEL_MAX;
	for (int i = 0; i < pages; i++)
		model_set(model, i, OWNER_FIRST, i);
}

void model_truncate(struct model *model, int pages)
{
	for (int i = model->pages; i < pages; i++)
		model_set(model, i, OWNER_ZERO, 0);
	model->pages = pages;
}

void model_zero(struct model *model, int at, int count)
{
	for (int i = at; i < at + count && i < model->pages; i++)
		model_set(model, i, OWNER_ZERO, 0);
}

void model_collapse(struct model *model, int at, int count)
{
	for (int i = at; i + count < model->pages; i++)
		model->page[i] = model->page[i + count];
	model->pages -= count;
}

void model_insert(struct model *model, int at, int count)
{
	for (int i = model->pages - 1; i >= at; i--)
		model->page[i + count] = model->page[i];
	model->pages += count;
	model_zero(model, at, count);
}

void model_write(struct model *model, int at)
{
	model_set(model, at, OWNER_SECOND, at);
}

static bool page_right(const struct model *model, int i, const void *page)
{
	if (is_page(page, model->page[i].owner, model->page[i].index))
		return true;
	return model->page[i].or_io && (is_zero(page) || is_page(page, OWNER_DEVICE, 0));
}

const char *model_check(const struct model *model, int fd, bool mapped)
{
	static char text[160];
	size_t size = memory_page();
	off_t right_size = (off_t)model->pages * (off_t)size;
	char *map = NULL, *buffer;
	struct stat st;

	if (fstat(fd, &st))
		return "fstat failed";
	if (st.st_size != right_size) {
		snprintf(text, sizeof(text), "size %lld, not %lld", (long long)st.st_size, (long long)right_size);
		return text;
	}
	if (model->pages == 0)
		return "OK";
	if (mapped) {
		map = mmap(NULL, (size_t)right_size, PROT_READ, MAP_SHARED, fd, 0);
		if (map == MAP_FAILED)
			return "mmap failed";
	}
	buffer = malloc(size);
	strcpy(text, "OK");
	for (int i = 0; i < model->pages; i++) {
		const char *page = mapped ? map + (size_t)i * size : buffer;
		char seen[32];

		if (!mapped && pread(fd, buffer, size, (off_t)i * (off_t)size) != (ssize_t)size) {
			snprintf(text, sizeof(text), "page %d cannot be read", i);
			break;
		}
		if (!page_right(model, i, page)) {
			snprintf(text, sizeof(text), "page %d is %s, not %s %d", i,
				 model_whose(page, model->patterns, seen), owner_names[model->page[i].owner],
				 model->page[i].index);
			break;
		}
	}
	free(buffer);
	if (mapped)
		munmap(map, (size_t)right_size);
	return text;
}
