/* quota_claim.c: what requests of this backend have reserved: see quota.h. */
#include "quota_internal.h"

#include "access/xact.h"
#include "lists.h"
#include "session.h"
#include "storage/ipc.h"
#include "utils/timestamp.h"

typedef struct Claim {
    LoraQuotaClaim id;
    SubTransactionId begun_in;
    int64 reserved, taken;
    int n;
    LoraQuotaKey keys[LORA_MAX_QUOTAS];
} Claim;

static Claim *claims;
static int n_claims, max_claims;
static LoraQuotaClaim last_claim;

/* -- ends ------------------------------------------------------------------------------------- */

/* A session counts once, however many requests it has in flight: a scan that works ahead is
 * one that asks. */
static bool counts_already(const LoraQuotaKey *key, const Claim *but)
{
    for (int i = 0; i < n_claims; i++)
        for (int k = 0; &claims[i] != but && k < claims[i].n; k++)
            if (memcmp(&claims[i].keys[k], key, sizeof(*key)) == 0)
                return true;
    return false;
}

static void end_claim(int i)
{
    Claim *claim = &claims[i];

    LWLockAcquire(lora_quota_lock(), LW_EXCLUSIVE);
    for (int k = 0; k < claim->n; k++) {
        LoraQuotaCounter *c = lora_quota_counter(&claim->keys[k], false);

        if (!c)
            continue;
        c->reserved -= claim->reserved;
        if (!counts_already(&claim->keys[k], claim))
            c->concurrent--;
    }
    LWLockRelease(lora_quota_lock());
    claims[i] = claims[--n_claims];
}

static void end_all(void)
{
    while (n_claims > 0)
        end_claim(n_claims - 1);
}

static void at_transaction_end(XactEvent event, void *arg)
{
    if (lora_session_outlives)
        return;
    if (event == XACT_EVENT_ABORT || event == XACT_EVENT_PARALLEL_ABORT ||
        event == XACT_EVENT_COMMIT || event == XACT_EVENT_PREPARE)
        end_all();
}

static void at_subtransaction_end(SubXactEvent event, SubTransactionId id, SubTransactionId parent,
                                  void *arg)
{
    for (int i = n_claims - 1; i >= 0; i--) {
        if (claims[i].begun_in != id)
            continue;
        if (event == SUBXACT_EVENT_ABORT_SUB)
            end_claim(i);
        else if (event == SUBXACT_EVENT_COMMIT_SUB)
            claims[i].begun_in = parent;
    }
}

static void at_exit(int code, Datum arg)
{
    end_all();
}

/* -- reserving -------------------------------------------------------------------------------- */

static bool refuse_tokens(const LoraQuota *q, const LoraQuotaCounter *c, int64 tokens,
                          ol_error *error)
{
    if (q->tokens < 0 || c->tokens + c->reserved + tokens <= q->tokens)
        return false;
    ol_fail(error, OL_QUOTA, "the quota of tokens of %s is used up", q->what);
    ol_detail(error,
              INT64_FORMAT " of " INT64_FORMAT " tokens are used and " INT64_FORMAT
                           " reserved by requests that run; this one may take " INT64_FORMAT ".",
              c->tokens, q->tokens, c->reserved, tokens);
    if (q->period_us)
        ol_hint(error, "Ask for fewer with max_tokens, or wait until %s.",
                timestamptz_to_str(c->since + q->period_us));
    else
        ol_hint(error, "Ask for fewer with max_tokens, or for another grant.");
    return true;
}

static bool refuse_concurrent(const LoraQuota *q, const LoraQuotaCounter *c, ol_error *error)
{
    if (q->concurrent < 0 || c->concurrent < q->concurrent)
        return false;
    ol_fail(error, OL_QUOTA, "too many sessions of %s ask at the same time", q->what);
    ol_detail(error, "The quota is %d.", q->concurrent);
    return true;
}

/* All or none; under the lock. */
static bool reserve_all(const LoraQuota *quotas, int n, int64 tokens, ol_error *error)
{
    for (int i = 0; i < n; i++) {
        LoraQuotaCounter *c = lora_quota_counter(&quotas[i].key, true);

        if (!c) {
            ol_fail(error, OL_LIMIT, "too many quotas are being counted");
            ol_detail(error, "There can be at most %d.", LORA_MAX_COUNTERS);
            return false;
        }
        lora_quota_turn_window(c, quotas[i].period_us);
        if (!counts_already(&quotas[i].key, NULL) && refuse_concurrent(&quotas[i], c, error))
            return false;
        if (refuse_tokens(&quotas[i], c, tokens, error))
            return false;
    }
    for (int i = 0; i < n; i++) {
        LoraQuotaCounter *c = lora_quota_counter(&quotas[i].key, false);

        c->reserved += tokens;
        if (!counts_already(&quotas[i].key, NULL))
            c->concurrent++;
    }
    return true;
}

static Claim *new_claim(void)
{
    static bool registered;

    if (!registered) {
        RegisterXactCallback(at_transaction_end, NULL);
        RegisterSubXactCallback(at_subtransaction_end, NULL);
        before_shmem_exit(at_exit, 0);
        registered = true;
    }
    claims = lora_list_room(claims, n_claims, &max_claims, sizeof(Claim));
    return &claims[n_claims];
}

bool lora_quota_claim(const LoraQuota *quotas, int n, int64 tokens, LoraQuotaClaim *id,
                      ol_error *error)
{
    Claim *claim;
    bool good;

    *id = 0;
    if (n == 0)
        return true;
    Assert(n <= LORA_MAX_QUOTAS);
    claim = new_claim();
    LWLockAcquire(lora_quota_lock(), LW_EXCLUSIVE);
    good = reserve_all(quotas, n, tokens, error);
    LWLockRelease(lora_quota_lock());
    if (!good)
        return false;
    claim->id = *id = ++last_claim;
    claim->begun_in = GetCurrentSubTransactionId();
    claim->reserved = tokens;
    claim->taken = 0;
    claim->n = n;
    for (int i = 0; i < n; i++)
        claim->keys[i] = quotas[i].key;
    n_claims++;
    return true;
}

/* -- taking ----------------------------------------------------------------------------------- */

static Claim *find_claim(LoraQuotaClaim id)
{
    for (int i = 0; id && i < n_claims; i++)
        if (claims[i].id == id)
            return &claims[i];
    return NULL;
}

void lora_quota_took(LoraQuotaClaim id, int64 tokens)
{
    Claim *claim = find_claim(id);
    int64 more, released;

    if (!claim || claim->taken == tokens)
        return;
    more = tokens - claim->taken;
    released = Max(Min(more, claim->reserved), -claim->taken);
    claim->taken = tokens;
    claim->reserved -= released;
    LWLockAcquire(lora_quota_lock(), LW_EXCLUSIVE);
    for (int i = 0; i < claim->n; i++) {
        LoraQuotaCounter *c = lora_quota_counter(&claim->keys[i], false);

        if (!c)
            continue;
        c->tokens = Max(c->tokens + more, 0); /* a window may have begun meanwhile */
        c->reserved -= released;
    }
    lora_quota_control->changes++;
    LWLockRelease(lora_quota_lock());
}

void lora_quota_end(LoraQuotaClaim id)
{
    Claim *claim = find_claim(id);

    if (claim)
        end_claim((int)(claim - claims));
}
