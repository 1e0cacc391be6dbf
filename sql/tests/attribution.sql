-- Shares are exact and frozen. Uses the adapters of the test before.
INSERT INTO openlora.contributors (name) VALUES ('ann'), ('bob'), ('cid');
INSERT INTO openlora.datasets (name) VALUES ('texts');
INSERT INTO openlora.dataset_contributors SELECT d.id, c.id, CASE c.name WHEN 'ann' THEN 333333 ELSE 333334 END
  FROM openlora.datasets d, openlora.contributors c WHERE c.name IN ('ann', 'bob');
INSERT INTO openlora.adapter_datasets SELECT a.id, d.id, 900000 FROM openlora.adapters a, openlora.datasets d WHERE a.name = 'nought';
INSERT INTO openlora.adapter_contributors SELECT a.id, c.id, 250000 FROM openlora.adapters a, openlora.contributors c
  WHERE a.name = 'nought' AND c.name = 'cid';
SELECT inference_id AS id FROM lora_complete('{nought,other}', 'Once upon', max_tokens => 4) \gset
SELECT kind, trim_scale(sum(share)) AS sum, trim_scale(sum(tokens)) = 2 * 4 - 1 AS all_tokens FROM openlora.attributions WHERE inference = :id GROUP BY kind ORDER BY kind;
SELECT sum(share) FROM openlora.inference_adapters WHERE inference = :id;
-- One adapter: every share is known, with all decimals. What is left is the dataset's owner's,
-- or the adapter's.
SELECT inference_id AS one FROM lora_complete('{nought}', 'Once upon', max_tokens => 4) \gset
SELECT kind, dataset, contributor, contributor_id IS NULL AS is_role, share FROM openlora.attributions
WHERE inference = :one AND kind IN ('adapter', 'dataset') ORDER BY kind, dataset, contributor;
-- History stays as it was.
DELETE FROM openlora.adapter_datasets;
DELETE FROM openlora.adapters WHERE name = 'nought';
SELECT kind, dataset, contributor, contributor_id IS NULL AS is_role, share FROM openlora.attributions
WHERE inference = :one AND kind IN ('adapter', 'dataset') ORDER BY kind, dataset, contributor;
SELECT name, share FROM openlora.inference_adapters WHERE inference = :one;
-- Shares cannot exceed the whole; the check waits for the end of the transaction.
BEGIN;
UPDATE openlora.dataset_contributors SET share = 700000;
UPDATE openlora.dataset_contributors SET share = 300000;
COMMIT;
UPDATE openlora.dataset_contributors SET share = 700000;
-- A rollback leaves no row.
SELECT count(*) AS before FROM openlora.inferences \gset
BEGIN;
SELECT length(lora_generate(NULL, 'Once', max_tokens => 2)) > 0 AS answered;
ROLLBACK;
SELECT count(*) = :before AS same FROM openlora.inferences;
-- What is written describes the call.
SELECT inference_id AS last FROM lora_complete(NULL, 'Once upon', max_tokens => 2, temperature => 0.5, seed => 9) \gset
SELECT function, prompt_tokens, completion_tokens, finish_reason, temperature, seed, role = current_user AS mine
FROM openlora.inferences WHERE id = :last;
-- Triggers that somebody puts on our tables see the rows.
CREATE TABLE seen (what text);
CREATE FUNCTION see_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.seen VALUES (TG_TABLE_NAME); RETURN NULL; END $$;
CREATE TRIGGER see_row AFTER INSERT ON openlora.inferences FOR EACH ROW EXECUTE FUNCTION see_row();
CREATE TRIGGER see_row AFTER INSERT ON openlora.attributions FOR EACH STATEMENT EXECUTE FUNCTION see_row();
SELECT lora_generate(NULL, 'Once', max_tokens => 1) IS NOT NULL AS answered;
DROP TRIGGER see_row ON openlora.inferences;
DROP TRIGGER see_row ON openlora.attributions;
SELECT lora_generate(NULL, 'Once', max_tokens => 1) IS NOT NULL AS answered;
SELECT what, count(*) FROM seen GROUP BY what ORDER BY what;
DROP FUNCTION see_row();
DROP TABLE seen;
-- A role that a contributor stands for, as the owner of everything.
BEGIN;
INSERT INTO openlora.contributors (name, role) VALUES ('The House', current_user::regrole);
SELECT inference_id AS last FROM lora_complete(NULL, 'Once', max_tokens => 1) \gset
SELECT kind, contributor, contributor_id IS NOT NULL AS known FROM openlora.attributions WHERE inference = :last ORDER BY kind;
ROLLBACK;
