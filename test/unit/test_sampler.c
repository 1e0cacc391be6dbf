/* test_sampler.c: the sampler and the stop matcher, against definitions written out
 * here in the plainest way. */
#include "engine/choose.h"
#include "engine/sampler.h"
#include "engine/stops.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define VOCAB 40

static ol_error err;
static float logits[VOCAB];

static void fill_logits(void)
{
    for (int i = 0; i < VOCAB; i++)
        logits[i] = (float)((i * 37) % VOCAB) / 8.0f - 2.0f;
}

/* Output token number `index` of `logits`. */
static ol_code choose_by(ol_sampler *s, ol_chooser *chooser, int index, ol_choice *choice)
{
    ol_pick pick;

    ol_sampler_pick(s, NULL, index, &pick);
    ol_choose(chooser, &pick, logits, choice);
    return ol_choice_check(choice, &err);
}

static int32_t choose(const ol_sampling *how, int index, ol_choice *choice)
{
    ol_chooser *chooser;
    ol_sampler *s;

    assert_int_equal(ol_sampling_check(how, VOCAB, &err), OL_OK);
    assert_int_equal(ol_chooser_create(VOCAB, &chooser, &err), OL_OK);
    assert_int_equal(ol_sampler_create(how, &s, &err), OL_OK);
    assert_int_equal(choose_by(s, chooser, index, choice), OL_OK);
    ol_sampler_free(s);
    ol_chooser_free(chooser);
    return choice->token;
}

/* Draws many times and compares frequencies with probabilities[VOCAB]. */
static void check_distribution(ol_sampling how, const double *probabilities)
{
    enum { DRAWS = 40000 };
    int counts[VOCAB] = {0};
    ol_chooser *chooser;
    ol_sampler *s;
    ol_choice c;

    assert_int_equal(ol_chooser_create(VOCAB, &chooser, &err), OL_OK);
    assert_int_equal(ol_sampler_create(&how, &s, &err), OL_OK);
    for (int i = 0; i < DRAWS; i++) {
        assert_int_equal(choose_by(s, chooser, i, &c), OL_OK);
        counts[c.token]++;
    }
    ol_sampler_free(s);
    ol_chooser_free(chooser);
    for (int i = 0; i < VOCAB; i++) {
        double p = probabilities[i], sigma = sqrt(DRAWS * p * (1 - p)) + 1e-9;

        if (p == 0)
            assert_int_equal(counts[i], 0);
        else
            assert_true(fabs(counts[i] - DRAWS * p) < 5 * sigma + 1);
    }
}

static void softmax(double temperature, double *p)
{
    double sum = 0;

    for (int i = 0; i < VOCAB; i++)
        sum += p[i] = exp(logits[i] / temperature);
    for (int i = 0; i < VOCAB; i++)
        p[i] /= sum;
}

/* Keeps the k most likely, then as many of these as reach share `top_p`. */
static void cut(double *p, int k, double top_p)
{
    bool keep[VOCAB] = {false};
    double total = 0, mass = 0, sum = 0;
    int order[VOCAB];

    for (int i = 0; i < VOCAB; i++)
        order[i] = i;
    for (int i = 0; i < VOCAB; i++)
        for (int j = i + 1; j < VOCAB; j++)
            if (p[order[j]] > p[order[i]]) {
                int t = order[i];

                order[i] = order[j];
                order[j] = t;
            }
    for (int i = 0; i < k; i++)
        total += p[order[i]];
    for (int i = 0; i < k && mass < top_p * total; i++) {
        keep[order[i]] = true;
        mass += p[order[i]];
    }
    for (int i = 0; i < VOCAB; i++)
        sum += p[i] = keep[i] ? p[i] : 0;
    for (int i = 0; i < VOCAB; i++)
        p[i] /= sum;
}

