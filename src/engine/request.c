/* request.c: finding a request, and its end. */
#include "engine/engine_internal.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#define DIGESTED_AT_ONCE 64 /* tokens */

/* -- by tag ------------------------------------------------------------------------- */

static request **bucket_of(const ol_engine *engine, uint64_t tag)
{
    return &engine->tags[(tag * 0x9E3779B97F4A7C15u >> 32) & engine->tags_mask];
}

request *request_find(const ol_engine *engine, uint64_t tag)
{
    request *r = *bucket_of(engine, tag);

    while (r && r->tag != tag)
        r = r->chain;
    return r;
}

static void forget_tag(ol_engine *engine, const request *r)
{
    request **at = bucket_of(engine, r->tag);

    while (*at && *at != r)
        at = &(*at)->chain;
    if (*at) {
        *at = r->chain;
        engine->n_live--;
    }
}

/* -- pending -------------------------------------------------------------------------- */

/* From the tail: what comes is mostly the newest. */
static void insert_pending(ol_engine *engine, request *r)
{
    request *after = engine->pending_tail;

    while (after && after->seq.order > r->seq.order)
        after = after->prev;
    r->prev = after;
    r->next = after ? after->next : engine->pending_head;
    if (r->next)
        r->next->prev = r;
    else
        engine->pending_tail = r;
    if (after)
        after->next = r;
    else
        engine->pending_head = r;
    engine->n_pending++;
    engine->admission_due = true;
}

void request_enter(ol_engine *engine, request *r)
{
    request **bucket = bucket_of(engine, r->tag);

    engine->blocked = false;
    r->chain = *bucket;
    *bucket = r;
    engine->n_live++;
    r->seq.order = engine->next_order++;
    insert_pending(engine, r);
}

void request_leave_pending(ol_engine *engine, request *r)
{
    if (r->prev)
        r->prev->next = r->next;
    else
        engine->pending_head = r->next;
    if (r->next)
        r->next->prev = r->prev;
    else
        engine->pending_tail = r->prev;
    r->prev = r->next = NULL;
    engine->n_pending--;
}

void request_unpin(ol_engine *engine, request *r)
{
    for (int i = 0; i < r->n_adapters; i++) {
        if (r->pinned[i])
            ol_adapters_unpin(engine->adapters, r->adapters[i]);
        r->pinned[i] = false;
    }
}

void request_suspend(ol_engine *engine, request *r)
{
    ol_sched_remove(engine->sched, &r->seq);
    r->with_scheduler = false;
    engine->n_adapted -= r->n_adapters > 0;
    request_unpin(engine, r);
    for (int i = 0; i < r->n_adapters; i++)
        r->asked_us[i] = 0;
    insert_pending(engine, r);
}

/* -- the end ---------------------------------------------------------------------------- */

static void release_adapters(ol_engine *engine, request *r)
{
    request_unpin(engine, r);
    for (int i = 0; i < r->n_adapters; i++) {
        ol_adapter *a = r->adapters[i];

        if (a->asked && a->asked_tag == r->tag)
            a->asked = false; /* somebody else must be asked */
        ol_adapters_unref(engine->adapters, a);
    }
    if (r->n_adapters)
        engine->admission_due = true;
}

/* Whether the request is one of the engine's lists, as opposed to half made. */
static bool is_pending(const ol_engine *engine, const request *r)
{
    return r->prev || r->next || engine->pending_head == r;
}

void request_free(ol_engine *engine, request *r)
{
    engine->blocked = false;
    if (r->with_scheduler) {
        ol_sched_remove(engine->sched, &r->seq);
        engine->n_adapted -= r->n_adapters > 0;
    } else if (is_pending(engine, r)) {
        request_leave_pending(engine, r);
    }
    forget_tag(engine, r);
    release_adapters(engine, r);
    if (r->context)
        ol_prefix_unref(engine->prefix, r->context);
    if (r->seq.tenant)
        ol_tenants_leave(ol_sched_tenants(engine->sched), r->seq.tenant);
    engine->n_deadlines -= r->deadline_us != 0;
    ol_sampler_free(r->sampler);
    ol_stops_free(r->stops);
    ol_buf_free(&r->held);
    ol_buf_free(&r->meter);
    ol_sha256_drop(r->told_tokens);
    free(r->tokens);
    free(r);
}

/* Energies are sums of squares; but a damaged adapter may make them infinite. */
static void measure_shares(const request *r, double *shares)
{
    double total = 0;

    for (int i = 0; i < r->n_adapters; i++)
        total += r->energy[i];
    for (int i = 0; i < r->n_adapters; i++)
        shares[i] = total > 0 && isfinite(total) ? r->energy[i] / total : 1.0 / r->n_adapters;
}

/* Requests that end before their first step or token have the later times 0. */
static void tell_times(const request *r, ol_event *e)
{
    uint64_t now = ol_now_us();

    e->queue_us = (r->started_us ? r->started_us : now) - r->submitted_us;
    if (r->started_us)
        e->prefill_us = (r->first_us ? r->first_us : now) - r->started_us;
    if (r->first_us)
        e->decode_us = now - r->first_us;
}

