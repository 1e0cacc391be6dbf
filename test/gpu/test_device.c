/*
 * test_device.c: the CUDA device against the CPU device, both behind device.h: a small random
 * model, ragged steps with pasts, several adapters a row; weights of each type. Then what a
 * device promises of itself: the same bits for a row in whatever step, memory given back,
 * limits, faults.
 *
 * The CPU device is loaded from OL_DEVICE_DIR (default: build).
 */
#include "gpu_rig.h"

#include "device/device.h"
#include "engine/choose.h"
#include "kernels/core.h"

#include <math.h>
#include <stdio.h>

const ol_device_table *ol_device_entry_point(void);

#define LAYERS 2
#define MAX_SEQS 6
#define MAX_ROWS 256
#define PAGES 128
#define SEQ_PAGES 48
#define LORAS 4

static ol_error error;
#define OK(expr) ok((expr), #expr, __LINE__)

static void ok(ol_code code, const char *what, int line)
{
    if (code == OL_OK)
        return;
    print_error("line %d: %s: %s (%s)\n", line, what, error.message, error.detail);
    fail();
}

/* -- a random model ------------------------------------------------------------------------ */

typedef struct shape {
    int hidden, heads, kv_heads, dim, ffn, vocab, rotary, window, page_tokens;
    bool interleaved, bias, qk_norm, tied;
} shape;

typedef struct weights {
    shape s;
    ol_tensor embedding, head, norm;
    ol_tensor linear[LAYERS][OL_MODULES], bias[LAYERS][OL_MODULES];
    ol_tensor norms[LAYERS][4]; /* attention, MLP, q, k */
    float inv_freq[64];
} weights;

static int64_t in_of(const shape *s, int m)
{
    return m == OL_MOD_O ? s->heads * s->dim : m == OL_MOD_DOWN ? s->ffn : s->hidden;
}

static int64_t out_of(const shape *s, int m)
{
    if (m == OL_MOD_Q)
        return s->heads * s->dim;
    if (m == OL_MOD_K || m == OL_MOD_V)
        return s->kv_heads * s->dim;
    return m == OL_MOD_GATE || m == OL_MOD_UP ? s->ffn : s->hidden;
}

static void put_f16(uint8_t *at, double v)
{
    uint16_t half = rig_f16(v);

    memcpy(at, &half, sizeof(half));
}

/* A block of a quantised type with numbers of about `scale`. */
static void random_block(ol_dtype dtype, uint8_t *at, double scale)
{
    size_t bytes = ol_dtype_block_bytes(dtype);

    for (size_t i = 0; i < bytes; i++)
        at[i] = (uint8_t)rig_next();
    if (dtype == OL_Q4_K) { /* factors of scales and minima are 32 on average, numbers 7.5 */
        put_f16(at, scale / 2 / 7.5 / 32);
        put_f16(at + 2, scale / 2 / 32);
    } else if (dtype == OL_Q6_K)
        put_f16(at + 208, scale / 32 / 64);
    else
        put_f16(at, dtype == OL_Q8_0 ? scale / 127 : scale / -8);
}

static ol_tensor tensor(ol_dtype dtype, int64_t rows, int64_t cols, double mean, double scale)
{
    size_t row_bytes;
    uint8_t *data;

    if (cols % ol_dtype_block(dtype))
        dtype = OL_BF16;
    assert_true(ol_dtype_row_bytes(dtype, cols, &row_bytes));
    data = rig_host(row_bytes * (size_t)rows);
    for (int64_t i = 0, block = ol_dtype_block(dtype); i < rows * cols; i += block) {
        float v = (float)(mean + scale * rig_uniform());
        uint16_t half = dtype == OL_F16 ? rig_f16(v) : rig_bf16(v);

        if (block > 1)
            random_block(dtype, data + (size_t)(i / block) * ol_dtype_block_bytes(dtype), scale);
        else if (dtype == OL_F32)
            memcpy(data + 4 * i, &v, 4);
        else
            memcpy(data + 2 * i, &half, 2);
    }
    return (ol_tensor){"test", dtype, 2, {rows, cols}, data, row_bytes * (size_t)rows};
}

static ol_tensor vector(int64_t n, double mean, double scale)
{
    ol_tensor t = tensor(OL_F32, 1, n, mean, scale);

    t.n_dims = 1;
    t.shape[0] = n;
    return t;
}

static weights *make_weights(const shape *s, ol_dtype dtype)
{
    weights *w = rig_host(sizeof(*w));

    w->s = *s;
    w->embedding = tensor(dtype, s->vocab, s->hidden, 0, 1);
    w->head = tensor(dtype, s->vocab, s->hidden, 0, 1.0 / sqrt(s->hidden));
    w->norm = vector(s->hidden, 1, 0.3);
    for (int l = 0; l < LAYERS; l++) {
        for (int m = 0; m < OL_MODULES; m++) {
            w->linear[l][m] =
                tensor(dtype, out_of(s, m), in_of(s, m), 0, 1.7 / sqrt((double)in_of(s, m)));
            if (s->bias)
                w->bias[l][m] = vector(out_of(s, m), 0, 0.5);
        }
        w->norms[l][0] = vector(s->hidden, 1, 0.3);
        w->norms[l][1] = vector(s->hidden, 1, 0.3);
        if (s->qk_norm) {
            w->norms[l][2] = vector(s->dim, 1, 0.3);
            w->norms[l][3] = vector(s->dim, 1, 0.3);
        }
    }
    for (int i = 0; i < s->rotary / 2; i++)
        w->inv_freq[i] = powf(10000.0f, -2.0f * (float)i / (float)s->rotary);
    return w;
}

/* The same numbers in f32, where they are of a quantised type: the CPU device multiplies those with
 * rounded activations, which is no measure. */
static void make_plain(ol_tensor *t)
{
    size_t n = (size_t)(t->shape[0] * t->shape[1]);
    float *values;

    if (!t->data || ol_dtype_block(t->dtype) == 1)
        return;
    values = rig_host(n * sizeof(*values));
    ol_dequantize(t->dtype, t->data, values, n);
    t->dtype = OL_F32;
    t->data = values;
    t->bytes = n * sizeof(*values);
}

