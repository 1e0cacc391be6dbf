/* memory.c: device memory within one limit, and what CUDA says as errors. */
#include "kernels/core.h"

#include <stdatomic.h>
#include <string.h>

#define MOST_SPARE ((size_t)16 << 20)

ol_code gpu_fail(ol_error *err, cudaError_t code, const char *what)
{
    if (code == cudaErrorMemoryAllocation) {
        ol_fail(err, OL_NOMEM, "the GPU has no memory for %s", what);
        return ol_hint(err, "Lower openlora.cache_size, openlora.kv_cache_size, "
                            "openlora.adapter_cache_size or choose a smaller "
                            "openlora.quantization.");
    }
    ol_fail(err, OL_DEVICE, "the GPU failed: %s", what);
    return ol_detail(err, "%s: %s", cudaGetErrorName(code), cudaGetErrorString(code));
}

/* Whose memory it is that does not suffice: within openlora's limit the card's. */
static void no_memory(const gpu_memory *memory, size_t bytes, const char *what, ol_error *err)
{
    size_t left = 0, all = 0;

    gpu_fail(err, cudaErrorMemoryAllocation, what);
    if (cudaMemGetInfo(&left, &all) == cudaSuccess)
        ol_detail(err, "It needs %zu bytes; of the card's %zu %zu are free, %zu in use here.",
                  bytes, all, left, (size_t)memory->used - bytes);
}

static bool reserve(gpu_memory *memory, size_t bytes, const char *what, ol_error *err)
{
    size_t used = memory->used;

    do {
        if (bytes <= SIZE_MAX / 4 &&
            (!memory->limit || (bytes <= memory->limit && used <= memory->limit - bytes)))
            continue;
        ol_fail(err, OL_NOMEM, "the device's memory limit does not admit %s", what);
        ol_detail(err, "It needs %zu bytes; %zu of %zu are in use.", bytes, used, memory->limit);
        ol_hint(err, "Raise openlora.memory_limit, lower openlora.kv_cache_size or "
                     "openlora.adapter_cache_size, or choose a smaller openlora.quantization.");
        return false;
    } while (!atomic_compare_exchange_weak(&memory->used, &used, used + bytes));
    return true;
}

ol_code gpu_pinned(void **p, size_t bytes, const char *what, ol_error *err)
{
    cudaError_t code = cudaHostAlloc(p, bytes, cudaHostAllocDefault);

    if (code == cudaSuccess)
        return OL_OK;
    *p = NULL;
    if (code != cudaErrorMemoryAllocation)
        return gpu_fail(err, code, what);
    (void)cudaGetLastError(); /* as below */
    ol_fail(err, OL_NOMEM, "the host has no memory that the GPU could reach for %s", what);
    return ol_detail(err, "It needs %zu bytes of pinned memory.", bytes);
}

void *gpu_host_alloc(ol_device *device, size_t bytes)
{
    ol_error err;
    void *p = NULL;

    if (cudaSetDevice(device->options.device_index) != cudaSuccess ||
        gpu_pinned(&p, bytes, "adapters", &err) != OL_OK)
        return NULL;
    return p;
}

void gpu_host_free(ol_device *device, void *bytes)
{
    (void)device;
    (void)cudaFreeHost(bytes);
}

static cudaError_t allocate(void **p, size_t bytes, cudaStream_t stream, bool ordered)
{
    cudaError_t code = ordered ? cudaMallocAsync(p, bytes, stream) : cudaMalloc(p, bytes);
    cudaMemPool_t pool;
    int device;

    if (code != cudaErrorMemoryAllocation)
        return code;
    (void)cudaGetLastError(); /* memory is no fault of the device: later calls work */
    /* What adapters have given back to CUDA's pool is out of reach for others; it is given back
     * when their stream comes to it. */
    if (ordered || cudaDeviceSynchronize() != cudaSuccess ||
        cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetDefaultMemPool(&pool, device) != cudaSuccess ||
        cudaMemPoolTrimTo(pool, 0) != cudaSuccess)
        return code;
    code = cudaMalloc(p, bytes);
    if (code == cudaErrorMemoryAllocation)
        (void)cudaGetLastError();
    return code;
}

static void *take(gpu_memory *memory, size_t bytes, const char *what, cudaStream_t stream,
                  bool ordered, ol_error *err)
{
    size_t room = bytes ? bytes : 1;
    cudaError_t code;
    void *p = NULL;

    if (!reserve(memory, bytes, what, err))
        return NULL;
    ordered = ordered && !memory->no_pool;
    code = allocate(&p, room, stream, ordered);
    if (code == cudaSuccess) {
        code = cudaMemsetAsync(p, 0, room, stream);
        if (code == cudaSuccess)
            return p;
        (void)(ordered ? cudaFreeAsync(p, stream) : cudaFree(p));
    }
    if (code == cudaErrorMemoryAllocation)
        no_memory(memory, bytes, what, err);
    else
        gpu_fail(err, code, what);
    memory->used -= bytes;
    return NULL;
}

void *gpu_block(gpu_memory *memory, size_t bytes, const char *what, cudaStream_t stream,
                ol_error *err)
{
    return take(memory, bytes, what, stream, false, err);
}

void gpu_block_free(gpu_memory *memory, void *p, size_t bytes)
{
    (void)cudaFree(p);
    memory->used -= bytes;
}

void *gpu_block_ordered(gpu_memory *memory, size_t bytes, const char *what, cudaStream_t stream,
                        ol_error *err)
{
    return take(memory, bytes, what, stream, true, err);
}

void gpu_block_free_ordered(gpu_memory *memory, void *p, size_t bytes, cudaStream_t stream)
{
    (void)(memory->no_pool ? cudaFree(p) : cudaFreeAsync(p, stream));
    memory->used -= bytes;
}

ol_code gpu_pool_keep(gpu_memory *memory, int device_index, ol_error *err)
{
    uint64_t all = UINT64_MAX;
    cudaMemPool_t pool;
    int has = 0;

    GPU_TRY(cudaDeviceGetAttribute(&has, cudaDevAttrMemoryPoolsSupported, device_index),
            "its memory pool");
    memory->no_pool = !has;
    if (!has) /* some virtual GPUs: adapters that come and go hold up steps */
        return OL_OK;
    GPU_TRY(cudaDeviceGetDefaultMemPool(&pool, device_index), "its memory pool");
    GPU_TRY(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all),
            "its memory pool");
    return OL_OK;
}

/* In powers of two, as far as that is little: what grows with each batch drops the graphs rarely.
 */
static size_t room_for(size_t bytes)
{
    size_t room = 4096;

    while (room < bytes)
        room *= 2;
    return room <= MOST_SPARE ? room : bytes;
}

ol_code gpu_scratch_need(ol_device *device, gpu_scratch *scratch, size_t bytes, const char *what,
                         ol_error *err)
{
    if (bytes <= scratch->bytes)
        return OL_OK;
    bytes = room_for(bytes);
    gpu_graphs_drop(device);
    gpu_block_free(&device->memory, scratch->data, scratch->bytes);
    scratch->bytes = 0;
    scratch->data = gpu_block(&device->memory, bytes, what, device->stream, err);
    if (!scratch->data)
        return err->code;
    scratch->bytes = bytes;
    return OL_OK;
}
