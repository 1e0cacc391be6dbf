/*
 * simt.h: kernels/ on a processor. Each thread of a block is a fiber, warps meet where they
 * exchange, copies that run beside arrive as late as they may, and shared memory starts as
 * NaN: a missing barrier or wait shows as a wrong or undefined number. Blocks run one after
 * another on each processor thread. See gpu.cuh for what the functions mean.
 */
#ifndef OL_TEST_SIMT_H
#define OL_TEST_SIMT_H

#include <cstring>
#include <functional>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define GPU_RESIDENTS(now, before) (now)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define WARP 32
#define FULL_MASK 0xffffffffu
#define GPU_SHARED(name) uint8_t *const name = simt_shared()

/* -- threads --------------------------------------------------------------------------- */

struct simt_thread {
    dim3 thread, block, block_dim, grid_dim;
};

const simt_thread *simt_self();
uint8_t *simt_shared();

#define threadIdx (simt_self()->thread)
#define blockIdx (simt_self()->block)
#define blockDim (simt_self()->block_dim)
#define gridDim (simt_self()->grid_dim)

void __syncthreads();
void __syncwarp(unsigned mask = FULL_MASK);

/* Every lane of the warp gives `bytes` (64 at most) and gets what all gave: lane i's at
 * 64 * i, until its next exchange but one. */
const uint8_t *simt_exchange(const void *mine, size_t bytes);

template <typename T> T simt_from(T value, int lane)
{
    T r;

    memcpy(&r, simt_exchange(&value, sizeof(T)) + 64 * (lane & 31), sizeof(T));
    return r;
}

int simt_lane();

template <typename T> T __shfl_sync(unsigned, T value, int lane)
{
    return simt_from(value, lane);
}
template <typename T> T __shfl_xor_sync(unsigned, T value, int mask)
{
    return simt_from(value, simt_lane() ^ mask);
}
template <typename T> T __shfl_down_sync(unsigned, T value, int delta)
{
    int from = simt_lane() + delta;

    return simt_from(value, from > 31 ? simt_lane() : from);
}
template <typename T> T __shfl_up_sync(unsigned, T value, int delta)
{
    int from = simt_lane() - delta;

    return simt_from(value, from < 0 ? simt_lane() : from);
}
unsigned __ballot_sync(unsigned mask, int predicate);
static inline int __any_sync(unsigned mask, int predicate)
{
    return __ballot_sync(mask, predicate) != 0;
}

/* Integers alone: floats are never summed in the order of arrival. */
static inline int atomicAdd(int *p, int v)
{
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);
}
static inline unsigned atomicAdd(unsigned *p, unsigned v)
{
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);
}
static inline unsigned atomicMax(unsigned *p, unsigned v)
{
    unsigned was = __atomic_load_n(p, __ATOMIC_SEQ_CST);

    while (was < v &&
           !__atomic_compare_exchange_n(p, &was, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        ;
    return was;
}
static inline void __threadfence()
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* -- numbers ---------------------------------------------------------------------------- */

struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w)
{
    return {x, y, z, w};
}
static inline uint2 make_uint2(uint32_t x, uint32_t y)
{
    return {x, y};
}
static inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}
static inline float2 make_float2(float x, float y)
{
    return {x, y};
}

static inline uint32_t __float_as_uint(float x)
{
    uint32_t r;

    memcpy(&r, &x, 4);
    return r;
}
static inline float __uint_as_float(uint32_t x)
{
    float r;

    memcpy(&r, &x, 4);
    return r;
}
static inline int __float_as_int(float x)
{
    return (int)__float_as_uint(x);
}
static inline float __int_as_float(int x)
{
    return __uint_as_float((uint32_t)x);
}
static inline float rsqrtf(float x)
{
    return 1.0f / sqrtf(x);
}
static inline float __fdividef(float x, float y)
{
    return x / y;
}
/* Never joined into one operation. */
static inline float __fmul_rn(float x, float y)
{
    return x * y;
}
static inline float __fadd_rn(float x, float y)
{
    return x + y;
}
static inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t s)
{
    uint64_t both = ((uint64_t)y << 32) | x;
    uint32_t r = 0;

    for (int i = 0; i < 4; i++)
        r |= (uint32_t)((both >> (8 * ((s >> (4 * i)) & 7))) & 255) << (8 * i);
    return r;
}
template <typename T> static inline T __ldg(const T *p)
{
    return *p;
}
template <typename T> static inline T __ldcg(const T *p)
{
    return *p;
}
static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}
template <typename T> static inline T min(T a, T b)
{
    return a < b ? a : b;
}
template <typename T> static inline T max(T a, T b)
{
    return a > b ? a : b;
}

