/*
 * test_golden.c: the whole engine against numbers that transformers and peft made: logits of
 * every position and greedy tokens, for every family of models and every GGUF file under
 * the golden folder, on every path of the CPU device.
 *
 * Bounds are the fixtures' own (logits_abs, about 3e-5 of the largest logit). Weights of
 * block types are computed with activations in blocks of 8 bits, so these have a bound of
 * their own, and their greedy tokens are not compared. With OL_TEST_DEVICE the same is asked
 * of the CUDA device, which computes in bf16, with its bound.
 */
#include "engine_util.h"

#include "engine/engine_internal.h"

#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>

#define N_GREEDY 64
#define BLOCK_BOUND 0.05 /* of the largest logit */
#define BF16_BOUND 0.05

static const char *const paths[] = {"portable", "avx2", "auto"};
#define N_PATHS (sizeof(paths) / sizeof(paths[0]))

/* -- reading the fixtures ------------------------------------------------------------- */

static json_t *load_json(const char *path)
{
    json_error_t e;
    json_t *root = json_load_file(path, 0, &e);

    if (!root)
        fail_msg("%s: %s", path, e.text);
    return root;
}

static double number(const json_t *o, const char *a, const char *b)
{
    const json_t *v = json_object_get(b ? json_object_get(o, a) : o, b ? b : a);

    assert_true(json_is_number(v));
    return json_number_value(v);
}

static int read_ids(const json_t *list, int32_t *ids, int most)
{
    int n = (int)json_array_size(list);

    assert_in_range(n, 1, most);
    for (int i = 0; i < n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, (size_t)i));
    return n;
}

static float *read_floats(const char *folder, const json_t *logits, size_t *n)
{
    const json_t *shape = json_object_get(logits, "shape");
    char path[2048];
    float *values;
    FILE *f;

    *n = (size_t)(json_integer_value(json_array_get(shape, 0)) *
                  json_integer_value(json_array_get(shape, 1)));
    snprintf(path, sizeof(path), "%s/%s", folder,
             json_string_value(json_object_get(logits, "file")));
    f = fopen(path, "rb");
    assert_non_null(f);
    values = malloc(*n * sizeof(float));
    assert_int_equal(fread(values, sizeof(float), *n, f), *n);
    fclose(f);
    return values;
}

/* -- comparing -------------------------------------------------------------------------- */

typedef struct golden {
    const char *label;
    const char *folder;   /* logits.file is relative to it */
    const json_t *vector; /* holds logits, greedy */
    int32_t ids[64];
    int n_ids;
    double bound; /* of logits, absolute */
    bool exact;   /* greedy tokens must be equal */
    ol_adapter_use uses[3];
    int n_uses;
} golden;

static void compare_logits(ol_engine *engine, const golden *g)
{
    size_t n;
    float *want = read_floats(g->folder, json_object_get(g->vector, "logits"), &n);
    float *have = malloc(n * sizeof(float));
    double worst = 0, largest = 0, bound;
    ol_error err;

    must(ol_engine_logits(engine, &(ol_whole_text){g->ids, g->n_ids, g->n_uses, g->uses}, have,
                          &err),
         &err);
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)have[i] - (double)want[i]);

        worst = d > worst || isnan(d) ? d : worst;
        largest = fabs((double)want[i]) > largest ? fabs((double)want[i]) : largest;
    }
    bound = util_on_cuda() ? fmax(g->bound, BF16_BOUND * largest) : g->bound;
    if (!(worst <= bound))
        fail_msg("%s: logits are off by %g, the bound is %g", g->label, worst, bound);
    free(want);
    free(have);
}

static void compare_greedy(ol_engine *engine, const golden *g)
{
    ol_request q = util_request(0, g->ids, g->n_ids, N_GREEDY);
    util_result r = {0};
    int32_t want[N_GREEDY];
    int n = read_ids(json_object_get(g->vector, "greedy"), want, N_GREEDY);

    q.adapters = g->uses;
    q.n_adapters = g->n_uses;
    util_submit(engine, &q);
    util_run(engine, &r, 1);
    assert_true(r.done);
    assert_int_equal(r.n, n);
    assert_int_equal(engine->counters.device_choices > 0, util_on_cuda());
    for (int i = 0; i < n && g->exact && !util_on_cuda(); i++)
        if (r.tokens[i] != want[i])
            fail_msg("%s: token %d is %d, not %d", g->label, i, r.tokens[i], want[i]);
    util_free(&r, 1);
}

static void compare(ol_engine *engine, const golden *g)
{
    compare_logits(engine, g);
    compare_greedy(engine, g);
}

/* -- families ------------------------------------------------------------------------------ */

