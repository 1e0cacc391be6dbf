/*
 * tok_added.c: finding special and added tokens in a text, leftmost-longest, with the
 * attributes that Hugging Face gives them. The trie's nodes have their children in a
 * list; contents are short, and few texts get further than the first byte.
 */
#include "engine/tokenizer/tok_internal.h"

#include <string.h>
#include <utf8proc.h>

typedef struct tok_node {
    int32_t child, sibling; /* 0: none */
    int32_t index;          /* of a content that ends here, or -1 */
    uint8_t byte;
} tok_node;

bool tok_trie_build(tok_trie *trie, ol_arena *arena, const ol_span *contents,
                    const int32_t *indexes, size_t n)
{
    size_t total = 1;

    for (size_t i = 0; i < n; i++)
        total += contents[i].len;
    if (total > INT32_MAX || !(trie->nodes = ol_arena_array(arena, total, sizeof(tok_node))))
        return false;
    trie->nodes[0] = (tok_node){.index = -1};
    trie->n_nodes = 1;
    for (size_t i = 0; i < n; i++) {
        const uint8_t *p = (const uint8_t *)contents[i].data;
        int32_t at = 0;

        if (contents[i].len == 0)
            continue;
        trie->first[p[0]] = true;
        for (size_t k = 0; k < contents[i].len; k++) {
            int32_t child = trie->nodes[at].child;

            while (child && trie->nodes[child].byte != p[k])
                child = trie->nodes[child].sibling;
            if (!child) {
                child = (int32_t)trie->n_nodes++;
                trie->nodes[child] =
                    (tok_node){.sibling = trie->nodes[at].child, .index = -1, .byte = p[k]};
                trie->nodes[at].child = child;
            }
            at = child;
        }
        trie->nodes[at].index = indexes[i]; /* of equal contents the last counts */
    }
    return true;
}

/* The longest content at the beginning of text; -1 for none. */
static int32_t trie_longest(const tok_trie *trie, const uint8_t *p, size_t left, size_t *len)
{
    int32_t at = 0, best = -1;

    for (size_t k = 0; k < left; k++) {
        at = trie->nodes[at].child;
        while (at && trie->nodes[at].byte != p[k])
            at = trie->nodes[at].sibling;
        if (!at)
            break;
        if (trie->nodes[at].index >= 0) {
            best = trie->nodes[at].index;
            *len = k + 1;
        }
    }
    return best;
}

static bool is_word(uint32_t cp)
{
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return cp == 0x200C || cp == 0x200D; /* joiners */
    }
}

/* The character that ends before `at`; the text is valid UTF-8. */
static size_t char_before(ol_span text, size_t at, uint32_t *cp)
{
    const uint8_t *p = (const uint8_t *)text.data;
    size_t start = at;

    while (start > 0 && at - start < 4) {
        start--;
        if ((p[start] & 0xC0) != 0x80)
            break;
    }
    return tok_utf8_char(p + start, at - start, cp);
}

static bool is_whole_word(ol_span text, size_t start, size_t end)
{
    const uint8_t *p = (const uint8_t *)text.data;
    uint32_t cp;

    if (start > 0 && char_before(text, start, &cp) && is_word(cp))
        return false;
    return !(end < text.len && tok_utf8_char(p + end, text.len - end, &cp) && is_word(cp));
}

static void take_spaces(const tok_added *added, ol_span text, size_t from, tok_match *m)
{
    const uint8_t *p = (const uint8_t *)text.data;
    uint32_t cp;
    size_t n;

    if (added->lstrip) {
        while (m->start > from && (n = char_before(text, m->start, &cp)) > 0 &&
               n <= m->start - from && tok_is_space(cp))
            m->start -= n;
    }
    if (added->rstrip) {
        while ((n = tok_utf8_char(p + m->end, text.len - m->end, &cp)) > 0 && tok_is_space(cp))
            m->end += n;
    }
}

const tok_added *tok_added_next(const tok_work *work, const tok_trie *trie, ol_span text,
                                size_t from, tok_match *match)
{
    const uint8_t *p = (const uint8_t *)text.data;

    if (trie->n_nodes <= 1)
        return NULL;
    for (size_t at = from; at < text.len; at++) {
        const tok_added *added;
        size_t len = 0;
        int32_t found;

        if (!trie->first[p[at]] || (found = trie_longest(trie, p + at, text.len - at, &len)) < 0)
            continue;
        added = &work->tok->added[found];
        if ((added->special && !(work->flags & OL_TOK_PARSE_SPECIAL)) ||
            (added->single_word && !is_whole_word(text, at, at + len))) {
            at += len - 1; /* it is plain text, and so is what it covers */
            continue;
        }
        *match = (tok_match){.found = true, .start = at, .end = at + len};
        take_spaces(added, text, from, match);
        return added;
    }
    return NULL;
}
