/*
 * fake_engine.c: stands in for openlora-engine and breaks the protocol, to see that the
 * worker and the backends take nothing on trust.
 *
 * Started as the engine is (openlora.engine_path); the last part of --model says how it
 * behaves. Each behaviour is a function that is called for every frame, beginning with a
 * frame of type 0 when it starts.
 */
#include "wire/channel.h"
#include "wire/message.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct fake {
    ol_channel channel;
    ol_buf buf;
} fake;

typedef void (*behaviour)(fake *f, const ol_frame *frame);

/* -- sending ------------------------------------------------------------------------------ */

static void send_bytes(fake *f, ol_frame frame, uint16_t type, const void *bytes, size_t len)
{
    frame.type = type;
    frame.version = OL_WIRE_VERSION;
    frame.length = (uint32_t)len;
    if (!ol_channel_send(&f->channel, &frame, bytes))
        exit(3);
}

static void send_buf(fake *f, const ol_frame *to, uint16_t type)
{
    send_bytes(f, *to, type, f->buf.data, f->buf.len);
    ol_buf_reset(&f->buf);
}

static void send_info(fake *f)
{
    static const ol_frame worker;
    ol_engine_info info = {.model_name = "fake",
                           .architecture = "llama",
                           .format = "none",
                           .parameters = 1,
                           .vocab = 10,
                           .hidden = 1,
                           .layers = 1,
                           .context = 100};

    memset(info.model_digest.bytes, 7, OL_DIGEST_BYTES);
    snprintf(info.device.name, sizeof(info.device.name), "fake");
    snprintf(info.device.description, sizeof(info.device.description), "fake device");
    ol_wire_put_info(&f->buf, &info);
    send_buf(f, &worker, OL_FRAME_INFO);
}

static void send_done(fake *f, const ol_frame *to, const char *text)
{
    ol_event e = {.kind = OL_EVENT_DONE,
                  .text = {text, strlen(text)},
                  .finish = OL_FINISH_EOS,
                  .prompt_tokens = 1,
                  .completion_tokens = 1};

    ol_wire_put_event(&f->buf, &e);
    send_buf(f, to, OL_FRAME_EVENT);
}

static void send_usage(fake *f, const ol_frame *to, int tokens)
{
    ol_event e = {.kind = OL_EVENT_USAGE, .prompt_tokens = 1, .completion_tokens = tokens};

    ol_wire_put_usage(&f->buf, &e);
    send_buf(f, to, OL_FRAME_RECEIPT);
}

/* Reports as a good engine would. */
static bool reported(fake *f, const ol_frame *frame)
{
    if (frame->type != 0 && frame->type != OL_FRAME_STATUS)
        return false;
    send_info(f);
    return true;
}

/* -- behaviours --------------------------------------------------------------------------- */

static void be_good(fake *f, const ol_frame *frame)
{
    if (!reported(f, frame) && frame->type == OL_FRAME_REQUEST)
        send_done(f, frame, "good");
}

static void be_silent(fake *f, const ol_frame *frame)
{
    (void)reported(f, frame);
}

static void send_no_info(fake *f, const ol_frame *frame)
{
    if (frame->type == 0)
        send_bytes(f, *frame, OL_FRAME_INFO, "\1\2\3", 3);
}

/* 30 of 120 bytes, and no further. */
static void load_for_ever(fake *f, const ol_frame *frame)
{
    static const char progress[16] = {30, 0, 0, 0, 0, 0, 0, 0, 120};

    if (frame->type == 0)
        send_bytes(f, *frame, OL_FRAME_PROGRESS, progress, sizeof(progress));
}

static void send_short_progress(fake *f, const ol_frame *frame)
{
    if (frame->type == 0)
        send_bytes(f, *frame, OL_FRAME_PROGRESS, "\1", 1);
}

static void send_other_version(fake *f, const ol_frame *frame)
{
    ol_frame other = *frame;

    if (reported(f, frame) || frame->type != OL_FRAME_REQUEST)
        return;
    other.version = OL_WIRE_VERSION + 1;
    other.type = OL_FRAME_EVENT;
    other.length = 0;
    (void)ol_channel_send(&f->channel, &other, NULL);
}

static void send_to_no_session(fake *f, const ol_frame *frame)
{
    ol_frame other = *frame;

    if (reported(f, frame) || frame->type != OL_FRAME_REQUEST)
        return;
    other.session = 0x7FFFFFFF;
    send_bytes(f, other, OL_FRAME_EVENT, NULL, 0);
}

/* To sessions, epochs and tags that are none of its business, then the answer. */
static void send_to_strangers(fake *f, const ol_frame *frame)
{
    if (reported(f, frame) || frame->type != OL_FRAME_REQUEST)
        return;
    for (uint32_t session = 1; session <= 50; session++) {
        ol_frame other = *frame;

        other.session = session;
        other.epoch = frame->epoch + 1000;
        send_done(f, &other, "of another epoch");
        other = *frame;
        other.tag = frame->tag + session;
        send_done(f, &other, "of another request");
    }
    send_done(f, frame, "mine");
}

static void send_malformed_event(fake *f, const ol_frame *frame)
{
    if (!reported(f, frame) && frame->type == OL_FRAME_REQUEST)
        send_bytes(f, *frame, OL_FRAME_EVENT, "\0\1\2\3\4\5\6\7", 8);
}

static void send_broken_text(fake *f, const ol_frame *frame)
{
    if (!reported(f, frame) && frame->type == OL_FRAME_REQUEST)
        send_done(f, frame, "\xC3(");
}

