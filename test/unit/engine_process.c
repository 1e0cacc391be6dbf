/* engine_process.c: see engine_process.h. */
#include "engine_process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

/* Nothing that is waited for takes as long on any machine: only what hangs is found by it. */
#define PATIENCE_S 300

process_frame process_in;

/* -- the process --------------------------------------------------------------------- */

engine_process process_start(const char *model, const char *option, const char *value)
{
    const char *program = util_engine_program();
    char ring[16], wake[16];
    int ring_fd, wake_fd;
    engine_process p;
    ol_error error;

    need_path(golden_path(PROCESS_MODEL));
    need_path(program);
    must(ol_channel_create(&p.channel, &ring_fd, &wake_fd, &error), &error);
    snprintf(ring, sizeof(ring), "%d", ring_fd);
    snprintf(wake, sizeof(wake), "%d", wake_fd);
    fflush(NULL);
    p.pid = fork();
    if (p.pid == 0) {
        const char *args[] = {program, "serve",    "--ring-fd", ring,        "--wake-fd",
                              wake,    "--model",  model,       "--threads", "1",
                              "--isa", "portable", option,      value,       NULL};
        int null = open("/dev/null", O_WRONLY);

        dup2(null, 2); /* the errors that the tests provoke */
        execv(args[0], (char *const *)(uintptr_t)args);
        _exit(127);
    }
    close(ring_fd);
    close(wake_fd);
    return p;
}

static pid_t awaited;

static void kill_awaited(int number)
{
    (void)number;
    kill(awaited, SIGKILL);
}

