/* scheduler.c: sequences and their states, slots and pages: see scheduler.h. */
#include "engine/scheduler_internal.h"

#include <assert.h>
#include <stdlib.h>

/* -- life ------------------------------------------------------------------------- */

ol_code ol_sched_create(const ol_sched_limits *limits, ol_sched **out, ol_error *err)
{
    ol_sched *s = calloc(1, sizeof(*s));
    size_t seqs = (size_t)limits->max_seqs;

    if (!s)
        return ol_fail_nomem(err, sizeof(*s), "the scheduler");
    s->limits = *limits;
    if (ol_kvpages_create(limits->n_pages, limits->page_tokens, &s->pages, err) != OL_OK ||
        ol_tenants_create(&s->tenants, err) != OL_OK) {
        ol_sched_free(s);
        return err->code;
    }
    s->slot_pages = ol_kvpages_for(s->pages, limits->max_tokens);
    assert(s->slot_pages <= limits->n_pages);
    s->tables = calloc(seqs * (size_t)s->slot_pages, sizeof(int32_t));
    s->free_slots = calloc(seqs, sizeof(int));
    s->plan.parts = calloc(seqs, sizeof(ol_sched_part));
    if (!s->tables || !s->free_slots || !s->plan.parts) {
        ol_sched_free(s);
        return ol_fail_nomem(err, seqs * (size_t)s->slot_pages * sizeof(int32_t), "page tables");
    }
    for (int i = 0; i < limits->max_seqs; i++)
        s->free_slots[i] = limits->max_seqs - 1 - i;
    s->n_free_slots = limits->max_seqs;
    s->prompt_rows = limits->step_tokens;
    s->reserved_slots = limits->max_seqs / 16;
    *out = s;
    return OL_OK;
}

void ol_sched_free(ol_sched *s)
{
    if (!s)
        return;
    assert(s->running.n == 0 && s->waiting.n == 0);
    ol_kvpages_free(s->pages);
    ol_tenants_free(s->tenants);
    free(s->tables);
    free(s->free_slots);
    free(s->plan.parts);
    free(s);
}

/* -- lists in order -------------------------------------------------------------------- */

static bool older(const ol_sched_seq *a, const ol_sched_seq *b)
{
    return a->priority != b->priority ? a->priority > b->priority : a->order < b->order;
}

/* From the tail: what comes is mostly the newest. */
static void list_insert(seq_list *list, ol_sched_seq *seq)
{
    ol_sched_seq *after = list->tail;

    while (after && older(seq, after))
        after = after->prev;
    seq->prev = after;
    seq->next = after ? after->next : list->head;
    if (seq->next)
        seq->next->prev = seq;
    else
        list->tail = seq;
    if (after)
        after->next = seq;
    else
        list->head = seq;
    list->n++;
}

static void list_remove(seq_list *list, ol_sched_seq *seq)
{
    if (seq->prev)
        seq->prev->next = seq->next;
    else
        list->head = seq->next;
    if (seq->next)
        seq->next->prev = seq->prev;
    else
        list->tail = seq->prev;
    seq->prev = seq->next = NULL;
    list->n--;
}

/* -- states --------------------------------------------------------------------------- */

static void enter_waiting(ol_sched *s, ol_sched_seq *seq)
{
    seq->state = OL_SEQ_WAITING;
    list_insert(&s->waiting, seq);
}

static void leave_running(ol_sched *s, ol_sched_seq *seq)
{
    ol_pagetable_clear(&seq->table, s->pages);
    seq->table = (ol_pagetable){0};
    seq->computed = 0;
    seq->state = OL_SEQ_OUTSIDE;
    s->free_slots[s->n_free_slots++] = seq->slot;
    list_remove(&s->running, seq);
    if (seq->tenant)
        seq->tenant->running--;
}

/* -- admission ---------------------------------------------------------------------------- */

/* What is computed of a sequence's tokens already. At least one row is left to compute, and all
 * that give logits are. */
static void find_computed(ol_sched *s, ol_sched_seq *seq)
{
    int most = seq->logits_from < seq->known - 1 ? seq->logits_from : seq->known - 1;

    seq->table.n =
        s->limits.find ? s->limits.find(s->limits.find_context, seq, most, seq->table.pages) : 0;
    seq->computed = seq->table.n * s->limits.page_tokens;
}

/* Whether there are so many pages, beside those that its elders want for their adapters; these are
 * not among what keys and values may have at most. */
static bool has_room(const ol_sched *s, const ol_sched_seq *seq, int pages)
{
    int wanted = s->whose && older(s->whose, seq) ? s->wanted_pages : 0;

    return pages <= ol_kvpages_available(s->pages) && wanted <= ol_kvpages_room(s->pages) - pages;
}

