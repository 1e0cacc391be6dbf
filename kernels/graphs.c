/* graphs.c: the recorded steps that a device keeps, by their sizes and operations. Who changes an
 * address that they have drops them all. */
#include "kernels/core.h"

#include <stdlib.h>
#include <string.h>

static void drop(gpu_graph *graph)
{
    if (graph->exec)
        (void)cudaGraphExecDestroy(graph->exec);
    free(graph->ops);
    memset(graph, 0, sizeof(*graph));
}

void gpu_graphs_drop(ol_device *device)
{
    for (int i = 0; i < GPU_GRAPHS; i++)
        drop(&device->graphs[i]);
}

gpu_graph *gpu_graphs_find(ol_device *device, const gpu_sizes *sizes)
{
    for (int i = 0; i < GPU_GRAPHS; i++) {
        gpu_graph *g = &device->graphs[i];

        if (g->exec && memcmp(&g->sizes, sizes, sizeof(*sizes)) == 0 && g->n_ops == device->n_ops &&
            memcmp(g->ops, device->ops, (size_t)g->n_ops * sizeof(gpu_op)) == 0)
            return g;
    }
    return NULL;
}

/* Takes the place of the one that was not run for the longest time. */
static gpu_graph *oldest(ol_device *device)
{
    gpu_graph *best = &device->graphs[0];

    for (int i = 0; i < GPU_GRAPHS; i++)
        if (!device->graphs[i].exec || device->graphs[i].used < best->used)
            best = &device->graphs[i];
    drop(best);
    return best;
}

ol_code gpu_graphs_keep(ol_device *device, const gpu_sizes *sizes, cudaGraphExec_t exec,
                        ol_error *err)
{
    size_t bytes = (size_t)device->n_ops * sizeof(gpu_op);
    gpu_op *ops = malloc(bytes);

    if (!ops) {
        (void)cudaGraphExecDestroy(exec);
        return ol_fail_nomem(err, bytes, "a step");
    }
    memcpy(ops, device->ops, bytes);
    *oldest(device) = (gpu_graph){
        .exec = exec, .sizes = *sizes, .ops = ops, .n_ops = device->n_ops, .used = device->stamp};
    return OL_OK;
}
