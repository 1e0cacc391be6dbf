/* gguf.c: see gguf.h; the format: ggml's docs/gguf.md. */
#include "engine/formats/gguf_internal.h"

#include <stdlib.h>
#include <string.h>

static const struct {
    uint32_t type;
    const char *name;
    int block;
    size_t bytes;
    int ours; /* an ol_dtype, or -1 */
} types[] = {{0, "F32", 1, 4, OL_F32},     {1, "F16", 1, 2, OL_F16},
             {2, "Q4_0", 32, 18, OL_Q4_0}, {3, "Q4_1", 32, 20, -1},
             {6, "Q5_0", 32, 22, -1},      {7, "Q5_1", 32, 24, -1},
             {8, "Q8_0", 32, 34, OL_Q8_0}, {10, "Q2_K", 256, 84, -1},
             {11, "Q3_K", 256, 110, -1},   {12, "Q4_K", 256, 144, OL_Q4_K},
             {13, "Q5_K", 256, 176, -1},   {14, "Q6_K", 256, 210, OL_Q6_K},
             {24, "I8", 1, 1, -1},         {25, "I16", 1, 2, -1},
             {26, "I32", 1, 4, -1},        {27, "I64", 1, 8, -1},
             {28, "F64", 1, 8, -1},        {30, "BF16", 1, 2, OL_BF16}};

#define N_TYPES (sizeof(types) / sizeof(types[0]))

static int find_type(uint32_t type)
{
    for (size_t i = 0; i < N_TYPES; i++)
        if (types[i].type == type)
            return (int)i;
    return -1;
}

const char *ol_gguf_tensor_type_name(uint32_t type)
{
    int i = find_type(type);

    return i < 0 ? "unknown" : types[i].name;
}

/* -- reading the header --------------------------------------------------------------------- */

/* Passes over one value; `depth` bounds arrays of arrays. */
static void skip_value(ol_reader *r, uint32_t type, int depth)
{
    if (type == OL_GGUF_STRING) {
        (void)ol_gguf_read_str(r);
    } else if (type == OL_GGUF_ARRAY) {
        uint32_t of = ol_get_u32(r);
        uint64_t count = ol_get_u64(r);
        size_t each = ol_gguf_scalar_bytes(of);

        if (depth >= OL_GGUF_MAX_NESTING || of > OL_GGUF_F64 || count > ol_reader_left(r)) {
            r->bad = true;
        } else if (each) {
            if (count > ol_reader_left(r) / each)
                r->bad = true;
            else
                (void)ol_get(r, (size_t)count * each);
        } else {
            for (uint64_t i = 0; i < count && !r->bad; i++)
                skip_value(r, of, depth + 1);
        }
    } else if (ol_gguf_scalar_bytes(type)) {
        (void)ol_get(r, ol_gguf_scalar_bytes(type));
    } else {
        r->bad = true;
    }
}

static ol_code copy_name(ol_gguf *g, ol_gguf_str s, const char *what, const char **out,
                         ol_error *err)
{
    bool fine = s.ptr && s.len > 0 && s.len <= OL_GGUF_MAX_NAME;

    for (size_t i = 0; fine && i < s.len; i++)
        fine = s.ptr[i] > ' ' && s.ptr[i] < 127; /* they end up in messages */
    if (!fine)
        return ol_gguf_bad(err, g, what, NULL);
    *out = ol_arena_strndup(g->arena, s.ptr, s.len);
    return *out ? OL_OK : ol_fail_nomem(err, s.len, g->name);
}

static ol_code read_entry(ol_gguf *g, ol_reader *r, ol_gguf_entry *e, ol_error *err)
{
    uint32_t type;
    size_t start;

    OL_TRY(copy_name(g, ol_gguf_read_str(r),
                     "has a metadata key that is empty, too long, cut off or not ASCII", &e->key,
                     err));
    type = ol_get_u32(r);
    e->type = (ol_gguf_type)type;
    e->count = 1;
    start = r->pos;
    skip_value(r, type, 0);
    if (r->bad)
        return ol_gguf_bad(err, g, "has a value that is malformed or runs past the end of the file",
                           e->key);
    if (type == OL_GGUF_ARRAY) {
        ol_reader head = ol_reader_over(r->data + start, 12);

        e->of = (ol_gguf_type)ol_get_u32(&head);
        e->count = (size_t)ol_get_u64(&head);
        start += 12;
    }
    e->data = r->data + start;
    e->bytes = r->pos - start;
    for (const ol_gguf_entry *other = g->entries; other < e; other++)
        if (strcmp(other->key, e->key) == 0)
            return ol_gguf_bad(err, g, "occurs twice", e->key);
    return OL_OK;
}

