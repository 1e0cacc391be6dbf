/*
 * test_attention.c: attention over pages against float64, and the same bits whichever kernel
 * computes a row.
 *
 * A slot of a page that no row may see is NaN, in FP8 as large as can be, as are columns of q that
 * are nobody's; whatever leaks from there shows. All of it for pages of bf16, and of FP8.
 */
#include "gpu_rig.h"

#include <math.h>

#define MAX_SEQUENCES 8

static bool fp8; /* pages of the tests that run */

typedef struct shape {
    int n_heads, n_kv_heads, head_dim, page_tokens, window;
} shape;

/* A batch: sequences of `past` tokens before their n_rows rows. */
typedef struct batch {
    shape s;
    int n_sequences, past[MAX_SEQUENCES], n_rows[MAX_SEQUENCES];
    int all_rows, longest;
    int32_t *pos, *page_start, *sequence; /* of rows */
    int32_t *pages;
    int starts[MAX_SEQUENCES], n_pages;
    double *q, *keys, *values;            /* [row][head][dim]; [sequence][longest][kv head][dim] */
    int *key_exponents, *value_exponents; /* [sequence][longest][kv head], of FP8 */
    gpu_rows rows;                        /* on the device, but for counts and lists */
    gpu_attention op;
} batch;

static size_t key_at(const batch *b, int sequence, int token, int kv_head)
{
    return (((size_t)sequence * (size_t)b->longest + (size_t)token) * (size_t)b->s.n_kv_heads +
            (size_t)kv_head) *
           (size_t)b->s.head_dim;
}

/* -- making a batch ------------------------------------------------------------------------- */

static void shuffle(int32_t *v, int n)
{
    for (int i = n - 1; i > 0; i--) {
        int j = rig_below(i + 1);
        int32_t t = v[i];

        v[i] = v[j];
        v[j] = t;
    }
}

/* Each sequence's pages, drawn from a pool with some that are nobody's. A sequence's last entry is
 * followed by the next one's, the last one's by nothing. */
static void deal_pages(batch *b)
{
    int n = 0, all;
    int32_t *drawn;

    for (int i = 0; i < b->n_sequences; i++) {
        b->starts[i] = n;
        n += (b->past[i] + b->n_rows[i] + b->s.page_tokens - 1) / b->s.page_tokens;
    }
    all = n + 3;
    drawn = rig_host((size_t)all * sizeof(*drawn));
    for (int i = 0; i < all; i++)
        drawn[i] = i;
    shuffle(drawn, all);
    b->pages = drawn;
    b->rows.pages = rig_device_copy(drawn, (size_t)n * sizeof(*drawn));
    b->n_pages = all;
}

/* The numbers of a key or value, as pages can have them. Exponents are any, also such that numbers
 * are cut off. */
static int draw_numbers(double *v, int n, double scale)
{
    int exponent = -9 + rig_below(5);

    for (int d = 0; d < n; d++)
        v[d] = fp8 ? ldexp(rig_from_f8(rig_f8(ldexp(rig_uniform() * scale, -exponent))), exponent)
                   : rig_from_bf16(rig_bf16(rig_uniform() * scale));
    return exponent;
}

static void draw_tokens(batch *b)
{
    size_t dim = (size_t)b->s.head_dim, numbers = key_at(b, b->n_sequences, 0, 0);

    b->keys = rig_host(numbers * sizeof(double));
    b->values = rig_host(numbers * sizeof(double));
    b->key_exponents = rig_host(numbers / dim * sizeof(int));
    b->value_exponents = rig_host(numbers / dim * sizeof(int));
    for (size_t i = 0; i < numbers / dim; i++) {
        b->key_exponents[i] = draw_numbers(b->keys + i * dim, b->s.head_dim, 2);
        b->value_exponents[i] = draw_numbers(b->values + i * dim, b->s.head_dim, 1);
    }
}

/* A key, or a value, into its row: dimensions beyond head_dim are zero. */
static void put_numbers(const gpu_kv_layer *kv, uint8_t *head, int row, const double *v,
                        int exponent)
{
    uint8_t *to = head + row * gpu_kv_row_bytes(kv);

    memset(to, 0, (size_t)gpu_kv_row_bytes(kv));
    for (int d = 0; d < kv->head_dim; d++) {
        uint16_t bits = rig_bf16(v[d]);

        if (kv->fp8)
            to[rig_f8_place(d)] = rig_f8(ldexp(v[d], -exponent));
        else
            memcpy(to + 2 * d, &bits, 2);
    }
    if (kv->fp8)
        head[2 * kv->page_tokens * kv->dim_stride + row] = (uint8_t)(exponent + 64);
}

