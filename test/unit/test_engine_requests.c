/* test_engine_requests.c: requests through engine.h: text and tokens, ends of every kind; models
 * and options that are not as usual. */
#include "engine_requests.h"

#include <stdio.h>
#include <sys/stat.h>

/* -- text ------------------------------------------------------------------------------ */

static void test_text_is_the_tokens(void **state)
{
    ol_request q = util_text_request("Hello there", 40);
    util_result r;
    ol_tokens asked, answer;
    size_t len;
    char *text;

    (void)state;
    need_engine();
    r = run_done(engine, &q);
    must(ol_engine_tokenize(engine, (ol_text){"Hello there", 11}, true, false, &asked, &err), &err);
    assert_int_equal(r.prompt_tokens, asked.n);
    free(asked.ids);
    assert_int_equal(r.n, 40);
    assert_int_equal(r.completion_tokens, 40);
    assert_int_equal(r.finish, OL_FINISH_LENGTH);
    answer = (ol_tokens){r.tokens, (size_t)r.n};
    must(ol_engine_detokenize(engine, &answer, true, &text, &len, &err), &err);
    assert_int_equal(r.text.len, len);
    assert_memory_equal(r.text.data, text, len);
    free(text);
    util_free(&r, 1);
}

static void test_stop_string(void **state)
{
    ol_request q = util_text_request("Hello there", 60);
    util_result whole, cut;
    char stop[8] = {0};
    ol_text stops[2];
    size_t at = 20;

    (void)state;
    need_engine();
    whole = run_done(engine, &q);
    assert_true(whole.text.len > at + 5);
    while ((whole.text.data[at] & 0xC0) == 0x80) /* begin at a character */
        at++;
    memcpy(stop, whole.text.data + at, 5);
    stops[0] = text_of("never said");
    stops[1] = text_of(stop);
    q.sampling.stops = stops;
    q.sampling.n_stops = 2;
    cut = run_done(engine, &q);
    assert_int_equal(cut.finish, OL_FINISH_STOP);
    at = (size_t)((const uint8_t *)memmem(whole.text.data, whole.text.len, stop, 5) -
                  whole.text.data);
    assert_int_equal(cut.text.len, at);
    assert_memory_equal(cut.text.data, whole.text.data, at);
    assert_true(cut.n < whole.n);
    assert_memory_equal(cut.tokens, whole.tokens, (size_t)cut.n * sizeof(int32_t));
    util_free(&whole, 1);
    util_free(&cut, 1);
}

/* What might have begun a stop string comes with DONE. */
static void test_held_back_text(void **state)
{
    ol_request q = util_text_request("Hello there", 30);
    util_result plain, held;
    char stop[64];
    ol_text stops[1];

    (void)state;
    need_engine();
    plain = run_done(engine, &q);
    assert_true(plain.text.len > 12);
    snprintf(stop, sizeof(stop), "%.9s and more that never comes",
             (const char *)plain.text.data + plain.text.len - 9);
    stops[0] = text_of(stop);
    q.sampling.stops = stops;
    q.sampling.n_stops = 1;
    held = run_done(engine, &q);
    assert_int_equal(held.finish, OL_FINISH_LENGTH);
    assert_int_equal(held.text.len, plain.text.len);
    assert_memory_equal(held.text.data, plain.text.data, plain.text.len);
    util_free(&plain, 1);
    util_free(&held, 1);
}

/* The same text, told at once; stop strings included. */
static void test_quiet(void **state)
{
    static const ol_text stop = {" ", 1};
    ol_request q = util_text_request("Hello there", 30);

    (void)state;
    need_engine();
    for (int stops = 0; stops <= 1; stops++) {
        util_result told, quiet;

        q.sampling.stops = &stop;
        q.sampling.n_stops = stops;
        q.quiet = false;
        told = run_done(engine, &q);
        q.quiet = true;
        quiet = run_done(engine, &q);
        assert_int_equal(quiet.n, 0); /* no TOKEN events */
        assert_int_equal(quiet.completion_tokens, told.completion_tokens);
        assert_int_equal(quiet.finish, told.finish);
        assert_int_equal(quiet.text.len, told.text.len);
        assert_memory_equal(quiet.text.data, told.text.data, told.text.len);
        util_free(&told, 1);
        util_free(&quiet, 1);
    }
    q.sampling.logprobs = 0; /* who wants them wants events */
    q.sampling.n_stops = 0;
    util_result r = run_done(engine, &q);
    assert_int_equal(r.n, 30);
    util_free(&r, 1);
}

