/*
 * test_tokenizer_hostile.c: texts and files that nobody vouches for. Files are small
 * ones written here, cut short and changed at random from a fixed seed; the point is
 * that nothing worse than an error value happens, under sanitizers too.
 */
#include "test_tokenizer_util.h"

#define ROUNDS 4000

/* ------------------------------------------------------------------- small files */

static const char json_bytes[] =
    "{\"added_tokens\":[{\"id\":9,\"content\":\"<s>\",\"special\":true,\"lstrip\":true},"
    "{\"id\":10,\"content\":\"cat\",\"single_word\":true,\"normalized\":true}],"
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},"
    "{\"type\":\"Lowercase\"},{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":false}]},"
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
    "\"pattern\":{\"Regex\":\"\\\\p{N}{1,3}|[^\\\\s]+\\\\w*\"},\"behavior\":\"MergedWithNext\"},"
    "{\"type\":\"Punctuation\"},{\"type\":\"ByteLevel\",\"add_prefix_space\":true},"
    "{\"type\":\"Digits\",\"individual_digits\":true}]},"
    "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":"
    "\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"<s>\":{\"ids\":[9]}}},"
    "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"unk_token\":\"u\","
    "\"ignore_merges\":false,\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"u\":3,\"\\u0120\":4,"
    "\"\\u0120a\":5,\"\\u00e2\":6,\"1\":7,\"abb\":8},"
    "\"merges\":[\"a b\",[\"\\u0120\",\"a\"],\"ab b\"]}}";

static const char json_chars[] =
    "{\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true,\"normalized\":true}],"
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":"
    "\"\\u2581\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\\u2581\"}]},"
    "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_scheme\":"
    "\"first\",\"split\":true},\"post_processor\":null,"
    "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":"
    "{\"String\":\"\\u2581\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"
    "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},"
    "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,\"byte_fallback\":true,"
    "\"vocab\":{\"<unk>\":0,\"<0xC3>\":1,\"<0xA9>\":2,\"\\u2581\":3,\"a\":4,\"\\u2581a\":5},"
    "\"merges\":[\"\\u2581 a\"]}}";

static void put_varint(ol_buf *buf, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        ol_buf_put_u8(buf, (uint8_t)(v | 0x80));
    ol_buf_put_u8(buf, (uint8_t)v);
}

static void put_piece(ol_buf *buf, const char *text, float score, int type)
{
    ol_buf piece = {0};

    ol_buf_put_u8(&piece, 0x0A);
    put_varint(&piece, strlen(text));
    ol_buf_put(&piece, text, strlen(text));
    ol_buf_put_u8(&piece, 0x15);
    ol_buf_put_f32(&piece, score);
    ol_buf_put_u8(&piece, 0x18);
    put_varint(&piece, (uint64_t)type);
    ol_buf_put_u8(buf, 0x0A);
    put_varint(buf, piece.len);
    ol_buf_put(buf, piece.data, piece.len);
    ol_buf_free(&piece);
}

/* A SentencePiece model: BPE, identity normalization, some byte tokens. */
static ol_buf small_spm(void)
{
    static const uint8_t trainer[] = {0x12, 2, 0x18, 2}, normalizer[] = {0x1A, 4, 0x18, 1, 0x20, 1};
    ol_buf buf = {0};

    put_piece(&buf, "<unk>", 0, 2);
    put_piece(&buf, "<s>", 0, 3);
    put_piece(&buf, "</s>", 0, 3);
    put_piece(&buf, "<0xC3>", 0, 6);
    put_piece(&buf, "<0xA9>", 0, 6);
    put_piece(&buf, "<sep>", 0, 4);
    put_piece(&buf, "\xE2\x96\x81", -1, 1);
    put_piece(&buf, "a", -2, 1);
    put_piece(&buf, "b", -3, 1);
    put_piece(&buf, "ab", -4, 1);
    put_piece(&buf,
              "\xE2\x96\x81"
              "ab",
              -5, 1);
    put_piece(&buf, "zz", -6, 5);
    ol_buf_put(&buf, trainer, sizeof(trainer));
    ol_buf_put(&buf, normalizer, sizeof(normalizer));
    return buf;
}

static ol_buf small_ranks(void)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    ol_buf buf = {0};

    for (int b = 0; b < 256; b++)
        ol_buf_printf(&buf, "%c%c== %d\n", digits[b >> 2], digits[(b & 3) << 4], b);
    ol_buf_printf(&buf, "YWI= 256\nYWJi 257\n"); /* ab, abb */
    return buf;
}

