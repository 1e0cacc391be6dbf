/* lists.c: a step as lists that kernels read: which row is whose, and which adapters apply to
 * it. Made in pinned memory, copied at once. Addresses change only when lists outgrow their
 * room: graphs hold on to them. */
#include "kernels/core.h"

#include <stdlib.h>
#include <string.h>

#define ALIGN ((size_t)16)

/* Where each list starts. */
typedef struct layout {
    size_t counts, tokens, pos, page_start, logit_rows, decode_rows, tiles, member_start, picks;
    size_t pages; /* and behind those of a step what its picks point to */
    size_t members, row_members, items, bytes;
} layout;

static size_t place(size_t *at, size_t n, size_t size)
{
    size_t here = *at;

    *at = (here + n * size + ALIGN - 1) / ALIGN * ALIGN;
    return here;
}

static layout lay_out(const ol_device *device, size_t words, size_t members)
{
    size_t rows = (size_t)device->options.max_rows, at = 0;
    size_t logit_rows = (size_t)device->options.max_logit_rows;
    layout l;

    l.counts = place(&at, 1, sizeof(gpu_counts));
    l.tokens = place(&at, rows, sizeof(int32_t));
    l.pos = place(&at, rows, sizeof(int32_t));
    l.page_start = place(&at, rows, sizeof(int32_t));
    l.logit_rows = place(&at, logit_rows, sizeof(int32_t));
    l.decode_rows = place(&at, rows, sizeof(int32_t));
    l.tiles = place(&at, rows, sizeof(gpu_tile));
    l.member_start = place(&at, rows + 1, sizeof(int32_t));
    l.picks = place(&at, logit_rows, sizeof(ol_pick));
    l.pages = place(&at, words, sizeof(int32_t));
    l.members = place(&at, members, sizeof(gpu_member));
    l.row_members = place(&at, members, sizeof(int32_t));
    l.items = place(&at, members, sizeof(gpu_item));
    l.bytes = at;
    return l;
}

void gpu_lists_free(ol_device *device)
{
    gpu_lists *lists = &device->lists;

    if (lists->pinned)
        (void)cudaFreeHost(lists->pinned);
    if (lists->device)
        gpu_block_free(&device->memory, lists->device, lists->bytes);
    free(lists->groups);
    memset(lists, 0, sizeof(*lists));
}

static void point(ol_device *device, const layout *l)
{
    const uint8_t *at = device->lists.device;
    gpu_rows *rows = &device->rows;

    rows->counts = (const gpu_counts *)(at + l->counts);
    rows->tokens = (const int32_t *)(at + l->tokens);
    rows->pos = (const int32_t *)(at + l->pos);
    rows->page_start = (const int32_t *)(at + l->page_start);
    rows->pages = (const int32_t *)(at + l->pages);
    rows->logit_rows = (const int32_t *)(at + l->logit_rows);
    rows->decode_rows = (const int32_t *)(at + l->decode_rows);
    rows->tiles = (const gpu_tile *)(at + l->tiles);
    rows->members = (const gpu_member *)(at + l->members);
    rows->items = (const gpu_item *)(at + l->items);
    rows->member_start = (const int32_t *)(at + l->member_start);
    rows->row_members = (const int32_t *)(at + l->row_members);
    device->lists.picks = (const ol_pick *)(at + l->picks);
}

/* Doubles, so that a growing conversation does not do it at each page. */
static ol_code make_room(ol_device *device, size_t words, size_t members, ol_error *err)
{
    gpu_lists *lists = &device->lists;
    size_t room_words = lists->words ? lists->words : 4096;
    size_t room_members = lists->members ? lists->members : (size_t)device->options.max_rows;
    layout l;

    if (lists->pinned && words <= lists->words && members <= lists->members)
        return OL_OK;
    while (room_words < words)
        room_words *= 2;
    while (room_members < members)
        room_members *= 2;
    gpu_graphs_drop(device);
    gpu_lists_free(device);
    l = lay_out(device, room_words, room_members);
    OL_TRY(gpu_pinned((void **)&lists->pinned, l.bytes, "a step's lists", err));
    lists->device = gpu_block(&device->memory, l.bytes, "a step's lists", device->stream, err);
    if (!lists->device)
        return err->code;
    lists->bytes = l.bytes;
    lists->words = room_words;
    lists->members = room_members;
    point(device, &l);
    return OL_OK;
}

/* -- rows and pages ------------------------------------------------------------------------- */

static size_t pages_of(const ol_device *device, const ol_step_seq *seq)
{
    size_t tokens = (size_t)device->page_tokens;

    return ((size_t)seq->first_pos + (size_t)seq->n_rows + tokens - 1) / tokens;
}

/* Whether a sequence's rows are decode_rows: one row always; a few as long as, with those of all
 * others, they are not more than a step of max_seqs sequences has, whose partial results fit.
 * *spare: max_seqs - n_seqs at first. */
