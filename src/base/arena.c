/* arena.c: see arena.h. Chunks in a list, bump allocation in the newest. */
#include "base/arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES ((size_t)64 * 1024)

typedef struct chunk {
    struct chunk *next;
    size_t used;
    size_t size; /* of data, which starts HEADER bytes after the struct */
} chunk;

#define HEADER ((size_t)64) /* keeps data on a 64-byte border */

struct ol_arena {
    chunk *head;
    size_t total;
};

_Static_assert(sizeof(chunk) <= HEADER, "chunk header must fit before its data");

ol_arena *ol_arena_create(void)
{
    return calloc(1, sizeof(ol_arena));
}

void ol_arena_destroy(ol_arena *arena)
{
    if (!arena)
        return;
    for (chunk *c = arena->head; c;) {
        chunk *next = c->next;

        free(c);
        c = next;
    }
    free(arena);
}

static chunk *add_chunk(ol_arena *arena, size_t size)
{
    size_t total = HEADER + ((size + 63) & ~(size_t)63);
    chunk *c;

    if (total < size || !(c = aligned_alloc(64, total)))
        return NULL;
    memset(c, 0, total);
    c->size = total - HEADER;
    arena->total += total;
    /* An oversized chunk goes behind the head, which still has room. */
    if (arena->head && size > CHUNK_BYTES) {
        c->next = arena->head->next;
        arena->head->next = c;
    } else {
        c->next = arena->head;
        arena->head = c;
    }
    return c;
}

void *ol_arena_alloc(ol_arena *arena, size_t size)
{
    size_t align = size >= OL_ARENA_WIDE ? 64 : 16;
    chunk *c = arena->head;
    size_t at = c ? (c->used + align - 1) & ~(align - 1) : 0;

    if (!c || at > c->size || c->size - at < size) {
        c = add_chunk(arena, size > CHUNK_BYTES ? size : CHUNK_BYTES);
        if (!c)
            return NULL;
        at = 0;
    }
    c->used = at + size;
    return (char *)c + HEADER + at;
}

void *ol_arena_array(ol_arena *arena, size_t count, size_t size)
{
    size_t bytes;

    if (__builtin_mul_overflow(count, size, &bytes))
        return NULL;
    return ol_arena_alloc(arena, bytes);
}

char *ol_arena_strndup(ol_arena *arena, const char *text, size_t len)
{
    char *copy = ol_arena_array(arena, len + 1, 1);

    if (copy)
        memcpy(copy, text, len);
    return copy;
}

char *ol_arena_strdup(ol_arena *arena, const char *text)
{
    return ol_arena_strndup(arena, text, strlen(text));
}

size_t ol_arena_bytes(const ol_arena *arena)
{
    return arena->total;
}
