/* test_shrink.c: h of members and their energies, from whatever list they stand in. */
#include "gpu_rig.h"

#include <math.h>

#define LAYERS 2
#define ROWS 90
#define ADAPTERS 4
#define MEMBERS 96 /* at most */
#define ITEMS MEMBERS
#define PARTS (LAYERS * GPU_MODULES)

/* The launch's shape. */
typedef struct shape {
    int cols, layer, first, last;
    bool eight; /* bits a number */
} shape;

/* An adapter, for the host (parts' pointers are the device's). */
typedef struct adapter {
    gpu_lora_part parts[PARTS];
    double *a[PARTS];
    const float *gram[PARTS];
    gpu_lora lora;
    const gpu_lora *device;
} adapter;

/* A member before it has its place. */
typedef struct wish {
    int adapter, row, energy;
    float weight;
} wish;

typedef struct world {
    shape s;
    int ldx;
    double *x; /* [ROWS][ldx] */
    uint16_t *device_x;
    adapter adapters[ADAPTERS];
    int max_h;
} world;

/* -- making ---------------------------------------------------------------------------------- */

/* A in eight bits, its ranks with scales of their own, in place of what there is. */
static void make_eight(world *w, adapter *a, int i)
{
    gpu_lora_part *part = &a->parts[i];
    int8_t *numbers = rig_host((size_t)(part->rank * w->s.cols));
    float *scales = rig_host((size_t)part->rank * sizeof(float));
    size_t bytes;

    for (int r = 0; r < part->rank; r++) {
        scales[r] = (float)(0.01 + 0.008 * rig_uniform());
        for (int k = r * w->s.cols; k < (r + 1) * w->s.cols; k++) {
            numbers[k] = (int8_t)(rig_below(255) - 127);
            a->a[i][k] = (double)numbers[k] * (double)scales[r];
        }
    }
    numbers = rig_pack_lora8(numbers, part->rank, w->s.cols, false, &bytes);
    part->a = rig_device_copy(numbers, bytes);
    part->scales = rig_device_copy(scales, (size_t)part->rank * sizeof(float));
}

static void make_part(world *w, adapter *a, int i, int rank)
{
    gpu_lora_part *part = &a->parts[i];
    float *gram = rig_random_f32((size_t)(rank * rank), 0, 1);
    size_t bytes;

    for (int r = 0; r < rank; r++) { /* of some B: heavy on the diagonal, symmetric */
        for (int c = 0; c < r; c++)
            gram[r * rank + c] = gram[c * rank + r];
        gram[r * rank + r] += (float)rank;
    }
    part->rank = rank;
    part->scale = (float)(1 + 0.5 * rig_uniform());
    if (rank) {
        uint16_t *dense = rig_random_bf16((size_t)(rank * w->s.cols), 1, &a->a[i]);
        uint16_t *packed = rig_pack_bf16(dense, rank, w->s.cols, &bytes);

        part->a = rig_device_copy(packed, bytes);
        if (w->s.eight)
            make_eight(w, a, i);
        part->gram = rig_device_copy(gram, (size_t)(rank * rank) * sizeof(float));
    }
    a->gram[i] = gram;
}

/* h of the modules of an input lie behind each other. */
static void place(world *w, adapter *a)
{
    static const int inputs[] = {0, 3, 4, 6, 7};

    a->lora.h_stride = 0;
    for (int layer = 0; layer < LAYERS; layer++)
        for (int i = 0; i < 4; i++) {
            int h = 0;

            for (int m = inputs[i]; m < inputs[i + 1]; m++) {
                gpu_lora_part *part = &a->parts[layer * GPU_MODULES + m];

                part->h = h;
                h += (part->rank + 15) / 16 * 16;
            }
            a->lora.h_stride = h > a->lora.h_stride ? h : a->lora.h_stride;
        }
    w->max_h = a->lora.h_stride > w->max_h ? a->lora.h_stride : w->max_h;
}

