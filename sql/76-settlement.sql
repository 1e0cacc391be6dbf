-- ---------------------------------------------------------------- exact amounts
CREATE FUNCTION openlora.split_units(total bigint, weights numeric[]) RETURNS bigint[]
AS 'MODULE_PATHNAME', 'lora_split_units' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION openlora.split_units(bigint, numeric[]) IS
    'splits whole units by exact weights: floors, then one each by largest remainder';

-- Whom the receipts of a settlement credit. What was used of an adapter whose provenance
-- nobody had committed is nobody's.
CREATE FUNCTION openlora.credit_receipts(settlement bigint) RETURNS void
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET jit = off SET search_path = pg_catalog, pg_temp AS $$
WITH uses AS MATERIALIZED (
    SELECT r.leaf, r.adapters, r.adapter_ids, r.weights, r.shares, r.base_model, m.upto, m.system, m.late
    FROM openlora.settled_receipts s JOIN openlora.receipts r ON r.leaf = s.leaf, openlora.moment_of(r.leaf, r.at) m
    WHERE s.settlement = $1
), used AS MATERIALIZED (
    SELECT u.leaf, a.position, a.adapter, a.digest, a.weight, a.share, u.upto, u.system, u.late
    FROM uses u, unnest(u.adapter_ids, u.adapters, u.weights, u.shares) WITH ORDINALITY AS a (adapter, digest, weight, share, position)
), provided AS MATERIALIZED (
    SELECT k.*, c.* FROM (SELECT DISTINCT u.adapter, u.digest, u.upto, u.system, u.late FROM used u) k,
           openlora.credits_at(k.adapter, k.digest, k.upto, k.system, k.late) c
), named AS (
    INSERT INTO openlora.receipt_adapters (leaf, position, adapter, name, weight, share)
    SELECT u.leaf, u.position, u.adapter, coalesce(p.name, encode(u.digest, 'hex')), u.weight, u.share
    FROM used u LEFT JOIN (SELECT DISTINCT q.adapter, q.digest, q.upto, q.system, q.late, q.name FROM provided q) p
         ON p.adapter = u.adapter AND p.digest = u.digest AND p.upto = u.upto AND p.system IS NOT DISTINCT FROM u.system AND p.late = u.late
), owners AS MATERIALIZED (
    SELECT k.*, coalesce(c.name, pg_get_userbyid(coalesce(o.role::oid, t.relowner))::text) AS contributor, c.parent AS contributor_id
    FROM (SELECT DISTINCT v.kind, CASE v.kind WHEN 'model' THEN u.base_model ELSE '' END AS digest, u.upto, u.system, u.late
          FROM uses u, (VALUES ('model'), ('compute')) v (kind)) k
    JOIN pg_class t ON t.oid = 'openlora.receipts'::regclass
    LEFT JOIN LATERAL openlora.provenance_at('model', ('x' || encode(substr(k.digest, 1, 8), 'hex'))::bit(64)::bigint, k.upto, k.system, k.late) o
         ON k.kind = 'model' AND o.digest = k.digest
    LEFT JOIN LATERAL openlora.contributor_at(coalesce(o.role::oid, t.relowner)::regrole, k.upto, k.system, k.late) c ON true
)
INSERT INTO openlora.receipt_attributions (leaf, kind, adapter, dataset, contributor, contributor_id, share)
SELECT u.leaf, o.kind, NULL, NULL, o.contributor, o.contributor_id, 1000000
FROM uses u JOIN owners o ON o.digest = CASE o.kind WHEN 'model' THEN u.base_model ELSE '' END
     AND o.upto IS NOT DISTINCT FROM u.upto AND o.system IS NOT DISTINCT FROM u.system AND o.late = u.late
UNION ALL
SELECT u.leaf, p.kind, p.name, p.dataset, p.contributor, p.contributor_id, u.share * 0.000001 * sum(p.share)
FROM used u JOIN provided p ON p.adapter = u.adapter AND p.digest = u.digest AND p.upto = u.upto
     AND p.system IS NOT DISTINCT FROM u.system AND p.late = u.late
WHERE u.share > 0
GROUP BY u.leaf, u.position, u.share, p.kind, p.name, p.dataset, p.contributor, p.contributor_id
$$;

-- Who earns what with each use of a settlement, in micro-units with all decimals; the price is
-- below zero. A use is an inference, or a receipt that has none. Computed again, it is the
-- same: attributions and policies that were used do not change. What an adapter's part leaves,
-- because nobody was credited for it, is in no row, and unattributed.
CREATE FUNCTION openlora.settlement_amounts(settlement bigint, OUT inference bigint, OUT leaf bigint, OUT unit text, OUT kind text,
    OUT adapter text, OUT dataset text, OUT account text, OUT contributor bigint, OUT party text, OUT amount numeric)
