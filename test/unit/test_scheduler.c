/*
 * test_scheduler.c: the scheduler alone. Sequences here have no tokens; a table of who wrote
 * which position into which slot of which page stands for the KV cache.
 */
#include "engine/scheduler.h"
#include "noise.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define PAGE 16

/* -- a world without tensors ------------------------------------------------------------ */

typedef struct one {
    ol_sched_seq seq;
    int prompt, output; /* output < 0: -output positions are scored */
    int made;
    bool inside, done;
} one;

typedef struct world {
    ol_sched_limits limits;
    ol_sched *sched;
    one *all;
    int n, submitted, finished;
    uint64_t *slots; /* [n_pages * PAGE]: who and where */
    int steps, preempted;
} world;

static uint64_t mark(const one *o, int position)
{
    return (uint64_t)(o->seq.order + 1) << 32 | (uint32_t)position;
}

static void open_world(world *w, ol_sched_limits limits, int n)
{
    ol_error err;

    *w = (world){.limits = limits, .n = n};
    w->all = calloc((size_t)n, sizeof(one));
    w->slots = calloc((size_t)limits.n_pages * PAGE, sizeof(uint64_t));
    assert_int_equal(ol_sched_create(&limits, &w->sched, &err), OL_OK);
}

static void close_world(world *w)
{
    ol_sched_check(w->sched);
    ol_sched_free(w->sched);
    free(w->all);
    free(w->slots);
}

static one *submit_as(world *w, uint64_t order, int prompt, int output)
{
    one *o = &w->all[w->submitted++];

    *o = (one){.prompt = prompt,
               .output = output,
               .inside = true,
               .seq.tenant = o->seq.tenant,
               .seq.priority = o->seq.priority};
    o->seq.order = order;
    o->seq.known = output < 0 ? prompt - output - 1 : prompt;
    o->seq.logits_from = prompt - 1;
    ol_sched_add(w->sched, &o->seq);
    return o;
}

static one *submit(world *w, int prompt, int output)
{
    return submit_as(w, (uint64_t)w->submitted, prompt, output);
}

/* Of a tenant, and with a priority. */
static one *submit_for(world *w, uint32_t tenant, int priority, int prompt, int output)
{
    one *o = &w->all[w->submitted];

    o->seq.tenant = ol_tenants_enter(ol_sched_tenants(w->sched), tenant, tenant == 3 ? 3 : 1);
    o->seq.priority = priority;
    return submit(w, prompt, output);
}

static void finish(world *w, one *o)
{
    ol_sched_remove(w->sched, &o->seq);
    if (o->seq.tenant)
        ol_tenants_leave(ol_sched_tenants(w->sched), o->seq.tenant);
    o->inside = false;
    o->done = true;
    w->preempted += o->seq.preempted;
    w->finished++;
}

/* Writes the part's rows, then reads all that attention would read. */
static void compute_part(world *w, const ol_sched_part *part)
{
    const one *o = (const one *)(const void *)part->seq;
    int end = part->first_pos + part->n_rows;

    assert_int_equal(part->first_pos, part->seq->computed);
    assert_true(part->n_rows > 0 && end <= part->seq->known);
    assert_true(part->seq->table.n >= (end + PAGE - 1) / PAGE);
    for (int p = part->first_pos; p < end; p++)
        w->slots[part->seq->table.pages[p / PAGE] * PAGE + p % PAGE] = mark(o, p);
    for (int p = 0; p < end; p++)
        assert_true(w->slots[part->seq->table.pages[p / PAGE] * PAGE + p % PAGE] == mark(o, p));
}

/* Logits of exactly the positions that are wanted. */
static void check_logits(const ol_sched_part *part)
{
    int end = part->first_pos + part->n_rows;
    int silent = part->seq->logits_from - part->first_pos;

    assert_int_equal(part->n_logits,
                     end > part->seq->logits_from ? end - part->seq->logits_from : 0);
    assert_true(part->n_logits <= part->n_rows && silent >= 0);
}

static void deliver(world *w, const ol_sched_part *part)
{
    one *o = (one *)(void *)part->seq;

    if (part->n_logits == 0)
        return;
    o->made += part->n_logits;
    if (o->output < 0) {
        o->seq.logits_from += part->n_logits;
        if (o->made == -o->output)
            finish(w, o);
    } else if (o->made == o->output) {
        finish(w, o);
    } else {
        o->seq.logits_from = o->seq.known++;
    }
}

