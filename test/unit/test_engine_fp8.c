/*
 * test_engine_fp8.c: what FP8 costs, over the CUDA device (OL_TEST_DEVICE): logits of every
 * position against those of the same model as its file has it, and the perplexity of a model that
 * learned a language on text that it has not seen; weights in FP8, keys and values, both. Bounds
 * have a margin over what was measured (kernels/README.md). INT8 is there to compare.
 */
#include "engine_util.h"

#include "base/tensor.h"

#include <math.h>
#include <stdio.h>

#define TOKENS 96

typedef struct variant {
    const char *name;
    ol_quantization quantization;
    int kv_dtype;
    /* root mean square of the error of logits, against that of the logits */
    double random;     /* of random weights */
    double learned;    /* of a language */
    double perplexity; /* change of it */
} variant;

static const variant variants[] = {
    {"int8 weights", OL_QUANT_INT8, -1, 0.06, 0.015, 0.005},
    {"fp8 weights", OL_QUANT_FP8, -1, 0.22, 0.04, 0.03},
    {"fp8 keys and values", OL_QUANT_AS_IS, OL_F8E4M3, 0.15, 0.035, 0.01},
    {"both", OL_QUANT_FP8, OL_F8E4M3, 0.27, 0.055, 0.035},
};
#define N_VARIANTS (sizeof(variants) / sizeof(variants[0]))

/* Logits of all positions, malloc'ed. */
static float *logits_of(const char *model, const variant *v, const int32_t *tokens, int *vocab)
{
    ol_engine_options options = util_options(model);
    ol_engine_info info;
    ol_engine *engine;
    ol_error err;
    float *out;

    if (v) {
        options.quantization = v->quantization;
        options.kv_dtype = v->kv_dtype;
    }
    engine = util_open(&options);
    ol_engine_info_get(engine, &info);
    *vocab = info.vocab;
    out = malloc((size_t)TOKENS * (size_t)info.vocab * sizeof(float));
    must(ol_engine_logits(engine, &(ol_whole_text){.tokens = tokens, .n = TOKENS}, out, &err),
         &err);
    ol_engine_close(engine);
    return out;
}

static double distance(const float *have, const float *want, size_t n)
{
    double error = 0, norm = 0;

    for (size_t i = 0; i < n; i++) {
        double d = (double)have[i] - (double)want[i];

        error += d * d;
        norm += (double)want[i] * (double)want[i];
    }
    return sqrt(error / norm);
}

/* Of each token after those before it. */
static double perplexity(const float *logits, int vocab, const int32_t *tokens)
{
    double all = 0;

    for (int i = 0; i + 1 < TOKENS; i++, logits += vocab) {
        double most = -INFINITY, sum = 0;

        for (int v = 0; v < vocab; v++)
            most = fmax(most, (double)logits[v]);
        for (int v = 0; v < vocab; v++)
            sum += exp((double)logits[v] - most);
        all += most + log(sum) - (double)logits[tokens[i + 1]];
    }
    return exp(all / (TOKENS - 1));
}

static void check_model(const char *name, const int32_t *tokens, bool language)
{
    char path[1024];
    float *want;
    double base;
    int vocab;

    snprintf(path, sizeof(path), "%s", golden_path(name));
    want = logits_of(path, NULL, tokens, &vocab);
    base = perplexity(want, vocab, tokens);
    for (size_t i = 0; i < N_VARIANTS; i++) {
        const variant *v = &variants[i];
        float *have = logits_of(path, v, tokens, &vocab);
        double off = distance(have, want, (size_t)TOKENS * (size_t)vocab);
        double change = perplexity(have, vocab, tokens) / base - 1;
        double bound = language ? v->learned : v->random;

        print_message("%s, %s: logits off by %.4f, perplexity %.2f changes by %+.4f\n", name,
                      v->name, off, base, change);
        if (!(off <= bound))
            fail_msg("%s, %s: logits are off by %g, the bound is %g", name, v->name, off, bound);
        if (language && !(fabs(change) <= v->perplexity))
            fail_msg("%s, %s: perplexity changes by %g, the bound is %g", name, v->name, change,
                     v->perplexity);
        free(have);
    }
    free(want);
}

/* Random weights: nothing that a model learned makes them robust, or odd. */
static void test_logits(void **state)
{
    static const char *const models[] = {"llama_wide", "qwen3", "mistral"};
    int32_t tokens[TOKENS];

    (void)state;
    if (!util_on_cuda())
        skip();
    for (int i = 0; i < TOKENS; i++)
        tokens[i] = (17 * i * i + 5 * i + 3) % 250;
    for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++) {
        need_path(golden_path(models[i]));
        check_model(models[i], tokens, false);
    }
}

static void test_perplexity(void **state)
{
    static const char passage[] =
        "Once upon a time, there was a cat named Mittens. Mittens loved to stretch and play all "
        "day. One Wednesday, Mittens went outside to play, but it was very quiet. Mittens didn't "
        "see any of her friends around, so she decided to go on an adventure.\nMittens walked and "
        "walked until she came to a big tree. She looked up and saw a little bird sitting on a "
        "branch. The bird was sad, for it had lost its mother, and Mittens wanted to help it.";
    ol_engine_options options;
    ol_engine *engine;
    ol_tokens tokens;
    ol_error err;

    (void)state;
    if (!util_on_cuda())
        skip();
    need_path(golden_path("../demo/model"));
    options = util_options(golden_path("../demo/model"));
    engine = util_open(&options);
    must(ol_engine_tokenize(engine, (ol_text){passage, sizeof(passage) - 1}, true, false, &tokens,
                            &err),
         &err);
    ol_engine_close(engine);
    assert_true(tokens.n >= TOKENS);
    check_model("../demo/model", tokens.ids, true);
    free(tokens.ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits),
        cmocka_unit_test(test_perplexity),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
