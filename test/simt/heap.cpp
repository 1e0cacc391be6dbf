/* heap.cpp: the device's memory and the host's pinned one, on the heap. Device memory starts
 * as NaN; what was freed in a stream's order stays with the pool, out of cudaMalloc's reach. */
#include "runtime.h"

#include <map>
#include <memory>
#include <stdlib.h>
#include <vector>

static std::map<void *, size_t> &blocks = *new std::map<void *, size_t>();
static std::map<const char *, size_t> &pinned = *new std::map<const char *, size_t>();
static size_t used, pooled;

static cudaError_t take(void **p, size_t bytes)
{
    if (simt_settings.memory &&
        (used + pooled > simt_settings.memory || bytes > simt_settings.memory - used - pooled))
        return cudaErrorMemoryAllocation;
    *p = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!*p)
        return cudaErrorMemoryAllocation;
    memset(*p, 0xff, bytes); /* what is read before it is written is NaN */
    blocks[*p] = bytes;
    used += bytes;
    return cudaSuccess;
}

/* Bytes of the block; 0: there is none. */
static size_t give(void *p)
{
    auto at = blocks.find(p);
    size_t bytes;

    if (at == blocks.end())
        return 0;
    bytes = at->second;
    used -= bytes;
    blocks.erase(at);
    free(p);
    return bytes;
}

bool simt_is_pinned(const void *p)
{
    auto at = pinned.upper_bound((const char *)p);

    return at != pinned.begin() && (--at, (const char *)p < at->first + at->second);
}

extern "C" {

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    SIMT_LOCKED;

    *total = simt_settings.memory ? simt_settings.memory : (size_t)64 << 30;
    *free_bytes = *total - used - pooled;
    return simt_sticky;
}

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    SIMT_LOCKED;
    cudaError_t code = simt_may_wait();

    return code == cudaSuccess ? take(p, bytes) : code;
}

cudaError_t cudaFree(void *p)
{
    SIMT_LOCKED;
    cudaError_t code = simt_may_wait();

    if (!p || code != cudaSuccess)
        return code;
    simt_finish_all();
    if (!blocks.count(p))
        return cudaErrorInvalidValue;
    give(p);
    return simt_sticky;
}

cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t stream)
{
    SIMT_LOCKED;
    size_t reused = pooled < bytes ? pooled : bytes;
    cudaError_t code = simt_sticky;

    (void)stream;
    pooled -= reused;
    if (code == cudaSuccess)
        code = take(p, bytes);
    if (code != cudaSuccess)
        pooled += reused;
    return code;
}

cudaError_t cudaFreeAsync(void *p, cudaStream_t stream)
{
    SIMT_LOCKED;

    if (!blocks.count(p))
        return cudaErrorInvalidValue;
    return simt_push(stream, [=]() { pooled += give(p); });
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int index)
{
    *pool = NULL;
    return index == 0 ? simt_sticky : cudaErrorInvalidDevice;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void *value)
{
    (void)pool, (void)attribute, (void)value;
    return simt_sticky;
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t keep)
{
    SIMT_LOCKED;

    (void)pool;
    pooled = pooled < keep ? pooled : keep;
    return simt_sticky;
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags)
{
    SIMT_LOCKED;
    cudaError_t code = simt_may_wait();

    (void)flags;
    if (code != cudaSuccess)
        return code;
    *p = malloc(bytes ? bytes : 1);
    if (!*p)
        return cudaErrorMemoryAllocation;
    pinned[(const char *)*p] = bytes ? bytes : 1;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *p)
{
    SIMT_LOCKED;
    cudaError_t code = simt_may_wait();

    if (!p || code != cudaSuccess)
        return code;
    simt_finish_all();
    if (!pinned.erase((const char *)p))
        return cudaErrorInvalidValue;
    free(p);
    return simt_sticky;
}

/* Pinned memory is read when the copy runs. Other memory may be the caller's again at once: it is
 * read now; and what goes there has arrived. */
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    SIMT_LOCKED;
    cudaError_t code;

    simt_counted.copies_in += kind == cudaMemcpyHostToDevice;
    simt_counted.copies_out += kind == cudaMemcpyDeviceToHost;
    simt_counted.bytes_out += kind == cudaMemcpyDeviceToHost ? bytes : 0;
    if (kind == cudaMemcpyHostToDevice && !simt_is_pinned(from)) {
        auto copy =
            std::make_shared<std::vector<char>>((const char *)from, (const char *)from + bytes);

        return simt_push(stream, [=]() { memcpy(to, copy->data(), bytes); });
    }
    code = simt_push(stream, [=]() { memmove(to, from, bytes); });
    if (code == cudaSuccess && kind == cudaMemcpyDeviceToHost && !simt_is_pinned(to))
        code = cudaStreamSynchronize(stream);
    return code;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    SIMT_LOCKED;
    cudaError_t code = cudaDeviceSynchronize();

    (void)kind;
    if (code == cudaSuccess)
        memmove(to, from, bytes);
    return code;
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream)
{
    return simt_push(stream, [=]() { memset(p, value, bytes); });
}
}
