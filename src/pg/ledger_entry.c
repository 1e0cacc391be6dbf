/* ledger_entry.c: see ledger_entry.h. */
#include "ledger_entry.h"

#include "catalog/pg_type.h"
#include "spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#define EPOCH_US ((int64)(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

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
                  .role = NameStr(meter->role_name),
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

    lora_plain_device(receipt, device);
    take_sampling(meter, &e);
    for (int i = 0; i < meter->n_adapters; i++)
        adapters[i] =
            (ol_entry_adapter){meter->adapters[i], meter->weights[i], (uint32)receipt->shares[i]};
    ol_entry_encode(&e, out);
    check_encoded(out);
}

/* -- from a row ----------------------------------------------------------------------------
 * A superuser may have put anything there. */

static Datum value_of(uint64 row, int column)
{
    bool is_null;
    Datum value = lora_value(row, column, &is_null);

    if (is_null)
        ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
                        errmsg("receipt " INT64_FORMAT " has a NULL", lora_int64(row, 1))));
    return value;
}

static ol_digest digest_of(Datum value)
{
    bytea *bytes = DatumGetByteaPP(value);
    ol_digest digest = {{0}};

    memcpy(digest.bytes, VARDATA_ANY(bytes), Min(VARSIZE_ANY_EXHDR(bytes), sizeof(digest.bytes)));
    return digest;
}

static uint8 code_of(Datum value, const char *const *names, int n)
{
    char *name = TextDatumGetCString(value);

    for (int i = 0; i < n; i++)
        if (strcmp(name, names[i]) == 0)
            return (uint8)i;
    return UINT8_MAX;
}

/* The arrays of a row; lists of different lengths are cut to the shortest, and so give
 * another entry than the one that was written. */
static int adapters_of(uint64 row, int column, ol_entry_adapter **out)
{
    Datum *digests, *weights, *shares;
    int n, n_weights, n_shares;

    deconstruct_array(DatumGetArrayTypeP(value_of(row, column)), BYTEAOID, -1, false, TYPALIGN_INT,
                      &digests, NULL, &n);
    deconstruct_array(DatumGetArrayTypeP(value_of(row, column + 1)), FLOAT8OID, 8, FLOAT8PASSBYVAL,
                      TYPALIGN_DOUBLE, &weights, NULL, &n_weights);
    deconstruct_array(DatumGetArrayTypeP(value_of(row, column + 2)), INT4OID, 4, true, TYPALIGN_INT,
                      &shares, NULL, &n_shares);
    n = Min(n, Min(n_weights, n_shares));
    *out = palloc(sizeof(**out) * (Size)(n + 1));
    for (int i = 0; i < n; i++)
        (*out)[i] = (ol_entry_adapter){digest_of(digests[i]), DatumGetFloat8(weights[i]),
                                       (uint32)DatumGetInt32(shares[i])};
    return n;
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

void lora_entry_from_row(uint64 row, ol_buf *out)
{
    static const char *const outcomes[] = {"done", "failed", "cancelled"};
    static const char *const tasks[] = {"generate", "score"};
    ol_entry_adapter *adapters;
    ol_entry e = {.leaf = (uint64)DatumGetInt64(value_of(row, 1)),
                  .at_us = DatumGetTimestampTz(value_of(row, 2)) + EPOCH_US,
                  .database = (uint32)DatumGetInt64(value_of(row, 3)),
                  .role = TextDatumGetCString(value_of(row, 4)),
                  .inference = DatumGetInt64(value_of(row, 5)),
                  .attempt = (uint32)DatumGetInt32(value_of(row, 6)),
                  .outcome = code_of(value_of(row, 7), outcomes, lengthof(outcomes)),
                  .task = code_of(value_of(row, 8), tasks, lengthof(tasks)),
                  .base_model = digest_of(value_of(row, 9)),
                  .device = TextDatumGetCString(value_of(row, 10)),
                  .input_tokens = (uint32)DatumGetInt32(value_of(row, 11)),
                  .cached_tokens = (uint32)DatumGetInt32(value_of(row, 12)),
                  .output_tokens = (uint32)DatumGetInt32(value_of(row, 13))};

    sampling_of(row, 14, &e);
    e.n_adapters = adapters_of(row, 24, &adapters);
    e.adapters = adapters;
    e.prompt = digest_of(value_of(row, 27));
    e.output = digest_of(value_of(row, 28));
    ol_entry_encode(&e, out);
    check_encoded(out);
}
