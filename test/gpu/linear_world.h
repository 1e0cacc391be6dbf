/*
 * linear_world.h: for test_linear.c: weights, rows with adapters, and what they should come to in
 * float64.
 */
#ifndef OL_TEST_GPU_LINEAR_WORLD_H
#define OL_TEST_GPU_LINEAR_WORLD_H

#include "gpu_rig.h"

#include <math.h>

#define POOL 24  /* rows of a world */
#define ROWS 300 /* of a launch, at most */
#define LAYERS 2
#define LAYER 1
#define ADAPTERS 5
#define POISON (ADAPTERS - 2)
#define ENTRIES 3 /* of a row's list, at most */
#define MAX_RANK 112
#define H_ROOM (POOL * ENTRIES * 3 * MAX_RANK + 1) /* a launch's h are copied with one more */

typedef struct shape {
    gpu_finish finish;
    int kinds[3], rows[3], n_parts;
    int cols, splits; /* splits 0: as gpu_linear_splits says */
    bool bias, adapters, logits;
    bool alike; /* all rows have the same adapters */
} shape;

typedef struct adapter {
    gpu_lora_part parts[LAYERS * GPU_MODULES];
    double *b[3];              /* of the op's parts, {rows, rank} */
    const gpu_lora *device[2]; /* as bf16; the same numbers in eight bits */
} adapter;

typedef struct entry {
    int adapter;
    int h; /* where in world.h */
} entry;

typedef struct world {
    shape s;
    gpu_linear op;
    int out, ldy, ldx;
    double *w[3], *x, *h;
    double *want, *size; /* [POOL][out]; of the terms, for rig_compare_sum */
    float *bias[3];
    uint16_t *x_bits, *h_bits;
    int h_size;
    adapter adapters[ADAPTERS];
    entry lists[POOL][ENTRIES];
    int n_entries[POOL];
    bool poisoned[POOL];    /* has that adapter: it gets what it asked for */
    int eight;              /* how the next launch has adapters */
    uint8_t *seen[POOL][2]; /* the row's bits; of poisoned ones in either way */
} world;

/* -- weights -------------------------------------------------------------------------------- */

/* Where in a tile's 8 values of a lane a number is, and the lane. */
static int lane_of(int row, int col)
{
    return row % 8 * 4 + col % 8 / 2;
}

static int value_of(int row, int col)
{
    return row % 16 / 8 * 2 + col % 16 / 8 * 4 + col % 2;
}

static void put_number(uint8_t *data, int kind, int cols64, int row, int col, int q)
{
    static const int order[] = {0, 4, 1, 5, 2, 6, 3, 7}, places[] = {1, 3, 0, 2, 5, 7, 4, 6};
    size_t tile = (size_t)(row / 16) * (size_t)(cols64 / 16) + (size_t)(col / 16);
    size_t lane = (size_t)lane_of(row, col);
    int j = value_of(row, col);

    if (kind == GPU_INT8) {
        data[tile / 2 * 512 + lane * 16 + tile % 2 * 8 + (size_t)j] = (uint8_t)q;
    } else if (kind == GPU_FP8) {
        data[tile / 2 * 512 + lane * 16 + tile % 2 * 8 + (size_t)places[j]] = (uint8_t)q;
    } else {
        uint8_t *at = data + tile / 4 * 512 + lane * 16 + tile % 4 * 4 + order[j] / 2;

        *at = (uint8_t)((*at & (order[j] % 2 ? 0x0f : 0xf0)) | (q + 8) << order[j] % 2 * 4);
    }
}

/* The scale of a row's group, drawn at random as scales[at] with what goes with it; *offset: what
 * is added to numbers that it was multiplied with. */
static double put_scale(int kind, uint16_t *scales, size_t at, double *offset)
{
    *offset = 0;
    if (kind == GPU_INT8)
        return rig_from_f16(scales[at] = rig_f16(0.01 + 0.005 * rig_uniform()));
    if (kind == GPU_INT4)
        return rig_from_bf16(scales[at] = rig_bf16(0.1 + 0.05 * rig_uniform()));
    *offset = rig_from_bf16(scales[2 * at + 1] = rig_bf16(0.3 * rig_uniform()));
    return rig_from_bf16(scales[2 * at] = rig_bf16(0.1 + 0.05 * rig_uniform()));
}

