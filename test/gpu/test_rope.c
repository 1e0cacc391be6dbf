/* test_rope.c: norms of heads, RoPE, and what arrives in which slot of which page. */
#include "gpu_rig.h"

#include <math.h>

#define ROWS 7
#define REAL_ROWS 6
#define PAGES 24
#define MAX_PAGES 8 /* of a sequence */

/* A model's shape. */
typedef struct shape {
    int heads, kv_heads, dim, rotary, page_tokens;
    bool interleaved, norms, fp8;
} shape;

/* What a run was given, on the host. */
typedef struct given {
    shape s;
    int ld, ldq;
    uint16_t *qkv;
    double *values;
    float *q_norm, *k_norm, *inv_freq;
    int32_t pos[ROWS], page_start[ROWS], pages[ROWS * MAX_PAGES];
} given;

static int stride_of(const shape *s)
{
    return (s->dim + 15) / 16 * 16;
}

/* The pool, but for its address. */
static gpu_kv_layer kv_of(const shape *s)
{
    gpu_kv_layer kv = {NULL, s->kv_heads, s->dim, stride_of(s), s->page_tokens, 0, s->fp8};

    kv.page_stride = s->kv_heads * gpu_kv_head_bytes(&kv);
    return kv;
}

static size_t pool_bytes(const shape *s)
{
    return PAGES * (size_t)kv_of(s).page_stride;
}

/* Rows at random places: their pages are all different. */
static given give(const shape *s)
{
    given g = {.s = *s};
    int width = (s->heads + 2 * s->kv_heads) * s->dim;

    g.ld = (width + GPU_PAD - 1) / GPU_PAD * GPU_PAD;
    g.ldq = (s->heads * s->dim + GPU_PAD - 1) / GPU_PAD * GPU_PAD;
    g.qkv = rig_random_bf16((size_t)(ROWS * g.ld), 2, &g.values);
    g.q_norm = s->norms ? rig_random_f32((size_t)s->dim, 1, 0.4) : NULL;
    g.k_norm = s->norms ? rig_random_f32((size_t)s->dim, 1, 0.4) : NULL;
    g.inv_freq = rig_random_f32((size_t)s->rotary / 2, 0, 1);
    if (s->rotary)
        g.inv_freq[0] = 1;
    for (int i = 0; i < ROWS * MAX_PAGES; i++)
        g.pages[i] = -1; /* nobody's */
    for (int r = 0; r < ROWS; r++) {
        g.page_start[r] = MAX_PAGES * (ROWS - 1 - r);
        g.pos[r] = rig_below(MAX_PAGES * s->page_tokens);
        g.pages[g.page_start[r] + g.pos[r] / s->page_tokens] = (5 * r + 3) % PAGES;
    }
    return g;
}

static void *copy_or_null(const float *v, int n)
{
    return v ? rig_device_copy(v, (size_t)n * sizeof(float)) : NULL;
}

/* q and the pool after a run of the kernel. */
typedef struct result {
    uint16_t *q;
    uint8_t *pool;
} result;

static result run(const given *g, int n_rows)
{
    const shape *s = &g->s;
    gpu_counts counts = {.n_rows = REAL_ROWS};
    size_t n_pool = pool_bytes(s), n_q = (size_t)(ROWS * g->ldq);
    gpu_rows rows = {.counts = rig_device_copy(&counts, sizeof(counts)),
                     .pos = rig_device_copy(g->pos, sizeof(g->pos)),
                     .page_start = rig_device_copy(g->page_start, sizeof(g->page_start)),
                     .pages = rig_device_copy(g->pages, sizeof(g->pages))};
    gpu_rope op = {.qkv = rig_device_copy(g->qkv, (size_t)(ROWS * g->ld) * 2),
                   .ld = g->ld,
                   .q = rig_device(n_q * 2),
                   .ldq = g->ldq,
                   .kv = kv_of(s),
                   .q_norm = copy_or_null(g->q_norm, s->dim),
                   .k_norm = copy_or_null(g->k_norm, s->dim),
                   .inv_freq = rig_device_copy(g->inv_freq, (size_t)s->rotary / 2 * sizeof(float)),
                   .n_heads = s->heads,
                   .rotary_dims = s->rotary,
                   .interleaved = s->interleaved,
                   .norm_eps = 1e-5f,
                   .rope_factor = 1.1f};
    result out = {rig_host(n_q * 2), rig_host(n_pool)};

    op.kv.data = rig_device(n_pool);
    GPU_OK(gpu_rope_run(&rows, &op, n_rows, rig_stream()));
    rig_fetch(out.q, op.q, n_q * 2);
    rig_fetch(out.pool, op.kv.data, n_pool);
    return out;
}

