/* rig.c: random weights, and a model placed on a device. See rig.h. */
#include "rig.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POOL_PAGES 256 /* for adapters: the tests' take 104 at most */

ol_error rig_error;

void rig_ok(ol_code code, const ol_error *err, const char *what, const char *file, int line)
{
    if (code == OL_OK)
        return;
    print_error("%s: %s (%s)\n", what, err->message, err->detail);
    _fail(file, line);
}

uint64_t rig_next(rig_rng *rng)
{
    uint64_t z = rng->state += 0x9E3779B97F4A7C15u; /* splitmix64 */

    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

int rig_below(rig_rng *rng, int n)
{
    return (int)(rig_next(rng) % (uint64_t)n);
}

double rig_uniform(rig_rng *rng)
{
    return (double)(rig_next(rng) >> 11) * 0x1p-52 - 1.0;
}

void rig_fill(rig_rng *rng, float *x, size_t n, double scale)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(rig_uniform(rng) * scale);
}

/* -- tensors -------------------------------------------------------------------------- */

static void put_f16(uint8_t *at, double v)
{
    uint16_t h = ol_f32_to_f16((float)v);

    memcpy(at, &h, 2);
}

/* One block of a block type: random quants, scales that make entries of about `scale`. */
static void random_block(rig_rng *rng, ol_dtype dtype, uint8_t *out, double scale)
{
    size_t bytes = ol_dtype_block_bytes(dtype);
    double d = scale * (1.2 + rig_uniform(rng));

    for (size_t i = 0; i < bytes; i++)
        out[i] = (uint8_t)rig_next(rng);
    switch (dtype) {
    case OL_Q8_0:
        put_f16(out, d / 127);
        break;
    case OL_Q4_0:
        put_f16(out, d / -8);
        break;
    case OL_Q4_K:
        put_f16(out, d / 15 / 32);
        put_f16(out + 2, d / 2 / 32);
        break;
    case OL_Q6_K:
        put_f16(out + 208, d / 32 / 64);
        break;
    default:
        break;
    }
}

static void fill_plain(rig_rng *rng, ol_dtype dtype, uint8_t *out, int64_t n, double scale)
{
    for (int64_t i = 0; i < n; i++) {
        float v = (float)(rig_uniform(rng) * scale);
        uint16_t h = dtype == OL_F16 ? ol_f32_to_f16(v) : ol_f32_to_bf16(v);

        if (dtype == OL_F32)
            memcpy(out + 4 * i, &v, 4);
        else
            memcpy(out + 2 * i, &h, 2);
    }
}

static rig_tensor finish(ol_dtype dtype, int64_t rows, int64_t cols, uint8_t *data, size_t bytes)
{
    size_t n = (size_t)(rows * cols);
    float *values = malloc((n + 1) * sizeof(float));
    rig_tensor t = {.t = {"test", dtype, 2, {rows, cols}, data, bytes},
                    .dense = malloc((n + 1) * sizeof(double))};

    ol_dequantize(dtype, data, values, n);
    for (size_t i = 0; i < n; i++)
        t.dense[i] = values[i];
    free(values);
    return t;
}

rig_tensor rig_matrix(rig_rng *rng, ol_dtype dtype, int64_t rows, int64_t cols, double scale)
{
    size_t row_bytes = 0, block = ol_dtype_block_bytes(dtype);
    uint8_t *data;

    assert_true(ol_dtype_row_bytes(dtype, cols, &row_bytes));
    data = malloc(row_bytes * (size_t)rows + 1);
    if (ol_dtype_block(dtype) == 1)
        fill_plain(rng, dtype, data, rows * cols, scale);
    else
        for (size_t at = 0; at < row_bytes * (size_t)rows; at += block)
            random_block(rng, dtype, data + at, scale);
    return finish(dtype, rows, cols, data, row_bytes * (size_t)rows);
}

rig_tensor rig_vector(rig_rng *rng, int64_t n, double mean, double scale)
{
    float *data = malloc((size_t)n * sizeof(float));
    rig_tensor t;

    for (int64_t i = 0; i < n; i++)
        data[i] = (float)(mean + scale * rig_uniform(rng));
    t = finish(OL_F32, n, 1, (uint8_t *)data, (size_t)n * sizeof(float));
    t.t.n_dims = 1;
    return t;
}

