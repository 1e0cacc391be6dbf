/* gguf_config.c: see gguf_config.h. Keys as llama.cpp writes and reads them. */
#include "engine/formats/gguf_config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct parse {
    const ol_gguf *g;
    char arch[32];
    ol_model_config *c;
    ol_error *err;
} parse;

static const char *key_of(const parse *p, const char *rest, char out[128])
{
    snprintf(out, 128, "%s.%s", p->arch, rest);
    return out;
}

/* required: missing < 0 */
static ol_code read_int(const parse *p, const char *rest, int64_t missing, int *value)
{
    char key[128];
    int64_t wide;

    OL_TRY(ol_gguf_i64(p->g, key_of(p, rest, key), missing, &wide, p->err));
    if (wide < 0 && missing < 0)
        return ol_fail(p->err, OL_CORRUPT, "\"%s\": %s is missing", ol_gguf_name(p->g), key);
    if (wide < 0 || wide > INT32_MAX)
        return ol_fail(p->err, OL_CORRUPT, "\"%s\": %s is out of range", ol_gguf_name(p->g), key);
    *value = (int)wide;
    return OL_OK;
}

static ol_code read_float(const parse *p, const char *rest, float missing, float *value)
{
    char key[128];

    return ol_gguf_f32(p->g, key_of(p, rest, key), missing, value, p->err);
}

static ol_code read_family(parse *p)
{
    static const struct {
        const char *name;
        ol_family family;
    } known[] = {
        {"llama", OL_FAMILY_LLAMA}, {"qwen2", OL_FAMILY_QWEN2}, {"qwen3", OL_FAMILY_QWEN3}};
    ol_gguf_str arch;
    char text[64];

    OL_TRY(ol_gguf_string(p->g, "general.architecture", &arch, p->err));
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (arch.ptr && arch.len == strlen(known[i].name) &&
            memcmp(arch.ptr, known[i].name, arch.len) == 0) {
            snprintf(p->arch, sizeof(p->arch), "%s", known[i].name);
            p->c->family = known[i].family;
            return OL_OK;
        }
    ol_fail(p->err, OL_UNSUPPORTED, "\"%s\": unsupported architecture \"%s\"", ol_gguf_name(p->g),
            ol_gguf_printable(arch, text, sizeof(text)));
    return ol_hint(p->err, "Supported are llama (and Mistral as llama), qwen2 and qwen3.");
}

static ol_code read_vocab(parse *p)
{
    const ol_gguf_entry *tokens = ol_gguf_find(p->g, "tokenizer.ggml.tokens");
    const ol_gguf_tensor *embed = ol_gguf_find_tensor(p->g, "token_embd.weight");
    int64_t missing = -1;

    if (embed && embed->n_dims == 2) /* what is there decides: files pad or omit the key */
        missing = embed->shape[0];
    else if (tokens && tokens->type == OL_GGUF_ARRAY)
        missing = (int64_t)tokens->count;
    if (embed && embed->n_dims == 2) {
        p->c->vocab = missing > OL_MAX_VOCAB ? 0 : (int)missing;
        return OL_OK;
    }
    return read_int(p, "vocab_size", missing, &p->c->vocab);
}

static ol_code read_sizes(parse *p)
{
    ol_model_config *c = p->c;
    int value_length;

    OL_TRY(read_vocab(p));
    OL_TRY(read_int(p, "embedding_length", -1, &c->hidden));
    OL_TRY(read_int(p, "block_count", -1, &c->n_layers));
    OL_TRY(read_int(p, "attention.head_count", -1, &c->n_heads));
    OL_TRY(read_int(p, "attention.head_count_kv", c->n_heads, &c->n_kv_heads));
    OL_TRY(read_int(p, "feed_forward_length", -1, &c->ffn));
    OL_TRY(read_int(p, "context_length", -1, &c->max_position));
    if (c->n_heads < 1)
        return ol_fail(p->err, OL_CORRUPT, "\"%s\": no attention heads", ol_gguf_name(p->g));
    OL_TRY(read_int(p, "attention.key_length", c->hidden / c->n_heads, &c->head_dim));
    OL_TRY(read_int(p, "attention.value_length", c->head_dim, &value_length));
    if (value_length != c->head_dim)
        return ol_fail(p->err, OL_UNSUPPORTED, "\"%s\": keys and values have other lengths",
                       ol_gguf_name(p->g));
    return read_float(p, "attention.layer_norm_rms_epsilon", 0, &c->norm_eps); /* 0 is refused */
}

static ol_code read_divisors(parse *p)
{
    ol_rope *rope = &p->c->rope;
    ol_tensor t;

    if (!ol_gguf_find_tensor(p->g, "rope_freqs.weight"))
        return OL_OK;
    OL_TRY(ol_gguf_get(p->g, "rope_freqs.weight", &t, p->err));
    if (t.dtype != OL_F32 || t.n_dims != 1 || t.shape[0] != rope->dims / 2)
        return ol_fail(p->err, OL_CORRUPT, "tensor \"rope_freqs.weight\" has the wrong shape");
    rope->has_divisors = true;
    memcpy(rope->divisors, t.data, t.bytes);
    return OL_OK;
}

