/* kv.c: the page pool of keys and values. */
#include "kernels/core.h"

#include <stdlib.h>

#define MAX_HEAD_DIM 256
#define POOL_ALIGNMENT 256

static ol_code check(const ol_kv_desc *desc, ol_error *err)
{
    if (desc->dtype != OL_BF16 && desc->dtype != OL_F8E4M3) {
        ol_fail(err, OL_UNSUPPORTED, "the KV cache of a GPU cannot be %s",
                ol_dtype_name(desc->dtype));
        return ol_hint(err, "Leave the choice to the engine, or choose bf16 or fp8.");
    }
    if (desc->head_dim > MAX_HEAD_DIM)
        return ol_fail(err, OL_UNSUPPORTED,
                       "heads of %d dimensions are beyond the GPU's kernels' %d", desc->head_dim,
                       MAX_HEAD_DIM);
    if (desc->page_tokens < 16 || (desc->page_tokens & (desc->page_tokens - 1)) != 0)
        return ol_fail(err, OL_INVALID, "a KV page cannot hold %d tokens", desc->page_tokens);
    return OL_OK;
}

/* Strides and bytes, of what check() has seen; false: too large. In a pool a page is one stretch,
 * all layers; else a layer is. */
static bool shape(ol_kv *kv)
{
    const ol_kv_desc *desc = &kv->desc;
    gpu_kv_layer *first = &kv->first;
    size_t part, page;

    *first = (gpu_kv_layer){.n_kv_heads = desc->n_kv_heads,
                            .head_dim = desc->head_dim,
                            .dim_stride = (desc->head_dim + 15) / 16 * 16,
                            .page_tokens = desc->page_tokens,
                            .fp8 = desc->dtype == OL_F8E4M3};
    part = (size_t)desc->n_kv_heads * (size_t)gpu_kv_head_bytes(first);
    if (__builtin_mul_overflow(part, (size_t)desc->n_layers, &page) || page > SIZE_MAX / 2)
        return false;
    if (desc->pool) /* where an adapter's matrices may begin */
        page = (page + POOL_ALIGNMENT - 1) / POOL_ALIGNMENT * POOL_ALIGNMENT;
    if (__builtin_mul_overflow(page, (size_t)desc->n_pages, &kv->bytes))
        return false;
    kv->page_bytes = page;
    first->page_stride = (int64_t)(desc->pool ? page : part);
    kv->layer_stride = (int64_t)(desc->pool ? part : part * (size_t)desc->n_pages);
    return true;
}

size_t gpu_kv_page_bytes(ol_device *device, const ol_kv_desc *desc)
{
    ol_kv kv = {.desc = *desc};
    ol_error ignored;

    (void)device;
    return check(desc, &ignored) == OL_OK && shape(&kv) ? kv.page_bytes : 0;
}

ol_code gpu_kv_create(ol_device *device, const ol_kv_desc *desc, ol_kv **out, ol_error *err)
{
    cudaError_t cleared;
    ol_kv *kv;

    OL_TRY(check(desc, err));
    kv = calloc(1, sizeof(*kv));
    if (!kv)
        return ol_fail_nomem(err, sizeof(*kv), "the KV cache");
    kv->desc = *desc;
    if (!shape(kv)) {
        free(kv);
        return ol_fail(err, OL_LIMIT, "the KV cache is too large");
    }
    kv->first.data =
        gpu_block(&device->memory, kv->bytes,
                  desc->pool ? "the cache of keys, values and adapters" : "the KV cache",
                  device->stream, err);
    if (!kv->first.data) {
        free(kv);
        return err->code;
    }
    /* Zeros must not come after adapters, which another stream brings. */
    cleared = desc->pool ? cudaStreamSynchronize(device->stream) : cudaSuccess;
    if (cleared != cudaSuccess) {
        gpu_kv_free(device, kv);
        return gpu_fail(err, cleared, "clearing the cache");
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
    gpu_block_free(&device->memory, kv->first.data, kv->bytes);
    free(kv);
}

ol_code gpu_kv_copy_page(ol_device *device, ol_kv *kv, int32_t from, int32_t to, int n_tokens,
                         ol_error *err)
{
    GPU_TRY(gpu_kv_copy(&kv->first, kv->layer_stride, kv->desc.n_layers, from, to, n_tokens,
                        device->stream),
            "copying a page");
    return OL_OK;
}
