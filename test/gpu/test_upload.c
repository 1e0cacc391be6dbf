/* test_upload.c: adapters on their way to the device, many matrices in one copy: what is there
 * afterwards is, byte for byte, what packing one after the other leaves, wherever in the host's
 * memory they were. */
#include "gpu_rig.h"

#include "kernels/core.h"

#include <math.h>

const ol_device_table *ol_device_entry_point(void);

#define MOST_MODULES 40
#define MOST_ARENAS 6

static ol_error error;
#define OK(expr)                                                                                   \
    do {                                                                                           \
        if ((expr) != OL_OK)                                                                       \
            fail_msg("%s: %s (%s)", #expr, error.message, error.detail);                           \
    } while (0)

/* -- the host's memory ------------------------------------------------------------------------- */

typedef struct arena {
    uint8_t *bytes;
    size_t size, used;
    bool pinned;
} arena;

static arena arena_open(size_t size, bool pinned)
{
    arena a = {.size = size, .pinned = pinned};

    if (pinned)
        GPU_OK(cudaHostAlloc((void **)&a.bytes, size, cudaHostAllocDefault));
    else
        a.bytes = malloc(size);
    assert_non_null(a.bytes);
    memset(a.bytes, 0xff, size); /* what nobody gave is NaN */
    return a;
}

static void arena_close(arena *a)
{
    if (a->pinned)
        GPU_OK(cudaFreeHost(a->bytes));
    else
        free(a->bytes);
    *a = (arena){0};
}

/* At a multiple of `alignment`, `gap` bytes behind the last or just beyond. */
static uint8_t *arena_take(arena *a, size_t bytes, size_t alignment, size_t gap)
{
    size_t at = (a->used + gap + alignment - 1) / alignment * alignment;

    assert_true(at + bytes <= a->size);
    a->used = at + bytes;
    return a->bytes + at;
}

/* -- adapters ---------------------------------------------------------------------------------- */

typedef struct adapter {
    arena arenas[MOST_ARENAS];
    int n_arenas;
    ol_lora_module modules[MOST_MODULES];
    int n;
} adapter;

static void adapter_close(adapter *a)
{
    for (int i = 0; i < a->n_arenas; i++)
        arena_close(&a->arenas[i]);
    a->n_arenas = 0;
}

static ol_tensor tensor_at(uint8_t *at, ol_dtype dtype, int64_t rows, int64_t cols)
{
    size_t each = ol_dtype_block_bytes(dtype);

    for (int64_t i = 0; i < rows * cols; i++) {
        float v = (float)(rig_uniform() * (double)(1 + rig_next() % 4));
        uint16_t half = dtype == OL_F16 ? rig_f16((double)v) : rig_bf16((double)v);

        memcpy(at + (size_t)i * each, dtype == OL_F32 ? (void *)&v : (void *)&half, each);
    }
    return (ol_tensor){"test", dtype, 2, {rows, cols}, at, (size_t)(rows * cols) * each};
}

static size_t random_gap(void)
{
    int kind = rig_below(8);

    return kind == 0 ? 5000 : kind == 1 ? (size_t)rig_below(3000) : 0;
}

/* Of any type, anywhere in one of the arenas. */
static ol_tensor random_tensor(adapter *a, int64_t rows, int64_t cols)
{
    static const ol_dtype dtypes[] = {OL_F32, OL_F16, OL_BF16};
    ol_dtype dtype = dtypes[rig_below(3)];
    size_t alignment = (size_t)1 << rig_below(7);
    uint8_t *at =
        arena_take(&a->arenas[rig_below(a->n_arenas)],
                   (size_t)(rows * cols) * ol_dtype_block_bytes(dtype), alignment, random_gap());

    return tensor_at(at, dtype, rows, cols);
}

static void random_modules(adapter *a)
{
    a->n = 0;
    for (int i = 0; i < MOST_MODULES; i++) {
        int rank = 1 + rig_below(rig_below(5) ? 20 : 70);

        if (rig_below(3) == 0)
            continue;
        a->modules[a->n++] = (ol_lora_module){.layer = i / OL_MODULES,
                                              .module = (ol_module)(i % OL_MODULES),
                                              .rank = rank,
                                              .scale = 1,
                                              .a = random_tensor(a, rank, 1 + rig_below(150)),
                                              .b = random_tensor(a, 1 + rig_below(300), rank)};
    }
}

/* -- what is to be there ----------------------------------------------------------------------- */

/* Packed alone, from memory that is aligned; NULL for `most`: in bf16. */
static uint8_t *pack_alone(const ol_tensor *t, bool by_columns, float *most, size_t *bytes)
{
    int rows = (int)t->shape[0], cols = (int)t->shape[1], ranks = by_columns ? cols : rows;
    int col_tiles = by_columns ? (cols + 15) / 16 : (cols + 63) / 64 * 4;
    gpu_source source = {rig_device_copy(t->data, t->bytes), gpu_source_dtype(t->dtype), rows,
                         cols};
    gpu_lora8 to = {.col_tiles = col_tiles, .by_columns = by_columns};
    size_t padded = (size_t)(ranks + 15) / 16 * 16 * sizeof(float);
    uint8_t *packed;

    *bytes = (size_t)((rows + 15) / 16 * col_tiles) * (most ? 256 : 512);
    to.data = rig_device(*bytes);
    to.most = rig_device_copy(rig_host(padded), padded);
    if (most) {
        GPU_OK(gpu_lora8_most(&to, 0, &source, NULL, rig_stream()));
        GPU_OK(gpu_lora8_pack(&to, 0, &source, rig_stream()));
        rig_fetch(most, to.most, (size_t)ranks * sizeof(float));
    } else
        GPU_OK(gpu_pack_columns((uint16_t *)to.data, col_tiles, 0, &source, NULL, rig_stream()));
    packed = rig_host(*bytes);
    rig_fetch(packed, to.data, *bytes);
    return packed;
}

static void check_matrix(const ol_tensor *t, bool by_columns, float *most, const void *data)
{
    size_t bytes;
    const uint8_t *want = pack_alone(t, by_columns, most, &bytes);
    uint8_t *got = rig_host(bytes);

    rig_fetch(got, data, bytes);
    assert_memory_equal(got, want, bytes);
}

/* B's numbers as the device has them; with `most`, of eight bits. */
static float *numbers_of(const ol_tensor *t, const float *most)
{
    size_t n = (size_t)(t->shape[0] * t->shape[1]), rank = (size_t)t->shape[1];
    float *v = rig_host(n * sizeof(*v));

    ol_dequantize(t->dtype, t->data, v, n);
    for (size_t i = 0; i < n; i++) {
        float scale = most ? most[i % rank] / 127 : 0;

        v[i] = !most       ? (float)rig_from_bf16(rig_bf16((double)v[i]))
               : scale > 0 ? fminf(fmaxf(rintf(v[i] / scale), -127), 127)
                           : 0;
    }
    return v;
}

/* In the order of rows; integers are exact. */
static void check_gram(const ol_tensor *b, const float *most, const float *gram)
{
    int rank = (int)b->shape[1];
    size_t bytes = (size_t)(rank * rank) * sizeof(float);
    const float *v = numbers_of(b, most);
    float *got = rig_host(bytes);

    rig_fetch(got, gram, bytes);
    for (int i = 0; i < rank * rank; i++) {
        const float *x = v + i / rank, *y = v + i % rank;
        int64_t exact = 0;
        float sum = 0;

        for (int64_t row = 0; row < b->shape[0]; row++, x += rank, y += rank) {
            exact += most ? (int64_t)*x * (int64_t)*y : 0;
            sum = most ? (float)exact : fmaf(*x, *y, sum);
        }
        assert_true(got[i] == sum);
    }
}

static void check_module(const ol_lora_module *m, const gpu_lora_part *part, bool eight)
{
    size_t bytes = (size_t)m->rank * sizeof(float);
    float *a = rig_host(bytes), *b = rig_host(bytes), *got = rig_host(bytes);

    assert_int_equal(part->rank, m->rank);
    check_matrix(&m->a, false, eight ? a : NULL, part->a);
    check_matrix(&m->b, true, eight ? b : NULL, part->b);
    check_gram(&m->b, eight ? b : NULL, part->gram);
    if (!eight)
        return;
    rig_fetch(got, part->scales, bytes);
    for (int r = 0; r < m->rank; r++)
        assert_true(got[r] == a[r] / 127 * (b[r] / 127));
}

static void check_lora(const adapter *a, const ol_lora *lora, bool eight)
{
    gpu_lora head;
    gpu_lora_part *parts;

    rig_fetch(&head, lora->block, sizeof(head));
    parts = rig_host((size_t)(head.n_layers * GPU_MODULES) * sizeof(*parts));
    rig_fetch(parts, head.parts, (size_t)(head.n_layers * GPU_MODULES) * sizeof(*parts));
    for (int i = 0; i < a->n; i++)
        check_module(&a->modules[i],
                     &parts[a->modules[i].layer * GPU_MODULES + (int)a->modules[i].module], eight);
}

static ol_device *open_device(bool eight)
{
    ol_device_options options = {.max_rows = 1,
                                 .max_seqs = 1,
                                 .max_logit_rows = 1,
                                 .adapters = eight ? OL_QUANT_INT8 : OL_QUANT_AS_IS};
    ol_device *device;

    OK(ol_device_entry_point()->open(&options, &device, &error));
    return device;
}

/* The adapter's own memory is given back, or overwritten, before anybody looks at the device's. */
static void check(ol_device *device, adapter *a, bool eight)
{
    const ol_device_table *t = ol_device_entry_point();
    adapter kept = *a;
    ol_lora *lora;

    kept.n_arenas = 0;
    for (int i = 0; i < a->n; i++) {
        ol_tensor *both[] = {&kept.modules[i].a, &kept.modules[i].b};

        for (int j = 0; j < 2; j++) {
            void *copy = rig_host(both[j]->bytes);

            memcpy(copy, both[j]->data, both[j]->bytes);
            both[j]->data = copy;
        }
    }
    OK(t->lora_create(device, a->modules, a->n, &lora, &error));
    for (int i = 0; i < a->n_arenas; i++)
        memset(a->arenas[i].bytes, 0xff, a->arenas[i].size);
    adapter_close(a);
    check_lora(&kept, lora, eight);
    t->lora_free(device, lora);
}

/* -- tests ------------------------------------------------------------------------------------- */

static void open_arenas(adapter *a, int n, bool pinned)
{
    a->n_arenas = n;
    for (int i = 0; i < n; i++)
        a->arenas[i] = arena_open((size_t)4 << 20, pinned);
}

/* All kinds of memory, one adapter after another through the same slots. */
static void wherever_they_lie(void **state)
{
    (void)state;
    for (int eight = 0; eight < 2; eight++) {
        ol_device *device = open_device(eight);

        for (int i = 0; i < (rig_small() ? 6 : 60); i++) {
            adapter a = {0};

            open_arenas(&a, 1 + rig_below(MOST_ARENAS), rig_below(2));
            if (a.n_arenas > 1 && rig_below(2)) { /* pinned and not */
                arena_close(&a.arenas[0]);
                a.arenas[0] = arena_open((size_t)4 << 20, !a.arenas[1].pinned);
            }
            random_modules(&a);
            if (a.n > 0)
                check(device, &a, eight);
            adapter_close(&a);
            rig_free_all();
        }
        ol_device_entry_point()->close(device);
    }
}

static void add_module(adapter *a, int rank, int in, int out, ol_dtype dtype)
{
    size_t each = ol_dtype_block_bytes(dtype), wide = (size_t)rank * each;
    ol_lora_module *m = &a->modules[a->n];
    arena *from = &a->arenas[a->n % a->n_arenas];

    *m = (ol_lora_module){.layer = a->n / OL_MODULES,
                          .module = (ol_module)(a->n % OL_MODULES),
                          .rank = rank,
                          .scale = 1};
    m->a = tensor_at(arena_take(from, wide * (size_t)in, each, 0), dtype, rank, in);
    m->b = tensor_at(arena_take(from, wide * (size_t)out, each, 0), dtype, out, rank);
    a->n++;
}

/* Two that fit a slot each but not together; A, and B, that fit none; small ones between. */
static void larger_than_a_slot(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        bool eight = i % 2, pinned = i / 2;
        ol_device *device = open_device(eight);
        adapter a = {.n_arenas = 1};

        a.arenas[0] = arena_open((size_t)30 << 20, pinned);
        add_module(&a, 9, 150000, 20, OL_F32);
        add_module(&a, 9, 150000, 20, OL_F32);
        if (pinned)
            add_module(&a, 14, 160000, 30, OL_F32);
        else
            add_module(&a, 14, 30, 160000, OL_F32);
        check(device, &a, eight);
        rig_free_all();
        ol_device_entry_point()->close(device);
    }
}

