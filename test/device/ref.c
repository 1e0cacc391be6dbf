/* ref.c: the operations in float64, straight from their definitions. See rig.h. */
#include "rig.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* y = M x. Some rows beside each other: a sum has to wait for each of its terms, others need not.
 */
static void multiply(const double *m, int64_t rows, int64_t cols, const double *x, double *y)
{
    enum { BESIDE = 8 };

    for (int64_t first = 0; first < rows; first += BESIDE) {
        int64_t n = rows - first < BESIDE ? rows - first : BESIDE;
        const double *at[BESIDE];
        double sum[BESIDE] = {0};

        for (int64_t i = 0; i < BESIDE; i++) /* beyond the last row: the last one again */
            at[i] = m + (first + (i < n ? i : n - 1)) * cols;
        for (int64_t k = 0; k < cols; k++)
            for (int i = 0; i < BESIDE; i++)
                sum[i] += at[i][k] * x[k];
        for (int64_t i = 0; i < n; i++)
            y[first + i] = sum[i];
    }
}

/* delta = scale * B (A x), without the request's weight. */
static void delta_of(const rig_lora *lora, int layer, int module, const double *x, double *out)
{
    const rig_tensor *a = &lora->a[layer][module], *b = &lora->b[layer][module];
    int rank = lora->rank[layer][module];
    double *h = calloc((size_t)rank + 1, sizeof(double));

    multiply(a->dense, rank, a->t.shape[1], x, h);
    multiply(b->dense, b->t.shape[0], rank, h, out);
    for (int64_t r = 0; r < b->t.shape[0]; r++)
        out[r] *= (double)lora->scale;
    free(h);
}

static const rig_lora *lora_of(const rig_device *d, const ol_lora *handle)
{
    for (int i = 0; i < d->n_loras; i++)
        if (d->loras[i] == handle)
            return d->lora_of[i];
    fail();
    return NULL;
}

void ref_linear(const rig_device *d, int layer, int module, const double *x,
                const ol_lora_ref *loras, int n_loras, double *y)
{
    const double *stored = d->stored[layer][module];
    const rig_tensor *w = &d->model->linear[layer][module];
    const rig_tensor *bias = &d->model->bias[layer][module];
    int64_t in = w->t.shape[1], out = w->t.shape[0];
    double *delta = malloc((size_t)out * sizeof(double) + 1);

    multiply(stored, out, in, x, y);
    for (int64_t r = 0; bias->dense && r < out; r++)
        y[r] += bias->dense[r];
    for (int i = 0; i < n_loras; i++) {
        const rig_lora *lora = lora_of(d, loras[i].lora);

        if (!lora->rank[layer][module])
            continue;
        delta_of(lora, layer, module, x, delta);
        for (int64_t r = 0; r < out; r++)
            y[r] += (double)loras[i].weight * delta[r];
    }
    free(delta);
}

double ref_energy(const rig_device *d, int layer, int module, const double *x, ol_lora_ref ref)
{
    const rig_lora *lora = lora_of(d, ref.lora);
    int64_t out = rig_out(&d->model->shape, module);
    double *delta, sum = 0;

    if (!lora->rank[layer][module])
        return 0;
    delta = malloc((size_t)out * sizeof(double));
    delta_of(lora, layer, module, x, delta);
    for (int64_t r = 0; r < out; r++)
        sum += delta[r] * delta[r] * (double)ref.weight * (double)ref.weight;
    free(delta);
    return sum;
}

void ref_norm(const double *x, const double *w, int64_t n, double eps, double *y)
{
    double sum = 0;

    for (int64_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] / sqrt(sum / (double)n + eps) * w[i];
}

void ref_rope(const rig_model *m, int pos, double *head)
{
    int half = m->shape.rotary / 2;

    for (int i = 0; i < half; i++) {
        int a = m->shape.interleaved ? 2 * i : i, b = m->shape.interleaved ? a + 1 : i + half;
        double angle = (double)((float)pos * m->inv_freq[i]);
        double c = cos(angle) * (double)1.1f, s = sin(angle) * (double)1.1f;
        double u = head[a], v = head[b];

        head[a] = u * c - v * s;
        head[b] = v * c + u * s;
    }
}

void ref_attention(const rig_device *d, int layer, const int32_t *pages, int pos, int head,
                   const double *q, double *out)
{
    const rig_shape *s = &d->model->shape;
    int first = s->window && pos >= s->window ? pos - s->window + 1 : 0;
    int kv_head = head / (s->heads / s->kv_heads), n = pos - first + 1;
    double *score = malloc((size_t)n * sizeof(double)),
           *kv = malloc((size_t)s->dim * sizeof(double));
    double max = -INFINITY, sum = 0;

    for (int i = 0; i < n; i++) {
        int p = first + i;

        rig_peek(d->kv, layer, pages[p / s->page_tokens], kv_head, p % s->page_tokens, false, kv);
        score[i] = 0;
        for (int k = 0; k < s->dim; k++)
            score[i] += q[k] * kv[k] / sqrt((double)s->dim);
        max = score[i] > max ? score[i] : max;
    }
    memset(out, 0, (size_t)s->dim * sizeof(double));
    for (int i = 0; i < n; i++) {
        int p = first + i;
        double weight = exp(score[i] - max);

        rig_peek(d->kv, layer, pages[p / s->page_tokens], kv_head, p % s->page_tokens, true, kv);
        sum += weight;
        for (int k = 0; k < s->dim; k++)
            out[k] += weight * kv[k];
    }
    for (int k = 0; k < s->dim; k++)
        out[k] /= sum;
    free(score);
    free(kv);
}

/* -- comparing ------------------------------------------------------------------------------ */

void rig_compare(rig_gap *gap, double got, double want)
{
    double e = fabs(got - want);

    if (!(e <= 1e300))
        e = 1e300;
    gap->error += e < 1e150 ? e * e : 1e300;
    gap->norm += want * want;
    gap->worst = e > gap->worst ? e : gap->worst;
    gap->n++;
}

void rig_check_gap(const rig_gap *gap, double rms, const char *fmt, ...)
{
    double scale = sqrt(gap->norm / (double)(gap->n ? gap->n : 1)) + 1e-30;
    double got = sqrt(gap->error / (double)(gap->n ? gap->n : 1)) / scale;
    double worst = gap->worst / scale;
    char what[256];
    va_list ap;

    if (gap->n && got <= rms && worst <= 8 * rms)
        return;
    va_start(ap, fmt);
    vsnprintf(what, sizeof(what), fmt, ap);
    va_end(ap);
    fail_msg("%s: error %.3g of the norm, worst element %.3g; admitted %.3g, %.3g", what, got,
             worst, rms, 8 * rms);
}
