/* peft.c: PEFT adapters: adapter_model.safetensors against adapter_config.json. */
#include "engine/formats/adapter_build.h"
#include "engine/formats/peft_config.h"
#include "engine/formats/safetensors.h"

#include <stdio.h>
#include <string.h>

/* Enough for the most modules there can be; a hostile header costs memory to parse. */
#define MAX_HEADER ((size_t)4 * 1024 * 1024)

/* "base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight", or with the
 * adapter's name as in ".lora_A.default.weight". */
static bool parse_name(const char *name, int *layer, ol_module *module, bool *is_b)
{
    static const char prefix[] = "base_model.model.model.layers.";
    const char *rest;

    if (strncmp(name, prefix, sizeof(prefix) - 1) != 0)
        return false;
    *layer = ol_adapter_layer(name + sizeof(prefix) - 1, &rest);
    if (*layer < 0 || *rest++ != '.')
        return false;
    for (int m = 0; m < OL_MODULES; m++) {
        char stem[64];
        size_t len = (size_t)snprintf(stem, sizeof(stem), "%s.%s.lora_",
                                      ol_module_in_attention((ol_module)m) ? "self_attn" : "mlp",
                                      ol_module_name((ol_module)m));

        if (strncmp(rest, stem, len) != 0)
            continue;
        rest += len;
        *module = (ol_module)m;
        *is_b = *rest == 'B';
        return (*rest == 'A' || *rest == 'B') &&
               (strcmp(rest + 1, ".weight") == 0 || strcmp(rest + 1, ".default.weight") == 0);
    }
    return false;
}

static ol_code unexpected(const char *name, ol_error *err)
{
    const char *what = "a tensor that LoRA on attention and MLP projections does not have";

    if (strstr(name, "lora_embedding_"))
        what = "LoRA on an embedding";
    else if (strstr(name, "lora_magnitude_vector"))
        what = "DoRA";
    else if (strstr(name, "lm_head"))
        what = "a change of the head";
    else if (strstr(name, "modules_to_save"))
        what = "a fully trained module";
    else if (strstr(name, ".bias"))
        what = "a bias";
    ol_fail(err, OL_UNSUPPORTED, "adapter tensor \"%.150s\" is not supported", name);
    return ol_detail(err, "It is %s.", what);
}

static ol_code put_tensors(const ol_safetensors *st, ol_adapter_build *build)
{
    for (size_t i = 0; i < ol_safetensors_count(st); i++) {
        const char *name = ol_safetensors_at(st, i)->name;
        ol_module module;
        ol_tensor tensor;
        int layer;
        bool is_b;

        if (!parse_name(name, &layer, &module, &is_b))
            return unexpected(name, build->err);
        OL_TRY(ol_safetensors_get(st, name, &tensor, build->err));
        OL_TRY(ol_adapter_put(build, layer, module, is_b, &tensor));
    }
    return OL_OK;
}

/* What the configuration targets and what the file holds must be the same. */
static ol_code settle(const ol_peft_config *config, ol_adapter_build *build, int layer,
                      ol_module module)
{
    ol_adapter_pair *pair = build->layers[layer] ? &build->layers[layer][module] : NULL;
    bool there = pair && (pair->has_a || pair->has_b), targeted;
    char key[OL_ADAPTER_NAME];

    ol_adapter_module_key(layer, module, key);
    OL_TRY(ol_peft_targets(config, key, &targeted, build->err));
    if (targeted && !there) {
        ol_fail(build->err, OL_CORRUPT, "adapter module \"%s\" is missing", key);
        return ol_detail(build->err, "adapter_config.json targets it, but the file has no tensors "
                                     "for it.");
    }
    if (there && !targeted) {
        ol_fail(build->err, OL_CORRUPT, "adapter module \"%s\" is not targeted", key);
        return ol_detail(build->err,
                         "The file has tensors for it, but adapter_config.json does not "
                         "target it.");
    }
    return there ? ol_peft_rank(config, key, &pair->rank, &pair->scale, build->err) : OL_OK;
}

/* Modules outside the layers that can be adapted in PEFT, but not here. */
static ol_code refuse_outside(const ol_peft_config *config, ol_error *err)
{
    static const char *const keys[] = {"lm_head", "model.embed_tokens"};

    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        bool targeted;

        OL_TRY(ol_peft_targets(config, keys[i], &targeted, err));
        if (targeted) {
            ol_fail(err, OL_UNSUPPORTED, "the adapter targets \"%s\", which is not supported",
                    keys[i]);
            return ol_hint(err, "Adapted can be q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj "
                                "and down_proj.");
        }
    }
    return OL_OK;
}

static ol_code parse(const ol_safetensors *st, const ol_peft_config *config,
                     ol_adapter_build *build, ol_adapter_file *out)
{
    int n_layers;

    OL_TRY(put_tensors(st, build));
    OL_TRY(refuse_outside(config, build->err));
    n_layers = build->base ? build->base->n_layers : build->n_layers;
    for (int layer = 0; layer < n_layers; layer++)
        for (int m = 0; m < OL_MODULES; m++)
            OL_TRY(settle(config, build, layer, (ol_module)m));
    return ol_adapter_finish(build, out);
}

ol_code ol_peft_parse(const void *bytes, size_t len, const char *text, size_t text_len,
                      ol_adapter_build *build, ol_adapter_file *out)
{
    ol_peft_config config;
    ol_safetensors *st;
    ol_code code;

    out->format = OL_ADAPTER_PEFT;
    if (text_len == 0) {
        ol_fail(build->err, OL_INVALID, "the adapter has no configuration");
        return ol_hint(build->err, "Weights in safetensors need the text of adapter_config.json.");
    }
    OL_TRY(ol_peft_config_read(text, text_len, build->arena, &config, build->err));
    out->base_model = config.base_model;
    code =
        ol_safetensors_bytes(bytes, len, "adapter_model.safetensors", MAX_HEADER, &st, build->err);
    if (code == OL_OK) {
        code = parse(st, &config, build, out);
        ol_safetensors_close(st);
    }
    ol_peft_config_free(&config);
    return code;
}
