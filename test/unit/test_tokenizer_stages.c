/*
 * test_tokenizer_stages.c: normalizers and pre-tokenizers one by one, against the
 * examples in the manual of Hugging Face's tokenizers and against utf8proc.
 */
#include "test_tokenizer_util.h"

#include <utf8proc.h>

#include "engine/tokenizer/tok_internal.h"

static ol_tokenizer *with_stages(const char *normalizer, const char *pre)
{
    bool bytes = strstr(pre, "ByteLevel") != NULL;
    char *json = make_json(normalizer, pre, bytes ? "{\"type\":\"ByteLevel\"}" : fuse, "[]", tiny);
    ol_tokenizer *tok = open_json(json);

    free(json);
    return tok;
}

/* ------------------------------------------------------------------- stages */

/* The pieces of a text, joined by '|'. */
static void check_pieces(const char *pre, const char *text, const char *want)
{
    ol_tokenizer *tok = with_stages("null", pre);
    tok_work work = {.tok = tok, .err = &err, .first = true, .matcher = tok_matcher_new()};
    const tok_pieces *pieces;
    ol_buf got = {0};
    ol_span base;

    must(tok_pretokenize(&work, (ol_span){text, strlen(text)}, &base, &pieces));
    for (size_t i = 0; i < pieces->n; i++) {
        ol_buf_printf(&got, i ? "|" : "");
        ol_buf_put(&got, base.data + pieces->items[i].off, pieces->items[i].len);
    }
    ol_buf_put_u8(&got, 0);
    assert_string_equal((char *)got.data, want);
    ol_buf_free(&got);
    tok_work_free(&work);
    ol_tokenizer_free(tok);
}

#define SPLIT(behaviour)                                                                           \
    "{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"" behaviour                 \
    "\",\"invert\":false}"

/* The examples of the tokenizers library's manual. */
static void split_behaviours(void **state)
{
    const char *text = "the-final--countdown";

    (void)state;
    check_pieces(SPLIT("Removed"), text, "the|final|countdown");
    check_pieces(SPLIT("Isolated"), text, "the|-|final|-|-|countdown");
    check_pieces(SPLIT("MergedWithPrevious"), text, "the-|final-|-|countdown");
    check_pieces(SPLIT("MergedWithNext"), text, "the|-final|-|-countdown");
    check_pieces(SPLIT("Contiguous"), text, "the|-|final|--|countdown");
    check_pieces("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a-z]+\"},\"behavior\":\"Removed\","
                 "\"invert\":true}",
                 text, "the|final|countdown");
}

static void pre_tokenizers(void **state)
{
    (void)state;
    check_pieces("null", "a b", "a b");
    check_pieces("{\"type\":\"Whitespace\"}", "Hey man!? No", "Hey|man|!?|No");
    check_pieces("{\"type\":\"WhitespaceSplit\"}", " Hey  man! ", "Hey|man!");
    check_pieces("{\"type\":\"Digits\",\"individual_digits\":true}", "Hey 123 you",
                 "Hey |1|2|3| you");
    check_pieces("{\"type\":\"Digits\",\"individual_digits\":false}", "Hey 123 you",
                 "Hey |123| you");
    check_pieces("{\"type\":\"Punctuation\"}", "Hey friend! How?!?", "Hey friend|!| How|?|!|?");
    check_pieces("{\"type\":\"Punctuation\",\"behavior\":\"Contiguous\"}", "a!?b", "a|!?|b");
    check_pieces(
        "{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_scheme\":\"always\","
        "\"split\":true}",
        "Hey   you", "▁Hey|▁|▁|▁you");
    check_pieces("{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_scheme\":\"never\","
                 "\"split\":false}",
                 "Hey you", "Hey▁you");
    check_pieces("{\"type\":\"ByteLevel\",\"add_prefix_space\":true}", "Hello  my Friend's",
                 " Hello| | my| Friend|'s");
    check_pieces("{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}", "a b",
                 "a b");
    /* Falcon's order: stages after ByteLevel see its alphabet, and the bytes come back. */
    check_pieces("{\"type\":\"Sequence\",\"pretokenizers\":["
                 "{\"type\":\"Punctuation\",\"behavior\":\"Contiguous\"},"
                 "{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
                 "{\"type\":\"Digits\",\"individual_digits\":false},"
                 "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[0-9][0-9][0-9]\"},"
                 "\"behavior\":\"Isolated\",\"invert\":false}]}",
                 "In 12345 é!?", "In| |123|45| é|!?");
}

