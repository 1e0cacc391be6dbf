/*
 * test_engine_serve.c: `openlora-engine serve` as its worker meets it: a process of its own
 * behind a channel. The test plays worker and backends.
 */
#include "engine_util.h"
#include "noise.h"

#include "base/arena.h"
#include "wire/channel.h"
#include "wire/message.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MODEL "llama"

static ol_error err;

typedef struct engine_process {
    ol_channel channel;
    pid_t pid;
} engine_process;

/* A frame that came. */
typedef struct incoming {
    ol_frame frame;
    uint8_t payload[OL_FRAME_PAYLOAD];
} incoming;

static incoming in;

/* -- the process --------------------------------------------------------------------- */

static const char *program(void)
{
    static char path[4096];
    char exe[2048], *slash;
    ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);

    exe[n > 0 ? n : 0] = '\0';
    slash = strrchr(exe, '/');
    if (slash)
        *slash = '\0';
    snprintf(path, sizeof(path), "%s/../openlora-engine", exe);
    return path;
}

static engine_process start(const char *model, const char *option, const char *value)
{
    char ring[16], wake[16];
    int ring_fd, wake_fd;
    engine_process p;

    need_path(golden_path(MODEL));
    need_path(program());
    must(ol_channel_create(&p.channel, &ring_fd, &wake_fd, &err), &err);
    snprintf(ring, sizeof(ring), "%d", ring_fd);
    snprintf(wake, sizeof(wake), "%d", wake_fd);
    fflush(NULL);
    p.pid = fork();
    if (p.pid == 0) {
        const char *args[] = {program(), "serve",    "--ring-fd", ring,        "--wake-fd",
                              wake,      "--model",  model,       "--threads", "1",
                              "--isa",   "portable", option,      value,       NULL};
        int null = open("/dev/null", O_WRONLY);

        dup2(null, 2); /* the errors that the tests provoke */
        execv(args[0], (char *const *)(uintptr_t)args);
        _exit(127);
    }
    close(ring_fd);
    close(wake_fd);
    return p;
}

static int wait_exit(engine_process *p)
{
    int status = 0;

    for (int i = 0; i < 1000; i++) {
        if (waitpid(p->pid, &status, WNOHANG) == p->pid)
            return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
        usleep(10000);
    }
    kill(p->pid, SIGKILL);
    waitpid(p->pid, &status, 0);
    fail_msg("the engine did not end");
    return -1;
}

/* -- frames ---------------------------------------------------------------------------- */

static void send_frame(engine_process *p, uint32_t session, uint64_t tag, ol_frame_type type,
                       const ol_buf *payload)
{
    ol_frame frame = {.length = payload ? (uint32_t)payload->len : 0,
                      .type = (uint16_t)type,
                      .version = OL_WIRE_VERSION,
                      .session = session,
                      .epoch = 5,
                      .tag = tag};

    for (int i = 0; !ol_channel_send(&p->channel, &frame, payload ? payload->data : NULL); i++) {
        assert_true(i < 10000);
        usleep(1000);
    }
}

static void send_data(engine_process *p, uint32_t session, uint64_t tag, const void *bytes,
                      size_t len)
{
    for (size_t at = 0; at < len; at += OL_FRAME_PAYLOAD) {
        ol_buf piece = {.data = (uint8_t *)(uintptr_t)bytes + at,
                        .len = len - at < OL_FRAME_PAYLOAD ? len - at : OL_FRAME_PAYLOAD};

        send_frame(p, session, tag, OL_FRAME_DATA, &piece);
    }
}

/* The next frame; false when the engine closed. Fails after ten seconds. */
static bool receive(engine_process *p)
{
    struct pollfd wake = {.fd = p->channel.wake_fd, .events = POLLIN};

    for (int i = 0; i < 1000; i++) {
        int there = ol_channel_receive(&p->channel, &in.frame, in.payload);

        assert_true(there >= 0);
        if (there > 0)
            return true;
        if (ol_channel_may_sleep(&p->channel))
            (void)poll(&wake, 1, 10);
        if (!ol_channel_woken(&p->channel))
            return ol_channel_receive(&p->channel, &in.frame, in.payload) > 0;
    }
    fail_msg("nothing comes from the engine");
    return false;
}

/* Skips frames of other types of session 0. */
static void expect(engine_process *p, ol_frame_type type)
{
    do {
        if (!receive(p))
            fail_msg("the engine is gone; frame %d was expected", (int)type);
    } while (in.frame.session == 0 && in.frame.type != type);
    assert_int_equal(in.frame.type, type);
}

