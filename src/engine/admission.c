/*
 * admission.c: when a request gets its adapters.
 *
 * A request waits in `pending` until all of its adapters are resident; then they are pinned,
 * all at once, and it goes to the scheduler. The host is asked for those that are missing, unless
 * there is a copy of them in memory (copies.h).
 * The budget of adapters may be far smaller than what all pending requests name, so:
 *
 *  1. Only the oldest pending request pins adapters before it has all of them. (If two did,
 *     each could wait for the room that the other holds.)
 *  2. A younger request pins and asks only for what leaves room for what the oldest still
 *     misses. So the oldest gets its room when enough of those that run have ended.
 *  3. Nothing is asked for that would find no room: what arrives and cannot be kept is
 *     dropped, and asked for again when an adapter has been released.
 *  4. Of requests that miss the same adapter, one host is asked; the next when the first
 *     goes away, or takes too long.
 *  5. A host that takes too long (a client that does not fetch from its cursor) holds up
 *     nobody: its request counts as oldest no longer, and pins nothing, until what it was
 *     asked for has come from anywhere.
 *
 * Hence NEED_ADAPTER may come more than once for a digest, and late.
 *
 * In a pool (kvpages.h) what can be pinned is what no sequence has of it; how requests with the
 * scheduler and pending ones make room for each other there: admission_pool.c.
 */
#include "engine/load.h"

/* An adapter that was never seen: as large as the mean of those that were, else an
 * eighth of the budget, so that not everybody sends at once. */
static size_t expected_bytes(const ol_adapters_counts *c, const ol_adapter *a)
{
    if (a->bytes)
        return a->bytes;
    return c->resident ? c->bytes / (size_t)c->resident : c->budget / 8;
}

static size_t missing_bytes(const ol_engine *engine, const request *r)
{
    ol_adapters_counts c = ol_adapters_count(engine->adapters);
    size_t bytes = 0;

    for (int i = 0; r && i < r->n_adapters; i++)
        if (!r->adapters[i]->lora)
            bytes += expected_bytes(&c, r->adapters[i]);
    return bytes;
}

/* -- who is the oldest ----------------------------------------------------------------------- */

static bool is_late(const ol_engine *engine, uint64_t now, uint64_t asked_us)
{
    return now - asked_us > engine->patience_us;
}

/* Whether the request's host was asked, and does not bring what was asked for. */
static bool is_stalled(const ol_engine *engine, uint64_t now, const request *r)
{
    for (int i = 0; i < r->n_adapters; i++)
        if (!r->adapters[i]->lora && !r->adapters[i]->loading && r->asked_us[i] &&
            is_late(engine, now, r->asked_us[i]))
            return true;
    return false;
}

const request *admission_oldest(const ol_engine *engine, uint64_t now, size_t *missing)
{
    const request *r = engine->pending_head;

    while (r && is_stalled(engine, now, r))
        r = r->next;
    *missing = missing_bytes(engine, r);
    return r;
}

/* -- asking --------------------------------------------------------------------------------- */

typedef struct pass {
    ol_engine *engine;
    const request *oldest;
    size_t reserved; /* what the oldest misses */
    size_t asked;    /* asked for on behalf of others */
    uint64_t now;
} pass;

static void ask(pass *p, request *r, int i)
{
    ol_adapter *a = r->adapters[i];
    ol_event e = {.tag = r->tag, .kind = OL_EVENT_NEED_ADAPTER, .digest = a->digest};

    if (load_copy(p->engine, a))
        return;
    a->asked = true;
    a->asked_tag = r->tag;
    a->asked_us = r->asked_us[i] = p->now;
    ol_events_push(p->engine->events, &e);
}

static bool was_denied(const ol_adapters_counts *c, const ol_adapter *a)
{
    return a->denied_at == c->releases + 1;
}

/* Rules 2 to 4. The oldest may always ask for what it has never shown. */
static bool may_ask(const pass *p, const request *r, int i)
{
    const ol_adapter *a = r->adapters[i];
    ol_adapters_counts c;
    size_t bytes;

    if (a->loading || r->asked_us[i] || (a->asked && !is_late(p->engine, p->now, a->asked_us)))
        return false;
    c = ol_adapters_count(p->engine->adapters);
    if (was_denied(&c, a))
        return false;
    bytes = expected_bytes(&c, a);
    if (r == p->oldest)
        return a->bytes == 0 || c.pinned_bytes + c.reserved + bytes <= c.room;
    return c.pinned_bytes + c.reserved + p->reserved + p->asked + bytes <= c.room;
}

