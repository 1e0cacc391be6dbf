/*
 * tok_tiktoken.c: tiktoken ranks: lines of base64 bytes and a rank, which is the id.
 * There are no merges: two neighbours merge when their bytes together have a rank.
 */
#include "engine/tokenizer/tok_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LLAMA3_RANKS 128000
#define LLAMA3_SPECIALS 256
#define QWEN2_RANKS 151643

static const char *const llama3_specials[] = {
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
};

static const char *const qwen2_specials[] = {
    "<|endoftext|>",      "<|im_start|>",     "<|im_end|>",     "<|object_ref_start|>",
    "<|object_ref_end|>", "<|box_start|>",    "<|box_end|>",    "<|quad_start|>",
    "<|quad_end|>",       "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>",      "<|video_pad|>",    "<tool_call>",    "</tool_call>",
    "<|fim_prefix|>",     "<|fim_middle|>",   "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>",      "<|file_sep|>",
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static int base64_digit(uint8_t c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Standard alphabet with padding. Returns the bytes written, or 0 when it is not. */
static size_t base64_decode(const uint8_t *in, size_t len, uint8_t *out)
{
    size_t n = 0;

    if (len == 0 || len % 4 != 0)
        return 0;
    for (size_t i = 0; i < len; i += 4) {
        int pad = i + 4 == len ? (in[len - 1] == '=') + (in[len - 2] == '=') : 0;
        uint32_t group = 0;

        for (int k = 0; k < 4; k++) {
            int digit = k >= 4 - pad ? 0 : base64_digit(in[i + (size_t)k]);

            if (digit < 0)
                return 0;
            group = group << 6 | (uint32_t)digit;
        }
        out[n++] = (uint8_t)(group >> 16);
        if (pad < 2)
            out[n++] = (uint8_t)(group >> 8);
        if (pad < 1)
            out[n++] = (uint8_t)group;
    }
    return n;
}

/* One line at *at: its bytes into out; moves *at behind it. */
static bool read_line(const uint8_t *p, size_t len, size_t *at, uint8_t out[TOK_MAX_KEY], size_t *n,
                      int32_t *rank)
{
    const uint8_t *space = memchr(p + *at, ' ', len - *at);
    size_t digits = 0;
    int32_t value = 0;

    if (!space || (size_t)(space - (p + *at)) > TOK_MAX_KEY / 3 * 4)
        return false;
    if ((*n = base64_decode(p + *at, (size_t)(space - (p + *at)), out)) == 0)
        return false;
    *at = (size_t)(space - p) + 1;
    for (; *at < len && p[*at] >= '0' && p[*at] <= '9' && digits < 8; digits++)
        value = value * 10 + (p[(*at)++] - '0');
    if (*at < len && p[*at] == '\r')
        (*at)++;
    if (digits == 0 || (*at < len && p[*at] != '\n'))
        return false;
    *at += *at < len;
    *rank = value;
    return true;
}

static ol_code count_lines(const uint8_t *p, size_t len, size_t *lines, int32_t *n_ranks,
                           ol_error *err)
{
    uint8_t bytes[TOK_MAX_KEY];
    size_t at = 0, n;
    int32_t rank;

    *lines = 0;
    *n_ranks = 0;
    while (at < len) {
        if (!read_line(p, len, &at, bytes, &n, &rank))
            return ol_fail(err, OL_CORRUPT, "line %zu is not base64 and a rank", *lines + 1);
        if (rank >= OL_TOK_MAX_VOCAB / 2)
            return ol_fail(err, OL_LIMIT, "rank %d is too large", rank);
        *n_ranks = rank + 1 > *n_ranks ? rank + 1 : *n_ranks;
        (*lines)++;
    }
    if (*lines == 0)
        return ol_fail(err, OL_CORRUPT, "there are no ranks");
    if ((size_t)*n_ranks != *lines)
        return ol_fail(err, OL_CORRUPT, "%zu lines hold ranks up to %d", *lines, *n_ranks - 1);
    return OL_OK;
}

static ol_code choose(int32_t n_ranks, ol_tok_flavour *flavour, ol_error *err)
{
    if (*flavour == OL_TOK_AUTO && n_ranks == LLAMA3_RANKS)
        *flavour = OL_TOK_LLAMA3;
    else if (*flavour == OL_TOK_AUTO && n_ranks == QWEN2_RANKS)
        *flavour = OL_TOK_QWEN2;
    if (*flavour != OL_TOK_AUTO)
        return OL_OK;
    ol_fail(err, OL_UNSUPPORTED, "%d tiktoken ranks are of no model family we know", n_ranks);
    return ol_hint(err, "Provide the model's tokenizer.json, which states pattern and special "
                        "tokens.");
}

static ol_code add_special(ol_tokenizer *tok, int32_t id, const char *name, bool special,
                           ol_error *err)
{
    ol_span text = tok_span(name, strlen(name));
    tok_added added = {.content = text, .id = id, .special = special};

    OL_TRY(tok_set(tok, id, text, text, TOK_UNMAPPED | (special ? TOK_SPECIAL : 0), err));
    return tok_add_added(tok, &added, err);
}

static ol_code add_llama3(ol_tokenizer *tok, int32_t base, ol_error *err)
{
    for (int32_t i = 0; i < LLAMA3_SPECIALS; i++) {
        char reserved[64];
        const char *name = reserved;

        if ((size_t)i < COUNT(llama3_specials))
            name = llama3_specials[i];
        else
            snprintf(reserved, sizeof(reserved), "<|reserved_special_token_%d|>",
                     i - (int)COUNT(llama3_specials) + 2);
        OL_TRY(add_special(tok, base + i, name, true, err));
    }
    tok->bos = base;
    tok->eos = base + 1;
    return OL_OK;
}

static ol_code add_qwen2(ol_tokenizer *tok, int32_t base, ol_error *err)
{
    for (size_t i = 0; i < COUNT(qwen2_specials); i++) {
        /* From <tool_call> on they are added, but not special, in Qwen's files. */
        OL_TRY(add_special(tok, base + (int32_t)i, qwen2_specials[i],
                           qwen2_specials[i][1] == '|' && i < 14, err));
    }
    tok->eos = base;
    return OL_OK;
}

static ol_code read_ranks(ol_tokenizer *tok, const uint8_t *p, size_t len, ol_error *err)
{
    uint8_t bytes[TOK_MAX_KEY];
    size_t at = 0, n;
    int32_t rank;

    tok->ranks = ol_arena_array(tok->arena, (size_t)tok->n_vocab, sizeof(*tok->ranks));
    if (!tok->ranks)
        return tok_nomem(err);
    while (at < len) {
        if (!read_line(p, len, &at, bytes, &n, &rank))
            return ol_fail(err, OL_CORRUPT, "a line is not base64 and a rank");
        if (tok->flags[rank] & TOK_PRESENT)
            return ol_fail(err, OL_CORRUPT, "rank %d is there twice", rank);
        OL_TRY(tok_set(tok, rank, tok_span(bytes, n), tok_span(NULL, 0), 0, err));
        tok->ranks[rank] = (uint32_t)rank;
    }
    return OL_OK;
}

static ol_code build(ol_tokenizer *tok, const uint8_t *p, size_t len, ol_tok_flavour flavour,
                     ol_error *err)
{
    size_t lines = 0, specials;
    int32_t n_ranks = 0;

    OL_TRY(count_lines(p, len, &lines, &n_ranks, err));
    OL_TRY(choose(n_ranks, &flavour, err));
    specials = flavour == OL_TOK_LLAMA3 ? LLAMA3_SPECIALS : COUNT(qwen2_specials);
    OL_TRY(tok_vocab_alloc(tok, (size_t)n_ranks + specials, err));
    OL_TRY(read_ranks(tok, p, len, err));
    if (flavour == OL_TOK_LLAMA3)
        OL_TRY(add_llama3(tok, n_ranks, err));
    else
        OL_TRY(add_qwen2(tok, n_ranks, err));
    OL_TRY(tok_known_pre_apply(
        tok, tok_known_pre_find(flavour == OL_TOK_LLAMA3 ? "llama-bpe" : "qwen2"), err));
    tok->bpe = TOK_BPE_RANKS;
    tok->byte_level = true;
    tok->whole_words = true;
    return tok_finish(tok, err);
}

ol_code ol_tokenizer_from_tiktoken(const void *bytes, size_t len, ol_tok_flavour flavour,
                                   const char *name, ol_tokenizer **out, ol_error *err)
{
    ol_tokenizer *tok = NULL;
    ol_code code = tok_new(&tok, err);

    if (code == OL_OK)
        code = build(tok, bytes, len, flavour, err);
    if (code != OL_OK) {
        ol_tokenizer_free(tok);
        return ol_prefix(err, "%s", name);
    }
    *out = tok;
    return OL_OK;
}
