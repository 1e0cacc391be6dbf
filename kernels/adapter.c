/* adapter.c: an adapter in device memory: one block that starts with its gpu_lora. */
#include "kernels/core.h"

#include <stdlib.h>
#include <string.h>

#define ALIGN ((size_t)512)

/* An adapter while it is made: a picture of the block's head, and where the rest is. */
typedef struct plan {
    const ol_lora_module *modules;
    int n_modules, n_layers, n_parts, max_rank;
    int h_stride;
    size_t head, bytes; /* of gpu_lora, parts and rows; of all */
    size_t bad;         /* where the flag is */
    uint8_t *image;     /* [head] */
} plan;

static size_t align(size_t at)
{
    return (at + ALIGN - 1) / ALIGN * ALIGN;
}

static size_t round16(size_t n)
{
    return (n + 15) / 16 * 16;
}

static gpu_lora_part *parts_of(const plan *p)
{
    return (gpu_lora_part *)(p->image + align(sizeof(gpu_lora)));
}

static int32_t *rows_of(const plan *p)
{
    return (int32_t *)(parts_of(p) + p->n_parts);
}

/* Modules of one input lie side by side in h. */
static void place_h(plan *p)
{
    static const int first[] = {OL_MOD_Q, OL_MOD_O, OL_MOD_GATE, OL_MOD_DOWN, OL_MODULES};

    for (int layer = 0; layer < p->n_layers; layer++)
        for (int input = 0; input < 4; input++) {
            int h = 0;

            for (int m = first[input]; m < first[input + 1]; m++) {
                gpu_lora_part *part = &parts_of(p)[layer * OL_MODULES + m];

                part->h = h;
                h += (int)round16((size_t)part->rank);
            }
            p->h_stride = h > p->h_stride ? h : p->h_stride;
        }
}

/* Offsets now, addresses when the block is there. */
static void place_matrices(plan *p)
{
    size_t at = align(p->head);

    for (int i = 0; i < p->n_modules; i++) {
        const ol_lora_module *m = &p->modules[i];
        gpu_lora_part *part = &parts_of(p)[m->layer * OL_MODULES + (int)m->module];
        size_t rank = (size_t)m->rank, in = (size_t)m->a.shape[1], out = (size_t)m->b.shape[0];

        part->rank = m->rank;
        part->scale = m->scale;
        rows_of(p)[m->layer * OL_MODULES + (int)m->module] = (int32_t)out;
        part->gram = (const float *)at;
        at = align(at + rank * rank * sizeof(float));
        part->a = (const uint16_t *)at;
        at += round16(rank) * ((in + 63) / 64 * 64) * sizeof(uint16_t);
        part->b = (const uint16_t *)at;
        at += round16(out) * round16(rank) * sizeof(uint16_t);
        p->max_rank = m->rank > p->max_rank ? m->rank : p->max_rank;
    }
    p->bytes = at;
}

static ol_code make_plan(plan *p, const ol_lora_module *modules, int n_modules, ol_error *err)
{
    *p = (plan){.modules = modules, .n_modules = n_modules};
    for (int i = 0; i < n_modules; i++)
        if (modules[i].layer >= p->n_layers)
            p->n_layers = modules[i].layer + 1;
    p->n_parts = p->n_layers * OL_MODULES;
    p->bad =
        align(sizeof(gpu_lora)) + (size_t)p->n_parts * (sizeof(gpu_lora_part) + sizeof(int32_t));
    p->head = align(p->bad + sizeof(int32_t));
    p->image = calloc(1, p->head);
    if (!p->image)
        return ol_fail_nomem(err, p->head, "an adapter");
    place_matrices(p);
    place_h(p);
    return OL_OK;
}

static void relocate(const plan *p, uint8_t *block)
{
    gpu_lora *lora = (gpu_lora *)p->image;

    *lora = (gpu_lora){.parts = (const gpu_lora_part *)(block + align(sizeof(gpu_lora))),
                       .n_layers = p->n_layers,
                       .h_stride = p->h_stride};
    for (int i = 0; i < p->n_parts; i++) {
        gpu_lora_part *part = &parts_of(p)[i];

        if (part->rank == 0)
            continue;
        part->gram = (const float *)(block + (size_t)part->gram);
        part->a = (const uint16_t *)(block + (size_t)part->a);
        part->b = (const uint16_t *)(block + (size_t)part->b);
    }
}

