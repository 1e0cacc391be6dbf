/* card.c: which GPU it is, and what to say when there is none to be had. */
#include "kernels/core.h"

/* CUDA's numbers are 1000 * major + 10 * minor; a driver serves all programs of its major version
 * and of those before. */
static ol_code no_driver(int driver, ol_error *err)
{
    ol_fail(err, OL_UNSUPPORTED, "the NVIDIA driver is too old");
    ol_detail(err, "It is for CUDA %d.%d; CUDA %d.0 is needed.", driver / 1000, driver % 1000 / 10,
              CUDART_VERSION / 1000);
    return ol_hint(err, "Update the driver, or build openlora with an older CUDA.");
}

static ol_code no_card(cudaError_t code, ol_error *err)
{
    int driver = 0;

    (void)cudaDriverGetVersion(&driver);
    if (code == cudaErrorInsufficientDriver && driver > 0)
        return no_driver(driver, err);
    if (code != cudaErrorInsufficientDriver && code != cudaErrorNoDevice) {
        ol_fail(err, OL_DEVICE, "CUDA cannot use this machine's GPUs");
        ol_detail(err, "%s: %s.", cudaGetErrorName(code), cudaGetErrorString(code));
        return ol_hint(err, "nvidia-smi and the kernel's log may tell what is wrong with them.");
    }
    ol_fail(err, OL_NOT_FOUND, "there is no GPU that CUDA can use");
    if (code == cudaErrorInsufficientDriver)
        return ol_detail(err, "No NVIDIA driver is installed.");
    return ol_detail(err, "%s: %s.", cudaGetErrorName(code), cudaGetErrorString(code));
}

static ol_code refused(cudaError_t code, int index, ol_error *err)
{
    if (code != cudaErrorDevicesUnavailable)
        return gpu_fail(err, code, "choosing it");
    ol_fail(err, OL_DEVICE, "GPU %d is busy", index);
    ol_detail(err, "Another process has it for itself, or it is not to be used (nvidia-smi tells "
                   "its compute mode).");
    return ol_hint(err, "When it is free, reload the configuration.");
}

/* What was compiled for other cards alone, and cannot be compiled for this one by the driver. */
static ol_code check_code(const ol_device *device, ol_error *err)
{
    cudaError_t code = gpu_has_code();

    if (code == cudaSuccess)
        return OL_OK;
    if (code == cudaErrorMemoryAllocation)
        return gpu_fail(err, code, "its kernels");
    ol_fail(err, OL_UNSUPPORTED, "there are no kernels for GPU %d (%s)",
            device->options.device_index, device->card.name);
    ol_detail(err, "%s: %s.", cudaGetErrorName(code), cudaGetErrorString(code));
    return ol_hint(err, "Build openlora with CUDA_ARCHS=%d%d%s.", device->card.major,
                   device->card.minor, device->card.major == 9 ? "a" : "");
}

/* Nothing is left on a card that is refused for what it is: choosing it takes memory there. */
ol_code gpu_choose_card(ol_device *device, ol_error *err)
{
    int index = device->options.device_index, n = 0;
    cudaError_t code = cudaGetDeviceCount(&n);

    if (code != cudaSuccess || n == 0)
        return no_card(code == cudaSuccess ? cudaErrorNoDevice : code, err);
    if (index < 0 || index >= n) {
        ol_fail(err, OL_INVALID, "there is no GPU number %d", index);
        return ol_detail(err, "There are %d; the first one is number 0.", n);
    }
    GPU_TRY(cudaGetDeviceProperties(&device->card, index), "asking what it is");
    if (device->card.major < 8) {
        ol_fail(err, OL_UNSUPPORTED, "GPU %d (%s) is too old", index, device->card.name);
        return ol_detail(err, "Its compute capability is %d.%d; 8.0 is needed.", device->card.major,
                         device->card.minor);
    }
    code = cudaSetDevice(index);
    return code == cudaSuccess ? check_code(device, err) : refused(code, index, err);
}
