/*
 * attribution.c: see attribution.h.
 *
 * Four kinds of credit, each a whole of its own (a million parts), so that a policy can
 * weigh the kinds without touching what was recorded:
 *   model     the base model's owner
 *   compute   whoever runs the server: the owner of the extension
 *   adapter   by measured share among the adapters; within one by adapter_contributors
 *   dataset   by measured share; within one by adapter_datasets, dataset_contributors
 * What provenance leaves open is the owners': openlora.adapter_credits says how, and is
 * where one adapter's credits are read from. Where a role is credited and a contributor
 * stands for it, that contributor is.
 *
 * Parts per million times parts per million times parts per million is at most 10^18, which
 * an int64 holds: credits are exact products in units of 10^-12 parts per million, and only
 * the measured shares, which are floating point, are ever rounded (to parts per million, by
 * largest remainder). Shares are copied, so that later changes of provenance change nothing
 * that was written.
 */
#include "attribution.h"

#include "access/xact.h"
#include "append.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "find.h"
#include "lib/stringinfo.h"
#include "shared.h"
#include "spi.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utf8.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/snapmgr.h"

#define FINE INT64CONST(1000000000000) /* units of a credit in one part per million */
#define ADAPTER_OWNER 13               /* column of openlora.adapters */

void lora_attribution_prevent(void)
{
    if (!lora_attribution)
        return;
    PreventCommandIfReadOnly("an inference, which is attributed,");
    PreventCommandIfParallelMode("an inference, which is attributed,");
    PreventCommandDuringRecovery("an inference, which is attributed,");
}

static Datum digest_datum(const ol_digest *digest)
{
    bytea *bytes = palloc(VARHDRSZ + OL_DIGEST_BYTES);

    SET_VARSIZE(bytes, VARHDRSZ + OL_DIGEST_BYTES);
    memcpy(VARDATA(bytes), digest->bytes, OL_DIGEST_BYTES);
    return PointerGetDatum(bytes);
}

/* From the engine's UTF-8. */
static Datum text_datum(const char *utf8)
{
    return PointerGetDatum(lora_text_from_utf8(utf8, strlen(utf8)));
}

/* -- the base model ---------------------------------------------------------------------- */

/* Registering a model must not make other answers wait for this transaction, as a unique
 * key alone would: whoever does not get the lock at once leaves it to whoever has it. */
static bool may_register(const ol_digest *digest)
{
    Oid table = get_relname_relid("base_models", get_namespace_oid("openlora", false));
    LOCKTAG tag;
    uint16 part;

    memcpy(&part, digest->bytes, sizeof(part));
    SET_LOCKTAG_OBJECT(tag, MyDatabaseId, RelationRelationId, table, part);
    return LockAcquire(&tag, ExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL;
}

/* Registers the model at its first answer; returns its owner. */
static Oid note_model(const ol_engine_info *info, Oid default_owner)
{
    static const LoraFind find = {"base_models", "base_models_pkey", 1, F_BYTEAEQ, 6};
    static LoraStatement insert = {
        "INSERT INTO openlora.base_models (digest, name, architecture, format, parameters)"
        " VALUES ($1, $2, $3, $4, $5)",
        5,
        {BYTEAOID, TEXTOID, TEXTOID, TEXTOID, INT8OID}};
    Datum values[5] = {digest_datum(&info->model_digest), text_datum(info->model_name),
                       text_datum(info->architecture), text_datum(info->format),
                       Int64GetDatum(info->parameters)};
    Datum found[6];
    bool nulls[6];

    if (!lora_find_latest(&find, values[0], found, nulls)) {
        if (!may_register(&info->model_digest))
            return default_owner;
        if (!lora_find_latest(&find, values[0], found, nulls)) {
            lora_execute(&insert, values, NULL, false);
            return default_owner;
        }
    }
    return DatumGetObjectId(found[5]);
}

/* -- inferences ---------------------------------------------------------------------------- */

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

/* Rows of a table, by the short way or by the statement. */
static void insert_rows(const LoraAppend *how, LoraStatement *insert, int n, Datum *values,
                        const bool *nulls)
{
    char marks[LORA_MAX_ARGS];

    if (lora_append(how, n, values, nulls))
        return;
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < how->n_columns; k++)
            marks[k] = nulls[i * how->n_columns + k] ? 'n' : ' ';
        lora_execute(insert, values + i * how->n_columns, marks, false);
    }
}

