/* append.c: see append.h. */
#include "append.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_trigger.h"
#include "executor/executor.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/* Whether nothing else looks at new rows than a foreign key to openlora.inferences. */
static bool has_only_our_key(const TriggerDesc *triggers, Oid inferences)
{
    for (int i = 0; triggers && i < triggers->numtriggers; i++) {
        const Trigger *t = &triggers->triggers[i];

        if (TRIGGER_FOR_INSERT(t->tgtype) &&
            (t->tgconstrrelid != inferences || t->tgfoid != F_RI_FKEY_CHECK_INS))
            return false;
    }
    return true;
}

static bool is_as_we_made_it(Relation table, const LoraAppend *how)
{
    TupleDesc desc = RelationGetDescr(table);
    int n_checks = desc->constr ? desc->constr->num_check : 0;

    if (table->rd_rel->relkind != RELKIND_RELATION || table->rd_rel->relhasrules ||
        desc->natts != how->n_columns || n_checks != how->n_checks ||
        (desc->constr && desc->constr->has_generated_stored))
        return false;
    for (int i = 0; i < desc->natts; i++)
        if (TupleDescAttr(desc, i)->attisdropped)
            return false;
    return has_only_our_key(table->trigdesc,
                            get_relname_relid("inferences", RelationGetNamespace(table)));
}

static void append_row(ResultRelInfo *into, EState *estate, TupleTableSlot *slot,
                       const Datum *values, const bool *nulls)
{
    int n = slot->tts_tupleDescriptor->natts;
    List *rechecked;

    ExecClearTuple(slot);
    memcpy(slot->tts_values, values, sizeof(Datum) * (Size)n);
    memcpy(slot->tts_isnull, nulls, sizeof(bool) * (Size)n);
    ExecStoreVirtualTuple(slot);
    slot->tts_tableOid = RelationGetRelid(into->ri_RelationDesc);
    table_tuple_insert(into->ri_RelationDesc, slot, GetCurrentCommandId(true), 0, NULL);
    if (into->ri_NumIndices == 0)
        return;
#if PG_VERSION_NUM >= 160000
    rechecked = ExecInsertIndexTuples(into, slot, estate, false, false, NULL, NIL, false);
#else
    rechecked = ExecInsertIndexTuples(into, slot, estate, false, false, NULL, NIL);
#endif
    list_free(rechecked);
    ResetPerTupleExprContext(estate);
}

bool lora_append(const LoraAppend *how, int n, const Datum *values, const bool *nulls)
{
    Oid oid = get_relname_relid(how->table, get_namespace_oid("openlora", false));
    Relation table;
    ResultRelInfo *into;
    TupleTableSlot *slot;
    EState *estate;

    if (!OidIsValid(oid))
        return false;
    table = table_open(oid, RowExclusiveLock);
    if (!is_as_we_made_it(table, how)) {
        table_close(table, NoLock);
        return false;
    }
    estate = CreateExecutorState();
    into = makeNode(ResultRelInfo);
    InitResultRelInfo(into, table, 0, NULL, 0);
    ExecOpenIndices(into, false);
    slot = table_slot_create(table, NULL);
    for (int i = 0; i < n; i++)
        append_row(into, estate, slot, values + i * how->n_columns, nulls + i * how->n_columns);
    ExecDropSingleTupleTableSlot(slot);
    ExecCloseIndices(into);
    FreeExecutorState(estate);
    table_close(table, NoLock);
    CommandCounterIncrement();
    return true;
}

void lora_insert_rows(const LoraAppend *how, LoraStatement *insert, int n, Datum *values,
                      const bool *nulls)
{
    char marks[LORA_MAX_ARGS];

    if (lora_append(how, n, values, nulls))
        return;
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < how->n_columns; k++)
            marks[k] = nulls[i * how->n_columns + k] ? 'n' : ' ';
        lora_execute(insert, values + i * how->n_columns, marks, false);
    }
}
