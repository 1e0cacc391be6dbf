/* results.c: what comes back of a step, and its end: logits or choices, and measured shares, each
 * in one copy; the host waits once. */
#include "kernels/core.h"

#include <string.h>

/* Pinned memory that grows, twice as much each time: pinning takes long. No step is under way. */
static ol_code pinned_need(void **data, size_t *have, size_t bytes, ol_error *err)
{
    if (bytes <= *have)
        return OL_OK;
    bytes = bytes > 2 * *have ? bytes : 2 * *have;
    if (*data)
        (void)cudaFreeHost(*data);
    *data = NULL;
    *have = 0;
    OL_TRY(gpu_pinned(data, bytes, "results", err));
    *have = bytes;
    return OL_OK;
}

static ol_code prepare_energies(ol_device *device, size_t bytes, ol_error *err)
{
    OL_TRY(gpu_scratch_need(device, &device->energy, bytes, "measured shares", err));
    OL_TRY(pinned_need((void **)&device->energies, &device->energies_bytes, bytes, err));
    device->rows.energy = device->energy.data;
    if (bytes)
        GPU_TRY(cudaMemsetAsync(device->energy.data, 0, bytes, device->stream), "measured shares");
    return OL_OK;
}

/* Runs what was noted, brings `bytes` of `from` (if any) to device->results, where they stay until
 * the next step, and waits. */
static ol_code step_run(ol_device *device, const gpu_scratch *from, size_t bytes, ol_error *err)
{
    size_t energies = (size_t)device->lists.n_energies * sizeof(double);
    ol_code code;

    OL_TRY(prepare_energies(device, energies, err));
    OL_TRY(pinned_need(&device->results, &device->results_bytes, bytes, err));
    code = gpu_run_ops(device, err);
    if (code != OL_OK) { /* what was launched of it works with pages that others may now have */
        (void)cudaStreamSynchronize(device->stream);
        return code;
    }
    if (bytes)
        GPU_TRY(cudaMemcpyAsync(device->results, from->data, bytes, cudaMemcpyDeviceToHost,
                                device->stream),
                "fetching results");
    if (energies)
        GPU_TRY(cudaMemcpyAsync(device->energies, device->energy.data, energies,
                                cudaMemcpyDeviceToHost, device->stream),
                "fetching measured shares");
    GPU_TRY(cudaStreamSynchronize(device->stream), "running a step");
    memset(device->ops, 0, (size_t)device->n_ops * sizeof(gpu_op));
    device->n_ops = 0;
    return OL_OK;
}

ol_code gpu_op_logits(ol_device *device, const ol_buffer *x, const ol_weight *norm, float eps,
                      const ol_weight *head, const float **logits, ol_error *err)
{
    gpu_op op = {.kind = GPU_OP_LOGITS, .in = x, .weight = norm, .eps = eps, .head = head};
    size_t n = (size_t)device->sizes.n_logit_rows * (size_t)head->rows;

    OL_TRY(gpu_note(device, &op, err));
    OL_TRY(step_run(device, &device->logits, n * sizeof(float), err));
    *logits = device->results;
    return OL_OK;
}

/* Room before anything is recorded: growth drops the graphs. */
static ol_code prepare_choices(ol_device *device, const gpu_op *op, ol_error *err)
{
    size_t rows = (size_t)device->options.max_logit_rows;

    OL_TRY(gpu_scratch_need(device, &device->choices, rows * sizeof(ol_choice), "choices", err));
    if (!device->lists.edited)
        return OL_OK;
    return gpu_scratch_need(device, &device->edited,
                            rows * (size_t)gpu_padded(op->head->rows) * sizeof(float),
                            "logits with penalties", err);
}

ol_code gpu_op_choose(ol_device *device, const ol_buffer *x, const ol_weight *norm, float eps,
                      const ol_weight *head, const ol_choice **choices, ol_error *err)
{
    gpu_op op = {.kind = GPU_OP_CHOOSE, .in = x, .weight = norm, .eps = eps, .head = head};
    size_t n = (size_t)device->sizes.n_logit_rows;

    if (!device->step->picks)
        return ol_fail(err, OL_INTERNAL, "a step's tokens are to be chosen, but not how");
    OL_TRY(gpu_note(device, &op, err));
    OL_TRY(prepare_choices(device, &op, err));
    OL_TRY(step_run(device, &device->choices, n * sizeof(ol_choice), err));
    *choices = device->results;
    return OL_OK;
}

ol_code gpu_step_end(ol_device *device, ol_error *err)
{
    const ol_step *step = device->step;
    const double *energy;

    if (device->n_ops > 0)
        OL_TRY(step_run(device, NULL, 0, err));
    energy = device->energies;
    for (int s = 0; s < step->n_seqs; s++) {
        const ol_step_seq *seq = &step->seqs[s];

        for (int i = 0; seq->energy && i < seq->n_rows * seq->n_loras; i++)
            seq->energy[i] += *energy++;
    }
    device->step = NULL;
    return OL_OK;
}
