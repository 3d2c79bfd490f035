/* Where tracefs is mounted, and how its files are written. */
#ifndef TRACEFS_H
#define TRACEFS_H

/* The folder of tracefs in which this entry may be written; NULL where there is none. */
const char *tracefs_with(const char *entry);

/* Writes a text to a file, opened with these further flags; returns the errno. */
__attribute__((format(printf, 3, 4))) int tracefs_put(const char *text, int flags, const char *fmt, ...);

#endif
