/*
 * lora.c: adapters in the device's layout.
 *
 * An adapter is one allocation: thousands of adapters must not be hundreds of
 * mappings each. The A matrices of modules that share an input are stacked into one,
 * so that their h = A x comes out of one pass over x; every B is a matrix of its own
 * with `rank` columns. Ranks are true ranks: nothing is padded but the last panel.
 */
#include "cpu/core.h"

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
    cpu_source source;
    cpu_lora_part *part;
} task;

typedef struct making {
    ol_device *device;
    ol_lora *lora;
    const ol_lora_module **modules; /* [n_layers * CPU_INPUTS][3], NULL: not adapted */
    task *tasks;
    int n_tasks;
    cpu_row *rows; /* of all stacked A */
    size_t n_rows;
    float *values; /* room for each thread */
    size_t n_values;
} making;

static cpu_panel_kind plain_kind(ol_dtype dtype)
{
    return dtype == OL_F16 ? PANEL_F16 : dtype == OL_BF16 ? PANEL_BF16 : PANEL_F32;
}

/* Of a stacked A: the type of its parts, or F32 when they differ. */
static cpu_panel_kind stacked_kind(const ol_lora_module *const *parts)
{
    const ol_lora_module *first = parts[0] ? parts[0] : parts[1] ? parts[1] : parts[2];

    for (int i = 0; i < 3; i++)
        if (parts[i] && parts[i]->a.dtype != first->a.dtype)
            return PANEL_F32;
    return plain_kind(first->a.dtype);
}

static size_t gram_bytes(int rank)
{
    return cpu_align((size_t)rank * (size_t)rank * sizeof(float));
}

static size_t padded(size_t rank)
{
    return (rank + PANEL - 1) / PANEL * PANEL;
}

/* Rows of B that are taken at once: they stay in the nearest cache. */
static size_t gram_rows(size_t rank)
{
    return rank < 512 ? 4096 / padded(rank) : 8;
}

/* Floats that make_gram needs: some rows, and sums. */
static size_t gram_values(size_t rank)
{
    return padded(rank) * (gram_rows(rank) + padded(rank));
}

/* Shapes of a group's matrices; returns the bytes that they need. */
static size_t shape_group(making *mk, cpu_lora_group *group, const ol_lora_module *const *modules)
{
    size_t bytes = 0, most = 0;

    for (int i = 0; i < 3; i++) {
        const ol_lora_module *m = modules[i];
        cpu_lora_part *part = &group->parts[i];
        size_t rank = m ? (size_t)m->rank : 0;

        if (!rank)
            continue;
        *part = (cpu_lora_part){.rank = m->rank, .offset = group->rank, .scale = m->scale};
        bytes += cpu_matrix_shape(&part->b, plain_kind(m->b.dtype), m->b.shape[0], m->rank) +
                 gram_bytes(m->rank);
        group->rank += m->rank;
        group->a.cols = m->a.shape[1];
        most = gram_values(rank) > most ? gram_values(rank) : most;
    }
    if (!group->rank)
        return 0;
    mk->n_rows += (size_t)group->rank;
    most = (size_t)group->a.cols > most ? (size_t)group->a.cols : most;
    mk->n_values = most > mk->n_values ? most : mk->n_values;
    return bytes + cpu_matrix_shape(&group->a, stacked_kind(modules), group->rank, group->a.cols);
}

static void *advance(uint8_t **at, size_t bytes)
{
    void *here = *at;

    *at += bytes;
    return here;
}

static cpu_source whole(const ol_tensor *t)
{
    cpu_source source = {.data = t->data, .dtype = t->dtype};

    (void)ol_dtype_row_bytes(t->dtype, t->shape[1], &source.row_bytes);
    return source;
}

/* Gives a group's matrices their places and lists them for packing. */
static void place_group(making *mk, cpu_lora_group *group, const ol_lora_module *const *modules,
                        uint8_t **at)
{
    cpu_row *rows = mk->rows + mk->n_rows;

    if (!group->rank)
        return;
    mk->tasks[mk->n_tasks++] = (task){&group->a, {.rows = rows}, NULL};
    group->a.data = advance(at, group->a.panel_bytes * (size_t)cpu_panels(&group->a));
    for (int i = 0; i < 3; i++) {
        cpu_lora_part *part = &group->parts[i];
        cpu_source a;

        if (!part->rank)
            continue;
        a = whole(&modules[i]->a);
        for (int r = 0; r < part->rank; r++)
            rows[part->offset + r] = (cpu_row){a.data + (size_t)r * a.row_bytes, a.dtype};
        part->b.data = advance(at, part->b.panel_bytes * (size_t)cpu_panels(&part->b));
        part->gram = advance(at, gram_bytes(part->rank));
        mk->tasks[mk->n_tasks++] = (task){&part->b, whole(&modules[i]->b), part};
    }
    mk->n_rows += (size_t)group->rank;
}

/* -- packing, by all threads -------------------------------------------------------------- */

