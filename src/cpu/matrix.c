/* matrix.c: see matrix.h. Packing runs once per weight, one panel at a time. */
#include "cpu/matrix.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)

cpu_panel_kind cpu_matrix_kind(ol_dtype dtype, int64_t cols, ol_quantization quantization)
{
    bool blocks = cols % OL_BLOCK == 0;

    switch (dtype) {
    case OL_F32:
    case OL_F16:
    case OL_BF16:
        if (blocks && quantization == OL_QUANT_INT8)
            return PANEL_I8;
        if (blocks && quantization == OL_QUANT_INT4)
            return PANEL_I4;
        return dtype == OL_F32 ? PANEL_F32 : dtype == OL_F16 ? PANEL_F16 : PANEL_BF16;
    case OL_Q4_0:
        return PANEL_I4;
    case OL_Q4_K:
        return PANEL_I4M;
    case OL_Q8_0:
    case OL_Q6_K:
        break;
    }
    return PANEL_I8;
}

static size_t panel_bytes(cpu_panel_kind kind, int64_t cols)
{
    static const size_t per_block[] = {[PANEL_I8] = 544, [PANEL_I4] = 288, [PANEL_I4M] = 320};

    if (kind == PANEL_F32)
        return (size_t)cols * PANEL * 4;
    if (!cpu_kind_is_block(kind))
        return (size_t)cols * PANEL * 2;
    return (size_t)(cols / OL_BLOCK) * per_block[kind];
}

size_t cpu_matrix_bytes(cpu_panel_kind kind, int64_t rows, int64_t cols)
{
    return (size_t)((rows + PANEL - 1) / PANEL) * panel_bytes(kind, cols);
}

/* -- packing ------------------------------------------------------------------------- */

typedef struct packing {
    const ol_tensor *tensor;
    size_t row_bytes;
    cpu_matrix *m;
    _Bool failed;
} packing;

static const uint8_t *source_row(const packing *job, int64_t row)
{
    return (const uint8_t *)job->tensor->data + (size_t)row * job->row_bytes;
}

static void pack_plain(const packing *job, int64_t first, int lanes, uint8_t *out)
{
    size_t size = job->m->kind == PANEL_F32 ? 4 : 2;

    for (int lane = 0; lane < lanes; lane++) {
        const uint8_t *src = source_row(job, first + lane);

        for (int64_t k = 0; k < job->m->cols; k++)
            memcpy(out + ((size_t)k * PANEL + (size_t)lane) * size, src + (size_t)k * size, size);
    }
}

static void put_half(uint8_t *tail, int lane, uint16_t half)
{
    memcpy(tail + 2 * lane, &half, 2);
}

/* One lane of one I8 block, from 32 signed bytes. */
static void put_i8(uint8_t *block, int lane, const int8_t *q, uint16_t scale)
{
    for (int k = 0; k < OL_BLOCK; k++)
        block[(k / 4 * PANEL + lane) * 4 + k % 4] = (uint8_t)(q[k] + 128);
    put_half(block + 512, lane, scale);
}

/* One lane of one I4 block, from 32 values of 0..15. */
static void put_i4(uint8_t *block, int lane, const uint8_t *v, uint16_t scale)
{
    for (int k = 0; k < OL_BLOCK / 2; k++)
        block[(k / 4 * PANEL + lane) * 4 + k % 4] = (uint8_t)(v[k] | v[k + 16] << 4);
    put_half(block + 256, lane, scale);
}

static void quantize_i8(const float *x, int8_t *q, uint16_t *scale)
{
    float max = 0, d;

    for (int k = 0; k < OL_BLOCK; k++)
        max = fabsf(x[k]) > max ? fabsf(x[k]) : max;
    *scale = ol_f32_to_f16(max / 127.0f);
    d = ol_f16_to_f32(*scale);
    for (int k = 0; k < OL_BLOCK; k++) {
        float v = d > 0 ? roundf(x[k] / d) : 0;

        q[k] = (int8_t)(v > 127 ? 127 : v < -127 ? -127 : v);
    }
}