/* More tokens than were asked for. */
static void report_too_much(fake *f, const ol_frame *frame)
{
    if (reported(f, frame) || frame->type != OL_FRAME_REQUEST)
        return;
    send_usage(f, frame, 1000000);
    send_done(f, frame, "dear");
}

/* Of a request that nobody made. */
static void report_for_strangers(fake *f, const ol_frame *frame)
{
    ol_frame other = *frame;

    if (reported(f, frame) || frame->type != OL_FRAME_REQUEST)
        return;
    other.tag++;
    send_usage(f, &other, 1);
    send_done(f, frame, "somebody else's");
}

/* What was used twice. */
static void report_twice(fake *f, const ol_frame *frame)
{
    if (reported(f, frame) || frame->type != OL_FRAME_REQUEST)
        return;
    send_usage(f, frame, 1);
    send_usage(f, frame, 1);
    send_done(f, frame, "twice");
}

/* A digest that nobody named, and more shares than there are adapters. */
static void send_foreign_facts(fake *f, const ol_frame *frame)
{
    static const double shares[4] = {0.25, 0.25, 0.25, 0.25};
    ol_event need = {.kind = OL_EVENT_NEED_ADAPTER};
    ol_event done = {.kind = OL_EVENT_DONE, .text = {"taken", 5}, .n_shares = 4, .shares = shares};

    if (reported(f, frame) || frame->type != OL_FRAME_REQUEST)
        return;
    memset(need.digest.bytes, 9, OL_DIGEST_BYTES);
    ol_wire_put_event(&f->buf, &need);
    send_buf(f, frame, OL_FRAME_EVENT);
    ol_wire_put_event(&f->buf, &done);
    send_buf(f, frame, OL_FRAME_EVENT);
}

static void answer_with_wrong_frames(fake *f, const ol_frame *frame)
{
    if (reported(f, frame))
        return;
    if (frame->type == OL_FRAME_TOKENIZE || frame->type == OL_FRAME_ADAPTER_CHECK)
        send_bytes(f, *frame, OL_FRAME_INFO, "x", 1);
    if (frame->type == OL_FRAME_REQUEST) {
        send_bytes(f, *frame, OL_FRAME_ADAPTER_FACTS, "x", 1);
        send_bytes(f, *frame, 999, "x", 1);
        send_done(f, frame, "at last");
    }
}

/* Positions of the rings that cannot be. */
static void corrupt_rings(fake *f, const ol_frame *frame)
{
    if (reported(f, frame) || frame->type != OL_FRAME_REQUEST)
        return;
    memset(f->channel.memory, 0xFF, 192);
    memset((char *)f->channel.memory + ol_ring_bytes(OL_CHANNEL_TO_ENGINE), 0xFF, 192);
    ol_channel_wake(&f->channel);
}

/* Hangs with its end of the socket closed. */
static void hang_up(fake *f, const ol_frame *frame)
{
    if (reported(f, frame) || frame->type != OL_FRAME_REQUEST)
        return;
    close(f->channel.wake_fd);
    for (;;)
        pause();
}

static void leave(fake *f, const ol_frame *frame)
{
    if (!reported(f, frame) && frame->type == OL_FRAME_REQUEST)
        exit(0);
}

static const struct {
    const char *name;
    behaviour run;
} behaviours[] = {
    {"good", be_good},
    {"silent", be_silent},
    {"no-info", send_no_info},
    {"other-version", send_other_version},
    {"no-session", send_to_no_session},
    {"strangers", send_to_strangers},
    {"loading", load_for_ever},
    {"short-progress", send_short_progress},
    {"malformed-event", send_malformed_event},
    {"broken-text", send_broken_text},
    {"too-much", report_too_much},
    {"not-asked", report_for_strangers},
    {"twice", report_twice},
    {"foreign-facts", send_foreign_facts},
    {"wrong-frames", answer_with_wrong_frames},
    {"corrupt-rings", corrupt_rings},
    {"hang-up", hang_up},
    {"leave", leave},
};

/* -- the program ----------------------------------------------------------------------------- */

static const char *option(int argc, char **argv, const char *name)
{
    for (int i = 2; i + 1 < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return argv[i + 1];
    fprintf(stderr, "fake_engine: no %s\n", name);
    exit(2);
}

static void serve(fake *f, behaviour run)
{
    static uint8_t payload[OL_FRAME_PAYLOAD];
    ol_frame frame = {.type = 0};

    run(f, &frame);
    while (ol_channel_woken(&f->channel)) {
        struct pollfd wake = {.fd = f->channel.wake_fd, .events = POLLIN};

        while (ol_channel_receive(&f->channel, &frame, payload) == 1) {
            if (frame.type == OL_FRAME_SHUTDOWN)
                return;
            run(f, &frame);
        }
        if (ol_channel_may_sleep(&f->channel))
            (void)poll(&wake, 1, -1);
    }
}

int main(int argc, char **argv)
{
    int ring_fd = atoi(option(argc, argv, "--ring-fd"));
    int wake_fd = atoi(option(argc, argv, "--wake-fd"));
    const char *model = option(argc, argv, "--model"), *name = strrchr(model, '/');
    fake f = {0};
    ol_error err;

    name = name ? name + 1 : model;
    if (ol_channel_attach(&f.channel, ring_fd, wake_fd, &err) != OL_OK)
        return 2;
    for (size_t i = 0; i < sizeof(behaviours) / sizeof(behaviours[0]); i++)
        if (strcmp(behaviours[i].name, name) == 0) {
            fprintf(stderr, "fake_engine: %s\n", name); /* whoever waits for it reads the log */
            serve(&f, behaviours[i].run);
            return 0;
        }
    fprintf(stderr, "fake_engine: no behaviour \"%s\"\n", name);
    return 2;
}
