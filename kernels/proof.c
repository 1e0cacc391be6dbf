/*
 * proof.c: whether products of groups of warps (wgmma) may be used.
 *
 * A row comes to the same bits alone and in a long prompt (P6), and prefill could be summed by
 * other instructions than decoding. The order of the sums is the same; how the hardware rounds
 * inside either instruction is written nowhere. So the card has to show it, each time it is opened,
 * on numbers that tell roundings apart: products of very different size, sums that cancel, results
 * below the normal numbers. If a single bit differs they are not used.
 *
 * A process of its own does it: where the instructions should fail, or hang, it takes its use of
 * the card with it, and the device goes on without them.
 */
#include "kernels/core.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROWS 140 /* not a multiple of any tile, as the features */
#define FEATURES 150
#define PARTS 2
#ifdef OL_SIMT
#define COLS 300
#define ROUNDS 1
#else
#define COLS 3000
#define ROUNDS 8
#endif
#define LDX ((COLS + 63) / 64 * 64)
#define LDY (PARTS * FEATURES)
#define SPLITS 3
#define SECONDS 60 /* that it may take, the card's start included */

typedef enum numbers { PLAIN, WIDE, CANCELLING, SMALL, NUMBERS } numbers;

typedef struct proof {
    cudaStream_t stream;
    gpu_rows rows;
    gpu_linear op;
    void *blocks[8];
    int n_blocks;
    uint64_t state; /* of random numbers */
    size_t y_bytes;
    uint8_t *y[3]; /* the host's: as it was, by warps, by groups */
} proof;

/* -- numbers ---------------------------------------------------------------------------------- */

static uint32_t random_bits(proof *p)
{
    uint64_t z = p->state += 0x9E3779B97F4A7C15u; /* splitmix64 */

    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)(z >> 32);
}

/* A bf16 with an exponent from `least` on, of so many. */
static uint16_t number(proof *p, int least, int many)
{
    uint32_t r = random_bits(p);

    return (uint16_t)((r & 0x807f) | (uint32_t)(least + (int)(r >> 16) % many) << 7);
}

/* Neighbours are in both x and, as lanes have pairs of columns, in weights: there they cancel but
 * for the last bit, at times. */
static void fill(proof *p, uint16_t *to, size_t n, numbers kind, bool weights)
{
    for (size_t i = 0; i < n; i++)
        switch (kind) {
        case WIDE:
            to[i] = number(p, 87, 80);
            break;
        case CANCELLING:
            to[i] = i % 2 == 0 ? number(p, 120, 14)
                    : weights  ? (uint16_t)((to[i - 1] ^ 0x8000) + (random_bits(p) % 4 == 0))
                               : to[i - 1];
            break;
        case SMALL: /* products about 2^-149, and numbers that are not normal themselves */
            to[i] = number(p, random_bits(p) % 8 ? 46 : 0, random_bits(p) % 8 ? 14 : 1);
            break;
        default:
            to[i] = number(p, 119, 8);
        }
}

/* -- memory ------------------------------------------------------------------------------------ */

static cudaError_t place(proof *p, const void *from, size_t bytes, void **to)
{
    cudaError_t code = cudaMalloc(to, bytes);

    if (code != cudaSuccess)
        return code;
    p->blocks[p->n_blocks++] = *to;
    return from ? cudaMemcpyAsync(*to, from, bytes, cudaMemcpyHostToDevice, p->stream)
                : cudaMemsetAsync(*to, 0, bytes, p->stream);
}

static size_t matrix_numbers(void)
{
    return (size_t)((FEATURES + 15) / 16 * 16) * LDX;
}

