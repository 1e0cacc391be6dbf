/*
 * test_linear.c: products of all kinds, finishes and sizes against float64; and a row's bits,
 * which no other row and no size of a launch may change.
 *
 * A world has some rows, each with its x and its list of adapters. Launches have any of them,
 * in any order and number; whichever has a row first says what its bits are.
 */
#include "linear_world.h"

/* -- a launch ------------------------------------------------------------- */

/* The step's lists: members in any order, room beyond the real ones without sense. */
static gpu_rows make_rows(const world *w, const int *rows, int n)
{
    gpu_member *members = rig_host((ROWS * ENTRIES + 1) * sizeof(*members));
    int32_t *row_members = rig_host((ROWS * ENTRIES + 1) * 4), *start = rig_host((ROWS + 1) * 4);
    gpu_counts counts = {.n_rows = w->s.logits ? -1 : n, .n_logit_rows = w->s.logits ? n : -1};
    int total = 0, next = 0;

    memset(start, 0xff, (ROWS + 1) * 4);
    for (int r = 0; r < n; r++)
        total += w->n_entries[rows[r]];
    for (int r = 0; r < n; r++) {
        start[r] = next;
        for (int i = 0; i < w->n_entries[rows[r]]; i++) {
            entry e = w->lists[rows[r]][i];
            int at = total - 1 - next;

            members[at] = (gpu_member){w->adapters[e.adapter].device[w->eight], r, i, e.h, -1, NAN};
            row_members[next++] = at;
        }
    }
    start[n] = next;
    counts.n_members = total;
    return (gpu_rows){.counts = rig_device_copy(&counts, sizeof(counts)),
                      .members = rig_device_copy(members, (size_t)(total + 1) * sizeof(*members)),
                      .member_start = rig_device_copy(start, (ROWS + 1) * 4),
                      .row_members = rig_device_copy(row_members, (size_t)(total + 1) * 4),
                      .h = rig_device_copy(w->h_bits, (size_t)(w->h_size + 1) * 2),
                      .lora8 = w->eight};
}

static size_t number_bytes(const world *w)
{
    return w->s.finish == GPU_STORE_F32 || w->s.finish == GPU_ADD_F32 ? 4 : 2;
}

/* What y has before: a number for adding, else poison. */
static float before(const world *w, int i)
{
    return w->s.finish == GPU_ADD_F32 ? (float)(i % 37) - 18 : NAN;
}

static void check_row(world *w, int row, const uint8_t *got, rig_gap *gap)
{
    size_t each = number_bytes(w), bytes = (size_t)w->out * each;
    uint8_t **seen = &w->seen[row][w->poisoned[row] ? w->eight : 0];

    for (int f = 0; !w->poisoned[row] && f < w->out; f++) {
        double add = w->s.finish == GPU_ADD_F32 ? (double)before(w, f) : 0;
        int at = row * w->out + f;
        float v = 0;

        memcpy(&v, got + (size_t)f * each, each);
        rig_compare_sum(gap,
                        each == 4 ? (double)v : rig_from_bf16(*(const uint16_t *)(got + f * 2)),
                        w->want[at] + add, w->size[at]);
    }
    if (!*seen) {
        *seen = rig_host(bytes);
        memcpy(*seen, got, bytes);
    } else if (memcmp(*seen, got, bytes) != 0) {
        fail_msg("a row's bits depend on its launch");
    }
}

/* Rows beyond the real ones and columns beyond the features are as they were. */
static void check_rest(const world *w, const uint8_t *got, int n, int n_launch)
{
    size_t each = number_bytes(w);

    for (int r = 0; r < n_launch; r++)
        for (int f = r < n ? w->out : 0; f < w->ldy; f++) {
            float want = before(w, f);
            const uint8_t *at = got + ((size_t)r * (size_t)w->ldy + (size_t)f) * each;

            if (w->s.finish == GPU_ADD_F32)
                assert_memory_equal(at, &want, 4);
            else
                assert_memory_equal(at, "\xff\xff\xff\xff", each);
        }
}

/* A launch for n_launch rows, of which n are real: rows[0 .. n - 1] of the world. Every second one
 * has adapters in eight bits, of the same numbers: the same bits come out. */
