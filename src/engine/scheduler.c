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
    ol_tenants *tenants;
    int reserved_slots, reserved_pages; /* for tenants that have nothing running */
    int prompt_rows;
    const ol_sched_seq *whose; /* who needs wanted_pages, or NULL: of one plan */
    int wanted_pages;
    /* While planning. */
    int rows_left, logits_left;
    bool may_admit, newcomers_only;
    uint64_t plans, preemptions;
};

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
    s->reserved_pages = limits->n_pages / 8 < s->slot_pages ? limits->n_pages / 8 : s->slot_pages;
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

static int running_of(const ol_tenant *tenant)
{
    return tenant ? tenant->running : 0;
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

/* Gives a waiting sequence a slot and the pages of its known tokens. A pool that nobody else
 * uses always has these, unless an older request needs them for its adapters. */
static bool admit(ol_sched *s, ol_sched_seq *seq)
{
    int headroom = s->running.n; /* let those that run grow before they have to yield */

    if (s->n_free_slots == 0)
        return false;
    if (running_of(seq->tenant) > 0)
        headroom += s->reserved_pages;
    if (s->whose && older(s->whose, seq))
        headroom += s->wanted_pages;
    seq->slot = s->free_slots[s->n_free_slots - 1];
    seq->table = (ol_pagetable){.pages = s->tables + (size_t)seq->slot * (size_t)s->slot_pages,
                                .max = s->slot_pages};
    find_computed(s, seq);
    if (ol_kvpages_for(s->pages, seq->known) - seq->table.n + headroom >
        ol_kvpages_available(s->pages)) {
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

static int backlog(const ol_sched_seq *seq)
{
    return seq->known - seq->computed;
}

/* Rows that a sequence gets of what is left. *n_logits: how many give logits. */
static int rows_for(const ol_sched *s, const ol_sched_seq *seq, int *n_logits)
{
    int rows = backlog(seq) < s->rows_left ? backlog(seq) : s->rows_left;
    int silent = seq->logits_from > seq->computed ? seq->logits_from - seq->computed : 0;

    *n_logits = rows > silent ? rows - silent : 0;
    if (*n_logits > s->logits_left)
        *n_logits = s->logits_left;
    return rows > silent ? silent + *n_logits : rows;
}

static void add_part(ol_sched *s, ol_sched_seq *seq)
{
    int n_logits, rows = rows_for(s, seq, &n_logits);

    seq->planned = s->plans;
    if (rows == 0)
        return;
    s->plan.parts[s->plan.n_parts++] = (ol_sched_part){seq, seq->computed, rows, n_logits};
    s->plan.n_rows += rows;
    s->plan.n_logit_rows += n_logits;
    s->rows_left -= rows;
    s->logits_left -= n_logits;
}

/* Pages for n_tokens of seq, taken from the last that run if need be. False when seq is
 * itself the last and had to go. */
static bool make_room(ol_sched *s, ol_sched_seq *seq, int n_tokens)
{
    while (!ol_pagetable_grow(&seq->table, s->pages, n_tokens)) {
        ol_sched_seq *last = s->running.tail;

        preempt(s, last);
        if (last == seq)
            return false;
    }
    return true;
}

/* Those that generate. Whoever has to yield comes later in the list: it is in no plan yet. */
static void plan_generating(ol_sched *s)
{
    ol_sched_seq *seq = s->running.head;

    for (; seq && s->rows_left > 0; seq = seq->next)
        if (backlog(seq) == 1) {
            if (!make_room(s, seq, seq->known))
                return;
            add_part(s, seq);
        }
}

static double counter_of(const ol_sched_seq *seq)
{
    return seq->tenant ? seq->tenant->counter : 0;
}

/* Whether a is to be served before b. */
static bool precedes(const ol_sched_seq *a, const ol_sched_seq *b)
{
    if (a->priority != b->priority)
        return a->priority > b->priority;
    if (counter_of(a) != counter_of(b)) /* equal for sequences of one tenant */
        return counter_of(a) < counter_of(b);
    if (a->state != b->state)
        return a->state == OL_SEQ_RUNNING;
    return a->order < b->order;
}

static ol_sched_seq *first_running(const ol_sched *s)
{
    ol_sched_seq *best = NULL;

    for (ol_sched_seq *seq = s->running.head; seq; seq = seq->next)
        if (backlog(seq) > 0 && seq->planned != s->plans && (!best || precedes(seq, best)))
            best = seq;
    return best;
}

static bool is_candidate(const ol_sched *s, const ol_sched_seq *seq)
{
    if (running_of(seq->tenant) == 0)
        return true;
    return !s->newcomers_only && s->n_free_slots > s->reserved_slots;
}

static ol_sched_seq *first_waiting(const ol_sched *s)
{
    ol_sched_seq *best = NULL;

    if (!s->may_admit || s->n_free_slots == 0)
        return NULL;
    for (ol_sched_seq *seq = s->waiting.head; seq; seq = seq->next)
        if (is_candidate(s, seq) && (!best || precedes(seq, best)))
            best = seq;
    return best;
}

ol_sched_seq *ol_sched_next_waiting(const ol_sched *s)
{
    ol_sched_seq *best = s->waiting.head;

    for (ol_sched_seq *seq = best; seq; seq = seq->next)
        if (precedes(seq, best))
            best = seq;
    return best;
}

/* A large one that finds no room is not passed by smaller ones of tenants that run already;
 * nor by any when its tenant has nothing running. */
static void note_refusal(ol_sched *s, const ol_sched_seq *seq)
{
    if (running_of(seq->tenant) > 0)
        s->newcomers_only = true;
    else
        s->may_admit = false;
}

static void plan_prompts(ol_sched *s)
{
    while (s->rows_left > 0) {
        ol_sched_seq *seq = first_running(s), *waiting = first_waiting(s);

        if (waiting && (!seq || precedes(waiting, seq))) {
            if (!admit(s, waiting)) {
                note_refusal(s, waiting);
                continue;
            }
            seq = waiting;
        }
        if (!seq)
            return;
        add_part(s, seq);
    }
}

ol_sched_plan *ol_sched_next(ol_sched *s)
{
    uint64_t preemptions = s->preemptions;

    s->plans++;
    s->plan.n_parts = s->plan.n_rows = s->plan.n_logit_rows = 0;
    s->rows_left = s->limits.step_tokens;
    s->logits_left = s->limits.max_logit_rows;
    plan_generating(s);
    if (s->plan.n_parts > 0 && s->rows_left > s->prompt_rows)
        s->rows_left = s->prompt_rows;
    s->may_admit = s->preemptions == preemptions; /* not while others have to yield */
    s->newcomers_only = false;
    plan_prompts(s);
    s->whose = NULL;
    return &s->plan;
}

void ol_sched_leave_room(ol_sched *s, const ol_sched_seq *whose, int pages)
{
    s->whose = whose;
    s->wanted_pages = pages;
}

/* A token of output counts twice: as a row, and for what it costs to choose it. What is
 * computed again is not charged again. */
static void charge(ol_sched *s, const ol_sched_part *part)
{
    ol_sched_seq *seq = part->seq;
    int more = seq->computed - seq->charged;

    if (more <= 0)
        return;
    seq->charged = seq->computed;
    if (seq->tenant)
        ol_tenants_charge(s->tenants, seq->tenant, more + part->n_logits);
}

void ol_sched_done(ol_sched *s)
{
    for (int i = 0; i < s->plan.n_parts; i++) {
        ol_sched_part *part = &s->plan.parts[i];

        part->seq->computed += part->n_rows;
        assert(part->seq->computed <= part->seq->known);
        charge(s, part);
    }
}

void ol_sched_set_prompt_rows(ol_sched *s, int rows)
{
    s->prompt_rows = rows > 1 ? rows : 1;
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
