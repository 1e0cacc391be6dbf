/*
 * scheduler.h: which sequences compute how many tokens in the next step. Arithmetic on
 * token counts and page numbers; no tensors, no tokens, no time.
 *
 * There are no prefill and decode modes. A sequence has known tokens (prompt and
 * output so far) and computed tokens (their keys and values are in its pages), and
 * catches up with the former under the step's budgets of rows and logit rows. A long
 * prompt is computed in as many pieces as it takes; a sequence that generates has one
 * token to catch up with.
 *
 * Policy
 *  1. Running sequences come first, oldest first; each leaves one row and one logit
 *     row to each that comes after it, so that no prompt holds up the others' output.
 *  2. Then waiting ones, oldest first, as long as there are rows, slots, and free pages
 *     for all of the sequence's known tokens and for one page more of each that runs.
 *  3. When a running sequence needs a page and none is free, the newest one that runs
 *     gives back all of its pages and waits; it computes everything again later.
 *
 * Invariants (ol_sched_check)
 *  1. Both lists are in order of age; a sequence is in one of them or in none.
 *  2. computed <= known; the pages hold at least the computed tokens; a waiting
 *     sequence has neither computed tokens nor pages.
 *  3. The pages of all tables and the free ones are the pool.
 *  4. The oldest running sequence is never made to wait: so each sequence that fits the
 *     pool alone is finished some day.
 *
 * Where the future goes: an order other than age (priorities, fair share) is a change
 * of `older`; a prefix cache fills the table with shared pages and sets `computed`
 * where a sequence is admitted (`admit`).
 */
#ifndef OL_ENGINE_SCHEDULER_H
#define OL_ENGINE_SCHEDULER_H

#include "engine/kvpages.h"

typedef struct ol_sched ol_sched;

typedef enum ol_sched_state { OL_SEQ_OUTSIDE, OL_SEQ_WAITING, OL_SEQ_RUNNING } ol_sched_state;

/* One sequence; lies in its owner's request. */
typedef struct ol_sched_seq {
    /* The owner's. */
    uint64_t order;  /* age: lower is older; distinct */
    int known;       /* tokens; may grow while the sequence runs */
    int logits_from; /* logits are wanted at positions from here to known - 1 */
    /* The scheduler's. */
    ol_sched_state state;
    int computed;
    int preempted; /* how often */
    int slot;
    ol_pagetable table;
    struct ol_sched_seq *prev, *next;
} ol_sched_seq;

typedef struct ol_sched_limits {
    int max_seqs;       /* running at once */
    int step_tokens;    /* rows of a step */
    int max_logit_rows; /* of a step */
    int n_pages, page_tokens;
    int max_tokens; /* known tokens of one sequence at most; they fit the pool */
} ol_sched_limits;

/* A sequence's part of a step: rows at positions first_pos .. first_pos + n_rows - 1,
 * of which the last n_logits give logits. */
typedef struct ol_sched_part {
    ol_sched_seq *seq;
    int first_pos, n_rows, n_logits;
} ol_sched_part;

typedef struct ol_sched_plan {
    int n_parts, n_rows, n_logit_rows;
    ol_sched_part *parts; /* [max_seqs]; the owner may reorder them */
} ol_sched_plan;

ol_code ol_sched_create(const ol_sched_limits *limits, ol_sched **sched, ol_error *err);
/* No sequence may be inside. NULL is fine. */
void ol_sched_free(ol_sched *sched);

/* A zeroed sequence with order, known (1 .. max_tokens) and logits_from set waits from
 * here on. */
void ol_sched_add(ol_sched *sched, ol_sched_seq *seq);
/* Takes a sequence out, whatever its state, and frees its pages. Not between
 * ol_sched_next and ol_sched_done. */
void ol_sched_remove(ol_sched *sched, ol_sched_seq *seq);

/* Decides on the next step and takes the pages for it. Valid until the next call. No
 * part at all only if there is no sequence that has something to compute. */
ol_sched_plan *ol_sched_next(ol_sched *sched);
/* The planned step has been computed. */
void ol_sched_done(ol_sched *sched);

int ol_sched_running(const ol_sched *sched);
int ol_sched_waiting(const ol_sched *sched);
/* How often a sequence had to give its pages back. */
uint64_t ol_sched_preemptions(const ol_sched *sched);
ol_kvpages *ol_sched_pages(ol_sched *sched);

/* Asserts the invariants; for tests. */
void ol_sched_check(const ol_sched *sched);

#endif
