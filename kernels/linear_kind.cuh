/* linear_kind.cuh: the kernels for one kind of weights; each has a file to itself, as compiling
 * them takes long. */
#ifndef OL_LINEAR_KIND_CUH
#define OL_LINEAR_KIND_CUH

#include "kernels/linear_few.cuh"
#include "kernels/linear_group.cuh"
#include "kernels/linear_tile.cuh"

template <int KIND>
static cudaError_t launch_runs_of(const linear_args *args, int n_rows, cudaStream_t stream)
{
    if (n_rows <= 16)
        return launch_runs<KIND, 16>(args, n_rows, stream);
    if (n_rows <= 32)
        return launch_runs<KIND, 32>(args, n_rows, stream);
    if (n_rows <= 64)
        return launch_runs<KIND, 64>(args, n_rows, stream);
    return launch_runs<KIND, 128>(args, n_rows, stream);
}

#define LINEAR_KERNELS(kind)                                                                       \
    {                                                                                              \
        few<kind>::tokens, launch_few<kind>, launch_runs_of<kind>, launch_walk<kind, 128>,         \
            launch_walk<kind, 256>, launch_group<kind, 128>, launch_group<kind, 256>               \
    }

#endif
