/* pack.cu: matrices from rows into fragments, quantised if need be; pages.
 * See launch.h and README.md, weights. */
#include "kernels/fp8.cuh"
#include "kernels/launch.h"
#include "kernels/packed.cuh"
#include "kernels/source.cuh"

#define TILE_BYTES 512

/* -- bf16 ---------------------------------------------------------------------------------- */

/* A warp packs a tile. */
static __global__ void pack_bf16_kernel(uint16_t *to, int col_tiles, int first_strip, gpu_source s,
                                        int32_t *bad)
{
    int tile = (int)(blockIdx.y * (blockDim.x / WARP) + threadIdx.x / WARP);
    int strip = (int)blockIdx.x;

    if (tile < col_tiles)
        pack_bf16_tile(to, (int64_t)(first_strip + strip) * col_tiles + tile, s, strip, tile, bad);
}

extern "C" cudaError_t gpu_pack_columns(uint16_t *to, int col_tiles, int first_row,
                                        const gpu_source *source, int32_t *bad, cudaStream_t stream)
{
    unsigned strips = (unsigned)(source->rows + 15) / 16, warps = 4;

    return gpu_launch(pack_bf16_kernel, dim3(strips, ((unsigned)col_tiles + warps - 1) / warps),
                      dim3(warps * WARP), 0, stream, to, col_tiles, first_row / 16, *source, bad);
}

extern "C" cudaError_t gpu_pack_load_kernels(void)
{
    cudaFuncAttributes ignored;

    return cudaFuncGetAttributes(&ignored, (const void *)pack_bf16_kernel);
}

/* -- groups of 32 columns -------------------------------------------------------------------- */

static __device__ void extremes(const float (&a)[8], const float (&b)[8], int half, float *low,
                                float *high)
{
    *low = *high = a[2 * half];
    for (int j = 0; j < 8; j++)
        if (j / 2 % 2 == half) {
            *low = fminf(*low, fminf(a[j], b[j]));
            *high = fmaxf(*high, fmaxf(a[j], b[j]));
        }
    for (int step = 1; step < 4; step *= 2) {
        *low = fminf(*low, __shfl_xor_sync(FULL_MASK, *low, step));
        *high = fmaxf(*high, __shfl_xor_sync(FULL_MASK, *high, step));
    }
}

static __device__ int nearest(float v, float scale, int low, int high)
{
    float q = scale != 0 ? rintf(v / scale) : 0;

    return (int)fminf(fmaxf(q, (float)low), (float)high);
}

/* What a row's group of columns has in the source; a scale of 0 when it is not quantised alike. */
struct given_scale {
    float scale, offset; /* of w = q * scale + offset */
};

static __device__ given_scale find_given(const gpu_source &s, int kind, int row, int col)
{
    int64_t at = (int64_t)row * s.cols + col;

    if (s.dtype != (kind == GPU_INT8   ? 3
                    : kind == GPU_INT4 ? 4
                                       : 5) ||
        row >= s.rows || col >= s.cols)
        return {0, 0};
    if (s.dtype == 5) {
        q4_k_group group = q4_k_group_of(s, at);

        return {group.scale, fmaf(8, group.scale, -group.min)};
    }
    return {f16_value(*(const uint16_t *)block_of(s, at)), 0};
}

/* Of the rows of a lane, lane / 4 and 8 more: two tiles' values become q, scales are stored. -128
 * is none of ours, but a file may have it. */
static __device__ void quantise8(const float (&a)[8], const float (&b)[8],
                                 const given_scale (&given)[2], uint16_t *scales, uint32_t *words)
{
    int lane = (int)threadIdx.x % WARP;

    for (int i = 0; i < 4; i++)
        words[i] = 0;
    for (int half = 0; half < 2; half++) {
        float low, high, scale;
        uint16_t stored;

        extremes(a, b, half, &low, &high);
        stored = f16_nearest(given[half].scale != 0 ? given[half].scale : fmaxf(-low, high) / 127);
        scale = f16_value(stored);
        for (int j = 0; j < 16; j++)
            if (j / 2 % 2 == half)
                words[j / 4] |= (uint32_t)(nearest(j < 8 ? a[j] : b[j - 8], scale, -128, 127) & 255)
                                << (8 * (j % 4));
        if (lane % 4 == 0)
            scales[lane / 4 + 8 * half] = stored;
    }
}