/* The first adapter has one rank for all, the last one has no second layer; the others have
 * modules of all sorts. */
static void make_adapter(world *w, int number)
{
    static const int ranks[] = {0, 1, 8, 16, 17, 40, 64};
    adapter *a = &w->adapters[number];

    for (int i = 0; i < PARTS; i++)
        make_part(w, a, i, number ? ranks[rig_below(7)] : 16);
    place(w, a);
    a->lora.parts = rig_device_copy(a->parts, sizeof(a->parts));
    a->lora.n_layers = number == ADAPTERS - 1 ? 1 : LAYERS;
    a->device = rig_device_copy(&a->lora, sizeof(a->lora));
}

static world make_world(shape s)
{
    world w = {.s = s, .ldx = (s.cols + GPU_PAD - 1) / GPU_PAD * GPU_PAD};
    uint16_t *x = rig_random_bf16((size_t)(ROWS * w.ldx), 1, &w.x);

    for (int r = 0; r < ROWS; r++)
        for (int i = s.cols; i < w.ldx; i++)
            x[r * w.ldx + i] = 0;
    w.device_x = rig_device_copy(x, (size_t)(ROWS * w.ldx) * 2);
    for (int i = 0; i < ADAPTERS; i++)
        make_adapter(&w, i);
    return w;
}

/* -- running --------------------------------------------------------------------------------- */

typedef struct result {
    int64_t h_size;
    uint16_t *h;
    double *energy;
    int32_t at[MEMBERS]; /* where a wish's h is */
} result;

/* Members adapter by adapter, in items of `grain` at most; the wishes in the order given. */
static void list(const world *w, const wish *wishes, const int *order, int n, int grain,
                 gpu_member *members, gpu_item *items, gpu_counts *counts, result *out)
{
    int32_t h = 0;

    for (int a = ADAPTERS - 1; a >= 0; a--) {
        gpu_item *open = NULL;

        for (int i = 0; i < n; i++) {
            const wish *m = &wishes[order[i]];

            if (m->adapter != a)
                continue;
            if (!open || open->n == grain) {
                open = &items[counts->n_items++];
                *open = (gpu_item){counts->n_members, 0};
            }
            open->n++;
            members[counts->n_members++] =
                (gpu_member){w->adapters[a].device, m->row, 0, h, m->energy, m->weight};
            out->at[order[i]] = h;
            h += w->adapters[a].lora.h_stride;
        }
    }
}

/* With `spare` more items and members in the launch than there are. */
static result run(const world *w, const wish *wishes, const int *order, int n, int grain, int spare)
{
    gpu_member *members = rig_host((MEMBERS + 8) * sizeof(*members));
    gpu_item *items = rig_host((ITEMS + 8) * sizeof(*items));
    gpu_counts counts = {.n_rows = ROWS};
    result out = {.h_size = (int64_t)(MEMBERS + 8) * w->max_h};
    size_t size = (size_t)out.h_size, runs = (size_t)(w->s.cols - 1) / GPU_SHRINK_SPLIT + 1;
    double *energy = rig_host(MEMBERS * sizeof(double));
    gpu_shrink op = {w->device_x, w->ldx, w->s.cols, w->s.layer, w->s.first, w->s.last, NULL};
    int32_t *tickets = rig_host(ITEMS * sizeof(*tickets));
    gpu_rows rows;

    memset(members, 0xff, (MEMBERS + 8) * sizeof(*members)); /* beyond the real ones: no sense */
    memset(items, 0xff, (ITEMS + 8) * sizeof(*items));
    list(w, wishes, order, n, grain, members, items, &counts, &out);
    for (int i = 0; i < MEMBERS; i++)
        energy[i] = i; /* what other modules left */
    rows = (gpu_rows){.counts = rig_device_copy(&counts, sizeof(counts)),
                      .members = rig_device_copy(members, (MEMBERS + 8) * sizeof(*members)),
                      .items = rig_device_copy(items, (ITEMS + 8) * sizeof(*items)),
                      .h = rig_device(size * 2),
                      .partial = rig_device(runs * size * sizeof(float)),
                      .h_size = out.h_size,
                      .energy = rig_device_copy(energy, MEMBERS * sizeof(double)),
                      .lora8 = w->s.eight};
    op.tickets = rig_device_copy(tickets, ITEMS * sizeof(*tickets));
    GPU_OK(
        gpu_shrink_run(&rows, &op, counts.n_items + spare, counts.n_members + spare, rig_stream()));
    out.h = rig_host(size * 2);
    out.energy = energy;
    rig_fetch(out.h, rows.h, size * 2);
    rig_fetch(out.energy, rows.energy, MEMBERS * sizeof(double));
    rig_fetch(tickets, op.tickets, ITEMS * sizeof(*tickets));
    for (int i = 0; i < ITEMS; i++)
        assert_int_equal(tickets[i], 0);
    return out;
}

