/*
 * stats.h: what goes on inside, request by request and adapter by adapter. Copies.
 */
#ifndef OL_ENGINE_STATS_H
#define OL_ENGINE_STATS_H

#include "engine/engine.h"

typedef enum ol_request_state {
    OL_REQUEST_PENDING, /* its adapters are not there yet */
    OL_REQUEST_WAITING, /* for a slot and pages */
    OL_REQUEST_RUNNING,
} ol_request_state;

#define OL_REQUEST_STATE_LAST OL_REQUEST_RUNNING

typedef struct ol_request_stat {
    uint64_t tag;     /* as it was submitted */
    uint32_t session; /* the host's, where it has sessions; else 0 */
    uint32_t tenant;
    ol_task task;
    ol_request_state state;
    int priority;
    int n_adapters;
    ol_digest adapters[OL_MAX_REQUEST_ADAPTERS];
    int prompt_tokens, cached_tokens, output_tokens;
    int computed_tokens; /* of both; less than what there is after it had to yield */
    int preempted;       /* how often it had to */
    uint64_t age_us, running_us;
} ol_request_stat;

typedef struct ol_adapter_stat {
    ol_digest digest;
    bool resident, loading;
    bool copied;  /* in the host's memory, too */
    int requests; /* live ones that name it */
    uint64_t bytes;
    uint64_t hits, misses; /* requests that found it there, or not */
    uint64_t loads, load_us;
    uint64_t idle_us; /* since a request named it last */
} ol_adapter_stat;

/* All live requests; *stats is malloc'ed, the caller's. Returns how many, -1 when out of
 * memory. In no order. */
int ol_engine_request_stats(const ol_engine *engine, ol_request_stat **stats);
/* All adapters that are resident, that a live request names, or that are remembered of late:
 * adapters.h. */
int ol_engine_adapter_stats(const ol_engine *engine, ol_adapter_stat **stats);
/* Adapters' counts begin again. */
void ol_engine_adapter_stats_reset(ol_engine *engine);

#endif
