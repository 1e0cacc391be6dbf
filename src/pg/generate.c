/*
 * generate.c: lora_generate, lora_complete, lora_score and lora_score_detail: see call.h.
 */
#include "call.h"

#include "arguments.h"
#include "attribution.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "utf8.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"

PG_FUNCTION_INFO_V1(lora_generate);
PG_FUNCTION_INFO_V1(lora_complete);
PG_FUNCTION_INFO_V1(lora_score);
PG_FUNCTION_INFO_V1(lora_score_detail);

extern PGDLLEXPORT Datum lora_stream(PG_FUNCTION_ARGS);

/* Positions of the arguments of the scoring functions. */
enum { SCORE_ADAPTERS, SCORE_PROMPT, SCORE_COMPLETION, SCORE_WEIGHTS, SCORE_ON_ERROR };

/* -- start ----------------------------------------------------------------------------------- */

static bool score_spec(FunctionCallInfo fcinfo, LoraSpec *spec, ol_error *error)
{
    memset(spec, 0, sizeof(*spec));
    spec->function = "lora_score";
    spec->task = OL_TASK_SCORE;
    spec->sampling.top_p = 1;
    spec->sampling.repetition_penalty = 1;
    spec->sampling.logprobs = -1;
    return lora_utf8_argument(PG_GETARG_TEXT_PP(SCORE_PROMPT), "the prompt", &spec->prompt,
                              &spec->prompt_len, error) &&
           lora_utf8_argument(PG_GETARG_TEXT_PP(SCORE_COMPLETION), "the completion",
                              &spec->completion, &spec->completion_len, error) &&
           lora_spec_adapters(
               spec, PG_ARGISNULL(SCORE_ADAPTERS) ? NULL : PG_GETARG_ARRAYTYPE_P(SCORE_ADAPTERS),
               PG_ARGISNULL(SCORE_WEIGHTS) ? NULL : PG_GETARG_ARRAYTYPE_P(SCORE_WEIGHTS), error);
}

static bool is_score(LoraFunction function)
{
    return function == LORA_SCORE || function == LORA_SCORE_DETAIL;
}

static bool has_null_text(LoraFunction function, FunctionCallInfo fcinfo)
{
    if (is_score(function))
        return PG_ARGISNULL(SCORE_PROMPT) || PG_ARGISNULL(SCORE_COMPLETION);
    return PG_ARGISNULL(LORA_ARG_PROMPT);
}

static void send(LoraCall *call)
{
    call->request =
        lora_request_start(&call->spec, call->spec.sampling.logprobs >= 0, &call->error);
}

void lora_call_start(LoraCall *call, LoraFunction function, FunctionCallInfo fcinfo)
{
    bool good;

    call->function = function;
    call->request = NULL;
    call->failed = call->null_on_error = false;
    if (has_null_text(function, fcinfo))
        return;
    call->null_on_error =
        lora_on_error_null(fcinfo, is_score(function) ? SCORE_ON_ERROR : LORA_ARG_ON_ERROR);
    if (is_score(function))
        good = score_spec(fcinfo, &call->spec, &call->error);
    else
        good = lora_spec_from_arguments(
            fcinfo, function == LORA_COMPLETE ? "lora_complete" : "lora_generate", &call->spec,
            &call->error);
    if (good)
        send(call);
    call->failed = !call->request;
}

bool lora_call_refused(const LoraCall *call)
{
    ol_error error = call->error;

    if (call->request ? !lora_request_failed(call->request, &error) : !call->failed)
        return false;
    return error.code == OL_BUSY || error.code == OL_QUOTA;
}

void lora_call_again(LoraCall *call)
{
    if (call->request)
        lora_request_free(call->request);
    send(call);
    call->failed = !call->request;
}

bool lora_call_ended(const LoraCall *call)
{
    return !call->request || lora_request_ended(call->request);
}

/* -- values ---------------------------------------------------------------------------------- */

