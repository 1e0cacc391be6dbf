/*
 * payouts.c: lora_payout_receipts: whoever may see a payout may see what it was paid for,
 * which is otherwise the owner's: so the payout is looked for as the caller, under row-level
 * security, and its receipts are read as the owner. And lora_system_identifier.
 */
#include "lora_pg.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "rows.h"
#include "spi.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(lora_payout_receipts);
PG_FUNCTION_INFO_V1(lora_system_identifier);

#define PAYOUT_COLUMNS 8

static bool may_see(Datum payout)
{
    static LoraStatement find = {
        "SELECT 1 FROM openlora.payouts WHERE id OPERATOR(pg_catalog.=) $1", 1, {INT8OID}};

    return lora_execute(&find, &payout, NULL, true) == 1;
}

static void put_rows(ReturnSetInfo *set, uint64 n)
{
    for (uint64 row = 0; row < n; row++) {
        Datum values[PAYOUT_COLUMNS];
        bool nulls[PAYOUT_COLUMNS];

        for (int i = 0; i < PAYOUT_COLUMNS; i++)
            values[i] = lora_value(row, i + 1, &nulls[i]);
        tuplestore_putvalues(set->setResult, set->setDesc, values, nulls);
    }
}

/* lora_payout_receipts(payout bigint) -> rows */
Datum lora_payout_receipts(PG_FUNCTION_ARGS)
{
    static LoraStatement receipts = {
        "SELECT leaf, leaf_hash, inference, committed, kind, adapter, dataset, amount"
        " FROM openlora.payout_receipts($1)",
        1,
        {INT8OID}};
    Datum payout = PG_GETARG_DATUM(0);
    ReturnSetInfo *set = lora_begin_rows(fcinfo);
    LoraIdentity caller;

    lora_connect();
    if (may_see(payout)) {
        lora_become_owner(&caller);
        put_rows(set, lora_execute(&receipts, &payout, NULL, true));
        lora_become_caller(&caller);
    }
    SPI_finish();
    return (Datum)0;
}

/* openlora.system_identifier() -> bigint: the bits of an unsigned number */
Datum lora_system_identifier(PG_FUNCTION_ARGS)
{
    PG_RETURN_INT64((int64)GetSystemIdentifier());
}
