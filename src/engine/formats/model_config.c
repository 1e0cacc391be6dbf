/* model_config.c: see model_config.h. */
#include "engine/formats/model_config.h"

const char *ol_family_name(ol_family family)
{
    static const char *const names[] = {"llama", "mistral", "qwen2", "qwen3"};

    return names[family];
}

const char *ol_module_name(ol_module module)
{
    static const char *const names[] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                        "gate_proj", "up_proj", "down_proj"};

    return names[module];
}

bool ol_module_in_attention(ol_module module)
{
    return module <= OL_MOD_O;
}

void ol_module_shape(const ol_model_config *c, ol_module module, int64_t *out, int64_t *in)
{
    int64_t q = (int64_t)c->n_heads * c->head_dim, kv = (int64_t)c->n_kv_heads * c->head_dim;

    *in = module == OL_MOD_O ? q : module == OL_MOD_DOWN ? c->ffn : c->hidden;
    switch (module) {
    case OL_MOD_Q:
        *out = q;
        break;
    case OL_MOD_K:
    case OL_MOD_V:
        *out = kv;
        break;
    case OL_MOD_GATE:
    case OL_MOD_UP:
        *out = c->ffn;
        break;
    case OL_MOD_O:
    case OL_MOD_DOWN:
        *out = c->hidden;
        break;
    }
}

static ol_code check_range(const char *file, const char *what, int64_t v, int64_t low, int64_t high,
                           ol_error *err)
{
    if (v >= low && v <= high)
        return OL_OK;
    ol_fail(err, OL_UNSUPPORTED, "\"%s\": %s is out of range: %lld", file, what, (long long)v);
    return ol_detail(err, "It must be from %lld to %lld.", (long long)low, (long long)high);
}

static ol_code check_rope(const ol_model_config *c, const char *file, ol_error *err)
{
    const ol_rope *r = &c->rope;

    if (!(r->theta > 1 && r->theta < 1e12))
        return ol_fail(err, OL_CORRUPT, "\"%s\": rope theta is out of range: %g", file, r->theta);
    OL_TRY(check_range(file, "rotary dimensions", r->dims, 2, c->head_dim, err));
    if (r->dims % 2)
        return ol_fail(err, OL_CORRUPT, "\"%s\": rotary dimensions are odd: %d", file, r->dims);
    if (r->scaling != OL_ROPE_PLAIN && !(r->factor > 0 && r->factor < 1e6))
        return ol_fail(err, OL_CORRUPT, "\"%s\": rope factor is out of range: %g", file, r->factor);
    if (r->scaling == OL_ROPE_LLAMA3 &&
        !(r->low_freq > 0 && r->high_freq > r->low_freq && r->original_max_position >= 1))
        return ol_fail(err, OL_CORRUPT, "\"%s\": llama3 rope scaling is incomplete", file);
    if (r->scaling == OL_ROPE_YARN &&
        !(r->factor >= 1 && r->beta_fast > r->beta_slow && r->beta_slow > 0 && r->beta_fast < 1e6 &&
          r->original_max_position >= 1 && r->attention_factor > 0 && r->attention_factor < 1e3))
        return ol_fail(err, OL_CORRUPT, "\"%s\": yarn rope scaling is incomplete or out of range",
                       file);
    for (int i = 0; r->has_divisors && i < r->dims / 2; i++)
        if (!(r->divisors[i] > 0 && r->divisors[i] < 1e6f))
            return ol_fail(err, OL_CORRUPT, "\"%s\": rope_freqs.weight is out of range", file);
    return OL_OK;
}

ol_code ol_model_config_check(const ol_model_config *c, const char *file, ol_error *err)
{
    OL_TRY(check_range(file, "vocabulary size", c->vocab, 1, OL_MAX_VOCAB, err));
    OL_TRY(check_range(file, "hidden size", c->hidden, 1, OL_MAX_HIDDEN, err));
    OL_TRY(check_range(file, "number of layers", c->n_layers, 1, OL_MAX_LAYERS, err));
    OL_TRY(check_range(file, "number of heads", c->n_heads, 1, OL_MAX_HEADS, err));
    OL_TRY(check_range(file, "number of key-value heads", c->n_kv_heads, 1, c->n_heads, err));
    OL_TRY(check_range(file, "head dimension", c->head_dim, 2, OL_MAX_HEAD_DIM, err));
    OL_TRY(check_range(file, "feed-forward size", c->ffn, 1, OL_MAX_FFN, err));
    OL_TRY(check_range(file, "context length", c->max_position, 1, OL_MAX_CONTEXT, err));
    if (c->n_heads % c->n_kv_heads)
        return ol_fail(err, OL_CORRUPT, "\"%s\": %d heads do not share %d key-value heads evenly",
                       file, c->n_heads, c->n_kv_heads);
    if (!(c->norm_eps > 0 && c->norm_eps < 1))
        return ol_fail(err, OL_CORRUPT, "\"%s\": norm epsilon is out of range: %g", file,
                       (double)c->norm_eps);
    return check_rope(c, file, err);
}
