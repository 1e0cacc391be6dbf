/* test_engine_adapters.c: adapters through engine.h: asked for, put, refused, evicted, and a
 * cache that is far too small for what is wanted at once. */
#include "engine_util.h"

#include "engine/engine_internal.h"
#include "engine/formats/adapter_file.h"
#include "engine/stats.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODEL "llama"

static const int32_t prompt[] = {1, 195, 123, 41, 77, 20, 99, 5};
#define N_PROMPT ((int)(sizeof(prompt) / sizeof(prompt[0])))

/* Adapters as a host keeps them: the same weights, each with an alpha of its own. */
enum { N_ADAPTERS = 12 };

typedef struct stored {
    ol_buf weights, config;
    ol_digest digest;
} stored;

static stored store[N_ADAPTERS];
static size_t one_bytes; /* on the device, of each of them */
static ol_error err;

static ol_engine *open_with(size_t adapter_bytes, int max_seqs)
{
    ol_engine_options options;

    need_path(golden_path(MODEL));
    options = util_options(golden_path(MODEL));
    options.adapter_bytes = adapter_bytes;
    options.max_seqs = max_seqs;
    return util_open(&options);
}

static ol_code put(ol_engine *e, const stored *s, const ol_digest *as)
{
    ol_adapter_facts facts;

    return ol_engine_adapter_put(e, as, s->weights.data, s->weights.len,
                                 (const char *)s->config.data, s->config.len, &facts, &err);
}

static void must_put(ol_engine *e, int i)
{
    must(put(e, &store[i], &store[i].digest), &err);
}

static int make_store(void **state)
{
    ol_engine_info info;
    ol_engine *e;

    (void)state;
    if (access(golden_path(MODEL), F_OK) != 0)
        return 0;
    for (int i = 0; i < N_ADAPTERS; i++)
        util_make_adapter(MODEL, "a", 3 + i, &store[i].weights, &store[i].config, &store[i].digest);
    e = open_with(0, 0);
    must_put(e, 0);
    ol_engine_info_get(e, &info);
    one_bytes = info.adapter_bytes;
    ol_engine_close(e);
    return 0;
}

static int free_store(void **state)
{
    (void)state;
    for (int i = 0; i < N_ADAPTERS; i++) {
        ol_buf_free(&store[i].weights);
        ol_buf_free(&store[i].config);
    }
    return 0;
}

static ol_request adapted(uint64_t tag, int n, ol_adapter_use *uses, int first)
{
    ol_request q = util_request(tag, prompt, N_PROMPT, 8);

    for (int i = 0; i < n; i++)
        uses[i] = (ol_adapter_use){store[first + i].digest, 1.0f};
    q.adapters = uses;
    q.n_adapters = n;
    return q;
}

/* -- asking and bringing --------------------------------------------------------------------- */

static void test_needed_then_put(void **state)
{
    ol_engine *e = open_with(0, 0);
    ol_adapter_use uses[2];
    ol_request q = adapted(0, 2, uses, 0), other = util_request(1, prompt, N_PROMPT, 8);
    util_result r[2] = {0};

    (void)state;
    util_submit(e, &q);
    assert_false(ol_engine_busy(e));
    util_submit(e, &other);
    util_run(e, r, 2);
    assert_int_equal(r[0].needs, 2);
    assert_true(r[1].done); /* did not wait for them */
    assert_int_equal(r[1].n_shares, 0);
    must_put(e, 0);
    assert_false(ol_engine_busy(e));
    must_put(e, 1);
    assert_true(ol_engine_busy(e));
    util_run(e, r, 1);
    assert_true(r[0].done);
    assert_int_equal(r[0].needs, 2);
    assert_int_equal(r[0].n_shares, 2);
    assert_true(r[0].shares[0] > 0 && r[0].shares[1] > r[0].shares[0]); /* 3 and 4 of alpha */
    assert_true(r[0].shares[0] + r[0].shares[1] > 1 - 1e-12);
    util_expect_idle(e);
    util_free(r, 2);
    util_submit(e, &q); /* now they are there */
    util_run(e, r, 1);
    assert_true(r[0].done);
    assert_int_equal(r[0].needs, 0);
    util_free(r, 2);
    ol_engine_close(e);
}

