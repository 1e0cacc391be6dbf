/* test_merge.c: merged adapters against what peft makes (test/data/merge), what is random, and
 * what is refused. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/arena.h"
#include "merge/merge.h"

#define DATA "test/data/merge"

static ol_error err;
static ol_arena *arena;

typedef struct parent {
    ol_adapter_disk disk;
    ol_adapter_file file;
} parent;

static parent open_parent(const char *name)
{
    char path[256];
    parent p;

    snprintf(path, sizeof(path), "%s/%s", DATA, name);
    if (ol_adapter_read_path(path, NULL, arena, &p.disk, &p.file, &err) != OL_OK)
        fail_msg("%s", err.message);
    return p;
}

static int set_up(void **state)
{
    (void)state;
    arena = ol_arena_create();
    return arena ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    ol_arena_destroy(arena);
    return 0;
}

/* A merged adapter, read back. */
typedef struct result {
    ol_buf weights, config;
    ol_adapter_file file;
} result;

static void merge(const ol_merge_options *o, const ol_merge_parent *parents, int n, result *r)
{
    ol_adapter_bytes bytes;

    memset(r, 0, sizeof(*r));
    if (ol_merge(o, parents, n, &r->weights, &r->config, &err) != OL_OK)
        fail_msg("%s: %s", o->method->name, err.message);
    bytes =
        (ol_adapter_bytes){r->weights.data, r->weights.len, (char *)r->config.data, r->config.len};
    if (ol_adapter_file_parse(&bytes, NULL, arena, &r->file, &err) != OL_OK)
        fail_msg("%s: %s", o->method->name, err.message);
}

static void free_result(result *r)
{
    ol_buf_free(&r->weights);
    ol_buf_free(&r->config);
}

/* scale * B A. */
static double *delta_of(const ol_lora_module *m)
{
    int64_t out = m->b.shape[0], in = m->a.shape[1];
    const float *a = m->a.data, *b = m->b.data;
    double *delta = calloc((size_t)(out * in), sizeof(double));

    for (int64_t i = 0; i < out; i++)
        for (int r = 0; r < m->rank; r++)
            for (int64_t k = 0; k < in; k++)
                delta[i * in + k] += (double)m->scale * b[i * m->rank + r] * a[r * in + k];
    return delta;
}

/* -- vectors --------------------------------------------------------------------------- */

static void expect_module(const result *r, const char *key, const json_t *expected,
                          const char *what)
{
    const json_t *values = json_object_get(expected, "delta");
    const char *name = strchr(key, '.') + 1;
    double most = 0, worst = 0, *delta;

    for (int i = 0; i < r->file.n_modules; i++) {
        const ol_lora_module *m = &r->file.modules[i];

        if (strcmp(ol_module_name(m->module), name) != 0)
            continue;
        assert_int_equal(json_array_size(values), m->b.shape[0] * m->a.shape[1]);
        delta = delta_of(m);
        for (size_t k = 0; k < json_array_size(values); k++) {
            double v = json_number_value(json_array_get(values, k));

            most = fmax(most, fabs(v));
            worst = fmax(worst, fabs(v - delta[k]));
        }
        free(delta);
        if (!(worst <= 2e-5 * most))
            fail_msg("%s of %s: off by %g of %g", key, what, worst, most);
        return;
    }
    fail_msg("%s of %s is not there", key, what);
}

static void check_case(const json_t *c, const parent *parents)
{
    const char *method = json_string_value(json_object_get(c, "method")), *key;
    const json_t *density = json_object_get(c, "density"), *rank = json_object_get(c, "rank");
    json_t *names = json_object_get(c, "parents"), *modules = json_object_get(c, "modules"),
           *module;
    ol_merge_options o = {.method = ol_merge_method_named(method), .dtype = OL_F32};
    ol_merge_parent list[3];
    int n = (int)json_array_size(names);
    result r;

    assert_non_null(o.method);
    o.density = json_is_number(density) ? json_number_value(density) : NAN;
    o.rank = (int)json_integer_value(rank);
    o.sign_by_count = strcmp(json_string_value(json_object_get(c, "sign")), "frequency") == 0;
    for (int i = 0; i < n; i++) {
        const char *name = json_string_value(json_array_get(names, (size_t)i));

        list[i] = (ol_merge_parent){
            name, &parents[name[0] - 'a'].file,
            json_number_value(json_array_get(json_object_get(c, "weights"), (size_t)i))};
    }
    merge(&o, list, n, &r);
    assert_int_equal(r.file.n_modules, json_object_size(modules));
    json_object_foreach(modules, key, module)
    {
        expect_module(&r, key, module, method);
    }
    free_result(&r);
}