static void test_distributions(void **state)
{
    double p[VOCAB];
    ol_sampling how = ol_sampling_default();

    (void)state;
    fill_logits();
    how.seed = 17;
    how.temperature = 0.8f;
    softmax(0.8, p);
    check_distribution(how, p);
    how.top_k = 5;
    cut(p, 5, 1.0);
    check_distribution(how, p);
    how.top_p = 0.7f;
    cut(p, 5, 0.7);
    check_distribution(how, p);
    how.top_k = 0;
    softmax(0.8, p);
    cut(p, VOCAB, 0.7);
    check_distribution(how, p);
    how.top_p = 1;
    how.min_p = 0.3f;
    softmax(0.8, p);
    {
        double best = 0, sum = 0;

        for (int i = 0; i < VOCAB; i++)
            best = p[i] > best ? p[i] : best;
        for (int i = 0; i < VOCAB; i++)
            sum += p[i] = p[i] >= 0.3 * best * (1 - 1e-6) ? p[i] : 0;
        for (int i = 0; i < VOCAB; i++)
            p[i] /= sum;
    }
    check_distribution(how, p);
}

static void test_greedy_and_ties(void **state)
{
    ol_sampling how = ol_sampling_default();
    ol_choice c;

    (void)state;
    fill_logits();
    logits[7] = logits[31] = 9;
    assert_int_equal(choose(&how, 0, &c), 7);
    how.temperature = 1;
    how.top_k = 1;
    assert_int_equal(choose(&how, 3, &c), 7);
}

static void test_seed_and_index_alone_decide(void **state)
{
    ol_sampling how = ol_sampling_default();
    ol_choice c;
    int32_t first[50];
    int same = 0;

    (void)state;
    fill_logits();
    how.temperature = 1.5f;
    how.seed = 1234;
    for (int i = 0; i < 50; i++)
        first[i] = choose(&how, i, &c);
    for (int i = 49; i >= 0; i--) /* another order, fresh samplers */
        assert_int_equal(choose(&how, i, &c), first[i]);
    how.seed = 1235;
    for (int i = 0; i < 50; i++)
        same += choose(&how, i, &c) == first[i];
    assert_true(same < 25);
}

static void test_logprobs(void **state)
{
    ol_sampling how = ol_sampling_default();
    double p[VOCAB];
    ol_choice c;

    (void)state;
    fill_logits();
    softmax(1.0, p);
    how.logprobs = 4;
    how.temperature = 2;
    how.seed = 5;
    choose(&how, 0, &c);
    assert_int_equal(c.n_alternatives, 4);
    assert_true(fabs(exp((double)c.logprob) - p[c.token]) < 1e-6);
    for (int i = 0; i < 4; i++) {
        int above = 0;

        for (int k = 0; k < VOCAB; k++)
            above += p[k] > p[c.alternatives[i].token];
        assert_int_equal(above, i);
        assert_true(fabs(exp((double)c.alternatives[i].logprob) - p[c.alternatives[i].token]) <
                    1e-6);
    }
}

