/* ledger_ask.c: asking the ledger process for checkpoints and keys: see ledger.h. */
#include "ledger_lane.h"

#include "database_worker.h"
#include "miscadmin.h"
#include "shared.h"

/* -- asking ------------------------------------------------------------------------------- */

/* Which lane, and the number of the answer to wait for. */
static ol_code enter_ask(LoraAskKind kind, const char *origin, int *at, uint64 *number,
                         ol_error *error)
{
    LoraLane *lane;

    LWLockAcquire(lora_lanes->lock, LW_EXCLUSIVE);
    lane = lora_lane_of(MyDatabaseId);
    if (!lane || lane->creating || (kind != LORA_ASK_SIGN && lane->asked > lane->answered)) {
        LWLockRelease(lora_lanes->lock);
        return ol_fail(error, OL_BUSY, "the ledger is busy with other requests");
    }
    lane->kind = kind;
    lane->creating = kind != LORA_ASK_SIGN;
    strlcpy(lane->origin, origin, sizeof(lane->origin));
    *number = ++lane->asked;
    lane->urgent = true;
    *at = (int)(lane - lora_lanes->lanes);
    LWLockRelease(lora_lanes->lock);
    lora_database_worker_ensure(LORA_WORKER_LEDGER, MyDatabaseId);
    return OL_OK;
}

/* True with the answer; it stands until another database needs the lane. */
static bool take_answer(int at, uint64 number, ol_code *code, ol_error *error)
{
    const LoraLane *lane = &lora_lanes->lanes[at];
    bool there;

    LWLockAcquire(lora_lanes->lock, LW_SHARED);
    there = lane->answered >= number || lane->database != MyDatabaseId;
    *code = lane->code;
    *error = lane->error;
    if (lane->database != MyDatabaseId)
        *code = ol_fail(error, OL_BUSY, "the ledger's answer came too early: ask again");
    LWLockRelease(lora_lanes->lock);
    return there;
}

ol_code lora_ledger_ask(LoraAskKind kind, const char *origin, ol_error *error)
{
    uint64 number = 0;
    ol_code code;
    int at = 0;

    OL_TRY(enter_ask(kind, origin, &at, &number, error));
    ConditionVariablePrepareToSleep(&lora_lanes->answered);
    while (!take_answer(at, number, &code, error))
        ConditionVariableSleep(&lora_lanes->answered, lora_wait_event());
    ConditionVariableCancelSleep();
    return code;
}

/* -- in the ledger process --------------------------------------------------------------- */

bool lora_lane_asked(int at, LoraAskKind *kind, char origin[LORA_ORIGIN_BYTES], uint64 *number)
{
    const LoraLane *lane = &lora_lanes->lanes[at];
    bool asked;

    LWLockAcquire(lora_lanes->lock, LW_SHARED);
    asked = lane->asked > lane->answered;
    *kind = lane->kind;
    *number = lane->asked;
    strlcpy(origin, lane->origin, LORA_ORIGIN_BYTES);
    LWLockRelease(lora_lanes->lock);
    return asked;
}

void lora_lane_answer(int at, uint64 number, ol_code code, const ol_error *error)
{
    LoraLane *lane = &lora_lanes->lanes[at];

    LWLockAcquire(lora_lanes->lock, LW_EXCLUSIVE);
    lane->answered = number;
    lane->creating = false;
    lane->code = code;
    if (code != OL_OK)
        lane->error = *error;
    LWLockRelease(lora_lanes->lock);
    ConditionVariableBroadcast(&lora_lanes->answered);
}