static const weights *plain_weights(const weights *w)
{
    weights *plain = rig_host(sizeof(*plain));

    *plain = *w;
    make_plain(&plain->embedding);
    make_plain(&plain->head);
    for (int l = 0; l < LAYERS; l++)
        for (int m = 0; m < OL_MODULES; m++)
            make_plain(&plain->linear[l][m]);
    return plain;
}

/* What FP8 makes of a matrix: each row's largest number becomes 448, the others the nearest. */
static ol_tensor rounded(const ol_tensor *t)
{
    size_t rows = (size_t)t->shape[0], cols = (size_t)t->shape[1];
    float *v = rig_host(rows * cols * sizeof(float));
    ol_tensor out = *t;

    ol_dequantize(t->dtype, t->data, v, rows * cols);
    for (float *row = v; row < v + rows * cols; row += cols) {
        float most = 0, scale;

        for (size_t i = 0; i < cols; i++)
            most = fmaxf(most, fabsf(row[i]));
        scale = most / 448;
        for (size_t i = 0; i < cols; i++)
            row[i] = scale > 0 ? (float)(rig_from_f8(rig_f8(row[i] / scale)) * scale) : 0;
    }
    out.dtype = OL_F32;
    out.data = v;
    out.bytes = rows * cols * sizeof(float);
    return out;
}

static const weights *rounded_weights(const weights *w)
{
    weights *out = rig_host(sizeof(*out));

    *out = *w;
    out->head = rounded(&w->head);
    if (w->s.tied)
        out->embedding = rounded(&w->embedding);
    for (int l = 0; l < LAYERS; l++)
        for (int m = 0; m < OL_MODULES; m++)
            out->linear[l][m] = rounded(&w->linear[l][m]);
    return out;
}

/* -- it, on a device --------------------------------------------------------------------------- */

typedef struct model {
    const ol_device_table *t;
    ol_device *device;
    const weights *w;
    ol_weight *embedding, *head, *norm;
    ol_layer layers[LAYERS];
    ol_kv *kv;
    ol_buffer *x, *y, *q, *o;
    ol_lora *loras[LORAS];
    const ol_pick *picks; /* steps choose, instead of giving logits */
    const ol_choice *choices;
    int32_t last_page; /* from here on pages of a pool are adapters'; 0: there is no pool */
} model;

static ol_weight *place(model *m, const ol_tensor *t, int use, ol_quantization quantization)
{
    ol_weight_desc desc = {.tensor = *t, .quantization = quantization, .keep = true};
    ol_weight *w = NULL;

    if (!t->data)
        return NULL;
    desc.use = use;
    OK(m->t->weight_create(m->device, &desc, &w, &error));
    return w;
}

static void place_layer(model *m, int l, ol_quantization quantization)
{
    const shape *s = &m->w->s;
    ol_layer *layer = &m->layers[l];

    *layer = (ol_layer){.index = l,
                        .attention = {.n_heads = s->heads,
                                      .n_kv_heads = s->kv_heads,
                                      .head_dim = s->dim,
                                      .scale = 1.0f / sqrtf((float)s->dim),
                                      .window = s->window,
                                      .rope_interleaved = s->interleaved,
                                      .rotary_dims = s->rotary,
                                      .inv_freq = m->w->inv_freq,
                                      .rope_factor = 1.1f,
                                      .norm_eps = 1e-5f}};
    for (int i = 0; i < OL_MODULES; i++) {
        layer->linear[i] = place(m, &m->w->linear[l][i], OL_WEIGHT_MATRIX, quantization);
        layer->bias[i] = place(m, &m->w->bias[l][i], OL_WEIGHT_VECTOR, OL_QUANT_AS_IS);
    }
    layer->attn_norm = place(m, &m->w->norms[l][0], OL_WEIGHT_VECTOR, OL_QUANT_AS_IS);
    layer->mlp_norm = place(m, &m->w->norms[l][1], OL_WEIGHT_VECTOR, OL_QUANT_AS_IS);
    layer->q_norm = place(m, &m->w->norms[l][2], OL_WEIGHT_VECTOR, OL_QUANT_AS_IS);
    layer->k_norm = place(m, &m->w->norms[l][3], OL_WEIGHT_VECTOR, OL_QUANT_AS_IS);
}

static void open_pages(model *m, int n_pages, ol_dtype kv)
{
    const shape *s = &m->w->s;
    ol_kv_desc desc = {.n_layers = LAYERS,
                       .n_kv_heads = s->kv_heads,
                       .head_dim = s->dim,
                       .page_tokens = s->page_tokens,
                       .n_pages = n_pages,
                       .dtype = kv,
                       .pool = n_pages > PAGES};

    OK(m->t->kv_create(m->device, &desc, &m->kv, &error));
}

static void open_model(model *m, const ol_device_table *t, const weights *w, ol_dtype kv,
                       ol_quantization quantization)
{
    const shape *s = &w->s;
    ol_device_options options = {
        .threads = 1, .max_rows = MAX_ROWS, .max_seqs = MAX_SEQS, .max_logit_rows = MAX_ROWS};

    *m = (model){.t = t, .w = w};
    OK(t->open(&options, &m->device, &error));
    m->embedding =
        place(m, &w->embedding, s->tied ? OL_WEIGHT_EMBEDDING_AND_HEAD : OL_WEIGHT_EMBEDDING,
              quantization);
    m->head = s->tied ? m->embedding : place(m, &w->head, OL_WEIGHT_MATRIX, quantization);
    m->norm = place(m, &w->norm, OL_WEIGHT_VECTOR, OL_QUANT_AS_IS);
    for (int l = 0; l < LAYERS; l++)
        place_layer(m, l, quantization);
    open_pages(m, PAGES, kv);
    OK(t->buffer_create(m->device, s->hidden, &m->x, &error));
    OK(t->buffer_create(m->device, s->hidden, &m->y, &error));
    OK(t->buffer_create(m->device, s->heads * s->dim, &m->q, &error));
    OK(t->buffer_create(m->device, s->heads * s->dim, &m->o, &error));
}