static ol_code tensor_bytes(const ol_gguf *g, ol_gguf_tensor *t, ol_error *err)
{
    int kind = find_type(t->type);
    int64_t count;

    if (!ol_shape_count(t->shape, t->n_dims, &count))
        return ol_gguf_bad(err, g, "has a shape that overflows", t->name);
    if (kind < 0)
        return OL_OK;
    if (t->shape[t->n_dims - 1] % types[kind].block != 0)
        return ol_gguf_bad(err, g, "has rows that do not divide into blocks of its type", t->name);
    if (__builtin_mul_overflow((size_t)(count / types[kind].block), types[kind].bytes, &t->bytes))
        return ol_gguf_bad(err, g, "has a shape that overflows", t->name);
    return OL_OK;
}

/* Reads the description; data holds the offset until all are read. */
static ol_code read_tensor(ol_gguf *g, ol_reader *r, ol_gguf_tensor *t, uint64_t *offset,
                           ol_error *err)
{
    uint32_t n_dims;

    OL_TRY(copy_name(g, ol_gguf_read_str(r),
                     "has a tensor name that is empty, too long, cut off or not ASCII", &t->name,
                     err));
    n_dims = ol_get_u32(r);
    if (r->bad || n_dims < 1 || n_dims > OL_MAX_DIMS)
        return ol_gguf_bad(err, g, "has no valid number of dimensions", t->name);
    t->n_dims = (int)n_dims;
    for (uint32_t i = 0; i < n_dims; i++) {
        uint64_t d = ol_get_u64(r);

        if (d == 0 || d > INT64_MAX)
            return ol_gguf_bad(err, g, "has a dimension that is zero or overflows", t->name);
        t->shape[n_dims - 1 - i] = (int64_t)d;
    }
    t->type = ol_get_u32(r);
    *offset = ol_get_u64(r);
    if (r->bad)
        return ol_gguf_bad(err, g, "is cut off in its tensor list", NULL);
    return tensor_bytes(g, t, err);
}

static ol_code place_tensors(ol_gguf *g, const ol_reader *r, const uint64_t *offsets, ol_error *err)
{
    uint32_t alignment = 32;
    size_t start;

    OL_TRY(ol_gguf_u32(g, "general.alignment", 32, &alignment, err));
    if (alignment < 8 || alignment > 65536 || (alignment & (alignment - 1)) != 0)
        return ol_gguf_bad(err, g, "has an alignment that is not a power of two of 8 or more",
                           "general.alignment");
    start = (r->pos + alignment - 1) & ~(size_t)(alignment - 1);
    for (size_t i = 0; i < g->n_tensors; i++) {
        ol_gguf_tensor *t = &g->tensors[i];

        if (offsets[i] % alignment != 0)
            return ol_gguf_bad(err, g, "is not aligned", t->name);
        if (start > r->len || offsets[i] > r->len - start ||
            t->bytes > r->len - start - (size_t)offsets[i])
            return ol_gguf_bad(err, g, "lies past the end of the file", t->name);
        t->data = r->data + start + offsets[i];
    }
    return OL_OK;
}

static int by_data(const void *a, const void *b)
{
    const ol_gguf_tensor *x = *(const ol_gguf_tensor *const *)a;
    const ol_gguf_tensor *y = *(const ol_gguf_tensor *const *)b;

    return x->data < y->data ? -1 : x->data > y->data;
}

