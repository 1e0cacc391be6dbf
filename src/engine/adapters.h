/*
 * adapters.h: the adapters that requests name and that the device holds, by digest.
 *
 * A record exists as long as the adapter is resident or some request names it; and of those
 * that are neither the last OL_ADAPTERS_REMEMBERED are kept, for what they were used for and
 * how large they are. What is resident stays within a budget of bytes; room is made by
 * dropping what nobody pins, in the order of idle.h. Requests pin what they run with: see
 * admission.c for when, and for why that cannot lock up.
 *
 * Copies in the host's memory (copies.h) go with their records.
 *
 * With a pool of pages (kvpages.h) adapters lie in pages that it lends, and the store is its
 * guest: whoever needs room, for pages or for an adapter, gets that of the first adapter to go and
 * the first page to go which became idle first.
 *
 * Invariants
 *  1. resident and reserved bytes <= budget; the resident bytes of pinned adapters <= resident
 *     bytes. In a pool these are the bytes of the pages that it has lent.
 *  2. Pinned adapters are resident. Resident and not pinned: in a list of idle.h.
 *  3. A record that is neither resident nor referenced is in the list of those remembered.
 */
#ifndef OL_ENGINE_ADAPTERS_H
#define OL_ENGINE_ADAPTERS_H

#include "engine/copies.h"
#include "engine/engine.h"
#include "engine/formats/adapter_file.h"
#include "engine/formats/model_config.h"
#include "engine/kvpages.h"
#include "engine/seal.h"

typedef struct ol_adapters ol_adapters;

/* Pages of a pool, lent. */
typedef struct ol_adapter_place {
    ol_lora_need need;
    int32_t *runs; /* [need.n_runs]; NULL: none */
} ol_adapter_place;

#define OL_ADAPTERS_REMEMBERED 16384
#define OL_USES 3

typedef struct ol_adapter {
    ol_digest digest;
    ol_lora *lora;          /* NULL: not resident */
    size_t bytes;           /* on the device; 0 until it has been seen once */
    ol_adapter_place pages; /* in a pool; what it needs is known when bytes are */
    uint64_t idle_since;    /* the pool's count */
    ol_adapter_facts facts;
    ol_seal seal;  /* when it has been there once */
    ol_copy *copy; /* in the host's memory, or NULL */
    int loading;   /* how often its bytes are being read just now */
    uint64_t hits, misses, loads, load_us, used_us; /* used_us: when a request last named it */
    int refs;                                       /* requests that name it, and reading of it */
    int pins;                                       /* requests that need it where it is */
    /* Admission's: a host has been asked for it, on behalf of a request. */
    bool asked;
    uint64_t asked_tag, asked_us;
    uint64_t denied_at; /* `releases` when there was no room for it, plus 1; or 0 */
    /* The store's. */
    uint8_t uses, place;                    /* see idle.h */
    bool remembered;                        /* in that list */
    struct ol_adapter *chain;               /* same bucket */
    struct ol_adapter *lru_prev, *lru_next; /* towards less, more recently used, or remembered */
} ol_adapter;

typedef struct ol_adapters_counts {
    int resident;
    size_t bytes, pinned_bytes, reserved;
    uint64_t loads, hits, evictions;
    uint64_t copy_loads; /* of the loads: from copies */
    uint64_t releases;   /* how often an adapter lost its last pin, or a page its last user */
    /* For those who ask. */
    size_t budget;
    size_t room; /* what can be pinned and reserved now: the budget, but for a pool's used pages */
    int copies;  /* in the host's memory */
    size_t copy_bytes;
} ol_adapters_counts;

typedef struct ol_adapters_options {
    const ol_device_table *table;
    ol_device *device;
    const ol_model_config *base;
    size_t budget;
    size_t copy_budget; /* of copies.h; 0: there are none */
    /* Or in a pool. */
    ol_kvpages *pool; /* NULL: adapters have memory of their own */
    ol_kv *kv;        /* its memory */
    size_t page_bytes;
} ol_adapters_options;

ol_code ol_adapters_create(const ol_adapters_options *options, ol_adapters **store, ol_error *err);
void ol_adapters_free(ol_adapters *store); /* NULL is fine; nothing may be pinned */

/* The record of a digest, made if there is none, with one reference more; NULL when out
 * of memory. */
ol_adapter *ol_adapters_ref(ol_adapters *store, const ol_digest *digest);
void ol_adapters_unref(ol_adapters *store, ol_adapter *adapter);
/* Or NULL when it is not resident. */
const ol_adapter *ol_adapters_find(const ol_adapters *store, const ol_digest *digest);

void ol_adapters_pin(ol_adapters *store, ol_adapter *adapter);
void ol_adapters_unpin(ol_adapters *store, ol_adapter *adapter);
/* A request names it: it is there, or not. */
void ol_adapters_named(ol_adapters *store, ol_adapter *adapter);
/* For those who look. */
int ol_adapters_records(const ol_adapters *store);
/* Counts of all adapters begin again; those remembered are forgotten. */
void ol_adapters_reset(ol_adapters *store);
void ol_adapters_each(const ol_adapters *store, void (*each)(const ol_adapter *, void *),
                      void *context);

