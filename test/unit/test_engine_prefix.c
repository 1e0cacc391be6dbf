/* test_engine_prefix.c: beginnings that were computed before are not computed again, and never
 * taken for another adapter's. */
#include "engine_requests.h"

/* Adapter `a` of the model with another alpha: other weights in all but name. */
static ol_digest put_with_alpha(ol_engine *e, int alpha)
{
    ol_buf weights, config;
    ol_adapter_bytes bytes;
    ol_adapter_facts facts;
    ol_digest digest;

    util_make_adapter("llama", "a", alpha, &weights, &config, &digest);
    bytes = util_bytes(&weights, &config);
    must(ol_engine_adapter_put(e, &digest, &bytes, &facts, &err), &err);
    ol_buf_free(&weights);
    ol_buf_free(&config);
    return digest;
}

static const int32_t *long_prompt(int n)
{
    static int32_t tokens[100];

    for (int i = 0; i < n; i++)
        tokens[i] = (i * 37 + 11) % 250;
    return tokens;
}

static void test_prefix_is_found(void **state)
{
    ol_request q;
    util_result first, again, longer;

    (void)state;
    need_engine();
    q = util_request(0, long_prompt(50), 50, 4);
    first = run_done(engine, &q);
    assert_int_equal(first.cached_tokens, 0);
    again = run_done(engine, &q);
    assert_int_equal(again.cached_tokens, 48); /* whole pages, and never the last token */
    assert_memory_equal(first.tokens, again.tokens, 4 * sizeof(int32_t));
    q = util_request(0, long_prompt(64), 64, 4);
    longer = run_done(engine, &q);
    assert_int_equal(longer.cached_tokens, 48);
    util_free(&longer, 1);
    longer = run_done(engine, &q);
    assert_int_equal(longer.cached_tokens, 48); /* of 64 tokens the last page holds the last */
    util_free(&first, 1);
    util_free(&again, 1);
    util_free(&longer, 1);
}

/* A score begins where the prompt ends: what it needs logits of is computed. */
static void test_prefix_of_score(void **state)
{
    ol_request q = {.task = OL_TASK_SCORE, .sampling = ol_sampling_default()};
    util_result first, again;

    (void)state;
    need_engine();
    q.prompt_tokens = long_prompt(60);
    q.n_prompt_tokens = 30;
    q.completion_tokens = long_prompt(60) + 30;
    q.n_completion_tokens = 30;
    first = run_done(engine, &q);
    again = run_done(engine, &q);
    assert_int_equal(again.cached_tokens, 16);
    assert_true(first.logprob_sum == again.logprob_sum);
    util_free(&first, 1);
    util_free(&again, 1);
}

/* The row of an adapter is replaced: the same id, other weights, the same prompt. */
static void test_new_weights_find_nothing(void **state)
{
    ol_engine_options options = util_options(golden_path("llama"));
    ol_adapter_use use = {.weight = 1};
    util_result old, new, fresh;
    ol_request q;
    ol_engine *other;

    (void)state;
    need_engine();
    q = util_request(0, long_prompt(50), 50, 8);
    q.adapters = &use;
    q.n_adapters = 1;
    q.sampling.logprobs = 0;
    use.digest = put_with_alpha(engine, 8);
    old = run_done(engine, &q);
    use.digest = put_with_alpha(engine, 64);
    new = run_done(engine, &q);
    assert_int_equal(new.cached_tokens, 0);
    other = util_open(&options);
    use.digest = put_with_alpha(other, 64);
    fresh = run_done(other, &q);
    assert_memory_equal(new.tokens, fresh.tokens, 8 * sizeof(int32_t));
    assert_memory_not_equal(new.logprobs, old.logprobs, 8 * sizeof(float));
    use.weight = 0.5f; /* nor does another weight of the same */
    util_free(&new, 1);
    new = run_done(other, &q);
    assert_int_equal(new.cached_tokens, 0);
    ol_engine_close(other);
    util_free(&old, 1);
    util_free(&new, 1);
    util_free(&fresh, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefix_is_found),
        cmocka_unit_test(test_prefix_of_score),
        cmocka_unit_test(test_new_weights_find_nothing),
    };

    return cmocka_run_group_tests(tests, open_default, close_default);
}
