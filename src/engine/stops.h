/* stops.h: finds stop strings in text that arrives in pieces, holding back what may
 * yet turn out to be one. */
#ifndef OL_ENGINE_STOPS_H
#define OL_ENGINE_STOPS_H

#include "base/buf.h"
#include "base/status.h"
#include "engine/sampling.h"

typedef struct ol_stops ol_stops;

/* Copies the strings. n may be 0: then everything passes at once. */
ol_code ol_stops_create(const ol_text *stops, int n, ol_stops **matcher, ol_error *err);
void ol_stops_free(ol_stops *matcher); /* NULL is fine */

/* Takes a piece of text, appends to `out` what is certain to be output. True when a
 * stop string is complete: what stood before its first occurrence has been released,
 * and the rest is dropped. */
bool ol_stops_feed(ol_stops *matcher, const char *text, size_t len, ol_buf *out);
/* The output ended: what was held back is output after all. */
void ol_stops_flush(ol_stops *matcher, ol_buf *out);

#endif
