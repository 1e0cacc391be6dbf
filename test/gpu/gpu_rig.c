/* gpu_rig.c: see gpu_rig.h. */
#include "gpu_rig.h"

#include "base/tensor.h"

#include <math.h>
#include <stdio.h>
#include <time.h>

void rig_cuda(cudaError_t code, const char *what, const char *file, int line)
{
    if (code == cudaSuccess)
        return;
    print_error("%s: %s (%s)\n", what, cudaGetErrorName(code), cudaGetErrorString(code));
    _fail(file, line);
}

/* -- random numbers --------------------------------------------------------------------- */

static uint64_t state;

void rig_seed(void)
{
    const char *given = getenv("OL_SEED");
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    state = given ? strtoull(given, NULL, 10) : (uint64_t)now.tv_nsec ^ (uint64_t)now.tv_sec << 20;
    if (getenv("OL_TEST")) /* one of them alone */
        cmocka_set_test_filter(getenv("OL_TEST"));
    print_message("OL_SEED=%llu\n", (unsigned long long)state);
#ifdef OL_SIMT
    simt_settings.streams = (simt_when)(state % 3);
#endif
}

uint64_t rig_next(void)
{
    uint64_t z = state += 0x9E3779B97F4A7C15u; /* splitmix64 */

    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

int rig_below(int n)
{
    return (int)(rig_next() % (uint64_t)n);
}

bool rig_small(void)
{
#ifdef OL_SIMT
    return true;
#else
    return getenv("OL_SMALL") != NULL;
#endif
}

double rig_uniform(void)
{
    return (double)(rig_next() >> 11) * 0x1p-52 - 1.0;
}

#ifdef OL_SIMT
#define ORDERS 3 /* theirs, random ones, a warp after the other: test/simt */
#else
#define ORDERS 1
#endif

int rig_run_in_orders(const struct CMUnitTest *tests, size_t n)
{
    int failed = 0;

    rig_seed();
    for (unsigned order = 0; order < ORDERS; order++) {
#ifdef OL_SIMT
        simt_settings.seed = order;
#endif
        failed += _cmocka_run_group_tests("tests", tests, n, NULL, NULL);
    }
    return failed;
}

/* -- memory ------------------------------------------------------------------------------- */

#define MAX_BLOCKS 4096

static void *device_blocks[MAX_BLOCKS], *host_blocks[MAX_BLOCKS];
static int n_device, n_host;
static cudaStream_t stream;

cudaStream_t rig_stream(void)
{
    if (!stream)
        GPU_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}

void rig_poison(void *device, size_t bytes)
{
    GPU_OK(cudaMemsetAsync(device, 0xff, bytes, rig_stream()));
    GPU_OK(cudaStreamSynchronize(rig_stream()));
}

void *rig_device(size_t bytes)
{
    void *p;

    assert_true(n_device < MAX_BLOCKS);
    GPU_OK(cudaMalloc(&p, bytes ? bytes : 1));
    device_blocks[n_device++] = p;
    rig_poison(p, bytes ? bytes : 1);
    return p;
}

void rig_put(void *device, const void *from, size_t bytes)
{
    GPU_OK(cudaMemcpyAsync(device, from, bytes, cudaMemcpyHostToDevice, rig_stream()));
    GPU_OK(cudaStreamSynchronize(rig_stream()));
}

void *rig_device_copy(const void *from, size_t bytes)
{
    void *p = rig_device(bytes);

    rig_put(p, from, bytes);
    return p;
}

void rig_fetch(void *to, const void *device, size_t bytes)
{
    GPU_OK(cudaMemcpyAsync(to, device, bytes, cudaMemcpyDeviceToHost, rig_stream()));
    GPU_OK(cudaStreamSynchronize(rig_stream()));
}

void *rig_host(size_t bytes)
{
    assert_true(n_host < MAX_BLOCKS);
    host_blocks[n_host] = calloc(1, bytes ? bytes : 1);
    assert_non_null(host_blocks[n_host]);
    return host_blocks[n_host++];
}

void rig_free_all(void)
{
    while (n_device > 0)
        GPU_OK(cudaFree(device_blocks[--n_device]));
    while (n_host > 0)
        free(host_blocks[--n_host]);
}

/* -- numbers ------------------------------------------------------------------------------- */

uint16_t rig_bf16(double v)
{
    return ol_f32_to_bf16((float)v);
}

double rig_from_bf16(uint16_t v)
{
    uint32_t bits = (uint32_t)v << 16;
    float f;

    memcpy(&f, &bits, 4);
    return f;
}

uint16_t rig_f16(double v)
{
    return ol_f32_to_f16((float)v);
}

double rig_from_f16(uint16_t v)
{
    float f;

    ol_dequantize(OL_F16, (const uint8_t *)&v, &f, 1);
    return f;
}

/* Between two neighbours of those there are, which are in order. */
uint8_t rig_f8(double v)
{
    int low = 0, high = 0x7e;
    double below, above;

    while (high - low > 1) {
        int middle = (low + high) / 2;

        if (ol_f8_to_f32((uint8_t)middle) <= fabs(v))
            low = middle;
        else
            high = middle;
    }
    below = fabs(v) - (double)ol_f8_to_f32((uint8_t)low);
    above = (double)ol_f8_to_f32((uint8_t)high) - fabs(v);
    if (above < below || (above == below && high % 2 == 0))
        low = high;
    return (uint8_t)(low | (signbit(v) ? 0x80 : 0));
}

double rig_from_f8(uint8_t v)
{
    return ol_f8_to_f32(v);
}

int rig_f8_place(int d)
{
    return d / 16 * 16 + d % 8 * 2 + (d % 16 < 8);
}

uint16_t *rig_random_bf16(size_t n, double scale, double **values)
{
    uint16_t *out = rig_host(n * sizeof(*out));

    if (values)
        *values = rig_host(n * sizeof(**values));
    for (size_t i = 0; i < n; i++) {
        out[i] = rig_bf16(rig_uniform() * scale);
        if (values)
            (*values)[i] = rig_from_bf16(out[i]);
    }
    return out;
}

float *rig_random_f32(size_t n, double mean, double scale)
{
    float *out = rig_host(n * sizeof(*out));

    for (size_t i = 0; i < n; i++)
        out[i] = (float)(mean + scale * rig_uniform());
    return out;
}

uint16_t *rig_pack_bf16(const uint16_t *matrix, int rows, int cols, size_t *bytes)
{
    int row_tiles = (rows + 15) / 16, col_tiles = (cols + 63) / 64 * 4;
    uint16_t *out = rig_host((size_t)row_tiles * (size_t)col_tiles * 512);

    *bytes = (size_t)row_tiles * (size_t)col_tiles * 512;
    for (int i = 0; i < row_tiles; i++)
        for (int k = 0; k < col_tiles; k++)
            for (int lane = 0; lane < 32; lane++)
                for (int j = 0; j < 8; j++) {
                    int row = 16 * i + lane / 4 + 8 * (j / 2 % 2);
                    int col = 16 * k + 2 * (lane % 4) + j % 2 + 8 * (j / 4);

                    if (row < rows && col < cols)
                        out[(((size_t)i * (size_t)col_tiles + (size_t)k) * 32 + (size_t)lane) * 8 +
                            (size_t)j] = matrix[(size_t)row * (size_t)cols + (size_t)col];
                }
    return out;
}

int8_t *rig_pack_lora8(const int8_t *matrix, int rows, int cols, bool by_columns, size_t *bytes)
{
    static const int places[] = {0, 2, 1, 3, 4, 6, 5, 7};
    size_t col_tiles = (size_t)(by_columns ? (cols + 15) / 16 : (cols + 63) / 64 * 4);
    int8_t *out = rig_host(*bytes = (size_t)((rows + 15) / 16) * col_tiles * 256);

    for (int row = 0; row < rows; row++)
        for (int col = 0; col < cols; col++) {
            size_t tile = (size_t)(row / 16) * col_tiles + (size_t)(col / 16);
            size_t lane = (size_t)(row % 8 * 4 + col % 8 / 2);
            int j = col % 2 + 2 * (row % 16 / 8) + 4 * (col % 16 / 8);
            size_t at =
                by_columns ? tile * 256 + lane * 8 : tile / 2 * 512 + lane * 16 + tile % 2 * 8;

            out[at + (size_t)places[j]] = matrix[(size_t)row * (size_t)cols + (size_t)col];
        }
    return out;
}

/* -- comparing -------------------------------------------------------------------------------- */

void rig_compare(rig_gap *gap, double got, double want)
{
    rig_compare_sum(gap, got, want, 0);
}

void rig_compare_sum(rig_gap *gap, double got, double want, double size)
{
    double e = fabs(got - want);

    if (!(e <= 1e150))
        e = 1e150;
    size = fmax(size, fabs(want));
    gap->error += e * e;
    gap->norm += size * size;
    e -= fabs(want) / 256;
    gap->worst = e > gap->worst ? e : gap->worst;
    gap->n++;
}

void rig_check_gap(const rig_gap *gap, double rms, const char *fmt, ...)
{
    double n = gap->n ? (double)gap->n : 1;
    double scale = sqrt(gap->norm / n) + 1e-30;
    double got = sqrt(gap->error / n) / scale, worst = gap->worst / scale;
    char what[256];
    va_list ap;

    if (gap->n && got <= rms && worst <= 8 * rms)
        return;
    va_start(ap, fmt);
    vsnprintf(what, sizeof(what), fmt, ap);
    va_end(ap);
    fail_msg("%s: error %.3g of the norm, worst element %.3g; admitted %.3g, %.3g", what, got,
             worst, rms, 8 * rms);
}
