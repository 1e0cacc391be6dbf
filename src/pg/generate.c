/* generate.c: lora_generate, lora_complete and lora_score. */
#include "lora_pg.h"

#include "arguments.h"
#include "attribution.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"

PG_FUNCTION_INFO_V1(lora_generate);
PG_FUNCTION_INFO_V1(lora_complete);
PG_FUNCTION_INFO_V1(lora_score);

/* Runs a spec to its end; NULL with an error. */
static LoraRequest *run(const LoraSpec *spec, bool keep_tokens, ol_error *error)
{
    LoraRequest *request = lora_request_start(spec, keep_tokens, error);

    if (request && !lora_request_wait(request, error)) {
        lora_request_free(request);
        return NULL;
    }
    return request;
}

static void raise_or_pass(const ol_error *error, bool pass)
{
    if (!pass)
        lora_raise(error);
}

Datum lora_generate(PG_FUNCTION_ARGS)
{
    bool null_on_error;
    LoraRequest *request = NULL;
    const LoraResult *result;
    LoraSpec spec;
    ol_error error;
    text *answer;

    if (PG_ARGISNULL(LORA_ARG_PROMPT))
        PG_RETURN_NULL();
    null_on_error = lora_on_error_null(fcinfo, LORA_ARG_ON_ERROR);
    if (lora_spec_from_arguments(fcinfo, "lora_generate", &spec, &error))
        request = run(&spec, false, &error);
    if (!request) {
        raise_or_pass(&error, null_on_error);
        PG_RETURN_NULL();
    }
    result = lora_request_result(request);
    answer = lora_text_from_utf8(result->text.data, result->text.len);
    (void)lora_attribute(&spec, result);
    lora_request_free(request);
    PG_RETURN_TEXT_P(answer);
}

/* -- lora_complete --------------------------------------------------------------------------- */

static void append_piece(StringInfo out, const char *utf8)
{
    char *local = pg_any_to_server(utf8, (int)strlen(utf8), PG_UTF8);

    escape_json(out, local);
}

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
        append_piece(&json, t->text);
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

static Datum make_row(FunctionCallInfo fcinfo, Datum *values, bool *nulls)
{
    TupleDesc desc;

    if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
        elog(ERROR, "lora_complete must return a row");
    return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

static void fill_row(LoraRequest *request, const LoraSpec *spec, Datum *values, bool *nulls)
{
    static const char *const finishes[] = {"eos", "stop", "length", "scored"};
    const LoraResult *result = lora_request_result(request);

    values[COL_TEXT] = PointerGetDatum(lora_text_from_utf8(result->text.data, result->text.len));
    values[COL_FINISH] = CStringGetTextDatum(finishes[result->finish]);
    values[COL_PROMPT_TOKENS] = Int32GetDatum(result->prompt_tokens);
    values[COL_COMPLETION_TOKENS] = Int32GetDatum(result->completion_tokens);
    values[COL_SEED] = Int64GetDatum((int64)spec->sampling.seed);
    nulls[COL_LOGPROBS] = spec->sampling.logprobs < 0;
    if (!nulls[COL_LOGPROBS])
        values[COL_LOGPROBS] = tokens_as_jsonb(lora_request_tokens(request));
    values[COL_SHARES] = shares_as_array(result);
    values[COL_INFERENCE] = Int64GetDatum(lora_attribute(spec, result));
    nulls[COL_ERROR] = true;
}

Datum lora_complete(PG_FUNCTION_ARGS)
{
    Datum values[COLUMNS] = {0};
    bool nulls[COLUMNS] = {false}, null_on_error;
    LoraRequest *request = NULL;
    LoraSpec spec;
    ol_error error;

    if (PG_ARGISNULL(LORA_ARG_PROMPT))
        PG_RETURN_NULL();
    null_on_error = lora_on_error_null(fcinfo, LORA_ARG_ON_ERROR);
    if (lora_spec_from_arguments(fcinfo, "lora_complete", &spec, &error))
        request = run(&spec, spec.sampling.logprobs >= 0, &error);
    if (!request) {
        raise_or_pass(&error, null_on_error);
        memset(nulls, true, sizeof(nulls));
        nulls[COL_ERROR] = false;
        values[COL_ERROR] =
            PointerGetDatum(lora_text_from_utf8(error.message, strlen(error.message)));
        PG_RETURN_DATUM(make_row(fcinfo, values, nulls));
    }
    fill_row(request, &spec, values, nulls);
    lora_request_free(request);
    PG_RETURN_DATUM(make_row(fcinfo, values, nulls));
}

/* -- lora_score ----------------------------------------------------------------------------------
 */

/* lora_score_detail(adapter_ids, prompt, completion, weights) -> (logprob, tokens) */
Datum lora_score(PG_FUNCTION_ARGS)
{
    Datum values[2];
    bool nulls[2] = {false, false};
    LoraSpec spec = {.function = "lora_score", .task = OL_TASK_SCORE};
    LoraRequest *request = NULL;
    ol_error error;

    if (PG_ARGISNULL(1) || PG_ARGISNULL(2))
        PG_RETURN_NULL();
    spec.sampling.top_p = 1;
    spec.sampling.repetition_penalty = 1;
    spec.sampling.logprobs = -1;
    if (lora_utf8_argument(PG_GETARG_TEXT_PP(1), "the prompt", &spec.prompt, &spec.prompt_len,
                           &error) &&
        lora_utf8_argument(PG_GETARG_TEXT_PP(2), "the completion", &spec.completion,
                           &spec.completion_len, &error) &&
        lora_spec_adapters(&spec, PG_ARGISNULL(0) ? NULL : PG_GETARG_ARRAYTYPE_P(0),
                           PG_ARGISNULL(3) ? NULL : PG_GETARG_ARRAYTYPE_P(3), &error))
        request = run(&spec, false, &error);
    if (!request)
        lora_raise(&error);
    values[0] = Float8GetDatum(lora_request_result(request)->logprob_sum);
    values[1] = Int32GetDatum(lora_request_result(request)->completion_tokens);
    (void)lora_attribute(&spec, lora_request_result(request));
    lora_request_free(request);
    PG_RETURN_DATUM(make_row(fcinfo, values, nulls));
}
