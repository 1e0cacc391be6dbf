/*
 * test_device_proof.c: what the CUDA device finds out of its card when it opens, and says of it:
 * products of groups are used where they are proven to round as those of warps (kernels/proof.c).
 */
#include "model.h"

#include "kernels/core.h"

#include <stdio.h>

#ifdef OL_SIMT
/* What the device says of the card, opened on one of capability 9. */
static void describe_card(char *to, size_t size, gpu_way *way)
{
    ol_device_options options = {.max_rows = 16, .max_seqs = 2, .max_logit_rows = 2};
    const ol_device_table *t = ol_device_entry_point();
    ol_device_info info;
    ol_device *device;

    simt_recover(); /* a process that has used CUDA has no child to ask */
    gpu_proof_used(false);
    simt_settings.capability = 9;
    OK(t->open(&options, &device, &model_error));
    t->info(device, &info);
    snprintf(to, size, "%s", info.description);
    *way = device->way;
    t->close(device);
    simt_settings.capability = 0;
}

/* Products of groups are used when they round as those of warps, and only then. */
static void groups_are_proven_first(void **state)
{
    char text[256];
    gpu_way way;

    (void)state;
    describe_card(text, sizeof(text), &way);
    assert_non_null(strstr(text, "capability 9.0, wgmma"));
    assert_null(strstr(text, "not used"));
    assert_int_equal(way, GPU_WAY_GROUP);
    simt_settings.group_differs = 1;
    describe_card(text, sizeof(text), &way);
    simt_settings.group_differs = 0;
    assert_non_null(strstr(text, "wgmma not used: with BF16 weights it rounds otherwise"));
    assert_int_equal(way, GPU_WAY_WARP);
}

#define EACH_KIND                                                                                  \
    18 /* launches of the proof: of every kind but the first one, a third compared                 \
        */

/* What the proof says where products of groups differ from its n-th launch on. */
static gpu_proven proven_with_difference(int n)
{
    gpu_proven proven;

    simt_recover();
    simt_settings.capability = 9;
    simt_settings.group_differs = n;
    proven = gpu_prove_here(0, -1);
    simt_settings.group_differs = 0;
    simt_settings.capability = 0;
    return proven;
}

/* Each kind of weights is compared, without adapters first and with some last: a difference that
 * begins in its second launch is found there, and one in the last whose sums come as they are; and
 * one of adapters' products alone. */
static void every_kind_is_proven(void **state)
{
    gpu_proven all = proven_with_difference(0);
    int end = (int)simt_launches;

    (void)state;
    assert_int_equal(all.found, GPU_PROOF_SAME);
    for (int kind = GPU_KINDS - 1; kind > GPU_BF16; kind--, end -= EACH_KIND)
        for (int i = 0; i < 3; i++) {
            int first = end - EACH_KIND + 2;
            gpu_proven p = proven_with_difference(i == 0 ? first : i == 1 ? end - 3 : -first);

            assert_int_equal(p.found, GPU_PROOF_DIFFERS);
            assert_int_equal(p.kind, kind);
            assert_int_equal(p.adapters, i > 0);
        }
}

/* A proof that fails costs the card's products of groups, not the card. It is said where, also when
 * the child that was at it has ended. */
static void a_failed_proof_is_survived(void **state)
{
    static const struct {
        int launch;
        const char *said;
    } cases[] = {{5, "with BF16 weights it failed"},
                 {50, "with INT4 weights it failed"},
                 {55, "with INT4 weights and adapters it failed"}};
    char text[256];
    gpu_way way;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        simt_settings.fail_after = cases[i].launch;
        describe_card(text, sizeof(text), &way);
        simt_settings.fail_after = -1;
        assert_non_null(strstr(text, cases[i].said));
        assert_int_equal(way, GPU_WAY_WARP);
        simt_settings.group_dies = cases[i].launch;
        describe_card(text, sizeof(text), &way);
        simt_settings.group_dies = 0;
        assert_non_null(strstr(text, cases[i].said));
        assert_int_equal(way, GPU_WAY_WARP);
    }
}

static void measuring_may_choose(void **state)
{
    char text[256];
    gpu_way way;

    (void)state;
    setenv("OL_CUDA_PRODUCT", "mma", 1);
    describe_card(text, sizeof(text), &way);
    assert_null(strstr(text, "wgmma"));
    assert_int_equal(way, GPU_WAY_WARP);
    setenv("OL_CUDA_PRODUCT", "wgmma", 1);
    simt_settings.group_differs = 1;
    describe_card(text, sizeof(text), &way);
    simt_settings.group_differs = 0;
    unsetenv("OL_CUDA_PRODUCT");
    assert_non_null(strstr(text, "wgmma unproven"));
    assert_int_equal(way, GPU_WAY_GROUP);
}
#endif

/* Which card this is, and how it multiplies: to be read in a run's log. */
static void says_what_it_uses(void **state)
{
    ol_device_options options = {.max_rows = 16, .max_seqs = 2, .max_logit_rows = 2};
    const ol_device_table *t = ol_device_entry_point();
    ol_device_info info;
    ol_device *device;

    (void)state;
    OK(t->open(&options, &device, &model_error));
    t->info(device, &info);
    print_message("%s\n", info.description);
    assert_non_null(strstr(info.description, "compute capability"));
    t->close(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(says_what_it_uses),
#ifdef OL_SIMT
        cmocka_unit_test(groups_are_proven_first),    cmocka_unit_test(every_kind_is_proven),
        cmocka_unit_test(a_failed_proof_is_survived), cmocka_unit_test(measuring_may_choose),
#endif
    };

    rig_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
