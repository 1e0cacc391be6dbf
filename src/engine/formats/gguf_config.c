/* gguf_config.c: see gguf_config.h. Keys as llama.cpp writes and reads them. */
#include "engine/formats/gguf_config.h"

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

    OL_TRY(ol_gguf_string(p->g, "general.architecture", &arch, p->err));
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (arch.ptr && arch.len == strlen(known[i].name) &&
            memcmp(arch.ptr, known[i].name, arch.len) == 0) {
            snprintf(p->arch, sizeof(p->arch), "%s", known[i].name);
            p->c->family = known[i].family;
            return OL_OK;
        }
    ol_fail(p->err, OL_UNSUPPORTED, "\"%s\": unsupported architecture \"%.*s\"", ol_gguf_name(p->g),
            arch.len > 60 ? 60 : (int)arch.len, arch.ptr ? arch.ptr : "");
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
    return read_float(p, "attention.layer_norm_rms_epsilon", 1e-5f, &c->norm_eps);
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

static ol_code read_rope(parse *p)
{
    ol_rope *rope = &p->c->rope;
    char key[128];
    float theta, factor;
    ol_gguf_str type;

    OL_TRY(read_float(p, "rope.freq_base", 10000.0f, &theta));
    OL_TRY(read_int(p, "rope.dimension_count", p->c->head_dim, &rope->dims));
    OL_TRY(read_float(p, "rope.scaling.factor", 0.0f, &factor));
    OL_TRY(ol_gguf_string(p->g, key_of(p, "rope.scaling.type", key), &type, p->err));
    rope->theta = (double)theta;
    rope->interleaved = p->c->family == OL_FAMILY_LLAMA;
    if (type.ptr && type.len == 6 && memcmp(type.ptr, "linear", 6) == 0) {
        rope->scaling = OL_ROPE_LINEAR;
        rope->factor = (double)factor;
    } else if (type.ptr && !(type.len == 4 && memcmp(type.ptr, "none", 4) == 0)) {
        return ol_fail(p->err, OL_UNSUPPORTED, "\"%s\": rope scaling \"%.*s\" is not supported",
                       ol_gguf_name(p->g), type.len > 40 ? 40 : (int)type.len, type.ptr);
    }
    if (rope->dims < 2 || rope->dims > OL_MAX_HEAD_DIM)
        return ol_fail(p->err, OL_CORRUPT, "\"%s\": rope.dimension_count is out of range",
                       ol_gguf_name(p->g));
    return read_divisors(p);
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
        if (id >= 0)
            p->c->eos[p->c->n_eos++] = (int32_t)id;
    }
    return OL_OK;
}

ol_code ol_gguf_config(const ol_gguf *g, ol_model_config *config, ol_error *err)
{
    parse p = {.g = g, .c = config, .err = err};
    int window;

    memset(config, 0, sizeof(*config));
    config->bos = -1;
    OL_TRY(read_family(&p));
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
    return ol_model_config_check(config, ol_gguf_name(g), err);
}
