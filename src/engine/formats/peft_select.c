/* peft_select.c: questions to a PEFT configuration: is this module targeted, and with
 * which rank and scale. */
#include "engine/formats/peft_config.h"

#include <math.h>
#include <string.h>

/* *exact: by its whole name. */
static ol_code selects(const ol_peft_config *c, const ol_peft_selection *s, const char *key,
                       bool *in, bool *exact, ol_error *err)
{
    *in = *exact = false;
    if (!s->present)
        return OL_OK;
    if (s->is_pattern)
        return ol_pattern_match(&s->pattern, key, c->work, in, NULL, err);
    for (size_t i = 0; i < s->n_names && !*exact; i++)
        *in |= ol_name_matches(s->names[i], key, exact);
    return OL_OK;
}

/* Without a pattern the layer is the first number between dots. */
static int first_number(const char *key)
{
    for (const char *dot = strchr(key, '.'); dot; dot = strchr(dot + 1, '.')) {
        int layer = 0, n = 1;

        for (; dot[n] >= '0' && dot[n] <= '9' && n < 8; n++)
            layer = layer * 10 + (dot[n] - '0');
        /* re: ".*?\.[^.]*\.(\d+)\." wants two dots before the number */
        if (n > 1 && dot[n] == '.' && dot != strchr(key, '.'))
            return layer;
    }
    return -1;
}

static ol_code layer_selected(const ol_peft_config *c, const char *key, bool *selected,
                              ol_error *err)
{
    int layer = -1;
    bool found = false;

    if (c->n_layer_patterns == 0)
        layer = first_number(key);
    for (size_t i = 0; i < c->n_layer_patterns && !found; i++)
        OL_TRY(ol_pattern_match(&c->layer_patterns[i], key, c->work, &found, &layer, err));
    *selected = layer >= 0 && layer < OL_MAX_LAYERS && c->layer_selected[layer];
    return OL_OK;
}

ol_code ol_peft_targets(const ol_peft_config *c, const char *key, bool *targeted, ol_error *err)
{
    bool exact;

    OL_TRY(selects(c, &c->excluded, key, targeted, &exact, err));
    if (*targeted) {
        *targeted = false;
        return OL_OK;
    }
    if (c->all_linear) { /* all but the head and the embedding */
        *targeted = strncmp(key, "model.layers.", 13) == 0;
        return OL_OK;
    }
    OL_TRY(selects(c, &c->targets, key, targeted, &exact, err));
    if (*targeted && !exact && c->by_layer)
        return layer_selected(c, key, targeted, err);
    return OL_OK;
}

static ol_code override(const ol_peft_config *c, const ol_peft_override *o, const char *key,
                        double *value, ol_error *err)
{
    for (size_t i = 0; i < o->n; i++) {
        bool matches;

        OL_TRY(ol_pattern_match(&o->keys[i], key, c->work, &matches, NULL, err));
        if (matches) {
            *value = o->values[i];
            return OL_OK;
        }
    }
    return OL_OK;
}

ol_code ol_peft_rank(const ol_peft_config *c, const char *key, int *rank, float *scale,
                     ol_error *err)
{
    double r = c->rank, alpha = c->alpha;

    OL_TRY(override(c, &c->ranks, key, &r, err));
    OL_TRY(override(c, &c->alphas, key, &alpha, err));
    if (!(r >= 1 && r <= OL_MAX_RANK) || r != floor(r)) {
        ol_fail(err, OL_LIMIT, "adapter module \"%s\" has rank %g", key, r);
        return ol_detail(err, "The rank must be a whole number from 1 to %d.", OL_MAX_RANK);
    }
    if (!(fabs(alpha) <= 1e6)) {
        ol_fail(err, OL_LIMIT, "adapter module \"%s\" has lora_alpha %g", key, alpha);
        return ol_detail(err, "It must be from -1000000 to 1000000.");
    }
    *rank = (int)r;
    *scale = (float)(alpha / (c->rslora ? sqrt(r) : r));
    return OL_OK;
}
