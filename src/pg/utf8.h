/*
 * utf8.h: the engine speaks UTF-8, a database what it was created with.
 */
#ifndef LORA_UTF8_H
#define LORA_UTF8_H

#include "lora_pg.h"

#include "lib/stringinfo.h"

/* A string of the database as UTF-8, as error values (ol_error) are; and the other way. What needs
 * no change comes back as it is. */
extern const char *lora_to_utf8(const char *text);
extern const char *lora_from_utf8(const char *utf8);
/* A name for an error value: bytes that are no characters (as SQL_ASCII allows) become '?'. */
extern const char *lora_name_as_utf8(const char *name);

/* A text argument as UTF-8, held to openlora.max_prompt_size; `what` names it in the error. */
extern bool lora_utf8_argument(text *value, const char *what, const char **utf8, Size *length,
                               ol_error *error);
/* Appends a model's text. A NUL, which PostgreSQL's text cannot have, becomes U+FFFD. */
extern void lora_append_utf8(StringInfo out, const char *utf8, Size length);
/* Whether the database's encoding has all characters of an answer. */
extern bool lora_has_characters(const char *utf8, Size length, ol_error *error);
/* UTF-8 in the database's encoding. */
extern text *lora_text_from_utf8(const char *utf8, Size length);

#endif
