/*
 * cmd_serve.c: the mode in which the extension's worker runs the engine.
 *
 * One thread, one loop: take frames, do a step, send events; when there is nothing to do,
 * wait on the wake socket. Its end of file is the worker's end, and ours.
 */
#include "engine/main/cli.h"

#include "base/log.h"
#include "engine/main/serve.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

static const char help[] =
    "usage: openlora-engine serve --ring-fd N --wake-fd N --model PATH [OPTIONS]\n\n"
    "Started by the extension's worker, not by hand: it speaks over inherited descriptors.\n\n"
    "      --ring-fd N  --wake-fd N\n"
    "      --max-adapter-bytes BYTES   one adapter's upload at most\n"
    "      --stall-seconds N           ends when a GPU's step takes longer (default: "
    "600)\n" CLI_ENGINE_HELP;

enum { OPT_RING_FD = 1, OPT_WAKE_FD, OPT_MAX_ADAPTER_BYTES, OPT_STALL_SECONDS };

static const struct option own_options[] = {
    {"ring-fd", required_argument, NULL, OPT_RING_FD},
    {"wake-fd", required_argument, NULL, OPT_WAKE_FD},
    {"max-adapter-bytes", required_argument, NULL, OPT_MAX_ADAPTER_BYTES},
    {"stall-seconds", required_argument, NULL, OPT_STALL_SECONDS},
    {0},
};

#define DEFAULT_ADAPTER_BYTES ((size_t)1 << 30)
#define OTHER_UPLOADS ((size_t)256 << 20) /* prompts, texts */
#define STALL_SECONDS 600
#define MAX_WAITING ((size_t)32 << 20) /* answers that wait; then no more questions */

typedef struct job {
    ol_engine_options engine;
    int ring_fd, wake_fd, stall_seconds;
    server server;
    uint8_t *payload; /* [OL_FRAME_PAYLOAD] */
    uint64_t told_us; /* when progress was last told */
} job;

/* -- options ------------------------------------------------------------------------------ */

static bool take_option(int c, char *arg, void *context)
{
    job *j = context;

    switch (c) {
    case OPT_RING_FD:
        return cli_int("ring-fd", arg, 0, INT32_MAX, &j->ring_fd);
    case OPT_WAKE_FD:
        return cli_int("wake-fd", arg, 0, INT32_MAX, &j->wake_fd);
    case OPT_MAX_ADAPTER_BYTES:
        return cli_size("max-adapter-bytes", arg, &j->server.max_adapter_bytes);
    case OPT_STALL_SECONDS:
        return cli_int("stall-seconds", arg, 1, 86400, &j->stall_seconds);
    default:
        return false;
    }
}

/* -1: go on, else the exit status. */
static int take_options(int argc, char **argv, job *j)
{
    cli_options options = {help, own_options, take_option, j, &j->engine};
    int status = cli_take_options(argc, argv, &options);

    if (status >= 0)
        return status;
    if (j->ring_fd < 0 || j->wake_fd < 0 || !j->engine.model_path || optind < argc)
        return cli_usage(argv[0], "--ring-fd, --wake-fd and --model are needed");
    return -1;
}

/* -- the process ----------------------------------------------------------------------------- */

/* A device that hangs would hold everybody, and no call returns of which it could be told: the
 * process ends, and with it its work on the device. */
static void stalled(int number)
{
    static const char why[] = "fatal: the device has not ended a step in --stall-seconds\n";
    ssize_t ignored = write(STDERR_FILENO, why, sizeof(why) - 1);

    (void)number;
    (void)ignored;
    _exit(EXIT_FAILED);
}

/* Who starts us has seen to our end with it, and to who goes first when memory runs out
 * (base/child.h). The terminal's signals are not ours, and a broken pipe is an error like others.
 */
static void become_server(void)
{
    prctl(PR_SET_NAME, "openlora-engine");
    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGALRM, stalled);
}

static void send_log(ol_log_level level, const char *message, void *context)
{
    static const ol_frame worker;
    outbox *out = context;

    ol_buf_put_u8(&out->payload, (uint8_t)level);
    ol_buf_put_blob(&out->payload, message, strlen(message));
    outbox_send(out, &worker, OL_FRAME_LOG);
}

