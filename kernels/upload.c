/* upload.c: matrices from host memory into the device's layout. Rows travel through a few pinned
 * slots, so that reading, copying and packing overlap; kernels pack (pack.cu). */
#include "kernels/core.h"

#include <stdlib.h>
#include <string.h>

#define STRIP 16 /* rows of a tile */
/* Who waits sleeps: the loader's thread is beside the engine's, which computes. */
#define ASLEEP (cudaEventDisableTiming | cudaEventBlockingSync)

static void slot_free(gpu_slot *slot)
{
    if (slot->pinned)
        (void)cudaFreeHost(slot->pinned);
    if (slot->device)
        (void)cudaFree(slot->device);
    if (slot->came)
        (void)cudaEventDestroy(slot->came);
    if (slot->done)
        (void)cudaEventDestroy(slot->done);
    memset(slot, 0, sizeof(*slot));
}

static ol_code slot_make(gpu_slot *slot, size_t bytes, ol_error *err)
{
    slot_free(slot);
    GPU_TRY(cudaEventCreateWithFlags(&slot->came, cudaEventDisableTiming), "making an event");
    GPU_TRY(cudaEventCreateWithFlags(&slot->done, ASLEEP), "making an event");
    OL_TRY(gpu_pinned(&slot->pinned, bytes, "copies to it", err));
    GPU_TRY(cudaMalloc(&slot->device, bytes), "copies to it");
    slot->bytes = bytes;
    return OL_OK;
}

ol_code gpu_upload_open(ol_device *device, ol_error *err)
{
    pthread_mutex_init(&device->upload.lock, NULL);
    GPU_TRY(cudaStreamCreateWithFlags(&device->upload.stream, cudaStreamNonBlocking),
            "making a stream");
    GPU_TRY(cudaStreamCreateWithFlags(&device->upload.copies, cudaStreamNonBlocking),
            "making a stream");
    GPU_TRY(cudaEventCreateWithFlags(&device->upload.arrived, ASLEEP), "making an event");
    return gpu_pinned((void **)&device->upload.bad, sizeof(int32_t), "copies to it", err);
}

void gpu_upload_close(ol_device *device)
{
    for (int i = 0; i < UPLOAD_SLOTS; i++)
        slot_free(&device->upload.slots[i]);
    if (device->upload.arrived)
        (void)cudaEventDestroy(device->upload.arrived);
    if (device->upload.bad)
        (void)cudaFreeHost(device->upload.bad);
    if (device->upload.copies)
        (void)cudaStreamDestroy(device->upload.copies);
    if (device->upload.stream)
        (void)cudaStreamDestroy(device->upload.stream);
    pthread_mutex_destroy(&device->upload.lock);
}

void gpu_upload_settle(ol_device *device)
{
    (void)cudaStreamSynchronize(device->upload.copies);
    (void)cudaStreamSynchronize(device->upload.stream);
}

ol_code gpu_upload_wait(ol_device *device, ol_error *err)
{
    GPU_TRY(cudaEventRecord(device->upload.arrived, device->upload.stream), "copying to it");
    GPU_TRY(cudaEventSynchronize(device->upload.arrived), "copying to it");
    return OL_OK;
}

ol_code gpu_slot_take(ol_device *device, size_t bytes, gpu_slot **out, ol_error *err)
{
    gpu_slot *slot = &device->upload.slots[device->upload.next];

    device->upload.next = (device->upload.next + 1) % UPLOAD_SLOTS;
    if (slot->busy)
        GPU_TRY(cudaEventSynchronize(slot->done), "copying to it");
    slot->busy = false;
    if (slot->bytes < bytes)
        OL_TRY(slot_make(slot, bytes > UPLOAD_SLOT_BYTES ? bytes : UPLOAD_SLOT_BYTES, err));
    *out = slot;
    return OL_OK;
}

static ol_code send(ol_device *device, gpu_slot *slot, void *to, size_t bytes, ol_error *err)
{
    GPU_TRY(cudaMemcpyAsync(to, slot->pinned, bytes, cudaMemcpyHostToDevice, device->upload.stream),
            "copying to it");
    return OL_OK;
}

ol_code gpu_slot_leave(ol_device *device, gpu_slot *slot, ol_error *err)
{
    GPU_TRY(cudaEventRecord(slot->done, device->upload.stream), "copying to it");
    slot->busy = true;
    return OL_OK;
}

int gpu_source_dtype(ol_dtype dtype)
{
    switch (dtype) {
    case OL_F32:
        return 0;
    case OL_F16:
        return 1;
    case OL_BF16:
        return 2;
    case OL_Q8_0:
        return 3;
    case OL_Q4_0:
        return 4;
    case OL_Q4_K:
        return 5;
    default:
        return -1;
    }
}

