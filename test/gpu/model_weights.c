/* model_weights.c: random weights: see model.h. */
#include "model.h"

#include <math.h>

/* -- shapes ----------------------------------------------------------------------------------- */

const stack_shape shape_small = {.layers = LAYERS,
                                 .hidden = 64,
                                 .heads = 4,
                                 .kv_heads = 2,
                                 .dim = 16,
                                 .ffn = 96,
                                 .vocab = 50,
                                 .rotary = 16,
                                 .page_tokens = 16};
const stack_shape shape_odd = {.layers = LAYERS,
                               .hidden = 40,
                               .heads = 5,
                               .kv_heads = 1,
                               .dim = 12,
                               .ffn = 52,
                               .vocab = 37,
                               .rotary = 8,
                               .window = 21,
                               .page_tokens = 32,
                               .interleaved = true,
                               .bias = true,
                               .tied = true};
const stack_shape shape_wide = {.layers = LAYERS,
                                .hidden = 192,
                                .heads = 6,
                                .kv_heads = 2,
                                .dim = 64,
                                .ffn = 320,
                                .vocab = 131,
                                .rotary = 64,
                                .page_tokens = 64,
                                .bias = true,
                                .qk_norm = true};
const stack_shape shape_broad = {.layers = LAYERS,
                                 .hidden = 256,
                                 .heads = 4,
                                 .kv_heads = 2,
                                 .dim = 64,
                                 .ffn = 256,
                                 .vocab = 70,
                                 .rotary = 64,
                                 .page_tokens = 16,
                                 .tied = true};

/* -- random numbers of a type ----------------------------------------------------------------- */

static void put_f16(uint8_t *at, double v)
{
    uint16_t half = rig_f16(v);

    memcpy(at, &half, sizeof(half));
}

/* A block of a quantised type with numbers of about `scale`. */
static void random_block(ol_dtype dtype, uint8_t *at, double scale)
{
    size_t bytes = ol_dtype_block_bytes(dtype);

    for (size_t i = 0; i < bytes; i++)
        at[i] = (uint8_t)rig_next();
    if (dtype == OL_Q4_K) { /* factors of scales and minima are 32 on average, numbers 7.5 */
        put_f16(at, scale / 2 / 7.5 / 32);
        put_f16(at + 2, scale / 2 / 32);
    } else if (dtype == OL_Q6_K)
        put_f16(at + 208, scale / 32 / 64);
    else
        put_f16(at, dtype == OL_Q8_0 ? scale / 127 : scale / -8);
}

ol_tensor weights_tensor(ol_dtype dtype, int64_t rows, int64_t cols, double mean, double scale)
{
    size_t row_bytes;
    uint8_t *data;

    if (cols % ol_dtype_block(dtype))
        dtype = OL_BF16;
    assert_true(ol_dtype_row_bytes(dtype, cols, &row_bytes));
    data = rig_host(row_bytes * (size_t)rows);
    for (int64_t i = 0, block = ol_dtype_block(dtype); i < rows * cols; i += block) {
        float v = (float)(mean + scale * rig_uniform());
        uint16_t half = dtype == OL_F16 ? rig_f16(v) : rig_bf16(v);

        if (block > 1)
            random_block(dtype, data + (size_t)(i / block) * ol_dtype_block_bytes(dtype), scale);
        else if (dtype == OL_F32)
            memcpy(data + 4 * i, &v, 4);
        else
            memcpy(data + 2 * i, &half, 2);
    }
    return (ol_tensor){"test", dtype, 2, {rows, cols}, data, row_bytes * (size_t)rows};
}

static ol_tensor vector(int64_t n, double mean, double scale)
{
    ol_tensor t = weights_tensor(OL_F32, 1, n, mean, scale);

    t.n_dims = 1;
    t.shape[0] = n;
    return t;
}

