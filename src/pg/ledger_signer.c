/* ledger_signer.c: see ledger_signer.h. */
#include "ledger_signer.h"

#include <sys/stat.h>
#include <unistd.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "ledger/note.h"
#include "ledger_tree.h"
#include "miscadmin.h"
#include "spi.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#define HEX_BYTES (2 * OL_KEY_BYTES + 1)

typedef struct Key {
    ol_note_key public;
    uint8 seed[OL_KEY_BYTES];
} Key;

/* -- files -------------------------------------------------------------------------------- */

static void path_of(const char *suffix, char *path)
{
    snprintf(path, MAXPGPATH, "%s/%u.%s", lora_ledger_key_directory, MyDatabaseId, suffix);
}

/* The whole of a small file, with a NUL. OL_NOT_FOUND: it does not exist. */
static ol_code read_file(const char *path, char *text, Size room, ol_error *error)
{
    int file = BasicOpenFile(path, O_RDONLY | PG_BINARY);
    ssize_t n;

    if (file < 0 && errno == ENOENT)
        return ol_fail(error, OL_NOT_FOUND, "file \"%s\" does not exist", path);
    if (file < 0)
        return ol_fail_errno(error, "could not open", path);
    n = read(file, text, room - 1);
    close(file);
    if (n < 0)
        return ol_fail_errno(error, "could not read", path);
    text[n] = '\0';
    return OL_OK;
}

static ol_code write_bytes(const char *path, const char *text, ol_error *error)
{
    int file = BasicOpenFilePerm(path, O_WRONLY | O_CREAT | O_TRUNC | PG_BINARY, S_IRUSR | S_IWUSR);
    ssize_t want = (ssize_t)strlen(text);

    if (file < 0)
        return ol_fail_errno(error, "could not create", path);
    errno = 0;
    if (write(file, text, (size_t)want) != want || pg_fsync(file) != 0) {
        if (errno == 0)
            errno = ENOSPC;
        ol_fail_errno(error, "could not write", path);
        close(file);
        return error->code;
    }
    close(file);
    return OL_OK;
}

/* As one: after a crash there is the old text or the new. */
static ol_code write_file(const char *suffix, const char *text, ol_error *error)
{
    char path[MAXPGPATH], fresh[MAXPGPATH];

    path_of(suffix, path);
    path_of("new", fresh);
    if (mkdir(lora_ledger_key_directory, S_IRWXU) != 0 && errno != EEXIST)
        return ol_fail_errno(error, "could not create folder", lora_ledger_key_directory);
    OL_TRY(write_bytes(fresh, text, error));
    if (durable_rename(fresh, path, LOG) != 0)
        return ol_fail_errno(error, "could not rename to", path);
    return OL_OK;
}

static bool from_hex(const char *hex, uint8 *bytes, int n)
{
    for (int i = 0; i < n; i++) {
        unsigned byte;

        if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
            return false;
        bytes[i] = (uint8)byte;
    }
    return true;
}

static void to_hex(const uint8 *bytes, int n, char *hex)
{
    for (int i = 0; i < n; i++)
        snprintf(hex + 2 * i, 3, "%02x", bytes[i]);
}

/* -- what was signed last ------------------------------------------------------------------ */

ol_code lora_signer_last(LoraSigned *last, ol_error *error)
{
    char path[MAXPGPATH], text[1024], hex[HEX_BYTES];
    unsigned long long size;

    memset(last, 0, sizeof(*last));
    if (!lora_preloaded) /* there are no settings */
        return ol_fail(error, OL_NOT_FOUND, "openlora is not preloaded");
    path_of("signed", path);
    OL_TRY(read_file(path, text, sizeof(text), error));
    if (sscanf(text, "%255s %llu %64s %u", last->origin, &size, hex, &last->timeline) != 4 ||
        !from_hex(hex, last->root.bytes, OL_DIGEST_BYTES))
        return ol_fail(error, OL_CORRUPT, "file \"%s\" is damaged", path);
    last->size = size;
    return OL_OK;
}

static ol_code write_signed(const LoraSigned *now, ol_error *error)
{
    char text[OL_NOTE_NAME_BYTES + 128], hex[OL_DIGEST_HEX];

    ol_digest_hex(&now->root, hex);
    snprintf(text, sizeof(text), "%s\n" UINT64_FORMAT "\n%s\n%u\n", now->origin, now->size, hex,
             now->timeline);
    return write_file("signed", text, error);
}

/* Every promotion and every recovery to a point in time begins another. */
static TimeLineID timeline_now(void)
{
#if PG_VERSION_NUM >= 150000
    return GetWALInsertionTimeLine();
#else
    (void)RecoveryInProgress(); /* sets it */
    return ThisTimeLineID;
#endif
}

/* Whether a copy of the data directory has a copy of this memory, which may then be older
 * than what was signed elsewhere. */