/* Returns the number of parts. */
static int step(world *w)
{
    ol_sched_plan *plan = ol_sched_next(w->sched);
    int rows = 0, logits = 0, n = plan->n_parts;

    for (int i = 0; i < n; i++) {
        compute_part(w, &plan->parts[i]);
        check_logits(&plan->parts[i]);
        rows += plan->parts[i].n_rows;
        logits += plan->parts[i].n_logits;
    }
    assert_int_equal(rows, plan->n_rows);
    assert_int_equal(logits, plan->n_logit_rows);
    assert_true(rows <= w->limits.step_tokens && logits <= w->limits.max_logit_rows);
    assert_true(n <= w->limits.max_seqs);
    ol_sched_check(w->sched);
    ol_sched_done(w->sched);
    for (int i = 0; i < n; i++)
        deliver(w, &plan->parts[i]);
    ol_sched_check(w->sched);
    w->steps++;
    return n;
}

static void run_dry(world *w)
{
    while (w->finished < w->submitted)
        assert_true(step(w) > 0);
    assert_int_equal(step(w), 0);
    assert_int_equal(ol_kvpages_available(ol_sched_pages(w->sched)), w->limits.n_pages);
}

static ol_sched_limits roomy(void)
{
    return (ol_sched_limits){.max_seqs = 8,
                             .step_tokens = 64,
                             .max_logit_rows = 8,
                             .n_pages = 1000,
                             .page_tokens = PAGE,
                             .max_tokens = 1000};
}

/* -- policy ---------------------------------------------------------------------------------- */

static void test_one_request(void **state)
{
    world w;
    one *o;

    (void)state;
    open_world(&w, roomy(), 1);
    o = submit(&w, 10, 3);
    assert_int_equal(step(&w), 1); /* 10 rows, a token */
    assert_int_equal(o->made, 1);
    assert_int_equal(o->seq.computed, 10);
    run_dry(&w);
    assert_int_equal(w.steps, 3 + 1);
    close_world(&w);
}

static void test_long_prompt_in_pieces(void **state)
{
    world w;
    one *o;

    (void)state;
    open_world(&w, roomy(), 1);
    o = submit(&w, 150, 1);
    step(&w);
    assert_int_equal(o->seq.computed, 64);
    assert_int_equal(o->made, 0);
    step(&w);
    assert_int_equal(o->seq.computed, 128);
    step(&w);
    assert_true(o->done);
    close_world(&w);
}

/* A prompt that takes many steps holds up neither older nor younger output. */
static void test_prompt_leaves_rows(void **state)
{
    world w;
    one *older, *prompt, *younger;
    int made;

    (void)state;
    open_world(&w, roomy(), 3);
    older = submit_as(&w, 1, 5, 100);
    younger = submit_as(&w, 3, 5, 100);
    step(&w);
    prompt = submit_as(&w, 2, 900, 1);
    step(&w);
    for (int i = 0; i < 5; i++) {
        made = older->made + younger->made;
        assert_int_equal(step(&w), 3);
        assert_int_equal(older->made + younger->made, made + 2);
    }
    assert_true(prompt->seq.computed > 5 * 60);
    run_dry(&w);
    close_world(&w);
}

static void test_first_come_first_served(void **state)
{
    ol_sched_limits limits = roomy();
    world w;

    (void)state;
    limits.max_seqs = 2;
    open_world(&w, limits, 5);
    for (int i = 0; i < 5; i++)
        submit(&w, 20, 4);
    assert_int_equal(step(&w), 2);
    assert_int_equal(ol_sched_waiting(w.sched), 3);
    assert_true(w.all[0].seq.state == OL_SEQ_RUNNING && w.all[1].seq.state == OL_SEQ_RUNNING);
    while (w.finished < 5) {
        step(&w);
        for (int i = 0; i + 1 < 5; i++)
            assert_true(w.all[i].made >= w.all[i + 1].made);
    }
    close_world(&w);
}

/* When pages end, the newest yields, and the oldest goes on without a stop. */
static void test_newest_yields(void **state)
{
    ol_sched_limits limits = roomy();
    int made = 0;
    world w;

    (void)state;
    limits.n_pages = 6;
    limits.max_tokens = 6 * PAGE;
    open_world(&w, limits, 3);
    for (int i = 0; i < 3; i++)
        submit(&w, 16, 80);
    while (!w.all[0].done) {
        step(&w);
        assert_int_equal(w.all[0].made, ++made);
        assert_int_equal(w.all[0].seq.preempted, 0);
    }
    assert_true(w.all[2].seq.preempted > 0);
    run_dry(&w);
    close_world(&w);
}

/* -- shares ------------------------------------------------------------------------------------ */

