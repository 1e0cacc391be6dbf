/* file.h: read-only mapped files, and SHA-256 digests of bytes and files. */
#ifndef OL_BASE_FILE_H
#define OL_BASE_FILE_H

#include "base/status.h"

typedef struct ol_map {
    const uint8_t *data; /* NULL for an empty file */
    size_t len;
} ol_map;

/* Maps a regular file read-only (MAP_PRIVATE). The file must not be truncated
 * while mapped; a model folder is the DBA's to keep stable. */
ol_code ol_map_open(const char *path, ol_map *map, ol_error *err);
void ol_map_close(ol_map *map);

#define OL_DIGEST_BYTES 32

typedef struct ol_digest {
    uint8_t bytes[OL_DIGEST_BYTES];
} ol_digest;

/* SHA-256, by OpenSSL. */
typedef struct ol_sha256 ol_sha256;

ol_sha256 *ol_sha256_begin(void); /* NULL when out of memory */
void ol_sha256_add(ol_sha256 *sha, const void *bytes, size_t len);
/* Of what was added until now; more may follow. False when out of memory. */
bool ol_sha256_so_far(const ol_sha256 *sha, ol_digest *digest);
void ol_sha256_end(ol_sha256 *sha, ol_digest *digest); /* frees sha */
void ol_sha256_drop(ol_sha256 *sha);                   /* NULL is fine */
void ol_sha256_of(const void *bytes, size_t len, ol_digest *digest);

/* 64 lower-case hex digits and a NUL. */
#define OL_DIGEST_HEX (2 * OL_DIGEST_BYTES + 1)
void ol_digest_hex(const ol_digest *digest, char out[OL_DIGEST_HEX]);
bool ol_digest_equal(const ol_digest *a, const ol_digest *b);

#endif