/* Tensors that share bytes would make a small file ask for much memory. */
static ol_code check_overlaps(ol_gguf *g, ol_error *err)
{
    const ol_gguf_tensor **order = ol_arena_array(g->arena, g->n_tensors, sizeof(*order));

    if (!order)
        return ol_fail_nomem(err, g->n_tensors * sizeof(*order), g->name);
    for (size_t i = 0; i < g->n_tensors; i++)
        order[i] = &g->tensors[i];
    qsort(order, g->n_tensors, sizeof(*order), by_data);
    for (size_t i = 1; i < g->n_tensors; i++)
        if ((const uint8_t *)order[i - 1]->data + order[i - 1]->bytes >
            (const uint8_t *)order[i]->data)
            return ol_gguf_bad(err, g, "overlaps another tensor", order[i]->name);
    return OL_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static ol_code check_tensor_names(ol_gguf *g, ol_error *err)
{
    const char **names = ol_arena_array(g->arena, g->n_tensors + 1, sizeof(*names));

    if (!names)
        return ol_fail_nomem(err, g->n_tensors * sizeof(*names), g->name);
    for (size_t i = 0; i < g->n_tensors; i++)
        names[i] = g->tensors[i].name;
    qsort(names, g->n_tensors, sizeof(*names), by_name);
    for (size_t i = 1; i < g->n_tensors; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            return ol_gguf_bad(err, g, "occurs twice", names[i]);
    return OL_OK;
}

static ol_code read_all(ol_gguf *g, ol_reader *r, ol_error *err)
{
    uint64_t n_tensors, n_entries, *offsets;

    if (!ol_gguf_magic(r->data, r->len))
        return ol_gguf_bad(err, g, "does not begin with the GGUF magic", NULL);
    r->pos = 4;
    g->version = ol_get_u32(r);
    if (g->version != 2 && g->version != 3) {
        ol_fail(err, OL_UNSUPPORTED, "\"%s\" is GGUF version %u", g->name, g->version);
        return ol_detail(err, "Versions 2 and 3, little-endian, are read.");
    }
    n_tensors = ol_get_u64(r);
    n_entries = ol_get_u64(r);
    if (r->bad || n_tensors > OL_GGUF_MAX_TENSORS || n_entries > OL_GGUF_MAX_KEYS)
        return ol_gguf_bad(err, g, "claims a count of tensors or keys that is out of range", NULL);
    g->entries = ol_arena_array(g->arena, (size_t)n_entries + 1, sizeof(*g->entries));
    g->tensors = ol_arena_array(g->arena, (size_t)n_tensors + 1, sizeof(*g->tensors));
    offsets = ol_arena_array(g->arena, (size_t)n_tensors + 1, sizeof(*offsets));
    if (!g->entries || !g->tensors || !offsets)
        return ol_fail_nomem(err, (size_t)n_tensors, g->name);
    for (; g->n_entries < n_entries; g->n_entries++)
        OL_TRY(read_entry(g, r, &g->entries[g->n_entries], err));
    for (; g->n_tensors < n_tensors; g->n_tensors++)
        OL_TRY(read_tensor(g, r, &g->tensors[g->n_tensors], &offsets[g->n_tensors], err));
    OL_TRY(check_tensor_names(g, err));
    if (n_tensors == 0)
        return OL_OK;
    OL_TRY(place_tensors(g, r, offsets, err));
    return check_overlaps(g, err);
}

/* -- opening ------------------------------------------------------------------------------- */

bool ol_gguf_magic(const void *bytes, size_t len)
{
    return len >= 4 && memcmp(bytes, "GGUF", 4) == 0;
}

static ol_code open_over(ol_gguf *g, const void *bytes, size_t len, const char *name, ol_error *err)
{
    ol_reader r = ol_reader_over(bytes, len);

    g->arena = ol_arena_create();
    if (!g->arena)
        return ol_fail_nomem(err, sizeof(*g), name);
    g->name = ol_arena_strdup(g->arena, name);
    return g->name ? read_all(g, &r, err) : ol_fail_nomem(err, strlen(name), name);
}

ol_code ol_gguf_bytes(const void *bytes, size_t len, const char *name, ol_gguf **out, ol_error *err)
{
    ol_gguf *g = calloc(1, sizeof(*g));

    if (!g)
        return ol_fail_nomem(err, sizeof(*g), name);
    if (open_over(g, bytes, len, name, err) != OL_OK) {
        ol_gguf_close(g);
        return err->code;
    }
    *out = g;
    return OL_OK;
}

ol_code ol_gguf_open(const char *path, ol_gguf **out, ol_error *err)
{
    ol_map map;
    ol_gguf *g;

    OL_TRY(ol_map_open(path, &map, err));
    g = calloc(1, sizeof(*g));
    if (!g) {
        ol_map_close(&map);
        return ol_fail_nomem(err, sizeof(*g), path);
    }
    g->map = map;
    if (open_over(g, map.data, map.len, path, err) != OL_OK) {
        ol_gguf_close(g);
        return err->code;
    }
    *out = g;
    return OL_OK;
}

void ol_gguf_close(ol_gguf *g)
{
    if (!g)
        return;
    ol_map_close(&g->map);
    ol_arena_destroy(g->arena);
    free(g);
}

const char *ol_gguf_name(const ol_gguf *g)
{
    return g->name;
}

uint32_t ol_gguf_version(const ol_gguf *g)
{
    return g->version;
}

/* -- tensors ----------------------------------------------------------------------------- */

size_t ol_gguf_tensors(const ol_gguf *g)
{
    return g->n_tensors;
}

const ol_gguf_tensor *ol_gguf_tensor_at(const ol_gguf *g, size_t i)
{
    return &g->tensors[i];
}

const ol_gguf_tensor *ol_gguf_find_tensor(const ol_gguf *g, const char *name)
{
    for (size_t i = 0; i < g->n_tensors; i++)
        if (strcmp(g->tensors[i].name, name) == 0)
            return &g->tensors[i];
    return NULL;
}

ol_code ol_gguf_get(const ol_gguf *g, const char *name, ol_tensor *tensor, ol_error *err)
{
    const ol_gguf_tensor *t = ol_gguf_find_tensor(g, name);
    int kind;

    if (!t)
        return ol_fail(err, OL_NOT_FOUND, "tensor \"%s\" is missing", name);
    kind = find_type(t->type);
    if (kind < 0 || types[kind].ours < 0) {
        ol_fail(err, OL_UNSUPPORTED, "tensor \"%s\" has the unsupported type %s (%u)", name,
                ol_gguf_tensor_type_name(t->type), t->type);
        return ol_detail(err, "Supported are F32, F16, BF16, Q8_0, Q4_0, Q4_K and Q6_K.");
    }
    *tensor = (ol_tensor){.name = t->name,
                          .dtype = (ol_dtype)types[kind].ours,
                          .n_dims = t->n_dims,
                          .data = t->data,
                          .bytes = t->bytes};
    memcpy(tensor->shape, t->shape, sizeof(tensor->shape));
    return OL_OK;
}
