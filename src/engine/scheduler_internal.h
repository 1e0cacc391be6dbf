/*
 * scheduler_internal.h: a scheduler, as the files of scheduler.h share it.
 *
 *   scheduler.c       sequences and their states, slots and pages
 *   scheduler_plan.c  who computes what in the next step
 */
#ifndef OL_ENGINE_SCHEDULER_INTERNAL_H
#define OL_ENGINE_SCHEDULER_INTERNAL_H

#include "engine/scheduler.h"

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
    int reserved_slots; /* for tenants that have nothing running */
    int prompt_rows;
    const ol_sched_seq *whose; /* who needs wanted_pages, or NULL: of one plan */
    int wanted_pages;
    /* While planning. */
    int rows_left, logits_left;
    bool may_admit, newcomers_only;
    uint64_t plans, preemptions;
};

/* How many of its tenant run. */
static inline int sched_running_of(const ol_sched_seq *seq)
{
    return seq->tenant ? seq->tenant->running : 0;
}

/* Gives a waiting sequence a slot and the pages of its known tokens. A pool that nobody else
 * uses always has these, unless an older request needs them for its adapters. */
bool sched_admit(ol_sched *s, ol_sched_seq *seq);
/* A running sequence gives back its slot and pages, and waits. */
void sched_preempt(ol_sched *s, ol_sched_seq *seq);

#endif