static ol_buf small_llama2c(void)
{
    ol_buf buf = {0};

    ol_buf_put_u32(&buf, 7);
    for (int i = 0; i < 264; i++) {
        char text[16];

        if (i >= 3 && i < 259)
            snprintf(text, sizeof(text), "<0x%02X>", i - 3);
        else
            snprintf(text, sizeof(text), "%s",
                     i == 0   ? "<unk>"
                     : i == 1 ? "\n<s>\n"
                     : i == 2 ? "\n</s>\n"
                              : ((const char *[]){" ", "a", "b", "ab", " ab"})[i - 259]);
        ol_buf_put_f32(&buf, i < 259 ? 0 : (float)(259 - i));
        ol_buf_put_u32(&buf, (uint32_t)strlen(text));
        ol_buf_put(&buf, text, strlen(text));
    }
    return buf;
}

/* ------------------------------------------------------------------- using it */

static ol_code open_kind(int kind, const void *bytes, size_t len, ol_tokenizer **tok)
{
    err.message[0] = '\0';
    switch (kind) {
    case 0:
        return ol_tokenizer_from_json(bytes, len, "x", tok, &err);
    case 1:
        return ol_tokenizer_from_spm(bytes, len, "x", tok, &err);
    case 2:
        return ol_tokenizer_from_tiktoken(bytes, len, OL_TOK_LLAMA3, "x", tok, &err);
    default:
        return ol_tokenizer_from_llama2c(bytes, len, 264, "x", tok, &err);
    }
}

/* Encodes, decodes and streams whatever text. */
static void use(const ol_tokenizer *tok, const char *text, size_t len, unsigned flags)
{
    int32_t vocab = ol_tokenizer_vocab_size(tok);
    ol_ids ids = {0};
    ol_span span;

    if (ol_tokenize(tok, text, len, flags, &ids, &err) == OL_OK) {
        for (size_t i = 0; i < ids.n; i++) {
            assert_in_range(ids.ids[i], 0, vocab - 1);
            assert_true(ol_tokenizer_text(tok, ids.ids[i], &span));
        }
        check_stream(tok, ids.ids, ids.n, 0);
        check_stream(tok, ids.ids, ids.n, OL_DETOK_SKIP_SPECIAL | OL_DETOK_CONTINUE);
    } else {
        assert_true(err.message[0] != '\0');
    }
    ol_ids_free(&ids);
    ol_tokenizer_find(tok, text, len < 8 ? len : 8);
}

static const char sample[] =
    "<s> ab abb\xC3\xA9 e\xCC\x81 cat 12345<sep>zz\n\xFF\xE2\x96 A-b \xE2\x96\x81 <unk>";

/* Cuts at every length, or changes bytes at random; the file is copied to a block of
 * its own length, so that reading over its end is seen. */
static void torture(int kind, const void *bytes, size_t len)
{
    uint64_t seed = 1234 + (uint64_t)kind;
    size_t opened = 0;

    for (size_t round = 0; round < len + ROUNDS; round++) {
        size_t n = round < len ? round : len;
        uint8_t *copy = malloc(n ? n : 1);
        ol_tokenizer *tok = NULL;

        memcpy(copy, bytes, n);
        for (uint32_t k = round < len ? 0 : random_u32(&seed) % 4 + 1; k > 0; k--) {
            size_t at = random_u32(&seed) % n;

            switch (random_u32(&seed) % 4) {
            case 0:
                copy[at] = (uint8_t)random_u32(&seed);
                break;
            case 1:
                copy[at] ^= (uint8_t)(1u << (random_u32(&seed) & 7));
                break;
            case 2: /* numbers without end */
                memset(copy + at, 0xFF, n - at < 12 ? n - at : 12);
                break;
            default: /* copy something over from elsewhere */
                copy[at] = copy[random_u32(&seed) % n];
            }
        }
        if (open_kind(kind, copy, n, &tok) == OL_OK) {
            use(tok, sample, sizeof(sample) - 1, OL_TOK_ADD_DEFAULTS | OL_TOK_PARSE_SPECIAL);
            ol_tokenizer_free(tok);
            opened++;
        } else {
            assert_null(tok);
            assert_true(err.message[0] != '\0');
        }
        free(copy);
    }
    print_message("%zu of %d changed files opened\n", opened, ROUNDS);
    assert_true(opened > ROUNDS / 50); /* or the test would test error paths alone */
}

static void torture_json(void **state)
{
    (void)state;
    ol_tokenizer_free(open_json(json_bytes));
    ol_tokenizer_free(open_json(json_chars));
    torture(0, json_bytes, sizeof(json_bytes) - 1);
    torture(0, json_chars, sizeof(json_chars) - 1);
}

static void torture_buf(int kind, ol_buf buf)
{
    ol_tokenizer *tok;

    assert_false(buf.failed);
    must(open_kind(kind, buf.data, buf.len, &tok));
    use(tok, sample, sizeof(sample) - 1, 0);
    ol_tokenizer_free(tok);
    torture(kind, buf.data, buf.len);
    ol_buf_free(&buf);
}

