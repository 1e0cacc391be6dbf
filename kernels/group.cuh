/*
 * group.cuh: what devices of compute capability 9.0 have besides gpu.cuh: products of four warps
 * together, and barriers in shared memory at which some threads arrive and others wait. With
 * OL_SIMT the same functions are in C++ (test/simt/group.h).
 *
 * A product runs beside what its warps do, from when it is asked for until it was waited for. Till
 * then nobody touches its sums, the registers of its A and what it reads of shared memory.
 *
 * Only machine code for sm_90a has this (GROUP_PRODUCTS); other kernels are empty where it is not.
 */
#ifndef OL_GROUP_CUH
#define OL_GROUP_CUH

#include "kernels/gpu.cuh"

#define GROUP 128 /* threads of a group: four warps, the first one's number a multiple of four */

#ifdef OL_SIMT
#include "group.h"
#define GROUP_PRODUCTS 1
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define GROUP_PRODUCTS 1

/* -- products ------------------------------------------------------------------------------- */

/* What threads have written into sums and A can be read by products that come after. */
static __device__ __forceinline__ void group_begin(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/* Ends a group of products. */
static __device__ __forceinline__ void group_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most N groups of products are under way. */
template <int N> static __device__ __forceinline__ void group_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(N) : "memory");
}

/* The compiler keeps these where they are, before and after. */
template <int N> static __device__ __forceinline__ void group_hold(float (&c)[N][4])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])::"memory");
}

template <int N> static __device__ __forceinline__ void group_hold(uint32_t (&a)[N][4])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+r"(a[i][0]), "+r"(a[i][1]), "+r"(a[i][2]), "+r"(a[i][3])::"memory");
}

/*
 * C (64 x N, f32) += A (64 x 16, bf16) B (16 x N, bf16), by a group; a warp has 16 rows, in order.
 * a: as mma_bf16's; c[j]: as mma_bf16's of columns 8 j ..; b: group_tile(), plus 2 for each 16
 * columns of the tile before those that are meant.
 */
#define GROUP_SUM(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define GROUP_SUMS(i)                                                                              \
    GROUP_SUM(i), GROUP_SUM(i + 1), GROUP_SUM(i + 2), GROUP_SUM(i + 3), GROUP_SUM(i + 4),          \
        GROUP_SUM(i + 5), GROUP_SUM(i + 6), GROUP_SUM(i + 7)

static __device__ __forceinline__ void group_multiply(float (&c)[16][4], const uint32_t (&a)[4],
                                                      uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,"
                 "%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,"
                 "%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,"
                 "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
                 "{%64,%65,%66,%67}, %68, 1, 1, 1, 0;"
                 : GROUP_SUMS(0), GROUP_SUMS(8)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

static __device__ __forceinline__ void group_multiply(float (&c)[32][4], const uint32_t (&a)[4],
                                                      uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,"
                 "%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,"
                 "%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,"
                 "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,"
                 "%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,"
                 "%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,"
                 "%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,"
                 "%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, "
                 "{%128,%129,%130,%131}, %132, 1, 1, 1, 0;"
                 : GROUP_SUMS(0), GROUP_SUMS(8), GROUP_SUMS(16), GROUP_SUMS(24)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef GROUP_SUMS
#undef GROUP_SUM

/* This thread's writes to shared memory so far, copies that it has waited for included, can be
 * read by products of those who hear of it: by a barrier. */
static __device__ __forceinline__ void fence_for_products(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* -- barriers --------------------------------------------------------------------------------- */

/* A phase ends when `count` have arrived; then the next one begins. By one thread, before a barrier
 * of the block. */
static __device__ __forceinline__ void barrier_make(uint64_t *barrier, int count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
                 :
                 : "r"(shared_address(barrier)), "r"(count)
                 : "memory");
}

static __device__ __forceinline__ void barrier_arrive(uint64_t *barrier)
{
    asm volatile("{.reg .b64 s; mbarrier.arrive.shared::cta.b64 s, [%0];}"
                 :
                 : "r"(shared_address(barrier))
                 : "memory");
}

/* Until the phase of that parity has ended: 0 is the first one's. 1 at first: does not wait. */
static __device__ __forceinline__ void barrier_wait(uint64_t *barrier, int parity)
{
    asm volatile("{.reg .pred p;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra again;}"
                 :
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
}

/* A barrier for `threads` of the block: whole warps. 0 is __syncthreads(). */
static __device__ __forceinline__ void sync_some(int number, int threads)
{
    asm volatile("bar.sync %0, %1;" : : "r"(number), "r"(threads) : "memory");
}

/* -- registers ------------------------------------------------------------------------------------
 * A block has as many as its threads began with: some may take what others give. */

/* From here on the threads of the group have at most N, a multiple of 8; taking waits until others
 * have given enough. */
template <int N> static __device__ __forceinline__ void give_registers(void)
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(N));
}

template <int N> static __device__ __forceinline__ void take_registers(void)
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(N));
}
#endif

/* -- operands in shared memory --------------------------------------------------------------------
 * Said by where they begin, how far their rows are apart, and how these are swizzled. */

#ifdef GROUP_PRODUCTS
/* B as [its columns][64 of the sum]: rows of 128 bytes at an address that is a multiple of 1024.
 * The 16 bytes numbered i of row r are where i ^ r % 8 would be. The first 16 of the sum; the next
 * ones are 32 bytes on. */
static __device__ __forceinline__ uint64_t group_tile(const void *tile)
{
    const uint64_t stride = 8 * 128 / 16, swizzle_128 = 1;

    return (uint64_t)(shared_address(tile) & 0x3ffff) / 16 | (uint64_t)1 << 16 | stride << 32 |
           swizzle_128 << 62;
}
#endif

#endif
