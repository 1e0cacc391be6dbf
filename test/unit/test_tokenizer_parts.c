/*
 * test_tokenizer_parts.c: the parts of a tokenizer one by one, with small vocabularies
 * written here: merging against a plain definition, added tokens, decoding,
 * configuration files, and what is refused.
 */
#include "test_tokenizer_util.h"

#include "engine/tokenizer/tok_internal.h"

/* ------------------------------------------------------------------- merging */

/* The definition, in the plainest way: lowest rank, then leftmost. */
static size_t plain_bpe(const ol_tokenizer *tok, int32_t *ids, size_t n)
{
    for (;;) {
        const tok_merge *best = NULL;
        size_t at = 0;

        for (size_t i = 0; i + 1 < n; i++) {
            const tok_merge *m = tok_merges_find(&tok->merges, ids[i], ids[i + 1]);

            if (m && (!best || m->rank < best->rank)) {
                best = m;
                at = i;
            }
        }
        if (!best)
            return n;
        ids[at] = best->id;
        memmove(ids + at + 1, ids + at + 2, (n - at - 2) * sizeof(*ids));
        n--;
    }
}

/* Tokens over {a,b,c} that are joined at random from earlier ones. */
static ol_tokenizer *random_merges(uint64_t *seed)
{
    char keys[60][25] = {"a", "b", "c"}, joined[25];
    int n = 3, tries = 0;
    ol_buf vocab = {0}, merges = {0};
    ol_tokenizer *tok;
    char *json;

    while (n < 60 && tries++ < 500) {
        const char *l = keys[random_u32(seed) % (uint32_t)n],
                   *r = keys[random_u32(seed) % (uint32_t)n];
        bool known = strlen(l) + strlen(r) >= 12;

        snprintf(joined, sizeof(joined), "%.12s%.12s", l, r);
        for (int i = 0; i < n; i++)
            known |= strcmp(keys[i], joined) == 0;
        if (known)
            continue;
        memcpy(keys[n], joined, sizeof(joined));
        ol_buf_printf(&merges, "%s\"%s %s\"", merges.len ? "," : "", l, r);
        n++;
    }
    for (int i = 0; i < n; i++)
        ol_buf_printf(&vocab, "%s\"%s\":%d", i ? "," : "", keys[i], i);
    ol_buf_put_u8(&vocab, 0);
    ol_buf_put_u8(&merges, 0);
    json = malloc(vocab.len + merges.len + 100);
    sprintf(json, "{\"type\":\"BPE\",\"vocab\":{%s},\"merges\":[%s]}", (char *)vocab.data,
            (char *)merges.data);
    ol_buf_free(&vocab);
    ol_buf_free(&merges);
    {
        char *whole = make_json("null", "null", fuse, "[]", json);

        tok = open_json(whole);
        free(whole);
    }
    free(json);
    return tok;
}

static void merging(void **state)
{
    uint64_t seed = 7;

    (void)state;
    for (int round = 0; round < 40; round++) {
        ol_tokenizer *tok = random_merges(&seed);

        for (int text_no = 0; text_no < 60; text_no++) {
            char text[200];
            int32_t ids[200];
            size_t len = random_u32(&seed) % 60 + (text_no % 3 ? 0 : 100), n;

            for (size_t i = 0; i < len; i++) {
                text[i] = (char)('a' + random_u32(&seed) % (text_no % 5 ? 3 : 1));
                ids[i] = text[i] - 'a';
            }
            n = plain_bpe(tok, ids, len);
            check_encode(tok, text, len, 0, ids, n);
            check_decode(tok, ids, n, 0, text, len);
        }
        ol_tokenizer_free(tok);
    }
}

