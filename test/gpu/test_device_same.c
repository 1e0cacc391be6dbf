/*
 * test_device_same.c: the same bits for a row in whatever step: with many others or alone, in a
 * prompt's rows or one after the other, by products of warps or of groups.
 */
#include "model.h"

#include "kernels/core.h"

/* The same requests: once in large steps together, once cut up, alone and in another order. */
static void check_same_bits(storage how)
{
    const weights *w = weights_random(&shape_wide, OL_BF16);
    sequence seqs[2][3], *all[3];
    model m;

    model_open(&m, ol_device_entry_point(), w, how);
    for (int i = 0; i < LORAS; i++)
        model_place_lora(&m, NULL, i, OL_BF16);
    for (int i = 0; i < 3; i++) {
        sequence_random(&seqs[0][i], &shape_wide, i, i);
        all[i] = &seqs[0][i];
        sequence_again_elsewhere(&seqs[1][i], &seqs[0][i], &shape_wide);
    }
    model_run(&m, all, (int[]){70, 33, 90}, 3);
    model_run(&m, all, (int[]){1, 1, 1}, 3);
    for (int i = 2; i >= 0; i--)
        while (seqs[1][i].length < seqs[0][i].length) {
            int left = seqs[0][i].length - seqs[1][i].length, n = 1 + rig_below(20);

            model_run_one(&m, &seqs[1][i], n < left ? n : left);
        }
    for (int i = 0; i < 3; i++)
        sequence_check_same(&seqs[0][i], &seqs[1][i], &shape_wide);
    model_close(&m);
    rig_free_all();
}

static void same_bits_in_any_step(void **state)
{
    (void)state;
    check_same_bits((storage){.kv = OL_BF16});
    check_same_bits((storage){.kv = OL_F8E4M3, .quantization = OL_QUANT_FP8});
    check_same_bits((storage){OL_BF16, OL_QUANT_INT8, OL_QUANT_INT8});
}

/* A few rows of a sequence are as many rows that go on: a graph, and the bits of a row each. As
 * long as they are not more than a step of all sequences has. */
static void few_rows_go_on(void **state)
{
    const weights *w = weights_random(&shape_wide, OL_BF16);
    sequence some[2], one[2];
    model m;

    (void)state;
    model_open_plain(&m, w);
    for (int i = 0; i < 2; i++) {
        sequence_random(&some[i], &shape_wide, i, 0);
        sequence_again_elsewhere(&one[i], &some[i], &shape_wide);
    }
    model_run(&m, (sequence *[]){&some[0], &some[1]}, (int[]){GPU_DECODE_ROWS, 60}, 2);
    assert_int_equal(m.on.device->sizes.n_decode, GPU_DECODE_ROWS);
    assert_int_equal(m.on.device->sizes.n_tiles, 1);
    model_run(&m, (sequence *[]){&some[0], &some[1]}, (int[]){2, GPU_DECODE_ROWS}, 2);
    assert_int_equal(m.on.device->sizes.n_decode, GPU_DECODE_ROWS + 2);
    assert_int_equal(m.on.device->sizes.n_tiles, 0);
    for (int i = 0; i < 2; i++) {
        while (one[i].length < some[i].length)
            model_run_one(&m, &one[i], 1);
        sequence_check_same(&one[i], &some[i], &shape_wide);
    }
    model_run(&m, (sequence *[]){&some[0], &some[1]}, (int[]){GPU_DECODE_ROWS, GPU_DECODE_ROWS}, 2);
    assert_in_range(m.on.device->sizes.n_decode, GPU_DECODE_ROWS, MAX_SEQS);
    assert_int_equal(m.on.device->sizes.n_tiles, 1);
    model_close(&m);
    rig_free_all();
}

#ifdef OL_SIMT
static void same_bits_with_groups(void **state)
{
    unsigned long long before = simt_group_products;

    simt_settings.capability = 9;
    same_bits_in_any_step(state);
    simt_settings.capability = 0;
    assert_true(simt_group_products > before);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bits_in_any_step),
        cmocka_unit_test(few_rows_go_on),
#ifdef OL_SIMT
        cmocka_unit_test(same_bits_with_groups),
#endif
    };

    rig_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
