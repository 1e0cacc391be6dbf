/*
 * product.c: see merge_internal.h. A matrix D = U S V' is cut to its largest singular values,
 * A = V', B = U S, as PEFT divides them. The singular vectors are eigenvectors of the
 * smaller of D D' and D' D (or, for a product of thin matrices, of one of k x k): by LAPACK,
 * in double precision, so that squaring costs nothing that float32 had.
 */
#include "merge/merge_internal.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The `want` largest eigenvalues of the symmetric matrix g {n, n} (lower triangle, used up),
 * falling, and their vectors as columns of v {n, want}. */
static ol_code eigen(double *g, int n, int want, double *values, double *v, ol_error *err)
{
    lapack_int found = 0, *support = malloc(sizeof(lapack_int) * 2 * (size_t)want);
    lapack_int info = support ? LAPACKE_dsyevr(LAPACK_ROW_MAJOR, 'V', 'I', 'L', n, g, n, 0, 0,
                                               n - want + 1, n, 0, &found, values, v, want, support)
                              : LAPACK_WORK_MEMORY_ERROR;

    free(support);
    if (info == LAPACK_WORK_MEMORY_ERROR || info == LAPACK_TRANSPOSE_MEMORY_ERROR)
        return ol_fail_nomem(err, sizeof(double) * (size_t)n * (size_t)n, "a decomposition");
    if (info != 0 || found != want)
        return ol_fail(err, OL_INVALID, "the merged weights have no decomposition (not finite?)");
    for (int i = 0; i < want / 2; i++) {
        double other = values[i];

        values[i] = values[want - 1 - i];
        values[want - 1 - i] = other;
        cblas_dswap(n, v + i, want, v + want - 1 - i, want);
    }
    return OL_OK;
}

static double *widen(const float *from, size_t n)
{
    double *to = malloc(n * sizeof(*to) + 1);

    for (size_t i = 0; to && i < n; i++)
        to[i] = from[i];
    return to;
}

static void narrow(const double *from, float *to, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] = (float)from[i];
}

static ol_code give(merged *m, ol_error *err)
{
    m->a = calloc((size_t)m->rank * (size_t)m->in, sizeof(float));
    m->b = calloc((size_t)m->rank * (size_t)m->out, sizeof(float));
    return m->a && m->b ? OL_OK : ol_fail_nomem(err, 0, "a merged module");
}

/* Rows of vt {rank, n} over the singular values; those of nothing become 0. */
static void unscale_rows(double *vt, const double *squares, int rank, int n)
{
    double tiny = squares[0] * 1e-24;

    for (int r = 0; r < rank; r++)
        cblas_dscal(n, squares[r] > tiny ? 1 / sqrt(squares[r]) : 0, vt + (size_t)r * (size_t)n, 1);
}

/* -- dense ---------------------------------------------------------------------------- */

/* out <= in: U are eigenvectors of D D'; V' = U' D / S. */
static void finish_wide(const double *d, const double *u, const double *squares, merged *m,
                        double *vt)
{
    int out = (int)m->out, in = (int)m->in, r = m->rank;

    cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, r, in, out, 1, u, r, d, in, 0, vt, in);
    unscale_rows(vt, squares, r, in);
    narrow(vt, m->a, (size_t)r * (size_t)in);
    for (int i = 0; i < out; i++)
        for (int k = 0; k < r; k++)
            m->b[i * r + k] = (float)(u[i * r + k] * sqrt(fmax(squares[k], 0)));
}

/* out > in: V are eigenvectors of D' D; U S = D V. */
static void finish_tall(const double *d, const double *v, merged *m, double *us)
{
    int out = (int)m->out, in = (int)m->in, r = m->rank;

    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, out, r, in, 1, d, in, v, r, 0, us, r);
    narrow(us, m->b, (size_t)out * (size_t)r);
    for (int k = 0; k < r; k++)
        for (int i = 0; i < in; i++)
            m->a[(size_t)k * (size_t)in + (size_t)i] = (float)v[i * r + k];
}

