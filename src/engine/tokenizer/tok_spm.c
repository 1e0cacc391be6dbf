/*
 * tok_spm.c: SentencePiece: the ModelProto of tokenizer.model, and llama2.c's
 * tokenizer.bin. Of the protobuf wire format only what ModelProto uses is read: varint,
 * 64 bit, length-delimited, 32 bit.
 */
#include "engine/tokenizer/tok_internal.h"

#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------- protobuf */

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

typedef struct field {
    uint32_t number;
    unsigned wire;
    uint64_t value; /* VARINT and 32 bit */
    ol_span bytes;
} field;

static uint64_t get_varint(ol_reader *r)
{
    uint64_t value = 0;

    for (unsigned shift = 0; shift < 64; shift += 7) {
        uint8_t byte = ol_get_u8(r);

        value |= (uint64_t)(byte & 0x7F) << shift;
        if (!(byte & 0x80))
            return value;
    }
    r->bad = true;
    return 0;
}

/* False at the end and on damage (r->bad). */
static bool next_field(ol_reader *r, field *f)
{
    uint64_t tag, len;

    if (r->bad || ol_reader_left(r) == 0)
        return false;
    tag = get_varint(r);
    *f = (field){.number = (uint32_t)(tag >> 3), .wire = tag & 7};
    if (tag >> 3 == 0 || tag >> 3 > UINT32_C(0x1FFFFFFF))
        r->bad = true;
    switch (f->wire) {
    case WIRE_VARINT:
        f->value = get_varint(r);
        break;
    case WIRE_64:
        f->value = ol_get_u64(r);
        break;
    case WIRE_BYTES:
        len = get_varint(r);
        f->bytes = tok_span(ol_get(r, (size_t)len), (size_t)len);
        break;
    case WIRE_32:
        f->value = ol_get_u32(r);
        break;
    default:
        r->bad = true;
    }
    return !r->bad;
}

/* ------------------------------------------------------------------- the model */

typedef struct spm_model {
    ol_span *pieces;
    float *scores;
    int32_t *types;
    size_t n, cap_pieces, cap_scores, cap_types;
    uint64_t model_type; /* 1 unigram (the default), 2 BPE, 3 word, 4 char */
    bool whitespace_suffix, dummy_prefix, collapse, escape, has_charsmap;
    ol_span norm_name, bos, eos;
} spm_model;

static void spm_free(spm_model *m)
{
    free(m->pieces);
    free(m->scores);
    free(m->types);
}

static bool spm_push(spm_model *m, ol_span piece, float score, int32_t type)
{
    void *pieces = m->pieces, *scores = m->scores, *types = m->types;
    bool fine = tok_grow(&pieces, &m->cap_pieces, m->n + 1, sizeof(*m->pieces));

    m->pieces = pieces;
    fine = fine && tok_grow(&scores, &m->cap_scores, m->n + 1, sizeof(*m->scores));
    m->scores = scores;
    fine = fine && tok_grow(&types, &m->cap_types, m->n + 1, sizeof(*m->types));
    m->types = types;
    if (!fine)
        return false;
    m->pieces[m->n] = piece;
    m->scores[m->n] = score;
    m->types[m->n++] = type;
    return true;
}

static ol_code read_piece(spm_model *m, ol_span bytes, ol_error *err)
{
    ol_reader r = ol_reader_over(bytes.data, bytes.len);
    ol_span piece = tok_span("", 0);
    int32_t type = OL_GGUF_NORMAL;
    float score = 0;
    field f;

    while (next_field(&r, &f)) {
        uint32_t bits = (uint32_t)f.value;

        if (f.number == 1 && f.wire == WIRE_BYTES)
            piece = f.bytes;
        else if (f.number == 2 && f.wire == WIRE_32)
            memcpy(&score, &bits, sizeof(score));
        else if (f.number == 3 && f.wire == WIRE_VARINT)
            type = f.value > OL_GGUF_BYTE ? -1 : (int32_t)f.value;
    }
    if (r.bad)
        return ol_fail(err, OL_CORRUPT, "piece %zu is damaged", m->n);
    if (m->n >= OL_TOK_MAX_VOCAB)
        return ol_fail(err, OL_LIMIT, "more than %d pieces", OL_TOK_MAX_VOCAB);
    return spm_push(m, piece, score, type) ? OL_OK : tok_nomem(err);
}

static bool read_trainer(spm_model *m, ol_span bytes)
{
    ol_reader r = ol_reader_over(bytes.data, bytes.len);
    field f;

    while (next_field(&r, &f)) {
        if (f.number == 3 && f.wire == WIRE_VARINT)
            m->model_type = f.value;
        else if (f.number == 24 && f.wire == WIRE_VARINT)
            m->whitespace_suffix = f.value != 0;
        else if (f.number == 46 && f.wire == WIRE_BYTES)
            m->bos = f.bytes;
        else if (f.number == 47 && f.wire == WIRE_BYTES)
            m->eos = f.bytes;
    }
    return !r.bad;
}

