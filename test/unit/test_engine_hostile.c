/* test_engine_hostile.c: what the engine's process makes of frames that are wrong, of noise, of a
 * model that is not there, of a device that hangs, and of a worker that goes away. */
#include "engine_process.h"
#include "noise.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

/* What is wrong with a frame is answered to its tag and harms nobody else. */
static void test_malformed(void **state)
{
    engine_process p = process_ready("--max-adapter-bytes", "100000");
    ol_request q = util_text_request("Hello", 4);
    ol_buf garbage = {0}, text = {0}, payload = {0};
    static uint8_t piece[OL_FRAME_PAYLOAD];
    ol_event e;

    (void)state;
    for (int i = 0; i < 100; i++)
        ol_buf_put_u8(&garbage, (uint8_t)(i * 37));
    process_send(&p, 1, 1, OL_FRAME_REQUEST, &garbage);
    assert_int_equal(process_expect_event(&p, 1, 1).kind, OL_EVENT_FAILED);
    process_send(&p, 1, 2, OL_FRAME_ADAPTER_CHECK, &garbage);
    (void)process_expect_error(&p, OL_FRAME_FAILED);
    process_send(&p, 1, 3, OL_FRAME_TOKENIZE, &garbage);
    (void)process_expect_error(&p, OL_FRAME_FAILED);
    process_send(&p, 1, 4, OL_FRAME_ADAPTER, &garbage); /* for no request: no answer */
    process_send(&p, 1, 5, OL_FRAME_INFO, &garbage);
    process_send(&p, 1, 6, (ol_frame_type)999, &garbage);
    /* A prompt longer than was uploaded. */
    ol_wire_put_request(&payload, &q);
    process_send_data(&p, 1, 7, "Hell", 4);
    process_send(&p, 1, 7, OL_FRAME_REQUEST, &payload);
    assert_int_equal(process_expect_event(&p, 1, 7).kind, OL_EVENT_FAILED);
    /* An upload without end: refused, then swallowed up to the frame that ends it. */
    for (int i = 0; i < 300; i++)
        process_send_data(&p, 1, 8, piece, sizeof(piece));
    assert_int_equal(process_expect_error(&p, OL_FRAME_FAILED).code, OL_LIMIT);
    process_send(&p, 1, 8, OL_FRAME_REQUEST, &payload);
    assert_int_equal(process_expect_event(&p, 1, 8).kind,
                     OL_EVENT_FAILED); /* whoever meters knows */
    process_send_request(&p, 1, 9, &q);
    e = process_run(&p, 1, 9, &text);
    assert_int_equal(e.kind, OL_EVENT_DONE);
    process_expect_idle(&p);
    ol_buf_free(&garbage);
    ol_buf_free(&payload);
    ol_buf_free(&text);
    process_shut_down(&p);
}

/* Takes what has come and forgets it. */
static void drain(engine_process *p)
{
    int there;

    while ((there = ol_channel_receive(&p->channel, &process_in.frame, process_in.payload)) > 0)
        ;
    assert_int_equal(there, 0);
}

/* A payload of the type's kind, often with a few bytes changed or cut. */
static void noisy_payload(ol_buf *payload, ol_frame_type type)
{
    ol_adapter_use uses[2] = {{.weight = 1}, {.weight = 0.5f}};
    ol_request q = util_text_request("", pick(20));
    ol_wire_adapter a = {.weights_len = (uint64_t)pick(40), .config_len = (uint64_t)pick(40)};
    ol_wire_text_op op = {.add_bos = pick(2)};

    ol_buf_reset(payload);
    if (type == OL_FRAME_REQUEST) {
        q.prompt.len = (size_t)pick(40);
        q.adapters = uses;
        q.n_adapters = pick(6) ? 0 : pick(3);
        uses[1].digest.bytes[0] = 1;
        ol_wire_put_request(payload, &q);
    } else if (type == OL_FRAME_ADAPTER || type == OL_FRAME_ADAPTER_CHECK) {
        ol_wire_put_adapter(payload, &a);
    } else if (type == OL_FRAME_TOKENIZE || type == OL_FRAME_DETOKENIZE) {
        ol_wire_put_text_op(payload, &op);
    } else {
        for (int i = pick(60); i > 0; i--)
            ol_buf_put_u8(payload, (uint8_t)pick(256));
    }
    for (int i = pick(3) ? 0 : pick(4); i > 0 && payload->len; i--)
        payload->data[pick((int)payload->len)] = (uint8_t)pick(256);
    if (pick(8) == 0)
        payload->len = (size_t)pick((int)payload->len + 1);
}

