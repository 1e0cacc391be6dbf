/* device.c: the CPU device's table, its life, its buffers. */
#include "cpu/core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* -- life --------------------------------------------------------------------------- */

static void read_processor(char *out, size_t size)
{
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "r");

    snprintf(out, size, "CPU");
    while (f && fgets(line, sizeof(line), f))
        if (strncmp(line, "model name", 10) == 0 && strchr(line, ':')) {
            line[strcspn(line, "\n")] = '\0';
            snprintf(out, size, "%.*s", (int)size - 1, strchr(line, ':') + 1 + 1);
            break;
        }
    if (f)
        fclose(f);
}

static void cpu_close(ol_device *device)
{
    cpu_scratch *const all[] = {&device->segment_space, &device->tiles[0],  &device->tiles[1],
                                &device->shrunk[0],     &device->shrunk[1], &device->strips,
                                &device->attention,     &device->k,         &device->v,
                                &device->act,           &device->normed,    &device->logits};

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        cpu_scratch_free(&device->memory, all[i]);
    for (int i = 0; i < CPU_ROPES; i++)
        cpu_scratch_free(&device->memory, &device->ropes[i].table);
    cpu_pool_destroy(device->pool);
    cpu_memory_end(&device->memory);
    free(device->row_pos);
    free(device->row_seq);
    free(device);
}

static ol_code cpu_open(const ol_device_options *options, ol_device **out, ol_error *err)
{
    size_t rows = (size_t)options->max_rows * sizeof(int);
    ol_device *device;

    if (options->max_rows < 1 || options->max_seqs < 1 || options->max_logit_rows < 0)
        return ol_fail(err, OL_INVALID, "a device for %d rows, %d sequences, %d logit rows",
                       options->max_rows, options->max_seqs, options->max_logit_rows);
    if (options->adapters != OL_QUANT_AS_IS && options->adapters != OL_QUANT_INT8)
        return ol_fail(err, OL_INVALID, "adapters are kept as they are, or as int8");
    device = calloc(1, sizeof(*device));
    if (!device)
        return ol_fail_nomem(err, sizeof(*device), "the CPU device");
    device->options = *options;
    device->options.isa = NULL; /* the caller's string */
    cpu_memory_init(&device->memory, options->memory_limit);
    device->row_pos = malloc(rows);
    device->row_seq = malloc(rows);
    if (!device->row_pos || !device->row_seq)
        ol_fail_nomem(err, rows, "the CPU device");
    else if (cpu_kernels_choose(options->isa, &device->kernels, err) == OL_OK &&
             cpu_pool_create(options->threads, &device->pool, err) == OL_OK) {
        read_processor(device->processor, sizeof(device->processor));
        *out = device;
        return OL_OK;
    }
    cpu_close(device);
    return err->code;
}

static void cpu_info(ol_device *device, ol_device_info *info)
{
    memset(info, 0, sizeof(*info));
    snprintf(info->name, sizeof(info->name), "cpu");
    snprintf(info->description, sizeof(info->description), "%s, %s", device->processor,
             device->kernels->name);
    info->threads = cpu_pool_threads(device->pool);
    info->memory_used = device->memory.used;
    info->kv_dtypes = 1u << OL_F32 | 1u << OL_F16 | 1u << OL_BF16;
}

static void cpu_leave(ol_device *device, int processors)
{
    cpu_pool_leave(device->pool, processors);
}

/* -- buffers -------------------------------------------------------------------------- */

/* Rows start on cache lines, and not at a multiple of 1024 bytes, which would put the
 * rows of a tile into the same sets of the first-level cache. */
static int64_t stride_of(int64_t cols)
{
    int64_t stride = (cols + PANEL - 1) / PANEL * PANEL;

    return stride % 256 == 0 ? stride + PANEL : stride;
}

static ol_code cpu_buffer_create(ol_device *device, int64_t cols, ol_buffer **out, ol_error *err)
{
    ol_buffer *buffer = calloc(1, sizeof(*buffer));

    if (!buffer)
        return ol_fail_nomem(err, sizeof(*buffer), "a buffer");
    buffer->cols = cols;
    buffer->stride = stride_of(cols);
    buffer->bytes = (size_t)device->options.max_rows * (size_t)buffer->stride * sizeof(float);
    buffer->data = cpu_block(&device->memory, buffer->bytes, "a buffer", err);
    if (!buffer->data) {
        free(buffer);
        return err->code;
    }
    *out = buffer;
    return OL_OK;
}

static void cpu_buffer_free(ol_device *device, ol_buffer *buffer)
{
    if (!buffer)
        return;
    cpu_block_free(&device->memory, buffer->data, buffer->bytes);
    free(buffer);
}

/* -- the table -------------------------------------------------------------------------- */

static const ol_device_table table = {
    .abi = OL_DEVICE_ABI,
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .info = cpu_info,
    .weight_create = cpu_weight_create,
    .weight_free = cpu_weight_free,
    .lora_create = cpu_lora_create,
    .lora_free = cpu_lora_free,
    .lora_bytes = cpu_lora_bytes,
    .kv_create = cpu_kv_create,
    .kv_free = cpu_kv_free,
    .kv_copy_page = cpu_kv_copy_page,
    .buffer_create = cpu_buffer_create,
    .buffer_free = cpu_buffer_free,
    .step_begin = cpu_step_begin,
    .embed = cpu_embed,
    .rms_norm = cpu_rms_norm,
    .qkv = cpu_qkv,
    .attention = cpu_attention,
    .attention_out = cpu_attention_out,
    .mlp = cpu_mlp,
    .logits = cpu_logits,
    .step_end = cpu_step_end,
    .kv_page_bytes = cpu_kv_page_bytes,
    .lora_need = cpu_lora_need,
    .leave = cpu_leave,
    .lora_create_in = cpu_lora_create_in,
};

__attribute__((visibility("default"))) const ol_device_table *ol_device_entry_point(void);

const ol_device_table *ol_device_entry_point(void)
{
    return &table;
}