/* What is done with rows that have come. */
typedef enum pass {
    PASS_MEASURE = 1, /* of eight bits: the largest magnitudes */
    PASS_PACK = 2,
} pass;

static cudaError_t pack_eight(ol_device *device, const gpu_packing *job, int first,
                              const gpu_source *source, int passes)
{
    cudaStream_t stream = device->upload.stream;
    cudaError_t code = cudaSuccess;

    if (passes & PASS_MEASURE)
        code = gpu_lora8_most(job->lora, first, source, job->bad, stream);
    if (code == cudaSuccess && passes & PASS_PACK)
        code = gpu_lora8_pack(job->lora, first, source, stream);
    return code;
}

static bool is_eight(const gpu_packing *job)
{
    return job->lora && job->lora->most;
}

static cudaError_t pack(ol_device *device, const gpu_packing *job, int first,
                        const gpu_source *source, int passes)
{
    if (is_eight(job))
        return pack_eight(device, job, first, source, passes);
    if (job->lora)
        return gpu_pack_columns((uint16_t *)job->lora->data, job->lora->col_tiles, first, source,
                                job->bad, device->upload.stream);
    return gpu_pack(job->to, first, source, job->bad, device->upload.stream);
}

static ol_code send_rows(ol_device *device, const gpu_packing *job, int64_t first, int64_t n,
                         int passes, ol_error *err)
{
    const ol_tensor *t = job->tensor;
    int64_t cols = t->shape[1];
    int dtype = gpu_source_dtype(t->dtype);
    gpu_source source = {.dtype = dtype < 0 ? 0 : dtype, .rows = (int32_t)n, .cols = (int32_t)cols};
    size_t row_bytes, bytes;
    const uint8_t *from;
    gpu_slot *slot = NULL;

    if (!ol_dtype_row_bytes(t->dtype, cols, &row_bytes))
        return ol_fail(err, OL_INTERNAL, "rows of tensor \"%s\"", t->name);
    from = (const uint8_t *)t->data + (size_t)first * row_bytes;
    bytes = (size_t)n * (dtype >= 0 ? row_bytes : (size_t)cols * sizeof(float));
    OL_TRY(gpu_slot_take(device, bytes, &slot, err));
    if (dtype >= 0)
        memcpy(slot->pinned, from, bytes);
    else
        ol_dequantize(t->dtype, from, slot->pinned, (size_t)(n * cols));
    OL_TRY(send(device, slot, slot->device, bytes, err));
    source.data = slot->device;
    GPU_TRY(pack(device, job, (int)first, &source, passes), "packing a matrix");
    return gpu_slot_leave(device, slot, err);
}

static ol_code send_all(ol_device *device, const gpu_packing *job, int64_t rows, int passes,
                        ol_error *err)
{
    int64_t all = job->tensor->shape[0];

    for (int64_t first = 0; first < all; first += rows)
        OL_TRY(send_rows(device, job, first, all - first < rows ? all - first : rows, passes, err));
    return OL_OK;
}

/* Columns are measured before any row is packed: where they do not fit in a slot they are sent
 * twice. */
ol_code gpu_upload_matrix(ol_device *device, const gpu_packing *job, ol_error *err)
{
    const ol_tensor *t = job->tensor;
    size_t row = (size_t)t->shape[1] * sizeof(float);
    int64_t rows = (int64_t)(UPLOAD_SLOT_BYTES / (row ? row : 1)) / STRIP * STRIP;

    if (rows < STRIP)
        rows = STRIP;
    if (!is_eight(job) || !job->lora->by_columns || t->shape[0] <= rows)
        return send_all(device, job, rows, PASS_MEASURE | PASS_PACK, err);
    OL_TRY(send_all(device, job, rows, PASS_MEASURE, err));
    return send_all(device, job, rows, PASS_PACK, err);
}

ol_code gpu_upload_bytes(ol_device *device, const void *from, void *to, size_t bytes, ol_error *err)
{
    for (size_t at = 0; at < bytes; at += UPLOAD_SLOT_BYTES) {
        size_t n = bytes - at < UPLOAD_SLOT_BYTES ? bytes - at : UPLOAD_SLOT_BYTES;
        gpu_slot *slot = NULL;

        OL_TRY(gpu_slot_take(device, n, &slot, err));
        memcpy(slot->pinned, (const uint8_t *)from + at, n);
        OL_TRY(send(device, slot, (uint8_t *)to + at, n, err));
        OL_TRY(gpu_slot_leave(device, slot, err));
    }
    return OL_OK;
}
