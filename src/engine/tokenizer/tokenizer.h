/*
 * tokenizer.h: text to token ids and back, exactly as the model was trained.
 *
 * Two families, one interface: byte-level BPE (GPT-2, Llama 3, Qwen, ...) and
 * SentencePiece BPE with byte fallback (Llama 2, Mistral, Phi-3, TinyLlama, ...).
 * Unigram and WordPiece vocabularies are refused by name, and so is every
 * normalizer, pre-tokenizer or decoder that is not implemented: a tokenizer that
 * opens is exact.
 *
 * A tokenizer is built once and then only read: every function that takes a
 * `const ol_tokenizer *` may run in any number of threads at once.
 *
 *     ol_tokenizer *tok;
 *     OL_TRY(ol_tokenizer_from_hf(folder, &tok, err));
 *     ol_ids ids = {0};
 *     OL_TRY(ol_tokenize(tok, text, len, OL_TOK_ADD_DEFAULTS, &ids, err));
 *     ...
 *     ol_ids_free(&ids);
 *     ol_tokenizer_free(tok);
 */
#ifndef OL_ENGINE_TOKENIZER_H
#define OL_ENGINE_TOKENIZER_H

#include "base/buf.h"
#include "base/status.h"

typedef struct ol_tokenizer ol_tokenizer;

#define OL_NO_TOKEN (-1)
/* Longest text of one call, and most ids of one vocabulary. */
#define OL_TOK_MAX_TEXT ((size_t)64 << 20)
#define OL_TOK_MAX_VOCAB (1 << 22)

/* ------------------------------------------------------------------ opening */

/*
 * A model folder. Reads tokenizer.json when it is there, else tokenizer.model
 * (SentencePiece protobuf, or tiktoken ranks as Llama 3 ships them), else the
 * only *.tiktoken file. tokenizer_config.json and special_tokens_map.json
 * (bos, eos, unk, add_bos_token, add_eos_token), and the eos lists of
 * generation_config.json and config.json are used where they exist.
 */
ol_code ol_tokenizer_from_hf(const char *folder, ol_tokenizer **out, ol_error *err);

/* Bare tiktoken ranks hold neither pattern nor special tokens; this names both. */
typedef enum ol_tok_flavour {
    OL_TOK_AUTO,   /* by the number of ranks: 128000 is Llama 3, 151643 Qwen 2 */
    OL_TOK_LLAMA3, /* 256 special tokens after the ranks */
    OL_TOK_QWEN2   /* <|endoftext|>, <|im_start|>, <|im_end|>, ... after the ranks */
} ol_tok_flavour;

/* One file, known by its content: tokenizer.json, SentencePiece protobuf,
 * tiktoken ranks. No neighbouring file is read. */
ol_code ol_tokenizer_from_file(const char *path, ol_tok_flavour flavour, ol_tokenizer **out,
                               ol_error *err);

/* The same from memory; the bytes are needed only during the call. `name` is for
 * error messages. */
ol_code ol_tokenizer_from_json(const void *bytes, size_t len, const char *name, ol_tokenizer **out,
                               ol_error *err);
ol_code ol_tokenizer_from_spm(const void *bytes, size_t len, const char *name, ol_tokenizer **out,
                              ol_error *err);
ol_code ol_tokenizer_from_tiktoken(const void *bytes, size_t len, ol_tok_flavour flavour,
                                   const char *name, ol_tokenizer **out, ol_error *err);
/* tokenizer.bin of llama2.c: scores and pieces, in SentencePiece order
 * (0 <unk>, 1 <s>, 2 </s>, 3.. bytes). `vocab` is the number of pieces. */
ol_code ol_tokenizer_from_llama2c(const void *bytes, size_t len, int32_t vocab, const char *name,
                                  ol_tokenizer **out, ol_error *err);

/* Bytes that somebody else owns; not NUL-terminated. */
typedef struct ol_span {
    const char *data;
    size_t len;
} ol_span;

