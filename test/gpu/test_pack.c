/* test_pack.c: matrices of every type packed as every kind, read back number by number. What a
 * number may lose is a share of its group's range, or next to nothing where the kind is the
 * type's own. */
#include "gpu_rig.h"

#include "base/tensor.h"

#include <math.h>

#define ROWS 53  /* the last 16 are not all there */
#define FIRST 32 /* rows of the first upload */

static const struct {
    ol_dtype dtype;
    int source; /* as gpu_source has it */
    int kind;   /* that keeps its numbers, or -1 */
} types[] = {{OL_F32, 0, -1},        {OL_F16, 1, -1},        {OL_BF16, 2, GPU_BF16},
             {OL_Q8_0, 3, GPU_INT8}, {OL_Q4_0, 4, GPU_INT4}, {OL_Q4_K, 5, GPU_INT4M}};

/* -- a matrix in host memory ------------------------------------------------------------------- */

/* A block with all of its fields in use: numbers around 0, or all on one side of it. */
static void random_block(ol_dtype dtype, uint8_t *at)
{
    bool negative = rig_below(2);
    uint16_t d = rig_f16((0.01 + 0.005 * rig_uniform()) * (negative ? -1 : 1));
    uint16_t min = rig_f16(rig_below(3) ? 0.1 : 0.005);

    for (size_t i = 0; i < ol_dtype_block_bytes(dtype); i++)
        at[i] = (uint8_t)rig_next();
    memcpy(at, &d, 2);
    if (dtype == OL_Q4_K) {
        memcpy(at + 2, &min, 2);
        if (rig_below(4) ==
            0) /* the first group has no scale: all of its numbers are the minimum */
            at[4] = 0;
    }
}

static uint8_t *random_matrix(ol_dtype dtype, int cols, float *values)
{
    size_t n = (size_t)(ROWS * cols), bytes = ol_dtype_block_bytes(dtype);
    size_t blocks = n / (size_t)ol_dtype_block(dtype);
    uint8_t *data = rig_host(blocks * bytes);

    for (size_t i = 0; i < blocks; i++) {
        float v = (float)(rig_uniform() + (i / 32 % 3 ? 0 : 2));
        uint16_t half = dtype == OL_F16 ? rig_f16(v) : rig_bf16(v);

        if (bytes > 4)
            random_block(dtype, data + i * bytes);
        else
            memcpy(data + i * bytes, dtype == OL_F32 ? (void *)&v : (void *)&half, bytes);
    }
    ol_dequantize(dtype, data, values, n);
    return data;
}

/* -- packed and read back ---------------------------------------------------------------------- */

static gpu_matrix make_room(int kind, int cols)
{
    size_t tiles = (ROWS + 15) / 16 * (((size_t)cols + 63) / 64 * 4);

    return (gpu_matrix){.kind = kind,
                        .rows = ROWS,
                        .cols = cols,
                        .splits = 1,
                        .data = rig_device(tiles * 512),
                        .scales = rig_device(tiles / 2 * 16 * 4)};
}

/* In two uploads, as a large matrix comes. */
static void pack(const gpu_matrix *to, int source, const uint8_t *data, size_t bytes)
{
    for (int first = 0; first < ROWS; first += FIRST) {
        int n = ROWS - first < FIRST ? ROWS - first : FIRST;
        size_t row = bytes / ROWS;
        gpu_source from = {rig_device_copy(data + (size_t)first * row, (size_t)n * row), source, n,
                           to->cols};

        GPU_OK(gpu_pack(to, first, &from, NULL, rig_stream()));
    }
}

static float *read_back(const gpu_matrix *m)
{
    size_t bytes = (size_t)(ROWS * m->cols) * sizeof(float);
    float *x = rig_device(bytes), *out = rig_host(bytes);
    gpu_counts counts = {.n_rows = ROWS};
    int32_t tokens[ROWS];
    gpu_rows rows = {.counts = rig_device_copy(&counts, sizeof(counts))};

    for (int i = 0; i < ROWS; i++)
        tokens[i] = i;
    rows.tokens = rig_device_copy(tokens, sizeof(tokens));
    GPU_OK(gpu_embed_packed(&rows, m, x, m->cols, ROWS, rig_stream()));
    rig_fetch(out, x, bytes);
    return out;
}

