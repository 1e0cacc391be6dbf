/*
 * test_ops.c: every operation of the table against float64, on each set of
 * instructions of this machine, for all types of weights, ragged batches, page borders,
 * windows, grouped heads, odd sizes, adapters, and several numbers of threads. What an
 * operation writes is poisoned with NaN before.
 *
 * Built by the Makefile, or by hand:
 *   gcc -std=c11 -D_GNU_SOURCE -Isrc -Itest/device -O2 test/device/test_ops.c
 *       test/device/rig.c test/device/ref.c src/cpu/[a-z]*.c src/base/[a-z]*.c
 *       -lcmocka -lcrypto -lpthread -lm
 */
#include "rig.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SEQS 8
#define MAX_PAGES 64

/* A random ragged step over sequences that already have a past. */
typedef struct batch {
    ol_step step;
    ol_step_seq seqs[MAX_SEQS];
    int32_t pages[MAX_SEQS][MAX_PAGES];
    int32_t tokens[256], logit_rows[256];
    ol_lora_ref refs[MAX_SEQS][4];
    double row_energy[512 * 4], energy[MAX_SEQS][4], want_energy[MAX_SEQS][4];
    int length[MAX_SEQS]; /* positions written so far */
    int free_page;
} batch;

static const rig_shape shapes[] = {
    {.hidden = 64, .heads = 4, .kv_heads = 2, .dim = 16, .ffn = 96, .vocab = 50, .page_tokens = 16},
    {.hidden = 40,
     .heads = 5,
     .kv_heads = 1,
     .dim = 12,
     .ffn = 52,
     .vocab = 37,
     .rotary = 8,
     .interleaved = true,
     .bias = true,
     .page_tokens = 16},
    {.hidden = 224,
     .heads = 14,
     .kv_heads = 2,
     .dim = 64,
     .ffn = 320,
     .vocab = 131,
     .bias = true,
     .qk_norm = true,
     .page_tokens = 32},
    {.hidden = 256,
     .heads = 3,
     .kv_heads = 3,
     .dim = 80,
     .ffn = 512,
     .vocab = 99,
     .rotary = 40,
     .window = 21,
     .page_tokens = 64},
    {.hidden = 512,
     .heads = 4,
     .kv_heads = 1,
     .dim = 128,
     .ffn = 768,
     .vocab = 257,
     .interleaved = true,
     .qk_norm = true,
     .window = 70,
     .page_tokens = 16},
};

#define N_SHAPES ((int)(sizeof(shapes) / sizeof(shapes[0])))

static void give_pages(batch *b, const rig_device *d, int s, int length)
{
    int tokens = d->model->shape.page_tokens;

    for (int p = b->length[s] ? (b->length[s] - 1) / tokens + 1 : 0; p * tokens < length; p++) {
        assert_true(b->free_page < d->n_pages && p < MAX_PAGES);
        b->pages[s][p] = (b->free_page++ * 7 + 3) % d->n_pages; /* 7: prime to n_pages */
    }
    b->length[s] = length;
}

/* Each of n sequences moves on by at most `most` rows; some by none that are not. */
static void next_step(batch *b, rig_device *d, rig_rng *rng, int n, int most, bool loras)
{
    int row = 0;

    memset(b->seqs, 0, sizeof(b->seqs));
    for (int s = 0; s < n; s++) {
        ol_step_seq *seq = &b->seqs[s];

        *seq = (ol_step_seq){.first_row = row,
                             .n_rows = 1 + rig_below(rng, most),
                             .first_pos = b->length[s],
                             .pages = b->pages[s],
                             .loras = b->refs[s]};
        give_pages(b, d, s, seq->first_pos + seq->n_rows);
        for (int i = 0; loras && i < s % 4 && d->n_loras; i++) {
            b->refs[s][i] = (ol_lora_ref){d->loras[rig_below(rng, d->n_loras)],
                                          (float)(1.0 + 0.9 * rig_uniform(rng))};
            seq->n_loras = i + 1;
        }
        if (seq->n_loras > 1)
            seq->energy = b->row_energy + (size_t)row * 4;
        row += seq->n_rows;
    }
    for (int r = 0; r < row; r++)
        b->tokens[r] = rig_below(rng, d->model->shape.vocab);
    b->step = (ol_step){row, b->tokens, n, b->seqs, 0, b->logit_rows, NULL};
    for (int r = 0; r < row; r++)
        if (rig_below(rng, 2))
            b->logit_rows[b->step.n_logit_rows++] = r;
}

