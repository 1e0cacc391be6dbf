/* hfconfig.c: see hfconfig.h. */
#include "engine/formats/hfconfig.h"

#include "engine/formats/json.h"

#include <math.h>
#include <string.h>

typedef struct parse {
    const json_t *root;
    const char *file;
    ol_model_config *c;
    ol_error *err;
} parse;

static ol_code refuse(const parse *p, const char *key, const char *why)
{
    return ol_fail(p->err, OL_UNSUPPORTED, "\"%s\": %s %s", p->file, key, why);
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));

    return s ? s : "";
}

/* -- family ------------------------------------------------------------------------------- */

static ol_code read_family(parse *p)
{
    static const struct {
        const char *type, *class_name;
        ol_family family;
    } known[] = {{"llama", "LlamaForCausalLM", OL_FAMILY_LLAMA},
                 {"mistral", "MistralForCausalLM", OL_FAMILY_MISTRAL},
                 {"qwen2", "Qwen2ForCausalLM", OL_FAMILY_QWEN2},
                 {"qwen3", "Qwen3ForCausalLM", OL_FAMILY_QWEN3}};
    const char *type = text_of(p->root, "model_type");
    const json_t *classes = json_object_get(p->root, "architectures");
    const char *class_name = json_string_value(json_array_get(classes, 0));

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (strcmp(type, known[i].type) == 0) {
            if (class_name && strcmp(class_name, known[i].class_name) != 0)
                break;
            p->c->family = known[i].family;
            return OL_OK;
        }
    ol_fail(p->err, OL_UNSUPPORTED, "\"%s\": unsupported architecture \"%s\" (model_type \"%s\")",
            p->file, class_name ? class_name : "", type);
    return ol_hint(p->err, "Supported are Llama, Mistral, Qwen2 and Qwen3 causal language models.");
}

/* -- rope ---------------------------------------------------------------------------------- */

static ol_code read_double(parse *p, const json_t *object, const char *key, double *value)
{
    return ol_json_double(object, p->file, key, value, p->err);
}

static ol_code read_llama3(parse *p, const json_t *scaling)
{
    ol_rope *rope = &p->c->rope;

    rope->scaling = OL_ROPE_LLAMA3;
    OL_TRY(read_double(p, scaling, "low_freq_factor", &rope->low_freq));
    OL_TRY(read_double(p, scaling, "high_freq_factor", &rope->high_freq));
    return read_double(p, scaling, "original_max_position_embeddings",
                       &rope->original_max_position);
}

static double yarn_scale(double factor, double m)
{
    return factor <= 1 ? 1 : 0.1 * m * log(factor) + 1;
}

static ol_code read_yarn(parse *p, const json_t *scaling)
{
    ol_rope *rope = &p->c->rope;
    double mscale = 0, mscale_all = 0;

    rope->scaling = OL_ROPE_YARN;
    rope->original_max_position = p->c->max_position;
    rope->truncate = true;
    OL_TRY(
        read_double(p, scaling, "original_max_position_embeddings", &rope->original_max_position));
    OL_TRY(read_double(p, scaling, "beta_fast", &rope->beta_fast));
    OL_TRY(read_double(p, scaling, "beta_slow", &rope->beta_slow));
    OL_TRY(read_double(p, scaling, "attention_factor", &rope->attention_factor));
    OL_TRY(read_double(p, scaling, "mscale", &mscale));
    OL_TRY(read_double(p, scaling, "mscale_all_dim", &mscale_all));
    OL_TRY(ol_json_bool(scaling, p->file, "truncate", &rope->truncate, p->err));
    if (rope->beta_fast == 0)
        rope->beta_fast = 32;
    if (rope->beta_slow == 0)
        rope->beta_slow = 1;
    if (!json_is_number(json_object_get(scaling, "attention_factor")))
        rope->attention_factor =
            mscale != 0 && mscale_all != 0
                ? yarn_scale(rope->factor, mscale) / yarn_scale(rope->factor, mscale_all)
                : yarn_scale(rope->factor, 1);
    return OL_OK;
}