/* The same in four bits; with an offset, which puts the numbers around 0, beside each scale or
 * without. */
template <bool OFFSET>
static __device__ void quantise4(const float (&a)[8], const float (&b)[8],
                                 const given_scale (&given)[2], uint16_t *scales, uint32_t *words)
{
    int lane = (int)threadIdx.x % WARP;

    words[0] = words[1] = 0;
    for (int half = 0; half < 2; half++) {
        float low, high, scale, offset;
        uint32_t stored;

        extremes(a, b, half, &low, &high);
        scale = OFFSET ? (high - low) / 15 : (high > -low ? high : low) / -8;
        offset = OFFSET ? fmaf(8, scale, low) : 0;
        if (given[half].scale != 0)
            scale = given[half].scale, offset = given[half].offset;
        stored = bf16_pack(scale, offset);
        scale = bf16_low(stored);
        offset = bf16_high(stored);
        for (int j = 0; j < 16; j++)
            if (j / 2 % 2 == half)
                words[j / 8] |=
                    (uint32_t)(nearest((j < 8 ? a[j] : b[j - 8]) - offset, scale, -8, 7) + 8)
                    << (4 * packed_nibble(j % 8));
        if (lane % 4 == 0 && OFFSET)
            ((uint32_t *)scales)[lane / 4 + 8 * half] = stored;
        else if (lane % 4 == 0)
            scales[lane / 4 + 8 * half] = (uint16_t)stored;
    }
}

/* A warp packs 64 columns of a strip. */
static __global__ void pack_groups_kernel(gpu_matrix to, int first_strip, gpu_source s)
{
    int warp = (int)(threadIdx.x / WARP), lane = (int)threadIdx.x % WARP;
    int chunk = (int)(blockIdx.y * (blockDim.x / WARP)) + warp, strip = (int)blockIdx.x;
    int chunks = (to.cols + 63) / 64;
    int64_t place = (int64_t)(first_strip + strip) * chunks + chunk;
    int group_scales = to.kind == GPU_INT4M ? 32 : 16;
    uint16_t *scales = (uint16_t *)to.scales + place * 2 * group_scales;
    uint32_t words[4];

    if (chunk >= chunks)
        return;
    for (int group = 0; group < 2; group++) {
        float a[8], b[8];
        given_scale given[2];

        load_tile(s, strip, 4 * chunk + 2 * group, a);
        load_tile(s, strip, 4 * chunk + 2 * group + 1, b);
        for (int half = 0; half < 2; half++)
            given[half] =
                find_given(s, to.kind, 16 * strip + lane / 4 + 8 * half, 64 * chunk + 32 * group);
        if (to.kind == GPU_INT8) {
            quantise8(a, b, given, scales + group * group_scales, words);
            *(uint4 *)((uint8_t *)to.data + (2 * place + group) * TILE_BYTES + 16 * lane) =
                make_uint4(words[0], words[1], words[2], words[3]);
        } else if (to.kind == GPU_INT4M)
            quantise4<true>(a, b, given, scales + group * group_scales, words + 2 * group);
        else
            quantise4<false>(a, b, given, scales + group * group_scales, words + 2 * group);
    }
    if (to.kind != GPU_INT8)
        *(uint4 *)((uint8_t *)to.data + place * TILE_BYTES + 16 * lane) =
            make_uint4(words[0], words[1], words[2], words[3]);
}

/* -- rows ------------------------------------------------------------------------------------ */

/* A warp has a row: the largest number becomes e4m3's largest. Rows beyond the matrix have 0. */
static __global__ void row_scales_kernel(float *scales, gpu_source s)
{
    int row = (int)(blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP);
    float most = 0;

    if (row >= (s.rows + 15) / 16 * 16)
        return;
    for (int col = (int)threadIdx.x % WARP; col < s.cols; col += WARP)
        most = fmaxf(most, fabsf(source_value(s, row, col)));
    most = fminf(warp_max(most), 3.4e38f); /* of a file's infinity: finite all the same */
    if (threadIdx.x % WARP == 0)
        scales[row] = most / F8_MAX;
}

