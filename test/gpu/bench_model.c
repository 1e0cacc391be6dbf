/* bench_model.c: a model of random numbers of bench's shape, driven through device.h as the engine
 * drives it. */
#include "bench.h"

#include <math.h>
#include <string.h>

const ol_device_table *ol_device_entry_point(void);

#define PAGE 64
#define TOKENS 256 /* rows of the table of embeddings: few are read */

/* -- shapes ------------------------------------------------------------------------------ */

static int64_t in_of(int m)
{
    return m == OL_MOD_DOWN ? bench.ffn : m == OL_MOD_O ? bench.heads * bench.dim : bench.hidden;
}

static int64_t out_of(int m)
{
    if (m == OL_MOD_GATE || m == OL_MOD_UP)
        return bench.ffn;
    if (m == OL_MOD_K || m == OL_MOD_V)
        return bench.kv_heads * bench.dim;
    return m == OL_MOD_Q ? bench.heads * bench.dim : bench.hidden;
}

double bench_parameters(void)
{
    double n = 0;

    for (int m = 0; m < OL_MODULES; m++)
        n += (double)in_of(m) * (double)out_of(m);
    return n * bench.layers;
}

double bench_head_parameters(void)
{
    return (double)bench.hidden * bench.vocab;
}

/* -- placing it ------------------------------------------------------------------------------ */

static ol_tensor tensor(int64_t rows, int64_t cols)
{
    size_t n = (size_t)(rows * cols);

    return (ol_tensor){"random", OL_BF16, 2, {rows, cols}, (const uint8_t *)bench_numbers(n),
                       2 * n};
}

static ol_weight *place(bench_model *m, int64_t rows, int64_t cols, int use, ol_quantization how)
{
    ol_weight_desc desc = {.tensor = tensor(rows, cols), .quantization = how};
    ol_weight *w = NULL;

    desc.use = use;
    if (use == OL_WEIGHT_VECTOR) {
        desc.tensor.n_dims = 1;
        desc.tensor.shape[0] = cols;
    }
    OK(m->t->weight_create(m->device, &desc, &w, &bench_error));
    return w;
}

static void place_layer(bench_model *m, int l, ol_quantization how)
{
    m->layer[l] = (ol_layer){.index = l,
                             .attn_norm = m->norm,
                             .mlp_norm = m->norm,
                             .attention = {.n_heads = bench.heads,
                                           .n_kv_heads = bench.kv_heads,
                                           .head_dim = bench.dim,
                                           .scale = 0.088388f,
                                           .rotary_dims = bench.dim,
                                           .inv_freq = m->inv_freq,
                                           .rope_factor = 1,
                                           .norm_eps = 1e-5f}};
    for (int i = 0; i < OL_MODULES; i++)
        m->layer[l].linear[i] = place(m, out_of(i), in_of(i), OL_WEIGHT_MATRIX, how);
}

static int pages_of(int tokens)
{
    return (tokens + PAGE - 1) / PAGE;
}

void bench_open(bench_model *m, ol_quantization how)
{
    int seqs = bench.batch * pages_of(bench.past + 1), alone = pages_of(bench.long_past + 1);
    int prompt = pages_of(bench.prefill), most = seqs > alone ? seqs : alone;
    ol_device_options options = {.max_rows =
                                     bench.prefill > bench.batch ? bench.prefill : bench.batch,
                                 .max_seqs = bench.batch,
                                 .max_logit_rows = bench.batch};
    ol_kv_desc kv = {.n_layers = bench.layers,
                     .n_kv_heads = bench.kv_heads,
                     .head_dim = bench.dim,
                     .page_tokens = PAGE,
                     .n_pages = most > prompt ? most : prompt,
                     .dtype = OL_BF16};

    memset(m, 0, sizeof(*m));
    m->t = ol_device_entry_point();
    m->layer = calloc((size_t)bench.layers, sizeof(ol_layer));
    m->inv_freq = calloc((size_t)bench.dim / 2, sizeof(float));
    if (!m->layer || !m->inv_freq)
        bench_die("a model", "no memory");
    bench_numbers((size_t)bench.hidden * (size_t)bench.vocab); /* the largest one */
    OK(m->t->open(&options, &m->device, &bench_error));
    for (int i = 0; i < bench.dim / 2; i++)
        m->inv_freq[i] = 1.0f / (float)(1 + i * i);
    m->embedding = place(m, TOKENS, bench.hidden, OL_WEIGHT_EMBEDDING, OL_QUANT_AS_IS);
    m->norm = place(m, 1, bench.hidden, OL_WEIGHT_VECTOR, OL_QUANT_AS_IS);
    m->head = place(m, bench.vocab, bench.hidden, OL_WEIGHT_MATRIX, how);
    for (int l = 0; l < bench.layers; l++)
        place_layer(m, l, how);
    OK(m->t->kv_create(m->device, &kv, &m->kv, &bench_error));
    OK(m->t->buffer_create(m->device, bench.hidden, &m->x, &bench_error));
    OK(m->t->buffer_create(m->device, bench.hidden, &m->y, &bench_error));
    OK(m->t->buffer_create(m->device, bench.heads * bench.dim, &m->q, &bench_error));
    OK(m->t->buffer_create(m->device, bench.heads * bench.dim, &m->o, &bench_error));
}

