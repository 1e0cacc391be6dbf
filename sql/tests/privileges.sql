-- Nothing is given away; lora_grant_usage gives what a user needs, and no more.
CREATE ROLE lora_stranger;
CREATE ROLE lora_user;
CREATE ROLE lora_maker;
SELECT lora_grant_usage('lora_user');
SELECT lora_grant_usage('lora_maker', manage => true);
\set VERBOSITY terse
SELECT lora_grant_usage(NULL);
SELECT lora_grant_usage('-');
SELECT lora_revoke_usage('1');
SET ROLE lora_stranger;
SELECT string_agg(p.oid::regprocedure::text, ', ') AS allowed FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass
JOIN pg_extension e ON e.oid = d.refobjid AND d.deptype = 'e' WHERE e.extname = 'openlora' AND has_function_privilege(p.oid, 'EXECUTE');
SELECT lora_generate(NULL, 'x');
SELECT count(*) FROM openlora.adapters;
SET ROLE lora_user;
SELECT length(lora_generate(NULL, 'Once', max_tokens => 2)) > 0 AS answered;
-- Not shared: as if it were not there.
SELECT count(*) FROM openlora.adapters;
SELECT lora_generate('{other}', 'x', max_tokens => 1);
-- Own answers only, and nobody forges them.
SELECT count(*), bool_and(role = 'lora_user') FROM openlora.inferences;
SELECT count(*) > 0 AS credited FROM openlora.attributions;
INSERT INTO openlora.attributions VALUES (1, 'adapter', 'x', 'me', 1000000);
DELETE FROM openlora.inferences;
SELECT lora_adapter_drop('other');
RESET ROLE;
UPDATE openlora.adapters SET shared = true WHERE name = 'other';
SELECT lora_grant('other', 'lora_maker', 'read');
SET ROLE lora_user;
SELECT length(lora_generate('{other}', 'Once', max_tokens => 2)) > 0 AS answered;
SET ROLE lora_maker;
-- A maker owns what it makes, and cannot make it somebody else's.
INSERT INTO openlora.adapters (name, weights, config, owner) SELECT 'stolen', weights, config, 'postgres' FROM openlora.adapters WHERE name = 'other';
INSERT INTO openlora.adapters (name, weights, config, owner) SELECT 'stolen', weights, config, 'postgres' FROM lora_adapter_export('other');
INSERT INTO openlora.adapters (name, weights, config) SELECT 'mine', weights, config FROM lora_adapter_export('other');
SELECT name, owner FROM openlora.adapters ORDER BY name;
UPDATE openlora.adapters SET description = 'x' WHERE name = 'other';
SELECT description FROM openlora.adapters WHERE name = 'other';
RESET ROLE;
SELECT lora_revoke('other', 'lora_maker');
DELETE FROM openlora.adapters WHERE name = 'mine';
DROP OWNED BY lora_user, lora_maker;
DROP ROLE lora_stranger, lora_user, lora_maker;
