/*
 * attention.c: q, k, v with RoPE into the pages, and attention over them.
 *
 * A tile of attention is rows of one sequence by query heads that share a kv head, so
 * that a block of keys and values is read once for all of them. Blocks of tokens start
 * at multiples of their size, whatever the tile, so that a row's softmax runs in one
 * order whether it is computed alone or in a prompt of thousands.
 */
#include "cpu/linear_units.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ROW_QUEUE QUEUES_PER_SLOT /* after those of slot 0: linear_units.h */
#define TILE_QUEUE 0

/* -- RoPE ------------------------------------------------------------------------------ */

static void fill_rope(const ol_device *device, const ol_attention *a, cpu_rope *rope)
{
    float *at = rope->table.data;

    for (int r = 0; r < device->step->n_rows; r++, at += 2 * rope->half)
        for (int i = 0; i < rope->half; i++) {
            float angle = (float)device->row_pos[r] * a->inv_freq[i];

            at[i] = cosf(angle) * a->rope_factor;
            at[rope->half + i] = sinf(angle) * a->rope_factor;
        }
}

/* cos and sin for every row of the step, once for all layers that rotate alike. */
static ol_code find_rope(ol_device *device, const ol_attention *a, const cpu_rope **out,
                         ol_error *err)
{
    cpu_rope *rope;

    for (int i = 0; i < device->n_ropes; i++) {
        rope = &device->ropes[i];
        *out = rope;
        if (rope->inv_freq == a->inv_freq && rope->factor == a->rope_factor &&
            rope->half == a->rotary_dims / 2)
            return OL_OK;
    }
    if (device->n_ropes == CPU_ROPES)
        device->n_ropes = 0;
    rope = &device->ropes[device->n_ropes];
    rope->inv_freq = a->inv_freq;
    rope->factor = a->rope_factor;
    rope->half = a->rotary_dims / 2;
    OL_TRY(cpu_scratch_need(
        &device->memory, &rope->table,
        (size_t)device->options.max_rows * 2 * (size_t)rope->half * sizeof(float), err));
    fill_rope(device, a, rope);
    device->n_ropes++;
    *out = rope;
    return OL_OK;
}

/* -- q, k, v --------------------------------------------------------------------------- */

typedef struct qkv_job {
    cpu_linear linear;
    const ol_layer *layer;
    ol_kv *kv;
    const cpu_rope *rope;
    float *q, *k, *v;
    int64_t ldq, ldkv;
} qkv_job;

static void finish_head(const qkv_job *job, int row, float *x, const ol_weight *norm)
{
    const ol_attention *a = &job->layer->attention;
    const cpu_kernels *kernels = job->linear.device->kernels;
    int half = job->rope->half;
    const float *cosine = (const float *)job->rope->table.data + (int64_t)row * 2 * half;

    if (norm) {
        float mean = kernels->square_sum(x, a->head_dim) / (float)a->head_dim;

        kernels->scale_by(x, 1.0f / sqrtf(mean + a->norm_eps), norm->vector, x, a->head_dim);
    }
    kernels->rotate(x, cosine, cosine + half, half, a->rope_interleaved);
}

/* Keys go into lane slot % 16 of their grain, values into row slot. */
static void put_head(const ol_kv *kv, uint8_t *at, size_t slot, const void *k, const void *v)
{
    size_t dim = (size_t)kv->desc.head_dim;
    size_t lane = slot % KV_GRAIN, first = slot / KV_GRAIN * dim * KV_GRAIN + lane;

    if (kv->desc.dtype == OL_F32) {
        for (size_t d = 0; d < dim; d++)
            memcpy(at + (first + d * KV_GRAIN) * 4, (const float *)k + d, 4);
        memcpy(at + kv->head_stride / 2 + slot * dim * 4, v, dim * 4);
        return;
    }
    for (size_t d = 0; d < dim; d++)
        memcpy(at + (first + d * KV_GRAIN) * 2, (const uint16_t *)k + d, 2);
    memcpy(at + kv->head_stride / 2 + slot * dim * 2, v, dim * 2);
}

