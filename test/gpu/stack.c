/* stack.c: see stack.h. */
#include "stack.h"

#include <math.h>

int64_t stack_in(const stack_shape *s, int m)
{
    return m == OL_MOD_O ? s->heads * s->dim : m == OL_MOD_DOWN ? s->ffn : s->hidden;
}

int64_t stack_out(const stack_shape *s, int m)
{
    if (m == OL_MOD_Q)
        return s->heads * s->dim;
    if (m == OL_MOD_K || m == OL_MOD_V)
        return s->kv_heads * s->dim;
    return m == OL_MOD_GATE || m == OL_MOD_UP ? s->ffn : s->hidden;
}

ol_attention stack_attention(const stack_shape *s, const float *inv_freq)
{
    return (ol_attention){.n_heads = s->heads,
                          .n_kv_heads = s->kv_heads,
                          .head_dim = s->dim,
                          .scale = 1.0f / sqrtf((float)s->dim),
                          .window = s->window,
                          .rope_interleaved = s->interleaved,
                          .rotary_dims = s->rotary,
                          .inv_freq = inv_freq,
                          .rope_factor = 1,
                          .norm_eps = 1e-5f};
}

/* -- opening and closing ---------------------------------------------------------------------- */

ol_code stack_open_pages(stack *m, int n_pages, ol_dtype dtype, bool pool, ol_error *err)
{
    ol_kv_desc desc = {.n_layers = m->s.layers,
                       .n_kv_heads = m->s.kv_heads,
                       .head_dim = m->s.dim,
                       .page_tokens = m->s.page_tokens,
                       .n_pages = n_pages,
                       .dtype = dtype,
                       .pool = pool};

    return m->t->kv_create(m->device, &desc, &m->kv, err);
}

ol_code stack_open_buffers(stack *m, ol_error *err)
{
    OL_TRY(m->t->buffer_create(m->device, m->s.hidden, &m->x, err));
    OL_TRY(m->t->buffer_create(m->device, m->s.hidden, &m->y, err));
    OL_TRY(m->t->buffer_create(m->device, m->s.heads * m->s.dim, &m->q, err));
    return m->t->buffer_create(m->device, m->s.heads * m->s.dim, &m->o, err);
}

/* Those of the whole model are freed once, by stack_close. */
static void free_weight(const stack *m, ol_weight *w)
{
    if (w && w != m->norm)
        m->t->weight_free(m->device, w);
}

static void free_layer(const stack *m, const ol_layer *layer)
{
    for (int i = 0; i < OL_MODULES; i++) {
        free_weight(m, layer->linear[i]);
        free_weight(m, layer->bias[i]);
    }
    free_weight(m, layer->attn_norm);
    free_weight(m, layer->mlp_norm);
    free_weight(m, layer->q_norm);
    free_weight(m, layer->k_norm);
}

void stack_close(stack *m)
{
    m->t->buffer_free(m->device, m->x);
    m->t->buffer_free(m->device, m->y);
    m->t->buffer_free(m->device, m->q);
    m->t->buffer_free(m->device, m->o);
    m->t->kv_free(m->device, m->kv);
    for (int l = 0; l < m->s.layers; l++)
        free_layer(m, &m->layers[l]);
    if (m->head != m->embedding)
        m->t->weight_free(m->device, m->head);
    m->t->weight_free(m->device, m->embedding);
    m->t->weight_free(m->device, m->norm);
    m->t->close(m->device);
}

/* -- a step ----------------------------------------------------------------------------------- */

#define EPS 1e-5f

static ol_code run_layer(const stack *m, const ol_layer *layer, ol_error *err)
{
    const ol_device_table *t = m->t;

    OL_TRY(t->rms_norm(m->device, m->x, layer->attn_norm, EPS, m->y, err));
    OL_TRY(t->qkv(m->device, layer, m->y, m->kv, m->q, err));
    OL_TRY(t->attention(m->device, layer, m->q, m->kv, m->o, err));
    OL_TRY(t->attention_out(m->device, layer, m->o, m->x, err));
    OL_TRY(t->rms_norm(m->device, m->x, layer->mlp_norm, EPS, m->y, err));
    return t->mlp(m->device, layer, m->y, m->x, err);
}

ol_code stack_forward(const stack *m, const ol_step *step, stack_result *result, ol_error *err)
{
    const ol_device_table *t = m->t;

    *result = (stack_result){0};
    OL_TRY(t->step_begin(m->device, step, err));
    OL_TRY(t->embed(m->device, m->embedding, m->x, err));
    for (int l = 0; l < m->s.layers; l++)
        OL_TRY(run_layer(m, &m->layers[l], err));
    if (step->picks)
        OL_TRY(t->choose(m->device, m->x, m->norm, EPS, m->head, &result->choices, err));
    else
        OL_TRY(t->logits(m->device, m->x, m->norm, EPS, m->head, &result->logits, err));
    return t->step_end(m->device, err);
}
