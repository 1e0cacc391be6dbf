/* bench_model.c: a model of random numbers of bench's shape, driven through device.h as the engine
 * drives it. */
#include "bench.h"

#include <math.h>
#include <string.h>

#define PAGE 64
#define TOKENS 256 /* rows of the table of embeddings: few are read */

/* -- shapes ------------------------------------------------------------------------------ */

static stack_shape shape(void)
{
    return (stack_shape){.layers = bench.layers,
                         .hidden = bench.hidden,
                         .heads = bench.heads,
                         .kv_heads = bench.kv_heads,
                         .dim = bench.dim,
                         .ffn = bench.ffn,
                         .vocab = bench.vocab,
                         .rotary = bench.dim,
                         .page_tokens = PAGE};
}

double bench_parameters(void)
{
    stack_shape s = shape();
    double n = 0;

    for (int m = 0; m < OL_MODULES; m++)
        n += (double)stack_in(&s, m) * (double)stack_out(&s, m);
    return n * bench.layers;
}

double bench_head_parameters(void)
{
    return (double)bench.hidden * bench.vocab;
}

/* -- placing it ------------------------------------------------------------------------------ */

static ol_tensor tensor_at(const void *at, int64_t rows, int64_t cols)
{
    return (ol_tensor){"random", OL_BF16, 2, {rows, cols}, at, 2 * (size_t)(rows * cols)};
}

static ol_tensor tensor(int64_t rows, int64_t cols)
{
    return tensor_at(bench_numbers((size_t)(rows * cols)), rows, cols);
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
    OK(m->on.t->weight_create(m->on.device, &desc, &w, &bench_error));
    return w;
}

static void place_layer(bench_model *m, int l, ol_quantization how)
{
    const stack_shape *s = &m->on.s;
    ol_layer *layer = &m->on.layers[l];

    *layer = (ol_layer){.index = l,
                        .attn_norm = m->on.norm,
                        .mlp_norm = m->on.norm,
                        .attention = stack_attention(s, m->inv_freq)};
    for (int i = 0; i < OL_MODULES; i++)
        layer->linear[i] = place(m, stack_out(s, i), stack_in(s, i), OL_WEIGHT_MATRIX, how);
}

static int pages_of(int tokens)
{
    return (tokens + PAGE - 1) / PAGE;
}

/* Pages for the largest of the loads. */
static int most_pages(void)
{
    int seqs = bench.batch * pages_of(bench.past + 1), alone = pages_of(bench.long_past + 1);
    int prompt = pages_of(bench.prefill), most = seqs > alone ? seqs : alone;

    return most > prompt ? most : prompt;
}

void bench_open(bench_model *m, ol_quantization how)
{
    bench_open_with(m, how, OL_QUANT_AS_IS);
}

void bench_open_with(bench_model *m, ol_quantization how, ol_quantization adapters)
{
    ol_device_options options = {.max_rows =
                                     bench.prefill > bench.batch ? bench.prefill : bench.batch,
                                 .max_seqs = bench.batch,
                                 .max_logit_rows = bench.batch,
                                 .adapters = adapters};
    stack *on = &m->on;

    *m = (bench_model){.on = {.t = ol_device_entry_point(), .s = shape()}};
    on->layers = calloc((size_t)bench.layers, sizeof(ol_layer));
    m->inv_freq = calloc((size_t)bench.dim / 2, sizeof(float));
    if (!on->layers || !m->inv_freq)
        bench_die("a model", "no memory");
    bench_numbers((size_t)bench.hidden * (size_t)bench.vocab); /* the largest one */
    OK(on->t->open(&options, &on->device, &bench_error));
    for (int i = 0; i < bench.dim / 2; i++)
        m->inv_freq[i] = 1.0f / (float)(1 + i * i);
    on->embedding = place(m, TOKENS, bench.hidden, OL_WEIGHT_EMBEDDING, OL_QUANT_AS_IS);
    on->norm = place(m, 1, bench.hidden, OL_WEIGHT_VECTOR, OL_QUANT_AS_IS);
    on->head = place(m, bench.vocab, bench.hidden, OL_WEIGHT_MATRIX, how);
    for (int l = 0; l < bench.layers; l++)
        place_layer(m, l, how);
    OK(stack_open_pages(on, most_pages(), OL_BF16, false, &bench_error));
    OK(stack_open_buffers(on, &bench_error));
}

void bench_close(bench_model *m)
{
    stack_close(&m->on);
    free(m->on.layers);
    free(m->inv_freq);
}

size_t bench_lora_bytes(int rank)
{
    stack_shape s = shape();
    size_t n = 0;

    for (int m = 0; m < OL_MODULES; m++)
        n += 2 * (size_t)rank * (size_t)(stack_in(&s, m) + stack_out(&s, m));
    return n * (size_t)bench.layers;
}

/* The next matrix of *at, which may have none. */
static ol_tensor next_tensor(const uint8_t **at, int64_t rows, int64_t cols)
{
    ol_tensor t = *at ? tensor_at(*at, rows, cols) : tensor(rows, cols);

    if (*at)
        *at += t.bytes;
    return t;
}

ol_lora *bench_lora(bench_model *m, int rank, const void *bytes)
{
    const uint8_t *at = bytes;
    const stack_shape *s = &m->on.s;
    ol_lora_module *modules = calloc((size_t)bench.layers * OL_MODULES, sizeof(*modules));
    ol_lora *lora = NULL;
    int n = 0;

    if (!modules)
        bench_die("an adapter", "no memory");
    for (int l = 0; l < bench.layers; l++)
        for (int i = 0; i < OL_MODULES; i++) {
            ol_lora_module *module = &modules[n++];

            *module =
                (ol_lora_module){.layer = l, .module = (ol_module)i, .rank = rank, .scale = 1};
            module->a = next_tensor(&at, rank, stack_in(s, i));
            module->b = next_tensor(&at, stack_out(s, i), rank);
        }
    OK(m->on.t->lora_create(m->on.device, modules, n, &lora, &bench_error));
    free(modules);
    return lora;
}

/* -- a step ----------------------------------------------------------------------------------- */

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
    stack_result result;

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
    OK(stack_forward(&m->on,
                     &(ol_step){.n_rows = (int)rows,
                                .tokens = tokens,
                                .n_seqs = l->n_seqs,
                                .seqs = seqs,
                                .n_logit_rows = l->n_seqs,
                                .logit_rows = logit_rows,
                                .picks = picks},
                     &result, &bench_error));
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
