/* weight.c: base weights. See README.md, weights. */
#include "kernels/core.h"

#include <limits.h>
#include <stdlib.h>

/* What has four bits keeps them: more would bring nothing. An embedding that is no head stays as it
 * is. */
static gpu_kind kind_of(const ol_weight_desc *desc)
{
    static const gpu_kind kinds[] = {
        [OL_QUANT_INT8] = GPU_INT8, [OL_QUANT_INT4] = GPU_INT4, [OL_QUANT_FP8] = GPU_FP8};

    if (desc->tensor.dtype == OL_Q4_0)
        return GPU_INT4;
    if (desc->tensor.dtype == OL_Q4_K)
        return GPU_INT4M;
    if (desc->quantization != OL_QUANT_AS_IS && desc->use != OL_WEIGHT_EMBEDDING)
        return kinds[desc->quantization];
    switch (desc->tensor.dtype) {
    case OL_Q8_0:
    case OL_Q6_K:
        return GPU_INT8;
    default:
        return GPU_BF16;
    }
}

/* Bytes of the fragments and, behind them, of the scales. */
static void matrix_bytes(const gpu_matrix *m, size_t *data, size_t *scales)
{
    size_t tiles = ((size_t)m->rows + 15) / 16 * (((size_t)m->cols + 63) / 64 * 4);

    size_t pieces = m->kind == GPU_BF16 ? 1 : m->kind == GPU_INT8 || m->kind == GPU_FP8 ? 2 : 4;

    *data = tiles * 512 / pieces;
    *scales = m->kind == GPU_BF16  ? 0
              : m->kind == GPU_FP8 ? ((size_t)m->rows + 15) / 16 * 16 * sizeof(float)
                                   : tiles / 2 * 16 * sizeof(uint16_t);
    *scales *= m->kind == GPU_INT4M ? 2 : 1; /* and offsets */
}

static ol_code make_matrix(ol_device *device, const ol_weight_desc *desc, ol_weight *w,
                           ol_error *err)
{
    const ol_tensor *t = &desc->tensor;
    gpu_packing job = {.tensor = t, .to = &w->m};
    size_t data, scales;
    ol_code code;

    w->m = (gpu_matrix){
        .kind = (int32_t)kind_of(desc), .rows = (int32_t)t->shape[0], .cols = (int32_t)t->shape[1]};
    w->m.splits = gpu_linear_splits(w->m.rows, w->m.cols);
    matrix_bytes(&w->m, &data, &scales);
    w->bytes = data + scales;
    w->data = gpu_block(&device->memory, w->bytes, t->name, device->upload.stream, err);
    if (!w->data) {
        w->bytes = 0;
        return err->code;
    }
    w->m.data = w->data;
    w->m.scales = scales ? (uint8_t *)w->data + data : NULL;
    pthread_mutex_lock(&device->upload.lock);
    code = gpu_upload_matrix(device, &job, err);
    pthread_mutex_unlock(&device->upload.lock);
    return code;
}

/* The bytes as they are, or as floats where the type comes in blocks. */
static ol_code make_plain(ol_device *device, const ol_weight_desc *desc, bool floats, ol_weight *w,
                          ol_error *err)
{
    const ol_tensor *t = &desc->tensor;
    size_t n = (size_t)(w->rows * w->cols);
    float *values = NULL;
    ol_code code;

    w->dtype = floats ? 0 : t->dtype == OL_F16 ? 1 : t->dtype == OL_BF16 ? 2 : 0;
    w->bytes = floats ? n * sizeof(float) : t->bytes;
    w->data = gpu_block(&device->memory, w->bytes, t->name, device->upload.stream, err);
    if (!w->data) {
        w->bytes = 0;
        return err->code;
    }
    if (floats) {
        values = malloc(w->bytes + 1);
        if (!values)
            return ol_fail_nomem(err, w->bytes, t->name);
        ol_dequantize(t->dtype, t->data, values, n);
    }
    pthread_mutex_lock(&device->upload.lock);
    code =
        gpu_upload_bytes(device, floats ? (const void *)values : t->data, w->data, w->bytes, err);
    pthread_mutex_unlock(&device->upload.lock);
    free(values);
    return code;
}

/* Rows of block types are kept packed, as nothing is smaller. */
static bool is_packed(const ol_weight_desc *desc)
{
    return desc->use == OL_WEIGHT_MATRIX || desc->use == OL_WEIGHT_EMBEDDING_AND_HEAD ||
           (desc->use == OL_WEIGHT_EMBEDDING && ol_dtype_block(desc->tensor.dtype) > 1);
}

static ol_code check(const ol_weight_desc *desc, ol_error *err)
{
    const ol_tensor *t = &desc->tensor;
    size_t row_bytes;

    for (int i = 0; i < t->n_dims; i++)
        if (t->shape[i] < 1 || t->shape[i] > INT_MAX / 2)
            return ol_fail(err, OL_LIMIT, "tensor \"%s\" is too large for the device", t->name);
    if (!ol_dtype_row_bytes(t->dtype, t->shape[t->n_dims - 1], &row_bytes) ||
        row_bytes * (size_t)(t->n_dims > 1 ? t->shape[0] : 1) > t->bytes)
        return ol_fail(err, OL_INTERNAL, "tensor \"%s\" is shorter than its shape", t->name);
    return OL_OK;
}

ol_code gpu_weight_create(ol_device *device, const ol_weight_desc *desc, ol_weight **out,
                          ol_error *err)
{
    const ol_tensor *t = &desc->tensor;
    ol_weight *w;
    ol_code code;

    OL_TRY(check(desc, err));
    w = calloc(1, sizeof(*w));
    if (!w)
        return ol_fail_nomem(err, sizeof(*w), t->name);
    w->use = (int)desc->use;
    w->rows = t->n_dims > 1 ? t->shape[0] : 1;
    w->cols = t->shape[t->n_dims - 1];
    code = is_packed(desc) ? make_matrix(device, desc, w, err)
                           : make_plain(device, desc, desc->use == OL_WEIGHT_VECTOR, w, err);
    device->weights_under_way = true;
    if (code == OL_OK) {
        *out = w;
        return OL_OK;
    }
    gpu_weight_free(device, w);
    return code;
}

void gpu_weight_free(ol_device *device, ol_weight *weight)
{
    if (!weight)
        return;
    gpu_graphs_drop(device);
    (void)cudaStreamSynchronize(device->upload.stream);
    gpu_block_free(&device->memory, weight->data, weight->bytes);
    free(weight);
}
