-- ---------------------------------------------------------------- adapters
CREATE FUNCTION openlora.adapter_trigger() RETURNS trigger
AS 'MODULE_PATHNAME', 'lora_adapter_trigger' LANGUAGE C;

CREATE TRIGGER describe BEFORE INSERT OR UPDATE ON openlora.adapters
    FOR EACH ROW EXECUTE FUNCTION openlora.adapter_trigger();

CREATE FUNCTION lora_adapter_import(id text, weights bytea, config jsonb DEFAULT NULL,
    description text DEFAULT NULL, shared boolean DEFAULT false, replace boolean DEFAULT false)
RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    made bigint;
BEGIN
    IF $6 THEN
        INSERT INTO openlora.adapters AS a (name, weights, config, description, shared)
        VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (name) DO UPDATE SET weights = excluded.weights, config = excluded.config,
            description = coalesce(excluded.description, a.description), shared = excluded.shared
        RETURNING a.id INTO made;
    ELSE
        INSERT INTO openlora.adapters AS a (name, weights, config, description, shared)
        VALUES ($1, $2, $3, $4, $5) RETURNING a.id INTO made;
    END IF;
    RETURN made;
END $$;
COMMENT ON FUNCTION lora_adapter_import(text, bytea, jsonb, text, boolean, boolean) IS
    'stores a LoRA adapter: the bytes of adapter_model.safetensors and PEFT''s adapter_config.json, or a GGUF adapter';

CREATE FUNCTION lora_adapter_export(id text, OUT weights bytea, OUT config jsonb)
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    SELECT a.weights, a.config INTO STRICT weights, config FROM openlora.adapters a WHERE a.name = $1;
EXCEPTION WHEN no_data_found THEN
    RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('adapter "%s" does not exist', $1);
END $$;

CREATE FUNCTION lora_adapter_drop(id text, missing_ok boolean DEFAULT false) RETURNS boolean
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM openlora.adapters a WHERE a.name = $1;
    IF NOT FOUND AND NOT $2 THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('adapter "%s" does not exist', $1);
    END IF;
    RETURN FOUND;
END $$;