/* Some tokens as everybody can write them down, whatever this machine's byte order is. */
static void add_tokens(ol_sha256 *sha, const int32_t *tokens, int n)
{
    uint8_t bytes[4 * DIGESTED_AT_ONCE], *at = bytes;

    for (int i = 0; i < n; i++)
        for (int shift = 0; shift < 32; shift += 8)
            *at++ = (uint8_t)((uint32_t)tokens[i] >> shift);
    ol_sha256_add(sha, bytes, (size_t)(at - bytes));
}

/* A long output is told often: each of its tokens is hashed once. */
static bool digest_output(request *r, ol_digest *digest)
{
    if (!r->told_tokens) {
        r->told_tokens = ol_sha256_begin();
        if (!r->told_tokens)
            return false;
        ol_sha256_add(r->told_tokens, r->meter_salt.bytes, OL_DIGEST_BYTES);
    }
    while (r->n_told < r->n_output) {
        int n = r->n_output - r->n_told;

        n = n < DIGESTED_AT_ONCE ? n : DIGESTED_AT_ONCE;
        add_tokens(r->told_tokens, r->tokens + r->n_prompt + r->n_told, n);
        r->n_told += n;
    }
    return ol_sha256_so_far(r->told_tokens, digest);
}

/* Of a prompt that was not finished, what was computed of it counts; also when its pages have gone
 * to others since. */
static int used_prompt(const request *r)
{
    int computed = r->seq.computed > r->told_prompt ? r->seq.computed : r->told_prompt;

    return r->n_output > 0 || computed > r->n_prompt ? r->n_prompt : computed;
}

void request_tell_usage(ol_engine *engine, request *r, ol_outcome outcome)
{
    double shares[OL_MAX_REQUEST_ADAPTERS];
    int prompt = outcome == OL_OUTCOME_DONE ? r->n_prompt : used_prompt(r);
    ol_event e = {.tag = r->tag,
                  .kind = OL_EVENT_USAGE,
                  .outcome = outcome,
                  .text = {(const char *)r->meter.data, r->meter.len},
                  .prompt_tokens = prompt,
                  .completion_tokens = r->n_output,
                  .cached_tokens = r->seq.found < prompt ? r->seq.found : prompt,
                  .n_shares = r->n_adapters,
                  .shares = shares};

    if (r->meter.len == 0)
        return;
    measure_shares(r, shares);
    if (digest_output(r, &e.digest))
        ol_events_push(engine->events, &e);
    else
        ol_events_fail(engine->events); /* sooner no service than service unmetered */
}

/* Should this process die, its host knows this much. Most requests end before. */
#define FIRST_TOLD 8
#define TOLD_EVERY 32

void request_tell_so_far(ol_engine *engine, request *r)
{
    int prompt = r->n_output > 0 ? r->told_prompt : used_prompt(r);

    if (r->tell_output == 0)
        r->tell_output = FIRST_TOLD;
    if (r->meter.len == 0 || (prompt == r->told_prompt && r->n_output < r->tell_output))
        return;
    r->told_prompt = prompt;
    if (r->n_output >= r->tell_output)
        r->tell_output = r->n_output + TOLD_EVERY;
    request_tell_usage(engine, r, OL_OUTCOME_SO_FAR);
}

void request_done(ol_engine *engine, request *r, ol_finish finish)
{
    double shares[OL_MAX_REQUEST_ADAPTERS];
    ol_event e = {.tag = r->tag,
                  .kind = OL_EVENT_DONE,
                  .finish = finish,
                  .prompt_tokens = r->n_prompt,
                  .completion_tokens = r->n_output,
                  .cached_tokens = r->seq.found,
                  .logprob_sum = r->logprob_sum,
                  .n_shares = r->n_adapters,
                  .shares = shares};

    e.text = (ol_text){(const char *)engine->released.data, engine->released.len};
    if (r->held.len) {
        ol_buf_put(&r->held, engine->released.data, engine->released.len);
        if (r->held.failed) {
            ol_error err;

            ol_fail_nomem(&err, r->held.len + e.text.len, "output");
            request_fail(engine, r, &err);
            return;
        }
        e.text = (ol_text){(const char *)r->held.data, r->held.len};
    }
    measure_shares(r, shares);
    tell_times(r, &e);
    request_tell_usage(engine, r, OL_OUTCOME_DONE);
    ol_events_push(engine->events, &e);
    request_free(engine, r);
}

void request_fail(ol_engine *engine, request *r, const ol_error *error)
{
    ol_event e = {.tag = r->tag, .kind = OL_EVENT_FAILED, .error = *error};

    request_tell_usage(engine, r, OL_OUTCOME_FAILED);
    ol_events_push(engine->events, &e);
    engine->counters.failed++;
    request_free(engine, r);
}

/* -- deadlines ---------------------------------------------------------------------------- */

static void fail_late(ol_engine *engine, request *r)
{
    ol_error err;

    ol_fail(&err, OL_CANCELLED, "the request's time is over");
    ol_detail(&err, "It was given %llu ms.",
              (unsigned long long)((r->deadline_us - r->submitted_us) / 1000));
    request_fail(engine, r, &err);
}

void request_check_deadlines(ol_engine *engine)
{
    uint64_t now = engine->n_deadlines > 0 ? ol_now_us() : 0;

    for (size_t i = 0; engine->n_deadlines > 0 && i <= engine->tags_mask; i++)
        for (request *r = engine->tags[i], *next; r; r = next) {
            next = r->chain;
            if (r->deadline_us && now >= r->deadline_us)
                fail_late(engine, r);
        }
}
