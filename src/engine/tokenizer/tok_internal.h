/*
 * tok_internal.h: what the files of this folder share.
 *
 * Every vocabulary format is turned into one structure at load:
 *
 *     text -> cut at added tokens -> normalizers -> cut at normalized added tokens
 *          -> pre-tokenizer stages -> BPE of each piece -> ids
 *
 * Invariants
 *  1. `n_vocab` ids; keys[id], texts[id] and flags[id] exist for each. A hole has
 *     flags 0 and empty spans.
 *  2. A key is what BPE looks up (raw bytes for byte-level vocabularies, text with
 *     U+2581 for SentencePiece); a text is what decoding puts out.
 *  3. `map` holds exactly the keys that BPE may produce; special and added tokens are
 *     found through `added` alone.
 *  4. Stages get valid UTF-8 only. Bytes that are not never reach a pattern.
 *  5. After tok_finish nothing but the eog list changes.
 */
#ifndef OL_ENGINE_TOK_INTERNAL_H
#define OL_ENGINE_TOK_INTERNAL_H

#include "base/arena.h"
#include "engine/tokenizer/tokenizer.h"

/* Longest key; keeps offsets within pieces small and hostile files bounded. */
#define TOK_MAX_KEY 65535
/* Longest literal in an added token, a normalizer or a pattern. */
#define TOK_MAX_LITERAL 4096
#define TOK_MAX_STAGES 16

/* ---------------------------------------------------------- hash tables (tok_map.c) */

typedef struct tok_map_slot {
    uint32_t hash;
    int32_t id; /* OL_NO_TOKEN: free */
} tok_map_slot;

/* Bytes -> id; the bytes are keys[id] of the tokenizer. */
typedef struct tok_map {
    tok_map_slot *slots;
    const ol_span *keys;
    size_t mask;
    size_t n;
    uint64_t seed;
} tok_map;

typedef struct tok_merge {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: free */
    uint32_t rank;
    int32_t id;
} tok_merge;

/* (left id, right id) -> (rank, merged id). */
typedef struct tok_merges {
    tok_merge *slots;
    size_t mask;
    size_t n;
    uint64_t seed;
} tok_merges;

bool tok_map_init(tok_map *map, ol_arena *arena, const ol_span *keys, size_t n);
int32_t tok_map_find(const tok_map *map, const void *bytes, size_t len);
/* Returns the id that was there, or OL_NO_TOKEN after adding. At most n adds. */
int32_t tok_map_add(tok_map *map, int32_t id);

bool tok_merges_init(tok_merges *merges, ol_arena *arena, size_t n);
const tok_merge *tok_merges_find(const tok_merges *merges, int32_t left, int32_t right);
/* The first rank of a pair stays. */
void tok_merges_add(tok_merges *merges, int32_t left, int32_t right, uint32_t rank, int32_t id);

/* ------------------------------------------------------------------ regexes (tok_regex.c) */

typedef struct tok_regex tok_regex;

struct tok_matcher; /* scratch of one thread */

/* Compiles an Oniguruma-flavoured pattern; the tokenizer owns the result. */
ol_code tok_regex_compile(ol_tokenizer *tok, const char *pattern, size_t len, const tok_regex **out,
                          ol_error *err);
void tok_regex_free_all(ol_tokenizer *tok);
struct tok_matcher *tok_matcher_new(void); /* NULL when out of memory */
void tok_matcher_free(struct tok_matcher *matcher);
/* Bytes [start, end) of a text, if something was found. */
typedef struct tok_match {
    bool found;
    size_t start, end;
} tok_match;

/* The leftmost non-empty match at or after `from`. */
ol_code tok_regex_next(const tok_regex *re, struct tok_matcher *matcher, ol_span text, size_t from,
                       tok_match *match, ol_error *err);

/* ------------------------------------------------------------------------- stages */

/* Either a regex or a literal. */
typedef struct tok_pattern {
    const tok_regex *regex; /* NULL: literal */
    ol_span literal;
} tok_pattern;

