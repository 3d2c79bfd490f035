/*
 * Checks of dax_data: what of a file goes through a pipe.  A DAX file has no page cache whose pages a
 * pipe could take; what it takes by vmsplice() are the file's own pages.
 */
#ifndef DAX_PIPES_H
#define DAX_PIPES_H

void sent(const char *name, int start);
void spliced(const char *name, int start);
void vmspliced(const char *name, int start);

#endif