static void test_penalties_and_bias(void **state)
{
    ol_logit_bias bias[] = {{3, 50}, {4, -INFINITY}};
    ol_sampling how = ol_sampling_default();
    ol_chooser *chooser;
    ol_sampler *s;
    ol_choice c;
    ol_pick pick;

    (void)state;
    for (int i = 0; i < VOCAB; i++)
        logits[i] = -1;
    logits[5] = 4;
    logits[6] = 3;
    logits[4] = 100;
    how.bias = bias;
    how.n_bias = 2;
    assert_int_equal(choose(&how, 0, &c), 3);
    bias[0].bias = 0;
    how.repetition_penalty = 2; /* 4 / 2 < 3 */
    assert_int_equal(ol_chooser_create(VOCAB, &chooser, &err), OL_OK);
    assert_int_equal(ol_sampler_create(&how, &s, &err), OL_OK);
    assert_int_equal(ol_sampler_see_prompt(s, (int32_t[]){5, 9}, 2, &err), OL_OK);
    assert_int_equal(choose_by(s, chooser, 0, &c), OL_OK);
    assert_int_equal(c.token, 6);
    ol_sampler_free(s);

    how.repetition_penalty = 1;
    how.frequency_penalty = 0.4f; /* 4 - 3 * 0.4 < 3 */
    assert_int_equal(ol_sampler_create(&how, &s, &err), OL_OK);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(choose_by(s, chooser, i, &c), OL_OK);
        assert_int_equal(c.token, 5);
        assert_int_equal(ol_sampler_see_output(s, 5, &err), OL_OK);
    }
    assert_int_equal(choose_by(s, chooser, 3, &c), OL_OK);
    assert_int_equal(c.token, 6);
    for (int i = 0; i < 1000; i++) /* the table grows */
        assert_int_equal(ol_sampler_see_output(s, i % VOCAB, &err), OL_OK);
    assert_int_equal(choose_by(s, chooser, 4, &c), OL_OK);
    ol_sampler_pick(s, NULL, 5, &pick);
    assert_int_equal(pick.n_seen, VOCAB); /* each once */
    for (int i = 0; i < pick.n_seen; i++)
        assert_int_equal(pick.seen[i].in_output, 1000 / VOCAB + 3 * (pick.seen[i].token == 5));
    ol_sampler_free(s);
    ol_chooser_free(chooser);
}

/* Multiples of a number that is more than those before. */
static void allow_multiples(void *context, const int32_t *output, int n_output, uint32_t *mask)
{
    int of = *(int *)context + n_output;

    (void)output;
    for (int i = of; i < VOCAB; i += of)
        mask[i / 32] |= (uint32_t)1 << i % 32;
}

static void test_constraints(void **state)
{
    int first = 7;
    ol_constraint constraint = {allow_multiples, &first};
    ol_sampling how = ol_sampling_default();
    ol_chooser *chooser;
    ol_sampler *s;
    ol_choice c;

    (void)state;
    for (int i = 0; i < VOCAB; i++)
        logits[i] = (float)i; /* the last that is allowed is the best */
    how.logprobs = 1;
    assert_int_equal(ol_chooser_create(VOCAB, &chooser, &err), OL_OK);
    assert_int_equal(ol_sampler_create(&how, &s, &err), OL_OK);
    assert_int_equal(ol_sampler_constrain(s, &constraint, VOCAB, &err), OL_OK);
    for (int i = 0; i < 33; i++) {
        assert_int_equal(choose_by(s, chooser, i, &c), OL_OK);
        assert_int_equal(c.token, (VOCAB - 1) / (7 + i) * (7 + i));
        assert_int_equal(c.alternatives[0].token, VOCAB - 1); /* of the raw logits */
    }
    assert_int_equal(choose_by(s, chooser, VOCAB - 7, &c), OL_INVALID);
    assert_non_null(strstr(err.message, "no token may follow"));
    logits[1] = NAN; /* forbidden or not, it is seen */
    assert_int_equal(choose_by(s, chooser, 2, &c), OL_INTERNAL);
    ol_sampler_free(s);
    ol_chooser_free(chooser);
}

static void test_given_tokens(void **state)
{
    ol_pick pick = {.given = 9, .logprobs = 2};
    ol_chooser *chooser;
    double p[VOCAB];
    ol_choice c;

    (void)state;
    fill_logits();
    softmax(1.0, p);
    assert_int_equal(ol_chooser_create(VOCAB, &chooser, &err), OL_OK);
    ol_choose(chooser, &pick, logits, &c);
    assert_int_equal(c.token, 9);
    assert_true(fabs((double)c.logprob - log(p[9])) < 1e-6);
    assert_int_equal(c.n_alternatives, 2);
    assert_true(c.alternatives[0].logprob > c.alternatives[1].logprob);
    ol_chooser_free(chooser);
}

