/* ops.c: the operations of a step. Each is noted when the engine asks for it and launched with all
 * others when the engine wants to see something: so that room is made before the first launch, and
 * a graph can stand for all of them. */
#include "kernels/core.h"

#include <stdlib.h>
#include <string.h>

/* -- noting --------------------------------------------------------------------------------- */

ol_code gpu_note(ol_device *device, const gpu_op *op, ol_error *err)
{
    if (device->n_ops == GPU_MAX_OPS)
        return ol_fail(err, OL_LIMIT, "a step of more than %d operations", GPU_MAX_OPS);
    /* field by field: what is between them stays zero, as it was allocated */
    device->ops[device->n_ops].kind = op->kind;
    device->ops[device->n_ops].eps = op->eps;
    device->ops[device->n_ops].layer = op->layer;
    device->ops[device->n_ops].weight = op->weight;
    device->ops[device->n_ops].head = op->head;
    device->ops[device->n_ops].in = op->in;
    device->ops[device->n_ops].out = op->out;
    device->ops[device->n_ops].kv = op->kv;
    device->n_ops++;
    return OL_OK;
}

ol_code gpu_op_embed(ol_device *device, const ol_weight *embedding, ol_buffer *x, ol_error *err)
{
    return gpu_note(device, &(gpu_op){.kind = GPU_OP_EMBED, .weight = embedding, .out = x}, err);
}

ol_code gpu_op_rms_norm(ol_device *device, const ol_buffer *x, const ol_weight *weight, float eps,
                        ol_buffer *y, ol_error *err)
{
    return gpu_note(device,
                    &(gpu_op){.kind = GPU_OP_NORM, .in = x, .weight = weight, .eps = eps, .out = y},
                    err);
}

ol_code gpu_op_qkv(ol_device *device, const ol_layer *layer, const ol_buffer *y, ol_kv *kv,
                   ol_buffer *q, ol_error *err)
{
    return gpu_note(
        device, &(gpu_op){.kind = GPU_OP_QKV, .layer = layer, .in = y, .kv = kv, .out = q}, err);
}

ol_code gpu_op_attention(ol_device *device, const ol_layer *layer, const ol_buffer *q,
                         const ol_kv *kv, ol_buffer *o, ol_error *err)
{
    return gpu_note(
        device, &(gpu_op){.kind = GPU_OP_ATTENTION, .layer = layer, .in = q, .kv = kv, .out = o},
        err);
}

ol_code gpu_op_attention_out(ol_device *device, const ol_layer *layer, const ol_buffer *o,
                             ol_buffer *x, ol_error *err)
{
    return gpu_note(device, &(gpu_op){.kind = GPU_OP_OUT, .layer = layer, .in = o, .out = x}, err);
}

ol_code gpu_op_mlp(ol_device *device, const ol_layer *layer, const ol_buffer *y, ol_buffer *x,
                   ol_error *err)
{
    return gpu_note(device, &(gpu_op){.kind = GPU_OP_MLP, .layer = layer, .in = y, .out = x}, err);
}

/* -- what the kernels get ---------------------------------------------------------------------- */

static gpu_linear_part part_of(const ol_layer *layer, ol_module module)
{
    return (gpu_linear_part){.w = layer->linear[module]->m,
                             .bias = layer->bias[module] ? layer->bias[module]->data : NULL,
                             .module = (int32_t)module};
}

static bool is_head(const gpu_op *op)
{
    return op->kind == GPU_OP_LOGITS || op->kind == GPU_OP_CHOOSE;
}

/* Of a row of logits: as they are for the host, aligned for a kernel. */
static int64_t logits_ld(const gpu_op *op)
{
    return op->kind == GPU_OP_CHOOSE ? gpu_padded(op->head->rows) : op->head->rows;
}

static int64_t ffn_of(const gpu_op *op)
{
    return op->layer->linear[OL_MOD_GATE]->rows;
}

static int64_t qkv_of(const gpu_op *op)
{
    const ol_attention *a = &op->layer->attention;

    return (int64_t)(a->n_heads + 2 * a->n_kv_heads) * a->head_dim;
}