/* rope_scaling, or the rope_parameters of later versions. */
static ol_code read_scaling(parse *p, const json_t *scaling)
{
    const char *type = text_of(scaling, "rope_type");

    if (!*type)
        type = text_of(scaling, "type");
    OL_TRY(read_double(p, scaling, "rope_theta", &p->c->rope.theta));
    if (!*type || strcmp(type, "default") == 0)
        return OL_OK;
    OL_TRY(read_double(p, scaling, "factor", &p->c->rope.factor));
    if (strcmp(type, "linear") == 0) {
        p->c->rope.scaling = OL_ROPE_LINEAR;
        return OL_OK;
    }
    if (strcmp(type, "llama3") == 0)
        return read_llama3(p, scaling);
    if (strcmp(type, "yarn") == 0)
        return read_yarn(p, scaling);
    ol_fail(p->err, OL_UNSUPPORTED, "\"%s\": rope scaling \"%.60s\" is not supported", p->file,
            type);
    return ol_detail(p->err, "Supported are default, linear, llama3 and yarn.");
}

static ol_code read_rope(parse *p)
{
    const json_t *scaling = json_object_get(p->root, "rope_scaling");
    const json_t *parameters = json_object_get(p->root, "rope_parameters");
    double partial = 1;

    p->c->rope.theta = 10000.0;
    p->c->rope.dims = p->c->head_dim;
    OL_TRY(read_double(p, p->root, "rope_theta", &p->c->rope.theta));
    OL_TRY(read_double(p, p->root, "partial_rotary_factor", &partial));
    if (json_is_object(parameters)) {
        OL_TRY(read_double(p, parameters, "partial_rotary_factor", &partial));
        if (json_object_get(parameters, "full_attention") ||
            json_object_get(parameters, "sliding_attention"))
            return refuse(p, "rope_parameters", "by layer type is not supported");
    }
    if (partial != 1)
        return refuse(p, "partial_rotary_factor", "is not supported");
    if ((scaling && !json_is_null(scaling) && !json_is_object(scaling)) ||
        (parameters && !json_is_null(parameters) && !json_is_object(parameters)))
        return refuse(p, "rope_scaling or rope_parameters", "is not an object");
    if (json_is_object(parameters))
        OL_TRY(read_scaling(p, parameters));
    return json_is_object(scaling) ? read_scaling(p, scaling) : OL_OK;
}

/* -- sliding windows -------------------------------------------------------------------------- */

static ol_code read_layer_types(parse *p, const json_t *list, int window)
{
    if (json_array_size(list) != (size_t)p->c->n_layers)
        return refuse(p, "layer_types", "does not have one entry per layer");
    for (int i = 0; i < p->c->n_layers; i++) {
        const char *type = json_string_value(json_array_get(list, (size_t)i));

        if (type && strcmp(type, "sliding_attention") == 0)
            p->c->window[i] = window;
        else if (!type || strcmp(type, "full_attention") != 0)
            return refuse(p, "layer_types", "holds a type other than full and sliding attention");
    }
    return OL_OK;
}

/* Llama has none. Mistral's holds for all layers (its layer_types are ignored, as by
 * transformers); Qwen's from max_window_layers on, or as layer_types says. Where the key
 * is absent, the configuration class's default holds; null means no window. */
static ol_code read_windows(parse *p)
{
    const json_t *list = json_object_get(p->root, "layer_types");
    bool qwen = p->c->family == OL_FAMILY_QWEN2 || p->c->family == OL_FAMILY_QWEN3;
    bool use = !qwen;
    int window = json_object_get(p->root, "sliding_window") ? 0 : 4096;
    int first = 28;

    if (p->c->family == OL_FAMILY_LLAMA)
        return OL_OK;
    OL_TRY(ol_json_int(p->root, p->file, "sliding_window", 1, INT32_MAX, &window, p->err));
    if (qwen)
        OL_TRY(ol_json_bool(p->root, p->file, "use_sliding_window", &use, p->err));
    OL_TRY(ol_json_int(p->root, p->file, "max_window_layers", 0, INT32_MAX, &first, p->err));
    if (!use || window == 0)
        return OL_OK;
    if (qwen && json_is_array(list))
        return read_layer_types(p, list, window);
    for (int i = qwen ? first : 0; i < p->c->n_layers; i++)
        p->c->window[i] = window;
    return OL_OK;
}

