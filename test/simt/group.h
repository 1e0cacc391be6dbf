/*
 * group.h: kernels/group.cuh on a processor. A product is computed when it is waited for, no
 * earlier, from what shared memory and the registers of A have in them then; till then its sums are
 * NaN. A wait or a barrier too few, a place of the ring used too early and registers that were
 * touched show as wrong numbers; what was copied into shared memory has to be fenced before it is
 * read.
 */
#ifndef OL_TEST_SIMT_GROUP_H
#define OL_TEST_SIMT_GROUP_H

#include <cuda_runtime.h>

#include "simt.h"

#include <vector>

void group_begin();
void group_commit();
void simt_group_multiply(float *c, int n, const uint32_t *a, uint64_t b);
void simt_group_wait(int n);
template <int N> static inline void group_wait()
{
    simt_group_wait(N);
}
template <int N>
static inline void group_multiply(float (&c)[N][4], const uint32_t (&a)[4], uint64_t b)
{
    simt_group_multiply(&c[0][0], N, a, b);
}
template <int N> static inline void group_hold(float (&)[N][4])
{
}
template <int N> static inline void group_hold(uint32_t (&)[N][4])
{
}
void fence_for_products();

void barrier_make(uint64_t *barrier, int count);
void barrier_arrive(uint64_t *barrier);
void barrier_wait(uint64_t *barrier, int parity);
void sync_some(int number, int threads);
template <int N> static inline void give_registers()
{
}
template <int N> static inline void take_registers()
{
}

/* As a card has it: where the block's memory starts is not 0. */
uint32_t shared_address(const void *p);

/* -- what simt.cpp keeps for group.cpp --------------------------------------------------------- */

struct simt_product {
    float *c;
    int n; /* eights of columns */
    const uint32_t *a;
    uint64_t b;
    int group;
};

struct simt_sums {
    float *c;
    std::vector<float> values;
};

/* Of a thread. */
struct simt_group_state {
    std::vector<simt_product> products; /* under way */
    std::vector<simt_sums> sums;        /* theirs, until they are waited for */
    std::vector<size_t> landed; /* 16s of shared memory: copied by this thread, not fenced */
    int groups;
    bool begun;
};

/* Of a block. */
struct simt_block_state {
    uint8_t *shared;
    size_t bytes;
    std::vector<uint8_t> unfenced; /* of each 16 bytes: how many copies */
    int arrived[16];
    unsigned turn[16];
};

simt_group_state *simt_group_of_thread();
simt_block_state *simt_block_of_thread();
/* The thread goes on when ready(arg, value) says so. */
void simt_wait_until(bool (*ready)(const void *arg, unsigned value), const void *arg,
                     unsigned value);
/* The thread has arrived somewhere, and takes its time, if its warp is slow. */
void simt_linger();
/* 16 bytes were copied there by this thread. */
void simt_landed(const void *to);
/* A thread has ended. */
void simt_group_end();

#endif