static void write_kv(const qkv_job *job, int row, int head, const float *k, const float *v)
{
    const ol_device *device = job->linear.device;
    const ol_kv *kv = job->kv;
    int64_t dim = kv->desc.head_dim;
    int tokens = kv->desc.page_tokens, pos = device->row_pos[row];
    const ol_step_seq *seq = &device->step->seqs[device->row_seq[row]];
    uint8_t *at = kv->data + (size_t)job->layer->index * kv->layer_stride +
                  (size_t)seq->pages[pos / tokens] * kv->page_stride +
                  (size_t)head * kv->head_stride;
    uint16_t halves[2 * 512];

    if (kv->desc.dtype == OL_F32) {
        put_head(kv, at, (size_t)(pos % tokens), k, v);
        return;
    }
    device->kernels->to_half(kv->desc.dtype, k, halves, dim);
    device->kernels->to_half(kv->desc.dtype, v, halves + 512, dim);
    put_head(kv, at, (size_t)(pos % tokens), halves, halves + 512);
}

static void finish_row(const qkv_job *job, int row)
{
    const ol_attention *a = &job->layer->attention;
    float *q = job->q + row * job->ldq, *k = job->k + row * job->ldkv;
    const float *v = job->v + row * job->ldkv;

    for (int h = 0; h < a->n_heads; h++)
        finish_head(job, row, q + h * a->head_dim, job->layer->q_norm);
    for (int h = 0; h < a->n_kv_heads; h++, k += a->head_dim, v += a->head_dim) {
        finish_head(job, row, k, job->layer->k_norm);
        write_kv(job, row, h, k, v);
    }
}

static void qkv_share(void *context, int thread, int threads)
{
    const qkv_job *job = context;
    cpu_pool *pool = job->linear.device->pool;
    int64_t row;

    (void)threads;
    cpu_linear_work(&job->linear, thread);
    cpu_pool_barrier(pool);
    while ((row = cpu_queue_take(pool, ROW_QUEUE, thread)) >= 0)
        finish_row(job, (int)row);
}

static void set_parts(qkv_job *job)
{
    float *y[] = {job->q, job->k, job->v};

    for (int i = 0; i < 3; i++)
        job->linear.parts[i] =
            (cpu_part){job->layer->linear[OL_MOD_Q + i], job->layer->bias[OL_MOD_Q + i], y[i],
                       i ? job->ldkv : job->ldq};
}

ol_code cpu_qkv(ol_device *device, const ol_layer *layer, const ol_buffer *y, ol_kv *kv,
                ol_buffer *q, ol_error *err)
{
    const ol_attention *a = &layer->attention;
    int64_t ldkv = (int64_t)cpu_align((size_t)(a->n_kv_heads * a->head_dim) * 4) / 4;
    size_t kv_bytes = (size_t)device->step->n_rows * (size_t)ldkv * sizeof(float);
    qkv_job job = {.linear = {.device = device,
                              .layer = layer->index,
                              .input = INPUT_QKV,
                              .x = y->data,
                              .ldx = y->stride,
                              .n = device->step->n_rows,
                              .n_parts = 3},
                   .layer = layer,
                   .kv = kv,
                   .q = q->data,
                   .ldq = q->stride,
                   .ldkv = ldkv};

    if (a->head_dim > 512)
        return ol_fail(err, OL_UNSUPPORTED, "attention heads of %d dimensions", a->head_dim);
    OL_TRY(find_rope(device, a, &job.rope, err));
    OL_TRY(cpu_scratch_need(&device->memory, &device->k, kv_bytes, err));
    OL_TRY(cpu_scratch_need(&device->memory, &device->v, kv_bytes, err));
    job.k = device->k.data;
    job.v = device->v.data;
    set_parts(&job);
    OL_TRY(cpu_linear_prepare(&job.linear, 0, err));
    cpu_queue_fill(device->pool, ROW_QUEUE, device->step->n_rows);
    cpu_pool_run(device->pool, qkv_share, &job);
    return OL_OK;
}

/* -- attention --------------------------------------------------------------------------- */

typedef struct attention_job {
    ol_device *device;
    const ol_layer *layer;
    const ol_kv *kv;
    const ol_buffer *q;
    ol_buffer *o;
    int group;       /* query heads to a kv head */
    int heads, rows; /* of a tile */
    int head_tiles;  /* per row tile: kv heads x pieces of their groups */
    size_t scratch;  /* floats of a thread */
} attention_job;

