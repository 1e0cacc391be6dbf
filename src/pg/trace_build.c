/*
 * trace_build.c: lora_trace_index: makes the index of a dataset: see trace.h. Whether it is the
 * caller's is looked at as the caller; the index is the tables' owner's.
 *
 * libdivsufsort sorts the suffixes of bytes: tokens are laid out most significant byte
 * first, and of the sorted suffixes those are kept that begin with a token.
 */
#include "trace.h"

#include <divsufsort.h>

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "progress.h"
#include "spi.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(lora_trace_index);

typedef struct Build {
    MemoryContext context;
    int64 dataset, seed;
    uint32 *tokens; /* most significant byte first */
    int64 n, room;
} Build;

static void add_token(Build *build, uint32 token)
{
    if (build->n == build->room) {
        if (build->room >= TRACE_MAX_TOKENS)
            ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
                            errmsg("the documents of a dataset exceed " INT64_FORMAT " words",
                                   TRACE_MAX_TOKENS),
                            errhint("Divide them among datasets.")));
        build->room *= 2;
        build->tokens = repalloc_huge(build->tokens, sizeof(uint32) * (Size)build->room);
    }
    build->tokens[build->n++] = pg_hton32(token);
}

static void note_document(Build *build, int64 document)
{
    static LoraStatement insert = {
        "INSERT INTO openlora.trace_documents (dataset, start, document) VALUES ($1, $2, $3)",
        3,
        {INT8OID, INT8OID, INT8OID}};
    Datum values[3] = {Int64GetDatum(build->dataset), Int64GetDatum(build->n),
                       Int64GetDatum(document)};

    lora_execute(&insert, values, NULL, false);
}

static void add_document(Build *build, int64 document, const text *content)
{
    const char *bytes = VARDATA_ANY(content);
    int32 length = (int32)VARSIZE_ANY_EXHDR(content), at = 0;
    TraceWord word;

    while (lora_trace_next(bytes, length, build->seed, &at, &word)) {
        add_token(build, word.token);
        if ((build->n & 0xffff) == 0)
            CHECK_FOR_INTERRUPTS();
    }
    add_token(build, 0);
}

static int64 count_documents(int64 dataset)
{
    static LoraStatement count = {"SELECT pg_catalog.count(*) FROM openlora.dataset_documents"
                                  " WHERE dataset OPERATOR(pg_catalog.=) $1",
                                  1,
                                  {INT8OID}};

    lora_execute(&count, (Datum[]){Int64GetDatum(dataset)}, NULL, true);
    return lora_int64(0, 1);
}

/* One document after the other: one at a time is in memory. */
static int64 read_documents(Build *build)
{
    static LoraStatement next = {
        "SELECT id, text FROM openlora.dataset_documents WHERE dataset OPERATOR(pg_catalog.=) $1"
        " AND id OPERATOR(pg_catalog.>) $2 ORDER BY id LIMIT 1",
        2,
        {INT8OID, INT8OID}};
    Datum values[2] = {Int64GetDatum(build->dataset), Int64GetDatum(PG_INT64_MIN)};
    int64 n = 0;

    lora_progress_phase(LORA_TRACE_READING, count_documents(build->dataset));
    while (lora_execute(&next, values, NULL, true) == 1) {
        int64 id = lora_int64(0, 1);
        bool is_null;
        text *content = DatumGetTextPP(lora_value(0, 2, &is_null));
        SPITupleTable *rows = SPI_tuptable;

        note_document(build, id);
        add_document(build, id, content);
        SPI_freetuptable(rows);
        values[1] = Int64GetDatum(id);
        lora_progress_done(++n);
    }
    return n;
}

/* -- the suffixes ------------------------------------------------------------------------- */

/* Their places in the order of what follows there, in units of tokens. */
static int32 *sort_suffixes(const Build *build)
{
    int32 *sorted = MemoryContextAllocHuge(build->context, sizeof(int32) * 4 * (Size)build->n);
    int64 kept = 0;

    if (divsufsort((const sauchar_t *)build->tokens, sorted, (saidx_t)(4 * build->n)) != 0)
        ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("could not sort the documents"),
                        errdetail("They have " INT64_FORMAT " words.", build->n)));
    for (int64 i = 0; i < 4 * build->n; i++)
        if (sorted[i] % 4 == 0)
            sorted[kept++] = sorted[i] / 4;
    Assert(kept == build->n);
    return sorted;
}

static Datum bytes_datum(const void *data, Size length)
{
    bytea *value = palloc(VARHDRSZ + length);

    SET_VARSIZE(value, VARHDRSZ + length);
    memcpy(VARDATA(value), data, length);
    return PointerGetDatum(value);
}

static int64 n_chunks(const Build *build)
{
    return (build->n + TRACE_CHUNK - 1) / TRACE_CHUNK;
}

static void write_chunks(const Build *build, TracePart part, const void *numbers)
{
    static LoraStatement insert = {
        "INSERT INTO openlora.trace_chunks (dataset, part, chunk, numbers) VALUES ($1, $2, $3, $4)",
        4,
        {INT8OID, INT2OID, INT4OID, BYTEAOID}};

    for (int64 at = 0, number = 0; at < build->n; at += TRACE_CHUNK, number++) {
        Size count = (Size)Min(TRACE_CHUNK, build->n - at);
        Datum bytes = bytes_datum((const uint32 *)numbers + at, sizeof(uint32) * count);
        Datum values[4] = {Int64GetDatum(build->dataset), Int16GetDatum(part),
                           Int32GetDatum((int32)number), bytes};

        CHECK_FOR_INTERRUPTS();
        lora_execute(&insert, values, NULL, false);
        pfree(DatumGetPointer(bytes));
        if (number % 256 == 0)
            lora_progress_done(number + (part == TRACE_SUFFIXES ? n_chunks(build) : 0));
    }
}

