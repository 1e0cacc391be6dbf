-- Rights on adapters, and quotas. Who may use but not read gets no byte, by any path.
CREATE ROLE lora_owner;
CREATE ROLE lora_user;
CREATE ROLE lora_other;
CREATE ROLE lora_group;
SELECT lora_grant_usage('lora_owner', manage => true);
SELECT lora_grant_usage('lora_user');
SELECT lora_grant_usage('lora_other', manage => true);
\set VERBOSITY sqlstate
\getenv demo OPENLORA_DEMO
SELECT lora_adapter_import('secret', pg_read_binary_file(:'demo' || '/adapters/grimm/adapter_model.safetensors'),
  pg_read_file(:'demo' || '/adapters/grimm/adapter_config.json')::jsonb) IS NOT NULL AS imported;
UPDATE openlora.adapters SET owner = 'lora_owner' WHERE name = 'secret';
-- ---------------------------------------------------------------- without a right
SET ROLE lora_user;
SELECT count(*) FROM openlora.adapters WHERE name = 'secret';
SELECT lora_generate('{secret}', 'Once', max_tokens => 1);
SELECT lora_adapter_export('secret');
-- nobody gives what is not theirs
SET ROLE lora_other;
SELECT lora_grant('secret', 'lora_other', 'read');
INSERT INTO openlora.adapter_grants (adapter, grantee, "right") SELECT 1, 'lora_other'::regrole, 'manage';
-- ---------------------------------------------------------------- use
SET ROLE lora_owner;
SELECT lora_grant('secret', 'lora_user', weight_cap => 0.5);
SET ROLE lora_user;
SELECT length(lora_generate('{secret}', 'Once', weights => '{0.5}', max_tokens => 2)) > 0 AS answered;
SELECT lora_generate('{secret}', 'Once', weights => '{-0.51}', max_tokens => 2);
SELECT lora_generate('{secret}', 'Once', weights => '{-0.51}', max_tokens => 2, on_error => 'null') IS NULL AS refused;
SELECT name FROM openlora.adapters WHERE name = 'secret';
-- the attacker's list
SELECT length(weights) FROM openlora.adapters;
SELECT * FROM openlora.adapters;
SELECT a FROM openlora.adapters a;
SELECT row_to_json(a) FROM openlora.adapters a;
SELECT xmin FROM openlora.adapters WHERE weights IS NOT NULL;
SELECT 1 FROM openlora.adapters ORDER BY weights;
COPY openlora.adapters TO STDOUT;
COPY (SELECT weights FROM openlora.adapters) TO STDOUT;
COPY openlora.adapters (weights) TO STDOUT;
SELECT lora_adapter_export('secret');
UPDATE openlora.adapters SET description = 'x' WHERE name = 'secret' RETURNING weights;
DELETE FROM openlora.adapters RETURNING weights;
INSERT INTO openlora.adapters (name, weights, config) SELECT 'copy', weights, config FROM openlora.adapters;
CREATE VIEW pg_temp.v AS SELECT weights FROM openlora.adapters;
SELECT count(*) FROM pg_temp.v;
CREATE FUNCTION pg_temp.peek(bytea) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS $$ BEGIN RAISE NOTICE 'leak %', length($1); RETURN true; END $$;
SELECT 1 FROM openlora.adapters WHERE pg_temp.peek(weights);
SELECT count(*) FROM pg_stats WHERE schemaname = 'openlora' AND tablename = 'adapters' AND attname = 'weights';
DO $$ DECLARE t text; BEGIN
  SELECT 'pg_toast.' || relname INTO t FROM pg_class WHERE oid = (SELECT reltoastrelid FROM pg_class WHERE oid = 'openlora.adapters'::regclass);
  EXECUTE 'SELECT count(*) FROM ' || t; END $$;
