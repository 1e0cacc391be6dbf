/*
 * linear.c: linear modules with their LoRA deltas.
 *
 * One fork and join for up to three modules of the same input. Phases, with a barrier
 * between them where the next one reads what other threads wrote:
 *   1. quantise the input rows (block panels only): rows are shared out
 *   2. h = A x for every run of rows with an adapter: (module, run, rows) shared out;
 *      and y = W x: each thread takes its part of every module's panels
 *   3. y += B h for the thread's own panels, bias, SwiGLU: no barrier before it when
 *      no row has an adapter
 */
#include "cpu/core.h"

#include <string.h>

#define SHRINK_ROWS 16 /* rows of one piece of phase 2 */

static const cpu_lora_module *adapted(const cpu_linear *job, const cpu_run *run, int part)
{
    const ol_lora *lora = run->lora;
    const cpu_lora_module *module;

    if (job->layer >= lora->n_layers)
        return NULL;
    module = &lora->modules[job->layer * OL_MODULES + job->parts[part].module];
    return module->rank ? module : NULL;
}

/* -- phase 1 -------------------------------------------------------------------------- */

static void quantize_share(const cpu_linear *job, int thread, int threads)
{
    const cpu_kernels *kernels = job->device->kernels;
    const cpu_quants *q = &job->quants;
    int64_t from, to, blocks = q->cols / OL_BLOCK;

    cpu_share(job->n, 1, thread, threads, &from, &to);
    for (int64_t r = from; r < to; r++)
        kernels->quantize(job->x + r * job->ldx, q->cols, q->q + r * q->cols, q->scale + r * blocks,
                          q->sum + r * blocks);
}

/* -- phase 2 -------------------------------------------------------------------------- */

static void shrink_piece(const cpu_linear *job, int part, int run_number, int row)
{
    const cpu_run *run = &job->device->runs[run_number];
    const cpu_lora_module *module = adapted(job, run, part);
    int n = run->n - row < SHRINK_ROWS ? run->n - row : SHRINK_ROWS;
    float *h = job->shrunk + job->shrunk_at[part * job->device->n_runs + run_number] +
               (size_t)row * (size_t)module->rank;
    cpu_product p = {.m = &module->a,
                     .to = cpu_panels(&module->a),
                     .x = job->x + (run->first + row) * job->ldx,
                     .ldx = job->ldx,
                     .n = n,
                     .y = h,
                     .ldy = module->rank};
    float factor = run->weight * module->scale;

    job->device->kernels->multiply[module->a.kind](&p);
    for (int i = 0; i < n * module->rank; i++)
        h[i] *= factor;
}

/* Pieces are numbered through and dealt out in turn. */
static void shrink_share(const cpu_linear *job, int thread, int threads)
{
    int number = 0;

    for (int part = 0; part < job->n_parts; part++)
        for (int r = 0; r < job->device->n_runs; r++) {
            if (!adapted(job, &job->device->runs[r], part))
                continue;
            for (int row = 0; row < job->device->runs[r].n; row += SHRINK_ROWS)
                if (number++ % threads == thread)
                    shrink_piece(job, part, r, row);
        }
}

static void base_share(const cpu_linear *job, const cpu_part *part, int64_t from, int64_t to)
{
    cpu_product p = {.m = &part->weight->m,
                     .from = from,
                     .to = to,
                     .x = job->x,
                     .ldx = job->ldx,
                     .quants = job->quants,
                     .n = job->n,
                     .y = part->y,
                     .ldy = part->ldy,
                     .add = part->add};

    if (from < to)
        job->device->kernels->multiply[p.m->kind](&p);
}

/* -- phase 3 -------------------------------------------------------------------------- */

static void expand_share(const cpu_linear *job, int part, int64_t from, int64_t to)
{
    for (int r = 0; r < job->device->n_runs; r++) {
        const cpu_run *run = &job->device->runs[r];
        const cpu_lora_module *module = adapted(job, run, part);
        cpu_product p;

        if (!module || from >= to)
            continue;
        p = (cpu_product){.m = &module->b,
                          .from = from,
                          .to = to,
                          .x = job->shrunk + job->shrunk_at[part * job->device->n_runs + r],
                          .ldx = module->rank,
                          .n = run->n,
                          .y = job->parts[part].y + run->first * job->parts[part].ldy,
                          .ldy = job->parts[part].ldy,
                          .add = true};
        job->device->kernels->multiply[p.m->kind](&p);
    }
}

/* Columns of panels [from, to). */
static int64_t columns(const cpu_part *part, int64_t from, int64_t to)
{
    int64_t end = to * PANEL < part->weight->m.rows ? to * PANEL : part->weight->m.rows;

    return end > from * PANEL ? end - from * PANEL : 0;
}

