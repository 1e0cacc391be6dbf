/* test_lora8.c: adapters' matrices in eight bits: every number, every scale and every sum of B'B as
 * the definition has them; and how far the numbers are from those that were given. */
#include "gpu_rig.h"

#include "base/tensor.h"

#include <math.h>

#define FIRST 32 /* rows of the first upload */

/* A or B of an adapter: {rank, n} or {n, rank}. */
typedef struct matrix {
    int rows, cols;
    bool by_columns; /* B */
    int source;      /* as gpu_source has it */
    size_t each;     /* bytes of a number */
    uint8_t *data;
    float *values;
    gpu_lora8 to;
} matrix;

static int rank_of(const matrix *m, int row, int col)
{
    return m->by_columns ? col : row;
}

static int ranks(const matrix *m)
{
    return m->by_columns ? m->cols : m->rows;
}

/* A rank's numbers: of a size of their own, some ranks all zero, some with one number that is much
 * larger than the others. */
static float random_value(int rank, int at)
{
    double size = ldexp(1, rank % 7 * 4 - 15);

    if (rank % 11 == 3)
        return 0;
    return (float)(rig_uniform() * size * (rank % 5 == 4 && at == 0 ? 100 : 1));
}

static matrix make(int rows, int cols, bool by_columns)
{
    static const ol_dtype dtypes[] = {OL_F32, OL_F16, OL_BF16};
    matrix m = {.rows = rows, .cols = cols, .by_columns = by_columns, .source = rig_below(3)};
    size_t n = (size_t)rows * (size_t)cols;

    m.each = m.source ? 2 : 4;
    m.data = rig_host(n * m.each);
    m.values = rig_host(n * sizeof(float));
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) {
            int rank = by_columns ? c : r;
            float v = random_value(rank, by_columns ? r : c);
            uint16_t half = m.source == 1 ? rig_f16((double)v) : rig_bf16((double)v);
            size_t at = (size_t)r * (size_t)cols + (size_t)c;

            memcpy(m.data + at * m.each, m.source ? (void *)&half : (void *)&v, m.each);
        }
    ol_dequantize(dtypes[m.source], m.data, m.values, n);
    return m;
}

/* In two uploads, each measured before either is packed where ranks are columns. */
static void pack(matrix *m, int32_t *bad)
{
    size_t tiles, padded = (size_t)(ranks(m) + 15) / 16 * 16;
    uint32_t *zeros = rig_host(padded * 4);

    m->to = (gpu_lora8){.col_tiles = m->by_columns ? (m->cols + 15) / 16 : (m->cols + 63) / 64 * 4,
                        .by_columns = m->by_columns,
                        .most = rig_device_copy(zeros, padded * 4)};
    tiles = (size_t)((m->rows + 15) / 16) * (size_t)m->to.col_tiles;
    m->to.data = rig_device(tiles * 256);
    for (int pass = 0; pass < 2; pass++)
        for (int first = 0; first < m->rows; first += FIRST) {
            int n = m->rows - first < FIRST ? m->rows - first : FIRST;
            size_t row = (size_t)m->cols * m->each;
            gpu_source from = {rig_device_copy(m->data + (size_t)first * row, (size_t)n * row),
                               m->source, n, m->cols};

            GPU_OK(pass ? gpu_lora8_pack(&m->to, first, &from, rig_stream())
                        : gpu_lora8_most(&m->to, first, &from, bad, rig_stream()));
        }
}

static float most_of(const matrix *m, int rank)
{
    float most = 0;

    for (int r = 0; r < m->rows; r++)
        for (int c = 0; c < m->cols; c++)
            if (rank_of(m, r, c) == rank)
                most = fmaxf(most, fabsf(m->values[(size_t)r * (size_t)m->cols + (size_t)c]));
    return most;
}

/* What all numbers should be: packed by the rig, which was told by the definition. */
static int8_t *numbers_of(const matrix *m)
{
    int8_t *q = rig_host((size_t)m->rows * (size_t)m->cols);

    for (int rank = 0; rank < ranks(m); rank++) {
        float scale = most_of(m, rank) / 127;

        for (int i = 0; i < (m->by_columns ? m->rows : m->cols); i++) {
            size_t at = m->by_columns ? (size_t)i * (size_t)m->cols + (size_t)rank
                                      : (size_t)rank * (size_t)m->cols + (size_t)i;
            float v = m->values[at];

            q[at] = (int8_t)(scale > 0 ? rintf(v / scale) : 0);
            /* half a step, and what the division rounds */
            assert_true(fabs((double)q[at] * (double)scale - (double)v) <=
                        (double)scale * (0.5 + 1e-4));
        }
    }
    return q;
}

static void check_packed(const matrix *m, const int8_t *q)
{
    size_t bytes;
    int8_t *want = rig_pack_lora8(q, m->rows, m->cols, m->by_columns, &bytes);
    int8_t *got = rig_host(bytes);
    float *most = rig_host((size_t)ranks(m) * sizeof(float));

    rig_fetch(got, m->to.data, bytes);
    assert_memory_equal(got, want, bytes);
    rig_fetch(most, m->to.most, (size_t)ranks(m) * sizeof(float));
    for (int i = 0; i < ranks(m); i++)
        assert_true(most[i] == most_of(m, i));
}

