/*
 * attribution.c: see attribution.h.
 *
 * Four kinds of credit, each a whole of its own (a million parts):
 *   model     the base model's owner
 *   compute   the server that ran it
 *   adapter   by measured share among the adapters; within one, by adapter_contributors,
 *             the rest to the adapter's owner
 *   dataset   by measured share, adapter_datasets and dataset_contributors; the rest to
 *             the adapter's owner
 * Shares are copied, so that later changes of provenance change nothing that was written.
 */
#include "attribution.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "shared.h"
#include "spi.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/json.h"

/* -- exact shares -------------------------------------------------------------------------------
 */

void lora_split(int64 total, int n, const int64 *weights, int64 *parts)
{
    int128 sum = 0;
    int128 *rest = palloc(sizeof(int128) * (Size)(n + 1));
    int64 left = total;

    for (int i = 0; i < n; i++)
        sum += weights[i];
    for (int i = 0; i < n; i++) {
        int128 product = (int128)total * weights[i];

        parts[i] = sum > 0 ? (int64)(product / sum) : 0;
        rest[i] = sum > 0 ? product % sum : 0;
        left -= parts[i];
    }
    while (left > 0 && n > 0) {
        int best = 0;

        for (int i = 1; i < n; i++)
            if (rest[i] > rest[best])
                best = i;
        parts[best]++;
        rest[best] = -1;
        left--;
    }
    pfree(rest);
}

void lora_split_shares(int n, const double *shares, int64 *parts)
{
    int64 weights[OL_MAX_REQUEST_ADAPTERS];

    for (int i = 0; i < n; i++)
        weights[i] = (int64)rint(shares[i] * 1e15);
    lora_split(LORA_WHOLE, n, weights, parts);
}

/* -- rows
 * ------------------------------------------------------------------------------------------ */

static Datum digest_datum(const ol_digest *digest)
{
    bytea *bytes = palloc(VARHDRSZ + OL_DIGEST_BYTES);

    SET_VARSIZE(bytes, VARHDRSZ + OL_DIGEST_BYTES);
    memcpy(VARDATA(bytes), digest->bytes, OL_DIGEST_BYTES);
    return PointerGetDatum(bytes);
}

static Datum text_datum(const char *text)
{
    return CStringGetTextDatum(text);
}

/* Registers the model at its first answer; returns its owner's name. */
static char *note_model(const ol_engine_info *info)
{
    static LoraStatement find = {"SELECT owner::pg_catalog.text FROM openlora.base_models"
                                 " WHERE digest OPERATOR(pg_catalog.=) $1",
                                 1,
                                 {BYTEAOID}};
    static LoraStatement insert = {
        "INSERT INTO openlora.base_models (digest, name, architecture, format, parameters)"
        " VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        5,
        {BYTEAOID, TEXTOID, TEXTOID, TEXTOID, INT8OID}};
    Datum values[5] = {digest_datum(&info->model_digest), text_datum(info->model_name),
                       text_datum(info->architecture), text_datum(info->format),
                       Int64GetDatum(info->parameters)};

    if (lora_execute(&find, values, NULL, false) == 0) {
        lora_execute(&insert, values, NULL, false);
        if (lora_execute(&find, values, NULL, false) == 0)
            return pstrdup("unknown"); /* being registered by another transaction */
    }
    return lora_text(0, 1);
}

