/*
 * stream.cpp: streams, events, graphs. A stream is a queue: what is in it runs when somebody waits
 * for it, or for what comes after it, and no sooner. So a step that reads what another stream has
 * yet to write, or the host what has yet to arrive, shows. Or it runs at once, if the settings say
 * so of it: then what another stream still reads is written, too, which a wait would have kept.
 *
 * A stream that is recorded puts what it is given into a graph instead; one that waits for an
 * event of it is recorded, too, as CUDA has it.
 */
#include "runtime.h"

#include <chrono>
#include <deque>
#include <memory>
#include <set>
#include <vector>

struct simt_graph {
    std::vector<simt_work> nodes;
    bool spoilt = false;
};

struct simt_stream {
    std::deque<simt_work> work;
    int device = 0;
    bool early = false; /* runs at once what it is given */
    uint64_t given = 0, done = 0;
    simt_graph *recording = NULL;
    bool first = false; /* to be recorded: the one that ends it */
};

struct simt_event {
    int device = 0;
    simt_stream *stream = NULL;
    uint64_t at = 0;
    simt_graph *recording = NULL;
    std::shared_ptr<double> time; /* when it was reached */
};

std::recursive_mutex &simt_lock = *new std::recursive_mutex();
cudaError_t simt_sticky;
simt_traffic simt_counted;
static std::set<simt_stream *> &streams = *new std::set<simt_stream *>();
static thread_local simt_graph *recorded_here; /* by this thread */

/* -- queues ------------------------------------------------------------------------------ */

static void run_to(simt_stream *stream, uint64_t at)
{
    if (!streams.count(stream))
        return;
    while (stream->done < at && !stream->work.empty()) {
        simt_work work = std::move(stream->work.front());

        stream->work.pop_front();
        /* by this thread both: a block goes on where it began */
        if (work.kernel && stream->done + 1 < at && !stream->work.empty() &&
            stream->work.front().begin && simt_sticky == cudaSuccess)
            stream->work.front().begin();
        if (simt_sticky == cudaSuccess)
            work.run();
        stream->done++;
    }
}

void simt_finish_all()
{
    for (simt_stream *stream : streams)
        run_to(stream, stream->given);
}

cudaError_t simt_may_wait()
{
    cudaError_t code = simt_process();

    if (code != cudaSuccess || !recorded_here)
        return code;
    recorded_here->spoilt = true;
    return cudaErrorStreamCaptureUnsupported;
}

void simt_must_be_idle(const void *p, size_t bytes, const char *what)
{
    const char *from = (const char *)p, *end = from + bytes;

    for (simt_stream *stream : streams)
        for (const simt_work &work : stream->work)
            if (from < work.host + work.bytes && work.host < end) {
                fprintf(stderr, "simt: %s, but a copy that a stream was given is yet to run\n",
                        what);
                abort();
            }
}

int simt_device_of(cudaStream_t stream)
{
    return stream ? stream->device : simt_current;
}

bool simt_is_recorded(cudaStream_t stream)
{
    return stream && stream->recording;
}

/* The legacy stream waits for all others, which none can while it is recorded. */
static cudaError_t push_legacy(const simt_work &work)
{
    if (recorded_here) {
        recorded_here->spoilt = true;
        return cudaErrorStreamCaptureImplicit;
    }
    simt_finish_all();
    work.run();
    return simt_sticky;
}

cudaError_t simt_push(cudaStream_t stream, simt_work work)
{
    SIMT_LOCKED;
    cudaError_t code = simt_process();

    if (code != cudaSuccess)
        return code;
    if (!stream)
        return push_legacy(work);
    if (!streams.count(stream))
        return cudaErrorInvalidResourceHandle;
    if (stream->recording) {
        stream->recording->nodes.push_back(work);
        return cudaSuccess;
    }
    stream->work.push_back(work);
    stream->given++;
    if (stream->early)
        run_to(stream, stream->given);
    return simt_sticky;
}

static cudaError_t launch(dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                          std::function<void()> thread, std::shared_ptr<simt_ahead> ahead)
{
    simt_work work;

    if (grid.x * grid.y * grid.z == 0 || block.x * block.y * block.z > 1024 || grid.y > 65535 ||
        grid.z > 65535 || shared > 227 * 1024)
        return cudaErrorInvalidValue;
    if (simt_device_of(stream) != simt_current)
        return cudaErrorInvalidResourceHandle;
    simt_counted.launches++;
    work.kernel = true;
    work.run = [=]() {
        if (simt_fails_now())
            simt_sticky = cudaErrorIllegalAddress;
        else
            simt_run_grid(grid, block, shared, thread, ahead.get());
    };
    if (ahead)
        work.begin = [=]() { simt_begin_ahead(ahead.get(), grid, block, shared, thread); };
    return simt_push(stream, work);
}

cudaError_t simt_launch(dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                        std::function<void()> thread)
{
    return launch(grid, block, shared, stream, thread, NULL);
}

