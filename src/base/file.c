/* file.c: see file.h. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

ol_code ol_map_open(const char *path, ol_map *map, ol_error *err)
{
    struct stat st;
    void *at;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    *map = (ol_map){0};
    if (fd < 0)
        return ol_fail_errno(err, "could not open", path);
    if (fstat(fd, &st) != 0) {
        ol_fail_errno(err, "could not stat", path);
        close(fd);
        return err->code;
    }
    if (!S_ISREG(st.st_mode)) {
        close(fd);
        return ol_fail(err, OL_INVALID, "\"%s\" is not a regular file", path);
    }
    if (st.st_size == 0) {
        close(fd);
        return OL_OK;
    }
    at = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (at == MAP_FAILED) {
        ol_fail_errno(err, "could not map", path);
        close(fd);
        return err->code;
    }
    close(fd);
    map->data = at;
    map->len = (size_t)st.st_size;
    return OL_OK;
}

void ol_map_close(ol_map *map)
{
    if (map->data)
        munmap((void *)(uintptr_t)map->data, map->len);
    *map = (ol_map){0};
}

struct ol_sha256 {
    EVP_MD_CTX *ctx;
};

ol_sha256 *ol_sha256_begin(void)
{
    ol_sha256 *sha = calloc(1, sizeof(*sha));

    if (!sha)
        return NULL;
    sha->ctx = EVP_MD_CTX_new();
    if (!sha->ctx || EVP_DigestInit_ex(sha->ctx, EVP_sha256(), NULL) != 1) {
        EVP_MD_CTX_free(sha->ctx);
        free(sha);
        return NULL;
    }
    return sha;
}

void ol_sha256_add(ol_sha256 *sha, const void *bytes, size_t len)
{
    EVP_DigestUpdate(sha->ctx, bytes, len);
}

bool ol_sha256_so_far(const ol_sha256 *sha, ol_digest *digest)
{
    EVP_MD_CTX *copy = EVP_MD_CTX_new();
    unsigned len = OL_DIGEST_BYTES;
    bool good = copy && EVP_MD_CTX_copy_ex(copy, sha->ctx) == 1 &&
                EVP_DigestFinal_ex(copy, digest->bytes, &len) == 1;

    EVP_MD_CTX_free(copy);
    return good;
}

void ol_sha256_end(ol_sha256 *sha, ol_digest *digest)
{
    unsigned len = OL_DIGEST_BYTES;

    EVP_DigestFinal_ex(sha->ctx, digest->bytes, &len);
    ol_sha256_drop(sha);
}

void ol_sha256_drop(ol_sha256 *sha)
{
    if (!sha)
        return;
    EVP_MD_CTX_free(sha->ctx);
    free(sha);
}

void ol_sha256_of(const void *bytes, size_t len, ol_digest *digest)
{
    unsigned got = OL_DIGEST_BYTES;

    EVP_Digest(bytes, len, digest->bytes, &got, EVP_sha256(), NULL);
}

void ol_digest_hex(const ol_digest *digest, char out[OL_DIGEST_HEX])
{
    static const char digits[] = "0123456789abcdef";

    for (int i = 0; i < OL_DIGEST_BYTES; i++) {
        out[2 * i] = digits[digest->bytes[i] >> 4];
        out[2 * i + 1] = digits[digest->bytes[i] & 15];
    }
    out[2 * OL_DIGEST_BYTES] = '\0';
}

bool ol_digest_equal(const ol_digest *a, const ol_digest *b)
{
    return memcmp(a->bytes, b->bytes, OL_DIGEST_BYTES) == 0;
}