static void test_bad_input(void **state)
{
    ol_logit_bias bias[VOCAB];
    ol_sampling how = ol_sampling_default();
    ol_chooser *chooser;
    ol_sampler *s;
    ol_choice c;

    (void)state;
    how.temperature = NAN;
    assert_int_equal(ol_sampling_check(&how, VOCAB, &err), OL_INVALID);
    assert_non_null(strstr(err.message, "temperature"));
    how = ol_sampling_default();
    how.max_tokens = -1;
    assert_int_equal(ol_sampling_check(&how, VOCAB, &err), OL_INVALID);
    how = ol_sampling_default();
    how.top_p = 1.5f;
    assert_int_equal(ol_sampling_check(&how, VOCAB, &err), OL_INVALID);
    how = ol_sampling_default();
    for (int i = 0; i < VOCAB; i++)
        bias[i] = (ol_logit_bias){i, -INFINITY};
    how.bias = bias;
    how.n_bias = VOCAB;
    fill_logits();
    assert_int_equal(ol_chooser_create(VOCAB, &chooser, &err), OL_OK);
    assert_int_equal(ol_sampler_create(&how, &s, &err), OL_OK);
    assert_int_equal(choose_by(s, chooser, 0, &c), OL_INVALID);
    ol_sampler_free(s);
    bias[0].token = VOCAB;
    assert_int_equal(ol_sampling_check(&how, VOCAB, &err), OL_INVALID);
    how = ol_sampling_default();
    assert_int_equal(ol_sampler_create(&how, &s, &err), OL_OK);
    for (int at = 0; at < VOCAB; at++) { /* a NaN anywhere is seen */
        fill_logits();
        logits[at] = NAN;
        assert_int_equal(choose_by(s, chooser, 0, &c), OL_INTERNAL);
    }
    ol_sampler_free(s);
    ol_chooser_free(chooser);
}

/* Feeds `text` in pieces of `step` bytes and checks what comes out. */
static void check_stops(const char *text, const char *const *stops, int n, const char *expected)
{
    ol_text list[OL_MAX_STOPS];

    for (int i = 0; i < n; i++)
        list[i] = (ol_text){stops[i], strlen(stops[i])};
    for (size_t step = 1; step <= strlen(text); step++) {
        ol_stops *m;
        ol_buf out = {0};
        bool stopped = false;

        assert_int_equal(ol_stops_create(list, n, &m, &err), OL_OK);
        for (size_t at = 0; at < strlen(text) && !stopped; at += step) {
            size_t left = strlen(text) - at;

            stopped = ol_stops_feed(m, text + at, left < step ? left : step, &out);
        }
        if (!stopped)
            ol_stops_flush(m, &out);
        assert_int_equal(out.len, strlen(expected));
        assert_memory_equal(out.data ? (char *)out.data : "", expected, out.len);
        ol_buf_free(&out);
        ol_stops_free(m);
    }
}

static void test_stops(void **state)
{
    (void)state;
    check_stops("hello world", (const char *[]){"wor"}, 1, "hello ");
    check_stops("aaab", (const char *[]){"aab"}, 1, "a");
    check_stops("one\n\ntwo", (const char *[]){"\n\n", "o\n"}, 2, "one");
    check_stops("abcabd", (const char *[]){"abd", "cx"}, 2, "abc");
    check_stops("no stop in here", (const char *[]){"herex"}, 1, "no stop in here");
    check_stops("plain", NULL, 0, "plain");
    check_stops("STOP", (const char *[]){"STOP"}, 1, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_distributions),
        cmocka_unit_test(test_greedy_and_ties),
        cmocka_unit_test(test_seed_and_index_alone_decide),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_penalties_and_bias),
        cmocka_unit_test(test_constraints),
        cmocka_unit_test(test_given_tokens),
        cmocka_unit_test(test_bad_input),
        cmocka_unit_test(test_stops),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
