/*
 * bench.c: how fast the CUDA device is, against what the card could do, measured in the same run.
 *
 *   bench [--tiny] [--layers N] [--ceilings FILE] [--rows FILE] PART ...
 *
 * PART: ceilings attention decode adapters prefill prefill_ways loading. --ceilings keeps what
 * `ceilings` measures for later runs; --rows appends the table's lines, separated by tabs. --tiny:
 * the sizes of a test. The shape is Llama-3.1-8B's; weights are random numbers, the same for all
 * layers: speed does not depend on them, as long as they are not zeros.
 */
#include "bench.h"

#include <stdarg.h>
#include <string.h>
#include <time.h>

bench_sizes bench = {.layers = 32,
                     .hidden = 4096,
                     .heads = 32,
                     .kv_heads = 8,
                     .dim = 128,
                     .ffn = 14336,
                     .vocab = 128256,
                     .batch = 64,
                     .past = 512,
                     .prefill = 4096,
                     .long_past = 32700,
                     .rank = 16,
                     .prompt = 16,
                     .product = 8192,
                     .copy_bytes = (size_t)2 << 30,
                     .host_bytes = (size_t)256 << 20,
                     .repeat = 11};

static const bench_sizes tiny = {.layers = 2,
                                 .hidden = 128,
                                 .heads = 4,
                                 .kv_heads = 2,
                                 .dim = 32,
                                 .ffn = 192,
                                 .vocab = 256,
                                 .batch = 4,
                                 .past = 20,
                                 .prefill = 64,
                                 .long_past = 600,
                                 .rank = 8,
                                 .prompt = 5,
                                 .product = 64,
                                 .copy_bytes = 1 << 20,
                                 .host_bytes = 1 << 20,
                                 .repeat = 1};

ol_error bench_error;
static const char *rows_path;

void bench_die(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

/* -- the table --------------------------------------------------------------------------- */

void bench_row(const bench_line *line, const char *fmt, ...)
{
    FILE *f = rows_path ? fopen(rows_path, "a") : NULL;
    char what[128];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(what, sizeof(what), fmt, ap);
    va_end(ap);
    printf("%-44s %12.2f %-9s", what, line->measured, line->unit);
    if (line->ceiling > 0)
        printf(" of %12.2f: %.3f", line->ceiling, line->measured / line->ceiling);
    printf("\n");
    fflush(stdout);
    if (!f && rows_path)
        bench_die(rows_path, "cannot be written");
    if (f) {
        fprintf(f, "%s\t%s\t%.6g\t%.6g\t%g\n", what, line->unit, line->measured, line->ceiling,
                line->goal);
        fclose(f);
    }
}

/* -- time -------------------------------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double bench_median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof(*v), compare);
    return v[n / 2];
}

double bench_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

cudaStream_t bench_stream(void)
{
    static cudaStream_t stream;

    if (!stream)
        CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}

double bench_time(void (*what)(void *context, cudaStream_t stream), void *context)
{
    cudaStream_t stream = bench_stream();
    cudaEvent_t from, to;
    double t[64];
    float ms;

    CUDA(cudaEventCreateWithFlags(&from, 0));
    CUDA(cudaEventCreateWithFlags(&to, 0));
    for (int i = -3; i < bench.repeat; i++) {
        CUDA(cudaEventRecord(from, stream));
        what(context, stream);
        CUDA(cudaEventRecord(to, stream));
        CUDA(cudaEventSynchronize(to));
        CUDA(cudaEventElapsedTime(&ms, from, to));
        t[i < 0 ? 0 : i] = (double)ms * 1e-3;
    }
    CUDA(cudaEventDestroy(from));
    CUDA(cudaEventDestroy(to));
    return bench_median(t, bench.repeat);
}

/* A million different ones, again and again. */
const uint16_t *bench_numbers(size_t n)
{
    enum { SOME = 1000003 };
    static uint16_t *numbers;
    static size_t have;
    uint64_t state = 1;

    if (n <= have)
        return numbers;
    free(numbers);
    numbers = malloc(n * sizeof(*numbers));
    if (!numbers)
        bench_die("random numbers", "no memory");
    for (size_t i = 0; i < n && i < SOME; i++) {
        float v;
        uint32_t bits;

        state = state * 6364136223846793005u + 1442695040888963407u;
        v = ((float)(state >> 40) * 0x1p-24f - 0.5f) * 0.05f;
        memcpy(&bits, &v, 4);
        numbers[i] = (uint16_t)(bits >> 16);
    }
    for (size_t at = SOME; at < n; at *= 2)
        memcpy(numbers + at, numbers, (n - at < at ? n - at : at) * sizeof(*numbers));
    have = n;
    return numbers;
}

/* -- ceilings, of this run or of the one before -------------------------------------------- */

static bench_ceilings read_ceilings(const char *path)
{
    FILE *f = path ? fopen(path, "r") : NULL;
    bench_ceilings most = {0};
    int n = f ? fscanf(f, "%lf %lf %lf", &most.copy, &most.host, &most.product) : 0;

    if (f)
        fclose(f);
    return n == 3 ? most : bench_measure_ceilings();
}

static void tell_ceilings(const char *path)
{
    bench_ceilings most = bench_measure_ceilings();
    FILE *f = path ? fopen(path, "w") : NULL;

    bench_row(&(bench_line){"GB/s", most.copy / 1e9, 0, 0}, "copy on the device, read and written");
    bench_row(&(bench_line){"GB/s", most.host / 1e9, 0, 0}, "copy from pinned host memory");
    if (most.product > 0)
        bench_row(&(bench_line){"TFLOP/s", most.product / 1e12, 0, 0},
                  "product of %d, bf16, cuBLASLt", bench.product);
    else
        printf("no cuBLASLt: nothing is compared with its product\n");
    if (f) {
        fprintf(f, "%.9g %.9g %.9g\n", most.copy, most.host, most.product);
        fclose(f);
    }
}

typedef struct part {
    const char *name;
    void (*run)(const bench_ceilings *most);
} part;

static void run_part(const char *name, const char *ceilings)
{
    static const part parts[] = {{"attention", bench_attention},       {"decode", bench_decode},
                                 {"adapters", bench_adapters},         {"prefill", bench_prefill},
                                 {"prefill_ways", bench_prefill_ways}, {"loading", bench_loading}};
    bench_ceilings most;

    if (strcmp(name, "ceilings") == 0) {
        tell_ceilings(ceilings);
        return;
    }
    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
        if (strcmp(name, parts[i].name) == 0) {
            most = read_ceilings(ceilings);
            parts[i].run(&most);
            return;
        }
    bench_die(name, "there is no such part");
}

int main(int argc, char **argv)
{
    const char *ceilings = NULL;
    int first = 1;

    for (; first < argc && argv[first][0] == '-'; first++) {
        if (strcmp(argv[first], "--tiny") == 0)
            bench = tiny;
        else if (first + 1 == argc)
            bench_die(argv[first], "needs a value, or is unknown");
        else if (strcmp(argv[first], "--layers") == 0)
            bench.layers = atoi(argv[++first]);
        else if (strcmp(argv[first], "--ceilings") == 0)
            ceilings = argv[++first];
        else if (strcmp(argv[first], "--rows") == 0)
            rows_path = argv[++first];
        else
            bench_die(argv[first], "is unknown");
    }
    if (bench.layers < 1 || bench.layers > 128)
        bench_die("--layers", "1 to 128");
    for (int i = first; i < argc; i++)
        run_part(argv[i], ceilings);
    return 0;
}
