/* arguments.c: see arguments.h. Every figure is checked here, before anything is sent. */
#include "arguments.h"

#include <float.h>
#include <math.h>

#include "attribution.h"
#include "catalog/pg_type.h"
#include "utf8.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"

#define MAX_BIAS FLT_MAX

bool lora_on_error_null(FunctionCallInfo fcinfo, int argument)
{
    char *choice = PG_ARGISNULL(argument) ? "raise" : text_to_cstring(PG_GETARG_TEXT_PP(argument));

    if (strcmp(choice, "null") == 0)
        return true;
    if (strcmp(choice, "raise") != 0)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("invalid value for on_error: \"%s\"", choice),
                        errhint("Use 'raise' or 'null'.")));
    return false;
}

/* -- lists ------------------------------------------------------------------------------- */

static bool read_stop(text *value, int place, ol_text *stop, ol_error *error)
{
    Size length = VARSIZE_ANY_EXHDR(value);

    if (length > 0 && length <= OL_MAX_STOP_BYTES) {
        if (!lora_utf8_argument(value, "a stop string", &stop->data, &stop->len, error))
            return false;
        length = stop->len;
    }
    if (length == 0) {
        ol_fail(error, OL_INVALID, "stop string %d is empty", place);
        return false;
    }
    if (length > OL_MAX_STOP_BYTES) {
        ol_fail(error, OL_LIMIT, "stop string %d is too long: %zu bytes", place, length);
        ol_detail(error, "The limit is %d bytes.", OL_MAX_STOP_BYTES);
        return false;
    }
    return true;
}

static bool read_stops(ArrayType *array, ol_sampling *sampling, ol_error *error)
{
    Datum *values;
    bool *nulls;
    ol_text *stops;
    int n;

    deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls, &n);
    if (n > OL_MAX_STOPS) {
        ol_fail(error, OL_LIMIT, "too many stop strings: %d", n);
        ol_detail(error, "There can be at most %d.", OL_MAX_STOPS);
        return false;
    }
    stops = palloc0(sizeof(*stops) * (Size)(n + 1));
    for (int i = 0; i < n; i++) {
        if (nulls[i]) {
            ol_fail(error, OL_INVALID, "stop holds NULL");
            return false;
        }
        if (!read_stop(DatumGetTextPP(values[i]), i + 1, &stops[i], error))
            return false;
    }
    sampling->stops = stops;
    sampling->n_stops = n;
    return true;
}

static bool read_bias_of(const JsonbValue *value, ol_logit_bias *bias, ol_error *error)
{
    float8 given;

    if (value->type != jbvNumeric) {
        ol_fail(error, OL_INVALID, "logit_bias of token %d is not a number", bias->token);
        return false;
    }
    given = DatumGetFloat8(
        DirectFunctionCall1(numeric_float8_no_overflow, NumericGetDatum(value->val.numeric)));
    if (!(fabs(given) <= MAX_BIAS)) {
        ol_fail(error, OL_INVALID, "logit_bias of token %d is out of range: %g", bias->token,
                given);
        ol_detail(error, "It must be from %g to %g.", -MAX_BIAS, MAX_BIAS);
        return false;
    }
    bias->bias = (float)given;
    return true;
}

/* {"17": -5.0, "42": 3}: token id to what is added to its logit. */
static bool read_bias(Jsonb *jsonb, ol_sampling *sampling, ol_error *error)
{
    JsonbIterator *it = JsonbIteratorInit(&jsonb->root);
    JsonbIteratorToken token;
    JsonbValue value;
    ol_logit_bias *bias;
    int n = 0;

    if (!JB_ROOT_IS_OBJECT(jsonb)) {
        ol_fail(error, OL_INVALID, "logit_bias is not an object");
        ol_hint(error, "Write token ids and numbers: {\"17\": -5.0}.");
        return false;
    }
    if (JB_ROOT_COUNT(jsonb) > OL_MAX_LOGIT_BIAS) {
        ol_fail(error, OL_LIMIT, "logit_bias has too many members: %d", (int)JB_ROOT_COUNT(jsonb));
        ol_detail(error, "There can be at most %d.", OL_MAX_LOGIT_BIAS);
        return false;
    }
    bias = palloc0(sizeof(*bias) * (Size)(JB_ROOT_COUNT(jsonb) + 1));
    while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE) {
        if (token == WJB_KEY) {
            char *key = pnstrdup(value.val.string.val, value.val.string.len), *end;
            long id = strtol(key, &end, 10);

            if (!key[0] || *end || id < 0 || id > PG_INT32_MAX) {
                ol_fail(error, OL_INVALID, "logit_bias has the key \"%s\", which is no token id",
                        lora_name_as_utf8(key));
                return false;
            }
            bias[n].token = (int32)id;
        } else if (token == WJB_VALUE) {
            if (!read_bias_of(&value, &bias[n], error))
                return false;
            n++;
        }
    }
    sampling->bias = bias;
    sampling->n_bias = n;
    return true;
}

/* -- numbers ----------------------------------------------------------------------------- */

/* An argument that is a number. */
typedef struct Figure {
    int argument;
    const char *name;
    double low, high;
} Figure;

