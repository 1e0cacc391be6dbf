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

#if defined(OL_SIMT) || !__has_include(<cublasLt.h>)
static double product_rate(void)
{
    return 0; /* on the processor, and where a toolkit came without it, there is no cuBLASLt */
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

/* What it cannot do costs the comparisons with it, not what is compared. */
static bool works(cublasStatus_t status, const char *what)
{
    if (status != CUBLAS_STATUS_SUCCESS)
        printf("%s failed: %d\n", what, (int)status);
    return status == CUBLAS_STATUS_SUCCESS;
}
#define LT(name, ...) works(lt.name(__VA_ARGS__), #name)

typedef struct product_job {
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t layout;
    cublasLtMatmulAlgo_t algo;
    void *a, *b, *c, *space;
    size_t space_bytes;
    bool failed;
} product_job;

static void multiply(void *context, cudaStream_t stream)
{
    product_job *p = context;
    float one = 1, zero = 0;

    p->failed = p->failed ||
                !LT(cublasLtMatmul, p->handle, p->op, &one, p->a, p->layout, p->b, p->layout, &zero,
                    p->c, p->layout, p->c, p->layout, &p->algo, p->space, p->space_bytes, stream);
}

static bool plan_product(product_job *p, int64_t n)
{
    cublasLtMatmulHeuristicResult_t found;
    cublasOperation_t transpose = CUBLAS_OP_T;
    cublasLtMatmulPreference_t wish;
    int n_found = 0;

    if (!LT(cublasLtCreate, &p->handle) ||
        !LT(cublasLtMatmulDescCreate, &p->op, CUBLAS_COMPUTE_32F, CUDA_R_32F) ||
        !LT(cublasLtMatmulDescSetAttribute, p->op, CUBLASLT_MATMUL_DESC_TRANSA, &transpose,
            sizeof(transpose)) ||
        !LT(cublasLtMatrixLayoutCreate, &p->layout, CUDA_R_16BF, (uint64_t)n, (uint64_t)n, n) ||
        !LT(cublasLtMatmulPreferenceCreate, &wish) ||
        !LT(cublasLtMatmulPreferenceSetAttribute, wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            &p->space_bytes, sizeof(p->space_bytes)) ||
        !LT(cublasLtMatmulAlgoGetHeuristic, p->handle, p->op, p->layout, p->layout, p->layout,
            p->layout, wish, 1, &found, &n_found))
        return false;
    p->algo = found.algo;
    return n_found > 0;
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
    p.failed = !plan_product(&p, n);
    t = p.failed ? 0 : bench_time(multiply, &p);
    CUDA(cudaFree(p.a));
    CUDA(cudaFree(p.b));
    CUDA(cudaFree(p.c));
    CUDA(cudaFree(p.space));
    if (p.handle)
        (void)LT(cublasLtDestroy, p.handle);
    return p.failed ? 0 : 2.0 * (double)n * (double)n * (double)n / t;
}
#endif

bench_ceilings bench_measure_ceilings(void)
{
    return (bench_ceilings){.copy = copy_rate(), .host = host_rate(), .product = product_rate()};
}