static void launch(world *w, const int *rows, int n, int n_launch)
{
    size_t y_bytes = (size_t)(n_launch * w->ldy) * number_bytes(w);
    uint16_t *x = rig_host((size_t)(n_launch * w->ldx) * 2);
    uint8_t *got = rig_host(y_bytes);
    int32_t *tickets = rig_host(GPU_TICKETS * 4);
    gpu_rows lists = make_rows(w, rows, n);
    gpu_linear op = w->op;
    rig_gap gap = {0};

    memset(x, 0xff, (size_t)(n_launch * w->ldx) * 2);
    for (int r = 0; r < n; r++)
        memcpy(x + r * w->ldx, w->x_bits + rows[r] * w->ldx, (size_t)w->ldx * 2);
    memset(got, 0xff, y_bytes);
    for (int i = 0; w->s.finish == GPU_ADD_F32 && i < n_launch * w->ldy; i++)
        ((float *)got)[i] = before(w, i % w->ldy);
    op.x = rig_device_copy(x, (size_t)(n_launch * w->ldx) * 2);
    op.ldx = w->ldx;
    op.y = rig_device_copy(got, y_bytes);
    op.ldy = w->ldy;
    op.partial = rig_device(gpu_linear_partial(&op, n_launch) * sizeof(float));
    op.tickets = rig_device_copy(tickets, GPU_TICKETS * 4);
    GPU_OK(gpu_linear_run(&lists, &op, n_launch, rig_stream()));
    rig_fetch(got, op.y, y_bytes);
    rig_fetch(tickets, op.tickets, GPU_TICKETS * 4);
    for (int r = 0; r < n; r++)
        check_row(w, rows[r], got + (size_t)(r * w->ldy) * number_bytes(w), &gap);
    w->eight = 1 - w->eight;
    if (gap.n) /* f32 sums of some 1000 terms are good to 1e-5 */
        rig_check_gap(&gap, number_bytes(w) == 4 ? 1e-4 : RIG_BF16, "%d rows of %d", n, n_launch);
    check_rest(w, got, n, n_launch);
    for (int i = 0; i < GPU_TICKETS; i++)
        assert_int_equal(tickets[i], 0);
}

/* Products by groups of warps, where the device has them: of the same rows, the same bits. */
static bool with_groups(void)
{
#ifdef OL_SIMT
    simt_settings.capability = 9;
#endif
    return gpu_linear_has_groups(0);
}

static void launch_groups(world *w, const int *rows, int n, int n_launch)
{
    for (gpu_way way = GPU_WAY_GROUP_128; way <= GPU_WAY_GROUP_256; way++) {
        w->op.way = way;
        launch(w, rows, n, n_launch);
    }
    w->op.way = GPU_WAY_WARP;
}

static void check_groups(shape s, const int *sizes)
{
    world *w = make_world(s);

    if (!with_groups())
        skip();
    for (int i = 0; sizes[i]; i++) {
        int rows[ROWS], n = i % 3 == 2 ? 1 + rig_below(sizes[i]) : sizes[i];

        for (int r = 0; r < n; r++)
            rows[r] = rig_below(POOL);
        launch_groups(w, rows, n, sizes[i]);
        launch(w, rows, n < 20 ? n : 20, n < 20 ? n : 20);
        for (int r = 1; r < 130 && r < n; r++) /* then some tiles have lists that are alike */
            rows[r] = rows[0];
        launch_groups(w, rows, n, sizes[i]);
    }
    rig_free_all();
}

/* Launches of these sizes, all rows real or some, any rows. */
static void check_shape(shape s, const int *sizes)
{
    world *w = make_world(s);

    for (int i = 0; sizes[i]; i++) {
        int rows[ROWS], n = i % 3 == 2 ? 1 + rig_below(sizes[i]) : sizes[i];

        for (int r = 0; r < n; r++)
            rows[r] = rig_below(POOL);
        launch(w, rows, n, sizes[i]);
    }
    rig_free_all();
}

/* -- tests ------------------------------------------------------------ */

static const int all_sizes[] = {5, 1, 8, 3, 16, 30, 64, 100, 8, 130, 0};
static const int some_sizes[] = {2, 12, 64, 0};

static void every_kind_and_finish(void **state)
{
    (void)state;
    for (int kind = GPU_BF16; kind < GPU_KINDS; kind++)
        for (int finish = GPU_STORE_BF16; finish <= GPU_SWIGLU; finish++) {
            shape s = {.finish = (gpu_finish)finish,
                       .kinds = {kind, kind},
                       .rows = {150, 150},
                       .n_parts = finish == GPU_SWIGLU ? 2 : 1,
                       .cols = 300,
                       .splits = 2 + rig_below(3), /* of 5 x 64: 4 leave an empty run */
                       .bias = finish % 2 == 0 || kind == GPU_INT8,
                       .adapters = true};

            check_shape(s, all_sizes);
        }
}