static bool read_normalizer(spm_model *m, ol_span bytes)
{
    ol_reader r = ol_reader_over(bytes.data, bytes.len);
    field f;

    while (next_field(&r, &f)) {
        if (f.number == 1 && f.wire == WIRE_BYTES)
            m->norm_name = f.bytes;
        else if (f.number == 2 && f.wire == WIRE_BYTES)
            m->has_charsmap = f.bytes.len > 0;
        else if (f.number == 3 && f.wire == WIRE_VARINT)
            m->dummy_prefix = f.value != 0;
        else if (f.number == 4 && f.wire == WIRE_VARINT)
            m->collapse = f.value != 0;
        else if (f.number == 5 && f.wire == WIRE_VARINT)
            m->escape = f.value != 0;
    }
    return !r.bad;
}

static ol_code read_model(spm_model *m, const void *bytes, size_t len, ol_error *err)
{
    ol_reader r = ol_reader_over(bytes, len);
    field f;

    m->model_type = 1;
    m->dummy_prefix = m->collapse = m->escape = true;
    m->bos = tok_span("<s>", 3);
    m->eos = tok_span("</s>", 4);
    while (next_field(&r, &f)) {
        bool fine = true;

        if (f.wire != WIRE_BYTES)
            continue;
        if (f.number == 1)
            OL_TRY(read_piece(m, f.bytes, err));
        else if (f.number == 2)
            fine = read_trainer(m, f.bytes);
        else if (f.number == 3)
            fine = read_normalizer(m, f.bytes);
        if (!fine)
            return ol_fail(err, OL_CORRUPT, "the SentencePiece model's settings are damaged");
    }
    if (r.bad)
        return ol_fail(err, OL_CORRUPT, "the SentencePiece model is cut off or damaged at byte %zu",
                       r.pos);
    return OL_OK;
}

static ol_code check_model(const spm_model *m, ol_error *err)
{
    static const char *const types[] = {"?", "UNIGRAM", "BPE", "WORD", "CHAR"};

    if (m->n == 0)
        return ol_fail(err, OL_CORRUPT, "the SentencePiece model has no pieces");
    if (m->model_type != 2) {
        ol_fail(err, OL_UNSUPPORTED, "unsupported SentencePiece model type %s",
                m->model_type <= 4 ? types[m->model_type] : "?");
        return ol_hint(err, "SentencePiece models of type BPE are supported.");
    }
    if (m->has_charsmap)
        return ol_fail(err, OL_UNSUPPORTED, "unsupported SentencePiece normalization \"%.*s\"",
                       (int)(m->norm_name.len > 40 ? 40 : m->norm_name.len), m->norm_name.data);
    if (m->whitespace_suffix || !m->escape)
        return ol_fail(err, OL_UNSUPPORTED, "unsupported SentencePiece option %s",
                       m->escape ? "treat_whitespace_as_suffix" : "escape_whitespaces=false");
    return OL_OK;
}

/* ------------------------------------------------------------------- pieces to tokens */

/* U+2581 to space. */
static size_t unescape(ol_span key, char *out)
{
    size_t n = 0;

    for (size_t i = 0; i < key.len;) {
        if (key.len - i >= 3 && memcmp(key.data + i, TOK_MARK, 3) == 0) {
            out[n++] = ' ';
            i += 3;
        } else {
            out[n++] = key.data[i++];
        }
    }
    return n;
}

ol_code tok_set_spm(ol_tokenizer *tok, int32_t id, ol_span key, int32_t type, bool user_escaped,
                    ol_error *err)
{
    char text[TOK_MAX_KEY];
    int byte = type == OL_GGUF_BYTE ? tok_byte_token(key) : -1;
    tok_added added = {.content = key, .id = id};
    size_t n;

    if (key.len > TOK_MAX_KEY)
        return ol_fail(err, OL_LIMIT, "token %d is too long (%zu bytes)", id, key.len);
    switch (type) {
    case OL_GGUF_NORMAL:
    case OL_GGUF_UNUSED:
        n = unescape(key, text);
        return tok_set(tok, id, key, tok_span(text, n), type == OL_GGUF_UNUSED ? TOK_UNMAPPED : 0,
                       err);
    case OL_GGUF_UNKNOWN:
    case OL_GGUF_CONTROL:
        added.special = true;
        OL_TRY(tok_set(tok, id, key, key, TOK_UNMAPPED | TOK_SPECIAL, err));
        return tok_add_added(tok, &added, err);
    case OL_GGUF_USER_DEFINED:
        /* SentencePiece matches them in the escaped text, llama.cpp in the plain one. */
        added.normalized = added.as_is = user_escaped;
        n = unescape(key, text);
        OL_TRY(tok_set(tok, id, key, tok_span(text, n), TOK_UNMAPPED, err));
        return tok_add_added(tok, &added, err);
    case OL_GGUF_BYTE:
        if (byte < 0)
            return ol_fail(err, OL_CORRUPT, "byte token %d is not written as <0x00>", id);
        text[0] = (char)byte;
        tok->byte_fallback = true;
        return tok_set(tok, id, key, tok_span(text, 1), TOK_UNMAPPED, err);
    default:
        return ol_fail(err, OL_CORRUPT, "token %d has an unknown type", id);
    }
}

