/* tok_memory.c: growing arrays, and what to say when there is no memory. */
#include "engine/tokenizer/tok_internal.h"

#include <stdlib.h>

ol_code tok_nomem(ol_error *err)
{
    return ol_fail(err, OL_NOMEM, "out of memory in the tokenizer");
}

bool tok_grow(void **items, size_t *cap, size_t need, size_t size)
{
    size_t want = *cap ? *cap : 64, bytes;
    void *grown;

    if (need <= *cap)
        return true;
    while (want < need && want <= SIZE_MAX / 2)
        want *= 2;
    if (want < need || __builtin_mul_overflow(want, size, &bytes) ||
        !(grown = realloc(*items, bytes)))
        return false;
    *items = grown;
    *cap = want;
    return true;
}

ol_code tok_push_piece(tok_work *work, tok_pieces *pieces, size_t off, size_t len)
{
    if (pieces->n == pieces->cap) {
        void *items = pieces->items;

        if (!tok_grow(&items, &pieces->cap, pieces->n + 1, sizeof(*pieces->items)))
            return tok_nomem(work->err);
        pieces->items = items;
    }
    pieces->items[pieces->n++] = (tok_piece){(uint32_t)off, (uint32_t)len};
    return OL_OK;
}
