/*
 * test_engine_int8.c: what adapters in eight bits cost and save: logits of every position against
 * those with the same adapters as they were given, as a share of what the adapters change at all;
 * bytes; shares of energies; and that options say so. On the CPU or, by OL_TEST_DEVICE, over the
 * CUDA device.
 */
#include "engine_util.h"

#include <math.h>
#include <stdio.h>

#define TOKENS 48

typedef struct answer {
    float *logits[3]; /* without adapters, with one, with all */
    size_t bytes;     /* of all adapters */
    float shares[3];
    char device[192];
} answer;

static const int32_t *tokens(void)
{
    static int32_t all[TOKENS];

    for (int i = 0; i < TOKENS; i++)
        all[i] = (17 * i * i + 5 * i + 3) % 250;
    return all;
}

static void shares_of(ol_engine *engine, const ol_adapter_use *uses, float *shares)
{
    ol_request q = util_request(1, tokens(), TOKENS, 2);
    util_result have[2] = {0};

    q.adapters = uses;
    q.n_adapters = 3;
    util_submit(engine, &q);
    util_run(engine, have, 2);
    assert_int_equal(have[1].n_shares, 3);
    for (int i = 0; i < 3; i++)
        shares[i] = (float)have[1].shares[i];
    util_free(have, 2);
}

static void ask(const char *model, const char *isa, ol_quantization how, answer *a)
{
    ol_engine_options options = util_options(golden_path(model));
    ol_adapter_use uses[3];
    ol_engine_info info;
    ol_engine *engine;
    ol_error err;
    char path[256];

    options.isa = isa;
    options.adapters = how;
    engine = util_open(&options);
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof(path), "%s/adapters/%c", model, 'a' + i);
        uses[i] = (ol_adapter_use){util_put_adapter(engine, golden_path(path)), 1.2f - 0.3f * i};
    }
    ol_engine_info_get(engine, &info);
    for (int i = 0; i < 3; i++) {
        a->logits[i] = malloc((size_t)(TOKENS * info.vocab) * sizeof(float));
        must(ol_engine_logits(engine, &(ol_whole_text){tokens(), TOKENS, i == 2 ? 3 : i, uses},
                              a->logits[i], &err),
             &err);
    }
    shares_of(engine, uses, a->shares);
    ol_engine_info_get(engine, &info);
    a->bytes = info.adapter_bytes;
    snprintf(a->device, sizeof(a->device), "%s", info.device.description);
    ol_engine_close(engine);
}

/* |a - b| / |c - d| */
static double ratio(const float *a, const float *b, const float *c, const float *d, size_t n)
{
    double over = 0, under = 0;

    for (size_t i = 0; i < n; i++) {
        over += pow((double)a[i] - (double)b[i], 2);
        under += pow((double)c[i] - (double)d[i], 2);
    }
    return sqrt(over / under);
}

static void check(const char *model, const char *isa)
{
    answer as_given, eight;
    size_t n;

    need_path(golden_path(model));
    ask(model, isa, OL_QUANT_AS_IS, &as_given);
    ask(model, isa, OL_QUANT_INT8, &eight);
    n = (size_t)TOKENS * 100; /* the vocabularies have more */
    assert_memory_equal(as_given.logits[0], eight.logits[0], n * sizeof(float));
    for (int i = 1; i < 3; i++) {
        double off =
            ratio(eight.logits[i], as_given.logits[i], as_given.logits[i], as_given.logits[0], n);

        print_message("%s, %s: %s off by %.4f of what adapters change\n", model, isa,
                      i == 1 ? "one adapter" : "three adapters", off);
        assert_true(off > 0);
        if (!(off < 0.04))
            fail_msg("%s, %s: logits are off by %g of what adapters change", model, isa, off);
    }
    for (int i = 0; i < 3; i++)
        assert_true(fabsf(eight.shares[i] - as_given.shares[i]) < 0.01f);
    print_message("%s, %s: %zu bytes of %zu\n", model, isa, eight.bytes, as_given.bytes);
    assert_true(eight.bytes < as_given.bytes);
    assert_null(strstr(as_given.device, "adapters"));
    assert_non_null(strstr(eight.device, ", int8 adapters"));
    for (int i = 0; i < 3; i++) {
        free(as_given.logits[i]);
        free(eight.logits[i]);
    }
}

static void test_logits(void **state)
{
    static const char *const models[] = {"llama_wide", "qwen3", "mistral"};
    static const char *const isas[] = {"auto", "avx2", "portable"};

    (void)state;
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < (util_on_cuda() ? 1 : 3); j++)
            check(models[i], isas[j]);
}

static void test_refused(void **state)
{
    ol_engine_options options = util_options(golden_path("llama"));
    ol_engine *engine;
    ol_error err;

    (void)state;
    need_path(golden_path("llama"));
    options.adapters = OL_QUANT_INT4;
    assert_int_equal(ol_engine_open(&options, &engine, &err), OL_INVALID);
    assert_non_null(strstr(err.message, "adapters"));
    options.adapters = OL_QUANT_AS_IS;
    options.quantization = (ol_quantization)9;
    assert_int_equal(ol_engine_open(&options, &engine, &err), OL_INVALID);
    assert_non_null(strstr(err.message, "quantization"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits),
        cmocka_unit_test(test_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
