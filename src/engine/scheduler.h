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
 *  1. Running sequences that have one token to catch up with get their row: no prompt
 *     holds up another's output.
 *  2. What is left of the rows (while others generate, of the owner's cap for that) goes
 *     to running and waiting sequences with more to catch up with: the highest priority first,
 *     then the tenant with the lowest counter (tenants.h), then those that run, then the
 *     oldest. A waiting one is admitted when there are a slot and free pages for all of its
 *     known tokens and for one page more of each that runs. A tenant that has sequences
 *     running leaves some slots and pages for those that have none.
 *  3. When a running sequence needs a page and none is free, the last one that runs (of
 *     the lowest priority, the newest) gives back its pages and waits; it computes
 *     everything again later, but for what is found in the prefix cache.
 *
 * Invariants (ol_sched_check)
 *  1. The running are in order of priority, then age; a sequence is in one list or in none.
 *  2. computed <= known; the pages hold at least the computed tokens; a waiting
 *     sequence has neither computed tokens nor pages.
 *  3. Each page has as many references as tables hold it.
 *  4. The first of the running is never made to wait (but for pages that were lent: then
 *     nothing runs, and it is the owner's turn). So each sequence that fits the pool
 *     alone is finished some day, unless higher priorities keep coming: that is what they
 *     are for. Among equals a tenant that waits keeps its counter while others' grow.
 */
#ifndef OL_ENGINE_SCHEDULER_H
#define OL_ENGINE_SCHEDULER_H

#include "engine/kvpages.h"
#include "engine/tenants.h"

typedef struct ol_sched ol_sched;

typedef enum ol_sched_state { OL_SEQ_OUTSIDE, OL_SEQ_WAITING, OL_SEQ_RUNNING } ol_sched_state;

/* One sequence; lies in its owner's request. */
typedef struct ol_sched_seq {
    /* The owner's. */
    uint64_t order;    /* age: lower is older; distinct */
    int known;         /* tokens; may grow while the sequence runs */
    int logits_from;   /* logits are wanted at positions from here to known - 1 */
    int priority;      /* higher is first; fixed */
    ol_tenant *tenant; /* see ol_sched_tenants; NULL: of no tenant, with a counter of 0 */
    /* The scheduler's. */
    ol_sched_state state;
    int computed;
    int preempted;    /* how often */
    int found;        /* tokens that were found computed when it was first admitted */
    int charged;      /* tokens that its tenant was charged for */
    uint64_t planned; /* number of the last plan it is in */
    int slot;
    ol_pagetable table;
    struct ol_sched_seq *prev, *next;
} ol_sched_seq;

/* Where a sequence is admitted: shares pages that hold its first tokens already, at most
 * n_tokens of them, into pages[0 ..] and returns how many pages. */
typedef int (*ol_sched_find)(void *context, ol_sched_seq *seq, int n_tokens, int32_t *pages);

typedef struct ol_sched_limits {
    int max_seqs;       /* running at once */
    int step_tokens;    /* rows of a step */
    int max_logit_rows; /* of a step */
    int n_pages, page_tokens;
    int max_tokens;     /* known tokens of one sequence at most; they fit the pool */
    ol_sched_find find; /* NULL: nothing is ever found */
    void *find_context;
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

/* Rows that prompts may take of a step in which others generate; at least 1. Results do not
 * depend on it, how long the others wait for their next token does. */
void ol_sched_set_prompt_rows(ol_sched *sched, int rows);

/* In the next plan sequences that are younger than `whose` (of no higher priority) are admitted
 * only if so many pages are left, which it needs for something else. */
void ol_sched_leave_room(ol_sched *sched, const ol_sched_seq *whose, int pages);

/* Decides on the next step and takes the pages for it. Valid until the next call. No
 * part at all only if there is no sequence that has something to compute, or none finds pages
 * for what is lent of them. */
ol_sched_plan *ol_sched_next(ol_sched *sched);
/* The planned step has been computed. */
void ol_sched_done(ol_sched *sched);

int ol_sched_running(const ol_sched *sched);
int ol_sched_waiting(const ol_sched *sched);
/* How often a sequence had to give its pages back. */
uint64_t ol_sched_preemptions(const ol_sched *sched);
ol_kvpages *ol_sched_pages(ol_sched *sched);
ol_tenants *ol_sched_tenants(ol_sched *sched);
/* The first of the running, the first of the waiting; then by seq->next. */
const ol_sched_seq *ol_sched_first_running(const ol_sched *sched);
const ol_sched_seq *ol_sched_first_waiting(const ol_sched *sched);
/* Of the waiting, the one that is admitted first when nothing runs; NULL: none waits. */
ol_sched_seq *ol_sched_next_waiting(const ol_sched *sched);

/* Asserts the invariants; for tests. */
void ol_sched_check(const ol_sched *sched);

#endif
