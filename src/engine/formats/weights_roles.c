/* weights_roles.c: what tensors a model has, their shapes and their names. */
#include "engine/formats/weights_internal.h"

#include <stdio.h>

bool ol_role_per_layer(int role)
{
    return role >= OL_ROLE_ATTN_NORM;
}

bool ol_role_present(const ol_model_config *c, int role)
{
    ol_module module = (ol_module)(role - OL_ROLE_BIAS);

    if (role == OL_ROLE_Q_NORM || role == OL_ROLE_K_NORM)
        return c->qk_norm;
    if (role < OL_ROLE_BIAS)
        return true;
    if (module == OL_MOD_O)
        return c->o_bias;
    return module < OL_MOD_O ? c->qkv_bias : c->mlp_bias;
}

int ol_role_shape(const ol_model_config *c, int role, int64_t shape[2])
{
    int64_t out, in;

    shape[1] = 0;
    switch (role) {
    case OL_ROLE_EMBED:
    case OL_ROLE_HEAD:
        shape[0] = c->vocab;
        shape[1] = c->hidden;
        return 2;
    case OL_ROLE_FINAL_NORM:
    case OL_ROLE_ATTN_NORM:
    case OL_ROLE_MLP_NORM:
        shape[0] = c->hidden;
        return 1;
    case OL_ROLE_Q_NORM:
    case OL_ROLE_K_NORM:
        shape[0] = c->head_dim;
        return 1;
    default:
        break;
    }
    ol_module_shape(c,
                    (ol_module)(role >= OL_ROLE_BIAS ? role - OL_ROLE_BIAS : role - OL_ROLE_LINEAR),
                    &out, &in);
    shape[0] = out;
    if (role >= OL_ROLE_BIAS)
        return 1;
    shape[1] = in;
    return 2;
}

void ol_source_name(ol_model_kind kind, int role, int layer, char out[OL_SOURCE_NAME])
{
    static const char *const hf[] = {
        "model.embed_tokens",       "lm_head",          "model.norm",      "input_layernorm",
        "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"};
    static const char *const gg[] = {"token_embd", "output",      "output_norm", "attn_norm",
                                     "ffn_norm",   "attn_q_norm", "attn_k_norm"};
    static const char *const gg_modules[] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                             "ffn_gate", "ffn_up", "ffn_down"};
    bool gguf = kind == OL_MODEL_GGUF;
    const char *prefix = gguf ? "blk" : "model.layers",
               *end = role >= OL_ROLE_BIAS ? "bias" : "weight";

    if (!ol_role_per_layer(role)) {
        snprintf(out, OL_SOURCE_NAME, "%s.weight", gguf ? gg[role] : hf[role]);
    } else if (role < OL_ROLE_LINEAR) {
        snprintf(out, OL_SOURCE_NAME, "%s.%d.%s.weight", prefix, layer, gguf ? gg[role] : hf[role]);
    } else {
        ol_module m = (ol_module)((role - OL_ROLE_LINEAR) % OL_MODULES);

        if (gguf)
            snprintf(out, OL_SOURCE_NAME, "blk.%d.%s.%s", layer, gg_modules[m], end);
        else
            snprintf(out, OL_SOURCE_NAME, "model.layers.%d.%s.%s.%s", layer,
                     ol_module_in_attention(m) ? "self_attn" : "mlp", ol_module_name(m), end);
    }
}
