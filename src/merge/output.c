/* output.c: the merged modules as PEFT would have saved them. */
#include "merge/merge_internal.h"

#include <stdio.h>
#include <string.h>

static void put_name(ol_buf *out, const merged *m)
{
    ol_buf_printf(out, "layers.%d.%s.%s", m->layer,
                  ol_module_in_attention(m->module) ? "self_attn" : "mlp",
                  ol_module_name(m->module));
}

static size_t put_tensor(ol_buf *header, const merged *m, char side, ol_dtype dtype, size_t at)
{
    int64_t rows = side == 'A' ? m->rank : m->out, cols = side == 'A' ? m->in : m->rank;
    size_t bytes = (size_t)rows * (size_t)cols * ol_dtype_block_bytes(dtype);

    ol_buf_printf(header, "%s\"base_model.model.model.", at ? "," : "");
    put_name(header, m);
    ol_buf_printf(header, ".lora_%c.weight\":{\"dtype\":\"%s\",\"shape\":[%lld,%lld],", side,
                  ol_dtype_name(dtype), (long long)rows, (long long)cols);
    ol_buf_printf(header, "\"data_offsets\":[%zu,%zu]}", at, at + bytes);
    return at + bytes;
}

static void put_values(ol_buf *out, const float *values, size_t n, ol_dtype dtype)
{
    for (size_t i = 0; i < n; i++)
        if (dtype == OL_F32)
            ol_buf_put_f32(out, values[i]);
        else
            ol_buf_put_u16(out,
                           dtype == OL_F16 ? ol_f32_to_f16(values[i]) : ol_f32_to_bf16(values[i]));
}

/* Names in full, and where ranks differ each module's own; alpha = rank, so the scale is 1. */
static void put_config(ol_buf *out, const merged *list, int n)
{
    int most = 0;
    static const char *const patterns[] = {"rank_pattern", "alpha_pattern"};

    for (int i = 0; i < n; i++)
        most = list[i].rank > most ? list[i].rank : most;
    ol_buf_printf(out,
                  "{\"peft_type\":\"LORA\",\"task_type\":\"CAUSAL_LM\",\"bias\":\"none\",\"r\":%d,"
                  "\"lora_alpha\":%d,\"use_rslora\":false",
                  most, most);
    for (int p = 0; p < 2; p++) {
        bool first = true;

        ol_buf_printf(out, ",\"%s\":{", patterns[p]);
        for (int i = 0; i < n; i++)
            if (list[i].rank != most) {
                ol_buf_printf(out, "%s\"", first ? "" : ",");
                put_name(out, &list[i]);
                ol_buf_printf(out, "\":%d", list[i].rank);
                first = false;
            }
        ol_buf_printf(out, "}");
    }
    ol_buf_printf(out, ",\"target_modules\":[");
    for (int i = 0; i < n; i++) {
        ol_buf_printf(out, "%s\"", i ? "," : "");
        put_name(out, &list[i]);
        ol_buf_printf(out, "\"");
    }
    ol_buf_printf(out, "]}");
}

ol_code merge_write(const merged *list, int n, ol_dtype dtype, ol_buf *weights, ol_buf *config,
                    ol_error *err)
{
    ol_buf header = {0};
    size_t at = 0;
    bool failed;

    ol_buf_printf(&header, "{");
    for (int i = 0; i < n; i++) {
        at = put_tensor(&header, &list[i], 'A', dtype, at);
        at = put_tensor(&header, &list[i], 'B', dtype, at);
    }
    ol_buf_printf(&header, "}");
    while (header.len % 8 != 0)
        ol_buf_put_u8(&header, ' ');
    ol_buf_put_u64(weights, header.len);
    ol_buf_put(weights, header.data, header.len);
    for (int i = 0; i < n; i++) {
        put_values(weights, list[i].a, (size_t)list[i].rank * (size_t)list[i].in, dtype);
        put_values(weights, list[i].b, (size_t)list[i].rank * (size_t)list[i].out, dtype);
    }
    put_config(config, list, n);
    failed = header.failed || weights->failed || config->failed;
    if (failed)
        ol_fail_nomem(err, at, "a merged adapter");
    ol_buf_free(&header);
    return failed ? err->code : OL_OK;
}
