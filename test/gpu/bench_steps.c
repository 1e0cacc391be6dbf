/* bench_steps.c: whole steps: decoding, with adapters, prompts, and an adapter on its way. */
#include "bench.h"

#include <string.h>

/* -- decoding ---------------------------------------------------------------------------- */

/* Bytes that a step of one sequence reads at least: all weights, and its keys and values. */
static double least_bytes(double bits)
{
    double kv = 4.0 * bench.layers * bench.kv_heads * bench.dim * bench.past;

    return (bench_parameters() + bench_head_parameters()) * bits / 8 + kv;
}

/* Tokens a second. */
static double decode_as(ol_quantization how, double bits, const char *name,
                        const bench_ceilings *most)
{
    double s;
    bench_model m;

    bench_open(&m, how);
    s = bench_step_time(&m, &(bench_load){1, 1, bench.past, NULL});
    bench_row(&(bench_line){"tokens/s", 1 / s, most->copy / least_bytes(bits),
                            how == OL_QUANT_AS_IS ? 0.85 : 0},
              "decode, 8B %s, batch 1, of bandwidth", name);
    if (how == OL_QUANT_AS_IS) {
        s = bench_step_time(&m, &(bench_load){1, 1, bench.long_past, NULL});
        bench_row(&(bench_line){"tokens/s", 1 / s, 0, 0}, "decode, 8B %s, batch 1, after %d", name,
                  bench.long_past);
        s = bench_step_time(&m, &(bench_load){1, 1, bench.past, NULL});
    }
    bench_close(&m);
    return 1 / s;
}

void bench_decode(const bench_ceilings *most)
{
    double bf16 = decode_as(OL_QUANT_AS_IS, 16, "BF16", most);
    double int8 = decode_as(OL_QUANT_INT8, 8.5, "INT8", most);
    double int4 = decode_as(OL_QUANT_INT4, 4.5, "INT4", most);
    double fp8 = decode_as(OL_QUANT_FP8, 8, "FP8", most);

    bench_row(&(bench_line){"tokens/s", int8, bf16, 0}, "decode, 8B INT8, batch 1, of BF16");
    bench_row(&(bench_line){"tokens/s", int4, bf16, 2.8}, "decode, 8B INT4, batch 1, of BF16");
    bench_row(&(bench_line){"tokens/s", fp8, bf16, 0}, "decode, 8B FP8, batch 1, of BF16");
}

/* -- adapters ------------------------------------------------------------------------------- */

static void adapters_as(ol_quantization how, const char *name, const bench_ceilings *most)
{
    int n = bench.batch;
    ol_lora **same = calloc((size_t)n, sizeof(*same)), **many = calloc((size_t)n, sizeof(*many));
    double none, one, all, bytes;
    bench_model m;

    if (!same || !many)
        bench_die("adapters", "no memory");
    bench_open_with(&m, OL_QUANT_AS_IS, how);
    for (int i = 0; i < n; i++) {
        many[i] = bench_lora(&m, bench.rank, NULL);
        same[i] = many[0];
    }
    none = bench_step_time(&m, &(bench_load){n, 1, bench.past, NULL});
    one = bench_step_time(&m, &(bench_load){n, 1, bench.past, same});
    all = bench_step_time(&m, &(bench_load){n, 1, bench.past, many});
    bytes = (double)n * (double)m.on.t->lora_bytes(m.on.device, many[0]);
    if (how == OL_QUANT_AS_IS)
        bench_row(&(bench_line){"tokens/s", n / none, 0, 0}, "decode, 8B BF16, batch %d", n);
    bench_row(&(bench_line){"tokens/s", n / one, n / none, 0.95},
              "  1 adapter for all rows, %s, of none", name);
    bench_row(&(bench_line){"tokens/s", n / all, n / (none + bytes / most->copy), 0.90},
              "  %d of rank %d, %s, of what traffic admits", n, bench.rank, name);
    bench_row(&(bench_line){"tokens/s", n / all, n / none, 0}, "  %d of rank %d, %s, of none", n,
              bench.rank, name);
    printf("an adapter of rank %d, %s: %.1f MB\n", bench.rank, name, bytes / n / 1e6);
    for (int i = 0; i < n; i++)
        m.on.t->lora_free(m.on.device, many[i]);
    bench_close(&m);
    free(same), free(many);
}

