/*
 * peft_match.h: how PEFT's configuration names modules (private to peft*.c).
 *
 * Patterns are regular expressions from whoever made the adapter: they are compiled
 * once, their number and the work of a match are limited, and keys that are plain
 * names (nearly all) never reach the regular expression engine.
 */
#ifndef OL_FORMATS_PEFT_MATCH_H
#define OL_FORMATS_PEFT_MATCH_H

#include "base/arena.h"
#include "base/status.h"

#define OL_PEFT_MAX_NAMES 8192 /* entries of a list or a pattern object */
#define OL_PEFT_MAX_REGEXES 64 /* in one configuration */
#define OL_PEFT_MAX_PATTERN 2000

typedef enum ol_match_kind {
    OL_MATCH_FULL, /* re.fullmatch(PATTERN, key): target_modules as text */
    OL_MATCH_TAIL, /* re.match("(.*\.)?(PATTERN)$", key): keys of rank_pattern */
    OL_MATCH_LAYER /* re.match("(?:^|.*?\.)PATTERN\.(\d+)\.", key): layers_pattern */
} ol_match_kind;

typedef struct ol_pattern {
    ol_match_kind kind;
    const char *field; /* of the configuration, for errors */
    const char *text;
    void *code; /* pcre2_code, or NULL: compare as plain text (TAIL) */
} ol_pattern;

/* A pattern of which kind and field are set. Free what has a code. */
ol_code ol_pattern_make(ol_pattern *pattern, const char *text, size_t len, ol_arena *arena,
                        ol_error *err);
void ol_pattern_free(ol_pattern *pattern);
/* work: steps that a match may take. For LAYER *layer is the number found; else it is NULL. */
ol_code ol_pattern_match(const ol_pattern *pattern, const char *key, uint32_t work, bool *matches,
                         int *layer, ol_error *err);

/* key is NAME or ends with ".NAME". *exact may be NULL. */
bool ol_name_matches(const char *name, const char *key, bool *exact);

#endif
