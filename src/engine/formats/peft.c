/*
 * peft.c: PEFT's adapter_config.json and adapter_model.safetensors.
 *
 * Semantics follow peft: which modules are targeted (peft.tuners.tuners_utils
 * check_target_module_exists), which rank and alpha apply (rank_pattern,
 * alpha_pattern: get_pattern_key), and the scale, alpha / r or alpha / sqrt(r).
 */
#define PCRE2_CODE_UNIT_WIDTH 8

#include "engine/formats/adapter_parse.h"
#include "engine/formats/json.h"
#include "engine/formats/safetensors.h"

#include <math.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_NAME "adapter_config.json"

/* -- fields ---------------------------------------------------------------------------------- */

/* What we read, and what says nothing about results once an adapter is trained. */
static const char *const understood[] = {"peft_type",
                                         "r",
                                         "lora_alpha",
                                         "use_rslora",
                                         "rank_pattern",
                                         "alpha_pattern",
                                         "target_modules",
                                         "exclude_modules",
                                         "layers_to_transform",
                                         "layers_pattern",
                                         "task_type",
                                         "base_model_name_or_path",
                                         "bias",
                                         "inference_mode",
                                         "lora_dropout",
                                         "init_lora_weights",
                                         "auto_mapping",
                                         "revision",
                                         "peft_version",
                                         "loftq_config",
                                         "eva_config",
                                         "corda_config",
                                         "lora_ga_config",
                                         "runtime_config",
                                         "megatron_core",
                                         "ensure_weight_tying"};

static bool is_understood(const char *key)
{
    for (size_t i = 0; i < sizeof(understood) / sizeof(understood[0]); i++)
        if (strcmp(key, understood[i]) == 0)
            return true;
    return false;
}

static ol_code refuse_rest(const json_t *config, ol_error *err)
{
    const json_t *bias = json_object_get(config, "bias");
    const char *type = json_string_value(json_object_get(config, "peft_type"));
    const char *task = json_string_value(json_object_get(config, "task_type"));
    const char *key;
    json_t *value;

    if (!type || strcmp(type, "LORA") != 0)
        return ol_fail(err, OL_UNSUPPORTED, "adapter config: peft_type is \"%s\", not \"LORA\"",
                       type ? type : "");
    if (task && strcmp(task, "CAUSAL_LM") != 0)
        return ol_fail(err, OL_UNSUPPORTED,
                       "adapter config: task_type is \"%s\", not \"CAUSAL_LM\"", task);
    if (json_is_string(bias) && strcmp(json_string_value(bias), "none") != 0)
        return ol_fail(err, OL_UNSUPPORTED, "adapter config: bias = \"%s\" is not supported",
                       json_string_value(bias));
    json_object_foreach((json_t *)(uintptr_t)config, key,
                        value) if (!is_understood(key) && !ol_json_is_off(value))
    {
        ol_fail(err, OL_UNSUPPORTED, "adapter config: %s is not supported", key);
        return ol_hint(err, "It would change results, so it is not ignored.");
    }
    return OL_OK;
}

/* -- regular expressions ----------------------------------------------------------------------- */

/* Whether `pattern` matches all of `text`; -1 when it is no valid pattern. */
static int full_match(const char *pattern, const char *text)
{
    int code;
    PCRE2_SIZE at;
    pcre2_code *re =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                      PCRE2_ANCHORED | PCRE2_ENDANCHORED | PCRE2_UTF, &code, &at, NULL);
    pcre2_match_data *data = re ? pcre2_match_data_create(1, NULL) : NULL;
    pcre2_match_context *limits = re ? pcre2_match_context_create(NULL) : NULL;
    int result = -1;

    if (data && limits) {
        pcre2_set_match_limit(limits, 100000);
        pcre2_set_depth_limit(limits, 1000);
        code = pcre2_match(re, (PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, 0, 0, data, limits);
        result = code >= 0 ? 1 : code == PCRE2_ERROR_NOMATCH ? 0 : -1;
    }
    pcre2_match_context_free(limits);
    pcre2_match_data_free(data);
    pcre2_code_free(re);
    return result;
}