static void put_token(const batch *b, uint8_t *pool, int sequence, int token, int kv_head)
{
    const gpu_kv_layer *kv = &b->op.kv;
    int page = b->pages[b->starts[sequence] + token / kv->page_tokens];
    int slot = token % kv->page_tokens;
    uint8_t *head = pool + page * kv->page_stride + kv_head * gpu_kv_head_bytes(kv);
    size_t at = key_at(b, sequence, token, kv_head), i = at / (size_t)kv->head_dim;

    put_numbers(kv, head, slot, b->keys + at, b->key_exponents[i]);
    put_numbers(kv, head, slot + kv->page_tokens, b->values + at, b->value_exponents[i]);
}

/* What was drawn, in pages of bf16 or FP8. */
static void make_pool(batch *b, bool as_fp8)
{
    gpu_kv_layer *kv = &b->op.kv;
    size_t bytes;
    uint8_t *pool;

    kv->fp8 = as_fp8;
    kv->page_stride = kv->n_kv_heads * gpu_kv_head_bytes(kv);
    bytes = (size_t)b->n_pages * (size_t)kv->page_stride;
    pool = rig_host(bytes);
    memset(pool, 0xff, bytes);
    for (int i = 0; i < b->n_sequences; i++) {
        /* what the first row does not see no row does */
        int from = b->s.window && b->past[i] >= b->s.window ? b->past[i] - b->s.window + 1 : 0;

        for (int t = from; t < b->past[i] + b->n_rows[i]; t++)
            for (int h = 0; h < b->s.n_kv_heads; h++)
                put_token(b, pool, i, t, h);
    }
    kv->data = rig_device_copy(pool, bytes);
}

static void place_rows(batch *b)
{
    int row = 0;

    for (int i = 0; i < b->n_sequences; i++)
        for (int r = 0; r < b->n_rows[i]; r++, row++) {
            b->pos[row] = b->past[i] + r;
            b->page_start[row] = b->starts[i];
            b->sequence[row] = i;
        }
}

static void make_queries(batch *b)
{
    size_t width = (size_t)(b->s.n_heads * b->s.head_dim), ld = (size_t)b->op.ldq;
    uint16_t *q = rig_host((size_t)b->all_rows * ld * 2);

    b->q = rig_host((size_t)b->all_rows * width * sizeof(double));
    memset(q, 0xff, (size_t)b->all_rows * ld * 2);
    for (size_t r = 0; r < (size_t)b->all_rows; r++)
        for (size_t i = 0; i < width; i++) {
            q[r * ld + i] = rig_bf16(rig_uniform() * 2);
            b->q[r * width + i] = rig_from_bf16(q[r * ld + i]);
        }
    b->op.q = rig_device_copy(q, (size_t)b->all_rows * ld * 2);
}

static batch make_batch(shape s, int n, const int *past, const int *n_rows)
{
    batch b = {.s = s, .n_sequences = n};
    size_t bytes;

    for (int i = 0; i < n; i++) {
        b.past[i] = past[i];
        b.n_rows[i] = n_rows[i];
        b.all_rows += n_rows[i];
        b.longest = past[i] + n_rows[i] > b.longest ? past[i] + n_rows[i] : b.longest;
    }
    bytes = (size_t)b.all_rows * sizeof(int32_t);
    b.pos = rig_host(bytes);
    b.page_start = rig_host(bytes);
    b.sequence = rig_host(bytes);
    b.op = (gpu_attention){
        .ldq = (s.n_heads * s.head_dim + 63) / 64 * 64 + 64,
        .ldo = (s.n_heads * s.head_dim + 63) / 64 * 64,
        .kv = {.n_kv_heads = s.n_kv_heads,
               .head_dim = s.head_dim,
               .dim_stride = (s.head_dim + 15) / 16 * 16,
               .page_tokens = s.page_tokens},
        .n_heads = s.n_heads,
        .window = s.window,
        .scale = (float)(1 / sqrt(s.head_dim)),
    };
    deal_pages(&b);
    draw_tokens(&b);
    make_pool(&b, fp8);
    place_rows(&b);
    make_queries(&b);
    b.rows.pos = rig_device_copy(b.pos, bytes);
    b.rows.page_start = rig_device_copy(b.page_start, bytes);
    return b;
}

/* -- running ----------------------------------------------------------------------------------- */

