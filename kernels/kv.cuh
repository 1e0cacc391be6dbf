/*
 * kv.cuh: keys and values of a sequence, from the pages that hold them to mma's fragments:
 * blocks of GPU_KV_BLOCK tokens are copied to shared memory while others are computed with.
 *
 * Of FP8 pages the same bytes are copied, and become bf16 on the way to a fragment, without the
 * exponents: scores are multiplied by those of their keys, p by those of their values. As they are
 * powers of 2 the results have the same bits as if keys and values had been multiplied.
 */
#ifndef OL_KV_CUH
#define OL_KV_CUH

#include "kernels/fp8.cuh"
#include "kernels/launch.h"

static __device__ __forceinline__ int attention_lane(void)
{
    return (int)threadIdx.x % WARP;
}

static __device__ __forceinline__ int attention_warp(void)
{
    return (int)threadIdx.x / WARP;
}

/* -- in shared memory --------------------------------------------------------------------- */

/* CHUNKS times 16 bytes of a token. load_matrix4 reads the same chunk of 8 tokens: they are
 * to lie in different banks, by exchange of chunks or by an odd distance of tokens. */
template <int CHUNKS> struct kv_tile {
    static constexpr bool exchanged = CHUNKS % 8 == 0 && CHUNKS > 16;
    static constexpr int stride = exchanged ? CHUNKS : CHUNKS | 1;
    static constexpr int bytes = GPU_KV_BLOCK * stride * 16;

    static __device__ __forceinline__ int at(int token, int chunk)
    {
        return (token * stride + (exchanged ? chunk ^ (token & 7) : chunk)) * 16;
    }
};

/* Keys or values: DIM16 times 16 dimensions; of FP8 their exponents besides. */
template <int DIM16, bool FP8> struct kv_form {
    static constexpr int chunks = FP8 ? DIM16 : 2 * DIM16;
    typedef kv_tile<chunks> rows;
    static constexpr int bytes = rows::bytes + (FP8 ? GPU_KV_BLOCK : 0);
};

/* Keys and values of a head and sequence. */
struct kv_source {
    const uint8_t *data;  /* of the head in page 0 */
    const int32_t *pages; /* from first_page on */
    int64_t page_stride;  /* bytes to the next page */
    int first_page, page_shift, dim_stride, row_bytes;
    int first, end; /* tokens that any row sees: others' slots are not read */
};

static __device__ __forceinline__ kv_source kv_source_of(const gpu_attention &op, int kv_head,
                                                         int page_shift)
{
    kv_source kv = {};

    kv.data = op.kv.data + kv_head * gpu_kv_head_bytes(&op.kv);
    kv.page_stride = op.kv.page_stride;
    kv.page_shift = page_shift;
    kv.dim_stride = op.kv.dim_stride;
    kv.row_bytes = gpu_kv_row_bytes(&op.kv);
    return kv;
}

static __device__ __forceinline__ int kv_first_block(const kv_source &kv)
{
    return kv.first / GPU_KV_BLOCK;
}

static __device__ __forceinline__ int kv_last_block(const kv_source &kv)
{
    return (kv.end - 1) / GPU_KV_BLOCK;
}

/* The page of the 16 tokens from `token` on, which are of one; -1 if no row sees any of them. */
static __device__ __forceinline__ int kv_page(const kv_source &kv, int token)
{
    return token + 15 >= kv.first && token < kv.end
               ? kv.pages[(token >> kv.page_shift) - kv.first_page]
               : -1;
}

/* The block's keys, or values; zero where there is no token that any row sees: a value of NaN
 * times a p of 0 would show. The copies are not ended as a group. A thread copies the same chunk
 * of several tokens. */
template <int CHUNKS, int THREADS>
static __device__ __forceinline__ void kv_copy(uint8_t *tile, const kv_source &kv, bool values,
                                               int block)
{
    constexpr int step = THREADS / CHUNKS, each = (GPU_KV_BLOCK + step - 1) / step;
    constexpr int alike = 16 % step == 0 ? 16 / step : 1; /* copies in a row from one page */
    int page_mask = (1 << kv.page_shift) - 1, more = values ? page_mask + 1 : 0;
    int chunk = (int)(threadIdx.x % CHUNKS), slot = (int)(threadIdx.x / CHUNKS);
    int token = block * GPU_KV_BLOCK + slot;
    bool mine = slot < step, used = chunk * 16 < kv.row_bytes;
    int page[each];

#pragma unroll
    for (int n = 0; n < each; n++)
        page[n] = n % alike ? page[n - n % alike] : kv_page(kv, (token + n * step) & ~15);
#pragma unroll
    for (int n = 0; n < each; n++) {
        int at = token + n * step;
        bool seen = used && at >= kv.first && at < kv.end;

        if (mine && (GPU_KV_BLOCK % step == 0 || slot + n * step < GPU_KV_BLOCK))
            copy_async16(tile + kv_tile<CHUNKS>::at(slot + n * step, chunk),
                         seen ? kv.data + page[n] * kv.page_stride +
                                    ((at & page_mask) + more) * kv.row_bytes + chunk * 16
                              : kv.data,
                         seen);
    }
}

/* The block's exponents behind its rows: those of tokens that no row sees are whatever they are,
 * and multiply zeros. */
