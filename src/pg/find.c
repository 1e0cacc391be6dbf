/* find.c: see find.h. */
#include "find.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

static Relation open_table(const LoraFind *how, Oid *index)
{
    Oid space = get_namespace_oid("openlora", false);
    Oid oid = get_relname_relid(how->table, space);
    Relation table;

    if (!OidIsValid(oid))
        ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
                        errmsg("table openlora.%s does not exist", how->table)));
    table = table_open(oid, AccessShareLock);
    if (table->rd_rel->relkind != RELKIND_RELATION ||
        RelationGetNumberOfAttributes(table) < how->n_columns)
        ereport(ERROR,
                (errcode(ERRCODE_WRONG_OBJECT_TYPE),
                 errmsg("openlora.%s is not the table that the extension has made", how->table)));
    *index = get_relname_relid(how->index, space);
    return table;
}

static void take(Relation table, const LoraFind *how, HeapTuple tuple, Datum *values, bool *nulls)
{
    HeapTuple copy = heap_copytuple(tuple);

    for (int i = 0; i < how->n_columns; i++)
        values[i] = heap_getattr(copy, i + 1, RelationGetDescr(table), &nulls[i]);
}

bool lora_find(const LoraFind *how, Datum key, Snapshot snapshot, Datum *values, bool *nulls)
{
    Oid index;
    Relation table = open_table(how, &index);
    ScanKeyData with;
    SysScanDesc scan;
    HeapTuple tuple;

    ScanKeyInit(&with, how->key, BTEqualStrategyNumber, how->equal, key);
    scan = systable_beginscan(table, index, OidIsValid(index), snapshot, 1, &with);
    tuple = systable_getnext(scan);
    if (HeapTupleIsValid(tuple))
        take(table, how, tuple, values, nulls);
    systable_endscan(scan);
    table_close(table, AccessShareLock);
    return HeapTupleIsValid(tuple);
}

bool lora_find_latest(const LoraFind *how, Datum key, Datum *values, bool *nulls)
{
    bool found;

    PushActiveSnapshot(GetLatestSnapshot());
    found = lora_find(how, key, GetActiveSnapshot(), values, nulls);
    PopActiveSnapshot();
    return found;
}
