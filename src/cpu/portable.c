/* portable.c: the kernels in plain C, and the oracle of the other sets: weights by
 * their definition, inputs as they are, sums in order, no block-wise softmax. */
#include "cpu/panel.h"

#include <math.h>
#include <string.h>

/* -- panels ------------------------------------------------------------------------- */

static float half_at(const uint8_t *at, int lane)
{
    uint16_t half;

    memcpy(&half, at + 2 * lane, 2);
    return ol_f16_to_f32(half);
}

/* Value of weight k (0..31) of a lane in a block's bytes. */
static int block_value(cpu_panel_kind kind, const uint8_t *block, int lane, int k)
{
    int at = kind == PANEL_I8 ? k : k % 16;
    int v = block[(at / 4 * PANEL + lane) * 4 + at % 4];

    if (kind == PANEL_I8)
        return v - 128;
    v = k < 16 ? v & 15 : v >> 4;
    return kind == PANEL_I4 ? v - 8 : v;
}

static void expand_block(const cpu_matrix *m, const uint8_t *panel, int64_t b, float w[][PANEL])
{
    const uint8_t *block = panel + cpu_block_at(m->kind, b);

    for (int lane = 0; lane < PANEL; lane++) {
        float scale = half_at(panel + cpu_scale_at(m->kind, b), lane);
        float min = m->kind == PANEL_I4M ? half_at(panel + cpu_min_at(b), lane) : 0;

        for (int k = 0; k < OL_BLOCK; k++)
            w[k][lane] = scale * (float)block_value(m->kind, block, lane, k) - min;
    }
}

/* Weights k .. k + n of a panel. */
static void expand(const cpu_matrix *m, const uint8_t *panel, int64_t k, int n, float w[][PANEL])
{
    static const ol_dtype dtypes[] = {OL_F32, OL_F16, OL_BF16};
    size_t size = m->kind == PANEL_F32 ? 4 : 2;

    if (cpu_kind_is_block(m->kind))
        expand_block(m, panel, k / OL_BLOCK, w);
    else if (m->kind == PANEL_BYTES)
        for (int64_t i = 0; i < n * PANEL; i++)
            w[i / PANEL][i % PANEL] = (float)((const int8_t *)panel)[k * PANEL + i];
    else
        ol_dequantize(dtypes[m->kind], panel + (size_t)k * PANEL * size, w[0], (size_t)n * PANEL);
}

static void multiply_panel(const cpu_product *p, int64_t number)
{
    const uint8_t *panel = p->m->data + (size_t)number * p->m->panel_bytes;
    int64_t at = (number - p->from) * PANEL, left = p->m->rows - number * PANEL;
    size_t lanes = left < PANEL ? (size_t)left : PANEL;
    float w[OL_BLOCK][PANEL];

    for (int r = 0; r < p->n && !p->add; r++)
        memset(cpu_product_y(p, r) + at, 0, lanes * sizeof(float));
    for (int64_t k = 0; k < p->m->cols; k += OL_BLOCK) {
        int n = p->m->cols - k < OL_BLOCK ? (int)(p->m->cols - k) : OL_BLOCK;

        expand(p->m, panel, k, n, w);
        for (int r = 0; r < p->n; r++) {
            const float *x = cpu_product_x(p, r) + k;
            float *y = cpu_product_y(p, r) + at, acc[PANEL] = {0};

            memcpy(acc, y, lanes * sizeof(float));
            for (int i = 0; i < n; i++)
                for (int lane = 0; lane < PANEL; lane++)
                    acc[lane] += w[i][lane] * x[i];
            memcpy(y, acc, lanes * sizeof(float));
        }
    }
    for (int r = 0; r < p->n && p->bias; r++)
        for (size_t lane = 0; lane < lanes; lane++)
            cpu_product_y(p, r)[at + (int64_t)lane] += p->bias[number * PANEL + (int64_t)lane];
}

static void multiply(const cpu_product *p)
{
    for (int64_t panel = p->from; panel < p->to; panel++)
        multiply_panel(p, panel);
}

/* -- elementwise ---------------------------------------------------------------------- */

static float square_sum(const float *x, int64_t n)
{
    double sum = 0;

    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return (float)sum;
}

static void scale_by(const float *x, float scale, const float *w, float *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * scale * w[i];
}

