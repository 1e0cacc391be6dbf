/* weights.c: see weights.h. */
#include "engine/formats/weights.h"

#include "base/arena.h"
#include "engine/formats/gguf_config.h"
#include "engine/formats/hfconfig.h"
#include "engine/formats/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct ol_model_source {
    ol_model_kind kind;
    ol_arena *arena;
    const char *path, *name, *format;
    ol_model_config config;
    ol_map config_file; /* FOLDER: config.json */
    ol_safetensors *st;
    ol_gguf *gguf;
};

/* -- roles ---------------------------------------------------------------------------------- */

bool ol_role_per_layer(int role)
{
    return role >= OL_ROLE_ATTN_NORM;
}

bool ol_role_present(const ol_model_config *c, int role)
{
    ol_module module = (ol_module)(role - OL_ROLE_BIAS);

    if (role == OL_ROLE_Q_NORM || role == OL_ROLE_K_NORM)
        return c->qk_norm;
    if (role < OL_ROLE_BIAS)
        return true;
    if (module == OL_MOD_O)
        return c->o_bias;
    return module < OL_MOD_O ? c->qkv_bias : c->mlp_bias;
}

int ol_role_shape(const ol_model_config *c, int role, int64_t shape[2])
{
    int64_t out, in;

    shape[1] = 0;
    switch (role) {
    case OL_ROLE_EMBED:
    case OL_ROLE_HEAD:
        shape[0] = c->vocab;
        shape[1] = c->hidden;
        return 2;
    case OL_ROLE_FINAL_NORM:
    case OL_ROLE_ATTN_NORM:
    case OL_ROLE_MLP_NORM:
        shape[0] = c->hidden;
        return 1;
    case OL_ROLE_Q_NORM:
    case OL_ROLE_K_NORM:
        shape[0] = c->head_dim;
        return 1;
    default:
        break;
    }
    ol_module_shape(c,
                    (ol_module)(role >= OL_ROLE_BIAS ? role - OL_ROLE_BIAS : role - OL_ROLE_LINEAR),
                    &out, &in);
    shape[0] = out;
    if (role >= OL_ROLE_BIAS)
        return 1;
    shape[1] = in;
    return 2;
}

/* The tensor's name without "weight" or "bias". */
static void role_stem(ol_model_kind kind, int role, int layer, char out[160])
{
    static const char *const hf[] = {
        "model.embed_tokens",       "lm_head",          "model.norm",      "input_layernorm",
        "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"};
    static const char *const gg[] = {"token_embd", "output",      "output_norm", "attn_norm",
                                     "ffn_norm",   "attn_q_norm", "attn_k_norm"};
    static const char *const gg_modules[] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                             "ffn_gate", "ffn_up", "ffn_down"};
    bool gguf = kind == OL_MODEL_GGUF;
    const char *prefix = gguf ? "blk" : "model.layers";

    if (role < OL_ROLE_LINEAR) {
        const char *stem = gguf ? gg[role] : hf[role];

        if (ol_role_per_layer(role))
            snprintf(out, 160, "%s.%d.%s", prefix, layer, stem);
        else
            snprintf(out, 160, "%s", stem);
        return;
    }
    {
        ol_module m = (ol_module)((role - OL_ROLE_LINEAR) % OL_MODULES);

        if (gguf)
            snprintf(out, 160, "blk.%d.%s", layer, gg_modules[m]);
        else
            snprintf(out, 160, "model.layers.%d.%s.%s", layer,
                     ol_module_in_attention(m) ? "self_attn" : "mlp", ol_module_name(m));
    }
}

/* -- opening --------------------------------------------------------------------------------- */

static ol_code read_generation(ol_model_source *src, ol_error *err)
{
    char path[4096];
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
    char path[4096];

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
    if (name.ptr && name.len && name.len < 200)
        src->name = ol_arena_strndup(src->arena, name.ptr, name.len);
    return OL_OK;
}

static size_t tensor_count(const ol_model_source *src)
{
    return src->gguf ? ol_gguf_tensors(src->gguf) : ol_safetensors_count(src->st);
}

static void tensor_at(const ol_model_source *src, size_t i, const char **name, const char **type,
                      const void **data, size_t *bytes)
{
    if (src->gguf) {
        const ol_gguf_tensor *t = ol_gguf_tensor_at(src->gguf, i);

        *name = t->name;
        *type = ol_gguf_tensor_type_name(t->type);
        *data = t->data;
        *bytes = t->bytes;
    } else {
        const ol_safetensors_entry *e = ol_safetensors_at(src->st, i);

        *name = e->name;
        *type = e->dtype;
        *data = e->data;
        *bytes = e->bytes;
    }
}