RETURNS SETOF record LANGUAGE sql STABLE PARALLEL UNSAFE ROWS 100000 SET jit = off SET search_path = pg_catalog, pg_temp AS $$
WITH usage AS (
    SELECT i.id AS use, i.at, i.role, i.prompt_tokens AS input, i.cached_tokens AS cached, i.completion_tokens AS output, s.policy
    FROM openlora.settled_inferences s JOIN openlora.inferences i ON i.id = s.inference WHERE s.settlement = $1
    UNION ALL
    SELECT -1 - r.leaf, r.at, r.role, r.input_tokens, r.cached_tokens, r.output_tokens, s.policy
    FROM openlora.settled_receipts s JOIN openlora.receipts r ON r.leaf = s.leaf WHERE s.settlement = $1
), whole AS MATERIALIZED (
    SELECT u.use, u.at, u.role, (u.input - u.cached)::numeric AS input, u.cached::numeric AS cached, u.output::numeric AS output, p.*,
           (SELECT t.policies FROM openlora.settlements t WHERE t.id = $1) AS policies
    FROM usage u JOIN openlora.reward_policies p ON p.id = u.policy
), used AS (
    SELECT a.inference AS use, a.name, a.adapter, sum(a.share)::numeric AS measured, sum(abs(a.weight::numeric)) AS typed
    FROM openlora.inference_adapters a JOIN openlora.settled_inferences s ON s.inference = a.inference WHERE s.settlement = $1 GROUP BY 1, 2, 3
    UNION ALL
    SELECT -1 - a.leaf, a.name, a.adapter, sum(a.share)::numeric, sum(abs(a.weight::numeric))
    FROM openlora.receipt_adapters a JOIN openlora.settled_receipts s ON s.leaf = a.leaf WHERE s.settlement = $1 GROUP BY 1, 2, 3
), credited AS (
    SELECT a.inference AS use, a.kind, a.adapter, a.dataset, a.contributor, a.contributor_id, a.share
    FROM openlora.attributions a JOIN openlora.settled_inferences s ON s.inference = a.inference WHERE s.settlement = $1
    UNION ALL
    SELECT -1 - a.leaf, a.kind, a.adapter, a.dataset, a.contributor, a.contributor_id, a.share
    FROM openlora.receipt_attributions a JOIN openlora.settled_receipts s ON s.leaf = a.leaf WHERE s.settlement = $1
), parts AS (
    SELECT w.use, u.name, u.adapter, u.measured,
           CASE WHEN u.name IS NULL THEN 1.0 WHEN w.portion = 'weight' AND sum(u.typed) OVER one > 0.0
                THEN u.typed / sum(u.typed) OVER one ELSE u.measured * 0.000001 END AS part
    FROM whole w LEFT JOIN used u ON u.use = w.use
    WINDOW one AS (PARTITION BY w.use)
), priced AS MATERIALIZED (
    SELECT p.use, p.name, p.measured, w.unit, w.role, w.platform_fee,
           p.part * 0.001 * (w.input * coalesce(o.input_rate, w.input_rate) + w.cached * coalesce(o.cached_rate, w.cached_rate)
                             + w.output * coalesce(o.output_rate, w.output_rate)) AS price,
           coalesce(o.model_share, w.model_share) * 0.000001 AS model,
           coalesce(o.compute_share, w.compute_share) * 0.000001 AS compute,
           coalesce(o.adapter_share, w.adapter_share) * 0.000001 AS adapter,
           coalesce(o.dataset_share, w.dataset_share) * 0.000001 AS dataset,
           coalesce(o.platform_share, w.platform_share) * 0.000001 AS platform
    FROM parts p JOIN whole w ON w.use = p.use
    LEFT JOIN openlora.reward_policies o
           ON o.adapter = p.adapter AND tstzrange(o.valid_from, o.valid_to) @> w.at AND o.id <= w.policies
), requests AS MATERIALIZED (
    SELECT p.use, p.unit, p.role, p.platform_fee::numeric AS fee, sum(p.price) AS price, sum(p.price * p.model) AS model,
           sum(p.price * p.compute) AS compute, sum(p.price * p.platform) AS platform
    FROM priced p GROUP BY 1, 2, 3, 4
), credits AS (
    SELECT a.use, r.unit, a.kind, a.adapter, a.dataset, a.contributor, a.contributor_id,
           a.share * 0.000001 * CASE a.kind WHEN 'model' THEN r.model ELSE r.compute END AS amount
    FROM credited a JOIN requests r ON r.use = a.use WHERE a.kind IN ('model', 'compute')
    UNION ALL
    SELECT a.use, p.unit, a.kind, a.adapter, a.dataset, a.contributor, a.contributor_id,
           a.share * CASE a.kind WHEN 'adapter' THEN p.of_adapter ELSE p.of_dataset END
    FROM credited a
    JOIN (SELECT q.use, q.name, q.unit, q.price * q.adapter / q.measured AS of_adapter, q.price * q.dataset / q.measured AS of_dataset
          FROM priced q WHERE q.measured > 0.0) p ON p.use = a.use AND p.name = a.adapter
    WHERE a.kind IN ('adapter', 'dataset')
), amounts AS (
    SELECT c.use, c.unit, c.kind, c.adapter, c.dataset,
           CASE WHEN c.contributor_id = -1 THEN 'unattributed' WHEN c.contributor_id IS NULL THEN 'role:' || c.contributor
                ELSE 'contributor:' || c.contributor_id END AS account,
           NULLIF(c.contributor_id, -1) AS contributor, c.contributor AS party, c.amount
    FROM credits c WHERE c.amount > 0.0
    UNION ALL
    SELECT r.use, r.unit, 'platform', NULL, NULL, 'platform', NULL, 'platform', r.platform FROM requests r WHERE r.platform > 0.0
    UNION ALL
    SELECT r.use, r.unit, 'fee', NULL, NULL, 'platform', NULL, 'platform', r.fee FROM requests r WHERE r.fee > 0.0
    UNION ALL
    SELECT r.use, r.unit, 'price', NULL, NULL, 'payer:' || r.role, NULL, r.role::text, - r.price - r.fee FROM requests r
)
SELECT CASE WHEN m.use >= 0 THEN m.use END, CASE WHEN m.use < 0 THEN -1 - m.use END, m.unit, m.kind, m.adapter, m.dataset, m.account,
       m.contributor, m.party, m.amount FROM amounts m
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
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET jit = off SET search_path = pg_catalog, pg_temp AS $$
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

