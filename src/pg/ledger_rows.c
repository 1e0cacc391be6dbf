/* ledger_rows.c: see ledger_rows.h. */
#include "ledger_rows.h"

#include "catalog/pg_type.h"
#include "ledger_entry.h"
#include "ledger_tree.h"
#include "spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

/* -- values ---------------------------------------------------------------------------------- */

static Datum digest_value(const ol_digest *digest)
{
    bytea *bytes = palloc(VARHDRSZ + OL_DIGEST_BYTES);

    SET_VARSIZE(bytes, VARHDRSZ + OL_DIGEST_BYTES);
    memcpy(VARDATA(bytes), digest->bytes, OL_DIGEST_BYTES);
    return PointerGetDatum(bytes);
}

static Datum digests_value(const LoraMeter *meter)
{
    Datum values[OL_MAX_REQUEST_ADAPTERS];

    for (int i = 0; i < meter->n_adapters; i++)
        values[i] = digest_value(&meter->adapters[i]);
    return PointerGetDatum(
        construct_array(values, meter->n_adapters, BYTEAOID, -1, false, TYPALIGN_INT));
}

static Datum ids_value(const LoraMeter *meter)
{
    Datum values[OL_MAX_REQUEST_ADAPTERS];

    for (int i = 0; i < meter->n_adapters; i++)
        values[i] = Int64GetDatum(meter->adapter_ids[i]);
    return PointerGetDatum(
        construct_array(values, meter->n_adapters, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

static Datum weights_value(const LoraMeter *meter)
{
    Datum values[OL_MAX_REQUEST_ADAPTERS];

    for (int i = 0; i < meter->n_adapters; i++)
        values[i] = Float8GetDatum(meter->weights[i]);
    return PointerGetDatum(
        construct_array(values, meter->n_adapters, FLOAT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

static Datum shares_value(const LoraReceipt *receipt)
{
    Datum values[OL_MAX_REQUEST_ADAPTERS];

    for (int i = 0; i < receipt->meter.n_adapters; i++)
        values[i] = Int32GetDatum(receipt->shares[i]);
    return PointerGetDatum(
        construct_array(values, receipt->meter.n_adapters, INT4OID, 4, true, TYPALIGN_INT));
}

static Datum device_value(const LoraReceipt *receipt)
{
    char plain[LORA_DEVICE_NAME];

    lora_plain_device(receipt, plain);
    return CStringGetTextDatum(plain);
}

/* -- writing ----------------------------------------------------------------------------- */

enum {
    RE_LEAF,
    RE_AT,
    RE_DATABASE,
    RE_ROLE,
    RE_ROLE_ID,
    RE_INFERENCE,
    RE_ATTEMPT,
    RE_OUTCOME,
    RE_TASK,
    RE_MODEL,
    RE_DEVICE,
    RE_INPUT,
    RE_CACHED,
    RE_OUTPUT,
    RE_TEMPERATURE,
    RE_TOP_K,
    RE_TOP_P,
    RE_MIN_P,
    RE_REPETITION,
    RE_PRESENCE,
    RE_FREQUENCY,
    RE_MAX_TOKENS,
    RE_IGNORE_EOS,
    RE_SEED,
    RE_ADAPTERS,
    RE_WEIGHTS,
    RE_SHARES,
    RE_PROMPT_DIGEST,
    RE_OUTPUT_DIGEST,
    RE_ADAPTER_IDS,
    RE_ROLE_SALT,
    RE_COUNT
};

static void put_request(Datum *values, const LoraMeter *meter)
{
    values[RE_TASK] = CStringGetTextDatum(meter->task == OL_TASK_SCORE ? "score" : "generate");
    values[RE_TEMPERATURE] = Float4GetDatum(meter->temperature);
    values[RE_TOP_K] = Int32GetDatum(meter->top_k);
    values[RE_TOP_P] = Float4GetDatum(meter->top_p);
    values[RE_MIN_P] = Float4GetDatum(meter->min_p);
    values[RE_REPETITION] = Float4GetDatum(meter->repetition_penalty);
    values[RE_PRESENCE] = Float4GetDatum(meter->presence_penalty);
    values[RE_FREQUENCY] = Float4GetDatum(meter->frequency_penalty);
    values[RE_MAX_TOKENS] = Int32GetDatum(meter->max_tokens);
    values[RE_IGNORE_EOS] = BoolGetDatum(meter->ignore_eos != 0);
    values[RE_SEED] = Int64GetDatum((int64)meter->seed);
    values[RE_ADAPTERS] = digests_value(meter);
    values[RE_ADAPTER_IDS] = ids_value(meter);
    values[RE_WEIGHTS] = weights_value(meter);
    values[RE_PROMPT_DIGEST] = digest_value(&meter->prompt);
}

static void insert(LoraReceipt *receipt, int64 leaf)
{
    static LoraStatement statement = {
        "INSERT INTO openlora.receipts (leaf, at, database, role, role_id, inference, attempt,"
        " outcome, task, base_model, device, input_tokens, cached_tokens, output_tokens,"
        " temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,"
        " frequency_penalty, max_tokens, ignore_eos, seed, adapters, weights, shares,"
        " prompt_digest, output_digest, adapter_ids, role_salt)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,"
        " $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31)",
        RE_COUNT,
        {INT8OID,       TIMESTAMPTZOID, OIDOID,       NAMEOID,  REGROLEOID, INT8OID,
         INT4OID,       TEXTOID,        TEXTOID,      BYTEAOID, TEXTOID,    INT4OID,
         INT4OID,       INT4OID,        FLOAT4OID,    INT4OID,  FLOAT4OID,  FLOAT4OID,
         FLOAT4OID,     FLOAT4OID,      FLOAT4OID,    INT4OID,  BOOLOID,    INT8OID,
         BYTEAARRAYOID, FLOAT8ARRAYOID, INT4ARRAYOID, BYTEAOID, BYTEAOID,   INT8ARRAYOID,
         BYTEAOID}};
    LoraMeter *meter = &receipt->meter;
    Datum values[RE_COUNT];

    values[RE_LEAF] = Int64GetDatum(leaf);
    values[RE_AT] = TimestampTzGetDatum(receipt->at);
    values[RE_DATABASE] = ObjectIdGetDatum(meter->database);
    values[RE_ROLE] = NameGetDatum(&meter->role_name);
    values[RE_ROLE_ID] = ObjectIdGetDatum(meter->role);
    values[RE_INFERENCE] = Int64GetDatum(meter->inference);
    values[RE_ATTEMPT] = Int32GetDatum(meter->attempt);
    values[RE_OUTCOME] = CStringGetTextDatum(lora_outcomes[receipt->outcome]);
    values[RE_MODEL] = digest_value(&receipt->base_model);
    values[RE_DEVICE] = device_value(receipt);
    values[RE_INPUT] = Int32GetDatum(receipt->input_tokens);
    values[RE_CACHED] = Int32GetDatum(receipt->cached_tokens);
    values[RE_OUTPUT] = Int32GetDatum(receipt->output_tokens);
    put_request(values, meter);
    values[RE_SHARES] = shares_value(receipt);
    values[RE_OUTPUT_DIGEST] = digest_value(&receipt->output);
    values[RE_ROLE_SALT] = digest_value(&receipt->role_salt);
    lora_execute(&statement, values, NULL, false);
}

/* Its place in the tree, in the same transaction. */
static void integrate(const LoraReceipt *receipt, uint64 leaf)
{
    ol_buf entry = {0};
    ol_digest hash;

    lora_entry_from_receipt(receipt, leaf, &entry);
    ol_leaf_hash(entry.data, entry.len, &hash);
    ol_buf_free(&entry);
    lora_tree_append(leaf, &hash);
}

void lora_receipt_write(LoraReceipt *receipt, int64 leaf)
{
    lora_make_salt(&receipt->role_salt);
    insert(receipt, leaf);
    integrate(receipt, (uint64)leaf);
}

bool lora_receipt_is_written(const LoraReceipt *receipt)
{
    static LoraStatement find = {
        "SELECT 1 FROM openlora.receipts"
        " WHERE inference OPERATOR(pg_catalog.=) $1"
        " AND attempt OPERATOR(pg_catalog.=) $2"
        " AND prompt_digest OPERATOR(pg_catalog.=) $3"
        " AND (outcome OPERATOR(pg_catalog.=) 'announced'::pg_catalog.text)"
        " OPERATOR(pg_catalog.=) $4",
        4,
        {INT8OID, INT4OID, BYTEAOID, BOOLOID}};
    Datum values[4] = {Int64GetDatum(receipt->meter.inference),
                       Int32GetDatum(receipt->meter.attempt), digest_value(&receipt->meter.prompt),
                       BoolGetDatum(receipt->outcome == LORA_OUTCOME_ANNOUNCED)};

    return lora_execute(&find, values, NULL, false) > 0;
}
