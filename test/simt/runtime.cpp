/* runtime.cpp: the functions of cuda_runtime.h on the heap. See there. */
#include <cuda_runtime.h>

#include "simt.h"

#include <functional>
#include <map>
#include <mutex>
#include <stdlib.h>
#include <vector>

struct simt_graph {
    std::vector<std::function<void()>> nodes;
};

struct simt_stream {
    simt_graph *capturing;
};

struct simt_event {
    int recorded;
};

unsigned long long simt_launches;
static cudaError_t sticky; /* as a real device's: no call works after it */
static std::mutex lock;
static std::map<void *, size_t> blocks;
static size_t used;

void simt_run_grid(dim3 grid, dim3 block, size_t shared, const std::function<void()> &body);

static cudaError_t run(cudaStream_t stream, std::function<void()> what)
{
    if (sticky != cudaSuccess)
        return sticky;
    if (stream && stream->capturing)
        stream->capturing->nodes.push_back(what);
    else
        what();
    return cudaSuccess;
}

cudaError_t simt_launch(dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                        std::function<void()> thread)
{
    if (grid.x * grid.y * grid.z == 0 || block.x * block.y * block.z > 1024 || grid.y > 65535 ||
        grid.z > 65535 || shared > 227 * 1024)
        return cudaErrorInvalidValue;
    return run(stream, [=]() {
        if (simt_settings.fail_after >= 0 && simt_launches >= (unsigned)simt_settings.fail_after)
            sticky = cudaErrorIllegalAddress;
        simt_launches++;
        if (sticky == cudaSuccess)
            simt_run_grid(grid, block, shared, thread);
    });
}

extern "C" {

const char *cudaGetErrorName(cudaError_t code)
{
    switch (code) {
    case cudaSuccess:
        return "cudaSuccess";
    case cudaErrorMemoryAllocation:
        return "cudaErrorMemoryAllocation";
    case cudaErrorIllegalAddress:
        return "cudaErrorIllegalAddress";
    default:
        return "cudaError";
    }
}

const char *cudaGetErrorString(cudaError_t code)
{
    return code == cudaErrorIllegalAddress     ? "an illegal memory access was encountered"
           : code == cudaErrorMemoryAllocation ? "out of memory"
                                               : cudaGetErrorName(code);
}

cudaError_t cudaGetLastError(void)
{
    return sticky;
}

cudaError_t cudaGetDeviceCount(int *n)
{
    *n = 1;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int index)
{
    return index == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaGetDevice(int *index)
{
    *index = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr what, int index)
{
    cudaDeviceProp p;

    cudaGetDeviceProperties(&p, index);
    *value = what == cudaDevAttrMultiProcessorCount      ? p.multiProcessorCount
             : what == cudaDevAttrComputeCapabilityMajor ? p.major
                                                         : (int)p.sharedMemPerBlockOptin;
    return cudaSuccess;
}

static int capability()
{
    const char *given = getenv("OL_SIMT_CAPABILITY");

    return simt_settings.capability ? simt_settings.capability : given ? atoi(given) : 8;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int index)
{
    (void)index;
    memset(p, 0, sizeof(*p));
    strcpy(p->name, "threads of a processor");
    p->major = capability();
    p->multiProcessorCount = 4;
    p->sharedMemPerBlockOptin = 227 * 1024;
    p->l2CacheSize = 1 << 20;
    p->totalGlobalMem = simt_settings.memory ? simt_settings.memory : (size_t)64 << 30;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    *total = simt_settings.memory ? simt_settings.memory : (size_t)64 << 30;
    *free_bytes = *total - used;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    std::lock_guard<std::mutex> guard(lock);

    if (simt_settings.memory &&
        (used > simt_settings.memory || bytes > simt_settings.memory - used))
        return cudaErrorMemoryAllocation;
    *p = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!*p)
        return cudaErrorMemoryAllocation;
    memset(*p, 0xff, bytes); /* what is read before it is written is NaN */
    blocks[*p] = bytes;
    used += bytes;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    std::lock_guard<std::mutex> guard(lock);

    if (!p)
        return cudaSuccess;
    if (!blocks.count(p))
        return cudaErrorInvalidValue;
    used -= blocks[p];
    blocks.erase(p);
    free(p);
    return cudaSuccess;
}

cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t stream)
{
    (void)stream;
    return cudaMalloc(p, bytes);
}

cudaError_t cudaFreeAsync(void *p, cudaStream_t stream)
{
    (void)stream;
    return cudaFree(p);
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int index)
{
    *pool = NULL;
    return index == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void *value)
{
    (void)pool, (void)attribute, (void)value;
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags)
{
    (void)flags;
    *p = malloc(bytes ? bytes : 1);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFreeHost(void *p)
{
    free(p);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    (void)kind;
    return run(stream, [=]() { memmove(to, from, bytes); });
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream)
{
    return run(stream, [=]() { memset(p, value, bytes); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    (void)flags;
    *stream = new simt_stream();
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    if (stream && stream->capturing)
        return cudaErrorInvalidValue;
    return sticky;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    (void)stream, (void)event, (void)flags;
    return sticky;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    (void)flags;
    *event = new simt_event();
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    (void)stream;
    event->recorded = 1;
    return sticky;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    (void)event;
    return sticky;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode)
{
    (void)mode;
    if (stream->capturing)
        return cudaErrorInvalidValue;
    stream->capturing = new simt_graph();
    return sticky;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    *graph = stream->capturing;
    stream->capturing = NULL;
    return *graph ? sticky : cudaErrorInvalidValue;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    (void)flags;
    *exec = new simt_graph(*graph);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    (void)stream;
    for (std::function<void()> &node : exec->nodes)
        node();
    return sticky;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return cudaSuccess;
}
}
