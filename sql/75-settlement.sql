-- ---------------------------------------------------------------- reward policies
-- Money is counted in whole micro-units of a declared unit; nothing smaller is booked.
CREATE TABLE openlora.reward_units (
    unit   text PRIMARY KEY CHECK (unit <> ''),
    micro  text NOT NULL,
    reward bytea CHECK (octet_length(reward) = 20)
);
COMMENT ON TABLE openlora.reward_units IS 'in what is settled';
COMMENT ON COLUMN openlora.reward_units.micro IS 'what one micro-unit is, in words: a millionth of a euro, the base unit of a token';
COMMENT ON COLUMN openlora.reward_units.reward IS 'address of the token that claims are paid in; NULL: no claims';

ALTER TABLE openlora.contributors ADD COLUMN account bytea CHECK (octet_length(account) = 20);
COMMENT ON COLUMN openlora.contributors.account IS 'address that claims are paid to; without one they keep accruing';
ALTER TABLE openlora.inferences ADD COLUMN IF NOT EXISTS cached_tokens int NOT NULL DEFAULT 0;

-- Shares given to it are nobody's, on purpose: they are booked, and paid to no one.
INSERT INTO openlora.contributors (id, name, note) OVERRIDING SYSTEM VALUE
VALUES (-1, 'unattributed', 'holds the shares that are nobody''s');

-- The price of a request is its uncached prompt tokens, cached prompt tokens and answer
-- tokens, each times its rate per thousand, and the platform's fee. The fee is the
-- platform's; the rest is split by the shares, which sum to a million. A request falls
-- into parts, one for each adapter, by measured share or by typed weight; a policy for an
-- adapter replaces rates and shares for that adapter's part.
CREATE TABLE openlora.reward_policies (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    adapter            bigint,
    valid_from         timestamptz NOT NULL DEFAULT now(),
    valid_to           timestamptz,
    unit               text REFERENCES openlora.reward_units,
    portion            text CHECK (portion IN ('measured', 'weight')),
    platform_fee       bigint CHECK (platform_fee >= 0),
    input_rate         bigint NOT NULL CHECK (input_rate >= 0),
    cached_rate        bigint NOT NULL CHECK (cached_rate >= 0),
    output_rate        bigint NOT NULL CHECK (output_rate >= 0),
    model_share        int NOT NULL CHECK (model_share BETWEEN 0 AND 1000000),
    compute_share      int NOT NULL CHECK (compute_share BETWEEN 0 AND 1000000),
    adapter_share      int NOT NULL CHECK (adapter_share BETWEEN 0 AND 1000000),
    dataset_share      int NOT NULL CHECK (dataset_share BETWEEN 0 AND 1000000),
    platform_share     int NOT NULL CHECK (platform_share BETWEEN 0 AND 1000000),
    unattributed_share int NOT NULL DEFAULT 0 CHECK (unattributed_share BETWEEN 0 AND 1000000),
    CHECK (valid_to > valid_from),
    CONSTRAINT whole CHECK (model_share + compute_share + adapter_share + dataset_share + platform_share
                            + unattributed_share = 1000000),
    CONSTRAINT whole_request CHECK ((adapter IS NULL) = (unit IS NOT NULL) AND (adapter IS NULL) = (portion IS NOT NULL)
                                    AND (adapter IS NULL) = (platform_fee IS NOT NULL)),
    CONSTRAINT one_at_a_time EXCLUDE USING gist (int8range(coalesce(adapter, 0), coalesce(adapter, 0), '[]') WITH &&,
                                                 tstzrange(valid_from, valid_to) WITH &&)
);
COMMENT ON TABLE openlora.reward_policies IS 'what a request costs and who shares in it, from when to when';
COMMENT ON COLUMN openlora.reward_policies.adapter IS 'only this adapter''s parts: rates and shares; NULL: every request';
COMMENT ON COLUMN openlora.reward_policies.portion IS 'how a request falls into parts: by the adapters'' measured shares, or by the weights typed';
COMMENT ON COLUMN openlora.reward_policies.platform_fee IS 'micro-units per request';
COMMENT ON COLUMN openlora.reward_policies.input_rate IS 'micro-units per thousand tokens';