static void test_vectors(void **state)
{
    parent parents[3] = {open_parent("a"), open_parent("b"), open_parent("c")};
    json_t *cases = json_load_file(DATA "/vectors.json", 0, NULL);

    (void)state;
    assert_true(json_array_size(cases) > 40);
    for (size_t i = 0; i < json_array_size(cases); i++)
        check_case(json_array_get(cases, i), parents);
    json_decref(cases);
    for (int i = 0; i < 3; i++)
        ol_adapter_disk_close(&parents[i].disk);
}

/* -- what is random ------------------------------------------------------------------------ */

static void test_random(void **state)
{
    parent a = open_parent("a");
    ol_merge_parent list[] = {{"a", &a.file, 0.5}}; /* of scale 2: weight 1 */
    ol_merge_options o = {
        .method = ol_merge_method_named("dare_linear"), .density = 0.5, .dtype = OL_F32};
    int kept = 0, all = 0, other = 0;
    double ratio = 0;
    result one, two, three;

    (void)state;
    merge(&o, list, 1, &one);
    merge(&o, list, 1, &two);
    o.seed = 1;
    merge(&o, list, 1, &three);
    assert_memory_equal(one.weights.data, two.weights.data, one.weights.len);
    for (int m = 0; m < one.file.n_modules; m++) {
        const ol_tensor *from = &a.file.modules[m].a, *to = &one.file.modules[m].a;
        const ol_tensor *else_to = &three.file.modules[m].a;

        for (int64_t i = 0; i < from->shape[0] * from->shape[1]; i++) {
            float v = ((const float *)to->data)[i];

            all++;
            kept += v != 0;
            other += (v != 0) != (((const float *)else_to->data)[i] != 0);
            if (v != 0) /* what is kept is made larger by what is dropped */
                ratio = fmax(ratio, fabs(v / ((const float *)from->data)[i] - 2));
        }
    }
    assert_in_range(kept, all * 3 / 10, all * 7 / 10);
    assert_true(other > all / 5);
    assert_true(ratio < 1e-6);
    free_result(&one);
    free_result(&two);
    free_result(&three);
    ol_adapter_disk_close(&a.disk);
}

/* -- forms ------------------------------------------------------------------------------------ */

static void test_types_and_ranks(void **state)
{
    parent a = open_parent("a"), c = open_parent("c");
    ol_merge_parent list[] = {{"a", &a.file, 1}, {"c", &c.file, -1}};
    ol_merge_options o = {.method = ol_merge_method_named("cat"), .dtype = OL_BF16};
    result r;

    (void)state;
    merge(&o, list, 2, &r);
    assert_int_equal(r.file.modules[0].rank, 6); /* q_proj: both */
    assert_int_equal(r.file.modules[1].rank, 4); /* down_proj: a's alone */
    assert_true(r.file.modules[0].scale == 1 && r.file.modules[1].scale == 1);
    assert_int_equal(r.file.modules[0].a.dtype, OL_BF16);
    free_result(&r);
    o.method = ol_merge_method_named("svd");
    o.rank = 12; /* more than there is */
    merge(&o, list, 2, &r);
    assert_int_equal(r.file.modules[0].rank, 6);
    free_result(&r);
    ol_adapter_disk_close(&a.disk);
    ol_adapter_disk_close(&c.disk);
}

/* Values beyond the quantile come to it, on both sides; and what is below stays. */
static void test_clamp(void **state)
{
    parent a = open_parent("a");
    ol_merge_parent list[] = {{"a", &a.file, 1}};
    ol_merge_options o = {.method = ol_merge_method_named("svd"), .dtype = OL_F32, .clamp = 0.9};
    result free_one, clamped;

    (void)state;
    merge(&o, list, 1, &clamped);
    o.clamp = 0;
    merge(&o, list, 1, &free_one);
    for (int m = 0; m < clamped.file.n_modules; m++) {
        const ol_lora_module *from = &free_one.file.modules[m], *to = &clamped.file.modules[m];
        const ol_tensor *pairs[2][2] = {{&from->a, &to->a}, {&from->b, &to->b}};
        float limit = 0;
        int above = 0, all = 0;

        for (int i = 0; i < 2; i++)
            for (size_t k = 0; k < pairs[i][1]->bytes / 4; k++)
                limit = fmaxf(limit, fabsf(((const float *)pairs[i][1]->data)[k]));
        for (int i = 0; i < 2; i++)
            for (size_t k = 0; k < pairs[i][1]->bytes / 4; k++) {
                float was = ((const float *)pairs[i][0]->data)[k];

                assert_true(((const float *)pairs[i][1]->data)[k] ==
                            fmaxf(fminf(was, limit), -limit));
                above += was > limit;
                all++;
            }
        assert_in_range(above, all / 10 - 1, all / 10 + 1);
    }
    free_result(&free_one);
    free_result(&clamped);
    ol_adapter_disk_close(&a.disk);
}

