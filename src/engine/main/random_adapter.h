/* random_adapter.h: LoRA adapters made up for benchmarks, as PEFT would store them. */
#ifndef OL_MAIN_RANDOM_ADAPTER_H
#define OL_MAIN_RANDOM_ADAPTER_H

#include "base/buf.h"
#include "engine/formats/model_config.h"

/* adapter_model.safetensors and adapter_config.json of an adapter of all seven linear
 * modules of every layer, in F16, different for each seed. */
ol_code random_adapter_make(const ol_model_config *base, int rank, uint64_t seed, ol_buf *weights,
                            ol_buf *config, ol_error *err);
/* Into the folder DIR/NUMBER, which is made. */
ol_code random_adapter_write(const char *dir, int number, const ol_buf *weights,
                             const ol_buf *config, ol_error *err);

#endif