static int64 insert_inference(const LoraSpec *spec, const LoraResult *result,
                              const ol_engine_info *info, Oid caller)
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
    NameData role;
    Datum values[IN_COUNT];
    bool nulls[IN_COUNT] = {false};

    namestrcpy(&role, GetUserNameFromId(caller, false));
    values[IN_ID] = Int64GetDatum(result->inference);
    values[IN_AT] = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
    values[IN_ROLE] = NameGetDatum(&role);
    values[IN_ROLE_ID] = ObjectIdGetDatum(caller);
    values[IN_FUNCTION] = CStringGetTextDatum(spec->function);
    values[IN_MODEL] = digest_datum(&info->model_digest);
    values[IN_PROMPT_TOKENS] = Int32GetDatum(result->prompt_tokens);
    values[IN_CACHED_TOKENS] = Int32GetDatum(result->cached_tokens);
    values[IN_COMPLETION_TOKENS] = Int32GetDatum(result->completion_tokens);
    values[IN_FINISH] = CStringGetTextDatum(finishes[result->finish]);
    put_sampling(values, nulls, &spec->sampling);
    values[IN_DEVICE] = text_datum(info->device.description);
    values[IN_QUEUE] = Float8GetDatum((double)result->queue_us / 1000);
    values[IN_PREFILL] = Float8GetDatum((double)result->prefill_us / 1000);
    values[IN_DECODE] = Float8GetDatum((double)result->decode_us / 1000);
    values[IN_SALT] = digest_datum(&result->salt);
    nulls[IN_SALT] = lora_keep_text == LORA_KEEP_NOTHING;
    insert_rows(&how, &insert, 1, values, nulls);
    return result->inference;
}

static void insert_texts(int64 inference, const LoraSpec *spec, const LoraResult *result)
{
    static LoraStatement insert = {
        "INSERT INTO openlora.inference_texts (inference, prompt, completion, output)"
        " VALUES ($1, $2, $3, $4)",
        4,
        {INT8OID, TEXTOID, TEXTOID, TEXTOID}};
    bool scored = spec->task == OL_TASK_SCORE;
    Datum values[4] = {Int64GetDatum(inference),
                       PointerGetDatum(lora_text_from_utf8(spec->prompt, spec->prompt_len))};
    char nulls[5] = "    ";

    nulls[scored ? 3 : 2] = 'n';
    if (scored)
        values[2] = PointerGetDatum(lora_text_from_utf8(spec->completion, spec->completion_len));
    else
        values[3] = PointerGetDatum(lora_text_from_utf8(result->text.data, result->text.len));
    lora_execute(&insert, values, nulls, false);
}

static void insert_adapters(int64 inference, const LoraSpec *spec, const int64 *parts)
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
        *v++ = digest_datum(&ref->digest);
        *v++ = Float8GetDatum(ref->weight);
        *v++ = Int32GetDatum((int32)parts[i]);
    }
    if (spec->n_adapters)
        insert_rows(&how, &insert, spec->n_adapters, values, nulls);
}

/* -- credits --------------------------------------------------------------------------------- */

/* Strings in the database's encoding. */
typedef struct Credit {
    const char *kind, *adapter, *dataset, *contributor; /* adapter, dataset: may be NULL */
    int64 contributor_id;                               /* 0: a role */
    Oid role;                                           /* that it stands for, or none */
    int64 share;                                        /* in units of 10^-12 parts per million */
} Credit;

typedef struct Credits {
    Credit *list;
    int n;
} Credits;

/* A role's contributor, or the role itself by its name. */
static void stand_for(const Credits *credits, Oid role, Credit *credit)
{
    static const LoraFind find = {"contributors", "contributors_role_key", 3, F_OIDEQ, 3};
    Datum values[3];
    bool nulls[3];

    credit->role = role;
    for (int i = 0; i < credits->n; i++)
        if (credits->list[i].role == role) {
            credit->contributor = credits->list[i].contributor;
            credit->contributor_id = credits->list[i].contributor_id;
            return;
        }
    if (lora_find(&find, ObjectIdGetDatum(role), GetActiveSnapshot(), values, nulls)) {
        credit->contributor_id = DatumGetInt64(values[0]);
        credit->contributor = TextDatumGetCString(values[1]);
    } else {
        Name name = DatumGetName(DirectFunctionCall1(pg_get_userbyid, ObjectIdGetDatum(role)));

        credit->contributor = pstrdup(NameStr(*name));
    }
}