/* The type that most bytes have. */
static const char *main_type(const ol_model_source *src)
{
    struct {
        const char *name;
        size_t bytes;
    } sums[32];
    size_t n = 0, best = 0;

    for (size_t i = 0; i < tensor_count(src); i++) {
        const char *name, *type;
        const void *data;
        size_t bytes, k = 0;

        tensor_at(src, i, &name, &type, &data, &bytes);
        while (k < n && strcmp(sums[k].name, type) != 0)
            k++;
        if (k == n && n < 32) {
            sums[n].name = type;
            sums[n++].bytes = 0;
        }
        if (k < n)
            sums[k].bytes += bytes;
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
    if (stat(path, &st) != 0)
        ol_fail_errno(err, "could not open model", path);
    else {
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

/* -- facts ---------------------------------------------------------------------------------------
 */

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

    for (size_t i = 0; i < tensor_count(src); i++) {
        const char *name, *type;
        const void *data;
        size_t bytes;

        tensor_at(src, i, &name, &type, &data, &bytes);
        total += bytes;
    }
    return total;
}

/* -- tensors
 * ---------------------------------------------------------------------------------------- */

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

ol_code ol_model_source_tensor(ol_model_source *src, int role, int layer, ol_tensor *t,
                               ol_error *err)
{
    char name[200], stem[160];
    int64_t want[2];
    int dims = ol_role_shape(&src->config, role, want);

    if (role == OL_ROLE_HEAD && src->config.tie_embeddings)
        role = OL_ROLE_EMBED;
    role_stem(src->kind, role, layer, stem);
    snprintf(name, sizeof(name), "%s.%s", stem, role >= OL_ROLE_BIAS ? "bias" : "weight");
    if (!ol_role_present(&src->config, role))
        return ol_fail(err, OL_NOT_FOUND, "the model has no tensor \"%s\"", name);
    OL_TRY(src->gguf ? ol_gguf_get(src->gguf, name, t, err)
                     : ol_safetensors_get(src->st, name, t, err));
    if (!shape_fits(t, want, dims))
        return wrong_shape(t, want, dims, err);
    if (dims == 1 && ol_dtype_block(t->dtype) != 1)
        return ol_fail(err, OL_UNSUPPORTED, "tensor \"%s\" is %s, which a vector cannot be",
                       t->name, ol_dtype_name(t->dtype));
    return align(src, t, err);
}

/* -- the check
 * ------------------------------------------------------------------------------------------ */

typedef struct check {
    ol_report_fn report;
    void *context;
    ol_error *first;
    bool failed;
} check;

static void found(check *c, bool fatal, const ol_error *finding)
{
    if (fatal && !c->failed) {
        c->failed = true;
        *c->first = *finding;
    }
    if (c->report)
        c->report(c->context, fatal, finding);
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);

    return n >= m && strcmp(text + n - m, end) == 0;
}

/* Whether some role of the description has this name. */
static bool is_expected(const ol_model_source *src, const char *name)
{
    for (int role = 0; role < OL_ROLE_COUNT; role++) {
        int layers = ol_role_per_layer(role) ? src->config.n_layers : 1;

        if (!ol_role_present(&src->config, role))
            continue;
        for (int layer = 0; layer < layers; layer++) {
            char stem[160], full[200];

            role_stem(src->kind, role, layer, stem);
            snprintf(full, sizeof(full), "%s.%s", stem, role >= OL_ROLE_BIAS ? "bias" : "weight");
            if (strcmp(full, name) == 0)
                return true;
        }
    }
    return false;
}

static void check_unexpected(ol_model_source *src, check *c)
{
    for (size_t i = 0; i < tensor_count(src); i++) {
        const char *name, *type;
        const void *data;
        size_t bytes;
        ol_error finding;
        bool harmless;

        tensor_at(src, i, &name, &type, &data, &bytes);
        if (is_expected(src, name))
            continue;
        /* buffers that older checkpoints carry, and a stored copy of a tied head */
        harmless = ends_with(name, "rotary_emb.inv_freq") ||
                   strcmp(name, "rope_freqs.weight") == 0 ||
                   (strcmp(name, "lm_head.weight") == 0 && src->config.tie_embeddings);
        ol_fail(&finding, OL_UNSUPPORTED, "unexpected tensor \"%s\"", name);
        found(c, !harmless, &finding);
    }
}

ol_code ol_model_source_check(ol_model_source *src, ol_report_fn report, void *context,
                              ol_error *err)
{
    check c = {report, context, err, false};

    for (int role = 0; role < OL_ROLE_COUNT; role++) {
        int layers = ol_role_per_layer(role) ? src->config.n_layers : 1;

        for (int layer = 0; layer < layers && ol_role_present(&src->config, role); layer++) {
            ol_tensor t;
            ol_error finding;

            if (ol_model_source_tensor(src, role, layer, &t, &finding) != OL_OK)
                found(&c, true, &finding);
        }
    }
    check_unexpected(src, &c);
    return c.failed ? err->code : OL_OK;
}

/* -- the digest
 * ------------------------------------------------------------------------------------------- */

static void add_number(ol_sha256 *sha, uint64_t v)
{
    ol_sha256_add(sha, &v, sizeof(v));
}

static void add_text(ol_sha256 *sha, const char *text)
{
    add_number(sha, strlen(text));
    ol_sha256_add(sha, text, strlen(text));
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const ol_gguf_tensor *const *)a)->name,
                  (*(const ol_gguf_tensor *const *)b)->name);
}