/* Two requests miss one adapter: one host is asked, the next if the first goes. */
static void test_asked_once(void **state)
{
    ol_engine *e = open_with(0, 0);
    ol_adapter_use uses[3];
    util_result r[3] = {0};

    (void)state;
    for (uint64_t i = 0; i < 3; i++) {
        ol_request q = adapted(i, 1, &uses[i], 0);

        util_submit(e, &q);
    }
    util_take(e, r, 3);
    assert_int_equal(r[0].needs + r[1].needs + r[2].needs, 1);
    assert_int_equal(r[0].needs, 1);
    ol_engine_cancel(e, 0);
    util_take(e, r, 3);
    assert_int_equal(r[1].needs + r[2].needs, 1);
    must_put(e, 0);
    util_run(e, r, 3);
    assert_true(r[1].done && r[2].done && !r[0].done);
    util_free(r, 3);
    util_expect_idle(e);
    ol_engine_close(e);
}

/* A host that does not answer holds up neither those who want the same nor those who want the
 * room. */
static void test_silent_host(void **state)
{
    ol_engine *e = open_with(2 * one_bytes + one_bytes / 2, 0);
    ol_adapter_use uses[4];
    util_result r[3] = {0};
    ol_request q;

    (void)state;
    e->patience_us = 20000;
    must_put(e, 2);
    q = adapted(0, 2, uses, 1); /* adapters 1, never brought by it, and 2, which it pins */
    util_submit(e, &q);
    q = adapted(1, 1, uses + 2, 1);
    util_submit(e, &q);
    util_take(e, r, 3);
    assert_int_equal(r[0].needs, 1);
    assert_int_equal(r[1].needs, 0);
    assert_in_range(ol_engine_patience_ms(e), 20, 22);
    usleep(30000);
    must(ol_engine_step(e, &err), &err);
    util_take(e, r, 3);
    assert_int_equal(r[0].needs, 1);
    assert_int_equal(r[1].needs, 1); /* now the second is asked */
    usleep(30000);
    q = adapted(2, 2, uses, 3); /* 3 and 4 need the room of 2 */
    q.adapters = (ol_adapter_use[2]){{store[3].digest, 1}, {store[4].digest, 1}};
    util_submit(e, &q);
    must_put(e, 3);
    must_put(e, 4);
    util_run(e, r, 3);
    assert_true(r[2].done);
    must_put(e, 1); /* late, but it comes */
    util_run(e, r, 3);
    assert_true(r[1].done);
    if (!r[0].done)
        must_put(e, 2); /* had gone */
    util_run(e, r, 3);
    assert_true(r[0].done);
    assert_int_equal(ol_engine_patience_ms(e), -1);
    util_free(r, 3);
    util_expect_idle(e);
    ol_engine_close(e);
}

static void test_bad_bytes_fail_those_who_wait(void **state)
{
    ol_engine *e = open_with(0, 0);
    stored bad = store[0];
    ol_adapter_use uses[3];
    ol_request q;
    util_result r[3] = {0};

    (void)state;
    bad.weights.len /= 2;
    ol_adapter_digest(bad.weights.data, bad.weights.len, (const char *)bad.config.data,
                      bad.config.len, &bad.digest);
    q = adapted(0, 1, uses, 0);
    uses[0].digest = bad.digest;
    util_submit(e, &q);
    q.tag = 1;
    util_submit(e, &q);
    q = adapted(2, 1, uses + 1, 1);
    util_submit(e, &q);
    assert_true(put(e, &bad, &bad.digest) != OL_OK);
    util_run(e, r, 3);
    assert_true(r[0].failed && r[1].failed && !r[2].failed);
    assert_true(r[0].error.message[0]);
    assert_int_equal(r[0].error.code, err.code);
    must_put(e, 1);
    util_run(e, r, 3);
    assert_true(r[2].done);
    util_free(r, 3);
    util_expect_idle(e);
    ol_engine_close(e);
}

