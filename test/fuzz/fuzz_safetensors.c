/* fuzz_safetensors.c: any bytes as a safetensors file. */
#include "engine/formats/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ol_safetensors *st;
    ol_error err;
    volatile uint8_t sum = 0;

    if (ol_safetensors_bytes(data, size, "fuzz", 0, &st, &err) != OL_OK)
        return 0;
    for (size_t i = 0; i < ol_safetensors_count(st); i++) {
        ol_tensor t;

        if (ol_safetensors_get(st, ol_safetensors_at(st, i)->name, &t, &err) == OL_OK && t.bytes)
            sum = (uint8_t)(sum + ((const uint8_t *)t.data)[t.bytes - 1]);
    }
    ol_safetensors_close(st);
    return 0;
}
