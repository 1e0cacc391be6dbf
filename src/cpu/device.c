/* device.c: the CPU device's table: life, memory, and the operations that are small. */
#include "cpu/core.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* -- memory ------------------------------------------------------------------------------ */

ol_code cpu_reserve(ol_device *device, size_t bytes, const char *what, ol_error *err)
{
    size_t limit = device->options.memory_limit;

    if (limit && (bytes > limit || device->used > limit - bytes)) {
        ol_fail(err, OL_NOMEM, "the device's memory limit does not admit %s", what);
        return ol_detail(err, "It needs %zu bytes; %zu of %zu are in use.", bytes, device->used,
                         limit);
    }
    device->used += bytes;
    return OL_OK;
}

ol_code cpu_scratch_need(ol_device *device, cpu_scratch *scratch, size_t bytes, ol_error *err)
{
    size_t rounded = ((bytes + 63) & ~(size_t)63) + 64; /* vectors may read past the end */
    void *data;

    if (rounded <= scratch->bytes)
        return OL_OK;
    OL_TRY(cpu_reserve(device, rounded - scratch->bytes, "working memory", err));
    data = aligned_alloc(64, rounded);
    if (!data) {
        device->used -= rounded - scratch->bytes;
        return ol_fail_nomem(err, rounded, "working memory");
    }
    free(scratch->data);
    *scratch = (cpu_scratch){data, rounded};
    return OL_OK;
}

/* -- life --------------------------------------------------------------------------------- */

static void read_processor(char *out, size_t size)
{
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "r");

    snprintf(out, size, "CPU");
    while (f && fgets(line, sizeof(line), f))
        if (strncmp(line, "model name", 10) == 0 && strchr(line, ':')) {
            line[strcspn(line, "\n")] = '\0';
            snprintf(out, size, "%s", strchr(line, ':') + 2);
            break;
        }
    if (f)
        fclose(f);
}

static void cpu_close(ol_device *device)
{
    cpu_scratch *const all[] = {&device->rope, &device->quants, &device->shrunk,
                                &device->k,    &device->v,      &device->gate,
                                &device->up,   &device->normed, &device->logits};

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        free(all[i]->data);
    cpu_pool_destroy(device->pool);
    free(device->row_pos);
    free(device->row_seq);
    free(device->runs);
    free(device);
}

static ol_code cpu_open(const ol_device_options *options, ol_device **out, ol_error *err)
{
    ol_device *device = calloc(1, sizeof(*device));
    size_t rows = (size_t)options->max_rows * sizeof(int);

    if (!device)
        return ol_fail_nomem(err, sizeof(*device), "the CPU device");
    device->options = *options;
    device->row_pos = malloc(rows);
    device->row_seq = malloc(rows);
    if (!device->row_pos || !device->row_seq)
        ol_fail_nomem(err, rows, "the CPU device");
    else if (cpu_kernels_choose(options->isa, &device->kernels, err) == OL_OK &&
             cpu_pool_create(options->threads, &device->pool, err) == OL_OK) {
        device->options.isa = NULL; /* the caller's string */
        read_processor(device->processor, sizeof(device->processor));
        *out = device;
        return OL_OK;
    }
    cpu_close(device);
    return err->code;
}

static void cpu_info(ol_device *device, ol_device_info *info)
{
    memset(info, 0, sizeof(*info));
    snprintf(info->name, sizeof(info->name), "cpu");
    snprintf(info->description, sizeof(info->description), "%s, %s", device->processor,
             device->kernels->name);
    info->threads = cpu_pool_threads(device->pool);
    info->memory_used = device->used;
}

/* -- weights and buffers --------------------------------------------------------------------- */

static ol_code make_vector(ol_device *device, const ol_tensor *t, ol_weight *w, ol_error *err)
{
    int64_t n = t->shape[0];
    size_t bytes = ((size_t)n + PANEL) * sizeof(float);

    OL_TRY(cpu_reserve(device, bytes, t->name, err));
    w->bytes = bytes;
    w->n = n;
    w->vector = calloc(1, bytes);
    if (!w->vector)
        return ol_fail_nomem(err, bytes, t->name);
    ol_dequantize(t->dtype, t->data, w->vector, (size_t)n);
    return OL_OK;
}

static ol_code make_rows(ol_device *device, const ol_weight_desc *desc, ol_weight *w, ol_error *err)
{
    w->rows = desc->tensor;
    w->rows.name = "embedding";
    if (desc->keep)
        return OL_OK;
    OL_TRY(cpu_reserve(device, desc->tensor.bytes, desc->tensor.name, err));
    w->bytes = desc->tensor.bytes;
    w->own = malloc(desc->tensor.bytes);
    if (!w->own)
        return ol_fail_nomem(err, desc->tensor.bytes, desc->tensor.name);
    memcpy(w->own, desc->tensor.data, desc->tensor.bytes);
    w->rows.data = w->own;
    return OL_OK;
}

