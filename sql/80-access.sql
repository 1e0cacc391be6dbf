-- ---------------------------------------------------------------- rights on adapters
-- An adapter is its owner's (and, as everything, a superuser's). To others the owner gives:
--   use     answer with it, perhaps with a cap on the weight, a quota of tokens, an end
--   read    have its bytes: lora_adapter_export, lora_adapter_merge
--   manage  change and drop it, and grant rights on it; includes the other two
-- adapters.shared is the short form of an unlimited `use` for everybody. Whoever has any
-- right sees the row. Weights are read through lora_adapter_export alone: no role has
-- SELECT on that column, so that using needs no reading and seeing is not reading.
CREATE TABLE openlora.adapter_grants (
    adapter     bigint NOT NULL REFERENCES openlora.adapters ON DELETE CASCADE,
    grantee     regrole NOT NULL,
    "right"     text NOT NULL CHECK ("right" IN ('use', 'read', 'manage')),
    weight_cap  float8 CHECK (weight_cap >= 0.0 AND weight_cap <= 1000000.0),
    token_quota bigint CHECK (token_quota >= 0),
    expires_at  timestamptz,
    granted_by  regrole NOT NULL DEFAULT pg_catalog.quote_ident(CURRENT_USER::text)::regrole,
    granted_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (adapter, grantee, "right"),
    CHECK ("right" = 'use' OR (weight_cap IS NULL AND token_quota IS NULL))
);
COMMENT ON TABLE openlora.adapter_grants IS 'who may do what with an adapter that is not theirs: see lora_grant';
COMMENT ON COLUMN openlora.adapter_grants.grantee IS 'a role, with its members; - (0) is PUBLIC';
COMMENT ON COLUMN openlora.adapter_grants.weight_cap IS 'largest magnitude of the weight in a request; NULL: any';
COMMENT ON COLUMN openlora.adapter_grants.token_quota IS 'tokens of prompts and answers, all of the grantee''s together, from the grant on; NULL: any';

-- Tokens in fixed windows of `period`, counted from 2000-01-01 UTC.
CREATE TABLE openlora.role_quotas (
    role       regrole PRIMARY KEY,
    tokens     bigint CHECK (tokens >= 0),
    period     interval NOT NULL DEFAULT '1 day'
               CHECK (period >= '1 second'::interval AND extract(year FROM period) = 0.0 AND extract(month FROM period) = 0.0),
    concurrent int CHECK (concurrent >= 0)
);
COMMENT ON TABLE openlora.role_quotas IS 'what a role may ask for: tokens per period, and sessions that ask at the same time; NULL: any';
COMMENT ON COLUMN openlora.role_quotas.role IS 'the role that calls; members of it have quotas of their own. - (0): every role without a row';

-- Whether the role that calls has the right (NULL: any right) by a grant; ownership and
-- adapters.shared are not looked at. Reads the grants with the rights of their owner.
CREATE FUNCTION openlora.has_right(adapter bigint, "right" text) RETURNS boolean
AS 'MODULE_PATHNAME', 'lora_has_right' LANGUAGE C STABLE PARALLEL UNSAFE COST 1000;

CREATE FUNCTION lora_grant(adapter text, grantee text, "right" text DEFAULT 'use', weight_cap float8 DEFAULT NULL,
    token_quota bigint DEFAULT NULL, expires_at timestamptz DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    whose bigint;
    who   regrole := CASE WHEN lower($2) = 'public' THEN 0::regrole ELSE $2::regrole END;
BEGIN
    SELECT a.id INTO whose FROM openlora.adapters a WHERE a.name = $1;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('adapter "%s" does not exist', $1);
    END IF;
    IF who = 0::regrole AND $3 = 'manage' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_grant_operation', MESSAGE = 'the right to manage an adapter cannot be given to PUBLIC';
    END IF;
    -- a grant given anew starts anew: its quota, too
    DELETE FROM openlora.adapter_grants g WHERE g.adapter = whose AND g.grantee = who AND g."right" = $3;
    INSERT INTO openlora.adapter_grants (adapter, grantee, "right", weight_cap, token_quota, expires_at)
    VALUES (whose, who, $3, $4, $5, $6);
    PERFORM openlora.forget_quota(who, whose);
END $$;
COMMENT ON FUNCTION lora_grant(text, text, text, float8, bigint, timestamptz) IS
    'gives a role (or ''public'') the right to use, read or manage an adapter; again: replaces what was given';

CREATE FUNCTION lora_revoke(adapter text, grantee text, "right" text DEFAULT NULL) RETURNS int
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    whose bigint;
    who   regrole := CASE WHEN lower($2) = 'public' THEN 0::regrole ELSE $2::regrole END;
    n     int;
BEGIN
    SELECT a.id INTO whose FROM openlora.adapters a WHERE a.name = $1;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('adapter "%s" does not exist', $1);
    END IF;
    DELETE FROM openlora.adapter_grants g WHERE g.adapter = whose AND g.grantee = who AND ($3 IS NULL OR g."right" = $3);
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION lora_revoke(text, text, text) IS 'takes back a right, or all; returns how many there were';

-- The grant's counter begins at zero again. Only whoever may manage the adapter can.
CREATE FUNCTION openlora.forget_quota(grantee regrole, adapter bigint) RETURNS void
AS 'MODULE_PATHNAME', 'lora_forget_quota' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION lora_set_quota(role text, tokens bigint DEFAULT NULL, period interval DEFAULT '1 day', concurrent int DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    who regrole := CASE WHEN lower($1) = 'public' THEN 0::regrole ELSE $1::regrole END;
BEGIN
    DELETE FROM openlora.role_quotas q WHERE q.role = who;
    IF $2 IS NOT NULL OR $4 IS NOT NULL THEN
        INSERT INTO openlora.role_quotas (role, tokens, period, concurrent) VALUES (who, $2, coalesce($3, '1 day'), $4);
    END IF;
END $$;
COMMENT ON FUNCTION lora_set_quota(text, bigint, interval, int) IS
    'limits what a role may ask for (''public'': all without a quota of their own); NULL for both takes the quota away';

-- What counts against quotas now, in this database. adapter is NULL for a role's own quota.
CREATE FUNCTION openlora.quota_counters(OUT role regrole, OUT adapter bigint, OUT tokens bigint, OUT reserved bigint,
    OUT concurrent int, OUT since timestamptz)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'lora_quota_counters' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE ROWS 100;

DO $do$
DECLARE
    -- before PostgreSQL 15 views run with their owner's rights
    options text := CASE WHEN current_setting('server_version_num')::int >= 150000 THEN 'WITH (security_invoker = true)' ELSE '' END;
BEGIN
    EXECUTE format($$
CREATE VIEW openlora.quota_usage %s AS
SELECT c.role, a.name AS adapter, c.tokens, c.reserved, coalesce(g.token_quota, q.tokens) AS token_quota,
       c.concurrent, q.concurrent AS concurrent_quota, c.since
FROM openlora.quota_counters() c
LEFT JOIN openlora.adapters a ON a.id = c.adapter
LEFT JOIN openlora.adapter_grants g ON g.adapter = c.adapter AND g.grantee = c.role AND g."right" = 'use'
LEFT JOIN openlora.role_quotas q ON q.role = c.role AND c.adapter IS NULL
$$, options);
END $do$;
COMMENT ON VIEW openlora.quota_usage IS 'tokens counted and reserved against quotas, and sessions that ask at the same time';