/* Bytes of another digest say nothing about the adapter that was asked for. */
static void test_wrong_digest(void **state)
{
    ol_engine *e = open_with(0, 0);
    ol_adapter_use uses[1];
    ol_request q = adapted(0, 1, uses, 0);
    util_result r = {0};

    (void)state;
    util_submit(e, &q);
    must_fail(put(e, &store[1], &store[0].digest), OL_INVALID, "digest", &err);
    util_run(e, &r, 1);
    assert_false(r.failed);
    assert_false(ol_engine_adapter_has(e, &store[0].digest));
    assert_false(ol_engine_adapter_has(e, &store[1].digest));
    must_put(e, 0);
    util_run(e, &r, 1);
    assert_true(r.done);
    util_free(&r, 1);
    ol_engine_close(e);
}

static void test_check_keeps_nothing(void **state)
{
    ol_engine *e = open_with(0, 0);
    ol_adapter_facts facts;
    ol_engine_info info;

    (void)state;
    must(ol_engine_adapter_check(e, store[0].weights.data, store[0].weights.len,
                                 (const char *)store[0].config.data, store[0].config.len, &facts,
                                 &err),
         &err);
    assert_true(ol_digest_equal(&facts.digest, &store[0].digest));
    assert_int_equal(facts.max_rank, 4);
    assert_int_equal(facts.n_modules, 14);
    assert_int_equal(facts.module_mask, 0x7F);
    ol_engine_info_get(e, &info);
    assert_int_equal(info.adapters, 0);
    assert_int_equal(info.adapter_bytes, 0);
    ol_engine_close(e);
}

static void test_of_another_model(void **state)
{
    ol_engine *e = open_with(0, 0);
    ol_buf weights, config;
    ol_adapter_facts facts;
    ol_digest digest;

    (void)state;
    util_read_adapter(golden_path("qwen3/adapters/a"), &weights, &config, &digest);
    must_fail(ol_engine_adapter_put(e, &digest, weights.data, weights.len,
                                    (const char *)config.data, config.len, &facts, &err),
              OL_MISMATCH, "", &err);
    ol_buf_free(&weights);
    ol_buf_free(&config);
    ol_engine_close(e);
}

static void test_max_tokens_zero_waits_too(void **state)
{
    ol_engine *e = open_with(0, 0);
    ol_adapter_use uses[2];
    ol_request q = adapted(0, 2, uses, 0);
    util_result r = {0};

    (void)state;
    q.sampling.max_tokens = 0;
    util_submit(e, &q);
    util_run(e, &r, 1);
    assert_false(r.done);
    must_put(e, 0);
    must_put(e, 1);
    util_run(e, &r, 1);
    assert_true(r.done);
    assert_true(r.shares[0] == 0.5 && r.shares[1] == 0.5);
    util_free(&r, 1);
    util_expect_idle(e);
    ol_engine_close(e);
}

/* -- the budget ------------------------------------------------------------------------------- */

static void test_least_recently_used_goes(void **state)
{
    ol_engine *e = open_with(3 * one_bytes, 0);
    ol_adapter_use uses[1];
    util_result r = {0};
    ol_engine_info info;
    ol_request q;

    (void)state;
    for (int i = 0; i < 3; i++)
        must_put(e, i);
    q = adapted(0, 1, uses, 0);
    util_submit(e, &q); /* uses 0: now 1 is the oldest */
    util_run(e, &r, 1);
    util_free(&r, 1);
    must_put(e, 3);
    assert_true(ol_engine_adapter_has(e, &store[0].digest));
    assert_false(ol_engine_adapter_has(e, &store[1].digest));
    assert_true(ol_engine_adapter_has(e, &store[2].digest));
    assert_true(ol_engine_adapter_has(e, &store[3].digest));
    must_put(e, 3); /* again: nothing happens */
    ol_engine_info_get(e, &info);
    assert_int_equal(info.adapters, 3);
    assert_true(info.adapter_bytes <= 3 * one_bytes);
    assert_int_equal(info.adapter_loads, 4);
    assert_int_equal(info.adapter_hits, 1);
    assert_int_equal(info.adapter_evictions, 1);
    ol_engine_close(e);
}

