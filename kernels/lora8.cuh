/* lora8.cuh: adapters' numbers in eight bits (README.md, adapters) to fragments of bf16, which has
 * each of them exactly. */
#ifndef OL_LORA8_CUH
#define OL_LORA8_CUH

#include "kernels/gpu.cuh"

/* Which byte of its lane's eight has value j of a tile: a word's pairs are its bytes 0 and 2, and 1
 * and 3. */
static __device__ __forceinline__ int lora8_place(int j)
{
    return j / 4 * 4 + j % 4 / 2 + j % 2 * 2;
}

/* Bytes 0 and 2 of u. The lower seven bits behind those of 128 are that many more than it; the
 * highest one makes 256 of 128, which is what it takes away. */
static __device__ __forceinline__ uint32_t lora8_pair(uint32_t u)
{
    return bf16_subtract2(and_or(u, 0x007f007fu, 0x43004300u), and_or(u, 0x00800080u, 0x43004300u));
}

/* A lane's share of a tile, from its eight bytes. */
static __device__ __forceinline__ void lora8_tile(uint32_t (&a)[4], uint32_t low, uint32_t high)
{
    a[0] = lora8_pair(low);
    a[1] = lora8_pair(low >> 8);
    a[2] = lora8_pair(high);
    a[3] = lora8_pair(high >> 8);
}

#endif
