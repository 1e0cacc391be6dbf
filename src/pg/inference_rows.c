/* inference_rows.c: see inference_rows.h. */
#include "inference_rows.h"

#include "access/xact.h"
#include "append.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "rows.h"
#include "spi.h"
#include "utf8.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/* -- inferences --------------------------------------------------------------------------- */

/* The table's columns. */
enum {
    IN_ID,
    IN_AT,
    IN_ROLE,
    IN_ROLE_ID,
    IN_FUNCTION,
    IN_MODEL,
    IN_PROMPT_TOKENS,
    IN_CACHED_TOKENS,
    IN_COMPLETION_TOKENS,
    IN_FINISH,
    IN_TEMPERATURE,
    IN_TOP_K,
    IN_TOP_P,
    IN_MIN_P,
    IN_REPETITION,
    IN_PRESENCE,
    IN_FREQUENCY,
    IN_BIAS,
    IN_STOP,
    IN_IGNORE_EOS,
    IN_MAX_TOKENS,
    IN_SEED,
    IN_DEVICE,
    IN_QUEUE,
    IN_PREFILL,
    IN_DECODE,
    IN_SALT,
    IN_COUNT
};

static Datum stops_datum(const ol_sampling *s)
{
    Datum stops[OL_MAX_STOPS];

    for (int i = 0; i < s->n_stops; i++)
        stops[i] = PointerGetDatum(lora_text_from_utf8(s->stops[i].data, s->stops[i].len));
    return PointerGetDatum(construct_array(stops, s->n_stops, TEXTOID, -1, false, TYPALIGN_INT));
}

/* {"17": -5, ...}, as the argument was. */
static Datum bias_datum(const ol_sampling *s)
{
    StringInfoData json;

    initStringInfo(&json);
    for (int i = 0; i < s->n_bias; i++) {
        char *number =
            DatumGetCString(DirectFunctionCall1(float4out, Float4GetDatum(s->bias[i].bias)));

        appendStringInfo(&json, "%c\"%d\":%s", i ? ',' : '{', s->bias[i].token, number);
    }
    appendStringInfoChar(&json, '}');
    return DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data));
}

static void put_sampling(Datum *values, bool *nulls, const ol_sampling *s)
{
    values[IN_TEMPERATURE] = Float4GetDatum(s->temperature);
    values[IN_TOP_K] = Int32GetDatum(s->top_k);
    values[IN_TOP_P] = Float4GetDatum(s->top_p);
    values[IN_MIN_P] = Float4GetDatum(s->min_p);
    values[IN_REPETITION] = Float4GetDatum(s->repetition_penalty);
    values[IN_PRESENCE] = Float4GetDatum(s->presence_penalty);
    values[IN_FREQUENCY] = Float4GetDatum(s->frequency_penalty);
    values[IN_IGNORE_EOS] = BoolGetDatum(s->ignore_eos);
    values[IN_MAX_TOKENS] = Int32GetDatum(s->max_tokens);
    values[IN_SEED] = Int64GetDatum((int64)s->seed);
    if (s->n_bias)
        values[IN_BIAS] = bias_datum(s);
    else
        nulls[IN_BIAS] = true;
    if (s->n_stops)
        values[IN_STOP] = stops_datum(s);
    else
        nulls[IN_STOP] = true;
}