/* -- what may be lost -------------------------------------------------------------------------- */

/* From a group's numbers, the rest of which are zeros where columns end. */
static double admitted(const float *group, int n, int kind, bool own)
{
    double low = n < 32 ? 0 : (double)group[0], high = low, most;

    for (int i = 0; i < n; i++) {
        low = fmin(low, (double)group[i]);
        high = fmax(high, (double)group[i]);
    }
    most = fmax(-low, high);
    if (kind == GPU_BF16)
        return own ? 0 : most * 0x1p-8;
    if (own) /* INT8 has the very scales, the others' are rounded; INT4M's q * scale and offset */
        return kind == GPU_INT8   ? 0
               : kind == GPU_INT4 ? most * 0x1p-8
                                  : (most + high - low) * 0x1p-7;
    if (kind == GPU_INT8)
        return most / 127 * 0.56; /* half a step; the scale is rounded, too */
    if (kind == GPU_INT4M)
        return (high - low) / 15 * 0.53 + most * 0x1p-7;
    return most / 8 * 1.04; /* what is on the other side of 0 has 7 steps */
}

static void check(int type, int kind, int cols)
{
    ol_dtype dtype = types[type].dtype;
    float *values = rig_host((size_t)(ROWS * cols) * sizeof(float)), *got;
    const uint8_t *data = random_matrix(dtype, cols, values);
    size_t row_bytes;
    gpu_matrix m = make_room(kind, cols);

    assert_true(ol_dtype_row_bytes(dtype, cols, &row_bytes));
    pack(&m, types[type].source, data, row_bytes * ROWS);
    got = read_back(&m);
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < cols; c++) {
            const float *group = values + r * cols + c / 32 * 32;
            int n = cols - c / 32 * 32 < 32 ? cols - c / 32 * 32 : 32;
            double bound = admitted(group, n, kind, types[type].kind == kind);
            double want = (double)values[r * cols + c], is = (double)got[r * cols + c];

            if (!(fabs(is - want) <= bound))
                fail_msg("%s as kind %d: row %d, column %d of %d: %.9g is %.9g, by at most %.3g",
                         ol_dtype_name(dtype), kind, r, c, cols, want, is, bound);
        }
    rig_free_all();
}

/* -- tests ------------------------------------------------------------------------------------- */

static void every_type_as_every_kind(void **state)
{
    (void)state;
    for (size_t type = 0; type < sizeof(types) / sizeof(types[0]); type++)
        for (int kind = 0; kind < GPU_KINDS; kind++) {
            check((int)type, kind, 512);
            if (ol_dtype_block(types[type].dtype) <= 32)
                check((int)type, kind, 96);
            if (ol_dtype_block(types[type].dtype) == 1)
                check((int)type, kind, 75);
        }
}

/* A number that bf16 has not is said to be bad. */
static void says_what_is_not_finite(void **state)
{
    static const float values[] = {1, 3.4e38f, -INFINITY, NAN};

    (void)state;
    for (int i = 0; i < 4; i++) {
        float *data = rig_host(ROWS * 64 * sizeof(float));
        int32_t bad = 0, *flag = rig_device_copy(&bad, sizeof(bad));
        gpu_matrix m = make_room(GPU_BF16, 64);
        gpu_source source = {NULL, 0, ROWS, 64};

        data[ROWS * 64 - 1] = values[i];
        source.data = rig_device_copy(data, ROWS * 64 * sizeof(float));
        GPU_OK(gpu_pack(&m, 0, &source, flag, rig_stream()));
        rig_fetch(&bad, flag, sizeof(bad));
        assert_int_equal(bad, i > 0);
        rig_free_all();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_as_every_kind),
        cmocka_unit_test(says_what_is_not_finite),
    };

    rig_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
