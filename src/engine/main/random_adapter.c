/* random_adapter.c: see random_adapter.h. */
#include "engine/main/random_adapter.h"

#include "base/tensor.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static void tensor_name(char out[128], int layer, ol_module module, bool is_b)
{
    ol_buf name = {0};

    ol_buf_printf(&name, "base_model.model.model.layers.%d.%s.%s.lora_%c.weight", layer,
                  ol_module_in_attention(module) ? "self_attn" : "mlp", ol_module_name(module),
                  is_b ? 'B' : 'A');
    memcpy(out, name.data, name.len < 127 ? name.len : 127);
    out[name.len < 127 ? name.len : 127] = '\0';
    ol_buf_free(&name);
}

static size_t put_entry(ol_buf *header, const char *name, int64_t rows, int64_t cols, size_t at)
{
    size_t bytes = (size_t)rows * (size_t)cols * sizeof(uint16_t);

    ol_buf_printf(header, "%s\"%s\":{\"dtype\":\"F16\",\"shape\":[%lld,%lld],", at ? "," : "", name,
                  (long long)rows, (long long)cols);
    ol_buf_printf(header, "\"data_offsets\":[%zu,%zu]}", at, at + bytes);
    return at + bytes;
}

/* Returns the number of bytes of all tensors. */
static size_t put_header(ol_buf *header, const ol_model_config *base, int rank)
{
    size_t at = 0;

    ol_buf_printf(header, "{");
    for (int layer = 0; layer < base->n_layers; layer++)
        for (int m = 0; m < OL_MODULES; m++) {
            char name[128];
            int64_t out, in;

            ol_module_shape(base, (ol_module)m, &out, &in);
            tensor_name(name, layer, (ol_module)m, false);
            at = put_entry(header, name, rank, in, at);
            tensor_name(name, layer, (ol_module)m, true);
            at = put_entry(header, name, out, rank, at);
        }
    ol_buf_printf(header, "}");
    while (header->len % 8 && !header->failed) /* as those who write such files do */
        ol_buf_put_u8(header, ' ');
    return at;
}

/* Small values of either sign: a repeated table keeps thousands of adapters cheap to make. */
static void put_noise(ol_buf *weights, size_t bytes, uint64_t seed)
{
    enum { TABLE = 4093 };
    uint16_t table[TABLE];

    for (int i = 0; i < TABLE; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        table[i] = ol_f32_to_f16(((float)(seed >> 40) / (float)(1 << 24) - 0.5f) * 0.02f);
    }
    if (!ol_buf_reserve(weights, bytes))
        return;
    while (bytes > 0) {
        size_t n = bytes < sizeof(table) ? bytes : sizeof(table);

        ol_buf_put(weights, table, n);
        bytes -= n;
    }
}

ol_code random_adapter_make(const ol_model_config *base, int rank, uint64_t seed, ol_buf *weights,
                            ol_buf *config, ol_error *err)
{
    ol_buf header = {0};
    size_t bytes = put_header(&header, base, rank);

    ol_buf_reset(weights);
    ol_buf_reset(config);
    ol_buf_put_u64(weights, header.len);
    ol_buf_put(weights, header.data, header.len);
    put_noise(weights, bytes, seed);
    ol_buf_printf(config,
                  "{\"peft_type\":\"LORA\",\"task_type\":\"CAUSAL_LM\",\"r\":%d,\"lora_alpha\":%d,"
                  "\"bias\":\"none\",\"target_modules\":[\"q_proj\",\"k_proj\",\"v_proj\","
                  "\"o_proj\",\"gate_proj\",\"up_proj\",\"down_proj\"]}",
                  rank, rank);
    if (header.failed || weights->failed || config->failed) {
        ol_buf_free(&header);
        return ol_fail_nomem(err, bytes, "a random adapter");
    }
    ol_buf_free(&header);
    return OL_OK;
}

/* -- on disk --------------------------------------------------------------------------- */

static ol_code write_file(const char *folder, const char *name, const ol_buf *bytes, ol_error *err)
{
    char path[4096];
    FILE *file;
    bool good;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    file = fopen(path, "wb");
    if (!file)
        return ol_fail_errno(err, "cannot write", path);
    good = fwrite(bytes->data, 1, bytes->len, file) == bytes->len;
    if (fclose(file) != 0 || !good)
        return ol_fail_errno(err, "cannot write", path);
    return OL_OK;
}

ol_code random_adapter_write(const char *dir, int number, const ol_buf *weights,
                             const ol_buf *config, ol_error *err)
{
    char folder[4000];

    snprintf(folder, sizeof(folder), "%s/%d", dir, number);
    (void)mkdir(folder, 0777);
    OL_TRY(write_file(folder, "adapter_model.safetensors", weights, err));
    return write_file(folder, "adapter_config.json", config, err);
}
