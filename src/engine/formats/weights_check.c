/* weights_check.c: everything that is wrong with a model, before it is served. */
#include "engine/formats/weights_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct check {
    ol_report_fn report;
    void *context;
    ol_error *first;
    bool failed;
} check;

static void found(check *c, bool fatal, const ol_error *finding)
{
    if (fatal && !c->failed) {
        c->failed = true;
        *c->first = *finding;
    }
    if (c->report)
        c->report(c->context, fatal, finding);
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);

    return n >= m && strcmp(text + n - m, end) == 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

typedef char role_name[OL_SOURCE_NAME];

/* The names of all roles, sorted. */
static role_name *expected_names(const ol_model_source *src, size_t *n)
{
    size_t most = (size_t)OL_ROLE_COUNT * (size_t)src->config.n_layers;
    role_name *names = calloc(most, sizeof(*names));

    *n = 0;
    for (int role = 0; names && role < OL_ROLE_COUNT; role++) {
        int layers = ol_role_per_layer(role) ? src->config.n_layers : 1;

        if (role == OL_ROLE_HEAD && src->config.tie_embeddings)
            continue;
        for (int layer = 0; layer < layers && ol_role_present(&src->config, role); layer++)
            ol_source_name(src->kind, role, layer, names[(*n)++]);
    }
    if (names)
        qsort(names, *n, sizeof(*names), by_name);
    return names;
}

static bool expected(const role_name *names, size_t n, const char *name)
{
    role_name key;

    return snprintf(key, sizeof(key), "%s", name) < (int)sizeof(key) &&
           bsearch(key, names, n, sizeof(*names), by_name) != NULL;
}

/* Buffers that older checkpoints carry, and a stored copy of a tied head. */
static bool harmless(const ol_model_source *src, const char *name)
{
    return ends_with(name, "rotary_emb.inv_freq") ||
           (src->kind == OL_MODEL_GGUF && strcmp(name, "rope_freqs.weight") == 0) ||
           (strcmp(name, "lm_head.weight") == 0 && src->config.tie_embeddings);
}

static ol_code check_unexpected(const ol_model_source *src, check *c)
{
    size_t n;
    role_name *names = expected_names(src, &n);

    if (!names)
        return ol_fail_nomem(c->first, n, "tensor names");
    for (size_t i = 0; i < ol_source_count(src); i++) {
        const char *name = ol_source_at(src, i).name;
        ol_error finding;

        if (expected(names, n, name))
            continue;
        ol_fail(&finding, OL_UNSUPPORTED, "unexpected tensor \"%.200s\"", name);
        ol_detail(&finding, "A %s model with this configuration does not have it.",
                  ol_family_name(src->config.family));
        found(c, !harmless(src, name), &finding);
    }
    free(names);
    return OL_OK;
}

ol_code ol_model_source_check(ol_model_source *src, ol_report_fn report, void *context,
                              ol_error *err)
{
    check c = {report, context, err, false};

    for (int role = 0; role < OL_ROLE_COUNT; role++) {
        int layers = ol_role_per_layer(role) ? src->config.n_layers : 1;

        for (int layer = 0; layer < layers && ol_role_present(&src->config, role); layer++) {
            ol_tensor t;
            ol_error finding;

            if (ol_source_find(src, role, layer, &t, &finding) != OL_OK)
                found(&c, true, &finding);
        }
    }
    OL_TRY(check_unexpected(src, &c));
    return c.failed ? err->code : OL_OK;
}
