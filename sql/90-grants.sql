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

CREATE POLICY all_read ON openlora.base_models FOR SELECT USING (true);
CREATE POLICY visible ON openlora.adapters FOR SELECT USING (shared OR pg_has_role(owner, 'USAGE'));
CREATE POLICY add_own ON openlora.adapters FOR INSERT WITH CHECK (pg_has_role(owner, 'USAGE'));
CREATE POLICY change_own ON openlora.adapters FOR UPDATE USING (pg_has_role(owner, 'USAGE'));
CREATE POLICY drop_own ON openlora.adapters FOR DELETE USING (pg_has_role(owner, 'USAGE'));

CREATE POLICY all_read ON openlora.contributors FOR SELECT USING (true);
CREATE POLICY add ON openlora.contributors FOR INSERT WITH CHECK (true);
CREATE POLICY all_read ON openlora.datasets FOR SELECT USING (true);
CREATE POLICY own ON openlora.datasets USING (pg_has_role(owner, 'USAGE'));
-- Provenance is visible with what it belongs to, and its owner's to write.
CREATE POLICY with_adapter ON openlora.adapter_datasets FOR SELECT
    USING (EXISTS (SELECT FROM openlora.adapters a WHERE a.id = adapter));
CREATE POLICY own ON openlora.adapter_datasets
    USING (EXISTS (SELECT FROM openlora.adapters a WHERE a.id = adapter AND pg_has_role(a.owner, 'USAGE')));
CREATE POLICY with_dataset ON openlora.dataset_contributors FOR SELECT
    USING (EXISTS (SELECT FROM openlora.datasets d WHERE d.id = dataset));
CREATE POLICY own ON openlora.dataset_contributors
    USING (EXISTS (SELECT FROM openlora.datasets d WHERE d.id = dataset AND pg_has_role(d.owner, 'USAGE')));
CREATE POLICY with_adapter ON openlora.adapter_contributors FOR SELECT
    USING (EXISTS (SELECT FROM openlora.adapters a WHERE a.id = adapter));
CREATE POLICY own ON openlora.adapter_contributors
    USING (EXISTS (SELECT FROM openlora.adapters a WHERE a.id = adapter AND pg_has_role(a.owner, 'USAGE')));

-- What happened is read by the role that asked, and written by nobody but openlora.
CREATE POLICY own ON openlora.inferences FOR SELECT USING (pg_has_role(role, 'USAGE'));
CREATE POLICY own ON openlora.inference_adapters FOR SELECT
    USING (EXISTS (SELECT FROM openlora.inferences i WHERE i.id = inference));
CREATE POLICY own ON openlora.attributions FOR SELECT
    USING (EXISTS (SELECT FROM openlora.inferences i WHERE i.id = inference));

REVOKE ALL ON FUNCTION openlora.adapter_trigger(), openlora.check_shares() FROM PUBLIC;
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

-- The grants that a role needs to use openlora; with `manage`, to own adapters too.
CREATE FUNCTION lora_grant_usage(grantee regrole, manage boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f regprocedure;
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA openlora TO %s', grantee);
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA openlora TO %s', grantee);
    IF manage THEN
        EXECUTE format('GRANT INSERT, UPDATE, DELETE ON openlora.adapters, openlora.datasets,'
            ' openlora.adapter_datasets, openlora.dataset_contributors, openlora.adapter_contributors TO %s', grantee);
        EXECUTE format('GRANT INSERT ON openlora.contributors TO %s', grantee);
    END IF;
    FOR f IN SELECT p.oid FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass
             JOIN pg_extension e ON e.oid = d.refobjid AND d.deptype = 'e'
             WHERE e.extname = 'openlora' AND p.proname LIKE 'lora\_%' AND p.proname <> 'lora_grant_usage'
               AND (manage OR p.proname NOT IN ('lora_adapter_import', 'lora_adapter_drop'))
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', f, grantee);
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION lora_grant_usage(regrole, boolean) FROM PUBLIC;
COMMENT ON FUNCTION lora_grant_usage(regrole, boolean) IS 'grants what a role needs to call openlora; manage: to own adapters, too';

-- ---------------------------------------------------------------- dumps
DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['base_models', 'adapters', 'contributors', 'datasets', 'adapter_datasets',
        'dataset_contributors', 'adapter_contributors', 'inferences', 'inference_adapters',
        'attributions', 'adapters_id_seq', 'contributors_id_seq', 'datasets_id_seq', 'inferences_id_seq']
    LOOP
        PERFORM pg_catalog.pg_extension_config_dump(('openlora.' || t)::regclass, '');
    END LOOP;
END $$;