static void add_energy(const rig_device *d, batch *b, int layer, int module, int row,
                       const double *x)
{
    for (int s = 0; s < b->step.n_seqs; s++)
        for (int i = 0; i < b->seqs[s].n_loras; i++)
            if (b->seqs[s].energy && row >= b->seqs[s].first_row &&
                row < b->seqs[s].first_row + b->seqs[s].n_rows)
                b->want_energy[s][i] += ref_energy(d, layer, module, x, b->seqs[s].loras[i]);
}

static const ol_step_seq *seq_of(const batch *b, int row)
{
    int s = 0;

    while (row >= b->seqs[s].first_row + b->seqs[s].n_rows)
        s++;
    return &b->seqs[s];
}

static double *widen(const float *x, int64_t n)
{
    double *out = malloc((size_t)n * sizeof(double) + 1);

    for (int64_t i = 0; i < n; i++)
        out[i] = x[i];
    return out;
}

static void randomise(rig_rng *rng, ol_buffer *buffer, int rows)
{
    for (int r = 0; r < rows; r++)
        rig_fill(rng, rig_row(buffer, r), (size_t)buffer->cols, 1.5);
}

/* -- tolerances: float arithmetic, or inputs quantised to 8 bits -------------------------- */

static double tolerance(const rig_device *d, int layer, int module)
{
    bool portable = !d->device->kernels->quantize;

    return !portable && cpu_kind_is_block(d->layers[layer].linear[module]->m.kind) ? 1.2e-2 : 3e-6;
}

static const char *name_of(const rig_device *d)
{
    return d->device->kernels->name;
}

/* -- operations ----------------------------------------------------------------------------- */

static void check_embed(rig_device *d, const batch *b)
{
    int64_t n = d->model->shape.hidden;
    float *want = malloc((size_t)n * sizeof(float));

    rig_poison(d, d->x);
    RIG_OK(d->ops->embed(d->device, d->embedding, d->x, &rig_error));
    for (int r = 0; r < b->step.n_rows; r++) {
        if (d->embedding->use == OL_WEIGHT_EMBEDDING_AND_HEAD)
            cpu_matrix_row(&d->embedding->m, b->tokens[r], want);
        else
            for (int64_t i = 0; i < n; i++)
                want[i] = (float)d->model->embedding.dense[b->tokens[r] * n + i];
        assert_memory_equal(want, rig_row(d->x, r), (size_t)n * sizeof(float));
    }
    free(want);
}

static void check_norm(rig_device *d, const batch *b)
{
    int64_t n = d->model->shape.hidden;
    double *want = malloc((size_t)n * sizeof(double));
    rig_gap gap = {0};

    rig_poison(d, d->y);
    RIG_OK(d->ops->rms_norm(d->device, d->x, d->layers[1].attn_norm, 1e-5f, d->y, &rig_error));
    for (int r = 0; r < b->step.n_rows; r++) {
        double *x = widen(rig_row(d->x, r), n);

        ref_norm(x, d->model->attn_norm[1].dense, n, 1e-5, want);
        for (int64_t i = 0; i < n; i++)
            rig_compare(&gap, rig_row(d->y, r)[i], want[i]);
        free(x);
    }
    free(want);
    rig_check_gap(&gap, 1e-6, "rms_norm, %s", name_of(d));
}

/* Heads of one row after norm and rotation. */
static void finish_heads(const rig_device *d, int layer, double *x, int heads, const double *norm,
                         int pos)
{
    int dim = d->model->shape.dim;

    for (int h = 0; h < heads; h++, x += dim) {
        if (norm)
            ref_norm(x, norm, dim, 1e-5, x);
        ref_rope(d->model, pos, x);
    }
    (void)layer;
}

