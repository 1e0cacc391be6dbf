/* runtime.h: what the files of the runtime on a processor share. */
#ifndef OL_TEST_SIMT_RUNTIME_H
#define OL_TEST_SIMT_RUNTIME_H

#include <cuda_runtime.h>

#include "simt.h"

#include <mutex>

/* Of all that the runtime knows, and of running: one thread at a time computes. */
extern std::recursive_mutex &simt_lock;
#define SIMT_LOCKED std::lock_guard<std::recursive_mutex> guard(simt_lock)

/* What every call says after a kernel has failed, as a real device's do. */
extern cudaError_t simt_sticky;

/* -- runtime.cpp ----------------------------------------------------------------------------- */
/* Two cards, alike. This thread's; 0 until it chooses. */
#define SIMT_DEVICES 2
extern thread_local int simt_current;
/* What a call says of itself to cudaGetLastError(), too. */
cudaError_t simt_said(cudaError_t code);
/* What any call says for now: the sticky error; or that CUDA is another process's, which has begun
 * to use it before it forked. */
cudaError_t simt_process();
/* As if nobody had used CUDA yet. */
void simt_first_use();

/* -- simt.cpp --------------------------------------------------------------------------------- */

struct worker;

/* A block of an early launch that has begun before the others: it waits for the kernel before. */
struct simt_ahead {
    worker *w = NULL; /* none has */
    unsigned block = 0;
    void give_up();
    ~simt_ahead()
    {
        give_up();
    }
};

void simt_begin_ahead(simt_ahead *ahead, dim3 grid, dim3 block, size_t shared,
                      const std::function<void()> &body);
void simt_run_grid(dim3 grid, dim3 block, size_t shared, const std::function<void()> &body,
                   simt_ahead *ahead);

/* -- stream.cpp ----------------------------------------------------------------------------- */
/* What a stream is given; of a copy the host's side, if there is one; of an early launch what
 * begins it. */
struct simt_work {
    std::function<void()> run;
    const char *host = NULL;
    size_t bytes = 0;
    bool kernel = false;
    std::function<void()> begin = NULL;
};
/* At the end of the stream, or of what it records; at once where there is no stream. */
cudaError_t simt_push(cudaStream_t stream, simt_work work);
/* Ends the program if a copy from or to there is under way: `what` was done meanwhile. */
void simt_must_be_idle(const void *p, size_t bytes, const char *what);
int simt_device_of(cudaStream_t stream);
bool simt_is_recorded(cudaStream_t stream);
/* All that any stream was given. */
void simt_finish_all();
/* For calls that may not be made while a step is recorded: cudaSuccess, or the recording is
 * spoilt. */
cudaError_t simt_may_wait();

/* -- heap.cpp: whether the host's memory there is pinned ------------------------------------ */
bool simt_is_pinned(const void *p);

/* -- fault.cpp ------------------------------------------------------------------------------- */
/* From the environment, once: called before anything else is asked of the device. */
void simt_read_faults();
/* Whether the launch that is about to run fails. */
bool simt_fails_now();

#endif
