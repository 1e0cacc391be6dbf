/*
 * test_faults.c: what the CUDA device says and does when something goes wrong: no GPU, no driver
 * for it, a busy one; no memory; a kernel that fails; a recording that fails. The smallest model
 * that makes a step: an embedding and a head.
 *
 * Faults of the machine are the simulated device's (test/simt): on a GPU the limits alone are
 * tested.
 */
#include "gpu_rig.h"

#include "device/device.h"
#include "kernels/core.h"

const ol_device_table *ol_device_entry_point(void);

#define HIDDEN 64
#define VOCAB 48

static const ol_device_table *t;
static ol_error error;
static const ol_device_options options = {.max_rows = 64, .max_seqs = 2, .max_logit_rows = 2};

static void must(ol_code got, ol_code want, const char *where)
{
    if (got != want)
        fail_msg("%s: %s, not %s: %s (%s)", where, ol_code_name(got), ol_code_name(want),
                 error.message, error.detail);
}
#define OK(expr) must((expr), OL_OK, #expr)
#define FAILS(expr, code) must((expr), (code), #expr)

static void says(const char *text, const char *word)
{
    if (!strstr(text, word))
        fail_msg("\"%s\" does not say \"%s\"", text, word);
}

/* -- a model ----------------------------------------------------------------------------- */

typedef struct model {
    ol_device *device;
    ol_weight *table, *norm;
    ol_buffer *x;
    uint16_t *numbers;
    float norms[HIDDEN];
} model;

static void open_model_as(model *m, const ol_device_options *how)
{
    ol_weight_desc table = {.use = OL_WEIGHT_EMBEDDING_AND_HEAD, .keep = true};
    ol_weight_desc norm = {.use = OL_WEIGHT_VECTOR, .keep = true};

    m->numbers = rig_random_bf16(VOCAB * HIDDEN, 1, NULL);
    for (int i = 0; i < HIDDEN; i++)
        m->norms[i] = 1 + 0.1f * (float)rig_uniform();
    table.tensor = (ol_tensor){
        "table", OL_BF16, 2, {VOCAB, HIDDEN}, (const uint8_t *)m->numbers, 2 * VOCAB * HIDDEN};
    norm.tensor =
        (ol_tensor){"norm", OL_F32, 1, {HIDDEN}, (const uint8_t *)m->norms, sizeof(m->norms)};
    OK(t->open(how, &m->device, &error));
    OK(t->weight_create(m->device, &table, &m->table, &error));
    OK(t->weight_create(m->device, &norm, &m->norm, &error));
    OK(t->buffer_create(m->device, HIDDEN, &m->x, &error));
}

static void open_model(model *m)
{
    open_model_as(m, &options);
}

static void close_model(model *m)
{
    t->buffer_free(m->device, m->x);
    t->weight_free(m->device, m->table);
    t->weight_free(m->device, m->norm);
    t->close(m->device);
    rig_free_all();
}

/* A step of two sequences' only rows; their logits. */
static ol_code run(model *m, int first, float *out)
{
    static const int32_t page = 0, logit_rows[2] = {0, 1};
    int32_t tokens[2] = {first % VOCAB, (first + 7) % VOCAB};
    ol_step_seq seqs[2] = {{.first_row = 0, .n_rows = 1, .pages = &page},
                           {.first_row = 1, .n_rows = 1, .pages = &page}};
    ol_step step = {2, tokens, 2, seqs, 2, logit_rows, NULL};
    const float *logits;

    OL_TRY(t->step_begin(m->device, &step, &error));
    OL_TRY(t->embed(m->device, m->table, m->x, &error));
    OL_TRY(t->logits(m->device, m->x, m->norm, 1e-5f, m->table, &logits, &error));
    memcpy(out, logits, 2 * VOCAB * sizeof(float));
    return t->step_end(m->device, &error);
}

/* -- memory ---------------------------------------------------------------------------------- */