/* For tenants that have nothing running: of the pages that keys and values may have. */
static int reserved_pages(const ol_sched *s)
{
    int eighth = ol_kvpages_most(s->pages) / 8;

    return eighth < s->slot_pages ? eighth : s->slot_pages;
}

bool sched_admit(ol_sched *s, ol_sched_seq *seq)
{
    int headroom = s->running.n; /* let those that run grow before they have to yield */

    if (s->n_free_slots == 0)
        return false;
    if (sched_running_of(seq) > 0)
        headroom += reserved_pages(s);
    seq->slot = s->free_slots[s->n_free_slots - 1];
    seq->table = (ol_pagetable){.pages = s->tables + (size_t)seq->slot * (size_t)s->slot_pages,
                                .max = s->slot_pages};
    find_computed(s, seq);
    if (!has_room(s, seq, ol_kvpages_for(s->pages, seq->known) - seq->table.n + headroom)) {
        ol_pagetable_clear(&seq->table, s->pages);
        seq->computed = 0;
        return false;
    }
    s->n_free_slots--;
    ol_pagetable_grow(&seq->table, s->pages, seq->known);
    if (seq->preempted == 0)
        seq->found = seq->computed;
    if (seq->charged < seq->computed)
        seq->charged = seq->computed;
    list_remove(&s->waiting, seq);
    seq->state = OL_SEQ_RUNNING;
    list_insert(&s->running, seq);
    if (seq->tenant)
        seq->tenant->running++;
    return true;
}

void sched_preempt(ol_sched *s, ol_sched_seq *seq)
{
    leave_running(s, seq);
    seq->preempted++;
    s->preemptions++;
    enter_waiting(s, seq);
}

void ol_sched_add(ol_sched *s, ol_sched_seq *seq)
{
    assert(seq->state == OL_SEQ_OUTSIDE && seq->computed == 0 && seq->table.n == 0);
    assert(seq->known > 0 && seq->known <= s->limits.max_tokens);
    enter_waiting(s, seq);
}

void ol_sched_remove(ol_sched *s, ol_sched_seq *seq)
{
    if (seq->state == OL_SEQ_RUNNING)
        leave_running(s, seq);
    else if (seq->state == OL_SEQ_WAITING)
        list_remove(&s->waiting, seq);
    seq->state = OL_SEQ_OUTSIDE;
}

/* -- facts ------------------------------------------------------------------------------ */

int ol_sched_running(const ol_sched *s)
{
    return s->running.n;
}

int ol_sched_waiting(const ol_sched *s)
{
    return s->waiting.n;
}

uint64_t ol_sched_preemptions(const ol_sched *s)
{
    return s->preemptions;
}

ol_kvpages *ol_sched_pages(ol_sched *s)
{
    return s->pages;
}

ol_tenants *ol_sched_tenants(ol_sched *s)
{
    return s->tenants;
}

const ol_sched_seq *ol_sched_first_running(const ol_sched *s)
{
    return s->running.head;
}

const ol_sched_seq *ol_sched_first_waiting(const ol_sched *s)
{
    return s->waiting.head;
}

static void check_list(const ol_sched *s, const seq_list *list, ol_sched_state state, int *pages)
{
    int n = 0;

    for (const ol_sched_seq *seq = list->head; seq; seq = seq->next, n++) {
        assert(seq->state == state);
        assert(seq->next ? older(seq, seq->next) && seq->next->prev == seq : list->tail == seq);
        assert(seq->computed <= seq->known && seq->known <= s->limits.max_tokens);
        assert(seq->table.n >= ol_kvpages_for(s->pages, seq->computed));
        assert(state == OL_SEQ_RUNNING || (seq->computed == 0 && seq->table.n == 0));
        *pages += seq->table.n;
    }
    assert(n == list->n);
}

void ol_sched_check(const ol_sched *s)
{
    int held = 0, refs = 0, used = 0;

    check_list(s, &s->running, OL_SEQ_RUNNING, &held);
    check_list(s, &s->waiting, OL_SEQ_WAITING, &held);
    assert(s->running.n + s->n_free_slots == s->limits.max_seqs);
    for (int32_t page = 0; page < ol_kvpages_total(s->pages); page++) {
        refs += ol_kvpages_refs(s->pages, page);
        used += ol_kvpages_refs(s->pages, page) > 0;
    }
    assert(refs == held);
    assert(used == ol_kvpages_used(s->pages));
    assert(ol_kvpages_lent(s->pages) > 0 ||
           used + ol_kvpages_available(s->pages) == ol_kvpages_most(s->pages));
}
