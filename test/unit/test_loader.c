/*
 * test_loader.c: jobs beside the engine: their order, their ends, and that the engine's steps
 * go on while one of them takes long. Jobs wait at a gate that the test opens: nothing here
 * depends on time.
 */
#include "engine_util.h"

#include "engine/engine_internal.h"

#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

typedef struct gate {
    pthread_mutex_t lock;
    pthread_cond_t change;
    bool open;
    int arrived; /* jobs that have reached it */
} gate;

#define GATE                                                                                       \
    {                                                                                              \
        PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, 0                              \
    }

typedef struct gated {
    ol_job job;
    gate *gate;
    int number;
    bool ran;
} gated;

static void run_gated(ol_job *job)
{
    gated *g = (gated *)(void *)job;

    pthread_mutex_lock(&g->gate->lock);
    g->gate->arrived++;
    pthread_cond_broadcast(&g->gate->change);
    while (!g->gate->open)
        pthread_cond_wait(&g->gate->change, &g->gate->lock);
    pthread_mutex_unlock(&g->gate->lock);
    g->ran = true;
}

static void await_arrival(gate *g)
{
    pthread_mutex_lock(&g->lock);
    while (g->arrived == 0)
        pthread_cond_wait(&g->change, &g->lock);
    pthread_mutex_unlock(&g->lock);
}

static void open_gate(gate *g)
{
    pthread_mutex_lock(&g->lock);
    g->open = true;
    pthread_cond_broadcast(&g->change);
    pthread_mutex_unlock(&g->lock);
}

static ol_job *await_job(ol_loader *loader)
{
    struct pollfd fd = {.fd = ol_loader_fd(loader), .events = POLLIN};
    ol_job *job;

    while (!(job = ol_loader_next(loader)))
        assert_int_equal(poll(&fd, 1, -1), 1);
    return job;
}

static void count_dropped(ol_job *job, void *context)
{
    (void)job;
    ++*(int *)context;
}

static void test_in_order(void **state)
{
    gate g = GATE;
    gated jobs[20];
    ol_loader *loader;
    ol_error err;
    int dropped = 0;

    (void)state;
    g.open = true;
    must(ol_loader_create(&loader, &err), &err);
    assert_null(ol_loader_next(loader));
    for (int i = 0; i < 20; i++) {
        jobs[i] = (gated){.job.run = run_gated, .gate = &g, .number = i};
        must(ol_loader_submit(loader, &jobs[i].job, &err), &err);
    }
    assert_int_equal(ol_loader_jobs(loader), 20);
    for (int i = 0; i < 20; i++) {
        gated *job = (gated *)(void *)await_job(loader);

        assert_true(job->ran);
        assert_int_equal(job->number, i);
    }
    assert_null(ol_loader_next(loader));
    assert_int_equal(ol_loader_jobs(loader), 0);
    ol_loader_free(loader, count_dropped, &dropped);
    assert_int_equal(dropped, 0);
}

/* The one that runs is waited for; it and those that wait are dropped. */
static void *open_soon(void *context)
{
    gate *g = context;

    await_arrival(g);
    open_gate(g);
    return NULL;
}

static void test_ends_with_jobs_left(void **state)
{
    gate g = GATE;
    gated jobs[5];
    pthread_t opener;
    ol_loader *loader;
    ol_error err;
    int dropped = 0, ran = 0;

    (void)state;
    must(ol_loader_create(&loader, &err), &err);
    for (int i = 0; i < 5; i++) {
        jobs[i] = (gated){.job.run = run_gated, .gate = &g};
        must(ol_loader_submit(loader, &jobs[i].job, &err), &err);
    }
    await_arrival(&g);
    pthread_create(&opener, NULL, open_soon, &g);
    ol_loader_free(loader, count_dropped, &dropped);
    pthread_join(opener, NULL);
    assert_int_equal(dropped, 5);
    for (int i = 0; i < 5; i++)
        ran += jobs[i].ran;
    assert_true(ran >= 1);
}

/* -- with an engine -------------------------------------------------------------------------- */

static const int32_t prompt[] = {1, 195, 123, 41, 77, 20, 99, 5};

static ol_engine *open_engine(size_t adapter_bytes)
{
    ol_engine_options options = util_options(golden_path("llama"));

    options.adapter_bytes = adapter_bytes;
    return util_open(&options);
}

static ol_adapter_offer offer_of(const char *name, uint64_t tag)
{
    ol_adapter_offer offer = {.tag = tag};
    ol_buf weights, config;
    char path[64];

    snprintf(path, sizeof(path), "llama/adapters/%s", name);
    util_read_adapter(golden_path(path), &weights, &config, &offer.expected);
    offer.weights_len = weights.len;
    offer.config_len = config.len;
    offer.bytes = malloc(weights.len + config.len);
    memcpy(offer.bytes, weights.data, weights.len);
    memcpy(offer.bytes + weights.len, config.data, config.len);
    ol_buf_free(&weights);
    ol_buf_free(&config);
    return offer;
}

