/* gguf_meta.c: GGUF metadata: values with their types, arrays converted once. */
#include "engine/formats/gguf_internal.h"

#include <math.h>
#include <string.h>

size_t ol_gguf_entries(const ol_gguf *g)
{
    return g->n_entries;
}

const ol_gguf_entry *ol_gguf_entry_at(const ol_gguf *g, size_t i)
{
    return &g->entries[i];
}

const ol_gguf_entry *ol_gguf_find(const ol_gguf *g, const char *key)
{
    for (size_t i = 0; i < g->n_entries; i++)
        if (strcmp(g->entries[i].key, key) == 0)
            return &g->entries[i];
    return NULL;
}

/* Value number i of an integer type (or bool); false for other types and for u64
 * beyond int64. */
static bool integer_at(ol_gguf_type type, const uint8_t *data, size_t i, int64_t *value)
{
    ol_reader r = ol_reader_over(data + i * ol_gguf_scalar_bytes(type), ol_gguf_scalar_bytes(type));
    uint64_t u;

    switch (type) {
    case OL_GGUF_U8:
    case OL_GGUF_BOOL:
        *value = ol_get_u8(&r);
        return true;
    case OL_GGUF_I8:
        *value = (int8_t)ol_get_u8(&r);
        return true;
    case OL_GGUF_U16:
        *value = ol_get_u16(&r);
        return true;
    case OL_GGUF_I16:
        *value = (int16_t)ol_get_u16(&r);
        return true;
    case OL_GGUF_U32:
        *value = ol_get_u32(&r);
        return true;
    case OL_GGUF_I32:
        *value = (int32_t)ol_get_u32(&r);
        return true;
    case OL_GGUF_U64:
        u = ol_get_u64(&r);
        *value = (int64_t)u;
        return u <= INT64_MAX;
    case OL_GGUF_I64:
        *value = (int64_t)ol_get_u64(&r);
        return true;
    default:
        return false;
    }
}

static bool float_at(ol_gguf_type type, const uint8_t *data, size_t i, float *value)
{
    ol_reader r = ol_reader_over(data + i * ol_gguf_scalar_bytes(type), ol_gguf_scalar_bytes(type));

    if (type == OL_GGUF_F32)
        *value = ol_get_f32(&r);
    else if (type == OL_GGUF_F64)
        *value = (float)ol_get_f64(&r);
    else
        return false;
    return true;
}

ol_code ol_gguf_i64(const ol_gguf *g, const char *key, int64_t missing, int64_t *value,
                    ol_error *err)
{
    const ol_gguf_entry *e = ol_gguf_find(g, key);

    *value = missing;
    if (e && !integer_at(e->type, e->data, 0, value))
        return ol_gguf_bad(err, g, "is not an integer", key);
    return OL_OK;
}

ol_code ol_gguf_u32(const ol_gguf *g, const char *key, uint32_t missing, uint32_t *value,
                    ol_error *err)
{
    int64_t wide;

    OL_TRY(ol_gguf_i64(g, key, missing, &wide, err));
    if (wide < 0 || wide > UINT32_MAX)
        return ol_gguf_bad(err, g, "is out of range", key);
    *value = (uint32_t)wide;
    return OL_OK;
}

ol_code ol_gguf_f32(const ol_gguf *g, const char *key, float missing, float *value, ol_error *err)
{
    const ol_gguf_entry *e = ol_gguf_find(g, key);

    *value = missing;
    if (e && !float_at(e->type, e->data, 0, value))
        return ol_gguf_bad(err, g, "is not a floating-point number", key);
    if (!isfinite(*value))
        return ol_gguf_bad(err, g, "is not finite", key);
    return OL_OK;
}

ol_code ol_gguf_bool(const ol_gguf *g, const char *key, bool missing, bool *value, ol_error *err)
{
    const ol_gguf_entry *e = ol_gguf_find(g, key);

    *value = missing;
    if (!e)
        return OL_OK;
    if (e->type != OL_GGUF_BOOL)
        return ol_gguf_bad(err, g, "is not a boolean", key);
    *value = e->data[0] != 0;
    return OL_OK;
}

