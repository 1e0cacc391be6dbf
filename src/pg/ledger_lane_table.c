/* ledger_lane_table.c: see ledger_lane.h: which lane is whose. */
#include "ledger_lane.h"

LoraLanes *lora_lanes;

bool lora_lane_has_work(const LoraLane *lane)
{
    return lane->used > 0 || lane->filed || lane->asked > lane->answered;
}

static void give_to(LoraLane *lane, Oid database)
{
    lane->database = database;
    lane->last_turn = ++lora_lanes->turns;
}

LoraLane *lora_lane_of(Oid database)
{
    LoraLane *free = NULL;

    for (int i = 0; i < LORA_LANES; i++) {
        LoraLane *lane = &lora_lanes->lanes[i];

        if (lane->database == database)
            return lane;
        if (lane->pid == 0 && !lora_lane_has_work(lane) &&
            (!free || lane->last_turn < free->last_turn))
            free = lane;
    }
    if (free)
        give_to(free, database);
    return free;
}