void lora_write_inference(const LoraSpec *spec, const LoraResult *result, Oid caller)
{
    static const LoraAppend how = {"inferences", IN_COUNT, 1};
    static LoraStatement insert = {
        "INSERT INTO openlora.inferences (id, at, role, role_id, function, base_model,"
        " prompt_tokens, cached_tokens, completion_tokens, finish_reason, temperature, top_k,"
        " top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias,"
        " stop, ignore_eos, max_tokens, seed, device, queue_ms, prefill_ms, decode_ms, salt)"
        " OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3, $4, $5,"
        " $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23,"
        " $24, $25, $26, $27)",
        IN_COUNT,
        {INT8OID,   TIMESTAMPTZOID, NAMEOID,   REGROLEOID, TEXTOID,      BYTEAOID,  INT4OID,
         INT4OID,   INT4OID,        TEXTOID,   FLOAT4OID,  INT4OID,      FLOAT4OID, FLOAT4OID,
         FLOAT4OID, FLOAT4OID,      FLOAT4OID, JSONBOID,   TEXTARRAYOID, BOOLOID,   INT4OID,
         INT8OID,   TEXTOID,        FLOAT8OID, FLOAT8OID,  FLOAT8OID,    BYTEAOID}};
    static const char *const finishes[] = {"eos", "stop", "length", "scored"};
    const ol_engine_info *engine = &result->engine;
    NameData role;
    Datum values[IN_COUNT];
    bool nulls[IN_COUNT] = {false};

    namestrcpy(&role, GetUserNameFromId(caller, false));
    values[IN_ID] = Int64GetDatum(result->inference);
    values[IN_AT] = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
    values[IN_ROLE] = NameGetDatum(&role);
    values[IN_ROLE_ID] = ObjectIdGetDatum(caller);
    values[IN_FUNCTION] = CStringGetTextDatum(spec->function);
    values[IN_MODEL] = lora_digest_datum(&engine->model_digest);
    values[IN_PROMPT_TOKENS] = Int32GetDatum(result->prompt_tokens);
    values[IN_CACHED_TOKENS] = Int32GetDatum(result->cached_tokens);
    values[IN_COMPLETION_TOKENS] = Int32GetDatum(result->completion_tokens);
    values[IN_FINISH] = CStringGetTextDatum(finishes[result->finish]);
    put_sampling(values, nulls, &spec->sampling);
    values[IN_DEVICE] = PointerGetDatum(
        lora_text_from_utf8(engine->device.description, strlen(engine->device.description)));
    values[IN_QUEUE] = Float8GetDatum((double)result->queue_us / 1000);
    values[IN_PREFILL] = Float8GetDatum((double)result->prefill_us / 1000);
    values[IN_DECODE] = Float8GetDatum((double)result->decode_us / 1000);
    values[IN_SALT] = lora_digest_datum(&result->salt);
    nulls[IN_SALT] = lora_keep_text == LORA_KEEP_NOTHING;
    lora_insert_rows(&how, &insert, 1, values, nulls);
}

/* -- what belongs to it ------------------------------------------------------------------- */

void lora_write_inference_texts(const LoraSpec *spec, const LoraResult *result)
{
    static LoraStatement insert = {
        "INSERT INTO openlora.inference_texts (inference, prompt, completion, output)"
        " VALUES ($1, $2, $3, $4)",
        4,
        {INT8OID, TEXTOID, TEXTOID, TEXTOID}};
    bool scored = spec->task == OL_TASK_SCORE;
    Datum values[4] = {Int64GetDatum(result->inference),
                       PointerGetDatum(lora_text_from_utf8(spec->prompt, spec->prompt_len))};
    char nulls[5] = "    ";

    nulls[scored ? 3 : 2] = 'n';
    if (scored)
        values[2] = PointerGetDatum(lora_text_from_utf8(spec->completion, spec->completion_len));
    else
        values[3] = PointerGetDatum(lora_text_from_utf8(result->text.data, result->text.len));
    lora_execute(&insert, values, nulls, false);
}

void lora_write_inference_adapters(int64 inference, const LoraSpec *spec, const int64 *parts)
{
    static const LoraAppend how = {"inference_adapters", 7, 0};
    static LoraStatement insert = {
        "INSERT INTO openlora.inference_adapters (inference, position, adapter, name, digest,"
        " weight, share) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        7,
        {INT8OID, INT4OID, INT8OID, TEXTOID, BYTEAOID, FLOAT8OID, INT4OID}};
    Datum values[7 * OL_MAX_REQUEST_ADAPTERS], *v = values;
    bool nulls[7 * OL_MAX_REQUEST_ADAPTERS] = {false};

    for (int i = 0; i < spec->n_adapters; i++) {
        const LoraAdapterRef *ref = &spec->adapters[i];

        *v++ = Int64GetDatum(inference);
        *v++ = Int32GetDatum(i + 1);
        *v++ = Int64GetDatum(ref->id);
        *v++ = CStringGetTextDatum(ref->name);
        *v++ = lora_digest_datum(&ref->digest);
        *v++ = Float8GetDatum(ref->weight);
        *v++ = Int32GetDatum((int32)parts[i]);
    }
    if (spec->n_adapters)
        lora_insert_rows(&how, &insert, spec->n_adapters, values, nulls);
}
