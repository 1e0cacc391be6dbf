/*
 * seal.h: knowing bytes again that were hashed before.
 *
 * SHA-256 of an adapter costs more of a processor than everything else that loading it does, and
 * an adapter that was evicted comes back with the same bytes. Its seal is GMAC (NIST SP 800-38D)
 * of them under a key that only this process knows and a nonce that never changes: a message
 * authentication code that is eight times as fast. Other bytes have the same seal with a
 * probability of less than 2^-90 for an adapter of 256 GiB; nobody outside learns seals, so
 * that nobody can look for such bytes. Bytes with another seal are hashed, and judged by that.
 */
#ifndef OL_ENGINE_SEAL_H
#define OL_ENGINE_SEAL_H

#include "base/status.h"

typedef struct ol_sealer ol_sealer; /* a key */

typedef struct ol_seal {
    bool made;
    uint8_t bytes[16];
} ol_seal;

ol_code ol_sealer_create(ol_sealer **sealer, ol_error *err);
void ol_sealer_free(ol_sealer *sealer); /* NULL is fine */

/* Of an adapter's weights and its config, as two. On any thread. Not made when memory is out. */
ol_seal ol_seal_of(const ol_sealer *sealer, const void *weights, size_t weights_len,
                   const char *config, size_t config_len);
/* False when one of them was not made. */
bool ol_seal_equal(const ol_seal *a, const ol_seal *b);

#endif
