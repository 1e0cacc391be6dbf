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
