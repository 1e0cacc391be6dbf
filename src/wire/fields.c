/* fields.c: see fields.h. */
#include "wire/fields.h"

#include <string.h>

void ol_put_digest(ol_buf *buf, const ol_digest *digest)
{
    ol_buf_put(buf, digest->bytes, OL_DIGEST_BYTES);
}

void ol_get_digest(ol_reader *r, ol_digest *digest)
{
    const uint8_t *at = ol_get(r, OL_DIGEST_BYTES);

    if (at)
        memcpy(digest->bytes, at, OL_DIGEST_BYTES);
}

void ol_put_string(ol_buf *buf, const char *text)
{
    ol_buf_put_blob(buf, text, strlen(text));
}

void ol_get_string(ol_reader *r, char *out, size_t size)
{
    size_t len;
    const uint8_t *at = ol_get_blob(r, &len);

    out[0] = '\0';
    if (!at || len >= size || memchr(at, 0, len)) {
        r->bad = true;
        return;
    }
    memcpy(out, at, len);
    out[len] = '\0';
}

bool ol_get_bool(ol_reader *r)
{
    uint8_t value = ol_get_u8(r);

    r->bad |= value > 1;
    return value == 1;
}

int ol_get_count(ol_reader *r, uint32_t most)
{
    uint32_t value = ol_get_u32(r);

    r->bad |= value > most;
    return r->bad ? 0 : (int)value;
}

void ol_put_shares(ol_buf *buf, const double *shares, int n)
{
    ol_buf_put_u32(buf, (uint32_t)n);
    for (int i = 0; i < n; i++)
        ol_buf_put_f64(buf, shares[i]);
}

int ol_get_shares(ol_reader *r, double *shares, uint32_t most)
{
    int n = ol_get_count(r, most);

    for (int i = 0; i < n; i++) {
        shares[i] = ol_get_f64(r);
        r->bad |= !(shares[i] >= 0.0 && shares[i] <= 1.0);
    }
    return n;
}

bool ol_reader_ended(const ol_reader *r)
{
    return !r->bad && ol_reader_left(r) == 0;
}
