/* kv.c: the page pool of keys and values. */
#include "kernels/core.h"

#include <stdlib.h>

#define MAX_HEAD_DIM 256

static ol_code check(const ol_kv_desc *desc, ol_error *err)
{
    if (desc->dtype != OL_BF16) {
        ol_fail(err, OL_UNSUPPORTED, "the KV cache of a GPU cannot be %s",
                ol_dtype_name(desc->dtype));
        return ol_hint(err, "Leave the choice to the engine, or choose bf16.");
    }
    if (desc->head_dim > MAX_HEAD_DIM)
        return ol_fail(err, OL_UNSUPPORTED,
                       "heads of %d dimensions are beyond the GPU's kernels' %d", desc->head_dim,
                       MAX_HEAD_DIM);
    if (desc->page_tokens < 16 || (desc->page_tokens & (desc->page_tokens - 1)) != 0)
        return ol_fail(err, OL_INVALID, "a KV page cannot hold %d tokens", desc->page_tokens);
    return OL_OK;
}

ol_code gpu_kv_create(ol_device *device, const ol_kv_desc *desc, ol_kv **out, ol_error *err)
{
    ol_kv *kv;
    size_t layer;

    OL_TRY(check(desc, err));
    kv = calloc(1, sizeof(*kv));
    if (!kv)
        return ol_fail_nomem(err, sizeof(*kv), "the KV cache");
    kv->desc = *desc;
    kv->dim_stride = (desc->head_dim + 15) / 16 * 16;
    layer = (size_t)desc->n_kv_heads * 2 * (size_t)desc->page_tokens * (size_t)kv->dim_stride;
    if (__builtin_mul_overflow(layer, (size_t)desc->n_pages, &layer) ||
        __builtin_mul_overflow(layer, (size_t)desc->n_layers * sizeof(uint16_t), &kv->bytes)) {
        free(kv);
        return ol_fail(err, OL_LIMIT, "the KV cache is too large");
    }
    kv->layer_stride = (int64_t)layer;
    kv->data = gpu_block(&device->memory, kv->bytes, "the KV cache", device->stream, err);
    if (!kv->data) {
        free(kv);
        return err->code;
    }
    device->page_tokens = desc->page_tokens;
    *out = kv;
    return OL_OK;
}

void gpu_kv_free(ol_device *device, ol_kv *kv)
{
    if (!kv)
        return;
    gpu_graphs_drop(device);
    gpu_block_free(&device->memory, kv->data, kv->bytes);
    free(kv);
}

ol_code gpu_kv_copy_page(ol_device *device, ol_kv *kv, int32_t from, int32_t to, int n_tokens,
                         ol_error *err)
{
    GPU_TRY(gpu_kv_copy(kv->data, kv->layer_stride, kv->desc.n_layers, kv->desc.n_kv_heads,
                        kv->dim_stride, kv->desc.page_tokens, from, to, n_tokens, device->stream),
            "copying a page");
    return OL_OK;
}
