/* test_ledger.c: entries, the tree, proofs and notes: against vectors of others where there are
 * any. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>
#include <jansson.h>
#include <openssl/evp.h>

#include "ledger/entry.h"
#include "ledger/merkle.h"
#include "ledger/note.h"

static ol_error err;

/* -- entries -------------------------------------------------------------------------- */

static ol_digest filled(int with)
{
    ol_digest d;

    memset(d.bytes, with, sizeof(d.bytes));
    return d;
}

static ol_entry sample(const ol_entry_adapter adapters[2])
{
    return (ol_entry){.leaf = 7,
                      .at_us = 1700000000123456,
                      .database = 16384,
                      .inference = 42,
                      .attempt = 1,
                      .outcome = 2,
                      .task = 1,
                      .base_model = filled(0x11),
                      .device = "cpu (avx512)",
                      .input_tokens = 100,
                      .cached_tokens = 64,
                      .output_tokens = 9,
                      .temperature = 0.75f,
                      .top_k = 40,
                      .top_p = 0.5f,
                      .min_p = 0.25f,
                      .repetition_penalty = 1.5f,
                      .presence_penalty = -1.0f,
                      .frequency_penalty = 2.0f,
                      .max_tokens = 128,
                      .ignore_eos = true,
                      .seed = UINT64_C(0xfedcba9876543210),
                      .n_adapters = 2,
                      .adapters = adapters,
                      .prompt = filled(0x44),
                      .output = filled(0x55)};
}

/* The digest was computed of the same fields by another encoder, written in Python from the
 * description in entry.h. */
static void test_entry(void **state)
{
    const ol_entry_adapter adapters[2] = {{filled(0x22), 5, 0.5, 250000},
                                          {filled(0x33), -6, -2.0, 750000}};
    ol_entry e = sample(adapters);
    char hex[OL_DIGEST_HEX];
    ol_digest digest, salt = filled(0x66);
    ol_buf out = {0};

    (void)state;
    ol_entry_role(&salt, "asker", &e.role);
    ol_entry_encode(&e, &out);
    assert_false(out.failed);
    assert_int_equal(out.len, 336);
    assert_int_equal(out.data[0], 1);
    ol_leaf_hash(out.data, out.len, &digest);
    ol_digest_hex(&digest, hex);
    assert_string_equal(hex, "2a716d296c439f2768343ca27389e98d2d6d3b31e0a81cadacfdcfd56d6b77dc");
    ol_buf_free(&out);
}

static void test_entry_too_long(void **state)
{
    char *name = calloc(1, 70000);
    ol_entry e = sample(NULL);
    ol_buf out = {0};

    (void)state;
    memset(name, 'x', 69999);
    e.n_adapters = 0;
    e.device = name;
    ol_entry_encode(&e, &out);
    assert_true(out.failed);
    ol_buf_free(&out);
    free(name);
}

/* -- the tree ------------------------------------------------------------------------- */

#define MOST 70000

/* Stored hashes as the ledger's process makes them: a level's next when the one below has a
 * tile more. */
typedef struct store {
    ol_digest *levels[3];
    uint64_t n[3];
} store;

static ol_code read_store(void *context, int level, uint64_t first, int n, ol_digest *out,
                          ol_error *error)
{
    store *s = context;

    assert_in_range(level, 0, 2);
    assert_true(n <= OL_TILE_WIDTH &&
                first / OL_TILE_WIDTH == (first + (uint64_t)n - 1) / OL_TILE_WIDTH);
    if (first + (uint64_t)n > s->n[level])
        return ol_fail(error, OL_CORRUPT, "not there");
    memcpy(out, s->levels[level] + first, sizeof(*out) * (size_t)n);
    return OL_OK;
}

static void append(store *s, int level, const ol_digest *hash)
{
    ol_digest tile[OL_TILE_WIDTH], root;

    s->levels[level][s->n[level]++] = *hash;
    if (level == 2 || s->n[level] % OL_TILE_WIDTH != 0)
        return;
    memcpy(tile, s->levels[level] + s->n[level] - OL_TILE_WIDTH, sizeof(tile));
    ol_fold_hashes(tile, OL_TILE_WIDTH, &root);
    append(s, level + 1, &root);
}