static bool equal(ol_span a, ol_span b)
{
    return a.len == b.len && memcmp(a.data, b.data, a.len) == 0;
}

static ol_code build(ol_tokenizer *tok, const spm_model *m, ol_error *err)
{
    OL_TRY(check_model(m, err));
    OL_TRY(tok_vocab_alloc(tok, m->n, err));
    for (size_t i = 0; i < m->n; i++) {
        int32_t id = (int32_t)i;

        OL_TRY(tok_set_spm(tok, id, m->pieces[i], m->types[i], true, err));
        if (m->types[i] == OL_GGUF_UNKNOWN)
            tok->unk = id;
        else if (m->types[i] == OL_GGUF_CONTROL && equal(m->pieces[i], m->bos))
            tok->bos = id;
        else if (m->types[i] == OL_GGUF_CONTROL && equal(m->pieces[i], m->eos))
            tok->eos = id;
    }
    tok->bpe = TOK_BPE_RANKS;
    tok->fuse_unk = true;
    tok->add_bos = true;
    OL_TRY(tok_rank_scores(tok, m->scores, err));
    OL_TRY(tok_add_spm_norms(tok, m->collapse, m->dummy_prefix, err));
    return tok_finish(tok, err);
}

static ol_code finish(spm_model *m, ol_code code, const char *name, ol_tokenizer **out,
                      ol_error *err)
{
    ol_tokenizer *tok = NULL;

    if (code == OL_OK)
        code = tok_new(&tok, err);
    if (code == OL_OK)
        code = build(tok, m, err);
    spm_free(m);
    if (code != OL_OK) {
        ol_tokenizer_free(tok);
        return ol_prefix(err, "%s", name);
    }
    *out = tok;
    return OL_OK;
}

ol_code ol_tokenizer_from_spm(const void *bytes, size_t len, const char *name, ol_tokenizer **out,
                              ol_error *err)
{
    spm_model m = {0};
    ol_code code = read_model(&m, bytes, len, err);

    return finish(&m, code, name, out, err);
}

/* ------------------------------------------------------------------- llama2.c */

static ol_code read_llama2c(spm_model *m, const void *bytes, size_t len, int32_t vocab,
                            ol_buf *escaped, ol_error *err)
{
    ol_reader r = ol_reader_over(bytes, len);

    *m = (spm_model){.model_type = 2,
                     .dummy_prefix = true,
                     .escape = true,
                     .bos = tok_span("\n<s>\n", 5),
                     .eos = tok_span("\n</s>\n", 6)};
    ol_get_u32(&r); /* longest piece */
    if (vocab < 259 || vocab > OL_TOK_MAX_VOCAB || !ol_buf_reserve(escaped, 3 * len))
        return ol_fail(err, OL_INVALID, "a vocabulary of %d pieces makes no sense", vocab);
    for (int32_t id = 0; id < vocab; id++) {
        float score = ol_get_f32(&r);
        uint32_t n = ol_get_u32(&r);
        const uint8_t *piece = ol_get(&r, n);
        size_t start = escaped->len;
        int32_t type = id == 0    ? OL_GGUF_UNKNOWN
                       : id <= 2  ? OL_GGUF_CONTROL
                       : id < 259 ? OL_GGUF_BYTE
                                  : OL_GGUF_NORMAL;

        if (r.bad)
            return ol_fail(err, OL_CORRUPT, "the vocabulary ends at piece %d of %d", id, vocab);
        for (uint32_t i = 0; i < n && type != OL_GGUF_CONTROL; i++) {
            bool space = type == OL_GGUF_NORMAL && piece[i] == ' ';

            ol_buf_put(escaped, space ? TOK_MARK : (const char *)piece + i, space ? 3 : 1);
        }
        if (type == OL_GGUF_CONTROL)
            ol_buf_printf(escaped, "%s", id == 1 ? "<s>" : "</s>");
        if (escaped->failed)
            return tok_nomem(err);
        if (!spm_push(m, tok_span(escaped->data + start, escaped->len - start), score, type))
            return tok_nomem(err);
    }
    m->bos = tok_span("<s>", 3);
    m->eos = tok_span("</s>", 4);
    return OL_OK;
}

ol_code ol_tokenizer_from_llama2c(const void *bytes, size_t len, int32_t vocab, const char *name,
                                  ol_tokenizer **out, ol_error *err)
{
    spm_model m = {0};
    ol_buf escaped = {0};
    ol_code code = read_llama2c(&m, bytes, len, vocab, &escaped, err);

    code = finish(&m, code, name, out, err);
    ol_buf_free(&escaped);
    return code;
}
