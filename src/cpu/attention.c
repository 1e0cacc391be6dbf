/*
 * attention.c: q, k, v with RoPE into the pages, and attention over them.
 *
 * A tile is up to eight queries that share a kv head: the query heads of its group,
 * and as many adjacent rows of a sequence as fit. Blocks of 64 tokens start at
 * multiples of 64, whatever the tile, so that a row's softmax runs in one order
 * whether it is computed alone or in a prompt of thousands.
 */
#include "cpu/core.h"

#include <math.h>
#include <string.h>

/* -- q, k, v --------------------------------------------------------------------------- */

typedef struct qkv_rows {
    ol_device *device;
    const ol_layer *layer;
    ol_kv *kv;
    float *q, *k, *v;
    int64_t q_cols, kv_cols;
} qkv_rows;

/* cos and sin for every row of the step; the same for all layers with these
 * frequencies. */
static ol_code prepare_rope(ol_device *device, const ol_attention *a, ol_error *err)
{
    size_t half = (size_t)a->rotary_dims / 2;
    float *at;

    if (device->rope_of == a->inv_freq && device->rope_factor == a->rope_factor)
        return OL_OK;
    OL_TRY(cpu_scratch_need(device, &device->rope,
                            (size_t)device->step->n_rows * 2 * half * sizeof(float) + 64, err));
    at = device->rope.data;
    for (int r = 0; r < device->step->n_rows; r++, at += 2 * half)
        for (size_t i = 0; i < half; i++) {
            float angle = (float)device->row_pos[r] * a->inv_freq[i];

            at[i] = cosf(angle) * a->rope_factor;
            at[half + i] = sinf(angle) * a->rope_factor;
        }
    device->rope_of = a->inv_freq;
    device->rope_factor = a->rope_factor;
    return OL_OK;
}

static void rotate(float *x, const ol_attention *a, const float *table)
{
    int half = a->rotary_dims / 2;
    const float *cosine = table, *sine = table + half;

    for (int i = 0; i < half; i++) {
        float *first = a->rope_interleaved ? &x[2 * i] : &x[i];
        float *second = a->rope_interleaved ? &x[2 * i + 1] : &x[i + half];
        float u = *first, v = *second;

        *first = u * cosine[i] - v * sine[i];
        *second = v * cosine[i] + u * sine[i];
    }
}

static void norm_head(const ol_device *device, float *x, const ol_weight *norm, float eps, int dim)
{
    float mean = device->kernels->square_sum(x, dim) / (float)dim;

    device->kernels->scale_by(x, 1.0f / sqrtf(mean + eps), norm->vector, x, dim);
}

/* Element `index` of a page's array. */
static void put(uint8_t *at, ol_dtype dtype, size_t index, float value)
{
    uint16_t half;

    if (dtype == OL_F32) {
        memcpy(at + 4 * index, &value, 4);
        return;
    }
    half = dtype == OL_F16 ? ol_f32_to_f16(value) : ol_f32_to_bf16(value);
    memcpy(at + 2 * index, &half, 2);
}

static void write_kv(const qkv_rows *job, int row, int head, const float *k, const float *v)
{
    const ol_kv *kv = job->kv;
    int dim = kv->desc.head_dim, tokens = kv->desc.page_tokens;
    int pos = job->device->row_pos[row];
    const ol_step_seq *seq = &job->device->step->seqs[job->device->row_seq[row]];
    size_t page = (size_t)seq->pages[pos / tokens], slot = (size_t)(pos % tokens);
    uint8_t *keys = kv->data + (size_t)job->layer->index * kv->layer_stride +
                    page * kv->page_stride + (size_t)head * kv->head_stride;
    uint8_t *values = keys + kv->head_stride / 2;

    for (int d = 0; d < dim; d++) {
        put(keys, kv->desc.dtype, (size_t)d * (size_t)tokens + slot, k[d]);
        put(values, kv->desc.dtype, slot * (size_t)dim + (size_t)d, v[d]);
    }
}

static void finish_row(const qkv_rows *job, int row)
{
    const ol_attention *a = &job->layer->attention;
    const float *table =
        (const float *)job->device->rope.data + (size_t)row * (size_t)a->rotary_dims;
    float *q = job->q + row * job->q_cols, *k = job->k + row * job->kv_cols;
    float *v = job->v + row * job->kv_cols;

    for (int h = 0; h < a->n_heads; h++, q += a->head_dim) {
        if (job->layer->q_norm)
            norm_head(job->device, q, job->layer->q_norm, a->norm_eps, a->head_dim);
        rotate(q, a, table);
        for (int d = 0; d < a->head_dim; d++)
            q[d] *= a->scale;
    }
    for (int h = 0; h < a->n_kv_heads; h++, k += a->head_dim, v += a->head_dim) {
        if (job->layer->k_norm)
            norm_head(job->device, k, job->layer->k_norm, a->norm_eps, a->head_dim);
        rotate(k, a, table);
        write_kv(job, row, h, k, v);
    }
}