/* |weight| |B A| over all modules. */
static void test_parts(void **state)
{
    parent a = open_parent("a"), c = open_parent("c");
    ol_merge_parent list[] = {{"a", &a.file, 1}, {"a", &a.file, -3}, {"c", &c.file, 0}};
    double parts[3], sum = 0;

    (void)state;
    assert_int_equal(ol_merge_parts(list, 3, parts, &err), OL_OK);
    for (int m = 0; m < a.file.n_modules; m++) {
        const ol_lora_module *l = &a.file.modules[m];
        const float *la = l->a.data, *lb = l->b.data;

        for (int64_t i = 0; i < l->b.shape[0]; i++)
            for (int64_t k = 0; k < l->a.shape[1]; k++) {
                double v = 0;

                for (int r = 0; r < l->rank; r++)
                    v += (double)lb[i * l->rank + r] * (double)la[r * l->a.shape[1] + k];
                sum += v * v * (double)l->scale * (double)l->scale;
            }
    }
    assert_true(fabs(parts[0] / sqrt(sum) - 1) < 1e-9);
    assert_true(fabs(parts[1] / parts[0] - 3) < 1e-12);
    assert_true(parts[2] == 0);
    ol_adapter_disk_close(&a.disk);
    ol_adapter_disk_close(&c.disk);
}

static void refuse(const ol_merge_options *o, const ol_merge_parent *list, int n, ol_code code,
                   const char *words)
{
    ol_buf weights = {0}, config = {0};

    assert_int_equal(ol_merge(o, list, n, &weights, &config, &err), code);
    if (!strstr(err.message, words))
        fail_msg("\"%s\" says nothing of \"%s\"", err.message, words);
    ol_buf_free(&weights);
    ol_buf_free(&config);
}

static void test_refused(void **state)
{
    parent a = open_parent("a"), c = open_parent("c");
    ol_merge_parent list[] = {{"a", &a.file, 1}, {"c", &c.file, 1}};
    ol_merge_options o = {
        .method = ol_merge_method_named("linear"), .dtype = OL_F32, .density = NAN};
    ol_lora_module strange;

    (void)state;
    assert_null(ol_merge_method_named("average"));
    refuse(&o, list, 2, OL_MISMATCH, "is not like that of");
    o.method = ol_merge_method_named("ties");
    refuse(&o, list, 2, OL_INVALID, "density");
    o.density = 1.5;
    refuse(&o, list, 2, OL_INVALID, "density");
    o.density = 0.5;
    list[1].weight = NAN;
    refuse(&o, list, 2, OL_INVALID, "not finite");
    refuse(&o, list, 0, OL_INVALID, "1 to 64");
    list[1].weight = 1;
    o.clamp = 1.5;
    refuse(&o, list, 2, OL_INVALID, "svd_clamp");
    o.clamp = 0;
    o.method = ol_merge_method_named("svd");
    o.rank = OL_MAX_RANK + 1;
    refuse(&o, list, 2, OL_INVALID, "rank");
    o.rank = 0;
    strange = c.file.modules[0];
    strange.a.shape[1]++;
    c.file.modules = &strange;
    refuse(&o, list, 2, OL_MISMATCH, "is not like that of");
    a.file.format = OL_ADAPTER_GGUF;
    refuse(&o, list, 1, OL_UNSUPPORTED, "GGUF");
    ol_adapter_disk_close(&a.disk);
    ol_adapter_disk_close(&c.disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors),         cmocka_unit_test(test_random),
        cmocka_unit_test(test_types_and_ranks), cmocka_unit_test(test_clamp),
        cmocka_unit_test(test_parts),           cmocka_unit_test(test_refused),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