static void torture_spm(void **state)
{
    (void)state;
    torture_buf(1, small_spm());
}

static void torture_ranks(void **state)
{
    (void)state;
    torture_buf(2, small_ranks());
}

static void torture_llama2c(void **state)
{
    (void)state;
    torture_buf(3, small_llama2c());
}

/* What a GGUF file may say: every field at random. */
typedef struct random_vocab {
    ol_gguf_vocab v;
    ol_span tokens[20], merges[4];
    float scores[20];
    int32_t types[20];
} random_vocab;

static const char *pick(uint64_t *seed, const char *const *from, size_t n)
{
    return from[random_u32(seed) % n];
}

static void random_tokens(random_vocab *r, uint64_t *seed, bool likely)
{
    static const char *const texts[] = {"<unk>", "<s>",    "</s>",   "a", "b", "ab",   "Ġ",
                                        "Ġa",    "<0xC3>", "<0xA9>", "",  "▁", "\xFF", "x y"};
    static const char *const merges[] = {"a b", "Ġ a", "ab ", " a", "q q", ""};

    r->v.n_tokens = random_u32(seed) % 20;
    r->v.n_merges = random_u32(seed) % 3;
    for (size_t i = 0; i < r->v.n_tokens; i++) {
        const char *t = i < 14 ? texts[i] : pick(seed, texts, 14);

        r->tokens[i] = (ol_span){t, strlen(t)};
        r->scores[i] = random_u32(seed) % 64 ? -(float)(random_u32(seed) % 8) : 0.0f / 0.0f;
        r->types[i] = random_u32(seed) % 3 ? 1 : (int32_t)(random_u32(seed) % 8);
    }
    for (size_t i = 0; i < r->v.n_merges; i++) {
        const char *m = pick(seed, merges, likely ? 2 : 6);

        r->merges[i] = (ol_span){m, strlen(m)};
    }
    r->v.tokens = r->tokens;
    r->v.merges = r->merges;
    r->v.scores = random_u32(seed) % 8 ? r->scores : NULL;
    r->v.types = random_u32(seed) % 2 ? r->types : NULL;
}

static void torture_gguf(void **state)
{
    static const char *const models[] = {"gpt2", "llama", "bert", NULL};
    static const char *const pres[] = {"gpt-2", "qwen2", "default", NULL, "", "?"};
    uint64_t seed = 99;
    size_t opened = 0;

    (void)state;
    for (int round = 0; round < ROUNDS; round++) {
        random_vocab r = {.v = OL_GGUF_VOCAB_INIT};
        ol_tokenizer *tok = NULL;

        random_tokens(&r, &seed, round % 2);
        r.v.model = pick(&seed, models, round % 8 ? 2 : 4);
        r.v.pre = pick(&seed, pres, 6);
        r.v.bos = (int32_t)(random_u32(&seed) % 12) - 1;
        r.v.unk = (int32_t)(random_u32(&seed) % 12) - 1;
        r.v.eos = random_u32(&seed) % 32 ? OL_NO_TOKEN : (int32_t)random_u32(&seed);
        r.v.add_space_prefix = (int8_t)(random_u32(&seed) % 3 - 1);
        r.v.remove_extra_whitespaces = (int8_t)(random_u32(&seed) % 3 - 1);
        r.v.rstrip_specials = random_u32(&seed) % 2;
        if (ol_tokenizer_from_gguf_vocab(&r.v, &tok, &err) != OL_OK)
            continue;
        use(tok, sample, sizeof(sample) - 1, OL_TOK_ADD_BOS | OL_TOK_PARSE_SPECIAL);
        ol_tokenizer_free(tok);
        opened++;
    }
    assert_in_range(opened, ROUNDS / 20, ROUNDS);
}

/* ------------------------------------------------------------------- texts */

/* Bytes -> ids -> the same bytes. */
static void check_lossless(const ol_tokenizer *tok, const char *text, size_t len)
{
    ol_ids ids = {0};
    ol_buf back = {0};

    must(ol_tokenize(tok, text, len, OL_TOK_CONTINUE, &ids, &err));
    must(ol_detokenize(tok, ids.ids, ids.n, OL_DETOK_CONTINUE | OL_DETOK_RAW, &back, &err));
    assert_int_equal(back.len, len);
    if (len > 0)
        assert_memory_equal(back.data, text, len);
    check_stream(tok, ids.ids, ids.n, 0);
    ol_ids_free(&ids);
    ol_buf_free(&back);
}

