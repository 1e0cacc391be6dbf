/* lora.c: adapters in the device's layout, and which rows of a step use them. */
#include "cpu/core.h"

#include <stdlib.h>
#include <string.h>

/* -- creation ---------------------------------------------------------------------- */

/* gram = B'B: |B h|^2 = h' gram h, so that an adapter's energy costs rank^2 per row. */
static ol_code make_gram(cpu_lora_module *module, ol_error *err)
{
    size_t rank = (size_t)module->rank;
    float *row = malloc(rank * sizeof(float));
    double *sum = calloc(rank * rank, sizeof(double));

    module->gram = malloc(rank * rank * sizeof(float));
    if (!row || !sum || !module->gram) {
        free(row);
        free(sum);
        return ol_fail_nomem(err, rank * rank * sizeof(double), "an adapter");
    }
    for (int64_t r = 0; r < module->b.rows; r++) {
        cpu_matrix_row(&module->b, r, row);
        for (size_t i = 0; i < rank; i++)
            for (size_t j = 0; j <= i; j++)
                sum[i * rank + j] += (double)row[i] * (double)row[j];
    }
    for (size_t i = 0; i < rank; i++)
        for (size_t j = 0; j < rank; j++)
            module->gram[i * rank + j] = (float)(j <= i ? sum[i * rank + j] : sum[j * rank + i]);
    free(row);
    free(sum);
    return OL_OK;
}

static ol_code place_module(ol_device *device, const ol_lora_module *from, cpu_lora_module *to,
                            ol_lora *lora, ol_error *err)
{
    cpu_panel_kind a = cpu_matrix_kind(from->a.dtype, from->a.shape[1], OL_QUANT_AS_IS);
    cpu_panel_kind b = cpu_matrix_kind(from->b.dtype, from->b.shape[1], OL_QUANT_AS_IS);
    size_t bytes = cpu_matrix_bytes(a, from->a.shape[0], from->a.shape[1]) +
                   cpu_matrix_bytes(b, from->b.shape[0], from->b.shape[1]) +
                   (size_t)from->rank * (size_t)from->rank * sizeof(float);

    if (cpu_kind_is_block(a) || cpu_kind_is_block(b))
        return ol_fail(err, OL_UNSUPPORTED, "adapter tensor \"%s\" is %s", from->a.name,
                       ol_dtype_name(from->a.dtype));
    OL_TRY(cpu_reserve(device, bytes, "an adapter", err));
    lora->bytes += bytes;
    to->rank = from->rank;
    to->scale = from->scale;
    OL_TRY(cpu_matrix_create(device->pool, &from->a, a, &to->a, err));
    OL_TRY(cpu_matrix_create(device->pool, &from->b, b, &to->b, err));
    return make_gram(to, err);
}

ol_code cpu_lora_create(ol_device *device, const ol_lora_module *modules, int n_modules,
                        ol_lora **out, ol_error *err)
{
    ol_lora *lora = calloc(1, sizeof(*lora));

    if (!lora)
        return ol_fail_nomem(err, sizeof(*lora), "an adapter");
    for (int i = 0; i < n_modules; i++)
        if (modules[i].layer >= lora->n_layers)
            lora->n_layers = modules[i].layer + 1;
    lora->modules = calloc((size_t)lora->n_layers * OL_MODULES + 1, sizeof(cpu_lora_module));
    if (!lora->modules) {
        free(lora);
        return ol_fail_nomem(err, sizeof(cpu_lora_module), "an adapter");
    }
    for (int i = 0; i < n_modules; i++) {
        cpu_lora_module *to = &lora->modules[modules[i].layer * OL_MODULES + modules[i].module];

        if (place_module(device, &modules[i], to, lora, err) != OL_OK) {
            cpu_lora_free(device, lora);
            return err->code;
        }
    }
    *out = lora;
    return OL_OK;
}

void cpu_lora_free(ol_device *device, ol_lora *lora)
{
    if (!lora)
        return;
    for (int i = 0; i < lora->n_layers * OL_MODULES; i++) {
        cpu_matrix_free(&lora->modules[i].a);
        cpu_matrix_free(&lora->modules[i].b);
        free(lora->modules[i].gram);
    }
    device->used -= lora->bytes;
    free(lora->modules);
    free(lora);
}

size_t cpu_lora_bytes(ol_device *device, const ol_lora *lora)
{
    (void)device;
    return lora->bytes;
}

/* -- runs of a step ------------------------------------------------------------------- */

static ol_code add_run(ol_device *device, const ol_step_seq *seq, int entry, ol_error *err)
{
    const ol_lora_ref *ref = &seq->loras[entry];
    cpu_run *last = device->n_runs ? &device->runs[device->n_runs - 1] : NULL;

    if (last && last->entry == entry && last->lora == ref->lora && last->weight == ref->weight &&
        last->first + last->n == seq->first_row) {
        last->n += seq->n_rows;
        return OL_OK;
    }
    if (device->n_runs == device->max_runs) {
        int max = device->max_runs ? 2 * device->max_runs : 64;
        cpu_run *grown = realloc(device->runs, (size_t)max * sizeof(cpu_run));

        if (!grown)
            return ol_fail_nomem(err, (size_t)max * sizeof(cpu_run), "adapters of a step");
        device->runs = grown;
        device->max_runs = max;
    }
    device->runs[device->n_runs++] = (cpu_run){.first = seq->first_row,
                                               .n = seq->n_rows,
                                               .lora = ref->lora,
                                               .weight = ref->weight,
                                               .entry = entry};
    return OL_OK;
}

ol_code cpu_runs_build(ol_device *device, ol_error *err)
{
    const ol_step *step = device->step;
    int most = 0;

    device->n_runs = 0;
    for (int s = 0; s < step->n_seqs; s++)
        most = step->seqs[s].n_loras > most ? step->seqs[s].n_loras : most;
    for (int entry = 0; entry < most; entry++)
        for (int s = 0; s < step->n_seqs; s++)
            if (entry < step->seqs[s].n_loras && step->seqs[s].n_rows)
                OL_TRY(add_run(device, &step->seqs[s], entry, err));
    return OL_OK;
}

void cpu_lora_energy(ol_device *device, const cpu_run *run, const cpu_lora_module *module,
                     const float *h)
{
    int rank = module->rank;

    for (int r = 0; r < run->n; r++, h += rank) {
        const ol_step_seq *seq = &device->step->seqs[device->row_seq[run->first + r]];
        double sum = 0;

        if (!seq->energy)
            continue;
        for (int i = 0; i < rank; i++) {
            float dot = 0;

            for (int j = 0; j < rank; j++)
                dot += module->gram[i * rank + j] * h[j];
            sum += (double)h[i] * (double)dot;
        }
        seq->energy[run->entry] += sum > 0 ? sum : 0;
    }
}
