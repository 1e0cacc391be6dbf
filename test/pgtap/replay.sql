-- One answer's tree, what is kept of it, and running it again.
\set ON_ERROR_STOP on
\pset format unaligned
\pset tuples_only on
\pset pager off
SET client_min_messages = warning;
\getenv demo OPENLORA_DEMO
SELECT count(lora_adapter_import('replay_' || name,
         pg_read_binary_file(:'demo' || '/adapters/' || name || '/adapter_model.safetensors'),
         pg_read_file(:'demo' || '/adapters/' || name || '/adapter_config.json')::jsonb)) AS imported
FROM unnest(ARRAY['shakespeare', 'grimm']) AS name \gset
INSERT INTO openlora.contributors (name) VALUES ('replay Jacob'), ('replay Wilhelm');
INSERT INTO openlora.datasets (name) VALUES ('replay tales');
INSERT INTO openlora.dataset_contributors SELECT d.id, c.id, 500000 FROM openlora.datasets d, openlora.contributors c
  WHERE d.name = 'replay tales' AND c.name LIKE 'replay %';
INSERT INTO openlora.adapter_datasets SELECT a.id, d.id, 1000000 FROM openlora.adapters a, openlora.datasets d
  WHERE a.name = 'replay_grimm' AND d.name = 'replay tales';
CREATE TEMP TABLE asked (what text, id bigint);
SET openlora.keep_text = full;
INSERT INTO asked SELECT 'full', inference_id FROM lora_complete('{replay_shakespeare,replay_grimm}', 'Once', weights => '{0.4,0.8}', max_tokens => 25,
    temperature => 0.8, top_p => 0.9, stop => '{"!"}', logit_bias => '{"7": -5}');
INSERT INTO asked SELECT 'base', inference_id FROM lora_complete(NULL, 'Once', max_tokens => 6);
SELECT lora_score(NULL, 'Once', ' upon') IS NOT NULL \g /dev/null
INSERT INTO asked SELECT 'scored', max(id) FROM openlora.inferences;
SET openlora.keep_text = hash;
INSERT INTO asked SELECT 'hash', inference_id FROM lora_complete(NULL, 'Once', max_tokens => 6);
SET openlora.keep_text = none;
INSERT INTO asked SELECT 'none', inference_id FROM lora_complete(NULL, 'Once', max_tokens => 6);
RESET openlora.keep_text;
-- receipts come from another process: wait for them
DO $$
BEGIN
    WHILE NOT EXISTS (SELECT FROM openlora.receipts r JOIN asked a ON a.id = r.inference WHERE a.what = 'none') LOOP
        PERFORM pg_sleep(0.01);
    END LOOP;
END $$;
SELECT id AS full FROM asked WHERE what = 'full' \gset
BEGIN;
SELECT plan(21);
SELECT is((SELECT string_agg(format('%s %s %s %s', t.depth, t.kind, t.name, t.weight), '; ' ORDER BY n)
           FROM lora_explain_attribution(:full) WITH ORDINALITY AS t (depth, kind, name, weight, share, tokens, n) WHERE kind IN ('adapter', 'dataset', 'contributor')),
    format('1 adapter replay_shakespeare 0.4; 2 dataset  ; 3 contributor %1$s ; 1 adapter replay_grimm 0.8; 2 dataset replay tales ;'
           ' 3 contributor replay Jacob ; 3 contributor replay Wilhelm ', current_user), 'a tree, from the answer to contributors');
SELECT is((SELECT sum(share) FROM lora_explain_attribution(:full) WHERE kind = 'adapter'), 1000000::numeric, 'shares of adapters are the whole');
SELECT is((SELECT sum(t.tokens) FROM lora_explain_attribution(:full) t WHERE t.kind = 'contributor'),
    (SELECT t.tokens FROM lora_explain_attribution(:full) t WHERE t.depth = 0), 'and so are the tokens of contributors');
SELECT is(jsonb_path_query_array(lora_explain_attribution_json(:full), '$.parts[*].parts[*].parts[*].name'),
    jsonb_build_array(current_user, 'replay Jacob', 'replay Wilhelm'), 'the same as jsonb');
