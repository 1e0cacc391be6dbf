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
 * Shares are copied, so that later changes of provenance change nothing that was written.
 */
#include "attribution.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "credits.h"
#include "find.h"
#include "inference_rows.h"
#include "miscadmin.h"
#include "rows.h"
#include "spi.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utf8.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"

void lora_attribution_prevent(void)
{
    if (!lora_attribution)
        return;
    PreventCommandIfReadOnly("an inference, which is attributed,");
    PreventCommandIfParallelMode("an inference, which is attributed,");
    PreventCommandDuringRecovery("an inference, which is attributed,");
}

/* -- the base model ----------------------------------------------------------------------- */

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

/* From the engine's UTF-8. */
static Datum text_datum(const char *utf8)
{
    return PointerGetDatum(lora_text_from_utf8(utf8, strlen(utf8)));
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
    Datum values[5] = {lora_digest_datum(&info->model_digest), text_datum(info->model_name),
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

/* -- the whole ------------------------------------------------------------------------------ */

static void write_all(const LoraSpec *spec, const LoraResult *result, Oid caller)
{
    LoraCredits credits;
    int64 parts[OL_MAX_REQUEST_ADAPTERS];
    double shares[OL_MAX_REQUEST_ADAPTERS] = {0};
    Oid owner = lora_tables_owner();

    if (result->n_shares == spec->n_adapters) /* else all of them equal */
        memcpy(shares, result->shares, sizeof(double) * (Size)spec->n_adapters);
    lora_split_shares(spec->n_adapters, shares, parts);
    /* reading first: what is written must not be seen by it */
    lora_credits_begin(&credits);
    lora_credit_role(&credits, "compute", owner);
    for (int i = 0; i < spec->n_adapters; i++)
        lora_credit_adapter(&credits, &spec->adapters[i], parts[i]);
    lora_credit_role(&credits, "model", note_model(&result->engine, owner));
    lora_write_inference(spec, result, caller);
    lora_write_inference_adapters(result->inference, spec, parts);
    if (lora_keep_text == LORA_KEEP_FULL)
        lora_write_inference_texts(spec, result);
    lora_write_credits(result->inference, &credits,
                       (int64)result->prompt_tokens + result->completion_tokens);
}

int64 lora_attribute(const LoraSpec *spec, const LoraResult *result)
{
    LoraIdentity caller;

    if (!lora_attribution)
        return 0;
    lora_connect();
    lora_become_owner(&caller);
    write_all(spec, result, caller.user);
    lora_become_caller(&caller);
    SPI_finish();
    return result->inference;
}