static int row_tiles(const attention_job *job, const ol_step_seq *seq)
{
    return (seq->n_rows + job->rows - 1) / job->rows;
}

static void attend(const attention_job *job, const ol_step_seq *seq, int row, int head_tile,
                   float *scratch)
{
    const ol_attention *a = &job->layer->attention;
    const ol_kv *kv = job->kv;
    int pieces = job->head_tiles / a->n_kv_heads, kv_head = head_tile / pieces;
    int head = head_tile % pieces * job->heads, left = job->group - head;
    int64_t column = (int64_t)(kv_head * job->group + head) * a->head_dim;
    int64_t at = seq->first_row + row;
    cpu_attention_tile tile = {.rows =
                                   seq->n_rows - row < job->rows ? seq->n_rows - row : job->rows,
                               .heads = left < job->heads ? left : job->heads,
                               .dim = a->head_dim,
                               .first_pos = seq->first_pos + row,
                               .window = a->window,
                               .scale = a->scale,
                               .q = job->q->data + at * job->q->stride + column,
                               .ldq = job->q->stride,
                               .o = job->o->data + at * job->o->stride + column,
                               .ldo = job->o->stride,
                               .dtype = kv->desc.dtype,
                               .page_tokens = kv->desc.page_tokens,
                               .base = kv->data + (size_t)job->layer->index * kv->layer_stride +
                                       (size_t)kv_head * kv->head_stride,
                               .page_stride = kv->page_stride,
                               .v_offset = kv->head_stride / 2,
                               .pages = seq->pages,
                               .scratch = scratch};

    job->device->kernels->attention(&tile);
}

/* Units are numbered sequence by sequence, row tile by row tile, head by head. */
static void attention_share(void *context, int thread, int threads)
{
    const attention_job *job = context;
    const ol_step *step = job->device->step;
    float *scratch = (float *)job->device->attention.data + (size_t)thread * job->scratch;
    int64_t unit, before = 0;
    int s = 0;

    (void)threads;
    while ((unit = cpu_queue_take(job->device->pool, TILE_QUEUE, thread)) >= 0) {
        if (unit < before)
            s = 0, before = 0;
        for (;; s++) {
            int64_t units = (int64_t)row_tiles(job, &step->seqs[s]) * job->head_tiles;

            if (unit < before + units)
                break;
            before += units;
        }
        attend(job, &step->seqs[s], (int)((unit - before) / job->head_tiles) * job->rows,
               (int)((unit - before) % job->head_tiles), scratch);
    }
}

/* As many heads and rows to a tile as make use of a block, but so that all threads
 * have a tile. Never of influence on results. */
static int64_t cut(attention_job *job)
{
    const ol_step *step = job->device->step;
    int kv_heads = job->layer->attention.n_kv_heads;
    int threads = cpu_pool_threads(job->device->pool);
    int64_t units = 0;

    job->heads = job->group < ATTENTION_QUERIES ? job->group : ATTENTION_QUERIES;
    while (job->heads > 1 &&
           (int64_t)step->n_rows * kv_heads * ((job->group + job->heads - 1) / job->heads) <
               threads)
        job->heads = (job->heads + 1) / 2;
    job->rows = ATTENTION_QUERIES / job->heads;
    job->head_tiles = kv_heads * ((job->group + job->heads - 1) / job->heads);
    for (int s = 0; s < step->n_seqs; s++)
        units += (int64_t)row_tiles(job, &step->seqs[s]) * job->head_tiles;
    return units;
}

ol_code cpu_attention(ol_device *device, const ol_layer *layer, const ol_buffer *q, const ol_kv *kv,
                      ol_buffer *o, ol_error *err)
{
    attention_job job = {.device = device, .layer = layer, .kv = kv, .q = q, .o = o};
    size_t threads = (size_t)cpu_pool_threads(device->pool);

    job.group = layer->attention.n_heads / layer->attention.n_kv_heads;
    job.scratch = cpu_align(cpu_attention_scratch(layer->attention.head_dim) * 4) / 4;
    OL_TRY(cpu_scratch_need(&device->memory, &device->attention,
                            threads * job.scratch * sizeof(float), err));
    cpu_queue_fill(device->pool, TILE_QUEUE, cut(&job));
    cpu_pool_run(device->pool, attention_share, &job);
    return OL_OK;
}