/* What PCRE2 by itself would see differently from Oniguruma. */
static void patterns(void **state)
{
    static const struct {
        const char *pattern, *text, *want;
    } cases[] = {
        /* U+180E is no white space */
        {"\\\\s+", "a \xC2\xA0\xE3\x80\x80z\xE1\xA0\x8Ez",
         "a| \xC2\xA0\xE3\x80\x80|z\xE1\xA0\x8Ez"},
        {"[^\\\\s]+", "a b", "a| |b"},
        {"\\\\S", "ab c", "a|b| |c"},
        {"\\\\w+", "a\xCC\x81_1-b", "a\xCC\x81_1|-|b"},
        {"a$", "a\na b", "a|\na b"}, /* $ is the end of a line */
        {"\\\\s+$", "a  \nb  ", "a|  |\nb|  "},
        {"\\\\d+", "1\xD9\xA1-x", "1\xD9\xA1|-x"}, /* digits of all scripts */
        {"[]a]+", "x]a]y", "x|]a]|y"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char pre[256];

        snprintf(pre, sizeof(pre),
                 "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%s\"},\"behavior\":\"Isolated\"}",
                 cases[i].pattern);
        check_pieces(pre, cases[i].text, cases[i].want);
    }
}

static void known_patterns(void **state)
{
    static const char *const names[] = {
        "llama-bpe", "qwen2",          "gpt-2",        "mpt",     "starcoder",
        "falcon",    "deepseek-coder", "deepseek-llm", "default", "tekken",
        "gpt-4o",    "deepseek-v3",    "olmo",         "smollm",  "dbrx"};

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const tok_known_pre *pre = tok_known_pre_find(names[i]);
        ol_tokenizer *tok;

        assert_non_null(pre);
        must(tok_new(&tok, &err));
        must(tok_known_pre_apply(tok, pre, &err));
        assert_true(tok->n_pres > 0);
        ol_tokenizer_free(tok);
    }
    assert_null(tok_known_pre_find(""));
    assert_null(tok_known_pre_find("qwen"));
    assert_null(tok_known_pre_find("gpt-2 phi-2"));
}

static void check_norm(const char *normalizer, const char *text, const char *want)
{
    ol_tokenizer *tok = with_stages(normalizer, "null");
    tok_work work = {.tok = tok, .err = &err, .first = true, .matcher = tok_matcher_new()};
    ol_span got = {text, strlen(text)};

    must(tok_normalize(&work, &got));
    if (got.len != strlen(want) || memcmp(got.data, want, got.len) != 0)
        fail_msg("%s: expected \"%s\", got \"%.*s\"", normalizer, want, (int)got.len, got.data);
    tok_work_free(&work);
    ol_tokenizer_free(tok);
}

static void normalizers(void **state)
{
    (void)state;
    check_norm("{\"type\":\"NFC\"}", "plain é", "plain é");
    check_norm("{\"type\":\"NFC\"}", "e\xCC\x81 \xE2\x84\xAB", "é Å");
    check_norm("{\"type\":\"NFC\"}", "\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB", "한");
    check_norm("{\"type\":\"NFC\"}", "q\xCC\x87\xCC\xA3", "q\xCC\xA3\xCC\x87");
    check_norm("{\"type\":\"NFD\"}", "é", "e\xCC\x81");
    check_norm("{\"type\":\"NFKC\"}", "ﬁ①", "fi1");
    check_norm("{\"type\":\"Lowercase\"}", "ÀBİ", "àbi\xCC\x87");
    check_norm("{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":true}", " \t a b\n ",
               "a b");
    check_norm("{\"type\":\"Prepend\",\"prepend\":\"_\"}", "a", "_a");
    check_norm("{\"type\":\"Prepend\",\"prepend\":\"_\"}", "", "");
    check_norm("{\"type\":\"Replace\",\"pattern\":{\"Regex\":\" {2,}\"},\"content\":\"-\"}",
               "a   b c", "a-b c");
    check_norm("{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"▁\"},"
               "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"▁\"}]}",
               " a b", "▁▁a▁b");
}

/* Against utf8proc's own NFC, which is only slower on long runs of marks. */
static void nfc_random(void **state)
{
    ol_tokenizer *tok = with_stages("{\"type\":\"NFC\"}", "null");
    uint64_t seed = 42;

    (void)state;
    for (int round = 0; round < 3000; round++) {
        tok_work work = {.tok = tok, .err = &err};
        uint8_t text[1024];
        size_t n = 0, want_len;
        ol_span got;
        uint8_t *want;

        for (int i = 0, len = (int)(random_u32(&seed) % 80) + 1; i < len; i++) {
            static const uint32_t from[] = {0x41,  0x300,  0x300,  0x1100,
                                            0x900, 0x1E00, 0xAC00, 0x20000};
            uint32_t cp = from[random_u32(&seed) % 8] + random_u32(&seed) % 96;

            n += tok_utf8_put(cp, text + n);
        }
        text[n] = 0;
        got = (ol_span){(char *)text, n};
        must(tok_normalize(&work, &got));
        want = utf8proc_NFC(text);
        want_len = strlen((char *)want);
        assert_int_equal(got.len, want_len);
        assert_memory_equal(got.data, want, want_len);
        free(want);
        tok_work_free(&work);
    }
    ol_tokenizer_free(tok);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(split_behaviours), cmocka_unit_test(pre_tokenizers),
        cmocka_unit_test(patterns),         cmocka_unit_test(known_patterns),
        cmocka_unit_test(normalizers),      cmocka_unit_test(nfc_random),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