/* Requests for `i`, one after the other, each to its end; the adapter is put when it is asked
 * for. */
static void ask_for(ol_engine *e, int i, int times)
{
    for (int t = 0; t < times; t++) {
        ol_adapter_use uses[1];
        ol_request q = adapted(0, 1, uses, i);
        util_result r = {0};

        q.sampling.max_tokens = 1;
        util_submit(e, &q);
        if (!ol_engine_adapter_has(e, &store[i].digest))
            must_put(e, i);
        util_run(e, &r, 1);
        assert_true(r.done);
        util_free(&r, 1);
    }
}

/* What is asked for once passes through, and does not push out what is asked for often; and what
 * nobody asks for any more goes in the end. */
static void test_often_used_stay(void **state)
{
    ol_engine *e = open_with(3 * one_bytes, 0);
    int rounds = 0;

    (void)state;
    ask_for(e, 0, 2);
    ask_for(e, 1, 2);
    for (int i = 2; i < N_ADAPTERS; i++) {
        ask_for(e, i, 1);
        assert_true(ol_engine_adapter_has(e, &store[i].digest));
        assert_true(ol_engine_adapter_has(e, &store[0].digest));
        assert_true(ol_engine_adapter_has(e, &store[1].digest));
    }
    while (ol_engine_adapter_has(e, &store[0].digest) ||
           ol_engine_adapter_has(e, &store[1].digest)) {
        ask_for(e, 2, 1);
        ask_for(e, 3, 1);
        ask_for(e, 4, 1);
        assert_true(++rounds < 1000);
    }
    ol_engine_close(e);
}

/* Of two adapters that a request waits for, the first to come is not what makes room for the
 * second, however often others were used. */
static void test_those_waited_for_stay(void **state)
{
    ol_engine *e = open_with(3 * one_bytes, 0);
    ol_adapter_use uses[2], other[1];
    ol_request q = adapted(1, 1, other, 5), both = adapted(2, 2, uses, 2);
    util_result r[3] = {{0}};

    (void)state;
    ask_for(e, 0, 5);
    ask_for(e, 1, 5);
    util_submit(e, &q); /* the oldest that waits: it alone may hold what it has */
    util_submit(e, &both);
    util_take(e, r, 3);
    must_put(e, 2);
    must_put(e, 3);
    assert_true(ol_engine_adapter_has(e, &store[2].digest));
    must_put(e, 5);
    util_run(e, r, 3);
    assert_true(r[1].done);
    for (int i = 2; i < 4 && !r[2].done; i++)
        if (!ol_engine_adapter_has(e, &store[i].digest))
            must_put(e, i);
    util_run(e, r, 3);
    assert_true(r[2].done);
    util_free(r, 3);
    util_expect_idle(e);
    ol_engine_close(e);
}

/* -- what is known of those that are gone ------------------------------------------------------ */

static int stat_of(ol_engine *e, int i, ol_adapter_stat *stat)
{
    ol_adapter_stat *all;
    int n = ol_engine_adapter_stats(e, &all);

    memset(stat, 0, sizeof(*stat));
    for (int k = 0; k < n; k++)
        if (ol_digest_equal(&all[k].digest, &store[i].digest))
            *stat = all[k];
    free(all);
    return n;
}

static void test_remembers_the_evicted(void **state)
{
    ol_engine *e = open_with(2 * one_bytes, 0);
    ol_adapter_stat first;

    (void)state;
    for (int i = 0; i < 3; i++) {
        ol_adapter_use uses[1];
        ol_request q = adapted(1, 1, uses, i);
        util_result r[2] = {{0}};

        util_submit(e, &q);
        must_put(e, i);
        util_run(e, r, 2);
        assert_true(r[1].done);
        util_free(r, 2);
    }
    assert_int_equal(stat_of(e, 0, &first), 3);
    assert_false(first.resident);
    assert_int_equal(first.misses, 1);
    assert_int_equal(first.requests, 0);
    assert_int_equal(first.bytes, one_bytes);
    must_put(e, 0); /* it goes on counting where it was */
    assert_int_equal(stat_of(e, 0, &first), 3);
    assert_true(first.resident);
    assert_int_equal(first.misses, 1);
    ol_engine_adapter_stats_reset(e);
    assert_int_equal(stat_of(e, 0, &first), 2);
    assert_int_equal(first.misses, 0);
    ol_engine_close(e);
}

