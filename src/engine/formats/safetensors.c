/* safetensors.c: see safetensors.h. */
#include "engine/formats/safetensors_internal.h"

#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    size_t bytes;
} dtypes[] = {{"F64", 8}, {"F32", 4}, {"F16", 2},  {"BF16", 2},    {"I64", 8},
              {"I32", 4}, {"I16", 2}, {"I8", 1},   {"U8", 1},      {"U16", 2},
              {"U32", 4}, {"U64", 8}, {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};

static size_t dtype_bytes(const char *name)
{
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++)
        if (strcmp(dtypes[i].name, name) == 0)
            return dtypes[i].bytes;
    return 0;
}

bool ol_safetensors_dtype(const char *name, ol_dtype *dtype)
{
    if (strcmp(name, "F32") == 0)
        *dtype = OL_F32;
    else if (strcmp(name, "F16") == 0)
        *dtype = OL_F16;
    else if (strcmp(name, "BF16") == 0)
        *dtype = OL_BF16;
    else
        return false;
    return true;
}

/* -- one file -------------------------------------------------------------------------- */

ol_code ol_safetensors_bad(ol_error *err, const char *file, const char *tensor, const char *what)
{
    return tensor ? ol_fail(err, OL_CORRUPT, "\"%s\": tensor \"%s\" %s", file, tensor, what)
                  : ol_fail(err, OL_CORRUPT, "\"%s\" %s", file, what);
}

static ol_code read_shape(const json_t *shape, const char *file, ol_safetensors_entry *e,
                          int64_t *count, ol_error *err)
{
    size_t n = json_array_size(shape);

    if (!json_is_array(shape) || n > 32)
        return ol_safetensors_bad(err, file, e->name, "has no valid shape");
    e->n_dims = (int)n;
    *count = 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *dim = json_array_get(shape, i);
        int64_t d = json_is_integer(dim) ? json_integer_value(dim) : -1;

        if (d < 0 || __builtin_mul_overflow(*count, d, count))
            return ol_safetensors_bad(err, file, e->name,
                                      "has a shape that is negative or overflows");
        if (i < OL_MAX_DIMS)
            e->shape[i] = d;
    }
    return OL_OK;
}

static ol_code read_offsets(const json_t *pair, const char *file, size_t data_len,
                            ol_safetensors_entry *e, size_t *begin, ol_error *err)
{
    const json_t *from = json_array_get(pair, 0), *to = json_array_get(pair, 1);

    if (json_array_size(pair) != 2 || !json_is_integer(from) || !json_is_integer(to) ||
        json_integer_value(from) < 0 || json_integer_value(to) < json_integer_value(from))
        return ol_safetensors_bad(err, file, e->name, "has no valid data_offsets");
    if ((uint64_t)json_integer_value(to) > data_len)
        return ol_safetensors_bad(err, file, e->name, "lies past the end of the file");
    *begin = (size_t)json_integer_value(from);
    e->bytes = (size_t)json_integer_value(to) - *begin;
    return OL_OK;
}

/* What follows the header of a file. */
typedef struct tensor_data {
    const char *file;
    const uint8_t *bytes;
    size_t len;
} tensor_data;

static ol_code read_entry(ol_safetensors *st, const char *name, const json_t *value,
                          tensor_data data, ol_safetensors_entry *e, ol_error *err)
{
    const char *file = data.file;
    const char *dtype = json_string_value(json_object_get(value, "dtype"));
    size_t begin = 0, size;
    int64_t count = 0;

    *e = (ol_safetensors_entry){.name = ol_arena_strdup(st->arena, name)};
    if (!e->name)
        return ol_fail_nomem(err, strlen(name), file);
    if (!dtype)
        return ol_safetensors_bad(err, file, name, "has no dtype");
    e->dtype = ol_arena_strdup(st->arena, dtype);
    if (!e->dtype)
        return ol_fail_nomem(err, strlen(dtype), file);
    OL_TRY(read_shape(json_object_get(value, "shape"), file, e, &count, err));
    OL_TRY(read_offsets(json_object_get(value, "data_offsets"), file, data.len, e, &begin, err));
    size = dtype_bytes(dtype);
    if (size && (size_t)count > SIZE_MAX / size)
        return ol_safetensors_bad(err, file, name, "has a shape that overflows");
    if (size && (size_t)count * size != e->bytes)
        return ol_safetensors_bad(err, file, name, "has a size other than its shape and dtype say");
    e->data = data.bytes + begin;
    return OL_OK;
}

