/*
 * merkle.h: the Merkle tree of RFC 6962 (and 9162) with SHA-256, over stored hashes.
 *
 * A leaf's hash is SHA-256(0x00 || entry), a node's SHA-256(0x01 || left || right). What is
 * stored are tiles as in C2SP's tlog-tiles: at level 0 the leaves' hashes, at level L the
 * roots of complete subtrees of 256^L leaves, in order. So a tree of n leaves has
 * n / 256^L (rounded down) hashes at level L; everything else is computed from them.
 */
#ifndef OL_LEDGER_MERKLE_H
#define OL_LEDGER_MERKLE_H

#include "base/file.h"
#include "base/status.h"

#define OL_TILE_HEIGHT 8
#define OL_TILE_WIDTH 256
#define OL_TREE_MAX_SIZE (UINT64_C(1) << 62)
/* Hashes of a proof, at most. */
#define OL_TREE_MAX_PROOF 128

/* Where stored hashes are read: n (<= OL_TILE_WIDTH, within one tile) hashes of a level from
 * `first` on. */
typedef struct ol_tree {
    void *context;
    ol_code (*read)(void *context, int level, uint64_t first, int n, ol_digest *out, ol_error *err);
} ol_tree;

void ol_leaf_hash(const void *entry, size_t len, ol_digest *out);
void ol_node_hash(const ol_digest *left, const ol_digest *right, ol_digest *out);
/* Of n hashes, a power of two and at most OL_TILE_WIDTH, the root; `hashes` is used up. */
void ol_fold_hashes(ol_digest *hashes, int n, ol_digest *root);

/* The root of the first `size` leaves; of none, SHA-256 of nothing. */
ol_code ol_tree_root(const ol_tree *tree, uint64_t size, ol_digest *root, ol_error *err);
/* RFC 9162, 2.1.3: that leaf `index` is in the tree of `size`. OL_INVALID: it is not. */
ol_code ol_tree_inclusion(const ol_tree *tree, uint64_t index, uint64_t size,
                          ol_digest proof[OL_TREE_MAX_PROOF], int *n, ol_error *err);
/* RFC 9162, 2.1.4: that the tree of `old_size` (at least 1) begins that of `new_size`. */
ol_code ol_tree_consistency(const ol_tree *tree, uint64_t old_size, uint64_t new_size,
                            ol_digest proof[OL_TREE_MAX_PROOF], int *n, ol_error *err);

/* RFC 9162, 2.1.3.2 and 2.1.4.2. Nothing given is trusted. A tree of
 * no leaves is consistent with nothing. */
bool ol_verify_inclusion(uint64_t index, uint64_t size, const ol_digest *leaf,
                         const ol_digest *proof, int n, const ol_digest *root);
bool ol_verify_consistency(uint64_t old_size, uint64_t new_size, const ol_digest *old_root,
                           const ol_digest *new_root, const ol_digest *proof, int n);

#endif
