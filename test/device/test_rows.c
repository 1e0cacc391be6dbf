/*
 * test_rows.c: promise P6. What a row comes to, bit for bit, depends on its own past
 * alone: not on the other rows of the step, their number or order, where a prompt is
 * cut, which pages hold it, or the number of threads.
 *
 * Each sequence is computed alone and row by row first; then all of them in schedules
 * of many kinds, whose logits must be equal in every bit.
 */
#include "rig.h"

#include <stdlib.h>
#include <string.h>

#define N_SEQS 7
#define MAX_LENGTH 150
#define MAX_ROWS 160

typedef struct request {
    int length;
    int32_t tokens[MAX_LENGTH];
    int n_loras, lora[3];
    float weight[3];
} request;

typedef struct schedule {
    const char *name;
    int seqs;        /* that run at the same time */
    int least, most; /* rows of a sequence in a step */
    int threads;
    bool pool; /* adapters in pages */
} schedule;

/* How a device stores what it gets. */
typedef struct storage {
    ol_dtype kv;
    bool int8_adapters;
} storage;

typedef struct run {
    rig_device d;
    const request *requests;
    float *logits;                         /* [N_SEQS][MAX_LENGTH][vocab] */
    double energy[N_SEQS][MAX_LENGTH * 3]; /* by rows */
    int done[N_SEQS];
    int32_t pages[N_SEQS][MAX_LENGTH / 16 + 2];
} run;

static void make_requests(request *requests, const rig_shape *shape, rig_rng *rng)
{
    memset(requests, 0, N_SEQS * sizeof(*requests));
    for (int s = 0; s < N_SEQS; s++) {
        request *r = &requests[s];

        r->length = s == 0 ? MAX_LENGTH : 20 + rig_below(rng, 40);
        for (int i = 0; i < r->length; i++)
            r->tokens[i] = rig_below(rng, shape->vocab);
        r->n_loras = s % 4;
        for (int i = 0; i < r->n_loras; i++) {
            r->lora[i] = rig_below(rng, 3);
            r->weight[i] = (float)(1.0 + 0.9 * rig_uniform(rng));
        }
    }
}

static void give_pages(run *r, rig_rng *rng)
{
    int order[256], n = r->d.n_pages, at = 0;

    for (int i = 0; i < n; i++)
        order[i] = i;
    for (int i = n - 1; i > 0; i--) {
        int j = rig_below(rng, i + 1), swap = order[i];

        order[i] = order[j];
        order[j] = swap;
    }
    for (int s = 0; s < N_SEQS; s++)
        for (int p = 0; p * r->d.model->shape.page_tokens < r->requests[s].length; p++)
            r->pages[s][p] = order[at++];
}

static void forward(run *r, const ol_step *step, const float **logits)
{
    rig_device *d = &r->d;

    RIG_OK(d->ops->step_begin(d->device, step, &rig_error));
    RIG_OK(d->ops->embed(d->device, d->embedding, d->x, &rig_error));
    for (int l = 0; l < RIG_LAYERS; l++) {
        const ol_layer *layer = &d->layers[l];

        RIG_OK(d->ops->rms_norm(d->device, d->x, layer->attn_norm, 1e-5f, d->y, &rig_error));
        RIG_OK(d->ops->qkv(d->device, layer, d->y, d->kv, d->q, &rig_error));
        RIG_OK(d->ops->attention(d->device, layer, d->q, d->kv, d->o, &rig_error));
        RIG_OK(d->ops->attention_out(d->device, layer, d->o, d->x, &rig_error));
        RIG_OK(d->ops->rms_norm(d->device, d->x, layer->mlp_norm, 1e-5f, d->y, &rig_error));
        RIG_OK(d->ops->mlp(d->device, layer, d->y, d->x, &rig_error));
    }
    RIG_OK(d->ops->logits(d->device, d->x, d->final_norm, 1e-5f, d->head ? d->head : d->embedding,
                          logits, &rig_error));
}

