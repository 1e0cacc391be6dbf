/* stream.c: see stream.h. */
#include "stream.h"

#include "arguments.h"
#include "attribution.h"
#include "executor/executor.h"
#include "funcapi.h"
#include "utf8.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(lora_stream);

struct LoraStream {
    MemoryContext context; /* of the tokens, too */
    LoraSpec spec;
    LoraRequest *request; /* NULL: there are no more rows */
    bool null_on_error;
};

void lora_stream_close(LoraStream *stream)
{
    if (stream->request)
        lora_request_free(stream->request);
    stream->request = NULL;
}

/* -- rows ------------------------------------------------------------------------------------ */

LoraStream *lora_stream_open(FunctionCallInfo fcinfo)
{
    LoraStream *stream = palloc0(sizeof(*stream));
    ol_error error;

    stream->context = CurrentMemoryContext;
    if (PG_ARGISNULL(LORA_ARG_PROMPT))
        return stream;
    stream->null_on_error = lora_on_error_null(fcinfo, LORA_ARG_ON_ERROR);
    if (lora_spec_from_arguments(fcinfo, "lora_stream", &stream->spec, &error)) {
        stream->spec.prompt = pnstrdup(stream->spec.prompt, stream->spec.prompt_len);
        stream->spec.sampling.logprobs = 0;
        stream->request = lora_request_start(&stream->spec, true, &error);
    }
    if (!stream->request && !stream->null_on_error)
        lora_raise(&error);
    return stream;
}

static void end_stream(LoraStream *stream)
{
    ol_error error;

    if (lora_request_failed(stream->request, &error)) {
        if (!stream->null_on_error)
            lora_raise(&error);
    } else {
        (void)lora_attribute(&stream->spec, lora_request_result(stream->request));
    }
    lora_stream_close(stream);
}

/* A piece of text that the database cannot hold ends the stream. */
static bool is_readable(LoraStream *stream, const LoraToken *token)
{
    ol_error error;

    if (lora_has_characters(token->text, strlen(token->text), &error))
        return true;
    if (!stream->null_on_error)
        lora_raise(&error);
    lora_stream_close(stream);
    return false;
}

bool lora_stream_next(LoraStream *stream, Datum *values, bool *nulls)
{
    MemoryContext before;
    LoraToken *token;

    if (!stream->request)
        return false;
    before = MemoryContextSwitchTo(stream->context);
    token = lora_request_next_token(stream->request);
    MemoryContextSwitchTo(before);
    if (!token) {
        end_stream(stream);
        return false;
    }
    if (!is_readable(stream, token))
        return false;
    memset(nulls, false, LORA_STREAM_COLUMNS);
    values[0] = Int32GetDatum(token->index);
    values[1] = Int32GetDatum(token->token);
    nulls[1] = nulls[3] = token->token < 0;
    values[2] = PointerGetDatum(lora_text_from_utf8(token->text, strlen(token->text)));
    values[3] = Float4GetDatum(token->logprob);
    return true;
}

/* -- in the select list ---------------------------------------------------------------------- */

/* The cursor was closed, or the query ended, before the last row. */
static void close_at_end(Datum arg)
{
    lora_stream_close((LoraStream *)DatumGetPointer(arg));
}

static LoraStream *open_call(FunctionCallInfo fcinfo, FuncCallContext *context)
{
    MemoryContext before = MemoryContextSwitchTo(context->multi_call_memory_ctx);
    ReturnSetInfo *set = (ReturnSetInfo *)fcinfo->resultinfo;
    LoraStream *stream;

    if (get_call_result_type(fcinfo, NULL, &context->tuple_desc) != TYPEFUNC_COMPOSITE)
        elog(ERROR, "lora_stream must return rows");
    context->tuple_desc = BlessTupleDesc(context->tuple_desc);
    stream = lora_stream_open(fcinfo);
    RegisterExprContextCallback(set->econtext, close_at_end, PointerGetDatum(stream));
    MemoryContextSwitchTo(before);
    return stream;
}

Datum lora_stream(PG_FUNCTION_ARGS)
{
    FuncCallContext *context;
    LoraStream *stream;
    Datum values[LORA_STREAM_COLUMNS];
    bool nulls[LORA_STREAM_COLUMNS];

    if (SRF_IS_FIRSTCALL()) {
        context = SRF_FIRSTCALL_INIT();
        context->user_fctx = open_call(fcinfo, context);
    }
    context = SRF_PERCALL_SETUP();
    stream = context->user_fctx;
    if (lora_stream_next(stream, values, nulls))
        SRF_RETURN_NEXT(context,
                        HeapTupleGetDatum(heap_form_tuple(context->tuple_desc, values, nulls)));
    UnregisterExprContextCallback(((ReturnSetInfo *)fcinfo->resultinfo)->econtext, close_at_end,
                                  PointerGetDatum(stream));
    SRF_RETURN_DONE(context);
}
