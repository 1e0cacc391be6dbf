/* bench_ceilings.c: what the machine can do: copies, and a large product by cuBLASLt, which is
 * opened at run time, as it lies in different places and may be missing. */
#include "bench.h"

#include <string.h>

typedef struct copy_job {
    void *to;
    const void *from;
    size_t bytes;
    enum cudaMemcpyKind kind;
} copy_job;

static void copy(void *context, cudaStream_t stream)
{
    const copy_job *job = context;

    CUDA(cudaMemcpyAsync(job->to, job->from, job->bytes, job->kind, stream));
}

static double copy_rate(void)
{
    size_t bytes = bench.copy_bytes;
    void *a, *b;
    double t;

    CUDA(cudaMalloc(&a, bytes));
    CUDA(cudaMalloc(&b, bytes));
    CUDA(cudaMemsetAsync(a, 0x3c, bytes, bench_stream()));
    t = bench_time(copy, &(copy_job){b, a, bytes, cudaMemcpyDeviceToDevice});
    CUDA(cudaFree(a));
    CUDA(cudaFree(b));
    return 2.0 * (double)bytes / t;
}

static double host_rate(void)
{
    size_t bytes = bench.host_bytes;
    void *a, *b;
    double t;

    CUDA(cudaHostAlloc(&a, bytes, cudaHostAllocDefault));
    CUDA(cudaMalloc(&b, bytes));
    memset(a, 1, bytes);
    t = bench_time(copy, &(copy_job){b, a, bytes, cudaMemcpyHostToDevice});
    CUDA(cudaFreeHost(a));
    CUDA(cudaFree(b));
    return (double)bytes / t;
}

#ifdef OL_SIMT
static double product_rate(void)
{
    return 0; /* there is no cuBLASLt on the processor */
}
#else
#include <cublasLt.h>
#include <dlfcn.h>

/* clang-format off */
#define SYMBOLS(X)                                                                                 \
    X(cublasLtCreate) X(cublasLtDestroy) X(cublasLtMatmulDescCreate)                               \
    X(cublasLtMatmulDescSetAttribute) X(cublasLtMatrixLayoutCreate)                                \
    X(cublasLtMatmulPreferenceCreate) X(cublasLtMatmulPreferenceSetAttribute)                      \
    X(cublasLtMatmulAlgoGetHeuristic) X(cublasLtMatmul)
/* clang-format on */

#define DECLARE(name) __typeof__(name) *name;
static struct {
    SYMBOLS(DECLARE)
} lt;

static void *open_library(void)
{
    const char *given = getenv("OL_CUBLASLT");
    void *library = given && given[0] ? dlopen(given, RTLD_NOW) : NULL;

    return library ? library : dlopen("libcublasLt.so.13", RTLD_NOW);
}

static bool load(void)
{
    void *library = open_library(), *symbol;

    if (!library)
        return false;
#define FIND(name)                                                                                 \
    symbol = dlsym(library, #name);                                                                \
    if (!symbol)                                                                                   \
        return false;                                                                              \
    memcpy(&lt.name, &symbol, sizeof(symbol));
    SYMBOLS(FIND)
    return true;
}

#define LT(expr)                                                                                   \
    do {                                                                                           \
        if ((expr) != CUBLAS_STATUS_SUCCESS)                                                       \
            bench_die(#expr, "cuBLASLt failed");                                                   \
    } while (0)

typedef struct product_job {
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t layout;
    cublasLtMatmulAlgo_t algo;
    void *a, *b, *c, *space;
    size_t space_bytes;
} product_job;

static void multiply(void *context, cudaStream_t stream)
{
    product_job *p = context;
    float one = 1, zero = 0;

    LT(lt.cublasLtMatmul(p->handle, p->op, &one, p->a, p->layout, p->b, p->layout, &zero, p->c,
                         p->layout, p->c, p->layout, &p->algo, p->space, p->space_bytes, stream));
}

static void plan_product(product_job *p, int64_t n)
{
    cublasLtMatmulHeuristicResult_t found;
    cublasOperation_t transpose = CUBLAS_OP_T;
    cublasLtMatmulPreference_t wish;
    int n_found;

    LT(lt.cublasLtCreate(&p->handle));
    LT(lt.cublasLtMatmulDescCreate(&p->op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    LT(lt.cublasLtMatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_TRANSA, &transpose,
                                         sizeof(transpose)));
    LT(lt.cublasLtMatrixLayoutCreate(&p->layout, CUDA_R_16BF, (uint64_t)n, (uint64_t)n, n));
    LT(lt.cublasLtMatmulPreferenceCreate(&wish));
    LT(lt.cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                               &p->space_bytes, sizeof(p->space_bytes)));
    LT(lt.cublasLtMatmulAlgoGetHeuristic(p->handle, p->op, p->layout, p->layout, p->layout,
                                         p->layout, wish, 1, &found, &n_found));
    if (n_found < 1)
        bench_die("cublasLtMatmulAlgoGetHeuristic", "found none");
    p->algo = found.algo;
}

/* Operations a second, of random numbers: of zeros a card computes faster. */
static double product_rate(void)
{
    int64_t n = bench.product;
    size_t bytes = (size_t)(n * n) * 2;
    product_job p = {.space_bytes = (size_t)64 << 20};
    const uint16_t *numbers = bench_numbers((size_t)(n * n));
    double t;

    if (!load())
        return 0;
    CUDA(cudaMalloc(&p.a, bytes));
    CUDA(cudaMalloc(&p.b, bytes));
    CUDA(cudaMalloc(&p.c, bytes));
    CUDA(cudaMalloc(&p.space, p.space_bytes));
    CUDA(cudaMemcpy(p.a, numbers, bytes, cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(p.b, numbers, bytes, cudaMemcpyHostToDevice));
    plan_product(&p, n);
    t = bench_time(multiply, &p);
    CUDA(cudaFree(p.a));
    CUDA(cudaFree(p.b));
    CUDA(cudaFree(p.c));
    CUDA(cudaFree(p.space));
    LT(lt.cublasLtDestroy(p.handle));
    return 2.0 * (double)n * (double)n * (double)n / t;
}
#endif

bench_ceilings bench_measure_ceilings(void)
{
    return (bench_ceilings){.copy = copy_rate(), .host = host_rate(), .product = product_rate()};
}
