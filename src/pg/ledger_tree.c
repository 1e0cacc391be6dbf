/* ledger_tree.c: see ledger_tree.h. */
#include "ledger_tree.h"

#include "catalog/pg_type.h"
#include "spi.h"

#define LEVELS 8 /* 256^8 leaves */

/* The last tile of each level that was read. */
typedef struct LoraTile {
    uint64 number;
    int n; /* hashes; 0: none was read */
    ol_digest hashes[OL_TILE_WIDTH];
} LoraTile;

static void read_tile(LoraTile *tile, int level, uint64 number)
{
    static LoraStatement find = {"SELECT at, hash FROM openlora.ledger_hashes"
                                 " WHERE level OPERATOR(pg_catalog.=) $1"
                                 " AND at OPERATOR(pg_catalog.>=) $2"
                                 " AND at OPERATOR(pg_catalog.<) $3 ORDER BY at",
                                 3,
                                 {INT2OID, INT8OID, INT8OID}};
    uint64 first = number * OL_TILE_WIDTH;
    Datum values[3] = {Int16GetDatum((int16)level), Int64GetDatum((int64)first),
                       Int64GetDatum((int64)(first + OL_TILE_WIDTH))};
    uint64 n = lora_execute(&find, values, NULL, false);

    tile->number = number;
    tile->n = 0;
    for (uint64 row = 0; row < n; row++) {
        bool is_null;
        bytea *hash = DatumGetByteaPP(lora_value(row, 2, &is_null));

        /* what comes after a gap is not there */
        if (lora_int64(row, 1) != (int64)(first + row) ||
            VARSIZE_ANY_EXHDR(hash) != OL_DIGEST_BYTES)
            break;
        memcpy(tile->hashes[tile->n++].bytes, VARDATA_ANY(hash), OL_DIGEST_BYTES);
    }
    SPI_freetuptable(SPI_tuptable);
}

static ol_code read_hashes(void *context, int level, uint64_t first, int n, ol_digest *out,
                           ol_error *error)
{
    LoraTree *tree = context;
    LoraTile *tile = &tree->tiles[level];
    uint64 number = first / OL_TILE_WIDTH;
    int at = (int)(first % OL_TILE_WIDTH);

    CHECK_FOR_INTERRUPTS();
    if (tile->n < at + n || tile->number != number)
        read_tile(tile, level, number);
    if (tile->n < at + n) {
        ol_fail(error, OL_CORRUPT, "the receipts' tree misses hash " UINT64_FORMAT " of level %d",
                number * OL_TILE_WIDTH + (uint64)tile->n, level);
        return ol_hint(error, "lora_ledger_verify() tells what else is wrong.");
    }
    memcpy(out, &tile->hashes[at], sizeof(*out) * (Size)n);
    return OL_OK;
}

void lora_tree_open(LoraTree *tree)
{
    tree->tree = (ol_tree){tree, read_hashes};
    tree->tiles = palloc0(sizeof(LoraTile) * LEVELS);
}

uint64 lora_tree_size(bool by_now)
{
    static LoraStatement last = {
        "SELECT at OPERATOR(pg_catalog.+) 1::pg_catalog.int8 FROM openlora.ledger_hashes"
        " WHERE level OPERATOR(pg_catalog.=) 0::pg_catalog.int2 ORDER BY at DESC LIMIT 1",
        0,
        {0}};

    return lora_execute(&last, NULL, NULL, !by_now) > 0 ? (uint64)lora_int64(0, 1) : 0;
}

static void insert_hash(int level, uint64 at, const ol_digest *hash)
{
    static LoraStatement insert = {
        "INSERT INTO openlora.ledger_hashes (level, at, hash) VALUES ($1, $2, $3)",
        3,
        {INT2OID, INT8OID, BYTEAOID}};
    struct {
        int32 header;
        ol_digest digest;
    } bytes = {.digest = *hash};
    Datum values[3] = {Int16GetDatum((int16)level), Int64GetDatum((int64)at),
                       PointerGetDatum(&bytes)};

    SET_VARSIZE(&bytes, VARHDRSZ + OL_DIGEST_BYTES);
    lora_execute(&insert, values, NULL, false);
}

void lora_tree_append(uint64 leaf, const ol_digest *hash)
{
    ol_digest next = *hash;
    uint64 at = leaf;

    for (int level = 0; level < LEVELS; level++) {
        LoraTile tile;

        insert_hash(level, at, &next);
        if ((at + 1) % OL_TILE_WIDTH != 0)
            return;
        at /= OL_TILE_WIDTH;
        read_tile(&tile, level, at);
        if (tile.n != OL_TILE_WIDTH)
            ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
                            errmsg("the receipts' tree misses hashes of level %d", level),
                            errhint("lora_ledger_verify() tells what is wrong.")));
        ol_fold_hashes(tile.hashes, OL_TILE_WIDTH, &next);
    }
}
