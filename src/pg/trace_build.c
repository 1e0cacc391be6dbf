/*
 * trace_build.c: openlora.trace_build: makes the index of a dataset: see trace.h.
 *
 * libdivsufsort sorts the suffixes of bytes: tokens are laid out most significant byte
 * first, and of the sorted suffixes those are kept that begin with a token.
 */
#include "trace.h"

#include <divsufsort.h>

#include "catalog/pg_type.h"
#include "port/pg_bswap.h"
#include "spi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(lora_trace_build);

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

    while (lora_execute(&next, values, NULL, true) == 1) {
        int64 id = lora_int64(0, 1);
        bool is_null;
        text *content = DatumGetTextPP(lora_value(0, 2, &is_null));
        SPITupleTable *rows = SPI_tuptable;

        note_document(build, id);
        add_document(build, id, content);
        SPI_freetuptable(rows);
        values[1] = Int64GetDatum(id);
        n++;
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

static void write_chunks(const Build *build, TracePart part, const void *numbers)
{
    static LoraStatement insert = {
        "INSERT INTO openlora.trace_chunks (dataset, part, chunk, numbers) VALUES ($1, $2, $3, $4)",
        4,
        {INT8OID, INT2OID, INT4OID, BYTEAOID}};

    for (int64 at = 0; at < build->n; at += TRACE_CHUNK) {
        Size count = (Size)Min(TRACE_CHUNK, build->n - at);
        Datum bytes = bytes_datum((const uint32 *)numbers + at, sizeof(uint32) * count);
        Datum values[4] = {Int64GetDatum(build->dataset), Int16GetDatum(part),
                           Int32GetDatum((int32)(at / TRACE_CHUNK)), bytes};

        CHECK_FOR_INTERRUPTS();
        lora_execute(&insert, values, NULL, false);
        pfree(DatumGetPointer(bytes));
    }
}

/* What is past the end reads as the end of a document. */
static void write_index(const Build *build, const int32 *suffixes)
{
    static LoraStatement insert = {
        "INSERT INTO openlora.trace_indexes (dataset, seed, n, fences) VALUES ($1, $2, $3, $4)",
        4,
        {INT8OID, INT8OID, INT8OID, BYTEAOID}};
    Size n = (Size)((build->n + TRACE_CHUNK - 1) / TRACE_CHUNK);
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

/* openlora.trace_build(dataset bigint, seed bigint) -> words. The caller has removed what
 * was there before. */
Datum lora_trace_build(PG_FUNCTION_ARGS)
{
    Build build = {.dataset = PG_GETARG_INT64(0), .seed = PG_GETARG_INT64(1), .room = 1 << 16};
    int64 documents;
    int32 *suffixes;

    build.context =
        AllocSetContextCreate(CurrentMemoryContext, "openlora documents", ALLOCSET_DEFAULT_SIZES);
    build.tokens = MemoryContextAllocHuge(build.context, sizeof(uint32) * (Size)build.room);
    if (SPI_connect() != SPI_OK_CONNECT)
        elog(ERROR, "SPI_connect failed");
    documents = read_documents(&build);
    ereport(NOTICE, (errmsg("read " INT64_FORMAT " documents, " INT64_FORMAT " words", documents,
                            build.n - documents)));
    suffixes = sort_suffixes(&build);
    ereport(NOTICE, (errmsg("sorted, writing")));
    write_chunks(&build, TRACE_TOKENS, build.tokens);
    write_chunks(&build, TRACE_SUFFIXES, suffixes);
    write_index(&build, suffixes);
    SPI_finish();
    MemoryContextDelete(build.context);
    PG_RETURN_INT64(build.n - documents);
}