static void close_model(model *m)
{
    for (int i = 0; i < LORAS; i++)
        m->t->lora_free(m->device, m->loras[i]);
    m->t->buffer_free(m->device, m->x);
    m->t->buffer_free(m->device, m->y);
    m->t->buffer_free(m->device, m->q);
    m->t->buffer_free(m->device, m->o);
    m->t->kv_free(m->device, m->kv);
    for (int l = 0; l < LAYERS; l++) {
        ol_layer *layer = &m->layers[l];

        for (int i = 0; i < OL_MODULES; i++) {
            m->t->weight_free(m->device, layer->linear[i]);
            m->t->weight_free(m->device, layer->bias[i]);
        }
        m->t->weight_free(m->device, layer->attn_norm);
        m->t->weight_free(m->device, layer->mlp_norm);
        m->t->weight_free(m->device, layer->q_norm);
        m->t->weight_free(m->device, layer->k_norm);
    }
    m->t->weight_free(m->device, m->embedding);
    if (m->head != m->embedding)
        m->t->weight_free(m->device, m->head);
    m->t->weight_free(m->device, m->norm);
    m->t->close(m->device);
}

/* From the last page down, with a page before each run that is nobody's. */
static void place_in_pool(model *m, const ol_lora_module *modules, int n, ol_lora **lora)
{
    size_t page_bytes = m->kv->page_bytes;
    ol_lora_need need;
    int32_t *runs;

    OK(m->t->lora_need(m->device, m->kv, modules, n, &need, &error));
    runs = rig_host((size_t)need.n_runs * sizeof(*runs));
    for (int i = 0; i < need.n_runs; i++) {
        m->last_page -= need.run;
        runs[i] = m->last_page--;
    }
    assert_true(m->last_page > PAGES);
    OK(m->t->lora_create_in(m->device, m->kv, runs, modules, n, lora, &error));
    assert_int_equal(m->t->lora_bytes(m->device, *lora),
                     (size_t)need.n_runs * (size_t)need.run * page_bytes);
}

/* The same adapter on both; ranks differ by module, some modules are left out. */
static void place_lora(model *a, model *b, int at, ol_dtype dtype)
{
    const shape *s = &a->w->s;
    ol_lora_module modules[LAYERS * OL_MODULES];
    int n = 0;

    for (int l = 0; l < LAYERS; l++)
        for (int m = 0; m < OL_MODULES; m++) {
            int rank = 1 + rig_below(at == 3 ? 70 : 16);

            if (rig_below(4) == 0)
                continue;
            modules[n++] = (ol_lora_module){
                .layer = l,
                .module = (ol_module)m,
                .rank = rank,
                .scale = (float)(1 + 0.5 * rig_uniform()),
                .a = tensor(dtype, rank, in_of(s, m), 0, 1.7 / sqrt((double)in_of(s, m))),
                .b = tensor(dtype, out_of(s, m), rank, 0, 0.8 / sqrt((double)rank))};
        }
    OK(a->t->lora_create(a->device, modules, n, &a->loras[at], &error));
    if (b && b->last_page)
        place_in_pool(b, modules, n, &b->loras[at]);
    else if (b)
        OK(b->t->lora_create(b->device, modules, n, &b->loras[at], &error));
}

/* -- requests and steps -------------------------------------------------------------------------
 */

typedef struct sequence {
    int32_t tokens[SEQ_PAGES * 16], pages[SEQ_PAGES];
    int length; /* computed */
    int n_loras;
    int lora[3];
    float weight[3];
    double energy[3]; /* so far */
    float *logits;    /* of the last row computed */
} sequence;

static void random_sequence(sequence *q, const shape *s, int number, int n_loras)
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

static void forward(model *m, const ol_step *step, const float **logits)
{
    const ol_device_table *t = m->t;

    OK(t->step_begin(m->device, step, &error));
    OK(t->embed(m->device, m->embedding, m->x, &error));
    for (int l = 0; l < LAYERS; l++) {
        const ol_layer *layer = &m->layers[l];

        OK(t->rms_norm(m->device, m->x, layer->attn_norm, 1e-5f, m->y, &error));
        OK(t->qkv(m->device, layer, m->y, m->kv, m->q, &error));
        OK(t->attention(m->device, layer, m->q, m->kv, m->o, &error));
        OK(t->attention_out(m->device, layer, m->o, m->x, &error));
        OK(t->rms_norm(m->device, m->x, layer->mlp_norm, 1e-5f, m->y, &error));
        OK(t->mlp(m->device, layer, m->y, m->x, &error));
    }
    if (step->picks)
        OK(t->choose(m->device, m->x, m->norm, 1e-5f, m->head, &m->choices, &error));
    else
        OK(t->logits(m->device, m->x, m->norm, 1e-5f, m->head, logits, &error));
    OK(t->step_end(m->device, &error));
}

/* One step: sequence order[i] goes on by rows[i]; the logits of each one's last row. */
static void run(model *m, sequence *const *order, const int *rows, int n)
{
    static double energy[MAX_ROWS * 3];
    int32_t tokens[MAX_ROWS], logit_rows[MAX_SEQS];
    ol_lora_ref refs[MAX_SEQS][3];
    ol_step_seq seqs[MAX_SEQS];
    const float *logits = NULL;
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
    forward(m, &(ol_step){row, tokens, n, seqs, n, logit_rows, m->picks}, &logits);
    for (int i = 0; i < n; i++) {
        sequence *q = order[i];

        if (logits)
            memcpy(q->logits, logits + (size_t)i * (size_t)m->w->s.vocab,
                   (size_t)m->w->s.vocab * sizeof(float));
        for (int r = 0; seqs[i].energy && r < rows[i]; r++)
            for (int k = 0; k < q->n_loras; k++)
                q->energy[k] += seqs[i].energy[r * q->n_loras + k];
        q->length += rows[i];
    }
}

/* -- against the CPU device
 * -------------------------------------------------------------------------- */

static const ol_device_table *cpu_table(void)
{
    const char *dir = getenv("OL_DEVICE_DIR");
    const ol_device_table *t = NULL;

    OK(ol_device_load(dir ? dir : "build", "cpu", &t, &error));
    return t;
}

