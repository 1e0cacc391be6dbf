/* model.c: a random model on a device: see model.h. */
#include "model.h"

#include "kernels/core.h"

#include <math.h>

ol_error model_error;

void model_ok(ol_code code, const char *what, const char *file, int line)
{
    if (code == OL_OK)
        return;
    print_error("%s: %s (%s)\n", what, model_error.message, model_error.detail);
    _fail(file, line);
}

/* -- weights and pages ------------------------------------------------------------------------ */

ol_weight *model_place(model *m, const ol_tensor *t, int use, ol_quantization quantization)
{
    ol_weight_desc desc = {.tensor = *t, .quantization = quantization, .keep = true};
    ol_weight *w = NULL;

    if (!t->data)
        return NULL;
    desc.use = use;
    OK(m->on.t->weight_create(m->on.device, &desc, &w, &model_error));
    return w;
}

static ol_weight *place_vector(model *m, const ol_tensor *t)
{
    return model_place(m, t, OL_WEIGHT_VECTOR, OL_QUANT_AS_IS);
}

static void place_layer(model *m, int l, ol_quantization quantization)
{
    const weights *w = m->w;
    ol_layer *layer = &m->layers[l];

    *layer = (ol_layer){.index = l, .attention = stack_attention(&w->s, w->inv_freq)};
    layer->attention.rope_factor = 1.1f;
    for (int i = 0; i < OL_MODULES; i++) {
        layer->linear[i] = model_place(m, &w->linear[l][i], OL_WEIGHT_MATRIX, quantization);
        layer->bias[i] = place_vector(m, &w->bias[l][i]);
    }
    layer->attn_norm = place_vector(m, &w->norms[l][0]);
    layer->mlp_norm = place_vector(m, &w->norms[l][1]);
    layer->q_norm = place_vector(m, &w->norms[l][2]);
    layer->k_norm = place_vector(m, &w->norms[l][3]);
}

void model_open_pages(model *m, int n_pages, ol_dtype kv)
{
    OK(stack_open_pages(&m->on, n_pages, kv, n_pages > PAGES, &model_error));
}

void model_open(model *m, const ol_device_table *t, const weights *w, storage how)
{
    int use = w->s.tied ? OL_WEIGHT_EMBEDDING_AND_HEAD : OL_WEIGHT_EMBEDDING;
    ol_device_options options = {.threads = 1,
                                 .max_rows = MAX_ROWS,
                                 .max_seqs = MAX_SEQS,
                                 .max_logit_rows = MAX_ROWS,
                                 .adapters = how.adapters};
    stack *on = &m->on;

    *m = (model){.on = {.t = t, .s = w->s, .layers = m->layers}, .w = w};
    OK(t->open(&options, &on->device, &model_error));
    on->embedding = model_place(m, &w->embedding, use, how.quantization);
    on->head =
        w->s.tied ? on->embedding : model_place(m, &w->head, OL_WEIGHT_MATRIX, how.quantization);
    on->norm = place_vector(m, &w->norm);
    for (int l = 0; l < LAYERS; l++)
        place_layer(m, l, how.quantization);
    model_open_pages(m, PAGES, how.kv);
    OK(stack_open_buffers(on, &model_error));
}

void model_open_plain(model *m, const weights *w)
{
    model_open(m, ol_device_entry_point(), w, (storage){.kv = OL_BF16});
}

void model_close(model *m)
{
    for (int i = 0; i < LORAS; i++)
        m->on.t->lora_free(m->on.device, m->loras[i]);
    stack_close(&m->on);
}

/* -- adapters --------------------------------------------------------------------------------- */

/* From the last page down, with a page before each run that is nobody's. */
static void place_in_pool(model *m, const ol_lora_module *modules, int n, ol_lora **lora)
{
    size_t page_bytes = m->on.kv->page_bytes;
    ol_lora_need need;
    int32_t *runs;

    OK(m->on.t->lora_need(m->on.device, m->on.kv, modules, n, &need, &model_error));
    runs = rig_host((size_t)need.n_runs * sizeof(*runs));
    for (int i = 0; i < need.n_runs; i++) {
        m->last_page -= need.run;
        runs[i] = m->last_page--;
    }
    assert_true(m->last_page > PAGES);
    OK(m->on.t->lora_create_in(m->on.device, m->on.kv, runs, modules, n, lora, &model_error));
    assert_int_equal(m->on.t->lora_bytes(m->on.device, *lora),
                     (size_t)need.n_runs * (size_t)need.run * page_bytes);
}

void model_place_lora(model *a, model *b, int at, ol_dtype dtype)
{
    const stack_shape *s = &a->w->s;
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
                .a = weights_tensor(dtype, rank, stack_in(s, m), 0,
                                    1.7 / sqrt((double)stack_in(s, m))),
                .b = weights_tensor(dtype, stack_out(s, m), rank, 0, 0.8 / sqrt((double)rank))};
        }
    OK(a->on.t->lora_create(a->on.device, modules, n, &a->loras[at], &model_error));
    if (b && b->last_page)
        place_in_pool(b, modules, n, &b->loras[at]);
    else if (b)
        OK(b->on.t->lora_create(b->on.device, modules, n, &b->loras[at], &model_error));
}