typedef enum tok_norm_kind {
    TOK_NORM_NFC,
    TOK_NORM_NFD,
    TOK_NORM_NFKC,
    TOK_NORM_NFKD,
    TOK_NORM_LOWERCASE,
    TOK_NORM_PREPEND,  /* `text` before a text that is not empty */
    TOK_NORM_REPLACE,  /* `pattern` by `text` */
    TOK_NORM_STRIP,    /* white space at `left` and `right` */
    TOK_NORM_COLLAPSE, /* SentencePiece: no spaces at the ends, no two in a row */
} tok_norm_kind;

typedef struct tok_norm {
    tok_norm_kind kind;
    tok_pattern pattern;
    ol_span text;
    bool left, right;
} tok_norm;

typedef enum tok_pre_kind {
    TOK_PRE_SPLIT,
    TOK_PRE_PREFIX_SPACE, /* a space before a piece that has none (ByteLevel) */
    TOK_PRE_BYTE_MAP,     /* to GPT-2's byte alphabet, for stages that follow ByteLevel */
    TOK_PRE_METASPACE
} tok_pre_kind;

typedef enum tok_split {
    TOK_ISOLATED,
    TOK_REMOVED,
    TOK_MERGED_WITH_PREVIOUS,
    TOK_MERGED_WITH_NEXT,
    TOK_CONTIGUOUS
} tok_split;

typedef enum tok_prepend { TOK_PREPEND_NEVER, TOK_PREPEND_FIRST, TOK_PREPEND_ALWAYS } tok_prepend;

typedef struct tok_pre {
    tok_pre_kind kind;
    tok_pattern pattern;
    tok_split behaviour;
    bool invert;
    ol_span replacement; /* METASPACE */
    tok_prepend prepend;
    bool split;
} tok_pre;

/* A token found in the text as it stands. */
typedef struct tok_added {
    ol_span content;
    int32_t id;
    bool special, normalized, lstrip, rstrip, single_word;
    bool as_is; /* with normalized: the content is in normalized form already */
} tok_added;

/* Trie over added contents (tok_added.c). */
typedef struct tok_trie {
    struct tok_node *nodes;
    size_t n_nodes;
    bool first[256]; /* bytes that begin a content */
} tok_trie;

enum {
    TOK_PRESENT = 1,
    TOK_SPECIAL = 2,
    TOK_UNMAPPED = 4, /* not for BPE: control, byte and unused tokens */
    TOK_UTF8 = 8,     /* the text is whole characters */
};

typedef enum tok_bpe_kind {
    TOK_BPE_MERGES, /* pairs have ranks */
    TOK_BPE_RANKS   /* texts have ranks: tiktoken, SentencePiece scores */
} tok_bpe_kind;

struct ol_tokenizer {
    ol_arena *arena;
    tok_regex *regexes;

    int32_t n_vocab;
    ol_span *keys;
    ol_span *texts;
    uint8_t *flags;

    /* BPE */
    tok_bpe_kind bpe;
    bool byte_level;     /* symbols are bytes, not characters */
    bool whole_words;    /* a piece that is a token needs no merging */
    bool byte_fallback;  /* unknown characters become byte tokens */
    bool early_fallback; /* ... before merging (Hugging Face), not after (SentencePiece) */
    bool fuse_unk;
    tok_map map;
    tok_merges merges;
    uint32_t *ranks; /* by id, for TOK_BPE_RANKS */
    size_t max_key;  /* longest key in map */
    bool has_map;
    bool words_apart;     /* no key has U+2581 after anything but U+2581 */
    int32_t byte_id[256]; /* byte-level symbols or byte-fallback tokens */
    int32_t ascii_id[128];

    /* stages */
    tok_norm norms[TOK_MAX_STAGES];
    int n_norms;
    tok_pre pres[TOK_MAX_STAGES];
    int n_pres;
    bool byte_mapped; /* the pieces are in GPT-2's byte alphabet at the end */

    /* added tokens */
    tok_added *added;
    size_t n_added;
    size_t cap_added;
    tok_trie raw_trie, norm_trie;

    /* facts */
    int32_t bos, eos, unk;
    bool add_bos, add_eos;
    int strip_left; /* spaces dropped at the start when decoding: 0 or 1 */
    int32_t *eog;
    size_t n_eog, cap_eog;
};

/* ------------------------------------------------------------- building (tok_build.c) */