static void test_remembers_so_many(void **state)
{
    ol_engine *e = open_with(0, 0);
    ol_adapter_stat stat;
    ol_event event;

    (void)state;
    for (int i = 0; i < OL_ADAPTERS_REMEMBERED + 100; i++) {
        ol_adapter_use uses[1];
        ol_request q = adapted(1, 1, uses, 0);

        memcpy(uses[0].digest.bytes, &i, sizeof(i));
        util_submit(e, &q);
        ol_engine_cancel(e, 1);
        while (ol_engine_poll(e, &event))
            ;
    }
    assert_int_equal(stat_of(e, 0, &stat), OL_ADAPTERS_REMEMBERED);
    ol_engine_close(e);
}

static void test_too_large_alone(void **state)
{
    ol_engine *e = open_with(one_bytes - 1, 0);
    ol_adapter_use uses[1];
    ol_request q = adapted(0, 1, uses, 0);
    util_result r = {0};

    (void)state;
    util_submit(e, &q);
    must_fail(put(e, &store[0], &store[0].digest), OL_LIMIT, "budget", &err);
    util_run(e, &r, 1);
    assert_true(r.failed);
    assert_int_equal(r.error.code, OL_LIMIT);
    util_free(&r, 1);
    ol_engine_close(e);
}

/* Each fits, all together do not: known when they have all been seen. */
static void test_too_large_together(void **state)
{
    ol_engine *e = open_with(2 * one_bytes, 0);
    ol_adapter_use uses[3];
    ol_request q = adapted(0, 3, uses, 0);
    util_result r = {0};

    (void)state;
    util_submit(e, &q);
    for (int i = 0; i < 3 && !r.failed; i++) {
        must_put(e, i);
        util_run(e, &r, 1);
    }
    assert_true(r.failed);
    must_fail(r.error.code, OL_LIMIT, "budget", &r.error);
    util_free(&r, 1);
    util_expect_idle(e);
    ol_engine_close(e);
}

/* Running requests keep theirs; a newcomer waits until one is free, and is asked again. */
static void test_pinned_stay(void **state)
{
    ol_engine *e = open_with(one_bytes, 0);
    ol_adapter_use uses[2];
    ol_request first = adapted(0, 1, uses, 0), second = adapted(1, 1, uses + 1, 1);
    util_result r[2] = {0};

    (void)state;
    util_submit(e, &first);
    must_put(e, 0);
    must(ol_engine_step(e, &err), &err);
    util_submit(e, &second);
    util_take(e, r, 2);
    assert_int_equal(r[1].needs, 1); /* its size is not known yet */
    must_put(e, 1);                  /* finds no room */
    assert_false(ol_engine_adapter_has(e, &store[1].digest));
    util_take(e, r, 2);
    assert_int_equal(r[1].needs, 1); /* not yet again */
    util_run(e, r, 2);
    assert_true(r[0].done);
    assert_int_equal(r[1].needs, 2);
    must_put(e, 1);
    assert_true(ol_engine_adapter_has(e, &store[1].digest));
    util_run(e, r, 2);
    assert_true(r[1].done);
    util_free(r, 2);
    util_expect_idle(e);
    ol_engine_close(e);
}

static void test_cancel_unpins(void **state)
{
    ol_engine *e = open_with(one_bytes, 0);
    ol_adapter_use uses[1];
    ol_request q = adapted(0, 1, uses, 0);

    (void)state;
    util_submit(e, &q);
    must_put(e, 0);
    must(ol_engine_step(e, &err), &err);
    must_put(e, 1); /* no room while 0 runs */
    assert_false(ol_engine_adapter_has(e, &store[1].digest));
    ol_engine_cancel(e, 0);
    must_put(e, 1);
    assert_true(ol_engine_adapter_has(e, &store[1].digest));
    assert_false(ol_engine_adapter_has(e, &store[0].digest));
    util_expect_idle(e);
    ol_engine_close(e);
}

