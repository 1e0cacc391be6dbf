/* scheduler_plan.c: who computes what in the next step: the policy of scheduler.h. */
#include "engine/scheduler_internal.h"

#include <assert.h>

/* -- rows -------------------------------------------------------------------------------- */

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

/* -- who comes first --------------------------------------------------------------------- */

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
    if (sched_running_of(seq) == 0)
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

/* -- the plan ---------------------------------------------------------------------------- */

/* Pages for n_tokens of seq, taken from the last that run if need be. False when seq is
 * itself the last and had to go. */
static bool make_room(ol_sched *s, ol_sched_seq *seq, int n_tokens)
{
    while (!ol_pagetable_grow(&seq->table, s->pages, n_tokens)) {
        ol_sched_seq *last = s->running.tail;

        sched_preempt(s, last);
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

/* A large one that finds no room is not passed by smaller ones of tenants that run already;
 * nor by any when its tenant has nothing running. */
static void note_refusal(ol_sched *s, const ol_sched_seq *seq)
{
    if (sched_running_of(seq) > 0)
        s->newcomers_only = true;
    else
        s->may_admit = false;
}

static void plan_prompts(ol_sched *s)
{
    while (s->rows_left > 0) {
        ol_sched_seq *seq = first_running(s), *waiting = first_waiting(s);

        if (waiting && (!seq || precedes(waiting, seq))) {
            if (!sched_admit(s, waiting)) {
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

/* -- after the step ---------------------------------------------------------------------- */

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
