/* adapter_build.c: see adapter_build.h. */
#include "engine/formats/adapter_build.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

void ol_adapter_module_key(int layer, ol_module module, char out[OL_ADAPTER_NAME])
{
    snprintf(out, OL_ADAPTER_NAME, "model.layers.%d.%s.%s", layer,
             ol_module_in_attention(module) ? "self_attn" : "mlp", ol_module_name(module));
}

int ol_adapter_layer(const char *text, const char **rest)
{
    int layer = 0, digits = 0;

    for (; text[digits] >= '0' && text[digits] <= '9' && digits < 5; digits++)
        layer = layer * 10 + (text[digits] - '0');
    *rest = text + digits;
    if (digits == 0 || (digits > 1 && text[0] == '0') || layer >= OL_MAX_LAYERS)
        return -1;
    return layer;
}

/* -- taking tensors ---------------------------------------------------------------- */

/* A device takes F32, F16 and BF16, aligned; GGUF adapters may be quantised, and bytes
 * from a row of a table lie where they lie. */
static ol_code own_copy(ol_adapter_build *build, ol_tensor *t)
{
    size_t size = ol_dtype_block_bytes(t->dtype), bytes = t->bytes;
    bool quantised = ol_dtype_block(t->dtype) > 1;
    int64_t count = 0;
    void *copy;

    if (!quantised && (uintptr_t)t->data % size == 0)
        return OL_OK;
    if (!ol_shape_count(t->shape, t->n_dims, &count) ||
        (quantised && __builtin_mul_overflow((size_t)count, sizeof(float), &bytes)))
        return ol_fail(build->err, OL_CORRUPT, "tensor \"%s\" is too large", t->name);
    copy = ol_arena_alloc(build->arena, bytes < OL_ARENA_WIDE ? OL_ARENA_WIDE : bytes);
    if (!copy)
        return ol_fail_nomem(build->err, bytes, t->name);
    if (quantised) {
        ol_dequantize(t->dtype, t->data, copy, (size_t)count);
        t->dtype = OL_F32;
    } else {
        memcpy(copy, t->data, bytes);
    }
    t->data = copy;
    t->bytes = bytes;
    return OL_OK;
}

ol_code ol_adapter_put(ol_adapter_build *build, int layer, ol_module module, bool is_b,
                       const ol_tensor *tensor)
{
    ol_adapter_pair *pair;
    ol_tensor *place;
    bool *has;

    if (build->base && layer >= build->base->n_layers) {
        ol_fail(build->err, OL_MISMATCH,
                "adapter tensor \"%s\" is for layer %d, which the base "
                "model does not have",
                tensor->name, layer);
        return ol_detail(build->err, "The base model has %d layers.", build->base->n_layers);
    }
    if (!build->layers[layer]) {
        build->layers[layer] = ol_arena_array(build->arena, OL_MODULES, sizeof(ol_adapter_pair));
        if (!build->layers[layer])
            return ol_fail_nomem(build->err, sizeof(ol_adapter_pair), "adapter modules");
    }
    pair = &build->layers[layer][module];
    place = is_b ? &pair->b : &pair->a;
    has = is_b ? &pair->has_b : &pair->has_a;
    if (*has)
        return ol_fail(build->err, OL_CORRUPT,
                       "adapter tensors \"%s\" and \"%s\" are for the same "
                       "module",
                       place->name, tensor->name);
    *place = *tensor;
    place->name = ol_arena_strdup(build->arena, tensor->name);
    if (!place->name)
        return ol_fail_nomem(build->err, strlen(tensor->name), "tensor names");
    *has = true;
    if (layer >= build->n_layers)
        build->n_layers = layer + 1;
    return OL_OK;
}

/* -- checking ------------------------------------------------------------------------ */

/* No branch in the loops, so that they take many values at once. */
static bool wide_finite(const uint32_t *x, size_t n)
{
    uint32_t bad = 0;

    for (size_t i = 0; i < n; i++)
        bad |= (uint32_t)((x[i] & 0x7F800000u) == 0x7F800000u);
    return !bad;
}

