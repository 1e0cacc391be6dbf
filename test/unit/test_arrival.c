/* test_arrival.c: an adapter's bytes are hashed when they are new, and known again when they are
 * not. */
#include "engine/adapters.h"
#include "test_formats_adapter.h"

/* -- a device that places nothing -------------------------------------------------------- */

static int placed;

static ol_code place(ol_device *device, const ol_lora_module *modules, int n_modules,
                     ol_lora **lora, ol_error *err)
{
    (void)device;
    (void)modules;
    (void)n_modules;
    (void)err;
    placed++;
    *lora = malloc(1);
    return OL_OK;
}

static void release(ol_device *device, ol_lora *lora)
{
    (void)device;
    placed--;
    free(lora);
}

static size_t bytes_of(ol_device *device, const ol_lora *lora)
{
    (void)device;
    (void)lora;
    return 1000;
}

static const ol_device_table device = {
    .lora_create = place, .lora_free = release, .lora_bytes = bytes_of};

/* -- the world ------------------------------------------------------------------------------ */

typedef struct world {
    ol_model_config base;
    ol_adapters *store;
    ol_buf weights;
    ol_adapter_bytes bytes;
    ol_digest digest; /* of them */
} world;

static const char config[] = "{" QV "}";

static world make_world(void)
{
    world w = {.base = base_model(false), .weights = q_and_v(2, "F32")};

    w.bytes = (ol_adapter_bytes){w.weights.data, w.weights.len, config, strlen(config)};
    ol_adapter_digest(w.weights.data, w.weights.len, config, strlen(config), &w.digest);
    return w;
}

static void open_store(world *w)
{
    ol_adapters_options options = {.table = &device, .base = &w->base, .budget = 1 << 20};
    ol_error err;

    expect_ok(ol_adapters_create(&options, &w->store, &err), &err);
}

static void close_world(world *w)
{
    ol_adapters_free(w->store);
    ol_buf_free(&w->weights);
    assert_int_equal(placed, 0);
}

/* Read, as if it were known by that seal under that digest. */
static ol_adapter_made read_as(const world *w, const ol_digest *digest, const ol_seal *seal)
{
    ol_adapter_known known = {*digest, *seal};
    ol_adapter_made made;

    ol_adapters_make(w->store, &w->bytes, &known, true, &made);
    return made;
}

/* -- tests ------------------------------------------------------------------------------------ */

static void test_new_bytes_are_hashed(void **state)
{
    world w = make_world();
    ol_digest other = {{1}};
    ol_seal none = {0};
    ol_adapter_verdict verdict;
    ol_adapter_made made;
    ol_error err;

    (void)state;
    open_store(&w);
    made = read_as(&w, &other, &none);
    assert_true(ol_digest_equal(&made.digest, &w.digest));
    assert_true(made.seal.made);
    assert_int_equal(ol_adapters_take(w.store, &other, &made, &verdict, &err), OL_INVALID);
    assert_false(verdict.ours);
    assert_null(ol_adapters_find(w.store, &w.digest));
    close_world(&w);
}

/* That the made up digest comes back shows that nothing was hashed. */
static void test_known_bytes_are_not(void **state)
{
    world w = make_world();
    ol_digest made_up = {{1, 2, 3}};
    ol_adapter_made first, second;

    (void)state;
    open_store(&w);
    first = read_as(&w, &w.digest, &(ol_seal){0});
    second = read_as(&w, &made_up, &first.seal);
    assert_true(ol_digest_equal(&second.digest, &made_up));
    assert_true(ol_seal_equal(&second.seal, &first.seal));
    ol_adapters_drop(w.store, &first);
    ol_adapters_drop(w.store, &second);
    close_world(&w);
}

