/*
 * tok_regex.c: patterns of pre-tokenizers, by PCRE2.
 *
 * The patterns in tokenizer files are written for Oniguruma (or Rust's regex), which
 * agree with PCRE2 on all but a few points. These are rewritten before compiling:
 * \s is exactly Unicode White_Space, \w exactly the letters, marks, digits and
 * connectors; ^ and $ are line anchors. What would mean something else in PCRE2 and
 * is not rewritten is refused.
 *
 * Texts are matched piece by piece with the piece as the whole subject. JIT code runs
 * on a small stack; a match that needs more goes to the interpreter, whose frames are
 * on the heap. Both have limits far above what the patterns of real models need.
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/tokenizer/tok_internal.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#define WHITE_SPACE                                                                                \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"    \
    "\\x{205f}\\x{3000}"
#define WORD "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}"

#define HEAP_LIMIT_KIB (256u * 1024)
#define MATCH_LIMIT_BASE 10000000u

struct tok_regex {
    tok_regex *next;
    pcre2_code *code;
    bool jit;
};

struct tok_matcher {
    pcre2_match_data *data;
    pcre2_match_context *context;
};

/* Reads one escape at pattern[at] == '\\'; returns its length, or 0 to refuse. */
static size_t put_escape(const char *pattern, size_t left, bool in_class, ol_buf *out)
{
    char c = left > 1 ? pattern[1] : '\0';
    const char *set = NULL;

    switch (c) {
    case '\0':
    case 'h': /* a hexadecimal digit to Oniguruma, white space to PCRE2 */
    case 'H':
    case 'X':
    case 'y':
    case 'Y':
    case 'C':
    case 'K':
    case 'g':
        return 0;
    case 's':
    case 'S':
        set = WHITE_SPACE;
        break;
    case 'w':
    case 'W':
        set = WORD;
        break;
    default:
        ol_buf_put(out, pattern, 2);
        return 2;
    }
    if (in_class && (c == 'S' || c == 'W'))
        ol_buf_put(out, pattern, 2);
    else if (in_class)
        ol_buf_printf(out, "%s", set);
    else
        ol_buf_printf(out, "[%s%s]", c == 'S' || c == 'W' ? "^" : "", set);
    return 2;
}

/* Copies `pattern` to `out` in PCRE2's dialect; false when it cannot be. */
static bool translate(const char *pattern, size_t len, ol_buf *out)
{
    bool in_class = false;
    size_t class_start = 0;

    for (size_t at = 0; at < len;) {
        char c = pattern[at];

        if (c == '\\') {
            size_t n = put_escape(pattern + at, len - at, in_class, out);

            if (n == 0)
                return false;
            at += n;
            continue;
        }
        if (in_class) {
            bool at_start = at == class_start;

            if (c == '[' && (len - at < 2 || pattern[at + 1] != ':'))
                return false; /* a nested class */
            if (c == '&' && at + 1 < len && pattern[at + 1] == '&')
                return false; /* an intersection */
            if (c == '[') {   /* [:posix:] */
                const char *end = memchr(pattern + at, ']', len - at);

                if (!end)
                    return false;
                ol_buf_put(out, pattern + at, (size_t)(end + 1 - (pattern + at)));
                at = (size_t)(end + 1 - pattern);
                continue;
            }
            if (c == ']' && !at_start)
                in_class = false;
        } else if (c == '[') {
            in_class = true;
            class_start = at + 1;
            if (at + 1 < len && pattern[at + 1] == '^') {
                ol_buf_put_u8(out, (uint8_t)c);
                c = '^';
                at++;
                class_start++;
            }
        }
        ol_buf_put_u8(out, (uint8_t)c);
        at++;
    }
    return !in_class;
}

static pcre2_code *compile(const uint8_t *pattern, size_t len, int *code, size_t *offset)
{
    uint32_t options =
        PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_AUTO_CAPTURE;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    pcre2_code *made;

    if (!context) {
        *code = PCRE2_ERROR_NOMEMORY;
        return NULL;
    }
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pcre2_set_max_pattern_length(context, 8 * TOK_MAX_LITERAL);
    made = pcre2_compile(pattern, len, options, code, offset, context);
    pcre2_compile_context_free(context);
    return made;
}

/* The white space at the end of a line, as it is written in DeepSeek's files, looks at
 * every suffix of every run of white space. Asking for the start of the run first
 * finds the same matches in linear time. */
static const char trailing[] = "\\s+$", trailing_linear[] = "(?<!\\s)\\s+$";