static cudaError_t make_op(proof *p)
{
    gpu_counts counts = {.n_rows = ROWS};
    void *to;
    cudaError_t code;

    p->op = (gpu_linear){.n_parts = PARTS, .layer = -1, .ldx = LDX, .ldy = LDY};
    code = place(p, &counts, sizeof(counts), &to);
    p->rows.counts = to;
    for (int i = 0; i < PARTS && code == cudaSuccess; i++) {
        code = place(p, NULL, matrix_numbers() * sizeof(uint16_t), &to);
        p->op.parts[i].w = (gpu_matrix){GPU_BF16, FEATURES, COLS, SPLITS, to, NULL};
    }
    if (code == cudaSuccess)
        code = place(p, NULL, ROWS * LDX * sizeof(uint16_t), &to);
    p->op.x = to;
    p->y_bytes = ROWS * LDY * sizeof(float);
    if (code == cudaSuccess)
        code = place(p, NULL, p->y_bytes, &p->op.y);
    if (code == cudaSuccess)
        code = place(p, NULL, gpu_linear_partial(&p->op, ROWS) * sizeof(float), &to);
    p->op.partial = to;
    if (code == cudaSuccess)
        code = place(p, NULL, GPU_TICKETS * sizeof(int32_t), &to);
    p->op.tickets = to;
    return code == cudaSuccess ? cudaStreamSynchronize(p->stream) : code; /* `counts` ends here */
}

/* Columns of x beyond the matrix's are zero, as always. */
static cudaError_t send_numbers(proof *p, numbers kind)
{
    size_t most = matrix_numbers() > ROWS * LDX ? matrix_numbers() : ROWS * LDX;
    uint16_t *buffer = malloc(most * sizeof(*buffer));
    cudaError_t code = buffer ? cudaSuccess : cudaErrorMemoryAllocation;

    for (int i = 0; i < PARTS + 1 && code == cudaSuccess; i++) {
        size_t n = i < PARTS ? matrix_numbers() : ROWS * LDX;

        fill(p, buffer, n, kind, i < PARTS);
        for (int r = 0; i == PARTS && r < ROWS; r++)
            memset(buffer + r * LDX + COLS, 0, (LDX - COLS) * sizeof(*buffer));
        code = cudaMemcpyAsync(i < PARTS ? (void *)(uintptr_t)p->op.parts[i].w.data
                                         : (void *)(uintptr_t)p->op.x,
                               buffer, n * sizeof(*buffer), cudaMemcpyHostToDevice, p->stream);
        if (code == cudaSuccess)
            code = cudaStreamSynchronize(p->stream);
    }
    free(buffer);
    return code;
}

/* -- comparing --------------------------------------------------------------------------------- */

static cudaError_t run(proof *p, gpu_way way, uint8_t *y)
{
    cudaError_t code =
        cudaMemcpyAsync(p->op.y, p->y[0], p->y_bytes, cudaMemcpyHostToDevice, p->stream);

    p->op.way = way;
    if (code == cudaSuccess)
        code = gpu_linear_run(&p->rows, &p->op, ROWS, p->stream);
    if (code == cudaSuccess)
        code = cudaMemcpyAsync(y, p->op.y, p->y_bytes, cudaMemcpyDeviceToHost, p->stream);
    return code == cudaSuccess ? cudaStreamSynchronize(p->stream) : code;
}

/* What y has before is added to by one of the finishes: floats of the sums' size. */
static gpu_proof compare(proof *p, numbers kind, gpu_finish finish)
{
    fill(p, (uint16_t *)p->y[0], p->y_bytes / sizeof(uint16_t), kind == SMALL ? PLAIN : kind,
         false);
    p->op.finish = finish;
    if (run(p, GPU_WAY_WARP, p->y[1]) != cudaSuccess)
        return GPU_PROOF_FAILED;
    for (gpu_way way = GPU_WAY_GROUP_128; way <= GPU_WAY_GROUP_256; way++) {
        if (run(p, way, p->y[2]) != cudaSuccess)
            return GPU_PROOF_FAILED;
        if (memcmp(p->y[1], p->y[2], p->y_bytes) != 0)
            return GPU_PROOF_DIFFERS;
    }
    return GPU_PROOF_SAME;
}

