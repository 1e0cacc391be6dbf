/* test_engine_stories.c: a trained model that others published, with the text that others got
 * from it. */
#include "engine_util.h"

#include <stdio.h>
#include <unistd.h>

static char folder[1024];
static ol_error err;

/* As its source states it for two other programs. */
static const char text[] =
    " was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but she didn't want to play with";
static const int32_t ids[] = {1,   410, 469, 347, 286, 261, 376, 298, 315, 421, 395, 317, 426,
                              338, 401, 396, 267, 337, 410, 408, 419, 292, 411, 322, 265, 282,
                              295, 433, 426, 385, 328, 432, 358, 394, 261, 370, 432, 352, 266,
                              268, 388, 426, 338, 391, 266, 267, 337, 335, 312, 432, 398, 358,
                              279, 292, 416, 439, 413, 391, 267, 337, 335};
#define N_IDS ((int)(sizeof(ids) / sizeof(ids[0])))

static int convert(void **state)
{
    const char *data = getenv("OPENLORA_TEST_DATA"), *tmp = getenv("TMPDIR");
    char command[4096], source[1024];

    (void)state;
    snprintf(source, sizeof(source), "%s/stories260k", data ? data : "");
    if (access(source, F_OK) != 0)
        return 0;
    snprintf(folder, sizeof(folder), "%s/openlora-stories-XXXXXX", tmp ? tmp : P_tmpdir);
    if (!mkdtemp(folder))
        return -1;
    snprintf(command, sizeof(command), "python3 test/data/make/convert_stories.py '%s' '%s'",
             source, folder);
    return system(command) == 0 ? 0 : -1;
}

static int clean(void **state)
{
    char command[2048];

    (void)state;
    if (!folder[0])
        return 0;
    snprintf(command, sizeof(command), "rm -r '%s'", folder);
    return system(command);
}

static void check_story(const char *isa)
{
    ol_engine_options options;
    util_result r = {0};
    ol_engine *engine;
    ol_request q;
    ol_tokens start;

    if (!folder[0]) {
        print_message("skipped: no stories260k\n");
        skip();
    }
    options = util_options(folder);
    options.isa = isa;
    engine = util_open(&options);
    must(ol_engine_tokenize(engine, (ol_text){"Zoo", 3}, true, false, &start, &err), &err);
    free(start.ids);
    q = util_request(0, NULL, 0, N_IDS - (int)start.n);
    q.prompt = (ol_text){"Zoo", 3};
    util_submit(engine, &q);
    util_run(engine, &r, 1);
    assert_true(r.done);
    assert_int_equal(r.prompt_tokens + r.n, N_IDS);
    assert_memory_equal(r.tokens, ids + r.prompt_tokens, (size_t)r.n * sizeof(int32_t));
    assert_int_equal(r.text.len, strlen(text));
    assert_memory_equal(r.text.data, text, r.text.len);
    util_free(&r, 1);
    ol_engine_close(engine);
}

static void test_story_portable(void **state)
{
    (void)state;
    check_story("portable");
}

static void test_story_fast(void **state)
{
    (void)state;
    check_story("auto");
}

static void test_prompt_ids(void **state)
{
    ol_engine_options options;
    ol_engine *engine;
    ol_tokens have;

    (void)state;
    if (!folder[0])
        skip();
    options = util_options(folder);
    engine = util_open(&options);
    must(ol_engine_tokenize(engine, (ol_text){"Zoo was a little girl named Lily.", 33}, true, false,
                            &have, &err),
         &err);
    assert_in_range(have.n, 5, (size_t)N_IDS);
    assert_memory_equal(have.ids, ids, have.n * sizeof(int32_t));
    free(have.ids);
    ol_engine_close(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_story_portable),
        cmocka_unit_test(test_story_fast),
        cmocka_unit_test(test_prompt_ids),
    };

    return cmocka_run_group_tests(tests, convert, clean);
}
