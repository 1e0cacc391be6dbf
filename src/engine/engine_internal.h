/*
 * engine_internal.h: what the files behind engine.h share; which there are says README.md.
 *
 * A request is in one of two states: waiting for adapters (`pending`, in order of age),
 * or with the scheduler, all of its adapters pinned. (It goes back when the device has no
 * memory left to compute with: step.c.) It is freed when its last event is queued, or
 * when it is cancelled.
 */
#ifndef OL_ENGINE_INTERNAL_H
#define OL_ENGINE_INTERNAL_H

#include "engine/adapters.h"
#include "engine/choose.h"
#include "engine/clock.h"
#include "engine/engine.h"
#include "engine/events.h"
#include "engine/loader.h"
#include "engine/model.h"
#include "engine/prefix.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/stops.h"
#include "engine/tokenizer/tokenizer.h"

#include <stddef.h>

typedef struct request {
    ol_sched_seq seq;
    uint64_t tag;
    ol_task task;
    bool with_scheduler; /* else pending */
    bool ignore_eos, quiet;
    ol_buf held;                  /* quiet: text that was not told yet */
    ol_buf meter;                 /* empty: not metered */
    int told_prompt, tell_output; /* metered: told so far; at how many tokens to tell again */
    ol_digest meter_salt;
    ol_sha256 *told_tokens; /* metered: salt and the first n_told tokens of the output; or NULL */
    int n_told;
    int logprobs;
    int32_t *tokens; /* prompt, then output (GENERATE) or completion (SCORE) */
    int n_prompt, n_output, max_output, max_tokens; /* max_tokens: size of the array */
    double logprob_sum;
    ol_sampler *sampler; /* GENERATE */
    ol_stops *stops;     /* NULL: none */
    ol_detok detok;
    int n_adapters;
    ol_adapter *adapters[OL_MAX_REQUEST_ADAPTERS];
    bool pinned[OL_MAX_REQUEST_ADAPTERS];
    uint64_t asked_us[OL_MAX_REQUEST_ADAPTERS]; /* when its host was asked; 0: not, or it came */
    ol_lora_ref loras[OL_MAX_REQUEST_ADAPTERS];
    double energy[OL_MAX_REQUEST_ADAPTERS];      /* of the computed rows, added in their order */
    ol_prefix_context *context;                  /* NULL: without a prefix cache */
    uint64_t submitted_us, started_us, first_us; /* 0: not yet */
    uint64_t deadline_us;                        /* 0: none */
    bool cleared;                                /* admission.c: a pool was emptied for it */
    struct request *prev, *next;                 /* pending */
    struct request *chain;                       /* same bucket of tags */
} request;

static inline request *request_of(ol_sched_seq *seq)
{
    return (request *)(void *)((char *)seq - offsetof(request, seq));
}

/* Fixed at opening. */
typedef struct limits {
    int context;        /* tokens of a request */
    bool context_by_kv; /* the KV cache, not the model or an option, sets it */
    int max_seqs, step_tokens, max_logit_rows, page_tokens, max_queued, n_pages;
    int pool_pages; /* of one pool for pages and adapters; 0: there is none */
    size_t kv_bytes;
} limits;

typedef struct counters {
    uint64_t steps, prompt_tokens, generated_tokens, requests, failed, cancelled;
    uint64_t cached_tokens, rows, sequences, busy_us, rejected;
    uint64_t device_choices; /* logit rows whose tokens the device chose */
} counters;

struct ol_engine {
    /* Set at opening. */
    limits limits;
    ol_model_source *source;
    ol_digest digest;
    ol_tokenizer *tok; /* NULL: token requests only */
    const ol_device_table *table;
    ol_device *device;
    char storage[64]; /* what it keeps otherwise than by itself: ", int8 weights, .." */
    ol_model *model;
    const ol_model_config *config;
    ol_kv *kv;
    size_t page_bytes; /* pages and adapters share one pool, of such pages; 0: they do not */
    uint64_t *eos;     /* bit per token */
    /* Requests. */
    ol_sched *sched;
    ol_prefix_cache *prefix; /* NULL: none */
    ol_adapters *adapters;
    ol_loader *loader;
    request *pending_head, *pending_tail;
    int n_pending;
    int n_adapted;  /* requests with the scheduler that have adapters */
    request **tags; /* [tags_mask + 1] chains */
    size_t tags_mask;
    int n_live;
    uint64_t next_order;
    bool blocked; /* no step is of use until an adapter or a call comes: see step.c */
    bool admission_due;
    uint64_t releases;     /* of the pool, when admission last ran */
    uint64_t admission_us; /* when it last ran */
    int n_deadlines;       /* requests that have one */
    uint64_t step_us;      /* what a step with prompts may take while others generate */
    double row_us;         /* what a row of such a step takes, as measured lately */
    uint64_t patience_us;  /* how long an asked host may take before others are asked */
    ol_events *events;
    ol_error device_error; /* of placing an adapter, or OL_OK: the next step ends with it */
    counters counters;
    /* Working memory of a step, sized at opening. */
    bool device_chooses; /* else it gives logits, and the chooser is ours */
    ol_chooser *chooser;
    int32_t *step_tokens;    /* [limits.step_tokens] */
    ol_step_seq *step_seqs;  /* [limits.max_seqs] */
    int32_t *step_logits;    /* [limits.max_logit_rows] */
    ol_pick *step_picks;     /* the same */
    ol_choice *step_choices; /* the same, of the chooser */
    double *step_energy;     /* [limits.step_tokens][adapters of the row] */
    ol_buf piece, released;  /* text of a token; what of it may be told */
};

