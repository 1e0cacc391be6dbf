/* output.c: how tokens are chosen; from tokens to text and events. */
#include "engine/engine_internal.h"

#include <stdlib.h>

/* Of a quiet request, until they are told: whoever meters wants to hear now and then. */
#define HELD_BYTES 2048
#define HELD_TOKENS 32

void output_pick(const request *r, int k, ol_pick *pick)
{
    if (r->task == OL_TASK_SCORE)
        *pick = (ol_pick){.given = r->tokens[r->n_prompt + r->n_output + k],
                          .logprobs = r->logprobs > 0 ? r->logprobs : 0};
    else
        ol_sampler_pick(r->sampler, r->tokens + r->n_prompt, r->n_output, pick);
}

/* -- text -------------------------------------------------------------------------------- */

/* The text that a token completes, into engine->released, minus what may begin a stop
 * string. True when a stop string is complete. */
static ol_code take_text(ol_engine *engine, request *r, int32_t token, bool *stopped, ol_error *err)
{
    ol_buf_reset(&engine->piece);
    ol_buf_reset(&engine->released);
    *stopped = false;
    if (!engine->tok)
        return OL_OK;
    OL_TRY(ol_detok_push(&r->detok, token, &engine->piece, err));
    if (r->stops)
        *stopped = ol_stops_feed(r->stops, (const char *)engine->piece.data, engine->piece.len,
                                 &engine->released);
    else
        ol_buf_put(&engine->released, engine->piece.data, engine->piece.len);
    if (engine->piece.failed || engine->released.failed)
        return ol_fail_nomem(err, engine->piece.len, "output");
    return OL_OK;
}

/* What is still held back, into engine->released. *stopped: its end makes a stop string. */
static ol_code flush_text(ol_engine *engine, request *r, bool *stopped, ol_error *err)
{
    ol_buf *piece = &engine->piece, *released = &engine->released;

    ol_buf_reset(piece);
    ol_buf_reset(released);
    *stopped = false;
    if (engine->tok)
        OL_TRY(ol_detok_end(&r->detok, piece, err));
    if (!r->stops) {
        ol_buf_put(released, piece->data, piece->len);
    } else {
        *stopped = ol_stops_feed(r->stops, (const char *)piece->data, piece->len, released);
        if (!*stopped)
            ol_stops_flush(r->stops, released);
    }
    if (piece->failed || released->failed)
        return ol_fail_nomem(err, piece->len, "output");
    return OL_OK;
}

void output_finish(ol_engine *engine, request *r, ol_finish finish)
{
    ol_error err;
    bool stopped;

    if (flush_text(engine, r, &stopped, &err) != OL_OK)
        request_fail(engine, r, &err);
    else
        request_done(engine, r, stopped ? OL_FINISH_STOP : finish);
}

static ol_code tell_token(ol_engine *engine, request *r, const ol_choice *choice, ol_error *err)
{
    const ol_buf *text = r->quiet ? &r->held : &engine->released;
    ol_event e = {.tag = r->tag,
                  .kind = OL_EVENT_TOKEN,
                  .index = r->n_output - 1,
                  .token = choice->token,
                  .logprob = choice->logprob,
                  .n_alternatives = choice->n_alternatives,
                  .alternatives = choice->alternatives};

    if (r->quiet) {
        ol_buf_put(&r->held, engine->released.data, engine->released.len);
        if (r->held.failed)
            return ol_fail_nomem(err, r->held.len + engine->released.len, "output");
        if (r->held.len < HELD_BYTES && r->n_output % HELD_TOKENS)
            return OL_OK;
    }
    e.text = (ol_text){(const char *)text->data, text->len};
    ol_events_push(engine->events, &e);
    ol_buf_reset(&r->held);
    return OL_OK;
}

/* -- generating ------------------------------------------------------------------------------ */

/* A generated token becomes a known one. */
static ol_code append_token(request *r, int32_t token, ol_error *err)
{
    int n = r->n_prompt + r->n_output;

    if (n == r->max_tokens) {
        size_t max = (size_t)n * 2 + 64;
        int32_t *grown = realloc(r->tokens, max * sizeof(int32_t));

        if (!grown)
            return ol_fail_nomem(err, max * sizeof(int32_t), "a request's tokens");
        r->tokens = grown;
        r->max_tokens = (int)max;
    }
    r->tokens[n] = token;
    r->n_output++;
    r->seq.logits_from = r->seq.known++;
    return ol_sampler_see_output(r->sampler, token, err);
}

/* *finish is set when *ended. */
static ol_code generate(ol_engine *engine, request *r, const ol_choice *choice, bool *ended,
                        ol_finish *finish, ol_error *err)
{
    bool stopped;

    OL_TRY(ol_choice_check(choice, err));
    *ended = true;
    *finish = OL_FINISH_EOS;
    if (!r->ignore_eos && engine_is_eos(engine, choice->token))
        return OL_OK;
    OL_TRY(append_token(r, choice->token, err));
    OL_TRY(take_text(engine, r, choice->token, &stopped, err));
    engine->counters.generated_tokens++;
    OL_TRY(tell_token(engine, r, choice, err));
    *finish = stopped ? OL_FINISH_STOP : OL_FINISH_LENGTH;
    *ended = stopped || r->n_output == r->max_output;
    return OL_OK;
}

static void take_generated(ol_engine *engine, request *r, const ol_choice *choice)
{
    ol_finish finish;
    ol_error err;
    bool ended;

    if (!r->first_us)
        r->first_us = ol_now_us();
    if (generate(engine, r, choice, &ended, &finish, &err) != OL_OK) {
        request_fail(engine, r, &err);
    } else if (ended && finish == OL_FINISH_STOP) {
        ol_buf_reset(&engine->released); /* what followed the stop string is dropped */
        request_done(engine, r, finish);
    } else if (ended) {
        output_finish(engine, r, finish);
    } else {
        request_tell_so_far(engine, r);
    }
}

/* -- scoring ---------------------------------------------------------------------------------- */

static ol_code score(ol_engine *engine, request *r, const ol_choice *choice, ol_error *err)
{
    bool stopped;

    OL_TRY(ol_choice_check(choice, err));
    r->n_output++;
    r->seq.logits_from++;
    r->logprob_sum += choice->logprob;
    if (r->logprobs < 0)
        return OL_OK;
    OL_TRY(take_text(engine, r, choice->token, &stopped, err));
    return tell_token(engine, r, choice, err);
}

static void take_scored(ol_engine *engine, request *r, const ol_choice *choices, int n)
{
    for (int i = 0; i < n; i++) {
        ol_error err;

        if (score(engine, r, &choices[i], &err) != OL_OK) {
            request_fail(engine, r, &err);
            return;
        }
    }
    if (r->n_output == r->max_output)
        output_finish(engine, r, OL_FINISH_SCORED);
    else
        request_tell_so_far(engine, r);
}

void output_take(ol_engine *engine, request *r, const ol_choice *choices, int n)
{
    if (r->task == OL_TASK_SCORE)
        take_scored(engine, r, choices, n);
    else
        take_generated(engine, r, choices);
}
