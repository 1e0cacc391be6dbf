/* engine_crowd.c: many requests at once, and their host: see engine_store.h. */
#include "engine_store.h"
#include "noise.h"

#include "engine/engine_internal.h"

#include <poll.h>

void crowd_make(crowd *c, int n, int adapters, int prompt, int tokens)
{
    c->n = n;
    for (int i = 0; i < n; i++) {
        ol_request *q = &c->requests[i];

        *q = store_request((uint64_t)i, pick(adapters + 1), c->uses[i], pick(STORE_SIZE - 3));
        q->n_prompt_tokens = 1 + pick(prompt);
        q->sampling.max_tokens = 1 + pick(tokens);
        q->sampling.temperature = 0.8f;
        q->sampling.seed = (uint64_t)i;
        q->priority = pick(8) == 0;
    }
}

void crowd_check_same(const crowd *c, const util_result *have, const util_result *want)
{
    for (int i = 0; i < c->n; i++) {
        assert_int_equal(have[i].n, want[i].n);
        assert_memory_equal(have[i].tokens, want[i].tokens, (size_t)want[i].n * sizeof(int32_t));
    }
}

/* -- their host --------------------------------------------------------------------------- */

typedef struct hall {
    ol_engine *e;
    const crowd *crowd;
    util_result *results;
    bool loader;
    const stored *asked[256]; /* for, and not brought yet */
    int submitted, n_asked, under_way, ended;
} hall;

static const stored *with_digest(const ol_digest *digest)
{
    for (int i = 0; i < STORE_SIZE; i++)
        if (ol_digest_equal(&store[i].digest, digest))
            return &store[i];
    for (int i = 0; i < STORE_LARGE; i++)
        if (ol_digest_equal(&store_large[i].digest, digest))
            return &store_large[i];
    fail_msg("an adapter that nobody has");
    return NULL;
}

static void bring_one(hall *h)
{
    int at = pick(h->n_asked);
    const stored *s = h->asked[at];

    h->asked[at] = h->asked[--h->n_asked];
    if (!h->loader) {
        must(store_put(h->e, s), &store_error);
        return;
    }
    store_offer(h->e, s);
    h->under_way++;
}

static void take_events(hall *h)
{
    ol_event event;

    while (ol_engine_poll(h->e, &event)) {
        util_take_event(&event, h->results, h->crowd->n);
        if (event.kind == OL_EVENT_NEED_ADAPTER) {
            assert_in_range(h->n_asked, 0, 255);
            h->asked[h->n_asked++] = with_digest(&event.digest);
        } else if (event.kind == OL_EVENT_FAILED)
            must(event.error.code, &event.error);
        else if (event.kind == OL_EVENT_DONE)
            h->ended++;
    }
}

/* What became of it, where it would never end. */
static void tell_hall(const hall *h)
{
    ol_kvpages *pool = ol_sched_pages(h->e->sched);
    ol_adapters_counts c = ol_adapters_count(h->e->adapters);

    print_message(
        "%d submitted, %d ended, %d asked, %d under way; %d pending, %d waiting, %d "
        "running; pages: %d used, %d lent, %d idle; bytes: %zu, %zu pinned, %zu reserved, "
        "room %zu\n",
        h->submitted, h->ended, h->n_asked, h->under_way, h->e->n_pending,
        ol_sched_waiting(h->e->sched), ol_sched_running(h->e->sched), ol_kvpages_used(pool),
        ol_kvpages_lent(pool), ol_kvpages_idle(pool), c.bytes, c.pinned_bytes, c.reserved, c.room);
    for (const request *r = h->e->pending_head; r; r = r->next)
        for (int i = 0; i < r->n_adapters; i++)
            print_message("pending %d of priority %d: adapter %d there %d pinned %d loading %d "
                          "asked %d denied %d bytes %zu\n",
                          (int)r->tag, r->seq.priority, i, r->adapters[i]->lora != NULL,
                          r->pinned[i], r->adapters[i]->loading, r->adapters[i]->asked,
                          (int)r->adapters[i]->denied_at, r->adapters[i]->bytes);
    fail_msg("locked up");
}

/* Of what the loader was given: by us, or by the engine, which has copies (copies.h). */
static void take_results(hall *h, bool wait)
{
    struct pollfd readable = {.fd = ol_engine_adapter_fd(h->e), .events = POLLIN};

    if (wait && ol_loader_jobs(h->e->loader) > 0)
        (void)poll(&readable, 1, -1);
    while (store_offered(h->e, false))
        h->under_way--;
}

/* When nothing can be computed something must be on its way: else the engine is locked up. */
static void go_on(hall *h)
{
    bool idle;

    if (h->submitted < h->crowd->n && pick(2))
        util_submit(h->e, &h->crowd->requests[h->submitted++]);
    idle = !ol_engine_busy(h->e);
    if (h->n_asked && (pick(4) == 0 || idle))
        bring_one(h);
    else if (idle && ol_loader_jobs(h->e->loader) == 0 && h->submitted == h->crowd->n)
        tell_hall(h);
    take_results(h, !ol_engine_busy(h->e));
    must(ol_engine_step(h->e, &store_error), &store_error);
    ol_sched_check(h->e->sched);
    take_events(h);
}

void crowd_run(ol_engine *e, const crowd *c, util_result *results, bool loader)
{
    hall h = {.e = e, .crowd = c, .results = results, .loader = loader};
    int steps = 0;

    while (h.ended < c->n) {
        go_on(&h);
        if (++steps == 200000)
            tell_hall(&h);
    }
    while (ol_loader_jobs(e->loader) > 0)
        take_results(&h, true);
    assert_int_equal(h.under_way, 0);
}