static void add_dims(ol_sha256 *sha, int n, const int64_t *shape)
{
    add_number(sha, (uint64_t)n);
    for (int i = 0; i < n && i < OL_MAX_DIMS; i++)
        add_number(sha, (uint64_t)shape[i]);
}

typedef struct hashing {
    ol_sha256 *sha;
    ol_progress_fn progress;
    void *context;
    size_t done, total;
} hashing;

static void add_data(hashing *h, const void *data, size_t bytes)
{
    const size_t piece = (size_t)16 << 20;

    add_number(h->sha, bytes);
    for (size_t at = 0; at < bytes; at += piece) {
        size_t n = bytes - at < piece ? bytes - at : piece;

        ol_sha256_add(h->sha, (const uint8_t *)data + at, n);
        h->done += n;
        if (h->progress)
            h->progress(h->context, h->done, h->total);
    }
}

static ol_code hash_gguf(ol_model_source *src, hashing *h, ol_error *err)
{
    size_t n = ol_gguf_tensors(src->gguf);
    const ol_gguf_tensor **list = malloc((n + 1) * sizeof(*list));

    if (!list)
        return ol_fail_nomem(err, n * sizeof(*list), "the model's digest");
    for (size_t i = 0; i < n; i++)
        list[i] = ol_gguf_tensor_at(src->gguf, i);
    qsort(list, n, sizeof(*list), by_name);
    for (size_t i = 0; i < ol_gguf_entries(src->gguf); i++) {
        const ol_gguf_entry *e = ol_gguf_entry_at(src->gguf, i);

        add_text(h->sha, e->key);
        add_number(h->sha, (uint64_t)e->type);
        add_number(h->sha, e->bytes);
        ol_sha256_add(h->sha, e->data, e->bytes);
    }
    for (size_t i = 0; i < n; i++) {
        add_text(h->sha, list[i]->name);
        add_text(h->sha, ol_gguf_tensor_type_name(list[i]->type));
        add_dims(h->sha, list[i]->n_dims, list[i]->shape);
        add_data(h, list[i]->data, list[i]->bytes);
    }
    free(list);
    return OL_OK;
}

static void hash_folder(ol_model_source *src, hashing *h)
{
    add_number(h->sha, src->config_file.len);
    ol_sha256_add(h->sha, src->config_file.data, src->config_file.len);
    for (size_t i = 0; i < ol_safetensors_count(src->st); i++) {
        const ol_safetensors_entry *e = ol_safetensors_at(src->st, i);

        add_text(h->sha, e->name);
        add_text(h->sha, e->dtype);
        add_dims(h->sha, e->n_dims, e->shape);
        add_data(h, e->data, e->bytes);
    }
}

ol_code ol_model_source_digest(ol_model_source *src, ol_progress_fn progress, void *context,
                               ol_digest *digest, ol_error *err)
{
    hashing h = {.sha = ol_sha256_begin(), .progress = progress, .context = context};
    uint8_t kind = src->kind == OL_MODEL_GGUF;
    ol_code code = OL_OK;

    if (!h.sha)
        return ol_fail_nomem(err, 0, "the model's digest");
    h.total = ol_model_source_bytes(src);
    ol_sha256_add(h.sha, "openlora.model.1", 17);
    ol_sha256_add(h.sha, &kind, 1);
    if (src->gguf)
        code = hash_gguf(src, &h, err);
    else
        hash_folder(src, &h);
    ol_sha256_end(h.sha, digest);
    return code;
}
