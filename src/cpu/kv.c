/* kv.c: the pages of keys and values. */
#include "cpu/core.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

ol_code cpu_kv_create(ol_device *device, const ol_kv_desc *desc, ol_kv **out, ol_error *err)
{
    size_t size = desc->dtype == OL_F32 ? 4 : 2;
    size_t slots = (size_t)desc->head_dim * (size_t)desc->page_tokens;
    ol_kv *kv;

    if (desc->dtype != OL_F32 && desc->dtype != OL_F16 && desc->dtype != OL_BF16)
        return ol_fail(err, OL_UNSUPPORTED, "the KV cache cannot be %s",
                       ol_dtype_name(desc->dtype));
    if (desc->page_tokens < PANEL || (desc->page_tokens & (desc->page_tokens - 1)) != 0)
        return ol_fail(err, OL_INVALID, "a KV page cannot hold %d tokens", desc->page_tokens);
    kv = calloc(1, sizeof(*kv));
    if (!kv)
        return ol_fail_nomem(err, sizeof(*kv), "the KV cache");
    kv->desc = *desc;
    kv->head_stride = 2 * slots * size;
    kv->page_stride = kv->head_stride * (size_t)desc->n_kv_heads;
    if (__builtin_mul_overflow(kv->page_stride, (size_t)desc->n_pages, &kv->layer_stride) ||
        __builtin_mul_overflow(kv->layer_stride, (size_t)desc->n_layers, &kv->bytes)) {
        free(kv);
        return ol_fail(err, OL_LIMIT, "the KV cache is too large");
    }
    kv->bytes += 64; /* vectors may read past the last value */
    if (cpu_reserve(device, kv->bytes, "the KV cache", err) != OL_OK) {
        free(kv);
        return err->code;
    }
    kv->data = mmap(NULL, kv->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (kv->data == MAP_FAILED) {
        device->used -= kv->bytes;
        ol_fail_nomem(err, kv->bytes, "the KV cache");
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
    munmap(kv->data, kv->bytes);
    device->used -= kv->bytes;
    free(kv);
}

ol_code cpu_kv_copy_page(ol_device *device, ol_kv *kv, int32_t from, int32_t to, int n_tokens,
                         ol_error *err)
{
    (void)device;
    (void)n_tokens; /* whole pages: slots beyond are overwritten before they are read */
    (void)err;
    for (int layer = 0; layer < kv->desc.n_layers; layer++) {
        uint8_t *base = kv->data + (size_t)layer * kv->layer_stride;

        memcpy(base + (size_t)to * kv->page_stride, base + (size_t)from * kv->page_stride,
               kv->page_stride);
    }
    return OL_OK;
}