/* Whoever stands for a role. */
static void credit_role(Credits *credits, const char *kind, Oid role)
{
    Credit credit = {.kind = kind, .share = LORA_WHOLE * FINE};

    stand_for(credits, role, &credit);
    credits->list[credits->n++] = credit;
}

/* An adapter without provenance is its owner's alone, which is found in a tenth of the
 * time that the view takes. False for all others. */
static bool credit_owner(Credits *credits, const LoraAdapterRef *ref, int64 part)
{
    static const LoraFind people = {"adapter_contributors", "adapter_contributors_pkey", 1,
                                    F_INT8EQ, 1};
    static const LoraFind datasets = {"adapter_datasets", "adapter_datasets_pkey", 1, F_INT8EQ, 1};
    static const LoraFind adapter = {"adapters", "adapters_pkey", 1, F_INT8EQ, ADAPTER_OWNER};
    Datum id = Int64GetDatum(ref->id), values[ADAPTER_OWNER];
    bool nulls[ADAPTER_OWNER];
    Credit credit = {.adapter = ref->name, .share = LORA_WHOLE * LORA_WHOLE * part};
    Snapshot snapshot = GetActiveSnapshot();

    if (lora_find(&people, id, snapshot, values, nulls) ||
        lora_find(&datasets, id, snapshot, values, nulls) ||
        !lora_find(&adapter, id, snapshot, values, nulls))
        return false;
    stand_for(credits, DatumGetObjectId(values[ADAPTER_OWNER - 1]), &credit);
    credits->list = repalloc(credits->list, sizeof(Credit) * (Size)(credits->n + 2));
    credit.kind = "adapter";
    credits->list[credits->n++] = credit;
    credit.kind = "dataset";
    credits->list[credits->n++] = credit;
    return true;
}

/* What openlora.adapter_credits says of an adapter, scaled to its part of the request. */
static void credit_adapter(Credits *credits, const LoraAdapterRef *ref, int64 part)
{
    static LoraStatement find = {
        "SELECT kind, dataset, contributor, contributor_id,"
        " (pg_catalog.sum(share) OPERATOR(pg_catalog.*) 1000000.0)::pg_catalog.int8"
        " FROM openlora.adapter_credits WHERE adapter OPERATOR(pg_catalog.=) $1"
        " GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4",
        1,
        {INT8OID}};
    Datum id = Int64GetDatum(ref->id);
    int n = (int)lora_execute(&find, &id, NULL, true);
    int64 sum = 0;

    credits->list = repalloc(credits->list, sizeof(Credit) * (Size)(credits->n + n));
    for (int i = 0; i < n; i++) {
        int64 share = lora_int64((uint64)i, 5); /* in millionths of a part per million */

        credits->list[credits->n++] = (Credit){.kind = lora_text((uint64)i, 1),
                                               .adapter = ref->name,
                                               .dataset = lora_text((uint64)i, 2),
                                               .contributor = lora_text((uint64)i, 3),
                                               .contributor_id = lora_int64((uint64)i, 4),
                                               .share = share * part};
        sum += share;
        if (share < 0)
            sum = -1;
    }
    if (sum != 2 * LORA_WHOLE * LORA_WHOLE) /* the sums are checked when the transaction ends */
        ereport(ERROR, (errcode(ERRCODE_CHECK_VIOLATION),
                        errmsg("shares of adapter \"%s\" exceed the whole", ref->name),
                        errhint("Set its provenance right before using it.")));
}

/* -- writing credits ------------------------------------------------------------------------- */

#define CREDIT_COLUMNS 8

static void put_text(Datum *value, bool *is_null, const char *text)
{
    *is_null = text == NULL;
    *value = text ? CStringGetTextDatum(text) : (Datum)0;
}