/* -- ends --------------------------------------------------------------------------------- */

static void test_eos(void **state)
{
    ol_logit_bias bias = {2, 1000.0f}; /* </s> */
    ol_request q = util_request(0, prompt, N_PROMPT, 10);
    util_result r;

    (void)state;
    need_engine();
    q.sampling.bias = &bias;
    q.sampling.n_bias = 1;
    q.sampling.ignore_eos = false;
    r = run_done(engine, &q);
    assert_int_equal(r.finish, OL_FINISH_EOS);
    assert_int_equal(r.n, 0);
    assert_int_equal(r.completion_tokens, 0);
    util_free(&r, 1);
    q.sampling.ignore_eos = true;
    r = run_done(engine, &q);
    assert_int_equal(r.finish, OL_FINISH_LENGTH);
    assert_int_equal(r.n, 10);
    assert_int_equal(r.tokens[9], 2);
    assert_int_equal(r.text.len, 0); /* a special token has no text */
    util_free(&r, 1);
}

static void test_no_output_wanted(void **state)
{
    ol_request q = util_request(0, prompt, N_PROMPT, 0);
    util_result r;

    (void)state;
    need_engine();
    r = run_done(engine, &q);
    assert_int_equal(r.finish, OL_FINISH_LENGTH);
    assert_int_equal(r.n, 0);
    assert_int_equal(r.prompt_tokens, N_PROMPT);
    util_free(&r, 1);
}

static void test_context_ends(void **state)
{
    ol_engine_options options;
    ol_engine *small;
    ol_engine_info info;
    int32_t ids[32];
    ol_request q;
    util_result r;

    (void)state;
    need_path(golden_path("llama"));
    for (int i = 0; i < 32; i++)
        ids[i] = 10 + i;
    options = util_options(golden_path("llama"));
    options.context = 32;
    small = util_open(&options);
    ol_engine_info_get(small, &info);
    assert_int_equal(info.context, 32);
    q = util_request(0, ids, 20, 1000);
    r = run_done(small, &q);
    assert_int_equal(r.finish, OL_FINISH_LENGTH);
    assert_int_equal(r.n, 12);
    util_free(&r, 1);
    q = util_request(0, ids, 31, 1000);
    r = run_done(small, &q);
    assert_int_equal(r.n, 1);
    util_free(&r, 1);
    q = util_request(0, ids, 32, 1);
    refuse(small, &q, OL_LIMIT, "32");
    q = util_request(0, ids, 32, 0);
    r = run_done(small, &q);
    assert_int_equal(r.n, 0);
    util_free(&r, 1);
    ol_engine_close(small);
}

/* A KV cache smaller than the context: what can never fit is refused at once. */
static void test_context_of_the_kv_cache(void **state)
{
    ol_engine_options options;
    ol_engine_info info;
    ol_engine *small;
    int32_t ids[64];
    ol_request q;
    util_result r;

    (void)state;
    need_path(golden_path("llama"));
    for (int i = 0; i < 64; i++)
        ids[i] = 10 + i;
    options = util_options(golden_path("llama"));
    options.kv_bytes = 3 * util_page_bytes(&options);
    small = util_open(&options);
    ol_engine_info_get(small, &info);
    assert_int_equal(info.kv_pages, 3);
    assert_int_equal(info.context, info.kv_pages * 16);
    q = util_request(0, ids, info.context, 1);
    refuse(small, &q, OL_LIMIT, "KV cache");
    q = util_request(0, ids, 4, 10000);
    r = run_done(small, &q);
    assert_int_equal(r.n, info.context - 4);
    util_free(&r, 1);
    ol_engine_close(small);
    options.kv_bytes = 100;
    must_fail(ol_engine_open(&options, &small, &err), OL_LIMIT, "KV cache", &err);
}

/* A device with memory of its own has taken what steps work with before requests come. */
static void test_first_request_takes_no_memory(void **state)
{
    ol_engine_options options;
    ol_engine_info before, after;
    ol_engine *fresh;
    util_result r;
    ol_request q;

    (void)state;
    need_path(golden_path("llama"));
    options = util_options(golden_path("llama"));
    fresh = util_open(&options);
    ol_engine_info_get(fresh, &before);
    q = util_request(0, prompt, N_PROMPT, 3);
    r = run_done(fresh, &q);
    ol_engine_info_get(fresh, &after);
    if (before.device.own_memory)
        assert_int_equal(before.device.memory_used, after.device.memory_used);
    util_free(&r, 1);
    ol_engine_close(fresh);
}