-- Its plans are made each time: those of a session's first settlement would suit empty tables.
CREATE FUNCTION lora_settle(up_to timestamptz) RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET plan_cache_mode = force_custom_plan SET jit = off SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    made   bigint;
    last   timestamptz;
BEGIN
    IF $1 IS NULL OR NOT isfinite($1) OR $1 > clock_timestamp() THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'a period can be closed when it is over',
            DETAIL = format('Now it is %s.', clock_timestamp());
    END IF;
    LOCK TABLE openlora.reward_policies IN SHARE MODE; -- before the turn, as whoever changes them does
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
    INSERT INTO openlora.settlements (kind, up_to, policies)
    VALUES ('usage', $1, (SELECT coalesce(max(p.id), 0) FROM openlora.reward_policies p)) RETURNING id INTO made;
    -- in an order that has to be made: so all is read before the first row is written. Else the tables that are looked into
    -- grow while, seeming to be empty, they are read from end to end for each row.
    INSERT INTO openlora.settled_inferences (inference, settlement, policy)
    SELECT i.id, made, p.id
    FROM openlora.inferences i
    JOIN openlora.reward_policies p ON p.adapter IS NULL AND tstzrange(p.valid_from, p.valid_to) @> i.at
    WHERE i.at < $1 AND NOT EXISTS (SELECT FROM openlora.settled_inferences s WHERE s.inference = i.id)
      AND NOT EXISTS (SELECT FROM openlora.settled_receipts s WHERE s.inference = i.id)
    ORDER BY p.id, i.id;
    -- after that, so that what commits in between is in neither, and of the next settlement
    INSERT INTO openlora.settled_receipts (leaf, inference, settlement, policy)
    SELECT r.leaf, r.inference, made, p.id
    FROM openlora.receipts r
    JOIN openlora.reward_policies p ON p.adapter IS NULL AND p.usage = 'metered' AND tstzrange(p.valid_from, p.valid_to) @> r.at
    WHERE r.at < $1 AND r.outcome IN ('done', 'cancelled') AND r.input_tokens > 0 AND NOT EXISTS (SELECT FROM openlora.inferences i WHERE i.id = r.inference)
      AND NOT EXISTS (SELECT FROM openlora.settled_receipts s WHERE s.leaf = r.leaf)
    ORDER BY p.id, r.leaf;
    PERFORM openlora.credit_receipts(made);
    -- or what was just written would seem to be a few rows, to be joined one by one
    ANALYZE openlora.settled_inferences, openlora.settled_receipts, openlora.receipt_adapters, openlora.receipt_attributions;
    PERFORM openlora.book_settlement(made);
    PERFORM openlora.accrue_claims(made);
    RETURN made;