ol_code ol_gguf_string(const ol_gguf *g, const char *key, ol_gguf_str *value, ol_error *err)
{
    const ol_gguf_entry *e = ol_gguf_find(g, key);

    *value = (ol_gguf_str){NULL, 0};
    if (!e)
        return OL_OK;
    if (e->type != OL_GGUF_STRING)
        return ol_gguf_bad(err, g, "is not a string", key);
    *value = (ol_gguf_str){(const char *)e->data + 8, e->bytes - 8};
    return OL_OK;
}

const char *ol_gguf_printable(ol_gguf_str text, char *out, size_t size)
{
    size_t n = text.len < size - 1 ? text.len : size - 1;

    for (size_t i = 0; i < n; i++)
        out[i] = text.ptr[i] >= ' ' && text.ptr[i] < 127 ? text.ptr[i] : '?';
    out[n] = '\0';
    return out;
}

bool ol_gguf_is(const ol_gguf *g, const char *key, const char *text)
{
    ol_gguf_str s;
    ol_error ignored;

    return ol_gguf_string(g, key, &s, &ignored) == OL_OK && s.ptr && s.len == strlen(text) &&
           memcmp(s.ptr, text, s.len) == 0;
}

/* -- arrays ------------------------------------------------------------------------------------ */

enum { ARRAY_STRING, ARRAY_F32, ARRAY_I32 };

static bool convert(const ol_gguf_entry *e, int kind, void *values)
{
    ol_reader r = ol_reader_over(e->data, e->bytes);

    for (size_t i = 0; i < e->count; i++) {
        int64_t wide;

        if (kind == ARRAY_STRING) {
            ((ol_gguf_str *)values)[i] = ol_gguf_read_str(&r);
        } else if (kind == ARRAY_F32) {
            if (!float_at(e->of, e->data, i, (float *)values + i))
                return false;
        } else {
            if (!integer_at(e->of, e->data, i, &wide) || wide < INT32_MIN || wide > INT32_MAX)
                return false;
            ((int32_t *)values)[i] = (int32_t)wide;
        }
    }
    return true;
}

static ol_code array_of(ol_gguf *g, const char *key, int kind, void **values, size_t *count,
                        ol_error *err)
{
    static const size_t sizes[] = {sizeof(ol_gguf_str), sizeof(float), sizeof(int32_t)};
    const ol_gguf_entry *e = ol_gguf_find(g, key);
    ol_gguf_array *c;

    *values = NULL;
    *count = 0;
    if (!e)
        return OL_OK;
    if (e->type != OL_GGUF_ARRAY || (kind == ARRAY_STRING && e->of != OL_GGUF_STRING))
        return ol_gguf_bad(err, g, "is not an array of the type that is needed", key);
    *count = e->count;
    for (c = g->arrays; c; c = c->next)
        if (c->entry == e && c->kind == kind) {
            *values = c->values;
            return OL_OK;
        }
    c = ol_arena_alloc(g->arena, sizeof(*c));
    if (c)
        c->values = ol_arena_array(g->arena, e->count + 1, sizes[kind]);
    if (!c || !c->values)
        return ol_fail_nomem(err, e->count * sizes[kind], key);
    c->entry = e;
    c->kind = kind;
    if (!convert(e, kind, c->values))
        return ol_gguf_bad(err, g, "holds values of another type or out of range", key);
    c->next = g->arrays;
    g->arrays = c;
    *values = c->values;
    return OL_OK;
}

ol_code ol_gguf_string_array(ol_gguf *g, const char *key, const ol_gguf_str **values, size_t *count,
                             ol_error *err)
{
    void *at = NULL;
    ol_code code = array_of(g, key, ARRAY_STRING, &at, count, err);

    *values = at;
    return code;
}

ol_code ol_gguf_f32_array(ol_gguf *g, const char *key, const float **values, size_t *count,
                          ol_error *err)
{
    void *at = NULL;
    ol_code code = array_of(g, key, ARRAY_F32, &at, count, err);

    *values = at;
    return code;
}

ol_code ol_gguf_i32_array(ol_gguf *g, const char *key, const int32_t **values, size_t *count,
                          ol_error *err)
{
    void *at = NULL;
    ol_code code = array_of(g, key, ARRAY_I32, &at, count, err);

    *values = at;
    return code;
}