static ol_code make_matrix(ol_device *device, const ol_weight_desc *desc, ol_weight *w,
                           ol_error *err)
{
    const ol_tensor *t = &desc->tensor;
    cpu_panel_kind kind = cpu_matrix_kind(t->dtype, t->shape[1], desc->quantization);
    size_t bytes = cpu_matrix_bytes(kind, t->shape[0], t->shape[1]);

    OL_TRY(cpu_reserve(device, bytes, t->name, err));
    w->bytes = bytes;
    return cpu_matrix_create(device->pool, t, kind, &w->m, err);
}

static void cpu_weight_free(ol_device *device, ol_weight *w)
{
    if (!w)
        return;
    cpu_matrix_free(&w->m);
    free(w->own);
    free(w->vector);
    device->used -= w->bytes;
    free(w);
}

static ol_code cpu_weight_create(ol_device *device, const ol_weight_desc *desc, ol_weight **out,
                                 ol_error *err)
{
    ol_weight *w = calloc(1, sizeof(*w));
    ol_code code;

    if (!w)
        return ol_fail_nomem(err, sizeof(*w), desc->tensor.name);
    w->use = (int)desc->use;
    if (desc->use == OL_WEIGHT_VECTOR)
        code = make_vector(device, &desc->tensor, w, err);
    else if (desc->use == OL_WEIGHT_EMBEDDING)
        code = make_rows(device, desc, w, err);
    else
        code = make_matrix(device, desc, w, err);
    if (code != OL_OK) {
        cpu_weight_free(device, w);
        return code;
    }
    *out = w;
    return OL_OK;
}

static ol_code cpu_buffer_create(ol_device *device, int64_t cols, ol_buffer **out, ol_error *err)
{
    size_t bytes =
        ((size_t)device->options.max_rows * (size_t)cols * sizeof(float) + 127) & ~(size_t)63;
    ol_buffer *buffer = calloc(1, sizeof(*buffer));

    if (!buffer)
        return ol_fail_nomem(err, sizeof(*buffer), "a buffer");
    if (cpu_reserve(device, bytes, "a buffer", err) != OL_OK) {
        free(buffer);
        return err->code;
    }
    buffer->cols = cols;
    buffer->data = aligned_alloc(64, bytes);
    if (!buffer->data) {
        device->used -= bytes;
        free(buffer);
        return ol_fail_nomem(err, bytes, "a buffer");
    }
    memset(buffer->data, 0, bytes);
    *out = buffer;
    return OL_OK;
}

static void cpu_buffer_free(ol_device *device, ol_buffer *buffer)
{
    if (!buffer)
        return;
    device->used -=
        ((size_t)device->options.max_rows * (size_t)buffer->cols * sizeof(float) + 127) &
        ~(size_t)63;
    free(buffer->data);
    free(buffer);
}

/* -- a step --------------------------------------------------------------------------------- */

static ol_code cpu_step_begin(ol_device *device, const ol_step *step, ol_error *err)
{
    if (step->n_rows > device->options.max_rows || step->n_seqs > device->options.max_seqs ||
        step->n_logit_rows > device->options.max_logit_rows)
        return ol_fail(err, OL_INTERNAL, "a step of %d rows, %d sequences, %d logit rows",
                       step->n_rows, step->n_seqs, step->n_logit_rows);
    device->step = step;
    device->rope_of = NULL;
    for (int s = 0; s < step->n_seqs; s++)
        for (int r = 0; r < step->seqs[s].n_rows; r++) {
            device->row_seq[step->seqs[s].first_row + r] = s;
            device->row_pos[step->seqs[s].first_row + r] = step->seqs[s].first_pos + r;
        }
    return cpu_runs_build(device, err);
}

static ol_code cpu_embed(ol_device *device, const ol_weight *w, ol_buffer *x, ol_error *err)
{
    (void)err;
    for (int r = 0; r < device->step->n_rows; r++) {
        int64_t token = device->step->tokens[r];
        float *out = x->data + r * x->cols;
        size_t row_bytes = 0;

        if (w->use == OL_WEIGHT_EMBEDDING_AND_HEAD) {
            cpu_matrix_row(&w->m, token, out);
            continue;
        }
        (void)ol_dtype_row_bytes(w->rows.dtype, w->rows.shape[1], &row_bytes);
        ol_dequantize(w->rows.dtype, (const uint8_t *)w->rows.data + (size_t)token * row_bytes, out,
                      (size_t)w->rows.shape[1]);
    }
    return OL_OK;
}

static void norm_row(const ol_device *device, const float *x, const ol_weight *w, float eps,
                     float *y)
{
    float mean = device->kernels->square_sum(x, w->n) / (float)w->n;

    device->kernels->scale_by(x, 1.0f / sqrtf(mean + eps), w->vector, y, w->n);
}

typedef struct norm_job {
    ol_device *device;
    const ol_buffer *x;
    const ol_weight *w;
    float eps;
    ol_buffer *y;
} norm_job;

static void norm_share(void *context, int thread, int threads)
{
    const norm_job *job = context;
    int64_t from, to;

    cpu_share(job->device->step->n_rows, 1, thread, threads, &from, &to);
    for (int64_t r = from; r < to; r++)
        norm_row(job->device, job->x->data + r * job->x->cols, job->w, job->eps,
                 job->y->data + r * job->y->cols);
}