static ol_code send_matrices(ol_device *device, const plan *p, uint8_t *block, ol_error *err)
{
    int32_t *bad = (int32_t *)(block + p->bad);

    for (int i = 0; i < p->n_modules; i++) {
        const ol_lora_module *m = &p->modules[i];
        const gpu_lora_part *part = &parts_of(p)[m->layer * OL_MODULES + (int)m->module];
        gpu_matrix a = {
            .kind = GPU_BF16, .rows = m->rank, .cols = (int32_t)m->a.shape[1], .data = part->a};
        gpu_packing to_a = {.tensor = &m->a, .to = &a, .bad = bad};
        gpu_packing to_b = {.tensor = &m->b, .columns = (uint16_t *)(uintptr_t)part->b, .bad = bad};

        OL_TRY(gpu_upload_matrix(device, &to_a, err));
        OL_TRY(gpu_upload_matrix(device, &to_b, err));
    }
    return OL_OK;
}

/* The loader's thread waits here, the engine's does not. */
static ol_code fill_block(ol_device *device, const plan *p, uint8_t *block, ol_error *err)
{
    size_t parts = align(sizeof(gpu_lora));
    int32_t bad = 0;

    relocate(p, block);
    OL_TRY(gpu_upload_bytes(device, p->image, block, p->head, err));
    OL_TRY(send_matrices(device, p, block, err));
    GPU_TRY(gpu_gram((const gpu_lora_part *)(block + parts),
                     (const int32_t *)(block + parts + (size_t)p->n_parts * sizeof(gpu_lora_part)),
                     p->n_parts, p->max_rank, device->upload.stream),
            "preparing an adapter");
    GPU_TRY(cudaMemcpyAsync(&bad, block + p->bad, sizeof(bad), cudaMemcpyDeviceToHost,
                            device->upload.stream),
            "preparing an adapter");
    GPU_TRY(cudaStreamSynchronize(device->upload.stream), "preparing an adapter");
    if (bad) {
        ol_fail(err, OL_INVALID, "the adapter has numbers that are not finite in bfloat16");
        return ol_hint(err, "NaN, infinity, or beyond 3.3895e38 in magnitude.");
    }
    return OL_OK;
}

ol_code gpu_lora_create(ol_device *device, const ol_lora_module *modules, int n_modules,
                        ol_lora **out, ol_error *err)
{
    ol_lora *lora = calloc(1, sizeof(*lora));
    ol_code code;
    plan p;

    if (!lora)
        return ol_fail_nomem(err, sizeof(*lora), "an adapter");
    if (cudaSetDevice(device->options.device_index) != cudaSuccess ||
        make_plan(&p, modules, n_modules, err) != OL_OK) {
        free(lora);
        return err->code;
    }
    *lora = (ol_lora){.bytes = p.bytes, .h_stride = p.h_stride};
    pthread_mutex_lock(&device->upload.lock);
    lora->block =
        gpu_block_ordered(&device->memory, p.bytes, "an adapter", device->upload.stream, err);
    code = lora->block ? fill_block(device, &p, lora->block, err) : err->code;
    if (code != OL_OK)
        (void)cudaStreamSynchronize(device->upload.stream);
    pthread_mutex_unlock(&device->upload.lock);
    free(p.image);
    if (code == OL_OK) {
        *out = lora;
        return OL_OK;
    }
    gpu_lora_free(device, lora);
    return code;
}

/* Whoever frees has no step under way that uses it. */
void gpu_lora_free(ol_device *device, ol_lora *lora)
{
    if (!lora)
        return;
    if (lora->block)
        gpu_block_free_ordered(&device->memory, lora->block, lora->bytes, device->upload.stream);
    free(lora);
}

size_t gpu_lora_bytes(ol_device *device, const ol_lora *lora)
{
    (void)device;
    return lora->bytes;
}
