/* buf.c: see buf.h. */
#include "base/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool ol_buf_reserve(ol_buf *buf, size_t extra)
{
    size_t need, cap;
    uint8_t *grown;

    if (buf->failed || __builtin_add_overflow(buf->len, extra, &need)) {
        buf->failed = true;
        return false;
    }
    if (need <= buf->cap)
        return true;
    cap = buf->cap ? buf->cap : 256;
    while (cap < need && cap <= SIZE_MAX / 2)
        cap *= 2;
    if (cap < need || !(grown = realloc(buf->data, cap))) {
        buf->failed = true;
        return false;
    }
    buf->data = grown;
    buf->cap = cap;
    return true;
}

void ol_buf_put(ol_buf *buf, const void *bytes, size_t len)
{
    if (len == 0 || !ol_buf_reserve(buf, len))
        return;
    memcpy(buf->data + buf->len, bytes, len);
    buf->len += len;
}

/* The supported machines are little-endian, as are all file formats we read. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "little-endian machines only");

void ol_buf_put_u8(ol_buf *buf, uint8_t v)
{
    ol_buf_put(buf, &v, sizeof(v));
}

void ol_buf_put_u16(ol_buf *buf, uint16_t v)
{
    ol_buf_put(buf, &v, sizeof(v));
}

void ol_buf_put_u32(ol_buf *buf, uint32_t v)
{
    ol_buf_put(buf, &v, sizeof(v));
}

void ol_buf_put_u64(ol_buf *buf, uint64_t v)
{
    ol_buf_put(buf, &v, sizeof(v));
}

void ol_buf_put_f32(ol_buf *buf, float v)
{
    ol_buf_put(buf, &v, sizeof(v));
}

void ol_buf_put_f64(ol_buf *buf, double v)
{
    ol_buf_put(buf, &v, sizeof(v));
}

void ol_buf_put_blob(ol_buf *buf, const void *bytes, size_t len)
{
    if (len > UINT32_MAX) {
        buf->failed = true;
        return;
    }
    ol_buf_put_u32(buf, (uint32_t)len);
    ol_buf_put(buf, bytes, len);
}

void ol_buf_printf(ol_buf *buf, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n < 0 || !ol_buf_reserve(buf, (size_t)n + 1)) {
        buf->failed = true;
        return;
    }
    va_start(ap, fmt);
    vsnprintf((char *)buf->data + buf->len, (size_t)n + 1, fmt, ap);
    va_end(ap);
    buf->len += (size_t)n;
}

void ol_buf_reset(ol_buf *buf)
{
    buf->len = 0;
    buf->failed = false;
}

void ol_buf_free(ol_buf *buf)
{
    free(buf->data);
    memset(buf, 0, sizeof(*buf));
}

ol_reader ol_reader_over(const void *data, size_t len)
{
    return (ol_reader){.data = data, .len = len};
}

size_t ol_reader_left(const ol_reader *r)
{
    return r->len - r->pos;
}

const uint8_t *ol_get(ol_reader *r, size_t len)
{
    const uint8_t *at;

    if (r->bad || ol_reader_left(r) < len) {
        r->bad = true;
        return NULL;
    }
    at = r->data + r->pos;
    r->pos += len;
    return at;
}

static void get_into(ol_reader *r, void *out, size_t len)
{
    const uint8_t *at = ol_get(r, len);

    if (at)
        memcpy(out, at, len);
}

uint8_t ol_get_u8(ol_reader *r)
{
    uint8_t v = 0;

    get_into(r, &v, sizeof(v));
    return v;
}

uint16_t ol_get_u16(ol_reader *r)
{
    uint16_t v = 0;

    get_into(r, &v, sizeof(v));
    return v;
}

uint32_t ol_get_u32(ol_reader *r)
{
    uint32_t v = 0;

    get_into(r, &v, sizeof(v));
    return v;
}

uint64_t ol_get_u64(ol_reader *r)
{
    uint64_t v = 0;

    get_into(r, &v, sizeof(v));
    return v;
}

float ol_get_f32(ol_reader *r)
{
    float v = 0;

    get_into(r, &v, sizeof(v));
    return v;
}

double ol_get_f64(ol_reader *r)
{
    double v = 0;

    get_into(r, &v, sizeof(v));
    return v;
}

const uint8_t *ol_get_blob(ol_reader *r, size_t *len)
{
    *len = ol_get_u32(r);
    return ol_get(r, *len);
}
