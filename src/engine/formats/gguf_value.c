/* gguf_value.c: what reading a GGUF file and reading its metadata share. */
#include "engine/formats/gguf_internal.h"

size_t ol_gguf_scalar_bytes(uint32_t type)
{
    static const size_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

    return type <= OL_GGUF_F64 ? bytes[type] : 0;
}

ol_code ol_gguf_bad(ol_error *err, const ol_gguf *g, const char *what, const char *key)
{
    return key ? ol_fail(err, OL_CORRUPT, "\"%s\": \"%s\" %s", g->name, key, what)
               : ol_fail(err, OL_CORRUPT, "\"%s\" %s", g->name, what);
}

ol_gguf_str ol_gguf_read_str(ol_reader *r)
{
    uint64_t len = ol_get_u64(r);
    ol_gguf_str s = {NULL, 0};

    if (len > ol_reader_left(r)) {
        r->bad = true;
        return s;
    }
    s.len = (size_t)len;
    s.ptr = (const char *)ol_get(r, s.len);
    return s;
}