static void count_asked(pass *p, const ol_adapter *a)
{
    ol_adapters_counts c = ol_adapters_count(p->engine->adapters);

    p->asked += expected_bytes(&c, a);
}

static void ask_for_missing(pass *p, request *r)
{
    for (int i = 0; i < r->n_adapters; i++) {
        const ol_adapter *a = r->adapters[i];

        if (a->lora)
            continue;
        if (may_ask(p, r, i))
            ask(p, r, i);
        if (a->asked && a->asked_tag == r->tag && r != p->oldest &&
            !is_late(p->engine, p->now, a->asked_us))
            count_asked(p, a);
    }
}

/* -- pinning --------------------------------------------------------------------------------- */

static void pin_resident(ol_engine *engine, request *r)
{
    for (int i = 0; i < r->n_adapters; i++) {
        if (r->pinned[i] || !r->adapters[i]->lora)
            continue;
        ol_adapters_pin(engine->adapters, r->adapters[i]);
        r->pinned[i] = true;
        r->loras[i].lora = r->adapters[i]->lora;
    }
}

/* What tokens take of a pool that adapters lie in, too. */
static size_t page_bytes_for(const ol_engine *engine, int n_tokens)
{
    return (size_t)ol_kvpages_for(ol_sched_pages(engine->sched), n_tokens) * engine->page_bytes;
}

static bool may_pin(const pass *p, const request *r)
{
    ol_adapters_counts c;
    size_t more = 0;

    if (r->n_adapters == 0)
        return true;
    for (int i = 0; i < r->n_adapters; i++)
        if (!r->adapters[i]->lora)
            return false;
        else if (r->adapters[i]->pins == 0)
            more += r->adapters[i]->bytes;
    more += page_bytes_for(p->engine, r->seq.known);
    c = ol_adapters_count(p->engine->adapters);
    return r == p->oldest || c.pinned_bytes + more + p->reserved <= c.room;
}

static void to_scheduler(ol_engine *engine, request *r)
{
    pin_resident(engine, r);
    request_leave_pending(engine, r);
    if (r->max_output == 0) { /* done before it began */
        ol_buf_reset(&engine->released);
        request_done(engine, r, r->task == OL_TASK_SCORE ? OL_FINISH_SCORED : OL_FINISH_LENGTH);
        return;
    }
    r->with_scheduler = true;
    engine->n_adapted += r->n_adapters > 0;
    ol_sched_add(engine->sched, &r->seq);
}

/* -- what can never be ------------------------------------------------------------------- */

static size_t known_bytes(const request *r)
{
    size_t bytes = 0;

    for (int i = 0; i < r->n_adapters; i++)
        bytes += r->adapters[i]->bytes;
    return bytes;
}

/* The device's memory ended before the budget did, and nobody but the oldest holds any. */
static bool is_stuck(const pass *p, const request *r)
{
    ol_adapters_counts c;

    if (r != p->oldest || p->engine->n_adapted > 0)
        return false;
    if (p->engine->page_bytes && ol_kvpages_used(ol_sched_pages(p->engine->sched)) > 0)
        return false;
    c = ol_adapters_count(p->engine->adapters);
    for (int i = 0; i < r->n_adapters; i++)
        if (!r->adapters[i]->lora && was_denied(&c, r->adapters[i]))
            return true;
    return false;
}

/* Whether a pool does not even hold this request alone. */
static bool over_pool(const ol_engine *engine, const request *r, size_t bytes, ol_error *err)
{
    size_t pool = (size_t)ol_kvpages_total(ol_sched_pages(engine->sched)) * engine->page_bytes;
    int n_tokens = r->n_prompt + r->max_output;
    size_t tokens = page_bytes_for(engine, n_tokens);

    if (!engine->page_bytes || bytes == 0 || (bytes <= pool && tokens <= pool - bytes))
        return false;
    ol_fail(err, OL_LIMIT, "the request's adapters and tokens do not fit the cache together");
    ol_detail(err, "%d adapters take %zu bytes and %d tokens %zu; the cache's budget is %zu bytes.",
              r->n_adapters, bytes, n_tokens, tokens, pool);
    ol_hint(err, "Give the cache more memory, or use smaller adapters or fewer tokens.");
    return true;
}