static void finish_share(const cpu_linear *job, const int64_t *from, const int64_t *to)
{
    const cpu_kernels *kernels = job->device->kernels;

    for (int i = 0; i < job->n_parts; i++) {
        const cpu_part *part = &job->parts[i];

        for (int r = 0; part->bias && r < job->n; r++)
            kernels->add(part->bias->vector + from[i] * PANEL,
                         part->y + r * part->ldy + from[i] * PANEL, columns(part, from[i], to[i]));
    }
    for (int r = 0; job->swiglu && r < job->n; r++)
        kernels->swiglu(job->parts[0].y + r * job->parts[0].ldy + from[0] * PANEL,
                        job->parts[1].y + r * job->parts[1].ldy + from[0] * PANEL,
                        columns(&job->parts[0], from[0], to[0]));
}

static void measure(const cpu_linear *job)
{
    for (int part = 0; part < job->n_parts; part++)
        for (int r = 0; r < job->device->n_runs; r++) {
            const cpu_run *run = &job->device->runs[r];
            const cpu_lora_module *module = adapted(job, run, part);

            if (module)
                cpu_lora_energy(job->device, run, module,
                                job->shrunk + job->shrunk_at[part * job->device->n_runs + r]);
        }
}

static void linear_share(void *context, int thread, int threads)
{
    const cpu_linear *job = context;
    cpu_pool *pool = job->device->pool;
    int64_t from[3], to[3];

    if (job->any_block) {
        quantize_share(job, thread, threads);
        cpu_pool_barrier(pool);
    }
    if (job->any_lora)
        shrink_share(job, thread, threads);
    for (int i = 0; i < job->n_parts; i++) {
        cpu_share(cpu_panels(&job->parts[i].weight->m), 1, thread, threads, &from[i], &to[i]);
        base_share(job, &job->parts[i], from[i], to[i]);
    }
    if (job->any_lora) {
        cpu_pool_barrier(pool);
        for (int i = 0; i < job->n_parts; i++)
            expand_share(job, i, from[i], to[i]);
        if (thread == 0)
            measure(job);
    }
    finish_share(job, from, to);
    if (job->after) {
        cpu_pool_barrier(pool);
        job->after(job->after_context, thread, threads);
    }
}

/* -- preparation ------------------------------------------------------------------------ */

static ol_code prepare_quants(cpu_linear *job, ol_error *err)
{
    size_t n = (size_t)job->n, cols = (size_t)job->parts[0].weight->m.cols;
    size_t blocks = cols / OL_BLOCK, q_bytes = (n * cols + 63) & ~(size_t)63;
    size_t scale_bytes = (n * blocks * 4 + 63) & ~(size_t)63;
    uint8_t *at;

    OL_TRY(cpu_scratch_need(job->device, &job->device->quants, q_bytes + 2 * scale_bytes, err));
    at = job->device->quants.data;
    job->quants = (cpu_quants){.cols = (int64_t)cols,
                               .q = (int8_t *)at,
                               .scale = (float *)(void *)(at + q_bytes),
                               .sum = (int32_t *)(void *)(at + q_bytes + scale_bytes)};
    return OL_OK;
}

static ol_code prepare_shrunk(cpu_linear *job, ol_error *err)
{
    int n_runs = job->device->n_runs;
    size_t table = (sizeof(size_t) * (size_t)(job->n_parts * n_runs) + 63) & ~(size_t)63;
    size_t floats = 0;

    for (int pass = 0; pass < 2; pass++) {
        floats = 0;
        for (int i = 0; i < job->n_parts; i++)
            for (int r = 0; r < n_runs; r++) {
                const cpu_run *run = &job->device->runs[r];
                const cpu_lora_module *module = adapted(job, run, i);

                if (pass)
                    job->shrunk_at[i * n_runs + r] = floats;
                if (module)
                    floats += (size_t)run->n * (size_t)module->rank;
            }
        if (pass == 0 && floats == 0)
            return OL_OK;
        if (pass == 0) {
            OL_TRY(cpu_scratch_need(job->device, &job->device->shrunk, table + floats * 4, err));
            job->shrunk_at = job->device->shrunk.data;
            job->shrunk = (float *)(void *)((uint8_t *)job->device->shrunk.data + table);
        }
    }
    job->any_lora = true;
    return OL_OK;
}

ol_code cpu_linear_run(cpu_linear *job, ol_error *err)
{
    for (int i = 0; i < job->n_parts; i++)
        job->any_block |= cpu_kind_is_block(job->parts[i].weight->m.kind);
    if (job->any_block)
        OL_TRY(prepare_quants(job, err));
    if (job->layer >= 0 && job->device->n_runs)
        OL_TRY(prepare_shrunk(job, err));
    cpu_pool_run(job->device->pool, linear_share, job);
    return OL_OK;
}