/* How the CUDA device stores what it gets. */
typedef struct storage {
    ol_dtype dtype, kv;
    ol_quantization quantization;
} storage;

/* How far a row's logits are from those that they should be, by norm. */
static double row_error(const float *got, const float *want, int n)
{
    double sum = 0, norm = 0;

    for (int i = 0; i < n; i++) {
        double d = (double)got[i] - (double)want[i];

        sum += isfinite(d) ? d * d : 1e30;
        norm += (double)want[i] * (double)want[i];
    }
    return sqrt(sum / norm);
}

static int compare_errors(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/*
 * What the models of check_against_cpu are: the device; the CPU device in f32; and that again with
 * pages of bf16, which says what a rounding here and there comes to.
 *
 * That differs much from row to row: where the scores of a random model are steep, and two of them
 * next to each other, a row of a few hundred comes out ten times as far off as the others, whoever
 * computes it. So most rows have to be within the tolerance, and each within what is in proportion
 * to its own rounding.
 */
enum { DEVICE, EXACT, ROUNDED, MODELS };
#define STEPS 4
#define ROUNDINGS 20 /* what the third model does once */

static void check_rows(double (*errors)[2], int n, double tolerance, const char *what)
{
    double sorted[STEPS * MAX_SEQS];

    for (int i = 0; i < n; i++) {
        sorted[i] = errors[i][0];
        if (!(errors[i][0] <= tolerance + ROUNDINGS * errors[i][1]))
            fail_msg("%s: a row's error is %.3g of its norm; where rounding makes %.3g, %.3g are "
                     "admitted",
                     what, errors[i][0], errors[i][1], tolerance + ROUNDINGS * errors[i][1]);
    }
    qsort(sorted, (size_t)n, sizeof(sorted[0]), compare_errors);
    if (!(sorted[n / 2] <= tolerance))
        fail_msg("%s: half of the rows have errors above %.3g of their norms; admitted %.3g", what,
                 sorted[n / 2], tolerance);
}

static void place_requests(const shape *s, sequence seqs[MODELS][MAX_SEQS])
{
    for (int i = 0; i < MAX_SEQS; i++) {
        random_sequence(&seqs[0][i], s, i, i % 4);
        for (int m = 1; m < MODELS; m++) {
            seqs[m][i] = seqs[0][i];
            seqs[m][i].logits = rig_host((size_t)s->vocab * sizeof(float));
        }
    }
}

/* A step of all sequences on all models; the rows' errors. */
static void compare_step(model *models, sequence seqs[MODELS][MAX_SEQS], const int *rows,
                         double (*errors)[2])
{
    int vocab = models->w->s.vocab;

    for (int m = 0; m < MODELS; m++) {
        sequence *order[MAX_SEQS];

        for (int i = 0; i < MAX_SEQS; i++)
            order[i] = &seqs[m][i];
        run(&models[m], order, rows, MAX_SEQS);
    }
    for (int i = 0; i < MAX_SEQS; i++) {
        const float *want = seqs[EXACT][i].logits;

        errors[i][0] = row_error(seqs[DEVICE][i].logits, want, vocab);
        errors[i][1] = row_error(seqs[ROUNDED][i].logits, want, vocab);
    }
}

/* The CPU device has no FP8: it computes with the rounded weights. */
static void check_against_cpu(const shape *s, storage how, double tolerance)
{
    bool fp8 = how.quantization == OL_QUANT_FP8;
    const weights *w = make_weights(s, how.dtype), *plain = plain_weights(w);
    sequence seqs[MODELS][MAX_SEQS];
    double errors[STEPS * MAX_SEQS][2];
    ol_kv_desc rounded = {.n_layers = LAYERS,
                          .n_kv_heads = s->kv_heads,
                          .head_dim = s->dim,
                          .page_tokens = s->page_tokens,
                          .n_pages = PAGES,
                          .dtype = OL_BF16};
    rig_gap energies = {0};
    model models[MODELS];

    open_model(&models[DEVICE], ol_device_entry_point(), w, how.kv, how.quantization);
    open_model(&models[EXACT], cpu_table(), fp8 ? rounded_weights(plain) : plain, OL_F32,
               fp8 ? OL_QUANT_AS_IS : how.quantization);
    for (int i = 0; i < LORAS; i++)
        place_lora(&models[DEVICE], &models[EXACT], i, i % 2 ? OL_F32 : OL_BF16);
    models[ROUNDED] = models[EXACT]; /* on the same device */
    OK(cpu_table()->kv_create(models[EXACT].device, &rounded, &models[ROUNDED].kv, &error));
    place_requests(s, seqs);
    for (int step = 0; step < STEPS; step++) {
        int rows[MAX_SEQS];

        for (int i = 0; i < MAX_SEQS; i++)
            rows[i] = step % 2 ? 1 : 1 + rig_below(30); /* prompts, then a row each */
        compare_step(models, seqs, rows, errors + step * MAX_SEQS);
    }
    for (int i = 0; i < MAX_SEQS; i++)
        for (int k = 0; seqs[0][i].n_loras > 1 && k < seqs[0][i].n_loras; k++)
            rig_compare(&energies, seqs[DEVICE][i].energy[k], seqs[EXACT][i].energy[k]);
    check_rows(errors, STEPS * MAX_SEQS, tolerance, ol_dtype_name(how.dtype));
    rig_check_gap(&energies, 2 * tolerance, "energies, %s", ol_dtype_name(how.dtype));
    cpu_table()->kv_free(models[EXACT].device, models[ROUNDED].kv);
    close_model(&models[DEVICE]);
    close_model(&models[EXACT]);
    rig_free_all();
}

static const shape small = {.hidden = 64,
                            .heads = 4,
                            .kv_heads = 2,
                            .dim = 16,
                            .ffn = 96,
                            .vocab = 50,
                            .rotary = 16,
                            .page_tokens = 16};
static const shape odd = {.hidden = 40,
                          .heads = 5,
                          .kv_heads = 1,
                          .dim = 12,
                          .ffn = 52,
                          .vocab = 37,
                          .rotary = 8,
                          .window = 21,
                          .page_tokens = 32,
                          .interleaved = true,
                          .bias = true,
                          .tied = true};
static const shape wide = {.hidden = 192,
                           .heads = 6,
                           .kv_heads = 2,
                           .dim = 64,
                           .ffn = 320,
                           .vocab = 131,
                           .rotary = 64,
                           .page_tokens = 64,
                           .bias = true,
                           .qk_norm = true};

/* All inputs are whole superblocks. */
static const shape broad = {.hidden = 256,
                            .heads = 4,
                            .kv_heads = 2,
                            .dim = 64,
                            .ffn = 256,
                            .vocab = 70,
                            .rotary = 64,
                            .page_tokens = 16,
                            .tied = true};

static void agrees_with_cpu(void **state)
{
    (void)state;
    check_against_cpu(&small, (storage){OL_BF16, OL_BF16, OL_QUANT_AS_IS}, 2e-2);
    check_against_cpu(&odd, (storage){OL_F32, OL_BF16, OL_QUANT_AS_IS}, 2e-2);
    check_against_cpu(&wide, (storage){OL_F16, OL_BF16, OL_QUANT_AS_IS}, 2e-2);
}

/* Types of blocks keep their numbers; INT8 is each device's own. */
static void agrees_in_blocks(void **state)
{
    (void)state;
    check_against_cpu(&small, (storage){OL_Q8_0, OL_BF16, OL_QUANT_AS_IS}, 2e-2);
    check_against_cpu(&wide, (storage){OL_Q4_0, OL_BF16, OL_QUANT_AS_IS}, 2e-2);
    check_against_cpu(&wide, (storage){OL_BF16, OL_BF16, OL_QUANT_INT8}, 3e-2);
    check_against_cpu(&broad, (storage){OL_Q4_K, OL_BF16, OL_QUANT_AS_IS}, 2e-2);
    check_against_cpu(&broad, (storage){OL_Q6_K, OL_BF16, OL_QUANT_AS_IS}, 3e-2); /* becomes INT8 */
}

/* Of any type as good as that type: what is lost is lost in packing. */
static void agrees_in_fp8(void **state)
{
    (void)state;
    check_against_cpu(&small, (storage){OL_BF16, OL_BF16, OL_QUANT_FP8}, 2e-2);
    check_against_cpu(&odd, (storage){OL_F32, OL_BF16, OL_QUANT_FP8}, 2e-2);
    check_against_cpu(&wide, (storage){OL_Q8_0, OL_BF16, OL_QUANT_FP8}, 2e-2);
}

/* Keys and values of 3 bits' fraction are what the CPU has not. */
static void agrees_with_fp8_pages(void **state)
{
    (void)state;
    check_against_cpu(&small, (storage){OL_BF16, OL_F8E4M3, OL_QUANT_AS_IS}, 0.25);
    check_against_cpu(&odd, (storage){OL_F32, OL_F8E4M3, OL_QUANT_AS_IS}, 0.25);
    check_against_cpu(&wide, (storage){OL_F16, OL_F8E4M3, OL_QUANT_FP8}, 0.25);
}

/* -- of itself
 * ---------------------------------------------------------------------------------------- */

/* The same requests: once in large steps together, once cut up, alone and in another order. */
static void check_same_bits(ol_dtype kv, ol_quantization quantization)
{
    const weights *w = make_weights(&wide, OL_BF16);
    sequence seqs[2][3], *all[3];
    model m;

    open_model(&m, ol_device_entry_point(), w, kv, quantization);
    for (int i = 0; i < LORAS; i++)
        place_lora(&m, NULL, i, OL_BF16);
    for (int i = 0; i < 3; i++) {
        random_sequence(&seqs[0][i], &wide, i, i);
        all[i] = &seqs[0][i];
        seqs[1][i] = seqs[0][i];
        seqs[1][i].logits = rig_host((size_t)wide.vocab * sizeof(float));
        for (int p = 0; p < SEQ_PAGES; p++)
            seqs[1][i].pages[p] = (seqs[0][i].pages[p] + 64) % PAGES;
    }
    run(&m, all, (int[]){70, 33, 90}, 3);
    run(&m, all, (int[]){1, 1, 1}, 3);
    for (int i = 2; i >= 0; i--)
        while (seqs[1][i].length < seqs[0][i].length) {
            int left = seqs[0][i].length - seqs[1][i].length, n = 1 + rig_below(20);

            run(&m, (sequence *[]){&seqs[1][i]}, (int[]){n < left ? n : left}, 1);
        }
    for (int i = 0; i < 3; i++) {
        assert_memory_equal(seqs[0][i].logits, seqs[1][i].logits,
                            (size_t)wide.vocab * sizeof(float));
        for (int k = 0; k < seqs[0][i].n_loras; k++)
            assert_true(seqs[0][i].energy[k] == seqs[1][i].energy[k]);
    }
    close_model(&m);
    rig_free_all();
}

static void same_bits_in_any_step(void **state)
{
    (void)state;
    check_same_bits(OL_BF16, OL_QUANT_AS_IS);
    check_same_bits(OL_F8E4M3, OL_QUANT_FP8);
}

/* -- choosing tokens
 * --------------------------------------------------------------------------------- */

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
                   .given = rig_below(5) ? -1 : rig_below(wide.vocab),
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
    const weights *w = make_weights(&wide, OL_BF16);
    sequence seqs[2][3], *logits[3], *choices[3];
    ol_pick picks[3];
    ol_chooser *chooser;
    model m;

    (void)state;
    OK(ol_chooser_create(wide.vocab, &chooser, &error));
    open_model(&m, ol_device_entry_point(), w, OL_BF16, OL_QUANT_AS_IS);
    for (int i = 0; i < LORAS; i++)
        place_lora(&m, NULL, i, OL_BF16);
    for (int i = 0; i < 3; i++) {
        random_sequence(&seqs[0][i], &wide, i, i);
        logits[i] = &seqs[0][i];
        seqs[1][i] = seqs[0][i];
        choices[2 - i] = &seqs[1][i];
        for (int p = 0; p < SEQ_PAGES; p++)
            seqs[1][i].pages[p] = (seqs[0][i].pages[p] + 64) % PAGES;
    }
    for (size_t step = 0; step < sizeof(rows) / sizeof(rows[0]); step++) {
        const int *n = rows[step];

        for (int i = 0; i < 3; i++)
            random_pick(&picks[i], step >= 2 && step != 4);
        m.picks = NULL;
        run(&m, logits, n, 3);
        m.picks = picks;
        m.choices = NULL;
        run(&m, choices, (int[]){n[2], n[1], n[0]}, 3);
        for (int i = 0; i < 3; i++)
            check_choice(chooser, &picks[2 - i], seqs[0][i].logits, &m.choices[2 - i]);
    }
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < seqs[0][i].n_loras; k++)
            assert_true(seqs[0][i].energy[k] == seqs[1][i].energy[k]);
    ol_chooser_free(chooser);
    close_model(&m);
    rig_free_all();
}

