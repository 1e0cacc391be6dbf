/*
 * spares.h: large buffers that come and go. What is given back is kept for the next one, up to a
 * bound: getting fresh pages from the system and returning them takes longer than filling them.
 */
#ifndef OL_BASE_SPARES_H
#define OL_BASE_SPARES_H

#include "base/buf.h"

#define OL_SPARES 16 /* buffers at most */

/* Zero-initialise but for `most`. One thread. */
typedef struct ol_spares {
    size_t most;  /* bytes of all that are kept */
    size_t bytes; /* of those that are */
    int n;
    ol_buf kept[OL_SPARES];
} ol_spares;

/* The largest that is kept, or one without memory; empty either way. */
ol_buf ol_spares_take(ol_spares *spares);
/* Takes the memory over; the smallest go when it is too much. */
void ol_spares_give(ol_spares *spares, ol_buf *buf);
void ol_spares_drop(ol_spares *spares);

#endif
