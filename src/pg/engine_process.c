/* engine_process.c: see engine_process.h. */
#include "engine_process.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"
#include "lib/stringinfo.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "wire/message.h"

#define FIRST_PAUSE_MS 100
#define GRACE_MS 2000
#define OOM_SCORE 500 /* if memory runs out, it goes before any other process of the server */

void engine_publish(LoraEngineState state, const ol_error *error)
{
    LWLockAcquire(lora_shared->lock, LW_EXCLUSIVE);
    lora_shared->engine = state;
    lora_shared->engine_since = GetCurrentTimestamp();
    if (error)
        lora_shared->engine_error = *error;
    if (state == LORA_ENGINE_LOADING)
        lora_shared->progress_done = lora_shared->progress_total = 0;
    if (state != LORA_ENGINE_READY)
        lora_shared->info.running = lora_shared->info.waiting = 0;
    LWLockRelease(lora_shared->lock);
    ConditionVariableBroadcast(&lora_shared->changed);
}

/* -- the command line ------------------------------------------------------------------ */

#define MAX_ARGS 64

typedef struct Command {
    char *args[MAX_ARGS];
    int n;
} Command;

static void add_option(Command *command, const char *name, const char *value)
{
    command->args[command->n++] = psprintf("--%s", name);
    command->args[command->n++] = pstrdup(value);
    command->args[command->n] = NULL;
}

/* One of several words, which are the command line's, too. */
static void add_setting(Command *command, const char *name, const char *setting)
{
    add_option(command, name, GetConfigOptionByName(setting, NULL, false));
}

static void add_flag(Command *command, const char *name)
{
    command->args[command->n++] = psprintf("--%s", name);
    command->args[command->n] = NULL;
}

static void add_number(Command *command, const char *name, int64 value)
{
    if (value > 0)
        add_option(command, name, psprintf(INT64_FORMAT, value));
}

static char *engine_program(void)
{
    return lora_engine_path[0] ? pstrdup(lora_engine_path)
                               : psprintf("%s/openlora-engine", pkglib_path);
}

static void build_command(Command *command)
{
    const int64 mb = 1024 * 1024;

    command->n = 0;
    command->args[command->n++] = engine_program();
    command->args[command->n++] = pstrdup("serve");
    add_option(command, "model", lora_model);
    add_option(command, "device", lora_device);
    add_option(command, "isa", lora_isa);
    add_setting(command, "quantization", "openlora.quantization");
    add_number(command, "threads", lora_threads);
    add_setting(command, "kv-dtype", "openlora.kv_cache_dtype");
    add_setting(command, "adapter-dtype", "openlora.adapter_dtype");
    add_number(command, "kv-bytes", lora_kv_cache_size * mb);
    add_number(command, "adapter-bytes", lora_adapter_cache_size * mb);
    if (lora_adapter_host_cache_size >= 0)
        add_option(command, "adapter-copy-bytes",
                   psprintf(INT64_FORMAT, lora_adapter_host_cache_size * mb));
    add_number(command, "cache-bytes", lora_cache_size * mb);
    add_number(command, "memory-limit", lora_memory_limit * mb);
    add_number(command, "context", lora_context_length);
    add_number(command, "max-seqs", lora_max_sequences);
    add_number(command, "step-tokens", lora_step_tokens);
    add_number(command, "max-queued", lora_max_queued);
    add_number(command, "step-ms", lora_step_time);
    if (!lora_prefix_cache)
        add_flag(command, "no-prefix-cache");
    add_number(command, "max-adapter-bytes", lora_max_adapter_size * mb);
}

/* All of it as one string, to see a change of settings. */
static char *describe_settings(void)
{
    Command command;
    StringInfoData text;

    build_command(&command);
    initStringInfo(&text);
    for (int i = 0; i < command.n; i++)
        appendStringInfo(&text, "%s\n", command.args[i]);
    return text.data;
}

bool engine_settings_changed(const EngineProcess *engine)
{
    return engine->settings && strcmp(engine->settings, describe_settings()) != 0;
}

/* -- start -------------------------------------------------------------------------------- */

/* What it prints goes where the server's log goes. */
static pid_t start_program(Command *command, int ring_fd, int wake_fd)
{
    int keep[] = {Min(ring_fd, wake_fd), Max(ring_fd, wake_fd)};
    ol_child program = {.args = command->args,
                        .out = 2,
                        .errors = 2,
                        .keep = keep,
                        .n_keep = 2,
                        .oom_score = OOM_SCORE};

    add_number(command, "ring-fd", ring_fd);
    add_number(command, "wake-fd", wake_fd);
    return ol_child_start(&program);
}

static void start_failed(EngineProcess *engine, const ol_error *error)
{
    int64 pause = FIRST_PAUSE_MS;

    for (int i = 0; i < engine->failures && pause < lora_restart_backoff_max; i++)
        pause *= 2;
    if (pause > lora_restart_backoff_max)
        pause = lora_restart_backoff_max;
    engine->failures++;
    engine->next_start = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), pause);
    engine_publish(LORA_ENGINE_RESTARTING, error);
}

