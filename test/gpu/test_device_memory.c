/*
 * test_device_memory.c: the CUDA device's memory: what weights and adapters take, what is given
 * back, what is refused.
 */
#include "model.h"

#include "kernels/core.h"

/* Four bits take five, with their scales and offsets, whatever eight are asked for. */
static void four_bits_stay_four(void **state)
{
    ol_tensor t = weights_tensor(OL_Q4_K, 64, 512, 0, 1);
    model m = {.on = {.t = ol_device_entry_point()}};
    ol_device_options options = {.max_rows = 1, .max_seqs = 1, .max_logit_rows = 1};
    ol_device_info before, with;
    ol_weight *matrix;

    (void)state;
    OK(m.on.t->open(&options, &m.on.device, &model_error));
    m.on.t->info(m.on.device, &before);
    matrix = model_place(&m, &t, OL_WEIGHT_MATRIX, OL_QUANT_INT8);
    m.on.t->info(m.on.device, &with);
    assert_int_equal(with.memory_used - before.memory_used, 64 * 512 * 5 / 8);
    m.on.t->weight_free(m.on.device, matrix);
    m.on.t->close(m.on.device);
    rig_free_all();
}

/* A graph of so many members serves those of higher ranks, too, who need more room. */
static void room_grows_with_ranks(void **state)
{
    const weights *w = weights_random(&shape_small, OL_BF16);
    sequence seq;
    model m;

    (void)state;
    model_open_plain(&m, w);
    for (int i = 0; i < LORAS; i++)
        model_place_lora(&m, NULL, i, OL_BF16);
    sequence_random(&seq, &shape_small, 0, 1);
    for (int i = 0; i < LORAS; i++) { /* the last one's ranks are the highest */
        seq.lora[0] = i;
        model_run_one(&m, &seq, 1);
        assert_true(m.on.device->h.bytes >= (size_t)m.on.device->lists.h_used * sizeof(uint16_t));
    }
    model_close(&m);
    rig_free_all();
}

static void gives_memory_back(void **state)
{
    const weights *w = weights_random(&shape_small, OL_BF16);
    ol_device_info before, with, after;
    model m;

    (void)state;
    model_open_plain(&m, w);
    m.on.t->info(m.on.device, &before);
    model_place_lora(&m, NULL, 0, OL_F16);
    m.on.t->info(m.on.device, &with);
    assert_true(with.memory_used ==
                before.memory_used + m.on.t->lora_bytes(m.on.device, m.loras[0]));
    m.on.t->lora_free(m.on.device, m.loras[0]);
    m.loras[0] = NULL;
    m.on.t->info(m.on.device, &after);
    assert_true(after.memory_used == before.memory_used);
    model_close(&m);
    rig_free_all();
}

static void refuses_beyond_the_limit(void **state)
{
    ol_device_options options = {
        .max_rows = 16, .max_seqs = 2, .max_logit_rows = 2, .memory_limit = (size_t)1 << 20};
    const ol_device_table *t = ol_device_entry_point();
    ol_kv_desc desc = {2, 2, 64, 16, 4096, OL_BF16, false};
    ol_device *device;
    ol_kv *kv;

    (void)state;
    OK(t->open(&options, &device, &model_error));
    assert_int_equal(t->kv_create(device, &desc, &kv, &model_error), OL_NOMEM);
    assert_non_null(strstr(model_error.detail, "1048576"));
    desc.dtype = OL_F32;
    assert_int_equal(t->kv_create(device, &desc, &kv, &model_error), OL_UNSUPPORTED);
    t->close(device);
    options.device_index = 900;
    assert_int_equal(t->open(&options, &device, &model_error), OL_INVALID);
}

static void refuses_what_is_not_finite(void **state)
{
    const weights *w = weights_random(&shape_small, OL_BF16);
    ol_lora_module module = {
        .module = OL_MOD_V,
        .rank = 4,
        .scale = 1,
        .a = weights_tensor(OL_F32, 4, shape_small.hidden, 0, 1),
        .b = weights_tensor(OL_F32, stack_out(&shape_small, OL_MOD_V), 4, 0, 1)};
    ol_device_info before, after;
    model m;

    (void)state;
    model_open_plain(&m, w);
    m.on.t->info(m.on.device, &before);
    ((float *)(uintptr_t)module.b.data)[7] = 3.4e38f; /* rounds to infinity */
    assert_int_equal(m.on.t->lora_create(m.on.device, &module, 1, &m.loras[0], &model_error),
                     OL_INVALID);
    m.loras[0] = NULL;
    m.on.t->info(m.on.device, &after);
    assert_true(after.memory_used == before.memory_used);
    model_close(&m);
    rig_free_all();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(four_bits_stay_four),        cmocka_unit_test(room_grows_with_ranks),
        cmocka_unit_test(gives_memory_back),          cmocka_unit_test(refuses_beyond_the_limit),
        cmocka_unit_test(refuses_what_is_not_finite),
    };

    rig_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
