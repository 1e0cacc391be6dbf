/* merge.c: see merge.h. Module by module: which parents have it, and how they are joined. */
#include "merge/merge_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const ol_merge_method methods[] = {
    {"linear", OL_PRUNE_NONE, false, OL_MERGE_FACTORS},
    {"cat", OL_PRUNE_NONE, false, OL_MERGE_CAT},
    {"svd", OL_PRUNE_NONE, false, OL_MERGE_PRODUCT},
    {"ties", OL_PRUNE_MAGNITUDE, true, OL_MERGE_FACTORS},
    {"ties_svd", OL_PRUNE_MAGNITUDE, true, OL_MERGE_PRODUCT},
    {"dare_linear", OL_PRUNE_RANDOM, false, OL_MERGE_FACTORS},
    {"dare_linear_svd", OL_PRUNE_RANDOM, false, OL_MERGE_PRODUCT},
    {"dare_ties", OL_PRUNE_RANDOM, true, OL_MERGE_FACTORS},
    {"dare_ties_svd", OL_PRUNE_RANDOM, true, OL_MERGE_PRODUCT},
    {"magnitude_prune", OL_PRUNE_MAGNITUDE, false, OL_MERGE_FACTORS},
    {"magnitude_prune_svd", OL_PRUNE_MAGNITUDE, false, OL_MERGE_PRODUCT},
};

const ol_merge_method *ol_merge_method_named(const char *name)
{
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++)
        if (strcmp(methods[i].name, name) == 0)
            return &methods[i];
    return NULL;
}

/* The parents that have one module. */
typedef struct parts {
    int n;
    const char *names[OL_MERGE_MAX_PARENTS];
    double weights[OL_MERGE_MAX_PARENTS]; /* times the module's scale */
    double plain_weights[OL_MERGE_MAX_PARENTS], scales[OL_MERGE_MAX_PARENTS];
    int ranks[OL_MERGE_MAX_PARENTS];
    float *a[OL_MERGE_MAX_PARENTS], *b[OL_MERGE_MAX_PARENTS];
} parts;

static void free_parts(parts *p)
{
    for (int i = 0; i < p->n; i++) {
        free(p->a[i]);
        free(p->b[i]);
    }
}

static float *plain(const ol_tensor *t)
{
    size_t n = (size_t)t->shape[0] * (size_t)t->shape[1];
    float *values = malloc(n * sizeof(*values) + 1);

    if (values)
        ol_dequantize(t->dtype, t->data, values, n);
    return values;
}

static const ol_lora_module *find(const ol_adapter_file *file, int layer, ol_module module)
{
    for (int i = 0; i < file->n_modules; i++)
        if (file->modules[i].layer == layer && file->modules[i].module == module)
            return &file->modules[i];
    return NULL;
}

static ol_code check_part(const merged *m, const parts *p, const ol_merge_parent *parent,
                          const ol_lora_module *l, bool same_rank, ol_error *err)
{
    if (p->n == 0 || (l->a.shape[1] == m->in && l->b.shape[0] == m->out &&
                      (!same_rank || l->rank == p->ranks[0])))
        return OL_OK;
    ol_fail(err, OL_MISMATCH, "layer %d's %s of \"%s\" is not like that of \"%s\"", m->layer,
            ol_module_name(m->module), parent->name, p->names[0]);
    ol_detail(err, "%lld x %lld of rank %d, and %lld x %lld of rank %d.", (long long)l->b.shape[0],
              (long long)l->a.shape[1], l->rank, (long long)m->out, (long long)m->in, p->ranks[0]);
    return same_rank && l->a.shape[1] == m->in && l->b.shape[0] == m->out
               ? ol_hint(err, "Ranks may differ with cat and the methods that end in svd.")
               : ol_hint(err, "They are of different base models.");
}

static ol_code gather(const ol_merge_parent *parents, int n, bool same_rank, merged *m, parts *p,
                      ol_error *err)
{
    for (int i = 0; i < n; i++) {
        const ol_lora_module *l = find(parents[i].file, m->layer, m->module);

        if (!l)
            continue;
        OL_TRY(check_part(m, p, &parents[i], l, same_rank, err));
        m->in = l->a.shape[1];
        m->out = l->b.shape[0];
        p->names[p->n] = parents[i].name;
        p->weights[p->n] = parents[i].weight * (double)l->scale;
        p->plain_weights[p->n] = parents[i].weight;
        p->scales[p->n] = (double)l->scale;
        p->ranks[p->n] = l->rank;
        p->a[p->n] = plain(&l->a);
        p->b[p->n] = plain(&l->b);
        p->n++;
        if (!p->a[p->n - 1] || !p->b[p->n - 1])
            return ol_fail_nomem(err, l->a.bytes + l->b.bytes, "an adapter's module");
    }
    return OL_OK;
}

static float *make(int64_t rows, int64_t cols)
{
    return calloc((size_t)rows * (size_t)cols + 1, sizeof(float));
}

