/* note.c: see note.h. Ed25519 and base 64 are OpenSSL's. */
#include "ledger/note.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#define ED25519 1 /* the algorithm's number in signed-note.md */
#define ID_BYTES 4
static const char dash[] = "\xe2\x80\x94 "; /* an em dash and a space begin a signature */

/* -- base 64 -------------------------------------------------------------------------- */

static void put_base64(ol_buf *out, const uint8_t *bytes, size_t len)
{
    size_t room = (len + 2) / 3 * 4 + 1;

    if (!ol_buf_reserve(out, room))
        return;
    (void)EVP_EncodeBlock(out->data + out->len, bytes, (int)len);
    out->len += room - 1;
}

/* Exactly `want` bytes, in the one way of writing them. */
static bool get_base64(const char *text, size_t len, uint8_t *bytes, size_t want)
{
    uint8_t plain[3 * 64];
    ol_buf again = {0};
    bool same;

    if (len != (want + 2) / 3 * 4 || (want + 2) / 3 * 3 > sizeof(plain))
        return false;
    if (EVP_DecodeBlock(plain, (const unsigned char *)text, (int)len) < (int)want)
        return false;
    put_base64(&again, plain, want);
    same = !again.failed && again.len == len && memcmp(again.data, text, len) == 0;
    ol_buf_free(&again);
    if (same)
        memcpy(bytes, plain, want);
    return same;
}

/* -- keys ----------------------------------------------------------------------------- */

ol_code ol_note_check_name(const char *name, ol_error *err)
{
    size_t len = strlen(name);

    if (len == 0 || len >= OL_NOTE_NAME_BYTES)
        return ol_fail(err, OL_INVALID, "an origin has 1 to %d bytes", OL_NOTE_NAME_BYTES - 1);
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)name[i] <= ' ' || (unsigned char)name[i] >= 127 || name[i] == '+') {
            ol_fail(err, OL_INVALID, "an origin has printable ASCII characters without + alone");
            return ol_hint(err, "An address without its scheme is usual: example.com/receipts");
        }
    return OL_OK;
}

ol_code ol_note_key_of_seed(const char *name, const uint8_t seed[OL_KEY_BYTES], ol_note_key *key,
                            ol_error *err)
{
    EVP_PKEY *pair;
    size_t len = OL_KEY_BYTES;
    bool good;

    OL_TRY(ol_note_check_name(name, err));
    memset(key, 0, sizeof(*key));
    memcpy(key->name, name, strlen(name));
    pair = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, seed, OL_KEY_BYTES);
    good = pair && EVP_PKEY_get_raw_public_key(pair, key->public_key, &len) == 1 &&
           len == OL_KEY_BYTES;
    EVP_PKEY_free(pair);
    return good ? OL_OK : ol_fail(err, OL_INTERNAL, "OpenSSL made no Ed25519 key of a seed");
}

/* The first bytes of SHA-256(name, newline, algorithm, key). */
static void id_of(const ol_note_key *key, uint8_t id[ID_BYTES])
{
    uint8_t bytes[OL_NOTE_NAME_BYTES + 2 + OL_KEY_BYTES];
    size_t len = strlen(key->name);
    ol_digest digest;

    memcpy(bytes, key->name, len);
    bytes[len++] = '\n';
    bytes[len++] = ED25519;
    memcpy(bytes + len, key->public_key, OL_KEY_BYTES);
    ol_sha256_of(bytes, len + OL_KEY_BYTES, &digest);
    memcpy(id, digest.bytes, ID_BYTES);
}

void ol_note_put_key(ol_buf *out, const ol_note_key *key)
{
    uint8_t id[ID_BYTES], typed[1 + OL_KEY_BYTES] = {ED25519};

    id_of(key, id);
    memcpy(typed + 1, key->public_key, OL_KEY_BYTES);
    ol_buf_printf(out, "%s+%02x%02x%02x%02x+", key->name, id[0], id[1], id[2], id[3]);
    put_base64(out, typed, sizeof(typed));
}

ol_code ol_note_get_key(const char *text, ol_note_key *key, ol_error *err)
{
    const char *id = strchr(text, '+'), *base64 = id ? strchr(id + 1, '+') : NULL;
    uint8_t typed[1 + OL_KEY_BYTES];
    ol_buf again = {0};
    bool same;

    memset(key, 0, sizeof(*key));
    if (!base64 || (size_t)(id - text) >= sizeof(key->name) ||
        !get_base64(base64 + 1, strlen(base64 + 1), typed, sizeof(typed)) || typed[0] != ED25519)
        return ol_fail(err, OL_CORRUPT, "this is no verifier key of Ed25519");
    memcpy(key->name, text, (size_t)(id - text));
    memcpy(key->public_key, typed + 1, OL_KEY_BYTES);
    OL_TRY(ol_note_check_name(key->name, err));
    ol_note_put_key(&again, key);
    same = !again.failed && again.len == strlen(text) && memcmp(again.data, text, again.len) == 0;
    ol_buf_free(&again);
    return same ? OL_OK : ol_fail(err, OL_CORRUPT, "this verifier key's id is not its own");
}

/* -- notes ---------------------------------------------------------------------------- */