SELECT openlora.forget_quota('lora_user', 1);
SELECT lora_set_quota('lora_user');
UPDATE openlora.adapter_grants SET weight_cap = NULL;
DELETE FROM openlora.adapter_grants;
DELETE FROM openlora.role_quotas;
SELECT granted_by, weight_cap FROM openlora.adapter_grants;
-- a role with `manage` for adapters of its own is a stranger to this one
SET ROLE lora_other;
SELECT count(*) FROM openlora.adapters WHERE name = 'secret';
SELECT count(*) FROM openlora.adapter_grants;
-- nor does it choose an id: whoever had that of something gone would inherit from it
INSERT INTO openlora.contributors (id, name) OVERRIDING SYSTEM VALUE VALUES (1000000, 'heir');
INSERT INTO openlora.adapters (id, name, weights, config) OVERRIDING SYSTEM VALUE VALUES (1000000, 'heir', '', NULL);
INSERT INTO openlora.datasets (id, name) OVERRIDING SYSTEM VALUE VALUES (1000000, 'heir');
INSERT INTO openlora.dataset_documents (id, dataset, name, text) OVERRIDING SYSTEM VALUE VALUES (1000000, 1, 'heir', 'x');
\copy openlora.contributors (id, name) from /dev/null
-- ---------------------------------------------------------------- read
SET ROLE lora_owner;
SELECT lora_grant('secret', 'lora_group', 'read', expires_at => now() + interval '1 hour');
RESET ROLE;
GRANT lora_group TO lora_user;
SET ROLE lora_user;
SELECT length(weights) > 1000 AS has_bytes, config ->> 'r' AS r FROM lora_adapter_export('secret');
RESET ROLE;
UPDATE openlora.adapter_grants SET expires_at = now() - interval '1 second' WHERE "right" = 'read';
SET ROLE lora_user;
SELECT lora_adapter_export('secret');
SET ROLE lora_owner;
SELECT lora_revoke('secret', 'lora_group'), lora_revoke('secret', 'lora_group');
-- to read is not to use
SELECT lora_revoke('secret', 'lora_user');
SELECT lora_grant('secret', 'lora_user', 'read');
SET ROLE lora_user;
SELECT lora_generate('{secret}', 'Once', max_tokens => 1);
-- ---------------------------------------------------------------- manage
SET ROLE lora_owner;
SELECT lora_grant('secret', 'lora_other', 'manage');
SELECT lora_grant('secret', 'public', 'manage');
SELECT lora_grant('secret', 'lora_user', 'eat');
SELECT lora_grant('secret', 'lora_user', 'use', weight_cap => 'NaN');
SET ROLE lora_other;
SELECT length(lora_generate('{secret}', 'Once', max_tokens => 2)) > 0 AS answered;
UPDATE openlora.adapters SET description = 'managed' WHERE name = 'secret' RETURNING description;
UPDATE openlora.adapters SET owner = 'lora_other' WHERE name = 'secret';
SELECT lora_grant('secret', 'public');
SET ROLE lora_user;
SELECT length(lora_generate('{secret}', 'Once', max_tokens => 2)) > 0 AS answered;
-- ---------------------------------------------------------------- whose right it is
-- in a SECURITY DEFINER function its owner's, in a view the reader's
SET ROLE lora_owner;
SELECT lora_revoke('secret', 'public');
RESET ROLE;
CREATE FUNCTION pg_temp.as_owner() RETURNS boolean LANGUAGE sql SECURITY DEFINER
  AS $$ SELECT length(public.lora_generate('{secret}', 'Once', max_tokens => 2)) > 0 $$;
ALTER FUNCTION pg_temp.as_owner() OWNER TO lora_owner;
CREATE VIEW public.lora_test_view AS SELECT length(lora_generate('{secret}', 'Once', max_tokens => 2)) > 0 AS answered;
ALTER VIEW public.lora_test_view OWNER TO lora_owner;
GRANT SELECT ON public.lora_test_view TO lora_user;
SET ROLE lora_user;
SELECT pg_temp.as_owner();
SELECT * FROM public.lora_test_view;
RESET ROLE;
DROP VIEW public.lora_test_view;
-- ---------------------------------------------------------------- quotas
SELECT lora_set_quota('lora_user', tokens => 40, period => '1000 days');
SET ROLE lora_user;
SELECT length(lora_generate(NULL, 'Once', max_tokens => 20, ignore_eos => true)) > 0 AS answered;
SELECT tokens BETWEEN 21 AND 30 AS counted, reserved, concurrent, token_quota FROM openlora.quota_usage;
SELECT lora_generate(NULL, 'Once', max_tokens => 20);
-- what is rolled back is counted
BEGIN;
SELECT length(lora_generate(NULL, 'Once', max_tokens => 10, ignore_eos => true)) > 0 AS answered;
ROLLBACK;
SELECT tokens > 30 AS counted, reserved, concurrent FROM openlora.quota_usage;
SELECT lora_generate(NULL, 'Once', max_tokens => 9);
RESET ROLE;
SELECT lora_set_quota('lora_user', concurrent => 0);
SET ROLE lora_user;
SELECT lora_generate(NULL, 'Once', max_tokens => 1);
RESET ROLE;
SELECT lora_set_quota('lora_user');
SELECT lora_set_quota('public', tokens => 0);
SET ROLE lora_user;
SELECT lora_generate(NULL, 'Once', max_tokens => 1);
RESET ROLE;
SELECT lora_set_quota('public');
SELECT lora_set_quota('lora_user', period => '1 month', tokens => 5);
-- of a grant
SET ROLE lora_owner;
SELECT lora_grant('secret', 'lora_user', token_quota => 30);
SET ROLE lora_user;
SELECT length(lora_generate('{secret}', 'Once', max_tokens => 20, ignore_eos => true)) > 0 AS answered;
SELECT lora_generate('{secret}', 'Once', max_tokens => 20);
SELECT adapter, tokens > 20 AS counted, token_quota FROM openlora.quota_usage WHERE adapter IS NOT NULL;
-- given anew it begins anew
SET ROLE lora_owner;
SELECT lora_grant('secret', 'lora_user', token_quota => 30);
SET ROLE lora_user;
SELECT length(lora_generate('{secret}', 'Once', max_tokens => 20, ignore_eos => true)) > 0 AS answered;
RESET ROLE;
SELECT lora_adapter_drop('secret');
SELECT count(*) FROM openlora.adapter_grants;
DROP OWNED BY lora_owner, lora_user, lora_other, lora_group;
DROP ROLE lora_owner, lora_user, lora_other, lora_group;