/* -- a model without a tokenizer, bad options -------------------------------------------------- */

static void link_into(const char *folder, const char *name)
{
    char from[4096], to[4096], *real;

    snprintf(from, sizeof(from), "llama/%s", name);
    real = realpath(golden_path(from), NULL);
    assert_non_null(real);
    snprintf(to, sizeof(to), "%s/%s", folder, name);
    assert_int_equal(symlink(real, to), 0);
    free(real);
}

static void test_no_tokenizer(void **state)
{
    static const char *const files[] = {"config.json", "model.safetensors"};
    const char *tmp = getenv("TMPDIR");
    char folder[1024], path[4096];
    ol_engine_options options;
    ol_text stop = text_of("x");
    ol_engine *bare;
    ol_request q;
    ol_tokens ids;
    util_result r;

    (void)state;
    need_path(golden_path("llama"));
    snprintf(folder, sizeof(folder), "%s/openlora-test-XXXXXX", tmp ? tmp : P_tmpdir);
    assert_non_null(mkdtemp(folder));
    for (int i = 0; i < 2; i++)
        link_into(folder, files[i]);
    options = util_options(folder);
    bare = util_open(&options);
    q = util_request(0, prompt, N_PROMPT, 5);
    r = run_done(bare, &q);
    assert_int_equal(r.n, 5);
    assert_int_equal(r.text.len, 0);
    util_free(&r, 1);
    q.sampling.stops = &stop;
    q.sampling.n_stops = 1;
    refuse(bare, &q, OL_UNSUPPORTED, "tokenizer");
    q = util_text_request("hello", 5);
    refuse(bare, &q, OL_UNSUPPORTED, "tokenizer");
    must_fail(ol_engine_tokenize(bare, (ol_text){"a", 1}, true, false, &ids, &err), OL_UNSUPPORTED,
              "tokenizer", &err);
    ol_engine_close(bare);
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof(path), "%s/%s", folder, files[i]);
        unlink(path);
    }
    rmdir(folder);
}

static void test_bad_options(void **state)
{
    ol_engine_options options;
    ol_engine *e;

    (void)state;
    need_path(golden_path("llama"));
    options = util_cpu_options(golden_path("llama")); /* whatever else is tested */
    options.page_tokens = 24;
    must_fail(ol_engine_open(&options, &e, &err), OL_INVALID, "power of two", &err);
    options.page_tokens = 0;
    options.device = "abacus";
    must_fail(ol_engine_open(&options, &e, &err), OL_INVALID, "abacus", &err);
    options.device = "cpu";
    options.max_seqs = -1;
    must_fail(ol_engine_open(&options, &e, &err), OL_INVALID, "max_seqs", &err);
    options.max_seqs = 0;
    options.kv_dtype = OL_Q8_0;
    must_fail(ol_engine_open(&options, &e, &err), OL_INVALID, "kv_dtype", &err);
    options.kv_dtype = OL_F8E4M3;
    must_fail(ol_engine_open(&options, &e, &err), OL_UNSUPPORTED, "F8_E4M3", &err);
    assert_non_null(strstr(err.detail, "F32, F16, BF16"));
    options.kv_dtype = -1;
    options.quantization = OL_QUANT_FP8;
    must_fail(ol_engine_open(&options, &e, &err), OL_UNSUPPORTED, "fp8", &err);
    assert_non_null(strstr(err.hint, "int8"));
    options.quantization = OL_QUANT_AS_IS;
    options.model_path = "/nonexistent";
    must_fail(ol_engine_open(&options, &e, &err), OL_NOT_FOUND, "nonexistent", &err);
    options.model_path = NULL;
    must_fail(ol_engine_open(&options, &e, &err), OL_INVALID, "model", &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_is_the_tokens),
        cmocka_unit_test(test_stop_string),
        cmocka_unit_test(test_held_back_text),
        cmocka_unit_test(test_quiet),
        cmocka_unit_test(test_eos),
        cmocka_unit_test(test_no_output_wanted),
        cmocka_unit_test(test_context_ends),
        cmocka_unit_test(test_context_of_the_kv_cache),
        cmocka_unit_test(test_first_request_takes_no_memory),
        cmocka_unit_test(test_no_tokenizer),
        cmocka_unit_test(test_bad_options),
    };

    return cmocka_run_group_tests(tests, open_default, close_default);
}