/* Small allocations, neighbours where the heap is the processor's: no copy may run from one into
 * the next, whichever of them are pinned. */
static void beside_each_other(void **state)
{
    (void)state;
    for (int i = 0; i < 12; i++) {
        ol_device *device = open_device(i % 2);
        adapter a = {.n_arenas = MOST_ARENAS};

        for (int j = 0; j < MOST_ARENAS; j++)
            a.arenas[j] = arena_open(4000, i < 4 || rig_below(3) > 0);
        for (int j = 0; j < MOST_ARENAS; j++)
            add_module(&a, 1 + rig_below(9), 70, 35, OL_F32);
        check(device, &a, i % 2);
        rig_free_all();
        ol_device_entry_point()->close(device);
    }
}

static void says_what_is_not_finite(void **state)
{
    const ol_device_table *t = ol_device_entry_point();

    (void)state;
    for (int i = 0; i < 8; i++) {
        bool eight = i % 2, in_b = i / 2 % 2, bad = i / 4;
        ol_device *device = open_device(eight);
        adapter a = {0};
        ol_lora *lora = NULL;
        ol_tensor *m;

        open_arenas(&a, 1, rig_below(2));
        for (int j = 0; j < 7; j++)
            add_module(&a, 5 + j, 70, 40, OL_F16);
        m = in_b ? &a.modules[6].b : &a.modules[6].a;
        if (bad)
            memset((uint8_t *)(uintptr_t)m->data + m->bytes - 2, 0xff, 2);
        assert_int_equal(t->lora_create(device, a.modules, a.n, &lora, &error),
                         bad ? OL_INVALID : OL_OK);
        if (!bad)
            t->lora_free(device, lora);
        adapter_close(&a);
        t->close(device);
        rig_free_all();
    }
}