static int find_uses(ol_engine *engine, const char *folder, const json_t *root, const json_t *c,
                     ol_adapter_use *uses)
{
    const json_t *list = json_object_get(c, "adapters"), *all = json_object_get(root, "adapters");
    int n = (int)json_array_size(list);

    for (int i = 0; i < n; i++) {
        const json_t *use = json_array_get(list, (size_t)i);
        const char *name = json_string_value(json_object_get(use, "adapter"));
        char path[2048];

        snprintf(path, sizeof(path), "%s/%s", folder,
                 json_string_value(json_object_get(json_object_get(all, name), "path")));
        uses[i].digest = util_put_adapter(engine, path);
        uses[i].weight = (float)number(use, "weight", NULL);
    }
    return n;
}

static void check_family(const char *name, const char *isa)
{
    char folder[1024], label[256];
    json_t *root, *c;
    size_t i;
    ol_engine_options options;
    ol_engine *engine;

    snprintf(folder, sizeof(folder), "%s", golden_path(name));
    snprintf(label, sizeof(label), "%s/golden.json", name);
    root = load_json(golden_path(label));
    options = util_options(folder);
    options.isa = isa;
    engine = util_open(&options);
    json_array_foreach(json_object_get(root, "cases"), i, c)
    {
        golden g = {.label = label, .folder = folder, .vector = c, .exact = true};

        snprintf(label, sizeof(label), "%s, case %s, %s", name,
                 json_string_value(json_object_get(c, "name")), isa);
        g.n_ids = read_ids(json_object_get(root, "input_ids"), g.ids, 64);
        g.bound = number(root, "tolerance", "logits_abs");
        g.n_uses = find_uses(engine, folder, root, c, g.uses);
        compare(engine, &g);
    }
    assert_int_equal(i, 3);
    util_expect_idle(engine);
    ol_engine_close(engine);
    json_decref(root);
}

/* Calls `check` with every entry of the folder that ends with `end` and, when `inside` is
 * given, holds that file; returns how many there are. */
static int each(const char *rest, const char *end, const char *inside,
                void (*check)(const char *name, const char *isa))
{
    struct dirent **entries;
    char folder[1024];
    int n, found = 0;

    snprintf(folder, sizeof(folder), "%s", golden_path(rest));
    n = scandir(folder, &entries, NULL, alphasort);
    assert_true(n > 0);
    for (int i = 0; i < n; i++) {
        const char *name = entries[i]->d_name;
        size_t len = strlen(name), end_len = strlen(end);
        char path[2048];
        FILE *f = NULL;

        snprintf(path, sizeof(path), "%s/%s/%s", folder, name, inside ? inside : "");
        if (len > end_len && strcmp(name + len - end_len, end) == 0 &&
            (!inside || (f = fopen(path, "r")))) {
            found++;
            for (size_t k = util_on_cuda() ? N_PATHS - 1 : 0; k < N_PATHS; k++)
                check(name, paths[k]);
        }
        if (f)
            fclose(f);
        free(entries[i]);
    }
    free(entries);
    return found;
}

static void test_families(void **state)
{
    int n;

    (void)state;
    need_path(golden_path("README.md"));
    n = each("", "", "golden.json", check_family);
    print_message("%d families\n", n);
    assert_true(n > 0);
}

/* -- GGUF -------------------------------------------------------------------------------------- */

static bool has_blocks(const json_t *root)
{
    static const char *const blocks[] = {"Q8_0", "Q4_0", "Q4_K", "Q6_K"};

    for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++)
        if (json_object_get(json_object_get(root, "tensor_types"), blocks[i]))
            return true;
    return false;
}

static void check_gguf_model(const char *name, const char *isa, const json_t *root)
{
    char folder[1024], path[2048], label[2048];
    golden g = {.label = label, .folder = folder, .vector = root, .exact = !has_blocks(root)};
    ol_engine_options options;
    ol_engine *engine;

    snprintf(folder, sizeof(folder), "%s", golden_path("gguf"));
    snprintf(path, sizeof(path), "%s/%s", folder, json_string_value(json_object_get(root, "file")));
    snprintf(label, sizeof(label), "%s, %s", name, isa);
    options = util_options(path);
    options.isa = isa;
    engine = util_open(&options);
    g.n_ids = read_ids(json_object_get(root, "input_ids"), g.ids, 64);
    g.bound = has_blocks(root) ? BLOCK_BOUND * number(root, "max_abs_logit", NULL)
                               : number(root, "tolerance", "logits_abs");
    compare(engine, &g);
    ol_engine_close(engine);
}