weights *weights_random(const stack_shape *s, ol_dtype dtype)
{
    weights *w = rig_host(sizeof(*w));

    w->s = *s;
    w->embedding = weights_tensor(dtype, s->vocab, s->hidden, 0, 1);
    w->head = weights_tensor(dtype, s->vocab, s->hidden, 0, 1.0 / sqrt(s->hidden));
    w->norm = vector(s->hidden, 1, 0.3);
    for (int l = 0; l < LAYERS; l++) {
        for (int m = 0; m < OL_MODULES; m++) {
            w->linear[l][m] = weights_tensor(dtype, stack_out(s, m), stack_in(s, m), 0,
                                             1.7 / sqrt((double)stack_in(s, m)));
            if (s->bias)
                w->bias[l][m] = vector(stack_out(s, m), 0, 0.5);
        }
        w->norms[l][0] = vector(s->hidden, 1, 0.3);
        w->norms[l][1] = vector(s->hidden, 1, 0.3);
        if (s->qk_norm) {
            w->norms[l][2] = vector(s->dim, 1, 0.3);
            w->norms[l][3] = vector(s->dim, 1, 0.3);
        }
    }
    for (int i = 0; i < s->rotary / 2; i++)
        w->inv_freq[i] = powf(10000.0f, -2.0f * (float)i / (float)s->rotary);
    return w;
}

/* -- what another storage makes of them ------------------------------------------------------- */

static void make_plain(ol_tensor *t)
{
    size_t n = (size_t)(t->shape[0] * t->shape[1]);
    float *values;

    if (!t->data || ol_dtype_block(t->dtype) == 1)
        return;
    values = rig_host(n * sizeof(*values));
    ol_dequantize(t->dtype, t->data, values, n);
    t->dtype = OL_F32;
    t->data = values;
    t->bytes = n * sizeof(*values);
}

const weights *weights_plain(const weights *w)
{
    weights *plain = rig_host(sizeof(*plain));

    *plain = *w;
    make_plain(&plain->embedding);
    make_plain(&plain->head);
    for (int l = 0; l < LAYERS; l++)
        for (int m = 0; m < OL_MODULES; m++)
            make_plain(&plain->linear[l][m]);
    return plain;
}

static void round_group(float *v, size_t n, bool fp8)
{
    float most = 0, scale;

    for (size_t i = 0; i < n; i++)
        most = fmaxf(most, fabsf(v[i]));
    scale = fp8 ? most / 448 : (float)rig_from_f16(rig_f16(most / 127));
    for (size_t i = 0; i < n; i++)
        v[i] = scale == 0 ? 0
               : fp8      ? (float)(rig_from_f8(rig_f8(v[i] / scale)) * scale)
                          : fmaxf(fminf(rintf(v[i] / scale), 127), -128) * scale;
}

static ol_tensor rounded(const ol_tensor *t, ol_quantization how)
{
    size_t rows = (size_t)t->shape[0], cols = (size_t)t->shape[1];
    bool fp8 = how == OL_QUANT_FP8;
    size_t group = fp8 ? cols : 32;
    float *v = rig_host(rows * cols * sizeof(float));
    ol_tensor out = *t;

    ol_dequantize(t->dtype, t->data, v, rows * cols);
    for (float *row = v; row < v + rows * cols; row += cols)
        for (size_t i = 0; i < cols; i += group)
            round_group(row + i, cols - i < group ? cols - i : group, fp8);
    out.dtype = OL_F32;
    out.data = v;
    out.bytes = rows * cols * sizeof(float);
    return out;
}

const weights *weights_rounded(const weights *w, ol_quantization how)
{
    weights *out = rig_host(sizeof(*out));

    *out = *w;
    out->head = rounded(&w->head, how);
    if (w->s.tied)
        out->embedding = rounded(&w->embedding, how);
    for (int l = 0; l < LAYERS; l++)
        for (int m = 0; m < OL_MODULES; m++)
            out->linear[l][m] = rounded(&w->linear[l][m], how);
    return out;
}