ol_code merge_decompose(const float *dense, merged *m, ol_error *err)
{
    bool wide = m->out <= m->in;
    int n = (int)(wide ? m->out : m->in), other = (int)(wide ? m->in : m->out);
    size_t r = (size_t)m->rank;
    double *d = widen(dense, (size_t)n * (size_t)other);
    double *g = malloc(sizeof(double) * (size_t)n * (size_t)n);
    double *v = malloc(sizeof(double) * (size_t)n * r),
           *squares = malloc(sizeof(double) * (size_t)n);
    double *work = malloc(sizeof(double) * (size_t)other * r);
    ol_code code =
        d && g && v && squares && work ? give(m, err) : ol_fail_nomem(err, 0, "a decomposition");

    if (code == OL_OK) {
        cblas_dsyrk(CblasRowMajor, CblasLower, wide ? CblasNoTrans : CblasTrans, n, other, 1, d,
                    (int)m->in, 0, g, n);
        code = eigen(g, n, m->rank, squares, v, err);
    }
    if (code == OL_OK && wide)
        finish_wide(d, v, squares, m, work);
    else if (code == OL_OK)
        finish_tall(d, v, m, work);
    free(d);
    free(g);
    free(v);
    free(squares);
    free(work);
    return code;
}

/* -- products of thin matrices --------------------------------------------------------- */

/* With A A' = E L E': B A = (B E sqrt(L)) (A' E / sqrt(L))', whose right factor has
 * orthonormal rows; what is left to decompose is M = B E sqrt(L), by M' M. */
typedef struct thin {
    double *a, *b, *ga, *e, *la, *q, *mm, *gm, *w, *lm, *us, *vt;
} thin;

static bool make_thin(thin *t, const float *b, const float *a, int k, const merged *m)
{
    size_t kk = (size_t)k * (size_t)k, ka = (size_t)k * (size_t)m->in,
           kb = (size_t)k * (size_t)m->out;

    *t = (thin){.a = widen(a, ka),
                .b = widen(b, kb),
                .ga = malloc(sizeof(double) * kk),
                .e = malloc(sizeof(double) * kk),
                .la = malloc(sizeof(double) * (size_t)k),
                .q = malloc(sizeof(double) * ka),
                .mm = malloc(sizeof(double) * kb),
                .gm = malloc(sizeof(double) * kk),
                .w = malloc(sizeof(double) * kk),
                .lm = malloc(sizeof(double) * (size_t)k),
                .us = malloc(sizeof(double) * kb),
                .vt = malloc(sizeof(double) * ka)};
    return t->a && t->b && t->ga && t->e && t->la && t->q && t->mm && t->gm && t->w && t->lm &&
           t->us && t->vt;
}

static void free_thin(thin *t)
{
    double *all[] = {t->a, t->b, t->ga, t->e, t->la, t->q, t->mm, t->gm, t->w, t->lm, t->us, t->vt};

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        free(all[i]);
}

static ol_code decompose_thin(thin *t, int k, merged *m, ol_error *err)
{
    int in = (int)m->in, out = (int)m->out, r = m->rank < k ? m->rank : k;

    cblas_dsyrk(CblasRowMajor, CblasLower, CblasNoTrans, k, in, 1, t->a, in, 0, t->ga, k);
    OL_TRY(eigen(t->ga, k, k, t->la, t->e, err));
    cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, k, in, k, 1, t->e, k, t->a, in, 0, t->q,
                in);
    unscale_rows(t->q, t->la, k, in);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, out, k, k, 1, t->b, k, t->e, k, 0, t->mm,
                k);
    for (int j = 0; j < k; j++)
        cblas_dscal(out, sqrt(fmax(t->la[j], 0)), t->mm + j, k);
    cblas_dsyrk(CblasRowMajor, CblasLower, CblasTrans, k, out, 1, t->mm, k, 0, t->gm, k);
    OL_TRY(eigen(t->gm, k, r, t->lm, t->w, err));
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, out, r, k, 1, t->mm, k, t->w, r, 0,
                t->us, r);
    cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, r, in, k, 1, t->w, r, t->q, in, 0, t->vt,
                in);
    m->rank = r; /* no more than there is */
    OL_TRY(give(m, err));
    narrow(t->us, m->b, (size_t)out * (size_t)r);
    narrow(t->vt, m->a, (size_t)r * (size_t)in);
    return OL_OK;
}