/* One step: `n` sequences of `chosen`, with their rows. */
static void step_of(run *r, const int *chosen, const int *rows, int n)
{
    ol_step_seq seqs[N_SEQS];
    ol_lora_ref refs[N_SEQS][3];
    int32_t tokens[MAX_ROWS], all[MAX_ROWS];
    int vocab = r->d.model->shape.vocab, row = 0;
    const float *logits;
    ol_step step;

    for (int i = 0; i < n; i++) {
        const request *q = &r->requests[chosen[i]];

        for (int j = 0; j < q->n_loras; j++)
            refs[i][j] = (ol_lora_ref){r->d.loras[q->lora[j]], q->weight[j]};
        seqs[i] = (ol_step_seq){.first_row = row,
                                .n_rows = rows[i],
                                .first_pos = r->done[chosen[i]],
                                .pages = r->pages[chosen[i]],
                                .n_loras = q->n_loras,
                                .loras = refs[i],
                                .energy = q->n_loras > 1 ? r->energy[chosen[i]] +
                                                               r->done[chosen[i]] * q->n_loras
                                                         : NULL};
        memcpy(tokens + row, q->tokens + r->done[chosen[i]], (size_t)rows[i] * sizeof(int32_t));
        row += rows[i];
    }
    for (int i = 0; i < row; i++)
        all[i] = i;
    step = (ol_step){row, tokens, n, seqs, row, all, NULL};
    forward(r, &step, &logits);
    for (int i = 0; i < n; i++) {
        memcpy(r->logits + (chosen[i] * MAX_LENGTH + r->done[chosen[i]]) * vocab,
               logits + seqs[i].first_row * vocab, (size_t)(rows[i] * vocab) * sizeof(float));
        r->done[chosen[i]] += rows[i];
    }
    RIG_OK(r->d.ops->step_end(r->d.device, &rig_error));
}

/* Picks unfinished sequences in random order; false when all are done. */
static bool choose(const run *r, const schedule *s, rig_rng *rng, int *chosen, int *rows, int *n)
{
    int room = MAX_ROWS, start = s->seqs == 1 ? 0 : rig_below(rng, N_SEQS);

    *n = 0;
    for (int i = 0; i < N_SEQS && *n < s->seqs && room > 0; i++) {
        int seq = (start + i * 3) % N_SEQS, left = r->requests[seq].length - r->done[seq];
        int take = s->least + rig_below(rng, s->most - s->least + 1);

        take = take < left ? take : left;
        take = take < room ? take : room;
        if (take == 0)
            continue;
        chosen[*n] = seq;
        rows[(*n)++] = take;
        room -= take;
    }
    return *n > 0;
}

static void run_schedule(run *r, const rig_model *m, const rig_lora *loras, const request *requests,
                         const schedule *s, const char *isa, storage how, rig_rng *rng)
{
    rig_options options = {isa, s->threads, MAX_ROWS, 67, how.kv, true, s->pool, how.int8_adapters};
    size_t n = (size_t)N_SEQS * MAX_LENGTH * (size_t)m->shape.vocab;
    int chosen[N_SEQS], rows[N_SEQS], count;

    memset(r, 0, sizeof(*r));
    r->requests = requests;
    r->logits = malloc(n * sizeof(float));
    memset(r->logits, 0xFF, n * sizeof(float));
    rig_place(&r->d, m, &options);
    for (int i = 0; i < 3; i++)
        rig_place_lora(&r->d, &loras[i]);
    give_pages(r, rng);
    while (choose(r, s, rng, chosen, rows, &count))
        step_of(r, chosen, rows, count);
    rig_remove(&r->d);
}

static void compare(const run *want, const run *got, const request *requests, int vocab,
                    const schedule *s, const char *isa)
{
    for (int i = 0; i < N_SEQS; i++)
        for (int pos = 0; pos < requests[i].length; pos++) {
            size_t at = ((size_t)i * MAX_LENGTH + (size_t)pos) * (size_t)vocab;

            if (memcmp(want->logits + at, got->logits + at, (size_t)vocab * sizeof(float)) == 0)
                continue;
            fail_msg("%s, %s: sequence %d differs at position %d of %d", isa, s->name, i, pos,
                     requests[i].length);
        }
    for (int i = 0; i < N_SEQS; i++)
        for (int j = 0; requests[i].n_loras > 1 && j < requests[i].length * requests[i].n_loras;
             j++) {
            if (want->energy[i][j] != got->energy[i][j])
                fail_msg("%s, %s: energy of sequence %d differs at row %d", isa, s->name, i,
                         j / requests[i].n_loras);
            assert_true(want->energy[i][j] > 0);
        }
}