/* Pages that this request's own adapters have may lie in the way of the runs that another of
 * them needs: once, all of them go. */
static bool clear_pool(ol_engine *engine, request *r)
{
    if (!engine->page_bytes || r->cleared)
        return false;
    r->cleared = true;
    request_unpin(engine, r);
    (void)ol_adapters_drop_idle(engine->adapters);
    for (int i = 0; i < r->n_adapters; i++)
        r->asked_us[i] = 0;
    engine->admission_due = true;
    return true;
}

static bool is_hopeless(const pass *p, request *r, ol_error *err)
{
    size_t bytes = known_bytes(r);

    if (bytes && bytes > ol_adapters_count(p->engine->adapters).budget) {
        ol_adapters_over_budget(p->engine->adapters, bytes, r->n_adapters, err);
        return true;
    }
    if (over_pool(p->engine, r, bytes, err))
        return true;
    if (!is_stuck(p, r))
        return false;
    if (clear_pool(p->engine, r))
        return false;
    ol_fail(err, OL_NOMEM, "the device's memory does not hold the %d adapters of the request",
            r->n_adapters);
    ol_detail(err, "They take %zu bytes.", bytes);
    return true;
}

/* -- the pass ---------------------------------------------------------------------------- */

/* One request; false when it is no longer pending. */
static bool look_at(pass *p, request *r)
{
    ol_error err;

    if (r == p->oldest)
        pin_resident(p->engine, r);
    else
        request_unpin(p->engine, r); /* it may have been the oldest */
    if (is_hopeless(p, r, &err)) {
        request_fail(p->engine, r, &err);
        return false;
    }
    if (may_pin(p, r)) {
        to_scheduler(p->engine, r);
        return false;
    }
    ask_for_missing(p, r);
    return true;
}

/* True when the oldest left, so that another takes its place. */
static bool run_once(ol_engine *engine)
{
    pass p = {.engine = engine, .now = ol_now_us()};
    request *next;

    p.oldest = admission_oldest(engine, p.now, &p.reserved);
    for (request *r = engine->pending_head; r; r = next) {
        bool is_oldest = r == p.oldest;

        next = r->next;
        if (!look_at(&p, r) && is_oldest)
            return true;
    }
    return false;
}

int ol_engine_patience_ms(const ol_engine *engine)
{
    return engine->n_pending ? (int)(engine->patience_us / 1000) + 1 : -1;
}

void admission_run(ol_engine *engine)
{
    uint64_t now = engine->n_pending ? ol_now_us() : 0;
    uint64_t releases = engine->page_bytes ? ol_kvpages_releases(ol_sched_pages(engine->sched)) : 0;

    if (engine->n_pending && now - engine->admission_us > engine->patience_us)
        engine->admission_due = true; /* somebody may have lost patience */
    if (engine->n_pending && releases != engine->releases)
        engine->admission_due = true; /* pages may serve adapters */
    engine->releases = releases;
    if (engine->admission_due)
        engine->admission_us = now;
    while (engine->admission_due) {
        engine->admission_due = false;
        while (engine->pending_head && run_once(engine))
            ;
    }
}

/* -- what a host brought ----------------------------------------------------------------------- */

void admission_arrived(ol_engine *engine, const ol_digest *digest)
{
    for (request *r = engine->pending_head; r; r = r->next)
        for (int i = 0; i < r->n_adapters; i++)
            if (ol_digest_equal(&r->adapters[i]->digest, digest)) {
                r->adapters[i]->asked = false;
                r->asked_us[i] = 0;
                engine->admission_due = true;
            }
}

void admission_refuse(ol_engine *engine, const ol_digest *digest, const ol_error *error)
{
    request *next;

    for (request *r = engine->pending_head; r; r = next) {
        next = r->next;
        for (int i = 0; i < r->n_adapters; i++)
            if (ol_digest_equal(&r->adapters[i]->digest, digest)) {
                request_fail(engine, r, error);
                break;
            }
    }
}