END $$;
COMMENT ON FUNCTION lora_settle(timestamptz) IS
    'closes the period up to a time: books what was answered or metered and not settled yet; again: the same settlement';

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
    IF NOT EXISTS (SELECT FROM openlora.settlements s WHERE s.id = $6) AND $6 IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('settlement %s does not exist', $6);
    END IF;
    UPDATE openlora.settlement_turn SET taken = taken + 1;
    FOREACH named IN ARRAY ARRAY[$2, $3] LOOP
        ids := ids || substring(named FROM '^contributor:([0-9]{1,18})$')::bigint;
        parties := parties || CASE WHEN named ~ '^(payer|role):.' THEN substr(named, strpos(named, ':') + 1) WHEN named ~ '^contributor:'
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

-- A payout's uses, with the leaves of their receipts. An inference whose receipt a crash has
-- lost has none; of those that the engine was lost with, the last counts.
CREATE FUNCTION openlora.payout_receipts(payout bigint, OUT leaf bigint, OUT leaf_hash bytea, OUT inference bigint, OUT committed boolean,
    OUT kind text, OUT adapter text, OUT dataset text, OUT amount numeric)
RETURNS SETOF record LANGUAGE sql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
WITH mine AS (
    SELECT a.* FROM openlora.payouts p, openlora.settlement_amounts(p.settlement) a
    WHERE p.id = $1 AND a.unit = p.unit AND a.account = p.account AND a.amount > 0.0
), metered AS (
    SELECT coalesce(m.leaf, (SELECT r.leaf FROM openlora.receipts r WHERE r.inference = m.inference AND r.outcome = 'done'
                             ORDER BY r.attempt DESC, r.leaf DESC LIMIT 1)) AS leaf,
           coalesce(m.inference, (SELECT s.inference FROM openlora.settled_receipts s WHERE s.leaf = m.leaf)) AS inference,
           m.leaf IS NULL AS committed, m.kind, m.adapter, m.dataset, trim_scale(m.amount) AS amount
    FROM mine m
)
SELECT m.leaf, (SELECT h.hash FROM openlora.ledger_hashes h WHERE h.level = 0 AND h.at = m.leaf), m.inference, m.committed, m.kind, m.adapter,
       m.dataset, m.amount
FROM metered m ORDER BY m.leaf, m.inference, m.kind, m.adapter, m.dataset
$$;

-- Whoever sees the payout sees these, too, though not who asked.
CREATE FUNCTION lora_payout_receipts(payout bigint, OUT leaf bigint, OUT leaf_hash bytea, OUT inference bigint, OUT committed boolean,
    OUT kind text, OUT adapter text, OUT dataset text, OUT amount numeric)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'lora_payout_receipts' LANGUAGE C STRICT STABLE PARALLEL UNSAFE COST 100000 ROWS 1000;
COMMENT ON FUNCTION lora_payout_receipts(bigint) IS
    'the receipts that justify a payout, in micro-units with all decimals: they sum to it but for its rounding to whole ones; lora_receipt_proof(leaf) shows that leaf_hash is in the ledger';

-- ---------------------------------------------------------------- who may see it, dumps
-- Settling is the owner's. A contributor's role sees its payouts.
ALTER TABLE openlora.reward_units ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.reward_policies ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.settlements ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.settled_inferences ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.settled_receipts ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.receipt_adapters ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.receipt_attributions ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.ledger_entries ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.payouts ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.claims ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_read ON openlora.reward_units FOR SELECT USING (true);
CREATE POLICY all_read ON openlora.reward_policies FOR SELECT USING (true);
CREATE POLICY all_read ON openlora.settlements FOR SELECT USING (true);
CREATE POLICY own ON openlora.payouts FOR SELECT USING (EXISTS (
    SELECT FROM openlora.contributors c WHERE c.id = contributor AND pg_catalog.pg_has_role(c.role, 'USAGE')));

REVOKE ALL ON FUNCTION openlora.refuse_change(), openlora.check_entries(), openlora.guard_policy(),
    openlora.split_units(bigint, numeric[]), openlora.settlement_amounts(bigint), openlora.credit_receipts(bigint),
    openlora.payout_receipts(bigint), openlora.accrue_claims(bigint), openlora.book_settlement(bigint) FROM PUBLIC;

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['reward_units', 'reward_policies', 'settlements', 'settled_inferences', 'settled_receipts', 'receipt_adapters',
        'receipt_attributions', 'ledger_entries', 'payouts', 'claims', 'reward_policies_id_seq', 'settlements_id_seq', 'payouts_id_seq']
    LOOP
        PERFORM pg_catalog.pg_extension_config_dump(('openlora.' || t)::regclass, '');
    END LOOP;
END $$;
