/* test_engine_scores.c: scoring, and log-probabilities of what is generated. */
#include "engine_requests.h"

#include <math.h>

static double logprob_in(const float *row, int vocab, int token)
{
    double max = -INFINITY, sum = 0;

    for (int i = 0; i < vocab; i++)
        max = row[i] > max ? row[i] : max;
    for (int i = 0; i < vocab; i++)
        sum += exp(row[i] - max);
    return row[token] - max - log(sum);
}

static void test_score(void **state)
{
    static const int32_t completion[] = {7, 250, 33, 33, 150};
    int32_t all[N_PROMPT + 5];
    ol_request q = util_request(0, prompt, N_PROMPT, 0);
    ol_engine_info info;
    double sum = 0;
    util_result r;
    float *logits;

    (void)state;
    need_engine();
    ol_engine_info_get(engine, &info);
    memcpy(all, prompt, sizeof(prompt));
    memcpy(all + N_PROMPT, completion, sizeof(completion));
    logits = malloc((size_t)(N_PROMPT + 5) * (size_t)info.vocab * sizeof(float));
    must(ol_engine_logits(engine, &(ol_whole_text){.tokens = all, .n = N_PROMPT + 5}, logits, &err),
         &err);
    q.task = OL_TASK_SCORE;
    q.completion_tokens = completion;
    q.n_completion_tokens = 5;
    q.sampling.logprobs = 2;
    r = run_done(engine, &q);
    assert_int_equal(r.finish, OL_FINISH_SCORED);
    assert_int_equal(r.n, 5);
    for (int i = 0; i < 5; i++) {
        double want =
            logprob_in(logits + (N_PROMPT - 1 + i) * info.vocab, info.vocab, completion[i]);

        assert_int_equal(r.tokens[i], completion[i]);
        assert_true(fabs(r.logprobs[i] - want) < 1e-4);
        sum += want;
    }
    assert_true(fabs(r.logprob_sum - sum) < 1e-3);
    util_free(&r, 1);
    q.sampling.logprobs = -1; /* no TOKEN events */
    r = run_done(engine, &q);
    assert_int_equal(r.n, 0);
    assert_int_equal(r.completion_tokens, 5);
    assert_true(fabs(r.logprob_sum - sum) < 1e-3);
    util_free(&r, 1);
    free(logits);
}

static void test_score_of_text(void **state)
{
    ol_request q = util_text_request("Hello", 0);
    util_result r;

    (void)state;
    need_engine();
    q.task = OL_TASK_SCORE;
    q.sampling.logprobs = 0;
    q.completion = text_of(" there, all");
    r = run_done(engine, &q);
    assert_true(r.n > 0);
    assert_int_equal(r.text.len, q.completion.len);
    assert_memory_equal(r.text.data, q.completion.data, r.text.len);
    util_free(&r, 1);
    q.completion = text_of("");
    r = run_done(engine, &q);
    assert_int_equal(r.finish, OL_FINISH_SCORED);
    assert_int_equal(r.completion_tokens, 0);
    assert_true(r.logprob_sum == 0);
    util_free(&r, 1);
}

/* A prompt of one token, a completion of one: nothing but one row. */
static void test_smallest_score(void **state)
{
    static const int32_t one = 9;
    ol_request q = util_request(0, prompt, 1, 0);
    util_result r;

    (void)state;
    need_engine();
    q.task = OL_TASK_SCORE;
    q.completion_tokens = &one;
    q.n_completion_tokens = 1;
    r = run_done(engine, &q);
    assert_int_equal(r.completion_tokens, 1);
    assert_true(r.logprob_sum < 0);
    util_free(&r, 1);
    q.n_completion_tokens = 0;
    r = run_done(engine, &q);
    assert_int_equal(r.completion_tokens, 0);
    util_free(&r, 1);
}

static void test_generated_logprobs(void **state)
{
    ol_request q = util_request(0, prompt, N_PROMPT, 6);
    int32_t all[N_PROMPT + 6];
    ol_engine_info info;
    float *logits;
    util_result r;

    (void)state;
    need_engine();
    ol_engine_info_get(engine, &info);
    q.sampling.logprobs = 3;
    r = run_done(engine, &q);
    memcpy(all, prompt, sizeof(prompt));
    memcpy(all + N_PROMPT, r.tokens, 6 * sizeof(int32_t));
    logits = malloc((size_t)(N_PROMPT + 6) * (size_t)info.vocab * sizeof(float));
    must(ol_engine_logits(engine, &(ol_whole_text){.tokens = all, .n = N_PROMPT + 6}, logits, &err),
         &err);
    for (int i = 0; i < 6; i++)
        assert_true(fabs(r.logprobs[i] - logprob_in(logits + (N_PROMPT - 1 + i) * info.vocab,
                                                    info.vocab, r.tokens[i])) < 1e-4);
    free(logits);
    util_free(&r, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_score),
        cmocka_unit_test(test_score_of_text),
        cmocka_unit_test(test_smallest_score),
        cmocka_unit_test(test_generated_logprobs),
    };

    return cmocka_run_group_tests(tests, open_default, close_default);
}