ol_code tok_new(ol_tokenizer **out, ol_error *err);
/* Room for n ids. */
ol_code tok_vocab_alloc(ol_tokenizer *tok, size_t n, ol_error *err);
/* Copies key and text (text NULL data: the same as the key). */
ol_code tok_set(ol_tokenizer *tok, int32_t id, ol_span key, ol_span text, unsigned flags,
                ol_error *err);
ol_code tok_add_added(ol_tokenizer *tok, const tok_added *added, ol_error *err);
ol_code tok_add_eog(ol_tokenizer *tok, int32_t id, ol_error *err);
ol_code tok_add_norm(ol_tokenizer *tok, tok_norm norm, ol_error *err);
ol_code tok_add_pre(ol_tokenizer *tok, tok_pre pre, ol_error *err);
/* A stage that isolates the matches of a pattern. */
ol_code tok_add_split(ol_tokenizer *tok, const char *pattern, ol_error *err);
/* SentencePiece's white space handling as normalizers. */
ol_code tok_add_spm_norms(ol_tokenizer *tok, bool collapse, bool prefix, ol_error *err);
/* Copies into the arena; false when out of memory. */
bool tok_keep(ol_tokenizer *tok, ol_span from, ol_span *to);
/* SentencePiece: a piece of a GGUF type, with the text that it decodes to. */
ol_code tok_set_spm(ol_tokenizer *tok, int32_t id, ol_span key, int32_t type, bool user_escaped,
                    ol_error *err);
/* The map of keys, once all tokens are set: for loaders that look up merges. */
ol_code tok_build_map(ol_tokenizer *tok, ol_error *err);
/* A merge of two keys into their concatenation. */
ol_code tok_add_merge(ol_tokenizer *tok, ol_span left, ol_span right, uint32_t rank, ol_error *err);
/* Tables, tries, well-known end tokens. Nothing is valid before it. */
ol_code tok_finish(ol_tokenizer *tok, ol_error *err);
/* Scores to ranks: the highest score gets rank 0, equal scores equal ranks. */
ol_code tok_rank_scores(ol_tokenizer *tok, const float *scores, ol_error *err);

/* ------------------------------------------------------------------ parts of encoding */

typedef struct tok_piece {
    uint32_t off, len;
} tok_piece;

typedef struct tok_pieces {
    tok_piece *items;
    size_t n, cap;
} tok_pieces;

/* Scratch of one ol_tokenize call. */
typedef struct tok_work {
    const ol_tokenizer *tok;
    struct tok_matcher *matcher;
    ol_ids *out;
    ol_error *err;
    unsigned flags;
    bool first;     /* the segment at hand is at the start of the whole text */
    bool continued; /* it goes on after text: no space prefix */
    ol_buf norm[2];
    ol_buf text[2];
    tok_pieces pieces[2];
    tok_pieces cuts; /* borders of one split */
    uint8_t *is_match;
    size_t is_match_cap;
    struct tok_symbol *symbols;
    size_t cap_symbols;
    struct tok_pair *heap;
    size_t n_heap, cap_heap;
    size_t n_candidates; /* pairs put into the heap: the work that merging took */
    int32_t *cps;        /* code points, for normalization */
    size_t cap_cps;
} tok_work;

void tok_work_free(tok_work *work);
ol_code tok_push_id(tok_work *work, int32_t id);
/* tok_memory.c */
ol_code tok_nomem(ol_error *err);
ol_code tok_push_piece(tok_work *work, tok_pieces *pieces, size_t off, size_t len);
/* realloc for count * size bytes with growth; false when out of memory. */
bool tok_grow(void **items, size_t *cap, size_t need, size_t size);

/* tok_norm.c: *text is replaced by a span into work->norm, or left alone. */
ol_code tok_normalize(tok_work *work, ol_span *text);
ol_code tok_normal_form(tok_work *work, tok_norm_kind form, ol_span in, ol_buf *out);
/* tok_pre.c: pieces of a text; their offsets are into *base. */
ol_code tok_pretokenize(tok_work *work, ol_span text, ol_span *base, const tok_pieces **pieces);
/* tok_split.c */
ol_code tok_split_piece(tok_work *work, const tok_pre *pre, ol_span base, tok_piece piece,
                        tok_pieces *out);
ol_code tok_pattern_next(const tok_pattern *pattern, tok_work *work, ol_span text, size_t from,
                         tok_match *match);