/* A matrix of numbers and scales drawn at random. */
static double *quantised(gpu_matrix *m)
{
    int cols64 = (m->cols + 63) / 64 * 64, groups = cols64 / 32, tiles = (m->rows + 15) / 16;
    size_t bytes = (size_t)tiles * (size_t)cols64 * 16 / (m->kind == GPU_INT8 ? 1 : 2);
    size_t n_scales = (size_t)tiles * 16 * (size_t)groups * (m->kind == GPU_INT4M ? 2 : 1);
    uint8_t *data = rig_host(bytes);
    uint16_t *scales = rig_host(n_scales * 2);
    double *dense = rig_host((size_t)m->rows * (size_t)m->cols * sizeof(double));
    double scale = 0, offset = 0;

    memset(data, m->kind == GPU_INT8 ? 0 : 0x88, bytes);
    for (int r = 0; r < m->rows; r++)
        for (int c = 0, q; c < m->cols; c++) {
            if (c % 32 == 0)
                scale =
                    put_scale(m->kind, scales,
                              (size_t)(r / 16 * groups + c / 32) * 16 + (size_t)(r % 16), &offset);
            q = m->kind == GPU_INT8 ? rig_below(256) - 128 : rig_below(16) - 8;
            put_number(data, m->kind, cols64, r, c, q);
            dense[(size_t)r * (size_t)m->cols + (size_t)c] =
                rig_from_bf16(rig_bf16(q * scale + offset));
        }
    m->data = rig_device_copy(data, bytes);
    m->scales = rig_device_copy(scales, n_scales * 2);
    return dense;
}

/* e4m3 of any value, NaN aside, rows with scales of their own. */
static double *quantised_by_rows(gpu_matrix *m)
{
    int cols64 = (m->cols + 63) / 64 * 64, tiles = (m->rows + 15) / 16;
    size_t bytes = (size_t)tiles * (size_t)cols64 * 16;
    uint8_t *data = rig_host(bytes);
    float *scales = rig_host((size_t)tiles * 16 * sizeof(float));
    double *dense = rig_host((size_t)m->rows * (size_t)m->cols * sizeof(double));

    for (int r = 0; r < m->rows; r++) {
        scales[r] = (float)(0.01 + 0.005 * rig_uniform());
        for (int c = 0; c < m->cols; c++) {
            int q = rig_below(127) | rig_below(2) << 7;

            put_number(data, m->kind, cols64, r, c, q);
            dense[(size_t)r * (size_t)m->cols + (size_t)c] =
                rig_from_f8((uint8_t)q) * (double)scales[r];
        }
    }
    m->data = rig_device_copy(data, bytes);
    m->scales = rig_device_copy(scales, (size_t)tiles * 16 * sizeof(float));
    return dense;
}

static double *make_matrix(gpu_matrix *m)
{
    double *dense;
    size_t bytes;

    if (m->kind == GPU_FP8)
        return quantised_by_rows(m);
    if (m->kind != GPU_BF16)
        return quantised(m);
    m->data = rig_random_bf16((size_t)m->rows * (size_t)m->cols, 1, &dense);
    m->data = rig_device_copy(rig_pack_bf16(m->data, m->rows, m->cols, &bytes),
                              (size_t)((m->rows + 15) / 16 * 16) *
                                  (size_t)((m->cols + 63) / 64 * 64) * 2);
    return dense;
}

/* -- adapters ------------------------------------------------------------------------------- */

/* B of numbers that eight bits have. */
static uint16_t *random_b(size_t n, double **values, int8_t **bytes)
{
    uint16_t *out = rig_host(n * 2 + 2);

    *values = rig_host(n * sizeof(double) + 1);
    *bytes = rig_host(n + 1);
    for (size_t i = 0; i < n; i++) {
        (*bytes)[i] = (int8_t)(rig_below(255) - 127);
        (*values)[i] = (double)(*bytes)[i];
        out[i] = rig_bf16((*values)[i]);
    }
    return out;
}

/* {rows, rank}, its columns padded to 16. */
static const uint16_t *pack_b(const uint16_t *dense, int rows, int rank)
{
    size_t k_tiles = (size_t)(rank + 15) / 16, n = (size_t)((rows + 15) / 16) * k_tiles * 256;
    uint16_t *out = rig_host(n * 2);

    for (int r = 0; r < rows; r++)
        for (int c = 0; c < rank; c++)
            out[((size_t)(r / 16) * k_tiles + (size_t)(c / 16)) * 256 +
                (size_t)(lane_of(r, c) * 8 + value_of(r, c))] =
                dense[(size_t)r * (size_t)rank + (size_t)c];
    return rig_device_copy(out, n * 2);
}

