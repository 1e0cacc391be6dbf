/*
 * serve_frames.c: from frames to calls of the engine, and from its events to frames.
 *
 * Lengths in a frame are compared with what has arrived, never used to allocate.
 */
#include "engine/main/serve.h"

#include "base/arena.h"

static ol_frame address_of(const tag_entry *e)
{
    return (ol_frame){.session = e->session, .epoch = e->epoch, .tag = e->tag};
}

/* -- failures ------------------------------------------------------------------------------ */

/* A request's failure is an event; anything else's a frame of its own. */
static void send_failure(server *s, const ol_frame *to, bool request, const ol_error *err)
{
    ol_event e = {.kind = OL_EVENT_FAILED, .error = *err};

    if (request)
        ol_wire_put_event(&s->out.payload, &e);
    else
        ol_wire_put_error(&s->out.payload, err);
    outbox_send(&s->out, to, request ? OL_FRAME_EVENT : OL_FRAME_FAILED);
}

/* The session may be in the middle of an upload, not knowing yet. */
static void remove_or_bury(server *s, tag_entry *e)
{
    if (e->needs == 0 && e->upload.len == 0) {
        tag_remove(s->tags, e);
        return;
    }
    tag_drop_upload(s->tags, e);
    e->live = false;
    e->dead = true;
}

/* What was used of it is told while its address is known. */
static void cancel(server *s, const tag_entry *e)
{
    ol_engine_cancel(s->engine, e->number);
    serve_events(s);
}

/* Ends a request that is alive in the engine, on our own account. */
static void fail_request(server *s, tag_entry *e, const ol_error *err)
{
    ol_frame to = address_of(e);

    cancel(s, e);
    send_failure(s, &to, true, err);
    remove_or_bury(s, e);
}

static void drop(server *s, tag_entry *e)
{
    if (e->live)
        cancel(s, e);
    tag_remove(s->tags, e);
}

/* -- uploads ---------------------------------------------------------------------------------- */

static ol_code check_room(const server *s, const tag_entry *e, size_t more, ol_error *err)
{
    size_t most =
        s->max_adapter_bytes > OL_MAX_PROMPT_BYTES ? s->max_adapter_bytes : OL_MAX_PROMPT_BYTES;
    size_t there = tag_uploaded(s->tags) + s->reading;

    if (e->upload.len + more > most) {
        ol_fail(err, OL_LIMIT, "the upload is larger than %zu bytes", most);
        return ol_hint(err, "Adapters and prompts have a limit in the server's configuration.");
    }
    if (there + tag_spare(s->tags) + more > s->max_uploads)
        tag_drop_spare(s->tags);
    if (there + more > s->max_uploads) {
        ol_fail(err, OL_LIMIT, "too many uploads at once");
        return ol_detail(err, "Together they may take %zu bytes.", s->max_uploads);
    }
    return OL_OK;
}

/* What follows of the upload is swallowed until the frame that would have consumed it. */
static void fail_upload(server *s, tag_entry *e, const ol_error *err)
{
    ol_frame to = address_of(e);
    bool request = e->live;

    if (e->live)
        cancel(s, e);
    e->live = false;
    e->dead = true;
    tag_drop_upload(s->tags, e);
    send_failure(s, &to, request, err);
}

static void take_data(server *s, const ol_frame *frame, const uint8_t *payload)
{
    tag_entry *e = tag_take(s->tags, frame);
    ol_error err;

    if (!e) {
        ol_fail_nomem(&err, frame->length, "an upload");
        send_failure(s, frame, false, &err);
        return;
    }
    if (e->dead)
        return;
    if (check_room(s, e, frame->length, &err) != OL_OK) {
        fail_upload(s, e, &err);
    } else if (!tag_upload(s->tags, e, payload, frame->length)) {
        ol_fail_nomem(&err, frame->length, "an upload");
        fail_upload(s, e, &err);
    }
}

/* -- requests ---------------------------------------------------------------------------- */

