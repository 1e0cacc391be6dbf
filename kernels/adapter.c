/* adapter.c: an adapter in device memory: one block that starts with its gpu_lora, or runs of pages
 * of a pool, the first of which does. */
#include "kernels/core.h"

#include <stdlib.h>
#include <string.h>

#define ALIGN ((size_t)512)

/* An adapter while it is made: a picture of its head, and where the rest is. Each piece (the head,
 * then three of each part) lies in one run, at an offset of (run * run_bytes + offset in it); one
 * block is one run that grows. */
typedef struct plan {
    const ol_lora_module *modules;
    int n_modules, n_layers, n_parts, max_rank;
    int h_stride;
    bool eight;        /* bits a number, or bf16 */
    size_t head;       /* of gpu_lora, parts and rows */
    size_t bad;        /* where the flag is */
    uint8_t *image;    /* [head] */
    size_t page_bytes; /* 0: one block */
    int run;           /* pages of a run */
    size_t run_bytes;
    size_t *used; /* of each run */
    int n_runs;
    uint8_t **at; /* [n_runs] where each is */
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

/* Scales lie behind B'B: A's, then B's while it is made. */
typedef struct piece_sizes {
    size_t scales, gram, a, b;
} piece_sizes;

static piece_sizes sizes_of(const plan *p, const ol_lora_module *m)
{
    size_t rank = (size_t)m->rank, in = (size_t)m->a.shape[1], out = (size_t)m->b.shape[0];
    size_t scales = p->eight ? 2 * round16(rank) : 0, number = p->eight ? 1 : sizeof(uint16_t);

    return (piece_sizes){.scales = rank * rank * sizeof(float),
                         .gram = align((rank * rank + scales) * sizeof(float)),
                         .a = align(round16(rank) * ((in + 63) / 64 * 64) * number),
                         .b = align(round16(out) * round16(rank) * number)};
}

/* In a pool the largest piece says how many pages a run has. */
static void choose_run(plan *p)
{
    size_t most = p->head;

    p->run_bytes = SIZE_MAX;
    if (!p->page_bytes)
        return;
    for (int i = 0; i < p->n_modules; i++) {
        piece_sizes s = sizes_of(p, &p->modules[i]);

        most = s.gram > most ? s.gram : most;
        most = s.a > most ? s.a : most;
        most = s.b > most ? s.b : most;
    }
    p->run = (int)((most + p->page_bytes - 1) / p->page_bytes);
    p->run_bytes = (size_t)p->run * p->page_bytes;
}

/* The first run that has room. */
static size_t place_piece(plan *p, size_t bytes)
{
    size_t at;
    int i = 0;

    while (i < p->n_runs && p->run_bytes - p->used[i] < bytes)
        i++;
    p->n_runs += i == p->n_runs;
    at = p->used[i];
    p->used[i] += bytes;
    return (size_t)i * p->run_bytes + at;
}

/* Offsets now, addresses when there is memory. */
static void place_pieces(plan *p)
{
    (void)place_piece(p, p->head);
    for (int i = 0; i < p->n_modules; i++) {
        const ol_lora_module *m = &p->modules[i];
        gpu_lora_part *part = &parts_of(p)[m->layer * OL_MODULES + (int)m->module];
        piece_sizes s = sizes_of(p, m);

        part->rank = m->rank;
        part->scale = m->scale;
        rows_of(p)[m->layer * OL_MODULES + (int)m->module] = (int32_t)m->b.shape[0];
        part->gram = (const float *)place_piece(p, s.gram);
        part->scales = (const float *)((size_t)part->gram + s.scales);
        part->a = (const void *)place_piece(p, s.a);
        part->b = (const void *)place_piece(p, s.b);
        p->max_rank = m->rank > p->max_rank ? m->rank : p->max_rank;
    }
}

static size_t bytes_of(const plan *p)
{
    return p->page_bytes ? (size_t)p->n_runs * p->run_bytes : p->used[0];
}

static void free_plan(plan *p)
{
    free(p->image);
    free(p->used);
    free(p->at);
}

/* kv: the pool; NULL: one block. To be freed, whatever comes. */
static ol_code make_plan(plan *p, const ol_device *device, const ol_kv *kv,
                         const ol_lora_module *modules, int n_modules, ol_error *err)
{
    size_t most = 1 + 3 * (size_t)n_modules; /* runs */

    *p = (plan){.modules = modules,
                .n_modules = n_modules,
                .eight = device->options.adapters == OL_QUANT_INT8,
                .page_bytes = kv ? kv->page_bytes : 0};
    for (int i = 0; i < n_modules; i++)
        if (modules[i].layer >= p->n_layers)
            p->n_layers = modules[i].layer + 1;
    p->n_parts = p->n_layers * OL_MODULES;
    p->bad =
        align(sizeof(gpu_lora)) + (size_t)p->n_parts * (sizeof(gpu_lora_part) + sizeof(int32_t));
    p->head = align(p->bad + sizeof(int32_t));
    p->image = calloc(1, p->head);
    p->used = calloc(most, sizeof(size_t));
    p->at = calloc(most, sizeof(*p->at));
    if (!p->image || !p->used || !p->at)
        return ol_fail_nomem(err, p->head, "an adapter");
    choose_run(p);
    place_pieces(p);
    place_h(p);
    return OL_OK;
}

static const void *address(const plan *p, const void *offset)
{
    size_t at = (size_t)offset;

    return p->at[at / p->run_bytes] + at % p->run_bytes;
}

static void relocate(const plan *p)
{
    gpu_lora *lora = (gpu_lora *)p->image;

    *lora = (gpu_lora){.parts = (const gpu_lora_part *)(p->at[0] + align(sizeof(gpu_lora))),
                       .n_layers = p->n_layers,
                       .h_stride = p->h_stride};
    for (int i = 0; i < p->n_parts; i++) {
        gpu_lora_part *part = &parts_of(p)[i];

        if (part->rank == 0)
            continue;
        part->gram = address(p, part->gram);
        part->scales = p->eight ? address(p, part->scales) : NULL;
        part->a = address(p, part->a);
        part->b = address(p, part->b);
    }
}

/* A and B, which differ in whether columns are padded to 64 or 16. */
static void make_moves(const plan *p, const ol_lora_module *m, gpu_move moves[2])
{
    const gpu_lora_part *part = &parts_of(p)[m->layer * OL_MODULES + (int)m->module];
    uint32_t *most = p->eight ? (uint32_t *)(uintptr_t)part->scales : NULL;

    moves[0] = (gpu_move){.tensor = &m->a,
                          .to = {.data = (uint8_t *)(uintptr_t)part->a,
                                 .col_tiles = (int32_t)((m->a.shape[1] + 63) / 64 * 4),
                                 .most = most}};
    moves[1] = (gpu_move){.tensor = &m->b,
                          .to = {.data = (uint8_t *)(uintptr_t)part->b,
                                 .col_tiles = (m->rank + 15) / 16,
                                 .by_columns = true,
                                 .most = most ? most + round16((size_t)m->rank) : NULL}};
}

static ol_code send_matrices(ol_device *device, const plan *p, ol_error *err)
{
    int n = 2 * p->n_modules;
    gpu_move *moves = calloc((size_t)n, sizeof(*moves));
    ol_code code;

    if (!moves)
        return ol_fail_nomem(err, (size_t)n * sizeof(*moves), "an adapter");
    for (int i = 0; i < p->n_modules; i++)
        make_moves(p, &p->modules[i], moves + 2 * (size_t)i);
    code = gpu_upload_moves(device, moves, n, (int32_t *)(p->at[0] + p->bad), err);
    free(moves);
    return code;
}

/* What is made of all of an adapter's matrices. */
static ol_code finish(ol_device *device, const plan *p, ol_error *err)
{
    const gpu_lora_part *parts = (const gpu_lora_part *)(p->at[0] + align(sizeof(gpu_lora)));
    cudaStream_t stream = device->upload.stream;

    if (p->eight)
        GPU_TRY(gpu_lora8_scales(parts, p->n_parts, stream), "preparing an adapter");
    GPU_TRY(gpu_gram(parts, (const int32_t *)(parts + p->n_parts), p->n_parts, p->max_rank,
                     p->eight, stream),
            "preparing an adapter");
    return OL_OK;
}

/* The loader's thread waits here, the engine's does not. */
static ol_code fill(ol_device *device, const plan *p, ol_error *err)
{
    uint8_t *block = p->at[0];
    int32_t *bad = device->upload.bad;

    relocate(p);
    OL_TRY(gpu_upload_bytes(device, p->image, block, p->head, err));
    OL_TRY(send_matrices(device, p, err));
    OL_TRY(finish(device, p, err));
    GPU_TRY(cudaMemcpyAsync(bad, block + p->bad, sizeof(*bad), cudaMemcpyDeviceToHost,
                            device->upload.stream),
            "preparing an adapter");
    OL_TRY(gpu_upload_wait(device, err));
    if (*bad) {
        ol_fail(err, OL_INVALID, "the adapter has numbers that are not finite in bfloat16");
        return ol_hint(err, "NaN, infinity, or beyond 3.3895e38 in magnitude.");
    }
    return OL_OK;
}

/* Its memory is there: p->at. */
static ol_code create(ol_device *device, const plan *p, ol_lora *lora, ol_error *err)
{
    ol_code code;

    lora->block = p->at[0];
    lora->bytes = bytes_of(p);
    lora->h_stride = p->h_stride;
    code = fill(device, p, err);
    if (code != OL_OK)
        gpu_upload_settle(device); /* the modules' bytes may be read until then */
    return code;
}

static ol_code create_block(ol_device *device, plan *p, ol_lora *lora, ol_error *err)
{
    p->at[0] =
        gpu_block_ordered(&device->memory, bytes_of(p), "an adapter", device->upload.stream, err);
    return p->at[0] ? create(device, p, lora, err) : err->code;
}

/* What a page held before is of no step any more. */
static ol_code create_in_runs(ol_device *device, plan *p, ol_kv *kv, const int32_t *runs,
                              ol_lora *lora, ol_error *err)
{
    lora->pooled = true;
    for (int i = 0; i < p->n_runs; i++) {
        p->at[i] = kv->first.data + (size_t)runs[i] * kv->page_bytes;
        GPU_TRY(cudaMemsetAsync(p->at[i], 0, p->run_bytes, device->upload.stream),
                "preparing an adapter");
    }
    return create(device, p, lora, err);
}

/* kv and runs: of a pool, or NULL. */
static ol_code make(ol_device *device, ol_kv *kv, const int32_t *runs, plan *p, ol_lora **out,
                    ol_error *err)
{
    ol_lora *lora = calloc(1, sizeof(*lora));
    ol_code code;

    if (!lora)
        return ol_fail_nomem(err, sizeof(*lora), "an adapter");
    pthread_mutex_lock(&device->upload.lock);
    code = kv ? create_in_runs(device, p, kv, runs, lora, err) : create_block(device, p, lora, err);
    pthread_mutex_unlock(&device->upload.lock);
    if (code == OL_OK)
        *out = lora;
    else
        gpu_lora_free(device, lora);
    return code;
}

ol_code gpu_lora_create_in(ol_device *device, ol_kv *kv, const int32_t *runs,
                           const ol_lora_module *modules, int n_modules, ol_lora **out,
                           ol_error *err)
{
    ol_code code;
    plan p;

    GPU_TRY(cudaSetDevice(device->options.device_index), "choosing it");
    code = make_plan(&p, device, kv, modules, n_modules, err);
    if (code == OL_OK)
        code = make(device, kv, runs, &p, out, err);
    free_plan(&p);
    return code;
}

ol_code gpu_lora_create(ol_device *device, const ol_lora_module *modules, int n_modules,
                        ol_lora **out, ol_error *err)
{
    return gpu_lora_create_in(device, NULL, NULL, modules, n_modules, out, err);
}

ol_code gpu_lora_need(ol_device *device, const ol_kv *kv, const ol_lora_module *modules,
                      int n_modules, ol_lora_need *need, ol_error *err)
{
    ol_code code;
    plan p;

    code = make_plan(&p, device, kv, modules, n_modules, err);
    if (code == OL_OK)
        *need = (ol_lora_need){.n_runs = p.n_runs, .run = p.run};
    free_plan(&p);
    return code;
}

/* Whoever frees has no step under way that uses it. */
void gpu_lora_free(ol_device *device, ol_lora *lora)
{
    if (!lora)
        return;
    if (lora->block && !lora->pooled)
        gpu_block_free_ordered(&device->memory, lora->block, lora->bytes, device->upload.stream);
    free(lora);
}

size_t gpu_lora_bytes(ol_device *device, const ol_lora *lora)
{
    (void)device;
    return lora->bytes;
}
