/*
 * test_engine_same.c: the same request gives the same tokens, whatever shares its steps
 * (promise P6): alone, with others, in small steps, with few pages so that requests are
 * computed again, with what others have computed of their beginnings, on any number of
 * threads; for several models, types of weights and paths of the device.
 */
#include "engine_util.h"
#include "noise.h"

#include "engine/engine_internal.h"

#include <stdio.h>

enum { N = 14, MOST = 70, SAME = 32 };

typedef struct kind {
    const char *model;    /* under the golden folder */
    const char *adapters; /* the model whose adapters fit */
    ol_quantization quantization;
    const char *isa;
    bool fp8_pages, int8_adapters;
} kind;

typedef struct load {
    int32_t prompts[N][80];
    ol_adapter_use uses[N][3];
    ol_request requests[N];
    util_result want[N];
} load;

static ol_engine *open_kind(const kind *k, ol_engine_options options, ol_digest *digests)
{
    ol_engine *engine;
    char rest[256];

    options.model_path = golden_path(k->model);
    options.quantization = k->quantization;
    options.isa = k->isa;
    options.adapters = k->int8_adapters ? OL_QUANT_INT8 : OL_QUANT_AS_IS;
    if (k->fp8_pages)
        options.kv_dtype = OL_F8E4M3;
    engine = util_open(&options);
    for (int i = 0; i < 3; i++) {
        snprintf(rest, sizeof(rest), "%s/adapters/%c", k->adapters, 'a' + i);
        digests[i] = util_put_adapter(engine, golden_path(rest));
    }
    return engine;
}

/* Greedy and sampled, with and without adapters, short and long, some with the same beginning;
 * of several tenants and priorities. */
static void make_load(load *l, int vocab, const ol_digest *digests)
{
    memset(l, 0, sizeof(*l));
    for (int i = 0; i < N; i++) {
        ol_request *q = &l->requests[i];
        int n = 1 + pick(i % 3 ? 12 : 24), same = i % 2 ? SAME : 0;

        n += same;
        for (int k = 0; k < n; k++)
            l->prompts[i][k] = k < same ? (7 * k + 3) % vocab : pick(vocab);
        *q = util_request((uint64_t)i, l->prompts[i], n, 30 + pick(MOST - 30));
        q->sampling.temperature = i % 4 ? 0.9f : 0;
        q->sampling.top_p = i % 5 ? 1 : 0.8f;
        q->sampling.repetition_penalty = i % 6 ? 1 : 1.2f;
        q->sampling.seed = (uint64_t)pick(1000);
        q->sampling.logprobs = 0;
        q->tenant = (uint32_t)(i % 3);
        q->priority = i % 7 == 6;
        q->adapters = l->uses[i];
        q->n_adapters = i / 2 % 4;
        for (int k = 0; k < q->n_adapters; k++)
            l->uses[i][k] = (ol_adapter_use){digests[k], 1.5f - (float)k};
    }
}

static void run_alone(ol_engine *engine, load *l)
{
    for (int i = 0; i < N; i++) {
        util_submit(engine, &l->requests[i]);
        util_run(engine, l->want, N);
        assert_true(l->want[i].done);
        assert_int_equal(l->want[i].n, l->requests[i].sampling.max_tokens);
    }
}

static void compare(const load *l, const util_result *have, const char *what)
{
    for (int i = 0; i < N; i++) {
        const util_result *w = &l->want[i], *h = &have[i];

        assert_true(h->done);
        assert_int_equal(h->n, w->n);
        for (int k = 0; k < w->n; k++)
            if (h->tokens[k] != w->tokens[k] ||
                memcmp(&h->logprobs[k], &w->logprobs[k], sizeof(float)) != 0)
                fail_msg("%s: token %d of request %d is %d (%g), alone it was %d (%g)", what, k, i,
                         h->tokens[k], (double)h->logprobs[k], w->tokens[k],
                         (double)w->logprobs[k]);
        assert_int_equal(h->text.len, w->text.len);
        assert_memory_equal(h->text.data ? h->text.data : (uint8_t *)"",
                            w->text.data ? w->text.data : (uint8_t *)"", w->text.len);
        for (int k = 0; k < w->n_shares; k++)
            assert_true(h->shares[k] == w->shares[k]);
    }
}

/* In two orders; the second time with what is left of the first in the prefix cache. */
static void run_together(ol_engine *engine, const load *l, const char *what)
{
    static const int strides[] = {5, 3};

    for (int round = 0; round < 2; round++) {
        util_result have[N] = {0};

        for (int i = 0; i < N; i++)
            util_submit(engine, &l->requests[(i * strides[round]) % N]);
        util_run(engine, have, N);
        compare(l, have, what);
        util_free(have, N);
        util_expect_idle(engine);
    }
    assert_int_equal(engine->counters.cached_tokens > 0, engine->prefix != NULL);
    assert_int_equal(engine->counters.device_choices > 0, util_on_cuda());
}

static void check_with(const kind *k, const load *l, ol_engine_options options, const char *what)
{
    ol_digest digests[3];
    ol_engine *engine = open_kind(k, options, digests);

    run_together(engine, l, what);
    ol_engine_close(engine);
}