/* A long run takes work in proportion to its length, not to its square. */
static void merging_is_bounded(void **state)
{
    char *json =
        make_json("null", "null", fuse, "[]",
                  "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"aa\":1,\"aaaa\":2,\"aaaaaaaa\":3},"
                  "\"merges\":[\"a a\",[\"aa\",\"aa\"],\"aaaa aaaa\"]}");
    ol_tokenizer *tok = open_json(json);
    size_t n = 1 << 20;
    char *text = malloc(n);
    ol_ids ids = {0};
    tok_work work = {.tok = tok, .err = &err, .out = &ids};

    (void)state;
    memset(text, 'a', n);
    must(tok_bpe(&work, (uint8_t *)text, n));
    assert_int_equal(ids.n, n / 8);
    assert_int_equal(ids.ids[0], 3);
    assert_in_range(work.n_candidates, n / 2, 3 * n);
    tok_work_free(&work);
    ol_ids_free(&ids);
    free(text);
    free(json);
    ol_tokenizer_free(tok);
}

static void unknown_characters(void **state)
{
    static const char model[] =
        "{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":%s,\"byte_fallback\":%s,"
        "\"vocab\":{\"<unk>\":0,\"a\":1,\"<0xC3>\":2,\"<0xA9>\":3},\"merges\":[]}";
    static const struct {
        const char *fuse_unk, *fallback;
        int32_t ids[6];
        size_t n;
    } cases[] = {
        {"false", "false", {1, 0, 0, 0, 1}, 5},
        {"true", "false", {1, 0, 1}, 3},
        {"true", "true", {1, 2, 3, 0, 1}, 5},
    };

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        char text[400], *json;
        ol_tokenizer *tok;

        snprintf(text, sizeof(text), model, cases[i].fuse_unk, cases[i].fallback);
        json = make_json("null", "null",
                         "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"ByteFallback\"},"
                         "{\"type\":\"Fuse\"}]}",
                         "[{\"id\":0,\"content\":\"<unk>\",\"special\":true}]", text);
        tok = open_json(json);
        assert_int_equal(ol_tokenizer_unk(tok), 0);
        check_encode(tok, "aéxya", 6, 0, cases[i].ids, cases[i].n);
        ol_tokenizer_free(tok);
        free(json);
    }
}

/* ------------------------------------------------------------------- added tokens */

static void added_tokens(void **state)
{
    static const char added[] =
        "[{\"id\":10,\"content\":\"<s>\",\"normalized\":false,\"special\":true},"
        "{\"id\":11,\"content\":\"<l>\",\"normalized\":false,\"special\":true,\"lstrip\":true},"
        "{\"id\":12,\"content\":\"<r>\",\"normalized\":false,\"special\":true,\"rstrip\":true},"
        "{\"id\":13,\"content\":\"cat\",\"normalized\":false,\"single_word\":true},"
        "{\"id\":14,\"content\":\"<s>s\",\"normalized\":false},"
        "{\"id\":15,\"content\":\"(a)\",\"normalized\":false,\"special\":true},"
        "{\"id\":16,\"content\":\"a)\",\"normalized\":false}]";
    static const char model[] =
        "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\" \":1,\"c\":2,\"t\":3,\"<\":4,"
        "\"s\":5,\">\":6,\"l\":7,\"r\":8},\"merges\":[]}";
    char *json = make_json("null", "null", fuse, added, model);
    ol_tokenizer *tok = open_json(json);
    unsigned parse = OL_TOK_PARSE_SPECIAL;

    (void)state;
    check_encode(tok, "a<s>a", 5, parse, (int32_t[]){0, 10, 0}, 3);
    check_encode(tok, "a<s>a", 5, 0, (int32_t[]){0, 4, 5, 6, 0}, 5);
    check_encode(tok, "a<s>sa", 6, parse, (int32_t[]){0, 14, 0}, 3); /* the longest */
    check_encode(tok, "a<s>sa", 6, 0, (int32_t[]){0, 14, 0}, 3);     /* not special */
    check_encode(tok, "a  <l> a", 8, parse, (int32_t[]){0, 11, 1, 0}, 4);
    check_encode(tok, "a <r>  a", 8, parse, (int32_t[]){0, 1, 12, 0}, 4);
    check_encode(tok, "cat acat cat", 12, 0, (int32_t[]){13, 1, 0, 2, 0, 3, 1, 13}, 8);
    check_encode(tok, "<s><s>", 6, parse, (int32_t[]){10, 10}, 2);
    check_encode(tok, "(a)", 3, parse, (int32_t[]){15}, 1);
    check_encode(tok, "(a)", 3, 0, (int32_t[]){0}, 1); /* plain text is not looked into */
    check_encode(tok, "", 0, parse, NULL, 0);
    check_decode(tok, (int32_t[]){0, 10, 0}, 3, 0, "a<s>a", 5);
    check_decode(tok, (int32_t[]){0, 10, 0}, 3, OL_DETOK_SKIP_SPECIAL, "aa", 2);
    assert_true(ol_tokenizer_is_special(tok, 10));
    assert_false(ol_tokenizer_is_special(tok, 13));
    assert_false(ol_tokenizer_is_special(tok, -1));
    assert_false(ol_tokenizer_is_special(tok, 99));
    assert_int_equal(ol_tokenizer_find(tok, "cat", 3), 13);
    assert_int_equal(ol_tokenizer_find(tok, "t", 1), 3);
    assert_int_equal(ol_tokenizer_find(tok, "dog", 3), OL_NO_TOKEN);
    ol_tokenizer_free(tok);
    free(json);
}