/* gram = B'B: |B h|^2 = h' gram h, so that measuring a row costs rank^2. */
static void make_gram(const cpu_kernels *kernels, const task *t, float *values)
{
    const cpu_lora_part *part = t->part;
    size_t rank = (size_t)part->rank, ld = padded(rank), most = gram_rows(rank);
    size_t rows = (size_t)part->b.rows;
    float *sums = values + most * ld;

    memset(values, 0, gram_values(rank) * sizeof(float));
    for (size_t row = 0; row < rows; row += most) {
        size_t n = rows - row < most ? rows - row : most;
        const uint8_t *src = t->source.data + row * t->source.row_bytes;

        if (ld == rank)
            cpu_to_floats(kernels, t->source.dtype, src, values, (int64_t)(n * rank));
        else
            for (size_t r = 0; r < n; r++)
                cpu_to_floats(kernels, t->source.dtype, src + r * t->source.row_bytes,
                              values + r * ld, (int64_t)rank);
        kernels->gram(values, (int64_t)n, (int64_t)ld, sums);
    }
    for (size_t i = 0; i < rank; i++)
        for (size_t j = 0; j < rank; j++)
            part->gram[i * rank + j] = i <= j ? sums[i * ld + j] : sums[j * ld + i];
}

/* On the caller's thread: the pool is the steps'. */
static void pack_all(making *mk)
{
    for (int64_t number = 0; number < mk->n_tasks; number++) {
        const task *t = &mk->tasks[number];

        for (int64_t panel = 0; panel < cpu_panels(t->m); panel++)
            cpu_matrix_pack(mk->device->kernels, t->m, &t->source, panel, mk->values);
        if (t->part)
            make_gram(mk->device->kernels, t, mk->values);
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
    mk->modules = calloc((size_t)n_groups * 3 + 1, sizeof(*mk->modules));
    mk->tasks = calloc((size_t)n_groups * 4 + 1, sizeof(*mk->tasks));
    if (!mk->modules || !mk->tasks)
        return ol_fail_nomem(err, (size_t)n_groups * 4 * sizeof(task), "an adapter");
    for (int i = 0; i < n; i++) {
        int group = modules[i].layer * CPU_INPUTS + (int)cpu_input_of(modules[i].module);

        mk->modules[group * 3 + cpu_part_of(modules[i].module)] = &modules[i];
    }
    return OL_OK;
}

/* The adapter's one block: groups first, matrices behind them. */
static ol_code allocate(making *mk, int n_layers, ol_lora **out, ol_error *err)
{
    int n_groups = n_layers * CPU_INPUTS;
    size_t head = cpu_align((size_t)n_groups * sizeof(cpu_lora_group)), bytes = head;
    cpu_lora_group *groups = calloc((size_t)n_groups + 1, sizeof(*groups));
    ol_lora *lora = calloc(1, sizeof(*lora));

    *out = lora;
    if (!groups || !lora) {
        free(groups);
        return ol_fail_nomem(err, head, "an adapter");
    }
    for (int g = 0; g < n_groups; g++)
        bytes += shape_group(mk, &groups[g], mk->modules + 3 * g);
    lora->groups = cpu_reused(&mk->device->memory, bytes, "an adapter", err);
    if (lora->groups) {
        lora->bytes = bytes;
        lora->n_layers = n_layers;
        memcpy(lora->groups, groups, (size_t)n_groups * sizeof(*groups));
    }
    free(groups);
    return lora->groups ? OL_OK : err->code;
}

static ol_code fill(making *mk, ol_lora *lora, ol_error *err)
{
    int n_groups = lora->n_layers * CPU_INPUTS;
    uint8_t *at = (uint8_t *)lora->groups + cpu_align((size_t)n_groups * sizeof(cpu_lora_group));

    mk->rows = calloc(mk->n_rows + 1, sizeof(*mk->rows));
    mk->values = malloc((mk->n_values + 1) * sizeof(float));
    if (!mk->rows || !mk->values)
        return ol_fail_nomem(err, mk->n_values * sizeof(float), "an adapter");
    mk->n_rows = 0;
    for (int g = 0; g < n_groups; g++)
        place_group(mk, &lora->groups[g], mk->modules + 3 * g, &at);
    pack_all(mk);
    return OL_OK;
}

ol_code cpu_lora_create(ol_device *device, const ol_lora_module *modules, int n_modules,
                        ol_lora **out, ol_error *err)
{
    making mk = {.device = device};
    ol_lora *lora = NULL;
    int n_layers;
    ol_code code = check(modules, n_modules, &n_layers, err);

    if (code == OL_OK)
        code = sort_modules(&mk, modules, n_modules, n_layers * CPU_INPUTS, err);
    if (code == OL_OK)
        code = allocate(&mk, n_layers, &lora, err);
    if (code == OL_OK)
        code = fill(&mk, lora, err);
    free(mk.modules);
    free(mk.tasks);
    free(mk.rows);
    free(mk.values);
    if (code == OL_OK)
        *out = lora;
    else
        cpu_lora_free(device, lora);
    return code;
}

void cpu_lora_free(ol_device *device, ol_lora *lora)
{
    if (!lora)
        return;
    cpu_reused_free(&device->memory, lora->groups, lora->bytes);
    free(lora);
}

size_t cpu_lora_bytes(ol_device *device, const ol_lora *lora)
{
    (void)device;
    return lora->bytes;
}