/* The value of largest magnitude becomes -8 or 8 exactly, as in ggml's Q4_0. */
static void quantize_i4(const float *x, uint8_t *v, uint16_t *scale)
{
    float extreme = 0, d;

    for (int k = 0; k < OL_BLOCK; k++)
        extreme = fabsf(x[k]) > fabsf(extreme) ? x[k] : extreme;
    *scale = ol_f32_to_f16(extreme / -8.0f);
    d = ol_f16_to_f32(*scale);
    for (int k = 0; k < OL_BLOCK; k++) {
        float q = d != 0 ? roundf(x[k] / d) + 8 : 8;

        v[k] = (uint8_t)(q < 0 ? 0 : q > 15 ? 15 : q);
    }
}

static void pack_floats(const packing *job, int64_t row, int lane, uint8_t *out, float *values)
{
    size_t step = job->m->kind == PANEL_I8 ? 544 : 288;

    ol_dequantize(job->tensor->dtype, source_row(job, row), values, (size_t)job->m->cols);
    for (int64_t b = 0; b < job->m->cols / OL_BLOCK; b++, out += step) {
        uint16_t scale;

        if (job->m->kind == PANEL_I8) {
            int8_t q[OL_BLOCK];

            quantize_i8(values + b * OL_BLOCK, q, &scale);
            put_i8(out, lane, q, scale);
        } else {
            uint8_t v[OL_BLOCK];

            quantize_i4(values + b * OL_BLOCK, v, &scale);
            put_i4(out, lane, v, scale);
        }
    }
}

static void pack_q8_0(const packing *job, int64_t row, int lane, uint8_t *out)
{
    const uint8_t *src = source_row(job, row);

    for (int64_t b = 0; b < job->m->cols / OL_BLOCK; b++, src += 34, out += 544) {
        uint16_t scale;

        memcpy(&scale, src, 2);
        put_i8(out, lane, (const int8_t *)src + 2, scale);
    }
}

static void pack_q4_0(const packing *job, int64_t row, int lane, uint8_t *out)
{
    const uint8_t *src = source_row(job, row);

    for (int64_t b = 0; b < job->m->cols / OL_BLOCK; b++, src += 18, out += 288) {
        for (int k = 0; k < 16; k++) /* the same nibbles, in another order of bytes */
            out[(k / 4 * PANEL + lane) * 4 + k % 4] = src[2 + k];
        memcpy(out + 256 + 2 * lane, src, 2);
    }
}

/* Sub-blocks of 32 with their own scale and minimum, made explicit in halves. */
static void pack_q4_k(const packing *job, int64_t row, int lane, uint8_t *out)
{
    const uint8_t *src = source_row(job, row);

    for (int64_t b = 0; b < job->m->cols / OL_SUPERBLOCK; b++, src += 144) {
        uint16_t h[2];
        float d, dmin;

        memcpy(h, src, 4);
        d = ol_f16_to_f32(h[0]);
        dmin = ol_f16_to_f32(h[1]);
        for (int j = 0; j < 8; j++, out += 320) {
            const uint8_t *packed = src + 4, *q = src + 16 + j / 2 * 32;
            uint8_t v[OL_BLOCK];
            int scale = j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
            int min = j < 4 ? packed[j + 4] & 63 : (packed[j + 4] >> 4) | (packed[j] >> 6) << 4;

            for (int k = 0; k < OL_BLOCK; k++)
                v[k] = j % 2 ? q[k] >> 4 : q[k] & 15;
            put_i4(out, lane, v, ol_f32_to_f16(d * (float)scale));
            put_half(out + 288, lane, ol_f32_to_f16(dmin * (float)min));
        }
    }
}

static void pack_panel(const packing *job, int64_t panel, float *values)
{
    cpu_matrix *m = job->m;
    uint8_t *out = m->data + (size_t)panel * m->panel_bytes;
    int64_t first = panel * PANEL;
    int lanes = m->rows - first < PANEL ? (int)(m->rows - first) : PANEL;

    if (!cpu_kind_is_block(m->kind)) {
        pack_plain(job, first, lanes, out);
        return;
    }
    for (int lane = 0; lane < lanes; lane++)
        switch (job->tensor->dtype) {
        case OL_Q8_0:
            pack_q8_0(job, first + lane, lane, out);
            break;
        case OL_Q4_0:
            pack_q4_0(job, first + lane, lane, out);
            break;
        case OL_Q4_K:
            pack_q4_k(job, first + lane, lane, out);
            break;
        default:
            pack_floats(job, first + lane, lane, out, values);
        }
}

