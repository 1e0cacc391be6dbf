/* lists.h: lists of a backend that grow, and live as long as it does. */
#ifndef LORA_LISTS_H
#define LORA_LISTS_H

#include "postgres.h"

#include "utils/memutils.h"

/* The list with room for one more than its n entries of `size` bytes; it has *max. NULL and 0 at
 * first. */
static inline void *lora_list_room(void *list, int n, int *max, Size size)
{
    int more = *max ? 2 * *max : 16;

    if (n < *max)
        return list;
    list = list ? repalloc(list, size * (Size)more)
                : MemoryContextAlloc(TopMemoryContext, size * (Size)more);
    *max = more;
    return list;
}

#endif
