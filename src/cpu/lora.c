/*
 * lora.c: adapters in the device's layout.
 *
 * An adapter is one allocation: thousands of adapters must not be hundreds of
 * mappings each. Or it lies in runs of pages of a pool, each piece (the groups, a matrix, a Gram
 * matrix) in one run. The A matrices of modules that share an input are stacked into one,
 * so that their h = A x comes out of one pass over x; every B is a matrix of its own
 * with `rank` columns. Ranks are true ranks: nothing is padded but the last panel. Numbers are as
 * they were given, or in eight bits (lora8.h).
 */
#include "cpu/gram.h"

#include <stdlib.h>
#include <string.h>

const cpu_lora_group *cpu_lora_find(const ol_lora *lora, int layer, cpu_input input)
{
    const cpu_lora_group *group;

    if (layer < 0 || layer >= lora->n_layers)
        return NULL;
    group = &lora->groups[layer * CPU_INPUTS + (int)input];
    return group->rank ? group : NULL;
}

/* -- layout -------------------------------------------------------------------------- */

/* One matrix to be packed, and for a B its Gram matrix to be made. */
typedef struct task {
    cpu_matrix *m;
    cpu_lora8 source; /* in eight bits with divisors, else they are NULL */
    cpu_lora_part *part;
} task;

typedef struct making {
    ol_device *device;
    ol_lora *lora; /* NULL: only what it needs is asked for */
    int n_groups;
    cpu_lora_group *groups;         /* [n_groups] shapes, without memory */
    const ol_lora_module **modules; /* [n_layers * CPU_INPUTS][3], NULL: not adapted */
    task *tasks;
    int n_tasks;
    cpu_row *rows; /* of all stacked A */
    float *scales; /* eight bits, for each of these rows: A's, B's, A's divisors, B's for a panel */
    size_t n_rows, all_rows;
    float *values; /* room for each thread */
    size_t n_values;
    size_t bytes, most; /* of all pieces, of the largest */
    size_t run_bytes;   /* SIZE_MAX: one block is one run */
    size_t *used;       /* of each run; [1 + 7 pieces a group] */
    uint8_t **at;       /* where each run is; all NULL while they are counted */
    int n_runs, run;    /* run: pages of each */
} making;

static bool in_eight_bits(const making *mk)
{
    return mk->device->options.adapters == OL_QUANT_INT8;
}

static cpu_panel_kind plain_kind(const making *mk, ol_dtype dtype)
{
    return in_eight_bits(mk)  ? PANEL_BYTES
           : dtype == OL_F16  ? PANEL_F16
           : dtype == OL_BF16 ? PANEL_BF16
                              : PANEL_F32;
}

/* Of a stacked A: the type of its parts, or F32 when they differ. */
static cpu_panel_kind stacked_kind(const making *mk, const ol_lora_module *const *parts)
{
    const ol_lora_module *first = parts[0] ? parts[0] : parts[1] ? parts[1] : parts[2];

    for (int i = 0; i < 3; i++)
        if (parts[i] && parts[i]->a.dtype != first->a.dtype && !in_eight_bits(mk))
            return PANEL_F32;
    return plain_kind(mk, first->a.dtype);
}

/* With the ranks' scales behind it, in eight bits. */
static size_t gram_bytes(const making *mk, int rank)
{
    size_t n = (size_t)rank * (size_t)rank + (in_eight_bits(mk) ? (size_t)rank : 0);

    return cpu_align(n * sizeof(float));
}

static void note_piece(making *mk, size_t bytes)
{
    mk->bytes += bytes;
    mk->most = bytes > mk->most ? bytes : mk->most;
}

