/* peft_config.h: adapter_config.json, as far as it matters (private to peft*.c). */
#ifndef OL_FORMATS_PEFT_CONFIG_H
#define OL_FORMATS_PEFT_CONFIG_H

#include "base/arena.h"
#include "device/device.h"
#include "engine/formats/adapter_file.h"
#include "engine/formats/peft_match.h"

/* target_modules or exclude_modules: a regular expression, or names. */
typedef struct ol_peft_selection {
    bool present, is_pattern;
    ol_pattern pattern;
    const char **names;
    size_t n_names;
} ol_peft_selection;

/* rank_pattern or alpha_pattern: the first key that matches decides. */
typedef struct ol_peft_override {
    ol_pattern *keys;
    double *values;
    size_t n;
} ol_peft_override;

typedef struct ol_peft_config {
    int rank;
    double alpha;
    bool rslora;
    bool all_linear;
    ol_peft_selection targets, excluded;
    bool by_layer; /* layers_to_transform is given */
    bool layer_selected[OL_MAX_LAYERS];
    ol_pattern *layer_patterns;
    size_t n_layer_patterns;
    ol_peft_override ranks, alphas;
    const char *base_model; /* or NULL */
    uint32_t work;          /* steps of one match */
} ol_peft_config;

/* Refuses by name whatever would change results and is not supported. On failure
 * nothing is left to free. */
ol_code ol_peft_config_read(const char *text, size_t len, ol_arena *arena, ol_peft_config *config,
                            ol_error *err);
void ol_peft_config_free(ol_peft_config *config);

/* `key` as PEFT calls the module: "model.layers.0.self_attn.q_proj", "lm_head". */
ol_code ol_peft_targets(const ol_peft_config *config, const char *key, bool *targeted,
                        ol_error *err);
ol_code ol_peft_rank(const ol_peft_config *config, const char *key, int *rank, float *scale,
                     ol_error *err);

#endif
