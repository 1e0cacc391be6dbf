/*
 * peft_config.c: see peft_config.h. Semantics follow peft's LoraConfig,
 * tuners_utils.check_target_module_exists and utils.get_pattern_key.
 */
#include "engine/formats/peft_config.h"

#include "engine/formats/json.h"

#include <math.h>
#include <string.h>

#define FILE_NAME "adapter_config.json"

/* Matches of all modules together may take about this many steps. */
#define WORK_TOTAL 20000000u
#define WORK_LEAST 2000u
#define WORK_MOST 100000u

typedef struct parse {
    const json_t *root;
    ol_peft_config *c;
    ol_arena *arena;
    ol_error *err;
    size_t n_regexes;
} parse;

static ol_code wrong(const parse *p, const char *field, const char *what)
{
    return ol_fail(p->err, OL_CORRUPT, "\"" FILE_NAME "\": %s %s", field, what);
}

static ol_code make_pattern(parse *p, ol_pattern *pattern, ol_match_kind kind, const char *field,
                            const char *text, size_t len)
{
    *pattern = (ol_pattern){.kind = kind, .field = field};
    OL_TRY(ol_pattern_make(pattern, text, len, p->arena, p->err));
    if (pattern->code && ++p->n_regexes > OL_PEFT_MAX_REGEXES) {
        ol_pattern_free(pattern);
        ol_fail(p->err, OL_LIMIT, "\"" FILE_NAME "\": %s: too many regular expressions", field);
        return ol_detail(p->err, "At most %d are taken; plain names do not count.",
                         OL_PEFT_MAX_REGEXES);
    }
    return OL_OK;
}

/* -- which modules ------------------------------------------------------------------- */

static ol_code read_names(parse *p, const char *field, const json_t *list, ol_peft_selection *s)
{
    size_t n = json_array_size(list);

    if (n > OL_PEFT_MAX_NAMES)
        return ol_fail(p->err, OL_LIMIT, "\"" FILE_NAME "\": %s has %zu entries", field, n);
    s->names = ol_arena_array(p->arena, n + 1, sizeof(*s->names));
    if (!s->names)
        return ol_fail_nomem(p->err, n * sizeof(*s->names), field);
    for (size_t i = 0; i < n; i++) {
        const char *name = json_string_value(json_array_get(list, i));

        if (!name || !*name)
            return wrong(p, field, "holds something else than names");
        s->names[i] = ol_arena_strdup(p->arena, name);
        if (!s->names[i])
            return ol_fail_nomem(p->err, strlen(name), field);
        s->n_names = i + 1;
    }
    return OL_OK;
}

static ol_code read_selection(parse *p, const char *field, ol_peft_selection *s)
{
    const json_t *value = json_object_get(p->root, field);

    if (!value || json_is_null(value))
        return OL_OK;
    s->present = true;
    if (json_is_array(value))
        return read_names(p, field, value, s);
    if (!json_is_string(value))
        return wrong(p, field, "is neither a list of names nor a regular expression");
    s->is_pattern = true;
    return make_pattern(p, &s->pattern, OL_MATCH_FULL, field, json_string_value(value),
                        json_string_length(value));
}

static ol_code read_targets(parse *p)
{
    const char *text = json_string_value(json_object_get(p->root, "target_modules"));

    if (text && strcasecmp(text, "all-linear") == 0)
        p->c->all_linear = p->c->targets.present = true;
    else
        OL_TRY(read_selection(p, "target_modules", &p->c->targets));
    if (!p->c->targets.present)
        return wrong(p, "target_modules", "is missing");
    OL_TRY(read_selection(p, "exclude_modules", &p->c->excluded));
    if (p->c->excluded.is_pattern && !*p->c->excluded.pattern.text) { /* "" excludes nothing */
        ol_pattern_free(&p->c->excluded.pattern);
        p->c->excluded = (ol_peft_selection){0};
    }
    return OL_OK;
}

/* -- which layers ---------------------------------------------------------------------- */

static ol_code add_layer(parse *p, const json_t *number)
{
    if (!json_is_integer(number))
        return wrong(p, "layers_to_transform", "holds something else than layer numbers");
    if (json_integer_value(number) >= 0 && json_integer_value(number) < OL_MAX_LAYERS)
        p->c->layer_selected[json_integer_value(number)] = true;
    return OL_OK;
}