/* A warp packs 32 columns of a strip. `scales` are of the source's rows. */
static __global__ void pack_rows_kernel(gpu_matrix to, const float *scales, int first_strip,
                                        gpu_source s)
{
    int warp = (int)(threadIdx.x / WARP), lane = (int)threadIdx.x % WARP;
    int pair = (int)(blockIdx.y * (blockDim.x / WARP)) + warp, strip = (int)blockIdx.x;
    int pairs = (to.cols + 63) / 64 * 2;
    int64_t place = (int64_t)(first_strip + strip) * pairs + pair;
    uint32_t words[4] = {0, 0, 0, 0};

    if (pair >= pairs)
        return;
    for (int i = 0; i < 2; i++) {
        float v[8];

        load_tile(s, strip, 2 * pair + i, v);
        for (int j = 0; j < 8; j++) {
            float scale = scales[16 * strip + lane / 4 + 8 * (j / 2 % 2)];
            uint32_t q = scale > 0 ? f8_nearest(v[j] / scale) : 0;

            words[2 * i + j / 4] |= q << (8 * (f8_place(j) % 4));
        }
    }
    *(uint4 *)((uint8_t *)to.data + place * TILE_BYTES + 16 * lane) =
        make_uint4(words[0], words[1], words[2], words[3]);
}

static cudaError_t pack_rows(const gpu_matrix *to, int first_row, const gpu_source *source,
                             cudaStream_t stream)
{
    unsigned strips = (unsigned)(source->rows + 15) / 16, warps = 4;
    unsigned pairs = (unsigned)(to->cols + 63) / 64 * 2;
    float *scales = (float *)(uintptr_t)to->scales + first_row;
    cudaError_t code = gpu_launch(row_scales_kernel, dim3(strips * 16 / warps), dim3(warps * WARP),
                                  0, stream, scales, *source);

    if (code != cudaSuccess)
        return code;
    return gpu_launch(pack_rows_kernel, dim3(strips, (pairs + warps - 1) / warps),
                      dim3(warps * WARP), 0, stream, *to, (const float *)scales, first_row / 16,
                      *source);
}

extern "C" cudaError_t gpu_pack(const gpu_matrix *to, int first_row, const gpu_source *source,
                                int32_t *bad, cudaStream_t stream)
{
    unsigned strips = (unsigned)(source->rows + 15) / 16, warps = 4;
    unsigned chunks = (unsigned)(to->cols + 63) / 64;

    if (to->kind == GPU_BF16)
        return gpu_pack_columns((uint16_t *)to->data, (int)(4 * chunks), first_row, source, bad,
                                stream);
    if (to->kind == GPU_FP8)
        return pack_rows(to, first_row, source, stream);
    return gpu_launch(pack_groups_kernel, dim3(strips, (chunks + warps - 1) / warps),
                      dim3(warps * WARP), 0, stream, *to, first_row / 16, *source);
}

/* -- pages ----------------------------------------------------------------------------------------
 * Of keys and values: a copy for whoever goes on elsewhere from a page's middle. */

/* A block has the keys of a head, or its values. */
static __global__ void kv_copy_kernel(gpu_kv_layer kv, int64_t layer_stride, int from, int to,
                                      int n)
{
    int values = (int)blockIdx.y % 2 * kv.page_tokens, row = gpu_kv_row_bytes(&kv);
    uint8_t *head =
        kv.data + blockIdx.x * layer_stride + (int)blockIdx.y / 2 * gpu_kv_head_bytes(&kv);
    const uint8_t *source = head + from * kv.page_stride;
    uint8_t *target = head + to * kv.page_stride;
    int exponents = 2 * kv.page_tokens * row + values;

    for (int i = (int)threadIdx.x; i < n * row / 16; i += (int)blockDim.x)
        ((uint4 *)(target + values * row))[i] = ((const uint4 *)(source + values * row))[i];
    for (int i = (int)threadIdx.x; i < n && kv.fp8; i += (int)blockDim.x)
        target[exponents + i] = source[exponents + i];
}

extern "C" cudaError_t gpu_kv_copy(const gpu_kv_layer *kv, int64_t layer_stride, int n_layers,
                                   int from, int to, int n, cudaStream_t stream)
{
    return gpu_launch(kv_copy_kernel, dim3((unsigned)n_layers, (unsigned)kv->n_kv_heads * 2),
                      dim3(128), 0, stream, *kv, layer_stride, from, to, n);
}
