/* model.c: see model.h. */
#include "engine/model.h"

#include <math.h>
#include <stdlib.h>

struct ol_model {
    const ol_device_table *table;
    ol_device *device;
    ol_model_config config;
    ol_weight *embed, *head, *final_norm; /* head == embed when tied */
    ol_layer *layers;
    float inv_freq[OL_MAX_HEAD_DIM / 2];
    ol_buffer *x, *y; /* the residual stream; its normalised form */
    ol_buffer *q, *o; /* all query heads of a row; what they gathered */
};

/* -- loading --------------------------------------------------------------------- */

typedef struct loader {
    ol_model_source *source;
    const ol_model_options *options;
    ol_model *model;
    size_t done, total;
} loader;

static int weight_use(const ol_model_config *config, int role)
{
    switch (role) {
    case OL_ROLE_EMBED:
        return config->tie_embeddings ? OL_WEIGHT_EMBEDDING_AND_HEAD : OL_WEIGHT_EMBEDDING;
    case OL_ROLE_HEAD:
        return OL_WEIGHT_MATRIX;
    default:
        return role >= OL_ROLE_LINEAR && role < OL_ROLE_BIAS ? OL_WEIGHT_MATRIX : OL_WEIGHT_VECTOR;
    }
}

/* Leaves *weight NULL when the model has no such tensor. */
static ol_code place(loader *l, int role, int layer, ol_weight **weight, ol_error *err)
{
    const ol_model_config *config = &l->model->config;
    ol_weight_desc desc = {.quantization = l->options->quantization, .keep = true};

    if (!ol_role_present(config, role))
        return OL_OK;
    OL_TRY(ol_model_source_tensor(l->source, role, layer, &desc.tensor, err));
    desc.use = weight_use(config, role);
    if (l->model->table->weight_create(l->model->device, &desc, weight, err) != OL_OK)
        return ol_prefix(err, "loading tensor \"%s\"", desc.tensor.name);
    l->done += desc.tensor.bytes;
    if (l->options->progress)
        l->options->progress(l->options->progress_context, l->done, l->total);
    return OL_OK;
}

static ol_attention attention_of(const ol_model *model, int layer, float rope_factor)
{
    const ol_model_config *c = &model->config;

    return (ol_attention){
        .n_heads = c->n_heads,
        .n_kv_heads = c->n_kv_heads,
        .head_dim = c->head_dim,
        .scale = 1.0f / sqrtf((float)c->head_dim),
        .window = c->window[layer],
        .rope_interleaved = c->rope.interleaved,
        .rotary_dims = c->rope.dims,
        .inv_freq = model->inv_freq,
        .rope_factor = rope_factor,
        .norm_eps = c->norm_eps,
    };
}

static ol_code place_layer(loader *l, int index, float rope_factor, ol_error *err)
{
    ol_layer *layer = &l->model->layers[index];

    layer->index = index;
    layer->attention = attention_of(l->model, index, rope_factor);
    OL_TRY(place(l, OL_ROLE_ATTN_NORM, index, &layer->attn_norm, err));
    OL_TRY(place(l, OL_ROLE_MLP_NORM, index, &layer->mlp_norm, err));
    OL_TRY(place(l, OL_ROLE_Q_NORM, index, &layer->q_norm, err));
    OL_TRY(place(l, OL_ROLE_K_NORM, index, &layer->k_norm, err));
    for (int m = 0; m < OL_MODULES; m++) {
        OL_TRY(place(l, OL_ROLE_LINEAR + m, index, &layer->linear[m], err));
        OL_TRY(place(l, OL_ROLE_BIAS + m, index, &layer->bias[m], err));
    }
    return OL_OK;
}

static ol_code place_weights(loader *l, ol_error *err)
{
    ol_model *model = l->model;
    float rope_factor = ol_rope_frequencies(&model->config, model->inv_freq);

    OL_TRY(place(l, OL_ROLE_EMBED, 0, &model->embed, err));
    OL_TRY(place(l, OL_ROLE_FINAL_NORM, 0, &model->final_norm, err));
    if (model->config.tie_embeddings)
        model->head = model->embed;
    else
        OL_TRY(place(l, OL_ROLE_HEAD, 0, &model->head, err));
    for (int i = 0; i < model->config.n_layers; i++)
        OL_TRY(place_layer(l, i, rope_factor, err));
    return OL_OK;
}

