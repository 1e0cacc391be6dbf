/*
 * buf.h: a growable byte buffer, and a bounds-checked reader over bytes that
 * nobody vouches for. Integers are little-endian.
 */
#ifndef OL_BASE_BUF_H
#define OL_BASE_BUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Growable buffer. Zero-initialise; `failed` sticks after an allocation failure,
 * so a sequence of appends needs one check at its end. */
typedef struct ol_buf {
    uint8_t *data;
    size_t len;
    size_t cap;
    bool failed;
} ol_buf;

bool ol_buf_reserve(ol_buf *buf, size_t extra);
void ol_buf_put(ol_buf *buf, const void *bytes, size_t len);
void ol_buf_put_u8(ol_buf *buf, uint8_t v);
void ol_buf_put_u16(ol_buf *buf, uint16_t v);
void ol_buf_put_u32(ol_buf *buf, uint32_t v);
void ol_buf_put_u64(ol_buf *buf, uint64_t v);
void ol_buf_put_f32(ol_buf *buf, float v);
void ol_buf_put_f64(ol_buf *buf, double v);
/* u32 length, then the bytes. */
void ol_buf_put_blob(ol_buf *buf, const void *bytes, size_t len);
void ol_buf_printf(ol_buf *buf, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void ol_buf_reset(ol_buf *buf); /* keeps the memory */
void ol_buf_free(ol_buf *buf);

/* Reader. `bad` sticks after a read past the end (which yields zeros), so a
 * sequence of reads needs one check at its end. */
typedef struct ol_reader {
    const uint8_t *data;
    size_t len;
    size_t pos;
    bool bad;
} ol_reader;

ol_reader ol_reader_over(const void *data, size_t len);
size_t ol_reader_left(const ol_reader *r);
/* NULL (and bad) when fewer than len bytes are left. */
const uint8_t *ol_get(ol_reader *r, size_t len);
uint8_t ol_get_u8(ol_reader *r);
uint16_t ol_get_u16(ol_reader *r);
uint32_t ol_get_u32(ol_reader *r);
uint64_t ol_get_u64(ol_reader *r);
float ol_get_f32(ol_reader *r);
double ol_get_f64(ol_reader *r);
const uint8_t *ol_get_blob(ol_reader *r, size_t *len);

#endif