static ol_code read_layer_patterns(parse *p, const json_t *value)
{
    size_t n = json_is_array(value) ? json_array_size(value) : 1;

    if (ol_json_is_off(value))
        return OL_OK;
    if (!p->c->by_layer)
        return wrong(p, "layers_pattern", "is given without layers_to_transform");
    if (n > OL_PEFT_MAX_REGEXES)
        return ol_fail(p->err, OL_LIMIT, "\"" FILE_NAME "\": layers_pattern has %zu entries", n);
    p->c->layer_patterns = ol_arena_array(p->arena, n, sizeof(ol_pattern));
    if (!p->c->layer_patterns)
        return ol_fail_nomem(p->err, n * sizeof(ol_pattern), "layers_pattern");
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_is_array(value) ? json_array_get(value, i) : value;

        if (!json_is_string(item))
            return wrong(p, "layers_pattern", "holds something else than text");
        OL_TRY(make_pattern(p, &p->c->layer_patterns[i], OL_MATCH_LAYER, "layers_pattern",
                            json_string_value(item), json_string_length(item)));
        p->c->n_layer_patterns = i + 1;
    }
    return OL_OK;
}

static ol_code read_layers(parse *p)
{
    const json_t *layers = json_object_get(p->root, "layers_to_transform");
    bool as_text = p->c->all_linear || p->c->targets.is_pattern;

    if (layers && !json_is_null(layers)) {
        if (as_text)
            return wrong(p, "layers_to_transform", "needs target_modules to be a list");
        p->c->by_layer = !json_is_array(layers) || json_array_size(layers) > 0;
        if (json_array_size(layers) > OL_PEFT_MAX_NAMES)
            return wrong(p, "layers_to_transform", "is too long");
        if (!json_is_array(layers))
            OL_TRY(add_layer(p, layers));
        for (size_t i = 0; i < json_array_size(layers); i++)
            OL_TRY(add_layer(p, json_array_get(layers, i)));
    }
    return read_layer_patterns(p, json_object_get(p->root, "layers_pattern"));
}

/* -- ranks and alphas -------------------------------------------------------------------- */

static ol_code read_override(parse *p, const char *field, ol_peft_override *o)
{
    json_t *object = json_object_get(p->root, field);
    size_t n = json_object_size(object);
    const char *key;
    json_t *value;

    if (!object || json_is_null(object))
        return OL_OK;
    if (!json_is_object(object))
        return wrong(p, field, "is not an object");
    if (n > OL_PEFT_MAX_NAMES)
        return ol_fail(p->err, OL_LIMIT, "\"" FILE_NAME "\": %s has %zu entries", field, n);
    o->keys = ol_arena_array(p->arena, n + 1, sizeof(*o->keys));
    o->values = ol_arena_array(p->arena, n + 1, sizeof(*o->values));
    if (!o->keys || !o->values)
        return ol_fail_nomem(p->err, n * sizeof(*o->keys), field);
    json_object_foreach(object, key, value) /* in the order of the text */
    {
        if (!json_is_number(value))
            return wrong(p, field, "holds something else than numbers");
        OL_TRY(make_pattern(p, &o->keys[o->n], OL_MATCH_TAIL, field, key, strlen(key)));
        o->values[o->n++] = json_number_value(value);
    }
    return OL_OK;
}

static ol_code read_numbers(parse *p)
{
    p->c->rank = 8; /* LoraConfig's defaults */
    p->c->alpha = 8;
    OL_TRY(ol_json_int(p->root, FILE_NAME, "r", 1, OL_MAX_RANK, &p->c->rank, p->err));
    OL_TRY(ol_json_double(p->root, FILE_NAME, "lora_alpha", &p->c->alpha, p->err));
    OL_TRY(ol_json_bool(p->root, FILE_NAME, "use_rslora", &p->c->rslora, p->err));
    OL_TRY(read_override(p, "rank_pattern", &p->c->ranks));
    return read_override(p, "alpha_pattern", &p->c->alphas);
}

/* -- the rest ------------------------------------------------------------------------------ */

/* Read above or below, or without effect on a trained adapter. */
static const char *const harmless[] = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
    "velora_config",
};