/* The first has one rank; the last has no such layer; the one before has infinite numbers, which
 * must not reach those beside it. */
static void make_adapter(world *w, int number)
{
    static const int ranks[] = {0, 1, 8, 16, 17, 40, 64, 100};
    adapter *a = &w->adapters[number];
    gpu_lora lora = {.n_layers = number == ADAPTERS - 1 ? LAYER : LAYERS};
    gpu_lora_part eight[LAYERS * GPU_MODULES];
    int h = 0;

    memset(a->parts, 0xff, sizeof(a->parts));
    memset(eight, 0xff, sizeof(eight));
    for (int i = 0; i < w->s.n_parts; i++) {
        gpu_lora_part *p = &a->parts[LAYER * GPU_MODULES + w->op.parts[i].module];
        int rank = number ? ranks[rig_below(8)] : 16, rows = w->s.rows[i];
        size_t bytes;
        int8_t *numbers;
        uint16_t *dense = random_b((size_t)rows * (size_t)rank, &a->b[i], &numbers);

        for (int k = 0; number == POISON && k < rows * rank; k++)
            dense[k] = 0x7f80;
        *p = (gpu_lora_part){.rank = rank, .h = h, .b = NULL};
        if (rank)
            p->b = pack_b(dense, rows, rank);
        eight[LAYER * GPU_MODULES + w->op.parts[i].module] = *p;
        numbers = rig_pack_lora8(numbers, rows, rank, true, &bytes);
        if (rank)
            eight[LAYER * GPU_MODULES + w->op.parts[i].module].b = rig_device_copy(numbers, bytes);
        h += (rank + 15) / 16 * 16;
    }
    lora.h_stride = h;
    lora.parts = rig_device_copy(a->parts, sizeof(a->parts));
    a->device[0] = rig_device_copy(&lora, sizeof(lora));
    lora.parts = rig_device_copy(eight, sizeof(eight));
    a->device[1] = rig_device_copy(&lora, sizeof(lora));
}

/* Numbers of all parts of an adapter's h, zero beyond the ranks. */
static void make_h(world *w, const adapter *a, int at)
{
    for (int i = 0; i < w->s.n_parts; i++) {
        const gpu_lora_part *p = &a->parts[LAYER * GPU_MODULES + w->op.parts[i].module];

        for (int k = 0; k < (p->rank + 15) / 16 * 16; k++) {
            int j = at + p->h + k;

            w->h_bits[j] = rig_bf16(k < p->rank ? rig_uniform() / 16 : 0);
            w->h[j] = rig_from_bf16(w->h_bits[j]);
        }
    }
}

/* The adapters of row 0, none of them poison, for all; their h differ. */
static void lists_alike(world *w)
{
    w->n_entries[0] = 1 + rig_below(ENTRIES);
    for (int i = 0; i < w->n_entries[0]; i++)
        w->lists[0][i].adapter = rig_below(POISON);
    w->lists[0][w->n_entries[0] - 1].adapter = rig_below(2) ? ADAPTERS - 1 : 0;
    for (int r = 0; r < POOL; r++) {
        w->n_entries[r] = w->n_entries[0];
        for (int i = 0; i < w->n_entries[0]; i++) {
            w->lists[r][i] = (entry){w->lists[0][i].adapter, w->h_size};
            make_h(w, &w->adapters[w->lists[r][i].adapter], w->h_size);
            w->h_size += 3 * MAX_RANK;
        }
    }
}

/* Every third row has no adapter, the others up to ENTRIES. */
static void make_lists(world *w)
{
    w->h_bits = rig_host(H_ROOM * 2);
    w->h = rig_host(H_ROOM * sizeof(double));
    memset(w->h_bits, 0xff, H_ROOM * 2);
    if (w->s.alike) {
        lists_alike(w);
        return;
    }
    for (int r = 0; w->s.adapters && r < POOL; r++) {
        w->n_entries[r] = r % 3 == 2 ? 0 : rig_below(4) ? 1 : 1 + rig_below(ENTRIES);
        for (int i = 0; i < w->n_entries[r]; i++) {
            w->lists[r][i] = (entry){rig_below(ADAPTERS), w->h_size};
            w->poisoned[r] = w->poisoned[r] || w->lists[r][i].adapter == POISON;
            make_h(w, &w->adapters[w->lists[r][i].adapter], w->h_size);
            w->h_size += 3 * MAX_RANK;
        }
    }
}