/* -- the three forms ------------------------------------------------------------------- */

/* A weight is divided among both factors by its root; its sign is A's. */
static ol_code merge_factors(const ol_merge_options *o, parts *p, uint64_t key, merged *m,
                             ol_error *err)
{
    double a_weights[OL_MERGE_MAX_PARENTS], b_weights[OL_MERGE_MAX_PARENTS];
    combination c = {.options = o, .n = p->n};

    m->rank = p->ranks[0];
    m->a = make(m->rank, m->in);
    m->b = make(m->out, m->rank);
    if (!m->a || !m->b)
        return ol_fail_nomem(err, 0, "a merged module");
    for (int i = 0; i < p->n; i++) {
        b_weights[i] = sqrt(fabs(p->weights[i]));
        a_weights[i] = p->weights[i] < 0 ? -b_weights[i] : b_weights[i];
    }
    c.values = (const float *const *)p->a;
    c.weights = a_weights;
    c.count = (size_t)m->rank * (size_t)m->in;
    c.key = 2 * key;
    OL_TRY(merge_combine(&c, m->a, err));
    c.values = (const float *const *)p->b;
    c.weights = b_weights;
    c.count = (size_t)m->rank * (size_t)m->out;
    c.key = 2 * key + 1;
    return merge_combine(&c, m->b, err);
}

static ol_code put_beside(const parts *p, merged *m, ol_error *err)
{
    int at = 0;

    m->a = make(m->rank, m->in);
    m->b = make(m->out, m->rank);
    if (!m->a || !m->b)
        return ol_fail_nomem(err, 0, "a merged module");
    for (int i = 0; i < p->n; at += p->ranks[i++]) {
        for (int64_t k = 0; k < (int64_t)p->ranks[i] * m->in; k++)
            m->a[(int64_t)at * m->in + k] = (float)(p->a[i][k] * p->weights[i]);
        for (int64_t row = 0; row < m->out; row++)
            memcpy(m->b + row * m->rank + at, p->b[i] + row * p->ranks[i],
                   sizeof(float) * (size_t)p->ranks[i]);
    }
    return OL_OK;
}

static ol_code check_rank(const merged *m, ol_error *err)
{
    if (m->rank <= OL_MAX_RANK)
        return OL_OK;
    ol_fail(err, OL_LIMIT, "the merged rank would be %d; at most %d may be", m->rank, OL_MAX_RANK);
    return ol_hint(err, "Use svd, with a rank.");
}

static int sum_of_ranks(const parts *p)
{
    int sum = 0;

    for (int i = 0; i < p->n; i++)
        sum += p->ranks[i];
    return sum;
}

/* delta = scale * B A, {out, in}: signs are elected among scaled products. */
static void multiply(const float *b, const float *a, int rank, double scale, const merged *m,
                     float *delta)
{
    for (int64_t i = 0; i < m->out; i++) {
        float *row = delta + i * m->in;

        memset(row, 0, sizeof(float) * (size_t)m->in);
        for (int r = 0; r < rank; r++) {
            float f = (float)(scale * b[i * rank + r]);
            const float *from = a + (int64_t)r * m->in;

            for (int64_t k = 0; k < m->in; k++)
                row[k] += f * from[k];
        }
    }
}

static ol_code merge_dense(const ol_merge_options *o, const parts *p, uint64_t key, merged *m,
                           ol_error *err)
{
    float *deltas[OL_MERGE_MAX_PARENTS + 1] = {0};
    ol_code code = OL_OK;
    combination c = {.options = o,
                     .n = p->n,
                     .values = (const float *const *)deltas,
                     .weights = p->plain_weights,
                     .count = (size_t)m->in * (size_t)m->out,
                     .key = 2 * key};

    for (int i = 0; i <= p->n && code == OL_OK; i++) {
        deltas[i] = make(m->out, m->in);
        if (!deltas[i])
            code = ol_fail_nomem(err, c.count * sizeof(float), "a product");
        else if (i < p->n)
            multiply(p->b[i], p->a[i], p->ranks[i], p->scales[i], m, deltas[i]);
    }
    if (code == OL_OK)
        code = merge_combine(&c, deltas[p->n], err);
    if (code == OL_OK)
        code = merge_decompose(deltas[p->n], m, err);
    for (int i = 0; i <= p->n; i++)
        free(deltas[i]);
    return code;
}

/* A sum of products that is not pruned has no more than the ranks' sum. */
static ol_code merge_sum(const parts *p, merged *m, ol_error *err)
{
    merged beside = *m;
    ol_code code;

    beside.rank = sum_of_ranks(p);
    beside.a = beside.b = NULL;
    code = put_beside(p, &beside, err);
    if (code == OL_OK)
        code = merge_decompose_product(beside.b, beside.a, beside.rank, m, err);
    free(beside.a);
    free(beside.b);
    return code;
}

