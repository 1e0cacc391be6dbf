/* copies.c: see copies.h. */
#include "engine/copies.h"

#include <assert.h>
#include <stdlib.h>

static size_t size_of(const ol_copy *copy)
{
    return copy->buffer.size + ol_arena_bytes(copy->arena);
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

/* -- memory ---------------------------------------------------------------------------------- */

static void free_buffer(const ol_copies *copies, ol_copy_buffer *buffer)
{
    if (buffer->bytes && copies->table->host_alloc)
        copies->table->host_free(copies->device, buffer->bytes);
    else
        free(buffer->bytes);
    *buffer = (ol_copy_buffer){0};
}

ol_copy_buffer ol_copies_memory(const ol_copies *copies, size_t bytes)
{
    ol_copy_buffer buffer = {.size = bytes};

    if (bytes <= copies->budget)
        buffer.bytes = copies->table->host_alloc ? copies->table->host_alloc(copies->device, bytes)
                                                 : malloc(bytes);
    return buffer.bytes ? buffer : (ol_copy_buffer){0};
}

ol_copy_buffer ol_copies_spare(ol_copies *copies, size_t bytes)
{
    for (int i = 0; i < copies->n_spares; i++) {
        ol_copy_buffer found = copies->spares[i];

        if (found.size < bytes || found.size - bytes > bytes / 8)
            continue;
        copies->spares[i] = copies->spares[--copies->n_spares];
        return found;
    }
    return (ol_copy_buffer){0};
}

void ol_copies_give(ol_copies *copies, ol_copy_buffer *buffer)
{
    if (!buffer->bytes)
        return;
    if (copies->n_spares == OL_COPY_SPARES)
        free_buffer(copies, &copies->spares[--copies->n_spares]);
    copies->spares[copies->n_spares++] = *buffer;
    *buffer = (ol_copy_buffer){0};
}

void ol_copies_end(ol_copies *copies)
{
    assert(copies->n == 0);
    while (copies->n_spares > 0)
        free_buffer(copies, &copies->spares[--copies->n_spares]);
}

/* -- coming and going ---------------------------------------------------------------------- */

void ol_copies_drop(ol_copies *copies, ol_copy *copy)
{
    if (!copy)
        return;
    assert(copy->readers == 0);
    unlink_copy(copies, copy);
    copies->bytes -= size_of(copy);
    copies->n--;
    *copy->owner = NULL;
    ol_copies_give(copies, &copy->buffer);
    ol_arena_destroy(copy->arena);
    free(copy);
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

bool ol_copies_keep(ol_copies *copies, ol_copy **owner, const ol_adapter_file *file,
                    ol_arena *arena, ol_copy_buffer *buffer)
{
    ol_copy made = {.buffer = *buffer, .arena = arena, .file = *file, .owner = owner};
    ol_copy *copy;

    assert(!*owner);
    if (!buffer->bytes || !can_make_room(copies, size_of(&made)))
        return false;
    copy = malloc(sizeof(*copy));
    if (!copy)
        return false;
    *copy = made;
    *buffer = (ol_copy_buffer){0};
    while (size_of(copy) > copies->budget - copies->bytes)
        ol_copies_drop(copies, first_to_go(copies));
    append(copies, copy);
    copies->bytes += size_of(copy);
    copies->n++;
    *owner = copy;
    return true;
}
