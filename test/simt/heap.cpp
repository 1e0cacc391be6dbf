/* heap.cpp: the device's memory and the host's pinned one, on the heap. Device memory starts
 * as NaN; what was freed in a stream's order stays with the pool, out of cudaMalloc's reach. */
#include "runtime.h"

#include <map>
#include <stdlib.h>

struct block {
    size_t bytes;
    int device;
};

static std::map<void *, block> &blocks = *new std::map<void *, block>();
static std::map<const char *, size_t> &pinned = *new std::map<const char *, size_t>();
static size_t used, pooled;
static size_t pinned_bytes;

static cudaError_t take(void **p, size_t bytes, int device)
{
    if (simt_settings.memory &&
        (used + pooled > simt_settings.memory || bytes > simt_settings.memory - used - pooled))
        return simt_said(cudaErrorMemoryAllocation);
    *p = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!*p)
        return simt_said(cudaErrorMemoryAllocation);
    memset(*p, 0xff, bytes); /* what is read before it is written is NaN */
    blocks[*p] = {bytes, device};
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
    bytes = at->second.bytes;
    used -= bytes;
    blocks.erase(at);
    free(p);
    return bytes;
}

/* Bytes from there to the end of its pinned block; 0: it is in none. */
static size_t pinned_from(const void *p)
{
    auto at = pinned.upper_bound((const char *)p);

    if (at == pinned.begin() || (--at, (const char *)p >= at->first + at->second))
        return 0;
    return (size_t)(at->first + at->second - (const char *)p);
}

bool simt_is_pinned(const void *p)
{
    return pinned_from(p) > 0;
}

static bool is_device(const void *p)
{
    auto at = blocks.upper_bound((void *)(uintptr_t)p);

    return at != blocks.begin() && (--at, (const char *)p < (char *)at->first + at->second.bytes);
}

/* Whether it is another card's memory than the stream's. */
static bool is_elsewhere(void *p, cudaStream_t stream)
{
    auto at = blocks.upper_bound(p);

    return at != blocks.begin() && (--at, (char *)p < (char *)at->first + at->second.bytes) &&
           at->second.device != simt_device_of(stream);
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

    return code == cudaSuccess ? take(p, bytes, simt_current) : code;
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
    cudaError_t code = simt_process();

    if (code == cudaSuccess && simt_settings.no_pools)
        return simt_said(cudaErrorNotSupported);
    pooled -= reused;
    if (code == cudaSuccess)
        code = take(p, bytes, simt_device_of(stream));
    if (code != cudaSuccess)
        pooled += reused;
    return code;
}

cudaError_t cudaFreeAsync(void *p, cudaStream_t stream)
{
    SIMT_LOCKED;

    if (!blocks.count(p))
        return cudaErrorInvalidValue;
    return simt_push(stream, {[=]() { pooled += give(p); }});
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int index)
{
    *pool = NULL;
    if (simt_settings.no_pools)
        return simt_said(cudaErrorNotSupported);
    return index >= 0 && index < SIMT_DEVICES ? simt_sticky : cudaErrorInvalidDevice;
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
    *p = simt_settings.pinned && bytes > simt_settings.pinned - pinned_bytes
             ? NULL
             : malloc(bytes ? bytes : 1);
    if (!*p)
        return simt_said(cudaErrorMemoryAllocation);
    pinned[(const char *)*p] = bytes ? bytes : 1;
    pinned_bytes += bytes;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *p)
{
    SIMT_LOCKED;
    cudaError_t code = simt_may_wait();

    auto at = pinned.find((const char *)p);

    if (!p || code != cudaSuccess)
        return code;
    if (at == pinned.end())
        return cudaErrorInvalidValue;
    simt_must_be_idle(p, at->second, "pinned memory was freed");
    pinned_bytes -= at->second;
    pinned.erase(at);
    free(p);
    return simt_sticky;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *what, const void *p)
{
    SIMT_LOCKED;
    cudaError_t code = simt_process();

    memset(what, 0, sizeof(*what));
    if (code != cudaSuccess)
        return code;
    what->type = simt_is_pinned(p) ? cudaMemoryTypeHost
                 : is_device(p)    ? cudaMemoryTypeDevice
                                   : cudaMemoryTypeUnregistered;
    if (what->type == cudaMemoryTypeUnregistered && simt_settings.no_unregistered)
        return simt_said(cudaErrorInvalidValue);
    return cudaSuccess;
}

/* Memory of the host is read, or written, when the copy runs. CUDA promises no more of memory that
 * is not pinned, either: a copy from or to there may wait for the stream, or not; so nobody who
 * must not wait may ask for one, which is counted. */
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    SIMT_LOCKED;
    bool in = kind == cudaMemcpyHostToDevice, out = kind == cudaMemcpyDeviceToHost;
    const void *host = in ? from : out ? to : NULL;

    if (host && simt_is_pinned(host) && pinned_from(host) < bytes)
        return simt_said(cudaErrorInvalidValue); /* beyond its block */
    simt_counted.copies_in += in;
    simt_counted.copies_out += out;
    simt_counted.bytes_out += out ? bytes : 0;
    if (host && !simt_is_pinned(host)) {
        if (simt_is_recorded(stream))
            return simt_may_wait();
        simt_counted.pageable++;
    }
    return simt_push(stream,
                     {[=]() { memmove(to, from, bytes); }, (const char *)host, host ? bytes : 0});
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
    SIMT_LOCKED;

    if (is_elsewhere(p, stream))
        return cudaErrorInvalidValue;
    return simt_push(stream, {[=]() { memset(p, value, bytes); }});
}
}
