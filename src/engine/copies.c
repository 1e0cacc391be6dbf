/* copies.c: see copies.h. */
#include "engine/copies.h"

#include <assert.h>
#include <stdlib.h>

static size_t size_of(const ol_copy *copy)
{
    return copy->len + ol_arena_bytes(copy->arena);
}

/* -- the order in which they go ---------------------------------------------------------- */

static void unlink_copy(ol_copies *copies, ol_copy *copy)
{
    *(copy->older ? &copy->older->newer : &copies->oldest) = copy->newer;
    *(copy->newer ? &copy->newer->older : &copies->newest) = copy->older;
    copy->older = copy->newer = NULL;
}

static void append(ol_copies *copies, ol_copy *copy)
{
    copy->older = copies->newest;
    *(copies->newest ? &copies->newest->newer : &copies->oldest) = copy;
    copies->newest = copy;
}

void ol_copies_touch(ol_copies *copies, ol_copy *copy)
{
    if (!copy)
        return;
    unlink_copy(copies, copy);
    append(copies, copy);
}

/* -- coming and going ---------------------------------------------------------------------- */

/* All but its bytes. */
static uint8_t *take_apart(ol_copies *copies, ol_copy *copy)
{
    uint8_t *bytes = copy->bytes;

    assert(copy->readers == 0);
    unlink_copy(copies, copy);
    copies->bytes -= size_of(copy);
    copies->n--;
    *copy->owner = NULL;
    ol_arena_destroy(copy->arena);
    free(copy);
    return bytes;
}

void ol_copies_drop(ol_copies *copies, ol_copy *copy)
{
    if (copy)
        free(take_apart(copies, copy));
}

static ol_copy *first_to_go(const ol_copies *copies)
{
    ol_copy *copy = copies->oldest;

    while (copy && copy->readers > 0)
        copy = copy->newer;
    return copy;
}

static bool can_make_room(const ol_copies *copies, size_t bytes)
{
    size_t held = 0;

    for (const ol_copy *copy = copies->oldest; copy; copy = copy->newer)
        held += copy->readers > 0 ? size_of(copy) : 0;
    return held <= copies->budget && bytes <= copies->budget - held;
}

/* *spare: the largest of the buffers that went. */
static void make_room(ol_copies *copies, size_t bytes, uint8_t **spare, size_t *spare_len)
{
    while (bytes > copies->budget - copies->bytes) {
        ol_copy *copy = first_to_go(copies);
        size_t len = copy->len;
        uint8_t *old = take_apart(copies, copy);

        if (len > *spare_len) {
            free(*spare);
            *spare = old;
            *spare_len = len;
        } else {
            free(old);
        }
    }
}

bool ol_copies_keep(ol_copies *copies, ol_copy **owner, const ol_adapter_file *file,
                    ol_arena *arena, uint8_t **bytes, size_t *len)
{
    ol_copy made = {.bytes = *bytes, .len = *len, .arena = arena, .file = *file, .owner = owner};
    ol_copy *copy;

    assert(!*owner);
    if (!can_make_room(copies, size_of(&made)))
        return false;
    copy = malloc(sizeof(*copy));
    if (!copy)
        return false;
    *copy = made;
    *bytes = NULL;
    *len = 0;
    make_room(copies, size_of(copy), bytes, len);
    append(copies, copy);
    copies->bytes += size_of(copy);
    copies->n++;
    *owner = copy;
    return true;
}