/* -- more than fits, at once ------------------------------------------------------------------- */

enum { N_REQUESTS = 60 };

static uint64_t noise = 7;

static int pick(int n)
{
    noise = noise * 6364136223846793005u + 1442695040888963407u;
    return (int)((noise >> 33) % (uint64_t)n);
}

typedef struct crowd {
    ol_adapter_use uses[N_REQUESTS][3];
    ol_request requests[N_REQUESTS];
    int order[N_ADAPTERS]; /* needs that the host has not answered yet */
} crowd;

static void make_crowd(crowd *c)
{
    for (int i = 0; i < N_REQUESTS; i++) {
        int n = pick(4), first = pick(N_ADAPTERS - 3);

        c->requests[i] = adapted((uint64_t)i, n, c->uses[i], first);
        c->requests[i].sampling.max_tokens = 1 + pick(20);
        c->requests[i].sampling.temperature = 0.8f;
        c->requests[i].sampling.seed = (uint64_t)i;
    }
}

static int index_of(const ol_digest *digest)
{
    for (int i = 0; i < N_ADAPTERS; i++)
        if (ol_digest_equal(&store[i].digest, digest))
            return i;
    fail_msg("an adapter that nobody has");
    return -1;
}

/* A host that answers late, in any order. Returns the number of answers. */
static int run_crowd(ol_engine *e, const crowd *c, util_result *r)
{
    int asked[64], n_asked = 0, submitted = 0, answers = 0, ended = 0;

    while (ended < N_REQUESTS) {
        ol_event event;

        if (submitted < N_REQUESTS && pick(2))
            util_submit(e, &c->requests[submitted++]);
        if (n_asked && (pick(3) == 0 || !ol_engine_busy(e))) {
            int at = pick(n_asked);

            must_put(e, asked[at]);
            asked[at] = asked[--n_asked];
            answers++;
        }
        must(ol_engine_step(e, &err), &err);
        while (ol_engine_poll(e, &event)) {
            util_result *one = &r[event.tag];

            if (event.kind == OL_EVENT_NEED_ADAPTER) {
                assert_in_range(n_asked, 0, 63);
                asked[n_asked++] = index_of(&event.digest);
            } else if (event.kind == OL_EVENT_TOKEN) {
                one->tokens = realloc(one->tokens, (size_t)(one->n + 1) * sizeof(int32_t));
                one->tokens[one->n++] = event.token;
            } else {
                if (event.kind == OL_EVENT_FAILED)
                    must(event.error.code, &event.error);
                one->done = true;
                ended++;
            }
        }
    }
    return answers;
}

/* A cache of three adapters for twelve, and few pages: all is answered, nothing is exceeded,
 * and the tokens are those of a cache that holds everything. */
static void test_crowd(void **state)
{
    static crowd c;
    static util_result want[N_REQUESTS], have[N_REQUESTS];
    ol_engine *roomy = open_with(0, 0), *tight;
    ol_engine_options options;
    ol_engine_info info;

    (void)state;
    make_crowd(&c);
    run_crowd(roomy, &c, want);
    ol_engine_close(roomy);
    options = util_options(golden_path(MODEL));
    options.adapter_bytes = 3 * one_bytes + one_bytes / 2;
    options.kv_bytes = 2 * 2 * 16 * 64 * 4 * 12;
    options.context = 64;
    tight = util_open(&options);
    run_crowd(tight, &c, have);
    ol_engine_info_get(tight, &info);
    assert_true(info.adapter_bytes <= options.adapter_bytes);
    assert_true(info.adapter_evictions > 10);
    for (int i = 0; i < N_REQUESTS; i++) {
        assert_int_equal(have[i].n, want[i].n);
        assert_memory_equal(have[i].tokens, want[i].tokens, (size_t)want[i].n * sizeof(int32_t));
    }
    util_expect_idle(tight);
    ol_engine_close(tight);
    util_free(want, N_REQUESTS);
    util_free(have, N_REQUESTS);
}