static ol_code submit(server *s, const tag_entry *e, ol_reader *r, const ol_frame *frame,
                      ol_error *err)
{
    ol_arena *arena = ol_arena_create();
    ol_request q;
    ol_code code;

    if (!arena)
        return ol_fail_nomem(err, frame->length, "a request");
    if (e->upload.len > 2 * OL_MAX_PROMPT_BYTES)
        code = ol_fail(err, OL_LIMIT, "the prompt is larger than %zu bytes", OL_MAX_PROMPT_BYTES);
    else if (!ol_wire_get_request(r, arena, e->upload.data, e->upload.len, &q))
        code = serve_malformed(frame, err);
    else {
        q.tag = e->number;
        code = ol_engine_submit(s->engine, &q, err);
    }
    ol_arena_destroy(arena);
    return code;
}

static void take_request(server *s, tag_entry *e, ol_reader *r, const ol_frame *frame)
{
    ol_error err;

    if (e->live || e->checking) {
        serve_malformed(frame, &err);
        tag_drop_upload(s->tags, e); /* this was the frame that ends it */
        fail_request(s, e, &err);
    } else if (submit(s, e, r, frame, &err) != OL_OK) {
        send_failure(s, frame, true, &err);
        tag_remove(s->tags, e);
    } else {
        e->live = true;
        tag_drop_upload(s->tags, e);
    }
}

/* -- adapters ---------------------------------------------------------------------------- */

static bool split_upload(const tag_entry *e, ol_reader *r, ol_wire_adapter *a)
{
    return ol_wire_get_adapter(r, a) && a->weights_len <= e->upload.len &&
           a->config_len == e->upload.len - a->weights_len;
}

/* The engine reads the upload beside its steps; serve_results tells what came of it. */
static ol_code offer_adapter(server *s, tag_entry *e, ol_reader *r, const ol_frame *frame,
                             ol_error *err)
{
    ol_adapter_offer offer = {.tag = e->number, .check = frame->type == OL_FRAME_ADAPTER_CHECK};
    size_t bytes = e->upload.len;
    ol_wire_adapter a;

    if (!split_upload(e, r, &a))
        return serve_malformed(frame, err);
    offer.expected = a.digest;
    offer.weights_len = (size_t)a.weights_len;
    offer.config_len = (size_t)a.config_len;
    offer.bytes = tag_take_upload(s->tags, e);
    OL_TRY(ol_engine_adapter_offer(s->engine, &offer, err));
    s->reading += bytes;
    return OL_OK;
}

/* An adapter for a request that is no more is not looked at. */
static void take_adapter(server *s, tag_entry *e, ol_reader *r, const ol_frame *frame)
{
    ol_error err;

    if (e->needs > 0)
        e->needs--;
    if (!e->live) {
        tag_remove(s->tags, e);
        return;
    }
    if (offer_adapter(s, e, r, frame, &err) == OL_OK)
        return;
    tag_drop_upload(s->tags, e);
    fail_request(s, e, &err);
}

static void check_adapter(server *s, tag_entry *e, ol_reader *r, const ol_frame *frame)
{
    ol_error err;
    ol_code code;

    if (e->live || e->checking)
        code = serve_malformed(frame, &err);
    else
        code = offer_adapter(s, e, r, frame, &err);
    e->checking = code == OL_OK;
    if (code == OL_OK)
        return;
    send_failure(s, frame, e->live, &err);
    drop(s, e);
}

static void tell_check(server *s, tag_entry *e, const ol_adapter_result *result)
{
    ol_frame to = address_of(e);

    if (result->code == OL_OK) {
        ol_wire_put_facts(&s->out.payload, &result->facts);
        outbox_send(&s->out, &to, OL_FRAME_ADAPTER_FACTS);
    } else {
        send_failure(s, &to, false, &result->error);
    }
    tag_remove(s->tags, e);
}

void serve_results(server *s)
{
    ol_adapter_result result;

    while (ol_engine_adapter_result(s->engine, &result)) {
        tag_entry *e = tag_of_number(s->tags, result.tag);

        s->reading -= result.bytes;
        tag_give_back(s->tags, result.offered, result.bytes);
        if (e && result.check)
            tell_check(s, e, &result);
        else if (e && e->live && result.code != OL_OK && result.code != OL_DEVICE)
            fail_request(s, e, &result.error); /* also if the engine has just said so itself */
    }
}

/* -- ends -------------------------------------------------------------------------------- */