/* -- in float64 ------------------------------------------------------------------------------- */

/* size: of the terms, for rig_compare_sum. */
static void want_part(const world *w, const wish *m, int i, double *h, double *size)
{
    const adapter *a = &w->adapters[m->adapter];
    double scale = (double)m->weight * (double)a->parts[i].scale;

    for (int r = 0; r < a->parts[i].rank; r++) {
        double sum = 0, squares = 0;

        for (int k = 0; k < w->s.cols; k++) {
            double term = a->a[i][(size_t)r * (size_t)w->s.cols + (size_t)k] *
                          w->x[(size_t)m->row * (size_t)w->ldx + (size_t)k];

            sum += term;
            squares += term * term;
        }
        h[r] = sum * scale;
        size[r] = sqrt(squares) * fabs(scale);
    }
}

/* Compares a part's h, poisons it again, and returns its energy. */
static double check_part(const world *w, const wish *m, int i, uint16_t *h, rig_gap *gap)
{
    const adapter *a = &w->adapters[m->adapter];
    int rank = a->parts[i].rank;
    double want[64], size[64], energy = 0;

    want_part(w, m, i, want, size);
    for (int r = 0; r < rank; r++) {
        rig_compare_sum(gap, rig_from_bf16(h[r]), want[r], size[r]);
        for (int c = 0; c < rank; c++)
            energy += want[r] * want[c] * (double)a->gram[i][r * rank + c];
    }
    for (int r = rank; r < (rank + 15) / 16 * 16; r++)
        assert_int_equal(h[r], 0);
    memset(h, 0xff, (size_t)(rank + 15) / 16 * 16 * 2);
    return energy;
}

static void check(const world *w, const wish *wishes, int n, result *got)
{
    rig_gap gap = {0};
    double energy[MEMBERS],
        largest = 0; /* of a member: where h cancels its error is of its parts */

    for (int i = 0; i < MEMBERS; i++)
        energy[i] = i;
    for (int i = 0; i < n; i++) {
        const wish *m = &wishes[i];
        const adapter *a = &w->adapters[m->adapter];
        double sum = 0;

        for (int p = w->s.first; p <= w->s.last && w->s.layer < a->lora.n_layers; p++) {
            int part = w->s.layer * GPU_MODULES + p;

            sum += check_part(w, m, part, got->h + got->at[i] + a->parts[part].h, &gap);
        }
        if (m->energy >= 0)
            energy[m->energy] += sum;
        largest = sum > largest ? sum : largest;
    }
    if (gap.n)
        rig_check_gap(&gap, RIG_BF16, "h of %d columns, modules %d to %d", w->s.cols, w->s.first,
                      w->s.last);
    for (int i = 0; i < MEMBERS; i++)
        if (fabs(got->energy[i] - energy[i]) > 1e-5 * energy[i] + 1e-6 * largest)
            fail_msg("energy %d is %.9g, not %.9g", i, got->energy[i], energy[i]);
    for (int64_t i = 0; i < got->h_size; i++)
        assert_int_equal(got->h[i], 0xffff);
}