static ol_code bad_pattern(const char *key, const char *pattern, ol_error *err)
{
    return ol_fail(err, OL_INVALID,
                   "adapter config: %s holds a regular expression that cannot be used: %.100s", key,
                   pattern);
}

/* peft's names: "model.layers.3.self_attn.q_proj". */
static void full_name(int layer, ol_module module, char out[128])
{
    snprintf(out, 128, "model.layers.%d.%s.%s", layer,
             ol_module_in_attention(module) ? "self_attn" : "mlp", ol_module_name(module));
}

/* -- which modules
 * --------------------------------------------------------------------------------- */

static bool names_suffix(const char *name, const char *key)
{
    size_t n = strlen(name), k = strlen(key);

    return k <= n && strcmp(name + n - k, key) == 0 && (k == n || name[n - k - 1] == '.');
}

/* A list of names, or one regular expression. */
static ol_code in_selection(const json_t *selection, const char *key, const char *name, bool *in,
                            ol_error *err)
{
    *in = false;
    if (json_is_string(selection)) {
        int match = full_match(json_string_value(selection), name);

        if (match < 0)
            return bad_pattern(key, json_string_value(selection), err);
        *in = match == 1;
        return OL_OK;
    }
    for (size_t i = 0; i < json_array_size(selection); i++) {
        const char *item = json_string_value(json_array_get(selection, i));

        if (item && names_suffix(name, item))
            *in = true;
    }
    return OL_OK;
}

static bool layer_selected(const json_t *layers, int layer)
{
    if (!layers || json_is_null(layers))
        return true;
    if (json_is_integer(layers))
        return json_integer_value(layers) == layer;
    for (size_t i = 0; i < json_array_size(layers); i++)
        if (json_integer_value(json_array_get(layers, i)) == layer)
            return true;
    return json_is_array(layers) && json_array_size(layers) == 0;
}

static ol_code is_targeted(const json_t *config, int layer, ol_module module, bool *targeted,
                           ol_error *err)
{
    const json_t *targets = json_object_get(config, "target_modules");
    const json_t *excluded = json_object_get(config, "exclude_modules");
    const char *all = json_string_value(targets);
    char name[128];
    bool out = false;

    full_name(layer, module, name);
    if (excluded && !json_is_null(excluded))
        OL_TRY(in_selection(excluded, "exclude_modules", name, &out, err));
    if (all && strcmp(all, "all-linear") == 0)
        *targeted = true;
    else
        OL_TRY(in_selection(targets, "target_modules", name, targeted, err));
    *targeted =
        *targeted && !out && layer_selected(json_object_get(config, "layers_to_transform"), layer);
    return OL_OK;
}

/* Names in target_modules that mean something else than a linear module of a layer. */
static ol_code check_targets(const json_t *config, ol_error *err)
{
    const json_t *targets = json_object_get(config, "target_modules");
    const json_t *layers = json_object_get(config, "layers_pattern");
    const char *pattern =
        json_string_value(json_is_array(layers) ? json_array_get(layers, 0) : layers);

    if (!json_is_string(targets) && !json_is_array(targets))
        return ol_fail(err, OL_CORRUPT, "adapter config: target_modules is missing");
    if (pattern && *pattern && strcmp(pattern, "layers") != 0)
        return ol_fail(err, OL_UNSUPPORTED,
                       "adapter config: layers_pattern is \"%.40s\", not \"layers\"", pattern);
    for (size_t i = 0; i < json_array_size(targets); i++) {
        const char *item = json_string_value(json_array_get(targets, i));
        bool known = false;
        char name[128];

        for (int m = 0; item && m < OL_MODULES; m++) {
            full_name(0, (ol_module)m, name);
            known |= names_suffix(name, item) || names_suffix(item, ol_module_name((ol_module)m));
        }
        if (!known) {
            ol_fail(err, OL_UNSUPPORTED, "adapter config: target_modules names \"%.60s\"",
                    item ? item : "");
            return ol_detail(err, "Adapted can be q_proj, k_proj, v_proj, o_proj, gate_proj, "
                                  "up_proj and down_proj.");
        }
    }
    return OL_OK;
}