static bool is_decoding(const ol_step_seq *seq, int *spare)
{
    int more = seq->n_rows - 1;

    if (seq->n_rows > GPU_DECODE_ROWS || more > *spare)
        return false;
    *spare -= more;
    return true;
}

static void count_seq(const ol_step_seq *seq, int *spare, gpu_sizes *sizes)
{
    int splits = (seq->first_pos + seq->n_rows - 1) / GPU_KV_SPLIT + 1;

    if (is_decoding(seq, spare)) {
        sizes->n_decode += seq->n_rows;
        sizes->n_splits = splits > sizes->n_splits ? splits : sizes->n_splits;
        if (seq->n_rows > 1)
            sizes->decode_most = GPU_DECODE_ROWS;
    } else
        sizes->n_tiles += (seq->n_rows + GPU_TILE_ROWS - 1) / GPU_TILE_ROWS;
}

static void fill_rows(ol_device *device, const layout *l)
{
    const ol_step *step = device->step;
    uint8_t *at = device->lists.pinned;
    int32_t *pos = (int32_t *)(at + l->pos), *start = (int32_t *)(at + l->page_start);
    int32_t *pages = (int32_t *)(at + l->pages), *decode = (int32_t *)(at + l->decode_rows);
    gpu_tile *tiles = (gpu_tile *)(at + l->tiles);
    int spare = device->options.max_seqs - step->n_seqs;
    size_t page = 0;

    memcpy(at + l->tokens, step->tokens, (size_t)step->n_rows * sizeof(int32_t));
    if (step->n_logit_rows)
        memcpy(at + l->logit_rows, step->logit_rows, (size_t)step->n_logit_rows * sizeof(int32_t));
    for (int s = 0; s < step->n_seqs; s++) {
        const ol_step_seq *seq = &step->seqs[s];

        for (int r = 0; r < seq->n_rows; r++) {
            pos[seq->first_row + r] = seq->first_pos + r;
            start[seq->first_row + r] = (int32_t)page;
        }
        memcpy(pages + page, seq->pages, pages_of(device, seq) * sizeof(int32_t));
        page += pages_of(device, seq);
        if (is_decoding(seq, &spare))
            for (int r = 0; r < seq->n_rows; r++)
                *decode++ = seq->first_row + r;
        else
            for (int r = 0; r < seq->n_rows; r += GPU_TILE_ROWS)
                *tiles++ =
                    (gpu_tile){seq->first_row + r,
                               seq->n_rows - r < GPU_TILE_ROWS ? seq->n_rows - r : GPU_TILE_ROWS};
    }
}

/* -- how tokens are chosen -------------------------------------------------------------------- */

static size_t words_of(const ol_pick *pick)
{
    return 2 * ((size_t)pick->n_seen + (size_t)pick->n_bias) + (size_t)pick->n_mask;
}

/* Copies a list behind others; returns where the device will have it. */
static const void *append(const gpu_lists *lists, size_t *at, const void *list, size_t bytes)
{
    const void *there = lists->device + *at;

    if (bytes)
        memcpy(lists->pinned + *at, list, bytes);
    *at += bytes;
    return there;
}

/* From `at` on lies what picks point to. */
static void fill_picks(ol_device *device, const layout *l, size_t at)
{
    const ol_step *step = device->step;
    gpu_lists *lists = &device->lists;
    ol_pick *picks = (ol_pick *)(lists->pinned + l->picks);

    lists->edited = false;
    for (int i = 0; step->picks && i < step->n_logit_rows; i++) {
        const ol_pick *p = &step->picks[i];

        picks[i] = *p;
        picks[i].seen = append(lists, &at, p->seen, (size_t)p->n_seen * sizeof(ol_seen_token));
        picks[i].bias = append(lists, &at, p->bias, (size_t)p->n_bias * sizeof(ol_logit_bias));
        picks[i].mask = append(lists, &at, p->mask, (size_t)p->n_mask * sizeof(uint32_t));
        lists->edited = lists->edited || words_of(p) > 0;
    }
}

/* -- adapters --------------------------------------------------------------------------------- */

static ol_code find_groups(ol_device *device, ol_error *err)
{
    const ol_step *step = device->step;
    gpu_lists *lists = &device->lists;
    int most = 0;

    for (int s = 0; s < step->n_seqs; s++)
        most += step->seqs[s].n_loras;
    if (most > lists->room_groups) {
        free(lists->groups);
        lists->room_groups = 0;
        lists->groups = calloc((size_t)most, sizeof(gpu_group));
        if (!lists->groups)
            return ol_fail_nomem(err, (size_t)most * sizeof(gpu_group), "a step's adapters");
        lists->room_groups = most;
    }
    lists->n_groups = 0;
    for (int s = 0; s < step->n_seqs; s++)
        for (int i = 0; i < step->seqs[s].n_loras; i++) {
            ol_lora *lora = step->seqs[s].loras[i].lora;

            if (lora->stamp != device->stamp) {
                lora->stamp = device->stamp;
                lora->group = lists->n_groups;
                lists->groups[lists->n_groups++] = (gpu_group){.lora = lora};
            }
            lists->groups[lora->group].n += step->seqs[s].n_rows;
        }
    return OL_OK;
}

