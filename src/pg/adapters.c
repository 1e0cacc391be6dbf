/*
 * adapters.c: resolving adapter ids: see adapters.h.
 *
 * Two looks at each row, under the same snapshot. The first, with the caller's rights and
 * row-level security, decides whether the adapter is there for the caller. The second, with
 * the rights of the tables' owner, whether it may be used; and takes hold of the weights
 * without reading them, so that a role can use what it may not read.
 */
#include "adapters.h"

#include <math.h>

#include "access.h"
#include "catalog/pg_type.h"
#include "engine/engine.h"
#include "spi.h"
#include "utf8.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/varlena.h"

#define MAX_WEIGHT 1e6

/* -- arguments ------------------------------------------------------------------------- */

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
    if (ARR_NDIM(array) > 1) {
        ol_fail(error, OL_INVALID, "weights has %d dimensions", ARR_NDIM(array));
        return false;
    }
    deconstruct_array(array, FLOAT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &values, &nulls,
                      &n_values);
    if (n_values != n) {
        ol_fail(error, OL_INVALID, "%d weights are given for %d adapters", n_values, n);
        ol_hint(error, "Give one weight per adapter, or none for a weight of 1 each.");
        return false;
    }
    for (int i = 0; i < n; i++) {
        float8 weight = nulls[i] ? NAN : DatumGetFloat8(values[i]);

        if (!(fabs(weight) <= MAX_WEIGHT)) {
            if (nulls[i])
                ol_fail(error, OL_INVALID, "weight of adapter \"%s\" is NULL",
                        lora_name_as_utf8(refs[i].name));
            else
                ol_fail(error, OL_INVALID, "weight of adapter \"%s\" is out of range: %g",
                        lora_name_as_utf8(refs[i].name), weight);
            ol_detail(error, "Weights must be from -1e6 to 1e6.");
            return false;
        }
        refs[i].weight = weight;
    }
    return true;
}

/* -- unknown ids ------------------------------------------------------------------------- */

#define MAX_SIMILAR 3
#define SIMILAR_ROWS "2000" /* looked at, so that a wrong id costs little */

/* Hints at visible adapters whose names are a few letters away. */
static void hint_similar(const char *name, ol_error *error)
{
    static LoraStatement names = {
        "SELECT name FROM openlora.adapters LIMIT " SIMILAR_ROWS, 0, {InvalidOid}};
    int length = (int)strlen(name), limit = 1 + length / 4, n = 0;
    StringInfoData list;
    uint64 rows;

    ol_hint(error, "It may be there but not visible to you; see openlora.adapters.");
    if (length == 0 || length > 200)
        return;
    initStringInfo(&list);
    rows = lora_execute(&names, NULL, NULL, true);
    for (uint64 row = 0; row < rows && n < MAX_SIMILAR; row++) {
        char *other = lora_text(row, 1);

        if (varstr_levenshtein_less_equal(name, length, other, (int)strlen(other), 1, 1, 1, limit,
                                          true) <= limit)
            appendStringInfo(&list, "%s\"%s\"", n++ ? ", " : "", other);
        pfree(other);
    }
    if (n)
        ol_hint(error, "Similar adapters: %s.", lora_name_as_utf8(list.data));
    pfree(list.data);
}

/* -- rows ------------------------------------------------------------------------------------ */

static bool lookup(Datum id, LoraAdapterRef *ref, ol_error *error)
{
    static LoraStatement statement = {
        "SELECT id, digest FROM openlora.adapters WHERE name OPERATOR(pg_catalog.=) $1",
        1,
        {TEXTOID}};
    struct varlena *digest;

    if (lora_execute(&statement, &id, NULL, true) == 0) {
        ol_fail(error, OL_NOT_FOUND, "adapter \"%s\" does not exist", lora_name_as_utf8(ref->name));
        hint_similar(ref->name, error);
        return false;
    }
    ref->id = lora_int64(0, 1);
    digest = lora_varlena(0, 2);
    if (!digest || VARSIZE_ANY_EXHDR(digest) != OL_DIGEST_BYTES)
        elog(ERROR, "adapter \"%s\" has no digest", ref->name);
    memcpy(ref->digest.bytes, VARDATA_ANY(digest), OL_DIGEST_BYTES);
    return true;
}