/* -- tests ------------------------------------------------------------------------------------- */

static void numbers(void **state)
{
    static const int shapes[][3] = {{1, 1, 0},   {16, 64, 0},  {37, 1100, 0}, {53, 65, 0},
                                    {8, 40, 0},  {1, 1, 1},    {64, 16, 1},   {300, 8, 1},
                                    {65, 37, 1}, {129, 64, 1}, {40, 1, 1}};

    (void)state;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        matrix m = make(shapes[i][0], shapes[i][1], shapes[i][2]);

        pack(&m, NULL);
        check_packed(&m, numbers_of(&m));
        rig_free_all();
    }
}

/* The smallest floats have no 127th part: zero, or as far as it goes. */
static void least_numbers(void **state)
{
    static const float all[] = {1e-45f, -1e-45f, 63e-45f, 0, 2.1e-43f, -1e-43f, 1e-40f, -3e-41f};
    float most = 0;
    matrix m = {.rows = 1, .cols = 8, .each = 4, .data = (uint8_t *)(uintptr_t)all};
    int8_t *got = rig_host(512);

    (void)state;
    for (int n = 1; n <= 8; n++) {
        most = fmaxf(most, fabsf(all[n - 1]));
        m.cols = n;
        pack(&m, NULL);
        rig_fetch(got, m.to.data, 512);
        for (int c = 0; c < n; c++) {
            static const int places[] = {0, 2, 1, 3, 4, 6, 5, 7};
            float scale = most / 127, q = scale > 0 ? rintf(all[c] / scale) : 0;
            int at = c % 8 / 2 * 16 + places[c % 2];

            assert_int_equal(got[at], (int)fminf(fmaxf(q, -127), 127));
        }
    }
    rig_free_all();
}

static void says_what_is_not_finite(void **state)
{
    static const float all[] = {INFINITY, -INFINITY, NAN, 3.4e38f};

    (void)state;
    for (int by_columns = 0; by_columns < 2; by_columns++)
        for (int i = 0; i < 5; i++) {
            matrix m = make(40, 40, by_columns);
            int32_t none = 0, *bad = rig_device_copy(&none, sizeof(none)), got;

            m.source = 0;
            m.each = 4;
            m.data = (uint8_t *)m.values;
            if (i < 4)
                m.values[rig_below(1600)] = all[i];
            pack(&m, bad);
            rig_fetch(&got, bad, sizeof(got));
            assert_int_equal(got, i < 4);
            rig_free_all();
        }
}

/* Of a part: what multiplies h, and B'B of the numbers. */
static void scales_and_sums(void **state)
{
    (void)state;
    for (int i = 0; i < 6; i++) {
        int rank = 1 + rig_below(40), padded = (rank + 15) / 16 * 16, rows[2];
        matrix a = make(rank, 70, false), b = make(20 + rig_below(100), rank, true);
        float *both = rig_host((size_t)(2 * padded) * sizeof(float));
        float *gram = rig_device((size_t)(rank * rank) * sizeof(float)), *got;
        gpu_lora_part parts[2] = {{.rank = 0}, {.rank = rank, .gram = gram}};
        int8_t *q;

        pack(&a, NULL);
        pack(&b, NULL);
        rig_fetch(both, a.to.most, (size_t)padded * sizeof(float));
        rig_fetch(both + padded, b.to.most, (size_t)padded * sizeof(float));
        parts[1].b = b.to.data;
        parts[1].scales = rig_device_copy(both, (size_t)(2 * padded) * sizeof(float));
        rows[0] = 0;
        rows[1] = b.rows;
        got = rig_device_copy(parts, sizeof(parts));
        GPU_OK(gpu_lora8_scales((const gpu_lora_part *)got, 2, rig_stream()));
        GPU_OK(gpu_gram((const gpu_lora_part *)got, rig_device_copy(rows, sizeof(rows)), 2, rank,
                        true, rig_stream()));
        rig_fetch(both, parts[1].scales, (size_t)rank * sizeof(float));
        for (int r = 0; r < rank; r++)
            assert_true(both[r] == most_of(&a, r) / 127 * (most_of(&b, r) / 127));
        q = numbers_of(&b);
        got = rig_host((size_t)(rank * rank) * sizeof(float));
        rig_fetch(got, gram, (size_t)(rank * rank) * sizeof(float));
        for (int r = 0; r < rank * rank; r++) {
            int64_t sum = 0;

            for (int row = 0; row < b.rows; row++)
                sum += q[row * rank + r / rank] * q[row * rank + r % rank];
            assert_true(got[r] == (float)sum);
        }
        rig_free_all();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers),
        cmocka_unit_test(least_numbers),
        cmocka_unit_test(says_what_is_not_finite),
        cmocka_unit_test(scales_and_sums),
    };

    return RIG_RUN_IN_ORDERS(tests);
}