static void end_session(server *s, const ol_frame *frame)
{
    tag_entry *e;
    size_t at = 0;

    while ((e = tag_next_of_session(s->tags, frame, &at)))
        drop(s, e);
}

void serve_info(server *s)
{
    ol_frame worker = {0};
    ol_engine_info info;

    ol_engine_info_get(s->engine, &info);
    ol_wire_put_info(&s->out.payload, &info);
    outbox_send(&s->out, &worker, OL_FRAME_INFO);
}

/* -- frames ------------------------------------------------------------------------------ */

/* Frames that consume the tag's upload and answer at once. */
static void take_call(server *s, tag_entry *e, ol_reader *r, const ol_frame *frame)
{
    ol_error err;
    ol_code code;

    code = e->live ? serve_malformed(frame, &err) : serve_call(s, e, r, frame, &err);
    if (code != OL_OK)
        send_failure(s, frame, e->live, &err);
    drop(s, e);
}

static void take_consumer(server *s, const ol_frame *frame, const uint8_t *payload)
{
    ol_reader r = ol_reader_over(payload, frame->length);
    tag_entry *e = tag_take(s->tags, frame);
    ol_error err;

    if (!e) {
        ol_fail_nomem(&err, sizeof(*e), "a request");
        send_failure(s, frame, frame->type == OL_FRAME_REQUEST, &err);
    } else if (e->dead && (frame->type != OL_FRAME_ADAPTER || --e->needs <= 0)) {
        if (frame->type == OL_FRAME_REQUEST) { /* for the worker: the session knows */
            ol_fail(&err, OL_INVALID, "the request's upload failed");
            send_failure(s, frame, true, &err);
        }
        tag_remove(s->tags, e);
    } else if (e->dead) {
        return; /* more of what was asked for is on its way */
    } else if (frame->type == OL_FRAME_REQUEST) {
        take_request(s, e, &r, frame);
    } else if (frame->type == OL_FRAME_ADAPTER) {
        take_adapter(s, e, &r, frame);
    } else if (frame->type == OL_FRAME_ADAPTER_CHECK) {
        check_adapter(s, e, &r, frame);
    } else {
        take_call(s, e, &r, frame);
    }
}

void serve_frame(server *s, const ol_frame *frame, const uint8_t *payload)
{
    tag_entry *e;

    switch (frame->type) {
    case OL_FRAME_DATA:
        take_data(s, frame, payload);
        break;
    case OL_FRAME_REQUEST:
    case OL_FRAME_ADAPTER:
    case OL_FRAME_ADAPTER_CHECK:
    case OL_FRAME_TOKENIZE:
    case OL_FRAME_DETOKENIZE:
    case OL_FRAME_STATS:
        take_consumer(s, frame, payload);
        break;
    case OL_FRAME_CANCEL:
        e = tag_find(s->tags, frame);
        if (e)
            drop(s, e);
        break;
    case OL_FRAME_SESSION_END:
        end_session(s, frame);
        break;
    case OL_FRAME_STATUS:
        serve_info(s);
        break;
    case OL_FRAME_SHUTDOWN:
        s->shutdown = true;
        break;
    default: /* the other direction's: nobody waits for an answer */
        break;
    }
}

/* -- events -------------------------------------------------------------------------------- */

/* For the worker, before the session hears of the end. */
static void send_receipt(server *s, const ol_frame *request, ol_event usage)
{
    usage.text.len = 0;
    ol_wire_put_usage(&s->out.payload, &usage);
    outbox_send(&s->out, request, OL_FRAME_RECEIPT);
}

void serve_events(server *s)
{
    ol_event event;

    while (ol_engine_poll(s->engine, &event)) {
        tag_entry *e = tag_of_number(s->tags, event.tag);
        ol_frame to;

        if (!e)
            continue;
        to = address_of(e);
        if (event.kind == OL_EVENT_USAGE) {
            send_receipt(s, &to, event);
            continue;
        }
        ol_wire_put_event(&s->out.payload, &event);
        outbox_send(&s->out, &to, OL_FRAME_EVENT);
        if (event.kind == OL_EVENT_NEED_ADAPTER)
            e->needs++;
        else if (event.kind != OL_EVENT_TOKEN)
            remove_or_bury(s, e);
    }
}