/* ------------------------------------------------------------------- decoding */

static ol_tokenizer *gguf_spm(const ol_gguf_vocab *more)
{
    static const ol_span tokens[] = {{"<unk>", 5},
                                     {"<s>", 3},
                                     {"</s>", 4},
                                     {"<0xE2>", 6},
                                     {"<0x82>", 6},
                                     {"<0xAC>", 6},
                                     {"\xE2\x96\x81", 3},
                                     {"a", 1},
                                     {"\xE2\x96\x81"
                                      "a",
                                      4},
                                     {"<|u|>", 5},
                                     {"é", 2}};
    static const float scores[] = {0, 0, 0, 0, 0, 0, -1, -2, -3, 0, -4};
    static const int32_t types[] = {2, 3, 3, 6, 6, 6, 1, 1, 1, 3, 1};
    ol_gguf_vocab v = more ? *more : (ol_gguf_vocab)OL_GGUF_VOCAB_INIT;
    ol_tokenizer *tok = NULL;

    v.model = "llama";
    v.n_tokens = 11;
    v.tokens = tokens;
    v.scores = scores;
    v.types = types;
    v.bos = 1;
    v.eos = 2;
    v.unk = 0;
    must(ol_tokenizer_from_gguf_vocab(&v, &tok, &err));
    return tok;
}

static void leading_space(void **state)
{
    ol_tokenizer *tok = gguf_spm(NULL);

    (void)state;
    assert_true(ol_tokenizer_adds_bos(tok));
    check_encode(tok, "a a", 3, OL_TOK_ADD_DEFAULTS, (int32_t[]){1, 8, 8}, 3);
    check_encode(tok, "a a", 3, OL_TOK_CONTINUE, (int32_t[]){7, 8}, 2);
    check_encode(tok, "a", 1, OL_TOK_ADD_EOS, (int32_t[]){8, 2}, 2);
    check_decode(tok, (int32_t[]){8, 8}, 2, 0, "a a", 3);
    check_decode(tok, (int32_t[]){8, 8}, 2, OL_DETOK_CONTINUE, " a a", 4);
    check_decode(tok, (int32_t[]){1, 8}, 2, OL_DETOK_SKIP_SPECIAL, "a", 1);
    check_decode(tok, (int32_t[]){1, 8}, 2, 0, "<s> a", 5);
    check_decode(tok, (int32_t[]){6, 8}, 2, 0, " a", 2); /* one space, no more */
    check_decode(tok, NULL, 0, 0, "", 0);
    ol_tokenizer_free(tok);
}

