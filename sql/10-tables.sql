-- openlora 0.1
\echo Use "CREATE EXTENSION openlora" to load this file. \quit

-- Tables live in the schema openlora. Functions (lora_*) live in the schema that CREATE
-- EXTENSION ... SCHEMA names, public by default, so that plain calls find them.
CREATE SCHEMA openlora;
COMMENT ON SCHEMA openlora IS 'adapters, provenance and attribution of openlora';

-- ---------------------------------------------------------------- what is served
CREATE TABLE openlora.base_models (
    digest       bytea PRIMARY KEY CHECK (octet_length(digest) = 32),
    name         text NOT NULL,
    architecture text NOT NULL,
    format       text NOT NULL,
    parameters   bigint NOT NULL,
    owner        name NOT NULL DEFAULT current_user,
    first_used   timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE openlora.base_models IS 'base models that have answered here; owner is credited as the model''s';

CREATE TABLE openlora.adapters (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text NOT NULL UNIQUE CHECK (name <> '' AND octet_length(name) <= 200),
    weights     bytea NOT NULL,
    config      jsonb,
    -- the rest describes the bytes, and is computed by the trigger
    digest      bytea NOT NULL CHECK (octet_length(digest) = 32),
    bytes       bigint NOT NULL,
    format      text NOT NULL CHECK (format IN ('peft', 'gguf')),
    checked     boolean NOT NULL DEFAULT false,
    max_rank    int,
    modules     int,
    parameters  bigint,
    owner       name NOT NULL DEFAULT current_user,
    shared      boolean NOT NULL DEFAULT false,
    description text,
    created_at  timestamptz NOT NULL DEFAULT now()
);
-- Weights do not compress; EXTERNAL lets them be read by slices.
ALTER TABLE openlora.adapters ALTER COLUMN weights SET STORAGE EXTERNAL;
COMMENT ON TABLE openlora.adapters IS 'LoRA adapters: name is the id that lora_generate takes';
COMMENT ON COLUMN openlora.adapters.weights IS 'bytes of adapter_model.safetensors, or of a GGUF adapter';
COMMENT ON COLUMN openlora.adapters.config IS 'PEFT''s adapter_config.json; NULL for GGUF';
COMMENT ON COLUMN openlora.adapters.digest IS 'SHA-256 over weights and config: the identity in caches and in attribution';
COMMENT ON COLUMN openlora.adapters.checked IS 'the engine has validated it against the base model it then served';
COMMENT ON COLUMN openlora.adapters.shared IS 'visible to every role that may read the table; else to members of its owner';

-- ---------------------------------------------------------------- provenance
CREATE TABLE openlora.contributors (
    id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name  text NOT NULL UNIQUE CHECK (name <> ''),
    role  name,
    note  text
);
COMMENT ON TABLE openlora.contributors IS 'people and organisations that can be credited';

CREATE TABLE openlora.datasets (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name    text NOT NULL UNIQUE CHECK (name <> ''),
    uri     text,
    licence text,
    digest  bytea,
    owner   name NOT NULL DEFAULT current_user
);

-- Shares are parts per million. The shares of one adapter (or dataset) may not exceed a
-- million; what they leave is credited to the adapter's owner.
CREATE TABLE openlora.adapter_datasets (
    adapter bigint NOT NULL REFERENCES openlora.adapters ON DELETE CASCADE,
    dataset bigint NOT NULL REFERENCES openlora.datasets,
    share   int NOT NULL CHECK (share BETWEEN 1 AND 1000000),
    PRIMARY KEY (adapter, dataset)
);
CREATE TABLE openlora.dataset_contributors (
    dataset     bigint NOT NULL REFERENCES openlora.datasets ON DELETE CASCADE,
    contributor bigint NOT NULL REFERENCES openlora.contributors,
    share       int NOT NULL CHECK (share BETWEEN 1 AND 1000000),
    PRIMARY KEY (dataset, contributor)
);
CREATE TABLE openlora.adapter_contributors (
    adapter     bigint NOT NULL REFERENCES openlora.adapters ON DELETE CASCADE,
    contributor bigint NOT NULL REFERENCES openlora.contributors,
    share       int NOT NULL CHECK (share BETWEEN 1 AND 1000000),
    PRIMARY KEY (adapter, contributor)
);

-- At the end of the transaction, so that shares can be moved in several statements.
CREATE FUNCTION openlora.check_shares() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    whose  text := TG_ARGV[0];
    id     bigint;
    total  bigint;
BEGIN
    id := (to_jsonb(NEW) ->> whose)::bigint;
    -- the parent row's lock makes two transactions that add shares see each other
    EXECUTE format('SELECT 1 FROM openlora.%I WHERE id = $1 FOR NO KEY UPDATE', whose || 's') USING id;
    EXECUTE format('SELECT coalesce(sum(share), 0) FROM openlora.%I WHERE %I = $1', TG_TABLE_NAME, whose)
        INTO total USING id;
    IF total > 1000000 THEN
        RAISE EXCEPTION USING ERRCODE = 'check_violation',
            MESSAGE = format('shares of %s %s exceed the whole', whose, id),
            DETAIL = format('They sum to %s of 1000000.', total);
    END IF;
    RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER whole AFTER INSERT OR UPDATE ON openlora.adapter_datasets
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION openlora.check_shares('adapter');
CREATE CONSTRAINT TRIGGER whole AFTER INSERT OR UPDATE ON openlora.dataset_contributors
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION openlora.check_shares('dataset');
CREATE CONSTRAINT TRIGGER whole AFTER INSERT OR UPDATE ON openlora.adapter_contributors
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION openlora.check_shares('adapter');

-- ---------------------------------------------------------------- what happened
CREATE TABLE openlora.inferences (
    id                bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at                timestamptz NOT NULL DEFAULT now(),
    role              name NOT NULL,
    function          text NOT NULL,
    base_model        bytea NOT NULL,
    prompt_tokens     int NOT NULL,
    completion_tokens int NOT NULL,
    finish_reason     text NOT NULL,
    temperature       real NOT NULL,
    top_k             int NOT NULL,
    top_p             real NOT NULL,
    min_p             real NOT NULL,
    max_tokens        int NOT NULL,
    seed              bigint NOT NULL,
    device            text NOT NULL,
    queue_ms          float8 NOT NULL,
    prefill_ms        float8 NOT NULL,
    decode_ms         float8 NOT NULL
);
COMMENT ON TABLE openlora.inferences IS 'one row per answer, in the transaction that asked for it';

-- No foreign keys to adapters or contributors: history outlives them.
CREATE TABLE openlora.inference_adapters (
    inference bigint NOT NULL REFERENCES openlora.inferences ON DELETE CASCADE,
    position  int NOT NULL,
    adapter   bigint NOT NULL,
    name      text NOT NULL,
    digest    bytea NOT NULL,
    weight    float8 NOT NULL,
    share     int NOT NULL,
    PRIMARY KEY (inference, position)
);
COMMENT ON COLUMN openlora.inference_adapters.share IS 'measured part of the LoRA output energy, parts per million; sums to a million';

CREATE TABLE openlora.attributions (
    inference   bigint NOT NULL REFERENCES openlora.inferences ON DELETE CASCADE,
    kind        text NOT NULL CHECK (kind IN ('model', 'compute', 'adapter', 'dataset')),
    adapter     text,
    contributor text NOT NULL,
    share       int NOT NULL CHECK (share BETWEEN 1 AND 1000000)
);
CREATE INDEX attributions_inference_idx ON openlora.attributions (inference);
COMMENT ON TABLE openlora.attributions IS 'who is credited for an inference: the shares of each kind sum to a million';
