/*
 * linear.c: linear modules with their LoRA deltas.
 *
 * One fork and join for up to three modules of the same input. Two phases, with a
 * barrier between them when the first has anything to do:
 *   1. quantise the input rows (when a module has block panels), and h = A x for
 *      every segment of rows with an adapter
 *   2. panel chunk by panel chunk: y = W x + bias for all rows, y += B h for each
 *      segment while the chunk is in the cache, then what the job wants of y: stored,
 *      added to the residual, or SwiGLU of gate and up and on to Down's input
 * An output element is made by one thread, in the order base, bias, deltas in the
 * order of the request's list.
 */
#include "cpu/linear_units.h"

#include <string.h>

/* -- phase 1 -------------------------------------------------------------------------- */

static void quantize_share(const cpu_linear *job, int thread)
{
    int64_t t;

    while ((t = cpu_linear_take(job, QUANTIZE_QUEUE, thread)) >= 0) {
        int row = cpu_tile_row(job->n, (int)t), end = cpu_tile_row(job->n, (int)t + 1);
        const float *x[CPU_TILE];

        for (int r = row; r < end; r++)
            x[r - row] = job->x + r * job->ldx;
        job->device->kernels->quantize(x, end - row, job->tiles.blocks,
                                       cpu_tile_at(&job->tiles, row));
    }
}

/* h *= weight of the row * scale of the part, and of the rank, for columns [from, to). */
static void scale_shrunk(const cpu_shrunk *s, int row, int n, int from, int to)
{
    for (int r = row; r < row + n; r++)
        for (int i = 0; i < 3; i++) {
            const cpu_lora_part *part = &s->group->parts[i];
            int first = part->offset > from ? part->offset : from;
            int last = part->offset + part->rank < to ? part->offset + part->rank : to;
            float factor = s->segment->weights[r] * part->scale;

            for (int c = first; c < last; c++)
                s->h[r * s->ldh + c] *=
                    part->scales ? factor * part->scales[c - part->offset] : factor;
        }
}

static void shrink_unit(const cpu_linear *job, const cpu_shrunk *s, int unit)
{
    int row = unit / s->panel_units * SHRINK_ROWS;
    int n = s->segment->n - row < SHRINK_ROWS ? s->segment->n - row : SHRINK_ROWS;
    int64_t from = unit % s->panel_units * SHRINK_PANELS, to = from + SHRINK_PANELS;
    int64_t panels = cpu_panels(&s->group->a);
    cpu_product p = {.m = &s->group->a,
                     .from = from,
                     .to = to < panels ? to : panels,
                     .n = n,
                     .x = job->x,
                     .ldx = job->ldx,
                     .x_rows = s->segment->rows + row,
                     .y = s->h + row * s->ldh + from * PANEL,
                     .ldy = s->ldh};

    job->device->kernels->multiply[p.m->kind](&p);
    scale_shrunk(s, row, n, (int)from * PANEL, (int)(p.to * PANEL));
}

static void shrink_share(const cpu_linear *job, int thread)
{
    int64_t unit;
    int at = 0;

    while ((unit = cpu_linear_take(job, SHRINK_QUEUE, thread)) >= 0) {
        while (unit < job->shrunk[at].first_unit) /* stolen, perhaps: backwards */
            at--;
        while (at + 1 < job->n_shrunk && unit >= job->shrunk[at + 1].first_unit)
            at++;
        shrink_unit(job, &job->shrunk[at], (int)unit - job->shrunk[at].first_unit);
    }
}

/* -- phase 2 -------------------------------------------------------------------------- */

/* Few rows of many adapters read little of each: too little for the processor to guess what
 * comes. So the chunk's part of every B is asked for before the base's product, which hides the
 * way from memory. */
