/* peft_match.c: see peft_match.h. */
#define PCRE2_CODE_UNIT_WIDTH 8

#include "engine/formats/peft_match.h"

#include <pcre2.h>
#include <stdio.h>
#include <string.h>

#define HEAP_KIB 1024

static bool plain(const char *text)
{
    for (const char *c = text; *c; c++)
        if (!((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') ||
              *c == '_' || *c == '.' || *c == '-'))
            return false;
    return true;
}

static ol_code compile(ol_pattern *p, ol_error *err)
{
    /* Groups as in peft's expressions, so that references in a pattern mean the same. */
    static const char *const around[][2] = {
        [OL_MATCH_FULL] = {"(?:", ")\\z"},
        [OL_MATCH_TAIL] = {"(.*\\.)?(", ")$"},
        [OL_MATCH_LAYER] = {"(?:^|.*?\\.)", "\\.(?<ol_layer>\\d+)\\."},
    };
    char source[OL_PEFT_MAX_PATTERN + 64];
    PCRE2_UCHAR why[128];
    PCRE2_SIZE at;
    int code;

    snprintf(source, sizeof(source), "%s%s%s", around[p->kind][0], p->text, around[p->kind][1]);
    p->code = pcre2_compile((PCRE2_SPTR)source, PCRE2_ZERO_TERMINATED,
                            PCRE2_ANCHORED | PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C, &code, &at, NULL);
    if (p->code)
        return OL_OK;
    pcre2_get_error_message(code, why, sizeof(why));
    ol_fail(err, OL_INVALID, "adapter_config.json: %s: \"%.100s\" is not a regular expression",
            p->field, p->text);
    return ol_detail(err, "%s.", (const char *)why);
}

ol_code ol_pattern_make(ol_pattern *p, const char *text, size_t len, ol_arena *arena, ol_error *err)
{
    if (len > OL_PEFT_MAX_PATTERN)
        return ol_fail(err, OL_LIMIT, "adapter_config.json: %s: a pattern of %zu bytes is too long",
                       p->field, len);
    if (memchr(text, 0, len))
        return ol_fail(err, OL_INVALID, "adapter_config.json: %s: a pattern holds a NUL", p->field);
    p->text = ol_arena_strndup(arena, text, len);
    if (!p->text)
        return ol_fail_nomem(err, len, p->field);
    if (p->kind == OL_MATCH_TAIL && plain(p->text))
        return OL_OK;
    return compile(p, err);
}

void ol_pattern_free(ol_pattern *pattern)
{
    pcre2_code_free(pattern->code);
    pattern->code = NULL;
}

/* "(.*\.)?(KEY)$" for a key of name characters: a dot in it stands for any one. */
static bool plain_tail(const char *text, const char *key)
{
    size_t n = strlen(text), k = strlen(key);

    if (n > k || (n < k && key[k - n - 1] != '.'))
        return false;
    for (size_t i = 0; i < n; i++)
        if (text[i] != '.' && text[i] != key[k - n + i])
            return false;
    return true;
}

static int layer_of(pcre2_match_data *data)
{
    PCRE2_UCHAR digits[16];
    PCRE2_SIZE len = sizeof(digits);
    int layer;

    if (pcre2_substring_copy_byname(data, (PCRE2_SPTR) "ol_layer", digits, &len) != 0 || len > 9)
        return -1;
    return sscanf((const char *)digits, "%d", &layer) == 1 ? layer : -1;
}

ol_code ol_pattern_match(const ol_pattern *pattern, const char *key, uint32_t work, bool *matches,
                         int *layer, ol_error *err)
{
    pcre2_match_data *data;
    pcre2_match_context *limits;
    int code = PCRE2_ERROR_NOMEMORY;

    *matches = false;
    if (!pattern->code) {
        *matches = plain_tail(pattern->text, key);
        return OL_OK;
    }
    data = pcre2_match_data_create_from_pattern(pattern->code, NULL);
    limits = pcre2_match_context_create(NULL);
    if (data && limits) {
        pcre2_set_match_limit(limits, work);
        pcre2_set_depth_limit(limits, work);
        pcre2_set_heap_limit(limits, HEAP_KIB);
        code = pcre2_match(pattern->code, (PCRE2_SPTR)key, strlen(key), 0, 0, data, limits);
        *matches = code >= 0;
        if (layer && code >= 0)
            *layer = layer_of(data);
    }
    pcre2_match_context_free(limits);
    pcre2_match_data_free(data);
    if (code >= 0 || code == PCRE2_ERROR_NOMATCH)
        return OL_OK;
    ol_fail(err, OL_LIMIT, "adapter_config.json: %s: \"%.100s\" takes too much work to match",
            pattern->field, pattern->text);
    return ol_detail(err, "It was matched against \"%s\".", key);
}

bool ol_name_matches(const char *name, const char *key, bool *exact)
{
    size_t n = strlen(name), k = strlen(key);
    bool same = n <= k && memcmp(key + k - n, name, n) == 0 && (n == k || key[k - n - 1] == '.');

    if (exact)
        *exact = same && n == k;
    return same;
}
