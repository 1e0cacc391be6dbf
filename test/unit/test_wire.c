/* test_wire.c: the ring under two threads and under a lying peer; every message
 * there and back, cut short, and with random bytes. */
#include "base/arena.h"
#include "engine/main/outbox.h"
#include "wire/channel.h"
#include "wire/message.h"
#include "wire/stats.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define CAPACITY ((size_t)1 << 18)

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

static void *new_ring(void)
{
    void *memory = aligned_alloc(64, (ol_ring_bytes(CAPACITY) + 63) & ~(size_t)63);

    assert_non_null(memory);
    ol_ring_init(memory, CAPACITY);
    return memory;
}

#define FRAMES 20000

static uint32_t frame_length(uint32_t number)
{
    return number % 97 == 0 ? OL_FRAME_PAYLOAD - number % 7 : (number * 31) % 300;
}

static void *producer(void *memory)
{
    ol_ring_end end = ol_ring_attach(memory, CAPACITY);
    uint8_t *payload = malloc(OL_FRAME_PAYLOAD);

    for (uint32_t n = 0; payload && n < FRAMES; n++) {
        ol_frame f = {.length = frame_length(n), .type = OL_FRAME_DATA, .tag = n};

        memset(payload, (int)(n & 255), f.length);
        while (!ol_ring_put(&end, &f, payload))
            sched_yield();
    }
    free(payload);
    return NULL;
}

static void test_ring_keeps_order_and_bytes(void **state)
{
    void *memory = new_ring();
    uint8_t *payload = malloc(OL_FRAME_PAYLOAD);
    ol_ring_end end = ol_ring_attach(memory, CAPACITY);
    pthread_t thread;

    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, producer, memory), 0);
    for (uint32_t n = 0; n < FRAMES;) {
        ol_frame f;
        int got = ol_ring_get(&end, &f, payload);

        assert_true(got >= 0);
        if (!got) {
            sched_yield();
            continue;
        }
        assert_int_equal(f.tag, n);
        assert_int_equal(f.length, frame_length(n));
        for (uint32_t i = 0; i < f.length; i += 61)
            assert_int_equal(payload[i], n & 255);
        n++;
    }
    pthread_join(thread, NULL);
    free(payload);
    free(memory);
}

/* The peer owns its words in the shared memory and may write anything there. */
static void test_ring_with_a_lying_peer(void **state)
{
    uint32_t seed = 7;
    uint8_t *payload = malloc(OL_FRAME_PAYLOAD);

    (void)state;
    for (int round = 0; round < 300; round++) {
        uint8_t *memory = new_ring();
        ol_ring_end reader = ol_ring_attach(memory, CAPACITY);
        ol_ring_end writer = ol_ring_attach(memory, CAPACITY);
        ol_frame f = {.length = 1000};

        memset(payload, 1, 1000);
        for (size_t i = 0; i < 192; i++)
            memory[i] = (uint8_t)next_random(&seed);
        for (int k = 0; k < 8; k++)
            memory[192 + next_random(&seed) % 64] = (uint8_t)next_random(&seed);
        for (int k = 0; k < 50; k++) {
            if (ol_ring_get(&reader, &f, payload) < 0)
                break;
            assert_true(f.length <= OL_FRAME_PAYLOAD);
            f.length = 1000;
            (void)ol_ring_put(&writer, &f, payload);
        }
        free(memory);
    }
    free(payload);
}

static void test_ring_full_and_wake(void **state)
{
    void *memory = new_ring();
    ol_ring_end reader = ol_ring_attach(memory, CAPACITY);
    ol_ring_end writer = ol_ring_attach(memory, CAPACITY);
    uint8_t *payload = calloc(1, OL_FRAME_PAYLOAD);
    ol_frame f = {.length = OL_FRAME_PAYLOAD};
    int n = 0;

    (void)state;
    assert_false(ol_ring_wake_needed(&writer));
    ol_ring_sleep(&reader);
    assert_int_equal(ol_ring_get(&reader, &f, payload), 0);
    f.length = OL_FRAME_PAYLOAD;
    while (ol_ring_put(&writer, &f, payload))
        n++;
    assert_int_equal(n, 3); /* 4 x 64 KiB less the headers */
    assert_true(ol_ring_wake_needed(&writer));
    assert_false(ol_ring_wake_needed(&writer)); /* once is enough */
    ol_ring_awake(&reader);
    assert_int_equal(ol_ring_get(&reader, &f, payload), 1);
    assert_true(ol_ring_put(&writer, &f, payload));
    f.length = OL_FRAME_PAYLOAD + 1;
    assert_false(ol_ring_put(&writer, &f, payload));
    free(payload);
    free(memory);
}