/* [{"token": 17, "text": "x", "logprob": -0.5, "top": [{"token": .., "logprob": ..}]}] */
static Datum tokens_as_jsonb(LoraToken *tokens)
{
    StringInfoData json;

    initStringInfo(&json);
    appendStringInfoChar(&json, '[');
    for (LoraToken *t = tokens; t; t = t->next) {
        if (t->token < 0)
            continue; /* held-back text without a token of its own */
        if (t != tokens)
            appendStringInfoChar(&json, ',');
        appendStringInfo(&json, "{\"token\":%d,\"text\":", t->token);
        escape_json(&json, lora_from_utf8(t->text));
        appendStringInfo(&json, ",\"logprob\":%.7g,\"top\":[", t->logprob);
        for (int i = 0; i < t->n_alternatives; i++)
            appendStringInfo(&json, "%s{\"token\":%d,\"logprob\":%.7g}", i ? "," : "",
                             t->alternatives[i].token, t->alternatives[i].logprob);
        appendStringInfoString(&json, "]}");
    }
    appendStringInfoChar(&json, ']');
    return DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data));
}

static Datum shares_as_array(const LoraResult *result)
{
    Datum values[OL_MAX_REQUEST_ADAPTERS];

    for (int i = 0; i < result->n_shares; i++)
        values[i] = Float8GetDatum(result->shares[i]);
    return PointerGetDatum(
        construct_array(values, result->n_shares, FLOAT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

static Datum make_row(FunctionCallInfo fcinfo, Datum *values, bool *nulls)
{
    FmgrInfo *info = fcinfo->flinfo;
    MemoryContext before;
    TupleDesc desc;

    if (!info->fn_extra) {
        before = MemoryContextSwitchTo(info->fn_mcxt);
        if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
            elog(ERROR, "function %u must return a row", info->fn_oid);
        info->fn_extra = BlessTupleDesc(desc);
        MemoryContextSwitchTo(before);
    }
    return HeapTupleGetDatum(heap_form_tuple((TupleDesc)info->fn_extra, values, nulls));
}

/* -- lora_complete's row --------------------------------------------------------------------- */

enum {
    COL_TEXT,
    COL_FINISH,
    COL_PROMPT_TOKENS,
    COL_COMPLETION_TOKENS,
    COL_SEED,
    COL_LOGPROBS,
    COL_SHARES,
    COL_INFERENCE,
    COL_ERROR,
    COLUMNS
};

StaticAssertDecl(COL_INFERENCE + 1 == LORA_COMPLETE_INFERENCE, "the columns have moved");

/* inference: 0 when it is not attributed yet. */
static Datum complete_row(const LoraCall *call, FunctionCallInfo fcinfo, int64 inference)
{
    const LoraResult *result = lora_request_result(call->request);
    Datum values[COLUMNS];
    bool nulls[COLUMNS] = {false};

    values[COL_TEXT] = PointerGetDatum(lora_text_from_utf8(result->text.data, result->text.len));
    values[COL_FINISH] = CStringGetTextDatum(ol_finish_name(result->finish));
    values[COL_PROMPT_TOKENS] = Int32GetDatum(result->prompt_tokens);
    values[COL_COMPLETION_TOKENS] = Int32GetDatum(result->completion_tokens);
    values[COL_SEED] = Int64GetDatum((int64)call->spec.sampling.seed);
    nulls[COL_LOGPROBS] = call->spec.sampling.logprobs < 0;
    if (!nulls[COL_LOGPROBS])
        values[COL_LOGPROBS] = tokens_as_jsonb(lora_request_tokens(call->request));
    values[COL_SHARES] = shares_as_array(result);
    values[COL_INFERENCE] = Int64GetDatum(inference);
    nulls[COL_INFERENCE] = inference == 0;
    nulls[COL_ERROR] = true;
    return make_row(fcinfo, values, nulls);
}

static Datum failed_row(const LoraCall *call, FunctionCallInfo fcinfo)
{
    Datum values[COLUMNS];
    bool nulls[COLUMNS];

    memset(nulls, true, sizeof(nulls));
    nulls[COL_ERROR] = false;
    values[COL_ERROR] =
        PointerGetDatum(lora_text_from_utf8(call->error.message, strlen(call->error.message)));
    return make_row(fcinfo, values, nulls);
}

/* -- finish ---------------------------------------------------------------------------------- */

/* An answer that the database cannot hold is none. */
static bool is_readable(const LoraRequest *request, ol_error *error)
{
    const LoraResult *result = lora_request_result(request);

    return lora_has_characters(result->text.data, (Size)result->text.len, error);
}

static Datum score_row(const LoraResult *result, FunctionCallInfo fcinfo)
{
    Datum values[2] = {Float8GetDatum(result->logprob_sum),
                       Int32GetDatum(result->completion_tokens)};
    bool nulls[2] = {false, false};

    return make_row(fcinfo, values, nulls);
}

static Datum answer(const LoraCall *call, FunctionCallInfo fcinfo, int64 inference)
{
    const LoraResult *result = lora_request_result(call->request);

    switch (call->function) {
    case LORA_GENERATE:
        return PointerGetDatum(lora_text_from_utf8(result->text.data, result->text.len));
    case LORA_COMPLETE:
        return complete_row(call, fcinfo, inference);
    case LORA_SCORE:
        return Float8GetDatum(result->logprob_sum);
    case LORA_SCORE_DETAIL:
        return score_row(result, fcinfo);
    case LORA_NO_FUNCTION:
    case LORA_STREAM:
        break;
    }
    elog(ERROR, "call of no function");
}

/* What a call without an answer gives, when its error is not to be raised. */
static Datum no_answer(const LoraCall *call, FunctionCallInfo fcinfo, bool *is_null)
{
    *is_null = !call->failed || call->function != LORA_COMPLETE;
    return *is_null ? (Datum)0 : failed_row(call, fcinfo);
}

bool lora_call_peek(const LoraCall *call, FunctionCallInfo fcinfo, Datum *value, bool *is_null)
{
    LoraCall seen = *call;

    if (seen.request && (lora_request_failed(seen.request, &seen.error) ||
                         !is_readable(seen.request, &seen.error))) {
        seen.failed = true;
        seen.request = NULL;
    }
    if (seen.failed && !seen.null_on_error)
        return false;
    *is_null = false;
    *value = seen.request ? answer(&seen, fcinfo, 0) : no_answer(&seen, fcinfo, is_null);
    return true;
}

Datum lora_call_finish(LoraCall *call, FunctionCallInfo fcinfo, bool *is_null)
{
    int64 inference;
    Datum value;

    if (call->request && !(lora_request_wait(call->request, &call->error) &&
                           is_readable(call->request, &call->error))) {
        lora_request_free(call->request);
        call->request = NULL;
        call->failed = true;
    }
    if (call->failed && !call->null_on_error)
        lora_raise(&call->error);
    if (!call->request)
        return no_answer(call, fcinfo, is_null);
    *is_null = false;
    inference = lora_attribute(&call->spec, lora_request_result(call->request));
    value = answer(call, fcinfo, inference);
    lora_request_free(call->request);
    call->request = NULL;
    return value;
}

/* -- the functions --------------------------------------------------------------------------- */

/* A scan above or below may have filled the engine's queue with what it reads ahead. */
static void send_until_taken(LoraCall *call)
{
    ol_error error;

    for (;;) {
        if (call->request)
            (void)lora_request_wait(call->request, &error);
        if (!lora_call_refused(call) || !lora_requests_outlast_one())
            return;
        lora_call_again(call);
    }
}

static Datum run(LoraFunction function, FunctionCallInfo fcinfo)
{
    LoraCall call;

    lora_call_start(&call, function, fcinfo);
    send_until_taken(&call);
    return lora_call_finish(&call, fcinfo, &fcinfo->isnull);
}

Datum lora_generate(PG_FUNCTION_ARGS)
{
    return run(LORA_GENERATE, fcinfo);
}

Datum lora_complete(PG_FUNCTION_ARGS)
{
    return run(LORA_COMPLETE, fcinfo);
}

Datum lora_score(PG_FUNCTION_ARGS)
{
    return run(LORA_SCORE, fcinfo);
}

Datum lora_score_detail(PG_FUNCTION_ARGS)
{
    return run(LORA_SCORE_DETAIL, fcinfo);
}

LoraFunction lora_function_at(PGFunction address)
{
    return address == lora_generate       ? LORA_GENERATE
           : address == lora_complete     ? LORA_COMPLETE
           : address == lora_score        ? LORA_SCORE
           : address == lora_score_detail ? LORA_SCORE_DETAIL
           : address == lora_stream       ? LORA_STREAM
                                          : LORA_NO_FUNCTION;
}