SELECT is((SELECT count(*) FROM lora_explain_attribution(0)), 0::bigint, 'of no answer, nothing');
SELECT is(lora_explain_attribution_json(0), NULL, 'as jsonb');

SELECT is((SELECT string_agg(a.what, ',' ORDER BY a.id) FROM asked a JOIN openlora.inference_texts t ON t.inference = a.id), 'full,base,scored', 'full: texts are kept');
SELECT is((SELECT t.prompt || t.completion FROM asked a JOIN openlora.inference_texts t ON t.inference = a.id WHERE a.what = 'scored'), 'Once upon', 'of scores, too');
SELECT is((SELECT string_agg(a.what, ',' ORDER BY a.id) FROM asked a JOIN openlora.inferences i ON i.id = a.id WHERE i.salt IS NULL), 'none', 'none: not even the salt');
SELECT is((SELECT r.prompt_digest = sha256(i.salt || convert_to(t.prompt, 'UTF8')) FROM openlora.receipts r JOIN openlora.inferences i ON i.id = r.inference
           JOIN openlora.inference_texts t ON t.inference = i.id WHERE i.id = :full), true, 'the text is the one of the receipt');

SELECT is((SELECT string_agg(format('%s %s %s', r.same, r.compared, r.output = r.kept), ', ' ORDER BY a.id) FROM asked a, LATERAL lora_replay(a.id) r WHERE a.what IN ('full', 'base')),
    't tokens t, t tokens t', 'the same tokens again');
SELECT is((SELECT count(*) FROM openlora.inferences i, asked a WHERE a.what = 'none' AND i.id > a.id), 2::bigint, 'each of which is an inference itself');
-- where its words occur
INSERT INTO openlora.dataset_documents (dataset, name, text) SELECT d.id, 'copy', t.output FROM openlora.datasets d, openlora.inference_texts t
WHERE d.name = 'replay tales' AND t.inference = :full;
SELECT lora_trace_index('replay tales') > 0 AS indexed \gset
SELECT ok((SELECT count(*) = 1 AND min(document) = 'copy' AND min(document_word) = 0 FROM lora_trace(:full, '{replay tales}', 3)), 'a kept answer is traced');
SELECT throws_like(format('SELECT lora_trace(%s)', (SELECT id FROM asked WHERE what = 'hash')), '%was not kept', 'one that was not kept is not');
-- a record that says something else
CREATE FUNCTION pg_temp.replay_with(change text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    r record;
BEGIN
    EXECUTE change;
    SELECT * INTO r FROM lora_replay((SELECT id FROM asked WHERE what = 'full'));
    RAISE EXCEPTION USING ERRCODE = 'LR000', MESSAGE = r.same || ' ' || r.compared;
EXCEPTION WHEN SQLSTATE 'LR000' THEN
    RETURN SQLERRM;
END $$;
SELECT is(pg_temp.replay_with($$UPDATE openlora.inferences SET seed = seed + 1 WHERE id = (SELECT id FROM asked WHERE what = 'full')$$), 'false tokens', 'another seed');
SELECT is(pg_temp.replay_with($$UPDATE openlora.inference_texts SET prompt = 'Twice' WHERE inference = (SELECT id FROM asked WHERE what = 'full')$$), 'false tokens', 'another prompt');
SELECT throws_like(format('SELECT lora_replay(%s)', (SELECT id FROM asked WHERE what = 'hash')), '%was not kept', 'nothing to replay');
SELECT throws_like(format('SELECT lora_replay(%s)', (SELECT id FROM asked WHERE what = 'scored')), '%has generated nothing', 'nothing was generated');
SELECT throws_ok('SELECT lora_replay(0)', '42704', 'inference 0 does not exist', 'nothing was asked');
UPDATE openlora.adapters SET config = config || '{"lora_alpha": 3}' WHERE name = 'replay_grimm';
SELECT throws_like(format('SELECT lora_replay(%s)', :full), '%adapters have changed or gone', 'an adapter has changed');
DELETE FROM openlora.inferences WHERE id = :full;
SELECT is((SELECT count(*) FROM openlora.inference_texts WHERE inference = :full), 0::bigint, 'texts go with their inference');
SELECT * FROM finish();
ROLLBACK;
DELETE FROM openlora.adapters WHERE name LIKE 'replay%';