/* An adapter on either form of its base gives the golden's case. */
static void check_gguf_adapter(const char *name, const char *isa, const json_t *root)
{
    const char *source = json_string_value(json_object_get(root, "source"));
    char folder[1024], model[1024], file[1024], label[2048];
    json_t *family, *c;
    size_t i;

    snprintf(folder, sizeof(folder), "%s", golden_path(source));
    snprintf(file, sizeof(file), "gguf/%s", json_string_value(json_object_get(root, "file")));
    snprintf(label, sizeof(label), "%s/golden.json", source);
    family = load_json(golden_path(label));
    for (int as_gguf = 0; as_gguf < 2; as_gguf++) {
        ol_engine_options options;
        ol_engine *engine;

        snprintf(model, sizeof(model), as_gguf ? "gguf/%s-f32.gguf" : "%s", source);
        options = util_options(golden_path(model));
        options.isa = isa;
        engine = util_open(&options);
        json_array_foreach(json_object_get(family, "cases"), i, c)
        {
            golden g = {.label = label, .folder = folder, .vector = c, .exact = true, .n_uses = 1};

            if (strcmp(json_string_value(json_object_get(c, "name")), "a") != 0)
                continue;
            snprintf(label, sizeof(label), "%s on %s, %s", name, model, isa);
            g.n_ids = read_ids(json_object_get(family, "input_ids"), g.ids, 64);
            g.bound = number(family, "tolerance", "logits_abs");
            g.uses[0] = (ol_adapter_use){util_put_adapter(engine, golden_path(file)), 1.0f};
            compare(engine, &g);
        }
        ol_engine_close(engine);
    }
    json_decref(family);
}

static void check_gguf(const char *name, const char *isa)
{
    char rest[256];
    json_t *root;

    snprintf(rest, sizeof(rest), "gguf/%s", name);
    root = load_json(golden_path(rest));
    (json_object_get(root, "adapter") ? check_gguf_adapter : check_gguf_model)(name, isa, root);
    json_decref(root);
}

static void test_gguf(void **state)
{
    int n;

    (void)state;
    need_path(golden_path("gguf"));
    n = each("gguf", ".json", NULL, check_gguf);
    print_message("%d GGUF files\n", n);
    assert_true(n > 0);
}

/* -- hostile files ----------------------------------------------------------------------------- */

static bool says(const ol_error *err, const char *word)
{
    return strcasestr(err->message, word) || strcasestr(err->detail, word) ||
           strcasestr(err->hint, word);
}

static ol_code try_model(const char *path, ol_error *err)
{
    ol_engine_options options = util_options(path);
    ol_engine *engine;
    ol_code code = ol_engine_open(&options, &engine, err);

    if (code == OL_OK)
        ol_engine_close(engine);
    return code;
}

/* Bytes that cannot even be read from disk count as refused. */
static ol_code try_adapter(ol_engine *engine, const char *path, ol_error *err)
{
    ol_adapter_facts facts;
    ol_adapter_bytes bytes;
    ol_buf weights, config;
    ol_digest digest;
    ol_code code, checked;
    ol_error second;

    if (!util_try_adapter(path, &weights, &config, &digest, err))
        return err->code;
    bytes = util_bytes(&weights, &config);
    code = ol_engine_adapter_put(engine, &digest, &bytes, &facts, err);
    checked = ol_engine_adapter_check(engine, &bytes, &facts, &second);
    assert_int_equal(code, checked);
    ol_buf_free(&weights);
    ol_buf_free(&config);
    return code;
}

static void test_hostile(void **state)
{
    ol_engine_options options;
    ol_engine *engine;
    json_t *list, *item;
    size_t i;

    (void)state;
    need_path(golden_path("hostile/manifest.json"));
    options = util_options(golden_path("hostile/base"));
    engine = util_open(&options);
    list = load_json(golden_path("hostile/manifest.json"));
    json_array_foreach(list, i, item)
    {
        const char *path = json_string_value(json_object_get(item, "path"));
        const char *expect = json_string_value(json_object_get(item, "expect"));
        bool adapter = !strcmp(json_string_value(json_object_get(item, "kind")), "adapter");
        char rest[512];
        ol_error err;
        ol_code code;

        snprintf(rest, sizeof(rest), "hostile/%s", path);
        code = adapter ? try_adapter(engine, golden_path(rest), &err)
                       : try_model(golden_path(rest), &err);
        if ((code == OL_OK) != !expect)
            fail_msg("%s: %s", path, code == OL_OK ? "was taken" : err.message);
        if (expect && !says(&err, expect))
            fail_msg("%s: \"%s\" is not in: %s | %s", path, expect, err.message, err.detail);
    }
    print_message("%zu files\n", i);
    util_expect_idle(engine);
    ol_engine_close(engine);
    json_decref(list);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families),
        cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_hostile),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