/* The linear operation, or operations, of an op; how many. */
static int linears_of(const ol_device *device, const gpu_op *op, gpu_linear out[2])
{
    gpu_linear base = {.layer = op->layer ? op->layer->index : -1,
                       .way = device->way,
                       .partial = device->linear.data,
                       .tickets = device->tickets};

    out[0] = out[1] = base;
    if (is_head(op)) {
        out[0].logits = 1;
        out[0].finish = GPU_STORE_F32;
        out[0].parts[0].w = op->head->m;
        out[0].x = device->normed.data;
        out[0].ldx = op->in->ld;
        out[0].y = device->logits.data;
        out[0].ldy = logits_ld(op);
    } else {
        out[0].x = op->in->data;
        out[0].ldx = op->in->ld;
    }
    if (op->kind == GPU_OP_QKV) {
        out[0].n_parts = 3;
        for (int i = 0; i < 3; i++)
            out[0].parts[i] = part_of(op->layer, (ol_module)(OL_MOD_Q + i));
        out[0].finish = GPU_STORE_BF16;
        out[0].y = device->qkv.data;
        out[0].ldy = qkv_of(op);
        return 1;
    }
    out[0].n_parts = 1;
    if (op->kind == GPU_OP_OUT) {
        out[0].parts[0] = part_of(op->layer, OL_MOD_O);
        out[0].finish = GPU_ADD_F32;
        out[0].y = op->out->data;
        out[0].ldy = op->out->ld;
    }
    if (op->kind != GPU_OP_MLP)
        return 1;
    out[0].n_parts = 2;
    out[0].parts[0] = part_of(op->layer, OL_MOD_GATE);
    out[0].parts[1] = part_of(op->layer, OL_MOD_UP);
    out[0].finish = GPU_SWIGLU;
    out[0].y = device->act.data;
    out[0].ldy = gpu_padded(ffn_of(op));
    out[1].n_parts = 1;
    out[1].parts[0] = part_of(op->layer, OL_MOD_DOWN);
    out[1].finish = GPU_ADD_F32;
    out[1].x = device->act.data;
    out[1].ldx = gpu_padded(ffn_of(op));
    out[1].y = op->out->data;
    out[1].ldy = op->out->ld;
    return 2;
}

static bool has_linear(const gpu_op *op)
{
    return op->kind == GPU_OP_QKV || op->kind == GPU_OP_OUT || op->kind == GPU_OP_MLP ||
           is_head(op);
}

static gpu_kv_layer kv_of(const gpu_op *op)
{
    gpu_kv_layer layer = op->kv->first;

    layer.data += op->layer->index * op->kv->layer_stride;
    return layer;
}

static gpu_attention attention_of(const ol_device *device, const gpu_op *op)
{
    const ol_attention *a = &op->layer->attention;

    return (gpu_attention){.q = op->in->data,
                           .ldq = op->in->ld,
                           .o = op->out->data,
                           .ldo = op->out->ld,
                           .kv = kv_of(op),
                           .n_heads = a->n_heads,
                           .window = a->window,
                           .scale = a->scale,
                           .partial = device->attention.data};
}

/* Inverse frequencies on the device, by content. */
static ol_code find_rope(ol_device *device, const ol_attention *a, const float **out, ol_error *err)
{
    int n = a->rotary_dims / 2;
    size_t bytes = (size_t)n * sizeof(float);
    gpu_table *t;

    for (int i = 0; i < device->n_ropes; i++) {
        t = &device->ropes[i];
        *out = t->device;
        if (t->n == n && memcmp(t->host, a->inv_freq, bytes) == 0)
            return OL_OK;
    }
    if (device->n_ropes == GPU_ROPES)
        return ol_fail(err, OL_UNSUPPORTED, "more than %d kinds of rotary embedding", GPU_ROPES);
    t = &device->ropes[device->n_ropes];
    t->host = malloc(bytes + 1);
    if (!t->host)
        return ol_fail_nomem(err, bytes, "rotary embeddings");
    memcpy(t->host, a->inv_freq, bytes);
    t->n = n;
    t->device = gpu_block(&device->memory, bytes, "rotary embeddings", device->stream, err);
    device->n_ropes += t->device != NULL;
    if (!t->device) {
        free(t->host);
        return err->code;
    }
    GPU_TRY(cudaMemcpyAsync(t->device, t->host, bytes, cudaMemcpyHostToDevice, device->stream),
            "rotary embeddings");
    *out = t->device;
    return OL_OK;
}

/* -- room -------------------------------------------------------------------------------------- */