static void compare_kv(const rig_device *d, int layer, const ol_step_seq *seq, int pos,
                       const double *k, const double *v, rig_gap *k_gap, rig_gap *v_gap)
{
    const rig_shape *s = &d->model->shape;
    double *got = malloc((size_t)s->dim * sizeof(double));

    for (int h = 0; h < s->kv_heads; h++) {
        int page = seq->pages[pos / s->page_tokens], slot = pos % s->page_tokens;

        rig_peek(d->kv, layer, page, h, slot, false, got);
        for (int i = 0; i < s->dim; i++)
            rig_compare(k_gap, got[i], k[h * s->dim + i]);
        rig_peek(d->kv, layer, page, h, slot, true, got);
        for (int i = 0; i < s->dim; i++)
            rig_compare(v_gap, got[i], v[h * s->dim + i]);
    }
    free(got);
}

static void check_qkv(rig_device *d, batch *b, rig_rng *rng, int layer)
{
    const rig_shape *s = &d->model->shape;
    double half = d->kv->desc.dtype == OL_F32 ? 0 : d->kv->desc.dtype == OL_F16 ? 4e-4 : 4e-3;
    rig_gap q_gap = {0}, k_gap = {0}, v_gap = {0};

    randomise(rng, d->y, b->step.n_rows);
    rig_poison(d, d->q);
    RIG_OK(d->ops->qkv(d->device, &d->layers[layer], d->y, d->kv, d->q, &rig_error));
    for (int r = 0; r < b->step.n_rows; r++) {
        const ol_step_seq *seq = seq_of(b, r);
        int pos = seq->first_pos + r - seq->first_row;
        double *x = widen(rig_row(d->y, r), s->hidden), *out[3];

        for (int i = 0; i < 3; i++) {
            out[i] = malloc((size_t)rig_out(s, i) * sizeof(double));
            ref_linear(d, layer, i, x, seq->loras, seq->n_loras, out[i]);
            add_energy(d, b, layer, i, r, x);
        }
        finish_heads(d, layer, out[0], s->heads, d->model->q_norm[layer].dense, pos);
        finish_heads(d, layer, out[1], s->kv_heads, d->model->k_norm[layer].dense, pos);
        for (int i = 0; i < s->heads * s->dim; i++)
            rig_compare(&q_gap, rig_row(d->q, r)[i], out[0][i]);
        compare_kv(d, layer, seq, pos, out[1], out[2], &k_gap, &v_gap);
        for (int i = 0; i < 3; i++)
            free(out[i]);
        free(x);
    }
    rig_check_gap(&q_gap, tolerance(d, layer, OL_MOD_Q), "q, %s, %s", name_of(d),
                  ol_dtype_name(d->model->dtype));
    rig_check_gap(&k_gap, tolerance(d, layer, OL_MOD_K) + half, "k, %s", name_of(d));
    rig_check_gap(&v_gap, tolerance(d, layer, OL_MOD_V) + half, "v, %s", name_of(d));
}

static void check_attention(rig_device *d, const batch *b, rig_rng *rng, int layer)
{
    const rig_shape *s = &d->model->shape;
    double *want = malloc((size_t)s->dim * sizeof(double));
    rig_gap gap = {0};

    randomise(rng, d->q, b->step.n_rows);
    rig_poison(d, d->o);
    RIG_OK(d->ops->attention(d->device, &d->layers[layer], d->q, d->kv, d->o, &rig_error));
    for (int r = 0; r < b->step.n_rows; r++) {
        const ol_step_seq *seq = seq_of(b, r);
        int pos = seq->first_pos + r - seq->first_row;
        double *q = widen(rig_row(d->q, r), d->q->cols);

        for (int h = 0; h < s->heads; h++) {
            ref_attention(d, layer, seq->pages, pos, h, q + h * s->dim, want);
            for (int i = 0; i < s->dim; i++)
                rig_compare(&gap, rig_row(d->o, r)[h * s->dim + i], want[i]);
        }
        free(q);
    }
    free(want);
    rig_check_gap(&gap, 3e-6, "attention, %s", name_of(d));
}

