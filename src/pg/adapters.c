/*
 * adapters.c: see adapters.h.
 *
 * Resolving runs as the caller, under the caller's snapshot and row-level security, and
 * fetches names and digests only. The weights are read by slices of their TOAST chunks,
 * when the engine asks for them.
 */
#include "adapters.h"

#include <math.h>

#include "access/detoast.h"
#include "catalog/pg_type.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "engine/engine.h"
#include "spi.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/snapmgr.h"

/* -- resolving ------------------------------------------------------------------------------- */

static bool read_ids(ArrayType *array, Datum **ids, int *n, ol_error *error)
{
    bool *nulls;

    if (ARR_NDIM(array) > 1) {
        ol_fail(error, OL_INVALID, "adapter_ids has %d dimensions", ARR_NDIM(array));
        return false;
    }
    deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, ids, &nulls, n);
    if (*n > OL_MAX_REQUEST_ADAPTERS) {
        ol_fail(error, OL_LIMIT, "too many adapters: %d", *n);
        ol_detail(error, "A request can combine at most %d.", OL_MAX_REQUEST_ADAPTERS);
        return false;
    }
    for (int i = 0; i < *n; i++)
        if (nulls[i]) {
            ol_fail(error, OL_INVALID, "adapter_ids holds NULL");
            return false;
        }
    return true;
}

static bool read_weights(ArrayType *array, int n, LoraAdapterRef *refs, ol_error *error)
{
    Datum *values;
    bool *nulls;
    int n_values;

    for (int i = 0; i < n; i++)
        refs[i].weight = 1.0;
    if (!array)
        return true;
    deconstruct_array(array, FLOAT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &values, &nulls,
                      &n_values);
    if (n_values != n) {
        ol_fail(error, OL_INVALID, "%d weights for %d adapters", n_values, n);
        ol_hint(error, "Give one weight per adapter, or none for a weight of 1 each.");
        return false;
    }
    for (int i = 0; i < n; i++) {
        float8 weight = nulls[i] ? NAN : DatumGetFloat8(values[i]);

        if (isnan(weight) || isinf(weight) || fabs(weight) > 1e6) {
            ol_fail(error, OL_INVALID, "weight of adapter \"%s\" is not a finite number",
                    refs[i].name);
            ol_detail(error, "Weights must be from -1e6 to 1e6.");
            return false;
        }
        refs[i].weight = weight;
    }
    return true;
}

static bool lookup(Datum id, LoraAdapterRef *ref, ol_error *error)
{
    static LoraStatement statement = {
        "SELECT id, digest FROM openlora.adapters WHERE name OPERATOR(pg_catalog.=) $1",
        1,
        {TEXTOID}};
    Datum values[1] = {id};
    bool is_null;
    bytea *digest;

    if (lora_execute(&statement, values, NULL, true) == 0) {
        ol_fail(error, OL_NOT_FOUND, "adapter \"%s\" does not exist", ref->name);
        ol_hint(error, "It may be there but not visible to you; see openlora.adapters.");
        return false;
    }
    ref->id = lora_int64(0, 1);
    digest = DatumGetByteaPP(lora_value(0, 2, &is_null));
    if (is_null || VARSIZE_ANY_EXHDR(digest) != OL_DIGEST_BYTES)
        elog(ERROR, "adapter \"%s\" has no digest", ref->name);
    memcpy(ref->digest.bytes, VARDATA_ANY(digest), OL_DIGEST_BYTES);
    return true;
}

static bool lookup_all(Datum *ids, int n, LoraAdapterRef *refs, ol_error *error)
{
    bool good = true;

    if (SPI_connect() != SPI_OK_CONNECT)
        elog(ERROR, "SPI_connect failed");
    for (int i = 0; good && i < n; i++) {
        good = lookup(ids[i], &refs[i], error);
        for (int k = 0; good && k < i; k++)
            if (refs[k].id == refs[i].id) {
                ol_fail(error, OL_INVALID, "adapter \"%s\" is named twice", refs[i].name);
                good = false;
            } else if (ol_digest_equal(&refs[k].digest, &refs[i].digest)) {
                ol_fail(error, OL_INVALID, "adapters \"%s\" and \"%s\" hold the same weights",
                        refs[k].name, refs[i].name);
                ol_hint(error, "Name one of them, with the sum of the weights.");
                good = false;
            }
    }
    SPI_finish();
    return good;
}

int lora_adapters_resolve(ArrayType *ids_array, ArrayType *weights, LoraAdapterRef **out,
                          ol_error *error)
{
    LoraAdapterRef *refs;
    Datum *ids = NULL;
    int n = 0;

    *out = NULL;
    if (ids_array && !read_ids(ids_array, &ids, &n, error))
        return -1;
    refs = palloc0(sizeof(*refs) * (Size)(n + 1));
    for (int i = 0; i < n; i++)
        refs[i].name = TextDatumGetCString(ids[i]);
    if (!read_weights(weights, n, refs, error))
        return -1;
    if (n && !lookup_all(ids, n, refs, error))
        return -1;
    *out = refs;
    return n;
}

