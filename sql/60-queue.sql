-- ---------------------------------------------------------------- requests answered later
CREATE TABLE openlora.queue (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    role               regrole NOT NULL,
    state              text NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    adapter_ids        text[],
    prompt             text NOT NULL,
    weights            float8[],
    max_tokens         int NOT NULL,
    temperature        float8,
    top_k              int,
    top_p              float8,
    min_p              float8,
    repetition_penalty float8,
    presence_penalty   float8,
    frequency_penalty  float8,
    logit_bias         jsonb,
    seed               bigint NOT NULL,
    stop               text[],
    ignore_eos         boolean,
    priority           int NOT NULL,
    tenant_weight      float8 NOT NULL,
    attempts           int NOT NULL DEFAULT 0,
    cancel             boolean NOT NULL DEFAULT false,
    result             text,
    inference          bigint,
    error              text,
    sqlstate           text,
    submitted_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at         timestamptz,
    ended_at           timestamptz
);
CREATE INDEX queue_waiting_idx ON openlora.queue (priority DESC, id) WHERE state = 'queued';
CREATE INDEX queue_running_idx ON openlora.queue (id) WHERE state = 'running';
CREATE INDEX queue_ended_idx ON openlora.queue (ended_at) WHERE state IN ('done', 'failed', 'cancelled');
COMMENT ON TABLE openlora.queue IS 'requests of lora_submit; ended ones are kept for openlora.queue_retention';
COMMENT ON COLUMN openlora.queue.role IS 'who submitted it: it runs with this role''s rights and is attributed to it';
COMMENT ON COLUMN openlora.queue.attempts IS 'how often it was begun; at openlora.queue_max_attempts it is given up';
COMMENT ON COLUMN openlora.queue.cancel IS 'lora_cancel was called while it ran';

CREATE FUNCTION lora_submit(
    adapter_ids text[], prompt text, weights float8[] DEFAULT NULL, max_tokens int DEFAULT NULL,
    temperature float8 DEFAULT 0, top_k int DEFAULT 0, top_p float8 DEFAULT 1, min_p float8 DEFAULT 0,
    repetition_penalty float8 DEFAULT 1, presence_penalty float8 DEFAULT 0,
    frequency_penalty float8 DEFAULT 0, logit_bias jsonb DEFAULT NULL, seed bigint DEFAULT NULL,
    stop text[] DEFAULT NULL, ignore_eos boolean DEFAULT false, on_error text DEFAULT 'raise')
RETURNS bigint
AS 'MODULE_PATHNAME', 'lora_submit' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION lora_submit(text[], text, float8[], int, float8, int, float8, float8, float8,
    float8, float8, jsonb, bigint, text[], boolean, text) IS
    'queues a request, which is answered after the commit: see lora_result; arguments as of lora_generate';

CREATE FUNCTION lora_result(id bigint, wait interval DEFAULT '0', OUT state text, OUT result text,
    OUT inference_id bigint, OUT error text)
AS 'MODULE_PATHNAME', 'lora_result' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION lora_result(bigint, interval) IS 'a queued request''s state and answer, waiting for its end for so long';

CREATE FUNCTION lora_cancel(id bigint) RETURNS boolean
AS 'MODULE_PATHNAME', 'lora_cancel' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION lora_cancel(bigint) IS 'cancels a queued request, also one that runs; false if it has ended already';

-- Whether a role may still have its requests answered.
CREATE FUNCTION openlora.may_submit(role oid) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT has_schema_privilege($1, 'openlora', 'USAGE') AND bool_or(has_function_privilege($1, p.oid, 'EXECUTE'))
    FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
    JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
    WHERE e.extname = 'openlora' AND p.proname = 'lora_submit'
$$;
