/*
 * settle_merkle.c: Keccak-256, and the tree of claims that a contract pays from.
 *
 * The tree is the one of OpenZeppelin's merkle-tree library: an array of 2n - 1 hashes,
 * the root first, the children of node i at 2i + 1 and 2i + 2, the leaves in the last n
 * places in reverse order; a node is the hash of its children, the smaller first. The caller
 * hashes and sorts the leaves.
 */
#include "lora_pg.h"

#include "base/keccak.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(lora_keccak256);
PG_FUNCTION_INFO_V1(lora_merkle_tree);

static bytea *hash_datum(const uint8 *hash)
{
    bytea *value = palloc(VARHDRSZ + OL_KECCAK_BYTES);

    SET_VARSIZE(value, VARHDRSZ + OL_KECCAK_BYTES);
    memcpy(VARDATA(value), hash, OL_KECCAK_BYTES);
    return value;
}

Datum lora_keccak256(PG_FUNCTION_ARGS)
{
    bytea *data = PG_GETARG_BYTEA_PP(0);
    uint8 hash[OL_KECCAK_BYTES];

    ol_keccak256(VARDATA_ANY(data), VARSIZE_ANY_EXHDR(data), hash);
    PG_RETURN_BYTEA_P(hash_datum(hash));
}

typedef uint8 Hash[OL_KECCAK_BYTES];

static void read_leaves(Hash *tree, int n_leaves, const Datum *leaves, const bool *nulls)
{
    for (int i = 0; i < n_leaves; i++) {
        bytea *leaf = nulls[i] ? NULL : DatumGetByteaPP(leaves[i]);

        if (!leaf || VARSIZE_ANY_EXHDR(leaf) != OL_KECCAK_BYTES)
            ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                            errmsg("leaf %d is not a hash of %d bytes", i + 1, OL_KECCAK_BYTES)));
        memcpy(tree[2 * n_leaves - 2 - i], VARDATA_ANY(leaf), OL_KECCAK_BYTES);
    }
}

static void hash_pair(const Hash *children, Hash parent)
{
    uint8 pair[2 * OL_KECCAK_BYTES];
    bool swap = memcmp(children[0], children[1], OL_KECCAK_BYTES) > 0;

    memcpy(pair, children[swap], OL_KECCAK_BYTES);
    memcpy(pair + OL_KECCAK_BYTES, children[!swap], OL_KECCAK_BYTES);
    ol_keccak256(pair, sizeof(pair), parent);
}

/* openlora.merkle_tree(leaves bytea[]) -> bytea[] */
Datum lora_merkle_tree(PG_FUNCTION_ARGS)
{
    ArrayType *array = PG_GETARG_ARRAYTYPE_P(0);
    Datum *leaves, *nodes;
    bool *nulls;
    Hash *tree;
    int n;

    deconstruct_array(array, BYTEAOID, -1, false, TYPALIGN_INT, &leaves, &nulls, &n);
    if (n == 0)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("a tree needs one leaf at least")));
    tree = palloc(sizeof(Hash) * (2 * (Size)n - 1));
    nodes = palloc(sizeof(Datum) * (2 * (Size)n - 1));
    read_leaves(tree, n, leaves, nulls);
    for (int i = n - 2; i >= 0; i--)
        hash_pair((const Hash *)&tree[2 * i + 1], tree[i]);
    for (int i = 0; i < 2 * n - 1; i++)
        nodes[i] = PointerGetDatum(hash_datum(tree[i]));
    PG_RETURN_ARRAYTYPE_P(construct_array(nodes, 2 * n - 1, BYTEAOID, -1, false, TYPALIGN_INT));
}
