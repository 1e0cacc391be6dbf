/*
 * ledger_tree.h: the stored hashes of the ledger's tree, openlora.ledger_hashes: levels and
 * places as in ledger/merkle.h. SPI is connected; all is done with the present rights.
 */
#ifndef LORA_LEDGER_TREE_H
#define LORA_LEDGER_TREE_H

#include "lora_pg.h"

#include "ledger/merkle.h"

typedef struct LoraTree {
    ol_tree tree; /* reads what the present snapshot and command see */
    struct LoraTile *tiles;
} LoraTree;

/* A tree to read from, in the current memory context. It remembers what it has read. */
extern void lora_tree_open(LoraTree *tree);
/* How many leaves the tree has: under the active snapshot, or by now. */
extern uint64 lora_tree_size(bool by_now);
/* Adds leaf `leaf`, which is the tree's size, and the hashes that it completes. */
extern void lora_tree_append(uint64 leaf, const ol_digest *hash);

#endif
