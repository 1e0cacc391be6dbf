/* model_run.c: sequences, and steps that take them further: see model.h. */
#include "model.h"

void sequence_random(sequence *q, const stack_shape *s, int number, int n_loras)
{
    *q = (sequence){.n_loras = n_loras, .logits = rig_host((size_t)s->vocab * sizeof(float))};
    for (int i = 0; i < SEQ_PAGES * 16; i++)
        q->tokens[i] = rig_below(s->vocab);
    for (int i = 0; i < SEQ_PAGES; i++)
        q->pages[i] = (i * MAX_SEQS + number) * 37 % PAGES; /* shares none: 37 is prime to PAGES */
    for (int i = 0; i < n_loras; i++) {
        q->lora[i] = rig_below(LORAS);
        q->weight[i] = (float)(1 + 0.9 * rig_uniform());
    }
}

void sequence_again(sequence *q, const sequence *of, const stack_shape *s)
{
    *q = *of;
    q->logits = rig_host((size_t)s->vocab * sizeof(float));
}

void sequence_again_elsewhere(sequence *q, const sequence *of, const stack_shape *s)
{
    sequence_again(q, of, s);
    for (int p = 0; p < SEQ_PAGES; p++)
        q->pages[p] = (of->pages[p] + PAGES / 2) % PAGES;
}

void sequence_check_same(const sequence *a, const sequence *b, const stack_shape *s)
{
    assert_int_equal(a->length, b->length);
    assert_memory_equal(a->logits, b->logits, (size_t)s->vocab * sizeof(float));
    for (int k = 0; k < a->n_loras; k++)
        assert_true(a->energy[k] == b->energy[k]);
}

void model_run(model *m, sequence *const *order, const int *rows, int n)
{
    static double energy[MAX_ROWS * 3];
    int32_t tokens[MAX_ROWS], logit_rows[MAX_SEQS];
    ol_lora_ref refs[MAX_SEQS][3];
    ol_step_seq seqs[MAX_SEQS];
    stack_result result;
    int row = 0, energies = 0;

    memset(energy, 0, sizeof(energy));
    for (int i = 0; i < n; i++) {
        sequence *q = order[i];

        for (int k = 0; k < q->n_loras; k++)
            refs[i][k] = (ol_lora_ref){m->loras[q->lora[k]], q->weight[k]};
        seqs[i] = (ol_step_seq){.first_row = row,
                                .n_rows = rows[i],
                                .first_pos = q->length,
                                .pages = q->pages,
                                .n_loras = q->n_loras,
                                .loras = refs[i],
                                .energy = q->n_loras > 1 ? energy + energies : NULL};
        energies += q->n_loras > 1 ? rows[i] * q->n_loras : 0;
        memcpy(tokens + row, q->tokens + q->length, (size_t)rows[i] * sizeof(int32_t));
        row += rows[i];
        logit_rows[i] = row - 1;
    }
    OK(stack_forward(&m->on, &(ol_step){row, tokens, n, seqs, n, logit_rows, m->picks}, &result,
                     &model_error));
    m->choices = result.choices;
    for (int i = 0; i < n; i++) {
        sequence *q = order[i];

        if (result.logits)
            memcpy(q->logits, result.logits + (size_t)i * (size_t)m->w->s.vocab,
                   (size_t)m->w->s.vocab * sizeof(float));
        for (int r = 0; seqs[i].energy && r < rows[i]; r++)
            for (int k = 0; k < q->n_loras; k++)
                q->energy[k] += seqs[i].energy[r * q->n_loras + k];
        q->length += rows[i];
    }
}

void model_run_one(model *m, sequence *q, int rows)
{
    model_run(m, &q, &rows, 1);
}
