/* test_engine_serve.c: what the engine's process answers to its worker. */
#include "engine_process.h"

#include <signal.h>
#include <unistd.h>

static void test_generate(void **state)
{
    engine_process p = process_ready(NULL, NULL);
    ol_request q = util_text_request("Hello there", 30);
    ol_engine_options options = util_options(golden_path(PROCESS_MODEL));
    ol_engine *engine = util_open(&options);
    util_result want = {0};
    ol_buf text = {0};
    ol_event e;

    (void)state;
    util_submit(engine, &q);
    util_run(engine, &want, 1);
    process_send_request(&p, 3, 99, &q);
    e = process_run(&p, 3, 99, &text);
    assert_int_equal(e.kind, OL_EVENT_DONE);
    assert_int_equal(e.completion_tokens, 30);
    assert_int_equal(text.len, want.text.len);
    assert_memory_equal(text.data, want.text.data, text.len);
    ol_buf_free(&text);
    util_free(&want, 1);
    ol_engine_close(engine);
    process_expect_idle(&p);
    process_shut_down(&p);
}

static void test_adapter_flow(void **state)
{
    engine_process p = process_ready(NULL, NULL);
    ol_request q = util_text_request("Hello", 4);
    ol_adapter_use use = {.weight = 1};
    ol_buf weights, config, text = {0};
    ol_digest other = {{1}};
    ol_event e;

    (void)state;
    util_read_adapter(golden_path(PROCESS_MODEL "/adapters/a"), &weights, &config, &use.digest);
    q.adapters = &use;
    q.n_adapters = 1;
    process_send_request(&p, 1, 1, &q);
    e = process_expect_event(&p, 1, 1);
    assert_int_equal(e.kind, OL_EVENT_NEED_ADAPTER);
    assert_true(ol_digest_equal(&e.digest, &use.digest));
    process_send_adapter(&p, 1, 1, OL_FRAME_ADAPTER, golden_path(PROCESS_MODEL "/adapters/a"),
                         NULL);
    e = process_run(&p, 1, 1, &text);
    assert_int_equal(e.kind, OL_EVENT_DONE);
    assert_int_equal(e.n_shares, 1);
    process_send_request(&p, 2, 1, &q); /* another session, the same tag: it is there now */
    e = process_run(&p, 2, 1, &text);
    assert_int_equal(e.kind, OL_EVENT_DONE);
    use.digest = other; /* bytes of another digest: the sender's request fails */
    process_send_request(&p, 1, 2, &q);
    e = process_expect_event(&p, 1, 2);
    assert_int_equal(e.kind, OL_EVENT_NEED_ADAPTER);
    process_send_adapter(&p, 1, 2, OL_FRAME_ADAPTER, golden_path(PROCESS_MODEL "/adapters/b"),
                         &other);
    e = process_expect_event(&p, 1, 2);
    assert_int_equal(e.kind, OL_EVENT_FAILED);
    assert_true(strstr(e.error.detail, "digest") != NULL);
    ol_buf_free(&weights);
    ol_buf_free(&config);
    ol_buf_free(&text);
    process_expect_idle(&p);
    process_shut_down(&p);
}

static void test_adapter_check(void **state)
{
    engine_process p = process_ready(NULL, NULL);
    ol_adapter_facts facts;
    ol_reader r;

    (void)state;
    process_send_adapter(&p, 1, 7, OL_FRAME_ADAPTER_CHECK, golden_path(PROCESS_MODEL "/adapters/a"),
                         NULL);
    process_expect(&p, OL_FRAME_ADAPTER_FACTS);
    assert_int_equal(process_in.frame.tag, 7);
    r = ol_reader_over(process_in.payload, process_in.frame.length);
    assert_true(ol_wire_get_facts(&r, &facts));
    assert_int_equal(facts.max_rank, 4);
    process_send_adapter(&p, 1, 8, OL_FRAME_ADAPTER_CHECK, golden_path("qwen3/adapters/a"), NULL);
    assert_true(process_expect_error(&p, OL_FRAME_FAILED).message[0]);
    process_shut_down(&p);
}

/* What the engine says of anybody until it answers a call of session 6. */
static void drain(engine_process *p)
{
    ol_wire_text_op op = {0};
    ol_buf payload = {0};

    ol_wire_put_text_op(&payload, &op);
    process_send(p, 6, 1, OL_FRAME_TOKENIZE, &payload);
    do
        assert_true(process_receive(p));
    while (process_in.frame.session != 6);
    ol_buf_free(&payload);
}

/* A request of a tag whose adapter is being checked: the engine finds both at once. It is refused,
 * and its session is told. */
