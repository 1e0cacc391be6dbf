/* runtime.cpp: the device and what it says of itself: functions of cuda_runtime.h. */
#include "runtime.h"

#include <stdlib.h>

extern "C" {

const char *cudaGetErrorName(cudaError_t code)
{
    switch (code) {
    case cudaSuccess:
        return "cudaSuccess";
    case cudaErrorMemoryAllocation:
        return "cudaErrorMemoryAllocation";
    case cudaErrorInsufficientDriver:
        return "cudaErrorInsufficientDriver";
    case cudaErrorDevicesUnavailable:
        return "cudaErrorDevicesUnavailable";
    case cudaErrorNoDevice:
        return "cudaErrorNoDevice";
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
    case cudaErrorIllegalAddress:
        return "an illegal memory access was encountered";
    default:
        return cudaGetErrorName(code);
    }
}

cudaError_t cudaGetLastError(void)
{
    return simt_sticky;
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
    *n = simt_settings.absent == cudaSuccess;
    return simt_settings.absent == cudaSuccess ? simt_sticky : simt_settings.absent;
}

cudaError_t cudaSetDevice(int index)
{
    simt_read_faults();
    if (simt_settings.refusal != cudaSuccess)
        return simt_settings.refusal;
    return index == 0 ? simt_sticky : cudaErrorInvalidDevice;
}

cudaError_t cudaGetDevice(int *index)
{
    *index = 0;
    return simt_sticky;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr what, int index)
{
    cudaDeviceProp p;

    cudaGetDeviceProperties(&p, index);
    *value = what == cudaDevAttrMultiProcessorCount      ? p.multiProcessorCount
             : what == cudaDevAttrComputeCapabilityMajor ? p.major
                                                         : (int)p.sharedMemPerBlockOptin;
    return simt_sticky;
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
    return simt_sticky;
}
}