/* -- rank and alpha
 * ----------------------------------------------------------------------------------- */

/* The value of the first key of the pattern object that ends the module's name. */
static ol_code pattern_value(const json_t *config, const char *which, const char *name,
                             double *value, ol_error *err)
{
    json_t *patterns = json_object_get(config, which);
    const char *key;
    json_t *v;

    if (patterns && !json_is_null(patterns) && !json_is_object(patterns))
        return ol_fail(err, OL_CORRUPT, "adapter config: %s is not an object", which);
    json_object_foreach(patterns, key, v)
    {
        char pattern[512];
        int match;

        if (!json_is_number(v) || strlen(key) > 400)
            return ol_fail(err, OL_CORRUPT, "adapter config: %s holds something else than numbers",
                           which);
        snprintf(pattern, sizeof(pattern), "(.*\\.)?(%s)", key);
        match = full_match(pattern, name);
        if (match < 0)
            return bad_pattern(which, key, err);
        if (match) {
            *value = json_number_value(v);
            return OL_OK;
        }
    }
    return OL_OK;
}

static ol_code rank_and_scale(const json_t *config, ol_lora_module *m, double *rank, ol_error *err)
{
    char name[128], where[64];
    double alpha = 8;
    bool rslora = false;

    *rank = 8; /* LoraConfig's defaults */
    full_name(m->layer, m->module, name);
    OL_TRY(ol_json_double(config, FILE_NAME, "r", rank, err));
    OL_TRY(ol_json_double(config, FILE_NAME, "lora_alpha", &alpha, err));
    OL_TRY(ol_json_bool(config, FILE_NAME, "use_rslora", &rslora, err));
    OL_TRY(pattern_value(config, "rank_pattern", name, rank, err));
    OL_TRY(pattern_value(config, "alpha_pattern", name, &alpha, err));
    if (!(*rank >= 1 && *rank <= OL_MAX_RANK) || *rank != floor(*rank)) {
        ol_fail(err, OL_LIMIT, "%s: rank %g is out of range", ol_draft_name(m, where), *rank);
        return ol_detail(err, "Ranks run from 1 to %d.", OL_MAX_RANK);
    }
    if (!(fabs(alpha) < 1e6))
        return ol_fail(err, OL_LIMIT, "%s: lora_alpha %g is out of range", ol_draft_name(m, where),
                       alpha);
    m->scale = (float)(alpha / (rslora ? sqrt(*rank) : *rank));
    return OL_OK;
}

/* -- tensors
 * ------------------------------------------------------------------------------------------- */

/* "base_model.model.model.layers.N.self_attn.q_proj.lora_A[.default].weight" */
static bool parse_name(const char *name, int *layer, ol_module *module, bool *is_b)
{
    static const char *const ends[] = {".lora_A.weight", ".lora_B.weight", ".lora_A.default.weight",
                                       ".lora_B.default.weight"};
    const char *at = strstr(name, "layers.");
    char *rest;
    long number;

    if (!at ||
        (strncmp(name, "base_model.model.model.layers.", 30) != 0 &&
         strncmp(name, "model.layers.", 13) != 0 && strncmp(name, "base_model.model.layers.", 24)))
        return false;
    number = strtol(at + 7, &rest, 10);
    if (rest == at + 7 || *rest != '.' || number < 0 || number >= OL_MAX_LAYERS)
        return false;
    for (int m = 0; m < OL_MODULES; m++)
        for (int e = 0; e < 4; e++) {
            char want[96];

            snprintf(want, sizeof(want), ".%s.%s%s",
                     ol_module_in_attention((ol_module)m) ? "self_attn" : "mlp",
                     ol_module_name((ol_module)m), ends[e]);
            if (strcmp(rest, want) == 0) {
                *layer = (int)number;
                *module = (ol_module)m;
                *is_b = e % 2;
                return true;
            }
        }
    return false;
}