static void check_out(rig_device *d, batch *b, rig_rng *rng, int layer)
{
    int64_t in = d->o->cols, n = d->model->shape.hidden;
    double *want = malloc((size_t)n * sizeof(double)), *before[256];
    rig_gap gap = {0};

    randomise(rng, d->o, b->step.n_rows);
    randomise(rng, d->x, b->step.n_rows);
    for (int r = 0; r < b->step.n_rows; r++)
        before[r] = widen(rig_row(d->x, r), n);
    RIG_OK(d->ops->attention_out(d->device, &d->layers[layer], d->o, d->x, &rig_error));
    for (int r = 0; r < b->step.n_rows; r++) {
        const ol_step_seq *seq = seq_of(b, r);
        double *o = widen(rig_row(d->o, r), in);

        ref_linear(d, layer, OL_MOD_O, o, seq->loras, seq->n_loras, want);
        add_energy(d, b, layer, OL_MOD_O, r, o);
        for (int64_t i = 0; i < n; i++)
            rig_compare(&gap, rig_row(d->x, r)[i], want[i] + before[r][i]);
        free(o);
        free(before[r]);
    }
    free(want);
    rig_check_gap(&gap, tolerance(d, layer, OL_MOD_O), "attention_out, %s, %s", name_of(d),
                  ol_dtype_name(d->model->dtype));
}

static void check_mlp(rig_device *d, batch *b, rig_rng *rng, int layer)
{
    const rig_shape *s = &d->model->shape;
    double *gate = malloc((size_t)s->ffn * sizeof(double)),
           *up = malloc((size_t)s->ffn * sizeof(double));
    double *want = malloc((size_t)s->hidden * sizeof(double)), *before[256];
    rig_gap gap = {0};

    randomise(rng, d->y, b->step.n_rows);
    randomise(rng, d->x, b->step.n_rows);
    for (int r = 0; r < b->step.n_rows; r++)
        before[r] = widen(rig_row(d->x, r), s->hidden);
    RIG_OK(d->ops->mlp(d->device, &d->layers[layer], d->y, d->x, &rig_error));
    for (int r = 0; r < b->step.n_rows; r++) {
        const ol_step_seq *seq = seq_of(b, r);
        double *y = widen(rig_row(d->y, r), s->hidden);

        ref_linear(d, layer, OL_MOD_GATE, y, seq->loras, seq->n_loras, gate);
        ref_linear(d, layer, OL_MOD_UP, y, seq->loras, seq->n_loras, up);
        add_energy(d, b, layer, OL_MOD_GATE, r, y);
        add_energy(d, b, layer, OL_MOD_UP, r, y);
        for (int i = 0; i < s->ffn; i++)
            gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
        ref_linear(d, layer, OL_MOD_DOWN, gate, seq->loras, seq->n_loras, want);
        add_energy(d, b, layer, OL_MOD_DOWN, r, gate);
        for (int i = 0; i < s->hidden; i++)
            rig_compare(&gap, rig_row(d->x, r)[i], want[i] + before[r][i]);
        free(y);
        free(before[r]);
    }
    free(gate);
    free(up);
    free(want);
    rig_check_gap(&gap, 2 * tolerance(d, layer, OL_MOD_DOWN) + tolerance(d, layer, OL_MOD_GATE),
                  "mlp, %s, %s", name_of(d), ol_dtype_name(d->model->dtype));
}

static void check_logits(rig_device *d, const batch *b, rig_rng *rng)
{
    const rig_shape *s = &d->model->shape;
    const ol_weight *head = d->head ? d->head : d->embedding;
    double *normed = malloc((size_t)s->hidden * sizeof(double));
    const float *logits;
    rig_gap gap = {0};

    randomise(rng, d->x, b->step.n_rows);
    RIG_OK(d->ops->logits(d->device, d->x, d->final_norm, 1e-5f, head, &logits, &rig_error));
    for (int i = 0; i < b->step.n_logit_rows; i++) {
        double *x = widen(rig_row(d->x, b->logit_rows[i]), s->hidden);

        ref_norm(x, d->model->final_norm.dense, s->hidden, 1e-5, normed);
        for (int v = 0; v < s->vocab; v++) {
            double sum = 0;

            for (int k = 0; k < s->hidden; k++)
                sum += normed[k] * d->stored_head[v * s->hidden + k];
            rig_compare(&gap, logits[(int64_t)i * s->vocab + v], sum);
        }
        free(x);
    }
    free(normed);
    if (b->step.n_logit_rows)
        rig_check_gap(
            &gap, d->device->kernels->quantize && cpu_kind_is_block(head->m.kind) ? 1.2e-2 : 3e-6,
            "logits, %s", name_of(d));
}

