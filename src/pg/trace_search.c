/*
 * trace_search.c: openlora.trace_spans: the maximal spans of a text that occur in the
 * documents of a dataset: see trace.h.
 *
 * For each word the place of the text's suffix among the documents' is searched; the
 * neighbours of that place share the longest beginnings with it. A span that the one before
 * covers is dropped. Of each kept span, all occurrences are neighbours, too.
 */
#include "trace.h"

#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "port/pg_bswap.h"
#include "rows.h"
#include "spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(lora_trace_spans);

typedef struct Chunk {
    uint64 key; /* part and number */
    const uint32 *numbers;
    int64 n;
} Chunk;

typedef struct Search {
    MemoryContext context;
    int64 dataset, seed, n;
    const uint32 *fences;
    int64 n_fences;
    HTAB *chunks;
    TraceWord *words; /* of the text */
    int64 n_words;
} Search;

/* -- reading the index ----------------------------------------------------------------------- */

static const void *copy_bytes(Search *search, uint64 row, int column, Size *length)
{
    bool is_null;
    bytea *found = DatumGetByteaPP(lora_value(row, column, &is_null));
    void *copy;

    *length = VARSIZE_ANY_EXHDR(found);
    copy = MemoryContextAllocHuge(search->context, *length + 1);
    memcpy(copy, VARDATA_ANY(found), *length);
    return copy;
}

static bool open_index(Search *search)
{
    static LoraStatement find = {"SELECT seed, n, fences FROM openlora.trace_indexes WHERE dataset "
                                 "OPERATOR(pg_catalog.=) $1",
                                 1,
                                 {INT8OID}};
    HASHCTL how = {.keysize = sizeof(uint64), .entrysize = sizeof(Chunk), .hcxt = search->context};
    Datum value = Int64GetDatum(search->dataset);
    Size length;

    if (lora_execute(&find, &value, NULL, true) == 0)
        return false;
    search->seed = lora_int64(0, 1);
    search->n = lora_int64(0, 2);
    search->fences = copy_bytes(search, 0, 3, &length);
    search->n_fences = (int64)(length / (sizeof(uint32) * TRACE_FENCE));
    if (search->n_fences != (search->n + TRACE_CHUNK - 1) / TRACE_CHUNK)
        ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
                        errmsg("the index of dataset " INT64_FORMAT " is damaged", search->dataset),
                        errhint("Build it again with lora_trace_index.")));
    search->chunks =
        hash_create("openlora trace", 1024, &how, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
    return true;
}

static void read_chunk(Search *search, TracePart part, int64 number, Chunk *chunk)
{
    static LoraStatement find = {
        "SELECT numbers FROM openlora.trace_chunks WHERE dataset OPERATOR(pg_catalog.=) $1"
        " AND part OPERATOR(pg_catalog.=) $2 AND chunk OPERATOR(pg_catalog.=) $3",
        3,
        {INT8OID, INT2OID, INT4OID}};
    Datum values[3] = {Int64GetDatum(search->dataset), Int16GetDatum(part),
                       Int32GetDatum((int32)number)};
    Size length = 0;

    chunk->numbers = NULL;
    chunk->n = 0;
    if (lora_execute(&find, values, NULL, true) == 1)
        chunk->numbers = copy_bytes(search, 0, 1, &length);
    chunk->n = (int64)(length / sizeof(uint32));
    SPI_freetuptable(SPI_tuptable);
}

static uint32 number_at(Search *search, TracePart part, int64 place)
{
    uint64 key = (uint64)(place / TRACE_CHUNK) << 1 | part;
    bool found;
    Chunk *chunk = hash_search(search->chunks, &key, HASH_ENTER, &found);

    if (!found)
        read_chunk(search, part, place / TRACE_CHUNK, chunk);
    if (place % TRACE_CHUNK >= chunk->n)
        ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
                        errmsg("the index of dataset " INT64_FORMAT " is damaged", search->dataset),
                        errhint("Build it again with lora_trace_index.")));
    return chunk->numbers[place % TRACE_CHUNK];
}

static int64 suffix_at(Search *search, int64 rank)
{
    int64 place = number_at(search, TRACE_SUFFIXES, rank);

    if (place >= search->n)
        ereport(ERROR,
                (errcode(ERRCODE_DATA_CORRUPTED),
                 errmsg("the index of dataset " INT64_FORMAT " is damaged", search->dataset)));
    return place;
}

/* -- comparing --------------------------------------------------------------------------- */

/* Words that the text from `from` on, `limit` at most, shares with the suffix at `place`;
 * *order: of the text and the suffix after those, 0 when the limit was reached. */
static int64 common(Search *search, int64 from, int64 limit, int64 place, int *order)
{
    int64 shared = 0;

    *order = 0;
    for (; shared < limit && from + shared < search->n_words; shared++) {
        uint32 mine = search->words[from + shared].token, theirs;

        if (place + shared >= search->n) {
            *order = 1;
            return shared;
        }
        theirs = pg_ntoh32(number_at(search, TRACE_TOKENS, place + shared));
        if (mine != theirs) {
            *order = mine < theirs ? -1 : 1;
            return shared;
        }
    }
    if (shared < limit) /* the text ended: it is a beginning of the suffix */
        *order = -1;
    return shared;
}