static ol_code place_tensor(const ol_safetensors *st, const char *name, ol_adapter_draft *draft,
                            ol_error *err)
{
    ol_lora_module *m;
    ol_module module;
    int layer;
    bool is_b;
    ol_tensor t;

    if (!parse_name(name, &layer, &module, &is_b)) {
        ol_fail(err, OL_UNSUPPORTED,
                "adapter tensor \"%s\" is not a LoRA matrix of a linear module", name);
        return ol_detail(err, "Embeddings, heads, biases and DoRA magnitudes are not supported.");
    }
    if (layer >= draft->n_layers)
        return ol_fail(err, OL_MISMATCH, "adapter tensor \"%s\": the base model has %d layers",
                       name, draft->n_layers);
    OL_TRY(ol_safetensors_get(st, name, &t, err));
    m = ol_draft_module(draft, layer, module);
    if (is_b ? m->b.name != NULL : m->a.name != NULL)
        return ol_fail(err, OL_CORRUPT, "adapter tensor \"%s\" occurs in two spellings", name);
    *(is_b ? &m->b : &m->a) = t;
    (is_b ? &m->b : &m->a)->name = ol_arena_strdup(draft->arena, name);
    return (is_b ? m->b.name : m->a.name) ? OL_OK : ol_fail_nomem(err, strlen(name), "an adapter");
}

/* What the config targets and what the file holds must be the same. */
static ol_code settle(const json_t *config, ol_adapter_draft *draft, ol_error *err)
{
    for (int layer = 0; layer < draft->n_layers; layer++)
        for (int i = 0; i < OL_MODULES; i++) {
            ol_lora_module *m = ol_draft_module(draft, layer, (ol_module)i);
            bool there = m->a.name || m->b.name, targeted;
            char where[64];
            double rank;

            OL_TRY(is_targeted(config, layer, (ol_module)i, &targeted, err));
            if (there && !targeted)
                return ol_fail(err, OL_CORRUPT, "%s is in the file but not targeted by the config",
                               ol_draft_name(m, where));
            if (targeted && !there && draft->base)
                return ol_fail(err, OL_CORRUPT, "%s is targeted by the config but not in the file",
                               ol_draft_name(m, where));
            if (!there)
                continue;
            OL_TRY(rank_and_scale(config, m, &rank, err));
            m->rank = (int)rank;
        }
    return OL_OK;
}

static ol_code parse_with(const void *bytes, size_t len, const json_t *config,
                          ol_adapter_draft *draft, ol_error *err)
{
    const char *base = json_string_value(json_object_get(config, "base_model_name_or_path"));
    ol_safetensors *st;
    ol_code code = OL_OK;

    OL_TRY(refuse_rest(config, err));
    OL_TRY(check_targets(config, err));
    if (base)
        draft->base_model = ol_arena_strdup(draft->arena, base);
    OL_TRY(
        ol_safetensors_bytes(bytes, len, "adapter_model.safetensors", (size_t)16 << 20, &st, err));
    for (size_t i = 0; code == OL_OK && i < ol_safetensors_count(st); i++)
        code = place_tensor(st, ol_safetensors_at(st, i)->name, draft, err);
    ol_safetensors_close(st);
    OL_TRY(code);
    return settle(config, draft, err);
}

ol_code ol_peft_parse(const void *bytes, size_t len, const char *text, size_t text_len,
                      ol_adapter_draft *draft, ol_error *err)
{
    json_t *config;
    ol_code code;

    if (text_len == 0) {
        ol_fail(err, OL_INVALID, "the adapter has no config");
        return ol_hint(err, "Safetensors weights need PEFT's adapter_config.json.");
    }
    if (text_len > OL_MAX_ADAPTER_CONFIG)
        return ol_fail(err, OL_LIMIT, "the adapter's config is too large: %zu bytes", text_len);
    OL_TRY(ol_json_object(text, text_len, FILE_NAME, &config, err));
    code = parse_with(bytes, len, config, draft, err);
    json_decref(config);
    return code;
}
