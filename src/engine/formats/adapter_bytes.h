/* adapter_bytes.h: an adapter as it arrives, and the digest by which it is named. Plain data. */
#ifndef OL_FORMATS_ADAPTER_BYTES_H
#define OL_FORMATS_ADAPTER_BYTES_H

#include "base/file.h"

/* The bytes of adapter_model.safetensors and the text of adapter_config.json; or a GGUF file, which
 * has no config. */
typedef struct ol_adapter_bytes {
    const void *weights;
    size_t weights_len;
    const char *config;
    size_t config_len;
} ol_adapter_bytes;

/* SHA-256 over: "openlora.adapter.1", a zero byte, the weights' length as 8 bytes
 * little-endian, the weights, the config text. The extension computes the same. */
void ol_adapter_digest(const void *weights, size_t weights_len, const char *config,
                       size_t config_len, ol_digest *digest);

#endif
