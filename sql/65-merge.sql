-- ---------------------------------------------------------------- merging
CREATE FUNCTION openlora.run_merge(names text[], adapters bytea[], configs jsonb[], factors float8[], method text, density float8,
    majority_sign_method text, rank int, seed bigint, svd_clamp float8, OUT weights bytea, OUT config jsonb, OUT parts float8[])
AS 'MODULE_PATHNAME', 'lora_run_merge' LANGUAGE C VOLATILE PARALLEL UNSAFE;
REVOKE ALL ON FUNCTION openlora.run_merge(text[], bytea[], jsonb[], float8[], text, float8, text, int, bigint, float8) FROM PUBLIC;

-- As pg_stat_progress_*: of this database, and of those roles that the reader is a member of.
CREATE FUNCTION openlora.merge_jobs(OUT pid int, OUT role_id oid, OUT method text, OUT adapters int, OUT phase text, OUT done bigint,
    OUT total bigint, OUT started timestamptz)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'lora_merge_jobs' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE ROWS 10;
REVOKE ALL ON FUNCTION openlora.merge_jobs() FROM PUBLIC;
DO $do$
DECLARE
    options text := CASE WHEN current_setting('server_version_num')::int >= 150000 THEN 'WITH (security_invoker = true)' ELSE '' END;
BEGIN
    EXECUTE format($$
CREATE VIEW openlora.stat_progress_merge %s AS
SELECT j.pid, pg_catalog.pg_get_userbyid(j.role_id) AS role, j.method, j.adapters, j.phase, j.done, j.total, j.started
FROM openlora.merge_jobs() j
$$, options);
END $do$;
COMMENT ON VIEW openlora.stat_progress_merge IS
    'lora_adapter_merge at work: adapters that are read, modules that are merged, the new adapter that is written (done stays 0)';

-- The contributor who stands for a role; one is made when there is none, which a role cannot
-- do for another by itself. It gives nobody anything but the name.
CREATE FUNCTION openlora.contributor_of(whose regrole) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    found bigint := (SELECT c.id FROM openlora.contributors c WHERE c.role = $1);
BEGIN
    IF found IS NULL THEN
        INSERT INTO openlora.contributors (name, role)
        SELECT pg_get_userbyid($1::oid) || CASE WHEN EXISTS (SELECT FROM openlora.contributors c WHERE c.name = pg_get_userbyid($1::oid))
                                                THEN ' (role)' ELSE '' END, $1
        RETURNING id INTO found;
    END IF;
    RETURN found;
END $$;

-- Parts of the same thing added up, and made whole by largest remainder.
CREATE FUNCTION openlora.whole_shares(whats bigint[], parts numeric[], OUT what bigint, OUT share int) RETURNS SETOF record
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH s AS (SELECT u.what, sum(u.part) AS part FROM unnest($1, $2) AS u (what, part) GROUP BY u.what),
    r AS (SELECT s.what, floor(s.part)::bigint AS share, row_number() OVER (ORDER BY s.part - floor(s.part) DESC, s.what) AS place,
                 (round(sum(s.part) OVER ()) - sum(floor(s.part)) OVER ())::bigint AS left_over FROM s)
    SELECT r.what, (r.share + CASE WHEN r.place <= r.left_over THEN 1 ELSE 0 END)::int FROM r
$$;

