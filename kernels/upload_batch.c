/* upload_batch.c: an adapter's matrices to the device. They are hundreds, of some 100 KB, so that
 * starting a copy and a kernel for each would take longer than the bus does. Neighbours in the
 * host's memory, up to a slot's bytes of them, travel in one copy, a table of them behind them, and
 * one kernel packs them. From pinned memory they are copied as they lie there, without the
 * processor. */
#include "kernels/core.h"

#include <stdlib.h>
#include <string.h>

#define ALIGN 256     /* of the device's addresses those of the host keep so much */
#define MOST_GAP 4096 /* bytes between neighbours that are sent along */

typedef struct batch {
    const gpu_move *moves;
    int n;
    uintptr_t from, end; /* in the host's memory */
} batch;

static uintptr_t start_of(const gpu_move *m)
{
    return (uintptr_t)m->tensor->data;
}

/* Of what is numbers, not blocks of them; else 0. */
static size_t bytes_of(const gpu_move *m)
{
    const ol_tensor *t = m->tensor;
    size_t row;

    if (ol_dtype_block(t->dtype) != 1 || !ol_dtype_row_bytes(t->dtype, t->shape[1], &row))
        return 0;
    return (size_t)t->shape[0] * row;
}

/* Where the table is in a slot: behind the matrices, which begin as far beyond a multiple of ALIGN
 * as in the host's memory. */
static size_t table_at(const batch *b)
{
    return (b->from % ALIGN + (b->end - b->from) + ALIGN - 1) / ALIGN * ALIGN;
}

static size_t slot_bytes(const batch *b)
{
    return table_at(b) + (size_t)b->n * sizeof(gpu_arrival);
}

/* As the kernel reads it: whole, number by number. */
static bool may_travel(const gpu_move *m)
{
    size_t bytes = bytes_of(m);
    batch alone = {m, 1, start_of(m), start_of(m) + bytes};

    return bytes > 0 && gpu_source_dtype(m->tensor->dtype) >= 0 &&
           start_of(m) % ol_dtype_block_bytes(m->tensor->dtype) == 0 &&
           slot_bytes(&alone) <= UPLOAD_SLOT_BYTES;
}

static bool add(batch *b, const gpu_move *m)
{
    batch more = *b;
    uintptr_t end;

    if (!may_travel(m) || start_of(m) > b->end + MOST_GAP)
        return false;
    end = start_of(m) + bytes_of(m);
    more.n++;
    more.end = end > b->end ? end : b->end;
    if (slot_bytes(&more) > UPLOAD_SLOT_BYTES)
        return false;
    *b = more;
    return true;
}

/* -- to the device ----------------------------------------------------------------------------- */

static size_t place(const batch *b, const gpu_move *m)
{
    return b->from % ALIGN + (start_of(m) - b->from);
}

static void fill_table(const batch *b, const gpu_slot *slot, gpu_arrivals *all)
{
    gpu_arrival *table = (gpu_arrival *)((uint8_t *)slot->pinned + table_at(b));

    for (int i = 0; i < b->n; i++) {
        const ol_tensor *t = b->moves[i].tensor;

        table[i] =
            (gpu_arrival){.source = {.data = (uint8_t *)slot->device + place(b, &b->moves[i]),
                                     .dtype = gpu_source_dtype(t->dtype),
                                     .rows = (int32_t)t->shape[0],
                                     .cols = (int32_t)t->shape[1]},
                          .to = b->moves[i].to};
    }
    gpu_arrivals_count(table, b->n, all);
    all->table = (const gpu_arrival *)((uint8_t *)slot->device + table_at(b));
}

/* Some drivers call it an error to ask for what they do not know. */
static bool is_pinned(uintptr_t at)
{
    struct cudaPointerAttributes what;
    cudaError_t code = cudaPointerGetAttributes(&what, (const void *)at);

    if (code != cudaSuccess)
        (void)cudaGetLastError();
    return code == cudaSuccess && what.type == cudaMemoryTypeHost;
}

static cudaError_t copy(ol_device *device, gpu_slot *slot, size_t at, const void *from, size_t n)
{
    return cudaMemcpyAsync((uint8_t *)slot->device + at, from, n, cudaMemcpyHostToDevice,
                           device->upload.copies);
}

/* False: not pinned; or of two allocations, which no copy may be. */
static bool copy_directly(ol_device *device, gpu_slot *slot, const batch *b, cudaError_t *code)
{
    if (!is_pinned(b->from) || !is_pinned(b->end - 1))
        return false;
    *code = copy(device, slot, b->from % ALIGN, (const void *)b->from, b->end - b->from);
    if (*code != cudaErrorInvalidValue)
        return true;
    (void)cudaGetLastError();
    return false;
}

/* Gaps are nobody's to read here. */
static cudaError_t copy_batch(ol_device *device, gpu_slot *slot, const batch *b)
{
    uint8_t *pinned = slot->pinned;
    size_t table = table_at(b);
    cudaError_t code;

    if (copy_directly(device, slot, b, &code))
        return code != cudaSuccess
                   ? code
                   : copy(device, slot, table, pinned + table, slot_bytes(b) - table);
    for (int i = 0; i < b->n; i++)
        memcpy(pinned + place(b, &b->moves[i]), b->moves[i].tensor->data, bytes_of(&b->moves[i]));
    return copy(device, slot, b->from % ALIGN, pinned + b->from % ALIGN,
                slot_bytes(b) - b->from % ALIGN);
}

static ol_code send_batch(ol_device *device, const batch *b, int32_t *bad, ol_error *err)
{
    gpu_upload *upload = &device->upload;
    gpu_arrivals all;
    gpu_slot *slot;

    OL_TRY(gpu_slot_take(device, slot_bytes(b), &slot, err));
    fill_table(b, slot, &all);
    GPU_TRY(copy_batch(device, slot, b), "copying to it");
    GPU_TRY(cudaEventRecord(slot->came, upload->copies), "copying to it");
    GPU_TRY(cudaStreamWaitEvent(upload->stream, slot->came, 0), "copying to it");
    GPU_TRY(gpu_arrivals_pack(&all, bad, upload->stream), "packing an adapter");
    return gpu_slot_leave(device, slot, err);
}

/* -- which travel together --------------------------------------------------------------------- */

static int by_address(const void *a, const void *b)
{
    uintptr_t x = start_of(a), y = start_of(b);

    return (x > y) - (x < y);
}

/* By rows, converted if need be. */
static ol_code send_alone(ol_device *device, const gpu_move *m, int32_t *bad, ol_error *err)
{
    gpu_packing job = {.tensor = m->tensor, .lora = &m->to, .bad = bad};

    return gpu_upload_matrix(device, &job, err);
}

ol_code gpu_upload_moves(ol_device *device, gpu_move *moves, int n, int32_t *bad, ol_error *err)
{
    qsort(moves, (size_t)n, sizeof(*moves), by_address);
    for (int i = 0; i < n;) {
        batch b = {moves + i, 0, start_of(&moves[i]), start_of(&moves[i])};

        while (i + b.n < n && add(&b, &moves[i + b.n]))
            continue;
        OL_TRY(b.n ? send_batch(device, &b, bad, err) : send_alone(device, &moves[i], bad, err));
        i += b.n ? b.n : 1;
    }
    return OL_OK;
}