/* Frames of every type at random, over few sessions and tags so that they meet. */
static void test_noise(void **state)
{
    engine_process p = process_ready("--adapter-bytes", "100000");
    ol_request q = util_text_request("Hello", 4);
    ol_buf payload = {0}, text = {0};

    (void)state;
    for (int i = 0; i < 30000; i++) {
        ol_frame_type type = (ol_frame_type)(1 + pick(pick(3) ? 8 : OL_FRAME_TYPE_LAST + 2));

        if (type == OL_FRAME_SHUTDOWN)
            continue;
        noisy_payload(&payload, pick(10) ? type : (ol_frame_type)pick(20));
        process_send(&p, (uint32_t)pick(3), (uint64_t)pick(5), type, &payload);
        drain(&p);
    }
    for (uint32_t session = 0; session < 3; session++)
        process_send(&p, session, 0, OL_FRAME_SESSION_END, NULL);
    process_send_request(&p, 9, 1, &q);
    do
        assert_true(process_receive(&p));
    while (process_in.frame.session != 9);
    (void)process_run(&p, 9, 1, &text);
    process_expect_idle(&p);
    ol_buf_free(&payload);
    ol_buf_free(&text);
    process_shut_down(&p);
}

static void test_refused_request(void **state)
{
    engine_process p = process_ready(NULL, NULL);
    ol_request q = util_text_request("Hello", 4);
    ol_event e;

    (void)state;
    q.sampling.temperature = -1;
    process_send_request(&p, 1, 1, &q);
    e = process_expect_event(&p, 1, 1);
    assert_int_equal(e.kind, OL_EVENT_FAILED);
    assert_int_equal(e.error.code, OL_INVALID);
    process_shut_down(&p);
}

static void test_broken_model(void **state)
{
    engine_process p = process_start("/nonexistent/model", NULL, NULL);
    ol_error error = process_expect_error(&p, OL_FRAME_BROKEN);

    (void)state;
    assert_int_equal(error.code, OL_NOT_FOUND);
    assert_int_equal(process_wait(&p), 1);
    ol_channel_close(&p.channel);
}

/* Where the CUDA device on the processor is; the test is skipped where there is none. */
static void simt_folder(char *out, size_t size)
{
    char so[4096];

    snprintf(out, size, "%s/../simt", util_program_dir());
    snprintf(so, sizeof(so), "%s/openlora_cuda.so", out);
    need_path(so);
}

/* A kernel that never ends: the process does. */
static void test_stalled_device(void **state)
{
    char dir[] = "/tmp/openlora-stall-XXXXXX", fault[64], go[64], simt[3000], option[3020];
    ol_request q = util_text_request("Hello there", 60);
    engine_process p;
    FILE *f;

    (void)state;
    simt_folder(simt, sizeof(simt));
    snprintf(option, sizeof(option), "--device-dir=%s", simt);
    assert_non_null(mkdtemp(dir));
    snprintf(fault, sizeof(fault), "@%s/fault", dir);
    snprintf(go, sizeof(go), "%s/fault.go", dir);
    f = fopen(fault + 1, "w");
    assert_non_null(f);
    fputs("hold:200", f); /* a launch after those of loading, until somebody writes there */
    fclose(f);
    assert_int_equal(mkfifo(go, 0600), 0);
    setenv("OL_SIMT_FAULT", fault, 1);
    p = process_ready("--stall-seconds=2", option);
    unsetenv("OL_SIMT_FAULT");
    process_send_request(&p, 1, 1, &q);
    assert_int_equal(process_wait(&p), 1);
    ol_channel_close(&p.channel);
    unlink(fault + 1);
    unlink(go);
    rmdir(dir);
}

static void test_worker_goes_away(void **state)
{
    engine_process p = process_ready(NULL, NULL);
    ol_request q = util_text_request("Hello", 200);

    (void)state;
    for (uint64_t tag = 1; tag < 4; tag++)
        process_send_request(&p, 1, tag, &q);
    (void)process_expect_event(&p, 1, 1);
    ol_channel_close(&p.channel);
    assert_int_equal(process_wait(&p), 0);
}

static void test_corrupt_ring(void **state)
{
    engine_process p = process_ready(NULL, NULL);
    ol_frame frame = {.version = OL_WIRE_VERSION + 1, .type = OL_FRAME_STATUS};

    (void)state;
    assert_true(ol_channel_send(&p.channel, &frame, NULL));
    assert_int_equal(process_wait(&p), 1); /* and no BROKEN: another may do better */
    ol_channel_close(&p.channel);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_malformed),       cmocka_unit_test(test_noise),
        cmocka_unit_test(test_refused_request), cmocka_unit_test(test_broken_model),
        cmocka_unit_test(test_stalled_device),  cmocka_unit_test(test_worker_goes_away),
        cmocka_unit_test(test_corrupt_ring),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