#ifdef OL_SIMT
/* Seven modules: one copy and one kernel, two of eight bits; from pinned memory the table goes
 * alone. Beside these there are the head, and what is made of all matrices. */
static void one_copy_and_one_kernel(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++) {
        bool eight = i % 2, pinned = i / 2 % 2, old = i / 4;
        ol_device *device = open_device(eight);
        adapter a = {0};
        ol_lora *lora;

        open_arenas(&a, 1, pinned);
        for (int j = 0; j < OL_MODULES; j++)
            add_module(&a, 16, 70, 40, OL_BF16);
        simt_settings.no_unregistered = old;
        simt_counted = (simt_traffic){0};
        OK(ol_device_entry_point()->lora_create(device, a.modules, a.n, &lora, &error));
        simt_settings.no_unregistered = 0;
        assert_int_equal(simt_counted.copies_in, pinned ? 3 : 2);
        assert_int_equal(simt_counted.launches, eight ? 4 : 2);
        assert_int_equal(simt_counted.pageable, 0);
        assert_int_equal(cudaGetLastError(), cudaSuccess);
        ol_device_entry_point()->lora_free(device, lora);
        adapter_close(&a);
        ol_device_entry_point()->close(device);
    }
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wherever_they_lie),       cmocka_unit_test(larger_than_a_slot),
        cmocka_unit_test(beside_each_other),       cmocka_unit_test(says_what_is_not_finite),
#ifdef OL_SIMT
        cmocka_unit_test(one_copy_and_one_kernel),
#endif
    };

    rig_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
