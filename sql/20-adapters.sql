-- ---------------------------------------------------------------- adapters
CREATE FUNCTION openlora.adapter_trigger() RETURNS trigger
AS 'MODULE_PATHNAME', 'lora_adapter_trigger' LANGUAGE C;

CREATE TRIGGER describe BEFORE INSERT OR UPDATE ON openlora.adapters
    FOR EACH ROW EXECUTE FUNCTION openlora.adapter_trigger();

-- {"name": parts per million, ...}, or ["name", ...] for equal parts of the whole.
CREATE FUNCTION openlora.read_shares(shares jsonb) RETURNS TABLE (name text, share int)
LANGUAGE plpgsql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    n int;
BEGIN
    IF jsonb_typeof(shares) = 'array' THEN
        n := jsonb_array_length(shares);
        RETURN QUERY SELECT e.name, 1000000 / n + (e.i <= 1000000 % n)::int
                     FROM jsonb_array_elements_text(shares) WITH ORDINALITY AS e (name, i);
    ELSIF jsonb_typeof(shares) = 'object' THEN
        RETURN QUERY SELECT e.key, e.value::int FROM jsonb_each_text(shares) AS e;
    ELSE
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'shares are neither an object nor an array',
            HINT = 'Write {"ann": 750000, "bob": 250000} in parts per million, or ["ann", "bob"] for equal parts.';
    END IF;
END $$;

CREATE FUNCTION lora_adapter_provenance(id text, datasets jsonb DEFAULT NULL, contributors jsonb DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    whose bigint;
BEGIN
    SELECT a.id INTO whose FROM openlora.adapters a WHERE a.name = $1;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('adapter "%s" does not exist', $1);
    END IF;
    IF $2 IS NOT NULL THEN
        DELETE FROM openlora.adapter_datasets WHERE adapter = whose;
        INSERT INTO openlora.datasets (name) SELECT s.name FROM openlora.read_shares($2) s
        WHERE NOT EXISTS (SELECT FROM openlora.datasets d WHERE d.name = s.name);
        INSERT INTO openlora.adapter_datasets (adapter, dataset, share)
        SELECT whose, d.id, s.share FROM openlora.read_shares($2) s JOIN openlora.datasets d ON d.name = s.name;
    END IF;
    IF $3 IS NOT NULL THEN
        DELETE FROM openlora.adapter_contributors WHERE adapter = whose;
        INSERT INTO openlora.contributors (name) SELECT s.name FROM openlora.read_shares($3) s
        WHERE NOT EXISTS (SELECT FROM openlora.contributors c WHERE c.name = s.name);
        INSERT INTO openlora.adapter_contributors (adapter, contributor, share)
        SELECT whose, c.id, s.share FROM openlora.read_shares($3) s JOIN openlora.contributors c ON c.name = s.name;
    END IF;
END $$;
COMMENT ON FUNCTION lora_adapter_provenance(text, jsonb, jsonb) IS
    'replaces an adapter''s datasets and contributors: {"name": parts per million} or ["name", ...] for equal parts; unknown names are added';

CREATE FUNCTION lora_adapter_import(id text, weights bytea, config jsonb DEFAULT NULL,
    description text DEFAULT NULL, shared boolean DEFAULT NULL, replace boolean DEFAULT false,
    datasets jsonb DEFAULT NULL, contributors jsonb DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    made bigint;
BEGIN
    -- UPDATE first, and no ON CONFLICT, so that the bytes are validated once
    IF $6 THEN
        UPDATE openlora.adapters AS a SET weights = $2, config = $3, description = coalesce($4, a.description),
            shared = coalesce($5, a.shared)
        WHERE a.name = $1 RETURNING a.id INTO made;
    END IF;
    IF made IS NULL THEN
        INSERT INTO openlora.adapters AS a (name, weights, config, description, shared)
        VALUES ($1, $2, $3, $4, coalesce($5, false)) RETURNING a.id INTO made;
    END IF;
    IF $7 IS NOT NULL OR $8 IS NOT NULL THEN
        PERFORM @extschema@.lora_adapter_provenance($1, $7, $8);
    END IF;
    RETURN made;
EXCEPTION WHEN unique_violation THEN
    RAISE EXCEPTION USING ERRCODE = 'unique_violation', MESSAGE = format('adapter "%s" exists already', $1),
        HINT = 'It may be there but not visible to you. Write replace => true to give your own adapter new weights.';
END $$;
COMMENT ON FUNCTION lora_adapter_import(text, bytea, jsonb, text, boolean, boolean, jsonb, jsonb) IS
    'stores a LoRA adapter: the bytes of adapter_model.safetensors and PEFT''s adapter_config.json, or a GGUF adapter';

CREATE FUNCTION lora_adapter_export(id text, OUT weights bytea, OUT config jsonb)
AS 'MODULE_PATHNAME', 'lora_adapter_export' LANGUAGE C STRICT STABLE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION lora_adapter_export(text) IS 'gives back the two files that were imported, to who may read them';

CREATE FUNCTION lora_adapter_drop(id text, missing_ok boolean DEFAULT false) RETURNS boolean
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM openlora.adapters a WHERE a.name = $1;
    IF NOT FOUND AND NOT $2 THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('adapter "%s" does not exist', $1);
    END IF;
    RETURN FOUND;
END $$;
COMMENT ON FUNCTION lora_adapter_drop(text, boolean) IS 'deletes an adapter; what it was used for stays on record';

-- Whether adapters fit the base model that is served now; keeps the verdict in the row.
-- After a change of the base model, or a restore:
--   SELECT a.name, c.* FROM openlora.adapters a, lora_adapter_check(a.name) c WHERE c.good IS NOT true;
CREATE FUNCTION lora_adapter_check(id text, OUT good boolean, OUT error text)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE openlora.adapters a SET checked = NULL WHERE a.name = $1 RETURNING a.checked INTO good;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('adapter "%s" does not exist', $1),
            HINT = 'Only members of its owner can check an adapter.';
    ELSIF NOT good THEN
        good := NULL;
        error := 'no model is served that could be asked';
    END IF;
EXCEPTION WHEN invalid_binary_representation OR feature_not_supported OR datatype_mismatch OR invalid_parameter_value
    OR program_limit_exceeded THEN
    UPDATE openlora.adapters a SET checked = false WHERE a.name = $1;
    good := false;
    error := SQLERRM;
END $$;
COMMENT ON FUNCTION lora_adapter_check(text) IS 'validates an adapter against the base model that is served now: good is NULL when there is none';