/* A few rows of a sequence are as many rows that go on: a graph, and the bits of a row each. As
 * long as they are not more than a step of all sequences has. */
static void few_rows_go_on(void **state)
{
    const weights *w = make_weights(&wide, OL_BF16);
    size_t bytes = (size_t)wide.vocab * sizeof(float);
    sequence some[2], one[2];
    model m;

    (void)state;
    open_model(&m, ol_device_entry_point(), w, OL_BF16, OL_QUANT_AS_IS);
    for (int i = 0; i < 2; i++) {
        random_sequence(&some[i], &wide, i, 0);
        one[i] = some[i];
        one[i].logits = rig_host(bytes);
        for (int p = 0; p < SEQ_PAGES; p++)
            one[i].pages[p] = (some[i].pages[p] + 64) % PAGES;
    }
    run(&m, (sequence *[]){&some[0], &some[1]}, (int[]){GPU_DECODE_ROWS, 60}, 2);
    assert_int_equal(m.device->sizes.n_decode, GPU_DECODE_ROWS);
    assert_int_equal(m.device->sizes.n_tiles, 1);
    run(&m, (sequence *[]){&some[0], &some[1]}, (int[]){2, GPU_DECODE_ROWS}, 2);
    assert_int_equal(m.device->sizes.n_decode, GPU_DECODE_ROWS + 2);
    assert_int_equal(m.device->sizes.n_tiles, 0);
    for (int i = 0; i < 2; i++) {
        while (one[i].length < some[i].length)
            run(&m, (sequence *[]){&one[i]}, (int[]){1}, 1);
        assert_memory_equal(one[i].logits, some[i].logits, bytes);
    }
    run(&m, (sequence *[]){&some[0], &some[1]}, (int[]){GPU_DECODE_ROWS, GPU_DECODE_ROWS}, 2);
    assert_in_range(m.device->sizes.n_decode, GPU_DECODE_ROWS, MAX_SEQS);
    assert_int_equal(m.device->sizes.n_tiles, 1);
    close_model(&m);
    rig_free_all();
}