static ol_code prepare_linear(ol_device *device, const gpu_op *op, const gpu_sizes *sizes,
                              size_t *splits, ol_error *err)
{
    int n_rows = is_head(op) ? sizes->n_logit_rows : sizes->n_rows;
    gpu_linear linear[2];
    int n = linears_of(device, op, linear);

    for (int i = 0; i < n; i++) {
        size_t cols = (size_t)linear[i].parts[0].w.cols;
        size_t s = (cols + GPU_SHRINK_SPLIT - 1) / GPU_SHRINK_SPLIT;

        *splits = s > *splits ? s : *splits;
        OL_TRY(gpu_scratch_need(device, &device->linear,
                                gpu_linear_partial(&linear[i], n_rows) * sizeof(float),
                                "partial sums", err));
    }
    return OL_OK;
}

static ol_code prepare_op(ol_device *device, const gpu_op *op, const gpu_sizes *sizes,
                          size_t *splits, ol_error *err)
{
    size_t rows = (size_t)device->options.max_rows;
    const float *rope;

    if (op->kind == GPU_OP_QKV) {
        OL_TRY(gpu_scratch_need(device, &device->qkv, rows * (size_t)qkv_of(op) * sizeof(uint16_t),
                                "queries, keys and values", err));
        OL_TRY(find_rope(device, &op->layer->attention, &rope, err));
    } else if (op->kind == GPU_OP_MLP)
        OL_TRY(gpu_scratch_need(device, &device->act,
                                rows * (size_t)gpu_padded(ffn_of(op)) * sizeof(uint16_t),
                                "activations", err));
    else if (is_head(op)) {
        size_t n = (size_t)device->options.max_logit_rows;

        OL_TRY(gpu_scratch_need(device, &device->normed, n * (size_t)op->in->ld * sizeof(uint16_t),
                                "logits", err));
        OL_TRY(gpu_scratch_need(device, &device->logits, n * (size_t)logits_ld(op) * sizeof(float),
                                "logits", err));
    } else if (op->kind == GPU_OP_ATTENTION && sizes->n_decode) {
        gpu_attention a = attention_of(device, op);

        OL_TRY(gpu_scratch_need(device, &device->attention,
                                gpu_attention_partial(&a, sizes->n_decode, sizes->n_splits) *
                                    sizeof(float),
                                "partial results of attention", err));
    }
    return has_linear(op) ? prepare_linear(device, op, sizes, splits, err) : OL_OK;
}

ol_code gpu_ops_prepare(ol_device *device, const gpu_sizes *sizes, ol_error *err)
{
    size_t splits = 1, h = (size_t)device->lists.h_used, room;

    for (int i = 0; i < device->n_ops; i++)
        OL_TRY(prepare_op(device, &device->ops[i], sizes, &splits, err));
    OL_TRY(gpu_scratch_need(device, &device->h, h * sizeof(uint16_t), "adapters", err));
    room = device->h.bytes / sizeof(uint16_t);
    OL_TRY(
        gpu_scratch_need(device, &device->shrink, splits * room * sizeof(float), "adapters", err));
    device->rows.h = device->h.data;
    device->rows.h_size = (int64_t)room;
    device->rows.partial = device->shrink.data;
    return OL_OK;
}

/* -- launching --------------------------------------------------------------------------------- */

static cudaError_t shrink(ol_device *device, const gpu_linear *linear, const gpu_sizes *sizes)
{
    gpu_shrink op = {.x = linear->x,
                     .ldx = linear->ldx,
                     .cols = linear->parts[0].w.cols,
                     .layer = linear->layer,
                     .first_module = linear->parts[0].module,
                     .last_module = linear->parts[linear->n_parts - 1].module,
                     .tickets = device->tickets};

    if (sizes->n_items == 0 || linear->layer < 0)
        return cudaSuccess;
    return gpu_shrink_run(&device->rows, &op, sizes->n_items, sizes->n_members, device->stream);
}

static cudaError_t launch_linears(ol_device *device, const gpu_op *op, const gpu_sizes *sizes)
{
    int n_rows = is_head(op) ? sizes->n_logit_rows : sizes->n_rows;
    cudaError_t code = cudaSuccess;
    gpu_linear linear[2];
    int n = linears_of(device, op, linear);

    for (int i = 0; i < n && code == cudaSuccess; i++) {
        code = shrink(device, &linear[i], sizes);
        if (code == cudaSuccess)
            code = gpu_linear_run(&device->rows, &linear[i], n_rows, device->stream);
    }
    return code;
}

