/*
 * adapter_reader.c: an adapter's bytes by slices, and its digest: see adapters.h.
 *
 * The column's storage is EXTERNAL, so a slice costs the TOAST chunks it covers. A value
 * that comes compressed from another table would stay so, and each slice of it expand
 * everything before it again: such a value is expanded once, and stored expanded.
 */
#include "adapters.h"

#include "access/detoast.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "utf8.h"
#include "utils/jsonb.h"
#include "utils/snapmgr.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

struct LoraAdapterReader {
    struct varlena *weights;
    struct varlena *expanded; /* made here */
    const char *config;       /* UTF-8 */
    Size length, at;
};

#define DEFAULT_LIMIT_MB 1024

Size lora_adapter_size_limit(void)
{
    return (Size)(lora_preloaded ? lora_max_adapter_size : DEFAULT_LIMIT_MB) * 1024 * 1024;
}

static const char *config_text(struct varlena *config)
{
    Jsonb *jsonb = DatumGetJsonbP(PointerGetDatum(config));
    char *local = JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb));

    return lora_to_utf8(local);
}

LoraAdapterReader *lora_adapter_over(struct varlena *weights, struct varlena *config)
{
    LoraAdapterReader *reader = palloc0(sizeof(*reader));

    reader->weights = weights;
    reader->config = config ? config_text(config) : "";
    reader->length = toast_raw_datum_size(PointerGetDatum(weights)) - VARHDRSZ;
    return reader;
}

LoraAdapterReader *lora_adapter_open(const LoraAdapterRef *ref, ol_error *error)
{
    Size length = toast_raw_datum_size(PointerGetDatum(ref->weights)) - VARHDRSZ;

    if (length > lora_adapter_size_limit()) { /* the limit was lowered since */
        ol_fail(error, OL_LIMIT, "adapter \"%s\" is too large: %zu bytes",
                lora_name_as_utf8(ref->name), length);
        ol_hint(error, "Raise openlora.max_adapter_size.");
        return NULL;
    }
    return lora_adapter_over(ref->weights, ref->config);
}

Size lora_adapter_length(const LoraAdapterReader *reader)
{
    return reader->length;
}

/* Whether slices cost what they cover. */
static bool is_sliceable(struct varlena *value)
{
    struct varatt_external pointer;

    if (!VARATT_IS_EXTERNAL_ONDISK(value))
        return !VARATT_IS_EXTERNAL(value) && !VARATT_IS_COMPRESSED(value);
    VARATT_EXTERNAL_GET_POINTER(pointer, value);
    return !VARATT_EXTERNAL_IS_COMPRESSED(pointer);
}

struct varlena *lora_adapter_plain(LoraAdapterReader *reader)
{
    if (!reader->expanded && !is_sliceable(reader->weights))
        reader->weights = reader->expanded = detoast_attr(reader->weights);
    return reader->expanded;
}

Size lora_adapter_read(LoraAdapterReader *reader, char *out, Size size)
{
    Size n = Min(size, reader->length - reader->at);
    bool pushed = !ActiveSnapshotSet(); /* TOAST wants one, whichever */
    struct varlena *slice;

    if (n == 0)
        return 0;
    if (pushed)
        PushActiveSnapshot(GetTransactionSnapshot());
    (void)lora_adapter_plain(reader);
    slice = detoast_attr_slice(reader->weights, (int32)reader->at, (int32)n);
    if (pushed)
        PopActiveSnapshot();
    if (VARSIZE_ANY_EXHDR(slice) != n)
        ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED), errmsg("an adapter's weights are cut")));
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
    *length = strlen(reader->config);
    return reader->config;
}

void lora_adapter_close(LoraAdapterReader *reader)
{
    pfree(reader);
}

/* -- the digest -------------------------------------------------------------------------- */

#define CHUNK (Size)(256 * 1024)

static void add(pg_cryptohash_ctx *hash, const void *bytes, Size n)
{
    if (pg_cryptohash_update(hash, bytes, n) < 0)
        elog(ERROR, "could not compute a digest");
}

void lora_adapter_digest(LoraAdapterReader *reader, ol_digest *digest)
{
    pg_cryptohash_ctx *hash = pg_cryptohash_create(PG_SHA256);
    char *chunk = palloc(CHUNK);
    uint8 length[8];
    Size n, config_length;
    const char *config = lora_adapter_config(reader, &config_length);

    if (!hash || pg_cryptohash_init(hash) < 0)
        elog(ERROR, "could not compute a digest");
    for (int i = 0; i < 8; i++)
        length[i] = (uint8)((uint64)reader->length >> (8 * i));
    add(hash, "openlora.adapter.1", sizeof("openlora.adapter.1")); /* and its zero byte */
    add(hash, length, sizeof(length));
    lora_adapter_rewind(reader);
    while ((n = lora_adapter_read(reader, chunk, CHUNK)) > 0) {
        CHECK_FOR_INTERRUPTS();
        add(hash, chunk, n);
    }
    add(hash, config, config_length);
    if (pg_cryptohash_final(hash, digest->bytes, OL_DIGEST_BYTES) < 0)
        elog(ERROR, "could not compute a digest");
    pg_cryptohash_free(hash);
    pfree(chunk);
    lora_adapter_rewind(reader);
}