ol_code merge_decompose_product(const float *b, const float *a, int k, merged *m, ol_error *err)
{
    thin t;
    ol_code code = make_thin(&t, b, a, k, m) ? decompose_thin(&t, k, m, err)
                                             : ol_fail_nomem(err, 0, "a decomposition");

    free_thin(&t);
    return code;
}

/* -- clamping ---------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return x < y ? -1 : x > y;
}

static void clamp_all(float *values, size_t n, float limit)
{
    for (size_t i = 0; i < n; i++)
        values[i] = fminf(fmaxf(values[i], -limit), limit);
}

/* torch.quantile: between two values linearly. */
ol_code merge_clamp(merged *m, double quantile, ol_error *err)
{
    size_t na = (size_t)m->rank * (size_t)m->in, nb = (size_t)m->rank * (size_t)m->out;
    size_t n = na + nb, below;
    float *all = malloc(n * sizeof(*all));
    double at = quantile * (double)(n - 1), limit;

    if (!all)
        return ol_fail_nomem(err, n * sizeof(*all), "values to clamp");
    memcpy(all, m->b, nb * sizeof(*all));
    memcpy(all + nb, m->a, na * sizeof(*all));
    qsort(all, n, sizeof(*all), ascending);
    below = (size_t)at;
    limit = all[below];
    if (below + 1 < n)
        limit += (at - (double)below) * ((double)all[below + 1] - limit);
    free(all);
    clamp_all(m->a, na, (float)limit);
    clamp_all(m->b, nb, (float)limit);
    return OL_OK;
}

/* -- how large a product is ------------------------------------------------------------------ */

/* |B A|^2 is the sum over the entries of (B'B) and (A A'), both k x k. */
static ol_code square_of(const ol_lora_module *l, double *square, ol_error *err)
{
    int k = l->rank, in = (int)l->a.shape[1], out = (int)l->b.shape[0];
    size_t na = (size_t)k * (size_t)in, nb = (size_t)k * (size_t)out, kk = (size_t)k * (size_t)k;
    double *grams = calloc(2 * kk, sizeof(double));
    float *wide = malloc((na > nb ? na : nb) * sizeof(float));
    double *d = malloc((na > nb ? na : nb) * sizeof(double));
    bool good = grams && wide && d;

    if (good) {
        ol_dequantize(l->a.dtype, l->a.data, wide, na);
        for (size_t i = 0; i < na; i++)
            d[i] = wide[i];
        cblas_dsyrk(CblasRowMajor, CblasLower, CblasNoTrans, k, in, 1, d, in, 0, grams, k);
        ol_dequantize(l->b.dtype, l->b.data, wide, nb);
        for (size_t i = 0; i < nb; i++)
            d[i] = wide[i];
        cblas_dsyrk(CblasRowMajor, CblasLower, CblasTrans, k, out, 1, d, k, 0, grams + kk, k);
        *square = 0;
        for (int i = 0; i < k; i++)
            for (int j = 0; j <= i; j++)
                *square += (i == j ? 1 : 2) * grams[i * k + j] * grams[kk + (size_t)(i * k + j)];
    }
    free(grams);
    free(wide);
    free(d);
    return good ? OL_OK : ol_fail_nomem(err, na * sizeof(double), "an adapter's module");
}

ol_code ol_merge_parts(const ol_merge_parent *parents, int n, double *parts, ol_error *err)
{
    for (int i = 0; i < n; i++) {
        const ol_adapter_file *file = parents[i].file;
        double sum = 0;

        for (int k = 0; k < file->n_modules; k++) {
            double square = 0, scale = (double)file->modules[k].scale;

            OL_TRY(square_of(&file->modules[k], &square, err));
            sum += scale * scale * square;
        }
        parts[i] = fabs(parents[i].weight) * sqrt(fmax(sum, 0));
    }
    return OL_OK;
}