static ol_engine_info expect_info(engine_process *p)
{
    ol_reader r;
    ol_engine_info info;

    expect(p, OL_FRAME_INFO);
    r = ol_reader_over(in.payload, in.frame.length);
    assert_true(ol_wire_get_info(&r, &info));
    return info;
}

static ol_error expect_error(engine_process *p, ol_frame_type type)
{
    ol_reader r;
    ol_error error;

    expect(p, type);
    r = ol_reader_over(in.payload, in.frame.length);
    assert_true(ol_wire_get_error(&r, &error));
    return error;
}

static ol_event expect_event(engine_process *p, uint32_t session, uint64_t tag)
{
    static ol_wire_event_scratch scratch;
    ol_reader r;
    ol_event e;

    expect(p, OL_FRAME_EVENT);
    assert_int_equal(in.frame.session, session);
    assert_int_equal(in.frame.epoch, 5);
    assert_int_equal(in.frame.tag, tag);
    r = ol_reader_over(in.payload, in.frame.length);
    assert_true(ol_wire_get_event(&r, &scratch, &e));
    return e;
}

static engine_process start_ready(const char *option, const char *value)
{
    engine_process p = start(golden_path(MODEL), option, value);
    ol_engine_info info;

    expect(&p, OL_FRAME_PROGRESS);
    info = expect_info(&p);
    assert_int_equal(info.vocab, 288);
    assert_true(info.has_tokenizer);
    return p;
}

static void shut_down(engine_process *p)
{
    send_frame(p, 0, 0, OL_FRAME_SHUTDOWN, NULL);
    assert_int_equal(wait_exit(p), 0);
    ol_channel_close(&p->channel);
}

static void expect_idle(engine_process *p)
{
    ol_engine_info info;

    send_frame(p, 0, 0, OL_FRAME_STATUS, NULL);
    info = expect_info(p);
    assert_int_equal(info.running + info.waiting, 0);
    assert_int_equal(info.kv_pages_free, info.kv_pages);
}

/* -- requests ---------------------------------------------------------------------------- */

static ol_request text_request(const char *prompt, int max_tokens)
{
    ol_request q = {.prompt = {prompt, strlen(prompt)}, .sampling = ol_sampling_default()};

    q.sampling.max_tokens = max_tokens;
    q.sampling.ignore_eos = true;
    return q;
}

static void send_request(engine_process *p, uint32_t session, uint64_t tag, const ol_request *q)
{
    ol_buf payload = {0};

    send_data(p, session, tag, q->prompt.data, q->prompt.len);
    send_data(p, session, tag, q->completion.data, q->completion.len);
    ol_wire_put_request(&payload, q);
    send_frame(p, session, tag, OL_FRAME_REQUEST, &payload);
    ol_buf_free(&payload);
}

static void send_adapter(engine_process *p, uint32_t session, uint64_t tag, ol_frame_type type,
                         const char *path, const ol_digest *as)
{
    ol_buf weights, config, payload = {0};
    ol_wire_adapter a;
    ol_digest digest;

    util_read_adapter(path, &weights, &config, &digest);
    a = (ol_wire_adapter){as ? *as : digest, weights.len, config.len};
    send_data(p, session, tag, weights.data, weights.len);
    send_data(p, session, tag, config.data, config.len);
    ol_wire_put_adapter(&payload, &a);
    send_frame(p, session, tag, type, &payload);
    ol_buf_free(&payload);
    ol_buf_free(&weights);
    ol_buf_free(&config);
}

/* Takes events until the last, which it returns; the text goes to `text`. */
static ol_event run_to_end(engine_process *p, uint32_t session, uint64_t tag, ol_buf *text)
{
    for (;;) {
        ol_event e = expect_event(p, session, tag);

        if (e.kind == OL_EVENT_TOKEN || e.kind == OL_EVENT_DONE)
            ol_buf_put(text, e.text.data, e.text.len);
        if (e.kind != OL_EVENT_TOKEN)
            return e;
    }
}