static void names_its_budget(void **state)
{
    ol_device_options small = options;
    ol_kv_desc desc = {2, 2, 64, 16, 4096, OL_BF16, false};
    ol_device *device;
    ol_kv *kv;

    (void)state;
    small.memory_limit = (size_t)1 << 20;
    OK(t->open(&small, &device, &error));
    FAILS(t->kv_create(device, &desc, &kv, &error), OL_NOMEM);
    says(error.message, "the KV cache");
    says(error.detail, "1048576");
    says(error.hint, "openlora.memory_limit");
    t->close(device);
}

static void no_such_card(void **state)
{
    ol_device_options other = options;
    ol_device *device;

    (void)state;
    other.device_index = 900;
    FAILS(t->open(&other, &device, &error), OL_INVALID);
    says(error.message, "900");
}

/* -- steps by graphs --------------------------------------------------------------------------- */

static int n_graphs(const model *m, bool of_this_step)
{
    int n = 0;

    for (int i = 0; i < GPU_GRAPHS; i++)
        n += m->device->graphs[i].exec != NULL &&
             (!of_this_step || m->device->graphs[i].used == m->device->stamp);
    return n;
}

/* The first step of its kind is recorded, the next one runs what was recorded: the same bits. */
static void steps_are_recorded(void **state)
{
    float first[2 * VOCAB], again[2 * VOCAB];
    model m;

    (void)state;
    open_model(&m);
    OK(run(&m, 3, first));
    assert_int_equal(n_graphs(&m, false), 1);
    OK(run(&m, 4, again));
    assert_memory_not_equal(first, again, sizeof(first));
    OK(run(&m, 3, again));
    assert_int_equal(n_graphs(&m, false), 1);
    assert_int_equal(n_graphs(&m, true), 1);
    assert_memory_equal(first, again, sizeof(first));
    close_model(&m);
}

#ifdef OL_SIMT
static void unrecorded_steps(void **state)
{
    float first[2 * VOCAB], again[2 * VOCAB];
    model m;

    (void)state;
    open_model(&m);
    OK(run(&m, 3, first));
    gpu_graphs_drop(m.device);
    simt_settings.no_capture = 1;
    OK(run(&m, 3, again));
    OK(run(&m, 3, again));
    simt_settings.no_capture = 0;
    assert_true(m.device->no_graphs);
    assert_int_equal(n_graphs(&m, false), 0);
    assert_memory_equal(first, again, sizeof(first));
    close_model(&m);
}

/* -- the machine ----------------------------------------------------------------------------- */

static void no_device(void **state)
{
    ol_device *device;

    (void)state;
    simt_settings.absent = cudaErrorNoDevice;
    FAILS(t->open(&options, &device, &error), OL_NOT_FOUND);
    simt_settings.absent = cudaSuccess;
    says(error.message, "there is no GPU");
    says(error.detail, "cudaErrorNoDevice");
}

static void old_driver(void **state)
{
    ol_device *device;

    (void)state;
    simt_settings.absent = cudaErrorInsufficientDriver;
    FAILS(t->open(&options, &device, &error), OL_UNSUPPORTED);
    simt_settings.absent = cudaSuccess;
    says(error.message, "driver is too old");
    says(error.detail, "CUDA 12.0; CUDA 13.0 is needed");
    says(error.hint, "Update the driver");
}

static void busy_device(void **state)
{
    ol_device *device;

    (void)state;
    simt_settings.refusal = cudaErrorDevicesUnavailable;
    FAILS(t->open(&options, &device, &error), OL_DEVICE);
    simt_settings.refusal = cudaSuccess;
    says(error.message, "GPU 0 is busy");
    says(error.hint, "reload");
}

/* The card's memory ends before the limit does: it says whose, and all goes on. */
static void card_is_full(void **state)
{
    ol_kv_desc desc = {2, 2, 64, 16, 4096, OL_BF16, false};
    float first[2 * VOCAB], again[2 * VOCAB];
    model m;
    ol_kv *kv;

    (void)state;
    open_model(&m);
    OK(run(&m, 3, first));
    simt_settings.memory = (size_t)64 << 20;
    FAILS(t->kv_create(m.device, &desc, &kv, &error), OL_NOMEM);
    simt_settings.memory = 0;
    says(error.message, "the KV cache");
    says(error.detail, "of the card's 67108864");
    says(error.hint, "openlora.kv_cache_size");
    OK(run(&m, 3, again));
    assert_memory_equal(first, again, sizeof(first));
    close_model(&m);
}