static void prefetch_deltas(const cpu_linear *job, int number, int64_t from, int64_t to)
{
    if (job->n > FEW_ROWS)
        return;
    for (int i = 0; i < job->n_shrunk; i++) {
        const cpu_lora_part *lora = &job->shrunk[i].group->parts[number];
        const uint8_t *at = lora->b.data + (size_t)from * lora->b.panel_bytes;
        size_t bytes = (size_t)(to - from) * lora->b.panel_bytes;

        for (size_t byte = 0; lora->rank && byte < bytes; byte += 64)
            __builtin_prefetch(at + byte);
    }
}

/* y (chunk's first column, row stride ldy) = base + bias + deltas. */
static void chunk_outputs(const cpu_linear *job, int number, int64_t from, int64_t to, float *y,
                          int64_t ldy)
{
    const cpu_kernels *kernels = job->device->kernels;
    const cpu_part *part = &job->parts[number];
    cpu_product base = {.m = &part->weight->m,
                        .from = from,
                        .to = to,
                        .n = job->n,
                        .x = job->x,
                        .ldx = job->ldx,
                        .tiles = &job->tiles,
                        .y = y,
                        .ldy = ldy,
                        .bias = part->bias ? part->bias->vector : NULL};

    prefetch_deltas(job, number, from, to);
    kernels->multiply[base.m->kind](&base);
    for (int i = 0; i < job->n_shrunk; i++) {
        const cpu_shrunk *s = &job->shrunk[i];
        const cpu_lora_part *lora = &s->group->parts[number];
        cpu_product delta = {.m = &lora->b,
                             .from = from,
                             .to = to,
                             .n = s->segment->n,
                             .x = s->h + lora->offset,
                             .ldx = s->ldh,
                             .y = y,
                             .ldy = ldy,
                             .y_rows = s->segment->rows,
                             .add = true};

        if (lora->rank)
            kernels->multiply[delta.m->kind](&delta);
    }
}

static int64_t chunk_columns(const cpu_part *part, int64_t from, int64_t to)
{
    int64_t rows = part->weight->m.rows;

    return (to * PANEL < rows ? to * PANEL : rows) - from * PANEL;
}

/* Room for a chunk of two modules, of this thread. */
static float *strip_of(const cpu_linear *job, int thread)
{
    return (float *)job->device->strips.data +
           (int64_t)thread * 2 * job->device->options.max_rows * MAX_GRAIN * PANEL;
}

static void add_chunk(const cpu_linear *job, int thread, int64_t from, int64_t to)
{
    float *strip = strip_of(job, thread);
    int64_t ld = (to - from) * PANEL, cols = chunk_columns(&job->parts[0], from, to);

    chunk_outputs(job, 0, from, to, strip, ld);
    for (int r = 0; r < job->n; r++)
        job->device->kernels->add(strip + r * ld,
                                  job->parts[0].y + r * job->parts[0].ldy + from * PANEL, cols);
}

/* Quantises the chunk's columns, which are blocks [from / 2, ...) of act, for `next`. */
static void quantize_chunk(const cpu_linear *next, const float *strip, int64_t ld, int64_t from,
                           int64_t blocks)
{
    for (int t = 0; t < cpu_tile_count(next->n); t++) {
        int row = cpu_tile_row(next->n, t), rows = cpu_tile_row(next->n, t + 1) - row;
        const float *x[CPU_TILE];

        for (int r = 0; r < rows; r++)
            x[r] = strip + (row + r) * ld;
        next->device->kernels->quantize(x, rows, blocks,
                                        cpu_tile_at(&next->tiles, row) +
                                            (size_t)from / 2 * (size_t)rows * CPU_TILE_BYTES);
    }
}

/* What Down takes as floats is made where it reads it. */
static void swiglu_floats(const cpu_linear *job, int thread, int64_t from, int64_t to)
{
    const cpu_linear *next = job->next;
    float *gate = (float *)job->device->act.data + from * PANEL, *up = strip_of(job, thread);
    int64_t ld = (to - from) * PANEL, cols = chunk_columns(&job->parts[0], from, to);

    chunk_outputs(job, 0, from, to, gate, next->ldx);
    chunk_outputs(job, 1, from, to, up, ld);
    for (int r = 0; r < job->n; r++)
        job->device->kernels->swiglu(gate + r * next->ldx, up + r * ld, cols);
}

