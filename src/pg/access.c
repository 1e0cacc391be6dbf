/* access.c: see access.h. */
#include "access.h"

#include <math.h>

#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "find.h"
#include "rows.h"
#include "spi.h"
#include "utf8.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(lora_has_right);
PG_FUNCTION_INFO_V1(lora_forget_quota);
PG_FUNCTION_INFO_V1(lora_quota_counters);
PG_FUNCTION_INFO_V1(lora_adapter_export);

static const char *grantee_name(Oid role)
{
    char *name = role ? GetUserNameFromId(role, true) : "PUBLIC";

    return name ? lora_name_as_utf8(name) : "a dropped role";
}

/* -- using an adapter ------------------------------------------------------------------------ */

static void refuse_weight(const LoraAdapterRef *ref, float8 cap, ol_error *error)
{
    ol_fail(error, OL_DENIED, "permission denied to use adapter \"%s\" with the weight %g",
            lora_name_as_utf8(ref->name), ref->weight);
    ol_detail(error, "The grant's cap is %g.", cap);
}

/* The grants of `use` that the caller has, those without a quota first. One that allows the
 * weight will do. */
bool lora_may_use(LoraAdapterRef *ref, Oid caller, ol_error *error)
{
    static LoraStatement find = {
        "SELECT grantee::pg_catalog.oid::pg_catalog.int8, weight_cap, token_quota"
        " FROM openlora.adapter_grants"
        " WHERE adapter OPERATOR(pg_catalog.=) $1 AND \"right\" OPERATOR(pg_catalog.<>) 'read'"
        " AND (expires_at IS NULL OR expires_at OPERATOR(pg_catalog.>) "
        "pg_catalog.clock_timestamp())"
        " AND (grantee::pg_catalog.oid OPERATOR(pg_catalog.=) 0"
        " OR pg_catalog.pg_has_role($2, grantee::pg_catalog.oid, 'USAGE'))"
        " ORDER BY token_quota IS NOT NULL, grantee::pg_catalog.oid",
        2,
        {INT8OID, OIDOID}};
    Datum values[2] = {Int64GetDatum(ref->id), ObjectIdGetDatum(caller)};
    uint64 n = lora_execute(&find, values, NULL, true);

    ol_fail(error, OL_DENIED, "permission denied to use adapter \"%s\"",
            lora_name_as_utf8(ref->name));
    ol_hint(error, "Its owner can give the right with lora_grant.");
    for (uint64 row = 0; row < n; row++) {
        bool any_weight, no_quota;
        Datum cap = lora_value(row, 2, &any_weight), quota = lora_value(row, 3, &no_quota);

        if (!any_weight && fabs(ref->weight) > DatumGetFloat8(cap)) {
            refuse_weight(ref, DatumGetFloat8(cap), error);
            continue;
        }
        ref->quota_of = (Oid)lora_int64(row, 1);
        ref->token_quota = no_quota ? -1 : DatumGetInt64(quota);
        return true;
    }
    return false;
}

/* -- quotas ------------------------------------------------------------------------------ */

/* The caller's own, else that of PUBLIC. False when there is none. */
static bool find_role_quota(Oid role, LoraQuota *quota)
{
    static const LoraFind find = {"role_quotas", "role_quotas_pkey", 1, F_OIDEQ, 4};
    Snapshot snapshot = GetActiveSnapshot();
    const Interval *period;
    Datum values[4];
    bool nulls[4];

    if (!lora_find(&find, ObjectIdGetDatum(role), snapshot, values, nulls) &&
        !lora_find(&find, ObjectIdGetDatum(InvalidOid), snapshot, values, nulls))
        return false;
    period = DatumGetIntervalP(values[2]); /* without months, by the table's check */
    *quota = (LoraQuota){.key = {.database = MyDatabaseId, .role = role},
                         .tokens = nulls[1] ? -1 : DatumGetInt64(values[1]),
                         .period_us = period->time + period->day * USECS_PER_DAY,
                         .concurrent = nulls[3] ? -1 : DatumGetInt32(values[3])};
    return true;
}