/* What a stream has given back to CUDA's pool serves others, too. */
static void pool_is_no_hoard(void **state)
{
    size_t bytes = (size_t)48 << 20;
    gpu_memory memory = {0};
    void *p;

    (void)state;
    simt_settings.memory = (size_t)64 << 20;
    p = gpu_block_ordered(&memory, bytes, "a test", rig_stream(), &error);
    assert_non_null(p);
    gpu_block_free_ordered(&memory, p, bytes, rig_stream());
    p = gpu_block(&memory, bytes, "a test", rig_stream(), &error);
    if (!p)
        fail_msg("%s (%s)", error.message, error.detail);
    gpu_block_free(&memory, p, bytes);
    simt_settings.memory = 0;
    assert_int_equal(memory.used, 0);
}

/* A driver that is broken is no missing one: it is told as a fault, also where the CPU computes. */
static void broken_driver(void **state)
{
    ol_device *device;

    (void)state;
    simt_settings.absent = cudaErrorUnknown;
    FAILS(t->open(&options, &device, &error), OL_DEVICE);
    simt_settings.absent = cudaSuccess;
    says(error.message, "CUDA cannot use this machine's GPUs");
    says(error.detail, "cudaErrorUnknown");
}

static void compiled_for_others(void **state)
{
    ol_device *device;

    (void)state;
    simt_settings.no_code = 1;
    FAILS(t->open(&options, &device, &error), OL_UNSUPPORTED);
    says(error.message, "there are no kernels for GPU 0");
    says(error.detail, "cudaErrorNoKernelImageForDevice");
    says(error.hint, "CUDA_ARCHS=80.");
    simt_settings.capability = 9;
    FAILS(t->open(&options, &device, &error), OL_UNSUPPORTED);
    simt_settings.capability = 0;
    simt_settings.no_code = 0;
    says(error.hint, "CUDA_ARCHS=90a.");
}

/* A driver that cannot record early launches: graphs without them. */
static void recorded_without_early(void **state)
{
    float first[2 * VOCAB], again[2 * VOCAB];
    model m;

    (void)state;
    open_model(&m);
    OK(run(&m, 3, first));
    gpu_graphs_drop(m.device);
    simt_settings.no_early = 1;
    OK(run(&m, 3, again));
    OK(run(&m, 3, again));
    simt_settings.no_early = 0;
    assert_int_equal(gpu_launches_early, 0);
    assert_int_equal(n_graphs(&m, true), 1);
    assert_memory_equal(first, again, sizeof(first));
    gpu_launches_early = 1;
    close_model(&m);
}

/* A step that is begun and given up, as when there is no memory for it; then one whose lists need
 * more room: those of the first may still be on their way. */
static void step_is_given_up(void **state)
{
    enum { TOKENS = 16 * 5000 };
    static const int32_t pages[TOKENS / 16], token, row;
    float first[2 * VOCAB], again[2 * VOCAB];
    ol_step_seq seq = {.n_rows = 1, .first_pos = TOKENS - 1, .pages = pages};
    model m;

    (void)state;
    open_model(&m);
    OK(run(&m, 3, first));
    for (int i = 0; i < 2; i++) {
        ol_step_seq seqs[2] = {{.n_rows = 1, .pages = pages}};

        OK(t->step_begin(m.device, &(ol_step){1, &token, 1, seqs, 1, &row, NULL}, &error));
        OK(t->step_begin(m.device, &(ol_step){1, &token, 1, &seq, 1, &row, NULL}, &error));
    }
    OK(run(&m, 3, again));
    assert_memory_equal(first, again, sizeof(first));
    close_model(&m);
}

/* -- adapters, made by another thread ---------------------------------------------------------- */

#define RANK 4

typedef struct loading {
    model *m;
    ol_lora *lora;
    ol_code code;
} loading;