-- ---------------------------------------------------------------- the books
CREATE TABLE openlora.settlements (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text NOT NULL CHECK (kind IN ('usage', 'correction')),
    up_to       timestamptz UNIQUE CHECK ((kind = 'usage') = (up_to IS NOT NULL)),
    closed_at   timestamptz NOT NULL DEFAULT now(),
    role        name NOT NULL DEFAULT CURRENT_USER,
    policies    bigint NOT NULL DEFAULT 0,
    corrects    bigint REFERENCES openlora.settlements,
    note        text
);
COMMENT ON TABLE openlora.settlements IS 'periods that were closed, and corrections';
COMMENT ON COLUMN openlora.settlements.policies IS 'last reward policy there was: later ones change nothing that was settled';

-- An inference that was committed after a period was closed, though stamped within, is in no
-- row here, so the next settlement takes it; and the key lets none be taken twice.
CREATE TABLE openlora.settled_inferences (
    inference  bigint PRIMARY KEY REFERENCES openlora.inferences ON DELETE RESTRICT,
    settlement bigint NOT NULL REFERENCES openlora.settlements,
    policy     bigint NOT NULL REFERENCES openlora.reward_policies
);
CREATE INDEX settled_inferences_settlement_idx ON openlora.settled_inferences (settlement);
COMMENT ON TABLE openlora.settled_inferences IS 'which settlement paid for an inference, and under which policy';

CREATE TABLE openlora.ledger_entries (
    settlement  bigint NOT NULL REFERENCES openlora.settlements,
    unit        text NOT NULL REFERENCES openlora.reward_units,
    account     text NOT NULL CHECK (account ~ '^((payer|role):.+|contributor:[0-9]+|platform|unattributed)$'),
    kind        text NOT NULL CHECK (kind IN ('price', 'fee', 'model', 'compute', 'adapter', 'dataset', 'platform',
                                              'unattributed', 'correction')),
    contributor bigint CHECK (account = 'contributor:' || contributor),
    party       text NOT NULL,
    amount      bigint NOT NULL CHECK (amount <> 0),
    PRIMARY KEY (settlement, unit, account, kind)
);
COMMENT ON TABLE openlora.ledger_entries IS 'double entries in micro-units: of every settlement and unit they sum to zero';
COMMENT ON COLUMN openlora.ledger_entries.account IS 'payer:ROLE, contributor:ID, role:NAME (an owner whom no contributor stands for), platform, unattributed';
COMMENT ON COLUMN openlora.ledger_entries.amount IS 'above zero: owed to the account; below: owed by it';

CREATE TABLE openlora.payouts (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    settlement  bigint NOT NULL REFERENCES openlora.settlements,
    unit        text NOT NULL REFERENCES openlora.reward_units,
    account     text NOT NULL,
    contributor bigint,
    party       text NOT NULL,
    amount      bigint NOT NULL,
    UNIQUE (settlement, unit, account)
);
COMMENT ON TABLE openlora.payouts IS 'what each party earned in a settlement; lora_payout_inferences(id) says with what';

-- Written once, like the entries. Rows only add, so what an address may claim never falls.
CREATE TABLE openlora.claims (
    settlement  bigint NOT NULL REFERENCES openlora.settlements,
    unit        text NOT NULL REFERENCES openlora.reward_units,
    contributor bigint NOT NULL,
    account     bytea NOT NULL CHECK (octet_length(account) = 20),
    reward      bytea NOT NULL CHECK (octet_length(reward) = 20),
    amount      bigint NOT NULL CHECK (amount > 0),
    PRIMARY KEY (settlement, unit, contributor)
);
COMMENT ON TABLE openlora.claims IS 'what each settlement added to the claims of addresses';

-- ---------------------------------------------------------------- what keeps them right
CREATE FUNCTION openlora.refuse_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
        MESSAGE = format('rows of openlora.%s are not changed', TG_TABLE_NAME),
        HINT = 'lora_correct books an offsetting entry.';
END $$;

-- Sums are checked when the transaction ends, once for each settlement that it wrote to: a
-- setting remembers which were found right, and the next statement that writes clears it.
CREATE FUNCTION openlora.check_entries() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wrong record;
BEGIN
    IF TG_LEVEL = 'STATEMENT' THEN
        PERFORM set_config('openlora_ledger.balanced', '', true);
        RETURN NULL;
    END IF;
    IF current_setting('openlora_ledger.balanced', true) = NEW.settlement::text THEN
        RETURN NULL;
    END IF;
    SELECT e.unit, sum(e.amount) AS amount INTO wrong FROM openlora.ledger_entries e
    WHERE e.settlement = NEW.settlement GROUP BY e.unit HAVING sum(e.amount) <> 0.0 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'check_violation',
            MESSAGE = format('the entries of settlement %s do not sum to zero', NEW.settlement),
            DETAIL = format('They sum to %s %s.', wrong.amount, wrong.unit);
    END IF;
    PERFORM set_config('openlora_ledger.balanced', NEW.settlement::text, true);
    RETURN NULL;
