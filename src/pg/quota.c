/* quota.c: counters of tokens in shared memory: see quota.h and quota_internal.h. */
#include "quota_internal.h"

#include "storage/shmem.h"
#include "utils/timestamp.h"

LoraQuotaControl *lora_quota_control;
HTAB *lora_quota_table;

LWLock *lora_quota_lock(void)
{
    return &GetNamedLWLockTranche("openlora")[1].lock;
}

/* -- counters: under the lock ----------------------------------------------------------------- */

static bool is_idle(const LoraQuotaCounter *c)
{
    return c->concurrent == 0 && c->reserved == 0;
}

/* Drops counters that say nothing: idle, with nothing taken. */
static void drop_empty(void)
{
    HASH_SEQ_STATUS scan;
    LoraQuotaCounter *c;

    hash_seq_init(&scan, lora_quota_table);
    while ((c = hash_seq_search(&scan)) != NULL)
        if (is_idle(c) && c->tokens == 0)
            (void)hash_search(lora_quota_table, &c->key, HASH_REMOVE, NULL);
}

LoraQuotaCounter *lora_quota_counter(const LoraQuotaKey *key, bool make)
{
    bool found;
    LoraQuotaCounter *c = hash_search(lora_quota_table, key, HASH_FIND, NULL);

    if (c || !make)
        return c;
    if (hash_get_num_entries(lora_quota_table) >= LORA_MAX_COUNTERS)
        drop_empty();
    if (hash_get_num_entries(lora_quota_table) >= LORA_MAX_COUNTERS)
        return NULL;
    c = hash_search(lora_quota_table, key, HASH_ENTER_NULL, &found);
    if (c && !found) {
        memset((char *)c + sizeof(c->key), 0, sizeof(*c) - sizeof(c->key));
        c->since = GetCurrentTimestamp();
    }
    return c;
}

void lora_quota_turn_window(LoraQuotaCounter *c, int64 period_us)
{
    int64 window = period_us ? GetCurrentTimestamp() / period_us : 0;

    if (window == c->window)
        return;
    c->window = window;
    c->tokens = 0;
    c->since = window * period_us;
    lora_quota_control->changes++;
}

/* -- for the functions in access.c ------------------------------------------------------------ */

void lora_quota_forget(const LoraQuotaKey *key)
{
    LoraQuotaCounter *c;

    LWLockAcquire(lora_quota_lock(), LW_EXCLUSIVE);
    c = lora_quota_counter(key, false);
    if (c) {
        c->tokens = 0;
        c->since = GetCurrentTimestamp();
        lora_quota_control->changes++;
    }
    LWLockRelease(lora_quota_lock());
}

int lora_quota_list(Oid database, LoraQuotaState **list)
{
    HASH_SEQ_STATUS scan;
    LoraQuotaCounter *c;
    int n = 0;

    *list = palloc(sizeof(LoraQuotaState) * LORA_MAX_COUNTERS);
    LWLockAcquire(lora_quota_lock(), LW_SHARED);
    hash_seq_init(&scan, lora_quota_table);
    while ((c = hash_seq_search(&scan)) != NULL)
        if (c->key.database == database)
            (*list)[n++] = (LoraQuotaState){.key = c->key,
                                            .tokens = c->tokens,
                                            .reserved = c->reserved,
                                            .concurrent = c->concurrent,
                                            .since = c->since};
    LWLockRelease(lora_quota_lock());
    return n;
}

/* -- shared memory ---------------------------------------------------------------------------- */

Size lora_quota_shared_size(void)
{
    return add_size(sizeof(LoraQuotaControl),
                    hash_estimate_size(LORA_MAX_COUNTERS, sizeof(LoraQuotaCounter)));
}

bool lora_quota_attach(void)
{
    HASHCTL info = {.keysize = sizeof(LoraQuotaKey), .entrysize = sizeof(LoraQuotaCounter)};
    bool found;

    lora_quota_control = ShmemInitStruct("openlora quotas", sizeof(LoraQuotaControl), &found);
    lora_quota_table = ShmemInitHash("openlora quota counters", LORA_MAX_COUNTERS,
                                     LORA_MAX_COUNTERS, &info, HASH_ELEM | HASH_BLOBS);
    if (!found)
        memset(lora_quota_control, 0, sizeof(*lora_quota_control));
    return !found;
}