static void add_to(const float *x, float *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += x[i];
}

static void swiglu(float *gate, const float *up, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

static void rotate(float *x, const float *cosine, const float *sine, int half, bool interleaved)
{
    for (int i = 0; i < half; i++) {
        int first = interleaved ? 2 * i : i, second = interleaved ? first + 1 : i + half;
        float u = x[first], v = x[second];

        x[first] = u * cosine[i] - v * sine[i];
        x[second] = v * cosine[i] + u * sine[i];
    }
}

static void to_half(ol_dtype dtype, const float *x, uint16_t *out, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = dtype == OL_F16 ? ol_f32_to_f16(x[i]) : ol_f32_to_bf16(x[i]);
}

static void from_half(ol_dtype dtype, const uint16_t *x, float *out, int64_t n)
{
    ol_dequantize(dtype, x, out, (size_t)n);
}

/* -- attention ------------------------------------------------------------------------- */

/* Element `index` of an array of the tile's type. */
static float element(const cpu_attention_tile *t, const uint8_t *at, size_t index)
{
    size_t size = t->dtype == OL_F32 ? 4 : 2;
    float v;

    ol_dequantize(t->dtype, at + index * size, &v, 1);
    return v;
}

static float score(const cpu_attention_tile *t, const float *q, int pos)
{
    size_t slot = (size_t)(pos % t->page_tokens), dim = (size_t)t->dim;
    const uint8_t *k = t->base + (size_t)t->pages[pos / t->page_tokens] * t->page_stride;
    float sum = 0;

    for (size_t d = 0; d < dim; d++)
        sum += q[d] * element(t, k, (slot / KV_GRAIN * dim + d) * KV_GRAIN + slot % KV_GRAIN);
    return sum * t->scale;
}

/* Twice over the keys, rather than keeping their scores: there is no bound on them. */
static void attend(const cpu_attention_tile *t, const float *q, float *o, int pos)
{
    int first = t->window > 0 && pos >= t->window ? pos - t->window + 1 : 0;
    float max = -INFINITY, sum = 0;

    memset(o, 0, (size_t)t->dim * sizeof(float));
    for (int p = first; p <= pos; p++)
        max = fmaxf(max, score(t, q, p));
    for (int p = first; p <= pos; p++) {
        const uint8_t *v =
            t->base + (size_t)t->pages[p / t->page_tokens] * t->page_stride + t->v_offset;
        float weight = expf(score(t, q, p) - max);

        sum += weight;
        for (int d = 0; d < t->dim; d++)
            o[d] +=
                weight * element(t, v, (size_t)(p % t->page_tokens) * (size_t)t->dim + (size_t)d);
    }
    for (int d = 0; d < t->dim; d++)
        o[d] /= sum;
}

static void attention(const cpu_attention_tile *t)
{
    for (int r = 0; r < t->rows; r++)
        for (int h = 0; h < t->heads; h++)
            attend(t, t->q + r * t->ldq + h * t->dim, t->o + r * t->ldo + h * t->dim,
                   t->first_pos + r);
}

static void interleave(const uint8_t *const *rows, size_t size, int64_t n, uint8_t *out)
{
    for (size_t k = 0; k < (size_t)n; k++)
        for (size_t lane = 0; lane < PANEL; lane++)
            if (rows[lane])
                memcpy(out + (k * PANEL + lane) * size, rows[lane] + k * size, size);
            else
                memset(out + (k * PANEL + lane) * size, 0, size);
}

static void gram(const float *x, int64_t n, int64_t ld, float *sums)
{
    for (int64_t k = 0; k < n; k++, x += ld)
        for (int64_t i = 0; i < ld; i++)
            for (int64_t j = i; j < ld; j++)
                sums[i * ld + j] += x[i] * x[j];
}

const cpu_kernels cpu_kernels_portable = {
    .name = "portable",
    .multiply = {multiply, multiply, multiply, multiply, multiply, multiply, multiply},
    .quantize = NULL,
    .square_sum = square_sum,
    .scale_by = scale_by,
    .add = add_to,
    .swiglu = swiglu,
    .rotate = rotate,
    .to_half = to_half,
    .from_half = from_half,
    .attention = attention,
    .interleave = interleave,
    .gram = gram,
};