/* -- in float64 ------------------------------------------------------------------------------ */

static void want_head(const given *g, int row, int head, const float *norm, double *x)
{
    const shape *s = &g->s;
    int half = s->rotary / 2;
    double sum = 0;

    memcpy(x, g->values + (size_t)row * (size_t)g->ld + (size_t)(head * s->dim),
           (size_t)s->dim * sizeof(double));
    for (int d = 0; d < s->dim; d++)
        sum += x[d] * x[d];
    for (int d = 0; norm && d < s->dim; d++)
        x[d] = x[d] / sqrt(sum / s->dim + 1e-5) * norm[d];
    for (int i = 0; i < half; i++) {
        int a = s->interleaved ? 2 * i : i, b = s->interleaved ? a + 1 : i + half;
        double angle = (double)((float)g->pos[row] * g->inv_freq[i]);
        double c = cos(angle) * (double)1.1f, sine = sin(angle) * (double)1.1f;
        double u = x[a], v = x[b];

        x[a] = u * c - v * sine;
        x[b] = v * c + u * sine;
    }
}

/* A key's numbers, or a value's, which has no other than its input's. */
static void check_bf16(const given *g, uint16_t *at, const double *want, bool exact, rig_gap *gap)
{
    for (int d = 0; d < g->s.dim; d++) {
        rig_compare(gap, rig_from_bf16(at[d]), want[d]);
        assert_true(!exact || rig_from_bf16(at[d]) == want[d]);
    }
    for (int d = g->s.dim; d < stride_of(&g->s); d++)
        assert_int_equal(at[d], 0);
    memset(at, 0xff, (size_t)stride_of(&g->s) * 2);
}

/* The exponent is the least that serves, each number the nearest that there is: off by half a step
 * at most, and for keys by what f32 has lost before: a number is turned from two, which may cancel,
 * by some ten roundings of the larger, 1e-6 of the head's largest number. */
static void check_fp8(const given *g, uint8_t *at, uint8_t *exponent, const double *want,
                      bool exact)
{
    double most = 0, unit = ldexp(1, *exponent - 64), near = exact ? 0 : 1e-3;

    assert_in_range(*exponent, 0, 127);
    for (int d = 0; d < g->s.dim; d++)
        most = fmax(most, fabs(want[d]));
    assert_true(most <= 448 * unit * (1 + near));
    assert_true(most >= 224 * unit * (1 - near));
    for (int d = 0; d < g->s.dim; d++) {
        double number = rig_from_f8(at[rig_f8_place(d)]) * unit, size = fabs(want[d]);

        if (exact)
            assert_true(at[rig_f8_place(d)] == rig_f8(want[d] / unit));
        assert_true(fabs(number - want[d]) <=
                    fmax(size / 16, unit / 1024) + (exact ? 0 : 2e-6 * most));
    }
    for (int d = g->s.dim; d < stride_of(&g->s); d++)
        assert_int_equal(at[rig_f8_place(d)], 0);
    memset(at, 0xff, (size_t)stride_of(&g->s));
    *exponent = 0xff;
}

/* Keys, values and zeros in their slots; what was compared becomes poison again. */
static void check_kv(const given *g, const result *got, int row, rig_gap *gap)
{
    const shape *s = &g->s;
    gpu_kv_layer kv = kv_of(s);
    int page = g->pages[g->page_start[row] + g->pos[row] / s->page_tokens];
    double want[512];

    for (int i = 0; i < 2 * s->kv_heads; i++) {
        int slot = g->pos[row] % s->page_tokens + i % 2 * s->page_tokens;
        uint8_t *head = got->pool + page * kv.page_stride + i / 2 * gpu_kv_head_bytes(&kv);
        uint8_t *at = head + slot * gpu_kv_row_bytes(&kv);
        bool value = i % 2;

        if (value)
            memcpy(want, g->values + row * g->ld + (s->heads + s->kv_heads + i / 2) * s->dim,
                   (size_t)s->dim * sizeof(double));
        else
            want_head(g, row, s->heads + i / 2, g->k_norm, want);
        if (s->fp8)
            check_fp8(g, at, head + 2 * s->page_tokens * stride_of(s) + slot, want, value);
        else
            check_bf16(g, (uint16_t *)at, want, value, gap);
    }
}