/* Shapes of a group's matrices, and what they need. */
static void shape_group(making *mk, cpu_lora_group *group, const ol_lora_module *const *modules)
{
    size_t most = 0, row;

    for (int i = 0; i < 3; i++) {
        const ol_lora_module *m = modules[i];
        cpu_lora_part *part = &group->parts[i];
        size_t rank = m ? (size_t)m->rank : 0;

        if (!rank)
            continue;
        *part = (cpu_lora_part){.rank = m->rank, .offset = group->rank, .scale = m->scale};
        note_piece(mk,
                   cpu_matrix_shape(&part->b, plain_kind(mk, m->b.dtype), m->b.shape[0], m->rank));
        note_piece(mk, gram_bytes(mk, m->rank));
        group->rank += m->rank;
        group->a.cols = m->a.shape[1];
        most = cpu_gram_values(rank) > most ? cpu_gram_values(rank) : most;
    }
    if (!group->rank)
        return;
    mk->n_rows += (size_t)group->rank;
    row = cpu_lora8_values((size_t)group->a.cols);
    most = row > most ? row : most;
    mk->n_values = most > mk->n_values ? most : mk->n_values;
    note_piece(mk,
               cpu_matrix_shape(&group->a, stacked_kind(mk, modules), group->rank, group->a.cols));
}

/* In the first run that has room. */
static void *take_piece(making *mk, size_t bytes)
{
    int i = 0;

    while (i < mk->n_runs && mk->run_bytes - mk->used[i] < bytes)
        i++;
    mk->n_runs += i == mk->n_runs;
    mk->used[i] += bytes;
    return mk->at[i] ? mk->at[i] + mk->used[i] - bytes : NULL;
}

static size_t matrix_bytes(const cpu_matrix *m)
{
    return m->panel_bytes * (size_t)cpu_panels(m);
}

static cpu_source whole(const ol_tensor *t)
{
    cpu_source source = {.data = t->data, .dtype = t->dtype};

    (void)ol_dtype_row_bytes(t->dtype, t->shape[1], &source.row_bytes);
    return source;
}

/* Of rank number `rank` and those after it, of all. */
static float *divisors_of_a(const making *mk, size_t rank)
{
    return mk->scales ? mk->scales + 2 * mk->all_rows + rank : NULL;
}

static float *divisors_of_b(const making *mk, size_t rank)
{
    return mk->scales ? mk->scales + 3 * mk->all_rows + cpu_lora8_divisors(rank) : NULL;
}

static size_t scales_of(size_t ranks)
{
    return 3 * ranks + cpu_lora8_divisors(ranks);
}

/* Scales of a part whose ranks start at number `rank` of all; their products are for h. */
static ol_code make_scales(making *mk, cpu_lora_part *part, const ol_lora_module *m, size_t rank,
                           ol_error *err)
{
    const cpu_kernels *kernels = mk->device->kernels;
    float *a = mk->scales + rank, *b = a + mk->all_rows;

    if (!cpu_lora8_measure(kernels, &m->a, false, a, divisors_of_a(mk, rank), mk->values) ||
        !cpu_lora8_measure(kernels, &m->b, true, b, divisors_of_b(mk, rank), mk->values)) {
        ol_fail(err, OL_INVALID, "the adapter has numbers that are not finite");
        return ol_hint(err, "NaN or infinity.");
    }
    part->scales = part->gram + (size_t)part->rank * (size_t)part->rank;
    for (int r = 0; r < part->rank; r++)
        part->scales[r] = a[r] * b[r];
    return OL_OK;
}

/* Gives a group's matrices their places and lists them for packing. */
static ol_code place_group(making *mk, cpu_lora_group *group, const ol_lora_module *const *modules,
                           ol_error *err)
{
    cpu_row *rows = mk->rows + mk->n_rows;

    if (!group->rank)
        return OL_OK;
    mk->tasks[mk->n_tasks++] =
        (task){&group->a, {{.rows = rows}, false, divisors_of_a(mk, mk->n_rows)}, NULL};
    group->a.data = take_piece(mk, matrix_bytes(&group->a));
    for (int i = 0; i < 3; i++) {
        cpu_lora_part *part = &group->parts[i];
        cpu_source a;
        size_t rank;

        if (!part->rank)
            continue;
        a = whole(&modules[i]->a);
        for (int r = 0; r < part->rank; r++)
            rows[part->offset + r] = (cpu_row){a.data + (size_t)r * a.row_bytes, a.dtype};
        part->b.data = take_piece(mk, matrix_bytes(&part->b));
        part->gram = take_piece(mk, gram_bytes(mk, part->rank));
        rank = mk->n_rows + (size_t)part->offset;
        if (mk->scales)
            OL_TRY(make_scales(mk, part, modules[i], rank, err));
        mk->tasks[mk->n_tasks++] =
            (task){&part->b, {whole(&modules[i]->b), true, divisors_of_b(mk, rank)}, part};
    }
    mk->n_rows += (size_t)group->rank;
    return OL_OK;
}

