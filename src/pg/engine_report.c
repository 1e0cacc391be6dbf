/* engine_report.c: see engine_report.h. */
#include "engine_report.h"

#include "base/log.h"
#include "shared.h"
#include "utils/timestamp.h"

static bool take_info(ol_reader *r)
{
    ol_engine_info info;

    if (!ol_wire_get_info(r, &info))
        return false;
    LWLockAcquire(lora_shared->lock, LW_EXCLUSIVE);
    lora_shared->info = info;
    lora_shared->info_at = GetCurrentTimestamp();
    LWLockRelease(lora_shared->lock);
    ConditionVariableBroadcast(&lora_shared->changed);
    return true;
}

static bool is_loading(void)
{
    bool loading;

    LWLockAcquire(lora_shared->lock, LW_SHARED);
    loading = lora_shared->engine == LORA_ENGINE_LOADING;
    LWLockRelease(lora_shared->lock);
    return loading;
}

static void take_log(ol_reader *r)
{
    uint8 level = ol_get_u8(r);
    size_t length;
    const uint8 *text = ol_get_blob(r, &length);

    if (r->bad)
        return;
    ereport(level >= OL_LOG_ERROR  ? WARNING
            : level >= OL_LOG_INFO ? LOG
                                   : DEBUG1,
            (errmsg_internal("openlora engine: %.*s", length > 1000 ? 1000 : (int)length,
                             (const char *)text)));
}

bool engine_report_take(EngineProcess *engine, const ol_frame *frame, const uint8 *payload)
{
    ol_reader r = ol_reader_over(payload, frame->length);
    ol_error error;

    switch (frame->type) {
    case OL_FRAME_PROGRESS:
        LWLockAcquire(lora_shared->lock, LW_EXCLUSIVE);
        lora_shared->progress_done = ol_get_u64(&r);
        lora_shared->progress_total = ol_get_u64(&r);
        LWLockRelease(lora_shared->lock);
        return !r.bad;
    case OL_FRAME_INFO:
        if (!take_info(&r))
            return false;
        if (is_loading()) {
            engine_publish(LORA_ENGINE_READY, NULL);
            engine->failures = 0;
            ereport(LOG, (errmsg("openlora engine is ready")));
        }
        return true;
    case OL_FRAME_BROKEN:
        if (!ol_wire_get_error(&r, &error))
            return false;
        engine_publish(LORA_ENGINE_BROKEN, &error);
        ereport(LOG, (errmsg("openlora engine could not load the model: %s", error.message),
                      error.detail[0] ? errdetail("%s", error.detail) : 0,
                      error.hint[0] ? errhint("%s", error.hint) : 0));
        return true;
    case OL_FRAME_LOG:
        take_log(&r);
        return true;
    default:
        return false;
    }
}
