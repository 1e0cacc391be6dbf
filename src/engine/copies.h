/*
 * copies.h: adapters in the host's memory, checked and ready to be placed, beside a device that
 * has memory of its own. One that the device had to drop comes back by a copy to the device alone:
 * its row is not read, sent, hashed and parsed again.
 *
 * A copy belongs to an adapter's record (adapters.h) and is made of the bytes as they arrived. All
 * copies stay within a budget of bytes; what goes first was needed least recently: when its adapter
 * was placed, or lost its place.
 */
#ifndef OL_ENGINE_COPIES_H
#define OL_ENGINE_COPIES_H

#include "base/arena.h"
#include "engine/formats/adapter_file.h"

#include <stdint.h>

typedef struct ol_copy {
    uint8_t *bytes; /* malloc'ed */
    size_t len;
    ol_arena *arena;
    ol_adapter_file file;   /* points into bytes and arena */
    int readers;            /* it stays while there are any */
    struct ol_copy **owner; /* the record's pointer to it */
    struct ol_copy *older, *newer;
} ol_copy;

/* Zero-initialise but for the budget; 0: nothing is kept. One thread, but what a copy that has
 * readers holds may be read on any. */
typedef struct ol_copies {
    size_t budget, bytes;
    int n;
    ol_copy *oldest, *newest;
} ol_copies;

/* What is kept takes `bytes` and the arena over, and *bytes becomes NULL, or a buffer that is no
 * longer needed, of *len bytes, the caller's. False, and nothing taken over, when it is larger than
 * the budget, or than what those without readers would leave, or when memory is out. */
bool ol_copies_keep(ol_copies *copies, ol_copy **owner, const ol_adapter_file *file,
                    ol_arena *arena, uint8_t **bytes, size_t *len);
/* It is needed now: others go first. NULL is fine. */
void ol_copies_touch(ol_copies *copies, ol_copy *copy);
/* The owner's pointer becomes NULL. NULL is fine; there may be no readers. */
void ol_copies_drop(ol_copies *copies, ol_copy *copy);

#endif