void rig_tensor_free(rig_tensor *t)
{
    free((void *)(uintptr_t)t->t.data);
    free(t->dense);
    memset(t, 0, sizeof(*t));
}

/* -- models ----------------------------------------------------------------------------- */

int64_t rig_in(const rig_shape *s, int module)
{
    return module == OL_MOD_O      ? (int64_t)s->heads * s->dim
           : module == OL_MOD_DOWN ? s->ffn
                                   : s->hidden;
}

int64_t rig_out(const rig_shape *s, int module)
{
    switch (module) {
    case OL_MOD_Q:
        return (int64_t)s->heads * s->dim;
    case OL_MOD_K:
    case OL_MOD_V:
        return (int64_t)s->kv_heads * s->dim;
    case OL_MOD_GATE:
    case OL_MOD_UP:
        return s->ffn;
    default:
        return s->hidden;
    }
}

/* K types come in 256s: shapes whose sides do not divide take another type there. */
static ol_dtype suited(ol_dtype dtype, int64_t cols)
{
    if (cols % ol_dtype_block(dtype) == 0)
        return dtype;
    return cols % OL_BLOCK == 0 ? OL_Q8_0 : OL_F16;
}

void rig_model_make(rig_model *m, const rig_shape *shape, ol_dtype dtype,
                    ol_quantization quantization, uint64_t seed)
{
    rig_rng rng = {seed};
    int rotary = shape->rotary ? shape->rotary : shape->dim;

    memset(m, 0, sizeof(*m));
    m->shape = *shape;
    m->shape.rotary = rotary;
    m->dtype = dtype;
    m->quantization = quantization;
    m->embedding = rig_matrix(&rng, suited(dtype, shape->hidden), shape->vocab, shape->hidden, 1.0);
    m->head = rig_matrix(&rng, suited(dtype, shape->hidden), shape->vocab, shape->hidden, 0.3);
    m->final_norm = rig_vector(&rng, shape->hidden, 1, 0.3);
    for (int l = 0; l < RIG_LAYERS; l++) {
        for (int i = 0; i < OL_MODULES; i++) {
            int64_t in = rig_in(shape, i);

            m->linear[l][i] =
                rig_matrix(&rng, suited(dtype, in), rig_out(shape, i), in, 1.7 / sqrt((double)in));
            if (shape->bias)
                m->bias[l][i] = rig_vector(&rng, rig_out(shape, i), 0, 0.5);
        }
        m->attn_norm[l] = rig_vector(&rng, shape->hidden, 1, 0.3);
        m->mlp_norm[l] = rig_vector(&rng, shape->hidden, 1, 0.3);
        if (shape->qk_norm) {
            m->q_norm[l] = rig_vector(&rng, shape->dim, 1, 0.3);
            m->k_norm[l] = rig_vector(&rng, shape->dim, 1, 0.3);
        }
    }
    for (int i = 0; i < rotary / 2; i++)
        m->inv_freq[i] = powf(10000.0f, -2.0f * (float)i / (float)rotary);
}

void rig_model_free(rig_model *m)
{
    rig_tensor_free(&m->embedding);
    rig_tensor_free(&m->head);
    rig_tensor_free(&m->final_norm);
    for (int l = 0; l < RIG_LAYERS; l++) {
        for (int i = 0; i < OL_MODULES; i++) {
            rig_tensor_free(&m->linear[l][i]);
            rig_tensor_free(&m->bias[l][i]);
        }
        rig_tensor_free(&m->attn_norm[l]);
        rig_tensor_free(&m->mlp_norm[l]);
        rig_tensor_free(&m->q_norm[l]);
        rig_tensor_free(&m->k_norm[l]);
    }
}