END $$;
CREATE TRIGGER changing BEFORE INSERT ON openlora.ledger_entries
    FOR EACH STATEMENT EXECUTE FUNCTION openlora.check_entries();
CREATE CONSTRAINT TRIGGER balanced AFTER INSERT ON openlora.ledger_entries
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION openlora.check_entries();

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['settlements', 'settled_inferences', 'ledger_entries', 'payouts', 'claims'] LOOP
        EXECUTE format('CREATE TRIGGER written_once BEFORE UPDATE OR DELETE ON openlora.%I'
                       ' FOR EACH ROW EXECUTE FUNCTION openlora.refuse_change()', t);
        EXECUTE format('CREATE TRIGGER kept BEFORE TRUNCATE ON openlora.%I'
                       ' FOR EACH STATEMENT EXECUTE FUNCTION openlora.refuse_change()', t);
        EXECUTE format('ALTER TABLE openlora.%1$I ENABLE ALWAYS TRIGGER written_once, ENABLE ALWAYS TRIGGER kept', t);
    END LOOP;
END $$;

-- What was settled under a policy can be computed again: its past does not change.
CREATE FUNCTION openlora.guard_policy() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    closed timestamptz := (SELECT max(s.up_to) FROM openlora.settlements s);
    ended  openlora.reward_policies;
BEGIN
    IF TG_OP <> 'DELETE' THEN
        ended := OLD;
        ended.valid_to := NEW.valid_to;
    END IF;
    IF OLD.valid_from < closed AND (TG_OP = 'DELETE' OR ended IS DISTINCT FROM NEW
       OR least(OLD.valid_to, NEW.valid_to) < closed AND OLD.valid_to IS DISTINCT FROM NEW.valid_to) THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('reward policy %s was settled under', OLD.id),
            DETAIL = format('Everything up to %s is closed.', closed),
            HINT = 'Set valid_to to a later time, and add a policy from then on.';
    END IF;
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END $$;
CREATE TRIGGER guard BEFORE UPDATE OR DELETE ON openlora.reward_policies
    FOR EACH ROW EXECUTE FUNCTION openlora.guard_policy();

-- ---------------------------------------------------------------- exact amounts
CREATE FUNCTION openlora.split_units(total bigint, weights numeric[]) RETURNS bigint[]
AS 'MODULE_PATHNAME', 'lora_split_units' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION openlora.split_units(bigint, numeric[]) IS
    'splits whole units by exact weights: floors, then one each by largest remainder';

-- Who earns what with each inference of a settlement, in micro-units with all decimals; the
-- price is below zero. Computed again, it is the same: attributions and policies that were
-- used do not change. What an adapter's part leaves, because nobody was credited for it,
-- is in no row, and unattributed.
CREATE FUNCTION openlora.settlement_amounts(settlement bigint, OUT inference bigint, OUT unit text, OUT kind text,
    OUT adapter text, OUT dataset text, OUT account text, OUT contributor bigint, OUT party text, OUT amount numeric)