static void says_that_nothing_can_be_chosen(void **state)
{
    const weights *w = make_weights(&small, OL_BF16);
    const uint32_t none[2] = {0, 0};
    ol_pick pick = {.given = -1, .top_p = 1, .floor = -INFINITY, .mask = none, .n_mask = 2};
    sequence seq;
    model m;

    (void)state;
    open_model(&m, ol_device_entry_point(), w, OL_BF16, OL_QUANT_AS_IS);
    random_sequence(&seq, &small, 0, 0);
    m.picks = &pick;
    run(&m, (sequence *[]){&seq}, (int[]){20}, 1);
    assert_int_equal(m.choices[0].status, OL_CHOICE_NONE_ALLOWED);
    pick.n_mask = 0;
    run(&m, (sequence *[]){&seq}, (int[]){1}, 1);
    assert_int_equal(m.choices[0].status, OL_CHOICE_MADE);
    close_model(&m);
    rig_free_all();
}

#ifdef OL_SIMT
/* What the device says of the card, opened on one of capability 9. */
static void describe_card(char *to, size_t size, gpu_way *way)
{
    ol_device_options options = {.max_rows = 16, .max_seqs = 2, .max_logit_rows = 2};
    const ol_device_table *t = ol_device_entry_point();
    ol_device_info info;
    ol_device *device;

    simt_settings.capability = 9;
    OK(t->open(&options, &device, &error));
    t->info(device, &info);
    snprintf(to, size, "%s", info.description);
    *way = device->way;
    t->close(device);
    simt_settings.capability = 0;
}

/* Products of groups are used when they round as those of warps, and only then. */
static void groups_are_proven_first(void **state)
{
    char text[256];
    gpu_way way;

    (void)state;
    describe_card(text, sizeof(text), &way);
    assert_non_null(strstr(text, "capability 9.0, wgmma"));
    assert_null(strstr(text, "not used"));
    assert_int_equal(way, GPU_WAY_GROUP);
    simt_settings.group_differs = 1;
    describe_card(text, sizeof(text), &way);
    simt_settings.group_differs = 0;
    assert_non_null(strstr(text, "wgmma not used: it rounds otherwise"));
    assert_int_equal(way, GPU_WAY_WARP);
}

/* A proof that fails costs the card's products of groups, not the card. */
static void a_failed_proof_is_survived(void **state)
{
    char text[256];
    gpu_way way;

    (void)state;
    simt_settings.fail_after = (int)simt_launches + 5;
    describe_card(text, sizeof(text), &way);
    simt_settings.fail_after = -1;
    assert_non_null(strstr(text, "wgmma not used: it failed"));
    assert_int_equal(way, GPU_WAY_WARP);
}