static bool half_finite(const uint16_t *x, size_t n, uint16_t exponent)
{
    uint16_t bad = 0;

    for (size_t i = 0; i < n; i++)
        bad |= (uint16_t)((x[i] & exponent) == exponent);
    return !bad;
}

static bool all_finite(const ol_tensor *t)
{
    size_t n = t->bytes / ol_dtype_block_bytes(t->dtype);

    if (t->dtype == OL_F32)
        return wide_finite(t->data, n);
    return half_finite(t->data, n, t->dtype == OL_F16 ? 0x7C00 : 0x7F80);
}

static ol_code wrong_shape(ol_error *err, const char *key, const ol_tensor *t, int64_t rows,
                           int64_t cols, const char *why)
{
    char shape[128] = "";
    size_t at = 0;

    for (int i = 0; i < t->n_dims && at < sizeof(shape); i++)
        at += (size_t)snprintf(shape + at, sizeof(shape) - at, "%s%lld", i ? ", " : "",
                               (long long)t->shape[i]);
    ol_fail(err, OL_MISMATCH, "adapter module \"%s\" has the wrong shape", key);
    return ol_detail(err, "Tensor \"%s\" is (%s), should be (%lld, %lld): %s.", t->name, shape,
                     (long long)rows, (long long)cols, why);
}

/* {rank, in} and {out, rank}; what is not known (rank, base) is taken as it is. */
static ol_code check_shapes(ol_adapter_build *build, ol_module module, const char *key,
                            ol_adapter_pair *pair)
{
    const ol_tensor *a = &pair->a, *b = &pair->b;
    int64_t rank = a->n_dims == 2 ? a->shape[0] : 0;
    int64_t in = a->n_dims == 2 ? a->shape[1] : 0, out = b->n_dims == 2 ? b->shape[0] : 0;
    const char *why = "rank of the adapter, size of the base's module";

    if (pair->rank)
        rank = pair->rank;
    if (build->base)
        ol_module_shape(build->base, module, &out, &in);
    if (a->n_dims != 2 || a->shape[0] != rank || a->shape[1] != in)
        return wrong_shape(build->err, key, a, rank, in, why);
    if (b->n_dims != 2 || b->shape[0] != out || b->shape[1] != rank)
        return wrong_shape(build->err, key, b, out, rank, why);
    if (rank < 1 || rank > OL_MAX_RANK) {
        ol_fail(build->err, OL_LIMIT, "adapter module \"%s\" has rank %lld", key, (long long)rank);
        return ol_detail(build->err, "The rank must be from 1 to %d.", OL_MAX_RANK);
    }
    if (in < 1 || out < 1)
        return ol_fail(build->err, OL_CORRUPT, "adapter module \"%s\" is empty", key);
    pair->rank = (int)rank;
    return OL_OK;
}

/* -- row order of q and k ------------------------------------------------------------- */

/*
 * RoPE turns pairs of a head's dims. Hugging Face pairs dim i with i + d/2; GGUF's llama
 * pairs 2i with 2i + 1, and its converter moved the rows of Wq and Wk accordingly. The
 * rows of B (the output of q and k) have to stand in the order of the base's rows.
 */
static ol_code reorder_rows(ol_adapter_build *build, ol_tensor *b)
{
    size_t rows = (size_t)b->shape[0], row_bytes = b->bytes / rows;
    size_t head = (size_t)build->base->head_dim, half = head / 2;
    const uint8_t *from = b->data;
    uint8_t *to = ol_arena_alloc(build->arena, b->bytes < OL_ARENA_WIDE ? OL_ARENA_WIDE : b->bytes);

    if (!to)
        return ol_fail_nomem(build->err, b->bytes, b->name);
    for (size_t row = 0; row < rows; row++) {
        size_t first = row - row % head, i = row % head;
        size_t split = first + (i % 2) * half + i / 2; /* where row `row` of the interleaved
                                                        * order lies in the split one */

        if (build->base->rope.interleaved)
            memcpy(to + row * row_bytes, from + split * row_bytes, row_bytes);
        else
            memcpy(to + split * row_bytes, from + row * row_bytes, row_bytes);
    }
    b->data = to;
    return OL_OK;
}

