/* kv.c: the pages of keys and values. */
#include "cpu/core.h"

#include <stdlib.h>
#include <string.h>

static ol_code check(const ol_kv_desc *desc, ol_error *err)
{
    if (desc->dtype != OL_F32 && desc->dtype != OL_F16 && desc->dtype != OL_BF16)
        return ol_fail(err, OL_UNSUPPORTED, "the KV cache cannot be %s",
                       ol_dtype_name(desc->dtype));
    if (desc->page_tokens < KV_GRAIN || (desc->page_tokens & (desc->page_tokens - 1)) != 0)
        return ol_fail(err, OL_INVALID, "a KV page cannot hold %d tokens", desc->page_tokens);
    return OL_OK;
}

/* Strides and bytes, of what check() has seen; false: too large. In a pool a page is one stretch,
 * all layers; else a layer is. */
static bool shape(ol_kv *kv)
{
    const ol_kv_desc *desc = &kv->desc;
    size_t size = desc->dtype == OL_F32 ? 4 : 2, part;

    kv->head_stride = 2 * (size_t)desc->head_dim * (size_t)desc->page_tokens * size;
    part = kv->head_stride * (size_t)desc->n_kv_heads;
    if (__builtin_mul_overflow(part, (size_t)desc->n_layers, &kv->page_bytes) ||
        __builtin_mul_overflow(kv->page_bytes, (size_t)desc->n_pages, &kv->bytes))
        return false;
    kv->page_stride = desc->pool ? kv->page_bytes : part;
    kv->layer_stride = desc->pool ? part : part * (size_t)desc->n_pages;
    return true;
}

size_t cpu_kv_page_bytes(ol_device *device, const ol_kv_desc *desc)
{
    ol_kv kv = {.desc = *desc};
    ol_error ignored;

    (void)device;
    return check(desc, &ignored) == OL_OK && shape(&kv) ? kv.page_bytes : 0;
}

ol_code cpu_kv_create(ol_device *device, const ol_kv_desc *desc, ol_kv **out, ol_error *err)
{
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
    kv->data =
        cpu_block(&device->memory, kv->bytes,
                  desc->pool ? "the cache of keys, values and adapters" : "the KV cache", err);
    if (!kv->data) {
        free(kv);
        return err->code;
    }
    *out = kv;
    return OL_OK;
}

void cpu_kv_free(ol_device *device, ol_kv *kv)
{
    if (!kv)
        return;
    cpu_block_free(&device->memory, kv->data, kv->bytes);
    free(kv);
}

/* The first n slots of one head: whole grains of keys, then lanes of a part one. */
static void copy_head(const ol_kv *kv, const uint8_t *from, uint8_t *to, size_t n)
{
    size_t dim = (size_t)kv->desc.head_dim, size = kv->desc.dtype == OL_F32 ? 4 : 2;
    size_t grain = dim * KV_GRAIN * size, whole = n / KV_GRAIN * grain;

    memcpy(to, from, whole);
    for (size_t d = 0; d < dim && n % KV_GRAIN; d++) {
        size_t at = whole + d * KV_GRAIN * size;

        memcpy(to + at, from + at, n % KV_GRAIN * size);
    }
    from += kv->head_stride / 2;
    to += kv->head_stride / 2;
    memcpy(to, from, n * dim * size);
}

ol_code cpu_kv_copy_page(ol_device *device, ol_kv *kv, int32_t from, int32_t to, int n_tokens,
                         ol_error *err)
{
    (void)device;
    (void)err;
    for (int layer = 0; layer < kv->desc.n_layers; layer++)
        for (int head = 0; head < kv->desc.n_kv_heads; head++) {
            uint8_t *base =
                kv->data + (size_t)layer * kv->layer_stride + (size_t)head * kv->head_stride;

            copy_head(kv, base + (size_t)from * kv->page_stride,
                      base + (size_t)to * kv->page_stride, (size_t)n_tokens);
        }
    return OL_OK;
}