static store grown(uint64_t n)
{
    store s = {0};

    for (int i = 0; i < 3; i++)
        s.levels[i] = calloc(n + 1, sizeof(ol_digest));
    for (uint64_t i = 0; i < n; i++) {
        ol_digest leaf;

        ol_leaf_hash(&i, i % 8 + 1, &leaf);
        append(&s, 0, &leaf);
    }
    return s;
}

static void free_store(store *s)
{
    for (int i = 0; i < 3; i++)
        free(s->levels[i]);
}

/* By the definition alone. */
static ol_digest naive_root(const ol_digest *leaves, uint64_t n)
{
    uint64_t k = 1;
    ol_digest left, right, root;

    if (n == 1)
        return leaves[0];
    while (2 * k < n)
        k *= 2;
    left = naive_root(leaves, k);
    right = naive_root(leaves + k, n - k);
    ol_node_hash(&left, &right, &root);
    return root;
}

static void test_roots(void **state)
{
    store s = grown(MOST);
    ol_tree tree = {&s, read_store};
    ol_digest root, expected;

    (void)state;
    for (uint64_t n = 1; n < MOST; n += n < 1100 ? 1 : n % 7919 + 256) {
        assert_int_equal(ol_tree_root(&tree, n, &root, &err), OL_OK);
        expected = naive_root(s.levels[0], n);
        assert_memory_equal(&root, &expected, sizeof(root));
    }
    assert_int_equal(ol_tree_root(&tree, MOST + 1, &root, &err), OL_CORRUPT);
    assert_int_equal(ol_tree_root(&tree, 0, &root, &err), OL_OK);
    ol_sha256_of("", 0, &expected);
    assert_memory_equal(&root, &expected, sizeof(root));
    free_store(&s);
}

static void expect_proofs(store *s, uint64_t size, uint64_t at)
{
    ol_tree tree = {s, read_store};
    ol_digest proof[OL_TREE_MAX_PROOF], root = naive_root(s->levels[0], size), old;
    int n;

    assert_int_equal(ol_tree_inclusion(&tree, at, size, proof, &n, &err), OL_OK);
    assert_true(ol_verify_inclusion(at, size, &s->levels[0][at], proof, n, &root));
    assert_false(ol_verify_inclusion(at + 1, size, &s->levels[0][at], proof, n, &root));
    if (n > 0) {
        proof[n / 2].bytes[3] ^= 1;
        assert_false(ol_verify_inclusion(at, size, &s->levels[0][at], proof, n, &root));
        assert_false(ol_verify_inclusion(at, size, &s->levels[0][at], proof, n - 1, &root));
    }
    if (at == 0)
        return;
    old = naive_root(s->levels[0], at);
    assert_int_equal(ol_tree_consistency(&tree, at, size, proof, &n, &err), OL_OK);
    assert_true(ol_verify_consistency(at, size, &old, &root, proof, n));
    assert_false(ol_verify_consistency(at, size, &root, &old, proof, n));
    if (n > 0) {
        proof[n / 2].bytes[3] ^= 1;
        assert_false(ol_verify_consistency(at, size, &old, &root, proof, n));
    }
}

static void test_proofs(void **state)
{
    store s = grown(MOST);
    ol_tree tree = {&s, read_store};
    ol_digest proof[OL_TREE_MAX_PROOF];
    int n;

    (void)state;
    for (uint64_t size = 1; size <= 70; size++)
        for (uint64_t at = 0; at < size; at++)
            expect_proofs(&s, size, at);
    for (uint64_t size = 255; size < MOST; size += size % 9973 + 311)
        for (uint64_t at = size % 13; at < size; at += size / 5 + 1)
            expect_proofs(&s, size, at);
    assert_int_equal(ol_tree_inclusion(&tree, 5, 5, proof, &n, &err), OL_INVALID);
    assert_int_equal(ol_tree_consistency(&tree, 0, 5, proof, &n, &err), OL_INVALID);
    assert_int_equal(ol_tree_consistency(&tree, 6, 5, proof, &n, &err), OL_INVALID);
    free_store(&s);
}