static void random_texts(const ol_tokenizer *tok)
{
    static const char *const parts[] = {"a",  " ",    "\n", "\xF0\x9F\x98\x80", "é",  "1",
                                        "'s", "\xFF", "\r", "\xE4\xBD\xA0",     "\t", "<|",
                                        "A",  "\xE2", ".",  "\xED\xA0\x80"};
    uint64_t seed = 5;

    for (int round = 0; round < 1000; round++) {
        char text[512];
        size_t len = 0;

        for (uint32_t k = random_u32(&seed) % 60; k > 0; k--) {
            const char *part = parts[random_u32(&seed) % 16];
            char byte = (char)random_u32(&seed);
            bool random = round % 2 != 0;
            size_t n = random ? 1 : strlen(part);

            memcpy(text + len, random ? &byte : part, n);
            len += n;
        }
        check_lossless(tok, text, len);
    }
}

static void long_runs(const ol_tokenizer *tok)
{
    static const char *const units[] = {
        "a", " ", "\n", ".", "7", "A", "\xFF", " \n", "\xF0\x9F\x98\x80", "<", "x "};
    size_t full = 1 << 20;
    char *text = malloc(full);

    for (size_t u = 0; u < sizeof(units) / sizeof(units[0]); u++) {
        size_t n = strlen(units[u]), len = u < 2 ? full : full / 16;

        for (size_t i = 0; i < len; i++)
            text[i] = units[u][i % n];
        check_lossless(tok, text, len);
        text[len - 1] = 'x'; /* what stands after a run decides where it is cut */
        check_lossless(tok, text, len);
    }
    free(text);
}

static void texts_gpt2(void **state)
{
    ol_tokenizer *tok;

    (void)state;
    NEED("hf-tokenizers/gpt2_tokenizer.json");
    tok = open_file("hf-tokenizers/gpt2_tokenizer.json");
    random_texts(tok);
    long_runs(tok);
    ol_tokenizer_free(tok);
}

static void texts_llama3(void **state)
{
    ol_tokenizer *tok;

    (void)state;
    NEED("llama3-tokenizer/tokenizer.model");
    tok = open_file("llama3-tokenizer/tokenizer.model");
    random_texts(tok);
    long_runs(tok);
    ol_tokenizer_free(tok);
}

static void texts_llama2(void **state)
{
    ol_tokenizer *tok;

    (void)state;
    NEED("llama2-spm-tokenizer/tokenizer.model");
    tok = open_file("llama2-spm-tokenizer/tokenizer.model");
    random_texts(tok);
    long_runs(tok);
    ol_tokenizer_free(tok);
}

/* A million combining marks on one letter, in the worst order. */
static void long_marks(void **state)
{
    ol_tokenizer *tok = open_json(json_bytes);
    size_t len = 1 << 20;
    char *text = malloc(len);
    ol_ids ids = {0};

    (void)state;
    for (size_t i = 0; i < len; i += 4)
        memcpy(text + i, "\xCC\x81\xCC\xA3", 4); /* classes 230 and 220 */
    must(ol_tokenize(tok, text, len, 0, &ids, &err));
    ol_ids_free(&ids);
    free(text);
    ol_tokenizer_free(tok);
}

static void too_long(void **state)
{
    ol_tokenizer *tok = open_json(json_chars);
    ol_ids ids = {0};

    (void)state;
    assert_int_equal(ol_tokenize(tok, "a", OL_TOK_MAX_TEXT + 1, 0, &ids, &err), OL_LIMIT);
    assert_int_equal(ids.n, 0);
    ol_tokenizer_free(tok);
}

/* A pattern that backtracks without end gives an error, not a hang. */
static void runaway_pattern(void **state)
{
    static const char json[] =
        "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a|a)*b(?=c)\"},"
        "\"behavior\":\"Isolated\"},\"decoder\":{\"type\":\"Fuse\"},"
        "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}}";
    ol_tokenizer *tok = open_json(json);
    ol_ids ids = {0};
    char text[64];

    (void)state;
    memset(text, 'a', sizeof(text));
    text[sizeof(text) - 1] = 'b'; /* the pattern wants one, or it does not try */
    assert_int_equal(ol_tokenize(tok, text, sizeof(text), 0, &ids, &err), OL_LIMIT);
    assert_int_equal(ids.n, 0);
    ol_ids_free(&ids);
    ol_tokenizer_free(tok);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(torture_json),    cmocka_unit_test(torture_spm),
        cmocka_unit_test(torture_ranks),   cmocka_unit_test(torture_llama2c),
        cmocka_unit_test(torture_gguf),    cmocka_unit_test(texts_gpt2),
        cmocka_unit_test(texts_llama3),    cmocka_unit_test(texts_llama2),
        cmocka_unit_test(long_marks),      cmocka_unit_test(too_long),
        cmocka_unit_test(runaway_pattern),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