static bool make_signature(const uint8_t seed[OL_KEY_BYTES], const char *text, size_t len,
                           uint8_t signature[OL_SIGNATURE_BYTES])
{
    EVP_PKEY *pair = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, seed, OL_KEY_BYTES);
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    size_t n = OL_SIGNATURE_BYTES;
    bool good = pair && context && EVP_DigestSignInit(context, NULL, NULL, NULL, pair) == 1 &&
                EVP_DigestSign(context, signature, &n, (const uint8_t *)text, len) == 1 &&
                n == OL_SIGNATURE_BYTES;

    EVP_MD_CTX_free(context);
    EVP_PKEY_free(pair);
    return good;
}

static bool is_signature(const ol_note_key *key, const char *text, size_t len,
                         const uint8_t signature[OL_SIGNATURE_BYTES])
{
    EVP_PKEY *public =
        EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, key->public_key, OL_KEY_BYTES);
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    bool good =
        public && context && EVP_DigestVerifyInit(context, NULL, NULL, NULL, public) == 1 &&
        EVP_DigestVerify(context, signature, OL_SIGNATURE_BYTES, (const uint8_t *)text, len) == 1;

    EVP_MD_CTX_free(context);
    EVP_PKEY_free(public);
    return good;
}

ol_code ol_note_sign(ol_buf *out, const char *text, size_t len, const ol_note_key *key,
                     const uint8_t seed[OL_KEY_BYTES], ol_error *err)
{
    uint8_t signature[ID_BYTES + OL_SIGNATURE_BYTES];

    if (len == 0 || text[len - 1] != '\n')
        return ol_fail(err, OL_INTERNAL, "a note's text does not end with its line");
    id_of(key, signature);
    if (!make_signature(seed, text, len, signature + ID_BYTES))
        return ol_fail(err, OL_INTERNAL, "OpenSSL made no signature");
    ol_buf_put(out, text, len);
    ol_buf_printf(out, "\n%s%s ", dash, key->name);
    put_base64(out, signature, sizeof(signature));
    ol_buf_put_u8(out, '\n');
    return out->failed ? ol_fail_nomem(err, len, "a note") : OL_OK;
}

/* Whether a line is a signature by the key, of the text before the signatures. */
static bool is_signed_by(const char *line, size_t len, const ol_note_key *key, const char *text,
                         size_t text_len)
{
    size_t name = strlen(key->name), begin = sizeof(dash) - 1 + name + 1;
    uint8_t signature[ID_BYTES + OL_SIGNATURE_BYTES], id[ID_BYTES];

    id_of(key, id);
    return len > begin && memcmp(line, dash, sizeof(dash) - 1) == 0 &&
           memcmp(line + sizeof(dash) - 1, key->name, name) == 0 && line[begin - 1] == ' ' &&
           get_base64(line + begin, len - begin, signature, sizeof(signature)) &&
           memcmp(signature, id, ID_BYTES) == 0 &&
           is_signature(key, text, text_len, signature + ID_BYTES);
}

bool ol_note_verify(const char *note, size_t len, const ol_note_key *key, size_t *text_len)
{
    size_t at = len;

    if (len == 0 || note[len - 1] != '\n')
        return false;
    while (at >= 2 && !(note[at - 1] == '\n' && note[at - 2] == '\n')) /* the last empty line */
        at--;
    if (at < 2)
        return false;
    *text_len = at - 1;
    while (at < len) {
        const char *end = memchr(note + at, '\n', len - at);

        if (is_signed_by(note + at, (size_t)(end - note) - at, key, note, *text_len))
            return true;
        at = (size_t)(end - note) + 1;
    }
    return false;
}

/* -- what is signed, and proved ------------------------------------------------------- */

void ol_hashes_put(ol_buf *out, const ol_digest *hashes, int n)
{
    for (int i = 0; i < n; i++) {
        put_base64(out, hashes[i].bytes, OL_DIGEST_BYTES);
        ol_buf_put_u8(out, '\n');
    }
}

void ol_checkpoint_put(ol_buf *out, const char *origin, uint64_t size, const ol_digest *root)
{
    ol_buf_printf(out, "%s\n%llu\n", origin, (unsigned long long)size);
    ol_hashes_put(out, root, 1);
}

void ol_proof_put(ol_buf *out, uint64_t index, const ol_digest *proof, int n,
                  const char *checkpoint, size_t checkpoint_len)
{
    ol_buf_printf(out, "c2sp.org/tlog-proof@v1\nindex %llu\n", (unsigned long long)index);
    ol_hashes_put(out, proof, n);
    ol_buf_put_u8(out, '\n');
    ol_buf_put(out, checkpoint, checkpoint_len);
}

/* Numbers in groups of three digits, all but the last with an x: 1234067 is x001/x234/067. */
static void put_number(ol_buf *out, uint64_t n)
{
    int groups[7], count = 0;

    do {
        groups[count++] = (int)(n % 1000);
        n /= 1000;
    } while (n > 0);
    while (count-- > 1)
        ol_buf_printf(out, "x%03d/", groups[count]);
    ol_buf_printf(out, "%03d", groups[0]);
}

void ol_tile_path(ol_buf *out, int level, uint64_t n, int width)
{
    if (level < 0)
        ol_buf_printf(out, "tile/entries/");
    else
        ol_buf_printf(out, "tile/%d/", level);
    put_number(out, n);
    if (width < 256)
        ol_buf_printf(out, ".p/%d", width);
}