/* -- vectors of transparency-dev/merkle ------------------------------------------------ */

static bool get_digest(const json_t *value, ol_digest *digest)
{
    const char *text = json_string_value(value);
    size_t len = text ? strlen(text) : 0;
    uint8_t bytes[1024];
    int n;

    if (!text || len % 4 || len > 1024)
        return false;
    n = EVP_DecodeBlock(bytes, (const unsigned char *)text, (int)len);
    while (len && text[len - 1] == '=') {
        len--;
        n--;
    }
    if (n != OL_DIGEST_BYTES)
        return false;
    memcpy(digest->bytes, bytes, OL_DIGEST_BYTES);
    return true;
}

/* What has not a hash's length (some vectors have words there) stands for itself by its own
 * hash: equal to the same words, and to no root that is computed. */
static void get_root(const json_t *value, ol_digest *digest)
{
    const char *text = json_string_value(value);

    if (!get_digest(value, digest))
        ol_sha256_of(text ? text : "", text ? strlen(text) : 0, digest);
}

static int get_proof(const json_t *list, ol_digest *proof, bool *good)
{
    int n = (int)json_array_size(list);

    assert_true(n <= OL_TREE_MAX_PROOF);
    for (int i = 0; i < n; i++)
        *good = get_digest(json_array_get(list, (size_t)i), &proof[i]) && *good;
    return n;
}

/* Some are -1 in 64 bits without a sign, which jansson has as a float alone. */
static uint64_t number(const json_t *v, const char *name)
{
    double n = json_number_value(json_object_get(v, name));

    return n < 9e15 ? (uint64_t)n : UINT64_MAX;
}

static bool check_vector(const json_t *v, bool inclusion)
{
    ol_digest proof[OL_TREE_MAX_PROOF], a, b;
    bool good = true;
    int n = get_proof(json_object_get(v, "proof"), proof, &good);
    if (inclusion) {
        good = get_digest(json_object_get(v, "leafHash"), &a) && good;
        good = get_digest(json_object_get(v, "root"), &b) && good;
    } else {
        get_root(json_object_get(v, "root1"), &a);
        get_root(json_object_get(v, "root2"), &b);
    }
    if (!good)
        return false;
    return inclusion
               ? ol_verify_inclusion(number(v, "leafIdx"), number(v, "treeSize"), &a, proof, n, &b)
               : ol_verify_consistency(number(v, "size1"), number(v, "size2"), &a, &b, proof, n);
}

static int vectors_in(const char *folder, bool inclusion, int *refused)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;
    int n = 0;

    while (dir && (entry = readdir(dir))) {
        char path[1024];
        struct stat st;
        json_t *v;

        snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
        if (entry->d_name[0] == '.' || stat(path, &st) != 0)
            continue;
        if (S_ISDIR(st.st_mode)) {
            n += vectors_in(path, inclusion, refused);
            continue;
        }
        v = json_load_file(path, JSON_DECODE_INT_AS_REAL, NULL);
        assert_non_null(v);
        if (check_vector(v, inclusion) == json_is_true(json_object_get(v, "wantErr")))
            fail_msg("%s: %s", path, json_string_value(json_object_get(v, "desc")));
        *refused += json_is_true(json_object_get(v, "wantErr"));
        json_decref(v);
        n++;
    }
    if (dir)
        closedir(dir);
    return n;
}

static void test_vectors(void **state)
{
    const char *data = getenv("OPENLORA_TEST_DATA");
    char folder[1024];
    int n, refused = 0;

    (void)state;
    for (int inclusion = 0; inclusion < 2; inclusion++) {
        snprintf(folder, sizeof(folder), "%s/merkle-rfc6962/testdata/%s",
                 data ? data : "../shared/data", inclusion ? "inclusion" : "consistency");
        n = vectors_in(folder, inclusion, &refused);
        if (n == 0) {
            printf("skipped: %s is not there\n", folder);
            skip();
        }
        printf("%d vectors in %s\n", n, folder);
    }
    assert_true(refused > 100);
}