/* GGUF's tokenizer.ggml.token_type. */
typedef enum ol_gguf_token_type {
    OL_GGUF_NORMAL = 1,
    OL_GGUF_UNKNOWN = 2,
    OL_GGUF_CONTROL = 3,
    OL_GGUF_USER_DEFINED = 4,
    OL_GGUF_UNUSED = 5,
    OL_GGUF_BYTE = 6
} ol_gguf_token_type;

/*
 * The tokenizer.ggml.* keys of a GGUF file, filled by the caller. Start from
 * OL_GGUF_VOCAB_INIT; the arrays are needed only during the call. An id that is
 * out of range is an error; one which the file lacks is OL_NO_TOKEN.
 */
typedef struct ol_gguf_vocab {
    const char *model; /* "gpt2" (byte-level BPE) or "llama" (SentencePiece) */
    const char *pre;   /* "llama-bpe", "qwen2", ...; NULL or "" when absent */
    size_t n_tokens;
    const ol_span *tokens;
    const float *scores;  /* n_tokens, or NULL (required for "llama") */
    const int32_t *types; /* n_tokens of ol_gguf_token_type, or NULL */
    size_t n_merges;
    const ol_span *merges; /* "left right" */
    int32_t bos, eos, unk, eot, eom;
    /* -1: absent from the file, so what the model kind does by default
     * (llama: bos and space prefix, no eos; gpt2: none, but "pre" may say more). */
    int8_t add_bos, add_eos, add_space_prefix, remove_extra_whitespaces;
    /* Special tokens swallow white space after them. GGUF does not record it;
     * general.architecture "phi3" has it. */
    bool rstrip_specials;
} ol_gguf_vocab;

#define OL_GGUF_VOCAB_INIT                                                                         \
    {                                                                                              \
        .bos = OL_NO_TOKEN, .eos = OL_NO_TOKEN, .unk = OL_NO_TOKEN, .eot = OL_NO_TOKEN,            \
        .eom = OL_NO_TOKEN, .add_bos = -1, .add_eos = -1, .add_space_prefix = -1,                  \
        .remove_extra_whitespaces = -1                                                             \
    }

ol_code ol_tokenizer_from_gguf_vocab(const ol_gguf_vocab *vocab, ol_tokenizer **out, ol_error *err);

void ol_tokenizer_free(ol_tokenizer *tok); /* NULL is fine */

/* -------------------------------------------------------------------- facts */

/* Ids are 0 .. vocab size - 1, some of which may have no token (holes). */
int32_t ol_tokenizer_vocab_size(const ol_tokenizer *tok);
int32_t ol_tokenizer_bos(const ol_tokenizer *tok); /* or OL_NO_TOKEN */
int32_t ol_tokenizer_eos(const ol_tokenizer *tok);
int32_t ol_tokenizer_unk(const ol_tokenizer *tok);
/* Whether the model expects bos before (eos after) a text by default. */
bool ol_tokenizer_adds_bos(const ol_tokenizer *tok);
bool ol_tokenizer_adds_eos(const ol_tokenizer *tok);

/* Ids that end a generation: eos, what the configuration files declare, and
 * special tokens with a well-known name (<|eot_id|>, <|im_end|>, <end_of_turn>,
 * <|end|>, ...). Ascending. */
const int32_t *ol_tokenizer_eog(const ol_tokenizer *tok, size_t *n);
bool ol_tokenizer_is_eog(const ol_tokenizer *tok, int32_t id);
/* For a caller that knows one more. Not thread-safe: before sharing. */
ol_code ol_tokenizer_add_eog(ol_tokenizer *tok, int32_t id, ol_error *err);

/* The text that the token has in the vocabulary: decoded bytes (a space is a
 * space) for ordinary tokens, the literal for special ones. False for a bad id or
 * a hole. The bytes live as long as the tokenizer and may be half a character. */