static ol_code make_buffers(ol_model *model, ol_error *err)
{
    const ol_device_table *t = model->table;
    int64_t hidden = model->config.hidden;
    int64_t heads = (int64_t)model->config.n_heads * model->config.head_dim;

    OL_TRY(t->buffer_create(model->device, hidden, &model->x, err));
    OL_TRY(t->buffer_create(model->device, hidden, &model->y, err));
    OL_TRY(t->buffer_create(model->device, heads, &model->q, err));
    return t->buffer_create(model->device, heads, &model->o, err);
}

ol_code ol_model_load(ol_model_source *source, const ol_model_options *options, ol_model **out,
                      ol_error *err)
{
    ol_model *model = calloc(1, sizeof(*model));
    loader l = {.source = source,
                .options = options,
                .model = model,
                .total = ol_model_source_bytes(source)};

    if (!model)
        return ol_fail_nomem(err, sizeof(*model), "the model");
    model->table = options->table;
    model->device = options->device;
    model->config = *ol_model_source_config(source);
    model->layers = calloc((size_t)model->config.n_layers, sizeof(ol_layer));
    if (!model->layers)
        ol_fail_nomem(err, (size_t)model->config.n_layers * sizeof(ol_layer), "the model's layers");
    else if (ol_model_source_check(source, NULL, NULL, err) == OL_OK &&
             place_weights(&l, err) == OL_OK && make_buffers(model, err) == OL_OK) {
        *out = model;
        return OL_OK;
    }
    ol_model_free(model);
    return err->code;
}

static void free_weight(const ol_model *model, ol_weight *weight)
{
    if (weight)
        model->table->weight_free(model->device, weight);
}

static void free_buffer(const ol_model *model, ol_buffer *buffer)
{
    if (buffer)
        model->table->buffer_free(model->device, buffer);
}

static void free_layer(const ol_model *model, ol_layer *layer)
{
    free_weight(model, layer->attn_norm);
    free_weight(model, layer->mlp_norm);
    free_weight(model, layer->q_norm);
    free_weight(model, layer->k_norm);
    for (int m = 0; m < OL_MODULES; m++) {
        free_weight(model, layer->linear[m]);
        free_weight(model, layer->bias[m]);
    }
}

void ol_model_free(ol_model *model)
{
    if (!model)
        return;
    free_buffer(model, model->x);
    free_buffer(model, model->y);
    free_buffer(model, model->q);
    free_buffer(model, model->o);
    for (int i = 0; model->layers && i < model->config.n_layers; i++)
        free_layer(model, &model->layers[i]);
    if (model->head != model->embed)
        free_weight(model, model->head);
    free_weight(model, model->embed);
    free_weight(model, model->final_norm);
    free(model->layers);
    free(model);
}

const ol_model_config *ol_model_config_of(const ol_model *model)
{
    return &model->config;
}

/* -- the forward pass -------------------------------------------------------------- */

static ol_code run_layer(ol_model *m, const ol_layer *layer, ol_kv *kv, ol_error *err)
{
    const ol_device_table *t = m->table;
    float eps = m->config.norm_eps;

    OL_TRY(t->rms_norm(m->device, m->x, layer->attn_norm, eps, m->y, err));
    OL_TRY(t->qkv(m->device, layer, m->y, kv, m->q, err));
    OL_TRY(t->attention(m->device, layer, m->q, kv, m->o, err));
    OL_TRY(t->attention_out(m->device, layer, m->o, m->x, err));
    OL_TRY(t->rms_norm(m->device, m->x, layer->mlp_norm, eps, m->y, err));
    return t->mlp(m->device, layer, m->y, m->x, err);
}

static ol_code run_head(ol_model *m, const ol_step *step, ol_model_output *output, ol_error *err)
{
    float eps = m->config.norm_eps;

    if (step->picks)
        return m->table->choose(m->device, m->x, m->final_norm, eps, m->head, &output->choices,
                                err);
    return m->table->logits(m->device, m->x, m->final_norm, eps, m->head, &output->logits, err);
}

ol_code ol_model_forward(ol_model *m, const ol_step *step, ol_kv *kv, ol_model_output *output,
                         ol_error *err)
{
    const ol_device_table *t = m->table;

    *output = (ol_model_output){0};
    OL_TRY(t->step_begin(m->device, step, err));
    OL_TRY(t->embed(m->device, m->embed, m->x, err));
    for (int i = 0; i < m->config.n_layers; i++)
        OL_TRY(run_layer(m, &m->layers[i], kv, err));
    if (step->n_logit_rows)
        OL_TRY(run_head(m, step, output, err));
    return t->step_end(m->device, err);
}