static size_t result_size(const batch *b)
{
    return (size_t)b->all_rows * (size_t)b->op.ldo * sizeof(uint16_t);
}

/* The results, NaN where nothing was written. */
static uint16_t *fetch_results(const batch *b)
{
    uint16_t *o = rig_host(result_size(b));

    rig_fetch(o, b->op.o, result_size(b));
    return o;
}

/* Rows list[0 .. n - 1], launched for as many as `launched`; `most` rows of a sequence together. */
static uint16_t *decode_rows(batch *b, const int32_t *list, int n, int launched, int most)
{
    gpu_counts counts = {.n_rows = b->all_rows, .n_decode = n};
    int n_splits = (b->longest - 1) / GPU_KV_SPLIT + 1;
    size_t partial = gpu_attention_partial(&b->op, launched, n_splits) * sizeof(float);

    b->rows.counts = rig_device_copy(&counts, sizeof(counts));
    b->rows.decode_rows = rig_device((size_t)launched * sizeof(*list));
    rig_put((void *)b->rows.decode_rows, list, (size_t)n * sizeof(*list));
    b->op.o = rig_device(result_size(b));
    b->op.partial = rig_device(partial);
    b->op.decode_most = most;
    GPU_OK(gpu_attention_decode(&b->rows, &b->op, launched, n_splits, rig_stream()));
    return fetch_results(b);
}

/* Each row by itself, in random order. */
static uint16_t *decode_all(batch *b)
{
    int32_t *list = rig_host((size_t)b->all_rows * sizeof(*list));

    for (int i = 0; i < b->all_rows; i++)
        list[i] = i;
    shuffle(list, b->all_rows);
    return decode_rows(b, list, b->all_rows, b->all_rows + 1, 1);
}

/* As many of a sequence together as may be. In pieces of random length, so that some stand alone
 * and others follow what they do not go on with. */
static uint16_t *decode_together(batch *b, int most)
{
    int32_t *list = rig_host((size_t)b->all_rows * sizeof(*list));
    int n = 0;

    for (int end = b->all_rows; end > 0;) {
        int from = end - 1 - rig_below(2 * most);

        from = from < 0 ? 0 : from;
        for (int row = from; row < end; row++)
            list[n++] = row;
        end = from;
    }
    return decode_rows(b, list, n, n + 1, most);
}

/* Launched for one tile more than there is. */
static uint16_t *prefill_tiles(batch *b, const gpu_tile *tiles, int n)
{
    gpu_counts counts = {.n_rows = b->all_rows, .n_tiles = n};

    b->rows.counts = rig_device_copy(&counts, sizeof(counts));
    b->rows.tiles = rig_device_copy(tiles, (size_t)n * sizeof(*tiles));
    b->op.o = rig_device(result_size(b));
    GPU_OK(gpu_attention_prefill(&b->rows, &b->op, n + 1, rig_stream()));
    return fetch_results(b);
}

/* All rows, in tiles of at most `largest`: of random sizes if `ragged`, in random order. */
static uint16_t *prefill_all(batch *b, int largest, bool ragged)
{
    gpu_tile *tiles = rig_host((size_t)b->all_rows * sizeof(*tiles));
    int n = 0;

    for (int row = 0; row < b->all_rows; row += tiles[n++].n_rows) {
        int left = row, size = ragged ? 1 + rig_below(largest) : largest;

        while (left < b->all_rows && b->sequence[left] == b->sequence[row] && left - row < size)
            left++;
        tiles[n] = (gpu_tile){row, left - row};
    }
    for (int i = n - 1; i > 0 && ragged; i--) {
        int j = rig_below(i + 1);
        gpu_tile t = tiles[i];

        tiles[i] = tiles[j];
        tiles[j] = t;
    }
    return prefill_tiles(b, tiles, n);
}

/* -- what is right ----------------------------------------------------------------------------- */

