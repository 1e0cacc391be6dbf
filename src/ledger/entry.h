/*
 * entry.h: the bytes of a receipt that the ledger's tree is built over.
 *
 * Version 1. All integers are little-endian; a text is a u16 length and its bytes (in the
 * database's encoding); floats are IEEE 754 by their bits. In this order:
 *
 *   u8    version, 1
 *   u64   leaf: its index in the tree
 *   i64   at: microseconds since 1970-01-01 UTC
 *   u32   database
 *   32    role: SHA-256 over a salt of 32 bytes and the role's name
 *   i64   inference
 *   u32   attempt
 *   u8    outcome: 0 done, 1 failed, 2 cancelled, 3 lost with its engine,
 *         4 announced (no receipt yet)
 *   u8    task: 0 generate, 1 score
 *   32    digest of the base model
 *   text  device
 *   u32   input, u32 cached, u32 output tokens
 *   f32   temperature, i32 top_k, f32 top_p, f32 min_p
 *   f32   repetition, f32 presence, f32 frequency penalty
 *   i32   max_tokens, u8 ignore_eos, u64 seed
 *   u16   number of adapters; of each: 32 digest, i64 id, f64 weight, u32 share in parts
 *         per million
 *   32    salted digest of the prompt, 32 salted digest of the output
 *
 * Nobody's name is in it: who is to know the role is told name and salt. Nothing follows. A change
 * of this layout is another version.
 */
#ifndef OL_LEDGER_ENTRY_H
#define OL_LEDGER_ENTRY_H

#include "base/buf.h"
#include "base/file.h"

#define OL_ENTRY_VERSION 1

typedef struct ol_entry_adapter {
    ol_digest digest;
    int64_t id;
    double weight;
    uint32_t share;
} ol_entry_adapter;

typedef struct ol_entry {
    uint64_t leaf;
    int64_t at_us;
    uint32_t database;
    ol_digest role;
    int64_t inference;
    uint32_t attempt;
    uint8_t outcome, task;
    ol_digest base_model;
    const char *device; /* with a NUL */
    uint32_t input_tokens, cached_tokens, output_tokens;
    float temperature, top_p, min_p;
    float repetition_penalty, presence_penalty, frequency_penalty;
    int32_t top_k, max_tokens;
    bool ignore_eos;
    uint64_t seed;
    int n_adapters;
    const ol_entry_adapter *adapters;
    ol_digest prompt, output;
} ol_entry;

/* What an entry says of a role. */
void ol_entry_role(const ol_digest *salt, const char *name, ol_digest *role);

/* Appends the entry's bytes. Texts longer than 65535 bytes, or more adapters than that, make
 * the buffer `failed`, as does a lack of memory. */
void ol_entry_encode(const ol_entry *entry, ol_buf *out);

#endif
