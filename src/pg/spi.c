/* spi.c: see spi.h. */
#include "spi.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

void lora_connect(void)
{
    if (SPI_connect() != SPI_OK_CONNECT)
        elog(ERROR, "SPI_connect failed");
}

void lora_begin_work(void)
{
    SetCurrentStatementStartTimestamp();
    StartTransactionCommand();
    PushActiveSnapshot(GetTransactionSnapshot());
    lora_connect();
}

void lora_commit_work(void)
{
    SPI_finish();
    PopActiveSnapshot();
    CommitTransactionCommand();
    MemoryContextSwitchTo(TopMemoryContext);
}

uint64 lora_execute(LoraStatement *statement, Datum *values, const char *nulls, bool read_only)
{
    int code;

    if (!statement->plan) {
        SPIPlanPtr plan = SPI_prepare(statement->text, statement->n_args, statement->types);

        if (!plan || SPI_keepplan(plan) != 0)
            elog(ERROR, "could not prepare \"%s\": %s", statement->text,
                 SPI_result_code_string(SPI_result));
        statement->plan = plan;
    }
    code = SPI_execute_plan(statement->plan, values, nulls, read_only, 0);
    if (code < 0)
        elog(ERROR, "could not execute \"%s\": %s", statement->text, SPI_result_code_string(code));
    return SPI_processed;
}

uint64 lora_read_latest(LoraStatement *statement, Datum *values)
{
    uint64 n;

    PushActiveSnapshot(GetLatestSnapshot());
    n = lora_execute(statement, values, NULL, true);
    PopActiveSnapshot();
    return n;
}

Datum lora_value(uint64 row, int column, bool *is_null)
{
    return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, is_null);
}

int64 lora_int64(uint64 row, int column)
{
    bool is_null;
    Datum value = lora_value(row, column, &is_null);

    return is_null ? 0 : DatumGetInt64(value);
}

char *lora_text(uint64 row, int column)
{
    bool is_null;
    Datum value = lora_value(row, column, &is_null);
    char *found, *copy;

    if (is_null)
        return NULL;
    found = TextDatumGetCString(value);
    copy = SPI_palloc(strlen(found) + 1);
    return strcpy(copy, found);
}

struct varlena *lora_varlena(uint64 row, int column)
{
    bool is_null;
    Datum value = lora_value(row, column, &is_null);

    return is_null ? NULL : (struct varlena *)DatumGetPointer(SPI_datumTransfer(value, false, -1));
}

Oid lora_tables_owner(void)
{
    Oid relation = get_relname_relid("inferences", get_namespace_oid("openlora", false));
    HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
    Oid owner;

    if (!HeapTupleIsValid(tuple))
        ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
                        errmsg("table openlora.inferences does not exist"),
                        errhint("Create the extension in this database.")));
    owner = ((Form_pg_class)GETSTRUCT(tuple))->relowner;
    ReleaseSysCache(tuple);
    return owner;
}

/* As foreign keys do it: SET ROLE is out of reach meanwhile, and FORCE ROW LEVEL SECURITY
 * does not turn the owner away. */
void lora_become_owner(LoraIdentity *caller)
{
    Oid owner = lora_tables_owner();

    GetUserIdAndSecContext(&caller->user, &caller->context);
    SetUserIdAndSecContext(owner,
                           caller->context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_NOFORCE_RLS);
}

void lora_become_caller(const LoraIdentity *caller)
{
    SetUserIdAndSecContext(caller->user, caller->context);
}