static bool read_float(FunctionCallInfo fcinfo, Figure figure, float *value, ol_error *error)
{
    float8 given;

    if (PG_ARGISNULL(figure.argument))
        return true;
    given = PG_GETARG_FLOAT8(figure.argument);
    if (!(given >= figure.low && given <= figure.high)) {
        ol_fail(error, OL_INVALID, "%s is out of range: %g", figure.name, given);
        ol_detail(error, "It must be from %g to %g.", figure.low, figure.high);
        return false;
    }
    *value = (float)given;
    return true;
}

static bool read_int(FunctionCallInfo fcinfo, Figure figure, int *value, ol_error *error)
{
    int given;

    if (PG_ARGISNULL(figure.argument))
        return true;
    given = PG_GETARG_INT32(figure.argument);
    if (given < figure.low || given > figure.high) {
        ol_fail(error, OL_INVALID, "%s is out of range: %d", figure.name, given);
        ol_detail(error, "It must be from %.0f to %.0f.", figure.low, figure.high);
        return false;
    }
    *value = given;
    return true;
}

static uint64 random_seed(void)
{
    uint64 seed;

    if (!pg_strong_random(&seed, sizeof(seed)))
        ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate a seed")));
    return seed >> 1; /* a bigint that is not negative */
}

static bool read_numbers(FunctionCallInfo fcinfo, ol_sampling *s, ol_error *error)
{
    static const Figure max_tokens = {LORA_ARG_MAX_TOKENS, "max_tokens", 0, PG_INT32_MAX},
                        temperature = {LORA_ARG_TEMPERATURE, "temperature", 0, 100},
                        top_k = {LORA_ARG_TOP_K, "top_k", 0, PG_INT32_MAX},
                        top_p = {LORA_ARG_TOP_P, "top_p", 0, 1},
                        min_p = {LORA_ARG_MIN_P, "min_p", 0, 1},
                        repetition = {LORA_ARG_REPETITION, "repetition_penalty", 0.001, 1000},
                        presence = {LORA_ARG_PRESENCE, "presence_penalty", -100, 100},
                        frequency = {LORA_ARG_FREQUENCY, "frequency_penalty", -100, 100};

    return read_int(fcinfo, max_tokens, &s->max_tokens, error) &&
           read_float(fcinfo, temperature, &s->temperature, error) &&
           read_int(fcinfo, top_k, &s->top_k, error) &&
           read_float(fcinfo, top_p, &s->top_p, error) &&
           read_float(fcinfo, min_p, &s->min_p, error) &&
           read_float(fcinfo, repetition, &s->repetition_penalty, error) &&
           read_float(fcinfo, presence, &s->presence_penalty, error) &&
           read_float(fcinfo, frequency, &s->frequency_penalty, error);
}

/* -- the whole --------------------------------------------------------------------------- */

bool lora_spec_adapters(LoraSpec *spec, ArrayType *ids, ArrayType *weights, ol_error *error)
{
    lora_attribution_prevent();
    spec->n_adapters = lora_adapters_resolve(ids, weights, &spec->adapters, error);
    return spec->n_adapters >= 0;
}

bool lora_spec_from_arguments(FunctionCallInfo fcinfo, const char *function, LoraSpec *spec,
                              ol_error *error)
{
    static const Figure logprobs = {LORA_ARG_LOGPROBS, "logprobs", 0, OL_MAX_LOGPROBS};
    ol_sampling *s = &spec->sampling;

    memset(spec, 0, sizeof(*spec));
    spec->function = function;
    spec->task = OL_TASK_GENERATE;
    s->top_p = 1;
    s->repetition_penalty = 1;
    s->logprobs = -1;
    s->max_tokens = lora_default_max_tokens;
    s->seed = PG_ARGISNULL(LORA_ARG_SEED) ? random_seed() : (uint64)PG_GETARG_INT64(LORA_ARG_SEED);
    s->ignore_eos = !PG_ARGISNULL(LORA_ARG_IGNORE_EOS) && PG_GETARG_BOOL(LORA_ARG_IGNORE_EOS);
    if (!read_numbers(fcinfo, s, error))
        return false;
    if (PG_NARGS() > LORA_ARG_LOGPROBS && !read_int(fcinfo, logprobs, &s->logprobs, error))
        return false;
    if (!PG_ARGISNULL(LORA_ARG_LOGIT_BIAS) &&
        !read_bias(PG_GETARG_JSONB_P(LORA_ARG_LOGIT_BIAS), s, error))
        return false;
    if (!PG_ARGISNULL(LORA_ARG_STOP) && !read_stops(PG_GETARG_ARRAYTYPE_P(LORA_ARG_STOP), s, error))
        return false;
    if (!lora_utf8_argument(PG_GETARG_TEXT_PP(LORA_ARG_PROMPT), "the prompt", &spec->prompt,
                            &spec->prompt_len, error))
        return false;
    return lora_spec_adapters(
        spec, PG_ARGISNULL(LORA_ARG_ADAPTERS) ? NULL : PG_GETARG_ARRAYTYPE_P(LORA_ARG_ADAPTERS),
        PG_ARGISNULL(LORA_ARG_WEIGHTS) ? NULL : PG_GETARG_ARRAYTYPE_P(LORA_ARG_WEIGHTS), error);
}
