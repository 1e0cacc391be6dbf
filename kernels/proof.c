/*
 * proof.c: whether products of groups of warps (wgmma) may be used.
 *
 * A row comes to the same bits alone and in a long prompt (P6), and prefill could be summed by
 * other instructions than decoding. The order of the sums is the same; how the hardware rounds
 * inside either instruction is written nowhere. So the card has to show it, each time it is opened,
 * on numbers that tell roundings apart: products of very different size, sums that cancel, results
 * below the normal numbers. Each kind of weights has kernels of its own, and adapters are summed in
 * them, too: all are tried, without adapters, with the same ones for all rows, and with others for
 * each. If a single bit differs none of them is used: what to look for is said.
 *
 * In all 756 launches and 400 MB over the bus, most of them for bf16, which all weights become.
 */
#include "kernels/core.h"

#include "base/log.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ROWS 140 /* not a multiple of any tile, as the features */
#define PARTS 2
#define ADAPTERS 2
#ifdef OL_SIMT
#define FEATURES 70
#define COLS 128
#define BF16_ROUNDS 2
#define OTHER_ROUNDS 1
#else
#define FEATURES 150
#define COLS 3008
#define BF16_ROUNDS 32
#define OTHER_ROUNDS 4
#endif
#define LDY (PARTS * FEATURES)
#define Y_BYTES (ROWS * LDY * sizeof(float))
#define SPLITS 3
#define TILE_ROWS ((FEATURES + 15) / 16 * 16)
#define MOST_RANK 80
#define H_EACH (PARTS * MOST_RANK) /* a member's */

typedef enum numbers { PLAIN, WIDE, CANCELLING, SMALL, NUMBERS, ANY } numbers;

/* Which adapters rows have: all the same ones, in the same order; or none, either, both. */
typedef enum share { NO_ADAPTERS, ALIKE, MIXED, SHARES } share;

/* What lies on the card: here its addresses alone are used. */
typedef struct card {
    gpu_counts counts;
    gpu_lora loras[ADAPTERS];
    gpu_lora_part parts[ADAPTERS][GPU_MODULES];
    gpu_member members[ROWS * ADAPTERS];
    int32_t start[SHARES][ROWS + 1], of_row[SHARES][ROWS * ADAPTERS];
    /* numbers of 16 bits, or as much room: kernels read 16 bytes at once */
    _Alignas(16) uint16_t weights[PARTS][TILE_ROWS * COLS];
    uint16_t scales[PARTS][TILE_ROWS * COLS / 16];
    uint16_t x[ROWS * COLS];
    uint16_t b[ADAPTERS][PARTS][TILE_ROWS * MOST_RANK];
    uint16_t h[ROWS * ADAPTERS * H_EACH];
    float y[ROWS * LDY];
    int32_t tickets[GPU_TICKETS];
} card;

typedef struct proof {
    int tell; /* a file that hears how it goes, or -1 */
    cudaStream_t stream;
    card *card;
    void *partial;
    gpu_rows rows;
    gpu_linear op;
    uint64_t state;    /* of random numbers */
    uint16_t *numbers; /* room for any of the card's */
    uint8_t *y[3];     /* as it was, by warps, by groups */
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
        case ANY:
            to[i] = (uint16_t)random_bits(p);
            break;
        default:
            to[i] = number(p, 119, 8);
        }
}

/* -- on the card ------------------------------------------------------------------------------ */

/* Row r's members are ADAPTERS * r .. */
static void make_lists(card *to, card *there)
{
    static const int ranks[ADAPTERS] = {24, 72}; /* in one stage of 64, in two */

    to->counts = (gpu_counts){.n_rows = ROWS, .n_members = ROWS * ADAPTERS};
    for (int a = 0; a < ADAPTERS; a++) {
        to->loras[a] = (gpu_lora){.parts = there->parts[a], .n_layers = 1, .h_stride = H_EACH};
        for (int i = 0; i < PARTS; i++)
            to->parts[a][i] =
                (gpu_lora_part){.b = there->b[a][i], .rank = ranks[a], .h = i * MOST_RANK};
    }
    for (int i = 0; i < ROWS * ADAPTERS; i++)
        to->members[i] = (gpu_member){.lora = &there->loras[i % ADAPTERS],
                                      .row = i / ADAPTERS,
                                      .entry = i % ADAPTERS,
                                      .h = i * H_EACH,
                                      .energy = -1};
    for (share s = ALIKE; s <= MIXED; s++)
        for (int r = 0, n = 0; r < ROWS; to->start[s][++r] = n)
            for (int a = 0; a < ADAPTERS; a++)
                if (s == ALIKE || r >> a & 1)
                    to->of_row[s][n++] = r * ADAPTERS + a;
}