/* A step's energies, by rows, into those of the sequences. */
static void add_rows(batch *b)
{
    for (int s = 0; s < b->step.n_seqs; s++)
        for (int i = 0; b->seqs[s].energy && i < b->seqs[s].n_rows * b->seqs[s].n_loras; i++) {
            b->energy[s][i % b->seqs[s].n_loras] += b->seqs[s].energy[i];
            b->seqs[s].energy[i] = 0;
        }
}

static void check_energy(const rig_device *d, const batch *b)
{
    for (int s = 0; s < MAX_SEQS; s++)
        for (int i = 0; i < 4; i++)
            if (fabs(b->energy[s][i] - b->want_energy[s][i]) > 2e-2 * b->want_energy[s][i])
                fail_msg("energy, %s: %g, not %g", name_of(d), b->energy[s][i],
                         b->want_energy[s][i]);
}

static void check_all(rig_device *d, int n_seqs, int steps, int most, bool loras, uint64_t seed)
{
    rig_rng rng = {seed};
    batch *b = calloc(1, sizeof(*b));

    for (int i = 0; i < steps; i++) {
        next_step(b, d, &rng, n_seqs, most, loras);
        RIG_OK(d->ops->step_begin(d->device, &b->step, &rig_error));
        check_embed(d, b);
        check_norm(d, b);
        for (int layer = 0; layer < RIG_LAYERS; layer++) {
            check_qkv(d, b, &rng, layer);
            check_attention(d, b, &rng, layer);
            check_out(d, b, &rng, layer);
            check_mlp(d, b, &rng, layer);
        }
        check_logits(d, b, &rng);
        RIG_OK(d->ops->step_end(d->device, &rig_error));
        add_rows(b);
    }
    if (loras)
        check_energy(d, b);
    free(b);
}

/* -- tests ------------------------------------------------------------------------------------- */

typedef struct kind {
    ol_dtype dtype;
    ol_quantization quantization;
    bool int8_adapters;
} kind;

static const kind kinds[] = {{OL_F32, OL_QUANT_AS_IS, false},  {OL_F16, OL_QUANT_AS_IS, false},
                             {OL_BF16, OL_QUANT_AS_IS, false}, {OL_Q8_0, OL_QUANT_AS_IS, false},
                             {OL_Q4_0, OL_QUANT_AS_IS, false}, {OL_Q4_K, OL_QUANT_AS_IS, false},
                             {OL_Q6_K, OL_QUANT_AS_IS, false}, {OL_F16, OL_QUANT_INT8, false},
                             {OL_BF16, OL_QUANT_INT4, false},  {OL_Q8_0, OL_QUANT_INT4, false},
                             {OL_F32, OL_QUANT_AS_IS, true},   {OL_BF16, OL_QUANT_AS_IS, true},
                             {OL_Q8_0, OL_QUANT_AS_IS, true}};

static void run(const rig_shape *shape, kind k, const char *isa, int threads, ol_dtype kv,
                uint64_t seed)
{
    rig_options options = {isa, threads,       128,           64,
                           kv,  seed % 2 == 0, seed % 3 == 0, k.int8_adapters};
    rig_model model;
    rig_lora loras[3];
    rig_device d;

    rig_model_make(&model, shape, k.dtype, k.quantization, seed);
    rig_lora_make(&loras[0], &model, OL_F16, 16, false, seed + 1);
    rig_lora_make(&loras[1], &model, OL_F32, 9, true, seed + 2);
    rig_lora_make(&loras[2], &model, OL_BF16, 40, true, seed + 3);
    rig_place(&d, &model, &options);
    for (int i = 0; i < 3; i++) {
        rig_place_lora(&d, &loras[i]);
        if (k.int8_adapters)
            rig_lora_round(&loras[i]);
    }
    check_all(&d, 5, 3, 17, true, seed);
    rig_remove(&d);
    for (int i = 0; i < 3; i++)
        rig_lora_free(&loras[i]);
    rig_model_free(&model);
}