static void measuring_may_choose(void **state)
{
    char text[256];
    gpu_way way;

    (void)state;
    setenv("OL_CUDA_PRODUCT", "mma", 1);
    describe_card(text, sizeof(text), &way);
    assert_null(strstr(text, "wgmma"));
    assert_int_equal(way, GPU_WAY_WARP);
    setenv("OL_CUDA_PRODUCT", "wgmma", 1);
    simt_settings.group_differs = 1;
    describe_card(text, sizeof(text), &way);
    simt_settings.group_differs = 0;
    unsetenv("OL_CUDA_PRODUCT");
    assert_non_null(strstr(text, "wgmma unproven"));
    assert_int_equal(way, GPU_WAY_GROUP);
}

static void same_bits_with_groups(void **state)
{
    unsigned long long before = simt_group_products;

    simt_settings.capability = 9;
    same_bits_in_any_step(state);
    simt_settings.capability = 0;
    assert_true(simt_group_products > before);
}

/* Once its room is there: lists in one copy (members of adapters in another), choices in one, one
 * wait, in a graph or not. */
static void a_step_waits_once(void **state)
{
    static const int rows[][2] = {{20, 1}, {1, 1}, {9, 1}, {1, 1}, {1, 1}};
    const weights *w = make_weights(&small, OL_BF16);
    sequence seqs[2];
    ol_pick picks[2];
    model m;

    (void)state;
    open_model(&m, ol_device_entry_point(), w, OL_BF16, OL_QUANT_AS_IS);
    place_lora(&m, NULL, 0, OL_BF16);
    for (int i = 0; i < 2; i++) {
        random_sequence(&seqs[i], &small, i, 0);
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
        run(&m, (sequence *[]){&seqs[0], &seqs[1]}, rows[step], 2);
        if (step == 0) /* makes room, and has tables to send */
            continue;
        assert_int_equal(simt_counted.copies_in, 1 + adapted);
        assert_int_equal(simt_counted.copies_out, 1);
        assert_int_equal(simt_counted.bytes_out, 2 * sizeof(ol_choice));
        assert_int_equal(simt_counted.waits, 1);
    }
    close_model(&m);
    rig_free_all();
}
#endif

/* Four bits take five, with their scales and offsets, whatever eight are asked for. */
static void four_bits_stay_four(void **state)
{
    ol_tensor t = tensor(OL_Q4_K, 64, 512, 0, 1);
    model m = {.t = ol_device_entry_point()};
    ol_device_options options = {.max_rows = 1, .max_seqs = 1, .max_logit_rows = 1};
    ol_device_info before, with;
    ol_weight *matrix;

    (void)state;
    OK(m.t->open(&options, &m.device, &error));
    m.t->info(m.device, &before);
    matrix = place(&m, &t, OL_WEIGHT_MATRIX, OL_QUANT_INT8);
    m.t->info(m.device, &with);
    assert_int_equal(with.memory_used - before.memory_used, 64 * 512 * 5 / 8);
    m.t->weight_free(m.device, matrix);
    m.t->close(m.device);
    rig_free_all();
}

/* A graph of so many members serves those of higher ranks, too, who need more room. */
static void room_grows_with_ranks(void **state)
{
    const weights *w = make_weights(&small, OL_BF16);
    sequence seq;
    model m;

    (void)state;
    open_model(&m, ol_device_entry_point(), w, OL_BF16, OL_QUANT_AS_IS);
    for (int i = 0; i < LORAS; i++)
        place_lora(&m, NULL, i, OL_BF16);
    random_sequence(&seq, &small, 0, 1);
    for (int i = 0; i < LORAS; i++) { /* the last one's ranks are the highest */
        seq.lora[0] = i;
        run(&m, (sequence *[]){&seq}, (int[]){1}, 1);
        assert_true(m.device->h.bytes >= (size_t)m.device->lists.h_used * sizeof(uint16_t));
    }
    close_model(&m);
    rig_free_all();
}

/* A copied page serves as its original. */
static void check_copies(ol_dtype kv)
{
    const weights *w = make_weights(&small, OL_BF16);
    sequence one, two;
    model m;

    open_model(&m, ol_device_entry_point(), w, kv, OL_QUANT_AS_IS);
    random_sequence(&one, &small, 0, 0);
    two = one;
    two.logits = rig_host((size_t)small.vocab * sizeof(float));
    run(&m, (sequence *[]){&one}, (int[]){20}, 1);
    two.length = 20;
    two.pages[1] = one.pages[1] == 5 ? 6 : 5;
    OK(m.t->kv_copy_page(m.device, m.kv, one.pages[1], two.pages[1], 4, &error));
    run(&m, (sequence *[]){&one}, (int[]){1}, 1);
    run(&m, (sequence *[]){&two}, (int[]){1}, 1);
    assert_memory_equal(one.logits, two.logits, (size_t)small.vocab * sizeof(float));
    close_model(&m);
    rig_free_all();
}

static void copies_pages(void **state)
{
    (void)state;
    check_copies(OL_BF16);
    check_copies(OL_F8E4M3);
}

/* Adapters in pages of a pool, where anything may have lain before: the bits that they have in
 * memory of their own. A page between them serves for keys and values. A fresh pool is not waited
 * for: its zeros must not come after the adapters. */