static int by_data(const void *a, const void *b)
{
    const ol_safetensors_entry *x = a, *y = b;

    if (x->data != y->data)
        return (uintptr_t)x->data < (uintptr_t)y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const ol_safetensors_entry *)a)->name, ((const ol_safetensors_entry *)b)->name);
}

/* The specification wants the data covered exactly: a hole could smuggle bytes. */
static ol_code check_cover(ol_safetensors_entry *e, size_t n, tensor_data data, ol_error *err)
{
    const uint8_t *next = data.bytes;

    if (n)
        qsort(e, n, sizeof(*e), by_data);
    for (size_t i = 0; i < n; i++) {
        if ((const uint8_t *)e[i].data < next)
            return ol_safetensors_bad(err, data.file, e[i].name, "overlaps another tensor");
        if ((const uint8_t *)e[i].data > next)
            return ol_safetensors_bad(err, data.file, e[i].name, "follows a hole in the data");
        next += e[i].bytes;
    }
    if (next != data.bytes + data.len)
        return ol_safetensors_bad(err, data.file, NULL, "has bytes that belong to no tensor");
    return OL_OK;
}

static ol_code grow(ol_safetensors *st, size_t extra, ol_error *err)
{
    size_t cap = st->n + extra;
    ol_safetensors_entry *grown;

    if (cap <= st->cap)
        return OL_OK;
    grown = realloc(st->entries, cap * sizeof(*grown));
    if (!grown)
        return ol_fail_nomem(err, cap * sizeof(*grown), "tensor names");
    st->entries = grown;
    st->cap = cap;
    return OL_OK;
}

static ol_code read_entries(ol_safetensors *st, json_t *header, tensor_data data, ol_error *err)
{
    size_t first = st->n;
    const char *name;
    json_t *value;

    OL_TRY(grow(st, json_object_size(header), err));
    json_object_foreach(header, name, value)
    {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        if (!json_is_object(value))
            return ol_safetensors_bad(err, data.file, name, "has no description");
        OL_TRY(read_entry(st, name, value, data, &st->entries[st->n], err));
        st->n++;
    }
    return check_cover(st->entries + first, st->n - first, data, err);
}

static ol_code keep_metadata(ol_safetensors *st, json_t *meta, const char *file, ol_error *err)
{
    const char *key;
    json_t *value;

    if (!json_is_object(meta))
        return ol_safetensors_bad(err, file, NULL, "has __metadata__ that is not an object");
    json_object_foreach(meta, key, value)
    {
        if (!json_is_string(value))
            return ol_safetensors_bad(err, file, NULL, "has __metadata__ that is not text to text");
    }
    st->shards[st->n_shards - 1].meta = json_incref(meta);
    return OL_OK;
}

static ol_code read_file(ol_safetensors *st, const uint8_t *bytes, size_t len, const char *file,
                         size_t max_header, ol_error *err)
{
    uint64_t header_len;
    json_t *header, *meta;
    tensor_data data;
    ol_code code;

    if (len < 8)
        return ol_safetensors_bad(err, file, NULL, "is too short for a safetensors file");
    memcpy(&header_len, bytes, 8);
    if (header_len > len - 8)
        return ol_safetensors_bad(err, file, NULL, "has a header length past its end");
    if (header_len > (max_header ? max_header : OL_SAFETENSORS_MAX_HEADER))
        return ol_safetensors_bad(err, file, NULL, "has a header that is too large");
    if (header_len < 2 || bytes[8] != '{')
        return ol_safetensors_bad(err, file, NULL, "has a header that is not JSON");
    OL_TRY(ol_json_object((const char *)bytes + 8, (size_t)header_len, file, &header, err));
    data = (tensor_data){file, bytes + 8 + header_len, len - 8 - (size_t)header_len};
    code = read_entries(st, header, data, err);
    meta = json_object_get(header, "__metadata__");
    if (code == OL_OK && meta)
        code = keep_metadata(st, meta, file, err);
    json_decref(header);
    return code;
}

/* Order by name, which also finds a name that two shards share. */
ol_code ol_safetensors_finish(ol_safetensors *st, const char *file, ol_error *err)
{
    if (st->n)
        qsort(st->entries, st->n, sizeof(*st->entries), by_name);
    for (size_t i = 1; i < st->n; i++)
        if (strcmp(st->entries[i - 1].name, st->entries[i].name) == 0)
            return ol_safetensors_bad(err, file, st->entries[i].name, "occurs in two shards");
    return OL_OK;
}

