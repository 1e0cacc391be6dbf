/* tags.c: see tags.h. */
#include "engine/main/tags.h"

#include <stdlib.h>

#define BUCKETS 4096 /* a power of two */
#define SPARE_BYTES ((size_t)128 << 20)
#define LARGE_UPLOAD ((size_t)32 << 10) /* what begins with that much is worth a kept buffer */

typedef struct slot {
    tag_entry *entry; /* NULL: free */
    uint32_t uses;
    uint32_t next_free; /* slot + 1; 0: none */
} slot;

struct tag_table {
    tag_entry *buckets[BUCKETS];
    slot *slots;
    size_t n_slots;
    uint32_t free_slot; /* slot + 1; 0: none */
    size_t uploaded;
    ol_spares spares;
};

tag_table *tag_table_create(void)
{
    tag_table *t = calloc(1, sizeof(*t));

    if (t)
        t->spares.most = SPARE_BYTES;
    return t;
}

void tag_table_free(tag_table *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n_slots; i++)
        if (t->slots[i].entry)
            tag_remove(t, t->slots[i].entry);
    ol_spares_drop(&t->spares);
    free(t->slots);
    free(t);
}

/* -- finding ---------------------------------------------------------------------------- */

static size_t bucket_of(uint32_t session, uint64_t tag)
{
    uint64_t z = (tag ^ (uint64_t)session << 40) * 0x9E3779B97F4A7C15u;

    return (size_t)(z >> 40) & (BUCKETS - 1);
}

static bool is_of(const tag_entry *e, const ol_frame *frame)
{
    return e->session == frame->session && e->epoch == frame->epoch;
}

tag_entry *tag_find(const tag_table *t, const ol_frame *frame)
{
    tag_entry *e = t->buckets[bucket_of(frame->session, frame->tag)];

    while (e && (e->tag != frame->tag || !is_of(e, frame)))
        e = e->chain;
    return e;
}

tag_entry *tag_of_number(const tag_table *t, uint64_t number)
{
    size_t at = (size_t)(number & UINT32_MAX);
    tag_entry *e = at < t->n_slots ? t->slots[at].entry : NULL;

    return e && e->number == number ? e : NULL;
}

tag_entry *tag_next_of_session(const tag_table *t, const ol_frame *frame, size_t *at)
{
    for (; *at < t->n_slots; ++*at)
        if (t->slots[*at].entry && is_of(t->slots[*at].entry, frame))
            return t->slots[(*at)++].entry;
    return NULL;
}

/* -- coming and going --------------------------------------------------------------------- */

static bool grow_slots(tag_table *t)
{
    size_t n = t->n_slots ? 2 * t->n_slots : 64;
    slot *slots = n <= UINT32_MAX / 2 ? realloc(t->slots, n * sizeof(slot)) : NULL;

    if (!slots)
        return false;
    for (size_t i = n; i-- > t->n_slots;) {
        slots[i] = (slot){.next_free = t->free_slot};
        t->free_slot = (uint32_t)i + 1;
    }
    t->slots = slots;
    t->n_slots = n;
    return true;
}

tag_entry *tag_take(tag_table *t, const ol_frame *frame)
{
    tag_entry **bucket = &t->buckets[bucket_of(frame->session, frame->tag)];
    tag_entry *e = tag_find(t, frame);
    uint32_t at;

    if (e || (!t->free_slot && !grow_slots(t)) || !(e = calloc(1, sizeof(*e))))
        return e;
    at = t->free_slot - 1;
    t->free_slot = t->slots[at].next_free;
    t->slots[at].entry = e;
    *e = (tag_entry){.session = frame->session,
                     .epoch = frame->epoch,
                     .tag = frame->tag,
                     .number = (uint64_t)++t->slots[at].uses << 32 | at,
                     .chain = *bucket};
    *bucket = e;
    return e;
}

void tag_remove(tag_table *t, tag_entry *e)
{
    tag_entry **link = &t->buckets[bucket_of(e->session, e->tag)];
    uint32_t at = (uint32_t)(e->number & UINT32_MAX);

    while (*link != e)
        link = &(*link)->chain;
    *link = e->chain;
    t->slots[at].entry = NULL;
    t->slots[at].next_free = t->free_slot;
    t->free_slot = at + 1;
    tag_drop_upload(t, e);
    free(e);
}

/* -- uploads --------------------------------------------------------------------------------- */

size_t tag_uploaded(const tag_table *t)
{
    return t->uploaded;
}

bool tag_upload(tag_table *t, tag_entry *e, const void *bytes, size_t len)
{
    size_t before = e->upload.cap;

    if (!e->upload.data && len >= LARGE_UPLOAD)
        e->upload = ol_spares_take(&t->spares);
    ol_buf_put(&e->upload, bytes, len);
    t->uploaded += e->upload.cap - before;
    return !e->upload.failed;
}

void tag_drop_upload(tag_table *t, tag_entry *e)
{
    t->uploaded -= e->upload.cap;
    if (e->upload.cap >= LARGE_UPLOAD)
        ol_spares_give(&t->spares, &e->upload);
    else
        ol_buf_free(&e->upload);
}

uint8_t *tag_take_upload(tag_table *t, tag_entry *e)
{
    uint8_t *bytes = e->upload.data;

    t->uploaded -= e->upload.cap;
    e->upload = (ol_buf){0};
    return bytes;
}

void tag_give_back(tag_table *t, uint8_t *bytes, size_t len)
{
    ol_buf buf = {.data = bytes, .cap = len};

    ol_spares_give(&t->spares, &buf);
}

size_t tag_spare(const tag_table *t)
{
    return t->spares.bytes;
}

void tag_drop_spare(tag_table *t)
{
    ol_spares_drop(&t->spares);
}