static void pack_share(void *context, int thread, int threads)
{
    packing *job = context;
    float *values = malloc((size_t)job->m->cols * sizeof(float) + 1);
    int64_t from, to;

    if (!values) {
        job->failed = true;
        return;
    }
    cpu_share(cpu_panels(job->m), 1, thread, threads, &from, &to);
    for (; from < to; from++)
        pack_panel(job, from, values);
    free(values);
}

/* Zeroed, and in huge pages where the system has them: weights are read in full at
 * every step, and the TLB would notice. */
static uint8_t *map_weights(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (at == MAP_FAILED)
        return NULL;
    if (bytes >= HUGE_PAGE)
        madvise(at, bytes, MADV_HUGEPAGE);
    return at;
}

ol_code cpu_matrix_create(cpu_pool *pool, const ol_tensor *tensor, cpu_panel_kind kind,
                          cpu_matrix *m, ol_error *err)
{
    packing job = {.tensor = tensor, .m = m};

    *m = (cpu_matrix){.kind = kind, .rows = tensor->shape[0], .cols = tensor->shape[1]};
    m->panel_bytes = panel_bytes(kind, m->cols);
    m->bytes = cpu_matrix_bytes(kind, m->rows, m->cols);
    if (!ol_dtype_row_bytes(tensor->dtype, m->cols, &job.row_bytes) ||
        job.row_bytes * (size_t)m->rows > tensor->bytes)
        return ol_fail(err, OL_INTERNAL, "tensor \"%s\" is shorter than its shape", tensor->name);
    m->data = m->bytes ? map_weights(m->bytes) : NULL;
    if (m->bytes && !m->data)
        return ol_fail_nomem(err, m->bytes, tensor->name);
    cpu_pool_run(pool, pack_share, &job);
    if (job.failed) {
        cpu_matrix_free(m);
        return ol_fail_nomem(err, (size_t)m->cols * sizeof(float), tensor->name);
    }
    return OL_OK;
}

void cpu_matrix_free(cpu_matrix *m)
{
    if (m->data)
        munmap(m->data, m->bytes);
    m->data = NULL;
}

/* -- reading back ---------------------------------------------------------------------- */

static float half_at(const uint8_t *at, int lane)
{
    uint16_t half;

    memcpy(&half, at + 2 * lane, 2);
    return ol_f16_to_f32(half);
}

static void read_block(const cpu_matrix *m, const uint8_t *block, int lane, float *out)
{
    bool i8 = m->kind == PANEL_I8;
    float scale = half_at(block + (i8 ? 512 : 256), lane);
    float min = m->kind == PANEL_I4M ? half_at(block + 288, lane) : 0;
    int offset = i8 ? 128 : m->kind == PANEL_I4 ? 8 : 0;

    for (int k = 0; k < OL_BLOCK; k++) {
        int at = i8 ? k : k % 16;
        int v = block[(at / 4 * PANEL + lane) * 4 + at % 4];

        if (!i8)
            v = k < 16 ? v & 15 : v >> 4;
        out[k] = scale * (float)(v - offset) - min;
    }
}

void cpu_matrix_row(const cpu_matrix *m, int64_t row, float *out)
{
    const uint8_t *panel = m->data + (size_t)(row / PANEL) * m->panel_bytes;
    int lane = (int)(row % PANEL);

    if (cpu_kind_is_block(m->kind)) {
        size_t step = m->panel_bytes / (size_t)(m->cols / OL_BLOCK);

        for (int64_t b = 0; b < m->cols / OL_BLOCK; b++)
            read_block(m, panel + (size_t)b * step, lane, out + b * OL_BLOCK);
        return;
    }
    for (int64_t k = 0; k < m->cols; k++) {
        size_t at = (size_t)k * PANEL + (size_t)lane;
        uint16_t half;

        if (m->kind == PANEL_F32) {
            memcpy(&out[k], panel + at * 4, 4);
            continue;
        }
        memcpy(&half, panel + at * 2, 2);
        out[k] = m->kind == PANEL_F16 ? ol_f16_to_f32(half) : ol_bf16_to_f32(half);
    }
}