void rig_lora_make(rig_lora *lora, const rig_model *m, ol_dtype dtype, int max_rank, bool sparse,
                   uint64_t seed)
{
    rig_rng rng = {seed};

    memset(lora, 0, sizeof(*lora));
    lora->scale = (float)(1.0 + 0.5 * rig_uniform(&rng));
    for (int l = 0; l < RIG_LAYERS; l++)
        for (int i = 0; i < OL_MODULES; i++) {
            int rank = sparse ? 1 + rig_below(&rng, max_rank) : max_rank;
            int64_t in = rig_in(&m->shape, i);

            if (sparse && rig_below(&rng, 3) == 0)
                continue;
            lora->rank[l][i] = rank;
            lora->a[l][i] = rig_matrix(&rng, dtype, rank, in, 1.7 / sqrt((double)in));
            lora->b[l][i] =
                rig_matrix(&rng, dtype, rig_out(&m->shape, i), rank, 0.8 / sqrt((double)rank));
        }
}

static void round_rank(double *x, int64_t n, int64_t step)
{
    float most = 0, scale;

    for (int64_t i = 0; i < n; i++)
        most = fmaxf(most, fabsf((float)x[i * step]));
    scale = most / 127;
    for (int64_t i = 0; i < n; i++) {
        float q = scale > 0 ? rintf((float)x[i * step] / scale) : 0;

        assert_true(fabsf(q) <= 127);
        assert_true(fabs((double)q * (double)scale - x[i * step]) <= 0.5001 * (double)scale);
        x[i * step] = (double)q * (double)scale;
    }
}

void rig_lora_round(rig_lora *lora)
{
    for (int l = 0; l < RIG_LAYERS; l++)
        for (int i = 0; i < OL_MODULES; i++)
            for (int r = 0; r < lora->rank[l][i]; r++) {
                const rig_tensor *a = &lora->a[l][i], *b = &lora->b[l][i];

                round_rank(a->dense + r * a->t.shape[1], a->t.shape[1], 1);
                round_rank(b->dense + r, b->t.shape[0], b->t.shape[1]);
            }
}

void rig_lora_free(rig_lora *lora)
{
    for (int l = 0; l < RIG_LAYERS; l++)
        for (int i = 0; i < OL_MODULES; i++) {
            rig_tensor_free(&lora->a[l][i]);
            rig_tensor_free(&lora->b[l][i]);
        }
}

/* -- on a device ---------------------------------------------------------------------------- */

static ol_weight *place(rig_device *d, const rig_tensor *t, int use)
{
    ol_weight_desc desc = {.tensor = t->t, .quantization = d->model->quantization, .keep = false};
    ol_weight *w = NULL;

    if (!t->t.data)
        return NULL;
    desc.use = use;
    RIG_OK(d->ops->weight_create(d->device, &desc, &w, &rig_error));
    return w;
}

/* As stored, quantised perhaps: packing has tests of its own. */
static double *stored(const ol_weight *w)
{
    double *out = malloc((size_t)(w->m.rows * w->m.cols) * sizeof(double) + 1);
    float *row = malloc((size_t)w->m.cols * sizeof(float) + 1);

    for (int64_t r = 0; r < w->m.rows; r++) {
        cpu_matrix_row(&w->m, r, row);
        for (int64_t k = 0; k < w->m.cols; k++)
            out[r * w->m.cols + k] = row[k];
    }
    free(row);
    return out;
}

static void place_layer(rig_device *d, int l)
{
    const rig_model *m = d->model;
    const rig_shape *s = &m->shape;
    ol_layer *layer = &d->layers[l];

    *layer = (ol_layer){.index = l,
                        .attention = {.n_heads = s->heads,
                                      .n_kv_heads = s->kv_heads,
                                      .head_dim = s->dim,
                                      .scale = 1.0f / sqrtf((float)s->dim),
                                      .window = s->window,
                                      .rope_interleaved = s->interleaved,
                                      .rotary_dims = s->rotary,
                                      .inv_freq = m->inv_freq,
                                      .rope_factor = 1.1f,
                                      .norm_eps = 1e-5f}};
    for (int i = 0; i < OL_MODULES; i++) {
        layer->linear[i] = place(d, &m->linear[l][i], OL_WEIGHT_MATRIX);
        layer->bias[i] = place(d, &m->bias[l][i], OL_WEIGHT_VECTOR);
        d->stored[l][i] = stored(layer->linear[i]);
    }
    layer->attn_norm = place(d, &m->attn_norm[l], OL_WEIGHT_VECTOR);
    layer->mlp_norm = place(d, &m->mlp_norm[l], OL_WEIGHT_VECTOR);
    layer->q_norm = place(d, &m->q_norm[l], OL_WEIGHT_VECTOR);
    layer->k_norm = place(d, &m->k_norm[l], OL_WEIGHT_VECTOR);
}