/* -- the result ----------------------------------------------------------------------- */

static ol_code settle_pair(ol_adapter_build *build, int layer, ol_module module)
{
    ol_adapter_pair *pair = &build->layers[layer][module];
    char key[OL_ADAPTER_NAME];

    ol_adapter_module_key(layer, module, key);
    if (!pair->has_a || !pair->has_b)
        return ol_fail(build->err, OL_CORRUPT, "adapter module \"%s\" lacks its %s matrix", key,
                       pair->has_a ? "B" : "A");
    OL_TRY(check_shapes(build, module, key, pair));
    OL_TRY(own_copy(build, &pair->a));
    OL_TRY(own_copy(build, &pair->b));
    if (!all_finite(&pair->a) || !all_finite(&pair->b))
        return ol_fail(build->err, OL_CORRUPT, "adapter module \"%s\" holds NaN or infinite values",
                       key);
    if (!isfinite(pair->scale))
        return ol_fail(build->err, OL_CORRUPT,
                       "adapter module \"%s\" has a scale that is not finite", key);
    if (build->base && build->base->rope.interleaved != build->interleaved &&
        (module == OL_MOD_Q || module == OL_MOD_K))
        return reorder_rows(build, &pair->b);
    return OL_OK;
}

static size_t size_as_f32(const ol_tensor *t)
{
    int64_t count;

    return ol_dtype_block(t->dtype) > 1 && ol_shape_count(t->shape, t->n_dims, &count)
               ? (size_t)count * sizeof(float)
               : 0;
}

/* Before any is: quantised tensors take seven times as much memory when they are read. */
static ol_code check_growth(const ol_adapter_build *build)
{
    size_t bytes = 0;

    for (int layer = 0; layer < build->n_layers; layer++)
        for (int m = 0; build->layers[layer] && m < OL_MODULES; m++) {
            const ol_adapter_pair *pair = &build->layers[layer][m];

            bytes += pair->has_a ? size_as_f32(&pair->a) : 0;
            bytes += pair->has_b ? size_as_f32(&pair->b) : 0;
        }
    if (!build->most || bytes <= build->most)
        return OL_OK;
    ol_fail(build->err, OL_LIMIT, "the adapter does not fit the adapter cache");
    ol_detail(build->err,
              "Its quantised tensors take %zu bytes when they are read; at most %zu may be.", bytes,
              build->most);
    return ol_hint(build->err, "Give the adapter cache more memory, or use a smaller adapter.");
}

static void note_module(ol_adapter_file *out, const ol_lora_module *m)
{
    if (m->rank > out->max_rank)
        out->max_rank = m->rank;
    out->n_layers = m->layer + 1;
    out->module_mask |= 1u << m->module;
    out->parameters += m->a.shape[0] * m->a.shape[1] + m->b.shape[0] * m->b.shape[1];
    out->tensor_bytes += m->a.bytes + m->b.bytes;
}

ol_code ol_adapter_finish(ol_adapter_build *build, ol_adapter_file *out)
{
    ol_lora_module *modules =
        ol_arena_array(build->arena, (size_t)build->n_layers * OL_MODULES + 1, sizeof(*modules));

    if (!modules)
        return ol_fail_nomem(build->err, sizeof(*modules), "adapter modules");
    OL_TRY(check_growth(build));
    out->modules = modules;
    for (int layer = 0; layer < build->n_layers; layer++)
        for (int m = 0; build->layers[layer] && m < OL_MODULES; m++) {
            ol_adapter_pair *pair = &build->layers[layer][m];
            ol_lora_module *module = &modules[out->n_modules];

            if (!pair->has_a && !pair->has_b)
                continue;
            OL_TRY(settle_pair(build, layer, (ol_module)m));
            *module = (ol_lora_module){.layer = layer,
                                       .module = (ol_module)m,
                                       .rank = pair->rank,
                                       .scale = pair->scale,
                                       .a = pair->a,
                                       .b = pair->b};
            note_module(out, module);
            out->n_modules++;
        }
    return out->n_modules ? OL_OK : ol_fail(build->err, OL_CORRUPT, "the adapter adapts no module");
}