static void broken_characters(void **state)
{
    ol_tokenizer *tok = gguf_spm(NULL);
    ol_detok d = ol_detok_begin(tok, 0);
    ol_buf out = {0};

    (void)state;
    check_encode(tok, "€", 3, OL_TOK_CONTINUE, (int32_t[]){3, 4, 5}, 3);
    check_decode(tok, (int32_t[]){3, 4, 5}, 3, 0, "€", 3);
    check_decode(tok, (int32_t[]){3, 4}, 2, 0, "\xEF\xBF\xBD", 3);
    check_decode(tok, (int32_t[]){3, 4, 7}, 3, 0,
                 "\xEF\xBF\xBD"
                 "a",
                 4);
    check_decode(tok, (int32_t[]){4, 5, 3}, 3, 0, "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD", 9);
    check_decode(tok, (int32_t[]){3, 3, 4, 5}, 4, 0, "\xEF\xBF\xBD€", 6);
    check_decode(tok, (int32_t[]){3, 10}, 2, 0, "\xEF\xBF\xBDé", 5);
    must(ol_detok_push(&d, 3, &out, &err)); /* held back */
    must(ol_detok_push(&d, 4, &out, &err));
    assert_int_equal(out.len, 0);
    must(ol_detok_push(&d, 5, &out, &err));
    assert_int_equal(out.len, 3);
    assert_int_equal(ol_detok_push(&d, 11, &out, &err), OL_INVALID);
    assert_int_equal(ol_detok_push(&d, -1, &out, &err), OL_INVALID);
    assert_int_equal(ol_detokenize(tok, (int32_t[]){7, 11}, 2, 0, &out, &err), OL_INVALID);
    assert_int_equal(out.len, 3);
    out.len = 0;
    must(ol_detokenize(tok, (int32_t[]){3, 4}, 2, OL_DETOK_RAW, &out, &err));
    assert_int_equal(out.len, 2);
    ol_buf_free(&out);
    ol_tokenizer_free(tok);
}

static void invalid_text(void **state)
{
    ol_tokenizer *tok = gguf_spm(NULL);

    (void)state;
    check_encode(tok, "a\x82\xAC", 3, 0, (int32_t[]){8, 4, 5}, 3);
    check_encode(tok,
                 "a\xFF\xFE"
                 "a",
                 4, 0, (int32_t[]){8, 0, 7}, 3); /* unk, fused */
    check_encode(tok, "a\xE2\x82", 3, 0, (int32_t[]){8, 3, 4}, 3);
    ol_tokenizer_free(tok);
}

static void special_strip(void **state)
{
    ol_gguf_vocab v = OL_GGUF_VOCAB_INIT;
    ol_tokenizer *tok;

    (void)state;
    v.add_space_prefix = 0;
    v.rstrip_specials = true;
    v.eot = 9;
    tok = gguf_spm(&v);
    check_encode(tok, "<|u|>\n a", 8, OL_TOK_PARSE_SPECIAL, (int32_t[]){9, 7}, 2);
    assert_true(ol_tokenizer_is_eog(tok, 9));
    assert_true(ol_tokenizer_is_eog(tok, 2));
    ol_tokenizer_free(tok);
}

/* ------------------------------------------------------------------- folders */