/* -- a world, and what it should come to ---------------------------------------------------- */

/* A sum, and the root of its terms' squares. */
typedef struct wanted {
    double sum, size;
} wanted;

static wanted want_part(const world *w, int row, int part, int feature)
{
    int cols = w->s.cols;
    double sum = w->bias[part] ? (double)w->bias[part][feature] : 0, squares = sum * sum;

    for (int k = 0; k < cols; k++) {
        double term = w->w[part][(size_t)feature * (size_t)cols + (size_t)k] *
                      w->x[(size_t)row * (size_t)w->ldx + (size_t)k];

        sum += term;
        squares += term * term;
    }
    for (int i = 0; i < w->n_entries[row]; i++) {
        entry e = w->lists[row][i];
        const adapter *a = &w->adapters[e.adapter];
        const gpu_lora_part *p = &a->parts[LAYER * GPU_MODULES + w->op.parts[part].module];

        for (int k = 0; e.adapter != ADAPTERS - 1 && k < p->rank; k++) {
            double term =
                a->b[part][(size_t)feature * (size_t)p->rank + (size_t)k] * w->h[e.h + p->h + k];

            sum += term;
            squares += term * term;
        }
    }
    return (wanted){sum, sqrt(squares)};
}

/* silu(gate) * up; silu is nowhere steeper than 1.1. */
static wanted want_swiglu(wanted gate, wanted up)
{
    double silu = gate.sum / (1 + exp(-gate.sum));

    return (wanted){silu * up.sum, fabs(silu) * up.size + 1.1 * fabs(up.sum) * gate.size};
}

static void want_rows(world *w)
{
    bool swiglu = w->s.finish == GPU_SWIGLU;
    int at = 0;

    w->want = rig_host((size_t)(POOL * w->out) * sizeof(double));
    w->size = rig_host((size_t)(POOL * w->out) * sizeof(double));
    for (int r = 0; r < POOL; r++)
        for (int p = 0; p < (swiglu ? 1 : w->s.n_parts); p++)
            for (int f = 0; f < w->s.rows[p]; f++, at++) {
                wanted v = want_part(w, r, p, f);

                v = swiglu ? want_swiglu(v, want_part(w, r, 1, f)) : v;
                w->want[at] = v.sum;
                w->size[at] = v.size;
            }
}

static void make_x(world *w)
{
    w->ldx = (w->s.cols + GPU_PAD - 1) / GPU_PAD * GPU_PAD;
    w->x_bits = rig_random_bf16((size_t)(POOL * w->ldx), 1, &w->x);
    for (int r = 0; r < POOL; r++)
        for (int i = w->s.cols; i < w->ldx; i++)
            w->x_bits[r * w->ldx + i] = 0;
}

static world *make_world(shape s)
{
    static const int modules[] = {5, 1, 3};
    world *w = rig_host(sizeof(*w));

    w->s = s;
    w->op = (gpu_linear){.n_parts = s.n_parts,
                         .layer = s.adapters ? LAYER : -1,
                         .logits = s.logits,
                         .finish = s.finish};
    for (int i = 0; i < s.n_parts; i++) {
        gpu_linear_part *p = &w->op.parts[i];
        int splits = s.splits ? s.splits : gpu_linear_splits(s.rows[i], s.cols);

        *p = (gpu_linear_part){.w = {s.kinds[i], s.rows[i], s.cols, splits, NULL, NULL},
                               .module = modules[i]};
        w->w[i] = make_matrix(&p->w);
        if (s.bias) {
            w->bias[i] = rig_random_f32((size_t)s.rows[i], 1, 2);
            p->bias = rig_device_copy(w->bias[i], (size_t)s.rows[i] * sizeof(float));
        }
        w->out += s.rows[i];
    }
    w->out = s.finish == GPU_SWIGLU ? s.rows[0] : w->out;
    w->ldy = (w->out + GPU_PAD - 1) / GPU_PAD * GPU_PAD + GPU_PAD;
    make_x(w);
    for (int i = 0; i < ADAPTERS; i++)
        make_adapter(w, i);
    make_lists(w);
    want_rows(w);
    return w;
}

#endif
