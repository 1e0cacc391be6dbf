/* test_engine_cli.c: the commands of openlora-engine as one types them: what they print and
 * with which status they end. */
#include "engine_util.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#define MODEL "llama"
#define IDS "1,195,123,41,77"

static char out[1 << 20]; /* of the last command, NUL-terminated */
static size_t out_len;

/* Runs through a shell; returns the exit status. */
static int run(const char *fmt, ...)
{
    char arguments[4096], command[12288];
    va_list ap;
    FILE *f;
    int status;

    need_path(golden_path(MODEL));
    need_path(util_engine_program());
    va_start(ap, fmt);
    vsnprintf(arguments, sizeof(arguments), fmt, ap);
    va_end(ap);
    snprintf(command, sizeof(command), "'%s' %s", util_engine_program(), arguments);
    f = popen(command, "r");
    assert_non_null(f);
    out_len = fread(out, 1, sizeof(out) - 1, f);
    out[out_len] = '\0';
    status = pclose(f);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void says(const char *word)
{
    if (!strstr(out, word))
        fail_msg("\"%s\" is not in: %s", word, out);
}

static void test_help(void **state)
{
    static const char *const commands[] = {"inspect", "tokenize", "generate",
                                           "logits",  "bench",    "serve"};

    (void)state;
    assert_int_equal(run("--help"), 0);
    for (size_t i = 0; i < 6; i++) {
        says(commands[i]);
        assert_int_equal(run("%s --help", commands[i]), 0);
        says("usage: openlora-engine");
        assert_int_equal(run("--help"), 0);
    }
    assert_int_equal(run("2>&1"), 2);
    assert_int_equal(run("conjure 2>&1"), 2);
    says("conjure");
    assert_int_equal(run("generate --nonsense 2>&1"), 2);
    assert_int_equal(run("generate --model x 2>&1"), 2);
    says("--prompt");
    assert_int_equal(run("generate --model x --prompt a --max-tokens many 2>&1"), 2);
    says("many");
}

static void test_generate(void **state)
{
    char text[4096];

    (void)state;
    assert_int_equal(run("generate --model '%s' --prompt 'Hello there' --max-tokens 20 2>&1",
                         golden_path(MODEL)),
                     0);
    says("output 20 tokens");
    assert_int_equal(run("generate --model '%s' --prompt 'Hello there' --max-tokens 20 2>/dev/null",
                         golden_path(MODEL)),
                     0);
    memcpy(text, out, sizeof(text));
    assert_int_equal(run("generate --model '%s' --prompt - --max-tokens 20 2>/dev/null <<X\nHello "
                         "there\nX\n",
                         golden_path(MODEL)),
                     0);
    assert_int_not_equal(strcmp(text, out), 0); /* the here-document ends with a newline */
    assert_int_equal(run("generate --model '%s' --tokens " IDS " --max-tokens 4 2>/dev/null",
                         golden_path(MODEL)),
                     0);
    assert_int_equal(strspn(out, "0123456789,\n"), out_len);
    assert_int_equal(run("generate --model /nonexistent --prompt x 2>&1"), 1);
    says("error: ");
    says("nonexistent");
}

static void test_generate_json(void **state)
{
    json_t *o;

    (void)state;
    assert_int_equal(run("generate --model '%s' --adapter '%s=0.5' --adapter '%s' --tokens " IDS
                         " --max-tokens 7 --ignore-eos --logprobs 2 --json",
                         golden_path(MODEL), golden_path(MODEL "/adapters/a"),
                         golden_path(MODEL "/adapters/b")),
                     0);
    o = json_loads(out, 0, NULL);
    assert_non_null(o);
    assert_int_equal(json_array_size(json_object_get(o, "tokens")), 7);
    assert_int_equal(json_array_size(json_object_get(o, "logprobs")), 7);
    assert_int_equal(json_array_size(json_object_get(o, "shares")), 2);
    assert_string_equal(json_string_value(json_object_get(o, "finish")), "length");
    json_decref(o);
}

static void test_logits(void **state)
{
    static float values[5 * 288];
    static const int32_t ids[] = {1, 195, 123, 41, 77};
    ol_engine_options options;
    ol_engine *engine;
    ol_error err;

    (void)state;
    assert_int_equal(
        run("logits --model '%s' --isa portable --tokens " IDS " --out -", golden_path(MODEL)), 0);
    assert_int_equal(out_len, sizeof(values));
    options = util_options(golden_path(MODEL));
    engine = util_open(&options);
    must(ol_engine_logits(engine, &(ol_whole_text){.tokens = ids, .n = 5}, values, &err), &err);
    ol_engine_close(engine);
    assert_memory_equal(out, values, sizeof(values));
    assert_int_equal(run("logits --model '%s' --tokens 1,99999 --out - 2>&1", golden_path(MODEL)),
                     1);
    says("99999");
}

static void test_tokenize(void **state)
{
    (void)state;
    assert_int_equal(run("tokenize --model '%s' <<X\nHello\n\nthere all\nX\n", golden_path(MODEL)),
                     0);
    assert_int_equal(strspn(out, "0123456789 \n"), out_len);
    assert_int_equal(
        run("tokenize --model '%s/tokenizer.json' <<X | '%s' tokenize --decode --model "
            "'%s'\nHello there\nX\n",
            golden_path(MODEL), util_engine_program(), golden_path(MODEL)),
        0);
    says("Hello there");
    assert_int_equal(run("tokenize --model '%s' </dev/null", golden_path("gguf/qwen2-f32.gguf")),
                     0);
    assert_int_equal(run("tokenize --model '%s' </dev/null 2>&1", golden_path("hostile")), 1);
    says("no tokenizer");
}

static void test_inspect(void **state)
{
    (void)state;
    assert_int_equal(run("inspect '%s'", golden_path(MODEL)), 0);
    says("a model");
    says("llama");
    says("digest");
    assert_int_equal(run("inspect '%s'", golden_path("gguf/llama-q8_0.gguf")), 0);
    says("GGUF Q8_0");
    assert_int_equal(run("inspect '%s'", golden_path("gguf/adapter-a.gguf")), 0);
    says("LoRA adapter");
    assert_int_equal(
        run("inspect --base '%s' '%s'", golden_path(MODEL), golden_path(MODEL "/adapters/a")), 0);
    says("q_proj");
    assert_int_equal(
        run("inspect --base '%s' '%s'", golden_path("qwen3"), golden_path(MODEL "/adapters/a")), 1);
    says("REFUSED");
    assert_int_equal(run("inspect '%s'", golden_path("hostile/st-truncated")), 1);
    says("REFUSED");
    assert_int_equal(run("inspect '%s'", golden_path(MODEL "/tokenizer.json")), 0);
    says("a tokenizer");
    assert_int_equal(run("inspect /nonexistent 2>&1"), 1);
}

static void test_bench(void **state)
{
    json_t *o;

    (void)state;
    assert_int_equal(run("bench --model '%s' --prompt 20 --generate 6 --parallel 3 --adapters 2 "
                         "--rank 4 --repeats 1 --json --threads 1",
                         golden_path(MODEL)),
                     0);
    o = json_loads(out, 0, NULL);
    assert_non_null(o);
    assert_true(json_real_value(json_object_get(o, "prefill_tokens_per_second")) > 0);
    assert_true(json_real_value(json_object_get(o, "decode_tokens_per_second")) > 0);
    assert_true(json_real_value(json_object_get(o, "base_decode_tokens_per_second")) > 0);
    json_decref(o);
    assert_int_equal(run("bench --model '%s' --quantization int8 --prompt 4 --generate 2 --repeats "
                         "1",
                         golden_path("llama_wide")),
                     0);
    says("no adapter");
}

static void test_serve_by_hand(void **state)
{
    (void)state;
    assert_int_equal(run("serve --model '%s' 2>&1", golden_path(MODEL)), 2);
    assert_int_equal(
        run("serve --model '%s' --ring-fd 0 --wake-fd 1 2>&1 </dev/null", golden_path(MODEL)), 1);
    says("worker");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_help),          cmocka_unit_test(test_generate),
        cmocka_unit_test(test_generate_json), cmocka_unit_test(test_logits),
        cmocka_unit_test(test_tokenize),      cmocka_unit_test(test_inspect),
        cmocka_unit_test(test_bench),         cmocka_unit_test(test_serve_by_hand),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