static void write_file(const char *folder, const char *name, const char *text)
{
    char path[512];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void folder(void **state)
{
    static const char *const files[] = {"tokenizer.json", "tokenizer_config.json",
                                        "special_tokens_map.json", "generation_config.json",
                                        "config.json"};
    char dir[] = "/tmp/openlora-tokenizer-XXXXXX", path[600];
    char *json = make_json("null", "null", fuse,
                           "[{\"id\":1,\"content\":\"<s>\",\"special\":true},"
                           "{\"id\":2,\"content\":\"</s>\",\"special\":true},"
                           "{\"id\":3,\"content\":\"<|im_end|>\",\"special\":true},"
                           "{\"id\":4,\"content\":\"<stop>\",\"special\":true}]",
                           tiny);
    const int32_t *eog;
    ol_tokenizer *tok;
    size_t n;

    (void)state;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(ol_tokenizer_from_hf(dir, &tok, &err), OL_NOT_FOUND);
    write_file(dir, files[0], json);
    must(ol_tokenizer_from_hf(dir, &tok, &err)); /* the tokenizer alone */
    assert_int_equal(ol_tokenizer_bos(tok), OL_NO_TOKEN);
    assert_int_equal(ol_tokenizer_eos(tok), OL_NO_TOKEN);
    ol_tokenizer_free(tok);
    write_file(dir, files[1],
               "{\"bos_token\":{\"content\":\"<s>\"},\"eos_token\":\"</s>\","
               "\"add_bos_token\":true,\"pad_token\":null}");
    write_file(dir, files[2], "{\"eos_token\":\"<stop>\"}"); /* overruled */
    write_file(dir, files[3], "{\"eos_token_id\":[2,4,99]}");
    write_file(dir, files[4], "{\"eos_token_id\":2}");
    must(ol_tokenizer_from_hf(dir, &tok, &err));
    assert_int_equal(ol_tokenizer_bos(tok), 1);
    assert_int_equal(ol_tokenizer_eos(tok), 2);
    assert_true(ol_tokenizer_adds_bos(tok));
    assert_false(ol_tokenizer_adds_eos(tok));
    eog = ol_tokenizer_eog(tok, &n);
    assert_int_equal(n, 3);
    assert_memory_equal(eog, ((int32_t[]){2, 3, 4}), 12);
    must(ol_tokenizer_add_eog(tok, 0, &err));
    assert_true(ol_tokenizer_is_eog(tok, 0));
    assert_int_equal(ol_tokenizer_add_eog(tok, 5, &err), OL_INVALID);
    ol_tokenizer_free(tok);
    write_file(dir, files[3], "{");
    assert_int_equal(ol_tokenizer_from_hf(dir, &tok, &err), OL_CORRUPT);
    for (size_t i = 0; i < 5; i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, files[i]);
        unlink(path);
    }
    rmdir(dir);
    free(json);
}

/* ------------------------------------------------------------------- refusals */

static void check_refused(const char *normalizer, const char *pre, const char *decoder,
                          const char *model, const char *name)
{
    char *json = make_json(normalizer, pre, decoder, "[]", model);
    ol_tokenizer *tok = NULL;

    assert_int_equal(ol_tokenizer_from_json(json, strlen(json), "x", &tok, &err), OL_UNSUPPORTED);
    if (!strstr(err.message, name))
        fail_msg("\"%s\" does not name %s", err.message, name);
    assert_null(tok);
    free(json);
}