/* -- notes ---------------------------------------------------------------------------- */

/* The example of Go's package note. */
static void test_note_of_others(void **state)
{
    const char *vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const char *note =
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n\n"
        "\xe2\x80\x94 PeterNeumann "
        "x08go/ZJkuBS9UG/"
        "SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
    char copy[512];
    ol_note_key key;
    size_t len;

    (void)state;
    assert_int_equal(ol_note_get_key(vkey, &key, &err), OL_OK);
    assert_true(ol_note_verify(note, strlen(note), &key, &len));
    assert_int_equal(len, strstr(note, "\n\n") + 1 - note);
    for (size_t i = 0; i < strlen(note); i++) {
        strcpy(copy, note);
        copy[i] ^= 1;
        assert_false(ol_note_verify(copy, strlen(note), &key, &len));
        assert_false(ol_note_verify(note, i, &key, &len));
    }
    strcpy(copy, vkey);
    copy[14] = 'd';
    assert_int_equal(ol_note_get_key(copy, &key, &err), OL_CORRUPT);
}

/* RFC 8032, 7.1, test 1 has the seed and the key. */
static void test_note_of_ours(void **state)
{
    static const uint8_t seed[OL_KEY_BYTES] = {0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60,
                                               0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4,
                                               0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19,
                                               0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60};
    ol_note_key key, again;
    ol_buf text = {0}, note = {0}, vkey = {0};
    ol_digest root = filled(9);
    size_t len;

    (void)state;
    assert_int_equal(ol_note_key_of_seed("example.com/log", seed, &key, &err), OL_OK);
    assert_memory_equal(key.public_key, "\xd7\x5a\x98\x01\x82\xb1\x0a\xb7", 8);
    ol_note_put_key(&vkey, &key);
    ol_buf_put_u8(&vkey, 0);
    assert_int_equal(ol_note_get_key((char *)vkey.data, &again, &err), OL_OK);
    assert_memory_equal(&key, &again, sizeof(key));
    ol_checkpoint_put(&text, key.name, 1234, &root);
    assert_memory_equal(text.data,
                        "example.com/log\n1234\nCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=\n",
                        text.len);
    assert_int_equal(ol_note_sign(&note, (char *)text.data, text.len, &key, seed, &err), OL_OK);
    assert_true(ol_note_verify((char *)note.data, note.len, &key, &len));
    assert_int_equal(len, text.len);
    key.public_key[0] ^= 1;
    assert_false(ol_note_verify((char *)note.data, note.len, &key, &len));
    assert_int_equal(ol_note_key_of_seed("two words", seed, &key, &err), OL_INVALID);
    assert_int_equal(ol_note_key_of_seed("a+b", seed, &key, &err), OL_INVALID);
    assert_int_equal(ol_note_key_of_seed("", seed, &key, &err), OL_INVALID);
    ol_buf_free(&text);
    ol_buf_free(&note);
    ol_buf_free(&vkey);
}

static void test_paths(void **state)
{
    ol_buf out = {0};

    (void)state;
    ol_tile_path(&out, 0, 0, 256);
    ol_buf_printf(&out, " ");
    ol_tile_path(&out, 1, 1234067, 256);
    ol_buf_printf(&out, " ");
    ol_tile_path(&out, -1, 999, 8);
    assert_string_equal((char *)out.data, "tile/0/000 tile/1/x001/x234/067 tile/entries/999.p/8");
    ol_buf_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_entry),        cmocka_unit_test(test_entry_too_long),
        cmocka_unit_test(test_roots),        cmocka_unit_test(test_proofs),
        cmocka_unit_test(test_vectors),      cmocka_unit_test(test_note_of_others),
        cmocka_unit_test(test_note_of_ours), cmocka_unit_test(test_paths),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