static const schedule schedules[] = {
    {"alone, row by row", 1, 1, 1, 1, false}, /* what the others are held against */
    {"alone, in one piece", 1, MAX_LENGTH, MAX_LENGTH, 2, false},
    {"alone, in pieces", 1, 1, 40, 1, false},
    {"two, row by row", 2, 1, 1, 2, false},
    {"all, row by row", N_SEQS, 1, 1, 2, false},
    {"all, in small pieces", N_SEQS, 1, 5, 2, false},
    {"all, in pieces", N_SEQS, 1, 33, 3, false},
    {"five, in pieces", 5, 1, 17, 1, false},
    {"three, in large pieces", 3, 20, 64, 4, false},
    {"four, in pieces, in a pool", 4, 1, 40, 2, true},
};

static void check(const rig_shape *shape, ol_dtype dtype, ol_quantization quantization,
                  const char *isa, storage how, uint64_t seed)
{
    rig_rng rng = {seed};
    request requests[N_SEQS];
    rig_model m;
    rig_lora loras[3];
    run *want = malloc(sizeof(*want)), *got = malloc(sizeof(*got));

    rig_model_make(&m, shape, dtype, quantization, seed);
    rig_lora_make(&loras[0], &m, OL_F16, 16, false, seed + 1);
    rig_lora_make(&loras[1], &m, OL_BF16, 7, true, seed + 2);
    rig_lora_make(&loras[2], &m, OL_F32, 33, true, seed + 3);
    make_requests(requests, shape, &rng);
    run_schedule(want, &m, loras, requests, &schedules[0], isa, how, &rng);
    for (size_t i = 1; i < sizeof(schedules) / sizeof(schedules[0]); i++) {
        run_schedule(got, &m, loras, requests, &schedules[i], isa, how, &rng);
        compare(want, got, requests, shape->vocab, &schedules[i], isa);
        free(got->logits);
    }
    free(want->logits);
    free(want);
    free(got);
    for (int i = 0; i < 3; i++)
        rig_lora_free(&loras[i]);
    rig_model_free(&m);
}

static const rig_shape plain = {.hidden = 100,
                                .heads = 6,
                                .kv_heads = 2,
                                .dim = 20,
                                .ffn = 150,
                                .vocab = 61,
                                .bias = true,
                                .qk_norm = true,
                                .page_tokens = 16};
static const rig_shape windowed = {.hidden = 256,
                                   .heads = 4,
                                   .kv_heads = 4,
                                   .dim = 64,
                                   .ffn = 512,
                                   .vocab = 100,
                                   .window = 37,
                                   .interleaved = true,
                                   .page_tokens = 32};

static void on_all(const rig_shape *shape, ol_dtype dtype, ol_quantization q, storage how)
{
    for (int i = 0; rig_isas()[i]; i++)
        check(shape, dtype, q, rig_isas()[i], how, 1000 + (uint64_t)dtype);
}

#define TEST(name, shape, dtype, quantization, kv, int8_adapters)                                  \
    static void name(void **state)                                                                 \
    {                                                                                              \
        (void)state;                                                                               \
        on_all(shape, dtype, quantization, (storage){kv, int8_adapters});                          \
    }

TEST(test_f32, &plain, OL_F32, OL_QUANT_AS_IS, OL_F32, false)
TEST(test_f16, &plain, OL_F16, OL_QUANT_AS_IS, OL_F16, false)
TEST(test_bf16, &windowed, OL_BF16, OL_QUANT_AS_IS, OL_BF16, false)
TEST(test_q8_0, &windowed, OL_Q8_0, OL_QUANT_AS_IS, OL_F16, false)
TEST(test_q4_0, &windowed, OL_Q4_0, OL_QUANT_AS_IS, OL_F16, false)
TEST(test_q4_k, &windowed, OL_Q4_K, OL_QUANT_AS_IS, OL_F32, false)
TEST(test_q6_k, &windowed, OL_Q6_K, OL_QUANT_AS_IS, OL_F16, false)
TEST(test_int8, &windowed, OL_F16, OL_QUANT_INT8, OL_F16, false)
TEST(test_int8_adapters, &plain, OL_F16, OL_QUANT_AS_IS, OL_F16, true)
TEST(test_all_int8, &windowed, OL_BF16, OL_QUANT_INT8, OL_F16, true)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),           cmocka_unit_test(test_f16),
        cmocka_unit_test(test_bf16),          cmocka_unit_test(test_q8_0),
        cmocka_unit_test(test_q4_0),          cmocka_unit_test(test_q4_k),
        cmocka_unit_test(test_q6_k),          cmocka_unit_test(test_int8),
        cmocka_unit_test(test_int8_adapters), cmocka_unit_test(test_all_int8)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