/* o of a row and head, by definition. */
static void reference(const batch *b, int row, int head, double *o)
{
    int dim = b->s.head_dim, pos = b->pos[row], kv_head = head / (b->s.n_heads / b->s.n_kv_heads);
    int from = b->s.window && pos >= b->s.window ? pos - b->s.window + 1 : 0;
    const double *q = b->q + (row * b->s.n_heads + head) * dim;
    double *s = calloc((size_t)pos + 1, sizeof(*s)), max = -INFINITY, sum = 0;

    for (int t = from; t <= pos; t++) {
        const double *k = b->keys + key_at(b, b->sequence[row], t, kv_head);

        for (int d = 0; d < dim; d++)
            s[t] += q[d] * k[d];
        s[t] /= sqrt(dim);
        max = s[t] > max ? s[t] : max;
    }
    memset(o, 0, (size_t)dim * sizeof(*o));
    for (int t = from; t <= pos; t++) {
        const double *v = b->values + key_at(b, b->sequence[row], t, kv_head);
        double p = exp(s[t] - max);

        sum += p;
        for (int d = 0; d < dim; d++)
            o[d] += p * v[d];
    }
    for (int d = 0; d < dim; d++)
        o[d] /= sum;
    free(s);
}

static void check_results(const batch *b, const uint16_t *o, const char *what)
{
    rig_gap gap = {0};
    double want[256];

    for (int r = 0; r < b->all_rows; r++) {
        const uint16_t *row = o + r * b->op.ldo;

        for (int h = 0; h < b->s.n_heads; h++) {
            reference(b, r, h, want);
            for (int d = 0; d < b->s.head_dim; d++)
                rig_compare(&gap, rig_from_bf16(row[h * b->s.head_dim + d]), want[d]);
        }
        for (int i = b->s.n_heads * b->s.head_dim; i < b->op.ldo; i++)
            assert_int_equal(row[i], 0xffff);
    }
    /* two roundings to bf16: of p, which a few tokens do not average out, and of the result */
    rig_check_gap(&gap, 1.5 * RIG_BF16, "%s: %d/%d heads of %d, pages of %d, window %d", what,
                  b->s.n_heads, b->s.n_kv_heads, b->s.head_dim, b->s.page_tokens, b->s.window);
}

static void check_same(const batch *b, const uint16_t *x, const uint16_t *y, const char *what)
{
    for (int r = 0; r < b->all_rows; r++)
        if (memcmp(x + r * b->op.ldo, y + r * b->op.ldo, (size_t)b->op.ldo * 2) != 0)
            fail_msg("%s: other bits in row %d (position %d; %d/%d heads of %d, window %d)", what,
                     r, b->pos[r], b->s.n_heads, b->s.n_kv_heads, b->s.head_dim, b->s.window);
}

/* Both kernels, tiles of several sizes, threads in other orders. */
static void check_batch(batch *b)
{
    uint16_t *decoded = decode_all(b), *filled = prefill_all(b, GPU_TILE_ROWS, false);

    check_results(b, decoded, "decode");
    check_same(b, decoded, filled, "decode and prefill");
    check_same(b, decoded, decode_together(b, GPU_DECODE_ROWS), "decode together");
#ifdef OL_SIMT
    simt_settings.seed = 1 + (unsigned)rig_below(1 << 20);
#endif
    check_same(b, decoded, prefill_all(b, 1 + rig_below(40), true), "tiles");
    check_same(b, decoded, decode_all(b), "decode again");
    check_same(b, decoded, decode_together(b, 1 + rig_below(9)), "decode some together");
#ifdef OL_SIMT
    simt_settings.seed = 0;
#endif
    if (fp8) { /* bf16 has all these numbers */
        make_pool(b, false);
        check_same(b, decoded, decode_all(b), "decode from bf16 pages");
        check_same(b, decoded, prefill_all(b, GPU_TILE_ROWS, true), "prefill from bf16 pages");
    }
}

/* -- tests ------------------------------------------------------------------------------------- */

static void every_size_of_heads(void **state)
{
    static const int dims[] = {64, 80, 96, 128, 256, 8, 32, 20, 37, 72, 112, 160, 192, 200};
    const int past[] = {rig_below(90), 0}, n_rows[] = {3, 20};

    (void)state;
    for (size_t i = 0; i < sizeof(dims) / sizeof(*dims); i++) {
        batch b = make_batch((shape){2, 1, dims[i], 16 << rig_below(5), 0}, 2, past, n_rows);

        check_batch(&b);
        rig_free_all();
    }
}

static void every_group_of_heads(void **state)
{
    static const int heads[][2] = {{14, 2}, {5, 1}, {3, 3}, {8, 2}, {16, 1}, {24, 1}, {35, 1}};
    const int past[] = {60, 7}, n_rows[] = {6, 1};

    (void)state;
    for (size_t i = 0; i < sizeof(heads) / sizeof(*heads); i++) {
        batch b = make_batch((shape){heads[i][0], heads[i][1], 24, 16, 0}, 2, past, n_rows);

        check_batch(&b);
        rig_free_all();
    }
}

