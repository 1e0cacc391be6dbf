/* scheduler.c: see scheduler.h. */
#include "engine/scheduler.h"

#include <assert.h>
#include <stdlib.h>

typedef struct seq_list {
    ol_sched_seq *head, *tail;
    int n;
} seq_list;

struct ol_sched {
    ol_sched_limits limits;
    ol_kvpages *pages;
    seq_list running, waiting;
    int slot_pages;  /* page table entries of a slot */
    int32_t *tables; /* [max_seqs][slot_pages] */
    int *free_slots; /* [n_free_slots] */
    int n_free_slots;
    ol_sched_plan plan;
    int rows_left, logits_left; /* while planning */
    uint64_t preemptions;
};

/* -- life ------------------------------------------------------------------------- */

ol_code ol_sched_create(const ol_sched_limits *limits, ol_sched **out, ol_error *err)
{
    ol_sched *s = calloc(1, sizeof(*s));
    size_t seqs = (size_t)limits->max_seqs;

    if (!s)
        return ol_fail_nomem(err, sizeof(*s), "the scheduler");
    s->limits = *limits;
    if (ol_kvpages_create(limits->n_pages, limits->page_tokens, &s->pages, err) != OL_OK) {
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
    *out = s;
    return OL_OK;
}

void ol_sched_free(ol_sched *s)
{
    if (!s)
        return;
    assert(s->running.n == 0 && s->waiting.n == 0);
    ol_kvpages_free(s->pages);
    free(s->tables);
    free(s->free_slots);
    free(s->plan.parts);
    free(s);
}

/* -- lists in order of age ----------------------------------------------------------- */

static bool older(const ol_sched_seq *a, const ol_sched_seq *b)
{
    return a->order < b->order;
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
}

/* Gives the oldest waiting sequence a slot and the pages of its known tokens. A pool
 * that nobody else uses always has these. */
static bool admit(ol_sched *s, ol_sched_seq *seq)
{
    int pages = ol_kvpages_for(s->pages, seq->known);
    int headroom = s->running.n; /* let those that run grow before they have to yield */

    if (s->n_free_slots == 0 || pages + headroom > ol_kvpages_available(s->pages))
        return false;
    seq->slot = s->free_slots[--s->n_free_slots];
    seq->table = (ol_pagetable){.pages = s->tables + (size_t)seq->slot * (size_t)s->slot_pages,
                                .max = s->slot_pages};
    ol_pagetable_grow(&seq->table, s->pages, seq->known);
    list_remove(&s->waiting, seq);
    seq->state = OL_SEQ_RUNNING;
    list_insert(&s->running, seq);
    return true;
}

static void preempt(ol_sched *s, ol_sched_seq *seq)
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

/* -- the plan -------------------------------------------------------------------------- */

/* What is left of a budget when each of `later` sequences is to get one of it, too. */
static int fair(int left, int later)
{
    int share = left - later;

    return share > 0 ? share : left > 0 ? 1 : 0;
}

/* Rows that a sequence gets; `later` run after it. *n_logits: how many give logits. */
static int rows_for(const ol_sched *s, const ol_sched_seq *seq, int later, int *n_logits)
{
    int rows = seq->known - seq->computed;
    int most = fair(s->rows_left, later), most_logits = fair(s->logits_left, later);
    int silent = seq->logits_from > seq->computed ? seq->logits_from - seq->computed : 0;

    if (rows > most)
        rows = most;
    *n_logits = rows > silent ? rows - silent : 0;
    if (*n_logits > most_logits)
        *n_logits = most_logits;
    return rows > silent ? silent + *n_logits : rows;
}

static void add_part(ol_sched *s, ol_sched_seq *seq, int rows, int n_logits)
{
    s->plan.parts[s->plan.n_parts++] = (ol_sched_part){seq, seq->computed, rows, n_logits};
    s->plan.n_rows += rows;
    s->plan.n_logit_rows += n_logits;
    s->rows_left -= rows;
    s->logits_left -= n_logits;
}

/* Pages for n_tokens of seq, taken from newer ones if need be. False when seq is itself
 * the newest that runs and had to go. */
static bool make_room(ol_sched *s, ol_sched_seq *seq, int n_tokens)
{
    while (!ol_pagetable_grow(&seq->table, s->pages, n_tokens)) {
        ol_sched_seq *newest = s->running.tail;

        preempt(s, newest);
        if (newest == seq)
            return false;
    }
    return true;
}

/* Returns whether somebody had to yield. */
static bool plan_running(ol_sched *s)
{
    ol_sched_seq *seq = s->running.head;
    int before = 0, there = s->running.n;

    for (; seq; before++) {
        int n_logits, rows = rows_for(s, seq, s->running.n - 1 - before, &n_logits);

        if (rows > 0 && !make_room(s, seq, seq->computed + rows))
            break;
        if (rows > 0)
            add_part(s, seq, rows, n_logits);
        seq = seq->next;
    }
    return s->running.n < there;
}

static void plan_waiting(ol_sched *s)
{
    while (s->waiting.head && s->rows_left > 0) {
        ol_sched_seq *seq = s->waiting.head;
        int n_logits, rows = rows_for(s, seq, 0, &n_logits);

        if (rows == 0 || !admit(s, seq))
            return;
        add_part(s, seq, rows, n_logits);
    }
}

ol_sched_plan *ol_sched_next(ol_sched *s)
{
    s->plan.n_parts = s->plan.n_rows = s->plan.n_logit_rows = 0;
    s->rows_left = s->limits.step_tokens;
    s->logits_left = s->limits.max_logit_rows;
    if (!plan_running(s))
        plan_waiting(s);
    return &s->plan;
}

void ol_sched_done(ol_sched *s)
{
    for (int i = 0; i < s->plan.n_parts; i++) {
        ol_sched_part *part = &s->plan.parts[i];

        part->seq->computed += part->n_rows;
        assert(part->seq->computed <= part->seq->known);
    }
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
    int pages = 0;

    check_list(s, &s->running, OL_SEQ_RUNNING, &pages);
    check_list(s, &s->waiting, OL_SEQ_WAITING, &pages);
    assert(s->running.n + s->n_free_slots == s->limits.max_seqs);
    assert(pages + ol_kvpages_available(s->pages) == ol_kvpages_total(s->pages));
}