static bool memory_is_copied(void)
{
    char *keys = realpath(lora_ledger_key_directory, NULL), *data = realpath(DataDir, NULL);
    bool copied = true;

    if (keys && data) {
        canonicalize_path(keys);
        canonicalize_path(data);
        copied = path_is_prefix_of_path(data, keys);
    }
    free(keys);
    free(data);
    return copied;
}

/* -- the key ------------------------------------------------------------------------------ */

static ol_code read_key(Key *key, ol_error *error)
{
    char path[MAXPGPATH], text[1024], origin[OL_NOTE_NAME_BYTES], hex[HEX_BYTES];
    struct stat st;

    path_of("key", path);
    OL_TRY(read_file(path, text, sizeof(text), error));
    if (stat(path, &st) != 0 || (st.st_mode & (S_IRWXG | S_IRWXO)) != 0)
        return ol_fail(error, OL_DENIED, "file \"%s\" is readable by others", path);
    if (sscanf(text, "%255s %64s", origin, hex) != 2 || !from_hex(hex, key->seed, OL_KEY_BYTES))
        return ol_fail(error, OL_CORRUPT, "file \"%s\" is damaged", path);
    return ol_note_key_of_seed(origin, key->seed, &key->public, error);
}

/* In a transaction: the public half, for everybody to verify with. */
static void store_key(const ol_note_key *key)
{
    static LoraStatement insert = {"INSERT INTO openlora.ledger_keys (origin, key) VALUES ($1, $2)"
                                   " ON CONFLICT DO NOTHING",
                                   2,
                                   {TEXTOID, TEXTOID}};
    ol_buf text = {0};
    Datum values[2];

    ol_note_put_key(&text, key);
    values[0] = CStringGetTextDatum(key->name);
    values[1] = PointerGetDatum(cstring_to_text_with_len((char *)text.data, (int)text.len));
    lora_execute(&insert, values, NULL, false);
    ol_buf_free(&text);
}

static bool origin_is_known(const char *origin)
{
    static LoraStatement find = {
        "SELECT 1 FROM openlora.ledger_keys WHERE origin OPERATOR(pg_catalog.=) $1", 1, {TEXTOID}};
    Datum value = CStringGetTextDatum(origin);

    return lora_execute(&find, &value, NULL, false) > 0;
}

static ol_code set_old_key_aside(ol_error *error)
{
    char path[MAXPGPATH], aside[MAXPGPATH], suffix[64];

    snprintf(suffix, sizeof(suffix), "key.until-%lld", (long long)time(NULL));
    path_of("key", path);
    path_of(suffix, aside);
    if (durable_rename(path, aside, LOG) != 0)
        return ol_fail_errno(error, "could not rename", path);
    path_of("signed", path);
    if (unlink(path) != 0 && errno != ENOENT)
        return ol_fail_errno(error, "could not remove", path);
    return OL_OK;
}

ol_code lora_signer_create(const char *origin, bool another, ol_error *error)
{
    char text[OL_NOTE_NAME_BYTES + HEX_BYTES + 2], hex[HEX_BYTES];
    LoraSigned none;
    Key key, old;
    bool known;
    ol_code code = read_key(&old, error);

    explicit_bzero(&old.seed, sizeof(old.seed));
    if (code != OL_NOT_FOUND && !another) {
        ol_fail(error, OL_INVALID, "this database's ledger has a key already");
        return ol_hint(error, "another => true begins a log of another origin.");
    }
    memset(&none, 0, sizeof(none));
    strlcpy(none.origin, origin, sizeof(none.origin));
    none.timeline = timeline_now();
    if (!pg_strong_random(key.seed, OL_KEY_BYTES))
        return ol_fail(error, OL_INTERNAL, "there are no random numbers");
    OL_TRY(ol_note_key_of_seed(origin, key.seed, &key.public, error));
    lora_begin_work();
    known = origin_is_known(origin);
    lora_commit_work();
    if (known)
        return ol_fail(error, OL_INVALID, "the origin \"%s\" was used before", origin);
    if (code != OL_NOT_FOUND)
        OL_TRY(set_old_key_aside(error));
    OL_TRY(write_signed(&none, error)); /* a key without a memory is not used */
    to_hex(key.seed, OL_KEY_BYTES, hex);
    snprintf(text, sizeof(text), "%s\n%s\n", origin, hex);
    code = write_file("key", text, error);
    explicit_bzero(text, sizeof(text));
    explicit_bzero(hex, sizeof(hex));
    explicit_bzero(key.seed, sizeof(key.seed));
    if (code != OL_OK)
        return code;
    lora_begin_work();
    store_key(&key.public);
    lora_commit_work();
    return OL_OK;
}

/* -- checkpoints ---------------------------------------------------------------------------- */

static ol_code refuse(const LoraSigned *last, ol_error *error)
{
    ol_detail(error, "A checkpoint of " UINT64_FORMAT " receipts was signed for \"%s\".",
              last->size, last->origin);
    return ol_hint(error, "A log that was restored behind a signed checkpoint, or changed, is "
                          "another one: lora_ledger_create_key(..., another => true) begins it "
                          "under a new origin.");
}

