/*
 * model.h: for the tests of a whole device behind device.h: a small model of random numbers, on
 * the CUDA device or the CPU's, random adapters, and sequences that steps take further.
 *
 * Host memory is the rig's: rig_free_all frees it.
 */
#ifndef OL_TEST_GPU_MODEL_H
#define OL_TEST_GPU_MODEL_H

#include "gpu_rig.h"
#include "stack.h"

#define LAYERS 2
#define MAX_SEQS 6
#define MAX_ROWS 256
#define PAGES 128
#define SEQ_PAGES 48
#define LORAS 4

extern ol_error model_error; /* of the last call */
/* Fails the test that runs. */
#define OK(expr) model_ok((expr), #expr, __FILE__, __LINE__)
void model_ok(ol_code code, const char *what, const char *file, int line);

/* -- weights: model_weights.c ----------------------------------------------------------------- */
extern const stack_shape shape_small, shape_odd, shape_wide;
extern const stack_shape shape_broad; /* all inputs are whole superblocks */

typedef struct weights {
    stack_shape s;
    ol_tensor embedding, head, norm;
    ol_tensor linear[LAYERS][OL_MODULES], bias[LAYERS][OL_MODULES];
    ol_tensor norms[LAYERS][4]; /* attention, MLP, q, k */
    float inv_freq[64];
} weights;

/* Random numbers of mean +- scale; bf16 where `cols` are not whole blocks of the type. */
ol_tensor weights_tensor(ol_dtype dtype, int64_t rows, int64_t cols, double mean, double scale);
weights *weights_random(const stack_shape *s, ol_dtype dtype);
/* The same numbers in f32, where they are of a quantised type: the CPU device multiplies those with
 * rounded activations, which is no measure. */
const weights *weights_plain(const weights *w);
/* What FP8 makes of matrices: each row's largest number becomes 448, the others the nearest; and
 * INT8, where it is 127 and of each 32 columns. */
const weights *weights_rounded(const weights *w, ol_quantization how);

/* -- a model on a device: model.c ------------------------------------------------------------- */
typedef struct model {
    stack on;
    ol_layer layers[LAYERS];
    const weights *w;
    ol_lora *loras[LORAS];
    const ol_pick *picks; /* steps choose, instead of giving logits */
    const ol_choice *choices;
    int32_t last_page; /* from here on pages of a pool are adapters'; 0: there is no pool */
} model;

/* How a device stores what it gets. */
typedef struct storage {
    ol_dtype kv;
    ol_quantization quantization, adapters;
} storage;

/* On the CUDA device as it comes: pages and weights of bf16. */
void model_open_plain(model *m, const weights *w);
void model_open(model *m, const ol_device_table *t, const weights *w, storage how);
void model_open_pages(model *m, int n_pages, ol_dtype kv);
void model_close(model *m);
ol_weight *model_place(model *m, const ol_tensor *t, int use, ol_quantization quantization);
/* A random adapter as loras[at] of both, where there is a second: ranks differ by module, some
 * modules are left out; the last one's ranks are the highest. In pages, where `b` has a pool. */
void model_place_lora(model *a, model *b, int at, ol_dtype dtype);

/* -- requests and steps: model_run.c ---------------------------------------------------------- */
typedef struct sequence {
    int32_t tokens[SEQ_PAGES * 16], pages[SEQ_PAGES];
    int length; /* computed */
    int n_loras;
    int lora[3];
    float weight[3];
    double energy[3]; /* so far */
    float *logits;    /* of the last row computed */
} sequence;

/* Random tokens and adapters; `number` says which pages are its own. */
void sequence_random(sequence *q, const stack_shape *s, int number, int n_loras);
/* The same request, with logits of its own; in the same pages, or in pages of its own. */
void sequence_again(sequence *q, const sequence *of, const stack_shape *s);
void sequence_again_elsewhere(sequence *q, const sequence *of, const stack_shape *s);
void sequence_check_same(const sequence *a, const sequence *b, const stack_shape *s);
/* One step: sequence order[i] goes on by rows[i]; the logits of each one's last row. */
void model_run(model *m, sequence *const *order, const int *rows, int n);
void model_run_one(model *m, sequence *q, int rows);

#endif