static ol_adapter_result await_result(ol_engine *engine)
{
    struct pollfd fd = {.fd = ol_engine_adapter_fd(engine), .events = POLLIN};
    ol_adapter_result result;

    while (!ol_engine_adapter_result(engine, &result))
        assert_int_equal(poll(&fd, 1, -1), 1);
    free(result.offered);
    return result;
}

/* What was offered is the host's again, whatever came of it. */
static void test_bytes_come_back(void **state)
{
    ol_adapter_offer offer;
    ol_engine *engine;
    ol_error err;

    (void)state;
    need_path(golden_path("llama"));
    engine = open_engine(0);
    offer = offer_of("a", 1);
    for (int round = 0; round < 3; round++) {
        struct pollfd fd = {.fd = ol_engine_adapter_fd(engine), .events = POLLIN};
        ol_adapter_result result;

        offer.check = round == 1;
        offer.expected.bytes[0] ^= (uint8_t)(round == 2);
        must(ol_engine_adapter_offer(engine, &offer, &err), &err);
        assert_int_equal(poll(&fd, 1, -1), 1);
        assert_true(ol_engine_adapter_result(engine, &result));
        assert_int_equal(result.code, round == 2 ? OL_INVALID : OL_OK);
        assert_ptr_equal(result.offered, offer.bytes);
        assert_int_equal(result.bytes, offer.weights_len + offer.config_len);
    }
    free(offer.bytes);
    ol_engine_close(engine);
}

/* An adapter is on its way, and does not come on: others get their tokens. */
static void test_steps_go_on(void **state)
{
    gate g = GATE;
    gated slow = {.job.run = run_gated, .gate = &g};
    ol_adapter_use use = {.weight = 1};
    ol_adapter_offer offer;
    util_result results[2] = {{0}};
    ol_engine *engine;
    ol_request q;
    ol_error err;

    (void)state;
    need_path(golden_path("llama"));
    engine = open_engine(0);
    offer = offer_of("a", 77);
    use.digest = offer.expected;
    q = util_request(0, prompt, 8, 5);
    q.adapters = &use;
    q.n_adapters = 1;
    util_submit(engine, &q);
    util_take(engine, results, 2);
    assert_int_equal(results[0].needs, 1);
    must(ol_loader_submit(engine->loader, &slow.job, &err), &err);
    await_arrival(&g);
    must(ol_engine_adapter_offer(engine, &offer, &err), &err);
    q = util_request(1, prompt, 8, 50);
    util_submit(engine, &q);
    util_run(engine, results, 2); /* to its end */
    assert_true(results[1].done);
    assert_int_equal(results[0].n, 0);
    open_gate(&g);
    assert_ptr_equal(await_job(engine->loader), &slow);
    assert_int_equal(await_result(engine).code, OL_OK);
    util_run(engine, results, 2);
    assert_true(results[0].done);
    assert_int_equal(results[0].needs, 1); /* nobody was asked again meanwhile */
    util_free(results, 2);
    util_expect_idle(engine);
    ol_engine_close(engine);
}

static void test_same_as_at_once(void **state)
{
    util_result at_once = {0}, beside = {0};
    ol_adapter_use use = {.weight = 1};
    ol_adapter_offer offer;
    ol_engine *engine;
    ol_request q;
    ol_error err;

    (void)state;
    need_path(golden_path("llama"));
    q = util_request(0, prompt, 8, 20);
    q.adapters = &use;
    q.n_adapters = 1;
    q.sampling.logprobs = 0;
    engine = open_engine(0);
    use.digest = util_put_adapter(engine, golden_path("llama/adapters/b"));
    util_submit(engine, &q);
    util_run(engine, &at_once, 1);
    ol_engine_close(engine);
    engine = open_engine(0);
    offer = offer_of("b", 1);
    util_submit(engine, &q);
    util_take(engine, &beside, 1);
    must(ol_engine_adapter_offer(engine, &offer, &err), &err);
    assert_int_equal(await_result(engine).tag, 1);
    util_run(engine, &beside, 1);
    assert_int_equal(beside.n, 20);
    assert_memory_equal(at_once.logprobs, beside.logprobs, 20 * sizeof(float));
    util_free(&at_once, 1);
    util_free(&beside, 1);
    ol_engine_close(engine);
}