/* Pages that hold little more than the longest request: others are computed again. */
static void check_preempted(const kind *k, const load *l, ol_engine_options options)
{
    ol_digest digests[3];
    ol_engine *engine;

    options.model_path = golden_path(k->model);
    if (k->fp8_pages)
        options.kv_dtype = OL_F8E4M3;
    options.kv_bytes = 8 * util_page_bytes(&options);
    options.context = 128;
    engine = open_kind(k, options, digests);
    assert_int_equal(engine->limits.n_pages, 8);
    run_together(engine, l, "few pages");
    assert_true(ol_sched_preemptions(engine->sched) > 0);
    ol_engine_close(engine);
}

static void check_kind(const kind *k)
{
    static load l;
    ol_engine_options options;
    ol_digest digests[3];
    ol_engine_info info;
    ol_engine *engine;

    if (util_on_cuda() && strcmp(k->isa, "auto") != 0)
        return; /* of the CPU device */
    if (util_on_simt())
        return; /* minutes each; test_opened_again is run */
    need_path(golden_path(k->model));
    options = util_options(NULL);
    options.no_prefix_cache = true;
    engine = open_kind(k, options, digests);
    ol_engine_info_get(engine, &info);
    make_load(&l, info.vocab, digests);
    run_alone(engine, &l);
    run_together(engine, &l, "together, every prompt computed");
    ol_engine_close(engine);
    options.no_prefix_cache = false;
    check_with(k, &l, options, "together");
    options.step_tokens = 7;
    check_with(k, &l, options, "steps of 7");
    options.step_tokens = 33;
    options.max_seqs = 5;
    check_with(k, &l, options, "steps of 33, 5 at once");
    options.step_tokens = 0;
    options.max_seqs = 0;
    options.threads = 2;
    options.page_tokens = 32;
    check_with(k, &l, options, "2 threads, pages of 32");
    options.page_tokens = 0;
    check_preempted(k, &l, options);
    util_free(l.want, N);
}

static void test_f32(void **state)
{
    static const kind portable = {"llama", "llama", OL_QUANT_AS_IS, "portable", false, false};
    static const kind fast = {"llama", "llama", OL_QUANT_AS_IS, "auto", false, false};
    static const kind middle = {"llama", "llama", OL_QUANT_AS_IS, "avx2", false, false};

    (void)state;
    check_kind(&portable);
    check_kind(&fast);
    check_kind(&middle);
}

static void test_families(void **state)
{
    static const kind kinds[] = {
        {"qwen3", "qwen3", OL_QUANT_AS_IS, "auto", false, false},
        {"mistral", "mistral", OL_QUANT_AS_IS, "auto", false, false},
        {"qwen2_window", "qwen2_window", OL_QUANT_AS_IS, "auto", false, false},
        {"llama_gqa", "llama_gqa", OL_QUANT_AS_IS, "auto", false, false}};

    (void)state;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        check_kind(&kinds[i]);
}

static void test_half_precision(void **state)
{
    static const kind kinds[] = {
        {"llama_wide", "llama_wide", OL_QUANT_AS_IS, "auto", false, false},
        {"llama_wide", "llama_wide", OL_QUANT_AS_IS, "portable", false, false},
        {"gguf/llama-f16.gguf", "llama", OL_QUANT_AS_IS, "auto", false, false}};

    (void)state;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        check_kind(&kinds[i]);
}

static void test_quantised(void **state)
{
    static const kind kinds[] = {
        {"llama_wide", "llama_wide", OL_QUANT_INT8, "auto", false, false},
        {"llama_wide", "llama_wide", OL_QUANT_INT4, "auto", false, false},
        {"llama_wide", "llama_wide", OL_QUANT_INT8, "portable", false, false},
        {"gguf/llama-q8_0.gguf", "llama", OL_QUANT_AS_IS, "auto", false, false},
        {"gguf/llama-q4_0.gguf", "llama", OL_QUANT_AS_IS, "avx2", false, false},
        {"gguf/llama_wide-q4_k.gguf", "llama_wide", OL_QUANT_AS_IS, "auto", false, false}};

    (void)state;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        check_kind(&kinds[i]);
}

static void check_opened_again(const kind *k)
{
    static load l;
    ol_engine_options options;
    ol_digest digests[3];
    ol_engine *engine;

    need_path(golden_path(k->model));
    options = util_options(NULL);
    engine = open_kind(k, options, digests);
    make_load(&l, 288, digests);
    run_alone(engine, &l);
    ol_engine_close(engine);
    check_with(k, &l, options, "opened again");
    util_free(l.want, N);
}

/* A model that stays: twice opened, twice the same. */
static void test_opened_again(void **state)
{
    static const kind k = {.model = "llama", .adapters = "llama", .isa = "auto"};

    (void)state;
    check_opened_again(&k);
}

static void test_int8_adapters(void **state)
{
    static const kind kinds[] = {
        {.model = "llama", .adapters = "llama", .isa = "auto", .int8_adapters = true},
        {.model = "llama", .adapters = "llama", .isa = "avx2", .int8_adapters = true},
        {.model = "llama_wide",
         .adapters = "llama_wide",
         .isa = "portable",
         .int8_adapters = true}};

    (void)state;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        check_kind(&kinds[i]);
    check_opened_again(&kinds[0]);
}

/* The CUDA device's own. */
static void test_fp8(void **state)
{
    static const kind k = {"llama", "llama", OL_QUANT_FP8, "auto", true, false};

    (void)state;
    if (!util_on_cuda())
        skip();
    check_kind(&k);
    check_opened_again(&k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_families),
        cmocka_unit_test(test_half_precision),
        cmocka_unit_test(test_quantised),
        cmocka_unit_test(test_opened_again),
        cmocka_unit_test(test_int8_adapters),
        cmocka_unit_test(test_fp8),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