bool ol_tokenizer_text(const ol_tokenizer *tok, int32_t id, ol_span *text);
/* The id of a special or added token by its literal text, else of an ordinary token
 * whose decoded bytes these are, else OL_NO_TOKEN. */
int32_t ol_tokenizer_find(const ol_tokenizer *tok, const char *text, size_t len);
/* Control tokens (bos, eos, chat marks, unk): left out by OL_DETOK_SKIP_SPECIAL. */
bool ol_tokenizer_is_special(const ol_tokenizer *tok, int32_t id);
/* Memory held, in bytes. */
size_t ol_tokenizer_bytes(const ol_tokenizer *tok);

/* ------------------------------------------------------------------- encode */

/* A growing list of ids. Zero-initialise. */
typedef struct ol_ids {
    int32_t *ids;
    size_t n;
    size_t cap;
} ol_ids;

void ol_ids_free(ol_ids *ids);

enum {
    OL_TOK_ADD_BOS = 1,       /* bos in front, when the tokenizer has one */
    OL_TOK_ADD_EOS = 2,       /* eos at the end, when the tokenizer has one */
    OL_TOK_ADD_DEFAULTS = 4,  /* whichever of the two the model expects */
    OL_TOK_PARSE_SPECIAL = 8, /* special tokens written out in the text are
                                 recognised; without it they are plain text, so
                                 that user input cannot forge them */
    OL_TOK_CONTINUE = 16      /* the text goes on after other text: no SentencePiece
                                 space prefix */
};

/*
 * Appends the ids of the text to `out`. The text may hold NUL bytes and need not be
 * valid UTF-8: the text is cut around bytes that are not, and these become byte
 * tokens where the vocabulary has them, else the unknown token, else nothing.
 * On failure `out` is as it was before. Time is O(n log n) for any text.
 */
ol_code ol_tokenize(const ol_tokenizer *tok, const char *text, size_t len, unsigned flags,
                    ol_ids *out, ol_error *err);

/* ------------------------------------------------------------------- decode */

/*
 * Decoding gives back the text that was encoded. It differs from transformers' in
 * that clean_up_tokenization_spaces is never applied (it alters texts), and that of a
 * broken run of byte tokens only the broken part becomes U+FFFD, not the whole run.
 */
enum {
    OL_DETOK_SKIP_SPECIAL = 1, /* special tokens give no text */
    OL_DETOK_CONTINUE = 2,     /* the ids go on after other text (a completion after
                                  its prompt): SentencePiece's first space is kept */
    OL_DETOK_RAW = 4           /* the bytes as they are; otherwise invalid UTF-8 gives
                                  U+FFFD, one for each maximal broken part */
};

/* Appends the text of the ids to `out`. An id out of range is an error (and `out`
 * is as it was before); a hole gives nothing. */
ol_code ol_detokenize(const ol_tokenizer *tok, const int32_t *ids, size_t n, unsigned flags,
                      ol_buf *out, ol_error *err);

/*
 * The same as a stream, id by id: what is appended to `out` is always whole, valid
 * UTF-8 (with OL_DETOK_RAW, any bytes). Half a character is held back until the
 * rest arrives, or until it no longer can. All pieces together are what ol_detokenize
 * gives. A plain value: no allocation, nothing to free, copying it saves a state.
 */
typedef struct ol_detok {
    const ol_tokenizer *tok;
    unsigned flags;
    uint8_t held[4];
    uint8_t n_held;
    bool begun; /* something was put out, so no leading space is to be dropped */
} ol_detok;

ol_detok ol_detok_begin(const ol_tokenizer *tok, unsigned flags);
ol_code ol_detok_push(ol_detok *detok, int32_t id, ol_buf *out, ol_error *err);
/* Puts out what is held back as U+FFFD; the stream is then at its beginning again. */
ol_code ol_detok_end(ol_detok *detok, ol_buf *out, ol_error *err);

#endif