/* What is wrong with the bytes is told as it is when they are read at once. */
static void test_bad_offers(void **state)
{
    util_result r = {0};
    ol_adapter_use use = {.weight = 1};
    ol_adapter_offer offer;
    ol_adapter_result result;
    ol_engine *engine;
    ol_request q;
    ol_error err;

    (void)state;
    need_path(golden_path("llama"));
    engine = open_engine(0);
    q = util_request(0, prompt, 8, 5);
    q.adapters = &use;
    q.n_adapters = 1;
    offer = offer_of("a", 5); /* other bytes than were asked for */
    use.digest = offer.expected;
    util_submit(engine, &q);
    util_take(engine, &r, 1);
    offer.bytes[offer.weights_len - 1] ^= 1;
    must(ol_engine_adapter_offer(engine, &offer, &err), &err);
    result = await_result(engine);
    must_fail(result.code, OL_INVALID, "are not those", &result.error);
    util_take(engine, &r, 1);
    assert_false(r.failed); /* they say nothing of it */
    ol_engine_cancel(engine, 0);
    offer = offer_of("a", 6); /* cut, and honest about it */
    offer.weights_len -= 8;
    offer.config_len = 0;
    ol_adapter_digest(offer.bytes, offer.weights_len, "", 0, &offer.expected);
    use.digest = offer.expected;
    util_submit(engine, &q);
    must(ol_engine_adapter_offer(engine, &offer, &err), &err);
    result = await_result(engine);
    assert_int_not_equal(result.code, OL_OK);
    util_take(engine, &r, 1);
    assert_true(r.failed);
    offer = offer_of("a", 7);
    offer.check = true;
    must(ol_engine_adapter_offer(engine, &offer, &err), &err);
    result = await_result(engine);
    assert_true(result.check && result.code == OL_OK && result.facts.n_modules > 0);
    offer = offer_of("a", 8);
    offer.check = true;
    memset(offer.bytes, 0xFF, 16);
    must(ol_engine_adapter_offer(engine, &offer, &err), &err);
    assert_int_not_equal(await_result(engine).code, OL_OK);
    util_free(&r, 1);
    util_expect_idle(engine);
    ol_engine_close(engine);
}

/* The budget holds, with what is on its way counted, for more adapters than it has room for. */
static void test_budget(void **state)
{
    ol_adapter_offer offers[3];
    util_result results[3] = {{0}};
    ol_adapter_use uses[3];
    ol_adapters_counts counts;
    size_t bytes;
    ol_engine *engine;
    ol_error err;

    (void)state;
    need_path(golden_path("llama"));
    engine = open_engine(0);
    util_put_adapter(engine, golden_path("llama/adapters/a"));
    util_put_adapter(engine, golden_path("llama/adapters/b"));
    bytes = ol_adapters_count(engine->adapters).bytes;
    ol_engine_close(engine);
    engine = open_engine(bytes);
    for (int i = 0; i < 3; i++) {
        char name[2] = {(char)('a' + i), 0};
        ol_request q = util_request((uint64_t)i, prompt, 8, 30);

        offers[i] = offer_of(name, (uint64_t)i);
        uses[i] = (ol_adapter_use){offers[i].expected, 1};
        q.adapters = &uses[i];
        q.n_adapters = 1;
        util_submit(engine, &q);
    }
    for (int round = 0; round < 50; round++) {
        util_run(engine, results, 3);
        if (results[0].done && results[1].done && results[2].done)
            break;
        for (int i = 0; i < 3; i++) {
            char name[2] = {(char)('a' + i), 0};

            if (results[i].needs == 0)
                continue;
            results[i].needs = 0;
            if (!offers[i].bytes)
                offers[i] = offer_of(name, (uint64_t)i);
            must(ol_engine_adapter_offer(engine, &offers[i], &err), &err);
            offers[i].bytes = NULL;
            counts = ol_adapters_count(engine->adapters);
            assert_true(counts.bytes + counts.reserved <= counts.budget);
        }
        while (ol_loader_jobs(engine->loader) > 0) {
            assert_int_equal(await_result(engine).code, OL_OK);
            counts = ol_adapters_count(engine->adapters);
            assert_true(counts.bytes + counts.reserved <= counts.budget);
        }
    }
    for (int i = 0; i < 3; i++) {
        if (results[i].failed)
            must(results[i].error.code, &results[i].error);
        assert_true(results[i].done);
        free(offers[i].bytes);
    }
    util_free(results, 3);
    ol_engine_close(engine);
}

/* An engine that is closed with adapters on their way. */
static void test_close(void **state)
{
    ol_adapter_offer offer;
    ol_engine *engine;
    ol_error err;

    (void)state;
    need_path(golden_path("llama"));
    engine = open_engine(0);
    for (int i = 0; i < 4; i++) {
        offer = offer_of("c", (uint64_t)i);
        offer.check = i == 2;
        must(ol_engine_adapter_offer(engine, &offer, &err), &err);
    }
    ol_engine_close(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_in_order),    cmocka_unit_test(test_ends_with_jobs_left),
        cmocka_unit_test(test_steps_go_on), cmocka_unit_test(test_same_as_at_once),
        cmocka_unit_test(test_bad_offers),  cmocka_unit_test(test_budget),
        cmocka_unit_test(test_close),       cmocka_unit_test(test_bytes_come_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