static ol_code merge_products(const ol_merge_options *o, const parts *p, uint64_t key, int most,
                              merged *m, ol_error *err)
{
    int64_t limit = m->in < m->out ? m->in : m->out;
    bool thin = !o->method->ties && (o->method->prune == OL_PRUNE_NONE || o->density >= 1) &&
                sum_of_ranks(p) < limit;

    m->rank = o->rank ? o->rank : most;
    OL_TRY(check_rank(m, err));
    if (m->rank > limit)
        m->rank = (int)limit;
    OL_TRY(thin ? merge_sum(p, m, err) : merge_dense(o, p, key, m, err));
    return o->clamp > 0 ? merge_clamp(m, o->clamp, err) : OL_OK;
}

static ol_code merge_module(const ol_merge_options *o, parts *p, int most, merged *m, ol_error *err)
{
    uint64_t key = (uint64_t)m->layer * OL_MODULES + (uint64_t)m->module;

    if (o->method->form == OL_MERGE_FACTORS)
        return merge_factors(o, p, key, m, err);
    if (o->method->form == OL_MERGE_PRODUCT)
        return merge_products(o, p, key, most, m, err);
    m->rank = sum_of_ranks(p);
    OL_TRY(check_rank(m, err));
    return put_beside(p, m, err);
}

/* -- all --------------------------------------------------------------------------------- */

static ol_code check(const ol_merge_options *o, const ol_merge_parent *parents, int n,
                     ol_error *err)
{
    if (n < 1 || n > OL_MERGE_MAX_PARENTS)
        return ol_fail(err, OL_INVALID, "1 to %d adapters can be merged, not %d",
                       OL_MERGE_MAX_PARENTS, n);
    for (int i = 0; i < n; i++) {
        if (!isfinite(parents[i].weight))
            return ol_fail(err, OL_INVALID, "the weight of \"%s\" is not finite", parents[i].name);
        if (parents[i].file->format != OL_ADAPTER_PEFT) {
            ol_fail(err, OL_UNSUPPORTED, "\"%s\" is a GGUF adapter", parents[i].name);
            return ol_hint(err, "Only adapters in PEFT's form are merged.");
        }
    }
    if (o->method->prune != OL_PRUNE_NONE && !(o->density >= 0 && o->density <= 1)) {
        ol_fail(err, OL_INVALID, "%s needs a density from 0 to 1", o->method->name);
        return ol_hint(err, "It is the part of the values that is kept.");
    }
    if (!(o->clamp >= 0 && o->clamp <= 1))
        return ol_fail(err, OL_INVALID, "svd_clamp is a quantile, above 0 and at most 1");
    if (o->rank < 0 || o->rank > OL_MAX_RANK)
        return ol_fail(err, OL_INVALID, "a rank is from 1 to %d", OL_MAX_RANK);
    return OL_OK;
}

/* Which modules any parent has, in order; how many. */
static int list_modules(const ol_merge_parent *parents, int n, merged *list)
{
    int n_modules = 0, layers = 0;

    for (int i = 0; i < n; i++)
        layers = parents[i].file->n_layers > layers ? parents[i].file->n_layers : layers;
    for (int layer = 0; layer < layers; layer++)
        for (int module = 0; module < OL_MODULES; module++)
            for (int i = 0; i < n; i++)
                if (find(parents[i].file, layer, (ol_module)module)) {
                    list[n_modules++] = (merged){.layer = layer, .module = (ol_module)module};
                    break;
                }
    return n_modules;
}

static ol_code merge_all(const ol_merge_options *o, const ol_merge_parent *parents, int n,
                         merged *list, int n_modules, ol_error *err)
{
    int most = 0;

    for (int i = 0; i < n; i++)
        most = parents[i].file->max_rank > most ? parents[i].file->max_rank : most;
    for (int i = 0; i < n_modules; i++) {
        parts p = {0};
        ol_code code = gather(parents, n, o->method->form == OL_MERGE_FACTORS, &list[i], &p, err);

        if (code == OL_OK)
            code = merge_module(o, &p, most, &list[i], err);
        free_parts(&p);
        if (code != OL_OK)
            return code;
        if (o->progress)
            o->progress(o->context, (size_t)i + 1, (size_t)n_modules);
    }
    return OL_OK;
}

ol_code ol_merge(const ol_merge_options *options, const ol_merge_parent *parents, int n,
                 ol_buf *weights, ol_buf *config, ol_error *err)
{
    merged *list;
    int n_modules;
    ol_code code;

    OL_TRY(check(options, parents, n, err));
    list = calloc((size_t)OL_MAX_LAYERS * OL_MODULES, sizeof(*list));
    if (!list)
        return ol_fail_nomem(err, 0, "a list of modules");
    n_modules = list_modules(parents, n, list);
    code = merge_all(options, parents, n, list, n_modules, err);
    if (code == OL_OK)
        code = merge_write(list, n_modules, options->dtype, weights, config, err);
    for (int i = 0; i < n_modules; i++) {
        free(list[i].a);
        free(list[i].b);
    }
    free(list);
    return code;
}
