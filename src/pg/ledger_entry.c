/* ledger_entry.c: see ledger_entry.h. */
#include "ledger_entry.h"

#include "catalog/pg_type.h"
#include "spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#define EPOCH_US ((int64)(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

const char *const lora_outcomes[LORA_OUTCOMES] = {"done", "failed", "cancelled", "lost",
                                                  "announced"};

static void check_encoded(const ol_buf *out)
{
    if (out->failed)
        ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("could not encode a receipt")));
}

void lora_plain_device(const LoraReceipt *receipt, char plain[LORA_DEVICE_NAME])
{
    strlcpy(plain, receipt->device, LORA_DEVICE_NAME);
    for (char *c = plain; *c; c++)
        if ((unsigned char)*c < 0x20 || (unsigned char)*c > 0x7e)
            *c = '?';
}

static void take_sampling(const LoraMeter *meter, ol_entry *e)
{
    e->temperature = meter->temperature;
    e->top_k = meter->top_k;
    e->top_p = meter->top_p;
    e->min_p = meter->min_p;
    e->repetition_penalty = meter->repetition_penalty;
    e->presence_penalty = meter->presence_penalty;
    e->frequency_penalty = meter->frequency_penalty;
    e->max_tokens = meter->max_tokens;
    e->ignore_eos = meter->ignore_eos != 0;
    e->seed = meter->seed;
}

void lora_entry_from_receipt(const LoraReceipt *receipt, uint64 leaf, ol_buf *out)
{
    const LoraMeter *meter = &receipt->meter;
    ol_entry_adapter adapters[OL_MAX_REQUEST_ADAPTERS];
    char device[LORA_DEVICE_NAME];
    ol_entry e = {.leaf = leaf,
                  .at_us = receipt->at + EPOCH_US,
                  .database = meter->database,
                  .inference = meter->inference,
                  .attempt = (uint32)meter->attempt,
                  .outcome = (uint8)receipt->outcome,
                  .task = (uint8)(meter->task == OL_TASK_SCORE),
                  .base_model = receipt->base_model,
                  .device = device,
                  .input_tokens = (uint32)receipt->input_tokens,
                  .cached_tokens = (uint32)receipt->cached_tokens,
                  .output_tokens = (uint32)receipt->output_tokens,
                  .n_adapters = meter->n_adapters,
                  .adapters = adapters,
                  .prompt = meter->prompt,
                  .output = receipt->output};

    ol_entry_role(&receipt->role_salt, NameStr(meter->role_name), &e.role);
    lora_plain_device(receipt, device);
    take_sampling(meter, &e);
    for (int i = 0; i < meter->n_adapters; i++)
        adapters[i] = (ol_entry_adapter){meter->adapters[i], meter->adapter_ids[i],
                                         meter->weights[i], (uint32)receipt->shares[i]};
    ol_entry_encode(&e, out);
    check_encoded(out);
}

/* -- from a row ----------------------------------------------------------------------------
 * A superuser may have put anything there, and changed the columns, too. Two rows that differ
 * must not have one entry: what no receipt looks like has none. */

static const Oid types[LORA_ENTRY_N_COLUMNS] = {
    INT8OID,        TIMESTAMPTZOID, INT8OID,  TEXTOID,   INT8OID,   INT4OID,
    TEXTOID,        TEXTOID,        BYTEAOID, TEXTOID,   INT4OID,   INT4OID,
    INT4OID,        FLOAT4OID,      INT4OID,  FLOAT4OID, FLOAT4OID, FLOAT4OID,
    FLOAT4OID,      FLOAT4OID,      INT4OID,  BOOLOID,   INT8OID,   BYTEAARRAYOID,
    FLOAT8ARRAYOID, INT4ARRAYOID,   BYTEAOID, BYTEAOID,  BYTEAOID,  INT8ARRAYOID};

static bool is_whole(uint64 row)
{
    for (int column = 1; column <= LORA_ENTRY_N_COLUMNS; column++) {
        bool is_null;

        (void)lora_value(row, column, &is_null);
        if (is_null || SPI_gettypeid(SPI_tuptable->tupdesc, column) != types[column - 1])
            return false;
    }
    return true;
}

static Datum value_of(uint64 row, int column)
{
    bool is_null;

    return lora_value(row, column, &is_null);
}

static bool digest_of(Datum value, ol_digest *digest)
{
    bytea *bytes = DatumGetByteaPP(value);

    if (VARSIZE_ANY_EXHDR(bytes) != sizeof(digest->bytes))
        return false;
    memcpy(digest->bytes, VARDATA_ANY(bytes), sizeof(digest->bytes));
    return true;
}

static bool text_of(Datum value, const char **copy)
{
    *copy = TextDatumGetCString(value);
    return strlen(*copy) <= UINT16_MAX;
}

static bool code_of(Datum value, const char *const *names, int n, uint8 *code)
{
    char *name = TextDatumGetCString(value);

    for (int i = 0; i < n; i++)
        if (strcmp(name, names[i]) == 0) {
            *code = (uint8)i;
            return true;
        }
    return false;
}