ol_code tok_regex_compile(ol_tokenizer *tok, const char *pattern, size_t len, const tok_regex **out,
                          ol_error *err)
{
    ol_buf text = {0};
    tok_regex *re;
    int code = 0;
    size_t offset = 0;
    bool fine;

    if (len > TOK_MAX_LITERAL)
        return ol_fail(err, OL_LIMIT, "a pattern of %zu bytes is too long", len);
    if (tok_utf8_valid((const uint8_t *)pattern, len) != len)
        return ol_fail(err, OL_CORRUPT, "a pattern is not valid UTF-8");
    if (len == strlen(trailing) && memcmp(pattern, trailing, len) == 0) {
        pattern = trailing_linear;
        len = strlen(trailing_linear);
    }
    fine = translate(pattern, len, &text);
    if (text.failed || !(re = ol_arena_alloc(tok->arena, sizeof(*re)))) {
        ol_buf_free(&text);
        return tok_nomem(err);
    }
    if (!fine) {
        ol_buf_free(&text);
        ol_fail(err, OL_UNSUPPORTED, "unsupported regular expression in the tokenizer");
        return ol_detail(err, "The pattern is \"%.*s\".", (int)(len > 300 ? 300 : len), pattern);
    }
    re->code = compile(text.data, text.len, &code, &offset);
    ol_buf_free(&text);
    if (!re->code) {
        char reason[160] = "";

        pcre2_get_error_message(code, (PCRE2_UCHAR *)reason, sizeof(reason));
        ol_fail(err, OL_UNSUPPORTED, "unsupported regular expression in the tokenizer: %s", reason);
        return ol_detail(err, "The pattern is \"%.*s\".", (int)(len > 300 ? 300 : len), pattern);
    }
    /* Without JIT (no executable memory, another machine) it is only slower. */
    re->jit = pcre2_jit_compile(re->code, PCRE2_JIT_COMPLETE) == 0;
    re->next = tok->regexes;
    tok->regexes = re;
    *out = re;
    return OL_OK;
}

void tok_regex_free_all(ol_tokenizer *tok)
{
    for (tok_regex *re = tok->regexes; re; re = re->next)
        pcre2_code_free(re->code);
    tok->regexes = NULL;
}

struct tok_matcher *tok_matcher_new(void)
{
    struct tok_matcher *matcher = calloc(1, sizeof(*matcher));

    if (!matcher)
        return NULL;
    matcher->data = pcre2_match_data_create(1, NULL);
    matcher->context = pcre2_match_context_create(NULL);
    if (!matcher->data || !matcher->context) {
        tok_matcher_free(matcher);
        return NULL;
    }
    pcre2_set_heap_limit(matcher->context, HEAP_LIMIT_KIB);
    return matcher;
}

void tok_matcher_free(struct tok_matcher *matcher)
{
    if (!matcher)
        return;
    pcre2_match_data_free(matcher->data);
    pcre2_match_context_free(matcher->context);
    free(matcher);
}

static int match_at(const tok_regex *re, struct tok_matcher *m, ol_span text, size_t from)
{
    PCRE2_SPTR subject = (PCRE2_SPTR)text.data;
    int rc;

    if (re->jit) {
        rc =
            pcre2_jit_match(re->code, subject, text.len, from, PCRE2_NOTEMPTY, m->data, m->context);
        if (rc != PCRE2_ERROR_JIT_STACKLIMIT)
            return rc;
    }
    return pcre2_match(re->code, subject, text.len, from,
                       PCRE2_NOTEMPTY | PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, m->data, m->context);
}

ol_code tok_regex_next(const tok_regex *re, struct tok_matcher *m, ol_span text, size_t from,
                       tok_match *match, ol_error *err)
{
    int rc;

    match->found = false;
    if (from >= text.len)
        return OL_OK;
    /* One backtracking step per byte is normal for a long run; many are not. */
    pcre2_set_match_limit(m->context, MATCH_LIMIT_BASE + 8 * (uint32_t)text.len);
    rc = match_at(re, m, text, from);
    if (rc == PCRE2_ERROR_NOMATCH)
        return OL_OK;
    if (rc < 0) {
        char reason[160] = "";

        pcre2_get_error_message(rc, (PCRE2_UCHAR *)reason, sizeof(reason));
        ol_fail(err, rc == PCRE2_ERROR_NOMEMORY ? OL_NOMEM : OL_LIMIT,
                "the tokenizer's pattern gave up on the text: %s", reason);
        return ol_detail(err, "At byte %zu of a piece of %zu bytes.", from, text.len);
    }
    match->start = pcre2_get_ovector_pointer(m->data)[0];
    match->end = pcre2_get_ovector_pointer(m->data)[1];
    /* \K is refused, so a match is in order; a look-behind cannot move its start. */
    match->found = match->end > match->start && match->start >= from && match->end <= text.len;
    return OL_OK;
}