template <int DIM16>
static __device__ __forceinline__ void kv_copy_exponents(uint8_t *tile, const kv_source &kv,
                                                         bool values, int block)
{
    int token = block * GPU_KV_BLOCK + 16 * (int)threadIdx.x;
    int page_tokens = 1 << kv.page_shift, page;

    if ((int)threadIdx.x >= GPU_KV_BLOCK / 16)
        return;
    page = kv_page(kv, token);
    copy_async16(tile + kv_form<DIM16, true>::rows::bytes + 16 * (int)threadIdx.x,
                 page < 0 ? kv.data
                          : kv.data + page * kv.page_stride + 2 * page_tokens * kv.row_bytes +
                                (values ? page_tokens : 0) + (token & (page_tokens - 1)),
                 page >= 0);
}

/* Tiles on their way to a block: keys of the first 64 tokens, their values, the next keys, ... in
 * at most BYTES of shared memory. */
template <int DIM16, bool FP8, int THREADS, int BYTES> struct kv_ring {
    typedef kv_form<DIM16, FP8> tile;
    static constexpr int slots = BYTES / tile::bytes < 6 ? BYTES / tile::bytes : 6;
    static constexpr int bytes = slots * tile::bytes;

    /* Starts to copy tile i, if there is one: an empty group otherwise. */
    static __device__ __forceinline__ void fetch(uint8_t *ring, const kv_source &kv, int i)
    {
        int block = kv_first_block(kv) + i / 2;

        if (block <= kv_last_block(kv)) {
            kv_copy<tile::chunks, THREADS>(ring + i % slots * tile::bytes, kv, i % 2, block);
            if (FP8)
                kv_copy_exponents<DIM16>(ring + i % slots * tile::bytes, kv, i % 2, block);
        }
        copy_async_commit();
    }

    static __device__ __forceinline__ void start(uint8_t *ring, const kv_source &kv)
    {
        for (int i = 0; i < slots - 1; i++)
            fetch(ring, kv, i);
    }

    /* Tile i is there for all threads; the one before it, which all are done with, makes place
     * for another. */
    static __device__ __forceinline__ const uint8_t *next(uint8_t *ring, const kv_source &kv, int i)
    {
        copy_async_wait<slots - 2>();
        __syncthreads();
        fetch(ring, kv, i + slots - 1);
        return ring + i % slots * tile::bytes;
    }
};

/* mma's B of keys: of tokens 16 * n .. and dimensions 16 * k ..: b[0], b[1] of the first 8
 * tokens, b[2], b[3] of the others. */
template <int DIM16, bool FP8>
static __device__ __forceinline__ void kv_keys(uint32_t (&b)[4], const uint8_t *tile, int n, int k)
{
    typedef typename kv_form<DIM16, FP8>::rows rows;
    int lane = attention_lane();

    if (FP8) {
        const uint8_t *from = tile + rows::at(16 * n + lane / 4, k) + lane % 4 * 4;

        f8_pairs(*(const uint32_t *)from, b[0], b[1]);
        from = tile + rows::at(16 * n + 8 + lane / 4, k) + lane % 4 * 4;
        f8_pairs(*(const uint32_t *)from, b[2], b[3]);
    } else
        load_matrix4(b, tile + rows::at(16 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
}

/* Scores of tokens 16 * n .., of the first 8 and the others, by what kv_keys left out. */
template <int DIM16, bool FP8>
static __device__ __forceinline__ void kv_scale_scores(float (&s0)[4], float (&s1)[4],
                                                       const uint8_t *tile, int n)
{
    const uint8_t *exponents = tile + kv_form<DIM16, FP8>::rows::bytes + 16 * n;

    if (!FP8)
        return;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float(&s)[4] = half ? s1 : s0;
        uint32_t pair = *(const uint16_t *)(exponents + 8 * half + attention_lane() % 4 * 2);
        float low = f8_scale(pair, 0), high = f8_scale(pair, 1);

        s[0] *= low;
        s[1] *= high;
        s[2] *= low;
        s[3] *= high;
    }
}

/* mma's B of values: of tokens 16 * n .. and dimensions 16 * k ..: b[0], b[1] of the first 8
 * dimensions. */
template <int DIM16, bool FP8>
static __device__ __forceinline__ void kv_values(uint32_t (&b)[4], const uint8_t *tile, int n,
                                                 int k)
{
    typedef typename kv_form<DIM16, FP8>::rows rows;
    int lane = attention_lane();

    if (FP8) {
        uint32_t r[2];

        load_matrix2_transposed(r, tile + rows::at(16 * n + lane % 16, k));
        f8_pairs(r[0], b[0], b[2]);
        f8_pairs(r[1], b[1], b[3]);
    } else
        load_matrix4_transposed(b, tile + rows::at(16 * n + lane % 16, 2 * k + lane / 16));
}

/* p of tokens 16 * n .. as mma's A, by what kv_values leaves out. */
template <int DIM16, bool FP8>
static __device__ __forceinline__ void kv_scale_weights(uint32_t (&p)[4], const uint8_t *tile,
                                                        int n)
{
    const uint8_t *exponents =
        tile + kv_form<DIM16, FP8>::rows::bytes + 16 * n + attention_lane() % 4 * 2;

    if (!FP8)
        return;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t scale = f8_scale_pair(*(const uint16_t *)(exponents + 8 * half));

        p[2 * half] = bf16_multiply2(p[2 * half], scale);
        p[2 * half + 1] = bf16_multiply2(p[2 * half + 1], scale);
    }
}

static __device__ __forceinline__ void mma_pair(float (&c0)[4], float (&c1)[4],
                                                const uint32_t (&a)[4], const uint32_t (&b)[4])
{
    const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};

    mma_bf16(c0, a, b0);
    mma_bf16(c1, a, b1);
}

#endif