static void test_ring_room_is_awaited(void **state)
{
    void *memory = new_ring();
    ol_ring_end reader = ol_ring_attach(memory, CAPACITY);
    ol_ring_end writer = ol_ring_attach(memory, CAPACITY);
    uint8_t *payload = calloc(1, OL_FRAME_PAYLOAD);
    ol_frame f = {.length = OL_FRAME_PAYLOAD}, got;

    (void)state;
    while (ol_ring_put(&writer, &f, payload))
        assert_false(ol_ring_room_awaited(&reader)); /* nobody waits yet */
    assert_false(ol_ring_room_awaited(&reader));     /* somebody does, but it is full */
    assert_int_equal(ol_ring_get(&reader, &got, payload), 1);
    assert_false(ol_ring_room_awaited(&reader)); /* two thirds full: not worth a wake-up */
    assert_int_equal(ol_ring_get(&reader, &got, payload), 1);
    assert_true(ol_ring_room_awaited(&reader));
    assert_false(ol_ring_room_awaited(&reader)); /* once is enough */
    free(payload);
    free(memory);
}

/* -- the channel --------------------------------------------------------------- */

#define CHANNEL_FRAMES 400 /* twenty-five times what the ring holds */

/* Waits without a timeout: a wake-up that does not come is for ever, or for the alarm. */
static void wait_on(ol_channel *channel)
{
    struct pollfd wake = {.fd = channel->wake_fd, .events = POLLIN};

    assert_int_equal(poll(&wake, 1, -1), 1);
    assert_true(ol_channel_woken(channel));
}

static void *channel_producer(void *context)
{
    ol_channel *channel = context;
    uint8_t *payload = calloc(1, OL_FRAME_PAYLOAD);

    for (uint64_t n = 0; payload && n < CHANNEL_FRAMES; n++) {
        ol_frame f = {.length = OL_FRAME_PAYLOAD, .tag = n};

        while (!ol_channel_send(channel, &f, payload))
            wait_on(channel);
    }
    free(payload);
    return NULL;
}

static void test_channel_wakes_both_ways(void **state)
{
    ol_channel ours, theirs;
    uint8_t *payload = malloc(OL_FRAME_PAYLOAD);
    int ring_fd, wake_fd;
    pthread_t thread;
    ol_error err;

    (void)state;
    alarm(120);
    assert_int_equal(ol_channel_create(&ours, &ring_fd, &wake_fd, &err), OL_OK);
    assert_int_equal(ol_channel_attach(&theirs, ring_fd, wake_fd, &err), OL_OK);
    assert_int_equal(pthread_create(&thread, NULL, channel_producer, &ours), 0);
    for (uint64_t n = 0; n < CHANNEL_FRAMES;) {
        ol_frame f;

        if (n % 50 == 0)
            sched_yield(); /* let it fill up */
        if (ol_channel_receive(&theirs, &f, payload) == 1) {
            assert_int_equal(f.tag, n);
            n++;
        } else if (ol_channel_may_sleep(&theirs)) {
            wait_on(&theirs);
        }
    }
    pthread_join(thread, NULL);
    alarm(0);
    ol_channel_close(&theirs);
    assert_false(ol_channel_woken(&ours)); /* the other end is closed */
    ol_channel_close(&ours);
    free(payload);
}

/* A reader that keeps up, and never catches up: what waits for it takes memory, what it had none.
 */
static void test_outbox_that_never_runs_empty(void **state)
{
    enum { WAITING = 8, ROUNDS = 500 };
    ol_channel ours, theirs;
    uint8_t *payload = calloc(1, OL_FRAME_PAYLOAD);
    outbox box = {.channel = &theirs};
    int ring_fd, wake_fd;
    ol_frame to = {0};
    ol_error err;

    (void)state;
    assert_int_equal(ol_channel_create(&ours, &ring_fd, &wake_fd, &err), OL_OK);
    assert_int_equal(ol_channel_attach(&theirs, ring_fd, wake_fd, &err), OL_OK);
    while (outbox_waiting(&box) < WAITING * OL_FRAME_PAYLOAD)
        outbox_send_data(&box, &to, payload, OL_FRAME_PAYLOAD);
    for (to.tag = 1; to.tag <= ROUNDS; to.tag++) {
        ol_frame got;

        assert_int_equal(ol_channel_receive(&ours, &got, payload), 1);
        assert_true(got.tag < to.tag && got.length == OL_FRAME_PAYLOAD);
        outbox_send_data(&box, &to, payload, OL_FRAME_PAYLOAD);
        assert_true(outbox_waiting(&box) > 0);
        assert_true(box.waiting.cap <= 4 * WAITING * OL_FRAME_PAYLOAD);
    }
    assert_false(outbox_failed(&box));
    outbox_free(&box);
    ol_channel_close(&theirs);
    ol_channel_close(&ours);
    free(payload);
}

