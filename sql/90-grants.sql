-- ---------------------------------------------------------------- who may do what
-- Nothing is given away: see lora_grant_usage below.
ALTER TABLE openlora.base_models ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.adapters ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.contributors ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.datasets ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.adapter_datasets ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.dataset_contributors ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.adapter_contributors ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.inferences ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.inference_adapters ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.attributions ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.adapter_grants ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.role_quotas ENABLE ROW LEVEL SECURITY;
ALTER TABLE openlora.queue ENABLE ROW LEVEL SECURITY;

CREATE POLICY all_read ON openlora.base_models FOR SELECT USING (true);
CREATE POLICY visible ON openlora.adapters FOR SELECT
    USING (shared OR pg_catalog.pg_has_role(owner, 'USAGE') OR openlora.has_right(id, NULL));
CREATE POLICY add_own ON openlora.adapters FOR INSERT WITH CHECK (pg_catalog.pg_has_role(owner, 'USAGE'));
CREATE POLICY change_own ON openlora.adapters FOR UPDATE
    USING (pg_catalog.pg_has_role(owner, 'USAGE') OR openlora.has_right(id, 'manage'));
CREATE POLICY drop_own ON openlora.adapters FOR DELETE
    USING (pg_catalog.pg_has_role(owner, 'USAGE') OR openlora.has_right(id, 'manage'));

-- Grants are seen by those they are given to, and written by those who may manage.
CREATE POLICY given ON openlora.adapter_grants FOR SELECT
    USING (grantee::oid = 0::oid OR pg_catalog.pg_has_role(grantee, 'USAGE'));
CREATE POLICY manage ON openlora.adapter_grants
    USING (openlora.has_right(adapter, 'manage')
        OR EXISTS (SELECT FROM openlora.adapters a WHERE a.id = adapter AND pg_catalog.pg_has_role(a.owner, 'USAGE')))
    WITH CHECK (pg_catalog.pg_has_role(granted_by, 'USAGE') AND (openlora.has_right(adapter, 'manage')
        OR EXISTS (SELECT FROM openlora.adapters a WHERE a.id = adapter AND pg_catalog.pg_has_role(a.owner, 'USAGE'))));
CREATE POLICY own ON openlora.role_quotas FOR SELECT
    USING (role::oid = 0::oid OR pg_catalog.pg_has_role(role, 'USAGE'));

CREATE POLICY all_read ON openlora.contributors FOR SELECT USING (true);
-- naming a role redirects its credit, so it must be one's own
CREATE POLICY add ON openlora.contributors FOR INSERT
    WITH CHECK (role IS NULL OR pg_catalog.pg_has_role(role, 'USAGE'));
CREATE POLICY all_read ON openlora.datasets FOR SELECT USING (true);
CREATE POLICY own ON openlora.datasets USING (pg_catalog.pg_has_role(owner, 'USAGE'));
-- Provenance is visible with what it belongs to, and its owner's to write.
CREATE POLICY with_adapter ON openlora.adapter_datasets FOR SELECT
    USING (EXISTS (SELECT FROM openlora.adapters a WHERE a.id = adapter));
CREATE POLICY own ON openlora.adapter_datasets
    USING (EXISTS (SELECT FROM openlora.adapters a WHERE a.id = adapter AND pg_catalog.pg_has_role(a.owner, 'USAGE')));
CREATE POLICY with_dataset ON openlora.dataset_contributors FOR SELECT
    USING (EXISTS (SELECT FROM openlora.datasets d WHERE d.id = dataset));
CREATE POLICY own ON openlora.dataset_contributors
    USING (EXISTS (SELECT FROM openlora.datasets d WHERE d.id = dataset AND pg_catalog.pg_has_role(d.owner, 'USAGE')));
CREATE POLICY with_adapter ON openlora.adapter_contributors FOR SELECT
    USING (EXISTS (SELECT FROM openlora.adapters a WHERE a.id = adapter));
CREATE POLICY own ON openlora.adapter_contributors
    USING (EXISTS (SELECT FROM openlora.adapters a WHERE a.id = adapter AND pg_catalog.pg_has_role(a.owner, 'USAGE')));

-- What happened is read by the role that asked and by pg_read_all_data, and written by
-- nobody but openlora, with the rights of the tables' owner.
CREATE POLICY own ON openlora.inferences FOR SELECT USING (pg_catalog.pg_has_role(role_id, 'USAGE')
    OR (SELECT pg_catalog.pg_has_role('pg_read_all_data', 'USAGE')));