/* -- the tests --------------------------------------------------------------------------------- */

/* n members of adapters `from` to `to`, some with energies. */
static void wish_for(wish *wishes, int n, int from, int to)
{
    for (int i = 0; i < n; i++)
        wishes[i] = (wish){from + rig_below(to - from + 1), rig_below(ROWS), rig_below(3) ? i : -1,
                           (float)(0.2 + rig_uniform())};
}

static void shuffle(int *order, int n)
{
    for (int i = 0; i < n; i++)
        order[i] = i;
    for (int i = n - 1; i > 0; i--) {
        int j = rig_below(i + 1), was = order[i];

        order[i] = order[j];
        order[j] = was;
    }
}

static void shrinks(void **state)
{
    static const shape shapes[] = {
        {100, 0, 0, 2, false}, {64, 1, 4, 5, true},    {1100, 1, 3, 3, false},
        {2048, 0, 4, 5, true}, {3000, 1, 0, 2, false}, {896, 0, 6, 6, true},
        {100, 0, 0, 2, true},  {64, 1, 4, 5, false},   {3000, 1, 0, 2, true},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        world w = make_world(shapes[i]);
        wish wishes[MEMBERS];
        int order[MEMBERS], n = i % 2 ? 3 + rig_below(12) : 40;
        result got;

        wish_for(wishes, n, 0, ADAPTERS - 1);
        shuffle(order, n);
        got = run(&w, wishes, order, n, 1 + rig_below(GPU_ITEM_MEMBERS), rig_below(8));
        check(&w, wishes, n, &got);
        rig_free_all();
    }
}

/* One adapter for many rows: full items. */
static void fills_items(void **state)
{
    world w = make_world((shape){256, 0, 0, 2, rig_below(2)});
    wish wishes[MEMBERS];
    int order[MEMBERS], n = 2 * GPU_ITEM_MEMBERS + 9;
    result got;

    (void)state;
    wish_for(wishes, n, 0, 0);
    shuffle(order, n);
    got = run(&w, wishes, order, n, GPU_ITEM_MEMBERS, 0);
    check(&w, wishes, n, &got);
    rig_free_all();
}

/* A member comes to the same bits in every list (P6). */
static void check_alone(bool eight)
{
    static const int grains[] = {32, 1, 7, 13};
    world w = make_world((shape){1500, 0, 0, 2, eight});
    wish wishes[MEMBERS];
    int order[MEMBERS], n = 41;
    result first;

    wish_for(wishes, n, 0, 2);
    for (int i = 0; i < n; i++)
        wishes[i].energy = i;
    for (int round = 0; round < 4; round++) {
        int left = round < 3 ? n : 5; /* the last time without the others */
        result got;

        shuffle(order, n);
        got = run(&w, wishes, order, left, grains[round], round);
        if (!round)
            first = got;
        for (int i = 0; i < left; i++) {
            int m = order[i];
            size_t bytes = (size_t)w.adapters[wishes[m].adapter].lora.h_stride * 2;

            assert_memory_equal(got.h + got.at[m], first.h + first.at[m], bytes);
            assert_memory_equal(&got.energy[m], &first.energy[m], sizeof(double));
        }
    }
    rig_free_all();
}

static void members_stand_alone(void **state)
{
    (void)state;
    check_alone(false);
    check_alone(true);
}

static void launches_nothing_for_nobody(void **state)
{
    gpu_rows rows = {0};
    gpu_shrink op = {.cols = 64};

    (void)state;
    GPU_OK(gpu_shrink_run(&rows, &op, 0, 0, rig_stream()));
    GPU_OK(cudaStreamSynchronize(rig_stream()));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shrinks),
        cmocka_unit_test(fills_items),
        cmocka_unit_test(members_stand_alone),
        cmocka_unit_test(launches_nothing_for_nobody),
    };

    return RIG_RUN_IN_ORDERS(tests);
}
