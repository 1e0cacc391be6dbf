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
    usage              text NOT NULL DEFAULT 'committed' CHECK (usage IN ('committed', 'metered')),
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
                                    AND (adapter IS NULL) = (platform_fee IS NOT NULL)
                                    AND (adapter IS NULL OR usage = 'committed')),
    CONSTRAINT one_at_a_time EXCLUDE USING gist (int8range(coalesce(adapter, 0), coalesce(adapter, 0), '[]') WITH &&,
                                                 tstzrange(valid_from, valid_to) WITH &&)
);
COMMENT ON TABLE openlora.reward_policies IS 'what a request costs and who shares in it, from when to when';
COMMENT ON COLUMN openlora.reward_policies.adapter IS 'only this adapter''s parts: rates and shares; NULL: every request';
COMMENT ON COLUMN openlora.reward_policies.portion IS 'how a request falls into parts: by the adapters'' measured shares, or by the weights typed';
COMMENT ON COLUMN openlora.reward_policies.usage IS 'committed: what was answered in transactions that committed; metered: also what only receipts tell of';
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
    corrects    bigint, -- a settlement: no key, since pg_dump warns of a table that refers to itself
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

-- Usage that was metered and is in no inference: its transaction had not committed when it was
-- settled. Should it commit later, its inference is not settled again. What it used and whom
-- it credits is written down as it is for inferences; it follows from the receipt and from
-- provenance as it was then: see 74-provenance-log.sql. (All three are written by one
-- function and never changed: a foreign key would check a million rows for nothing.)
CREATE TABLE openlora.settled_receipts (
    leaf       bigint PRIMARY KEY,
    inference  bigint NOT NULL,
    settlement bigint NOT NULL REFERENCES openlora.settlements,
    policy     bigint NOT NULL REFERENCES openlora.reward_policies
);
CREATE INDEX settled_receipts_settlement_idx ON openlora.settled_receipts (settlement);
CREATE INDEX settled_receipts_inference_idx ON openlora.settled_receipts (inference);
COMMENT ON TABLE openlora.settled_receipts IS 'which settlement paid for a receipt without an inference, and under which policy';

CREATE TABLE openlora.receipt_adapters (
    leaf     bigint NOT NULL,
    position int NOT NULL,
    adapter  bigint NOT NULL,
    name     text NOT NULL,
    weight   float8 NOT NULL,
    share    int NOT NULL,
    PRIMARY KEY (leaf, position)
);
COMMENT ON TABLE openlora.receipt_adapters IS 'adapters of a settled receipt, as they were called; by their digest, when nobody had committed such an adapter';

CREATE TABLE openlora.receipt_attributions (
    leaf           bigint NOT NULL,
    kind           text NOT NULL CHECK (kind IN ('model', 'compute', 'adapter', 'dataset')),
    adapter        text,
    dataset        text,
    contributor    text NOT NULL,
    contributor_id bigint,
    share          numeric NOT NULL CHECK (share > 0.0 AND share <= 1000000.0)
);
CREATE INDEX receipt_attributions_leaf_idx ON openlora.receipt_attributions (leaf);
COMMENT ON TABLE openlora.receipt_attributions IS 'who is credited for a settled receipt, as openlora.attributions has it for inferences';

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
COMMENT ON TABLE openlora.payouts IS 'what each party earned in a settlement; lora_payout_receipts(id) says with what';

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
    FOREACH t IN ARRAY ARRAY['settlements', 'settled_inferences', 'settled_receipts', 'receipt_adapters',
        'receipt_attributions', 'ledger_entries', 'payouts', 'claims'] LOOP
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
    closed timestamptz;
    ended  openlora.reward_policies;
BEGIN
    -- a settlement that this transaction cannot see yet would have used the policy as it was
    PERFORM FROM openlora.settlement_turn FOR SHARE;
    closed := (SELECT max(s.up_to) FROM openlora.settlements s);
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

