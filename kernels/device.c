/* device.c: the CUDA device's table, its life, its buffers, and how a step begins. */
#include "kernels/core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* -- life ------------------------------------------------------------------------------ */

static void close_scratch(ol_device *device)
{
    gpu_scratch *const all[] = {&device->qkv,    &device->act,       &device->normed,
                                &device->logits, &device->edited,    &device->choices,
                                &device->linear, &device->attention, &device->h,
                                &device->shrink, &device->energy};

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        if (all[i]->data)
            gpu_block_free(&device->memory, all[i]->data, all[i]->bytes);
    for (int i = 0; i < device->n_ropes; i++) {
        gpu_block_free(&device->memory, device->ropes[i].device,
                       (size_t)device->ropes[i].n * sizeof(float));
        free(device->ropes[i].host);
    }
    if (device->tickets)
        gpu_block_free(&device->memory, device->tickets, GPU_TICKETS * sizeof(int32_t));
    if (device->results)
        (void)cudaFreeHost(device->results);
    if (device->energies)
        (void)cudaFreeHost(device->energies);
}

static void gpu_close(ol_device *device)
{
    gpu_graphs_drop(device);
    close_scratch(device);
    gpu_lists_free(device);
    gpu_upload_close(device);
    if (device->stream)
        (void)cudaStreamDestroy(device->stream);
    free(device->ops);
    free(device);
}

static void say(ol_device *device, gpu_proven p)
{
    static const char *const kinds[GPU_KINDS] = {"BF16", "INT8", "INT4", "INT4 (Q4_K)", "FP8"};

    if (p.found == GPU_PROOF_SAME)
        snprintf(device->way_note, sizeof(device->way_note), ", wgmma");
    else if (p.found == GPU_PROOF_DIFFERS || p.found == GPU_PROOF_FAILED)
        snprintf(device->way_note, sizeof(device->way_note),
                 ", wgmma not used: with %s weights%s it %s", kinds[p.kind % GPU_KINDS],
                 p.adapters ? " and adapters" : "",
                 p.found == GPU_PROOF_DIFFERS ? "rounds otherwise" : "failed");
}

/* Products of groups, if they are proven; OL_CUDA_PRODUCT=mma does without, =wgmma asks for no
 * proof: for measuring both. */
static void choose_way(ol_device *device, gpu_proven proven)
{
    const char *asked = getenv("OL_CUDA_PRODUCT");

    if (asked && strcmp(asked, "wgmma") == 0 &&
        gpu_linear_has_groups(device->options.device_index)) {
        device->way = GPU_WAY_GROUP;
        snprintf(device->way_note, sizeof(device->way_note), ", wgmma unproven");
        return;
    }
    if (proven.found == GPU_PROOF_NO_CARD) /* to a child of this process */
        proven = gpu_prove_here(device->options.device_index, -1);
    device->way = proven.found == GPU_PROOF_SAME ? GPU_WAY_GROUP : GPU_WAY_WARP;
    say(device, proven);
}

/* Before this process uses CUDA for the first time. */
static gpu_proven prove(const ol_device_options *options)
{
    gpu_proven none = {GPU_PROOF_NONE, GPU_BF16, false};

    return getenv("OL_CUDA_PRODUCT") ? none : gpu_prove_apart(options->device_index);
}

/* For measuring, and for finding out which of what was never tried on a card is to blame. */
static bool is_off(const char *name)
{
    const char *value = getenv(name);

    return value && strcmp(value, "0") == 0;
}

static ol_code start(ol_device *device, ol_error *err)
{
    gpu_proof_used(true);
    device->no_graphs = is_off("OL_CUDA_GRAPHS");
    if (is_off("OL_CUDA_EARLY"))
        gpu_launches_early = 0;
    OL_TRY(gpu_choose_card(device, err));
    GPU_TRY(gpu_pack_load_kernels(), "its kernels");
    GPU_TRY(gpu_lora_load_kernels(), "its kernels");
    GPU_TRY(gpu_gram_load_kernels(), "its kernels");
    OL_TRY(gpu_upload_open(device, err));
    OL_TRY(gpu_pool_keep(&device->memory, device->options.device_index, err));
    GPU_TRY(cudaStreamCreateWithFlags(&device->stream, cudaStreamNonBlocking), "making a stream");
    device->ops = calloc(GPU_MAX_OPS, sizeof(gpu_op));
    if (!device->ops)
        return ol_fail_nomem(err, GPU_MAX_OPS * sizeof(gpu_op), "the GPU device");
    device->tickets = gpu_block(&device->memory, GPU_TICKETS * sizeof(int32_t), "the GPU device",
                                device->stream, err);
    return device->tickets ? OL_OK : err->code;
}

