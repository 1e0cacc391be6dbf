/* weights.c: see weights.h. Opening a model, and finding its tensors. */
#include "engine/formats/weights_internal.h"

#include "engine/formats/gguf_config.h"
#include "engine/formats/hfconfig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_PATH 4096

/* -- opening ------------------------------------------------------------------------- */

static ol_code read_generation(ol_model_source *src, ol_error *err)
{
    char path[MAX_PATH];
    ol_map map;
    ol_code code;

    snprintf(path, sizeof(path), "%s/generation_config.json", src->path);
    code = ol_map_open(path, &map, err);
    if (code == OL_NOT_FOUND)
        return OL_OK;
    OL_TRY(code);
    code = ol_hfconfig_generation((const char *)map.data, map.len, path, &src->config, err);
    ol_map_close(&map);
    return code;
}

static ol_code open_folder(ol_model_source *src, ol_error *err)
{
    char path[MAX_PATH];

    snprintf(path, sizeof(path), "%s/config.json", src->path);
    OL_TRY(ol_map_open(path, &src->config_file, err));
    OL_TRY(ol_hfconfig_parse((const char *)src->config_file.data, src->config_file.len, path,
                             &src->config, err));
    OL_TRY(read_generation(src, err));
    return ol_safetensors_open_folder(src->path, &src->st, err);
}

static ol_code open_gguf(ol_model_source *src, ol_error *err)
{
    ol_gguf_str name;

    OL_TRY(ol_gguf_open(src->path, &src->gguf, err));
    if (ol_gguf_is(src->gguf, "general.type", "adapter")) {
        ol_fail(err, OL_INVALID, "\"%s\" is a LoRA adapter, not a model", src->path);
        return ol_hint(err, "Give the base model as the model, and this as an adapter.");
    }
    OL_TRY(ol_gguf_config(src->gguf, &src->config, err));
    OL_TRY(ol_gguf_string(src->gguf, "general.name", &name, err));
    if (name.ptr && name.len) {
        char text[128];

        src->name = ol_arena_strdup(src->arena, ol_gguf_printable(name, text, sizeof(text)));
    }
    return OL_OK;
}

/* The type that most bytes have. */
static const char *main_type(const ol_model_source *src)
{
    struct {
        const char *name;
        size_t bytes;
    } sums[32];
    size_t n = 0, best = 0;

    for (size_t i = 0; i < ol_source_count(src); i++) {
        ol_safetensors_entry e = ol_source_at(src, i);
        size_t k = 0;

        while (k < n && strcmp(sums[k].name, e.dtype) != 0)
            k++;
        if (k == n && n < 32) {
            sums[n].name = e.dtype;
            sums[n++].bytes = 0;
        }
        if (k < n)
            sums[k].bytes += e.bytes;
    }
    for (size_t k = 1; k < n; k++)
        best = sums[k].bytes > sums[best].bytes ? k : best;
    return n ? sums[best].name : "nothing";
}

static ol_code describe(ol_model_source *src, ol_error *err)
{
    const char *slash;
    char format[64];

    if (!src->name) {
        slash = strrchr(src->path, '/');
        src->name = slash && slash[1] ? slash + 1 : src->path;
    }
    snprintf(format, sizeof(format), "%s %s", src->gguf ? "GGUF" : "safetensors", main_type(src));
    src->format = ol_arena_strdup(src->arena, format);
    return src->format ? OL_OK : ol_fail_nomem(err, sizeof(format), src->path);
}

ol_code ol_model_source_open(const char *path, ol_model_source **out, ol_error *err)
{
    ol_model_source *src = calloc(1, sizeof(*src));
    struct stat st;
    size_t len = strlen(path);
    char *copy;

    if (src)
        src->arena = ol_arena_create();
    if (!src || !src->arena || !(copy = ol_arena_strdup(src->arena, path))) {
        ol_model_source_close(src);
        return ol_fail_nomem(err, sizeof(*src), path);
    }
    while (len > 1 && copy[len - 1] == '/')
        copy[--len] = '\0';
    src->path = copy;
    if (len > MAX_PATH - 64) { /* room for the files of a folder */
        ol_fail(err, OL_INVALID, "the path of the model is too long");
    } else if (stat(path, &st) != 0) {
        ol_fail_errno(err, "could not open model", path);
    } else {
        src->kind = S_ISDIR(st.st_mode) ? OL_MODEL_FOLDER : OL_MODEL_GGUF;
        if ((S_ISDIR(st.st_mode) ? open_folder(src, err) : open_gguf(src, err)) == OL_OK &&
            describe(src, err) == OL_OK) {
            *out = src;
            return OL_OK;
        }
    }
    ol_model_source_close(src);
    return err->code;
}

void ol_model_source_close(ol_model_source *src)
{
    if (!src)
        return;
    ol_map_close(&src->config_file);
    ol_safetensors_close(src->st);
    ol_gguf_close(src->gguf);
    ol_arena_destroy(src->arena);
    free(src);
}

/* -- facts --------------------------------------------------------------------------- */

