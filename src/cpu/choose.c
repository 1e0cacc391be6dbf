/* choose.c: which kernels to use on this processor. */
#include "cpu/panel.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <string.h>

#if defined(__x86_64__)
/* Not a name that __builtin_cpu_supports of our oldest compilers knows. */
static bool has_avxvnni(void)
{
    unsigned a, b, c, d;

    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif

static bool has(const cpu_kernels *kernels)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (kernels == &cpu_kernels_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni");
    if (kernels == &cpu_kernels_avx2 || kernels == &cpu_kernels_avxvnni) {
        bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");

        /* every processor with AVX2 and FMA has F16C */
        return avx2 && (kernels == &cpu_kernels_avx2 || has_avxvnni());
    }
#endif
    return kernels == &cpu_kernels_portable;
}

ol_code cpu_kernels_choose(const char *isa, const cpu_kernels **kernels, ol_error *err)
{
    static const cpu_kernels *const all[] = {
#if defined(__x86_64__)
        &cpu_kernels_avx512,
        &cpu_kernels_avxvnni,
        &cpu_kernels_avx2,
#endif
        &cpu_kernels_portable
    };
    bool named = isa && strcmp(isa, "auto") != 0;

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        if (named && strcmp(isa, all[i]->name) != 0)
            continue;
        if (has(all[i])) {
            *kernels = all[i];
            return OL_OK;
        }
        if (named)
            return ol_fail(err, OL_UNSUPPORTED, "this processor does not have \"%s\"", isa);
    }
    ol_fail(err, OL_INVALID, "unknown instruction set \"%s\"", isa);
    return ol_hint(err, "Known are auto, avx512, avxvnni, avx2 and portable.");
}