void simt_recover(void)
{
    SIMT_LOCKED;

    simt_sticky = cudaSuccess;
    simt_launches = 0;
    simt_first_use();
}

/* In a recording, where the settings say so, a launch that may start early fails. */
cudaError_t simt_launch_early(dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                              std::function<void()> thread)
{
    if (gpu_launches_early && simt_settings.no_early && simt_is_recorded(stream))
        return cudaErrorInvalidResourceHandle;
    return launch(
        grid, block, shared, stream,
        [=]() {
            simt_has_to_wait();
            thread();
        },
        gpu_launches_early ? std::make_shared<simt_ahead>() : NULL);
}

extern "C" {

/* -- streams ------------------------------------------------------------------------------- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    SIMT_LOCKED;

    static unsigned made;
    cudaError_t code = simt_process();

    (void)flags;
    if (code != cudaSuccess)
        return code;
    *stream = new simt_stream();
    (*stream)->device = simt_current;
    (*stream)->early = simt_settings.streams == SIMT_EARLY ||
                       (simt_settings.streams == SIMT_MIXED && made % 2 == 0);
    made++;
    streams.insert(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    SIMT_LOCKED;

    run_to(stream, stream->given);
    streams.erase(stream);
    delete stream;
    return simt_sticky;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    SIMT_LOCKED;
    cudaError_t code = simt_may_wait();

    if (code != cudaSuccess)
        return code;
    simt_counted.waits++;
    if (stream)
        run_to(stream, stream->given);
    else
        simt_finish_all();
    return simt_sticky;
}

cudaError_t cudaDeviceSynchronize(void)
{
    return cudaStreamSynchronize(NULL);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    SIMT_LOCKED;
    simt_stream *of = event->stream;
    uint64_t at = event->at;

    (void)flags;
    if (event->recording) {
        stream->recording = event->recording;
        return simt_sticky;
    }
    if (!of)
        return simt_sticky; /* never recorded: nothing to wait for */
    return simt_push(stream, {[=]() { run_to(of, at); }});
}

/* -- events ---------------------------------------------------------------------------------- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    cudaError_t code = simt_process();

    (void)flags;
    if (code != cudaSuccess)
        return code;
    *event = new simt_event();
    (*event)->device = simt_current;
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return simt_sticky;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    SIMT_LOCKED;
    auto time = std::make_shared<double>(-1);

    if (event->device != simt_device_of(stream))
        return cudaErrorInvalidResourceHandle;
    event->recording = stream->recording;
    if (event->recording)
        return simt_sticky;
    event->stream = stream;
    event->at = stream->given + 1;
    event->time = time;
    return simt_push(stream, {[=]() {
                         *time = std::chrono::duration<double, std::milli>(
                                     std::chrono::steady_clock::now().time_since_epoch())
                                     .count();
                     }});
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    SIMT_LOCKED;
    cudaError_t code = simt_may_wait();

    simt_counted.waits++;
    if (code == cudaSuccess && event->stream)
        run_to(event->stream, event->at);
    return code == cudaSuccess ? simt_sticky : code;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    SIMT_LOCKED;

    if (!from->time || !to->time || *from->time < 0 || *to->time < 0)
        return cudaErrorNotReady;
    *ms = (float)(*to->time - *from->time);
    return simt_sticky;
}

/* -- graphs ----------------------------------------------------------------------------------- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode)
{
    SIMT_LOCKED;

    if (simt_settings.no_capture)
        return cudaErrorStreamCaptureUnsupported;
    if (mode == cudaStreamCaptureModeGlobal) {
        fprintf(stderr, "simt: recorded for all threads: the loader's could not go on\n");
        abort();
    }
    if (stream->recording || recorded_here)
        return cudaErrorInvalidValue;
    stream->recording = recorded_here = new simt_graph();
    stream->first = true;
    return simt_sticky;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    SIMT_LOCKED;
    simt_graph *made = stream->recording;

    *graph = NULL;
    if (!made || !stream->first || made != recorded_here)
        return cudaErrorInvalidValue;
    recorded_here = NULL;
    stream->first = false;
    for (simt_stream *each : streams)
        if (each->recording == made)
            each->recording = NULL;
    if (made->spoilt) {
        delete made;
        return cudaErrorStreamCaptureInvalidated;
    }
    *graph = made;
    return simt_sticky;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    (void)flags;
    if (recorded_here)
        return simt_may_wait();
    *exec = new simt_graph(*graph);
    return simt_sticky;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    SIMT_LOCKED;
    cudaError_t code =
        simt_device_of(stream) == simt_current ? simt_process() : cudaErrorInvalidResourceHandle;

    for (size_t i = 0; i < exec->nodes.size() && code == cudaSuccess; i++)
        code = simt_push(stream, exec->nodes[i]);
    return code;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return cudaSuccess;
}
}
