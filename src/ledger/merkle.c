/* merkle.c: see merkle.h. The recursions are those of RFC 9162, 2.1. */
#include "ledger/merkle.h"

#include <stdlib.h>
#include <string.h>

/* -- hashes --------------------------------------------------------------------------- */

void ol_leaf_hash(const void *entry, size_t len, ol_digest *out)
{
    static const uint8_t leaf = 0;
    ol_sha256 *sha = ol_sha256_begin();

    if (!sha)
        abort(); /* a few hundred bytes: nothing sensible is left to do */
    ol_sha256_add(sha, &leaf, 1);
    ol_sha256_add(sha, entry, len);
    ol_sha256_end(sha, out);
}

void ol_node_hash(const ol_digest *left, const ol_digest *right, ol_digest *out)
{
    uint8_t bytes[1 + 2 * OL_DIGEST_BYTES] = {1};

    memcpy(bytes + 1, left->bytes, OL_DIGEST_BYTES);
    memcpy(bytes + 1 + OL_DIGEST_BYTES, right->bytes, OL_DIGEST_BYTES);
    ol_sha256_of(bytes, sizeof(bytes), out);
}

void ol_fold_hashes(ol_digest *hashes, int n, ol_digest *root)
{
    for (; n > 1; n /= 2)
        for (int i = 0; i < n / 2; i++)
            ol_node_hash(&hashes[2 * i], &hashes[2 * i + 1], &hashes[i]);
    *root = hashes[0];
}

/* -- subtrees ------------------------------------------------------------------------- */

/* The largest power of two below n, n >= 2. */
static uint64_t split(uint64_t n)
{
    uint64_t k = 1;

    while (k < n - k)
        k *= 2;
    return k;
}

static bool is_power(uint64_t n)
{
    return (n & (n - 1)) == 0;
}

/* A complete subtree of n = 2^k leaves from `first` on, a multiple of n. */
static ol_code complete(const ol_tree *tree, uint64_t first, uint64_t n, ol_digest *root,
                        ol_error *err)
{
    ol_digest hashes[OL_TILE_WIDTH];
    int level = 0;

    for (; n >= OL_TILE_WIDTH; n /= OL_TILE_WIDTH, first /= OL_TILE_WIDTH)
        level++;
    OL_TRY(tree->read(tree->context, level, first, (int)n, hashes, err));
    ol_fold_hashes(hashes, (int)n, root);
    return OL_OK;
}

/* MTH(D[first : first + n]), n >= 1. */
static ol_code subtree(const ol_tree *tree, uint64_t first, uint64_t n, ol_digest *root,
                       ol_error *err)
{
    ol_digest left, right;
    uint64_t k;

    if (is_power(n))
        return complete(tree, first, n, root, err);
    k = split(n);
    OL_TRY(complete(tree, first, k, &left, err));
    OL_TRY(subtree(tree, first + k, n - k, &right, err));
    ol_node_hash(&left, &right, root);
    return OL_OK;
}

ol_code ol_tree_root(const ol_tree *tree, uint64_t size, ol_digest *root, ol_error *err)
{
    if (size > OL_TREE_MAX_SIZE)
        return ol_fail(err, OL_LIMIT, "a tree cannot have %llu leaves", (unsigned long long)size);
    if (size > 0)
        return subtree(tree, 0, size, root, err);
    ol_sha256_of("", 0, root);
    return OL_OK;
}

/* -- proofs --------------------------------------------------------------------------- */

/* From the root down; the proof is wanted from the leaf up. */
static void turn_round(ol_digest *proof, int n)
{
    for (int i = 0; i < n / 2; i++) {
        ol_digest other = proof[i];

        proof[i] = proof[n - 1 - i];
        proof[n - 1 - i] = other;
    }
}