static void parts_side_by_side(void **state)
{
    shape s = {.finish = GPU_STORE_BF16,
               .kinds = {GPU_BF16, GPU_BF16, GPU_BF16},
               .rows = {200, 50, 64},
               .n_parts = 3,
               .cols = 128,
               .bias = true,
               .adapters = true};

    (void)state;
    check_shape(s, all_sizes);
    s.splits = 2;
    s.kinds[1] = s.kinds[2] = GPU_INT4;
    check_shape(s, some_sizes);
    s.kinds[1] = GPU_INT8;
    s.kinds[2] = GPU_INT4M;
    s.finish = GPU_ADD_F32;
    check_shape(s, some_sizes);
}

static void odd_shapes(void **state)
{
    static const int rows[] = {1, 15, 17, 50, 130}, cols[] = {1, 40, 64, 65};

    (void)state;
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 4; j++) {
            shape s = {.finish = (gpu_finish)rig_below(4),
                       .kinds = {rig_below(GPU_KINDS)},
                       .rows = {rows[i], rows[i]},
                       .cols = cols[j],
                       .bias = rig_below(2),
                       .adapters = rig_below(3)};

            s.kinds[1] = s.kinds[0];
            s.n_parts = s.finish == GPU_SWIGLU ? 2 : 1;
            check_shape(s, some_sizes);
        }
}

static void rows_of_logits(void **state)
{
    shape s = {.finish = GPU_STORE_F32, .rows = {50}, .n_parts = 1, .cols = 72, .logits = true};

    (void)state;
    check_shape(s, all_sizes);
}

/* Too few features for a block to sum all runs; some tiles of tokens. */
static void few_features(void **state)
{
    static const int sizes[] = {200, 7, 256, 190, 300, 0};

    (void)state;
    for (int kind = GPU_BF16; kind < GPU_KINDS; kind++) {
        shape s = {.finish = kind == GPU_INT4 ? GPU_SWIGLU : GPU_STORE_F32,
                   .kinds = {kind, kind},
                   .rows = {60, 60},
                   .n_parts = kind == GPU_INT4 ? 2 : 1,
                   .cols = 200,
                   .splits = 3,
                   .bias = true,
                   .adapters = kind != GPU_INT8};

        check_shape(s, sizes);
    }
}

/* Blocks of 256 tokens are for launches that fill the device with them. */
static void many_rows(void **state)
{
    static const int sizes[] = {4, 20, 256, 300, 200, 250, 0};
    int blocks = 4;

    (void)state;
#ifndef OL_SIMT
    GPU_OK(cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, 0));
#endif
    for (int kind = GPU_BF16; kind < GPU_KINDS; kind++) {
        shape s = {.finish = kind == GPU_INT8 ? GPU_SWIGLU : GPU_STORE_BF16,
                   .kinds = {kind, kind},
                   .rows = {blocks * (kind == GPU_INT8 ? 64 : 128) - 10, 0},
                   .n_parts = kind == GPU_INT8 ? 2 : 1,
                   .cols = 200,
                   .splits = 3,
                   .bias = true,
                   .adapters = kind != GPU_INT4};

        s.rows[1] = s.rows[0];
        check_shape(s, sizes);
    }
}

static const int group_sizes[] = {100, 257, 300, 0};

static void groups_of_every_kind_and_finish(void **state)
{
    (void)state;
    for (int kind = GPU_BF16; kind < GPU_KINDS; kind++)
        for (int finish = GPU_STORE_BF16; finish <= GPU_SWIGLU; finish++) {
            shape s = {.finish = (gpu_finish)finish,
                       .kinds = {kind, kind},
                       .rows = {150, 150},
                       .n_parts = finish == GPU_SWIGLU ? 2 : 1,
                       .cols = 420,
                       .splits = 1 + rig_below(4),
                       .bias = rig_below(2),
                       .adapters = true,
                       .alike = (kind + finish) % 2};

            check_groups(s, group_sizes);
        }
}

/* Several adapters a row, ranks beyond a stage, parts with modules of their own. */
static void groups_with_adapters_alike(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        shape s = {.finish = i % 2 ? GPU_SWIGLU : GPU_STORE_BF16,
                   .rows = {130, i % 2 ? 130 : 64, 20},
                   .n_parts = i % 2 ? 2 : 3,
                   .cols = 70 + 64 * i,
                   .bias = i > 1,
                   .adapters = true,
                   .alike = true};

        check_groups(s, group_sizes);
    }
}

/* One row, few columns, runs without columns, more stages than the ring has. */
static void groups_of_odd_shapes(void **state)
{
    static const int cols[] = {1, 64, 65, 128, 1100}, sizes[] = {1, 129, 0};

    (void)state;
    for (int i = 0; i < 5; i++) {
        shape s = {.finish = (gpu_finish)rig_below(3),
                   .kinds = {rig_below(3)},
                   .rows = {1 + rig_below(140)},
                   .n_parts = 1,
                   .cols = cols[i],
                   .splits = i == 3 ? 4 : 1 + i % 2,
                   .bias = rig_below(2)};

        check_groups(s, sizes);
    }
}