/* -- packing -------------------------------------------------------------- */

/* On the caller's thread: the pool is the steps'. */
static void pack_all(making *mk)
{
    for (int64_t number = 0; number < mk->n_tasks; number++) {
        const task *t = &mk->tasks[number];

        for (int64_t panel = 0; panel < cpu_panels(t->m); panel++)
            if (t->source.divisors)
                cpu_lora8_pack(mk->device->kernels, t->m, &t->source, panel, mk->values);
            else
                cpu_matrix_pack(mk->device->kernels, t->m, &t->source.from, panel, mk->values);
        if (t->part)
            cpu_gram_make(mk->device->kernels, t->part, &t->source, mk->values);
    }
}

/* -- creation ------------------------------------------------------------------------------ */

static ol_code check(const ol_lora_module *modules, int n, int *n_layers, ol_error *err)
{
    *n_layers = 0;
    for (int i = 0; i < n; i++) {
        const ol_tensor *both[] = {&modules[i].a, &modules[i].b};

        if (modules[i].layer >= *n_layers)
            *n_layers = modules[i].layer + 1;
        for (int j = 0; j < 2; j++)
            if (ol_dtype_block(both[j]->dtype) != 1)
                return ol_fail(err, OL_UNSUPPORTED, "adapter tensor \"%s\" is %s", both[j]->name,
                               ol_dtype_name(both[j]->dtype));
    }
    return OL_OK;
}

/* Temporary tables; freed by the caller, whatever comes. */
static ol_code sort_modules(making *mk, const ol_lora_module *modules, int n, int n_groups,
                            ol_error *err)
{
    size_t groups = (size_t)n_groups;

    mk->modules = calloc(groups * 3 + 1, sizeof(*mk->modules));
    mk->tasks = calloc(groups * 4 + 1, sizeof(*mk->tasks));
    mk->used = calloc(groups * 7 + 1, sizeof(*mk->used));
    mk->at = calloc(groups * 7 + 1, sizeof(*mk->at));
    mk->groups = calloc(groups + 1, sizeof(*mk->groups));
    if (!mk->modules || !mk->tasks || !mk->used || !mk->at || !mk->groups)
        return ol_fail_nomem(err, groups * 4 * sizeof(task), "an adapter");
    for (int i = 0; i < n; i++) {
        int group = modules[i].layer * CPU_INPUTS + (int)cpu_input_of(modules[i].module);

        mk->modules[group * 3 + cpu_part_of(modules[i].module)] = &modules[i];
    }
    return OL_OK;
}

static void free_making(making *mk)
{
    free(mk->modules);
    free(mk->tasks);
    free(mk->used);
    free(mk->at);
    free(mk->groups);
    free(mk->rows);
    free(mk->scales);
    free(mk->values);
}

static size_t groups_bytes(const making *mk)
{
    return cpu_align((size_t)mk->n_groups * sizeof(cpu_lora_group));
}

/* In the order in which fill() takes them. */
static void count_runs(making *mk)
{
    (void)take_piece(mk, groups_bytes(mk));
    for (int g = 0; g < mk->n_groups; g++) {
        const cpu_lora_group *group = &mk->groups[g];

        if (group->rank)
            (void)take_piece(mk, matrix_bytes(&group->a));
        for (int i = 0; i < 3; i++)
            if (group->parts[i].rank) {
                (void)take_piece(mk, matrix_bytes(&group->parts[i].b));
                (void)take_piece(mk, gram_bytes(mk, group->parts[i].rank));
            }
    }
}