/* -- token ids --------------------------------------------------------------------------- */

static ol_code add_eos(parse *p, const json_t *id)
{
    json_int_t v = json_is_integer(id) ? json_integer_value(id) : -1;

    if (v < 0 || v >= p->c->vocab)
        return ol_fail(p->err, OL_CORRUPT, "\"%s\": eos_token_id is not a token of the vocabulary",
                       p->file);
    for (int i = 0; i < p->c->n_eos; i++)
        if (p->c->eos[i] == v)
            return OL_OK;
    if (p->c->n_eos == OL_MAX_EOS)
        return ol_fail(p->err, OL_LIMIT, "\"%s\": more than %d eos_token_id", p->file, OL_MAX_EOS);
    p->c->eos[p->c->n_eos++] = (int32_t)v;
    return OL_OK;
}

static ol_code read_token_ids(parse *p)
{
    const json_t *eos = json_object_get(p->root, "eos_token_id");
    int bos = p->c->bos;

    OL_TRY(ol_json_int(p->root, p->file, "bos_token_id", -1, p->c->vocab - 1, &bos, p->err));
    p->c->bos = bos;
    if (!eos || json_is_null(eos))
        return OL_OK;
    p->c->n_eos = 0;
    if (!json_is_array(eos))
        return add_eos(p, eos);
    for (size_t i = 0; i < json_array_size(eos); i++)
        OL_TRY(add_eos(p, json_array_get(eos, i)));
    return OL_OK;
}

/* -- the whole --------------------------------------------------------------------------- */

static ol_code read_required(parse *p, const char *key, int high, int *value)
{
    *value = 0;
    OL_TRY(ol_json_int(p->root, p->file, key, 1, high, value, p->err));
    return *value ? OL_OK : ol_fail(p->err, OL_CORRUPT, "\"%s\": %s is missing", p->file, key);
}

static ol_code read_sizes(parse *p)
{
    ol_model_config *c = p->c;
    double eps = 1e-6;

    OL_TRY(read_required(p, "vocab_size", OL_MAX_VOCAB, &c->vocab));
    OL_TRY(read_required(p, "hidden_size", OL_MAX_HIDDEN, &c->hidden));
    OL_TRY(read_required(p, "num_hidden_layers", OL_MAX_LAYERS, &c->n_layers));
    OL_TRY(read_required(p, "num_attention_heads", OL_MAX_HEADS, &c->n_heads));
    OL_TRY(read_required(p, "intermediate_size", OL_MAX_FFN, &c->ffn));
    OL_TRY(read_required(p, "max_position_embeddings", OL_MAX_CONTEXT, &c->max_position));
    c->n_kv_heads = c->n_heads; /* where it is null; absent: the class's default */
    if (!json_object_get(p->root, "num_key_value_heads") && c->family != OL_FAMILY_LLAMA)
        c->n_kv_heads = c->family == OL_FAMILY_MISTRAL ? 8 : 32;
    OL_TRY(ol_json_int(p->root, p->file, "num_key_value_heads", 1, c->n_heads, &c->n_kv_heads,
                       p->err));
    if (c->family == OL_FAMILY_QWEN3)
        c->head_dim = 128; /* its configuration's default */
    else if (c->hidden % c->n_heads == 0)
        c->head_dim = c->hidden / c->n_heads;
    OL_TRY(ol_json_int(p->root, p->file, "head_dim", 2, OL_MAX_HEAD_DIM, &c->head_dim, p->err));
    OL_TRY(ol_json_double(p->root, p->file, "rms_norm_eps", &eps, p->err));
    c->norm_eps = (float)eps;
    return OL_OK;
}