RETURNS SETOF record LANGUAGE sql STABLE PARALLEL UNSAFE ROWS 100000 SET search_path = pg_catalog, pg_temp AS $$
WITH whole AS MATERIALIZED (
    SELECT i.id AS inference, i.at, i.role, (i.prompt_tokens - i.cached_tokens)::numeric AS input, i.cached_tokens::numeric AS cached,
           i.completion_tokens::numeric AS output, p.*, t.policies
    FROM openlora.settled_inferences s
    JOIN openlora.settlements t ON t.id = s.settlement
    JOIN openlora.inferences i ON i.id = s.inference
    JOIN openlora.reward_policies p ON p.id = s.policy
    WHERE s.settlement = $1
), used AS (
    SELECT a.inference, a.name, a.adapter, sum(a.share)::numeric AS measured, sum(abs(a.weight::numeric)) AS typed
    FROM openlora.inference_adapters a JOIN whole w ON w.inference = a.inference GROUP BY 1, 2, 3
), parts AS (
    SELECT w.inference AS id, u.name, u.adapter, u.measured,
           CASE WHEN u.name IS NULL THEN 1.0 WHEN w.portion = 'weight' AND sum(u.typed) OVER one > 0.0
                THEN u.typed / sum(u.typed) OVER one ELSE u.measured * 0.000001 END AS part
    FROM whole w LEFT JOIN used u ON u.inference = w.inference
    WINDOW one AS (PARTITION BY w.inference)
), priced AS MATERIALIZED (
    SELECT p.id, p.name, p.measured, w.unit, w.role, w.platform_fee,
           p.part * 0.001 * (w.input * coalesce(o.input_rate, w.input_rate) + w.cached * coalesce(o.cached_rate, w.cached_rate)
                             + w.output * coalesce(o.output_rate, w.output_rate)) AS price,
           coalesce(o.model_share, w.model_share) * 0.000001 AS model,
           coalesce(o.compute_share, w.compute_share) * 0.000001 AS compute,
           coalesce(o.adapter_share, w.adapter_share) * 0.000001 AS adapter,
           coalesce(o.dataset_share, w.dataset_share) * 0.000001 AS dataset,
           coalesce(o.platform_share, w.platform_share) * 0.000001 AS platform
    FROM parts p JOIN whole w ON w.inference = p.id
    LEFT JOIN openlora.reward_policies o
           ON o.adapter = p.adapter AND tstzrange(o.valid_from, o.valid_to) @> w.at AND o.id <= w.policies
), requests AS MATERIALIZED (
    SELECT p.id, p.unit, p.role, p.platform_fee::numeric AS fee, sum(p.price) AS price, sum(p.price * p.model) AS model,
           sum(p.price * p.compute) AS compute, sum(p.price * p.platform) AS platform
    FROM priced p GROUP BY 1, 2, 3, 4
), credits AS (
    SELECT a.inference, r.unit, a.kind, a.adapter, a.dataset, a.contributor, a.contributor_id,
           a.share * 0.000001 * CASE a.kind WHEN 'model' THEN r.model ELSE r.compute END AS amount
    FROM openlora.attributions a JOIN requests r ON r.id = a.inference WHERE a.kind IN ('model', 'compute')
    UNION ALL
    SELECT a.inference, p.unit, a.kind, a.adapter, a.dataset, a.contributor, a.contributor_id,
           a.share * CASE a.kind WHEN 'adapter' THEN p.of_adapter ELSE p.of_dataset END
    FROM openlora.attributions a
    JOIN (SELECT q.id, q.name, q.unit, q.price * q.adapter / q.measured AS of_adapter, q.price * q.dataset / q.measured AS of_dataset
          FROM priced q WHERE q.measured > 0.0) p ON p.id = a.inference AND p.name = a.adapter
    WHERE a.kind IN ('adapter', 'dataset')
)
SELECT c.inference, c.unit, c.kind, c.adapter, c.dataset,
       CASE WHEN c.contributor_id = -1 THEN 'unattributed' WHEN c.contributor_id IS NULL THEN 'role:' || c.contributor
            ELSE 'contributor:' || c.contributor_id END,
       NULLIF(c.contributor_id, -1), c.contributor, c.amount
FROM credits c WHERE c.amount > 0.0
UNION ALL
SELECT r.id, r.unit, 'platform', NULL, NULL, 'platform', NULL, 'platform', r.platform FROM requests r WHERE r.platform > 0.0
UNION ALL
SELECT r.id, r.unit, 'fee', NULL, NULL, 'platform', NULL, 'platform', r.fee FROM requests r WHERE r.fee > 0.0
UNION ALL
SELECT r.id, r.unit, 'price', NULL, NULL, 'payer:' || r.role, NULL, r.role::text, - r.price - r.fee FROM requests r
$$;

-- ---------------------------------------------------------------- closing a period
-- Adds to the claims what accounts have by now above what was claimable before: corrections
-- that lower a balance lower no claim, they are made up by what is earned later.
CREATE FUNCTION openlora.accrue_claims(settlement bigint) RETURNS void
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
INSERT INTO openlora.claims (settlement, unit, contributor, account, reward, amount)
SELECT $1, b.unit, c.id, c.account, u.reward, (b.amount - coalesce(p.amount, 0))::bigint
FROM (SELECT e.unit, e.contributor, sum(e.amount) AS amount FROM openlora.ledger_entries e
      WHERE e.contributor IS NOT NULL GROUP BY 1, 2) b
JOIN openlora.contributors c ON c.id = b.contributor AND c.account IS NOT NULL
JOIN openlora.reward_units u ON u.unit = b.unit AND u.reward IS NOT NULL
LEFT JOIN (SELECT q.unit, q.contributor, sum(q.amount) AS amount FROM openlora.claims q GROUP BY 1, 2) p
       ON p.unit = b.unit AND p.contributor = b.contributor
