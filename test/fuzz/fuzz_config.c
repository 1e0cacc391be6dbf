/* fuzz_config.c: any bytes as config.json and generation_config.json. */
#include "engine/formats/hfconfig.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ol_model_config config;
    ol_error err;
    float inv_freq[OL_MAX_HEAD_DIM / 2];

    if (ol_hfconfig_parse((const char *)data, size, "fuzz", &config, &err) != OL_OK)
        return 0;
    ol_rope_frequencies(&config, inv_freq);
    (void)ol_hfconfig_generation((const char *)data, size, "fuzz", &config, &err);
    return 0;
}