/* Whether the first suffix of a chunk sorts before the text (or, when `after`, before all
 * that begins with its first `limit` words). */
static bool fence_before(Search *search, int64 chunk, int64 from, int64 limit, bool after)
{
    const uint32 *fence = search->fences + chunk * TRACE_FENCE;
    int order;

    for (int64 i = 0; i < Min(limit, TRACE_FENCE); i++) {
        uint32 mine = from + i < search->n_words ? search->words[from + i].token : 0;
        uint32 theirs = pg_ntoh32(fence[i]);

        if (from + i >= search->n_words)
            return false;
        if (mine != theirs)
            return theirs < mine;
    }
    (void)common(search, from, limit, suffix_at(search, chunk * TRACE_CHUNK), &order);
    return order > 0 || (order == 0 && after);
}

/* The number of suffixes that sort before the text from `from` on; with `after`, those that
 * begin with its first `limit` words count, too. */
static int64 rank_of(Search *search, int64 from, int64 limit, bool after)
{
    int64 low = 0, high = search->n_fences;

    while (low < high) {
        int64 middle = (low + high) / 2;

        if (fence_before(search, middle, from, limit, after))
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return 0;
    high = Min(low * TRACE_CHUNK, search->n);
    low = (low - 1) * TRACE_CHUNK;
    while (low < high) {
        int64 middle = (low + high) / 2;
        int order;

        (void)common(search, from, limit, suffix_at(search, middle), &order);
        if (order > 0 || (order == 0 && after))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int64 longest_at(Search *search, int64 from)
{
    int64 rank = rank_of(search, from, PG_INT64_MAX, false), best = 0;
    int order;

    if (rank > 0)
        best = common(search, from, PG_INT64_MAX, suffix_at(search, rank - 1), &order);
    if (rank < search->n)
        best = Max(best, common(search, from, PG_INT64_MAX, suffix_at(search, rank), &order));
    return best;
}

/* -- spans ------------------------------------------------------------------------------- */

static int32 characters(const char *text, int32 bytes)
{
    return (int32)pg_mbstrlen_with_len(text, bytes);
}

/* Their places in the documents' words, in that order; the first `most` by rank. */
static Datum places_of(Search *search, int64 first, int64 count, int64 most)
{
    int n = (int)Min(count, most);
    Datum *places = palloc(sizeof(Datum) * (Size)(n + 1));

    for (int i = 0; i < n; i++)
        places[i] = Int64GetDatum(suffix_at(search, first + i));
    return PointerGetDatum(
        construct_array(places, n, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

static void put_span(Search *search, ReturnSetInfo *result, const char *content, int64 from,
                     int64 length, int64 most)
{
    int64 first = rank_of(search, from, length, false);
    int64 count = rank_of(search, from, length, true) - first;
    int32 start = search->words[from].start, end = search->words[from + length - 1].end;
    Datum values[6];
    bool nulls[6] = {false};

    values[0] = Int32GetDatum((int32)from);
    values[1] = Int32GetDatum((int32)length);
    values[2] = Int32GetDatum(characters(content, start) + 1);
    values[3] = PointerGetDatum(cstring_to_text_with_len(content + start, end - start));
    values[4] = Int64GetDatum(count);
    values[5] = places_of(search, first, count, most);
    tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

static void find_spans(Search *search, ReturnSetInfo *result, const char *content, int64 least,
                       int64 most)
{
    int64 covered = 0;

    for (int64 from = 0; from + least <= search->n_words; from++) {
        int64 length = longest_at(search, from);

        CHECK_FOR_INTERRUPTS();
        if (length >= least && from + length > covered)
            put_span(search, result, content, from, length, most);
        covered = Max(covered, from + length);
    }
}

static void read_words(Search *search, const char *content, int32 length)
{
    int32 at = 0;
    TraceWord word;

    search->words = MemoryContextAllocHuge(search->context, sizeof(TraceWord) * ((Size)length + 1));
    while (lora_trace_next(content, length, search->seed, &at, &word))
        search->words[search->n_words++] = word;
}

/* openlora.trace_spans(dataset bigint, content text, min_words int, max_places int) -> rows
 * first_word, words, position, span, occurrences, places */
Datum lora_trace_spans(PG_FUNCTION_ARGS)
{
    ReturnSetInfo *result;
    Search search = {.dataset = PG_GETARG_INT64(0)};
    text *content = PG_GETARG_TEXT_PP(1);

    if (PG_GETARG_INT32(2) < 1 || PG_GETARG_INT32(3) < 1)
        ereport(ERROR,
                (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                 errmsg("the fewest words of a span, and the most occurrences, are one at least")));
    result = lora_begin_rows(fcinfo);
    search.context =
        AllocSetContextCreate(CurrentMemoryContext, "openlora trace", ALLOCSET_DEFAULT_SIZES);
    lora_connect();
    if (open_index(&search)) {
        read_words(&search, VARDATA_ANY(content), (int32)VARSIZE_ANY_EXHDR(content));
        find_spans(&search, result, VARDATA_ANY(content), PG_GETARG_INT32(2), PG_GETARG_INT32(3));
    }
    SPI_finish();
    MemoryContextDelete(search.context);
    PG_RETURN_NULL();
}
