/*
 * copies.h: adapters in the host's memory, checked and ready to be placed, beside a device that
 * has memory of its own. One that the device had to drop comes back by a copy to the device alone:
 * its row is not read, sent, hashed and parsed again.
 *
 * A copy belongs to an adapter's record (adapters.h) and is made of the bytes as they arrived, in
 * memory from which the device copies fastest. All copies stay within a budget of bytes; what goes
 * first was needed least recently: when its adapter was placed, or lost its place. Such memory is
 * slow to get and to give back, so the buffers of a few that went are kept for those to come, which
 * mostly are as large.
 */
#ifndef OL_ENGINE_COPIES_H
#define OL_ENGINE_COPIES_H

#include "base/arena.h"
#include "device/device.h"
#include "engine/formats/adapter_file.h"

#include <stdint.h>

/* Memory for a copy. */
typedef struct ol_copy_buffer {
    uint8_t *bytes; /* NULL: none */
    size_t size;
} ol_copy_buffer;

typedef struct ol_copy {
    ol_copy_buffer buffer;
    ol_arena *arena;
    ol_adapter_file file;   /* points into both */
    int readers;            /* it stays while there are any */
    struct ol_copy **owner; /* the record's pointer to it */
    struct ol_copy *older, *newer;
} ol_copy;

#define OL_COPY_SPARES 4

/* Zero-initialise but for the first three. One thread, but what a copy that has readers holds may
 * be read on any. */
typedef struct ol_copies {
    size_t budget; /* of `bytes`; 0: nothing is kept */
    const ol_device_table *table;
    ol_device *device;
    size_t bytes;
    int n;
    ol_copy *oldest, *newest;
    ol_copy_buffer spares[OL_COPY_SPARES];
    int n_spares;
} ol_copies;

/* A buffer that one of those that went has left, of `bytes` or little more; or none. */
ol_copy_buffer ol_copies_spare(ol_copies *copies, size_t bytes);
/* A new one, on any thread; or none: no memory, or more than the budget. */
ol_copy_buffer ol_copies_memory(const ol_copies *copies, size_t bytes);
/* One that is not needed. */
void ol_copies_give(ol_copies *copies, ol_copy_buffer *buffer);

/* What is kept takes the buffer (which becomes none) and the arena over. False, and nothing taken
 * over, when that is more than those with readers leave of the budget, or memory is out. */
bool ol_copies_keep(ol_copies *copies, ol_copy **owner, const ol_adapter_file *file,
                    ol_arena *arena, ol_copy_buffer *buffer);
/* It is needed now: others go first. NULL is fine. */
void ol_copies_touch(ol_copies *copies, ol_copy *copy);
/* The owner's pointer becomes NULL. NULL is fine; there may be no readers. */
void ol_copies_drop(ol_copies *copies, ol_copy *copy);
/* Frees the spare buffers; there are no copies any more. */
void ol_copies_end(ol_copies *copies);

#endif
