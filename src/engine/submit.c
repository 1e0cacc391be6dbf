/* submit.c: from a host's request to one of ours, everything checked; and taking it back. */
#include "engine/engine_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* -- what can be checked at a glance ------------------------------------------------- */

static ol_code check_adapters(const ol_request *q, ol_error *err)
{
    if (q->n_adapters < 0 || q->n_adapters > OL_MAX_REQUEST_ADAPTERS)
        return ol_fail(err, OL_LIMIT, "a request can combine at most %d adapters, not %d",
                       OL_MAX_REQUEST_ADAPTERS, q->n_adapters);
    for (int i = 0; i < q->n_adapters; i++) {
        if (!isfinite(q->adapters[i].weight))
            return ol_fail(err, OL_INVALID, "the weight of adapter %d is not a number", i + 1);
        for (int k = 0; k < i; k++)
            if (ol_digest_equal(&q->adapters[i].digest, &q->adapters[k].digest))
                return ol_fail(err, OL_INVALID, "adapters %d and %d of the request are the same",
                               k + 1, i + 1);
    }
    return OL_OK;
}

static ol_code check_text(const ol_engine *engine, const ol_request *q, ol_error *err)
{
    bool text = !q->prompt_tokens || (q->task == OL_TASK_SCORE && !q->completion_tokens) ||
                q->sampling.n_stops > 0;

    if (!text || engine->tok)
        return OL_OK;
    ol_fail(err, OL_UNSUPPORTED, "the model has no tokenizer");
    return ol_hint(err, "Without one, requests are made of token ids and have no stop strings.");
}

/* Whoever could run at once does not count: that it does not run yet is a matter of steps. */
static ol_code check_queue(const ol_engine *engine, ol_error *err)
{
    const limits *l = &engine->limits;

    if (engine->n_live < l->max_queued + l->max_seqs)
        return OL_OK;
    ol_fail(err, OL_BUSY, "too many requests are waiting");
    ol_detail(err, "At most %d may, beside %d that can run at the same time.", l->max_queued,
              l->max_seqs);
    return ol_hint(err, "Try again later, or raise openlora.max_queued.");
}

static ol_code check_request(const ol_engine *engine, const ol_request *q, ol_error *err)
{
    if (q->task != OL_TASK_GENERATE && q->task != OL_TASK_SCORE)
        return ol_fail(err, OL_INVALID, "task %d does not exist", (int)q->task);
    if (request_find(engine, q->tag))
        return ol_fail(err, OL_INVALID, "tag %llu is in use", (unsigned long long)q->tag);
    OL_TRY(check_queue(engine, err));
    if (q->priority < -OL_MAX_PRIORITY || q->priority > OL_MAX_PRIORITY)
        return ol_fail(err, OL_INVALID, "a priority cannot be %d", q->priority);
    if (!(q->tenant_weight >= 0) || !isfinite(q->tenant_weight))
        return ol_fail(err, OL_INVALID, "a tenant's weight cannot be %g", (double)q->tenant_weight);
    if (q->meter.len > OL_MAX_METER_BYTES)
        return ol_fail(err, OL_LIMIT, "a request's meter has %zu bytes; at most %d may be",
                       q->meter.len, OL_MAX_METER_BYTES);
    OL_TRY(check_adapters(q, err));
    OL_TRY(check_text(engine, q, err));
    return ol_sampling_check(&q->sampling, engine->config->vocab, err);
}

/* -- tokens ------------------------------------------------------------------------------ */

/* A chat template writes bos out; then it must not be added again. */
static bool begins_with_bos(const ol_tokenizer *tok, const ol_text *text)
{
    ol_span bos;

    return ol_tokenizer_bos(tok) != OL_NO_TOKEN &&
           ol_tokenizer_text(tok, ol_tokenizer_bos(tok), &bos) && text->len >= bos.len &&
           memcmp(text->data, bos.data, bos.len) == 0;
}

static ol_code prompt_ids(const ol_engine *engine, const ol_request *q, ol_ids *ids, ol_error *err)
{
    unsigned flags = q->parse_special ? OL_TOK_PARSE_SPECIAL : 0;

    if (ol_tokenizer_adds_bos(engine->tok) &&
        !(q->parse_special && begins_with_bos(engine->tok, &q->prompt)))
        flags |= OL_TOK_ADD_BOS;
    return ol_tokenize(engine->tok, q->prompt.data, q->prompt.len, flags, ids, err);
}