CREATE POLICY own ON openlora.queue FOR SELECT USING (pg_catalog.pg_has_role(role, 'USAGE')
    OR (SELECT pg_catalog.pg_has_role('pg_read_all_data', 'USAGE')));
CREATE POLICY own ON openlora.inference_adapters FOR SELECT
    USING (EXISTS (SELECT FROM openlora.inferences i WHERE i.id = inference));
CREATE POLICY own ON openlora.attributions FOR SELECT
    USING (EXISTS (SELECT FROM openlora.inferences i WHERE i.id = inference));

REVOKE ALL ON FUNCTION openlora.adapter_trigger(), openlora.check_shares(), openlora.read_shares(jsonb),
    openlora.live_requests(), openlora.live_adapters(), openlora.engine_counters(), openlora.load_progress(), openlora.has_right(bigint, text),
    openlora.forget_quota(regrole, bigint), openlora.quota_counters(), openlora.may_submit(oid) FROM PUBLIC;
DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN SELECT p.oid FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass
             JOIN pg_extension e ON e.oid = d.refobjid AND d.deptype = 'e'
             WHERE e.extname = 'openlora' AND p.proname LIKE 'lora\_%'
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f);
    END LOOP;
END $$;

-- The grants that a role needs to call openlora, to see what it may use and what was
-- credited for its calls; with `manage`, to own adapters and datasets, too. Nobody is given
-- SELECT on the weights: lora_adapter_export gives them to who may read them.
CREATE FUNCTION lora_grant_usage(grantee regrole, manage boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    columns text;
    f regprocedure;
BEGIN
    IF grantee IS NULL OR NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = grantee) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('role %s does not exist', coalesce(grantee::text, 'NULL'));
    END IF;
    SELECT string_agg(quote_ident(attname), ', ') INTO columns FROM pg_attribute
    WHERE attrelid = 'openlora.adapters'::regclass AND attnum > 0 AND NOT attisdropped AND attname <> 'weights';
    EXECUTE format('GRANT USAGE ON SCHEMA openlora TO %s', grantee);
    EXECUTE format('GRANT SELECT (%s) ON openlora.adapters TO %s', columns, grantee);
    EXECUTE format('GRANT SELECT ON openlora.base_models, openlora.contributors, openlora.datasets, openlora.adapter_datasets,'
        ' openlora.dataset_contributors, openlora.adapter_contributors, openlora.inferences, openlora.inference_adapters,'
        ' openlora.attributions, openlora.contributor_usage, openlora.adapter_usage, openlora.dataset_usage,'
        ' openlora.role_usage, openlora.receipts, openlora.receipt_status, openlora.announcements, openlora.unmetered, openlora.inference_texts, openlora.checkpoints, openlora.ledger_keys, openlora.adapter_grants, openlora.role_quotas, openlora.quota_usage,'
        ' openlora.stat_activity, openlora.stat_adapters, openlora.stat_engine, openlora.stat_progress_load, openlora.stat_progress_trace, openlora.stat_progress_merge, openlora.queue TO %s', grantee);
    EXECUTE format('GRANT EXECUTE ON FUNCTION openlora.has_right(bigint, text), openlora.receipts_known_since(), openlora.quota_counters(), openlora.live_requests(), openlora.attribution_tree(bigint),'
        ' openlora.replay_of(bigint), openlora.has_digest(openlora.inferences, jsonb),'
        ' openlora.live_adapters(), openlora.engine_counters(), openlora.load_progress(), openlora.trace_jobs(), openlora.merge_jobs() TO %s', grantee);
    EXECUTE format('GRANT SELECT ON openlora.reward_units, openlora.reward_policies, openlora.settlements, openlora.payouts TO %s', grantee);
    IF current_setting('server_version_num')::int >= 150000 THEN
        EXECUTE format('GRANT SELECT ON openlora.adapter_credits TO %s', grantee);
    END IF;
    IF manage THEN
        EXECUTE format('GRANT INSERT, UPDATE, DELETE ON openlora.adapter_datasets, openlora.dataset_contributors,'
            ' openlora.adapter_contributors, openlora.adapter_grants TO %s', grantee);
        EXECUTE format('GRANT UPDATE, DELETE ON openlora.adapters, openlora.datasets, openlora.dataset_documents TO %s', grantee);
        EXECUTE format('GRANT SELECT ON openlora.dataset_documents TO %s', grantee);
        -- not the ids: history names adapters and contributors by them when they are gone, and
        -- whoever could choose one would inherit what is owed to it
        EXECUTE format('GRANT INSERT (name, weights, config, owner, shared, description) ON openlora.adapters TO %s', grantee);
        EXECUTE format('GRANT INSERT (name, uri, licence, digest, owner, traceable) ON openlora.datasets TO %s', grantee);
        EXECUTE format('GRANT INSERT (dataset, name, contributor, text) ON openlora.dataset_documents TO %s', grantee);
        EXECUTE format('GRANT INSERT (name, role, note, account) ON openlora.contributors TO %s', grantee);
        EXECUTE format('GRANT EXECUTE ON FUNCTION openlora.read_shares(jsonb), openlora.forget_quota(regrole, bigint), openlora.contributor_of(regrole),'
            ' openlora.inherit_provenance(bigint, bigint[], float8[]), openlora.whole_shares(bigint[], numeric[]),'
            ' openlora.run_merge(text[], bytea[], jsonb[], float8[], text, float8, text, int, bigint, float8) TO %s', grantee);
    END IF;
    FOR f IN SELECT p.oid FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass
             JOIN pg_extension e ON e.oid = d.refobjid AND d.deptype = 'e'
             WHERE e.extname = 'openlora' AND p.proname LIKE 'lora\_%'
               AND p.proname NOT IN ('lora_grant_usage', 'lora_revoke_usage', 'lora_set_quota', 'lora_stat_reset', 'lora_settle', 'lora_correct',
                   'lora_claims', 'lora_claims_json',
                   'lora_ledger_create_key', 'lora_ledger_export', 'lora_ledger_verify')
               AND (manage OR p.proname = 'lora_adapter_export'
                    OR NOT (p.proname LIKE 'lora\_adapter\_%' OR p.proname IN ('lora_grant', 'lora_revoke', 'lora_trace_index')))
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', f, grantee);
    END LOOP;
