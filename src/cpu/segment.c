/*
 * segment.c: which rows of a step use which adapter.
 *
 * Segments are made once per step and serve all layers. Entry by entry of the
 * requests' lists, rows with the same adapter come together, adjacent or not: an
 * adapter's matrices are then read once for all its rows.
 */
#include "cpu/core.h"

#include <string.h>

static size_t total_rows(const ol_step *step, int *entries, size_t *refs)
{
    size_t rows = 0;

    *entries = 0;
    *refs = 0;
    for (int s = 0; s < step->n_seqs; s++) {
        const ol_step_seq *seq = &step->seqs[s];

        rows += (size_t)seq->n_rows * (size_t)seq->n_loras;
        *refs += (size_t)seq->n_loras;
        *entries = seq->n_loras > *entries ? seq->n_loras : *entries;
    }
    return rows;
}

/* The segments of one entry, with their numbers of rows. */
static void count_entry(ol_device *device, int entry)
{
    const ol_step *step = device->step;

    device->stamp++;
    for (int s = 0; s < step->n_seqs; s++) {
        const ol_step_seq *seq = &step->seqs[s];
        ol_lora *lora = entry < seq->n_loras ? seq->loras[entry].lora : NULL;
        cpu_segment *segment;

        if (!lora || seq->n_rows == 0)
            continue;
        if (lora->stamp != device->stamp) {
            lora->stamp = device->stamp;
            lora->segment = device->n_segments++;
            device->segments[lora->segment] = (cpu_segment){.lora = lora, .entry = entry};
        }
        segment = &device->segments[lora->segment];
        segment->n += seq->n_rows;
    }
}

static void append(cpu_segment *segment, const ol_step_seq *seq, float weight)
{
    for (int r = 0; r < seq->n_rows; r++) {
        segment->rows[segment->n] = seq->first_row + r;
        segment->weights[segment->n++] = weight;
    }
}

/* Rows of the segments of one entry; `room` is the space that is left. */
typedef struct room {
    int32_t *rows;
    float *weights;
    double *energy;
} room;

static void fill_entry(ol_device *device, int first, int entry, room *left)
{
    const ol_step *step = device->step;

    for (int i = first; i < device->n_segments; i++) {
        cpu_segment *segment = &device->segments[i];

        segment->rows = left->rows;
        segment->weights = left->weights;
        left->rows += segment->n;
        left->weights += segment->n;
        segment->n = 0;
    }
    for (int s = 0; s < step->n_seqs; s++) {
        const ol_step_seq *seq = &step->seqs[s];
        cpu_segment *segment;

        if (entry >= seq->n_loras || seq->n_rows == 0)
            continue;
        segment = &device->segments[seq->loras[entry].lora->segment];
        append(segment, seq, seq->loras[entry].weight);
        if (seq->energy)
            segment->energy = left->energy;
    }
    for (int i = first; i < device->n_segments; i++) {
        cpu_segment *segment = &device->segments[i];

        if (!segment->energy)
            continue;
        segment->energy = left->energy;
        left->energy += segment->n;
        memset(segment->energy, 0, (size_t)segment->n * sizeof(double));
    }
}

ol_code cpu_segments_build(ol_device *device, ol_error *err)
{
    int entries;
    size_t refs, rows = total_rows(device->step, &entries, &refs);
    size_t head = cpu_align(refs * sizeof(cpu_segment));
    uint8_t *at;
    room left;

    device->n_segments = 0;
    if (!rows)
        return OL_OK;
    OL_TRY(cpu_scratch_need(
        &device->memory, &device->segment_space,
        head + cpu_align(rows * sizeof(double)) + rows * (sizeof(int32_t) + sizeof(float)), err));
    at = device->segment_space.data;
    device->segments = (cpu_segment *)(void *)at;
    left.energy = (double *)(void *)(at + head);
    left.weights = (float *)(void *)(left.energy + rows);
    left.rows = (int32_t *)(void *)(left.weights + rows);
    for (int entry = 0; entry < entries; entry++) {
        int first = device->n_segments;

        count_entry(device, entry);
        fill_entry(device, first, entry, &left);
    }
    return OL_OK;
}

void cpu_segments_end(ol_device *device)
{
    for (int i = 0; i < device->n_segments; i++) {
        const cpu_segment *segment = &device->segments[i];

        for (int r = 0; segment->energy && r < segment->n; r++) {
            const ol_step_seq *seq = &device->step->seqs[device->row_seq[segment->rows[r]]];

            if (seq->energy)
                seq->energy[(segment->rows[r] - seq->first_row) * seq->n_loras + segment->entry] +=
                    segment->energy[r];
        }
    }
    device->n_segments = 0;
}