static void test_generate(void **state)
{
    engine_process p = start_ready(NULL, NULL);
    ol_request q = text_request("Hello there", 30);
    ol_engine_options options = util_options(golden_path(MODEL));
    ol_engine *engine = util_open(&options);
    util_result want = {0};
    ol_buf text = {0};
    ol_event e;

    (void)state;
    util_submit(engine, &q);
    util_run(engine, &want, 1);
    send_request(&p, 3, 99, &q);
    e = run_to_end(&p, 3, 99, &text);
    assert_int_equal(e.kind, OL_EVENT_DONE);
    assert_int_equal(e.completion_tokens, 30);
    assert_int_equal(text.len, want.text.len);
    assert_memory_equal(text.data, want.text.data, text.len);
    ol_buf_free(&text);
    util_free(&want, 1);
    ol_engine_close(engine);
    expect_idle(&p);
    shut_down(&p);
}

static void test_adapter_flow(void **state)
{
    engine_process p = start_ready(NULL, NULL);
    ol_request q = text_request("Hello", 4);
    ol_adapter_use use = {.weight = 1};
    ol_buf weights, config, text = {0};
    ol_digest other = {{1}};
    ol_event e;

    (void)state;
    util_read_adapter(golden_path(MODEL "/adapters/a"), &weights, &config, &use.digest);
    q.adapters = &use;
    q.n_adapters = 1;
    send_request(&p, 1, 1, &q);
    e = expect_event(&p, 1, 1);
    assert_int_equal(e.kind, OL_EVENT_NEED_ADAPTER);
    assert_true(ol_digest_equal(&e.digest, &use.digest));
    send_adapter(&p, 1, 1, OL_FRAME_ADAPTER, golden_path(MODEL "/adapters/a"), NULL);
    e = run_to_end(&p, 1, 1, &text);
    assert_int_equal(e.kind, OL_EVENT_DONE);
    assert_int_equal(e.n_shares, 1);
    send_request(&p, 2, 1, &q); /* another session, the same tag: it is there now */
    e = run_to_end(&p, 2, 1, &text);
    assert_int_equal(e.kind, OL_EVENT_DONE);
    use.digest = other; /* bytes of another digest: the sender's request fails */
    send_request(&p, 1, 2, &q);
    e = expect_event(&p, 1, 2);
    assert_int_equal(e.kind, OL_EVENT_NEED_ADAPTER);
    send_adapter(&p, 1, 2, OL_FRAME_ADAPTER, golden_path(MODEL "/adapters/b"), &other);
    e = expect_event(&p, 1, 2);
    assert_int_equal(e.kind, OL_EVENT_FAILED);
    assert_true(strstr(e.error.detail, "digest") != NULL);
    ol_buf_free(&weights);
    ol_buf_free(&config);
    ol_buf_free(&text);
    expect_idle(&p);
    shut_down(&p);
}

static void test_adapter_check(void **state)
{
    engine_process p = start_ready(NULL, NULL);
    ol_adapter_facts facts;
    ol_reader r;

    (void)state;
    send_adapter(&p, 1, 7, OL_FRAME_ADAPTER_CHECK, golden_path(MODEL "/adapters/a"), NULL);
    expect(&p, OL_FRAME_ADAPTER_FACTS);
    assert_int_equal(in.frame.tag, 7);
    r = ol_reader_over(in.payload, in.frame.length);
    assert_true(ol_wire_get_facts(&r, &facts));
    assert_int_equal(facts.max_rank, 4);
    send_adapter(&p, 1, 8, OL_FRAME_ADAPTER_CHECK, golden_path("qwen3/adapters/a"), NULL);
    assert_true(expect_error(&p, OL_FRAME_FAILED).message[0]);
    shut_down(&p);
}

static void test_tokens_and_back(void **state)
{
    static const char text[] = "Where is my parcel?";
    engine_process p = start_ready(NULL, NULL);
    ol_wire_text_op op = {.add_bos = false, .skip_special = true};
    ol_buf payload = {0}, ids = {0}, back = {0};

    (void)state;
    ol_wire_put_text_op(&payload, &op);
    send_data(&p, 4, 1, text, strlen(text));
    send_frame(&p, 4, 1, OL_FRAME_TOKENIZE, &payload);
    expect(&p, OL_FRAME_DATA);
    ol_buf_put(&ids, in.payload, in.frame.length);
    expect(&p, OL_FRAME_END);
    assert_true(ids.len > 0 && ids.len % 4 == 0);
    send_data(&p, 4, 2, ids.data, ids.len);
    send_frame(&p, 4, 2, OL_FRAME_DETOKENIZE, &payload);
    expect(&p, OL_FRAME_DATA);
    ol_buf_put(&back, in.payload, in.frame.length);
    expect(&p, OL_FRAME_END);
    assert_int_equal(back.len, strlen(text));
    assert_memory_equal(back.data, text, back.len);
    send_frame(&p, 4, 3, OL_FRAME_TOKENIZE, &payload); /* no upload: no tokens */
    expect(&p, OL_FRAME_END);
    ol_buf_free(&payload);
    ol_buf_free(&ids);
    ol_buf_free(&back);
    shut_down(&p);
}