int process_wait(engine_process *p)
{
    int status;

    awaited = p->pid;
    signal(SIGALRM, kill_awaited); /* waitpid goes on, and returns what came of it */
    alarm(PATIENCE_S);
    assert_int_equal(waitpid(p->pid, &status, 0), p->pid);
    alarm(0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* -- frames ---------------------------------------------------------------------------- */

/* For a byte from the engine, or for its end. */
static void await_engine(const engine_process *p)
{
    struct pollfd wake = {.fd = p->channel.wake_fd, .events = POLLIN};

    if (poll(&wake, 1, PATIENCE_S * 1000) == 0)
        fail_msg("nothing comes from the engine");
}

void process_send(engine_process *p, uint32_t session, uint64_t tag, ol_frame_type type,
                  const ol_buf *payload)
{
    ol_frame frame = {.length = payload ? (uint32_t)payload->len : 0,
                      .type = (uint16_t)type,
                      .version = OL_WIRE_VERSION,
                      .session = session,
                      .epoch = 5,
                      .tag = tag};

    while (!ol_channel_send(&p->channel, &frame, payload ? payload->data : NULL)) {
        await_engine(p); /* it tells of room */
        assert_true(ol_channel_woken(&p->channel));
    }
}

void process_send_data(engine_process *p, uint32_t session, uint64_t tag, const void *bytes,
                       size_t len)
{
    for (size_t at = 0; at < len; at += OL_FRAME_PAYLOAD) {
        ol_buf piece = {.data = (uint8_t *)(uintptr_t)bytes + at,
                        .len = len - at < OL_FRAME_PAYLOAD ? len - at : OL_FRAME_PAYLOAD};

        process_send(p, session, tag, OL_FRAME_DATA, &piece);
    }
}

bool process_receive(engine_process *p)
{
    for (;;) {
        int there = ol_channel_receive(&p->channel, &process_in.frame, process_in.payload);

        assert_true(there >= 0);
        if (there > 0)
            return true;
        if (ol_channel_may_sleep(&p->channel))
            await_engine(p);
        if (!ol_channel_woken(&p->channel))
            return ol_channel_receive(&p->channel, &process_in.frame, process_in.payload) > 0;
    }
}

void process_expect(engine_process *p, ol_frame_type type)
{
    do {
        if (!process_receive(p))
            fail_msg("the engine is gone; frame %d was expected", (int)type);
    } while (process_in.frame.session == 0 && process_in.frame.type != type);
    assert_int_equal(process_in.frame.type, type);
}

ol_engine_info process_expect_info(engine_process *p)
{
    ol_reader r;
    ol_engine_info info;

    process_expect(p, OL_FRAME_INFO);
    r = ol_reader_over(process_in.payload, process_in.frame.length);
    assert_true(ol_wire_get_info(&r, &info));
    return info;
}

ol_error process_expect_error(engine_process *p, ol_frame_type type)
{
    ol_reader r;
    ol_error error;

    process_expect(p, type);
    r = ol_reader_over(process_in.payload, process_in.frame.length);
    assert_true(ol_wire_get_error(&r, &error));
    return error;
}

ol_event process_expect_event(engine_process *p, uint32_t session, uint64_t tag)
{
    static ol_wire_event_scratch scratch;
    ol_reader r;
    ol_event e;

    process_expect(p, OL_FRAME_EVENT);
    assert_int_equal(process_in.frame.session, session);
    assert_int_equal(process_in.frame.epoch, 5);
    assert_int_equal(process_in.frame.tag, tag);
    r = ol_reader_over(process_in.payload, process_in.frame.length);
    assert_true(ol_wire_get_event(&r, &scratch, &e));
    return e;
}

engine_process process_ready(const char *option, const char *value)
{
    engine_process p = process_start(golden_path(PROCESS_MODEL), option, value);
    ol_engine_info info;

    process_expect(&p, OL_FRAME_PROGRESS);
    info = process_expect_info(&p);
    assert_int_equal(info.vocab, 288);
    assert_true(info.has_tokenizer);
    return p;
}

void process_shut_down(engine_process *p)
{
    process_send(p, 0, 0, OL_FRAME_SHUTDOWN, NULL);
    assert_int_equal(process_wait(p), 0);
    ol_channel_close(&p->channel);
}

void process_expect_idle(engine_process *p)
{
    ol_engine_info info;

    process_send(p, 0, 0, OL_FRAME_STATUS, NULL);
    info = process_expect_info(p);
    assert_int_equal(info.running + info.waiting, 0);
    assert_int_equal(info.kv_pages_free, info.kv_pages);
}

/* -- requests ---------------------------------------------------------------------------- */

void process_send_request(engine_process *p, uint32_t session, uint64_t tag, const ol_request *q)
{
    ol_buf payload = {0};

    process_send_data(p, session, tag, q->prompt.data, q->prompt.len);
    process_send_data(p, session, tag, q->completion.data, q->completion.len);
    ol_wire_put_request(&payload, q);
    process_send(p, session, tag, OL_FRAME_REQUEST, &payload);
    ol_buf_free(&payload);
}

void process_send_adapter(engine_process *p, uint32_t session, uint64_t tag, ol_frame_type type,
                          const char *path, const ol_digest *as)
{
    ol_buf weights, config, payload = {0};
    ol_wire_adapter a;
    ol_digest digest;

    util_read_adapter(path, &weights, &config, &digest);
    a = (ol_wire_adapter){as ? *as : digest, weights.len, config.len};
    process_send_data(p, session, tag, weights.data, weights.len);
    process_send_data(p, session, tag, config.data, config.len);
    ol_wire_put_adapter(&payload, &a);
    process_send(p, session, tag, type, &payload);
    ol_buf_free(&payload);
    ol_buf_free(&weights);
    ol_buf_free(&config);
}

ol_event process_run(engine_process *p, uint32_t session, uint64_t tag, ol_buf *text)
{
    for (;;) {
        ol_event e = process_expect_event(p, session, tag);

        if (e.kind == OL_EVENT_TOKEN || e.kind == OL_EVENT_DONE)
            ol_buf_put(text, e.text.data, e.text.len);
        if (e.kind != OL_EVENT_TOKEN)
            return e;
    }
}