WHERE b.amount > coalesce(p.amount, 0)
$$;

-- Both sides of the books, each split from the same whole, so that they cancel out.
CREATE FUNCTION openlora.book_settlement(settlement bigint) RETURNS void
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
WITH named AS MATERIALIZED (
    SELECT a.unit, a.kind, a.account, a.contributor, max(a.party) AS party, abs(sum(a.amount)) AS amount
    FROM openlora.settlement_amounts($1) a GROUP BY 1, 2, 3, 4
), totals AS (
    SELECT n.unit, sum(n.amount) FILTER (WHERE n.kind = 'price') AS price,
           coalesce(sum(n.amount) FILTER (WHERE n.kind <> 'price'), 0.0) AS named FROM named n GROUP BY 1
), exact AS (
    SELECT n.unit, n.kind, n.account, n.contributor, n.party, n.amount FROM named n
    UNION ALL
    SELECT t.unit, 'unattributed', 'unattributed', NULL, 'unattributed', greatest(t.price - t.named, 0.0) FROM totals t
), sides AS (
    SELECT e.unit, e.kind = 'price' AS pays, array_agg(e.kind ORDER BY e.account, e.kind) AS kinds,
           array_agg(e.account ORDER BY e.account, e.kind) AS accounts,
           array_agg(e.contributor ORDER BY e.account, e.kind) AS contributors,
           array_agg(e.party ORDER BY e.account, e.kind) AS parties,
           array_agg(e.amount ORDER BY e.account, e.kind) AS amounts
    FROM exact e GROUP BY 1, 2
)
INSERT INTO openlora.ledger_entries (settlement, unit, account, kind, contributor, party, amount)
SELECT $1, s.unit, u.account, u.kind, u.contributor, u.party, CASE WHEN s.pays THEN - u.amount ELSE u.amount END
FROM sides s JOIN totals t ON t.unit = s.unit,
LATERAL unnest(s.accounts, s.kinds, s.contributors, s.parties, openlora.split_units(round(t.price)::bigint, s.amounts))
     AS u (account, kind, contributor, party, amount)
WHERE u.amount <> 0;

INSERT INTO openlora.payouts (settlement, unit, account, contributor, party, amount)
SELECT $1, e.unit, e.account, e.contributor, max(e.party), sum(e.amount)::bigint
FROM openlora.ledger_entries e WHERE e.settlement = $1 AND e.kind <> 'price' AND e.account <> 'unattributed'
GROUP BY e.unit, e.account, e.contributor
$$;

-- Settlements and corrections come one after the other: whoever comes second waits for the
-- first to end, and then sees what it did; a transaction whose snapshot is older than the
-- last one fails to serialise. This row is what they wait for.
CREATE TABLE openlora.settlement_turn (
    one   boolean PRIMARY KEY DEFAULT true CHECK (one),
    taken bigint NOT NULL DEFAULT 0
);
INSERT INTO openlora.settlement_turn DEFAULT VALUES;
ALTER TABLE openlora.settlement_turn ENABLE ROW LEVEL SECURITY;
COMMENT ON TABLE openlora.settlement_turn IS 'locked by whoever settles';

CREATE FUNCTION lora_settle(up_to timestamptz) RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    made   bigint;
    last   timestamptz;
BEGIN
    IF $1 IS NULL OR NOT isfinite($1) OR $1 > clock_timestamp() THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'a period can be closed when it is over',
            DETAIL = format('Now it is %s.', clock_timestamp());
    END IF;
    UPDATE openlora.settlement_turn SET taken = taken + 1;
    SELECT s.id INTO made FROM openlora.settlements s WHERE s.up_to = $1;
    IF FOUND THEN
        RETURN made; -- a retry
    END IF;
    SELECT max(s.up_to) INTO last FROM openlora.settlements s;
    IF last > $1 THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('the period up to %s is closed already', last),
            HINT = 'What was late for it is taken by the next settlement.';
    END IF;
    LOCK TABLE openlora.reward_policies IN SHARE MODE;
    INSERT INTO openlora.settlements (kind, up_to, policies)
    VALUES ('usage', $1, (SELECT coalesce(max(p.id), 0) FROM openlora.reward_policies p)) RETURNING id INTO made;
    INSERT INTO openlora.settled_inferences (inference, settlement, policy)
    SELECT i.id, made, p.id
    FROM openlora.inferences i
    JOIN openlora.reward_policies p ON p.adapter IS NULL AND tstzrange(p.valid_from, p.valid_to) @> i.at
    WHERE i.at < $1 AND NOT EXISTS (SELECT FROM openlora.settled_inferences s WHERE s.inference = i.id);
    PERFORM openlora.book_settlement(made);
    PERFORM openlora.accrue_claims(made);
    RETURN made;