static void *load(void *context)
{
    loading *l = context;
    uint16_t *numbers = rig_random_bf16(HIDDEN * RANK, 1, NULL);
    size_t bytes = 2 * HIDDEN * RANK;
    ol_lora_module module = {.rank = RANK, .scale = 1};

    module.a = (ol_tensor){"A", OL_BF16, 2, {RANK, HIDDEN}, (const uint8_t *)numbers, bytes};
    module.b = (ol_tensor){"B", OL_BF16, 2, {HIDDEN, RANK}, (const uint8_t *)numbers, bytes};
    l->code = t->lora_create(l->m->device, &module, 1, &l->lora, &error);
    return NULL;
}

/* In the middle of a step, on whichever card. */
static void loads_beside_a_step(int card)
{
    ol_device_options other = options;
    float first[2 * VOCAB], again[2 * VOCAB];
    loading l = {0};
    pthread_t thread;
    model m;

    other.device_index = card;
    open_model_as(&m, &other);
    OK(run(&m, 3, first));
    simt_counted = (simt_traffic){0};
    l.m = &m;
    assert_int_equal(pthread_create(&thread, NULL, load, &l), 0);
    OK(run(&m, 3, again));
    pthread_join(thread, NULL);
    OK(l.code);
    assert_int_equal(simt_counted.pageable, 0);
    assert_memory_equal(first, again, sizeof(first));
    t->lora_free(m.device, l.lora);
    close_model(&m);
    GPU_OK(cudaSetDevice(0));
}

static void another_thread(void **state)
{
    (void)state;
    loads_beside_a_step(0);
}

static void another_card(void **state)
{
    (void)state;
    loads_beside_a_step(1);
}

/* A card without memory in a stream's order: some virtual ones. */
static void no_pool(void **state)
{
    (void)state;
    simt_settings.no_pools = 1;
    loads_beside_a_step(0);
    simt_settings.no_pools = 0;
}

/* It is the host's memory that does not suffice, not the card's. */
static void host_is_full(void **state)
{
    ol_device *device;

    (void)state;
    simt_settings.pinned = 1;
    FAILS(t->open(&options, &device, &error), OL_NOMEM);
    simt_settings.pinned = 0;
    says(error.message, "the host has no memory");
    says(error.detail, "pinned");
}

/* A kernel fails: that step says so, and whatever follows; closing works. */
static void kernel_fails(void **state)
{
    float out[2 * VOCAB];
    ol_weight *weight = NULL;
    model m;
    ol_weight_desc desc = {.use = OL_WEIGHT_VECTOR, .keep = true};

    (void)state;
    open_model(&m);
    OK(run(&m, 3, out));
    simt_recover();
    simt_settings.fail_after = 1;
    FAILS(run(&m, 3, out), OL_DEVICE);
    says(error.message, "the GPU failed");
    says(error.detail, "cudaErrorIllegalAddress");
    FAILS(run(&m, 3, out), OL_DEVICE);
    desc.tensor =
        (ol_tensor){"norm", OL_F32, 1, {HIDDEN}, (const uint8_t *)m.norms, sizeof(m.norms)};
    FAILS(t->weight_create(m.device, &desc, &weight, &error), OL_DEVICE);
    t->buffer_free(m.device, m.x);
    t->weight_free(m.device, m.table);
    t->weight_free(m.device, m.norm);
    t->close(m.device);
    simt_settings.fail_after = -1;
    simt_recover();
    rig_free_all();
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_its_budget),
        cmocka_unit_test(no_such_card),
        cmocka_unit_test(steps_are_recorded),
#ifdef OL_SIMT
        cmocka_unit_test(unrecorded_steps),
        cmocka_unit_test(no_device),
        cmocka_unit_test(old_driver),
        cmocka_unit_test(busy_device),
        cmocka_unit_test(card_is_full),
        cmocka_unit_test(pool_is_no_hoard),
        cmocka_unit_test(broken_driver),
        cmocka_unit_test(compiled_for_others),
        cmocka_unit_test(recorded_without_early),
        cmocka_unit_test(step_is_given_up),
        cmocka_unit_test(another_thread),
        cmocka_unit_test(another_card),
        cmocka_unit_test(no_pool),
        cmocka_unit_test(host_is_full),
        cmocka_unit_test(kernel_fails),
#endif
    };

    rig_seed();
    t = ol_device_entry_point();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
