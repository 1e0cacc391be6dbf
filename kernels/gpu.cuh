/*
 * gpu.cuh: what kernels ask of the hardware beyond CUDA C++: matrix products of a warp,
 * copies that run beside, conversions of packed numbers. Nothing else in kernels/ holds
 * assembly, but group.cuh.
 *
 * Compiled by nvcc this is PTX of sm_80 and later. With OL_SIMT it is the same functions in
 * C++ (test/simt), so that every kernel runs on a processor, thread by thread, under
 * AddressSanitizer if need be; that is how kernels are tested where there is no GPU.
 * Kernels therefore use of CUDA C++ only what test/simt/simt.h has.
 *
 * bf16 numbers are kept as their bits: uint16_t, or two in a uint32_t (the first one low).
 */
#ifndef OL_GPU_CUH
#define OL_GPU_CUH

#include <cuda_runtime.h>
#include <stdint.h>

/* Shared memory that a block can have on any device: what those of 8.6 and 8.9 have. */
#define GPU_SHARED_ANYWHERE (99 * 1024)

#ifdef OL_SIMT
#include "simt.h"
#else

#define WARP 32
#define FULL_MASK 0xffffffffu

/* Dynamic shared memory of the block: at an address of which group.cuh can count. */
#define GPU_SHARED(name) extern __shared__ __align__(1024) uint8_t name[]

/* Blocks that registers are to suffice for, on a multiprocessor of compute capability 9.0 and
 * later; and before, where shared memory is for fewer, and fewer do. */
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define GPU_RESIDENTS(now, before) (now)
#else
#define GPU_RESIDENTS(now, before) (before)
#endif

static __device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* -- numbers ------------------------------------------------------------------------ */

static __device__ __forceinline__ float bf16_value(uint16_t v)
{
    return __uint_as_float((uint32_t)v << 16);
}

static __device__ __forceinline__ float bf16_low(uint32_t v)
{
    return __uint_as_float(v << 16);
}

static __device__ __forceinline__ float bf16_high(uint32_t v)
{
    return __uint_as_float(v & 0xffff0000u);
}