#define WORTH_A_FORK ((int64_t)1 << 15) /* floats */

static ol_code cpu_rms_norm(ol_device *device, const ol_buffer *x, const ol_weight *w, float eps,
                            ol_buffer *y, ol_error *err)
{
    norm_job job = {device, x, w, eps, y};

    (void)err;
    if (device->step->n_rows * x->cols < WORTH_A_FORK)
        norm_share(&job, 0, 1);
    else
        cpu_pool_run(device->pool, norm_share, &job);
    return OL_OK;
}

static ol_code cpu_attention_out(ol_device *device, const ol_layer *layer, const ol_buffer *o,
                                 ol_buffer *x, ol_error *err)
{
    cpu_linear job = {.device = device,
                      .layer = layer->index,
                      .x = o->data,
                      .ldx = o->cols,
                      .n = device->step->n_rows,
                      .n_parts = 1};

    job.parts[0] = (cpu_part){
        layer->linear[OL_MOD_O], layer->bias[OL_MOD_O], OL_MOD_O, x->data, x->cols, true};
    return cpu_linear_run(&job, err);
}

static ol_code cpu_mlp(ol_device *device, const ol_layer *layer, const ol_buffer *y, ol_buffer *x,
                       ol_error *err)
{
    int64_t ffn = layer->linear[OL_MOD_GATE]->m.rows;
    size_t bytes = (size_t)device->step->n_rows * (size_t)ffn * sizeof(float);
    cpu_linear in = {.device = device,
                     .layer = layer->index,
                     .x = y->data,
                     .ldx = y->cols,
                     .n = device->step->n_rows,
                     .n_parts = 2,
                     .swiglu = true};
    cpu_linear out = in;

    OL_TRY(cpu_scratch_need(device, &device->gate, bytes, err));
    OL_TRY(cpu_scratch_need(device, &device->up, bytes, err));
    in.parts[0] = (cpu_part){layer->linear[OL_MOD_GATE],
                             layer->bias[OL_MOD_GATE],
                             OL_MOD_GATE,
                             device->gate.data,
                             ffn,
                             false};
    in.parts[1] = (cpu_part){
        layer->linear[OL_MOD_UP], layer->bias[OL_MOD_UP], OL_MOD_UP, device->up.data, ffn, false};
    OL_TRY(cpu_linear_run(&in, err));
    out.x = device->gate.data;
    out.ldx = ffn;
    out.n_parts = 1;
    out.swiglu = false;
    out.parts[0] = (cpu_part){
        layer->linear[OL_MOD_DOWN], layer->bias[OL_MOD_DOWN], OL_MOD_DOWN, x->data, x->cols, true};
    return cpu_linear_run(&out, err);
}

static ol_code cpu_logits(ol_device *device, const ol_buffer *x, const ol_weight *norm, float eps,
                          const ol_weight *head, const float **logits, ol_error *err)
{
    const ol_step *step = device->step;
    int64_t hidden = x->cols, vocab = head->m.rows;
    size_t n = (size_t)step->n_logit_rows;
    cpu_linear job = {
        .device = device, .layer = -1, .ldx = hidden, .n = step->n_logit_rows, .n_parts = 1};

    OL_TRY(cpu_scratch_need(device, &device->normed, n * (size_t)hidden * sizeof(float), err));
    OL_TRY(cpu_scratch_need(device, &device->logits, n * (size_t)vocab * sizeof(float), err));
    for (size_t i = 0; i < n; i++)
        norm_row(device, x->data + step->logit_rows[i] * hidden, norm, eps,
                 (float *)device->normed.data + i * (size_t)hidden);
    job.x = device->normed.data;
    job.parts[0] = (cpu_part){head, NULL, OL_MOD_Q, device->logits.data, vocab, false};
    *logits = device->logits.data;
    return n ? cpu_linear_run(&job, err) : OL_OK;
}

static ol_code cpu_step_end(ol_device *device, ol_error *err)
{
    (void)err;
    device->step = NULL;
    return OL_OK;
}

static const ol_device_table table = {
    .abi = OL_DEVICE_ABI,
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .info = cpu_info,
    .weight_create = cpu_weight_create,
    .weight_free = cpu_weight_free,
    .lora_create = cpu_lora_create,
    .lora_free = cpu_lora_free,
    .lora_bytes = cpu_lora_bytes,
    .kv_create = cpu_kv_create,
    .kv_free = cpu_kv_free,
    .kv_copy_page = cpu_kv_copy_page,
    .buffer_create = cpu_buffer_create,
    .buffer_free = cpu_buffer_free,
    .step_begin = cpu_step_begin,
    .embed = cpu_embed,
    .rms_norm = cpu_rms_norm,
    .qkv = cpu_qkv,
    .attention = cpu_attention,
    .attention_out = cpu_attention_out,
    .mlp = cpu_mlp,
    .logits = cpu_logits,
    .step_end = cpu_step_end,
};

__attribute__((visibility("default"))) const ol_device_table *ol_device_entry_point(void);

const ol_device_table *ol_device_entry_point(void)
{
    return &table;
}