void bench_close(bench_model *m)
{
    m->t->buffer_free(m->device, m->x);
    m->t->buffer_free(m->device, m->y);
    m->t->buffer_free(m->device, m->q);
    m->t->buffer_free(m->device, m->o);
    m->t->kv_free(m->device, m->kv);
    for (int l = 0; l < bench.layers; l++)
        for (int i = 0; i < OL_MODULES; i++)
            m->t->weight_free(m->device, m->layer[l].linear[i]);
    m->t->weight_free(m->device, m->embedding);
    m->t->weight_free(m->device, m->head);
    m->t->weight_free(m->device, m->norm);
    m->t->close(m->device);
    free(m->layer);
    free(m->inv_freq);
}

ol_lora *bench_lora(bench_model *m, int rank)
{
    ol_lora_module *modules = calloc((size_t)bench.layers * OL_MODULES, sizeof(*modules));
    ol_lora *lora = NULL;
    int n = 0;

    if (!modules)
        bench_die("an adapter", "no memory");
    for (int l = 0; l < bench.layers; l++)
        for (int i = 0; i < OL_MODULES; i++)
            modules[n++] = (ol_lora_module){.layer = l,
                                            .module = (ol_module)i,
                                            .rank = rank,
                                            .scale = 1,
                                            .a = tensor(rank, in_of(i)),
                                            .b = tensor(out_of(i), rank)};
    OK(m->t->lora_create(m->device, modules, n, &lora, &bench_error));
    free(modules);
    return lora;
}

/* -- a step ----------------------------------------------------------------------------------- */

static void forward(bench_model *m, const ol_step *step)
{
    const ol_device_table *t = m->t;
    const ol_choice *choices;

    OK(t->step_begin(m->device, step, &bench_error));
    OK(t->embed(m->device, m->embedding, m->x, &bench_error));
    for (int l = 0; l < bench.layers; l++) {
        const ol_layer *layer = &m->layer[l];

        OK(t->rms_norm(m->device, m->x, layer->attn_norm, 1e-5f, m->y, &bench_error));
        OK(t->qkv(m->device, layer, m->y, m->kv, m->q, &bench_error));
        OK(t->attention(m->device, layer, m->q, m->kv, m->o, &bench_error));
        OK(t->attention_out(m->device, layer, m->o, m->x, &bench_error));
        OK(t->rms_norm(m->device, m->x, layer->mlp_norm, 1e-5f, m->y, &bench_error));
        OK(t->mlp(m->device, layer, m->y, m->x, &bench_error));
    }
    OK(t->choose(m->device, m->x, m->norm, 1e-5f, m->head, &choices, &bench_error));
    OK(t->step_end(m->device, &bench_error));
}

static void *room(size_t n, size_t size)
{
    void *p = calloc(n, size);

    if (!p)
        bench_die("a step", "no memory");
    return p;
}

void bench_step(bench_model *m, const bench_load *l)
{
    size_t n = (size_t)l->n_seqs, rows = n * (size_t)l->n_rows;
    int each = pages_of(l->past + l->n_rows);
    int32_t *tokens = room(rows, sizeof(*tokens)), *logit_rows = room(n, sizeof(*logit_rows));
    int32_t *pages = room(n * (size_t)each, sizeof(*pages));
    ol_step_seq *seqs = room(n, sizeof(*seqs));
    ol_lora_ref *refs = room(n, sizeof(*refs));
    ol_pick *picks = room(n, sizeof(*picks));

    for (int i = 0; i < l->n_seqs * each; i++)
        pages[i] = i;
    for (size_t i = 0; i < rows; i++)
        tokens[i] = (int32_t)(i * 37 % TOKENS);
    for (int s = 0; s < l->n_seqs; s++) {
        if (l->loras)
            refs[s] = (ol_lora_ref){l->loras[s], 1};
        seqs[s] = (ol_step_seq){.first_row = s * l->n_rows,
                                .n_rows = l->n_rows,
                                .first_pos = l->past,
                                .pages = pages + s * each,
                                .n_loras = l->loras ? 1 : 0,
                                .loras = &refs[s]};
        logit_rows[s] = (s + 1) * l->n_rows - 1;
        picks[s] = (ol_pick){.seed = (uint64_t)s,
                             .given = -1,
                             .temperature = 0.8f,
                             .top_k = 40,
                             .top_p = 0.95f,
                             .floor = -INFINITY,
                             .repetition = 1,
                             .logprobs = -1};
    }
    forward(m, &(ol_step){.n_rows = (int)rows,
                          .tokens = tokens,
                          .n_seqs = l->n_seqs,
                          .seqs = seqs,
                          .n_logit_rows = l->n_seqs,
                          .logit_rows = logit_rows,
                          .picks = picks});
    free(tokens), free(logit_rows), free(pages), free(seqs), free(refs), free(picks);
}

double bench_step_time(bench_model *m, const bench_load *load)
{
    double t[64];

    for (int i = -3; i < bench.repeat; i++) {
        double from = bench_now();

        bench_step(m, load);
        t[i < 0 ? 0 : i] = bench_now() - from;
    }
    return bench_median(t, bench.repeat);
}