static void finish_rows(void *context, int thread, int threads)
{
    const qkv_rows *job = context;
    int64_t from, to;

    cpu_share(job->device->step->n_rows, 1, thread, threads, &from, &to);
    for (; from < to; from++)
        finish_row(job, (int)from);
}

ol_code cpu_qkv(ol_device *device, const ol_layer *layer, const ol_buffer *y, ol_kv *kv,
                ol_buffer *q, ol_error *err)
{
    const ol_attention *a = &layer->attention;
    int64_t kv_cols = (int64_t)a->n_kv_heads * a->head_dim;
    size_t kv_bytes = (size_t)device->step->n_rows * (size_t)kv_cols * sizeof(float);
    qkv_rows rows = {.device = device, .layer = layer, .kv = kv, .q = q->data};
    cpu_linear job = {.device = device,
                      .layer = layer->index,
                      .x = y->data,
                      .ldx = y->cols,
                      .n = device->step->n_rows,
                      .n_parts = 3,
                      .after = finish_rows,
                      .after_context = &rows};

    OL_TRY(prepare_rope(device, a, err));
    OL_TRY(cpu_scratch_need(device, &device->k, kv_bytes, err));
    OL_TRY(cpu_scratch_need(device, &device->v, kv_bytes, err));
    rows.k = device->k.data;
    rows.v = device->v.data;
    rows.q_cols = q->cols;
    rows.kv_cols = kv_cols;
    job.parts[0] = (cpu_part){
        layer->linear[OL_MOD_Q], layer->bias[OL_MOD_Q], OL_MOD_Q, rows.q, q->cols, false};
    job.parts[1] = (cpu_part){
        layer->linear[OL_MOD_K], layer->bias[OL_MOD_K], OL_MOD_K, rows.k, kv_cols, false};
    job.parts[2] = (cpu_part){
        layer->linear[OL_MOD_V], layer->bias[OL_MOD_V], OL_MOD_V, rows.v, kv_cols, false};
    return cpu_linear_run(&job, err);
}

/* -- attention --------------------------------------------------------------------------- */

typedef struct attention_job {
    ol_device *device;
    const ol_layer *layer;
    const ol_kv *kv;
    const ol_buffer *q;
    ol_buffer *o;
    int group, rows_per_tile, heads_per_tile;
} attention_job;

static void attend_tile(const attention_job *job, const ol_step_seq *seq, int row, int kv_head,
                        int head_from)
{
    const ol_attention *a = &job->layer->attention;
    const ol_kv *kv = job->kv;
    cpu_attention_tile tile = {.dim = a->head_dim,
                               .page_tokens = kv->desc.page_tokens,
                               .dtype = kv->desc.dtype,
                               .base = kv->data + (size_t)job->layer->index * kv->layer_stride +
                                       (size_t)kv_head * kv->head_stride,
                               .page_stride = kv->page_stride,
                               .v_offset = kv->head_stride / 2,
                               .pages = seq->pages};
    int head_to =
        head_from + job->heads_per_tile < job->group ? head_from + job->heads_per_tile : job->group;

    for (int r = row; r < row + job->rows_per_tile && r < seq->n_rows; r++)
        for (int h = head_from; h < head_to; h++) {
            int at = (seq->first_row + r), i = tile.n++;
            int64_t column = (int64_t)(kv_head * job->group + h) * a->head_dim;

            tile.q[i] = job->q->data + at * job->q->cols + column;
            tile.o[i] = job->o->data + at * job->o->cols + column;
            tile.last[i] = seq->first_pos + r;
            tile.first[i] =
                a->window > 0 && tile.last[i] >= a->window ? tile.last[i] - a->window + 1 : 0;
        }
    job->device->kernels->attention(&tile);
}

/* Tiles are dealt out in turn: later rows of a prompt cost more than earlier ones. */
static void attention_share(void *context, int thread, int threads)
{
    const attention_job *job = context;
    const ol_step *step = job->device->step;
    int number = 0;

    for (int s = 0; s < step->n_seqs; s++)
        for (int row = 0; row < step->seqs[s].n_rows; row += job->rows_per_tile)
            for (int head = 0; head < job->layer->attention.n_kv_heads; head++)
                for (int h = 0; h < job->group; h += job->heads_per_tile)
                    if (number++ % threads == thread)
                        attend_tile(job, &step->seqs[s], row, head, h);
}

ol_code cpu_attention(ol_device *device, const ol_layer *layer, const ol_buffer *q, const ol_kv *kv,
                      ol_buffer *o, ol_error *err)
{
    attention_job job = {.device = device, .layer = layer, .kv = kv, .q = q, .o = o};

    (void)err;
    job.group = layer->attention.n_heads / layer->attention.n_kv_heads;
    job.heads_per_tile = job.group < ATTENTION_QUERIES ? job.group : ATTENTION_QUERIES;
    job.rows_per_tile = ATTENTION_QUERIES / job.heads_per_tile;
    cpu_pool_run(device->pool, attention_share, &job);
    return OL_OK;
}
