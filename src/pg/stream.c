/* stream.c: lora_stream: rows arrive as tokens do. */
#include "lora_pg.h"

#include "arguments.h"
#include "attribution.h"
#include "executor/executor.h"
#include "funcapi.h"
#include "utf8.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(lora_stream);

typedef struct Stream {
    LoraSpec spec;
    LoraRequest *request;
    bool null_on_error;
} Stream;

/* The cursor was closed, or the query ended, before the last row. */
static void close_stream(Datum arg)
{
    Stream *stream = (Stream *)DatumGetPointer(arg);

    if (stream->request)
        lora_request_free(stream->request);
    stream->request = NULL;
}

static Stream *open_stream(FunctionCallInfo fcinfo, FuncCallContext *context)
{
    MemoryContext before = MemoryContextSwitchTo(context->multi_call_memory_ctx);
    ReturnSetInfo *set = (ReturnSetInfo *)fcinfo->resultinfo;
    Stream *stream = palloc0(sizeof(*stream));
    ol_error error;

    if (get_call_result_type(fcinfo, NULL, &context->tuple_desc) != TYPEFUNC_COMPOSITE)
        elog(ERROR, "lora_stream must return rows");
    context->tuple_desc = BlessTupleDesc(context->tuple_desc);
    stream->null_on_error = lora_on_error_null(fcinfo, LORA_ARG_ON_ERROR);
    RegisterExprContextCallback(set->econtext, close_stream, PointerGetDatum(stream));
    if (!lora_spec_from_arguments(fcinfo, "lora_stream", &stream->spec, &error)) {
        if (!stream->null_on_error)
            lora_raise(&error);
    } else {
        /* the arguments live as long as the call: detoasted copies of the texts */
        stream->spec.prompt = pnstrdup(stream->spec.prompt, stream->spec.prompt_len);
        stream->spec.sampling.logprobs = 0;
        stream->request = lora_request_start(&stream->spec, true, &error);
        if (!stream->request && !stream->null_on_error)
            lora_raise(&error);
    }
    MemoryContextSwitchTo(before);
    return stream;
}

static Datum token_row(FuncCallContext *context, const LoraToken *token)
{
    Datum values[4];
    bool nulls[4] = {false};

    values[0] = Int32GetDatum(token->index);
    values[1] = Int32GetDatum(token->token);
    nulls[1] = nulls[3] = token->token < 0;
    values[2] = PointerGetDatum(lora_text_from_utf8(token->text, strlen(token->text)));
    values[3] = Float4GetDatum(token->logprob);
    return HeapTupleGetDatum(heap_form_tuple(context->tuple_desc, values, nulls));
}

Datum lora_stream(PG_FUNCTION_ARGS)
{
    FuncCallContext *context;
    MemoryContext before;
    LoraToken *token;
    Stream *stream;
    ol_error error;

    if (SRF_IS_FIRSTCALL()) {
        context = SRF_FIRSTCALL_INIT();
        if (PG_ARGISNULL(LORA_ARG_PROMPT))
            SRF_RETURN_DONE(context);
        context->user_fctx = open_stream(fcinfo, context);
    }
    context = SRF_PERCALL_SETUP();
    stream = context->user_fctx;
    if (!stream->request)
        SRF_RETURN_DONE(context);
    before = MemoryContextSwitchTo(context->multi_call_memory_ctx);
    token = lora_request_next_token(stream->request);
    MemoryContextSwitchTo(before);
    if (token)
        SRF_RETURN_NEXT(context, token_row(context, token));
    if (lora_request_failed(stream->request, &error)) {
        if (!stream->null_on_error)
            lora_raise(&error);
    } else {
        (void)lora_attribute(&stream->spec, lora_request_result(stream->request));
    }
    close_stream(PointerGetDatum(stream));
    UnregisterExprContextCallback(((ReturnSetInfo *)fcinfo->resultinfo)->econtext, close_stream,
                                  PointerGetDatum(stream));
    SRF_RETURN_DONE(context);
}