/* -- messages ------------------------------------------------------------------ */

static ol_request sample_request(void)
{
    static const ol_logit_bias bias[] = {{5, 1.5f}, {9, -3}};
    static const ol_text stops[] = {{"\n\n", 2}, {"END", 3}};
    static ol_adapter_use adapters[2];
    ol_request q = {.task = OL_TASK_GENERATE, .parse_special = true, .quiet = true};

    memset(adapters[0].digest.bytes, 0xAB, OL_DIGEST_BYTES);
    memset(adapters[1].digest.bytes, 0x12, OL_DIGEST_BYTES);
    adapters[0].weight = 0.5f;
    adapters[1].weight = -2;
    q.prompt = (ol_text){"prompt!", 7};
    q.completion = (ol_text){"done", 4};
    q.n_adapters = 2;
    q.adapters = adapters;
    q.sampling = ol_sampling_default();
    q.sampling.temperature = 0.7f;
    q.sampling.top_k = 40;
    q.sampling.seed = 0xFFFFFFFFFFFFFFFFu;
    q.sampling.max_tokens = 128;
    q.sampling.logprobs = 5;
    q.sampling.bias = bias;
    q.sampling.n_bias = 2;
    q.sampling.stops = stops;
    q.sampling.n_stops = 2;
    return q;
}

static void test_request_there_and_back(void **state)
{
    ol_request q = sample_request(), back;
    const uint8_t *upload = (const uint8_t *)"prompt!done";
    ol_arena *arena = ol_arena_create();
    ol_buf buf = {0};
    ol_reader r;

    (void)state;
    ol_wire_put_request(&buf, &q);
    r = ol_reader_over(buf.data, buf.len);
    assert_true(ol_wire_get_request(&r, arena, upload, 11, &back));
    assert_int_equal(back.prompt.len, 7);
    assert_memory_equal(back.completion.data, "done", 4);
    assert_true(back.parse_special);
    assert_true(back.quiet);
    assert_int_equal(back.n_adapters, 2);
    assert_memory_equal(back.adapters[1].digest.bytes, q.adapters[1].digest.bytes, 32);
    assert_true(back.adapters[1].weight == -2);
    assert_true(back.sampling.seed == q.sampling.seed);
    assert_int_equal(back.sampling.logprobs, 5);
    assert_int_equal(back.sampling.bias[1].token, 9);
    assert_string_equal(back.sampling.stops[1].data, "END");
    r = ol_reader_over(buf.data, buf.len);
    assert_false(ol_wire_get_request(&r, arena, upload, 12, &back)); /* lengths must agree */
    for (size_t len = 0; len < buf.len; len++) {
        r = ol_reader_over(buf.data, len);
        assert_false(ol_wire_get_request(&r, arena, upload, 11, &back));
    }
    ol_buf_free(&buf);
    ol_arena_destroy(arena);
}

