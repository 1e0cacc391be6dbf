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

/* -- stream.cpp ----------------------------------------------------------------------------- */
/* At the end of the stream, or of what it records; at once where there is no stream. */
cudaError_t simt_push(cudaStream_t stream, std::function<void()> what);
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
