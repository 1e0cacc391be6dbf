-- openlora 0.1
\echo Use "CREATE EXTENSION openlora" to load this file. \quit

-- Tables live in the schema openlora. Functions (lora_*) live in the schema that CREATE
-- EXTENSION ... SCHEMA names, public by default, so that plain calls find them.
--
-- This script runs as a superuser with a search path that others may write to: where an
-- argument's type is not exactly that of a built-in function or operator, the name is
-- qualified, so that nobody's better match is taken.
CREATE SCHEMA openlora;
COMMENT ON SCHEMA openlora IS 'adapters, provenance and attribution of openlora';

-- Roles are kept as regrole: they survive a rename, and a new role that takes the name of
-- a dropped one inherits nothing. Dumps name them, so restore roles first. (To compare:
-- owner = 'alice'::regrole.)

-- ---------------------------------------------------------------- what is served
CREATE TABLE openlora.base_models (
    digest       bytea PRIMARY KEY CHECK (octet_length(digest) = 32),
    name         text NOT NULL,
    architecture text NOT NULL,
    format       text NOT NULL,
    parameters   bigint NOT NULL,
    owner        regrole NOT NULL DEFAULT pg_catalog.quote_ident(CURRENT_USER::text)::regrole,
    first_used   timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE openlora.base_models IS 'base models that have answered here; the owner is credited as the model''s';

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
    base_model  bytea,
    max_rank    int,
    modules     int,
    parameters  bigint,
    -- this is the owner's to say
    owner       regrole NOT NULL DEFAULT pg_catalog.quote_ident(CURRENT_USER::text)::regrole,
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
COMMENT ON COLUMN openlora.adapters.checked IS 'the engine has validated it against base_model; setting it to NULL asks for that again';
COMMENT ON COLUMN openlora.adapters.base_model IS 'digest of the base model that it was validated against; NULL when not checked';
COMMENT ON COLUMN openlora.adapters.shared IS 'visible to every role that may read the table; else to members of its owner';

-- ---------------------------------------------------------------- provenance
CREATE TABLE openlora.contributors (
    id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name  text NOT NULL UNIQUE CHECK (name <> ''),
    role  regrole UNIQUE,
    note  text
);
COMMENT ON TABLE openlora.contributors IS 'people and organisations that can be credited';
COMMENT ON COLUMN openlora.contributors.role IS 'what this role earns as an owner is credited to this contributor';

CREATE TABLE openlora.datasets (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name    text NOT NULL UNIQUE CHECK (name <> ''),
    uri     text,
    licence text,
    digest  bytea,
    owner   regrole NOT NULL DEFAULT pg_catalog.quote_ident(CURRENT_USER::text)::regrole
);
COMMENT ON TABLE openlora.datasets IS 'what adapters were trained on';

-- Shares are parts per million. The shares of one adapter (or dataset) may not exceed a
-- million; what they leave is credited to the owner: see openlora.adapter_credits.
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
COMMENT ON TABLE openlora.adapter_datasets IS 'which datasets an adapter was trained on, parts per million';
COMMENT ON TABLE openlora.dataset_contributors IS 'who made a dataset, parts per million';
COMMENT ON TABLE openlora.adapter_contributors IS 'who made an adapter, parts per million';

-- Sums are checked at the end of the transaction, so that shares can be moved in several
-- statements; once for each parent, however many rows were written: see share_trigger.c.
CREATE FUNCTION openlora.check_shares() RETURNS trigger
AS 'MODULE_PATHNAME', 'lora_check_shares' LANGUAGE C;

CREATE TRIGGER changing BEFORE INSERT OR UPDATE ON openlora.adapter_datasets
    FOR EACH STATEMENT EXECUTE FUNCTION openlora.check_shares('adapter');
CREATE TRIGGER changing BEFORE INSERT OR UPDATE ON openlora.dataset_contributors
    FOR EACH STATEMENT EXECUTE FUNCTION openlora.check_shares('dataset');
CREATE TRIGGER changing BEFORE INSERT OR UPDATE ON openlora.adapter_contributors
    FOR EACH STATEMENT EXECUTE FUNCTION openlora.check_shares('adapter');
CREATE CONSTRAINT TRIGGER whole AFTER INSERT OR UPDATE ON openlora.adapter_datasets
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION openlora.check_shares('adapter');
CREATE CONSTRAINT TRIGGER whole AFTER INSERT OR UPDATE ON openlora.dataset_contributors
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION openlora.check_shares('dataset');
CREATE CONSTRAINT TRIGGER whole AFTER INSERT OR UPDATE ON openlora.adapter_contributors
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION openlora.check_shares('adapter');

-- ---------------------------------------------------------------- what happened
CREATE TABLE openlora.inferences (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at                 timestamptz NOT NULL DEFAULT now(),
    role               name NOT NULL,
    role_id            regrole NOT NULL,
    function           text NOT NULL,
    base_model         bytea NOT NULL,
    prompt_tokens      int NOT NULL,
    cached_tokens      int NOT NULL,
    completion_tokens  int NOT NULL,
    finish_reason      text NOT NULL,
    temperature        real NOT NULL,
    top_k              int NOT NULL,
    top_p              real NOT NULL,
    min_p              real NOT NULL,
    repetition_penalty real NOT NULL,
    presence_penalty   real NOT NULL,
    frequency_penalty  real NOT NULL,
    logit_bias         jsonb,
    stop               text[],
    ignore_eos         boolean NOT NULL,
    max_tokens         int NOT NULL,
    seed               bigint NOT NULL,
    device             text NOT NULL,
    queue_ms           float8 NOT NULL,
    prefill_ms         float8 NOT NULL,
    decode_ms          float8 NOT NULL,
    salt               bytea CHECK (octet_length(salt) = 32)
);
COMMENT ON TABLE openlora.inferences IS 'one row per answer, in the transaction that asked for it';
COMMENT ON COLUMN openlora.inferences.salt IS 'of the digests in the receipt: without this row nobody can tell what was asked from them';
COMMENT ON COLUMN openlora.inferences.at IS 'when that transaction began';
COMMENT ON COLUMN openlora.inferences.cached_tokens IS 'of the prompt''s tokens: found computed, by an earlier request with the same beginning and adapters';
COMMENT ON COLUMN openlora.inferences.role IS 'who asked: the role whose privileges applied, as it was called then';
COMMENT ON COLUMN openlora.inferences.role_id IS 'that role, whatever it is called now; it may see the row';

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
COMMENT ON TABLE openlora.inference_adapters IS 'adapters of an inference, as they were named and weighted';
COMMENT ON COLUMN openlora.inference_adapters.share IS 'measured part of the LoRA output energy, parts per million; sums to a million';

CREATE TABLE openlora.attributions (
    inference      bigint NOT NULL REFERENCES openlora.inferences ON DELETE CASCADE,
    kind           text NOT NULL CHECK (kind IN ('model', 'compute', 'adapter', 'dataset')),
    adapter        text,
    dataset        text,
    contributor    text NOT NULL,
    contributor_id bigint,
    share          numeric NOT NULL CHECK (share > 0.0 AND share <= 1000000.0),
    tokens         numeric NOT NULL
);
CREATE INDEX attributions_inference_idx ON openlora.attributions (inference);
COMMENT ON TABLE openlora.attributions IS 'who is credited for an inference: the shares of each kind sum to a million';
COMMENT ON COLUMN openlora.attributions.contributor IS 'name of a contributor, or of a role when contributor_id is NULL';
COMMENT ON COLUMN openlora.attributions.share IS 'parts per million of this kind, with all decimals: nothing is rounded';
COMMENT ON COLUMN openlora.attributions.tokens IS 'that part of the tokens of prompt and completion';