static void test_request_during_a_check(void **state)
{
    engine_process p = process_ready(NULL, NULL);
    ol_request q = util_text_request("Hello", 4);

    (void)state;
    assert_int_equal(kill(p.pid, SIGSTOP), 0);
    process_send_adapter(&p, 1, 7, OL_FRAME_ADAPTER_CHECK, golden_path(PROCESS_MODEL "/adapters/a"),
                         NULL);
    process_send_request(&p, 1, 7, &q);
    assert_int_equal(kill(p.pid, SIGCONT), 0);
    assert_int_equal(process_expect_event(&p, 1, 7).kind, OL_EVENT_FAILED);
    process_send_request(&p, 1, 7, &q); /* the tag is free again */
    assert_int_equal(process_expect_event(&p, 1, 7).kind, OL_EVENT_TOKEN);
    process_send(&p, 1, 7, OL_FRAME_CANCEL, NULL);
    drain(&p);
    process_expect_idle(&p);
    process_shut_down(&p);
}

static void test_tokens_and_back(void **state)
{
    static const char text[] = "Where is my parcel?";
    engine_process p = process_ready(NULL, NULL);
    ol_wire_text_op op = {.add_bos = false, .skip_special = true};
    ol_buf payload = {0}, ids = {0}, back = {0};

    (void)state;
    ol_wire_put_text_op(&payload, &op);
    process_send_data(&p, 4, 1, text, strlen(text));
    process_send(&p, 4, 1, OL_FRAME_TOKENIZE, &payload);
    process_expect(&p, OL_FRAME_DATA);
    ol_buf_put(&ids, process_in.payload, process_in.frame.length);
    process_expect(&p, OL_FRAME_END);
    assert_true(ids.len > 0 && ids.len % 4 == 0);
    process_send_data(&p, 4, 2, ids.data, ids.len);
    process_send(&p, 4, 2, OL_FRAME_DETOKENIZE, &payload);
    process_expect(&p, OL_FRAME_DATA);
    ol_buf_put(&back, process_in.payload, process_in.frame.length);
    process_expect(&p, OL_FRAME_END);
    assert_int_equal(back.len, strlen(text));
    assert_memory_equal(back.data, text, back.len);
    process_send(&p, 4, 3, OL_FRAME_TOKENIZE, &payload); /* no upload: no tokens */
    process_expect(&p, OL_FRAME_END);
    ol_buf_free(&payload);
    ol_buf_free(&ids);
    ol_buf_free(&back);
    process_shut_down(&p);
}

/* Answers larger than the ring, to a reader that is slow. */
static void test_long_answer(void **state)
{
    enum { LEN = 1 << 20 };
    engine_process p = process_ready(NULL, NULL);
    ol_wire_text_op op = {0};
    char *text = malloc(LEN);
    ol_buf payload = {0};
    size_t bytes = 0;

    (void)state;
    memset(text, 'x', LEN);
    ol_wire_put_text_op(&payload, &op);
    process_send_data(&p, 4, 1, text, LEN);
    process_send(&p, 4, 1, OL_FRAME_TOKENIZE, &payload);
    usleep(200000);
    for (;;) {
        assert_true(process_receive(&p));
        if (process_in.frame.type == OL_FRAME_END)
            break;
        assert_int_equal(process_in.frame.type, OL_FRAME_DATA);
        bytes += process_in.frame.length;
    }
    assert_true(bytes > OL_CHANNEL_FROM_ENGINE / 2);
    free(text);
    ol_buf_free(&payload);
    process_shut_down(&p);
}

static void test_cancel_and_session_end(void **state)
{
    engine_process p = process_ready(NULL, NULL);
    ol_request q = util_text_request("Hello", 200);

    (void)state;
    process_send_request(&p, 1, 1, &q);
    (void)process_expect_event(&p, 1, 1);
    process_send(&p, 1, 1, OL_FRAME_CANCEL, NULL);
    for (uint64_t tag = 2; tag < 6; tag++)
        process_send_request(&p, 2, tag, &q);
    process_send_data(&p, 2, 9, "left behind", 11);
    process_send(&p, 2, 0, OL_FRAME_SESSION_END, NULL);
    process_send(&p, 1, 77, OL_FRAME_CANCEL, NULL); /* nobody */
    drain(&p);                                      /* after that nothing of the others can come */
    process_expect_idle(&p);
    process_shut_down(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generate),
        cmocka_unit_test(test_adapter_flow),
        cmocka_unit_test(test_adapter_check),
        cmocka_unit_test(test_tokens_and_back),
        cmocka_unit_test(test_long_answer),
        cmocka_unit_test(test_cancel_and_session_end),
        cmocka_unit_test(test_request_during_a_check),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