/* What becomes of the bytes, without the store's state: so it can be made on another thread
 * (ol_adapters_make), and is taken (or dropped) by the store's own. */
typedef struct ol_adapter_made {
    ol_adapter_bytes bytes; /* live until it is taken or dropped */
    ol_code code;
    ol_error error;
    ol_digest digest;
    ol_seal seal;
    ol_arena *arena;
    ol_adapter_file file;   /* when code is OL_OK */
    ol_lora *lora;          /* NULL: not placed */
    size_t takes;           /* bytes on the device; without a pool an estimate */
    bool here;              /* it may be placed where it is taken */
    ol_adapter_place place; /* of a pool: what it needs, and has */
} ol_adapter_made;

/* The adapter that they should be; its record's seal. */
typedef struct ol_adapter_known {
    ol_digest digest;
    ol_seal seal;
} ol_adapter_known;

/* Finds the digest, parses, validates, and, with `place`, has the device place it. known: what a
 * record knows of them; NULL when nothing will be kept of them, which then are not sealed. */
void ol_adapters_make(const ol_adapters *store, const ol_adapter_bytes *bytes,
                      const ol_adapter_known *known, bool place, ol_adapter_made *made);
/* The same of a copy that a reader holds: there is nothing to be read but the device's part. */
void ol_adapters_make_of_copy(const ol_adapters *store, const ol_copy *copy,
                              const ol_adapter_known *known, bool place, ol_adapter_made *made);
void ol_adapters_drop(const ol_adapters *store, ol_adapter_made *made);
/* Before it is taken: what was made, of bytes in this buffer, becomes the record's copy if it fits.
 */
void ol_adapters_keep_copy(ol_adapters *store, ol_adapter *adapter, ol_adapter_made *made,
                           ol_copy_buffer *buffer);
/* Where copies get their memory. */
ol_copies *ol_adapters_copies(ol_adapters *store);
/* A reader more of the adapter's copy, which is returned; or NULL when it has none. */
ol_copy *ol_adapters_hold_copy(ol_adapters *store, ol_adapter *adapter);
void ol_adapters_release_copy(ol_copy *copy);
void ol_adapters_count_copy_load(ol_adapters *store);
/* In a pool, on any thread: has the device place what was made, in these pages, which are
 * made's from then on. Nothing happens when they are not what it needs. */
void ol_adapters_fill_place(const ol_adapters *store, ol_adapter_place *place,
                            ol_adapter_made *made);
/* Pages for that need, counted as reserved; false when there are none. */
bool ol_adapters_take_place(ol_adapters *store, const ol_lora_need *need, ol_adapter_place *place);
void ol_adapters_give_place(const ol_adapters *store, ol_adapter_place *place);
size_t ol_adapters_place_bytes(const ol_adapters *store, const ol_lora_need *need);
/* Room that a placed one will take: idle adapters go for it. False when there is none. */
bool ol_adapters_reserve(ol_adapters *store, size_t bytes);
void ol_adapters_unreserve(ol_adapters *store, size_t bytes);

/* Keeps what was made; frees the rest of it. When everything resident is pinned and leaves no
 * room, that is no failure: *kept is false, and the record (if requests name it) knows
 * its size from now on. Bytes of another digest than `expected` fail with OL_INVALID
 * and *ours false: they say nothing about the adapter that was asked for. */
typedef struct ol_adapter_verdict {
    bool kept;
    bool ours;
    ol_adapter_facts facts;
} ol_adapter_verdict;

ol_code ol_adapters_take(ol_adapters *store, const ol_digest *expected, ol_adapter_made *made,
                         ol_adapter_verdict *verdict, ol_error *err);
/* All of it here and now. */
ol_code ol_adapters_put(ol_adapters *store, const ol_digest *expected,
                        const ol_adapter_bytes *bytes, ol_adapter_verdict *verdict, ol_error *err);
/* Whether what was made could be used; facts->device_bytes is an estimate. */
ol_code ol_adapters_judge(const ol_adapters *store, const ol_adapter_made *made,
                          ol_adapter_facts *facts, ol_error *err);
/* Parses and validates; facts->device_bytes is an estimate. */
ol_code ol_adapters_check(const ol_adapters *store, const ol_adapter_bytes *bytes,
                          ol_adapter_facts *facts, ol_error *err);
/* Drops everything that is not pinned; false when there is nothing. */
bool ol_adapters_drop_idle(ol_adapters *store);

ol_adapters_counts ol_adapters_count(const ol_adapters *store);
/* OL_LIMIT: `bytes` of adapters can never be resident together. */
ol_code ol_adapters_over_budget(const ol_adapters *store, size_t bytes, int n, ol_error *err);

#endif
