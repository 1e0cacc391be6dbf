/*
 * bench.c: how fast the CUDA device is, against what the card could do, measured in the same run.
 *
 *   bench [--layers N]      default: 32 layers, the shape of Llama-3.1-8B
 *
 * Weights are random numbers, the same for all layers: speed does not depend on them, as long as
 * they are not zeros. Every figure is the median of several runs after warming up, by events of
 * the device where one operation is timed and by the clock around whole steps. The table comes
 * last.
 */
#include "bench_attention.h"

#include "kernels/launch.h"

#include "device/device.h"

#include <cublasLt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

const ol_device_table *ol_device_entry_point(void);

#define REPEAT 11
#define MAX_SEQS 64
#define MAX_ROWS 4096
#define PAGE 64
#define HIDDEN 4096
#define HEADS 32
#define KV_HEADS 8
#define DIM 128
#define FFN 14336
#define VOCAB 16032 /* an eighth: what is read is counted */

static int layers = 32;
static ol_error error;

static void die(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

#define OK(expr)                                                                                   \
    do {                                                                                           \
        if ((expr) != OL_OK)                                                                       \
            die(#expr, error.detail[0] ? error.detail : error.message);                            \
    } while (0)
#define CUDA(expr)                                                                                 \
    do {                                                                                           \
        cudaError_t cuda_code_ = (expr);                                                           \
        if (cuda_code_ != cudaSuccess)                                                             \
            die(#expr, cudaGetErrorString(cuda_code_));                                            \
    } while (0)

/* -- medians, the table ------------------------------------------------------------------------ */

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof(*v), compare);
    return v[n / 2];
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static char lines[64][160];
static int n_lines;

__attribute__((format(printf, 1, 2))) static void row(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(lines[n_lines], sizeof(lines[0]), fmt, ap);
    va_end(ap);
    printf("%s\n", lines[n_lines]);
    fflush(stdout);
    n_lines++;
}

/* -- ceilings ------------------------------------------------------------------------------------
 */

static cudaStream_t stream;
static cudaEvent_t start_event, end_event;

static double elapsed(void)
{
    float ms;

    CUDA(cudaEventRecord(end_event, stream));
    CUDA(cudaEventSynchronize(end_event));
    CUDA(cudaEventElapsedTime(&ms, start_event, end_event));
    return (double)ms * 1e-3;
}

/* Bytes read and written a second. */
static double copy_rate(void)
{
    size_t bytes = (size_t)2 << 30;
    double t[REPEAT];
    void *a, *b;

    CUDA(cudaMalloc(&a, bytes));
    CUDA(cudaMalloc(&b, bytes));
    CUDA(cudaMemsetAsync(a, 0x3c, bytes, stream));
    for (int i = 0; i < REPEAT; i++) {
        CUDA(cudaEventRecord(start_event, stream));
        CUDA(cudaMemcpyAsync(b, a, bytes, cudaMemcpyDeviceToDevice, stream));
        t[i] = elapsed();
    }
    CUDA(cudaFree(a));
    CUDA(cudaFree(b));
    return 2.0 * (double)bytes / median(t, REPEAT);
}

static double host_to_device_rate(void)
{
    size_t bytes = (size_t)256 << 20;
    double t[REPEAT];
    void *a, *b;

    CUDA(cudaHostAlloc(&a, bytes, cudaHostAllocDefault));
    CUDA(cudaMalloc(&b, bytes));
    memset(a, 1, bytes);
    for (int i = 0; i < REPEAT; i++) {
        CUDA(cudaEventRecord(start_event, stream));
        CUDA(cudaMemcpyAsync(b, a, bytes, cudaMemcpyHostToDevice, stream));
        t[i] = elapsed();
    }
    CUDA(cudaFreeHost(a));
    CUDA(cudaFree(b));
    return (double)bytes / median(t, REPEAT);
}

static uint16_t *pool; /* of random bf16 numbers, host */
static size_t pool_n = (size_t)1 << 26;

static void make_pool(void)
{
    uint64_t state = 1;

    pool = malloc(pool_n * sizeof(*pool));
    if (!pool)
        die("malloc", "no memory");
    for (size_t i = 0; i < pool_n; i++) {
        float v;
        uint32_t bits;

        state = state * 6364136223846793005u + 1442695040888963407u;
        v = ((float)(state >> 40) * 0x1p-24f - 0.5f) * 0.05f;
        memcpy(&bits, &v, 4);
        pool[i] = (uint16_t)(bits >> 16);
    }
}

#define LT(expr)                                                                                   \
    do {                                                                                           \
        if ((expr) != CUBLAS_STATUS_SUCCESS)                                                       \
            die(#expr, "cuBLASLt failed");                                                         \
    } while (0)

/* Operations a second of a large bf16 product by cuBLASLt, on random numbers. */
static double gemm_rate(int64_t n)
{
    size_t bytes = (size_t)(n * n) * 2, space_bytes = (size_t)64 << 20;
    float one = 1, zero = 0;
    cublasLtMatmulPreference_t wish;
    cublasLtMatmulHeuristicResult_t found;
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t layout;
    cublasOperation_t transpose = CUBLAS_OP_T;
    cublasLtHandle_t lt;
    void *a, *b, *c, *space;
    double t[REPEAT];
    int n_found;

    CUDA(cudaMalloc(&a, bytes));
    CUDA(cudaMalloc(&b, bytes));
    CUDA(cudaMalloc(&c, bytes));
    CUDA(cudaMalloc(&space, space_bytes));
    for (size_t at = 0; at < (size_t)(n * n); at += pool_n) {
        size_t part = (size_t)(n * n) - at < pool_n ? (size_t)(n * n) - at : pool_n;

        CUDA(cudaMemcpyAsync((uint16_t *)a + at, pool, part * 2, cudaMemcpyHostToDevice, stream));
        CUDA(cudaMemcpyAsync((uint16_t *)b + at, pool, part * 2, cudaMemcpyHostToDevice, stream));
    }
    LT(cublasLtCreate(&lt));
    LT(cublasLtMatmulDescCreate(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    LT(cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSA, &transpose,
                                      sizeof(transpose)));
    LT(cublasLtMatrixLayoutCreate(&layout, CUDA_R_16BF, (uint64_t)n, (uint64_t)n, n));
    LT(cublasLtMatmulPreferenceCreate(&wish));
    LT(cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                            &space_bytes, sizeof(space_bytes)));
    LT(cublasLtMatmulAlgoGetHeuristic(lt, op, layout, layout, layout, layout, wish, 1, &found,
                                      &n_found));
    for (int i = -3; i < REPEAT; i++) {
        CUDA(cudaEventRecord(start_event, stream));
        LT(cublasLtMatmul(lt, op, &one, a, layout, b, layout, &zero, c, layout, c, layout,
                          &found.algo, space, space_bytes, stream));
        t[i < 0 ? 0 : i] = elapsed();
    }
    CUDA(cudaFree(a));
    CUDA(cudaFree(b));
    CUDA(cudaFree(c));
    CUDA(cudaFree(space));
    LT(cublasLtDestroy(lt));
    return 2.0 * (double)n * (double)n * (double)n / median(t, REPEAT);
}

/* -- a model of random numbers -------------------------------------------------------------------
 */

typedef struct model {
    const ol_device_table *t;
    ol_device *device;
    ol_weight *embedding, *head, *norm, *vector;
    ol_layer layer[64];
    ol_kv *kv;
    ol_buffer *x, *y, *q, *o;
    float inv_freq[DIM / 2];
} model;

static ol_tensor tensor(int64_t rows, int64_t cols)
{
    size_t row_bytes = (size_t)cols * 2;

    if ((size_t)(rows * cols) > pool_n) /* longer than the pool: placed in pieces by the caller */
        die("tensor", "larger than the pool");
    return (ol_tensor){"random", OL_BF16, 2, {rows, cols}, pool, row_bytes * (size_t)rows};
}

static ol_weight *place(model *m, int64_t rows, int64_t cols, int use, ol_quantization how)
{
    ol_weight_desc desc = {.tensor = tensor(rows, cols), .quantization = how, .keep = true};
    ol_weight *w = NULL;

    desc.use = use;
    if (use == OL_WEIGHT_VECTOR) {
        desc.tensor.n_dims = 1;
        desc.tensor.shape[0] = cols;
    }
    OK(m->t->weight_create(m->device, &desc, &w, &error));
    return w;
}

static int64_t in_of(int m)
{
    return m == OL_MOD_DOWN ? FFN : m == OL_MOD_O ? HEADS * DIM : HIDDEN;
}

static int64_t out_of(int m)
{
    if (m == OL_MOD_GATE || m == OL_MOD_UP)
        return FFN;
    return m == OL_MOD_K || m == OL_MOD_V ? KV_HEADS * DIM : m == OL_MOD_Q ? HEADS * DIM : HIDDEN;
}

/* Of all layers' linear modules. */
static double parameters(void)
{
    double n = 0;

    for (int m = 0; m < OL_MODULES; m++)
        n += (double)in_of(m) * (double)out_of(m);
    return n * layers;
}

static void open_model(model *m, ol_quantization how)
{
    ol_device_options options = {
        .max_rows = MAX_ROWS, .max_seqs = MAX_SEQS, .max_logit_rows = MAX_SEQS};
    ol_kv_desc kv = {layers, KV_HEADS, DIM, PAGE, MAX_SEQS * 1024 / PAGE + 32768 / PAGE, OL_BF16};

    memset(m, 0, sizeof(*m));
    m->t = ol_device_entry_point();
    OK(m->t->open(&options, &m->device, &error));
    for (int i = 0; i < DIM / 2; i++)
        m->inv_freq[i] = 1.0f / (float)(1 + i * i);
    m->embedding = place(m, 8192, HIDDEN, OL_WEIGHT_EMBEDDING, OL_QUANT_AS_IS);
    m->vector = place(m, 1, HIDDEN, OL_WEIGHT_VECTOR, OL_QUANT_AS_IS);
    m->head = place(m, VOCAB, HIDDEN, OL_WEIGHT_MATRIX, how);
    for (int l = 0; l < layers; l++) {
        m->layer[l] = (ol_layer){.index = l,
                                 .attn_norm = m->vector,
                                 .mlp_norm = m->vector,
                                 .attention = {.n_heads = HEADS,
                                               .n_kv_heads = KV_HEADS,
                                               .head_dim = DIM,
                                               .scale = 0.088388f,
                                               .rotary_dims = DIM,
                                               .inv_freq = m->inv_freq,
                                               .rope_factor = 1,
                                               .norm_eps = 1e-5f}};
        for (int i = 0; i < OL_MODULES; i++)
            m->layer[l].linear[i] = place(m, out_of(i), in_of(i), OL_WEIGHT_MATRIX, how);
    }
    OK(m->t->kv_create(m->device, &kv, &m->kv, &error));
    OK(m->t->buffer_create(m->device, HIDDEN, &m->x, &error));
    OK(m->t->buffer_create(m->device, HIDDEN, &m->y, &error));
    OK(m->t->buffer_create(m->device, HEADS * DIM, &m->q, &error));
    OK(m->t->buffer_create(m->device, HEADS * DIM, &m->o, &error));
}

static void close_model(model *m)
{
    m->t->buffer_free(m->device, m->x);
    m->t->buffer_free(m->device, m->y);
    m->t->buffer_free(m->device, m->q);
    m->t->buffer_free(m->device, m->o);
    m->t->kv_free(m->device, m->kv);
    for (int l = 0; l < layers; l++)
        for (int i = 0; i < OL_MODULES; i++)
            m->t->weight_free(m->device, m->layer[l].linear[i]);
    m->t->weight_free(m->device, m->embedding);
    m->t->weight_free(m->device, m->head);
    m->t->weight_free(m->device, m->vector);
    m->t->close(m->device);
}

static ol_lora *make_lora(model *m, int rank, double *seconds)
{
    ol_lora_module *modules = calloc((size_t)layers * OL_MODULES, sizeof(*modules));
    ol_lora *lora = NULL;
    double from;
    int n = 0;

    for (int l = 0; l < layers; l++)
        for (int i = 0; i < OL_MODULES; i++)
            modules[n++] = (ol_lora_module){.layer = l,
                                            .module = (ol_module)i,
                                            .rank = rank,
                                            .scale = 1,
                                            .a = tensor(rank, in_of(i)),
                                            .b = tensor(out_of(i), rank)};
    from = now();
    OK(m->t->lora_create(m->device, modules, n, &lora, &error));
    *seconds = now() - from;
    free(modules);
    return lora;
}

/* -- steps
 * ------------------------------------------------------------------------------------------ */

typedef struct load {
    int n_seqs, n_rows, first_pos; /* rows of each sequence */
    ol_lora *const *loras;         /* NULL: none; else one a sequence */
} load;

static void forward(model *m, const ol_step *step)
{
    const ol_device_table *t = m->t;
    const float *logits;

    OK(t->step_begin(m->device, step, &error));
    OK(t->embed(m->device, m->embedding, m->x, &error));
    for (int l = 0; l < layers; l++) {
        const ol_layer *layer = &m->layer[l];

        OK(t->rms_norm(m->device, m->x, layer->attn_norm, 1e-5f, m->y, &error));
        OK(t->qkv(m->device, layer, m->y, m->kv, m->q, &error));
        OK(t->attention(m->device, layer, m->q, m->kv, m->o, &error));
        OK(t->attention_out(m->device, layer, m->o, m->x, &error));
        OK(t->rms_norm(m->device, m->x, layer->mlp_norm, 1e-5f, m->y, &error));
        OK(t->mlp(m->device, layer, m->y, m->x, &error));
    }
    OK(t->logits(m->device, m->x, m->vector, 1e-5f, m->head, &logits, &error));
    OK(t->step_end(m->device, &error));
}

/* Seconds of a step. */
static double step_time(model *m, const load *l)
{
    static int32_t tokens[MAX_ROWS], pages[MAX_SEQS][32768 / PAGE + 8];
    int32_t logit_rows[MAX_SEQS];
    ol_step_seq seqs[MAX_SEQS];
    ol_lora_ref refs[MAX_SEQS];
    double t[REPEAT];
    int page = 0;

    for (int s = 0; s < l->n_seqs; s++) {
        for (int p = 0; p * PAGE < l->first_pos + l->n_rows; p++)
            pages[s][p] = page++;
        if (l->loras)
            refs[s] = (ol_lora_ref){l->loras[s], 1};
        seqs[s] = (ol_step_seq){.first_row = s * l->n_rows,
                                .n_rows = l->n_rows,
                                .first_pos = l->first_pos,
                                .pages = pages[s],
                                .n_loras = l->loras ? 1 : 0,
                                .loras = &refs[s]};
        logit_rows[s] = (s + 1) * l->n_rows - 1;
    }
    for (int i = 0; i < l->n_seqs * l->n_rows; i++)
        tokens[i] = i * 37 % 8192;
    for (int i = -3; i < REPEAT; i++) {
        double from = now();

        forward(m, &(ol_step){l->n_seqs * l->n_rows, tokens, l->n_seqs, seqs, l->n_seqs, logit_rows,
                              NULL});
        t[i < 0 ? 0 : i] = now() - from;
    }
    return median(t, REPEAT);
}

/* -- what is measured
 * ---------------------------------------------------------------------------------- */

static double decode_one(ol_quantization how, double bits, double copy, const char *name,
                         double base)
{
    double bytes = (parameters() + (double)HIDDEN * VOCAB) * bits / 8, s;
    model m;

    open_model(&m, how);
    s = step_time(&m, &(load){1, 1, 512, NULL});
    row("decode, batch 1, %-5s %8.1f tokens/s  %.2f of bandwidth", name, 1 / s, bytes / copy / s);
    if (base > 0)
        row("  against BF16         %8.2f", base / s);
    close_model(&m);
    return s;
}

static void adapters(double copy, double host, double gemm)
{
    ol_lora *same[MAX_SEQS], *many[MAX_SEQS];
    double none, one, all, seconds, load_s[MAX_SEQS], prefill, with;
    double flops = 2.0 * parameters() * MAX_ROWS;
    ol_device_info info;
    model m;

    open_model(&m, OL_QUANT_AS_IS);
    m.t->info(m.device, &info);
    row("%s", info.description);
    for (int i = 0; i < MAX_SEQS; i++) {
        many[i] = make_lora(&m, 16, &seconds);
        load_s[i] = seconds;
        same[i] = many[0];
    }
    none = step_time(&m, &(load){MAX_SEQS, 1, 512, NULL});
    one = step_time(&m, &(load){MAX_SEQS, 1, 512, same});
    all = step_time(&m, &(load){MAX_SEQS, 1, 512, many});
    row("decode, batch 64      %8.1f tokens/s", MAX_SEQS / none);
    row("  1 adapter for all    %8.2f of none", none / one);
    row("  64 adapters          %8.2f of none", none / all);
    row("  their traffic bound  %8.2f of it reached",
        (none + MAX_SEQS * (double)m.t->lora_bytes(m.device, many[0]) / copy) / all);
    prefill = step_time(&m, &(load){1, MAX_ROWS, 0, NULL});
    with = step_time(&m, &(load){1, MAX_ROWS, 0, same});
    row("prefill of 4096       %8.0f tokens/s  %.2f of the product's rate", MAX_ROWS / prefill,
        flops / prefill / gemm);
    row("  with an adapter      %8.2f of the product's rate", flops / with / gemm);
    seconds = median(load_s, MAX_SEQS);
    row("adapter of %3.0f MB     %8.1f ms to load  %.2f of the copy rate",
        (double)m.t->lora_bytes(m.device, many[0]) / 1e6, 1e3 * seconds,
        (double)m.t->lora_bytes(m.device, many[0]) / seconds / host);
    row("decode at 32k, batch 1 %7.1f tokens/s", 1 / step_time(&m, &(load){1, 1, 32700, NULL}));
    for (int i = 0; i < MAX_SEQS; i++)
        m.t->lora_free(m.device, many[i]);
    close_model(&m);
}

/* Prefill by either kind of instructions, whatever the card has proven. */
static void prefill_by_each(double gemm)
{
    static const char *const ways[] = {"mma", "wgmma"};
    double flops = 2.0 * parameters() * MAX_ROWS;

    for (int i = 0; i < 2; i++) {
        double s;
        model m;

        setenv("OL_CUDA_PRODUCT", ways[i], 1);
        open_model(&m, OL_QUANT_AS_IS);
        s = step_time(&m, &(load){1, MAX_ROWS, 0, NULL});
        row("prefill by %-9s  %8.0f tokens/s  %.2f of the product's rate", ways[i], MAX_ROWS / s,
            flops / s / gemm);
        close_model(&m);
    }
    unsetenv("OL_CUDA_PRODUCT");
}

int main(int argc, char **argv)
{
    double copy, host, gemm, bf16;

    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--layers") == 0 && i + 1 < argc)
            layers = atoi(argv[++i]);
    if (layers < 1 || layers > 64)
        die("--layers", "1 to 64");
    make_pool();
    CUDA(cudaSetDevice(0));
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA(cudaEventCreateWithFlags(&start_event, 0));
    CUDA(cudaEventCreateWithFlags(&end_event, 0));
    copy = copy_rate();
    host = host_to_device_rate();
    gemm = gemm_rate(8192);
    row("copy                  %8.0f GB/s", copy / 1e9);
    row("host to device        %8.1f GB/s", host / 1e9);
    row("product 8192 (bf16)   %8.0f TFLOP/s", gemm / 1e12);
    bench_attention(copy, stream, row);
    bf16 = decode_one(OL_QUANT_AS_IS, 16, copy, "BF16", 0);
    decode_one(OL_QUANT_INT8, 8.5, copy, "INT8", bf16);
    decode_one(OL_QUANT_INT4, 4.5, copy, "INT4", bf16);
    adapters(copy, host, gemm);
    prefill_by_each(gemm);
    printf("\n");
    for (int i = 0; i < n_lines; i++)
        printf("%s\n", lines[i]);
    return 0;
}
