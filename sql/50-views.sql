-- ---------------------------------------------------------------- views
-- Row-level security of the tables below applies to whoever asks. From PostgreSQL 15 on
-- the views run with the rights of whoever reads them; before, they filter themselves.
DO $do$
DECLARE
    invoker boolean := current_setting('server_version_num')::int >= 150000;
    options text := CASE WHEN invoker THEN 'security_invoker = true' ELSE 'security_barrier = true' END;
    mine    text := CASE WHEN invoker THEN 'true' ELSE
        $$pg_catalog.pg_has_role(i.role_id, 'USAGE') OR (SELECT pg_catalog.pg_has_role('pg_read_all_data', 'USAGE'))$$ END;
BEGIN
    EXECUTE format($$
CREATE VIEW openlora.contributor_usage WITH (%s) AS
SELECT a.contributor, a.contributor_id, a.kind, date_trunc('day', i.at) AS day, count(DISTINCT a.inference) AS inferences,
       pg_catalog.trim_scale(sum(a.tokens)) AS tokens, max(i.at) AS last_credited
FROM openlora.attributions a JOIN openlora.inferences i ON i.id = a.inference
WHERE %s
GROUP BY a.contributor, a.contributor_id, a.kind, date_trunc('day', i.at)
$$, options, mine);
    EXECUTE format($$
CREATE VIEW openlora.adapter_usage WITH (%s) AS
SELECT u.name, u.adapter, date_trunc('day', i.at) AS day, count(*) AS inferences, count(DISTINCT u.digest) AS versions, max(i.at) AS last_used,
       pg_catalog.trim_scale(sum((i.prompt_tokens + i.completion_tokens)::numeric * u.share::numeric * 0.000001)) AS tokens
FROM openlora.inference_adapters u JOIN openlora.inferences i ON i.id = u.inference
WHERE %s
GROUP BY u.name, u.adapter, date_trunc('day', i.at)
$$, options, mine);
    EXECUTE format($$
CREATE VIEW openlora.dataset_usage WITH (%s) AS
SELECT a.dataset, date_trunc('day', i.at) AS day, count(DISTINCT a.inference) AS inferences, pg_catalog.trim_scale(sum(a.tokens)) AS tokens,
       max(i.at) AS last_used
FROM openlora.attributions a JOIN openlora.inferences i ON i.id = a.inference
WHERE a.dataset IS NOT NULL AND (%s)
GROUP BY a.dataset, date_trunc('day', i.at)
$$, options, mine);
    EXECUTE format($$
CREATE VIEW openlora.role_usage WITH (%s) AS
SELECT i.role, date_trunc('day', i.at) AS day, count(*) AS inferences, sum(i.prompt_tokens::bigint) AS prompt_tokens,
       sum(i.completion_tokens::bigint) AS completion_tokens
FROM openlora.inferences i
WHERE %s
GROUP BY i.role, date_trunc('day', i.at)
$$, options, mine);
-- Who would be credited for one use of an adapter, as provenance stands now. The shares of
-- each kind sum to a million for every adapter: what adapter_contributors leaves is the
-- adapter owner's, what adapter_datasets leaves too, and what the contributors of a dataset
-- leave is the dataset owner's. Products keep all decimals, so nothing is rounded. (Before
-- PostgreSQL 15 it shows all adapters, and is the owner's to read.)
    EXECUTE format($$
CREATE VIEW openlora.adapter_credits %s AS
SELECT a.id AS adapter, s.kind, s.dataset,
       coalesce(c.name, pg_catalog.pg_get_userbyid(s.owner)::text COLLATE "default") AS contributor, c.id AS contributor_id,
       pg_catalog.trim_scale(s.share) AS share
FROM openlora.adapters a,
LATERAL (
    SELECT 'adapter'::text AS kind, NULL::text AS dataset, p.contributor, NULL::oid AS owner, p.share::numeric
    FROM openlora.adapter_contributors p WHERE p.adapter = a.id
    UNION ALL
    SELECT 'adapter', NULL, NULL, a.owner,
           1000000.0 - (SELECT coalesce(sum(p.share), 0)::numeric FROM openlora.adapter_contributors p WHERE p.adapter = a.id)
    UNION ALL
    SELECT 'dataset', d.name, q.contributor, NULL, p.share::numeric * q.share::numeric * 0.000001
    FROM openlora.adapter_datasets p JOIN openlora.datasets d ON d.id = p.dataset
    JOIN openlora.dataset_contributors q ON q.dataset = p.dataset WHERE p.adapter = a.id
    UNION ALL
    SELECT 'dataset', d.name, NULL, d.owner, p.share::numeric * 0.000001
           * (1000000.0 - (SELECT coalesce(sum(q.share), 0)::numeric FROM openlora.dataset_contributors q WHERE q.dataset = p.dataset))
    FROM openlora.adapter_datasets p JOIN openlora.datasets d ON d.id = p.dataset WHERE p.adapter = a.id
    UNION ALL
    SELECT 'dataset', NULL, NULL, a.owner,
           1000000.0 - (SELECT coalesce(sum(p.share), 0)::numeric FROM openlora.adapter_datasets p WHERE p.adapter = a.id)
) s
LEFT JOIN LATERAL (
    SELECT k.id, k.name FROM openlora.contributors k WHERE k.id = s.contributor
    UNION ALL
    SELECT k.id, k.name FROM openlora.contributors k WHERE k.role::oid = s.owner
) c ON true
WHERE s.share <> 0.0
$$, CASE WHEN invoker THEN 'WITH (security_invoker = true)' ELSE '' END);
END $do$;
COMMENT ON VIEW openlora.contributor_usage IS 'tokens credited to each contributor, by kind of credit and day';
COMMENT ON VIEW openlora.adapter_usage IS 'tokens answered with each adapter, by its measured share and by day';
COMMENT ON VIEW openlora.dataset_usage IS 'tokens credited to each dataset, by day';
COMMENT ON VIEW openlora.role_usage IS 'what each role asked for, by day';
COMMENT ON VIEW openlora.adapter_credits IS 'who would be credited for one use of each adapter, parts per million of each kind';
