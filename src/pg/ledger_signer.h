/*
 * ledger_signer.h: the ledger's key, and what was signed with it. The key is used in the
 * ledger process alone: no backend that runs SQL of others reads it.
 *
 * Two files in openlora.ledger_key_directory, for their owner alone: DATABASE.key has the
 * origin and the seed, DATABASE.signed the last checkpoint that was signed. A log that is
 * shorter than it, or differs from it, is another log: one that was restored from a backup,
 * or that somebody has changed. It is not signed under this origin.
 *
 * A directory within the data directory is copied with it, and the copy's memory grows old.
 * So the timeline is remembered, too: after a promotion or a recovery to a point in time
 * nothing is signed under the old origin, unless the directory is elsewhere, where there is
 * one memory for all copies.
 */
#ifndef LORA_LEDGER_SIGNER_H
#define LORA_LEDGER_SIGNER_H

#include "lora_pg.h"

#include "base/file.h"
#include "ledger/note.h"

typedef struct LoraSigned {
    char origin[OL_NOTE_NAME_BYTES];
    uint64 size;
    ol_digest root;
    unsigned timeline;
} LoraSigned;

/* What was signed last, of no leaves when nothing was; it is no secret, and any process may
 * read it. OL_NOT_FOUND: there is no such memory. */
extern ol_code lora_signer_last(LoraSigned *last, ol_error *error);

/* Signs the tree as it is by now and stores the checkpoint; nothing when that was done.
 * In a transaction of its own, each; no lock is held while it signs. */
extern ol_code lora_signer_sign(ol_error *error);
/* Makes a key for an origin. With `another` a key that is there is kept aside, and the new
 * origin begins without a checkpoint; without, it is an error. */
extern ol_code lora_signer_create(const char *origin, bool another, ol_error *error);

#endif