/* Any other byte, or another border between weights and config, is seen. */
static void test_other_bytes_have_other_seals(void **state)
{
    world w = make_world();
    ol_digest made_up = {{1, 2, 3}};
    ol_adapter_made first, second;

    (void)state;
    open_store(&w);
    first = read_as(&w, &w.digest, &(ol_seal){0});
    for (size_t at = 0; at < w.weights.len; at += 1 + w.weights.len / 50) {
        w.weights.data[at] ^= 0x10;
        second = read_as(&w, &made_up, &first.seal);
        assert_false(ol_digest_equal(&second.digest, &made_up));
        assert_false(ol_digest_equal(&second.digest, &w.digest));
        w.weights.data[at] ^= 0x10;
        ol_adapters_drop(w.store, &second);
    }
    ol_buf_put(&w.weights, config, 1);
    w.bytes = (ol_adapter_bytes){w.weights.data, w.weights.len, config + 1, strlen(config) - 1};
    second = read_as(&w, &made_up, &first.seal);
    assert_false(ol_digest_equal(&second.digest, &made_up));
    ol_adapters_drop(w.store, &first);
    ol_adapters_drop(w.store, &second);
    close_world(&w);
}

/* The record keeps the seal when the adapter goes; another process has another key. */
static void test_the_record_remembers(void **state)
{
    world w = make_world();
    ol_adapter_verdict verdict;
    ol_adapter_made made;
    ol_adapter *record;
    ol_seal seal;
    ol_error err;

    (void)state;
    open_store(&w);
    expect_ok(ol_adapters_put(w.store, &w.digest, &w.bytes, &verdict, &err), &err);
    assert_true(verdict.kept && ol_adapters_drop_idle(w.store));
    record = ol_adapters_ref(w.store, &w.digest);
    seal = record->seal;
    ol_adapters_unref(w.store, record);
    made = read_as(&w, &w.digest, &seal);
    assert_true(ol_seal_equal(&made.seal, &seal));
    expect_ok(ol_adapters_take(w.store, &w.digest, &made, &verdict, &err), &err);
    assert_true(verdict.kept);
    ol_adapters_free(w.store);
    open_store(&w);
    made = read_as(&w, &w.digest, &seal);
    assert_true(made.seal.made && !ol_seal_equal(&made.seal, &seal));
    assert_true(ol_digest_equal(&made.digest, &w.digest));
    ol_adapters_drop(w.store, &made);
    close_world(&w);
}

/* A seal is for what is kept: nobody would look at that of bytes that are only checked. */
static void test_a_check_makes_no_seal(void **state)
{
    world w = make_world();
    ol_adapter_facts facts;
    ol_adapter_made made;
    ol_error err;

    (void)state;
    open_store(&w);
    ol_adapters_make(w.store, &w.bytes, NULL, false, &made);
    assert_false(made.seal.made);
    assert_true(ol_digest_equal(&made.digest, &w.digest));
    expect_ok(ol_adapters_judge(w.store, &made, &facts, &err), &err);
    assert_true(ol_digest_equal(&facts.digest, &w.digest));
    ol_adapters_drop(w.store, &made);
    close_world(&w);
}

/* What can not be parsed has a digest all the same: the request that named it fails. */
static void test_bad_bytes_are_ours(void **state)
{
    world w = make_world();
    ol_adapter_verdict verdict;
    ol_adapter_made made;
    ol_error err;

    (void)state;
    open_store(&w);
    w.bytes.weights_len = 20;
    ol_adapter_digest(w.weights.data, 20, config, strlen(config), &w.digest);
    made = read_as(&w, &w.digest, &(ol_seal){0});
    assert_int_not_equal(ol_adapters_take(w.store, &w.digest, &made, &verdict, &err), OL_OK);
    assert_true(verdict.ours && !verdict.kept);
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_new_bytes_are_hashed),
        cmocka_unit_test(test_known_bytes_are_not),
        cmocka_unit_test(test_other_bytes_have_other_seals),
        cmocka_unit_test(test_the_record_remembers),
        cmocka_unit_test(test_a_check_makes_no_seal),
        cmocka_unit_test(test_bad_bytes_are_ours),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