static ol_code append_ids(ol_ids *to, const int32_t *ids, int n, ol_error *err)
{
    size_t bytes = (to->n + (size_t)(n > 0 ? n : 0)) * sizeof(int32_t);
    int32_t *grown;

    if (n < 0)
        return ol_fail(err, OL_INVALID, "a number of tokens cannot be %d", n);
    if (n == 0)
        return OL_OK;
    grown = realloc(to->ids, bytes);
    if (!grown)
        return ol_fail_nomem(err, bytes, "a request's tokens");
    memcpy(grown + to->n, ids, (size_t)n * sizeof(int32_t));
    to->ids = grown;
    to->n = to->cap = to->n + (size_t)n;
    return OL_OK;
}

/* Prompt, then completion, into `ids`. */
static ol_code gather_ids(const ol_engine *engine, const ol_request *q, ol_ids *ids,
                          size_t *n_prompt, ol_error *err)
{
    if (q->prompt_tokens)
        OL_TRY(append_ids(ids, q->prompt_tokens, q->n_prompt_tokens, err));
    else
        OL_TRY(prompt_ids(engine, q, ids, err));
    *n_prompt = ids->n;
    if (q->task != OL_TASK_SCORE)
        return OL_OK;
    if (q->completion_tokens)
        return append_ids(ids, q->completion_tokens, q->n_completion_tokens, err);
    return ol_tokenize(engine->tok, q->completion.data, q->completion.len,
                       OL_TOK_CONTINUE | (q->parse_special ? OL_TOK_PARSE_SPECIAL : 0), ids, err);
}

static ol_code too_long(const ol_engine *engine, size_t n, ol_error *err)
{
    const limits *l = &engine->limits;

    ol_fail(err, OL_LIMIT, "the request has %zu tokens; the context holds %d", n, l->context);
    if (!l->context_by_kv)
        return ol_hint(err, "The prompt must leave room for at least one token of output.");
    ol_detail(err, "The KV cache of %zu bytes sets this limit; the model's is %d.", l->kv_bytes,
              engine->config->max_position);
    return ol_hint(err, "Give the KV cache more memory, or shorten the prompt.");
}

static ol_code check_ids(const ol_engine *engine, const ol_request *q, const ol_ids *ids,
                         size_t n_prompt, ol_error *err)
{
    bool output = q->task == OL_TASK_GENERATE && q->sampling.max_tokens > 0;

    for (size_t i = 0; i < ids->n; i++)
        if (ids->ids[i] < 0 || ids->ids[i] >= engine->config->vocab) {
            ol_fail(err, OL_INVALID, "token %d is not in the model's vocabulary", ids->ids[i]);
            return ol_detail(err, "The vocabulary has %d tokens.", engine->config->vocab);
        }
    if (n_prompt == 0) {
        ol_fail(err, OL_INVALID, "the prompt is empty");
        return ol_hint(err, "The model's tokenizer adds no token of its own to an empty text.");
    }
    if (ids->n + output > (size_t)engine->limits.context)
        return too_long(engine, ids->n, err);
    return OL_OK;
}

/* -- the request ----------------------------------------------------------------------------- */

static void take_tokens(const ol_engine *engine, const ol_request *q, ol_ids *ids, size_t n_prompt,
                        request *r)
{
    int n = (int)ids->n, room = engine->limits.context - n;

    r->tokens = ids->ids;
    r->max_tokens = (int)ids->cap;
    *ids = (ol_ids){0};
    r->n_prompt = (int)n_prompt;
    if (q->task == OL_TASK_SCORE) {
        r->max_output = n - r->n_prompt;
        r->seq.known = n - 1; /* nobody asks what follows the last */
        r->seq.logits_from = r->n_prompt - 1;
    } else {
        r->max_output = q->sampling.max_tokens < room ? q->sampling.max_tokens : room;
        r->seq.known = n;
        r->seq.logits_from = n - 1;
    }
}

static ol_code take_adapters(ol_engine *engine, const ol_request *q, request *r, ol_error *err)
{
    for (int i = 0; i < q->n_adapters; i++) {
        ol_adapter *a = ol_adapters_ref(engine->adapters, &q->adapters[i].digest);

        if (!a)
            return ol_fail_nomem(err, sizeof(*a), "a request");
        ol_adapters_named(engine->adapters, a);
        r->adapters[r->n_adapters] = a;
        r->loras[r->n_adapters++].weight = q->adapters[i].weight;
    }
    return OL_OK;
}