ol_code ol_tree_inclusion(const ol_tree *tree, uint64_t index, uint64_t size,
                          ol_digest proof[OL_TREE_MAX_PROOF], int *n, ol_error *err)
{
    uint64_t first = 0, left = size;

    *n = 0;
    if (index >= size || size > OL_TREE_MAX_SIZE)
        return ol_fail(err, OL_INVALID, "leaf %llu is not in a tree of %llu",
                       (unsigned long long)index, (unsigned long long)size);
    while (left > 1) {
        uint64_t k = split(left);

        if (index - first < k) {
            OL_TRY(subtree(tree, first + k, left - k, &proof[(*n)++], err));
            left = k;
        } else {
            OL_TRY(complete(tree, first, k, &proof[(*n)++], err));
            first += k;
            left -= k;
        }
    }
    turn_round(proof, *n);
    return OL_OK;
}

ol_code ol_tree_consistency(const ol_tree *tree, uint64_t old_size, uint64_t new_size,
                            ol_digest proof[OL_TREE_MAX_PROOF], int *n, ol_error *err)
{
    uint64_t first = 0, left = new_size, old = old_size;
    bool whole = true; /* what is left of the old tree is the old tree: its root is known */

    *n = 0;
    if (old_size == 0 || old_size > new_size || new_size > OL_TREE_MAX_SIZE)
        return ol_fail(err, OL_INVALID, "a tree of %llu does not begin one of %llu",
                       (unsigned long long)old_size, (unsigned long long)new_size);
    while (old < left) {
        uint64_t k = split(left);

        if (old <= k) {
            OL_TRY(subtree(tree, first + k, left - k, &proof[(*n)++], err));
            left = k;
        } else {
            OL_TRY(complete(tree, first, k, &proof[(*n)++], err));
            first += k;
            left -= k;
            old -= k;
            whole = false;
        }
    }
    if (!whole)
        OL_TRY(subtree(tree, first, left, &proof[(*n)++], err));
    turn_round(proof, *n);
    return OL_OK;
}

/* -- verifying ------------------------------------------------------------------------ */

bool ol_verify_inclusion(uint64_t index, uint64_t size, const ol_digest *leaf,
                         const ol_digest *proof, int n, const ol_digest *root)
{
    uint64_t at = index, last = size - 1;
    ol_digest r = *leaf;

    if (index >= size)
        return false;
    for (int i = 0; i < n; i++) {
        if (last == 0)
            return false;
        if ((at & 1) || at == last) {
            ol_node_hash(&proof[i], &r, &r);
            while (!(at & 1) && at != 0) {
                at >>= 1;
                last >>= 1;
            }
        } else {
            ol_node_hash(&r, &proof[i], &r);
        }
        at >>= 1;
        last >>= 1;
    }
    return last == 0 && ol_digest_equal(&r, root);
}

bool ol_verify_consistency(uint64_t old_size, uint64_t new_size, const ol_digest *old_root,
                           const ol_digest *new_root, const ol_digest *proof, int n)
{
    uint64_t at = old_size - 1, last = new_size - 1;
    ol_digest old, new;
    int i = 0;

    if (old_size > new_size || old_size == 0)
        return false;
    if (old_size == new_size)
        return n == 0 && ol_digest_equal(old_root, new_root);
    for (; at & 1; at >>= 1)
        last >>= 1;
    if (is_power(old_size))
        old = *old_root;
    else if (n > 0)
        old = proof[i++];
    else
        return false;
    for (new = old; i < n; i++) {
        if (last == 0)
            return false;
        if ((at & 1) || at == last) {
            ol_node_hash(&proof[i], &old, &old);
            ol_node_hash(&proof[i], &new, &new);
            while (!(at & 1) && at != 0) {
                at >>= 1;
                last >>= 1;
            }
        } else {
            ol_node_hash(&new, &proof[i], &new);
        }
        at >>= 1;
        last >>= 1;
    }
    return last == 0 && ol_digest_equal(&old, old_root) && ol_digest_equal(&new, new_root);
}
