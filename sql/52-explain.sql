-- ---------------------------------------------------------------- one answer's tree
-- Row-level security decides who sees what: the role that asked, as for the tables below it.
CREATE FUNCTION openlora.attribution_tree(inference bigint, OUT depth int, OUT kind text, OUT name text, OUT weight float8,
    OUT share numeric, OUT tokens numeric)
RETURNS SETOF record LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
WITH i AS (SELECT * FROM openlora.inferences WHERE id = $1),
     u AS (SELECT * FROM openlora.inference_adapters WHERE inference = $1),
     a AS (SELECT * FROM openlora.attributions WHERE inference = $1),
tree (place, depth, kind, name, weight, share, tokens) AS (
    SELECT ARRAY['0'], 0, 'inference', i.id::text, NULL::float8, NULL::numeric, (i.prompt_tokens + i.completion_tokens)::numeric FROM i
    UNION ALL
    SELECT ARRAY['1'], 1, 'model', coalesce(m.name, encode(i.base_model, 'hex')), NULL, 1000000, NULL
    FROM i LEFT JOIN openlora.base_models m ON m.digest = i.base_model
    UNION ALL
    SELECT ARRAY['1', a.contributor], 2, 'owner', a.contributor, NULL, a.share, a.tokens FROM a WHERE a.kind = 'model'
    UNION ALL
    SELECT ARRAY['2'], 1, 'compute', i.device, NULL, 1000000, NULL FROM i
    UNION ALL
    SELECT ARRAY['2', a.contributor], 2, 'operator', a.contributor, NULL, a.share, a.tokens FROM a WHERE a.kind = 'compute'
    UNION ALL
    SELECT ARRAY['3', to_char(u.position, 'FM0000')], 1, 'adapter', u.name, u.weight, u.share, NULL FROM u
    UNION ALL
    SELECT ARRAY['3', to_char(u.position, 'FM0000'), '1', a.contributor], 2, 'author', a.contributor, NULL, a.share, a.tokens
    FROM u JOIN a ON a.kind = 'adapter' AND a.adapter = u.name
    UNION ALL
    SELECT ARRAY['3', to_char(u.position, 'FM0000'), '2', coalesce(a.dataset, '')], 2, 'dataset', a.dataset, NULL, sum(a.share), sum(a.tokens)
    FROM u JOIN a ON a.kind = 'dataset' AND a.adapter = u.name GROUP BY u.position, a.dataset
    UNION ALL
    SELECT ARRAY['3', to_char(u.position, 'FM0000'), '2', coalesce(a.dataset, ''), a.contributor], 3, 'contributor', a.contributor, NULL,
           a.share, a.tokens
    FROM u JOIN a ON a.kind = 'dataset' AND a.adapter = u.name
)
SELECT depth, kind, name, weight, trim_scale(share), trim_scale(tokens) FROM tree ORDER BY place COLLATE "C"
$$;
CREATE FUNCTION lora_explain_attribution(inference_id bigint, OUT depth int, OUT kind text, OUT name text, OUT weight float8,
    OUT share numeric, OUT tokens numeric)
RETURNS SETOF record LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT * FROM openlora.attribution_tree($1)
$$;
COMMENT ON FUNCTION lora_explain_attribution(bigint) IS
    'the whole tree of one answer, each node before what is below it; shares are parts per million of all credits of their kind';

-- A node is {kind, name, weight, share, tokens, parts}.
CREATE FUNCTION lora_explain_attribution_json(inference_id bigint) RETURNS jsonb
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    n      record;
    nodes  jsonb[] := ARRAY[NULL, NULL, NULL, NULL]::jsonb[]; -- the open node of each depth
    open   int := -1;
BEGIN
    FOR n IN SELECT t.* FROM openlora.attribution_tree($1) t LOOP
        WHILE open >= n.depth LOOP
            nodes[open] := nodes[open] || jsonb_build_object('parts', coalesce(nodes[open] -> 'parts', '[]') || nodes[open + 1]);
            open := open - 1;
        END LOOP;
        open := n.depth;
        nodes[open + 1] := jsonb_strip_nulls(jsonb_build_object('kind', n.kind, 'name', n.name, 'weight', n.weight, 'share', n.share, 'tokens', n.tokens));
    END LOOP;
    WHILE open > 0 LOOP
        nodes[open] := nodes[open] || jsonb_build_object('parts', coalesce(nodes[open] -> 'parts', '[]') || nodes[open + 1]);
        open := open - 1;
    END LOOP;
    RETURN nodes[1];
END $$;
COMMENT ON FUNCTION lora_explain_attribution_json(bigint) IS 'the same as one value: nodes with their parts';
REVOKE ALL ON FUNCTION openlora.attribution_tree(bigint) FROM PUBLIC;