/* Whose it is, and what it may find computed. */
static ol_code take_place(ol_engine *engine, const ol_request *q, request *r, ol_error *err)
{
    ol_digest digests[OL_MAX_REQUEST_ADAPTERS];
    float weights[OL_MAX_REQUEST_ADAPTERS];

    r->seq.priority = q->priority;
    r->seq.tenant = ol_tenants_enter(ol_sched_tenants(engine->sched), q->tenant, q->tenant_weight);
    if (!r->seq.tenant)
        return ol_fail_nomem(err, sizeof(*r->seq.tenant), "a request");
    if (q->timeout_ms > 0) {
        r->deadline_us = r->submitted_us + (uint64_t)q->timeout_ms * 1000;
        engine->n_deadlines++;
    }
    if (!engine->prefix)
        return OL_OK;
    for (int i = 0; i < q->n_adapters; i++) {
        digests[i] = q->adapters[i].digest;
        weights[i] = q->adapters[i].weight;
    }
    r->context = ol_prefix_ref(engine->prefix, digests, weights, q->n_adapters);
    return r->context ? OL_OK : ol_fail_nomem(err, sizeof(ol_digest), "a request");
}

static ol_code take_meter(const ol_request *q, request *r, ol_error *err)
{
    r->meter_salt = q->meter_salt;
    ol_buf_put(&r->meter, q->meter.data, q->meter.len);
    return r->meter.failed ? ol_fail_nomem(err, q->meter.len, "a request") : OL_OK;
}

static ol_code take_sampling(const ol_engine *engine, const ol_request *q, request *r,
                             ol_error *err)
{
    r->ignore_eos = q->sampling.ignore_eos;
    r->logprobs = q->sampling.logprobs;
    if (engine->tok)
        r->detok = ol_detok_begin(engine->tok, OL_DETOK_SKIP_SPECIAL | OL_DETOK_CONTINUE);
    if (q->task == OL_TASK_SCORE)
        return OL_OK;
    OL_TRY(ol_sampler_create(&q->sampling, &r->sampler, err));
    OL_TRY(ol_sampler_see_prompt(r->sampler, r->tokens, (size_t)r->n_prompt, err));
    if (q->constraint)
        OL_TRY(ol_sampler_constrain(r->sampler, q->constraint, engine->config->vocab, err));
    if (q->sampling.n_stops == 0)
        return OL_OK;
    return ol_stops_create(q->sampling.stops, q->sampling.n_stops, &r->stops, err);
}

static ol_code fill(ol_engine *engine, const ol_request *q, request *r, ol_ids *ids, ol_error *err)
{
    size_t n_prompt;

    OL_TRY(gather_ids(engine, q, ids, &n_prompt, err));
    OL_TRY(check_ids(engine, q, ids, n_prompt, err));
    take_tokens(engine, q, ids, n_prompt, r);
    OL_TRY(take_sampling(engine, q, r, err));
    OL_TRY(take_meter(q, r, err));
    OL_TRY(take_place(engine, q, r, err));
    return take_adapters(engine, q, r, err);
}

ol_code request_create(ol_engine *engine, const ol_request *q, request **out, ol_error *err)
{
    ol_ids ids = {0};
    request *r;
    ol_code code;

    OL_TRY(check_request(engine, q, err));
    r = calloc(1, sizeof(*r));
    if (!r)
        return ol_fail_nomem(err, sizeof(*r), "a request");
    r->tag = q->tag;
    r->task = q->task;
    r->quiet = q->quiet && q->sampling.logprobs < 0;
    r->submitted_us = ol_now_us();
    code = fill(engine, q, r, &ids, err);
    if (code != OL_OK) {
        ol_ids_free(&ids);
        request_free(engine, r);
        return code;
    }
    *out = r;
    return OL_OK;
}

ol_code ol_engine_submit(ol_engine *engine, const ol_request *q, ol_error *err)
{
    request *r;

    if (request_create(engine, q, &r, err) != OL_OK) {
        engine->counters.rejected++;
        return err->code;
    }
    engine->counters.requests++;
    engine->counters.prompt_tokens += (uint64_t)r->n_prompt;
    request_enter(engine, r);
    admission_run(engine);
    return OL_OK;
}

void ol_engine_cancel(ol_engine *engine, uint64_t tag)
{
    request *r = request_find(engine, tag);

    ol_events_drop(engine->events, tag); /* it may have ended already */
    if (!r)
        return;
    engine->counters.cancelled++;
    request_tell_usage(engine, r, OL_OUTCOME_CANCELLED);
    request_free(engine, r);
    admission_run(engine);
}