/* -- opening ------------------------------------------------------------------------------ */

ol_code ol_safetensors_create(size_t max_shards, ol_safetensors **out, ol_error *err)
{
    ol_safetensors *st = calloc(1, sizeof(*st));

    if (st) {
        st->arena = ol_arena_create();
        st->shards = calloc(max_shards + 1, sizeof(ol_safetensors_shard));
    }
    if (!st || !st->arena || !st->shards) {
        ol_safetensors_close(st);
        return ol_fail_nomem(err, sizeof(*st), "safetensors");
    }
    *out = st;
    return OL_OK;
}

ol_code ol_safetensors_add(ol_safetensors *st, const char *path, ol_error *err)
{
    ol_safetensors_shard *s = &st->shards[st->n_shards];

    OL_TRY(ol_map_open(path, &s->map, err));
    st->n_shards++;
    return read_file(st, s->map.data, s->map.len, path, 0, err);
}

ol_code ol_safetensors_open(const char *path, ol_safetensors **out, ol_error *err)
{
    ol_safetensors *st = NULL;

    OL_TRY(ol_safetensors_create(1, &st, err));
    if (ol_safetensors_add(st, path, err) != OL_OK ||
        ol_safetensors_finish(st, path, err) != OL_OK) {
        ol_safetensors_close(st);
        return err->code;
    }
    *out = st;
    return OL_OK;
}

ol_code ol_safetensors_bytes(const void *bytes, size_t len, const char *name, size_t max_header,
                             ol_safetensors **out, ol_error *err)
{
    ol_safetensors *st = NULL;

    OL_TRY(ol_safetensors_create(1, &st, err));
    st->n_shards = 1;
    if (read_file(st, bytes, len, name, max_header, err) != OL_OK ||
        ol_safetensors_finish(st, name, err) != OL_OK) {
        ol_safetensors_close(st);
        return err->code;
    }
    *out = st;
    return OL_OK;
}

void ol_safetensors_close(ol_safetensors *st)
{
    if (!st)
        return;
    for (size_t i = 0; st->shards && i < st->n_shards; i++) {
        ol_map_close(&st->shards[i].map);
        json_decref(st->shards[i].meta);
    }
    free(st->shards);
    free(st->entries);
    ol_arena_destroy(st->arena);
    free(st);
}

/* -- looking up ---------------------------------------------------------------------------- */

size_t ol_safetensors_count(const ol_safetensors *st)
{
    return st->n;
}

const ol_safetensors_entry *ol_safetensors_at(const ol_safetensors *st, size_t i)
{
    return &st->entries[i];
}

const ol_safetensors_entry *ol_safetensors_find(const ol_safetensors *st, const char *name)
{
    ol_safetensors_entry key = {.name = name};

    return st->n ? bsearch(&key, st->entries, st->n, sizeof(key), by_name) : NULL;
}

ol_code ol_safetensors_get(const ol_safetensors *st, const char *name, ol_tensor *tensor,
                           ol_error *err)
{
    const ol_safetensors_entry *e = ol_safetensors_find(st, name);

    if (!e)
        return ol_fail(err, OL_NOT_FOUND, "tensor \"%s\" is missing", name);
    *tensor = (ol_tensor){.name = e->name, .n_dims = e->n_dims, .data = e->data, .bytes = e->bytes};
    if (!ol_safetensors_dtype(e->dtype, &tensor->dtype)) {
        ol_fail(err, OL_UNSUPPORTED, "tensor \"%s\" has the unsupported type %s", name, e->dtype);
        return ol_detail(err, "Supported are F32, F16 and BF16.");
    }
    if (e->n_dims > OL_MAX_DIMS)
        return ol_fail(err, OL_UNSUPPORTED, "tensor \"%s\" has %d dimensions", name, e->n_dims);
    memcpy(tensor->shape, e->shape, sizeof(tensor->shape));
    return OL_OK;
}

const char *ol_safetensors_metadata(const ol_safetensors *st, const char *key)
{
    for (size_t i = 0; i < st->n_shards; i++) {
        const char *value = json_string_value(json_object_get(st->shards[i].meta, key));

        if (value)
            return value;
    }
    return NULL;
}
