/*
 * test_perplexity.c: what quantising at load costs: the demo model's perplexity over held-out text,
 * by each kind of weights against the file's own on the CPU. With OL_TEST_DEVICE the kinds are the
 * CUDA device's; over the simulated one the text is short, as a token takes it long.
 */
#include "engine_util.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>

enum { MOST = 256 };

typedef struct text {
    int32_t *ids;
    int n;
} text;

/* The beginning of the first held-out passage. */
static text read_text(ol_engine *engine)
{
    char line[16384];
    FILE *f = fopen(golden_path("../demo/heldout/grimm.jsonl"), "r");
    ol_tokens tokens;
    text t;
    json_error_t why;
    json_t *passage;
    ol_error err;

    if (!f || !fgets(line, sizeof(line), f))
        fail_msg("there is no held-out text");
    fclose(f);
    passage = json_loads(line, 0, &why);
    assert_non_null(passage);
    must(ol_engine_tokenize(engine,
                            (ol_text){json_string_value(json_object_get(passage, "text")),
                                      json_string_length(json_object_get(passage, "text"))},
                            true, false, &tokens, &err),
         &err);
    json_decref(passage);
    t.ids = tokens.ids;
    t.n = (int)tokens.n < MOST ? (int)tokens.n : MOST;
    if (util_on_simt() && t.n > 48)
        t.n = 48;
    assert_true(t.n > 20);
    return t;
}

static double logprob(const float *logits, int vocab, int32_t token)
{
    double most = logits[0], sum = 0;

    for (int i = 1; i < vocab; i++)
        most = logits[i] > most ? logits[i] : most;
    for (int i = 0; i < vocab; i++)
        sum += exp(logits[i] - most);
    return logits[token] - most - log(sum);
}

static double perplexity(ol_engine_options options, ol_quantization how)
{
    ol_engine *engine;
    ol_engine_info info;
    ol_adapter_use use = {.weight = 1};
    double sum = 0;
    float *logits;
    ol_error err;
    text t;

    options.quantization = how;
    engine = util_open(&options);
    use.digest = util_put_adapter(engine, golden_path("../demo/adapters/grimm"));
    ol_engine_info_get(engine, &info);
    t = read_text(engine);
    logits = malloc((size_t)t.n * (size_t)info.vocab * sizeof(float));
    assert_non_null(logits);
    must(ol_engine_logits(engine, &(ol_whole_text){t.ids, t.n, 1, &use}, logits, &err), &err);
    for (int i = 1; i < t.n; i++)
        sum += logprob(logits + (size_t)(i - 1) * (size_t)info.vocab, info.vocab, t.ids[i]);
    free(logits);
    free(t.ids);
    ol_engine_close(engine);
    return exp(-sum / (t.n - 1));
}

static void stays_within_bounds(void **state)
{
    static const struct kind {
        const char *name;
        ol_quantization how;
        double bound;
    } kinds[] = {{"as it is", OL_QUANT_AS_IS, 0.01},
                 {"int8", OL_QUANT_INT8, 0.01},
                 {"int4", OL_QUANT_INT4, 0.20}};
    const char *model = golden_path("../demo/model");
    ol_engine_options options = util_options(model), cpu = util_cpu_options(model);
    double base;

    (void)state;
    need_path(model);
    options.isa = cpu.isa = NULL; /* the fastest path: the portable one is test_golden's */
    base = perplexity(cpu, OL_QUANT_AS_IS);
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        double change = perplexity(options, kinds[i].how) / base - 1;

        print_message("%s: %+.4f of %.2f, bound %.2f\n", kinds[i].name, change, base,
                      kinds[i].bound);
        if (!(fabs(change) < kinds[i].bound))
            fail_msg("%s: perplexity changes by %.4f, more than %.2f", kinds[i].name, change,
                     kinds[i].bound);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(stays_within_bounds)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
