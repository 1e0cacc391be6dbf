/*
 * test_device_cpu.c: the CUDA device against the CPU device, both behind device.h: ragged steps of
 * a small random model with pasts, several adapters a row, weights of each type.
 *
 * The CPU device is loaded from OL_DEVICE_DIR (default: build).
 */
#include "model.h"

#include <math.h>

static const ol_device_table *cpu_table(void)
{
    const char *dir = getenv("OL_DEVICE_DIR");
    const ol_device_table *t = NULL;

    OK(ol_device_load(dir ? dir : "build", "cpu", &t, &model_error));
    return t;
}

/* How far a row's logits are from those that they should be, by norm. */
static double row_error(const float *got, const float *want, int n)
{
    double sum = 0, norm = 0;

    for (int i = 0; i < n; i++) {
        double d = (double)got[i] - (double)want[i];

        sum += isfinite(d) ? d * d : 1e30;
        norm += (double)want[i] * (double)want[i];
    }
    return sqrt(sum / norm);
}

static int compare_errors(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/*
 * What the models of check_against_cpu are: the device; the CPU device in f32; and that again with
 * pages of bf16, and of f16, which say what a rounding here and there comes to. Twice, as either
 * may happen to change little of a row.
 *
 * That differs much from row to row: where the scores of a random model are steep, and two of them
 * next to each other, a row of a few hundred comes out ten times as far off as the others, whoever
 * computes it. So most rows have to be within the tolerance, and each within what is in proportion
 * to its own rounding.
 */
enum { DEVICE, EXACT, ROUNDED, ROUNDED_LESS, MODELS };
#define STEPS 4
#define LESS 8       /* f16 has three bits more */
#define ROUNDINGS 20 /* what these models do once */
#define FP8_MORE 16  /* e4m3 has four bits less than bf16 */

static void check_rows(double (*errors)[2], int n, double tolerance, const char *what)
{
    double sorted[STEPS * MAX_SEQS];

    for (int i = 0; i < n; i++) {
        sorted[i] = errors[i][0];
        if (!(errors[i][0] <= tolerance + ROUNDINGS * errors[i][1]))
            fail_msg("%s: a row's error is %.3g of its norm; where rounding makes %.3g, %.3g are "
                     "admitted",
                     what, errors[i][0], errors[i][1], tolerance + ROUNDINGS * errors[i][1]);
    }
    qsort(sorted, (size_t)n, sizeof(sorted[0]), compare_errors);
    if (!(sorted[n / 2] <= tolerance))
        fail_msg("%s: half of the rows have errors above %.3g of their norms; admitted %.3g", what,
                 sorted[n / 2], tolerance);
}

static void place_requests(const stack_shape *s, sequence seqs[MODELS][MAX_SEQS])
{
    for (int i = 0; i < MAX_SEQS; i++) {
        sequence_random(&seqs[0][i], s, i, i % 4);
        for (int m = 1; m < MODELS; m++)
            sequence_again(&seqs[m][i], &seqs[0][i], s);
    }
}

/* A step of all sequences on all models; the rows' errors. */
static void compare_step(model *models, sequence seqs[MODELS][MAX_SEQS], const int *rows,
                         double (*errors)[2])
{
    int vocab = models->w->s.vocab;

    for (int m = 0; m < MODELS; m++) {
        sequence *order[MAX_SEQS];

        for (int i = 0; i < MAX_SEQS; i++)
            order[i] = &seqs[m][i];
        model_run(&models[m], order, rows, MAX_SEQS);
    }
    for (int i = 0; i < MAX_SEQS; i++) {
        const float *want = seqs[EXACT][i].logits;

        errors[i][0] = row_error(seqs[DEVICE][i].logits, want, vocab);
        errors[i][1] = fmax(row_error(seqs[ROUNDED][i].logits, want, vocab),
                            LESS * row_error(seqs[ROUNDED_LESS][i].logits, want, vocab));
    }
}

/* What the device makes of weights: Q6_K becomes INT8, too. */
static ol_quantization quantization_of(ol_dtype dtype, storage how)
{
    return dtype == OL_Q6_K ? OL_QUANT_INT8 : how.quantization;
}

/* The three, with the same weights and adapters. What the device rounds weights to the CPU device
 * is given, as it would round them otherwise, or not at all: what differs is what is computed. */
static void open_models(model models[MODELS], const weights *w, storage how)
{
    ol_quantization rounding = quantization_of(w->head.dtype, how);
    const weights *plain = weights_plain(w);
    storage exact = {OL_F32, OL_QUANT_AS_IS, how.adapters};

    model_open(&models[DEVICE], ol_device_entry_point(), w, how);
    if (rounding != OL_QUANT_AS_IS)
        plain = weights_rounded(plain, rounding);
    model_open(&models[EXACT], cpu_table(), plain, exact);
    for (int i = 0; i < LORAS; i++)
        model_place_lora(&models[DEVICE], &models[EXACT], i, i % 2 ? OL_F32 : OL_BF16);
    models[ROUNDED] = models[ROUNDED_LESS] = models[EXACT]; /* on the same device */
    model_open_pages(&models[ROUNDED], PAGES, OL_BF16);
    model_open_pages(&models[ROUNDED_LESS], PAGES, OL_F16);
}

static void close_models(model models[MODELS])
{
    for (int i = ROUNDED; i < MODELS; i++)
        cpu_table()->kv_free(models[i].on.device, models[i].on.kv);
    model_close(&models[DEVICE]);
    model_close(&models[EXACT]);
    rig_free_all();
}

static void check_against_cpu(const stack_shape *s, ol_dtype dtype, storage how, double tolerance)
{
    const weights *w = weights_random(s, dtype);
    sequence seqs[MODELS][MAX_SEQS];
    double errors[STEPS * MAX_SEQS][2];
    rig_gap energies = {0};
    model models[MODELS];

    open_models(models, w, how);
    place_requests(s, seqs);
    for (int step = 0; step < STEPS; step++) {
        int rows[MAX_SEQS];

        for (int i = 0; i < MAX_SEQS; i++)
            rows[i] = step % 2 ? 1 : 1 + rig_below(30); /* prompts, then a row each */
        compare_step(models, seqs, rows, errors + step * MAX_SEQS);
    }
    for (int i = 0; i < MAX_SEQS; i++)
        for (int k = 0; seqs[0][i].n_loras > 1 && k < seqs[0][i].n_loras; k++)
            rig_compare(&energies, seqs[DEVICE][i].energy[k], seqs[EXACT][i].energy[k]);
    for (int i = 0; how.kv == OL_F8E4M3 && i < STEPS * MAX_SEQS; i++)
        errors[i][1] *= FP8_MORE;
    check_rows(errors, STEPS * MAX_SEQS, tolerance, ol_dtype_name(dtype));
    rig_check_gap(&energies, 2 * tolerance, "energies, %s", ol_dtype_name(dtype));
    close_models(models);
}

/* -- the tests -------------------------------------------------------------------------------- */

static void agrees_with_cpu(void **state)
{
    (void)state;
    check_against_cpu(&shape_small, OL_BF16, (storage){.kv = OL_BF16}, 2e-2);
    check_against_cpu(&shape_odd, OL_F32, (storage){.kv = OL_BF16}, 2e-2);
    check_against_cpu(&shape_wide, OL_F16, (storage){.kv = OL_BF16}, 2e-2);
}

/* Types of blocks keep their numbers, but for Q6_K. */
static void agrees_in_blocks(void **state)
{
    (void)state;
    check_against_cpu(&shape_small, OL_Q8_0, (storage){.kv = OL_BF16}, 2e-2);
    check_against_cpu(&shape_wide, OL_Q4_0, (storage){.kv = OL_BF16}, 2e-2);
    check_against_cpu(&shape_wide, OL_BF16, (storage){.kv = OL_BF16, .quantization = OL_QUANT_INT8},
                      2e-2);
    check_against_cpu(&shape_broad, OL_Q4_K, (storage){.kv = OL_BF16}, 3e-2); /* scales in bf16 */
    check_against_cpu(&shape_broad, OL_Q6_K, (storage){.kv = OL_BF16}, 2e-2);
}

/* Of any type as good as that type: what is lost is lost in packing. */
static void agrees_in_fp8(void **state)
{
    (void)state;
    check_against_cpu(&shape_small, OL_BF16, (storage){.kv = OL_BF16, .quantization = OL_QUANT_FP8},
                      2e-2);
    check_against_cpu(&shape_odd, OL_F32, (storage){.kv = OL_BF16, .quantization = OL_QUANT_FP8},
                      2e-2);
    check_against_cpu(&shape_wide, OL_Q8_0, (storage){.kv = OL_BF16, .quantization = OL_QUANT_FP8},
                      2e-2);
}

/* Keys and values of 3 bits' fraction are what the CPU has not. */
static void agrees_with_fp8_pages(void **state)
{
    (void)state;
    check_against_cpu(&shape_small, OL_BF16, (storage){.kv = OL_F8E4M3}, 0.25);
    check_against_cpu(&shape_odd, OL_F32, (storage){.kv = OL_F8E4M3}, 0.25);
    check_against_cpu(&shape_wide, OL_F16, (storage){.kv = OL_F8E4M3, .quantization = OL_QUANT_FP8},
                      0.25);
}

/* Both make the same numbers of eight bits, whatever types adapters come in. */
static void agrees_with_adapters_in_eight_bits(void **state)
{
    storage how = {OL_BF16, OL_QUANT_AS_IS, OL_QUANT_INT8};

    (void)state;
    check_against_cpu(&shape_small, OL_BF16, how, 2e-2);
    check_against_cpu(&shape_odd, OL_F32, how, 2e-2);
    check_against_cpu(&shape_wide, OL_Q8_0, how, 2e-2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_cpu),
        cmocka_unit_test(agrees_in_blocks),
        cmocka_unit_test(agrees_in_fp8),
        cmocka_unit_test(agrees_with_fp8_pages),
        cmocka_unit_test(agrees_with_adapters_in_eight_bits),
    };

    rig_seed();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