/* Ten times a second, and at the end. */
static void send_progress(void *context, size_t done, size_t total)
{
    static const ol_frame worker;
    job *j = context;
    struct timespec t;
    uint64_t now;

    clock_gettime(CLOCK_MONOTONIC, &t);
    now = (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
    if (done < total && now - j->told_us < 100000)
        return;
    j->told_us = now;
    ol_buf_put_u64(&j->server.out.payload, done);
    ol_buf_put_u64(&j->server.out.payload, total);
    outbox_send(&j->server.out, &worker, OL_FRAME_PROGRESS);
}

/* -- the loop ---------------------------------------------------------------------------- */

static ol_code take_frames(job *j, ol_error *err)
{
    server *s = &j->server;
    ol_frame frame;
    int there = 1;

    /* Some at a time: a step is never far away. */
    for (int i = 0; i < 256 && there == 1; i++) {
        if (s->shutdown || outbox_waiting(&s->out) > MAX_WAITING)
            break;
        there = ol_channel_receive(&s->channel, &frame, j->payload);
        if (there < 0 || (there > 0 && frame.version != OL_WIRE_VERSION))
            return ol_fail(err, OL_CORRUPT, "the channel from the worker is corrupt");
        if (there > 0)
            serve_frame(s, &frame, j->payload);
    }
    return OL_OK;
}

/* Waits for the worker, or at most `ms` (-1: for ever); false when the worker is gone. The channel
 * tells of frames to read and of room for ours, the engine of adapters that it has read. Frames
 * that we would not read (see take_frames) need not wake us. */
static bool wait_for_worker(server *s, int ms)
{
    struct pollfd wake[2] = {
        {.fd = s->channel.wake_fd, .events = POLLIN},
        {.fd = s->engine ? ol_engine_adapter_fd(s->engine) : -1, .events = POLLIN}};
    bool deaf = outbox_waiting(&s->out) > MAX_WAITING;

    if (deaf || ol_channel_may_sleep(&s->channel)) {
        if (poll(wake, 2, ms) < 0 && errno != EINTR)
            return false;
    }
    return ol_channel_woken(&s->channel);
}

/* A device that may hang is watched. */
static ol_code watched_step(const job *j, ol_error *err)
{
    ol_code code;

    if (j->stall_seconds == 0)
        return ol_engine_step(j->server.engine, err);
    alarm((unsigned)j->stall_seconds);
    code = ol_engine_step(j->server.engine, err);
    alarm(0);
    return code;
}

/* A step when there is something to compute, or when one is due after a wait. */
static ol_code work_or_wait(job *j, bool *gone, ol_error *err)
{
    server *s = &j->server;
    bool blocked = !outbox_flush(&s->out);
    ol_code code;

    if (blocked || !ol_engine_busy(s->engine)) {
        *gone =
            !s->shutdown && !wait_for_worker(s, blocked ? -1 : ol_engine_patience_ms(s->engine));
        if (blocked)
            return OL_OK;
    }
    code = watched_step(j, err);
    if (code == OL_OK)
        serve_events(s);
    return code;
}

static ol_code loop(job *j, ol_error *err)
{
    server *s = &j->server;
    bool gone = false;

    while (!s->shutdown && !gone && ol_channel_woken(&s->channel)) {
        OL_TRY(take_frames(j, err));
        serve_results(s);
        serve_events(s);
        OL_TRY(work_or_wait(j, &gone, err));
        if (outbox_failed(&s->out))
            return ol_fail(err, OL_NOMEM, "out of memory for answers");
    }
    return OL_OK;
}

/* The worker reads why before it sees us go. */
static void send_broken(server *s, const ol_error *err)
{
    ol_frame worker = {0};

    ol_wire_put_error(&s->out.payload, err);
    outbox_send(&s->out, &worker, OL_FRAME_BROKEN);
    while (!outbox_flush(&s->out))
        if (!wait_for_worker(s, -1))
            return;
}

static ol_code start(job *j, ol_error *err)
{
    server *s = &j->server;
    ol_engine_info info;
    size_t adapters = j->engine.adapter_bytes ? j->engine.adapter_bytes
                      : j->engine.cache_bytes ? j->engine.cache_bytes
                                              : DEFAULT_ADAPTER_BYTES;

    if (!s->max_adapter_bytes)
        s->max_adapter_bytes = adapters;
    s->max_uploads = 2 * (adapters + s->max_adapter_bytes) + OTHER_UPLOADS;
    s->tags = tag_table_create();
    j->payload = malloc(OL_FRAME_PAYLOAD);
    if (!s->tags || !j->payload)
        return ol_fail_nomem(err, OL_FRAME_PAYLOAD, "the server");
    j->engine.progress = send_progress;
    j->engine.progress_context = j;
    OL_TRY(ol_engine_open(&j->engine, &s->engine, err));
    ol_engine_info_get(s->engine, &info);
    if (!info.device.own_memory) /* a processor does not hang, however long it takes */
        j->stall_seconds = 0;
    serve_info(s);
    return OL_OK;
}

/* While it loads, what goes wrong would go wrong again: BROKEN. Later it is an accident, and the
 * worker will start another. */
static int run(job *j)
{
    server *s = &j->server;
    ol_error err;

    if (start(j, &err) != OL_OK) {
        send_broken(s, &err);
        return cli_fail(&err);
    }
    return loop(j, &err) == OL_OK ? EXIT_OK : cli_fail(&err);
}

static int serve(job *j)
{
    server *s = &j->server;
    ol_error err;
    int status;

    become_server();
    if (ol_channel_attach(&s->channel, j->ring_fd, j->wake_fd, &err) != OL_OK)
        return cli_fail(&err);
    s->out.channel = &s->channel;
    ol_log_set(send_log, &s->out);
    status = run(j);
    if (status != EXIT_OK) { /* a device that has failed may hang when it is closed */
        fflush(NULL);
        _exit(status);
    }
    ol_log_set(NULL, NULL);
    ol_engine_close(s->engine);
    tag_table_free(s->tags);
    outbox_free(&s->out);
    ol_channel_close(&s->channel);
    return status;
}

int cmd_serve(int argc, char **argv)
{
    job *j = calloc(1, sizeof(*j));
    int status;

    if (!j)
        return EXIT_FAILED;
    j->engine = cli_engine_defaults();
    j->ring_fd = j->wake_fd = -1;
    j->stall_seconds = STALL_SECONDS;
    status = take_options(argc, argv, j);
    if (status < 0)
        status = serve(j);
    free(j->payload);
    free(j);
    return status;
}
