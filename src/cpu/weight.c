/* weight.c: base weights in the device's layout. */
#include "cpu/core.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The file's pages are not needed again; tells the kernel to take them first. Not
 * MADV_DONTNEED: that would wipe memory that is no mapped file. */
static void forget(const void *data, size_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)data + page - 1) / page * page;
    uintptr_t to = ((uintptr_t)data + bytes) / page * page;

#ifdef MADV_COLD
    if (from < to)
        madvise((void *)from, to - from, MADV_COLD);
#else
    (void)from, (void)to;
#endif
}

static ol_code make_vector(ol_device *device, const ol_tensor *t, ol_weight *w, ol_error *err)
{
    int64_t n = t->shape[0];
    size_t bytes = ((size_t)n + PANEL) * sizeof(float);

    w->vector = cpu_block(&device->memory, bytes, t->name, err);
    if (!w->vector)
        return err->code;
    w->bytes = bytes;
    w->n = n;
    ol_dequantize(t->dtype, t->data, w->vector, (size_t)n);
    return OL_OK;
}

static ol_code make_rows(ol_device *device, const ol_weight_desc *desc, ol_weight *w, ol_error *err)
{
    w->rows = desc->tensor;
    w->rows.name = "embedding";
    if (desc->keep)
        return OL_OK;
    w->own = cpu_block(&device->memory, desc->tensor.bytes, desc->tensor.name, err);
    if (!w->own)
        return err->code;
    w->bytes = desc->tensor.bytes;
    memcpy(w->own, desc->tensor.data, desc->tensor.bytes);
    w->rows.data = w->own;
    return OL_OK;
}

/* -- matrices ----------------------------------------------------------------------- */

typedef struct packing {
    ol_device *device;
    const cpu_matrix *m;
    cpu_source source;
    float *values; /* a row for each thread */
} packing;

static void pack_share(void *context, int thread, int threads)
{
    const packing *job = context;
    float *values = job->values + thread * job->m->cols;
    int64_t panel;

    (void)threads;
    while ((panel = cpu_queue_take(job->device->pool, 0, thread)) >= 0)
        cpu_matrix_pack(job->device->kernels, job->m, &job->source, panel, values);
}

static ol_code make_matrix(ol_device *device, const ol_weight_desc *desc, ol_weight *w,
                           ol_error *err)
{
    const ol_tensor *t = &desc->tensor;
    cpu_panel_kind kind = cpu_matrix_kind(t->dtype, t->shape[1], desc->quantization);
    size_t threads = (size_t)cpu_pool_threads(device->pool);
    packing job = {.device = device, .m = &w->m, .source = {.data = t->data, .dtype = t->dtype}};

    if (desc->quantization == OL_QUANT_FP8) { /* nothing here multiplies it faster than INT8 */
        ol_fail(err, OL_UNSUPPORTED, "the CPU has no fp8 weights");
        return ol_hint(err, "Choose int8, which takes as much memory, or a GPU.");
    }
    w->bytes = cpu_matrix_shape(&w->m, kind, t->shape[0], t->shape[1]);
    if (!ol_dtype_row_bytes(t->dtype, t->shape[1], &job.source.row_bytes) ||
        job.source.row_bytes * (size_t)t->shape[0] > t->bytes)
        return ol_fail(err, OL_INTERNAL, "tensor \"%s\" is shorter than its shape", t->name);
    job.values = malloc(threads * (size_t)t->shape[1] * sizeof(float) + 1);
    if (!job.values)
        return ol_fail_nomem(err, threads * (size_t)t->shape[1] * sizeof(float), t->name);
    w->m.data = cpu_region_take(&device->memory, w->bytes, t->name, &w->home, err);
    if (w->m.data) {
        cpu_queue_fill(device->pool, 0, cpu_panels(&w->m));
        cpu_pool_run(device->pool, pack_share, &job);
        if (desc->keep)
            forget(t->data, t->bytes);
    }
    free(job.values);
    return w->m.data ? OL_OK : err->code;
}

ol_code cpu_weight_create(ol_device *device, const ol_weight_desc *desc, ol_weight **out,
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

void cpu_weight_free(ol_device *device, ol_weight *w)
{
    if (!w)
        return;
    cpu_region_give(&device->memory, w->home, w->bytes);
    cpu_block_free(&device->memory, w->own, w->bytes);
    cpu_block_free(&device->memory, w->vector, w->bytes);
    free(w);
}

/* -- gathering ------------------------------------------------------------------------ */

typedef struct embed_job {
    ol_device *device;
    const ol_weight *w;
    ol_buffer *x;
    size_t row_bytes;
} embed_job;

static void embed_share(void *context, int thread, int threads)
{
    const embed_job *job = context;
    const ol_step *step = job->device->step;
    int from = (int)((int64_t)step->n_rows * thread / threads);
    int to = (int)((int64_t)step->n_rows * (thread + 1) / threads);

    for (int r = from; r < to; r++) {
        float *out = job->x->data + r * job->x->stride;
        const ol_tensor *rows = &job->w->rows;
        int64_t token = step->tokens[r];

        if (job->w->use == OL_WEIGHT_EMBEDDING_AND_HEAD)
            cpu_matrix_row(&job->w->m, token, out);
        else
            ol_dequantize(rows->dtype, (const uint8_t *)rows->data + (size_t)token * job->row_bytes,
                          out, (size_t)rows->shape[1]);
    }
}

ol_code cpu_embed(ol_device *device, const ol_weight *w, ol_buffer *x, ol_error *err)
{
    embed_job job = {.device = device, .w = w, .x = x};

    (void)err;
    if (w->use == OL_WEIGHT_EMBEDDING)
        (void)ol_dtype_row_bytes(w->rows.dtype, w->rows.shape[1], &job.row_bytes);
    if (device->step->n_rows < 8)
        embed_share(&job, 0, 1);
    else
        cpu_pool_run(device->pool, embed_share, &job);
    return OL_OK;
}