void rig_place(rig_device *d, const rig_model *m, const rig_options *options)
{
    const rig_shape *s = &m->shape;
    ol_device_options open = {.threads = options->threads,
                              .isa = options->isa,
                              .max_rows = options->max_rows,
                              .max_seqs = options->max_rows,
                              .max_logit_rows = options->max_rows,
                              .adapters = options->int8 ? OL_QUANT_INT8 : OL_QUANT_AS_IS};
    int more = options->pool ? POOL_PAGES : 0;
    ol_kv_desc kv = {.n_layers = RIG_LAYERS,
                     .n_kv_heads = s->kv_heads,
                     .head_dim = s->dim,
                     .page_tokens = s->page_tokens,
                     .n_pages = options->n_pages + more,
                     .dtype = options->kv,
                     .pool = options->pool};

    memset(d, 0, sizeof(*d));
    d->ops = ol_device_entry_point();
    d->model = m;
    d->n_pages = options->n_pages;
    RIG_OK(d->ops->open(&open, &d->device, &rig_error));
    d->embedding =
        place(d, &m->embedding, options->tied ? OL_WEIGHT_EMBEDDING_AND_HEAD : OL_WEIGHT_EMBEDDING);
    if (!options->tied)
        d->head = place(d, &m->head, OL_WEIGHT_MATRIX);
    d->final_norm = place(d, &m->final_norm, OL_WEIGHT_VECTOR);
    for (int l = 0; l < RIG_LAYERS; l++)
        place_layer(d, l);
    d->stored_head = stored(d->head ? d->head : d->embedding);
    RIG_OK(d->ops->kv_create(d->device, &kv, &d->kv, &rig_error));
    d->pool = options->pool;
    d->last_page = options->n_pages + more;
    if (d->pool)
        memset(d->kv->data, 0xFF, d->kv->bytes);
    RIG_OK(d->ops->buffer_create(d->device, s->hidden, &d->x, &rig_error));
    RIG_OK(d->ops->buffer_create(d->device, s->hidden, &d->y, &rig_error));
    RIG_OK(d->ops->buffer_create(d->device, (int64_t)s->heads * s->dim, &d->q, &rig_error));
    RIG_OK(d->ops->buffer_create(d->device, (int64_t)s->heads * s->dim, &d->o, &rig_error));
}

/* From the last page down, with a page of NaNs before each run. */
static void place_in_pool(rig_device *d, const ol_lora_module *modules, int n)
{
    ol_lora **lora = &d->loras[d->n_loras];
    ol_lora_need need;
    int32_t *runs;

    RIG_OK(d->ops->lora_need(d->device, d->kv, modules, n, &need, &rig_error));
    runs = malloc((size_t)need.n_runs * sizeof(*runs));
    for (int i = 0; i < need.n_runs; i++) {
        d->last_page -= need.run;
        runs[i] = d->last_page--;
    }
    assert_true(d->last_page > d->n_pages);
    RIG_OK(d->ops->lora_create_in(d->device, d->kv, runs, modules, n, lora, &rig_error));
    assert_int_equal(d->ops->lora_bytes(d->device, *lora),
                     (size_t)need.n_runs * (size_t)need.run * d->kv->page_bytes);
    for (int i = 0; i < need.n_runs; i++) { /* it has written nothing beside them */
        const uint8_t *before = d->kv->data + (size_t)(runs[i] - 1) * d->kv->page_bytes;

        for (size_t k = 0; k < d->kv->page_bytes; k++)
            assert_int_equal(before[k], 0xFF);
    }
    free(runs);
}

