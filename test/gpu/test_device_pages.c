/*
 * test_device_pages.c: pages of the CUDA device: copies of them, and a pool where adapters lie
 * beside keys and values.
 */
#include "model.h"

#include "kernels/core.h"

/* A copied page serves as its original. */
static void check_copies(ol_dtype kv)
{
    const weights *w = weights_random(&shape_small, OL_BF16);
    sequence one, two;
    model m;

    model_open(&m, ol_device_entry_point(), w, (storage){.kv = kv});
    sequence_random(&one, &shape_small, 0, 0);
    sequence_again(&two, &one, &shape_small);
    model_run_one(&m, &one, 20);
    two.length = 20;
    two.pages[1] = one.pages[1] == 5 ? 6 : 5;
    OK(m.on.t->kv_copy_page(m.on.device, m.on.kv, one.pages[1], two.pages[1], 4, &model_error));
    model_run_one(&m, &one, 1);
    model_run_one(&m, &two, 1);
    sequence_check_same(&one, &two, &shape_small);
    model_close(&m);
    rig_free_all();
}

static void copies_pages(void **state)
{
    (void)state;
    check_copies(OL_BF16);
    check_copies(OL_F8E4M3);
}

/* A pool on a model instead of its pages; with NaNs where anything may have lain before. */
static void open_pool(model *m, ol_dtype kv, bool fresh)
{
    stack *on = &m->on;

    on->t->kv_free(on->device, on->kv);
    m->last_page = PAGES + 2048;
    model_open_pages(m, m->last_page, kv);
    if (fresh)
        return;
    GPU_OK(cudaDeviceSynchronize());
    rig_poison(on->kv->first.data, on->kv->bytes);
}

/* The same adapters on both; in a pool they take none but its memory. */
static void place_loras(model *alone, model *pooled)
{
    ol_device_info before, after;

    pooled->on.t->info(pooled->on.device, &before);
    for (int i = 0; i < LORAS; i++)
        model_place_lora(alone, pooled, i, i % 2 ? OL_F32 : OL_BF16);
    pooled->on.t->info(pooled->on.device, &after);
    assert_true(after.memory_used == before.memory_used);
}

/* Adapters in pages of a pool: the bits that they have in memory of their own. A page between them
 * serves for keys and values. A fresh pool is not waited for: its zeros must not come after the
 * adapters. */
static void same_bits_in_a_pool(const stack_shape *s, storage how, bool fresh)
{
    const weights *w = weights_random(s, OL_BF16);
    sequence seqs[2][MAX_SEQS], *order[2][MAX_SEQS];
    model m[2];

    for (int k = 0; k < 2; k++)
        model_open(&m[k], ol_device_entry_point(), w, how);
    open_pool(&m[1], how.kv, fresh);
    place_loras(&m[0], &m[1]);
    for (int i = 0; i < MAX_SEQS; i++) {
        sequence_random(&seqs[0][i], s, i, i % 4);
        sequence_again(&seqs[1][i], &seqs[0][i], s);
        seqs[1][i].pages[0] = m[1].last_page - i; /* where nobody has written */
        order[0][i] = &seqs[0][i];
        order[1][i] = &seqs[1][i];
    }
    for (int step = 0; step < 3; step++) {
        int rows[MAX_SEQS];

        for (int i = 0; i < MAX_SEQS; i++)
            rows[i] = step % 2 ? 1 : 1 + rig_below(30);
        model_run(&m[0], order[0], rows, MAX_SEQS);
        model_run(&m[1], order[1], rows, MAX_SEQS);
        for (int i = 0; i < MAX_SEQS; i++)
            sequence_check_same(&seqs[0][i], &seqs[1][i], s);
    }
    model_close(&m[0]);
    model_close(&m[1]);
    rig_free_all();
}

static void adapters_in_pages(void **state)
{
    (void)state;
    same_bits_in_a_pool(&shape_small, (storage){.kv = OL_BF16},
                        false); /* a part is larger than a page */
    same_bits_in_a_pool(&shape_odd, (storage){.kv = OL_BF16}, false);
    same_bits_in_a_pool(&shape_wide, (storage){.kv = OL_BF16}, false);
    same_bits_in_a_pool(&shape_odd, (storage){.kv = OL_F8E4M3}, false);
    same_bits_in_a_pool(&shape_small, (storage){.kv = OL_BF16}, true);
    same_bits_in_a_pool(&shape_odd, (storage){.kv = OL_BF16, .adapters = OL_QUANT_INT8}, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies_pages),
        cmocka_unit_test(adapters_in_pages),
    };

    rig_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
