/*
 * share_trigger.c: the shares of one adapter or dataset sum to a million at most.
 *
 * A deferred constraint trigger fires for every row. Summing at each would make loading n
 * contributors of one dataset cost n * n, so a parent that was found right is remembered
 * until a statement changes one of these tables again. The function serves two triggers:
 *   before each statement   forgets what was found
 *   deferred, after each row    checks the row's parent, unless it is remembered
 *
 * Two transactions that each add shares to one parent would not see each other's rows. So
 * the check locks the parent's row until the transaction ends, and then sums what is
 * committed by now, whatever the snapshot of the transaction.
 */
#include "lora_pg.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "spi.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "attribution.h"

PG_FUNCTION_INFO_V1(lora_check_shares);

/* What was found right in this transaction, and since the last change. */
typedef struct Parent {
    Oid table; /* that holds the shares */
    int32 padding;
    int64 id;
} Parent;

static HTAB *found_right;

/* The table is in the transaction's memory. What a subtransaction did is undone when it
 * aborts, so what was found right need not be any more. */
static void forget(XactEvent event, void *arg)
{
    found_right = NULL;
}

static void forget_sub(SubXactEvent event, SubTransactionId id, SubTransactionId parent, void *arg)
{
    if (event == SUBXACT_EVENT_ABORT_SUB)
        found_right = NULL;
}

static HTAB *memory_of_parents(void)
{
    static bool registered;
    HASHCTL how = {
        .keysize = sizeof(Parent), .entrysize = sizeof(Parent), .hcxt = TopTransactionContext};

    if (!registered) {
        RegisterXactCallback(forget, NULL);
        RegisterSubXactCallback(forget_sub, NULL);
        registered = true;
    }
    if (!found_right)
        found_right =
            hash_create("openlora shares", 64, &how, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
    return found_right;
}

static void forget_all(void)
{
    if (found_right)
        hash_destroy(found_right);
    found_right = NULL;
}

/* -- the sum ------------------------------------------------------------------------------ */

static LoraStatement locks[] = {
    {"SELECT 1 FROM openlora.adapters WHERE id OPERATOR(pg_catalog.=) $1 FOR NO KEY UPDATE",
     1,
     {INT8OID}},
    {"SELECT 1 FROM openlora.datasets WHERE id OPERATOR(pg_catalog.=) $1 FOR NO KEY UPDATE",
     1,
     {INT8OID}},
};

static LoraStatement sums[] = {
    {"SELECT pg_catalog.sum(share) FROM openlora.adapter_datasets"
     " WHERE adapter OPERATOR(pg_catalog.=) $1",
     1,
     {INT8OID}},
    {"SELECT pg_catalog.sum(share) FROM openlora.adapter_contributors"
     " WHERE adapter OPERATOR(pg_catalog.=) $1",
     1,
     {INT8OID}},
    {"SELECT pg_catalog.sum(share) FROM openlora.dataset_contributors"
     " WHERE dataset OPERATOR(pg_catalog.=) $1",
     1,
     {INT8OID}},
};

static const char *const tables[] = {"adapter_datasets", "adapter_contributors",
                                     "dataset_contributors"};

static int64 sum_shares(int which, bool of_dataset, int64 parent)
{
    Datum id = Int64GetDatum(parent);
    LoraIdentity caller;
    int64 sum;

    lora_connect();
    lora_become_owner(&caller);
    lora_execute(&locks[of_dataset], &id, NULL, false);
    lora_read_latest(&sums[which], &id);
    sum = lora_int64(0, 1);
    lora_become_caller(&caller);
    SPI_finish();
    return sum;
}

static void check_parent(TriggerData *trigger, const char *kind, int64 parent)
{
    Parent key = {.table = RelationGetRelid(trigger->tg_relation), .id = parent};
    int which = 0;
    int64 sum;

    if (hash_search(memory_of_parents(), &key, HASH_FIND, NULL))
        return;
    while (which < lengthof(tables) &&
           strcmp(tables[which], RelationGetRelationName(trigger->tg_relation)) != 0)
        which++;
    if (which == lengthof(tables))
        elog(ERROR, "lora_check_shares does not belong to table \"%s\"",
             RelationGetRelationName(trigger->tg_relation));
    sum = sum_shares(which, strcmp(kind, "dataset") == 0, parent);
    if (sum > LORA_WHOLE)
        ereport(ERROR,
                (errcode(ERRCODE_CHECK_VIOLATION),
                 errmsg("shares of %s " INT64_FORMAT " exceed the whole", kind, parent),
                 errdetail("They sum to " INT64_FORMAT " of " INT64_FORMAT " parts per million.",
                           sum, LORA_WHOLE),
                 errtable(trigger->tg_relation)));
    (void)hash_search(memory_of_parents(), &key, HASH_ENTER, NULL);
}

/* Argument of the trigger: the column that names the parent, "adapter" or "dataset". */
Datum lora_check_shares(PG_FUNCTION_ARGS)
{
    TriggerData *trigger = (TriggerData *)fcinfo->context;
    TupleDesc desc;
    HeapTuple tuple;
    const char *kind;
    bool null;
    Datum parent;

    if (!CALLED_AS_TRIGGER(fcinfo) || trigger->tg_trigger->tgnargs != 1)
        ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
                        errmsg("lora_check_shares was not called as its triggers do")));
    if (TRIGGER_FIRED_FOR_STATEMENT(trigger->tg_event)) {
        forget_all();
        return PointerGetDatum(NULL);
    }
    kind = trigger->tg_trigger->tgargs[0];
    desc = RelationGetDescr(trigger->tg_relation);
    tuple =
        TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ? trigger->tg_newtuple : trigger->tg_trigtuple;
    parent = heap_getattr(tuple, SPI_fnumber(desc, kind), desc, &null);
    if (!null)
        check_parent(trigger, kind, DatumGetInt64(parent));
    return PointerGetDatum(NULL);
}
