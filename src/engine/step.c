/* step.c: one step, from the scheduler's plan to the requests' new tokens. */
#include "engine/engine_internal.h"

#include <string.h>

#define MIN_PROMPT_ROWS 64 /* below, products of matrices are not worth their name */

/* Neighbours with the same adapters share the work of their segments. The order of the
 * parts changes speed alone: a row's results do not depend on its place (P6). */
static const void *group_of(const ol_sched_part *part)
{
    const request *r = request_of(part->seq);

    return r->n_adapters ? r->adapters[0] : NULL;
}

static void group_parts(ol_sched_plan *plan)
{
    for (int i = 1; i < plan->n_parts; i++) {
        ol_sched_part part = plan->parts[i];
        const char *group = group_of(&part);
        int at = i;

        while (at > 0 && (const char *)group_of(&plan->parts[at - 1]) > group) {
            plan->parts[at] = plan->parts[at - 1];
            at--;
        }
        plan->parts[at] = part;
    }
}

static void fill_seq(const request *r, const ol_sched_part *part, int first_row, ol_step_seq *seq)
{
    *seq = (ol_step_seq){.first_row = first_row,
                         .n_rows = part->n_rows,
                         .first_pos = part->first_pos,
                         .pages = part->seq->table.pages,
                         .n_loras = r->n_adapters,
                         .loras = r->loras};
}

static void fill_step(ol_engine *engine, const ol_sched_plan *plan, ol_step *step)
{
    double *energy = engine->step_energy;
    int row = 0, logit = 0;

    for (int i = 0; i < plan->n_parts; i++) {
        const ol_sched_part *part = &plan->parts[i];
        const request *r = request_of(part->seq);

        fill_seq(r, part, row, &engine->step_seqs[i]);
        if (r->n_adapters > 1) {
            engine->step_seqs[i].energy = energy;
            energy += part->n_rows * r->n_adapters;
        }
        memcpy(engine->step_tokens + row, r->tokens + part->first_pos,
               (size_t)part->n_rows * sizeof(int32_t));
        row += part->n_rows;
        for (int k = 0; k < part->n_logits; k++, logit++) {
            engine->step_logits[logit] = row - part->n_logits + k;
            output_pick(r, k, &engine->step_picks[logit]);
        }
    }
    *step = (ol_step){.n_rows = row,
                      .tokens = engine->step_tokens,
                      .n_seqs = plan->n_parts,
                      .seqs = engine->step_seqs,
                      .n_logit_rows = logit,
                      .logit_rows = engine->step_logits,
                      .picks = engine->device_chooses ? engine->step_picks : NULL};
}

static void note_start(ol_engine *engine, const ol_sched_plan *plan)
{
    uint64_t now = ol_now_us();

    for (int i = 0; i < plan->n_parts; i++) {
        request *r = request_of(plan->parts[i].seq);

        if (r->started_us)
            continue;
        r->started_us = now;
        engine->counters.cached_tokens += (uint64_t)r->seq.found;
    }
}

/* The device adds the step's energies to what it finds. */
static void clear_energies(ol_engine *engine, const ol_step *step)
{
    size_t n = 0;

    for (int i = 0; i < step->n_seqs; i++)
        if (step->seqs[i].energy)
            n += (size_t)step->seqs[i].n_rows * (size_t)step->seqs[i].n_loras;
    memset(engine->step_energy, 0, n * sizeof(*engine->step_energy));
}

/* -- what is known of computed rows ------------------------------------------------------ */

int step_find_computed(void *context, ol_sched_seq *seq, int n_tokens, int32_t *pages)
{
    ol_engine *engine = context;
    request *r = request_of(seq);

    return ol_prefix_find(engine->prefix, r->context, r->tokens, n_tokens, pages, r->energy);
}

/* Energies are added row by row, in the order of positions, so that their sums depend on the
 * request alone; and full pages become known, with the sums up to their ends. */
static void note_rows(ol_engine *engine, const ol_sched_part *part, const double *energy)
{
    request *r = request_of(part->seq);
    int page_tokens = engine->limits.page_tokens;

    if (part->first_pos == 0) /* from the start, perhaps not for the first time */
        memset(r->energy, 0, sizeof(r->energy));
    for (int row = 0; row < part->n_rows; row++) {
        int end = part->first_pos + row + 1;

        for (int k = 0; energy && k < r->n_adapters; k++)
            r->energy[k] += energy[row * r->n_adapters + k];
        if (engine->prefix && end % page_tokens == 0)
            ol_prefix_add(engine->prefix, r->context, r->tokens, part->seq->table.pages,
                          end / page_tokens - 1, r->energy);
    }
}

static void note_plan(ol_engine *engine, const ol_sched_plan *plan)
{
    for (int i = 0; i < plan->n_parts; i++)
        note_rows(engine, &plan->parts[i], engine->step_seqs[i].energy);
}

/* A device that finds no working memory may find it where adapters lie idle; a step can be
 * done again, as it only writes what it has not read. (Those in a pool lie in its memory.) */
static ol_code forward(ol_engine *engine, const ol_step *step, ol_model_output *output,
                       ol_error *err)
{
    ol_code code;

    clear_energies(engine, step);
    code = ol_model_forward(engine->model, step, engine->kv, output, err);
    if (code != OL_NOMEM || engine->page_bytes || !ol_adapters_drop_idle(engine->adapters))
        return code;
    clear_energies(engine, step);
    return ol_model_forward(engine->model, step, engine->kv, output, err);
}

