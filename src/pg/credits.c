/* credits.c: see credits.h. */
#include "credits.h"

#include "append.h"
#include "attribution.h"
#include "catalog/pg_type.h"
#include "find.h"
#include "spi.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/numeric.h"
#include "utils/snapmgr.h"

#define FINE INT64CONST(1000000000000) /* units of a credit in one part per million */
#define ADAPTER_OWNER 13               /* column of openlora.adapters */

/* Strings in the database's encoding. */
struct LoraCredit {
    const char *kind, *adapter, *dataset, *contributor; /* adapter, dataset: may be NULL */
    int64 contributor_id;                               /* 0: a role */
    Oid role;                                           /* that it stands for, or none */
    int64 share;                                        /* in units of 10^-12 parts per million */
};

void lora_credits_begin(LoraCredits *credits)
{
    credits->n = 0;
    credits->room = 4;
    credits->list = palloc(sizeof(LoraCredit) * (Size)credits->room);
}

static void add(LoraCredits *credits, const LoraCredit *credit)
{
    if (credits->n == credits->room) {
        credits->room *= 2;
        credits->list = repalloc(credits->list, sizeof(LoraCredit) * (Size)credits->room);
    }
    credits->list[credits->n++] = *credit;
}

/* -- reading ------------------------------------------------------------------------------ */

/* A role's contributor, or the role itself by its name. */
static void stand_for(const LoraCredits *credits, Oid role, LoraCredit *credit)
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

void lora_credit_role(LoraCredits *credits, const char *kind, Oid role)
{
    LoraCredit credit = {.kind = kind, .share = LORA_WHOLE * FINE};

    stand_for(credits, role, &credit);
    add(credits, &credit);
}

/* An adapter without provenance is its owner's alone, which is found in a tenth of the
 * time that the view takes. False for all others. */
static bool credit_owner(LoraCredits *credits, const LoraAdapterRef *ref, int64 part)
{
    static const LoraFind people = {"adapter_contributors", "adapter_contributors_pkey", 1,
                                    F_INT8EQ, 1};
    static const LoraFind datasets = {"adapter_datasets", "adapter_datasets_pkey", 1, F_INT8EQ, 1};
    static const LoraFind adapter = {"adapters", "adapters_pkey", 1, F_INT8EQ, ADAPTER_OWNER};
    Datum id = Int64GetDatum(ref->id), values[ADAPTER_OWNER];
    bool nulls[ADAPTER_OWNER];
    LoraCredit credit = {.adapter = ref->name, .share = LORA_WHOLE * LORA_WHOLE * part};
    Snapshot snapshot = GetActiveSnapshot();

    if (lora_find(&people, id, snapshot, values, nulls) ||
        lora_find(&datasets, id, snapshot, values, nulls) ||
        !lora_find(&adapter, id, snapshot, values, nulls))
        return false;
    stand_for(credits, DatumGetObjectId(values[ADAPTER_OWNER - 1]), &credit);
    credit.kind = "adapter";
    add(credits, &credit);
    credit.kind = "dataset";
    add(credits, &credit);
    return true;
}

/* What openlora.adapter_credits says of an adapter, scaled to its part of the request. */
static void credit_provenance(LoraCredits *credits, const LoraAdapterRef *ref, int64 part)
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

    for (int i = 0; i < n; i++) {
        int64 share = lora_int64((uint64)i, 5); /* in millionths of a part per million */

        add(credits, &(LoraCredit){.kind = lora_text((uint64)i, 1),
                                   .adapter = ref->name,
                                   .dataset = lora_text((uint64)i, 2),
                                   .contributor = lora_text((uint64)i, 3),
                                   .contributor_id = lora_int64((uint64)i, 4),
                                   .share = share * part});
        sum += share;
        if (share < 0)
            sum = -1;
    }
    if (sum != 2 * LORA_WHOLE * LORA_WHOLE) /* the sums are checked when the transaction ends */
        ereport(ERROR, (errcode(ERRCODE_CHECK_VIOLATION),
                        errmsg("shares of adapter \"%s\" exceed the whole", ref->name),
                        errhint("Set its provenance right before using it.")));
}

void lora_credit_adapter(LoraCredits *credits, const LoraAdapterRef *ref, int64 part)
{
    if (!credit_owner(credits, ref, part))
        credit_provenance(credits, ref, part);
}

/* -- writing ------------------------------------------------------------------------------ */

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

static void put_credit(Datum *values, bool *nulls, const LoraCredit *c, int64 tokens)
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

void lora_write_credits(int64 inference, const LoraCredits *credits, int64 tokens)
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
    lora_insert_rows(&how, &insert, n, values, nulls);
}