static void swiglu_chunk(const cpu_linear *job, int thread, int64_t from, int64_t to)
{
    float *gate = strip_of(job, thread), *up = gate + job->n * (to - from) * PANEL;
    int64_t ld = (to - from) * PANEL, cols = chunk_columns(&job->parts[0], from, to);
    const cpu_linear *next = job->next;

    if (!next->quantize) {
        swiglu_floats(job, thread, from, to);
        return;
    }
    chunk_outputs(job, 0, from, to, gate, ld);
    chunk_outputs(job, 1, from, to, up, ld);
    if (cols == ld)
        job->device->kernels->swiglu(gate, up, job->n * ld);
    else
        for (int r = 0; r < job->n; r++)
            job->device->kernels->swiglu(gate + r * ld, up + r * ld, cols);
    quantize_chunk(next, gate, ld, from, cols / OL_BLOCK);
    for (int r = 0; r < job->n && next->floats; r++)
        memcpy((float *)job->device->act.data + r * next->ldx + from * PANEL, gate + r * ld,
               (size_t)cols * sizeof(float));
}

static void chunk_share(const cpu_linear *job, int thread)
{
    int64_t unit;

    while ((unit = cpu_linear_take(job, CHUNK_QUEUE, thread)) >= 0) {
        int part = 0;
        int64_t from, to, panels;

        while (job->finish == FINISH_STORE && unit >= cpu_linear_chunks(job, part))
            unit -= cpu_linear_chunks(job, part++);
        panels = cpu_panels(&job->parts[part].weight->m);
        from = unit * job->grain;
        to = from + job->grain < panels ? from + job->grain : panels;
        if (job->finish == FINISH_SWIGLU)
            swiglu_chunk(job, thread, from, to);
        else if (job->finish == FINISH_ADD)
            add_chunk(job, thread, from, to);
        else
            chunk_outputs(job, part, from, to, job->parts[part].y + from * PANEL,
                          job->parts[part].ldy);
    }
}

/* |B h|^2 of a row: h already holds weight and scale. */
static double row_energy(const cpu_lora_group *group, const float *h)
{
    double sum = 0;

    for (int i = 0; i < 3; i++) {
        const cpu_lora_part *part = &group->parts[i];
        const float *x = h + part->offset;

        for (int a = 0; a < part->rank; a++) {
            double dot = 0;

            for (int b = 0; b < part->rank; b++)
                dot += (double)part->gram[a * part->rank + b] * (double)x[b];
            sum += dot * (double)x[a];
        }
    }
    return sum > 0 ? sum : 0;
}

static void energy_share(const cpu_linear *job, int thread)
{
    int64_t unit;

    while ((unit = cpu_linear_take(job, ENERGY_QUEUE, thread)) >= 0) {
        const cpu_shrunk *s = &job->shrunk[unit];
        const ol_step *step = job->device->step;

        for (int r = 0; s->segment->energy && r < s->segment->n; r++)
            if (step->seqs[job->device->row_seq[s->segment->rows[r]]].energy)
                s->segment->energy[r] += row_energy(s->group, s->h + r * s->ldh);
    }
}

void cpu_linear_work(const cpu_linear *job, int thread)
{
    if (job->quantize && !job->ready)
        quantize_share(job, thread);
    if (job->n_shrunk)
        shrink_share(job, thread);
    if ((job->quantize && !job->ready) || job->n_shrunk)
        cpu_pool_barrier(job->device->pool);
    chunk_share(job, thread);
    if (job->n_shrunk)
        energy_share(job, thread);
}

/* -- a job that stands alone ------------------------------------------------------------- */

static void linear_share(void *context, int thread, int threads)
{
    (void)threads;
    cpu_linear_work(context, thread);
}

ol_code cpu_linear_run(cpu_linear *job, ol_error *err)
{
    OL_TRY(cpu_linear_prepare(job, 0, err));
    cpu_pool_run(job->device->pool, linear_share, job);
    return OL_OK;
}