static inline float bf16_value(uint16_t v)
{
    return __uint_as_float((uint32_t)v << 16);
}
static inline float bf16_low(uint32_t v)
{
    return __uint_as_float(v << 16);
}
static inline float bf16_high(uint32_t v)
{
    return __uint_as_float(v & 0xffff0000u);
}
static inline uint32_t simt_to_bf16(float x)
{
    uint32_t u = __float_as_uint(x);

    if ((u & 0x7fffffffu) > 0x7f800000u)
        return 0x7fff;
    return (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}
static inline uint32_t bf16_pack(float low, float high)
{
    return simt_to_bf16(low) | simt_to_bf16(high) << 16;
}
static inline uint32_t bf16_multiply2(uint32_t a, uint32_t b)
{
    return bf16_pack(bf16_low(a) * bf16_low(b), bf16_high(a) * bf16_high(b));
}
static inline uint32_t bf16_multiply_add2(uint32_t a, uint32_t b, uint32_t c)
{
    return bf16_pack(fmaf(bf16_low(a), bf16_low(b), bf16_low(c)),
                     fmaf(bf16_high(a), bf16_high(b), bf16_high(c)));
}
static inline uint32_t bf16_subtract2(uint32_t a, uint32_t b)
{
    return bf16_pack(bf16_low(a) - bf16_low(b), bf16_high(a) - bf16_high(b));
}
static inline uint32_t and_or(uint32_t a, uint32_t b, uint32_t c)
{
    return (a & b) | c;
}
float f16_value(uint16_t v);
uint16_t f16_nearest(float v);
static inline float exp2_fast(float x)
{
    return exp2f(x);
}

/* -- matrices, copies ---------------------------------------------------------------------- */

void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void load_matrix4(uint32_t (&r)[4], const void *row);
void load_matrix4_transposed(uint32_t (&r)[4], const void *row);
static inline void load_matrix2_transposed(uint32_t (&r)[2], const void *row)
{
    uint32_t all[4];

    load_matrix4_transposed(all, row);
    r[0] = all[0];
    r[1] = all[1];
}
[[noreturn]] void simt_misaligned(); /* 16 bytes at once, where 16 bytes do not begin */
void copy_async16(void *to, const void *from, bool valid);
void copy_async_commit();
void simt_copy_wait(int n);
typedef uint8_t *shared_place;
static inline shared_place shared_place_of(void *p)
{
    return (shared_place)p;
}
static inline void copy_async16_at(shared_place to, const void *from)
{
    copy_async16(to, from, true);
}
static inline void load_matrix4_at(uint32_t (&r)[4], shared_place row)
{
    load_matrix4(r, row);
}
template <int N> static inline void copy_async_wait()
{
    simt_copy_wait(N);
}
static inline uint4 load_once(const void *p)
{
    if ((uintptr_t)p % 16)
        simt_misaligned();
    return *(const uint4 *)p;
}
static inline uint4 load_once_early(const void *p)
{
    return load_once(p);
}
static inline void prefetch(const void *p)
{
    (void)*(const volatile uint8_t *)p; /* is there */
}
template <typename T> static inline T *kept_in_memory(T *p)
{
    return p;
}

static inline int computed_anew(int x)
{
    return x;
}

/* -- launching ------------------------------------------------------------------------------ */

/* Runs now, or into the graph that `stream` is capturing. */
cudaError_t simt_launch(dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                        std::function<void()> thread);

template <typename... P>
static inline cudaError_t gpu_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                                     cudaStream_t stream, const P &...args)
{
    return simt_launch(grid, block, shared, stream, [=]() { kernel(args...); });
}

/* An early launch: one of its blocks runs up to wait_for_previous() before the kernel before it
 * has run. A thread that ends without having waited ends the program. */
cudaError_t simt_launch_early(dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                              std::function<void()> thread);
extern "C" int gpu_launches_early; /* kernels/launch.h */

void simt_has_to_wait();
void wait_for_previous();

template <typename... P>
static inline cudaError_t gpu_launch_early(void (*kernel)(P...), dim3 grid, dim3 block,
                                           size_t shared, cudaStream_t stream, const P &...args)
{
    return simt_launch_early(grid, block, shared, stream, [=]() { kernel(args...); });
}

#endif