static cudaError_t launch_rope(ol_device *device, const gpu_op *op, const gpu_sizes *sizes)
{
    const ol_layer *layer = op->layer;
    const ol_attention *a = &layer->attention;
    gpu_rope rope = {.qkv = device->qkv.data,
                     .ld = qkv_of(op),
                     .q = op->out->data,
                     .ldq = op->out->ld,
                     .kv = kv_of(op),
                     .q_norm = layer->q_norm ? layer->q_norm->data : NULL,
                     .k_norm = layer->k_norm ? layer->k_norm->data : NULL,
                     .n_heads = a->n_heads,
                     .rotary_dims = a->rotary_dims,
                     .interleaved = a->rope_interleaved,
                     .norm_eps = a->norm_eps,
                     .rope_factor = a->rope_factor};
    ol_error unused;

    if (find_rope(device, a, &rope.inv_freq, &unused) != OL_OK)
        return cudaErrorInvalidValue; /* prepared before: it is there */
    return gpu_rope_run(&device->rows, &rope, sizes->n_rows, device->stream);
}

static cudaError_t launch_embed(ol_device *device, const gpu_op *op, const gpu_sizes *sizes)
{
    const ol_weight *w = op->weight;

    if (w->m.data)
        return gpu_embed_packed(&device->rows, &w->m, op->out->data, op->out->ld, sizes->n_rows,
                                device->stream);
    return gpu_embed(&device->rows, w->data, w->dtype, w->cols, op->out->data, op->out->ld,
                     sizes->n_rows, device->stream);
}

static cudaError_t launch_attention(ol_device *device, const gpu_op *op, const gpu_sizes *sizes)
{
    gpu_attention a = attention_of(device, op);
    cudaError_t code = cudaSuccess;

    a.decode_most = sizes->decode_most;
    if (sizes->n_decode)
        code = gpu_attention_decode(&device->rows, &a, sizes->n_decode, sizes->n_splits,
                                    device->stream);
    if (code == cudaSuccess && sizes->n_tiles)
        code = gpu_attention_prefill(&device->rows, &a, sizes->n_tiles, device->stream);
    return code;
}

static cudaError_t launch_choose(ol_device *device, const gpu_op *op, const gpu_sizes *sizes)
{
    gpu_sample sample = {.logits = device->logits.data,
                         .edited = device->edited.data,
                         .ld = logits_ld(op),
                         .vocab = (int32_t)op->head->rows,
                         .picks = device->lists.picks,
                         .choices = device->choices.data};

    return gpu_sample_run(&device->rows, &sample, sizes->n_logit_rows, device->stream);
}

static cudaError_t launch_head(ol_device *device, const gpu_op *op, const gpu_sizes *sizes)
{
    cudaError_t code;

    if (sizes->n_logit_rows == 0)
        return cudaSuccess;
    code = gpu_rms_norm(&device->rows, op->in->data, op->in->ld, op->weight->data, op->weight->cols,
                        op->eps, 1, device->normed.data, op->in->ld, sizes->n_logit_rows,
                        device->stream);
    if (code == cudaSuccess)
        code = launch_linears(device, op, sizes);
    if (code == cudaSuccess && op->kind == GPU_OP_CHOOSE)
        code = launch_choose(device, op, sizes);
    return code;
}

static cudaError_t launch(ol_device *device, const gpu_op *op, const gpu_sizes *sizes)
{
    cudaError_t code = cudaSuccess;

    switch (op->kind) {
    case GPU_OP_EMBED:
        return launch_embed(device, op, sizes);
    case GPU_OP_NORM:
        return gpu_rms_norm(&device->rows, op->in->data, op->in->ld, op->weight->data,
                            op->weight->cols, op->eps, 0, op->out->data, op->out->ld, sizes->n_rows,
                            device->stream);
    case GPU_OP_QKV:
        code = launch_linears(device, op, sizes);
        return code == cudaSuccess ? launch_rope(device, op, sizes) : code;
    case GPU_OP_ATTENTION:
        return launch_attention(device, op, sizes);
    case GPU_OP_LOGITS:
    case GPU_OP_CHOOSE:
        return launch_head(device, op, sizes);
    default:
        return launch_linears(device, op, sizes);
    }
}

ol_code gpu_ops_launch(ol_device *device, const gpu_sizes *sizes, ol_error *err)
{
    static const char *const names[] = {"embedding", "a norm",         "queries, keys and values",
                                        "attention", "output",         "the MLP",
                                        "logits",    "choosing tokens"};

    for (int i = 0; i < device->n_ops; i++)
        GPU_TRY(launch(device, &device->ops[i], sizes), names[device->ops[i].kind]);
    return OL_OK;
}