/* -- the device's memory -------------------------------------------------------------------------
 */

/* Up to four requests with an adapter each, a host that answers at once. */
static void run_some(ol_engine *e, util_result *r, int n)
{
    ol_adapter_use uses[4];
    bool ended = false;

    for (uint64_t i = 0; i < (uint64_t)n; i++) {
        ol_request q = adapted(i, 1, &uses[i], (int)i);

        util_submit(e, &q);
    }
    for (int tries = 0; tries < 40 && !ended; tries++) {
        ended = true;
        util_run(e, r, n);
        for (int i = 0; i < n; i++) {
            if (!r[i].done && !r[i].failed && r[i].needs)
                must_put(e, i);
            ended = ended && (r[i].done || r[i].failed);
        }
    }
    assert_true(ended);
}

/* An engine whose device has memory for `adapters` and a half and, when `working`, for all that
 * four requests need to be computed; otherwise for next to nothing. */
static ol_engine *open_limited(size_t adapters, bool working)
{
    ol_engine_options options;
    util_result r[4] = {0};
    ol_engine_info info;
    ol_engine *e;

    need_path(golden_path(MODEL));
    options = util_options(golden_path(MODEL));
    options.kv_bytes = 1 << 20;
    options.max_seqs = 4;
    options.step_tokens = 32;
    e = util_open(&options);
    for (int n = 1; working && n <= 4; n++) { /* steps of every size have their needs */
        run_some(e, r, n);
        util_free(r, 4);
    }
    ol_engine_info_get(e, &info);
    ol_engine_close(e);
    options.memory_limit = info.device.memory_used - (size_t)info.adapters * one_bytes +
                           adapters * one_bytes + (working ? one_bytes / 2 : 64);
    return util_open(&options);
}

/* It ends before the budget of adapters does: they take turns. */
static void test_device_memory_ends(void **state)
{
    ol_engine *e = open_limited(2, true);
    util_result r[4] = {0};

    (void)state;
    run_some(e, r, 4);
    for (int i = 0; i < 4; i++)
        assert_true(r[i].done);
    util_free(r, 4);
    util_expect_idle(e);
    ol_engine_close(e);
}

/* There never is enough to compute with: requests fail one by one, the engine lives. */
static void test_no_working_memory(void **state)
{
    ol_engine *e = open_limited(0, false);
    ol_request q = util_request(0, prompt, N_PROMPT, 8);
    util_result r[4] = {0};

    (void)state;
    util_submit(e, &q);
    q.tag = 1;
    util_submit(e, &q);
    util_run(e, r, 4);
    for (int i = 0; i < 2; i++) {
        assert_true(r[i].failed);
        assert_int_equal(r[i].error.code, OL_NOMEM);
    }
    util_free(r, 4);
    util_expect_idle(e);
    ol_engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_needed_then_put),
        cmocka_unit_test(test_asked_once),
        cmocka_unit_test(test_silent_host),
        cmocka_unit_test(test_bad_bytes_fail_those_who_wait),
        cmocka_unit_test(test_wrong_digest),
        cmocka_unit_test(test_check_keeps_nothing),
        cmocka_unit_test(test_of_another_model),
        cmocka_unit_test(test_max_tokens_zero_waits_too),
        cmocka_unit_test(test_least_recently_used_goes),
        cmocka_unit_test(test_often_used_stay),
        cmocka_unit_test(test_those_waited_for_stay),
        cmocka_unit_test(test_remembers_the_evicted),
        cmocka_unit_test(test_remembers_so_many),
        cmocka_unit_test(test_too_large_alone),
        cmocka_unit_test(test_too_large_together),
        cmocka_unit_test(test_pinned_stay),
        cmocka_unit_test(test_cancel_unpins),
        cmocka_unit_test(test_crowd),
        cmocka_unit_test(test_device_memory_ends),
        cmocka_unit_test(test_no_working_memory),
    };

    return cmocka_run_group_tests(tests, make_store, free_store);
}
