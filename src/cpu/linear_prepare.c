/* linear_prepare.c: what linear modules need before their phases: room, and units of work. */
#include "cpu/linear_units.h"

#define LARGE_CHUNKS 4 /* for each thread at least */

static ol_code prepare_tiles(cpu_linear *job, ol_error *err)
{
    cpu_scratch *scratch = &job->device->tiles[job->slot];
    int64_t blocks = job->parts[0].weight->m.cols / OL_BLOCK;

    for (int i = 0; i < job->n_parts; i++) {
        bool block = cpu_kind_is_block(job->parts[i].weight->m.kind);

        job->quantize |= block && job->device->kernels->quantize;
        job->floats |= !block || !job->device->kernels->quantize;
    }
    if (!job->quantize)
        return OL_OK;
    OL_TRY(cpu_scratch_need(&job->device->memory, scratch,
                            (size_t)job->n * (size_t)blocks * CPU_TILE_BYTES, err));
    job->tiles = (cpu_tiles){job->n, blocks, scratch->data};
    return OL_OK;
}

static int64_t shrunk_stride(const cpu_lora_group *group)
{
    return cpu_panels(&group->a) * PANEL;
}

static void list_shrunk(cpu_linear *job, float *h, int *units)
{
    *units = 0;
    for (int i = 0; i < job->device->n_segments; i++) {
        const cpu_segment *segment = &job->device->segments[i];
        const cpu_lora_group *group = cpu_lora_find(segment->lora, job->layer, job->input);
        cpu_shrunk *s;

        if (!group)
            continue;
        s = &job->shrunk[job->n_shrunk++];
        *s = (cpu_shrunk){.segment = segment,
                          .group = group,
                          .h = h,
                          .ldh = shrunk_stride(group),
                          .first_unit = *units,
                          .row_units = (segment->n + SHRINK_ROWS - 1) / SHRINK_ROWS,
                          .panel_units =
                              (int)((cpu_panels(&group->a) + SHRINK_PANELS - 1) / SHRINK_PANELS)};
        h += segment->n * s->ldh;
        *units += s->row_units * s->panel_units;
    }
}

static ol_code prepare_shrunk(cpu_linear *job, int *units, ol_error *err)
{
    cpu_scratch *scratch = &job->device->shrunk[job->slot];
    size_t head = cpu_align((size_t)job->device->n_segments * sizeof(cpu_shrunk)), floats = 0;

    for (int i = 0; i < job->device->n_segments; i++) {
        const cpu_segment *segment = &job->device->segments[i];
        const cpu_lora_group *group = cpu_lora_find(segment->lora, job->layer, job->input);

        if (group)
            floats += (size_t)segment->n * (size_t)shrunk_stride(group);
    }
    if (!floats)
        return OL_OK;
    OL_TRY(cpu_scratch_need(&job->device->memory, scratch, head + floats * sizeof(float), err));
    job->shrunk = scratch->data;
    list_shrunk(job, (float *)(void *)((uint8_t *)scratch->data + head), units);
    job->floats = true;
    return OL_OK;
}

static ol_code prepare_strips(cpu_linear *job, ol_error *err)
{
    size_t threads = (size_t)cpu_pool_threads(job->device->pool);

    if (job->finish == FINISH_STORE)
        return OL_OK;
    return cpu_scratch_need(&job->device->memory, &job->device->strips,
                            threads * 2 * (size_t)job->device->options.max_rows * MAX_GRAIN *
                                PANEL * sizeof(float),
                            err);
}

/* Even chunks make whole blocks of act. Many rows want a chunk whose outputs stay in the cache;
 * few rows of adapters a large one, since a row's sums over so few inputs wait for each other: the
 * more outputs, the more of them go on at once. But all threads want some. */
static int64_t grain_of(const cpu_linear *job)
{
    int64_t least = LARGE_CHUNKS * MAX_GRAIN * cpu_pool_threads(job->device->pool);

    if (job->n <= FEW_ROWS && job->n_shrunk && cpu_panels(&job->parts[0].weight->m) >= least)
        return MAX_GRAIN;
    return 2;
}

ol_code cpu_linear_prepare(cpu_linear *job, int slot, ol_error *err)
{
    cpu_pool *pool = job->device->pool;
    int64_t chunks = 0;
    int units = 0;

    job->slot = slot;
    OL_TRY(prepare_tiles(job, err));
    if (job->layer >= 0 && job->device->n_segments)
        OL_TRY(prepare_shrunk(job, &units, err));
    OL_TRY(prepare_strips(job, err));
    if (job->next)
        job->next->ready = true;
    job->grain = grain_of(job);
    for (int i = 0; i < (job->finish == FINISH_SWIGLU ? 1 : job->n_parts); i++)
        chunks += cpu_linear_chunks(job, i);
    cpu_queue_fill(pool, cpu_linear_queue(job, QUANTIZE_QUEUE), cpu_tile_count(job->n));
    cpu_queue_fill(pool, cpu_linear_queue(job, SHRINK_QUEUE), units);
    cpu_queue_fill(pool, cpu_linear_queue(job, CHUNK_QUEUE), chunks);
    cpu_queue_fill(pool, cpu_linear_queue(job, ENERGY_QUEUE), job->n_shrunk);
    return OL_OK;
}