/* As llama.cpp: without a type a factor means linear; a factor of 0 means none. */
static ol_code read_scaling(parse *p)
{
    ol_rope *rope = &p->c->rope;
    char key[128], text[64] = "linear";
    float factor, attention, fast, slow;
    ol_gguf_str type;
    int original;

    OL_TRY(read_float(p, "rope.scale_linear", 0, &factor));
    OL_TRY(read_float(p, "rope.scaling.factor", factor, &factor));
    OL_TRY(read_float(p, "rope.scaling.attn_factor", 1, &attention));
    OL_TRY(read_float(p, "rope.scaling.yarn_beta_fast", 32, &fast));
    OL_TRY(read_float(p, "rope.scaling.yarn_beta_slow", 1, &slow));
    OL_TRY(read_int(p, "rope.scaling.original_context_length", p->c->max_position, &original));
    OL_TRY(ol_gguf_string(p->g, key_of(p, "rope.scaling.type", key), &type, p->err));
    if (type.ptr)
        ol_gguf_printable(type, text, sizeof(text));
    if (strcmp(text, "none") == 0 || (strcmp(text, "linear") == 0 && factor == 0))
        return OL_OK;
    rope->factor = (double)factor;
    if (strcmp(text, "linear") == 0) {
        rope->scaling = OL_ROPE_LINEAR;
    } else if (strcmp(text, "yarn") == 0) {
        rope->scaling = OL_ROPE_YARN;
        rope->original_max_position = original;
        rope->beta_fast = (double)fast;
        rope->beta_slow = (double)slow;
        rope->truncate = true;
        rope->attention_factor =
            (double)attention * (rope->factor > 1 ? 0.1 * log(rope->factor) + 1 : 1);
    } else {
        return ol_fail(p->err, OL_UNSUPPORTED, "\"%s\": rope scaling \"%s\" is not supported",
                       ol_gguf_name(p->g), text);
    }
    return OL_OK;
}

static ol_code read_rope(parse *p)
{
    ol_rope *rope = &p->c->rope;
    float theta;

    OL_TRY(read_float(p, "rope.freq_base", 10000.0f, &theta));
    OL_TRY(read_int(p, "rope.dimension_count", p->c->head_dim, &rope->dims));
    rope->theta = (double)theta;
    rope->interleaved = p->c->family == OL_FAMILY_LLAMA;
    if (rope->dims < 2 || rope->dims > OL_MAX_HEAD_DIM || rope->dims % 2)
        return ol_fail(p->err, OL_CORRUPT, "\"%s\": rope.dimension_count is out of range",
                       ol_gguf_name(p->g));
    OL_TRY(read_scaling(p));
    return read_divisors(p);
}

static bool is_eos(const ol_model_config *c, int64_t id)
{
    for (int i = 0; i < c->n_eos; i++)
        if (c->eos[i] == id)
            return true;
    return false;
}

static ol_code read_tokens(parse *p)
{
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    int64_t id;

    OL_TRY(ol_gguf_i64(p->g, "tokenizer.ggml.bos_token_id", -1, &id, p->err));
    p->c->bos = id >= 0 && id < p->c->vocab ? (int32_t)id : -1;
    for (size_t i = 0; i < 3; i++) {
        OL_TRY(ol_gguf_i64(p->g, keys[i], -1, &id, p->err));
        if (id >= p->c->vocab)
            return ol_fail(p->err, OL_CORRUPT, "\"%s\": %s is not in the vocabulary",
                           ol_gguf_name(p->g), keys[i]);
        if (id >= 0 && !is_eos(p->c, id))
            p->c->eos[p->c->n_eos++] = (int32_t)id;
    }
    return OL_OK;
}

/* What the architecture can have, but the description has no words for. */
static ol_code refuse_unsupported(const parse *p)
{
    static const char *const keys[] = {
        "expert_count",           "attention.clamp_kqv",     "attention.scale",
        "attn_logit_softcapping", "final_logit_softcapping", "logit_scale",
        "embedding_scale",        "residual_scale"};
    uint32_t parts;

    OL_TRY(ol_gguf_u32(p->g, "split.count", 0, &parts, p->err));
    if (parts > 1) {
        ol_fail(p->err, OL_UNSUPPORTED, "\"%s\" is one of %u parts of a model", ol_gguf_name(p->g),
                parts);
        return ol_hint(p->err, "Merge the parts with llama-gguf-split --merge.");
    }
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        char key[128];
        const ol_gguf_entry *e = ol_gguf_find(p->g, key_of(p, keys[i], key));
        bool zero = true;

        for (size_t k = 0; e && k < e->bytes; k++)
            zero = zero && e->data[k] == 0;
        if (!zero)
            return ol_fail(p->err, OL_UNSUPPORTED, "\"%s\": %s is not supported",
                           ol_gguf_name(p->g), key);
    }
    return OL_OK;
}

ol_code ol_gguf_config(const ol_gguf *g, ol_model_config *config, ol_error *err)
{
    parse p = {.g = g, .c = config, .err = err};
    int window = 0;

    memset(config, 0, sizeof(*config));
    config->bos = -1;
    OL_TRY(read_family(&p));
    OL_TRY(refuse_unsupported(&p));
    OL_TRY(read_sizes(&p));
    OL_TRY(read_rope(&p));
    OL_TRY(read_tokens(&p));
    OL_TRY(read_int(&p, "attention.sliding_window", 0, &window));
    for (int i = 0; i < config->n_layers && i < OL_MAX_LAYERS; i++)
        config->window[i] = window;
    config->qk_norm = config->family == OL_FAMILY_QWEN3;
    config->tie_embeddings = !ol_gguf_find_tensor(g, "output.weight");
    config->qkv_bias = ol_gguf_find_tensor(g, "blk.0.attn_q.bias") != NULL;
    config->o_bias = ol_gguf_find_tensor(g, "blk.0.attn_output.bias") != NULL;
    config->mlp_bias = ol_gguf_find_tensor(g, "blk.0.ffn_gate.bias") != NULL;
    return ol_model_config_check(config, ol_gguf_name(g), err);
}
