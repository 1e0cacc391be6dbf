/* step.c: a step's bookkeeping, and the operations that are little more than calls. */
#include "cpu/core.h"

#include <math.h>

ol_code cpu_step_begin(ol_device *device, const ol_step *step, ol_error *err)
{
    if (step->n_rows > device->options.max_rows || step->n_seqs > device->options.max_seqs ||
        step->n_logit_rows > device->options.max_logit_rows)
        return ol_fail(err, OL_INTERNAL, "a step of %d rows, %d sequences, %d logit rows",
                       step->n_rows, step->n_seqs, step->n_logit_rows);
    cpu_pool_wake(device->pool);
    device->step = step;
    device->n_ropes = 0;
    for (int s = 0; s < step->n_seqs; s++)
        for (int r = 0; r < step->seqs[s].n_rows; r++) {
            device->row_seq[step->seqs[s].first_row + r] = s;
            device->row_pos[step->seqs[s].first_row + r] = step->seqs[s].first_pos + r;
        }
    return cpu_segments_build(device, err);
}

ol_code cpu_step_end(ol_device *device, ol_error *err)
{
    (void)err;
    cpu_segments_end(device);
    device->step = NULL;
    return OL_OK;
}

/* -- norms ---------------------------------------------------------------------------- */

static void norm_row(const ol_device *device, const float *x, const ol_weight *w, float eps,
                     float *y)
{
    float mean = device->kernels->square_sum(x, w->n) / (float)w->n;

    device->kernels->scale_by(x, 1.0f / sqrtf(mean + eps), w->vector, y, w->n);
}

typedef struct norm_job {
    const ol_device *device;
    const float *x;
    int64_t ldx;
    const int32_t *rows; /* of x; NULL: all */
    int n;
    const ol_weight *w;
    float eps;
    float *y;
    int64_t ldy;
} norm_job;

static void norm_share(void *context, int thread, int threads)
{
    const norm_job *job = context;
    int from = (int)((int64_t)job->n * thread / threads);
    int to = (int)((int64_t)job->n * (thread + 1) / threads);

    for (int r = from; r < to; r++)
        norm_row(job->device, job->x + (job->rows ? job->rows[r] : r) * job->ldx, job->w, job->eps,
                 job->y + r * job->ldy);
}

#define WORTH_A_FORK ((int64_t)1 << 14) /* floats */

static void norm(norm_job *job)
{
    if (job->n * job->ldx < WORTH_A_FORK)
        norm_share(job, 0, 1);
    else
        cpu_pool_run(job->device->pool, norm_share, job);
}

ol_code cpu_rms_norm(ol_device *device, const ol_buffer *x, const ol_weight *w, float eps,
                     ol_buffer *y, ol_error *err)
{
    norm_job job = {device, x->data, x->stride, NULL,     device->step->n_rows,
                    w,      eps,     y->data,   y->stride};

    (void)err;
    norm(&job);
    return OL_OK;
}

/* -- linear modules --------------------------------------------------------------------- */

static cpu_part part_of(const ol_layer *layer, ol_module module, float *y, int64_t ldy)
{
    return (cpu_part){layer->linear[module], layer->bias[module], y, ldy};
}

ol_code cpu_attention_out(ol_device *device, const ol_layer *layer, const ol_buffer *o,
                          ol_buffer *x, ol_error *err)
{
    cpu_linear job = {.device = device,
                      .layer = layer->index,
                      .input = INPUT_O,
                      .x = o->data,
                      .ldx = o->stride,
                      .n = device->step->n_rows,
                      .n_parts = 1,
                      .finish = FINISH_ADD};

    job.parts[0] = part_of(layer, OL_MOD_O, x->data, x->stride);
    return cpu_linear_run(&job, err);
}

typedef struct mlp_job {
    cpu_linear in, out;
} mlp_job;

static void mlp_share(void *context, int thread, int threads)
{
    const mlp_job *job = context;

    (void)threads;
    cpu_linear_work(&job->in, thread);
    cpu_pool_barrier(job->in.device->pool);
    cpu_linear_work(&job->out, thread);
}

/* One fork for the whole MLP: the threads that make act also quantise it for Down. */
ol_code cpu_mlp(ol_device *device, const ol_layer *layer, const ol_buffer *y, ol_buffer *x,
                ol_error *err)
{
    int64_t ffn = layer->linear[OL_MOD_GATE]->m.rows;
    int64_t ld = (ffn + PANEL - 1) / PANEL * PANEL;
    mlp_job job;

    job.out = (cpu_linear){.device = device,
                           .layer = layer->index,
                           .input = INPUT_DOWN,
                           .ldx = ld % 256 ? ld : ld + PANEL,
                           .n = device->step->n_rows,
                           .n_parts = 1,
                           .finish = FINISH_ADD};
    job.in = (cpu_linear){.device = device,
                          .layer = layer->index,
                          .input = INPUT_GATE_UP,
                          .x = y->data,
                          .ldx = y->stride,
                          .n = device->step->n_rows,
                          .n_parts = 2,
                          .finish = FINISH_SWIGLU,
                          .next = &job.out};
    OL_TRY(cpu_scratch_need(&device->memory, &device->act,
                            (size_t)job.out.n * (size_t)job.out.ldx * sizeof(float), err));
    job.out.x = device->act.data;
    job.out.parts[0] = part_of(layer, OL_MOD_DOWN, x->data, x->stride);
    job.in.parts[0] = part_of(layer, OL_MOD_GATE, NULL, 0);
    job.in.parts[1] = part_of(layer, OL_MOD_UP, NULL, 0);
    OL_TRY(cpu_linear_prepare(&job.out, 1, err));
    OL_TRY(cpu_linear_prepare(&job.in, 0, err));
    cpu_pool_run(device->pool, mlp_share, &job);
    return OL_OK;
}

ol_code cpu_logits(ol_device *device, const ol_buffer *x, const ol_weight *weight, float eps,
                   const ol_weight *head, const float **logits, ol_error *err)
{
    const ol_step *step = device->step;
    int64_t vocab = head->m.rows, ld = x->stride;
    size_t n = (size_t)step->n_logit_rows;
    cpu_linear job = {.device = device, .layer = -1, .ldx = ld, .n = (int)n, .n_parts = 1};
    norm_job norms = {device, x->data, ld, step->logit_rows, (int)n, weight, eps, NULL, ld};

    OL_TRY(cpu_scratch_need(&device->memory, &device->normed, n * (size_t)ld * sizeof(float), err));
    OL_TRY(
        cpu_scratch_need(&device->memory, &device->logits, n * (size_t)vocab * sizeof(float), err));
    *logits = device->logits.data;
    if (n == 0)
        return OL_OK;
    norms.y = device->normed.data;
    norm(&norms);
    job.x = norms.y;
    job.parts[0] = (cpu_part){head, NULL, device->logits.data, vocab};
    return cpu_linear_run(&job, err);
}
