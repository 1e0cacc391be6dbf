/* fields.h: what payloads are made of, beside the numbers and bytes of buf.h. */
#ifndef OL_WIRE_FIELDS_H
#define OL_WIRE_FIELDS_H

#include "base/buf.h"
#include "base/file.h"

void ol_put_digest(ol_buf *buf, const ol_digest *digest);
void ol_get_digest(ol_reader *r, ol_digest *digest);

void ol_put_string(ol_buf *buf, const char *text);
/* Into an array of `size`, always terminated; one that is too long for it, or holds a zero byte, is
 * malformed. */
void ol_get_string(ol_reader *r, char *out, size_t size);

/* A byte: 0 or 1. */
bool ol_get_bool(ol_reader *r);
/* A u32 of at most `most`; 0 when anything is malformed. */
int ol_get_count(ol_reader *r, uint32_t most);

/* Parts of a whole: n of them, doubles from 0 to 1. */
void ol_put_shares(ol_buf *buf, const double *shares, int n);
int ol_get_shares(ol_reader *r, double *shares, uint32_t most);

/* Whether all was read, and nothing was malformed. */
bool ol_reader_ended(const ol_reader *r);

#endif
