/* runtime.cpp: the device and what it says of itself: functions of cuda_runtime.h. */
#include "runtime.h"

#include <stdlib.h>
#include <unistd.h>

thread_local int simt_current;
static thread_local cudaError_t last;
static pid_t user; /* the process that uses CUDA */

cudaError_t simt_said(cudaError_t code)
{
    return last = code;
}

cudaError_t simt_process()
{
    SIMT_LOCKED;

    if (!user)
        user = getpid();
    return user == getpid() ? simt_sticky : cudaErrorInitializationError;
}

void simt_first_use()
{
    user = 0;
}

static bool exists(int index)
{
    return index >= 0 && index < SIMT_DEVICES;
}

extern "C" {

const char *cudaGetErrorName(cudaError_t code)
{
    switch (code) {
    case cudaSuccess:
        return "cudaSuccess";
    case cudaErrorMemoryAllocation:
        return "cudaErrorMemoryAllocation";
    case cudaErrorInitializationError:
        return "cudaErrorInitializationError";
    case cudaErrorInsufficientDriver:
        return "cudaErrorInsufficientDriver";
    case cudaErrorDevicesUnavailable:
        return "cudaErrorDevicesUnavailable";
    case cudaErrorNoDevice:
        return "cudaErrorNoDevice";
    case cudaErrorNoKernelImageForDevice:
        return "cudaErrorNoKernelImageForDevice";
    case cudaErrorInvalidResourceHandle:
        return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotSupported:
        return "cudaErrorNotSupported";
    case cudaErrorUnknown:
        return "cudaErrorUnknown";
    case cudaErrorIllegalAddress:
        return "cudaErrorIllegalAddress";
    case cudaErrorStreamCaptureUnsupported:
        return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
        return "cudaErrorStreamCaptureInvalidated";
    default:
        return "cudaError";
    }
}

const char *cudaGetErrorString(cudaError_t code)
{
    switch (code) {
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInsufficientDriver:
        return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorDevicesUnavailable:
        return "CUDA-capable device(s) is/are busy or unavailable";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    case cudaErrorNoKernelImageForDevice:
        return "no kernel image is available for execution on the device";
    case cudaErrorIllegalAddress:
        return "an illegal memory access was encountered";
    default:
        return cudaGetErrorName(code);
    }
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t code = simt_sticky != cudaSuccess ? simt_sticky : last;

    last = cudaSuccess;
    return code;
}

/* Of a driver that is too old: one version less. */
cudaError_t cudaDriverGetVersion(int *version)
{
    simt_read_faults();
    *version = simt_settings.absent == cudaErrorInsufficientDriver ? CUDART_VERSION - 1000
                                                                   : CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *n)
{
    simt_read_faults();
    *n = simt_settings.absent == cudaSuccess ? SIMT_DEVICES : 0;
    return simt_settings.absent == cudaSuccess ? simt_process() : simt_settings.absent;
}

cudaError_t cudaSetDevice(int index)
{
    cudaError_t code = simt_process();

    simt_read_faults();
    if (simt_settings.absent != cudaSuccess || simt_settings.refusal != cudaSuccess)
        return simt_settings.refusal != cudaSuccess ? simt_settings.refusal : simt_settings.absent;
    if (code != cudaSuccess || !exists(index))
        return code != cudaSuccess ? code : cudaErrorInvalidDevice;
    simt_current = index;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *index)
{
    *index = simt_current;
    return simt_process();
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr what, int index)
{
    cudaDeviceProp p;
    cudaError_t code = cudaGetDeviceProperties(&p, index);

    if (code != cudaSuccess)
        return code;
    *value = what == cudaDevAttrMultiProcessorCount      ? p.multiProcessorCount
             : what == cudaDevAttrComputeCapabilityMajor ? p.major
             : what == cudaDevAttrMemoryPoolsSupported   ? !simt_settings.no_pools
                                                         : (int)p.sharedMemPerBlockOptin;
    return cudaSuccess;
}

/* Loads the kernel, too. */
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, const void *kernel)
{
    (void)kernel;
    memset(a, 0, sizeof(*a));
    return simt_settings.no_code ? simt_said(cudaErrorNoKernelImageForDevice) : simt_may_wait();
}

static int capability()
{
    const char *given = getenv("OL_SIMT_CAPABILITY");

    return simt_settings.capability ? simt_settings.capability : given ? atoi(given) : 8;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int index)
{
    cudaError_t code = simt_settings.absent != cudaSuccess ? simt_settings.absent : simt_process();

    memset(p, 0, sizeof(*p));
    if (code != cudaSuccess || !exists(index))
        return code != cudaSuccess ? code : cudaErrorInvalidDevice;
    strcpy(p->name, "threads of a processor");
    p->major = capability();
    p->multiProcessorCount = 4;
    p->sharedMemPerBlockOptin = 227 * 1024;
    p->l2CacheSize = 1 << 20;
    p->totalGlobalMem = simt_settings.memory ? simt_settings.memory : (size_t)64 << 30;
    return cudaSuccess;
}
}
