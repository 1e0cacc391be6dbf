/* test_element.c: the embedding and the norm against float64. */
#include "gpu_rig.h"

#include <math.h>

#define ROWS 5
#define COLS 100
#define LD 128

static gpu_rows rows_of(int n_rows, int n_logits, const int32_t *tokens, const int32_t *logit_rows)
{
    gpu_counts counts = {.n_rows = n_rows, .n_logit_rows = n_logits};

    return (gpu_rows){.counts = rig_device_copy(&counts, sizeof(counts)),
                      .tokens = rig_device_copy(tokens, ROWS * sizeof(int32_t)),
                      .logit_rows = rig_device_copy(logit_rows, ROWS * sizeof(int32_t))};
}

static void embeds_each_type(void **state)
{
    int32_t tokens[ROWS] = {3, 0, 6, 6, 2};
    float *table = rig_random_f32(7 * COLS, 0, 1);
    uint16_t half[7 * COLS];

    (void)state;
    for (int dtype = 0; dtype < 3; dtype++) {
        gpu_rows rows = rows_of(ROWS - 1, 0, tokens, tokens);
        float *x = rig_device(ROWS * LD * sizeof(float)), got[ROWS * LD];

        for (int i = 0; i < 7 * COLS; i++)
            half[i] = dtype == 1 ? rig_f16(table[i]) : rig_bf16(table[i]);
        GPU_OK(gpu_embed(&rows,
                         dtype ? rig_device_copy(half, sizeof(half))
                               : rig_device_copy(table, 7 * COLS * sizeof(float)),
                         dtype, COLS, x, LD, ROWS, rig_stream()));
        rig_fetch(got, x, sizeof(got));
        for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < LD; i++) {
                int at = tokens[r] * COLS + i;

                if (r == ROWS - 1 || i >= COLS)
                    assert_true(isnan(got[r * LD + i])); /* not ours to write */
                else
                    assert_true(got[r * LD + i] == (float)(dtype == 0   ? table[at]
                                                           : dtype == 1 ? rig_from_f16(half[at])
                                                                        : rig_from_bf16(half[at])));
            }
        rig_free_all();
        table = rig_random_f32(7 * COLS, 0, 1);
    }
    rig_free_all();
}

static void check_norm(int cols)
{
    int ld = (cols + GPU_PAD - 1) / GPU_PAD * GPU_PAD;
    int32_t tokens[ROWS] = {0}, wanted[ROWS] = {1, 4, 0, 0, 0};
    size_t n = (size_t)(ROWS * ld);
    float *x = rig_random_f32(n, 0, 2), *w = rig_random_f32((size_t)cols, 1, 0.3);
    uint16_t *got = rig_host(n * 2);

    for (int logits = 0; logits < 2; logits++) {
        gpu_rows rows = rows_of(ROWS, 2, tokens, wanted);
        uint16_t *y = rig_device(n * 2);
        rig_gap gap = {0};

        GPU_OK(gpu_rms_norm(&rows, rig_device_copy(x, n * sizeof(float)), ld,
                            rig_device_copy(w, (size_t)cols * sizeof(float)), cols, 1e-5f, logits,
                            y, ld, ROWS, rig_stream()));
        rig_fetch(got, y, n * 2);
        for (int r = 0; r < (logits ? 2 : ROWS); r++) {
            const float *from = x + (logits ? wanted[r] : r) * ld;
            double sum = 0;

            for (int i = 0; i < cols; i++)
                sum += (double)from[i] * from[i];
            for (int i = 0; i < cols; i++)
                rig_compare(&gap, rig_from_bf16(got[r * ld + i]),
                            from[i] / sqrt(sum / cols + 1e-5) * w[i]);
            for (int i = cols; i < ld; i++)
                assert_int_equal(got[r * ld + i], 0xffff);
        }
        rig_check_gap(&gap, RIG_BF16, "norm of %d, logits %d", cols, logits);
        for (int r = logits ? 2 : ROWS; r < ROWS; r++)
            assert_int_equal(got[r * ld], 0xffff);
    }
    rig_free_all();
}

/* Fewer columns than threads, what is no four, several passes of a block. */
static void normalises(void **state)
{
    (void)state;
    check_norm(3);
    check_norm(COLS);
    check_norm(1027);
    check_norm(8192);
    check_norm(17001);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(embeds_each_type),
        cmocka_unit_test(normalises),
    };

    rig_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