/* Whether what is remembered is all that this key has signed. */
static ol_code trust(const LoraSigned *last, const LoraSigned *now, ol_error *error)
{
    if (strcmp(last->origin, now->origin) != 0) {
        ol_fail(error, OL_CORRUPT, "the last checkpoint was signed for another origin");
        return refuse(last, error);
    }
    if (last->timeline == now->timeline || !memory_is_copied())
        return OL_OK;
    ol_fail(error, OL_CORRUPT, "the last checkpoint was signed on timeline %u, and this is %u",
            last->timeline, now->timeline);
    (void)refuse(last, error);
    return ol_detail(error,
                     "The server was promoted or recovered to a point in time. A copy of the data "
                     "directory has an old copy of openlora.ledger_key_directory: what was signed "
                     "after " UINT64_FORMAT " receipts of \"%s\" is not known here.",
                     last->size, last->origin);
}

/* The tree as it is, after making sure that it goes on from what was signed last. */
static ol_code look(const LoraSigned *last, LoraSigned *now, ol_error *error)
{
    LoraTree tree;
    ol_digest then;

    lora_tree_open(&tree);
    now->size = lora_tree_size(true);
    if (now->size < last->size) {
        ol_fail(error, OL_CORRUPT, "the ledger has only " UINT64_FORMAT " receipts", now->size);
        return refuse(last, error);
    }
    if (last->size > 0) {
        OL_TRY(ol_tree_root(&tree.tree, last->size, &then, error));
        if (!ol_digest_equal(&then, &last->root)) {
            ol_fail(error, OL_CORRUPT, "the ledger differs from what was signed");
            return refuse(last, error);
        }
    }
    return ol_tree_root(&tree.tree, now->size, &now->root, error);
}

static void store_checkpoint(const LoraSigned *now, const ol_buf *note)
{
    static LoraStatement insert = {
        "INSERT INTO openlora.checkpoints (origin, size, root, note) VALUES ($1, $2, $3, $4)"
        " ON CONFLICT DO NOTHING",
        4,
        {TEXTOID, INT8OID, BYTEAOID, TEXTOID}};
    bytea *root = palloc(VARHDRSZ + OL_DIGEST_BYTES);
    Datum values[4] = {
        CStringGetTextDatum(now->origin), Int64GetDatum((int64)now->size), PointerGetDatum(root),
        PointerGetDatum(cstring_to_text_with_len((char *)note->data, (int)note->len))};

    SET_VARSIZE(root, VARHDRSZ + OL_DIGEST_BYTES);
    memcpy(VARDATA(root), now->root.bytes, OL_DIGEST_BYTES);
    lora_execute(&insert, values, NULL, false);
}

/* Ed25519 signs the same text the same way: a checkpoint that was signed, and not stored
 * before a crash, is made again. */
static ol_code sign(const Key *key, const LoraSigned *last, const LoraSigned *now, ol_buf *note,
                    ol_error *error)
{
    ol_buf text = {0};
    ol_code code;

    if (now->size > last->size || now->timeline != last->timeline || last->size == 0)
        OL_TRY(write_signed(now, error)); /* before anybody can see it */
    ol_checkpoint_put(&text, now->origin, now->size, &now->root);
    code = text.failed
               ? ol_fail_nomem(error, 0, "a checkpoint")
               : ol_note_sign(note, (char *)text.data, text.len, &key->public, key->seed, error);
    ol_buf_free(&text);
    return code;
}

ol_code lora_signer_sign(ol_error *error)
{
    LoraSigned last, now = {0};
    ol_buf note = {0};
    Key key;
    ol_code code = read_key(&key, error);

    if (code == OL_NOT_FOUND)
        return ol_hint(error, "lora_ledger_create_key('example.com/receipts') makes a key.");
    if (code != OL_OK)
        return code;
    strlcpy(now.origin, key.public.name, sizeof(now.origin));
    now.timeline = timeline_now();
    code = lora_signer_last(&last, error);
    if (code == OL_NOT_FOUND)
        (void)ol_hint(error, "It remembers what was signed last. lora_ledger_create_key(..., "
                             "another => true) begins a log of another origin.");
    if (code == OL_OK)
        code = trust(&last, &now, error);
    if (code == OL_OK) {
        lora_begin_work();
        store_key(&key.public); /* should a crash have come between key and table */
        code = look(&last, &now, error);
        lora_commit_work();
    }
    if (code == OL_OK)
        code = sign(&key, &last, &now, &note, error);
    explicit_bzero(&key, sizeof(key));
    if (code == OL_OK) {
        lora_begin_work();
        store_checkpoint(&now, &note);
        lora_commit_work();
    }
    ol_buf_free(&note);
    return code;
}
