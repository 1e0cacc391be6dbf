/*
 * note.h: what a ledger publishes, in C2SP's formats: signed notes (signed-note.md, Ed25519),
 * checkpoints (tlog-checkpoint.md), proofs (tlog-proof.md) and paths of tiles (tlog-tiles.md).
 */
#ifndef OL_LEDGER_NOTE_H
#define OL_LEDGER_NOTE_H

#include "base/buf.h"
#include "base/file.h"
#include "base/status.h"

#define OL_NOTE_NAME_BYTES 256 /* of a key, with its NUL */
#define OL_KEY_BYTES 32
#define OL_SIGNATURE_BYTES 64

/* A key's name is the log's origin. It has no white space and no plus sign. */
typedef struct ol_note_key {
    char name[OL_NOTE_NAME_BYTES];
    uint8_t public_key[OL_KEY_BYTES];
} ol_note_key;

ol_code ol_note_check_name(const char *name, ol_error *err);
/* The public half of an Ed25519 seed. */
ol_code ol_note_key_of_seed(const char *name, const uint8_t seed[OL_KEY_BYTES], ol_note_key *key,
                            ol_error *err);
/* name+id+key, as verifiers are given it. */
void ol_note_put_key(ol_buf *out, const ol_note_key *key);
ol_code ol_note_get_key(const char *text, ol_note_key *key, ol_error *err);

/* Appends text (which ends with a newline), an empty line and the signature's line. */
ol_code ol_note_sign(ol_buf *out, const char *text, size_t len, const ol_note_key *key,
                     const uint8_t seed[OL_KEY_BYTES], ol_error *err);
/* Whether the note has a good signature by the key. *text_len: of the note's text. */
bool ol_note_verify(const char *note, size_t len, const ol_note_key *key, size_t *text_len);

/* The text of a checkpoint: origin, size and root, a line each. */
void ol_checkpoint_put(ol_buf *out, const char *origin, uint64_t size, const ol_digest *root);
/* A proof that leaf `index` is in the tree of a checkpoint. */
void ol_proof_put(ol_buf *out, uint64_t index, const ol_digest *proof, int n,
                  const char *checkpoint, size_t checkpoint_len);
/* Hashes in base 64, a line each. */
void ol_hashes_put(ol_buf *out, const ol_digest *hashes, int n);
/* "tile/LEVEL/N" or (level -1) "tile/entries/N", of `width` hashes or entries. */
void ol_tile_path(ol_buf *out, int level, uint64_t n, int width);

#endif
