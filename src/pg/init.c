/* init.c: what happens when the library is loaded. */
#include "lora_pg.h"

#include "postmaster/bgworker.h"
#include "pipeline.h"
#include "queue.h"
#include "session.h"
#include "shared.h"
#include "shmem.h"
#include "worker.h"

PG_MODULE_MAGIC;

bool lora_preloaded;

PGDLLEXPORT void _PG_init(void);

static void register_worker(void)
{
    BackgroundWorker worker = {0};

    snprintf(worker.bgw_name, BGW_MAXLEN, "openlora worker");
    snprintf(worker.bgw_type, BGW_MAXLEN, "openlora worker");
    snprintf(worker.bgw_library_name, BGW_MAXLEN, "openlora");
    snprintf(worker.bgw_function_name, BGW_MAXLEN, "lora_worker_main");
    worker.bgw_flags = BGWORKER_SHMEM_ACCESS;
    worker.bgw_start_time = BgWorkerStart_PostmasterStart;
    worker.bgw_restart_time = 1;
    RegisterBackgroundWorker(&worker);
}

/* Without the preload the functions exist and say what is missing: settings with a
 * postmaster or SIGHUP context could not be defined then. */
void _PG_init(void)
{
    if (!process_shared_preload_libraries_in_progress)
        return;
    lora_preloaded = true;
    lora_define_settings();
    lora_shmem_install_hooks();
    lora_session_install_hooks();
    lora_pipeline_install_hooks();
    lora_queue_install_hooks();
    register_worker();
}