static int64 insert_inference(const LoraSpec *spec, const LoraResult *result,
                              const ol_engine_info *info, Oid caller)
{
    static LoraStatement insert = {
        "INSERT INTO openlora.inferences (role, function, base_model, prompt_tokens,"
        " completion_tokens, finish_reason, temperature, top_k, top_p, min_p, max_tokens, seed,"
        " device, queue_ms, prefill_ms, decode_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9,"
        " $10, $11, $12, $13, $14, $15, $16) RETURNING id",
        16,
        {NAMEOID, TEXTOID, BYTEAOID, INT4OID, INT4OID, TEXTOID, FLOAT4OID, INT4OID, FLOAT4OID,
         FLOAT4OID, INT4OID, INT8OID, TEXTOID, FLOAT8OID, FLOAT8OID, FLOAT8OID}};
    const ol_sampling *s = &spec->sampling;
    static const char *const finishes[] = {"eos", "stop", "length", "scored"};
    NameData role;
    Datum values[16];

    namestrcpy(&role, GetUserNameFromId(caller, false));
    values[0] = NameGetDatum(&role);
    values[1] = text_datum(spec->function);
    values[2] = digest_datum(&info->model_digest);
    values[3] = Int32GetDatum(result->prompt_tokens);
    values[4] = Int32GetDatum(result->completion_tokens);
    values[5] = text_datum(finishes[result->finish]);
    values[6] = Float4GetDatum(s->temperature);
    values[7] = Int32GetDatum(s->top_k);
    values[8] = Float4GetDatum(s->top_p);
    values[9] = Float4GetDatum(s->min_p);
    values[10] = Int32GetDatum(s->max_tokens);
    values[11] = Int64GetDatum((int64)s->seed);
    values[12] = text_datum(info->device.description);
    values[13] = Float8GetDatum((double)result->queue_us / 1000);
    values[14] = Float8GetDatum((double)result->prefill_us / 1000);
    values[15] = Float8GetDatum((double)result->decode_us / 1000);
    lora_execute(&insert, values, NULL, false);
    return lora_int64(0, 1);
}

static void insert_adapter(int64 inference, int position, const LoraAdapterRef *ref, int64 share)
{
    static LoraStatement insert = {
        "INSERT INTO openlora.inference_adapters (inference, position, adapter, name, digest,"
        " weight, share) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        7,
        {INT8OID, INT4OID, INT8OID, TEXTOID, BYTEAOID, FLOAT8OID, INT4OID}};
    Datum values[7] = {Int64GetDatum(inference),   Int32GetDatum(position),
                       Int64GetDatum(ref->id),     text_datum(ref->name),
                       digest_datum(&ref->digest), Float8GetDatum(ref->weight),
                       Int32GetDatum((int32)share)};

    lora_execute(&insert, values, NULL, false);
}

static void insert_credit(int64 inference, const char *kind, const char *adapter,
                          const char *contributor, int64 share)
{
    static LoraStatement insert = {
        "INSERT INTO openlora.attributions (inference, kind, adapter, contributor, share)"
        " VALUES ($1, $2, $3, $4, $5)",
        5,
        {INT8OID, TEXTOID, TEXTOID, TEXTOID, INT4OID}};
    Datum values[5] = {Int64GetDatum(inference), text_datum(kind),
                       adapter ? text_datum(adapter) : (Datum)0, text_datum(contributor),
                       Int32GetDatum((int32)share)};

    if (share > 0)
        lora_execute(&insert, values, adapter ? "     " : "  n  ", false);
}

/* -- who made an adapter
 * ------------------------------------------------------------------------------- */

typedef struct Credit {
    char *name;
    int64 weight;
} Credit;

/* Rows (contributor name, weight), and the rest of `whole` to the owner. */
static int read_credits(LoraStatement *statement, int64 adapter, int64 whole, char *owner,
                        Credit **credits)
{
    Datum values[1] = {Int64GetDatum(adapter)};
    int n = (int)lora_execute(statement, values, NULL, false);
    int64 left = whole;

    *credits = SPI_palloc(sizeof(Credit) * (Size)(n + 1));
    for (int i = 0; i < n; i++) {
        (*credits)[i].name = lora_text((uint64)i, 1);
        (*credits)[i].weight = lora_int64((uint64)i, 2);
        left -= (*credits)[i].weight;
    }
    (*credits)[n].name = owner;
    (*credits)[n].weight = left > 0 ? left : 0;
    return n + 1;
}

static void credit(int64 inference, const char *kind, const char *adapter, int64 share, int n,
                   const Credit *credits)
{
    int64 *weights = palloc(sizeof(int64) * (Size)n), *parts = palloc(sizeof(int64) * (Size)n);

    for (int i = 0; i < n; i++)
        weights[i] = credits[i].weight;
    lora_split(share, n, weights, parts);
    for (int i = 0; i < n; i++)
        insert_credit(inference, kind, adapter, credits[i].name, parts[i]);
}