/* One tenant asks for a hundred things at once; another that asks later is next. */
static void test_tenants_take_turns(void **state)
{
    ol_sched_limits limits = roomy();
    world w;
    one *late;

    (void)state;
    limits.max_seqs = 16;
    limits.step_tokens = 64;
    limits.max_logit_rows = 64;
    open_world(&w, limits, 101);
    for (int i = 0; i < 100; i++)
        submit_for(&w, 1, 0, 60, 20);
    for (int i = 0; i < 40; i++)
        step(&w);
    assert_int_equal(ol_sched_running(w.sched), 15); /* a slot is left */
    late = submit_for(&w, 2, 0, 40, 5);
    step(&w);
    assert_int_equal(late->made, 1); /* its whole prompt at once */
    for (int i = 0; i < 4; i++)
        step(&w);
    assert_true(late->done);
    run_dry(&w);
    close_world(&w);
}

/* Work is divided by weight while both want it. */
static void test_weights(void **state)
{
    ol_sched_limits limits = roomy();
    double light, heavy;
    world w;

    (void)state;
    limits.max_seqs = 2;
    open_world(&w, limits, 400);
    for (int i = 0; i < 200; i++) {
        submit_for(&w, 1, 0, 30, 5);
        submit_for(&w, 3, 0, 30, 5); /* of weight 3 */
    }
    for (int i = 0; i < 300; i++)
        step(&w);
    light = heavy = 0;
    for (int i = 0; i < 400; i++)
        *(i % 2 ? &heavy : &light) += w.all[i].done;
    assert_true(heavy / light > 2.5 && heavy / light < 3.5);
    run_dry(&w);
    close_world(&w);
}

/* Who was away gets no credit for it. */
static void test_no_credit_for_absence(void **state)
{
    ol_tenants *tenants;
    ol_tenant *busy, *back;
    ol_error err;

    (void)state;
    assert_int_equal(ol_tenants_create(&tenants, &err), OL_OK);
    busy = ol_tenants_enter(tenants, 1, 1);
    ol_tenants_charge(tenants, busy, 1000);
    back = ol_tenants_enter(tenants, 2, 1);
    assert_true(back->counter == 1000);
    ol_tenants_charge(tenants, back, 50);
    ol_tenants_leave(tenants, back);
    back = ol_tenants_enter(tenants, 2, 1);
    assert_true(back->counter == 1050); /* nor is anything forgiven */
    ol_tenants_leave(tenants, back);
    ol_tenants_leave(tenants, busy);
    ol_tenants_free(tenants);
}

static void test_priority_goes_first(void **state)
{
    ol_sched_limits limits = roomy();
    world w;
    one *urgent;

    (void)state;
    limits.max_seqs = 1;
    open_world(&w, limits, 12);
    for (int i = 0; i < 10; i++)
        submit_for(&w, 1, 0, 10, 5);
    submit_for(&w, 2, -1, 10, 5);
    urgent = submit_for(&w, 1, 5, 10, 5);
    while (!urgent->done)
        step(&w);
    assert_int_equal(w.finished, 1); /* not even the oldest was before it */
    run_dry(&w);
    assert_true(w.all[10].done);
    close_world(&w);
}

/* The lowest priority gives up its pages first, though it is older. */
static void test_low_priority_yields(void **state)
{
    ol_sched_limits limits = roomy();
    world w;
    one *low, *high;

    (void)state;
    limits.n_pages = 6;
    limits.max_tokens = 6 * PAGE;
    open_world(&w, limits, 2);
    low = submit_for(&w, 1, 0, 16, 70);
    step(&w);
    high = submit_for(&w, 2, 1, 16, 70);
    run_dry(&w);
    assert_true(low->seq.preempted > 0);
    assert_int_equal(high->seq.preempted, 0);
    close_world(&w);
}

/* While others generate, prompts take no more rows than they are given. */
static void test_prompt_rows(void **state)
{
    world w;
    one *generating, *prompt;

    (void)state;
    open_world(&w, roomy(), 2);
    ol_sched_set_prompt_rows(w.sched, 10);
    generating = submit(&w, 60, 30);
    step(&w);
    assert_int_equal(generating->made, 1); /* alone: the whole step */
    prompt = submit(&w, 55, 2);
    for (int i = 1; i <= 5; i++) {
        step(&w);
        assert_int_equal(prompt->seq.computed, 10 * i);
        assert_int_equal(generating->made, 1 + i);
    }
    run_dry(&w);
    close_world(&w);
}

/* Known tokens, the output so far among them, are computed again; no logits twice. */
static void test_recompute(void **state)
{
    ol_sched_limits limits = roomy();
    world w;

    (void)state;
    limits.n_pages = 4;
    limits.max_tokens = 4 * PAGE;
    open_world(&w, limits, 2);
    submit(&w, 16, 48);
    submit(&w, 14, 40);
    run_dry(&w);
    assert_true(w.all[1].seq.preempted > 0);
    assert_int_equal(w.all[0].made, 48);
    assert_int_equal(w.all[1].made, 40);
    close_world(&w);
}