static Datum trimmed(Datum number)
{
    return DirectFunctionCall1(numeric_trim_scale, number);
}

static void put_credit(Datum *values, bool *nulls, const Credit *c, int64 tokens)
{
    Datum share = NumericGetDatum(int64_div_fast_to_numeric(c->share, 12));
    Datum millionth = NumericGetDatum(int64_div_fast_to_numeric(tokens, 6));

    put_text(&values[1], &nulls[1], c->kind);
    put_text(&values[2], &nulls[2], c->adapter);
    put_text(&values[3], &nulls[3], c->dataset);
    put_text(&values[4], &nulls[4], c->contributor);
    values[5] = Int64GetDatum(c->contributor_id);
    nulls[5] = c->contributor_id == 0;
    values[6] = trimmed(share);
    values[7] = trimmed(DirectFunctionCall2(numeric_mul, share, millionth));
    nulls[6] = nulls[7] = false;
}

static void insert_credits(int64 inference, const Credits *credits, int64 tokens)
{
    static const LoraAppend how = {"attributions", CREDIT_COLUMNS, 2};
    static LoraStatement insert = {
        "INSERT INTO openlora.attributions (inference, kind, adapter, dataset, contributor,"
        " contributor_id, share, tokens) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        CREDIT_COLUMNS,
        {INT8OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, INT8OID, NUMERICOID, NUMERICOID}};
    Datum *values = palloc(sizeof(Datum) * (Size)(credits->n * CREDIT_COLUMNS));
    bool *nulls = palloc(sizeof(bool) * (Size)(credits->n * CREDIT_COLUMNS));
    int n = 0;

    for (int i = 0; i < credits->n; i++)
        if (credits->list[i].share > 0) {
            values[n * CREDIT_COLUMNS] = Int64GetDatum(inference);
            nulls[n * CREDIT_COLUMNS] = false;
            put_credit(values + n * CREDIT_COLUMNS, nulls + n * CREDIT_COLUMNS, &credits->list[i],
                       tokens);
            n++;
        }
    insert_rows(&how, &insert, n, values, nulls);
}

/* -- the whole ------------------------------------------------------------------------------- */

static int64 write_all(const LoraSpec *spec, const LoraResult *result, const ol_engine_info *info,
                       Oid caller)
{
    Credits credits = {.list = SPI_palloc(sizeof(Credit) * 2)};
    int64 parts[OL_MAX_REQUEST_ADAPTERS], inference;
    double shares[OL_MAX_REQUEST_ADAPTERS] = {0};
    Oid owner = lora_tables_owner();

    if (result->n_shares == spec->n_adapters) /* else all of them equal */
        memcpy(shares, result->shares, sizeof(double) * (Size)spec->n_adapters);
    lora_split_shares(spec->n_adapters, shares, parts);
    /* reading first: what is written must not be seen by it */
    credit_role(&credits, "compute", owner);
    for (int i = 0; i < spec->n_adapters; i++)
        if (!credit_owner(&credits, &spec->adapters[i], parts[i]))
            credit_adapter(&credits, &spec->adapters[i], parts[i]);
    credits.list = repalloc(credits.list, sizeof(Credit) * (Size)(credits.n + 1));
    credit_role(&credits, "model", note_model(info, owner));
    inference = insert_inference(spec, result, info, caller);
    insert_adapters(inference, spec, parts);
    if (lora_keep_text == LORA_KEEP_FULL)
        insert_texts(inference, spec, result);
    insert_credits(inference, &credits, (int64)result->prompt_tokens + result->completion_tokens);
    return inference;
}

int64 lora_attribute(const LoraSpec *spec, const LoraResult *result)
{
    LoraIdentity caller;
    ol_engine_info info;
    int64 inference;

    if (!lora_attribution)
        return 0;
    LWLockAcquire(lora_shared->lock, LW_SHARED);
    info = lora_shared->info;
    LWLockRelease(lora_shared->lock);
    if (SPI_connect() != SPI_OK_CONNECT)
        elog(ERROR, "SPI_connect failed");
    lora_become_owner(&caller);
    inference = write_all(spec, result, &info, caller.user);
    lora_become_caller(&caller);
    SPI_finish();
    return inference;
}
