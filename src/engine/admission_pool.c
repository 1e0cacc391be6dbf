/*
 * admission_pool.c: where pages and adapters share one pool, how those who have adapters and those
 * who wait for them make room for each other. Beside the rules of admission.c:
 *
 *  6. Sequences that are younger than the oldest pending request are admitted only if they leave
 *     room for what it misses (admission_leave_room).
 *  7. When nothing runs, since pages are lent for adapters that somebody has pinned who cannot
 *     run either, these give their pins up, the newest first (admission_unblock); who is next to
 *     run keeps its own. A request fits the pool alone, or it fails at once.
 */
#include "engine/engine_internal.h"

void admission_leave_room(ol_engine *engine)
{
    const request *oldest;
    size_t bytes;

    if (!engine->page_bytes || !engine->n_pending)
        return;
    oldest = admission_oldest(engine, ol_now_us(), &bytes);
    if (bytes > 0)
        ol_sched_leave_room(engine->sched, &oldest->seq, (int)(bytes / engine->page_bytes));
}

static request *next_waiting(const ol_engine *engine)
{
    ol_sched_seq *next = ol_sched_next_waiting(engine->sched);

    return next ? request_of(next) : NULL;
}

/* Of those that wait for pages, but for the first, the newest that has adapters. */
static request *last_pinning(const ol_engine *engine)
{
    const request *first = next_waiting(engine);
    request *last = NULL;

    for (const ol_sched_seq *s = ol_sched_first_waiting(engine->sched); s; s = s->next) {
        request *r = request_of((ol_sched_seq *)(uintptr_t)s);

        if (r != first && r->n_adapters > 0 && (!last || r->seq.order > last->seq.order))
            last = r;
    }
    return last;
}

static bool is_coming(const ol_engine *engine, const request *r)
{
    for (int i = 0; r && i < r->n_adapters; i++)
        if (!r->adapters[i]->lora && (r->adapters[i]->asked || r->adapters[i]->loading))
            return true;
    return ol_loader_jobs(engine->loader) > 0;
}

static void unpin_pending(ol_engine *engine)
{
    for (request *r = engine->pending_head; r; r = r->next)
        request_unpin(engine, r);
}

static bool suspend_last(ol_engine *engine)
{
    request *last = last_pinning(engine);

    if (last)
        request_suspend(engine, last);
    return last != NULL;
}

static bool fail_first(ol_engine *engine)
{
    request *first = next_waiting(engine);
    ol_error err;

    if (!first)
        return false;
    ol_fail(&err, OL_NOMEM, "the cache has no room for the request");
    ol_hint(&err, "Give the cache more memory.");
    request_fail(engine, first, &err);
    return true;
}

/* Stages: those who cannot run give up their pins, but for the one that is next; the oldest may ask
 * for what it misses, and if that comes it is waited for; else it keeps no room and no pins. (Who
 * is next then has the pool alone, and fits: that was checked.) None comes twice, but for 0, 2 and
 * 4, each of which takes a request away. */
bool admission_unblock(ol_engine *engine, int *stage)
{
    const request *oldest;
    size_t missing;

    if (!engine->page_bytes || ol_sched_waiting(engine->sched) == 0)
        return false;
    oldest = admission_oldest(engine, ol_now_us(), &missing);
    if (*stage % 2 == 0 && *stage < 4 && suspend_last(engine))
        return true;
    switch (++*stage) {
    case 1:
        engine->admission_due = true;
        admission_run(engine);
        admission_leave_room(engine);
        return true;
    case 2:
        engine->blocked = is_coming(engine, oldest);
        return !engine->blocked;
    case 3:
        *stage = 4;
        unpin_pending(engine);
        return true;
    default:
        *stage = 4;
        return fail_first(engine);
    }
}
