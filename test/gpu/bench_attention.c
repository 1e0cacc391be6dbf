/*
 * bench_attention.c: attention alone: products a second where sequences begin, bytes a second
 * where they go on, against what copying reaches. sdpa.py has what PyTorch makes of the same
 * shapes.
 */
#include "bench.h"

#include "kernels/launch.h"

#include <math.h>
#include <string.h>

#define PAGE 64

typedef struct shape {
    const char *name;
    int n_seqs, past, n_rows; /* rows of each sequence; of decoding 1 */
    int n_heads, n_kv_heads, head_dim;
    bool fp8;
} shape;

static const shape shapes[] = {
    {"prefill 4096", 1, 0, 4096, 32, 8, 128, false},
    {"prefill 16384", 1, 0, 16384, 32, 8, 128, false},
    {"prefill 8 x 512", 8, 0, 512, 32, 8, 128, false},
    {"prefill 512 of 16384", 1, 15872, 512, 32, 8, 128, false},
    {"prefill 4096, heads of 64", 1, 0, 4096, 14, 2, 64, false},
    {"prefill 4096, heads of 256", 1, 0, 4096, 16, 8, 256, false},
    {"decode 1 x 4096", 1, 4095, 1, 32, 8, 128, false},
    {"decode 1 x 32768", 1, 32767, 1, 32, 8, 128, false},
    {"decode 64 x 1024", 64, 1023, 1, 32, 8, 128, false},
    {"decode 64 x 4096", 64, 4095, 1, 32, 8, 128, false},
    {"decode 64 x 4096, heads of 64", 64, 4095, 1, 14, 2, 64, false},
    {"prefill 4096, FP8 pages", 1, 0, 4096, 32, 8, 128, true},
    {"decode 1 x 32768, FP8 pages", 1, 32767, 1, 32, 8, 128, true},
    {"decode 64 x 4096, FP8 pages", 64, 4095, 1, 32, 8, 128, true},
};
static const shape tiny[] = {
    {"prefill 2 x 40", 2, 0, 40, 4, 2, 32, false},
    {"decode 3 x 700", 3, 699, 1, 4, 2, 32, false},
    {"decode 3 x 700, FP8 pages", 3, 699, 1, 4, 2, 32, true},
};

/* -- a batch ----------------------------------------------------------------------------------- */

static void *blocks[16];
static int n_blocks;

static void *device(size_t bytes)
{
    CUDA(cudaMalloc(&blocks[n_blocks], bytes));
    return blocks[n_blocks++];
}

static void *device_copy(const void *from, size_t bytes)
{
    void *p = device(bytes);

    CUDA(cudaMemcpy(p, from, bytes, cudaMemcpyHostToDevice));
    return p;
}

/* Random numbers of [-2, 2): of zeros a card computes faster. */
static uint16_t *device_random(size_t n)
{
    enum { SOME = 1 << 20 };
    static uint16_t some[SOME];
    uint16_t *p = device(n * 2);

    for (int i = 0; i < SOME; i++)
        some[i] = (uint16_t)((rand() & 1) << 15 | (0x3e00 + (rand() & 0x1ff)));
    for (size_t i = 0; i < n; i += SOME)
        CUDA(cudaMemcpy(p + i, some, 2 * (n - i < SOME ? n - i : SOME), cudaMemcpyHostToDevice));
    return p;
}

static void make_rows(const shape *s, gpu_rows *rows, int n_tiles)
{
    int all = s->n_seqs * s->n_rows, each = (s->past + s->n_rows + PAGE - 1) / PAGE;
    int32_t *pos = calloc((size_t)all, sizeof(*pos)), *start = calloc((size_t)all, sizeof(*start));
    int32_t *list = calloc((size_t)all, sizeof(*list));
    int32_t *pages = calloc((size_t)(s->n_seqs * each), sizeof(*pages));
    gpu_tile *tiles = calloc((size_t)n_tiles, sizeof(*tiles));
    gpu_counts counts = {.n_rows = all, .n_decode = all, .n_tiles = n_tiles};
    int n = 0;

    for (int r = 0; r < all; r++) {
        pos[r] = s->past + r % s->n_rows;
        start[r] = r / s->n_rows * each;
        list[r] = r;
        if (r % s->n_rows % GPU_TILE_ROWS == 0)
            tiles[n++] =
                (gpu_tile){r, s->n_rows - r % s->n_rows < GPU_TILE_ROWS ? s->n_rows - r % s->n_rows
                                                                        : GPU_TILE_ROWS};
    }
    for (int i = 0; i < s->n_seqs * each; i++)
        pages[i] = s->n_seqs * each - 1 - i;
    rows->counts = device_copy(&counts, sizeof(counts));
    rows->pos = device_copy(pos, (size_t)all * sizeof(*pos));
    rows->page_start = device_copy(start, (size_t)all * sizeof(*start));
    rows->decode_rows = device_copy(list, (size_t)all * sizeof(*list));
    rows->pages = device_copy(pages, (size_t)(s->n_seqs * each) * sizeof(*pages));
    rows->tiles = device_copy(tiles, (size_t)n_tiles * sizeof(*tiles));
    free(pos), free(start), free(list), free(pages), free(tiles);
}

