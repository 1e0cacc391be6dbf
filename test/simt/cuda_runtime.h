/*
 * cuda_runtime.h: of CUDA's runtime what kernels/ uses, on a processor (test/simt). Memory is
 * the heap's; what a stream was given runs as late as it may, when somebody waits for it; a graph
 * is a list of what was launched. What is not allowed while a step is recorded fails there.
 */
#ifndef OL_TEST_SIMT_CUDA_RUNTIME_H
#define OL_TEST_SIMT_CUDA_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c)
    {
    }
};
extern "C" {
#endif

typedef enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInitializationError = 3,
    cudaErrorInsufficientDriver = 35,
    cudaErrorDevicesUnavailable = 46,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorNotSupported = 801,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
    cudaErrorStreamCaptureImplicit = 906,
    cudaErrorUnknown = 999,
} cudaError_t;

typedef struct simt_stream *cudaStream_t;
typedef struct simt_event *cudaEvent_t;
typedef struct simt_graph *cudaGraph_t;
typedef struct simt_graph *cudaGraphExec_t;

typedef struct simt_pool *cudaMemPool_t;
typedef enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4 } cudaMemPoolAttr;

typedef enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
} cudaMemcpyKind;
typedef enum cudaMemoryType {
    cudaMemoryTypeUnregistered,
    cudaMemoryTypeHost,
    cudaMemoryTypeDevice
} cudaMemoryType;
struct cudaPointerAttributes {
    cudaMemoryType type;
    int device;
    void *devicePointer, *hostPointer;
};
typedef enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal,
    cudaStreamCaptureModeThreadLocal,
    cudaStreamCaptureModeRelaxed
} cudaStreamCaptureMode;

typedef enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
    cudaDevAttrMemoryPoolsSupported = 115,
} cudaDeviceAttr;

typedef struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlockOptin;
    int major, minor, multiProcessorCount, l2CacheSize;
} cudaDeviceProp;

typedef struct cudaFuncAttributes {
    size_t localSizeBytes;
    int numRegs;
} cudaFuncAttributes;

#define cudaStreamNonBlocking 1u
#define cudaEventBlockingSync 1u
#define cudaEventDisableTiming 2u
#define cudaHostAllocDefault 0u
#define CUDART_VERSION 13000

const char *cudaGetErrorString(cudaError_t code);
const char *cudaGetErrorName(cudaError_t code);
cudaError_t cudaGetLastError(void);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaSetDevice(int index);
cudaError_t cudaGetDevice(int *index);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr what, int index);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int index);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, const void *kernel);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total);
cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t stream);
cudaError_t cudaFreeAsync(void *p, cudaStream_t stream);
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int index);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void *value);
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t keep);
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *what, const void *p);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
                                 unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);

/* -- for tests -------------------------------------------------------------------------------- */
/* When a stream runs what it was given: when somebody waits for it; at once; every second stream at
 * once. */
typedef enum simt_when { SIMT_LATE, SIMT_EARLY, SIMT_MIXED } simt_when;

typedef struct simt_options {
    int threads;         /* of the processor */
    unsigned seed;       /* of the order in which threads of a block go on; 0: their own; odd:
                          * a warp after another, each as far as it can (in every second
                          * block one of them as late as it may); 2 modulo 4:
                          * copies that run beside arrive early, otherwise late */
    size_t memory;       /* of the device; 0: no limit */
    int fail_after;      /* the launch that fails with cudaErrorIllegalAddress; -1: none */
    int capability;      /* of the device: 8 or 9; 0: OL_SIMT_CAPABILITY, or 8 */
    int group_differs;   /* the launch, from 1 on, from which products of groups round otherwise
                          * than those of warps; 0: none; -launch: adapters', asked for alone */
    int group_dies;      /* the one whose first such product ends the process; 0: none */
    cudaError_t absent;  /* what asking for devices says: there is none, or no driver for it */
    cudaError_t refusal; /* what choosing the device says */
    int no_capture;      /* recording fails */
    int no_early;        /* so it does where a launch may start early */
    int no_pools;        /* there is no memory in a stream's order */
    int no_code;         /* nothing was compiled for the device */
    size_t pinned;       /* bytes of the host that can be pinned; 0: no limit */
    int no_unregistered; /* asking for memory that is not CUDA's is an error, as it was before 11 */
    simt_when streams;   /* of those that are made from now on */
} simt_options;
extern simt_options simt_settings;
extern unsigned long long simt_launches;
extern unsigned long long simt_group_products; /* of this process, a thread's each */
/* As if the process began: no fault has happened yet. */
void simt_recover(void);

/* What passed between host and device, and how often the host waited. */
typedef struct simt_traffic {
    unsigned long long copies_in, copies_out, bytes_out, waits;
    unsigned long long pageable; /* copies from or to memory that is not pinned */
    unsigned long long launches;
} simt_traffic;
extern simt_traffic simt_counted;

#ifdef __cplusplus
}
#endif
#endif