/* Answers larger than the ring, to a reader that is slow. */
static void test_long_answer(void **state)
{
    enum { LEN = 1 << 20 };
    engine_process p = start_ready(NULL, NULL);
    ol_wire_text_op op = {0};
    char *text = malloc(LEN);
    ol_buf payload = {0};
    size_t bytes = 0;

    (void)state;
    memset(text, 'x', LEN);
    ol_wire_put_text_op(&payload, &op);
    send_data(&p, 4, 1, text, LEN);
    send_frame(&p, 4, 1, OL_FRAME_TOKENIZE, &payload);
    usleep(200000);
    for (;;) {
        assert_true(receive(&p));
        if (in.frame.type == OL_FRAME_END)
            break;
        assert_int_equal(in.frame.type, OL_FRAME_DATA);
        bytes += in.frame.length;
    }
    assert_true(bytes > OL_CHANNEL_FROM_ENGINE / 2);
    free(text);
    ol_buf_free(&payload);
    shut_down(&p);
}

static void test_cancel_and_session_end(void **state)
{
    engine_process p = start_ready(NULL, NULL);
    ol_request q = text_request("Hello", 200);
    ol_wire_text_op op = {0};
    ol_buf payload = {0};

    (void)state;
    send_request(&p, 1, 1, &q);
    (void)expect_event(&p, 1, 1);
    send_frame(&p, 1, 1, OL_FRAME_CANCEL, NULL);
    for (uint64_t tag = 2; tag < 6; tag++)
        send_request(&p, 2, tag, &q);
    send_data(&p, 2, 9, "left behind", 11);
    send_frame(&p, 2, 0, OL_FRAME_SESSION_END, NULL);
    send_frame(&p, 1, 77, OL_FRAME_CANCEL, NULL); /* nobody */
    /* A call of another session: after its answer nothing of the others can come. */
    ol_wire_put_text_op(&payload, &op);
    send_frame(&p, 6, 1, OL_FRAME_TOKENIZE, &payload);
    do
        assert_true(receive(&p));
    while (in.frame.session != 6);
    expect_idle(&p);
    ol_buf_free(&payload);
    shut_down(&p);
}

/* What is wrong with a frame is answered to its tag and harms nobody else. */
static void test_malformed(void **state)
{
    engine_process p = start_ready("--max-adapter-bytes", "100000");
    ol_request q = text_request("Hello", 4);
    ol_buf garbage = {0}, text = {0}, payload = {0};
    static uint8_t piece[OL_FRAME_PAYLOAD];
    ol_event e;

    (void)state;
    for (int i = 0; i < 100; i++)
        ol_buf_put_u8(&garbage, (uint8_t)(i * 37));
    send_frame(&p, 1, 1, OL_FRAME_REQUEST, &garbage);
    assert_int_equal(expect_event(&p, 1, 1).kind, OL_EVENT_FAILED);
    send_frame(&p, 1, 2, OL_FRAME_ADAPTER_CHECK, &garbage);
    (void)expect_error(&p, OL_FRAME_FAILED);
    send_frame(&p, 1, 3, OL_FRAME_TOKENIZE, &garbage);
    (void)expect_error(&p, OL_FRAME_FAILED);
    send_frame(&p, 1, 4, OL_FRAME_ADAPTER, &garbage); /* for no request: no answer */
    send_frame(&p, 1, 5, OL_FRAME_INFO, &garbage);
    send_frame(&p, 1, 6, (ol_frame_type)999, &garbage);
    /* A prompt longer than was uploaded. */
    ol_wire_put_request(&payload, &q);
    send_data(&p, 1, 7, "Hell", 4);
    send_frame(&p, 1, 7, OL_FRAME_REQUEST, &payload);
    assert_int_equal(expect_event(&p, 1, 7).kind, OL_EVENT_FAILED);
    /* An upload without end: refused, then swallowed up to the frame that ends it. */
    for (int i = 0; i < 300; i++)
        send_data(&p, 1, 8, piece, sizeof(piece));
    assert_int_equal(expect_error(&p, OL_FRAME_FAILED).code, OL_LIMIT);
    send_frame(&p, 1, 8, OL_FRAME_REQUEST, &payload);
    assert_int_equal(expect_event(&p, 1, 8).kind, OL_EVENT_FAILED); /* whoever meters knows */
    send_request(&p, 1, 9, &q);
    e = run_to_end(&p, 1, 9, &text);
    assert_int_equal(e.kind, OL_EVENT_DONE);
    expect_idle(&p);
    ol_buf_free(&garbage);
    ol_buf_free(&payload);
    ol_buf_free(&text);
    shut_down(&p);
}

