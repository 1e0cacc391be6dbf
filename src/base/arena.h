/*
 * arena.h: memory by lifetime. Everything allocated from an arena is freed with
 * it, at once. Blocks are zeroed and aligned to 64 bytes when they are large
 * (OL_ARENA_WIDE and up), to 16 otherwise. Not thread-safe.
 */
#ifndef OL_BASE_ARENA_H
#define OL_BASE_ARENA_H

#include <stddef.h>

typedef struct ol_arena ol_arena;

#define OL_ARENA_WIDE 256

/* NULL when out of memory. */
ol_arena *ol_arena_create(void);
void ol_arena_destroy(ol_arena *arena); /* NULL is fine */
/* NULL when out of memory; size 0 gives a valid pointer. */
void *ol_arena_alloc(ol_arena *arena, size_t size);
/* count * size with overflow check. */
void *ol_arena_array(ol_arena *arena, size_t count, size_t size);
char *ol_arena_strdup(ol_arena *arena, const char *text);
char *ol_arena_strndup(ol_arena *arena, const char *text, size_t len);
size_t ol_arena_bytes(const ol_arena *arena);

#endif