static void test_events_there_and_back(void **state)
{
    const ol_token_logprob alts[] = {{4, -0.1f}, {8, -3}};
    const double shares[] = {0.25, 0.75};
    ol_event e = {.kind = OL_EVENT_TOKEN, .index = 3, .token = 99, .text = {"h\xC3\xA9", 3}};
    ol_wire_event_scratch scratch;
    ol_event back;
    ol_buf buf = {0};
    ol_reader r;

    (void)state;
    e.alternatives = alts;
    e.n_alternatives = 2;
    ol_wire_put_event(&buf, &e);
    r = ol_reader_over(buf.data, buf.len);
    assert_true(ol_wire_get_event(&r, &scratch, &back));
    assert_int_equal(back.token, 99);
    assert_int_equal(back.text.len, 3);
    assert_int_equal(back.alternatives[1].token, 8);
    for (size_t len = 0; len < buf.len; len++) {
        r = ol_reader_over(buf.data, len);
        assert_false(ol_wire_get_event(&r, &scratch, &back));
    }
    ol_buf_reset(&buf);
    e = (ol_event){.kind = OL_EVENT_DONE, .finish = OL_FINISH_STOP, .prompt_tokens = 11};
    e.shares = shares;
    e.n_shares = 2;
    ol_wire_put_event(&buf, &e);
    r = ol_reader_over(buf.data, buf.len);
    assert_true(ol_wire_get_event(&r, &scratch, &back));
    assert_true(back.shares[1] == 0.75);
    assert_int_equal(back.finish, OL_FINISH_STOP);
    ol_buf_reset(&buf);
    e = (ol_event){.kind = OL_EVENT_FAILED};
    ol_fail(&e.error, OL_LIMIT, "too long");
    ol_hint(&e.error, "Shorten it.");
    ol_wire_put_event(&buf, &e);
    r = ol_reader_over(buf.data, buf.len);
    assert_true(ol_wire_get_event(&r, &scratch, &back));
    assert_int_equal(back.error.code, OL_LIMIT);
    assert_string_equal(back.error.hint, "Shorten it.");
    ol_buf_free(&buf);
}

static void test_usage_there_and_back(void **state)
{
    const double shares[] = {0.25, 0.75};
    ol_event e = {.kind = OL_EVENT_USAGE,
                  .outcome = OL_OUTCOME_CANCELLED,
                  .prompt_tokens = 9,
                  .cached_tokens = 8,
                  .completion_tokens = 5,
                  .n_shares = 2,
                  .shares = shares,
                  .digest = {{1, 2, 3}},
                  .text = {"meter", 5}};
    ol_wire_event_scratch scratch;
    ol_event back;
    ol_buf buf = {0};
    ol_reader r;

    (void)state;
    ol_wire_put_usage(&buf, &e);
    r = ol_reader_over(buf.data, buf.len);
    assert_true(ol_wire_get_usage(&r, &scratch, &back));
    assert_int_equal(back.outcome, OL_OUTCOME_CANCELLED);
    assert_int_equal(back.prompt_tokens, 9);
    assert_int_equal(back.cached_tokens, 8);
    assert_int_equal(back.completion_tokens, 5);
    assert_true(back.shares[1] == 0.75);
    assert_memory_equal(&back.digest, &e.digest, sizeof(e.digest));
    assert_memory_equal(back.text.data, "meter", 5);
    for (size_t len = 0; len < buf.len; len++) {
        r = ol_reader_over(buf.data, len);
        assert_false(ol_wire_get_usage(&r, &scratch, &back));
    }
    buf.data[0] = OL_OUTCOME_SO_FAR + 1;
    r = ol_reader_over(buf.data, buf.len);
    assert_false(ol_wire_get_usage(&r, &scratch, &back));
    ol_buf_free(&buf);
}

static void test_info_there_and_back(void **state)
{
    ol_engine_info i = {.vocab = 7, .layers = 3, .steps = 1u << 31, .has_tokenizer = true};
    ol_engine_info back;
    ol_buf buf = {0};
    ol_reader r;

    (void)state;
    strcpy(i.model_name, "demo");
    strcpy(i.device.description, "some processor");
    i.device.memory_used = 12345678901u;
    i.waiting = 9;
    i.parameters = 5;
    i.adapter_copies = 3;
    i.adapter_copy_bytes = 98765432109u;
    i.adapter_copy_loads = 4;
    ol_wire_put_info(&buf, &i);
    r = ol_reader_over(buf.data, buf.len);
    assert_true(ol_wire_get_info(&r, &back));
    assert_string_equal(back.model_name, "demo");
    assert_string_equal(back.device.description, "some processor");
    assert_true(back.device.memory_used == 12345678901u && back.steps == 1u << 31);
    assert_int_equal(back.waiting, 9);
    assert_int_equal(back.parameters, 5);
    assert_int_equal(back.adapter_copies, 3);
    assert_int_equal(back.adapter_copy_bytes, 98765432109u);
    assert_int_equal(back.adapter_copy_loads, 4);
    assert_true(back.has_tokenizer);
    ol_buf_free(&buf);
}

