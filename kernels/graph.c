/* graph.c: steps that only go on with sequences, a row or a few each, are launched as graphs: a
 * launch for each kernel of each layer would take longer than small kernels run. A graph serves all
 * steps of at most its sizes, as kernels read the real numbers from device memory.
 *
 * The first step of its kind is launched kernel by kernel, which also brings in kernels that the
 * process has not used yet, and recorded while it runs. A recording that fails costs speed alone.
 */
#include "kernels/core.h"

#include "base/log.h"

#define MAX_GRAPH_ROWS 64

static int32_t power(int32_t n, int32_t most)
{
    int32_t p = 1;

    if (n == 0)
        return 0;
    while (p < n)
        p *= 2;
    return p > most && most >= n ? most : p;
}

static gpu_sizes rounded(const ol_device *device)
{
    const gpu_sizes *s = &device->sizes;
    int32_t rows = power(s->n_rows, device->options.max_rows);

    return (gpu_sizes){.n_rows = rows,
                       .n_logit_rows = power(s->n_logit_rows, device->options.max_logit_rows),
                       .n_decode = rows,
                       .n_splits = power(s->n_splits, INT32_MAX),
                       .decode_most = s->decode_most,
                       .n_items = power(s->n_items, (int32_t)device->lists.members),
                       .n_members = power(s->n_members, (int32_t)device->lists.members)};
}

static ol_code capture(ol_device *device, const gpu_sizes *sizes, cudaGraphExec_t *exec,
                       ol_error *err)
{
    cudaGraph_t graph = NULL;
    cudaError_t ended, made;
    ol_code code;

    /* Of this thread: the loader's goes on with what it does. */
    GPU_TRY(cudaStreamBeginCapture(device->stream, cudaStreamCaptureModeThreadLocal),
            "recording a step");
    code = gpu_ops_launch(device, sizes, err);
    ended = cudaStreamEndCapture(device->stream, &graph);
    if (code == OL_OK && ended != cudaSuccess)
        code = gpu_fail(err, ended, "recording a step");
    if (code == OL_OK) {
        made = cudaGraphInstantiate(exec, graph, 0);
        if (made != cudaSuccess)
            code = gpu_fail(err, made, "recording a step");
    }
    if (graph)
        (void)cudaGraphDestroy(graph);
    return code;
}

static ol_code record(ol_device *device, const gpu_sizes *sizes, ol_error *err)
{
    cudaGraphExec_t exec;

    OL_TRY(capture(device, sizes, &exec, err));
    return gpu_graphs_keep(device, sizes, exec, err);
}

/* Some drivers cannot record a launch that may start early: better a graph without such. */
static bool record_without_early(ol_device *device, const gpu_sizes *sizes, const ol_error *why)
{
    ol_error ignored;

    if (!gpu_launches_early)
        return false;
    (void)cudaGetLastError();
    gpu_launches_early = 0;
    if (record(device, sizes, &ignored) == OL_OK) {
        ol_log(OL_LOG_WARNING, "kernels are not launched early: %s (%s)", why->message,
               why->detail);
        return true;
    }
    gpu_launches_early = 1;
    return false;
}

static ol_code first_of_kind(ol_device *device, const gpu_sizes *sizes, ol_error *err)
{
    ol_error why;

    OL_TRY(gpu_ops_prepare(device, sizes, err));
    OL_TRY(gpu_ops_launch(device, sizes, err));
    if (device->no_graphs || record(device, sizes, &why) == OL_OK ||
        record_without_early(device, sizes, &why))
        return OL_OK;
    device->no_graphs = true;
    (void)cudaGetLastError(); /* of the recording; what is wrong with the step shows at its end */
    ol_log(OL_LOG_WARNING, "steps run without CUDA graphs: %s (%s)", why.message, why.detail);
    return OL_OK;
}

ol_code gpu_run_ops(ol_device *device, ol_error *err)
{
    gpu_sizes sizes = device->sizes;
    gpu_graph *graph;

    if (sizes.n_tiles > 0 || sizes.n_rows > MAX_GRAPH_ROWS) {
        OL_TRY(gpu_ops_prepare(device, &sizes, err));
        return gpu_ops_launch(device, &sizes, err);
    }
    sizes = rounded(device);
    /* Sizes count members; the room that they take is their ranks'. Growth drops all graphs. */
    OL_TRY(gpu_scratch_need(device, &device->h, (size_t)device->lists.h_used * sizeof(uint16_t),
                            "adapters", err));
    graph = gpu_graphs_find(device, &sizes);
    if (!graph)
        return first_of_kind(device, &sizes, err);
    graph->used = device->stamp;
    GPU_TRY(cudaGraphLaunch(graph->exec, device->stream), "running a step");
    return OL_OK;
}