ol_model_kind ol_model_source_kind(const ol_model_source *src)
{
    return src->kind;
}

const char *ol_model_source_path(const ol_model_source *src)
{
    return src->path;
}

const ol_model_config *ol_model_source_config(const ol_model_source *src)
{
    return &src->config;
}

const char *ol_model_source_name(const ol_model_source *src)
{
    return src->name;
}

const char *ol_model_source_format(const ol_model_source *src)
{
    return src->format;
}

ol_gguf *ol_model_source_gguf(const ol_model_source *src)
{
    return src->gguf;
}

int64_t ol_model_source_parameters(const ol_model_source *src)
{
    int64_t total = 0;

    for (int role = 0; role < OL_ROLE_COUNT; role++) {
        int64_t shape[2], n;
        int dims = ol_role_shape(&src->config, role, shape);

        if (!ol_role_present(&src->config, role) ||
            (role == OL_ROLE_HEAD && src->config.tie_embeddings))
            continue;
        n = dims == 2 ? shape[0] * shape[1] : shape[0];
        total += ol_role_per_layer(role) ? n * src->config.n_layers : n;
    }
    return total;
}

size_t ol_model_source_bytes(const ol_model_source *src)
{
    size_t total = 0;

    for (size_t i = 0; i < ol_source_count(src); i++)
        total += ol_source_at(src, i).bytes;
    return total;
}

/* -- tensors ------------------------------------------------------------------------- */

size_t ol_source_count(const ol_model_source *src)
{
    return src->gguf ? ol_gguf_tensors(src->gguf) : ol_safetensors_count(src->st);
}

ol_safetensors_entry ol_source_at(const ol_model_source *src, size_t i)
{
    ol_safetensors_entry e;
    const ol_gguf_tensor *t;

    if (!src->gguf)
        return *ol_safetensors_at(src->st, i);
    t = ol_gguf_tensor_at(src->gguf, i);
    e = (ol_safetensors_entry){.name = t->name,
                               .dtype = ol_gguf_tensor_type_name(t->type),
                               .n_dims = t->n_dims,
                               .data = t->data,
                               .bytes = t->bytes};
    memcpy(e.shape, t->shape, sizeof(e.shape));
    return e;
}

static bool shape_fits(const ol_tensor *t, const int64_t *want, int dims)
{
    for (int i = 0; i < dims; i++)
        if (t->shape[i] != want[i])
            return false;
    return t->n_dims == dims;
}

static ol_code wrong_shape(const ol_tensor *t, const int64_t *want, int dims, ol_error *err)
{
    ol_fail(err, OL_CORRUPT, "tensor \"%s\" has the wrong shape", t->name);
    if (dims == 2)
        return ol_detail(err,
                         "The description asks for %lld x %lld; it has %d dimensions, %lld x %lld.",
                         (long long)want[0], (long long)want[1], t->n_dims, (long long)t->shape[0],
                         (long long)t->shape[1]);
    return ol_detail(err, "The description asks for %lld; it has %d dimensions, %lld.",
                     (long long)want[0], t->n_dims, (long long)t->shape[0]);
}

/* Safetensors need not align their tensors; what reads them does. */
static ol_code align(ol_model_source *src, ol_tensor *t, ol_error *err)
{
    size_t need = t->dtype == OL_F32 ? 4 : 2;
    void *copy;

    if ((uintptr_t)t->data % need == 0)
        return OL_OK;
    copy = ol_arena_alloc(src->arena, t->bytes);
    if (!copy)
        return ol_fail_nomem(err, t->bytes, t->name);
    memcpy(copy, t->data, t->bytes);
    t->data = copy;
    return OL_OK;
}

ol_code ol_source_find(const ol_model_source *src, int role, int layer, ol_tensor *t, ol_error *err)
{
    char name[OL_SOURCE_NAME];
    int64_t want[2];
    int dims = ol_role_shape(&src->config, role, want);

    if (role == OL_ROLE_HEAD && src->config.tie_embeddings)
        role = OL_ROLE_EMBED;
    ol_source_name(src->kind, role, layer, name);
    if (!ol_role_present(&src->config, role) ||
        (ol_role_per_layer(role) && (layer < 0 || layer >= src->config.n_layers)))
        return ol_fail(err, OL_NOT_FOUND, "the model has no tensor \"%s\"", name);
    OL_TRY(src->gguf ? ol_gguf_get(src->gguf, name, t, err)
                     : ol_safetensors_get(src->st, name, t, err));
    if (!shape_fits(t, want, dims))
        return wrong_shape(t, want, dims, err);
    if (dims == 1 && ol_dtype_block(t->dtype) != 1)
        return ol_fail(err, OL_UNSUPPORTED, "tensor \"%s\" is %s, which a vector cannot be",
                       t->name, ol_dtype_name(t->dtype));
    return OL_OK;
}

ol_code ol_model_source_tensor(ol_model_source *src, int role, int layer, ol_tensor *tensor,
                               ol_error *err)
{
    OL_TRY(ol_source_find(src, role, layer, tensor, err));
    return align(src, tensor, err);
}