static void make_op(proof *p)
{
    card *c = p->card;

    p->rows = (gpu_rows){.counts = &c->counts, .members = c->members, .h = c->h};
    p->op = (gpu_linear){
        .n_parts = PARTS, .x = c->x, .ldx = COLS, .y = c->y, .ldy = LDY, .tickets = c->tickets};
    for (int i = 0; i < PARTS; i++)
        p->op.parts[i] = (gpu_linear_part){
            .w = {GPU_BF16, FEATURES, COLS, SPLITS, c->weights[i], c->scales[i]}, .module = i};
}

static cudaError_t place_partial(proof *p)
{
    size_t most = 0;

    for (gpu_finish f = GPU_STORE_BF16; f <= GPU_SWIGLU; f++) {
        size_t n;

        p->op.finish = f;
        n = gpu_linear_partial(&p->op, ROWS);
        most = n > most ? n : most;
    }
    return cudaMalloc(&p->partial, most * sizeof(float));
}

static cudaError_t place(proof *p)
{
    card *lists = calloc(1, sizeof(*lists));
    cudaError_t code =
        lists ? cudaMalloc((void **)&p->card, sizeof(card)) : cudaErrorMemoryAllocation;

    if (code == cudaSuccess) {
        make_lists(lists, p->card);
        make_op(p);
        code = cudaMemcpyAsync(p->card, lists, sizeof(*lists), cudaMemcpyHostToDevice, p->stream);
    }
    if (code == cudaSuccess)
        code = cudaStreamSynchronize(p->stream);
    free(lists);
    if (code == cudaSuccess)
        code = place_partial(p);
    p->op.partial = p->partial;
    return code;
}

static cudaError_t send(proof *p, void *to, size_t bytes, numbers kind, bool weights)
{
    cudaError_t code;

    fill(p, p->numbers, bytes / sizeof(uint16_t), kind, weights);
    code = cudaMemcpyAsync(to, p->numbers, bytes, cudaMemcpyHostToDevice, p->stream);
    return code == cudaSuccess ? cudaStreamSynchronize(p->stream) : code;
}

/* What is packed has any bits, and scales about 1, as f16, bf16 and f32. */
static cudaError_t send_numbers(proof *p, gpu_kind weights, numbers kind)
{
    numbers b = p->rows.lora8 ? ANY : kind;
    card *c = p->card;
    cudaError_t code = send(p, c->x, sizeof(c->x), kind, false);

    for (int i = 0; i < PARTS && code == cudaSuccess; i++)
        code =
            send(p, c->weights[i], sizeof(c->weights[i]), weights == GPU_BF16 ? kind : ANY, true);
    if (code == cudaSuccess && weights != GPU_BF16)
        code = send(p, c->scales, sizeof(c->scales), PLAIN, false);
    if (code == cudaSuccess)
        code = send(p, c->b, sizeof(c->b), b, true);
    return code == cudaSuccess ? send(p, c->h, sizeof(c->h), kind, false) : code;
}

/* -- comparing -------------------------------------------------------------------------------- */

static cudaError_t run(proof *p, gpu_way way, uint8_t *y)
{
    cudaError_t code =
        cudaMemcpyAsync(p->op.y, p->y[0], Y_BYTES, cudaMemcpyHostToDevice, p->stream);

    p->op.way = way;
    if (code == cudaSuccess)
        code = gpu_linear_run(&p->rows, &p->op, ROWS, p->stream);
    if (code == cudaSuccess)
        code = cudaMemcpyAsync(y, p->op.y, Y_BYTES, cudaMemcpyDeviceToHost, p->stream);
    return code == cudaSuccess ? cudaStreamSynchronize(p->stream) : code;
}

/* By a little, and the instructions round otherwise; by much, and something is wrong. Of floats, as
 * those that are compared first are. */
static void log_difference(const float *by_warps, const float *by_groups)
{
    size_t n = (size_t)ROWS * LDY, differ = 0;
    double most = 0, squares = 0;

    for (size_t i = 0; i < n; i++) {
        double by = fabs((double)by_warps[i] - (double)by_groups[i]);

        differ += memcmp(&by_warps[i], &by_groups[i], sizeof(float)) != 0;
        most = by <= most ? most : by; /* or no number */
        squares += (double)by_warps[i] * (double)by_warps[i];
    }
    ol_log(OL_LOG_WARNING, "wgmma: of %zu numbers %zu differ, by up to %.1g of their mean size", n,
           differ, most / sqrt(squares / (double)n));
}