/* What is past the end reads as the end of a document. */
static void write_index(const Build *build, const int32 *suffixes)
{
    static LoraStatement insert = {
        "INSERT INTO openlora.trace_indexes (dataset, seed, n, fences) VALUES ($1, $2, $3, $4)",
        4,
        {INT8OID, INT8OID, INT8OID, BYTEAOID}};
    Size n = (Size)n_chunks(build);
    uint32 *fences = MemoryContextAllocZero(build->context, sizeof(uint32) * TRACE_FENCE * (n + 1));

    for (Size chunk = 0; chunk < n; chunk++)
        for (int64 i = 0; i < TRACE_FENCE; i++) {
            int64 place = suffixes[chunk * TRACE_CHUNK] + i;

            if (place < build->n)
                fences[chunk * TRACE_FENCE + (Size)i] = build->tokens[place];
        }
    lora_execute(&insert,
                 (Datum[]){Int64GetDatum(build->dataset), Int64GetDatum(build->seed),
                           Int64GetDatum(build->n),
                           bytes_datum(fences, sizeof(uint32) * TRACE_FENCE * n)},
                 NULL, false);
}

/* -- the whole ---------------------------------------------------------------------------- */

/* Reads and writes all; returns the number of words. */
static int64 build_index(Build *build)
{
    int64 documents;
    int32 *suffixes;

    build->context =
        AllocSetContextCreate(CurrentMemoryContext, "openlora documents", ALLOCSET_DEFAULT_SIZES);
    build->tokens = MemoryContextAllocHuge(build->context, sizeof(uint32) * (Size)build->room);
    documents = read_documents(build);
    ereport(NOTICE, (errmsg("read " INT64_FORMAT " documents, " INT64_FORMAT " words", documents,
                            build->n - documents)));
    lora_progress_phase(LORA_TRACE_SORTING, build->n);
    suffixes = sort_suffixes(build);
    ereport(NOTICE, (errmsg("sorted, writing")));
    lora_progress_phase(LORA_TRACE_WRITING, 2 * n_chunks(build));
    write_chunks(build, TRACE_TOKENS, build->tokens);
    write_chunks(build, TRACE_SUFFIXES, suffixes);
    write_index(build, suffixes);
    MemoryContextDelete(build->context);
    return build->n - documents;
}

/* The dataset, if the caller may index it. */
static int64 own_dataset(Datum name)
{
    static LoraStatement find = {
        "SELECT id, $2 OR pg_catalog.pg_has_role(owner::pg_catalog.oid, 'USAGE')"
        " FROM openlora.datasets WHERE name OPERATOR(pg_catalog.=) $1",
        2,
        {TEXTOID, BOOLOID}};
    Datum values[2] = {name, BoolGetDatum(GetUserId() == lora_tables_owner())};
    bool is_null;

    if (lora_execute(&find, values, NULL, true) != 1)
        ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
                        errmsg("dataset \"%s\" does not exist", TextDatumGetCString(name))));
    if (!DatumGetBool(lora_value(0, 2, &is_null)))
        ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
                        errmsg("dataset \"%s\" is not yours", TextDatumGetCString(name)),
                        errdetail("Its documents are indexed by its owner.")));
    return lora_int64(0, 1);
}

/* Only one at a time makes a dataset's index: the row is locked. */
static void remove_old(int64 dataset)
{
    static LoraStatement steps[] = {
        {"SELECT 1 FROM openlora.datasets WHERE id OPERATOR(pg_catalog.=) $1 FOR NO KEY UPDATE",
         1,
         {INT8OID}},
        {"DELETE FROM openlora.trace_chunks WHERE dataset OPERATOR(pg_catalog.=) $1", 1, {INT8OID}},
        {"DELETE FROM openlora.trace_documents WHERE dataset OPERATOR(pg_catalog.=) $1",
         1,
         {INT8OID}},
        {"DELETE FROM openlora.trace_indexes WHERE dataset OPERATOR(pg_catalog.=) $1",
         1,
         {INT8OID}},
    };
    Datum value = Int64GetDatum(dataset);

    for (int i = 0; i < lengthof(steps); i++)
        lora_execute(&steps[i], &value, NULL, false);
}

static int64 make_seed(void)
{
    int64 seed;

    if (!pg_strong_random(&seed, sizeof(seed)))
        ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate a seed")));
    return seed;
}

/* lora_trace_index(dataset text) -> words */
Datum lora_trace_index(PG_FUNCTION_ARGS)
{
    Build build = {.seed = make_seed(), .room = 1 << 16};
    LoraIdentity caller;
    int64 words = 0;

    lora_connect();
    build.dataset = own_dataset(PG_GETARG_DATUM(0));
    lora_become_owner(&caller);
    PG_ENSURE_ERROR_CLEANUP(lora_progress_end, (Datum)0);
    {
        lora_progress_begin(LORA_JOB_TRACE, build.dataset, "", caller.user);
        remove_old(build.dataset);
        PushActiveSnapshot(GetLatestSnapshot());
        words = build_index(&build);
        PopActiveSnapshot();
    }
    PG_END_ENSURE_ERROR_CLEANUP(lora_progress_end, (Datum)0);
    lora_progress_end(0, (Datum)0);
    lora_become_caller(&caller);
    SPI_finish();
    PG_RETURN_INT64(words);
}