/* tok_bpe.c */
ol_code tok_bpe(tok_work *work, const uint8_t *piece, size_t len);
ol_code tok_bpe_bytes(tok_work *work, const uint8_t *bytes, size_t len); /* not UTF-8 */
/* tok_added.c */
bool tok_trie_build(tok_trie *trie, ol_arena *arena, const ol_span *contents,
                    const int32_t *indexes, size_t n);
/* The leftmost-longest added token at or after `from` that counts; NULL for none. The match is
 * the span with the white space it swallows. */
const tok_added *tok_added_next(const tok_work *work, const tok_trie *trie, ol_span text,
                                size_t from, tok_match *match);

/* ------------------------------------------------------------------ loaders */

/* Known pre-tokenizers of GGUF files and ranks (tok_known.c). */
typedef struct tok_known_pre {
    const char *names; /* separated by spaces */
    const char *patterns[6];
    bool whole_words, add_bos, nfc;
} tok_known_pre;

#define TOK_PATTERN_GPT2                                                                           \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

const tok_known_pre *tok_known_pre_find(const char *name); /* NULL: unknown */
ol_code tok_known_pre_apply(ol_tokenizer *tok, const tok_known_pre *pre, ol_error *err);

/* tok_json_node.c; the json_t arguments are jansson's. */
struct json_t;
/* Why a file is refused: names what is not supported. */
ol_code tok_json_unsupported(const char *what, const char *type, ol_error *err);
const char *tok_json_type(const struct json_t *node); /* "type", or "?" */
bool tok_json_flag(const struct json_t *node, const char *key, bool missing);
ol_span tok_json_text(const struct json_t *node); /* NULL data when it is no string */
/* tok_json_stages.c */
ol_code tok_json_normalizer(ol_tokenizer *tok, const struct json_t *node, int depth, ol_error *err);
ol_code tok_json_pre_tokenizer(ol_tokenizer *tok, const struct json_t *node, int depth,
                               ol_error *err);
/* tok_json_tail.c: how texts are made of keys, and bos and eos. */
typedef struct tok_decoder {
    bool byte_level, byte_fallback, fused;
    ol_span from, to; /* replacement in every key */
    int strip_left;
} tok_decoder;
ol_code tok_json_decoder(ol_tokenizer *tok, const struct json_t *node, tok_decoder *decoder,
                         ol_error *err);
ol_code tok_json_post_processor(ol_tokenizer *tok, const struct json_t *node, ol_error *err);
/* tok_config.c: neighbours of a tokenizer file. */
ol_code tok_apply_configs(ol_tokenizer *tok, const char *folder, ol_error *err);

/* ------------------------------------------------------------------ characters (tok_utf8.c) */

/* Length of the valid character at p (1..4), or 0. */
size_t tok_utf8_char(const uint8_t *p, size_t left, uint32_t *cp);
/* Length of the longest valid prefix. */
size_t tok_utf8_valid(const uint8_t *p, size_t len);
size_t tok_utf8_put(uint32_t cp, uint8_t out[4]);
bool tok_is_space(uint32_t cp); /* Unicode White_Space */
/* "<0xAB>" -> 0xAB, else -1. */
int tok_byte_token(ol_span key);
/* GPT-2's byte alphabet: the code point of a byte, and the byte of a code point or -1. */
uint32_t tok_byte_to_char(uint8_t byte);
int tok_char_to_byte(uint32_t cp);
/* Undoes the alphabet; false when a character is not of it. out has len bytes. */
bool tok_unmap_bytes(ol_span in, uint8_t *out, size_t *n_out);

#define TOK_MARK "\xE2\x96\x81" /* U+2581, SentencePiece's space */

/* Whether a word begins at p + at: a mark after something that is none. */
static inline bool tok_word_starts(const uint8_t *p, size_t len, size_t at)
{
    return len - at >= 3 && p[at] == 0xE2 && p[at + 1] == 0x96 && p[at + 2] == 0x81 && at > 0 &&
           !(at >= 3 && p[at - 3] == 0xE2 && p[at - 2] == 0x96 && p[at - 1] == 0x81);
}

static inline ol_span tok_span(const void *data, size_t len)
{
    return (ol_span){data, len};
}

#endif