/* What y has before is added to by one of the finishes: floats of the sums' size. */
static gpu_proof compare(proof *p, numbers kind, gpu_finish finish)
{
    fill(p, (uint16_t *)p->y[0], Y_BYTES / sizeof(uint16_t), kind == SMALL ? PLAIN : kind, false);
    p->op.finish = finish;
    if (run(p, GPU_WAY_WARP, p->y[1]) != cudaSuccess)
        return GPU_PROOF_FAILED;
    for (gpu_way way = GPU_WAY_GROUP_128; way <= GPU_WAY_GROUP_256; way++) {
        if (run(p, way, p->y[2]) != cudaSuccess)
            return GPU_PROOF_FAILED;
        if (memcmp(p->y[1], p->y[2], Y_BYTES) != 0) {
            log_difference((const float *)p->y[1], (const float *)p->y[2]);
            return GPU_PROOF_DIFFERS;
        }
    }
    return GPU_PROOF_SAME;
}

/* Sums as they are first of all, then what else is made of them. */
static gpu_proof compare_share(proof *p, share s, numbers kind, gpu_finish finish)
{
    gpu_proof found;

    p->op.layer = s == NO_ADAPTERS ? -1 : 0;
    p->rows.member_start = p->card->start[s];
    p->rows.row_members = p->card->of_row[s];
    found = compare(p, kind, GPU_STORE_F32);
    return found == GPU_PROOF_SAME && finish != GPU_STORE_F32 ? compare(p, kind, finish) : found;
}

/* Whoever hears nothing after this knows where it ended. */
static void tell(const proof *p, gpu_proven so_far)
{
    if (p->tell >= 0 && write(p->tell, &so_far, sizeof(so_far)) < 0)
        _exit(1); /* nobody listens */
}

static gpu_proven compare_round(proof *p, gpu_kind weights, int round)
{
    gpu_finish finish = (gpu_finish)((round + round / NUMBERS) % (GPU_SWIGLU + 1));
    numbers kind = (numbers)(round % NUMBERS);
    gpu_proven now = {GPU_PROOF_SAME, (uint8_t)weights, false};

    p->rows.lora8 = (round / 2 + round / NUMBERS) % 2;
    for (int i = 0; i < PARTS; i++)
        p->op.parts[i].w.kind = (int32_t)weights;
    for (share s = NO_ADAPTERS; s <= MIXED && now.found == GPU_PROOF_SAME; s++) {
        now = (gpu_proven){GPU_PROOF_FAILED, now.kind, s != NO_ADAPTERS};
        tell(p, now);
        if (s == NO_ADAPTERS && send_numbers(p, weights, kind) != cudaSuccess)
            break;
        now.found = (uint8_t)compare_share(p, s, kind, finish);
    }
    return now;
}

static gpu_proven compare_all(proof *p)
{
    gpu_proven now = {GPU_PROOF_FAILED, GPU_BF16, false};

    if (place(p) != cudaSuccess)
        return now;
    for (gpu_kind kind = GPU_BF16; kind < GPU_KINDS; kind++)
        for (int i = 0; i < (kind == GPU_BF16 ? BF16_ROUNDS : OTHER_ROUNDS); i++) {
            now = compare_round(p, kind, i);
            if (now.found != GPU_PROOF_SAME)
                return now;
        }
    return now;
}

static gpu_proven prove(proof *p)
{
    gpu_proven found = {GPU_PROOF_FAILED, GPU_BF16, false};
    bool room = true;

    p->numbers = malloc(sizeof(card));
    for (int i = 0; i < 3; i++) {
        p->y[i] = malloc(Y_BYTES);
        room = room && p->y[i];
    }
    if (room && p->numbers)
        found = compare_all(p);
    (void)cudaFree(p->partial);
    (void)cudaFree(p->card);
    for (int i = 0; i < 3; i++)
        free(p->y[i]);
    free(p->numbers);
    return found;
}

gpu_proven gpu_prove_here(int device_index, int tell_file)
{
    proof p = {.tell = tell_file, .state = 1};
    gpu_proven found = {GPU_PROOF_NO_CARD, GPU_BF16, false};
    int n = 0;

    if (cudaGetDeviceCount(&n) != cudaSuccess || device_index >= n)
        return found;
    found.found = GPU_PROOF_NONE;
    if (!gpu_linear_has_groups(device_index)) /* without taking memory there */
        return found;
    found.found = GPU_PROOF_NO_CARD;
    if (cudaSetDevice(device_index) != cudaSuccess ||
        cudaStreamCreateWithFlags(&p.stream, cudaStreamNonBlocking) != cudaSuccess)
        return found;
    found = prove(&p);
    (void)cudaStreamDestroy(p.stream);
    return found;
}