static void same_bits_in_a_pool(const shape *s, ol_dtype kv, bool fresh)
{
    const weights *w = make_weights(s, OL_BF16);
    sequence seqs[2][MAX_SEQS], *order[2][MAX_SEQS];
    ol_device_info before, after;
    model m[2];

    for (int k = 0; k < 2; k++)
        open_model(&m[k], ol_device_entry_point(), w, kv, OL_QUANT_AS_IS);
    m[1].t->kv_free(m[1].device, m[1].kv);
    m[1].last_page = PAGES + 2048;
    open_pages(&m[1], m[1].last_page, kv);
    if (!fresh) {
        assert_int_equal(
            cudaMemsetAsync(m[1].kv->first.data, 0xFF, m[1].kv->bytes, m[1].device->stream),
            cudaSuccess);
        assert_int_equal(cudaStreamSynchronize(m[1].device->stream), cudaSuccess);
    }
    m[1].t->info(m[1].device, &before);
    for (int i = 0; i < LORAS; i++)
        place_lora(&m[0], &m[1], i, i % 2 ? OL_F32 : OL_BF16);
    m[1].t->info(m[1].device, &after);
    assert_true(after.memory_used == before.memory_used);
    for (int i = 0; i < MAX_SEQS; i++) {
        random_sequence(&seqs[0][i], s, i, i % 4);
        seqs[1][i] = seqs[0][i];
        seqs[1][i].logits = rig_host((size_t)s->vocab * sizeof(float));
        seqs[1][i].pages[0] = m[1].last_page - i; /* where nobody has written */
        order[0][i] = &seqs[0][i];
        order[1][i] = &seqs[1][i];
    }
    for (int step = 0; step < 3; step++) {
        int rows[MAX_SEQS];

        for (int i = 0; i < MAX_SEQS; i++)
            rows[i] = step % 2 ? 1 : 1 + rig_below(30);
        run(&m[0], order[0], rows, MAX_SEQS);
        run(&m[1], order[1], rows, MAX_SEQS);
        for (int i = 0; i < MAX_SEQS; i++) {
            assert_memory_equal(seqs[0][i].logits, seqs[1][i].logits,
                                (size_t)s->vocab * sizeof(float));
            for (int k = 0; k < seqs[0][i].n_loras; k++)
                assert_true(seqs[0][i].energy[k] == seqs[1][i].energy[k]);
        }
    }
    close_model(&m[0]);
    close_model(&m[1]);
    rig_free_all();
}

static void adapters_in_pages(void **state)
{
    (void)state;
    same_bits_in_a_pool(&small, OL_BF16, false); /* a part is larger than a page */
    same_bits_in_a_pool(&odd, OL_BF16, false);
    same_bits_in_a_pool(&wide, OL_BF16, false);
    same_bits_in_a_pool(&odd, OL_F8E4M3, false);
    same_bits_in_a_pool(&small, OL_BF16, true);
}

static void gives_memory_back(void **state)
{
    const weights *w = make_weights(&small, OL_BF16);
    ol_device_info before, with, after;
    model m;

    (void)state;
    open_model(&m, ol_device_entry_point(), w, OL_BF16, OL_QUANT_AS_IS);
    m.t->info(m.device, &before);
    place_lora(&m, NULL, 0, OL_F16);
    m.t->info(m.device, &with);
    assert_true(with.memory_used == before.memory_used + m.t->lora_bytes(m.device, m.loras[0]));
    m.t->lora_free(m.device, m.loras[0]);
    m.loras[0] = NULL;
    m.t->info(m.device, &after);
    assert_true(after.memory_used == before.memory_used);
    close_model(&m);
    rig_free_all();
}

/* Which card this is, and how it multiplies: to be read in a run's log. */
static void says_what_it_uses(void **state)
{
    ol_device_options options = {.max_rows = 16, .max_seqs = 2, .max_logit_rows = 2};
    const ol_device_table *t = ol_device_entry_point();
    ol_device_info info;
    ol_device *device;

    (void)state;
    OK(t->open(&options, &device, &error));
    t->info(device, &info);
    print_message("%s\n", info.description);
    assert_non_null(strstr(info.description, "compute capability"));
    t->close(device);
}

static void refuses_beyond_the_limit(void **state)
{
    ol_device_options options = {
        .max_rows = 16, .max_seqs = 2, .max_logit_rows = 2, .memory_limit = (size_t)1 << 20};
    const ol_device_table *t = ol_device_entry_point();
    ol_kv_desc desc = {2, 2, 64, 16, 4096, OL_BF16, false};
    ol_device *device;
    ol_kv *kv;

    (void)state;
    OK(t->open(&options, &device, &error));
    assert_int_equal(t->kv_create(device, &desc, &kv, &error), OL_NOMEM);
    assert_non_null(strstr(error.detail, "1048576"));
    desc.dtype = OL_F32;
    assert_int_equal(t->kv_create(device, &desc, &kv, &error), OL_UNSUPPORTED);
    t->close(device);
    options.device_index = 900;
    assert_int_equal(t->open(&options, &device, &error), OL_INVALID);
}

static void refuses_what_is_not_finite(void **state)
{
    const weights *w = make_weights(&small, OL_BF16);
    ol_lora_module module = {.module = OL_MOD_V,
                             .rank = 4,
                             .scale = 1,
                             .a = tensor(OL_F32, 4, small.hidden, 0, 1),
                             .b = tensor(OL_F32, out_of(&small, OL_MOD_V), 4, 0, 1)};
    ol_device_info before, after;
    model m;

    (void)state;
    open_model(&m, ol_device_entry_point(), w, OL_BF16, OL_QUANT_AS_IS);
    m.t->info(m.device, &before);
    ((float *)(uintptr_t)module.b.data)[7] = 3.4e38f; /* rounds to infinity */
    assert_int_equal(m.t->lora_create(m.device, &module, 1, &m.loras[0], &error), OL_INVALID);
    m.loras[0] = NULL;
    m.t->info(m.device, &after);
    assert_true(after.memory_used == before.memory_used);
    close_model(&m);
    rig_free_all();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_cpu),
        cmocka_unit_test(agrees_in_blocks),
        cmocka_unit_test(agrees_in_fp8),
        cmocka_unit_test(agrees_with_fp8_pages),
        cmocka_unit_test(same_bits_in_any_step),
        cmocka_unit_test(chooses_as_the_engine),
        cmocka_unit_test(says_that_nothing_can_be_chosen),
        cmocka_unit_test(few_rows_go_on),
        cmocka_unit_test(four_bits_stay_four),
        cmocka_unit_test(room_grows_with_ranks),
        cmocka_unit_test(adapters_in_pages),

#ifdef OL_SIMT
        cmocka_unit_test(a_step_waits_once),
        cmocka_unit_test(groups_are_proven_first),
        cmocka_unit_test(a_failed_proof_is_survived),
        cmocka_unit_test(measuring_may_choose),
        cmocka_unit_test(same_bits_with_groups),
#endif

        cmocka_unit_test(copies_pages),
        cmocka_unit_test(gives_memory_back),
        cmocka_unit_test(says_what_it_uses),
        cmocka_unit_test(refuses_beyond_the_limit),
        cmocka_unit_test(refuses_what_is_not_finite),
    };

    rig_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
