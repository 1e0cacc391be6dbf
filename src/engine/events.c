/* events.c: see events.h. */
#include "engine/events.h"

#include <stdlib.h>
#include <string.h>

/* A piece of the buffer. */
typedef struct span {
    size_t at, len;
} span;

typedef struct record {
    uint64_t tag;
    ol_event_kind kind;
    bool dropped;
    int index, n_alternatives;
    int32_t token;
    float logprob;
    span text;  /* TOKEN, DONE, USAGE */
    span extra; /* TOKEN: alternatives; NEED_ADAPTER: digest; DONE, USAGE: done; FAILED: error */
} record;

typedef struct done {
    ol_finish finish;
    int prompt_tokens, completion_tokens, cached_tokens, n_shares;
    double logprob_sum;
    uint64_t queue_us, prefill_us, decode_us;
    ol_outcome outcome; /* USAGE */
    ol_digest digest;   /* USAGE */
    double shares[OL_MAX_REQUEST_ADAPTERS];
} done;

struct ol_events {
    record *ring; /* [size], a power of two */
    size_t size, head, n;
    ol_buf bytes;
    bool failed;
};

ol_code ol_events_create(ol_events **out, ol_error *err)
{
    ol_events *q = calloc(1, sizeof(*q));

    if (q)
        q->ring = calloc(64, sizeof(record));
    if (!q || !q->ring) {
        free(q);
        return ol_fail_nomem(err, 64 * sizeof(record), "events");
    }
    q->size = 64;
    *out = q;
    return OL_OK;
}

void ol_events_free(ol_events *q)
{
    if (!q)
        return;
    ol_buf_free(&q->bytes);
    free(q->ring);
    free(q);
}

bool ol_events_failed(const ol_events *q)
{
    return q->failed || q->bytes.failed;
}

/* -- in ------------------------------------------------------------------------------ */

static bool grow(ol_events *q)
{
    record *ring = malloc(2 * q->size * sizeof(record));

    if (!ring) {
        q->failed = true;
        return false;
    }
    for (size_t i = 0; i < q->n; i++)
        ring[i] = q->ring[(q->head + i) & (q->size - 1)];
    free(q->ring);
    q->ring = ring;
    q->head = 0;
    q->size *= 2;
    return true;
}

/* Every piece starts at a multiple of 8, so that it can be read in place. */
static span put(ol_events *q, const void *bytes, size_t len)
{
    static const uint8_t zeros[8];
    span s = {q->bytes.len, len};

    if (len == 0)
        return s;
    ol_buf_put(&q->bytes, bytes, len);
    ol_buf_put(&q->bytes, zeros, (size_t)-len & 7);
    return s;
}

static span put_done(ol_events *q, const ol_event *e)
{
    done d = {.finish = e->finish,
              .prompt_tokens = e->prompt_tokens,
              .completion_tokens = e->completion_tokens,
              .cached_tokens = e->cached_tokens,
              .n_shares = e->n_shares,
              .logprob_sum = e->logprob_sum,
              .queue_us = e->queue_us,
              .prefill_us = e->prefill_us,
              .decode_us = e->decode_us,
              .outcome = e->outcome,
              .digest = e->digest};

    if (e->n_shares)
        memcpy(d.shares, e->shares, (size_t)e->n_shares * sizeof(double));
    return put(q, &d, sizeof(d));
}

static span put_extra(ol_events *q, const ol_event *e)
{
    switch (e->kind) {
    case OL_EVENT_TOKEN:
        return put(q, e->alternatives, (size_t)e->n_alternatives * sizeof(ol_token_logprob));
    case OL_EVENT_NEED_ADAPTER:
        return put(q, &e->digest, sizeof(e->digest));
    case OL_EVENT_DONE:
    case OL_EVENT_USAGE:
        return put_done(q, e);
    case OL_EVENT_FAILED:
        break;
    }
    return put(q, &e->error, sizeof(e->error));
}

void ol_events_push(ol_events *q, const ol_event *e)
{
    record *r;

    if (q->n == 0)
        ol_buf_reset(&q->bytes);
    if (q->n == q->size && !grow(q))
        return;
    r = &q->ring[(q->head + q->n++) & (q->size - 1)];
    *r = (record){.tag = e->tag,
                  .kind = e->kind,
                  .index = e->index,
                  .n_alternatives = e->n_alternatives,
                  .token = e->token,
                  .logprob = e->logprob};
    r->text = put(q, e->text.data, e->text.len);
    r->extra = put_extra(q, e);
}

void ol_events_fail(ol_events *q)
{
    q->failed = true;
}

void ol_events_drop(ol_events *q, uint64_t tag)
{
    for (size_t i = 0; i < q->n; i++) {
        record *r = &q->ring[(q->head + i) & (q->size - 1)];

        if (r->tag == tag && r->kind != OL_EVENT_USAGE) /* what was used was used */
            r->dropped = true;
    }
}

/* -- out ----------------------------------------------------------------------------- */

static void get_done(const done *d, ol_event *e)
{
    e->finish = d->finish;
    e->prompt_tokens = d->prompt_tokens;
    e->completion_tokens = d->completion_tokens;
    e->cached_tokens = d->cached_tokens;
    e->logprob_sum = d->logprob_sum;
    e->n_shares = d->n_shares;
    e->shares = d->shares;
    e->queue_us = d->queue_us;
    e->prefill_us = d->prefill_us;
    e->decode_us = d->decode_us;
    e->outcome = d->outcome;
    e->digest = d->digest;
}

static void get_extra(const ol_events *q, const record *r, ol_event *e)
{
    const void *extra = r->extra.len ? q->bytes.data + r->extra.at : NULL;

    switch (r->kind) {
    case OL_EVENT_TOKEN:
        e->index = r->index;
        e->token = r->token;
        e->logprob = r->logprob;
        e->n_alternatives = r->n_alternatives;
        e->alternatives = extra;
        break;
    case OL_EVENT_NEED_ADAPTER:
        memcpy(&e->digest, extra, sizeof(e->digest));
        break;
    case OL_EVENT_DONE:
    case OL_EVENT_USAGE:
        get_done(extra, e);
        break;
    case OL_EVENT_FAILED:
        memcpy(&e->error, extra, sizeof(e->error));
        break;
    }
}

bool ol_events_poll(ol_events *q, ol_event *e)
{
    if (q->bytes.failed) /* pieces may be missing: nothing in here can be read */
        return false;
    while (q->n > 0) {
        const record *r = &q->ring[q->head];

        q->head = (q->head + 1) & (q->size - 1);
        q->n--;
        if (r->dropped)
            continue;
        memset(e, 0, sizeof(*e));
        e->tag = r->tag;
        e->kind = r->kind;
        if (r->text.len)
            e->text = (ol_text){(const char *)q->bytes.data + r->text.at, r->text.len};
        get_extra(q, r, e);
        return true;
    }
    return false;
}
