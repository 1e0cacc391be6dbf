/*
 * test_device_choose.c: steps of the CUDA device that choose tokens: the engine's choices of the
 * logits that it gives, and nothing else copied back.
 */
#include "model.h"

#include "engine/choose.h"

#include <math.h>

#define SEEN 3000 /* more than a step's lists have room for at first */

/* Penalties, biases and a mask when `edits`. */
static void random_pick(ol_pick *p, bool edits)
{
    static ol_seen_token seen[SEEN];
    static ol_logit_bias bias[3];
    static uint32_t mask[(131 + 31) / 32];

    for (int i = 0; i < SEEN; i++) /* those beyond the vocabulary are passed over */
        seen[i] = (ol_seen_token){i, i % 3};
    for (int i = 0; i < 3; i++)
        bias[i] = (ol_logit_bias){7 * i, 0.5f};
    for (size_t i = 0; i < sizeof(mask) / sizeof(mask[0]); i++)
        mask[i] = 0x5fffff5f;
    *p = (ol_pick){.seed = rig_next(),
                   .index = rig_below(100),
                   .given = rig_below(5) ? -1 : rig_below(shape_wide.vocab),
                   .temperature = rig_below(3) ? 1 : 0,
                   .top_k = rig_below(2) ? 20 : 0,
                   .top_p = rig_below(2) ? 0.8f : 1,
                   .floor = -INFINITY,
                   .repetition = 1.2f,
                   .presence = 0.3f,
                   .logprobs = rig_below(OL_MAX_LOGPROBS + 2) - 1};
    if (!edits)
        return;
    p->seen = seen;
    p->n_seen = rig_below(2) ? rig_below(SEEN) : 0;
    p->bias = bias;
    p->n_bias = rig_below(4);
    p->mask = mask;
    p->n_mask = rig_below(2) ? (int32_t)(sizeof(mask) / sizeof(mask[0])) : 0;
}

static void check_choice(ol_chooser *chooser, const ol_pick *how, const float *logits,
                         const ol_choice *got)
{
    ol_choice want;

    ol_choose(chooser, how, logits, &want);
    assert_int_equal(got->status, OL_CHOICE_MADE);
    assert_int_equal(got->token, want.token);
    assert_int_equal(got->n_alternatives, want.n_alternatives);
    assert_true(fabsf(got->logprob - want.logprob) < 1e-4f);
    for (int i = 0; i < want.n_alternatives; i++)
        assert_int_equal(got->alternatives[i].token, want.alternatives[i].token);
}

/* What it chooses is what the engine does of its logits; in other steps, at that. */
static void chooses_as_the_engine(void **state)
{
    static const int rows[][3] = {{70, 33, 90}, {1, 1, 1}, {1, 1, 1}, {1, 40, 1}, {1, 1, 1}};
    const weights *w = weights_random(&shape_wide, OL_BF16);
    sequence seqs[2][3], *logits[3], *choices[3];
    ol_pick picks[3];
    ol_chooser *chooser;
    model m;

    (void)state;
    OK(ol_chooser_create(shape_wide.vocab, &chooser, &model_error));
    model_open_plain(&m, w);
    for (int i = 0; i < LORAS; i++)
        model_place_lora(&m, NULL, i, OL_BF16);
    for (int i = 0; i < 3; i++) {
        sequence_random(&seqs[0][i], &shape_wide, i, i);
        logits[i] = &seqs[0][i];
        choices[2 - i] = &seqs[1][i];
        sequence_again_elsewhere(&seqs[1][i], &seqs[0][i], &shape_wide);
    }
    for (size_t step = 0; step < sizeof(rows) / sizeof(rows[0]); step++) {
        const int *n = rows[step];

        for (int i = 0; i < 3; i++)
            random_pick(&picks[i], step >= 2 && step != 4);
        m.picks = NULL;
        model_run(&m, logits, n, 3);
        m.picks = picks;
        model_run(&m, choices, (int[]){n[2], n[1], n[0]}, 3);
        for (int i = 0; i < 3; i++)
            check_choice(chooser, &picks[2 - i], seqs[0][i].logits, &m.choices[2 - i]);
    }
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < seqs[0][i].n_loras; k++)
            assert_true(seqs[0][i].energy[k] == seqs[1][i].energy[k]);
    ol_chooser_free(chooser);
    model_close(&m);
    rig_free_all();
}

static void says_that_nothing_can_be_chosen(void **state)
{
    const weights *w = weights_random(&shape_small, OL_BF16);
    const uint32_t none[2] = {0, 0};
    ol_pick pick = {.given = -1, .top_p = 1, .floor = -INFINITY, .mask = none, .n_mask = 2};
    sequence seq;
    model m;

    (void)state;
    model_open_plain(&m, w);
    sequence_random(&seq, &shape_small, 0, 0);
    m.picks = &pick;
    model_run_one(&m, &seq, 20);
    assert_int_equal(m.choices[0].status, OL_CHOICE_NONE_ALLOWED);
    pick.n_mask = 0;
    model_run_one(&m, &seq, 1);
    assert_int_equal(m.choices[0].status, OL_CHOICE_MADE);
    model_close(&m);
    rig_free_all();
}

#ifdef OL_SIMT
/* Once its room is there: lists in one copy (members of adapters in another), choices in one, one
 * wait, in a graph or not. */
static void a_step_waits_once(void **state)
{
    static const int rows[][2] = {{20, 1}, {1, 1}, {9, 1}, {1, 1}, {1, 1}};
    const weights *w = weights_random(&shape_small, OL_BF16);
    sequence seqs[2];
    ol_pick picks[2];
    model m;

    (void)state;
    model_open_plain(&m, w);
    model_place_lora(&m, NULL, 0, OL_BF16);
    for (int i = 0; i < 2; i++) {
        sequence_random(&seqs[i], &shape_small, i, 0);
        random_pick(&picks[i], true);
        picks[i].given = -1;
    }
    m.picks = picks;
    for (size_t step = 0; step < sizeof(rows) / sizeof(rows[0]); step++) {
        bool adapted = step == 4;

        if (adapted) {
            seqs[1].n_loras = 1;
            seqs[1].lora[0] = 0;
        }
        simt_counted = (simt_traffic){0};
        model_run(&m, (sequence *[]){&seqs[0], &seqs[1]}, rows[step], 2);
        if (step == 0) /* makes room, and has tables to send */
            continue;
        assert_int_equal(simt_counted.copies_in, 1 + adapted);
        assert_int_equal(simt_counted.copies_out, 1);
        assert_int_equal(simt_counted.bytes_out, 2 * sizeof(ol_choice));
        assert_int_equal(simt_counted.waits, 1);
    }
    model_close(&m);
    rig_free_all();
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chooses_as_the_engine),
        cmocka_unit_test(says_that_nothing_can_be_chosen),
#ifdef OL_SIMT
        cmocka_unit_test(a_step_waits_once),
#endif
    };

    rig_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