/* -- reading ------------------------------------------------------------------------------------
 */

struct LoraAdapterReader {
    struct varlena *weights; /* possibly a TOAST pointer */
    char *config;            /* may be NULL */
    Size length, at;
};

LoraAdapterReader *lora_adapter_over(struct varlena *weights, const char *config)
{
    LoraAdapterReader *reader = palloc0(sizeof(*reader));

    reader->weights = weights;
    reader->config = config ? pstrdup(config) : NULL;
    reader->length = toast_raw_datum_size(PointerGetDatum(weights)) - VARHDRSZ;
    return reader;
}

LoraAdapterReader *lora_adapter_open(const LoraAdapterRef *ref, ol_error *error)
{
    static LoraStatement statement = {
        "SELECT weights, config::pg_catalog.text FROM openlora.adapters"
        " WHERE id OPERATOR(pg_catalog.=) $1 AND digest OPERATOR(pg_catalog.=) $2",
        2,
        {INT8OID, BYTEAOID}};
    MemoryContext caller = CurrentMemoryContext;
    LoraAdapterReader *reader = NULL;
    bytea *digest = palloc(VARHDRSZ + OL_DIGEST_BYTES);
    Datum values[2];
    bool pushed = !ActiveSnapshotSet();

    SET_VARSIZE(digest, VARHDRSZ + OL_DIGEST_BYTES);
    memcpy(VARDATA(digest), ref->digest.bytes, OL_DIGEST_BYTES);
    values[0] = Int64GetDatum(ref->id);
    values[1] = PointerGetDatum(digest);
    if (pushed)
        PushActiveSnapshot(GetTransactionSnapshot());
    if (SPI_connect() != SPI_OK_CONNECT)
        elog(ERROR, "SPI_connect failed");
    if (lora_execute(&statement, values, NULL, true) == 1) {
        bool is_null;
        Datum weights = lora_value(0, 1, &is_null);
        char *config = lora_text(0, 2);
        MemoryContext spi = MemoryContextSwitchTo(caller);

        /* copies the TOAST pointer, not what it points to */
        reader = lora_adapter_over((struct varlena *)DatumGetPointer(datumCopy(weights, false, -1)),
                                   config);
        MemoryContextSwitchTo(spi);
    } else {
        ol_fail(error, OL_NOT_FOUND, "adapter \"%s\" was changed or deleted meanwhile", ref->name);
    }
    SPI_finish();
    if (pushed)
        PopActiveSnapshot();
    return reader;
}

Size lora_adapter_length(const LoraAdapterReader *reader)
{
    return reader->length;
}

Size lora_adapter_read(LoraAdapterReader *reader, char *out, Size size)
{
    Size n = Min(size, reader->length - reader->at);
    struct varlena *slice;

    if (n == 0)
        return 0;
    slice = detoast_attr_slice(reader->weights, (int32)reader->at, (int32)n);
    memcpy(out, VARDATA_ANY(slice), n);
    pfree(slice);
    reader->at += n;
    return n;
}

void lora_adapter_rewind(LoraAdapterReader *reader)
{
    reader->at = 0;
}

const char *lora_adapter_config(const LoraAdapterReader *reader, Size *length)
{
    *length = reader->config ? strlen(reader->config) : 0;
    return reader->config ? reader->config : "";
}

void lora_adapter_close(LoraAdapterReader *reader)
{
    if (reader->config)
        pfree(reader->config);
    pfree(reader);
}

/* -- the digest
 * ------------------------------------------------------------------------------------- */

void lora_adapter_digest(LoraAdapterReader *reader, ol_digest *digest)
{
    pg_cryptohash_ctx *hash = pg_cryptohash_create(PG_SHA256);
    uint64 length = reader->length; /* little-endian on every machine we run on */
    char *chunk = palloc(65536);
    Size n, config_length;
    const char *config = lora_adapter_config(reader, &config_length);

    lora_adapter_rewind(reader);
    if (!hash || pg_cryptohash_init(hash) < 0 ||
        pg_cryptohash_update(hash, (const uint8 *)"openlora.adapter.1", 19) < 0 ||
        pg_cryptohash_update(hash, (const uint8 *)&length, sizeof(length)) < 0)
        elog(ERROR, "could not compute a digest");
    while ((n = lora_adapter_read(reader, chunk, 65536)) > 0) {
        CHECK_FOR_INTERRUPTS();
        if (pg_cryptohash_update(hash, (const uint8 *)chunk, n) < 0)
            elog(ERROR, "could not compute a digest");
    }
    if (pg_cryptohash_update(hash, (const uint8 *)config, config_length) < 0 ||
        pg_cryptohash_final(hash, digest->bytes, OL_DIGEST_BYTES) < 0)
        elog(ERROR, "could not compute a digest");
    pg_cryptohash_free(hash);
    pfree(chunk);
    lora_adapter_rewind(reader);
}