/* The newest request of a plan; among those with adapters when there are such. */
static request *newest_of(const ol_sched_plan *plan)
{
    request *newest = NULL;

    for (int i = 0; i < plan->n_parts; i++) {
        request *r = request_of(plan->parts[i].seq);

        if (!newest || (r->n_adapters > 0) > (newest->n_adapters > 0) ||
            ((r->n_adapters > 0) == (newest->n_adapters > 0) && r->seq.order > newest->seq.order))
            newest = r;
    }
    return newest;
}

/* The device's memory does not suffice for the step. A request with adapters gives them up and
 * waits, so that the others go on; without any to give up, one has to fail. */
static void shed(ol_engine *engine, const ol_sched_plan *plan, ol_error *err)
{
    request *r = newest_of(plan);

    if (r->n_adapters > 0 && plan->n_parts > 1) {
        request_suspend(engine, r);
        (void)ol_adapters_drop_idle(engine->adapters);
        return;
    }
    ol_hint(err, "Give the device more memory, or the caches and steps less of it.");
    request_fail(engine, r, err);
}

/* The device's choices; or, from its logits, ours. */
static const ol_choice *choose(ol_engine *engine, const ol_step *step,
                               const ol_model_output *output)
{
    size_t vocab = (size_t)engine->config->vocab;

    if (output->choices) {
        engine->counters.device_choices += (uint64_t)step->n_logit_rows;
        return output->choices;
    }
    for (int i = 0; i < step->n_logit_rows; i++)
        ol_choose(engine->chooser, &engine->step_picks[i], output->logits + (size_t)i * vocab,
                  &engine->step_choices[i]);
    return engine->step_choices;
}

/* A request may end here, and is then no more. */
static void deliver(ol_engine *engine, const ol_sched_plan *plan, const ol_choice *choices)
{
    for (int i = 0; i < plan->n_parts; i++) {
        const ol_sched_part *part = &plan->parts[i];

        if (part->n_logits == 0) {
            request_tell_so_far(engine, request_of(part->seq));
            continue;
        }
        output_take(engine, request_of(part->seq), choices, part->n_logits);
        choices += part->n_logits;
    }
}

bool ol_engine_busy(const ol_engine *engine)
{
    return engine->device_error.code != OL_OK ||
           (!engine->blocked &&
            ol_sched_running(engine->sched) + ol_sched_waiting(engine->sched) > 0);
}

/* A step with a prompt in it tells what such rows take; others wait for their tokens meanwhile. */
static void note_time(ol_engine *engine, const ol_sched_plan *plan, uint64_t us)
{
    double row_us = (double)us / plan->n_rows;

    engine->counters.busy_us += us;
    if (plan->n_rows < 2 * plan->n_parts || plan->n_rows < MIN_PROMPT_ROWS / 2)
        return;
    engine->row_us = engine->row_us > 0 ? 0.75 * engine->row_us + 0.25 * row_us : row_us;
    if (engine->row_us > 0) {
        double rows = (double)engine->step_us / engine->row_us;

        ol_sched_set_prompt_rows(engine->sched, rows < MIN_PROMPT_ROWS ? MIN_PROMPT_ROWS
                                                : rows > engine->limits.step_tokens
                                                    ? engine->limits.step_tokens
                                                    : (int)rows);
    }
}

/* OL_NOMEM: nothing of the plan counts as computed. */
static ol_code run_plan(ol_engine *engine, ol_sched_plan *plan, ol_error *err)
{
    uint64_t start = ol_now_us();
    ol_model_output output;
    ol_step step;

    group_parts(plan);
    fill_step(engine, plan, &step);
    note_start(engine, plan);
    OL_TRY(forward(engine, &step, &output, err));
    ol_sched_done(engine->sched);
    note_plan(engine, plan);
    note_time(engine, plan, ol_now_us() - start);
    engine->counters.steps++;
    engine->counters.rows += (uint64_t)plan->n_rows;
    engine->counters.sequences += (uint64_t)plan->n_parts;
    deliver(engine, plan, choose(engine, &step, &output));
    return OL_OK;
}

/* Empty only if there is nothing to do, or nothing that can be done now. */
static ol_sched_plan *next_plan(ol_engine *engine)
{
    ol_sched_plan *plan;
    int stage = 0;

    engine->blocked = false;
    admission_leave_room(engine);
    plan = ol_sched_next(engine->sched);
    while (plan->n_parts == 0 && admission_unblock(engine, &stage))
        plan = ol_sched_next(engine->sched);
    return plan;
}

ol_code ol_engine_step(ol_engine *engine, ol_error *err)
{
    ol_sched_plan *plan;

    if (engine->device_error.code != OL_OK) {
        *err = engine->device_error;
        return err->code;
    }
    request_check_deadlines(engine);
    plan = next_plan(engine);
    while (plan->n_parts > 0) {
        ol_code code = run_plan(engine, plan, err);

        if (code == OL_OK)
            break;
        if (code != OL_NOMEM)
            return code;
        shed(engine, plan, err); /* and again: each time there is less to compute */
        plan = next_plan(engine);
    }
    admission_run(engine);
    if (ol_events_failed(engine->events))
        return ol_fail(err, OL_NOMEM, "out of memory for events");
    return OL_OK;
}