/* Sequences that begin, end and go on at borders of pages, blocks and splits. */
static void ragged_batches(void **state)
{
    static const int page_tokens[] = {16, 32, 64, 128, 256};
    const int past[] = {0, 15, 16, 63, 64, 500, 511, 512}, n_rows[] = {1, 2, 1, 1, 3, 70, 2, 1};

    (void)state;
    for (size_t i = 0; i < sizeof(page_tokens) / sizeof(*page_tokens); i++) {
        batch b = make_batch((shape){2, 1, 32, page_tokens[i], 0}, 8, past, n_rows);

        check_batch(&b);
        rig_free_all();
    }
}

static void windows(void **state)
{
    static const int wide[] = {1, 2, 16, 63, 64, 65, 100, 511, 512, 600};
    const int past[] = {0, 130, 1100, 575}, n_rows[] = {70, 1, 40, 3};

    (void)state;
    for (size_t i = 0; i < sizeof(wide) / sizeof(*wide); i++) {
        batch b = make_batch((shape){3, 1, 20, 16 << rig_below(5), wide[i]}, 4, past, n_rows);

        check_batch(&b);
        rig_free_all();
    }
}

static void many_rows(void **state)
{
    const int past[] = {300, 0}, n_rows[] = {GPU_TILE_ROWS + 90, 33};
    batch b = make_batch((shape){4, 2, 64, 16, 0}, 2, past, n_rows);

    (void)state;
    check_batch(&b);
    rig_free_all();
}

static void long_contexts(void **state)
{
    const int past[] = {4090, 2047}, n_rows[] = {8, 1};
    batch b = make_batch((shape){2, 1, 64, 16, 0}, 2, past, n_rows);

    (void)state;
    check_batch(&b);
    rig_free_all();
}

/* 32k tokens; in a small run for one row and head. */
static void a_very_long_context(void **state)
{
    const int past[] = {32000}, n_rows[] = {rig_small() ? 1 : 20};
    shape s = rig_small() ? (shape){1, 1, 64, 64, 0} : (shape){8, 2, 128, 64, 0};
    batch b = make_batch(s, 1, past, n_rows);
    uint16_t *decoded = decode_all(&b);

    (void)state;
    check_results(&b, decoded, "decode");
    check_same(&b, decoded, prefill_all(&b, GPU_TILE_ROWS, false), "decode and prefill");
    rig_free_all();
}

/* Scores far apart: the maximum rises late, what came before is next to nothing. */
static void steep_scores(void **state)
{
    const int past[] = {700}, n_rows[] = {5};
    batch b = make_batch((shape){2, 2, 64, 16, 0}, 1, past, n_rows);

    (void)state;
    b.op.scale *= 40;
    check_same(&b, decode_all(&b), prefill_all(&b, GPU_TILE_ROWS, false), "steep");
    for (size_t i = 0; i < (size_t)(b.all_rows * b.s.n_heads * b.s.head_dim); i++)
        b.q[i] *= 40;
    check_results(&b, decode_all(&b), "steep");
    rig_free_all();
}

/* Rows that are in no list stay as they were. */
static void leaves_others_alone(void **state)
{
    const int past[] = {90, 5}, n_rows[] = {2, 4};
    const int32_t list[] = {4, 1};
    const gpu_tile tiles[] = {{4, 1}, {1, 1}};
    batch b = make_batch((shape){4, 2, 32, 16, 0}, 2, past, n_rows);
    const uint16_t *all = decode_all(&b), *some = decode_rows(&b, list, 2, 6, 1);
    const uint16_t *others = prefill_tiles(&b, tiles, 2);
    size_t ld = (size_t)b.op.ldo;

    (void)state;
    for (size_t r = 0; r < 6; r++)
        for (size_t i = 0; i < ld; i++)
            assert_int_equal(some[r * ld + i], r == 4 || r == 1 ? all[r * ld + i] : 0xffff);
    assert_memory_equal(some, others, result_size(&b));
    rig_free_all();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_size_of_heads), cmocka_unit_test(every_group_of_heads),
        cmocka_unit_test(ragged_batches),      cmocka_unit_test(windows),
        cmocka_unit_test(many_rows),           cmocka_unit_test(long_contexts),
        cmocka_unit_test(a_very_long_context), cmocka_unit_test(steep_scores),
        cmocka_unit_test(leaves_others_alone),
    };

    int failed;

    rig_seed();
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    fp8 = true;
    return failed + cmocka_run_group_tests(tests, NULL, NULL);
}