static inline bool engine_is_eos(const ol_engine *engine, int32_t token)
{
    return engine->eos[token >> 6] >> (token & 63) & 1;
}

/* -- open_device.c, open_model.c, open_kv.c --------------------------------------- */
/* Steps of opening, in this order. What one has made when a later one fails, ol_engine_close frees.
 * The device: "auto" is a GPU if one can compute. */
ol_code open_device(ol_engine *engine, const ol_engine_options *options, ol_error *err);
/* Checks the model, brings its tokenizer, places and digests its weights. */
ol_code open_model(ol_engine *engine, const ol_engine_options *options, ol_error *err);
/* Sizes the pages for keys and values by the budget, and the context by them; scheduler and
 * prefix cache go by their number. */
ol_code open_kv(ol_engine *engine, const ol_engine_options *options, ol_error *err);

/* -- warm.c ----------------------------------------------------------------------- */
/* The last of opening: a device of its own memory computes once before requests come. */
ol_code warm_up(ol_engine *engine, ol_error *err);

/* -- request.c ------------------------------------------------------------------ */
/* Fails requests whose time is over. */
void request_check_deadlines(ol_engine *engine);
request *request_find(const ol_engine *engine, uint64_t tag);
/* Makes it known by its tag, and pending. */
void request_enter(ol_engine *engine, request *r);
void request_leave_pending(ol_engine *engine, request *r);
/* Its adapters may go, as far as it is for this request. */
void request_unpin(ol_engine *engine, request *r);
/* From the scheduler back to pending, its adapters unpinned; what it has computed is lost,
 * its tokens are not. */
void request_suspend(ol_engine *engine, request *r);
/* What was computed, for a request that is metered. */
void request_tell_usage(ol_engine *engine, request *r, ol_outcome outcome);
/* The same of one that goes on, when something new is worth telling. */
void request_tell_so_far(ol_engine *engine, request *r);
/* Each ends the request: queues its last event and frees it. */
void request_done(ol_engine *engine, request *r, ol_finish finish);
void request_fail(ol_engine *engine, request *r, const ol_error *error);
/* Frees a request and everything it holds; also one that was never entered. */
void request_free(ol_engine *engine, request *r);

/* -- submit.c ------------------------------------------------------------------- */
ol_code request_create(ol_engine *engine, const ol_request *from, request **r, ol_error *err);

/* -- admission.c ---------------------------------------------------------------- */
/* Hands pending requests to the scheduler and asks for adapters; nothing to do unless
 * admission_due. To be called at the end of whatever may have set that. */
void admission_run(ol_engine *engine);
/* Bytes of this digest came, whatever became of them: nobody is asked any more. */
void admission_arrived(ol_engine *engine, const ol_digest *digest);
/* The adapter cannot be had: whoever waits for it fails. */
void admission_refuse(ol_engine *engine, const ol_digest *digest, const ol_error *error);
/* The oldest pending request whose host is not late, or NULL; and the bytes that it misses. */
const request *admission_oldest(const ol_engine *engine, uint64_t now, size_t *missing);

/* -- admission_pool.c ----------------------------------------------------------- */
/* Before a plan: new sequences leave room for the adapters that the oldest request misses. */
void admission_leave_room(ol_engine *engine);
/* Nothing runs, and what waits for pages finds none for what others have pinned. True when a new
 * plan may find more; *stage: 0 at first. When something is worth waiting for, false, and the
 * engine is blocked. */
bool admission_unblock(ol_engine *engine, int *stage);

/* -- step.c --------------------------------------------------------------------- */
/* An ol_sched_find over the engine's prefix cache. */
int step_find_computed(void *engine, ol_sched_seq *seq, int n_tokens, int32_t *pages);

/* -- output.c ------------------------------------------------------------------- */
/* How the token of row k of those of a part that give logits is chosen; or, of a given one, what
 * is to be known. */
void output_pick(const request *r, int k, ol_pick *pick);
/* Takes the choices of the last n computed rows of a request. */
void output_take(ol_engine *engine, request *r, const ol_choice *choices, int n);
/* Nothing (more) is to be generated. */
void output_finish(ol_engine *engine, request *r, ol_finish finish);

#endif
