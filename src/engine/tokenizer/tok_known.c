/*
 * tok_known.c: pre-tokenizers that files call by name alone: GGUF's
 * tokenizer.ggml.pre, and tiktoken ranks. The patterns are those of the tokenizer.json
 * of the model family; each isolates its matches within the pieces of the one before.
 */
#include "engine/tokenizer/tok_internal.h"

#include <string.h>

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SPACES "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define WORDS(digits)                                                                              \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| "                                     \
                 "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED(tail)                                                                                \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" tail "|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER    \
    "*" tail

#define CJK "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+"

/* Cased letters, as DeepSeek LLM lists them. */
#define DEEPSEEK_LETTERS                                                                           \
    "\\s?[A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}"                             \
    "\\x{1bc}-\\x{1bf}\\x{1c4}-\\x{293}\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}"                 \
    "\\x{377}\\x{37b}-\\x{37d}\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}"                           \
    "\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}"                         \
    "\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}"                   \
    "\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}"                 \
    "\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}"                 \
    "\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}\\x{1f5b}\\x{1f5d}"                            \
    "\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}"                           \
    "\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}"                 \
    "\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{2107}"                  \
    "\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}\\x{2128}"                   \
    "\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}"                           \
    "\\x{2145}-\\x{2149}\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}"                            \
    "\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}"                  \
    "\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}"                 \
    "\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}"                 \
    "\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}\\x{104b0}-\\x{104d3}"                                \
    "\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}"                              \
    "\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}]+"

static const tok_known_pre known[] = {
    {.names = "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
     .patterns = {WORDS("\\p{N}{1,3}")},
     .whole_words = true,
     .add_bos = true},
    {.names = "qwen2 deepseek-r1-qwen", .patterns = {WORDS("\\p{N}")}, .nfc = true},
    {.names = "stablelm2 hunyuan megrez grok-2", .patterns = {WORDS("\\p{N}")}},
    {.names = "dbrx smaug-bpe glm4 chatglm-bpe", .patterns = {WORDS("\\p{N}{1,3}")}},
    {.names = "gpt-2 phi-2 mpt olmo jais trillion granite-docling mellum roberta-bpe jina-v2-es "
              "jina-v2-de jina-v2-code",
     .patterns = {TOK_PATTERN_GPT2}},
    {.names = "starcoder refact command-r smollm codeshell exaone minerva-7b",
     .patterns = {"\\p{N}", TOK_PATTERN_GPT2}},
    {.names = "falcon",
     .patterns = {"[\\p{P}\\$\\+<=>\\^~\\|`]+", TOK_PATTERN_GPT2, "[0-9][0-9][0-9]"}},
    {.names = "deepseek-coder",
     .patterns = {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", CJK, "\\p{N}"}},
    {.names = "deepseek-llm",
     .patterns =
         {"[\\r\\n]", DEEPSEEK_LETTERS,
          "\\s?[!-/"
          ":-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3000}-\\x{3002}]+",
          "\\s+$", CJK, "\\p{N}+"}},
    {.names = "deepseek-v3 hunyuan-dense",
     .patterns =
         {"\\p{N}{1,3}", "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+",
          "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
          "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|" SPACES}},
    {.names = "tekken",
     .patterns = {CASED("") "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES},
     .whole_words = true,
     .add_bos = true},
    {.names = "gpt-4o llama4 kanana2",
     .patterns = {CASED(CONTRACTIONS "?") "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES}},
    {.names = "default",
     .patterns = {"[\\p{P}\\$\\+<=>\\^~\\|]+", TOK_PATTERN_GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
};

static bool has_name(const char *names, const char *name)
{
    size_t len = strlen(name);

    for (const char *at = names; len > 0; at++) {
        if (strncmp(at, name, len) == 0 && (at[len] == ' ' || at[len] == '\0'))
            return true;
        at = strchr(at, ' ');
        if (!at)
            break;
    }
    return false;
}

const tok_known_pre *tok_known_pre_find(const char *name)
{
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (!strchr(name, ' ') && has_name(known[i].names, name))
            return &known[i];
    }
    return NULL;
}

ol_code tok_known_pre_apply(ol_tokenizer *tok, const tok_known_pre *pre, ol_error *err)
{
    tok->whole_words = pre->whole_words;
    tok->add_bos = pre->add_bos;
    if (pre->nfc)
        OL_TRY(tok_add_norm(tok, (tok_norm){.kind = TOK_NORM_NFC}, err));
    for (size_t i = 0; i < sizeof(pre->patterns) / sizeof(pre->patterns[0]); i++) {
        if (pre->patterns[i])
            OL_TRY(tok_add_split(tok, pre->patterns[i], err));
    }
    return OL_OK;
}