void rig_place_lora(rig_device *d, const rig_lora *lora)
{
    ol_lora_module modules[RIG_LAYERS * OL_MODULES];
    int n = 0;

    for (int l = 0; l < RIG_LAYERS; l++)
        for (int i = 0; i < OL_MODULES; i++)
            if (lora->rank[l][i])
                modules[n++] = (ol_lora_module){l,           (ol_module)i,    lora->rank[l][i],
                                                lora->scale, lora->a[l][i].t, lora->b[l][i].t};
    d->lora_of[d->n_loras] = lora;
    if (d->pool)
        place_in_pool(d, modules, n);
    else
        RIG_OK(d->ops->lora_create(d->device, modules, n, &d->loras[d->n_loras], &rig_error));
    d->n_loras++;
}

/* All that may be left when every handle is gone. */
static size_t scratch_of(const ol_device *device)
{
    const cpu_scratch *all[] = {&device->segment_space, &device->tiles[0],  &device->tiles[1],
                                &device->shrunk[0],     &device->shrunk[1], &device->strips,
                                &device->attention,     &device->k,         &device->v,
                                &device->act,           &device->normed,    &device->logits};
    size_t bytes = 0;

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        bytes += all[i]->bytes;
    for (int i = 0; i < CPU_ROPES; i++)
        bytes += device->ropes[i].table.bytes;
    return bytes;
}

void rig_remove(rig_device *d)
{
    const ol_device_table *ops = d->ops;
    ol_device_info info;

    for (int i = 0; i < d->n_loras; i++)
        ops->lora_free(d->device, d->loras[i]);
    ops->buffer_free(d->device, d->x);
    ops->buffer_free(d->device, d->y);
    ops->buffer_free(d->device, d->q);
    ops->buffer_free(d->device, d->o);
    ops->kv_free(d->device, d->kv);
    for (int l = 0; l < RIG_LAYERS; l++) {
        for (int i = 0; i < OL_MODULES; i++) {
            ops->weight_free(d->device, d->layers[l].linear[i]);
            ops->weight_free(d->device, d->layers[l].bias[i]);
            free(d->stored[l][i]);
        }
        ops->weight_free(d->device, d->layers[l].attn_norm);
        ops->weight_free(d->device, d->layers[l].mlp_norm);
        ops->weight_free(d->device, d->layers[l].q_norm);
        ops->weight_free(d->device, d->layers[l].k_norm);
    }
    ops->weight_free(d->device, d->embedding);
    ops->weight_free(d->device, d->head);
    ops->weight_free(d->device, d->final_norm);
    free(d->stored_head);
    ops->info(d->device, &info);
    assert_true(info.memory_used == scratch_of(d->device));
    ops->close(d->device);
}

const char *const *rig_isas(void)
{
    static const char *const all[] = {"portable", "avx2", "avxvnni", "avx512", NULL};
    static const char *here[8];
    int n = 0;

    for (int i = 0; all[i]; i++) {
        const cpu_kernels *kernels;

        if (cpu_kernels_choose(all[i], &kernels, &rig_error) == OL_OK)
            here[n++] = all[i];
    }
    here[n] = NULL;
    return here;
}

void rig_poison(rig_device *d, ol_buffer *buffer)
{
    (void)d;
    for (size_t i = 0; i < buffer->bytes / sizeof(float); i++)
        buffer->data[i] = NAN;
}

float *rig_row(const ol_buffer *buffer, int row)
{
    return buffer->data + row * buffer->stride;
}

void rig_peek(const ol_kv *kv, int layer, int page, int head, int slot, bool value, double *out)
{
    size_t size = kv->desc.dtype == OL_F32 ? 4 : 2, dim = (size_t)kv->desc.head_dim;
    const uint8_t *at = kv->data + (size_t)layer * kv->layer_stride +
                        (size_t)page * kv->page_stride + (size_t)head * kv->head_stride;

    for (size_t i = 0; i < dim; i++) {
        size_t grain = (size_t)slot / KV_GRAIN, lane = (size_t)slot % KV_GRAIN;
        float v;

        if (value)
            ol_dequantize(kv->desc.dtype,
                          at + kv->head_stride / 2 + ((size_t)slot * dim + i) * size, &v, 1);
        else
            ol_dequantize(kv->desc.dtype, at + ((grain * dim + i) * KV_GRAIN + lane) * size, &v, 1);
        out[i] = v;
    }
}
