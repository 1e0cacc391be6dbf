/* gguf_lora.c: LoRA adapters as llama.cpp's convert_lora_to_gguf writes them. */
#include "engine/formats/adapter_build.h"
#include "engine/formats/gguf.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *gguf;
    ol_module module;
} modules[] = {{"attn_q", OL_MOD_Q},      {"attn_k", OL_MOD_K},      {"attn_v", OL_MOD_V},
               {"attn_output", OL_MOD_O}, {"ffn_gate", OL_MOD_GATE}, {"ffn_up", OL_MOD_UP},
               {"ffn_down", OL_MOD_DOWN}};

/* "blk.3.attn_q.weight.lora_a" */
static bool parse_name(const char *name, int *layer, ol_module *module, bool *is_b)
{
    const char *rest;

    if (strncmp(name, "blk.", 4) != 0)
        return false;
    *layer = ol_adapter_layer(name + 4, &rest);
    if (*layer < 0 || *rest++ != '.')
        return false;
    for (size_t i = 0; i < sizeof(modules) / sizeof(modules[0]); i++) {
        size_t len = strlen(modules[i].gguf);

        if (strncmp(rest, modules[i].gguf, len) != 0 || rest[len] != '.')
            continue;
        *module = modules[i].module;
        *is_b = strcmp(rest + len, ".weight.lora_b") == 0;
        return *is_b || strcmp(rest + len, ".weight.lora_a") == 0;
    }
    return false;
}

/* The architecture tells the row order of q and k, and which bases it can be for. */
static ol_code check_architecture(const ol_gguf *g, ol_adapter_build *build)
{
    static const struct {
        const char *name;
        bool interleaved;
        unsigned families;
    } known[] = {{"llama", true, 1u << OL_FAMILY_LLAMA | 1u << OL_FAMILY_MISTRAL},
                 {"qwen2", false, 1u << OL_FAMILY_QWEN2},
                 {"qwen3", false, 1u << OL_FAMILY_QWEN3}};
    ol_gguf_str arch;
    char text[64];

    OL_TRY(ol_gguf_string(g, "general.architecture", &arch, build->err));
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (!ol_gguf_is(g, "general.architecture", known[i].name))
            continue;
        build->interleaved = known[i].interleaved;
        if (build->base && !(known[i].families >> build->base->family & 1))
            return ol_fail(build->err, OL_MISMATCH,
                           "the adapter is for architecture \"%s\", the base model is %s",
                           known[i].name, ol_family_name(build->base->family));
        return OL_OK;
    }
    return ol_fail(build->err, OL_UNSUPPORTED,
                   "the adapter is for the unsupported architecture \"%s\"",
                   ol_gguf_printable(arch, text, sizeof(text)));
}

static ol_code check_kind(const ol_gguf *g, ol_error *err)
{
    if (!ol_gguf_is(g, "general.type", "adapter")) {
        ol_fail(err, OL_INVALID, "the GGUF file is not an adapter");
        return ol_detail(err, "Its general.type is not \"adapter\".");
    }
    if (!ol_gguf_is(g, "adapter.type", "lora"))
        return ol_fail(err, OL_UNSUPPORTED, "adapter.type is not \"lora\"");
    if (ol_gguf_find(g, "adapter.alora.invocation_tokens"))
        return ol_fail(err, OL_UNSUPPORTED, "adapter.alora.invocation_tokens is not supported");
    return OL_OK;
}

static ol_code put_tensors(const ol_gguf *g, ol_adapter_build *build)
{
    for (size_t i = 0; i < ol_gguf_tensors(g); i++) {
        const char *name = ol_gguf_tensor_at(g, i)->name;
        ol_module module;
        ol_tensor tensor;
        int layer;
        bool is_b;

        if (!parse_name(name, &layer, &module, &is_b)) {
            ol_fail(build->err, OL_UNSUPPORTED, "adapter tensor \"%s\" is not supported", name);
            return ol_detail(build->err, "Adapted can be attention and MLP projections: "
                                         "blk.N.attn_q.weight.lora_a and so on.");
        }
        OL_TRY(ol_gguf_get(g, name, &tensor, build->err));
        OL_TRY(ol_adapter_put(build, layer, module, is_b, &tensor));
    }
    return OL_OK;
}

/* As llama.cpp: alpha / rank, and 1 when alpha is absent or 0. */
static void set_scales(ol_adapter_build *build, float alpha)
{
    for (int layer = 0; layer < build->n_layers; layer++)
        for (int m = 0; build->layers[layer] && m < OL_MODULES; m++) {
            ol_adapter_pair *pair = &build->layers[layer][m];
            int64_t rank = pair->has_b && pair->b.n_dims == 2 ? pair->b.shape[1] : 0;

            pair->scale = alpha != 0 && rank > 0 ? alpha / (float)rank : 1.0f;
        }
}

static ol_code parse(const ol_gguf *g, ol_adapter_build *build, ol_adapter_file *out)
{
    ol_gguf_str name;
    float alpha;

    OL_TRY(check_kind(g, build->err));
    OL_TRY(check_architecture(g, build));
    OL_TRY(ol_gguf_f32(g, "adapter.lora.alpha", 0, &alpha, build->err));
    OL_TRY(ol_gguf_string(g, "general.base_model.0.name", &name, build->err));
    if (name.ptr) {
        char text[256];

        ol_gguf_printable(name, text, sizeof(text));
        out->base_model = ol_arena_strdup(build->arena, text);
        if (!out->base_model)
            return ol_fail_nomem(build->err, sizeof(text), "adapter");
    }
    OL_TRY(put_tensors(g, build));
    set_scales(build, alpha);
    return ol_adapter_finish(build, out);
}

ol_code ol_gguf_lora_parse(const void *bytes, size_t len, ol_adapter_build *build,
                           ol_adapter_file *out)
{
    ol_gguf *g;
    ol_code code;

    out->format = OL_ADAPTER_GGUF;
    OL_TRY(ol_gguf_bytes(bytes, len, "adapter", &g, build->err));
    code = parse(g, build, out);
    ol_gguf_close(g);
    return code;
}