static ol_code gpu_open(const ol_device_options *options, ol_device **out, ol_error *err)
{
    ol_device *device;
    gpu_proven found;

    if (options->max_rows < 1 || options->max_seqs < 1 || options->max_logit_rows < 0)
        return ol_fail(err, OL_INVALID, "a device for %d rows, %d sequences, %d logit rows",
                       options->max_rows, options->max_seqs, options->max_logit_rows);
    if (options->adapters != OL_QUANT_AS_IS && options->adapters != OL_QUANT_INT8)
        return ol_fail(err, OL_INVALID, "adapters are kept as they are, or as int8");
    device = calloc(1, sizeof(*device));
    if (!device)
        return ol_fail_nomem(err, sizeof(*device), "the GPU device");
    device->options = *options;
    device->options.isa = NULL; /* the caller's string */
    device->memory.limit = options->memory_limit;
    device->page_tokens = 16;
    device->rows.lora8 = options->adapters == OL_QUANT_INT8;
    found = prove(options);
    if (start(device, err) == OL_OK) {
        choose_way(device, found);
        *out = device;
        return OL_OK;
    }
    gpu_close(device);
    return err->code;
}

static void gpu_info(ol_device *device, ol_device_info *info)
{
    memset(info, 0, sizeof(*info));
    snprintf(info->name, sizeof(info->name), "cuda");
    snprintf(info->description, sizeof(info->description), "%.64s, compute capability %d.%d%s",
             device->card.name, device->card.major, device->card.minor, device->way_note);
    info->memory_used = device->memory.used;
    info->memory_total = device->card.totalGlobalMem;
    info->kv_dtypes = 1u << OL_BF16 | 1u << OL_F8E4M3;
    info->own_memory = true;
}

/* -- buffers ------------------------------------------------------------------------------ */

static ol_code gpu_buffer_create(ol_device *device, int64_t cols, ol_buffer **out, ol_error *err)
{
    ol_buffer *buffer = calloc(1, sizeof(*buffer));

    if (!buffer)
        return ol_fail_nomem(err, sizeof(*buffer), "a buffer");
    buffer->cols = cols;
    buffer->ld = gpu_padded(cols);
    buffer->bytes = (size_t)device->options.max_rows * (size_t)buffer->ld * sizeof(float);
    buffer->data = gpu_block(&device->memory, buffer->bytes, "a buffer", device->stream, err);
    if (!buffer->data) {
        free(buffer);
        return err->code;
    }
    *out = buffer;
    return OL_OK;
}

static void gpu_buffer_free(ol_device *device, ol_buffer *buffer)
{
    if (!buffer)
        return;
    gpu_graphs_drop(device);
    gpu_block_free(&device->memory, buffer->data, buffer->bytes);
    free(buffer);
}

/* -- a step --------------------------------------------------------------------------------- */

ol_code gpu_step_begin(ol_device *device, const ol_step *step, ol_error *err)
{
    const ol_device_options *o = &device->options;

    if (step->n_rows > o->max_rows || step->n_seqs > o->max_seqs ||
        step->n_logit_rows > o->max_logit_rows)
        return ol_fail(err, OL_INTERNAL, "a step of %d rows, %d sequences, %d logit rows",
                       step->n_rows, step->n_seqs, step->n_logit_rows);
    memset(device->ops, 0, (size_t)device->n_ops * sizeof(gpu_op));
    device->n_ops = 0;
    /* The step before was given up: its lists may be on their way yet, from where these will be. */
    if (device->step)
        GPU_TRY(cudaStreamSynchronize(device->stream), "giving up a step");
    device->step = NULL;
    /* Adapters were waited for by whoever made them; weights by nobody yet. */
    if (device->weights_under_way)
        GPU_TRY(cudaStreamSynchronize(device->upload.stream), "placing weights");
    device->weights_under_way = false;
    return gpu_lists_fill(device, step, err);
}

/* -- the table ------------------------------------------------------------------------------ */

static const ol_device_table table = {
    .abi = OL_DEVICE_ABI,
    .name = "cuda",
    .open = gpu_open,
    .close = gpu_close,
    .info = gpu_info,
    .weight_create = gpu_weight_create,
    .weight_free = gpu_weight_free,
    .lora_create = gpu_lora_create,
    .lora_free = gpu_lora_free,
    .lora_bytes = gpu_lora_bytes,
    .kv_create = gpu_kv_create,
    .kv_free = gpu_kv_free,
    .kv_copy_page = gpu_kv_copy_page,
    .buffer_create = gpu_buffer_create,
    .buffer_free = gpu_buffer_free,
    .step_begin = gpu_step_begin,
    .embed = gpu_op_embed,
    .rms_norm = gpu_op_rms_norm,
    .qkv = gpu_op_qkv,
    .attention = gpu_op_attention,
    .attention_out = gpu_op_attention_out,
    .mlp = gpu_op_mlp,
    .logits = gpu_op_logits,
    .step_end = gpu_step_end,
    .choose = gpu_op_choose,
    .kv_page_bytes = gpu_kv_page_bytes,
    .lora_need = gpu_lora_need,
    .host_alloc = gpu_host_alloc,
    .host_free = gpu_host_free,
    .lora_create_in = gpu_lora_create_in,
};

__attribute__((visibility("default"))) const ol_device_table *ol_device_entry_point(void);

const ol_device_table *ol_device_entry_point(void)
{
    return &table;
}