-- What an adapter that was merged owes to whom: its parents' shares, by weight. A weight is worth
-- what its parent changes: it counts times the norm of the parent's matrices, so that neither an
-- empty parent with a large weight nor one that was scaled up takes what is another's. What a
-- parent leaves to its owner goes to the contributor who stands for that owner.
CREATE FUNCTION openlora.inherit_provenance(made bigint, parents bigint[], parts float8[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    total   float8 := (SELECT sum(f) FROM unnest($3) f);
    mine    regrole := (SELECT a.owner FROM openlora.adapters a WHERE a.id = $1);
    authors bigint[];
    author_parts numeric[];
    sets    bigint[];
    set_parts numeric[];
    p       record;
    texts   bigint;
BEGIN
    FOR p IN SELECT a.id, a.name, a.owner, (CASE WHEN total > 0 THEN u.f / total ELSE 1.0 / cardinality($2) END)::numeric AS part,
                 ARRAY(SELECT s.contributor FROM openlora.adapter_contributors s WHERE s.adapter = a.id ORDER BY 1) AS authors,
                 ARRAY(SELECT s.share::numeric FROM openlora.adapter_contributors s WHERE s.adapter = a.id ORDER BY s.contributor) AS author_shares,
                 ARRAY(SELECT s.dataset FROM openlora.adapter_datasets s WHERE s.adapter = a.id ORDER BY 1) AS sets,
                 ARRAY(SELECT s.share::numeric FROM openlora.adapter_datasets s WHERE s.adapter = a.id ORDER BY s.dataset) AS set_shares
             FROM unnest($2, $3) AS u (id, f) JOIN openlora.adapters a ON a.id = u.id
    LOOP
        IF p.owner <> mine AND 1000000 > (SELECT coalesce(sum(x), 0) FROM unnest(p.author_shares) x) THEN
            p.author_shares := p.author_shares || (1000000 - (SELECT coalesce(sum(x), 0) FROM unnest(p.author_shares) x));
            p.authors := p.authors || openlora.contributor_of(p.owner);
        END IF;
        IF p.owner <> mine AND 1000000 > (SELECT coalesce(sum(x), 0) FROM unnest(p.set_shares) x) THEN
            INSERT INTO openlora.datasets (name) VALUES (format('texts of %s, merged into %s', p.name, $1)) RETURNING id INTO texts;
            INSERT INTO openlora.dataset_contributors VALUES (texts, openlora.contributor_of(p.owner), 1000000);
            p.set_shares := p.set_shares || (1000000 - (SELECT coalesce(sum(x), 0) FROM unnest(p.set_shares) x));
            p.sets := p.sets || texts;
        END IF;
        authors := authors || p.authors;
        author_parts := author_parts || ARRAY(SELECT x * p.part FROM unnest(p.author_shares) WITH ORDINALITY AS y (x, n) ORDER BY n);
        sets := sets || p.sets;
        set_parts := set_parts || ARRAY(SELECT x * p.part FROM unnest(p.set_shares) WITH ORDINALITY AS y (x, n) ORDER BY n);
    END LOOP;
    -- what all leave is the new owner's
    INSERT INTO openlora.adapter_contributors SELECT $1, s.what, s.share FROM openlora.whole_shares(authors, author_parts) s WHERE s.share > 0;
    INSERT INTO openlora.adapter_datasets SELECT $1, s.what, s.share FROM openlora.whole_shares(sets, set_parts) s WHERE s.share > 0;
END $$;
REVOKE ALL ON FUNCTION openlora.contributor_of(regrole), openlora.inherit_provenance(bigint, bigint[], float8[]),
    openlora.whole_shares(bigint[], numeric[]) FROM PUBLIC;

CREATE FUNCTION lora_adapter_merge(new_id text, adapter_ids text[], weights float8[] DEFAULT NULL, method text DEFAULT 'svd',
    density float8 DEFAULT NULL, majority_sign_method text DEFAULT 'total', svd_rank int DEFAULT NULL, seed bigint DEFAULT 0,
    description text DEFAULT NULL, svd_clamp float8 DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    n       int := coalesce(cardinality($2), 0);
    factors float8[] := coalesce($3, array_fill(1.0::float8, ARRAY[greatest(n, 1)]));
    bytes   bytea[];
    configs jsonb[];
    parents bigint[];
    one     record;
    made    bigint;
    size    bigint := 0;
BEGIN
    IF n = 0 OR array_position($2, NULL) IS NOT NULL OR cardinality(factors) <> n OR array_position(factors, NULL) IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'adapters, and a weight for each, are needed';
    END IF;
    IF n > 64 THEN
        RAISE EXCEPTION USING ERRCODE = 'program_limit_exceeded', MESSAGE = format('too many adapters to merge: %s', n),
            DETAIL = 'At most 64 can be merged at once.', HINT = 'Merge some of them first.';
    END IF;
    IF (SELECT count(DISTINCT a) FROM unnest($2) a) <> n THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'an adapter is named twice';
    END IF;
    FOR i IN 1 .. n LOOP
        SELECT * INTO one FROM @extschema@.lora_adapter_export($2[i]);
        IF one.config IS NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'feature_not_supported', MESSAGE = format('adapter "%s" is a GGUF adapter', $2[i]),
                HINT = 'Only adapters in PEFT''s form are merged.';
        END IF;
        size := size + octet_length(one.weights);
        IF size > 1000000000 THEN
            RAISE EXCEPTION USING ERRCODE = 'program_limit_exceeded', MESSAGE = 'the adapters are too large to merge',
                DETAIL = format('"%s" and those before it have %s bytes; at most 1000000000 can be merged at once.', $2[i], size),
                HINT = 'Merge some of them first.';
        END IF;
        bytes := bytes || one.weights;
        configs := configs || one.config;
        parents := parents || (SELECT a.id FROM openlora.adapters a WHERE a.name = $2[i]);
    END LOOP;
    -- of the same shape is not of the same model
    SELECT a.name, b.name AS other INTO one
    FROM openlora.adapters a JOIN openlora.adapters b ON a.base_model < b.base_model
    WHERE a.id = ANY (parents) AND b.id = ANY (parents) LIMIT 1;
    IF one.name IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'datatype_mismatch', MESSAGE = 'adapters of different base models cannot be merged',
            DETAIL = format('"%s" was validated against another one than "%s".', one.name, one.other),
            HINT = 'lora_adapter_check validates an adapter against the model that is served.';
    END IF;
    SELECT * INTO one FROM openlora.run_merge($2, bytes, configs, factors, $4, $5, $6, $7, $8, $10);
    made := @extschema@.lora_adapter_import($1, one.weights, one.config,
        description => coalesce($9, format('%s of %s by %s', $4, $2::text, factors::text)));
    PERFORM openlora.inherit_provenance(made, parents, one.parts);
    RETURN made;
END $$;
COMMENT ON FUNCTION lora_adapter_merge(text, text[], float8[], text, float8, text, int, bigint, text, float8) IS
    'makes a new adapter of several, as PEFT''s add_weighted_adapter does: linear, cat, svd, ties, dare_linear, dare_ties, magnitude_prune, and the last four with _svd';