static bool is_new(const LoraAdapterRef *refs, int i, ol_error *error)
{
    for (int k = 0; k < i; k++) {
        if (refs[k].id == refs[i].id) {
            ol_fail(error, OL_INVALID, "adapter \"%s\" is named twice",
                    lora_name_as_utf8(refs[i].name));
            return false;
        }
        if (ol_digest_equal(&refs[k].digest, &refs[i].digest)) {
            ol_fail(error, OL_INVALID, "adapters \"%s\" and \"%s\" hold the same weights",
                    lora_name_as_utf8(refs[k].name), lora_name_as_utf8(refs[i].name));
            ol_hint(error, "Name one of them, with the sum of the weights.");
            return false;
        }
    }
    return true;
}

/* Takes hold of the bytes, if the caller may use them. Runs as the tables' owner, under the
 * same snapshot. */
static bool hold(LoraAdapterRef *ref, Oid caller, ol_error *error)
{
    static LoraStatement statement = {
        "SELECT weights, config, owner::pg_catalog.oid::pg_catalog.int8, shared"
        " FROM openlora.adapters WHERE id OPERATOR(pg_catalog.=) $1",
        1,
        {INT8OID}};
    Datum id = Int64GetDatum(ref->id);
    bool is_null;

    if (lora_execute(&statement, &id, NULL, true) != 1)
        elog(ERROR, "adapter \"%s\" was there and is not", ref->name);
    ref->weights = lora_varlena(0, 1);
    ref->config = lora_varlena(0, 2);
    ref->token_quota = -1;
    return has_privs_of_role(caller, (Oid)lora_int64(0, 3)) ||
           DatumGetBool(lora_value(0, 4, &is_null)) || lora_may_use(ref, caller, error);
}

static bool lookup_all(Datum *ids, int n, LoraAdapterRef *refs, ol_error *error)
{
    LoraIdentity caller;
    bool good = true;

    lora_connect();
    for (int i = 0; good && i < n; i++)
        good = lookup(ids[i], &refs[i], error) && is_new(refs, i, error);
    if (good) {
        lora_become_owner(&caller);
        for (int i = 0; good && i < n; i++)
            good = hold(&refs[i], caller.user, error);
        lora_become_caller(&caller);
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

bool lora_adapter_find_again(LoraAdapterRef *ref, ol_error *error)
{
    static LoraStatement find = {"SELECT weights, config FROM openlora.adapters"
                                 " WHERE id OPERATOR(pg_catalog.=) $1"
                                 " AND digest OPERATOR(pg_catalog.=) $2",
                                 2,
                                 {INT8OID, BYTEAOID}};
    bytea *digest = palloc(VARHDRSZ + sizeof(ref->digest));
    Datum values[2] = {Int64GetDatum(ref->id), PointerGetDatum(digest)};
    LoraIdentity caller;
    bool found;

    SET_VARSIZE(digest, VARHDRSZ + sizeof(ref->digest));
    memcpy(VARDATA(digest), &ref->digest, sizeof(ref->digest));
    lora_connect();
    lora_become_owner(&caller);
    found = lora_execute(&find, values, NULL, true) == 1;
    if (found) {
        ref->weights = lora_varlena(0, 1);
        ref->config = lora_varlena(0, 2);
    }
    lora_become_caller(&caller);
    SPI_finish();
    if (!found)
        ol_fail(error, OL_LOST, "adapter \"%s\" was changed while the request was under way",
                lora_name_as_utf8(ref->name));
    return found;
}