/* All but the memory. kv: the pool, or NULL. To be freed, whatever comes. */
static ol_code prepare(making *mk, const ol_kv *kv, const ol_lora_module *modules, int n,
                       ol_error *err)
{
    int n_layers;

    OL_TRY(check(modules, n, &n_layers, err));
    mk->n_groups = n_layers * CPU_INPUTS;
    OL_TRY(sort_modules(mk, modules, n, mk->n_groups, err));
    note_piece(mk, groups_bytes(mk));
    for (int g = 0; g < mk->n_groups; g++)
        shape_group(mk, &mk->groups[g], mk->modules + 3 * g);
    mk->run_bytes = SIZE_MAX;
    if (kv) {
        mk->run = (int)((mk->most + kv->page_bytes - 1) / kv->page_bytes);
        mk->run_bytes = (size_t)mk->run * kv->page_bytes;
    }
    count_runs(mk);
    if (kv)
        mk->bytes = (size_t)mk->n_runs * mk->run_bytes;
    return OL_OK;
}

static ol_code allocate(making *mk, ol_kv *kv, const int32_t *runs, ol_error *err)
{
    for (int i = 0; kv && i < mk->n_runs; i++)
        mk->at[i] = kv->data + (size_t)runs[i] * kv->page_bytes;
    if (!kv)
        mk->at[0] = cpu_reused(&mk->device->memory, mk->bytes, "an adapter", err);
    if (!mk->at[0])
        return err->code;
    memset(mk->used, 0, (size_t)mk->n_runs * sizeof(*mk->used));
    mk->n_runs = 0;
    mk->lora->bytes = mk->bytes;
    mk->lora->pooled = kv != NULL;
    mk->lora->n_layers = mk->n_groups / CPU_INPUTS;
    mk->lora->groups = take_piece(mk, groups_bytes(mk));
    memcpy(mk->lora->groups, mk->groups, (size_t)mk->n_groups * sizeof(*mk->groups));
    return OL_OK;
}

static ol_code fill(making *mk, ol_error *err)
{
    mk->rows = calloc(mk->n_rows + 1, sizeof(*mk->rows));
    mk->scales = in_eight_bits(mk) ? malloc((scales_of(mk->n_rows) + 1) * sizeof(float)) : NULL;
    mk->values = malloc((mk->n_values + 1) * sizeof(float));
    if (!mk->rows || !mk->values || (in_eight_bits(mk) && !mk->scales))
        return ol_fail_nomem(err, mk->n_values * sizeof(float), "an adapter");
    mk->all_rows = mk->n_rows;
    mk->n_rows = 0;
    for (int g = 0; g < mk->n_groups; g++)
        OL_TRY(place_group(mk, &mk->lora->groups[g], mk->modules + 3 * g, err));
    pack_all(mk);
    return OL_OK;
}

ol_code cpu_lora_create_in(ol_device *device, ol_kv *kv, const int32_t *runs,
                           const ol_lora_module *modules, int n_modules, ol_lora **out,
                           ol_error *err)
{
    making mk = {.device = device, .lora = calloc(1, sizeof(ol_lora))};
    ol_code code = mk.lora ? OL_OK : ol_fail_nomem(err, sizeof(ol_lora), "an adapter");

    if (code == OL_OK)
        code = prepare(&mk, kv, modules, n_modules, err);
    if (code == OL_OK)
        code = allocate(&mk, kv, runs, err);
    if (code == OL_OK)
        code = fill(&mk, err);
    free_making(&mk);
    if (code == OL_OK)
        *out = mk.lora;
    else
        cpu_lora_free(device, mk.lora);
    return code;
}

ol_code cpu_lora_create(ol_device *device, const ol_lora_module *modules, int n_modules,
                        ol_lora **out, ol_error *err)
{
    return cpu_lora_create_in(device, NULL, NULL, modules, n_modules, out, err);
}

ol_code cpu_lora_need(ol_device *device, const ol_kv *kv, const ol_lora_module *modules,
                      int n_modules, ol_lora_need *need, ol_error *err)
{
    making mk = {.device = device};
    ol_code code = prepare(&mk, kv, modules, n_modules, err);

    if (code == OL_OK)
        *need = (ol_lora_need){.n_runs = mk.n_runs, .run = mk.run};
    free_making(&mk);
    return code;
}

void cpu_lora_free(ol_device *device, ol_lora *lora)
{
    if (!lora)
        return;
    if (!lora->pooled)
        cpu_reused_free(&device->memory, lora->groups, lora->bytes);
    free(lora);
}

size_t cpu_lora_bytes(ol_device *device, const ol_lora *lora)
{
    (void)device;
    return lora->bytes;
}