/* No decoder reads past its bytes or gives back what is out of range. */
static void test_stats_there_and_back(void **state)
{
    ol_request_stat q = {.tag = 1ull << 60,
                         .session = 7,
                         .tenant = 0xFFFFFFFF,
                         .task = OL_TASK_SCORE,
                         .state = OL_REQUEST_RUNNING,
                         .priority = -3,
                         .n_adapters = 2,
                         .prompt_tokens = 1,
                         .cached_tokens = 2,
                         .output_tokens = 3,
                         .computed_tokens = 4,
                         .preempted = 5,
                         .age_us = 6,
                         .running_us = 7},
                    q2;
    ol_adapter_stat a = {.resident = true,
                         .copied = true,
                         .requests = 3,
                         .bytes = 1ull << 40,
                         .hits = 1,
                         .misses = 2,
                         .loads = 3,
                         .load_us = 4,
                         .idle_us = 5},
                    a2;
    ol_buf buf = {0};
    ol_reader r;

    (void)state;
    q.adapters[1].bytes[5] = a.digest.bytes[31] = 9;
    ol_wire_put_request_stat(&buf, &q);
    ol_wire_put_request_stat(&buf, &q);
    r = ol_reader_over(buf.data, buf.len);
    for (int i = 0; i < 2; i++) {
        assert_true(ol_wire_get_request_stat(&r, &q2));
        assert_memory_equal(&q, &q2, sizeof(q));
    }
    assert_false(ol_wire_get_request_stat(&r, &q2));
    assert_false(r.bad); /* that was the end */
    for (size_t len = 1; len < buf.len / 2; len++) {
        r = ol_reader_over(buf.data, len);
        assert_false(ol_wire_get_request_stat(&r, &q2));
        assert_true(r.bad);
    }
    ol_buf_reset(&buf);
    ol_wire_put_adapter_stat(&buf, &a);
    r = ol_reader_over(buf.data, buf.len);
    assert_true(ol_wire_get_adapter_stat(&r, &a2));
    assert_memory_equal(&a, &a2, sizeof(a));
    r = ol_reader_over(buf.data, buf.len - 1);
    assert_false(ol_wire_get_adapter_stat(&r, &a2));
    ol_buf_free(&buf);
}

static void test_random_bytes(void **state)
{
    uint32_t seed = 99;
    uint8_t *bytes = malloc(512);
    ol_arena *arena = ol_arena_create();

    (void)state;
    for (int round = 0; round < 50000; round++) {
        size_t len = next_random(&seed) % 200;
        uint8_t *exact = malloc(len ? len : 1); /* so that a sanitizer sees overreads */
        ol_wire_event_scratch scratch;
        ol_adapter_facts facts;
        ol_engine_info info;
        ol_wire_adapter adapter;
        ol_event event;
        ol_request request;
        ol_error error;
        ol_reader r;

        for (size_t i = 0; i < len; i++)
            exact[i] = (uint8_t)(next_random(&seed) % (round % 3 ? 4 : 256));
        r = ol_reader_over(exact, len);
        if (ol_wire_get_event(&r, &scratch, &event)) {
            assert_true(event.n_alternatives <= OL_MAX_LOGPROBS);
            assert_true(event.n_shares <= OL_MAX_REQUEST_ADAPTERS);
        }
        r = ol_reader_over(exact, len);
        (void)ol_wire_get_request(&r, arena, bytes, next_random(&seed) % 512, &request);
        r = ol_reader_over(exact, len);
        (void)ol_wire_get_info(&r, &info);
        r = ol_reader_over(exact, len);
        (void)ol_wire_get_facts(&r, &facts);
        r = ol_reader_over(exact, len);
        (void)ol_wire_get_adapter(&r, &adapter);
        r = ol_reader_over(exact, len);
        (void)ol_wire_get_error(&r, &error);
        free(exact);
    }
    ol_arena_destroy(arena);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ring_keeps_order_and_bytes),
        cmocka_unit_test(test_ring_with_a_lying_peer),
        cmocka_unit_test(test_ring_full_and_wake),
        cmocka_unit_test(test_ring_room_is_awaited),
        cmocka_unit_test(test_channel_wakes_both_ways),
        cmocka_unit_test(test_outbox_that_never_runs_empty),
        cmocka_unit_test(test_request_there_and_back),
        cmocka_unit_test(test_events_there_and_back),
        cmocka_unit_test(test_usage_there_and_back),
        cmocka_unit_test(test_info_there_and_back),
        cmocka_unit_test(test_stats_there_and_back),
        cmocka_unit_test(test_random_bytes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
