/* tok_utf8.c: UTF-8, white space, and GPT-2's byte alphabet. */
#include "engine/tokenizer/tok_internal.h"

#include <string.h>

size_t tok_utf8_char(const uint8_t *p, size_t left, uint32_t *cp)
{
    uint32_t c, min;
    size_t n;

    if (left == 0)
        return 0;
    c = p[0];
    if (c < 0x80) {
        *cp = c;
        return 1;
    }
    if (c >= 0xC2 && c <= 0xDF) {
        n = 2, min = 0x80, c &= 0x1F;
    } else if ((c & 0xF0) == 0xE0) {
        n = 3, min = 0x800, c &= 0x0F;
    } else if (c >= 0xF0 && c <= 0xF4) {
        n = 4, min = 0x10000, c &= 0x07;
    } else {
        return 0;
    }
    if (left < n)
        return 0;
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xC0) != 0x80)
            return 0;
        c = c << 6 | (p[i] & 0x3F);
    }
    if (c < min || c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF))
        return 0;
    *cp = c;
    return n;
}

size_t tok_utf8_valid(const uint8_t *p, size_t len)
{
    size_t at = 0;
    uint32_t cp;

    while (at < len) {
        uint64_t eight;
        size_t n;

        while (len - at >= 8) {
            memcpy(&eight, p + at, 8);
            if (eight & UINT64_C(0x8080808080808080))
                break;
            at += 8;
        }
        if (at == len || (n = tok_utf8_char(p + at, len - at, &cp)) == 0)
            break;
        at += n;
    }
    return at;
}

size_t tok_utf8_put(uint32_t cp, uint8_t out[4])
{
    if (cp < 0x80) {
        out[0] = (uint8_t)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (uint8_t)(0xC0 | cp >> 6);
        out[1] = (uint8_t)(0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (uint8_t)(0xE0 | cp >> 12);
        out[1] = (uint8_t)(0x80 | (cp >> 6 & 0x3F));
        out[2] = (uint8_t)(0x80 | (cp & 0x3F));
        return 3;
    }
    out[0] = (uint8_t)(0xF0 | cp >> 18);
    out[1] = (uint8_t)(0x80 | (cp >> 12 & 0x3F));
    out[2] = (uint8_t)(0x80 | (cp >> 6 & 0x3F));
    out[3] = (uint8_t)(0x80 | (cp & 0x3F));
    return 4;
}

bool tok_is_space(uint32_t cp)
{
    if (cp <= 0xA0)
        return cp == ' ' || (cp >= 9 && cp <= 13) || cp == 0x85 || cp == 0xA0;
    return cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 ||
           cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

int tok_byte_token(ol_span key)
{
    int high, low;

    if (key.len != 6 || memcmp(key.data, "<0x", 3) != 0 || key.data[5] != '>')
        return -1;
    high = hex_digit(key.data[3]);
    low = hex_digit(key.data[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/*
 * The alphabet: bytes that Latin-1 prints stand for themselves; the other 68 (0-32,
 * 127-160, 173) are numbered from 256 in order.
 */
uint32_t tok_byte_to_char(uint8_t byte)
{
    if (byte <= 32)
        return 256u + byte;
    if (byte >= 127 && byte <= 160)
        return 256u + 33 + (byte - 127u);
    if (byte == 173)
        return 256u + 67;
    return byte;
}

int tok_char_to_byte(uint32_t cp)
{
    if (cp < 256)
        return tok_byte_to_char((uint8_t)cp) == cp ? (int)cp : -1;
    if (cp < 256 + 33)
        return (int)(cp - 256);
    if (cp < 256 + 67)
        return (int)(cp - 256 - 33 + 127);
    return cp == 256 + 67 ? 173 : -1;
}

bool tok_unmap_bytes(ol_span in, uint8_t *out, size_t *n_out)
{
    const uint8_t *p = (const uint8_t *)in.data;
    size_t n_bytes = 0;

    for (size_t at = 0; at < in.len;) {
        uint32_t cp = 0;
        size_t n = tok_utf8_char(p + at, in.len - at, &cp);
        int byte = n ? tok_char_to_byte(cp) : -1;

        if (byte < 0)
            return false;
        out[n_bytes++] = (uint8_t)byte;
        at += n;
    }
    *n_out = n_bytes;
    return true;
}