END $$;
COMMENT ON FUNCTION lora_grant_usage(regrole, boolean) IS 'grants what a role needs to call openlora; manage: to own adapters, too';

CREATE FUNCTION lora_revoke_usage(grantee regrole) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    columns text;
    f regprocedure;
BEGIN
    IF grantee IS NULL OR NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = grantee) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('role %s does not exist', coalesce(grantee::text, 'NULL'));
    END IF;
    SELECT string_agg(quote_ident(attname), ', ') INTO columns FROM pg_attribute
    WHERE attrelid = 'openlora.adapters'::regclass AND attnum > 0 AND NOT attisdropped;
    EXECUTE format('REVOKE SELECT (%s) ON openlora.adapters FROM %s', columns, grantee);
    EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA openlora FROM %s', grantee);
    EXECUTE format('REVOKE ALL ON SCHEMA openlora FROM %s', grantee);
    FOR f IN SELECT p.oid FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass
             JOIN pg_extension e ON e.oid = d.refobjid AND d.deptype = 'e' WHERE e.extname = 'openlora'
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM %s', f, grantee);
    END LOOP;
END $$;
COMMENT ON FUNCTION lora_revoke_usage(regrole) IS 'takes back what lora_grant_usage gave; adapters stay with their owner';
REVOKE ALL ON FUNCTION lora_grant_usage(regrole, boolean), lora_revoke_usage(regrole) FROM PUBLIC;

-- ---------------------------------------------------------------- dumps
DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['base_models', 'adapters', 'contributors', 'datasets', 'adapter_datasets',
        'dataset_contributors', 'adapter_contributors', 'adapter_grants', 'role_quotas', 'queue', 'queue_id_seq', 'inferences', 'inference_adapters',
        'attributions', 'adapters_id_seq', 'contributors_id_seq', 'datasets_id_seq', 'inferences_id_seq']
    LOOP
        -- contributors below zero come with the extension
        PERFORM pg_catalog.pg_extension_config_dump(('openlora.' || t)::regclass,
                                                    CASE t WHEN 'contributors' THEN 'WHERE id > 0' ELSE '' END);
    END LOOP;
END $$;
