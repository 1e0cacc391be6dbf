/* fuzz_gguf.c: any bytes as a GGUF file: metadata, arrays, tensors, the description. */
#include "engine/formats/gguf_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_arrays(ol_gguf *g)
{
    for (size_t i = 0; i < ol_gguf_entries(g); i++) {
        const char *key = ol_gguf_entry_at(g, i)->key;
        const ol_gguf_str *strings;
        const float *floats;
        const int32_t *ints;
        ol_error err;
        size_t n;

        (void)ol_gguf_string_array(g, key, &strings, &n, &err);
        (void)ol_gguf_f32_array(g, key, &floats, &n, &err);
        (void)ol_gguf_i32_array(g, key, &ints, &n, &err);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ol_gguf *g;
    ol_error err;
    ol_model_config config;
    volatile uint8_t sum = 0;

    if (ol_gguf_bytes(data, size, "fuzz", &g, &err) != OL_OK)
        return 0;
    read_arrays(g);
    for (size_t i = 0; i < ol_gguf_tensors(g); i++) {
        ol_tensor t;

        if (ol_gguf_get(g, ol_gguf_tensor_at(g, i)->name, &t, &err) == OL_OK && t.bytes)
            sum = (uint8_t)(sum + ((const uint8_t *)t.data)[t.bytes - 1]);
    }
    (void)ol_gguf_config(g, &config, &err);
    ol_gguf_close(g);
    return 0;
}