/* Rounded to nearest even. */
static __device__ __forceinline__ uint32_t bf16_pack(float low, float high)
{
    uint32_t r;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

static __device__ __forceinline__ float f16_value(uint16_t v)
{
    float r;

    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
    return r;
}

/* To nearest even. */
static __device__ __forceinline__ uint16_t f16_nearest(float v)
{
    uint16_t r;

    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
    return r;
}

/* a * b of packed bf16, each product rounded once. */
static __device__ __forceinline__ uint32_t bf16_multiply2(uint32_t a, uint32_t b)
{
    uint32_t r;

    asm("{.reg .b32 z; mov.b32 z, 0x80008000; fma.rn.bf16x2 %0, %1, %2, z;}"
        : "=r"(r)
        : "r"(a), "r"(b));
    return r;
}

/* a * b + c of packed bf16, rounded once. */
static __device__ __forceinline__ uint32_t bf16_multiply_add2(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t r;

    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

/* a - b of packed bf16: a * 1 - b, rounded once. */
static __device__ __forceinline__ uint32_t bf16_subtract2(uint32_t a, uint32_t b)
{
    uint32_t r;

    asm("{.reg .b32 o; mov.b32 o, 0x3f803f80; fma.rn.bf16x2 %0, %1, o, %2;}"
        : "=r"(r)
        : "r"(a), "r"(b ^ 0x80008000u));
    return r;
}

/* (a & b) | c, in one instruction whatever is constant. */
static __device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t r;

    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

static __device__ __forceinline__ float exp2_fast(float x)
{
    float r;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

/* -- matrix products ------------------------------------------------------------------ */

/*
 * C (16 x 8, f32) += A (16 x 16, bf16) B (16 x 8, bf16), by a warp. With g = lane / 4 and
 * t = lane % 4 a lane holds
 *   a[0] (g, 2t..)  a[1] (g + 8, 2t..)  a[2] (g, 2t + 8..)  a[3] (g + 8, 2t + 8..)
 *   b[0] (2t.., g)  b[1] (2t + 8.., g)         c[0], c[1] (g, 2t..)  c[2], c[3] (g + 8, 2t..)
 */
static __device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4],
                                                const uint32_t (&b)[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four 8 x 8 matrices of 2-byte elements from shared memory: lane i names row i % 8 (16
 * aligned bytes) of matrix i / 8; r[j] of a lane is of matrix j: (g, 2t..). */
static __device__ __forceinline__ void load_matrix4(uint32_t (&r)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* The same, each matrix transposed: r[j] is (2t, g) and (2t + 1, g). */
static __device__ __forceinline__ void load_matrix4_transposed(uint32_t (&r)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* Two of them: lanes 0 .. 15 name their rows. */
static __device__ __forceinline__ void load_matrix2_transposed(uint32_t (&r)[2], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

/* -- copies --------------------------------------------------------------------------- */

/* 16 aligned bytes, global to shared, beside what the thread does; zeros unless `valid`
 * (then `from` is not read, but must be an address of something). */
static __device__ __forceinline__ void copy_async16(void *to, const void *from, bool valid)
{
    int bytes = valid ? 16 : 0;

    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
}

/* A place in shared memory that is in a register, not computed anew at each use. */
typedef uint32_t shared_place;

static __device__ __forceinline__ shared_place shared_place_of(const void *p)
{
    shared_place place = shared_address(p);

    asm volatile("" : "+r"(place));
    return place;
}

/* copy_async16() and load_matrix4() at a place. */
static __device__ __forceinline__ void copy_async16_at(shared_place to, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(to), "l"(from) : "memory");
}

static __device__ __forceinline__ void load_matrix4_at(uint32_t (&r)[4], shared_place row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

/* Ends a group of this thread's copies. */
static __device__ __forceinline__ void copy_async_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until at most N of this thread's groups are under way. Others see the bytes after a
 * barrier. */
template <int N> static __device__ __forceinline__ void copy_async_wait(void)
{
    asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory");
}

/* 16 bytes that are read once: past the first-level cache. */
static __device__ __forceinline__ uint4 load_once(const void *p)
{
    uint4 r;

    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p));
    return r;
}

/* The same, on its way before wait_for_previous() where it stands before that: other loads the
 * compiler moves behind it. */
static __device__ __forceinline__ uint4 load_once_early(const void *p)
{
    uint4 r;

    asm volatile("ld.relaxed.gpu.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p)
                 : "memory");
    return r;
}

/* The bytes about there come to the second-level cache. */
static __device__ __forceinline__ void prefetch(const void *p)
{
    asm volatile("prefetch.global.L2 [%0];" : : "l"(p));
}

/* The same address, unknown to the compiler: an array of the thread's own that is reached by it
 * stays in memory, where it would otherwise take registers. */
template <typename T> static __device__ __forceinline__ T *kept_in_memory(T *p)
{
    asm volatile("" : "+l"(p) : : "memory");
    return p;
}

/* The same number, unknown to the compiler: what follows from it is computed anew, where it would
 * otherwise take registers through all that is between. */
static __device__ __forceinline__ int computed_anew(int x)
{
    asm volatile("" : "+r"(x));
    return x;
}

/* -- launching ------------------------------------------------------------------------- */

/*
 * In a kernel of gpu_launch_early: until all work before it is done. Every thread has to come here,
 * and before it none may write, or read what the kernel before writes.
 *
 * Then the kernel after may start, where it is launched early, too, as soon as all blocks of this
 * one are running: it fills what the last of them leave idle. It finds what the kernel before this
 * one wrote: not sooner than here is that known to be done, so not sooner may it be let go.
 */
static __device__ __forceinline__ void wait_for_previous(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Shared memory beyond 48 KiB has to be asked for, once a kernel and device. */
template <typename... P>
static cudaError_t gpu_launch_with(cudaLaunchConfig_t *config, void (*kernel)(P...), dim3 grid,
                                   dim3 block, size_t shared, cudaStream_t stream, const P &...args)
{
    if (shared > 48 * 1024) {
        cudaError_t code = cudaFuncSetAttribute(
            (const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);

        if (code != cudaSuccess)
            return code;
    }
    config->gridDim = grid;
    config->blockDim = block;
    config->dynamicSmemBytes = shared;
    config->stream = stream;
    return cudaLaunchKernelEx(config, kernel, args...);
}

template <typename... P>
static cudaError_t gpu_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                              cudaStream_t stream, const P &...args)
{
    cudaLaunchConfig_t config = {};

    return gpu_launch_with(&config, kernel, grid, block, shared, stream, args...);
}

extern "C" int gpu_launches_early; /* launch.h */

/* Whether the code that the device runs waits in wait_for_previous(): what was compiled for compute
 * capability 9.0 and later. What a build has for earlier ones alone runs there, too, and does not.
 * Asked for once: all kernels are compiled for the same, and all devices of a process are alike. */
static inline bool gpu_has_early_launches(const void *kernel)
{
    static int version;
    cudaFuncAttributes found;

    if (version == 0 && cudaFuncGetAttributes(&found, kernel) == cudaSuccess)
        version = found.ptxVersion;
    return version >= 90;
}

/* May start when the blocks of the kernel before have ended, or have come to wait_for_previous()
 * themselves; before what they write can be read. As gpu_launch() where the device has no such
 * thing. */
template <typename... P>
static cudaError_t gpu_launch_early(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                                    cudaStream_t stream, const P &...args)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute early = {};
    /* The same wish of all, or a multiprocessor would have to be empty before it is divided anew
     * for the next one. */
    cudaError_t code =
        cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared);

    if (code != cudaSuccess)
        return code;
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &early;
    config.numAttrs = gpu_launches_early && gpu_has_early_launches((const void *)kernel);
    return gpu_launch_with(&config, kernel, grid, block, shared, stream, args...);
}

#endif /* OL_SIMT */

/* -- of a warp, on top of the above ----------------------------------------------------- */

static __device__ __forceinline__ float warp_sum(float x)
{
    for (int step = WARP / 2; step > 0; step /= 2)
        x += __shfl_xor_sync(FULL_MASK, x, step);
    return x;
}

static __device__ __forceinline__ float warp_max(float x)
{
    for (int step = WARP / 2; step > 0; step /= 2)
        x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, step));
    return x;
}

#endif
