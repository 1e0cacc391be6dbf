/*
 * trace_call.c: lora_trace: what may be compared with which documents is decided as the
 * caller, under row-level security; the index, which nobody else reads, is searched as the
 * tables' owner.
 */
#include "trace.h"

#include "catalog/pg_type.h"
#include "rows.h"
#include "spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(lora_trace_text);
PG_FUNCTION_INFO_V1(lora_trace_inference);

#define TRACE_COLUMNS 11
/* Of spans in others' documents: shorter ones are anybody's words, and would let texts be
 * guessed word by word from nothing. */
#define LEAST_WORDS "6"

enum { ARG_CONTENT, ARG_DATASETS, ARG_MIN_WORDS, ARG_MAX_OCCURRENCES, ARG_UPLOADER };

/* The datasets, and the fewest words of a span in each: NULL when there are none. */
typedef struct Where {
    struct varlena *datasets, *min_words;
} Where;

static bool is_owner(void)
{
    return GetUserId() == lora_tables_owner();
}

static Where find_datasets(FunctionCallInfo fcinfo, bool own_answer)
{
    static LoraStatement find = {
        "SELECT pg_catalog.array_agg(s.id), pg_catalog.array_agg(s.least) FROM ("
        "SELECT d.id, CASE WHEN d.own THEN $2 ELSE GREATEST($2, " LEAST_WORDS ") END AS least"
        " FROM (SELECT x.id, x.name, x.traceable,"
        " $4 OR pg_catalog.pg_has_role(x.owner::pg_catalog.oid, 'USAGE') AS own"
        " FROM openlora.datasets x) d"
        " WHERE ($1 IS NULL OR d.name OPERATOR(pg_catalog.=) ANY ($1))"
        " AND (d.own OR d.traceable AND $3)) s",
        4,
        {TEXTARRAYOID, INT4OID, BOOLOID, BOOLOID}};
    Datum values[4] = {PG_ARGISNULL(ARG_DATASETS) ? (Datum)0 : PG_GETARG_DATUM(ARG_DATASETS),
                       PG_GETARG_DATUM(ARG_MIN_WORDS), BoolGetDatum(own_answer),
                       BoolGetDatum(is_owner())};
    char nulls[5] = "    ";
    Where where;

    nulls[0] = PG_ARGISNULL(ARG_DATASETS) ? 'n' : ' ';
    lora_execute(&find, values, nulls, true);
    where.datasets = lora_varlena(0, 1);
    where.min_words = lora_varlena(0, 2);
    return where;
}

static void put_rows(ReturnSetInfo *set, uint64 n)
{
    for (uint64 row = 0; row < n; row++) {
        Datum values[TRACE_COLUMNS];
        bool nulls[TRACE_COLUMNS];

        for (int i = 0; i < TRACE_COLUMNS; i++)
            values[i] = lora_value(row, i + 1, &nulls[i]);
        tuplestore_putvalues(set->setResult, set->setDesc, values, nulls);
    }
}

static void trace(FunctionCallInfo fcinfo, ReturnSetInfo *set, Datum content, bool own_answer)
{
    static LoraStatement find = {
        "SELECT rank, span, \"position\", words, occurrences, dataset, document, document_word,"
        " contributor, credit, basis FROM openlora.trace_rows($1, $2, $3, $4, $5)",
        5,
        {TEXTOID, INT8ARRAYOID, INT4ARRAYOID, INT4OID, REGROLEOID}};
    Where where = find_datasets(fcinfo, own_answer);
    Datum values[5] = {content, PointerGetDatum(where.datasets), PointerGetDatum(where.min_words),
                       PG_GETARG_DATUM(ARG_MAX_OCCURRENCES),
                       PG_ARGISNULL(ARG_UPLOADER) ? (Datum)0 : PG_GETARG_DATUM(ARG_UPLOADER)};
    char nulls[6] = "     ";
    LoraIdentity caller;

    if (!where.datasets)
        return;
    nulls[4] = PG_ARGISNULL(ARG_UPLOADER) ? 'n' : ' ';
    lora_become_owner(&caller);
    put_rows(set, lora_execute(&find, values, nulls, false));
    lora_become_caller(&caller);
}

static bool lacks_arguments(FunctionCallInfo fcinfo)
{
    return PG_ARGISNULL(ARG_CONTENT) || PG_ARGISNULL(ARG_MIN_WORDS) ||
           PG_ARGISNULL(ARG_MAX_OCCURRENCES);
}

/* lora_trace(content text, datasets text[], min_words int, max_occurrences int,
 * uploader regrole) -> rows */
Datum lora_trace_text(PG_FUNCTION_ARGS)
{
    ReturnSetInfo *set = lora_begin_rows(fcinfo);

    if (lacks_arguments(fcinfo))
        return (Datum)0;
    lora_connect();
    trace(fcinfo, set, PG_GETARG_DATUM(ARG_CONTENT), false);
    SPI_finish();
    return (Datum)0;
}

/* The answer, if it was kept and the caller may see it. */
static Datum kept_answer(int64 inference)
{
    static LoraStatement find = {
        "SELECT output FROM openlora.inference_texts WHERE inference OPERATOR(pg_catalog.=) $1",
        1,
        {INT8OID}};
    Datum value = Int64GetDatum(inference);
    struct varlena *output = NULL;

    if (lora_execute(&find, &value, NULL, true) == 1)
        output = lora_varlena(0, 1);
    if (!output)
        ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                        errmsg("the answer of inference " INT64_FORMAT " was not kept", inference),
                        errhint("openlora.keep_text = full keeps answers.")));
    return PointerGetDatum(output);
}

/* lora_trace(inference_id bigint, ...) -> rows */
Datum lora_trace_inference(PG_FUNCTION_ARGS)
{
    ReturnSetInfo *set = lora_begin_rows(fcinfo);

    if (lacks_arguments(fcinfo))
        return (Datum)0;
    lora_connect();
    trace(fcinfo, set, kept_answer(PG_GETARG_INT64(ARG_CONTENT)), true);
    SPI_finish();
    return (Datum)0;
}