static gpu_proof compare_all(proof *p)
{
    gpu_proof found = GPU_PROOF_SAME;

    if (make_op(p) != cudaSuccess)
        return GPU_PROOF_FAILED;
    for (int i = 0; i < ROUNDS * NUMBERS && found == GPU_PROOF_SAME; i++) {
        numbers kind = (numbers)(i % NUMBERS);

        if (send_numbers(p, kind) != cudaSuccess)
            return GPU_PROOF_FAILED;
        /* sums as they are first of all, then what else is made of them */
        found = compare(p, kind, GPU_STORE_F32);
        if (found == GPU_PROOF_SAME)
            found = compare(p, kind, (gpu_finish)((i + i / NUMBERS) % (GPU_SWIGLU + 1)));
    }
    return found;
}

gpu_proof gpu_prove_here(int device_index)
{
    gpu_proof found = GPU_PROOF_FAILED;
    proof p = {.state = 1};
    bool room = true;
    int n = 0;

    if (cudaGetDeviceCount(&n) != cudaSuccess || device_index >= n)
        return GPU_PROOF_NO_CARD;
    if (!gpu_linear_has_groups(device_index)) /* without taking memory there */
        return GPU_PROOF_NONE;
    if (cudaSetDevice(device_index) != cudaSuccess ||
        cudaStreamCreateWithFlags(&p.stream, cudaStreamNonBlocking) != cudaSuccess)
        return GPU_PROOF_NO_CARD;
    for (int i = 0; i < 3; i++) {
        p.y[i] = malloc(ROWS * LDY * sizeof(float));
        room = room && p.y[i];
    }
    if (room)
        found = compare_all(&p);
    while (p.n_blocks > 0)
        (void)cudaFree(p.blocks[--p.n_blocks]);
    (void)cudaStreamDestroy(p.stream);
    for (int i = 0; i < 3; i++)
        free(p.y[i]);
    return found;
}

/* -- in a process of its own ------------------------------------------------------------------ */

static _Noreturn void prove_and_tell(int device_index, int fd)
{
    uint8_t found;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    found = (uint8_t)gpu_prove_here(device_index);
    while (write(fd, &found, 1) < 0 && errno == EINTR)
        ;
    _exit(0);
}

/* What it said; nothing, if it ended without a word or not at all. */
static gpu_proof hear(int fd)
{
    struct pollfd pipe_end = {.fd = fd, .events = POLLIN};
    uint8_t found;
    int ready;

    do
        ready = poll(&pipe_end, 1, SECONDS * 1000);
    while (ready < 0 && errno == EINTR);
    return ready == 1 && read(fd, &found, 1) == 1 ? (gpu_proof)found : GPU_PROOF_FAILED;
}

static bool cuda_is_used;
static int failed_on = -1; /* a product that hung here would hang again, and this process with it */

void gpu_proof_used(bool used)
{
    cuda_is_used = used;
    if (!used)
        failed_on = -1;
}

static gpu_proof ask_child(int device_index)
{
    gpu_proof found;
    int ends[2];
    pid_t child;

    if (pipe2(ends, O_CLOEXEC) != 0)
        return GPU_PROOF_FAILED;
    child = fork();
    if (child == 0) {
        close(ends[0]);
        prove_and_tell(device_index, ends[1]);
    }
    close(ends[1]);
    found = child > 0 ? hear(ends[0]) : GPU_PROOF_FAILED;
    close(ends[0]);
    if (child > 0) {
        kill(child, SIGKILL); /* it has nothing more to say */
        while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    return found;
}

gpu_proof gpu_prove_apart(int device_index)
{
    gpu_proof found = cuda_is_used ? GPU_PROOF_NO_CARD : GPU_PROOF_FAILED;

    if (failed_on == device_index)
        return GPU_PROOF_FAILED;
    if (!cuda_is_used)
        found = ask_child(device_index);
    if (found == GPU_PROOF_FAILED)
        failed_on = device_index;
    return found;
}
