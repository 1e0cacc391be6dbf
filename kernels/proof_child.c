/*
 * proof_child.c: the proof (proof.c) in a process of its own: where the instructions should fail,
 * or hang, it takes its use of the card with it, and the device goes on without them.
 *
 * Not one of base/child.h's: those are programs, and this is none. The device is a library in
 * whichever process has loaded it, the engine or a test; the child is that process once more,
 * before it uses CUDA, which no child of one that does may use.
 */
#include "kernels/core.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SECONDS 60 /* that it may take, the card's start included */

static const gpu_proven failed = {GPU_PROOF_FAILED, GPU_BF16, false};

/* -- the child -------------------------------------------------------------------------------- */

/* It ends with its parent, also with one that ended before it could ask for that. */
static _Noreturn void prove_and_tell(int device_index, int fd, pid_t parent)
{
    gpu_proven found;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    found = gpu_prove_here(device_index, fd);
    _exit(write(fd, &found, sizeof(found)) != sizeof(found));
}

/* -- the parent ------------------------------------------------------------------------------- */

static int64_t milliseconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* The next word: it comes whole, as it is short. False: none does. */
static bool hear(int fd, int64_t until, gpu_proven *word)
{
    struct pollfd pipe_end = {.fd = fd, .events = POLLIN};
    int ready;

    do {
        int64_t left = until - milliseconds();

        ready = poll(&pipe_end, 1, left > 0 ? (int)left : 0);
    } while (ready < 0 && errno == EINTR);
    return ready == 1 && read(fd, word, sizeof(*word)) == sizeof(*word);
}

/* What it said last: before each attempt it says that this failed. */
static gpu_proven hear_out(int fd)
{
    int64_t until = milliseconds() + SECONDS * 1000;
    gpu_proven found = failed, word;

    while (hear(fd, until, &word))
        found = word;
    return found;
}

static gpu_proven ask_child(int device_index)
{
    gpu_proven found = failed;
    pid_t child, parent = getpid();
    int ends[2];

    if (pipe2(ends, O_CLOEXEC) != 0)
        return found;
    child = fork();
    if (child == 0) {
        close(ends[0]);
        prove_and_tell(device_index, ends[1], parent);
    }
    close(ends[1]);
    if (child > 0)
        found = hear_out(ends[0]);
    close(ends[0]);
    if (child > 0) {
        kill(child, SIGKILL); /* it has nothing more to say */
        while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    return found;
}

static bool cuda_is_used;
static gpu_proven failure; /* a product that hung here would hang again, and this process with it */
static int failed_on = -1;

void gpu_proof_used(bool used)
{
    cuda_is_used = used;
    if (!used)
        failed_on = -1;
}

gpu_proven gpu_prove_apart(int device_index)
{
    gpu_proven found = {GPU_PROOF_NO_CARD, GPU_BF16, false};

    if (failed_on == device_index)
        return failure;
    if (!cuda_is_used)
        found = ask_child(device_index);
    if (found.found == GPU_PROOF_FAILED) {
        failed_on = device_index;
        failure = found;
    }
    return found;
}
