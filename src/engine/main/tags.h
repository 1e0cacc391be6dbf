/*
 * tags.h: what sessions have going on: for each (session, epoch, tag) an entry with its
 * upload, and its request in the engine, if it has become one.
 *
 * The engine's tags are entries' numbers: a slot in the low half, and a count of its uses
 * in the high one, so that a late event cannot meet a new entry.
 */
#ifndef OL_MAIN_TAGS_H
#define OL_MAIN_TAGS_H

#include "base/spares.h"
#include "wire/ring.h"

typedef struct tag_table tag_table;

typedef struct tag_entry {
    uint32_t session, epoch;
    uint64_t tag;    /* the session's */
    uint64_t number; /* the engine's tag */
    ol_buf upload;
    bool live;     /* a request in the engine */
    bool checking; /* an adapter, which the engine has */
    bool dead;     /* failed in mid-upload: what still comes is swallowed */
    int needs;     /* adapters asked for and not yet here */
    struct tag_entry *chain;
} tag_entry;

tag_table *tag_table_create(void); /* NULL when out of memory */
void tag_table_free(tag_table *table);

tag_entry *tag_find(const tag_table *table, const ol_frame *frame); /* or NULL */
tag_entry *tag_of_number(const tag_table *table, uint64_t number);  /* or NULL */
/* Finds or makes; NULL when out of memory. */
tag_entry *tag_take(tag_table *table, const ol_frame *frame);
void tag_remove(tag_table *table, tag_entry *entry);
/* The next entry of the session at or after slot *at (0 at first), or NULL. */
tag_entry *tag_next_of_session(const tag_table *table, const ol_frame *frame, size_t *at);

/* Uploads of all entries together, in bytes of memory. */
size_t tag_uploaded(const tag_table *table);
/* Appends to the entry's upload; false when out of memory. */
bool tag_upload(tag_table *table, tag_entry *entry, const void *bytes, size_t len);
void tag_drop_upload(tag_table *table, tag_entry *entry);
/* Hands the upload over: malloc'ed bytes, the caller's to free or to give back. */
uint8_t *tag_take_upload(tag_table *table, tag_entry *entry);
/* They serve as memory for the next upload. */
void tag_give_back(tag_table *table, uint8_t *bytes, size_t len);
/* Bytes that are kept for that; and dropping them. */
size_t tag_spare(const tag_table *table);
void tag_drop_spare(tag_table *table);

#endif