/* Takes what has come and forgets it. */
static void drain(engine_process *p)
{
    int there;

    while ((there = ol_channel_receive(&p->channel, &in.frame, in.payload)) > 0)
        ;
    assert_int_equal(there, 0);
}

/* A payload of the type's kind, often with a few bytes changed or cut. */
static void noisy_payload(ol_buf *payload, ol_frame_type type)
{
    ol_adapter_use uses[2] = {{.weight = 1}, {.weight = 0.5f}};
    ol_request q = text_request("", pick(20));
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
    engine_process p = start_ready("--adapter-bytes", "100000");
    ol_request q = text_request("Hello", 4);
    ol_buf payload = {0}, text = {0};

    (void)state;
    for (int i = 0; i < 30000; i++) {
        ol_frame_type type = (ol_frame_type)(1 + pick(pick(3) ? 8 : OL_FRAME_TYPE_LAST + 2));

        if (type == OL_FRAME_SHUTDOWN)
            continue;
        noisy_payload(&payload, pick(10) ? type : (ol_frame_type)pick(20));
        send_frame(&p, (uint32_t)pick(3), (uint64_t)pick(5), type, &payload);
        drain(&p);
    }
    for (uint32_t session = 0; session < 3; session++)
        send_frame(&p, session, 0, OL_FRAME_SESSION_END, NULL);
    send_request(&p, 9, 1, &q);
    do
        assert_true(receive(&p));
    while (in.frame.session != 9);
    (void)run_to_end(&p, 9, 1, &text);
    expect_idle(&p);
    ol_buf_free(&payload);
    ol_buf_free(&text);
    shut_down(&p);
}

static void test_refused_request(void **state)
{
    engine_process p = start_ready(NULL, NULL);
    ol_request q = text_request("Hello", 4);
    ol_event e;

    (void)state;
    q.sampling.temperature = -1;
    send_request(&p, 1, 1, &q);
    e = expect_event(&p, 1, 1);
    assert_int_equal(e.kind, OL_EVENT_FAILED);
    assert_int_equal(e.error.code, OL_INVALID);
    shut_down(&p);
}

/* -- ends ---------------------------------------------------------------------------------- */

static void test_broken_model(void **state)
{
    engine_process p = start("/nonexistent/model", NULL, NULL);
    ol_error error = expect_error(&p, OL_FRAME_BROKEN);

    (void)state;
    assert_int_equal(error.code, OL_NOT_FOUND);
    assert_int_equal(wait_exit(&p), 1);
    ol_channel_close(&p.channel);
}

static void test_worker_goes_away(void **state)
{
    engine_process p = start_ready(NULL, NULL);
    ol_request q = text_request("Hello", 200);

    (void)state;
    for (uint64_t tag = 1; tag < 4; tag++)
        send_request(&p, 1, tag, &q);
    (void)expect_event(&p, 1, 1);
    ol_channel_close(&p.channel);
    assert_int_equal(wait_exit(&p), 0);
}

static void test_corrupt_ring(void **state)
{
    engine_process p = start_ready(NULL, NULL);
    ol_frame frame = {.version = OL_WIRE_VERSION + 1, .type = OL_FRAME_STATUS};

    (void)state;
    assert_true(ol_channel_send(&p.channel, &frame, NULL));
    assert_int_equal(wait_exit(&p), 1); /* and no BROKEN: another may do better */
    ol_channel_close(&p.channel);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generate),         cmocka_unit_test(test_adapter_flow),
        cmocka_unit_test(test_adapter_check),    cmocka_unit_test(test_tokens_and_back),
        cmocka_unit_test(test_long_answer),      cmocka_unit_test(test_cancel_and_session_end),
        cmocka_unit_test(test_malformed),        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_refused_request),  cmocka_unit_test(test_broken_model),
        cmocka_unit_test(test_worker_goes_away), cmocka_unit_test(test_corrupt_ring),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