END $$;
COMMENT ON FUNCTION lora_settle(timestamptz) IS
    'closes the period up to a time: books what was answered and not settled yet; again: the same settlement';

-- The only way to change what was booked: an offsetting entry of its own.
CREATE FUNCTION lora_correct(unit text, from_account text, to_account text, amount bigint, reason text,
    corrects bigint DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    made   bigint;
    named  text;
    parties text[];
    ids    bigint[];
BEGIN
    IF $4 IS NULL OR $4 <= 0 OR coalesce($5, '') = '' OR $2 = $3 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a correction moves an amount above zero between two accounts, for a reason';
    END IF;
    UPDATE openlora.settlement_turn SET taken = taken + 1;
    FOREACH named IN ARRAY ARRAY[$2, $3] LOOP
        ids := ids || substring(named FROM '^contributor:([0-9]{1,18})$')::bigint;
        parties := parties || CASE WHEN named ~ '^(payer|role):.' THEN split_part(named, ':', 2) WHEN named ~ '^contributor:'
            THEN (SELECT c.name FROM openlora.contributors c WHERE c.id = ids[cardinality(ids)])
            WHEN named IN ('platform', 'unattributed') THEN named END;
        IF parties[cardinality(parties)] IS NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('account "%s" does not exist', named),
                HINT = 'Accounts are payer:ROLE, role:NAME, contributor:ID, platform and unattributed.';
        END IF;
    END LOOP;
    INSERT INTO openlora.settlements (kind, note, corrects) VALUES ('correction', $5, $6) RETURNING id INTO made;
    INSERT INTO openlora.ledger_entries (settlement, unit, account, kind, contributor, party, amount)
    VALUES (made, $1, $2, 'correction', ids[1], parties[1], - $4), (made, $1, $3, 'correction', ids[2], parties[2], $4);
    PERFORM openlora.accrue_claims(made);
    RETURN made;
END $$;
COMMENT ON FUNCTION lora_correct(text, text, text, bigint, text, bigint) IS
    'moves an amount between two accounts by an entry of its own; what was booked stays';

CREATE FUNCTION lora_payout_inferences(payout bigint, OUT inference bigint, OUT kind text, OUT adapter text, OUT dataset text,
    OUT amount numeric)
RETURNS SETOF record LANGUAGE sql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT a.inference, a.kind, a.adapter, a.dataset, trim_scale(a.amount)
FROM openlora.payouts p, openlora.settlement_amounts(p.settlement) a
WHERE p.id = $1 AND a.unit = p.unit AND a.account = p.account
ORDER BY 1, 2, 3, 4
$$;
COMMENT ON FUNCTION lora_payout_inferences(bigint) IS
    'the inferences that justify a payout, in micro-units with all decimals: they sum to it but for its rounding to whole ones';

-- ---------------------------------------------------------------- who may see it, dumps
-- Settling is the owner's. A contributor's role sees its payouts.
ALTER TABLE openlora.reward_units ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.reward_policies ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.settlements ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.settled_inferences ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.ledger_entries ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.payouts ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.claims ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_read ON openlora.reward_units FOR SELECT USING (true);
CREATE POLICY all_read ON openlora.reward_policies FOR SELECT USING (true);
CREATE POLICY all_read ON openlora.settlements FOR SELECT USING (true);
CREATE POLICY own ON openlora.payouts FOR SELECT USING (EXISTS (
    SELECT FROM openlora.contributors c WHERE c.id = contributor AND pg_catalog.pg_has_role(c.role, 'USAGE')));

REVOKE ALL ON FUNCTION openlora.refuse_change(), openlora.check_entries(), openlora.guard_policy(),
    openlora.split_units(bigint, numeric[]), openlora.settlement_amounts(bigint), openlora.accrue_claims(bigint),
    openlora.book_settlement(bigint) FROM PUBLIC;

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['reward_units', 'reward_policies', 'settlements', 'settled_inferences', 'ledger_entries', 'payouts',
        'claims', 'reward_policies_id_seq', 'settlements_id_seq', 'payouts_id_seq']
    LOOP
        PERFORM pg_catalog.pg_extension_config_dump(('openlora.' || t)::regclass, '');
    END LOOP;
END $$;