/* Odd sizes suit plain types alone. */
static bool suits(const rig_shape *s, kind k)
{
    return s->hidden % 32 == 0 || k.dtype <= OL_BF16;
}

static void on(const char *isa)
{
    static const ol_dtype kv[] = {OL_F32, OL_F16, OL_BF16};
    uint64_t seed = 100;

    for (int s = 0; s < N_SHAPES; s++)
        for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++, seed++)
            if (suits(&shapes[s], kinds[k]))
                run(&shapes[s], kinds[k], isa, 1 + (int)(seed % 3), kv[seed % 3], seed);
}

static void test_portable(void **state)
{
    (void)state;
    on("portable");
}

static void test_fast(void **state)
{
    (void)state;
    for (int i = 1; rig_isas()[i]; i++)
        on(rig_isas()[i]);
}

/* In eight bits a number that is not finite has no scale: refused, wherever it stands, and nothing
 * of the adapter stays. Other types keep what they are given. */
static void check_not_finite(const char *isa, float value, bool in_b)
{
    ol_device_options options = {
        .threads = 1, .isa = isa, .max_rows = 1, .max_seqs = 1, .max_logit_rows = 1};
    const ol_device_table *ops = ol_device_entry_point();
    rig_rng rng = {5};
    rig_tensor a = rig_matrix(&rng, OL_F32, 3, 40, 1), b = rig_matrix(&rng, OL_F32, 50, 3, 1);
    ol_lora_module m = {.module = OL_MOD_O, .rank = 3, .scale = 1, .a = a.t, .b = b.t};
    ol_device_info before, after;

    ((float *)(uintptr_t)(in_b ? b.t.data : a.t.data))[17] = value;
    for (options.adapters = OL_QUANT_AS_IS; options.adapters <= OL_QUANT_INT8; options.adapters++) {
        ol_device *device = NULL;
        ol_lora *lora = NULL;

        RIG_OK(ops->open(&options, &device, &rig_error));
        ops->info(device, &before);
        if (options.adapters == OL_QUANT_INT8) {
            assert_int_equal(ops->lora_create(device, &m, 1, &lora, &rig_error), OL_INVALID);
            assert_string_equal(rig_error.message, "the adapter has numbers that are not finite");
        } else {
            RIG_OK(ops->lora_create(device, &m, 1, &lora, &rig_error));
            ops->lora_free(device, lora);
        }
        ops->info(device, &after);
        assert_int_equal(after.memory_used, before.memory_used);
        ops->close(device);
    }
    rig_tensor_free(&a);
    rig_tensor_free(&b);
}

static void test_not_finite(void **state)
{
    (void)state;
    for (int i = 0; rig_isas()[i]; i++)
        for (int in_b = 0; in_b < 2; in_b++) {
            check_not_finite(rig_isas()[i], INFINITY, in_b);
            check_not_finite(rig_isas()[i], -INFINITY, in_b);
            check_not_finite(rig_isas()[i], NAN, in_b);
        }
}

static void test_refused(void **state)
{
    ol_device_options options = {
        .threads = 1, .max_rows = 1, .max_seqs = 1, .max_logit_rows = 1, .adapters = OL_QUANT_INT4};
    ol_device *device = NULL;

    (void)state;
    assert_int_equal(ol_device_entry_point()->open(&options, &device, &rig_error), OL_INVALID);
    assert_string_equal(rig_error.message, "adapters are kept as they are, or as int8");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_portable), cmocka_unit_test(test_fast),
                                       cmocka_unit_test(test_not_finite),
                                       cmocka_unit_test(test_refused)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