static void credit_adapter(int64 inference, const LoraAdapterRef *ref, int64 share)
{
    static LoraStatement find_owner = {
        "SELECT owner::pg_catalog.text FROM openlora.adapters WHERE id OPERATOR(pg_catalog.=) $1",
        1,
        {INT8OID}};
    static LoraStatement contributors = {
        "SELECT c.name, a.share::pg_catalog.int8 FROM openlora.adapter_contributors a"
        " JOIN openlora.contributors c ON c.id OPERATOR(pg_catalog.=) a.contributor"
        " WHERE a.adapter OPERATOR(pg_catalog.=) $1 ORDER BY c.id",
        1,
        {INT8OID}};
    static LoraStatement datasets = {
        "SELECT c.name, pg_catalog.sum(a.share::pg_catalog.int8 OPERATOR(pg_catalog.*) d.share)"
        "::pg_catalog.int8 FROM openlora.adapter_datasets a"
        " JOIN openlora.dataset_contributors d ON d.dataset OPERATOR(pg_catalog.=) a.dataset"
        " JOIN openlora.contributors c ON c.id OPERATOR(pg_catalog.=) d.contributor"
        " WHERE a.adapter OPERATOR(pg_catalog.=) $1 GROUP BY c.id, c.name ORDER BY c.id",
        1,
        {INT8OID}};
    Datum values[1] = {Int64GetDatum(ref->id)};
    Credit *credits;
    char *owner = NULL;
    int n;

    if (lora_execute(&find_owner, values, NULL, false) > 0)
        owner = lora_text(0, 1);
    if (!owner)
        owner = pstrdup("unknown"); /* deleted by this very statement */
    n = read_credits(&contributors, ref->id, LORA_WHOLE, owner, &credits);
    credit(inference, "adapter", ref->name, share, n, credits);
    n = read_credits(&datasets, ref->id, LORA_WHOLE * LORA_WHOLE, owner, &credits);
    credit(inference, "dataset", ref->name, share, n, credits);
}

/* -- the whole
 * -------------------------------------------------------------------------------------------- */

static const char *compute_name(void)
{
    const char *cluster = GetConfigOption("cluster_name", true, false);

    return cluster && cluster[0] ? cluster : "this server";
}

static int64 write_all(const LoraSpec *spec, const LoraResult *result, Oid caller)
{
    int64 parts[OL_MAX_REQUEST_ADAPTERS], inference;
    ol_engine_info info;
    char *model_owner;

    LWLockAcquire(lora_shared->lock, LW_SHARED);
    info = lora_shared->info;
    LWLockRelease(lora_shared->lock);
    model_owner = note_model(&info);
    inference = insert_inference(spec, result, &info, caller);
    insert_credit(inference, "model", NULL, model_owner, LORA_WHOLE);
    insert_credit(inference, "compute", NULL, compute_name(), LORA_WHOLE);
    if (result->n_shares == spec->n_adapters)
        lora_split_shares(result->n_shares, result->shares, parts);
    for (int i = 0; i < spec->n_adapters && result->n_shares == spec->n_adapters; i++) {
        insert_adapter(inference, i + 1, &spec->adapters[i], parts[i]);
        credit_adapter(inference, &spec->adapters[i], parts[i]);
    }
    return inference;
}

int64 lora_attribute(const LoraSpec *spec, const LoraResult *result)
{
    Oid caller, owner = lora_tables_owner();
    int context;
    int64 inference;

    GetUserIdAndSecContext(&caller, &context);
    if (SPI_connect() != SPI_OK_CONNECT)
        elog(ERROR, "SPI_connect failed");
    SetUserIdAndSecContext(owner, context | SECURITY_LOCAL_USERID_CHANGE);
    inference = write_all(spec, result, caller);
    SetUserIdAndSecContext(caller, context);
    SPI_finish();
    return inference;
}