/* Where each group's members start and h of each; the groups' items. */
static void place_groups(ol_device *device, const layout *l)
{
    gpu_lists *lists = &device->lists;
    gpu_item *items = (gpu_item *)(lists->pinned + l->items);
    gpu_member *members = (gpu_member *)(lists->pinned + l->members);
    int first = 0, n_items = 0;

    lists->h_used = 0;
    for (int g = 0; g < lists->n_groups; g++) {
        gpu_group *group = &lists->groups[g];

        group->first = first;
        for (int i = 0; i < group->n; i++) {
            members[first + i].lora = group->lora->block;
            members[first + i].h = (int32_t)lists->h_used;
            lists->h_used += group->lora->h_stride;
        }
        for (int i = 0; i < group->n; i += GPU_ITEM_MEMBERS)
            items[n_items++] = (gpu_item){
                first + i, group->n - i < GPU_ITEM_MEMBERS ? group->n - i : GPU_ITEM_MEMBERS};
        first += group->n;
        group->n = 0; /* counts again, as members are filled */
    }
    device->sizes.n_items = n_items;
}

static void fill_members(ol_device *device, const layout *l)
{
    const ol_step *step = device->step;
    gpu_lists *lists = &device->lists;
    gpu_member *members = (gpu_member *)(lists->pinned + l->members);
    int32_t *of_row = (int32_t *)(lists->pinned + l->row_members);
    int32_t *start = (int32_t *)(lists->pinned + l->member_start);
    int n = 0;

    lists->n_energies = 0;
    for (int s = 0; s < step->n_seqs; s++) {
        const ol_step_seq *seq = &step->seqs[s];

        for (int r = 0; r < seq->n_rows; r++) {
            start[seq->first_row + r] = n;
            for (int i = 0; i < seq->n_loras; i++) {
                gpu_group *group = &lists->groups[seq->loras[i].lora->group];
                int at = group->first + group->n++;

                members[at].row = seq->first_row + r;
                members[at].entry = i;
                members[at].energy = seq->energy ? lists->n_energies++ : -1;
                members[at].weight = seq->loras[i].weight;
                of_row[n++] = at;
            }
        }
    }
    start[step->n_rows] = n;
}

/* -- all of it --------------------------------------------------------------------------------- */

static void count(ol_device *device, size_t *pages, size_t *words, size_t *members)
{
    const ol_step *step = device->step;
    int spare = device->options.max_seqs - step->n_seqs;

    device->sizes =
        (gpu_sizes){.n_rows = step->n_rows, .n_logit_rows = step->n_logit_rows, .decode_most = 1};
    *pages = *members = 0;
    for (int s = 0; s < step->n_seqs; s++) {
        const ol_step_seq *seq = &step->seqs[s];

        count_seq(seq, &spare, &device->sizes);
        *pages += pages_of(device, seq);
        *members += (size_t)seq->n_rows * (size_t)seq->n_loras;
    }
    *words = *pages;
    for (int i = 0; step->picks && i < step->n_logit_rows; i++)
        *words += words_of(&step->picks[i]);
    device->sizes.n_members = (int32_t)*members;
}

static ol_code send(ol_device *device, size_t from, size_t to, ol_error *err)
{
    GPU_TRY(cudaMemcpyAsync(device->lists.device + from, device->lists.pinned + from, to - from,
                            cudaMemcpyHostToDevice, device->stream),
            "sending it a step");
    return OL_OK;
}

ol_code gpu_lists_fill(ol_device *device, const ol_step *step, ol_error *err)
{
    size_t pages, words, members;
    gpu_sizes *sizes = &device->sizes;
    layout l;

    device->step = step;
    device->stamp++;
    count(device, &pages, &words, &members);
    OL_TRY(make_room(device, words, members, err));
    l = lay_out(device, device->lists.words, device->lists.members);
    fill_rows(device, &l);
    fill_picks(device, &l, l.pages + pages * sizeof(int32_t));
    OL_TRY(find_groups(device, err));
    place_groups(device, &l);
    fill_members(device, &l);
    *(gpu_counts *)(device->lists.pinned + l.counts) =
        (gpu_counts){.n_rows = sizes->n_rows,
                     .n_logit_rows = sizes->n_logit_rows,
                     .n_decode = sizes->n_decode,
                     .n_tiles = sizes->n_tiles,
                     .n_items = sizes->n_items,
                     .n_members = sizes->n_members};
    OL_TRY(send(device, 0, l.pages + words * sizeof(int32_t), err));
    if (members)
        OL_TRY(send(device, l.members, l.items + (size_t)sizes->n_items * sizeof(gpu_item), err));
    return OL_OK;
}