static void start(EngineProcess *engine)
{
    Command command;
    ol_error error;
    int ring_fd, wake_fd;
    pid_t pid;

    if (engine->settings)
        pfree(engine->settings);
    engine->settings = MemoryContextStrdup(TopMemoryContext, describe_settings());
    engine->asked_for = false;
    if (ol_channel_create(&engine->channel, &ring_fd, &wake_fd, &error) != OL_OK) {
        start_failed(engine, &error);
        return;
    }
    build_command(&command);
    engine_publish(LORA_ENGINE_LOADING, NULL);
    pid = start_program(&command, ring_fd, wake_fd);
    close(ring_fd);
    close(wake_fd);
    if (pid < 0) {
        ol_fail_errno(&error, "could not start", command.args[0]);
        ol_channel_close(&engine->channel);
        start_failed(engine, &error);
        return;
    }
    engine->pid = pid;
    LWLockAcquire(lora_shared->lock, LW_EXCLUSIVE);
    lora_shared->engine_pid = (int)pid;
    lora_shared->generation++;
    LWLockRelease(lora_shared->lock);
    ereport(LOG, (errmsg("openlora engine started with process ID %d", (int)pid)));
}

static LoraEngineState current_state(void)
{
    LoraEngineState state;

    LWLockAcquire(lora_shared->lock, LW_SHARED);
    state = lora_shared->engine;
    LWLockRelease(lora_shared->lock);
    return state;
}

void engine_start_if_due(EngineProcess *engine)
{
    if (engine->pid)
        return;
    if (!lora_model[0]) {
        if (current_state() != LORA_ENGINE_OFF)
            engine_publish(LORA_ENGINE_OFF, NULL);
        return;
    }
    if (!engine->asked_for && !engine_settings_changed(engine)) {
        if (current_state() == LORA_ENGINE_BROKEN)
            return; /* by itself it would fail the same way */
        if (engine->next_start > GetCurrentTimestamp())
            return;
    }
    start(engine);
}

long engine_pause_left(const EngineProcess *engine)
{
    LoraEngineState state = current_state();

    if (engine->pid || !lora_model[0] || state == LORA_ENGINE_BROKEN)
        return -1;
    return TimestampDifferenceMilliseconds(GetCurrentTimestamp(), engine->next_start) + 1;
}

/* -- end ------------------------------------------------------------------------------------ */

/* From here on nobody finds it ready. One that could not load its model stays broken. */
static void gone(EngineProcess *engine, const ol_error *why)
{
    engine->last_frames(engine);
    ol_channel_close(&engine->channel);
    engine->pid = 0;
    LWLockAcquire(lora_shared->lock, LW_EXCLUSIVE);
    lora_shared->engine_pid = 0;
    LWLockRelease(lora_shared->lock);
    if (current_state() != LORA_ENGINE_BROKEN)
        engine_publish(LORA_ENGINE_RESTARTING, why);
}

static void describe_exit(int status, ol_error *error)
{
    if (WIFSIGNALED(status))
        ol_fail(error, OL_LOST, "the openlora engine was terminated by signal %d: %s",
                WTERMSIG(status), strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status) == 127)
        ol_fail(error, OL_LOST, "could not execute the openlora engine \"%s\"", engine_program());
    else
        ol_fail(error, OL_LOST, "the openlora engine exited with status %d", WEXITSTATUS(status));
}

bool engine_reap(EngineProcess *engine)
{
    int status;
    ol_error error;
    bool was_ready;

    if (!engine->pid || waitpid(engine->pid, &status, WNOHANG) != engine->pid)
        return false;
    was_ready = current_state() == LORA_ENGINE_READY;
    describe_exit(status, &error);
    gone(engine, &error);
    if (current_state() == LORA_ENGINE_BROKEN)
        return true; /* it said why, perhaps in its last frames, and left */
    ereport(LOG, (errmsg("%s", error.message)));
    if (was_ready)
        engine->failures = 0;
    LWLockAcquire(lora_shared->lock, LW_EXCLUSIVE);
    lora_shared->restarts++;
    LWLockRelease(lora_shared->lock);
    start_failed(engine, &error);
    return true;
}

/* Whether it closes its end of the channel, as a process does that exits, within `ms`. */
static bool closes_within(EngineProcess *engine, int ms)
{
    TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);
    struct pollfd wake = {.fd = engine->channel.wake_fd, .events = POLLIN};
    long left = ms;

    do {
        (void)poll(&wake, 1, (int)left);
        if (!ol_channel_woken(&engine->channel))
            return true;
        left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
    } while (left > 0);
    return false;
}

void engine_stop(EngineProcess *engine, bool polite, const char *why)
{
    ol_frame frame = {.type = OL_FRAME_SHUTDOWN, .version = OL_WIRE_VERSION};
    ol_error error;
    int status;

    if (!engine->pid)
        return;
    if (polite) {
        (void)ol_channel_send(&engine->channel, &frame, NULL);
        ol_channel_wake(&engine->channel);
        kill(engine->pid, SIGTERM);
    }
    if (!polite || !closes_within(engine, GRACE_MS))
        kill(engine->pid, SIGKILL);
    while (waitpid(engine->pid, &status, 0) < 0 && errno == EINTR)
        ;
    ol_fail(&error, OL_LOST, "%s", why);
    gone(engine, &error);
    engine->next_start = GetCurrentTimestamp();
    if (!polite)
        start_failed(engine, &error);
}

void engine_stop_closed(EngineProcess *engine)
{
    siginfo_t info;

    /* Of a process that is exiting already this changes nothing, not even its status. */
    kill(engine->pid, SIGKILL);
    while (waitid(P_PID, (id_t)engine->pid, &info, WEXITED | WNOWAIT) < 0 && errno == EINTR)
        ;
}