static int gather_quotas(const LoraAdapterRef *refs, int n, Oid caller, LoraQuota *quotas)
{
    int n_quotas = 0;

    if (find_role_quota(caller, &quotas[0]))
        quotas[n_quotas++].what = psprintf("role \"%s\"", grantee_name(caller));
    for (int i = 0; i < n; i++)
        if (refs[i].token_quota >= 0)
            quotas[n_quotas++] = (LoraQuota){
                .key = {.database = MyDatabaseId, .role = refs[i].quota_of, .adapter = refs[i].id},
                .tokens = refs[i].token_quota,
                .concurrent = -1,
                .what = psprintf("%s for adapter \"%s\"", grantee_name(refs[i].quota_of),
                                 lora_name_as_utf8(refs[i].name))};
    return n_quotas;
}

bool lora_claim_quotas(const LoraAdapterRef *refs, int n, int64 tokens, LoraQuotaClaim *claim,
                       ol_error *error)
{
    LoraQuota quotas[LORA_MAX_QUOTAS];
    int n_quotas = gather_quotas(refs, n, GetUserId(), quotas);

    return lora_quota_claim(quotas, n_quotas, tokens, claim, error);
}

/* -- SQL --------------------------------------------------------------------------------- */

static bool has_right(int64 adapter, const char *right, Oid caller)
{
    static LoraStatement find = {
        "SELECT 1 FROM openlora.adapter_grants WHERE adapter OPERATOR(pg_catalog.=) $1"
        " AND ($2 IS NULL OR \"right\" OPERATOR(pg_catalog.=) $2"
        " OR \"right\" OPERATOR(pg_catalog.=) 'manage')"
        " AND (expires_at IS NULL OR expires_at OPERATOR(pg_catalog.>) "
        "pg_catalog.clock_timestamp())"
        " AND (grantee::pg_catalog.oid OPERATOR(pg_catalog.=) 0"
        " OR pg_catalog.pg_has_role($3, grantee::pg_catalog.oid, 'USAGE')) LIMIT 1",
        3,
        {INT8OID, TEXTOID, OIDOID}};
    Datum values[3] = {Int64GetDatum(adapter), right ? CStringGetTextDatum(right) : (Datum)0,
                       ObjectIdGetDatum(caller)};

    return lora_execute(&find, values, right ? "   " : " n ", true) > 0;
}

/* openlora.has_right(adapter, right): of the current user; row-level security asks. */
Datum lora_has_right(PG_FUNCTION_ARGS)
{
    LoraIdentity caller;
    bool has;

    if (PG_ARGISNULL(0))
        PG_RETURN_BOOL(false);
    lora_connect();
    lora_become_owner(&caller);
    has = has_right(PG_GETARG_INT64(0),
                    PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1)), caller.user);
    lora_become_caller(&caller);
    SPI_finish();
    PG_RETURN_BOOL(has);
}

/* The adapter as the caller sees it: its id (0: not visible) and owner. */
static int64 find_visible(text *name, Oid *owner)
{
    static LoraStatement find = {
        "SELECT id, owner::pg_catalog.oid::pg_catalog.int8 FROM openlora.adapters"
        " WHERE name OPERATOR(pg_catalog.=) $1",
        1,
        {TEXTOID}};
    Datum value = PointerGetDatum(name);

    if (lora_execute(&find, &value, NULL, true) == 0)
        return 0;
    *owner = (Oid)lora_int64(0, 2);
    return lora_int64(0, 1);
}