static void runs_have_sense(void **state)
{
    (void)state;
    for (int i = 0; i < 2000; i++) {
        int rows = 1 + rig_below(1 << rig_below(19)), cols = 1 + rig_below(1 << rig_below(16));
        int n = gpu_linear_splits(rows, cols), depth = (cols + 63) / 64;
        int run = (depth + n - 1) / n;

        assert_in_range(n, 1, 8);
        assert_true((n - 1) * run < depth); /* none is empty */
        assert_true(n == 1 || run >= 4);
    }
}

/* What a shape refuses, launches nothing. */
static void refuses(void **state)
{
    shape s = {.finish = GPU_SWIGLU,
               .kinds = {GPU_BF16, GPU_BF16},
               .rows = {16, 16},
               .n_parts = 2,
               .cols = 64};
    world *w = make_world(s);
    gpu_rows rows = make_rows(w, NULL, 0);
    gpu_linear op = w->op;

    (void)state;
    op.ldx = 64;
    assert_int_equal(gpu_linear_run(&rows, &op, 0, rig_stream()), cudaSuccess);
    op.parts[1].w.rows = 32;
    assert_int_equal(gpu_linear_run(&rows, &op, 1, rig_stream()), cudaErrorInvalidValue);
    op = w->op;
    op.ldx = 40;
    assert_int_equal(gpu_linear_run(&rows, &op, 1, rig_stream()), cudaErrorInvalidValue);
    rig_free_all();
}

#ifdef OL_SIMT
/* Threads in another order: what is missing a barrier shows. */
static void in_any_order(void **state)
{
    unsigned was = simt_settings.seed;
    shape s = {.finish = GPU_STORE_BF16,
               .kinds = {GPU_INT4},
               .rows = {150},
               .n_parts = 1,
               .cols = 700,
               .splits = 2,
               .adapters = true};

    (void)state;
    for (int kind = GPU_BF16; kind < GPU_KINDS; kind++) {
        simt_settings.seed = (unsigned)rig_next() | 1;
        s.kinds[0] = kind;
        check_shape(s, all_sizes);
    }
    simt_settings.seed = was;
}

static void groups_in_any_order(void **state)
{
    static const int sizes[] = {256, 140, 0};
    unsigned was = simt_settings.seed;

    (void)state;
    for (int i = 0; i < 4; i++) {
        shape s = {.finish = i % 2 ? GPU_SWIGLU : GPU_ADD_F32,
                   .kinds = {i % 3, i % 3},
                   .rows = {i % 2 ? 150 : 300, 150}, /* more tiles than blocks */
                   .n_parts = 1 + i % 2,
                   .cols = i == 2 ? 300 : 600,
                   .splits = i == 2 ? 5 : 1 + i, /* runs of a stage */
                   .adapters = true,
                   .alike = i > 1};

        simt_settings.seed = (unsigned)rig_next() | 3; /* warps run ahead */
        if (i % 2)
            simt_settings.seed--; /* copies arrive early */
        check_groups(s, sizes);
    }
    simt_settings.seed = was;
}

/* A warp that copies has told of a tile's last stage, and then nothing moves it while the others
 * are done with the tile and begin the next one. */
static void groups_with_a_slow_warp(void **state)
{
    static const int sizes[] = {256, 0};
    unsigned was = simt_settings.seed;
    shape s = {.finish = GPU_ADD_F32,
               .kinds = {GPU_BF16},
               .rows = {300},
               .n_parts = 1,
               .cols = 100,
               .splits = 1,
               .adapters = true};

    (void)state;
    for (int i = 0; i < 12; i++) {
        s.alike = i % 2;
        simt_settings.seed = (unsigned)rig_next() | 3;
        check_groups(s, sizes);
    }
    simt_settings.seed = was;
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_and_finish),
        cmocka_unit_test(parts_side_by_side),
        cmocka_unit_test(odd_shapes),
        cmocka_unit_test(rows_of_logits),
        cmocka_unit_test(few_features),
        cmocka_unit_test(many_rows),
        cmocka_unit_test(groups_of_every_kind_and_finish),
        cmocka_unit_test(groups_with_adapters_alike),
        cmocka_unit_test(groups_of_odd_shapes),
        cmocka_unit_test(runs_have_sense),
        cmocka_unit_test(refuses),
#ifdef OL_SIMT
        cmocka_unit_test(in_any_order),
        cmocka_unit_test(groups_in_any_order),
        cmocka_unit_test(groups_with_a_slow_warp),
#endif
    };

    rig_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
