/* rows.c: see rows.h. */
#include "rows.h"

#include "utils/tuplestore.h"

#if PG_VERSION_NUM >= 150000
ReturnSetInfo *lora_begin_rows(FunctionCallInfo fcinfo)
{
    InitMaterializedSRF(fcinfo, 0);
    return (ReturnSetInfo *)fcinfo->resultinfo;
}
#else
ReturnSetInfo *lora_begin_rows(FunctionCallInfo fcinfo)
{
    ReturnSetInfo *set = (ReturnSetInfo *)fcinfo->resultinfo;
    MemoryContext before;

    if (!set || !IsA(set, ReturnSetInfo) || !(set->allowedModes & SFRM_Materialize))
        ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                        errmsg("set-valued function called in context that cannot accept a set")));
    before = MemoryContextSwitchTo(set->econtext->ecxt_per_query_memory);
    if (get_call_result_type(fcinfo, NULL, &set->setDesc) != TYPEFUNC_COMPOSITE)
        elog(ERROR, "return type must be a row type");
    set->setDesc = BlessTupleDesc(set->setDesc);
    set->setResult =
        tuplestore_begin_heap((set->allowedModes & SFRM_Materialize_Random) != 0, false, work_mem);
    set->returnMode = SFRM_Materialize;
    MemoryContextSwitchTo(before);
    return set;
}
#endif

Datum lora_digest_datum(const ol_digest *digest)
{
    bytea *bytes = palloc(VARHDRSZ + OL_DIGEST_BYTES);

    SET_VARSIZE(bytes, VARHDRSZ + OL_DIGEST_BYTES);
    memcpy(VARDATA(bytes), digest->bytes, OL_DIGEST_BYTES);
    return PointerGetDatum(bytes);
}
