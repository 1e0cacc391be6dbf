-- ---------------------------------------------------------------- views
-- Row-level security of the tables below applies to whoever asks.
CREATE VIEW openlora.contributor_usage AS
SELECT a.contributor, a.kind, count(DISTINCT a.inference) AS inferences,
       sum((i.prompt_tokens + i.completion_tokens)::numeric * a.share / 1000000) AS tokens
FROM openlora.attributions a JOIN openlora.inferences i ON i.id = a.inference
GROUP BY a.contributor, a.kind;
COMMENT ON VIEW openlora.contributor_usage IS 'tokens credited to each contributor, by kind of credit';

CREATE VIEW openlora.adapter_usage AS
SELECT u.name, count(*) AS inferences, max(i.at) AS last_used,
       sum((i.prompt_tokens + i.completion_tokens)::numeric * u.share / 1000000) AS tokens
FROM openlora.inference_adapters u JOIN openlora.inferences i ON i.id = u.inference
GROUP BY u.name;

DO $$
BEGIN
    IF current_setting('server_version_num')::int >= 150000 THEN
        ALTER VIEW openlora.contributor_usage SET (security_invoker = true);
        ALTER VIEW openlora.adapter_usage SET (security_invoker = true);
    ELSE -- without invoker rights a view would show all rows of its owner
        DROP VIEW openlora.contributor_usage;
        DROP VIEW openlora.adapter_usage;
    END IF;
END $$;
