/* block.cuh: what all threads of a block do together: sums, scans, minima. Each is called by
 * all of them; the order of a sum depends on the number of threads alone. */
#ifndef OL_KERNELS_BLOCK_CUH
#define OL_KERNELS_BLOCK_CUH

#include "kernels/gpu.cuh"

#define BLOCK_WARPS 32 /* at most */

/* A value of each warp. */
struct block_room {
    double value[BLOCK_WARPS];
};

static __device__ __forceinline__ int block_lane(void)
{
    return (int)threadIdx.x % WARP;
}

/* Each warp's `mine`, for all threads to see; what the room had before has been read. */
template <typename T> static __device__ const T *block_share(T mine, block_room *room, int lane)
{
    T *all = (T *)room->value;

    __syncthreads();
    if (block_lane() == lane)
        all[threadIdx.x / WARP] = mine;
    __syncthreads();
    return all;
}

template <typename T> static __device__ T block_sum(T v, block_room *room)
{
    const T *all;
    T sum = 0;

    for (int step = WARP / 2; step > 0; step /= 2)
        v += __shfl_xor_sync(FULL_MASK, v, step);
    all = block_share(v, room, 0);
    for (int i = 0; i < (int)blockDim.x / WARP; i++)
        sum += all[i];
    return sum;
}

/* The sum of the threads before this one's. */
template <typename T> static __device__ T block_sum_before(T v, block_room *room)
{
    int lane = block_lane();
    const T *all;
    T sum = 0, before;

    for (int step = 1; step < WARP; step *= 2) {
        T other = __shfl_up_sync(FULL_MASK, v, step);

        v = lane >= step ? v + other : v;
    }
    before = __shfl_up_sync(FULL_MASK, v, 1);
    all = block_share(v, room, WARP - 1);
    for (int i = 0; i < (int)threadIdx.x / WARP; i++)
        sum += all[i];
    return lane ? sum + before : sum;
}

template <typename T> static __device__ T block_max(T v, block_room *room)
{
    const T *all;

    for (int step = WARP / 2; step > 0; step /= 2)
        v = max(v, __shfl_xor_sync(FULL_MASK, v, step));
    all = block_share(v, room, 0);
    for (int i = 0; i < (int)blockDim.x / WARP; i++)
        v = max(v, all[i]);
    return v;
}

template <typename T> static __device__ T block_min(T v, block_room *room)
{
    const T *all;

    for (int step = WARP / 2; step > 0; step /= 2)
        v = min(v, __shfl_xor_sync(FULL_MASK, v, step));
    all = block_share(v, room, 0);
    for (int i = 0; i < (int)blockDim.x / WARP; i++)
        v = min(v, all[i]);
    return v;
}

#endif