void bench_adapters(const bench_ceilings *most)
{
    adapters_as(OL_QUANT_AS_IS, "BF16", most);
    adapters_as(OL_QUANT_INT8, "INT8", most);
}

/* -- a long prompt ----------------------------------------------------------------------------- */

void bench_prefill(const bench_ceilings *most)
{
    double flops = 2.0 * bench_parameters() * bench.prefill, without, with;
    double pairs = (double)bench.prefill * (bench.prefill + 1) / 2;
    ol_lora *lora;
    ol_device_info info;
    bench_model m;

    flops += 4.0 * pairs * bench.heads * bench.dim * bench.layers; /* of attention */
    bench_open(&m, OL_QUANT_AS_IS);
    m.on.t->info(m.on.device, &info);
    printf("%s\n", info.description);
    lora = bench_lora(&m, bench.rank, NULL);
    without = bench_step_time(&m, &(bench_load){1, bench.prefill, 0, NULL});
    with = bench_step_time(&m, &(bench_load){1, bench.prefill, 0, &lora});
    bench_row(&(bench_line){"tokens/s", bench.prefill / without, 0, 0},
              "prefill, 8B BF16, %d tokens", bench.prefill);
    bench_row(&(bench_line){"TFLOP/s", flops / without / 1e12, most->product / 1e12, 0.65},
              "  of the product's rate");
    bench_row(&(bench_line){"TFLOP/s", flops / with / 1e12, most->product / 1e12, 0.60},
              "  with an adapter on all rows");
    m.on.t->lora_free(m.on.device, lora);
    bench_close(&m);
}

/* By either kind of instructions, whatever the card has proven: kernels/proof.c. */
void bench_prefill_ways(const bench_ceilings *most)
{
    static const char *const ways[] = {"mma", "wgmma"};
    double flops = 2.0 * bench_parameters() * bench.prefill;

    for (int i = 0; i < 2; i++) {
        double s;
        bench_model m;

        setenv("OL_CUDA_PRODUCT", ways[i], 1);
        bench_open(&m, OL_QUANT_AS_IS);
        s = bench_step_time(&m, &(bench_load){1, bench.prefill, 0, NULL});
        bench_row(&(bench_line){"TFLOP/s", flops / s / 1e12, most->product / 1e12, 0},
                  "prefill by %s, of the product's rate", ways[i]);
        bench_close(&m);
    }
    unsetenv("OL_CUDA_PRODUCT");
}

/* -- an adapter on its way ------------------------------------------------------------------- */

/* From its bytes in the host's memory; then also to the first token of a prompt. */
static void load_from(bench_model *m, const void *from_bytes, const char *name,
                      const bench_ceilings *most, double goal)
{
    double load[64], token[64], bytes = (double)bench_lora_bytes(bench.rank);

    for (int i = -3; i < bench.repeat; i++) {
        double from = bench_now(), there;
        ol_lora *lora = bench_lora(m, bench.rank, from_bytes);

        there = bench_now();
        bench_step(m, &(bench_load){1, bench.prompt, 0, &lora});
        token[i < 0 ? 0 : i] = bench_now() - from;
        load[i < 0 ? 0 : i] = there - from;
        m->on.t->lora_free(m->on.device, lora);
    }
    bench_row(&(bench_line){"GB/s", bytes / bench_median(load, bench.repeat) / 1e9,
                            most->host / 1e9, goal},
              "an adapter of %.0f MB, %s, to the device", bytes / 1e6, name);
    bench_row(&(bench_line){"ms", 1e3 * bench_median(token, bench.repeat), 30, -1},
              "  and to the first token, of 30 ms");
}

/* As the engine keeps copies of adapters, in memory that the device gave; and in any. */
void bench_loading(const bench_ceilings *most)
{
    size_t bytes = bench_lora_bytes(bench.rank);
    void *any = malloc(bytes), *pinned;
    bench_model m;

    bench_open(&m, OL_QUANT_AS_IS);
    pinned = m.on.t->host_alloc(m.on.device, bytes);
    if (!any || !pinned)
        bench_die("an adapter's bytes", "no memory");
    memcpy(any, bench_numbers(bytes / 2), bytes);
    memcpy(pinned, any, bytes);
    load_from(&m, pinned, "pinned", most, 0.80);
    load_from(&m, any, "not pinned", most, 0);
    m.on.t->host_free(m.on.device, pinned);
    free(any);
    bench_close(&m);
}
