-- ---------------------------------------------------------------- receipts
-- One row per request for which anything was computed, written by the database's process
-- `openlora ledger` in transactions of its own: whether the caller commits changes nothing.
-- With openlora.receipt_durability = sync another one before, `announced`, of which no token of the
-- answer has left: after a crash they say what receipts are missing.
CREATE TABLE openlora.receipts (
    leaf               bigint PRIMARY KEY CHECK (leaf >= 0),
    at                 timestamptz NOT NULL,
    database           oid NOT NULL,
    role               name NOT NULL,
    role_id            regrole NOT NULL,
    inference          bigint NOT NULL,
    attempt            int NOT NULL,
    outcome            text NOT NULL CHECK (outcome IN ('done', 'failed', 'cancelled', 'lost', 'announced')),
    task               text NOT NULL CHECK (task IN ('generate', 'score')),
    base_model         bytea NOT NULL CHECK (octet_length(base_model) = 32),
    device             text NOT NULL,
    input_tokens       int NOT NULL CHECK (input_tokens >= 0),
    cached_tokens      int NOT NULL CHECK (cached_tokens >= 0),
    output_tokens      int NOT NULL CHECK (output_tokens >= 0),
    temperature        real NOT NULL,
    top_k              int NOT NULL,
    top_p              real NOT NULL,
    min_p              real NOT NULL,
    repetition_penalty real NOT NULL,
    presence_penalty   real NOT NULL,
    frequency_penalty  real NOT NULL,
    max_tokens         int NOT NULL,
    ignore_eos         boolean NOT NULL,
    seed               bigint NOT NULL,
    adapters           bytea[] NOT NULL,
    weights            float8[] NOT NULL,
    shares             int[] NOT NULL,
    prompt_digest      bytea NOT NULL CHECK (octet_length(prompt_digest) = 32),
    output_digest      bytea NOT NULL CHECK (octet_length(output_digest) = 32),
    adapter_ids        bigint[] NOT NULL,
    role_salt          bytea NOT NULL CHECK (octet_length(role_salt) = 32)
);
CREATE INDEX receipts_inference_idx ON openlora.receipts (inference);
COMMENT ON TABLE openlora.receipts IS 'usage as it was metered, also of callers that rolled back; rows are only ever added';
COMMENT ON COLUMN openlora.receipts.leaf IS 'number without gaps, from 0';
COMMENT ON COLUMN openlora.receipts.at IS 'when the request ended';
COMMENT ON COLUMN openlora.receipts.database IS 'oid of the database when the request ran; a restored one has another';
COMMENT ON COLUMN openlora.receipts.inference IS 'id of the row in openlora.inferences, if the caller committed: see openlora.receipt_status';
COMMENT ON COLUMN openlora.receipts.outcome IS 'lost: its engine was, and this is the last that it reported; announced: no receipt yet';
COMMENT ON COLUMN openlora.receipts.attempt IS 'how often the engine was lost with this request before';
COMMENT ON COLUMN openlora.receipts.input_tokens IS 'of the prompt, those that were computed or found computed';
COMMENT ON COLUMN openlora.receipts.adapters IS 'their digests, in the order of the request';
COMMENT ON COLUMN openlora.receipts.adapter_ids IS 'which adapters these were here';
COMMENT ON COLUMN openlora.receipts.role_salt IS 'the entry has SHA-256 over it and the role''s name: the log names nobody';
COMMENT ON COLUMN openlora.receipts.shares IS 'measured part of each adapter, parts per million';
COMMENT ON COLUMN openlora.receipts.prompt_digest IS 'SHA-256 over inferences.salt and the prompt (and completion) in UTF-8';
COMMENT ON COLUMN openlora.receipts.output_digest IS 'SHA-256 over inferences.salt and the tokens of the output, 4 bytes each, little-endian';

CREATE FUNCTION openlora.keep_receipts() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
        MESSAGE = format('%s of table "%s" is not possible', TG_OP, TG_TABLE_NAME),
        DETAIL = 'Receipts are only ever added.';
END $$;
REVOKE ALL ON FUNCTION openlora.keep_receipts() FROM PUBLIC;

CREATE TRIGGER unchanging BEFORE UPDATE OR DELETE OR TRUNCATE ON openlora.receipts
    FOR EACH STATEMENT EXECUTE FUNCTION openlora.keep_receipts();
ALTER TABLE openlora.receipts ENABLE ALWAYS TRIGGER unchanging;

ALTER TABLE openlora.receipts ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON openlora.receipts FOR SELECT USING (pg_catalog.pg_has_role(role_id, 'USAGE')
    OR (SELECT pg_catalog.pg_has_role('pg_read_all_data', 'USAGE')));

-- Since when requests are known: NULL on a standby, and -infinity while receipts of before wait
-- in a file.
CREATE FUNCTION openlora.receipts_known_since() RETURNS timestamptz
AS 'MODULE_PATHNAME', 'lora_receipts_known_since' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;
REVOKE ALL ON FUNCTION openlora.receipts_known_since() FROM PUBLIC;

DO $do$
DECLARE
    invoker boolean := current_setting('server_version_num')::int >= 150000;
    options text := CASE WHEN invoker THEN 'security_invoker = true' ELSE 'security_barrier = true' END;
    visible text := CASE WHEN invoker THEN 'true' ELSE
        $$(pg_catalog.pg_has_role(r.role_id, 'USAGE') OR (SELECT pg_catalog.pg_has_role('pg_read_all_data', 'USAGE')))$$ END;
BEGIN
    EXECUTE format($$
CREATE VIEW openlora.receipt_status WITH (%s) AS
SELECT r.leaf, r.at, r.role, r.inference, r.attempt, r.outcome, r.input_tokens, r.cached_tokens, r.output_tokens,
       EXISTS (SELECT FROM openlora.inferences i WHERE i.id = r.inference) AS committed
FROM openlora.receipts r
WHERE r.outcome <> 'announced' AND %s
$$, options, visible);
    EXECUTE format($$
CREATE VIEW openlora.announcements WITH (%s) AS
SELECT r.leaf, r.inference, r.at, r.role, r.role_id, r.task, r.max_tokens, r.prompt_digest
FROM openlora.receipts r
WHERE r.outcome = 'announced' AND %s
$$, options, visible);
    EXECUTE format($$
CREATE VIEW openlora.unmetered WITH (%s) AS
SELECT r.leaf, r.inference, r.at, r.role, r.role_id, r.task, r.max_tokens, r.prompt_digest,
       CASE WHEN r.at < since THEN 'lost' WHEN r.at >= since THEN 'running' END AS state
FROM openlora.receipts r, (SELECT openlora.receipts_known_since() AS since OFFSET 0) known
WHERE r.outcome = 'announced' AND %s
  AND NOT EXISTS (SELECT FROM openlora.receipts o WHERE o.inference = r.inference AND o.prompt_digest = r.prompt_digest AND o.outcome <> 'announced')
$$, options, visible);
END $do$;
COMMENT ON VIEW openlora.receipt_status IS 'whether the transaction that asked committed (and the row of its inference is still there)';
COMMENT ON VIEW openlora.announcements IS 'requests as they were announced, with openlora.receipt_durability = sync';
COMMENT ON VIEW openlora.unmetered IS 'announced requests without a receipt: they run, or a crash has lost the receipt';

SELECT pg_catalog.pg_extension_config_dump('openlora.receipts', '');