/* Fields that other families, forks or quantisers use to change what is computed. */
static ol_code refuse_unsupported(const parse *p)
{
    static const char *const fields[] = {"quantization_config",
                                         "compression_config",
                                         "attn_logit_softcapping",
                                         "final_logit_softcapping",
                                         "logit_scale",
                                         "logits_scaling",
                                         "embedding_multiplier",
                                         "residual_multiplier",
                                         "attention_multiplier",
                                         "clip_qkv",
                                         "num_experts",
                                         "num_local_experts",
                                         "no_rope_layers",
                                         "attention_chunk_size",
                                         "alibi",
                                         "use_parallel_residual",
                                         "is_encoder_decoder",
                                         "add_cross_attention"};

    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
        if (!ol_json_is_off(json_object_get(p->root, fields[i]))) {
            refuse(p, fields[i], "is not supported");
            return ol_hint(p->err, "It would change results, so it is not ignored.");
        }
    return OL_OK;
}

static ol_code read_flags(parse *p)
{
    ol_model_config *c = p->c;
    bool bias = c->family == OL_FAMILY_QWEN2;
    const char *act = text_of(p->root, "hidden_act");

    if (*act && strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0) {
        ol_fail(p->err, OL_UNSUPPORTED, "\"%s\": hidden_act \"%.60s\" is not supported", p->file,
                act);
        return ol_detail(p->err, "Supported is silu.");
    }
    OL_TRY(refuse_unsupported(p));
    if (c->family == OL_FAMILY_LLAMA || c->family == OL_FAMILY_QWEN3)
        OL_TRY(ol_json_bool(p->root, p->file, "attention_bias", &bias, p->err));
    c->qkv_bias = bias;
    c->o_bias = bias && c->family != OL_FAMILY_QWEN2;
    if (c->family == OL_FAMILY_LLAMA)
        OL_TRY(ol_json_bool(p->root, p->file, "mlp_bias", &c->mlp_bias, p->err));
    c->qk_norm = c->family == OL_FAMILY_QWEN3;
    return ol_json_bool(p->root, p->file, "tie_word_embeddings", &c->tie_embeddings, p->err);
}

static ol_code read_config(parse *p)
{
    OL_TRY(read_family(p));
    OL_TRY(read_sizes(p));
    OL_TRY(read_flags(p));
    OL_TRY(read_rope(p));
    OL_TRY(read_windows(p));
    OL_TRY(read_token_ids(p));
    return ol_model_config_check(p->c, p->file, p->err);
}

ol_code ol_hfconfig_parse(const char *text, size_t len, const char *file, ol_model_config *config,
                          ol_error *err)
{
    parse p = {.file = file, .c = config, .err = err};
    json_t *root;
    ol_code code;

    memset(config, 0, sizeof(*config));
    config->bos = -1;
    OL_TRY(ol_json_object(text, len, file, &root, err));
    p.root = root;
    code = read_config(&p);
    json_decref(root);
    return code;
}

static ol_code read_generation(parse *p)
{
    ol_generation_defaults *g = &p->c->generation;

    OL_TRY(read_token_ids(p));
    g->has_temperature = json_is_number(json_object_get(p->root, "temperature"));
    g->has_top_p = json_is_number(json_object_get(p->root, "top_p"));
    g->has_top_k = json_is_integer(json_object_get(p->root, "top_k"));
    g->has_do_sample = json_is_boolean(json_object_get(p->root, "do_sample"));
    g->has_repetition_penalty = json_is_number(json_object_get(p->root, "repetition_penalty"));
    OL_TRY(ol_json_double(p->root, p->file, "temperature", &g->temperature, p->err));
    OL_TRY(ol_json_double(p->root, p->file, "top_p", &g->top_p, p->err));
    OL_TRY(ol_json_double(p->root, p->file, "repetition_penalty", &g->repetition_penalty, p->err));
    OL_TRY(ol_json_int(p->root, p->file, "top_k", INT32_MIN, INT32_MAX, &g->top_k, p->err));
    return ol_json_bool(p->root, p->file, "do_sample", &g->do_sample, p->err);
}

ol_code ol_hfconfig_generation(const char *text, size_t len, const char *file,
                               ol_model_config *config, ol_error *err)
{
    parse p = {.file = file, .c = config, .err = err};
    json_t *root;
    ol_code code;

    OL_TRY(ol_json_object(text, len, file, &root, err));
    p.root = root;
    code = read_generation(&p);
    json_decref(root);
    return code;
}