static void test_score_in_pieces(void **state)
{
    world w;
    one *o;

    (void)state;
    open_world(&w, roomy(), 2);
    o = submit(&w, 10, -50);
    step(&w);
    assert_int_equal(o->made, 8); /* max_logit_rows */
    assert_int_equal(o->seq.computed, 17);
    submit(&w, 4, 5); /* gets its row of logits all the same */
    step(&w);
    step(&w);
    assert_true(w.all[1].made > 0);
    run_dry(&w);
    assert_int_equal(o->made, 50);
    close_world(&w);
}

static void test_remove_in_any_state(void **state)
{
    ol_sched_limits limits = roomy();
    world w;

    (void)state;
    limits.max_seqs = 1;
    open_world(&w, limits, 3);
    for (int i = 0; i < 3; i++)
        submit(&w, 100, 4);
    step(&w);
    ol_sched_remove(w.sched, &w.all[1].seq); /* waits */
    ol_sched_check(w.sched);
    ol_sched_remove(w.sched, &w.all[0].seq); /* runs, half of its prompt computed */
    ol_sched_check(w.sched);
    ol_sched_remove(w.sched, &w.all[0].seq); /* is outside */
    assert_int_equal(ol_kvpages_available(ol_sched_pages(w.sched)), limits.n_pages);
    w.finished = 2;
    run_dry(&w);
    assert_true(w.all[2].done);
    close_world(&w);
}

/* A step of one row, a slot for one, one page more than nothing: everything still ends. */
static void test_smallest_world(void **state)
{
    ol_sched_limits limits = {.max_seqs = 2,
                              .step_tokens = 1,
                              .max_logit_rows = 1,
                              .n_pages = 1,
                              .page_tokens = PAGE,
                              .max_tokens = PAGE};
    world w;

    (void)state;
    open_world(&w, limits, 4);
    submit(&w, 16, 1);
    submit(&w, 1, 15);
    submit(&w, 3, -10);
    submit(&w, 8, 8);
    run_dry(&w);
    assert_int_equal(w.preempted, 0); /* there never was room for two */
    close_world(&w);
}

/* -- many at random ---------------------------------------------------------------------------- */

static ol_sched_limits random_limits(void)
{
    ol_sched_limits l = {.max_seqs = 1 + pick(12),
                         .step_tokens = 1 + pick(100),
                         .max_logit_rows = 1 + pick(20),
                         .n_pages = 4 + pick(60),
                         .page_tokens = PAGE};

    l.max_tokens = pick(2) ? l.n_pages * PAGE : 1 + pick(l.n_pages * PAGE);
    return l;
}

static void submit_random(world *w)
{
    int most = w->limits.max_tokens, prompt = 1 + pick(most);
    int room = most - prompt;

    uint32_t tenant = (uint32_t)(1 + pick(3));

    if (pick(4) == 0 && room > 0)
        submit_for(w, tenant, pick(8) == 0, prompt, -(1 + pick(room)));
    else
        submit_for(w, tenant, pick(8) == 0, prompt,
                   room > 0 ? 1 + pick(room < 100 ? room : 100) : 1);
}

static void cancel_random(world *w)
{
    one *o = &w->all[pick(w->submitted)];

    if (o->inside)
        finish(w, o);
}

static void run_random(int n, int *preempted)
{
    world w;

    open_world(&w, random_limits(), n);
    while (w.submitted < n) {
        if (pick(3) == 0)
            submit_random(&w);
        if (w.submitted && pick(40) == 0)
            cancel_random(&w);
        step(&w);
    }
    run_dry(&w);
    *preempted += w.preempted;
    close_world(&w);
}

static void test_random_worlds(void **state)
{
    int preempted = 0;

    (void)state;
    for (int i = 0; i < 150; i++)
        run_random(60, &preempted);
    assert_true(preempted > 100); /* or it did not test what it is for */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_request),
        cmocka_unit_test(test_long_prompt_in_pieces),
        cmocka_unit_test(test_prompt_leaves_rows),
        cmocka_unit_test(test_first_come_first_served),
        cmocka_unit_test(test_newest_yields),
        cmocka_unit_test(test_recompute),
        cmocka_unit_test(test_score_in_pieces),
        cmocka_unit_test(test_remove_in_any_state),
        cmocka_unit_test(test_tenants_take_turns),
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_no_credit_for_absence),
        cmocka_unit_test(test_priority_goes_first),
        cmocka_unit_test(test_low_priority_yields),
        cmocka_unit_test(test_prompt_rows),
        cmocka_unit_test(test_smallest_world),
        cmocka_unit_test(test_random_worlds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
