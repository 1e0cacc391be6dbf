/* stats.c: see stats.h. */
#include "engine/stats.h"

#include "engine/engine_internal.h"

#include <stdlib.h>

static ol_request_state state_of(const request *r)
{
    if (!r->with_scheduler)
        return OL_REQUEST_PENDING;
    return r->seq.state == OL_SEQ_RUNNING ? OL_REQUEST_RUNNING : OL_REQUEST_WAITING;
}

static void describe_request(const request *r, uint64_t now, ol_request_stat *s)
{
    *s = (ol_request_stat){.tag = r->tag,
                           .tenant = r->seq.tenant ? r->seq.tenant->id : 0,
                           .task = r->task,
                           .state = state_of(r),
                           .priority = r->seq.priority,
                           .n_adapters = r->n_adapters,
                           .prompt_tokens = r->n_prompt,
                           .cached_tokens = r->seq.found,
                           .output_tokens = r->n_output,
                           .computed_tokens = r->seq.computed,
                           .preempted = r->seq.preempted,
                           .age_us = now - r->submitted_us,
                           .running_us = r->started_us ? now - r->started_us : 0};
    for (int i = 0; i < r->n_adapters; i++)
        s->adapters[i] = r->adapters[i]->digest;
}

int ol_engine_request_stats(const ol_engine *engine, ol_request_stat **out)
{
    uint64_t now = ol_now_us();
    int n = 0;

    *out = calloc((size_t)engine->n_live + 1, sizeof(**out));
    if (!*out)
        return -1;
    for (size_t i = 0; i <= engine->tags_mask; i++)
        for (const request *r = engine->tags[i]; r; r = r->chain)
            describe_request(r, now, &(*out)[n++]);
    return n;
}

typedef struct listing {
    ol_adapter_stat *stats;
    int n, max;
    uint64_t now;
} listing;

static void add_adapter(const ol_adapter *a, void *context)
{
    listing *l = context;

    if (l->n == l->max)
        return;
    l->stats[l->n++] = (ol_adapter_stat){.digest = a->digest,
                                         .resident = a->lora != NULL,
                                         .loading = a->loading > 0,
                                         .copied = a->copy != NULL,
                                         .requests = a->refs - a->loading,
                                         .bytes = a->bytes,
                                         .hits = a->hits,
                                         .misses = a->misses,
                                         .loads = a->loads,
                                         .load_us = a->load_us,
                                         .idle_us = a->used_us ? l->now - a->used_us : 0};
}

int ol_engine_adapter_stats(const ol_engine *engine, ol_adapter_stat **out)
{
    listing l = {.max = ol_adapters_records(engine->adapters), .now = ol_now_us()};

    l.stats = calloc((size_t)l.max + 1, sizeof(*l.stats));
    *out = l.stats;
    if (!l.stats)
        return -1;
    ol_adapters_each(engine->adapters, add_adapter, &l);
    return l.n;
}

void ol_engine_adapter_stats_reset(ol_engine *engine)
{
    ol_adapters_reset(engine->adapters);
}
