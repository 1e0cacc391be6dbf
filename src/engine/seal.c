/* seal.c: see seal.h. */
#include "engine/seal.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <stdlib.h>

struct ol_sealer {
    EVP_MAC_CTX *keyed; /* copied for each message */
};

/* The nonce may be the same each time: it hides tags of different messages from each other, and
 * these are not shown to anybody. */
static bool start(EVP_MAC_CTX *mac)
{
    static char cipher[] = "AES-128-GCM";
    unsigned char key[16], nonce[12] = {0};
    OSSL_PARAM how[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_CIPHER, cipher, 0),
        OSSL_PARAM_construct_octet_string(OSSL_MAC_PARAM_IV, nonce, sizeof(nonce)),
        OSSL_PARAM_construct_end(),
    };
    bool good = RAND_bytes(key, sizeof(key)) == 1 && EVP_MAC_init(mac, key, sizeof(key), how) == 1;

    OPENSSL_cleanse(key, sizeof(key));
    return good;
}

ol_code ol_sealer_create(ol_sealer **out, ol_error *err)
{
    ol_sealer *sealer = calloc(1, sizeof(*sealer));
    EVP_MAC *gmac = EVP_MAC_fetch(NULL, "GMAC", NULL);

    if (sealer && gmac)
        sealer->keyed = EVP_MAC_CTX_new(gmac);
    EVP_MAC_free(gmac);
    if (sealer && sealer->keyed && start(sealer->keyed)) {
        *out = sealer;
        return OL_OK;
    }
    ol_sealer_free(sealer);
    return ol_fail(err, OL_INTERNAL, "OpenSSL has no GMAC, or no random bytes for its key");
}

void ol_sealer_free(ol_sealer *sealer)
{
    if (sealer)
        EVP_MAC_CTX_free(sealer->keyed);
    free(sealer);
}

ol_seal ol_seal_of(const ol_sealer *sealer, const void *weights, size_t weights_len,
                   const char *config, size_t config_len)
{
    EVP_MAC_CTX *mac = EVP_MAC_CTX_dup(sealer->keyed);
    uint8_t length[8];
    size_t n;
    ol_seal seal = {0};

    for (int i = 0; i < 8; i++)
        length[i] = (uint8_t)((uint64_t)weights_len >> 8 * i);
    seal.made = mac && EVP_MAC_update(mac, length, sizeof(length)) == 1 &&
                EVP_MAC_update(mac, weights, weights_len) == 1 &&
                EVP_MAC_update(mac, (const unsigned char *)config, config_len) == 1 &&
                EVP_MAC_final(mac, seal.bytes, &n, sizeof(seal.bytes)) == 1 &&
                n == sizeof(seal.bytes);
    EVP_MAC_CTX_free(mac);
    return seal;
}

bool ol_seal_equal(const ol_seal *a, const ol_seal *b)
{
    return a->made && b->made && CRYPTO_memcmp(a->bytes, b->bytes, sizeof(a->bytes)) == 0;
}