static ol_code refuse_unknown(const parse *p)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)(uintptr_t)p->root, key, value)
    {
        bool known = ol_json_is_off(value);

        for (size_t i = 0; !known && i < sizeof(harmless) / sizeof(harmless[0]); i++)
            known = strcmp(key, harmless[i]) == 0;
        if (!known) {
            ol_fail(p->err, OL_UNSUPPORTED, "\"" FILE_NAME "\": %.100s is not supported", key);
            return ol_hint(p->err, "It would change results, so it is not ignored. If it does not, "
                                   "remove it or set it to null.");
        }
    }
    return OL_OK;
}

static ol_code expect_text(const parse *p, const char *field, const char *want, bool required)
{
    const json_t *value = json_object_get(p->root, field);
    const char *text = json_string_value(value);

    if ((!value || json_is_null(value)) && !required)
        return OL_OK;
    if (text && strcasecmp(text, want) == 0)
        return OL_OK;
    return ol_fail(p->err, OL_UNSUPPORTED, "\"" FILE_NAME "\": %s is \"%.60s\", not \"%s\"", field,
                   text ? text : "", want);
}

/* Some ways to initialise an adapter subtract its start from the base's weights, which
 * peft does again at every load: such adapters are no sum with the base as it is. */
static ol_code check_initialisation(const parse *p)
{
    static const char *const changing[] = {"pissa", "olora", "corda", "loftq", "lora_ga"};
    const char *how = json_string_value(json_object_get(p->root, "init_lora_weights"));

    for (size_t i = 0; how && i < sizeof(changing) / sizeof(changing[0]); i++)
        if (strncasecmp(how, changing[i], strlen(changing[i])) == 0) {
            ol_fail(p->err, OL_UNSUPPORTED,
                    "\"" FILE_NAME "\": init_lora_weights \"%.40s\" is not supported", how);
            ol_detail(p->err, "Such an adapter belongs to base weights that were changed when it "
                              "was initialised.");
            return ol_hint(p->err, "Convert it to plain LoRA when saving: save_pretrained(..., "
                                   "path_initial_model_for_weight_conversion=...).");
        }
    return OL_OK;
}

static ol_code read_config(parse *p)
{
    const char *base = json_string_value(json_object_get(p->root, "base_model_name_or_path"));

    OL_TRY(expect_text(p, "peft_type", "LORA", true));
    OL_TRY(expect_text(p, "task_type", "CAUSAL_LM", false));
    OL_TRY(expect_text(p, "bias", "none", false));
    OL_TRY(refuse_unknown(p));
    OL_TRY(check_initialisation(p));
    if (base && !(p->c->base_model = ol_arena_strdup(p->arena, base)))
        return ol_fail_nomem(p->err, strlen(base), FILE_NAME);
    OL_TRY(read_numbers(p));
    OL_TRY(read_targets(p));
    OL_TRY(read_layers(p));
    p->c->work = WORK_MOST;
    if (p->n_regexes && WORK_TOTAL / (p->n_regexes * 256) < WORK_MOST)
        p->c->work = (uint32_t)(WORK_TOTAL / (p->n_regexes * 256));
    if (p->c->work < WORK_LEAST)
        p->c->work = WORK_LEAST;
    return OL_OK;
}

ol_code ol_peft_config_read(const char *text, size_t len, ol_arena *arena, ol_peft_config *config,
                            ol_error *err)
{
    parse p = {.c = config, .arena = arena, .err = err};
    json_t *root;
    ol_code code;

    memset(config, 0, sizeof(*config));
    OL_TRY(ol_json_object(text, len, FILE_NAME, &root, err));
    p.root = root;
    code = read_config(&p);
    json_decref(root);
    if (code != OL_OK)
        ol_peft_config_free(config);
    return code;
}

void ol_peft_config_free(ol_peft_config *config)
{
    ol_pattern_free(&config->targets.pattern);
    ol_pattern_free(&config->excluded.pattern);
    for (size_t i = 0; i < config->n_layer_patterns; i++)
        ol_pattern_free(&config->layer_patterns[i]);
    for (size_t i = 0; i < config->ranks.n; i++)
        ol_pattern_free(&config->ranks.keys[i]);
    for (size_t i = 0; i < config->alphas.n; i++)
        ol_pattern_free(&config->alphas.keys[i]);
}