static int64 find_readable(text *name)
{
    LoraIdentity caller;
    Oid owner = InvalidOid;
    int64 id = find_visible(name, &owner);
    bool may;

    if (!id)
        ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
                        errmsg("adapter \"%s\" does not exist", text_to_cstring(name))));
    lora_become_owner(&caller);
    may = has_privs_of_role(caller.user, owner) || has_right(id, "read", caller.user);
    lora_become_caller(&caller);
    if (!may)
        ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
                        errmsg("permission denied to read adapter \"%s\"", text_to_cstring(name)),
                        errhint("Its owner can give the right with lora_grant.")));
    return id;
}

/* lora_adapter_export(id) -> (weights, config) */
Datum lora_adapter_export(PG_FUNCTION_ARGS)
{
    static LoraStatement get = {
        "SELECT weights, config FROM openlora.adapters WHERE id OPERATOR(pg_catalog.=) $1",
        1,
        {INT8OID}};
    LoraIdentity caller;
    TupleDesc desc;
    Datum values[2], id;
    bool nulls[2];

    if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
        elog(ERROR, "lora_adapter_export must return a row");
    desc = BlessTupleDesc(desc);
    lora_connect();
    id = Int64GetDatum(find_readable(PG_GETARG_TEXT_PP(0)));
    lora_become_owner(&caller);
    if (lora_execute(&get, &id, NULL, true) != 1)
        elog(ERROR, "an adapter was there and is not");
    lora_become_caller(&caller);
    values[0] = PointerGetDatum(lora_varlena(0, 1));
    values[1] = PointerGetDatum(lora_varlena(0, 2));
    nulls[0] = nulls[1] = false;
    nulls[1] = DatumGetPointer(values[1]) == NULL;
    SPI_finish();
    return HeapTupleGetDatum(heap_form_tuple(desc, values, nulls));
}

/* openlora.forget_quota(grantee, adapter) */
Datum lora_forget_quota(PG_FUNCTION_ARGS)
{
    static LoraStatement find = {
        "SELECT owner::pg_catalog.oid::pg_catalog.int8 FROM openlora.adapters"
        " WHERE id OPERATOR(pg_catalog.=) $1",
        1,
        {INT8OID}};
    LoraQuotaKey key = {
        .database = MyDatabaseId, .role = PG_GETARG_OID(0), .adapter = PG_GETARG_INT64(1)};
    Datum id = PG_GETARG_DATUM(1);
    LoraIdentity caller;
    bool may;

    lora_connect();
    lora_become_owner(&caller);
    may = lora_execute(&find, &id, NULL, true) == 1 &&
          (has_privs_of_role(caller.user, (Oid)lora_int64(0, 1)) ||
           has_right(key.adapter, "manage", caller.user));
    lora_become_caller(&caller);
    SPI_finish();
    if (!may)
        ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
                        errmsg("permission denied to manage the adapter")));
    lora_quota_forget(&key);
    PG_RETURN_VOID();
}

/* Those of the caller and of roles that it is a member of; all for pg_read_all_stats. */
Datum lora_quota_counters(PG_FUNCTION_ARGS)
{
    ReturnSetInfo *set;
    LoraQuotaState *list;
    ol_error error;
    bool all = has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS);
    int n;

    if (!lora_check_preloaded(&error))
        lora_raise(&error);
    set = lora_begin_rows(fcinfo);
    n = lora_quota_list(MyDatabaseId, &list);
    for (int i = 0; i < n; i++) {
        const LoraQuotaState *s = &list[i];
        Datum values[6] = {ObjectIdGetDatum(s->key.role), Int64GetDatum(s->key.adapter),
                           Int64GetDatum(s->tokens),      Int64GetDatum(s->reserved),
                           Int32GetDatum(s->concurrent),  TimestampTzGetDatum(s->since)};
        bool nulls[6] = {false, s->key.adapter == 0, false, false, false, false};

        if (all || has_privs_of_role(GetUserId(), s->key.role))
            tuplestore_putvalues(set->setResult, set->setDesc, values, nulls);
    }
    return (Datum)0;
}