/* -- timing ------------------------------------------------------------------------------------ */

typedef struct job {
    const shape *s;
    gpu_rows rows;
    gpu_attention op;
    int n_tiles;
} job;

static void launch(void *context, cudaStream_t stream)
{
    const job *j = context;
    int n_splits = (j->s->past + j->s->n_rows - 1) / GPU_KV_SPLIT + 1;

    if (j->s->n_rows == 1)
        CUDA(gpu_attention_decode(&j->rows, &j->op, j->s->n_seqs, n_splits, stream));
    else
        CUDA(gpu_attention_prefill(&j->rows, &j->op, j->n_tiles, stream));
}

static double seconds(const shape *s)
{
    size_t all = (size_t)s->n_seqs * (size_t)s->n_rows;
    size_t width = (size_t)s->n_heads * (size_t)s->head_dim;
    size_t pages = (size_t)s->n_seqs * (size_t)((s->past + s->n_rows + PAGE - 1) / PAGE);
    int n_tiles = s->n_seqs * ((s->n_rows + GPU_TILE_ROWS - 1) / GPU_TILE_ROWS);
    job j = {.s = s, .n_tiles = n_tiles};
    gpu_attention op = {.q = device_random(all * width),
                        .ldq = (int64_t)width,
                        .o = device(all * width * 2),
                        .ldo = (int64_t)width,
                        .kv = {.n_kv_heads = s->n_kv_heads,
                               .head_dim = s->head_dim,
                               .dim_stride = s->head_dim,
                               .page_tokens = PAGE,
                               .fp8 = s->fp8},
                        .n_heads = s->n_heads,
                        .scale = 1 / sqrtf((float)s->head_dim),
                        .decode_most = 1};
    double t;

    op.kv.page_stride = s->n_kv_heads * gpu_kv_head_bytes(&op.kv);
    op.kv.data = (uint8_t *)device_random(pages * PAGE * 2 * (size_t)(s->n_kv_heads * s->head_dim));
    if (s->n_rows == 1)
        op.partial = device(sizeof(float) *
                            gpu_attention_partial(&op, s->n_seqs, s->past / GPU_KV_SPLIT + 1));
    make_rows(s, &j.rows, n_tiles);
    j.op = op;
    CUDA(cudaDeviceSynchronize());
    t = bench_time(launch, &j);
    while (n_blocks > 0)
        CUDA(cudaFree(blocks[--n_blocks]));
    return t;
}

static void measure(const shape *s, const bench_ceilings *most)
{
    double t = seconds(s), n = s->n_rows, tokens = s->past + (n + 1) / 2;
    double flops = 4 * n * tokens * s->n_seqs * s->n_heads * s->head_dim;
    double bytes =
        2 * tokens * s->n_seqs * s->n_kv_heads * (s->fp8 ? s->head_dim + 1 : 2 * s->head_dim);

    if (s->n_rows == 1)
        bench_row(
            &(bench_line){"GB/s", bytes / t / 1e9, most->copy / 1e9, s->n_seqs > 1 ? 0.85 : 0},
            "attention, %s, of bandwidth", s->name);
    else
        bench_row(&(bench_line){"TFLOP/s", flops / t / 1e12, 0, 0}, "attention, %s", s->name);
}

void bench_attention(const bench_ceilings *most)
{
    bool small = bench.prefill < 4096;
    size_t n = small ? sizeof(tiny) / sizeof(*tiny) : sizeof(shapes) / sizeof(*shapes);

    for (size_t i = 0; i < n; i++)
        measure(small ? &tiny[i] : &shapes[i], most);
}