static void refusals(void **state)
{
    ol_gguf_vocab v = OL_GGUF_VOCAB_INIT;
    /* TrainerSpec { model_type: UNIGRAM } after one piece "a" */
    static const uint8_t unigram[] = {0x0A, 3, 0x0A, 1, 'a', 0x12, 2, 0x18, 1};
    ol_tokenizer *tok = NULL;
    ol_span token = {"a", 1};

    (void)state;
    check_refused("null", "null", fuse, "{\"type\":\"Unigram\",\"vocab\":[]}", "Unigram");
    check_refused("null", "null", fuse, "{\"type\":\"WordPiece\",\"vocab\":{}}", "WordPiece");
    check_refused("{\"type\":\"BertNormalizer\"}", "null", fuse, tiny, "BertNormalizer");
    check_refused("{\"type\":\"Precompiled\"}", "null", fuse, tiny, "Precompiled");
    check_refused("null", "{\"type\":\"UnicodeScripts\"}", fuse, tiny, "UnicodeScripts");
    check_refused("null", "null", "{\"type\":\"CTC\"}", tiny, "CTC");
    check_refused("null", "null", "null", tiny, "decoder");
    check_refused("null", "{\"type\":\"ByteLevel\"}", fuse, tiny, "decoder");
    check_refused("null", "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a&&b]\"}}", fuse, tiny,
                  "regular expression");
    check_refused("null", "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"}}", fuse, tiny,
                  "regular expression");
    check_refused("null", "null", fuse,
                  "{\"type\":\"BPE\",\"dropout\":0.1,\"vocab\":{\"a\":0},\"merges\":[]}",
                  "dropout");
    assert_int_equal(ol_tokenizer_from_spm(unigram, sizeof(unigram), "x", &tok, &err),
                     OL_UNSUPPORTED);
    assert_non_null(strstr(err.message, "UNIGRAM"));
    v.model = "bert";
    v.tokens = &token;
    v.n_tokens = 1;
    assert_int_equal(ol_tokenizer_from_gguf_vocab(&v, &tok, &err), OL_UNSUPPORTED);
    assert_non_null(strstr(err.message, "bert"));
    v.model = "gpt2";
    v.pre = "from-the-future";
    assert_int_equal(ol_tokenizer_from_gguf_vocab(&v, &tok, &err), OL_UNSUPPORTED);
    assert_non_null(strstr(err.message, "from-the-future"));
    v.pre = "gpt-2";
    v.eos = 1;
    assert_int_equal(ol_tokenizer_from_gguf_vocab(&v, &tok, &err), OL_CORRUPT);
}

static void rank_refusals(void **state)
{
    static const char *const files[] = {"",         "YQ== 0\nYg== 0\n", "YQ== 1\n",
                                        "YQ= 0\n",  "YQ== x\n",         "YQ==\n",
                                        "Y*== 0\n", "YQ== 99999999\n",  "YQ== 0\nYg== 0\nYw== 2\n"};
    ol_tokenizer *tok = NULL;

    (void)state;
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
        assert_int_not_equal(
            ol_tokenizer_from_tiktoken(files[i], strlen(files[i]), OL_TOK_LLAMA3, "x", &tok, &err),
            OL_OK);
    assert_int_equal(ol_tokenizer_from_tiktoken("YQ== 0\n", 7, OL_TOK_AUTO, "x", &tok, &err),
                     OL_UNSUPPORTED);
    must(ol_tokenizer_from_tiktoken("YQ== 0\nYg== 1", 13, OL_TOK_QWEN2, "x", &tok, &err));
    assert_int_equal(ol_tokenizer_find(tok, "<|endoftext|>", 13), 2);
    ol_tokenizer_free(tok);
}

/* What a SentencePiece file leaves out has a default: white space is collapsed, and a
 * space goes in front. */
static void spm_defaults(void **state)
{
    static const uint8_t model[] = {0x0A, 3,    0x0A, 1,    'a',  0x0A, 5,    0x0A,
                                    3,    0xE2, 0x96, 0x81, 0x12, 2,    0x18, 2};
    ol_tokenizer *tok = NULL;

    (void)state;
    must(ol_tokenizer_from_spm(model, sizeof(model), "x", &tok, &err));
    check_encode(tok, "  a   a ", 8, 0, (int32_t[]){1, 0, 1, 0}, 4);
    ol_tokenizer_free(tok);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merging),
        cmocka_unit_test(merging_is_bounded),
        cmocka_unit_test(unknown_characters),
        cmocka_unit_test(added_tokens),
        cmocka_unit_test(leading_space),
        cmocka_unit_test(broken_characters),
        cmocka_unit_test(invalid_text),
        cmocka_unit_test(special_strip),
        cmocka_unit_test(folder),
        cmocka_unit_test(refusals),
        cmocka_unit_test(rank_refusals),
        cmocka_unit_test(spm_defaults),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