/* A list in the one form that it is written in. */
static bool list_of(Datum value, Oid type, Datum **items, int *n)
{
    ArrayType *array = DatumGetArrayTypeP(value);
    int16 width;
    bool by_value;
    char align;

    if (ARR_NDIM(array) > 1 || (ARR_NDIM(array) == 1 && ARR_LBOUND(array)[0] != 1) ||
        array_contains_nulls(array))
        return false;
    get_typlenbyvalalign(type, &width, &by_value, &align);
    deconstruct_array(array, type, width, by_value, align, items, NULL, n);
    return true;
}

static bool role_of(Datum name, Datum salt, ol_digest *role)
{
    char *plain = TextDatumGetCString(name);
    ol_digest bytes;

    if (!digest_of(salt, &bytes))
        return false;
    ol_entry_role(&bytes, plain, role);
    return true;
}

/* From three columns that follow each other, and that of ids. */
static bool adapters_of(uint64 row, int column, int id_column, ol_entry *e)
{
    Datum *digests, *weights, *shares, *ids;
    ol_entry_adapter *adapters;
    int n, n_weights, n_shares, n_ids;

    if (!list_of(value_of(row, column), BYTEAOID, &digests, &n) ||
        !list_of(value_of(row, column + 1), FLOAT8OID, &weights, &n_weights) ||
        !list_of(value_of(row, column + 2), INT4OID, &shares, &n_shares) ||
        !list_of(value_of(row, id_column), INT8OID, &ids, &n_ids) || n != n_weights ||
        n != n_shares || n != n_ids || n > UINT16_MAX)
        return false;
    adapters = palloc(sizeof(*adapters) * (Size)(n + 1));
    for (int i = 0; i < n; i++) {
        if (!digest_of(digests[i], &adapters[i].digest))
            return false;
        adapters[i].id = DatumGetInt64(ids[i]);
        adapters[i].weight = DatumGetFloat8(weights[i]);
        adapters[i].share = (uint32)DatumGetInt32(shares[i]);
    }
    e->n_adapters = n;
    e->adapters = adapters;
    return true;
}

static void sampling_of(uint64 row, int column, ol_entry *e)
{
    e->temperature = DatumGetFloat4(value_of(row, column));
    e->top_k = DatumGetInt32(value_of(row, column + 1));
    e->top_p = DatumGetFloat4(value_of(row, column + 2));
    e->min_p = DatumGetFloat4(value_of(row, column + 3));
    e->repetition_penalty = DatumGetFloat4(value_of(row, column + 4));
    e->presence_penalty = DatumGetFloat4(value_of(row, column + 5));
    e->frequency_penalty = DatumGetFloat4(value_of(row, column + 6));
    e->max_tokens = DatumGetInt32(value_of(row, column + 7));
    e->ignore_eos = DatumGetBool(value_of(row, column + 8));
    e->seed = (uint64)DatumGetInt64(value_of(row, column + 9));
}

static void numbers_of(uint64 row, ol_entry *e)
{
    e->leaf = (uint64)DatumGetInt64(value_of(row, 1));
    e->at_us = DatumGetTimestampTz(value_of(row, 2)) + EPOCH_US;
    e->database = (uint32)DatumGetInt64(value_of(row, 3));
    e->inference = DatumGetInt64(value_of(row, 5));
    e->attempt = (uint32)DatumGetInt32(value_of(row, 6));
    e->input_tokens = (uint32)DatumGetInt32(value_of(row, 11));
    e->cached_tokens = (uint32)DatumGetInt32(value_of(row, 12));
    e->output_tokens = (uint32)DatumGetInt32(value_of(row, 13));
    sampling_of(row, 14, e);
}

bool lora_entry_from_row(uint64 row, ol_buf *out)
{
    static const char *const tasks[] = {"generate", "score"};
    ol_entry e = {0};

    if (!is_whole(row) || (uint64)DatumGetInt64(value_of(row, 3)) > PG_UINT32_MAX ||
        !role_of(value_of(row, 4), value_of(row, 29), &e.role) ||
        !text_of(value_of(row, 10), &e.device) ||
        !code_of(value_of(row, 7), lora_outcomes, LORA_OUTCOMES, &e.outcome) ||
        !code_of(value_of(row, 8), tasks, lengthof(tasks), &e.task) ||
        !digest_of(value_of(row, 9), &e.base_model) || !adapters_of(row, 24, 30, &e) ||
        !digest_of(value_of(row, 27), &e.prompt) || !digest_of(value_of(row, 28), &e.output))
        return false;
    numbers_of(row, &e);
    ol_entry_encode(&e, out);
    check_encoded(out);
    return true;
}

void lora_must_be_entry(uint64 row, ol_buf *out)
{
    if (!lora_entry_from_row(row, out))
        ereport(ERROR,
                (errcode(ERRCODE_DATA_CORRUPTED),
                 errmsg("receipt " INT64_FORMAT " is not as it was written", lora_int64(row, 1)),
                 errhint("lora_ledger_verify() tells what is wrong.")));
}