static void check(const given *g, result *got)
{
    const shape *s = &g->s;
    rig_gap gap = {0};
    double want[512];

    for (int r = 0; r < REAL_ROWS; r++) {
        for (int h = 0; h < s->heads; h++) {
            want_head(g, r, h, g->q_norm, want);
            for (int d = 0; d < s->dim; d++)
                rig_compare(&gap, rig_from_bf16(got->q[r * g->ldq + h * s->dim + d]), want[d]);
        }
        check_kv(g, got, r, &gap);
    }
    rig_check_gap(&gap, RIG_BF16, "%d heads of %d, %d turned", s->heads, s->dim, s->rotary);
    for (int r = 0; r < ROWS; r++)
        for (int i = r < REAL_ROWS ? s->heads * s->dim : 0; i < g->ldq; i++)
            assert_int_equal(got->q[r * g->ldq + i], 0xffff);
    for (size_t i = 0; i < pool_bytes(s); i++)
        assert_int_equal(got->pool[i], 0xff);
}

/* -- the tests ------------------------------------------------------------------------------- */

static void turns_heads_into_pages(void **state)
{
    static const shape shapes[] = {
        {3, 1, 12, 12, 16, false, true, false},   {4, 2, 64, 64, 16, true, true, false},
        {8, 2, 80, 32, 32, false, false, false},  {24, 8, 128, 128, 64, false, false, false},
        {5, 5, 10, 6, 16, true, true, false},     {3, 1, 13, 4, 16, false, false, false},
        {2, 1, 256, 0, 16, false, false, false},  {3, 1, 12, 12, 16, false, true, true},
        {4, 2, 64, 64, 16, true, true, true},     {2, 3, 80, 32, 32, false, false, true},
        {9, 8, 128, 128, 64, false, false, true}, {5, 5, 13, 4, 16, true, true, true},
        {2, 1, 256, 0, 256, false, false, true},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        given g = give(&shapes[i]);
        result got = run(&g, ROWS);

        check(&g, &got);
        rig_free_all();
    }
}

/* A turn's error must not grow with the position. */
static void turns_far_positions(void **state)
{
    static const shape s = {2, 1, 64, 64, 256, false, false, false};

    (void)state;
    for (int round = 0; round < 3; round++) {
        given g = give(&s);
        int far = 131072 / s.page_tokens;
        result got;

        for (int r = 0; r < ROWS; r++) { /* before the table's start: pages that nobody reads */
            g.page_start[r] -= (r + 1) * far;
            g.pos[r] += (r + 1) * far * s.page_tokens;
        }
        got = run(&g, ROWS);
        check(&g, &got);
        rig_free_all();
    }
}

/* The same bits whatever else is in the step. */
static void rows_stand_alone(void **state)
{
    shape s = {6, 2, 80, 64, 32, false, true, rig_below(2)};
    given g = give(&s), other = g;
    result got = run(&g, ROWS), again;
    int32_t last = REAL_ROWS - 1;

    (void)state;
    other.qkv = rig_host((size_t)(ROWS * g.ld) * 2);
    for (int r = 0; r < REAL_ROWS; r++) {
        memcpy(other.qkv + (last - r) * g.ld, g.qkv + r * g.ld, (size_t)g.ld * 2);
        other.pos[last - r] = g.pos[r];
        other.page_start[last - r] = g.page_start[r];
    }
    again = run(&other, REAL_ROWS);
    for (int r = 0; r < REAL_ROWS; r++)
        assert_memory_equal(got.q + r * g.ldq, again.q + (last - r) * g.ldq,
                            (size_t)(s.heads * s.dim) * 2);
    assert_memory_equal(got.pool, again.pool, pool_bytes(&s));
    rig_free_all();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(turns_heads_into_pages),
        cmocka_unit_test(turns_far_positions),
        cmocka_unit_test(rows_stand_alone),
    };

    return RIG_RUN_IN_ORDERS(tests);
}
