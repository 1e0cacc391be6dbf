-- Merged adapters: what they compute, what is refused, and whom they credit.
\set ON_ERROR_STOP on
\pset format unaligned
\pset tuples_only on
\pset pager off
SET client_min_messages = warning;
BEGIN;
SELECT plan(41);
\getenv demo OPENLORA_DEMO
CREATE ROLE merge_maker; CREATE ROLE merge_other;
SELECT lora_grant_usage('merge_maker', manage => true), lora_grant_usage('merge_other', manage => true) \g /dev/null
SELECT count(lora_adapter_import(name,
         pg_read_binary_file(:'demo' || '/adapters/' || name || '/adapter_model.safetensors'),
         pg_read_file(:'demo' || '/adapters/' || name || '/adapter_config.json')::jsonb)) AS imported
FROM unnest(ARRAY['shakespeare', 'grimm', 'manual', 'sql']) AS name \gset
-- the exact ones answer as the sum does that is computed per request
SELECT lora_adapter_merge('both', '{shakespeare,grimm}', '{0.4,0.8}', 'cat') > 0 AS made \gset
SELECT ok(:'made', 'cat');
SELECT is(lora_generate('{both}', p, max_tokens => 40), lora_generate('{shakespeare,grimm}', p, weights => '{0.4,0.8}', max_tokens => 40), format('cat answers %s as the sum', p))
FROM unnest(ARRAY['Once upon a time', 'The king', 'To create an index']) p;
SELECT is((SELECT max_rank FROM openlora.adapters WHERE name = 'both'), 24, 'its rank is the sum of ranks');
SELECT lora_adapter_merge('small', '{shakespeare,grimm}', '{0.4,0.8}', 'svd', svd_rank => 24) > 0 AS made \gset
SELECT cmp_ok(abs(lora_score('{small}', 'The king', ' and the queen')::numeric / lora_score('{shakespeare,grimm}', 'The king', ' and the queen', weights => '{0.4,0.8}')::numeric - 1),
    '<', 0.02, 'svd of the full rank scores alike');
SELECT lora_adapter_merge('smaller', '{shakespeare,grimm}', '{0.4,0.8}', svd_rank => 4) > 0 AS made \gset
SELECT is((SELECT max_rank FROM openlora.adapters WHERE name = 'smaller'), 4, 'svd is the default, and has a rank');
SELECT lives_ok(format($$SELECT lora_adapter_merge('m_%1$s', '{both,small}', '{0.5,0.5}', '%1$s', density => 0.5, seed => 3)$$, m), m)
FROM unnest(ARRAY['linear', 'ties', 'dare_linear', 'dare_ties', 'magnitude_prune']) m;
SELECT ok(bool_and(length(lora_generate(ARRAY['m_' || m], 'Once', max_tokens => 5)) > 0), 'they answer') FROM unnest(ARRAY['linear', 'ties', 'dare_linear', 'dare_ties', 'magnitude_prune']) m;
SELECT lora_adapter_merge('m_again', '{both,small}', '{0.5,0.5}', 'dare_ties', density => 0.5, seed => 3) > 0 AS made \gset
SELECT is((SELECT digest FROM openlora.adapters WHERE name = 'm_again'), (SELECT digest FROM openlora.adapters WHERE name = 'm_dare_ties'), 'the same seed, the same bytes');

-- what is refused
SELECT throws_like($$SELECT lora_adapter_merge('x', '{shakespeare,manual}', NULL, 'linear')$$, '%of "manual" is not like that of "shakespeare"%', 'different ranks, of adapters by their names');
SELECT throws_like($$SELECT lora_adapter_merge('x', '{shakespeare,grimm}', NULL, 'average')$$, '%there is no method "average"%', 'no such method');
SELECT throws_like($$SELECT lora_adapter_merge('x', '{shakespeare,grimm}', NULL, 'ties_svd')$$, '%needs a density%', 'no density');
SELECT throws_like($$SELECT lora_adapter_merge('x', '{shakespeare,grimm}', '{1,NaN}', 'cat')$$, '%not finite%', 'a weight that is none');
SELECT throws_ok($$SELECT lora_adapter_merge('x', '{shakespeare,grimm}', '{1}')$$, '22023', NULL, 'a weight is missing');
SELECT throws_ok($$SELECT lora_adapter_merge('x', '{grimm,grimm}')$$, '22023', 'an adapter is named twice', 'twice');
SELECT throws_ok($$SELECT lora_adapter_merge('x', '{}')$$, '22023', NULL, 'of nothing');
SELECT throws_like($$SELECT lora_adapter_merge('x', '{nobody}')$$, '%does not exist', 'of nobody');
SELECT throws_ok($$SELECT lora_adapter_merge('x', '{shakespeare,grimm}', method => NULL)$$, '22004', 'method of a merge must not be null', 'no method at all');
SELECT throws_ok($$SELECT lora_adapter_merge('x', '{shakespeare,grimm}', majority_sign_method => NULL)$$, '22004', 'majority_sign_method of a merge must not be null', 'no sign');
SELECT throws_ok($$SELECT lora_adapter_merge('x', '{shakespeare,grimm}', seed => NULL)$$, '22004', 'seed of a merge must not be null', 'no seed');
SELECT throws_ok($$SELECT lora_adapter_merge(NULL, '{shakespeare,grimm}')$$, '23502', NULL, 'no name');
SELECT throws_like($$SELECT lora_adapter_merge('x', '{grimm}', method => 'svd', svd_clamp => 0)$$, '%svd_clamp%', 'a quantile of nothing');
SELECT lives_ok($$SELECT lora_adapter_merge('clamped', '{grimm,shakespeare}', svd_clamp => 0.99)$$, 'svd_clamp');
SELECT throws_matching($$SELECT lora_adapter_merge('x', array_agg(name), NULL, 'ties_svd', 0.5) FROM (SELECT unnest(ARRAY['shakespeare', 'grimm']) AS name) n, (SELECT set_config('openlora.merge_memory', '20MB', true)) m$$, 'could not be run|out of memory|memory', 'a merge has so much memory');
RESET openlora.merge_memory;
SELECT throws_ok($$SELECT lora_adapter_merge('x', NULL)$$, '22023', NULL, 'no adapters');
SELECT throws_ok('SELECT openlora.run_merge(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)', '22004', NULL, 'nothing at all');
SELECT throws_ok($$SELECT openlora.run_merge('{a}', '{"\\x00"}', '{"{}"}', '{1}', 'cat', NULL, 'total', NULL, 0, NULL)$$, NULL, NULL, 'bytes that are no adapter');
-- another base model's, though of the same shapes
SAVEPOINT other_base;
ALTER TABLE openlora.adapters DISABLE TRIGGER USER;
UPDATE openlora.adapters SET base_model = sha256('another') WHERE name = 'grimm';
ALTER TABLE openlora.adapters ENABLE TRIGGER USER;
SELECT throws_ok($$SELECT lora_adapter_merge('x', '{shakespeare,grimm}', NULL, 'cat')$$, '42804', 'adapters of different base models cannot be merged', 'different base models');
ROLLBACK TO other_base;
SELECT is((SELECT count(*) FROM openlora.adapters WHERE name = 'x'), 0::bigint, 'nothing was written');
SELECT is((SELECT count(*) FROM pg_ls_dir('base/pgsql_tmp', true, false) f WHERE f LIKE '%openlora_merge%'), 0::bigint, 'and no file is left');

-- rights: using is not reading
UPDATE openlora.adapters SET shared = true WHERE name = 'grimm';
SET LOCAL ROLE merge_maker;
SELECT throws_ok($$SELECT lora_adapter_merge('stolen', '{grimm}', '{1}', 'cat')$$, '42501', 'permission denied to read adapter "grimm"', 'who may use an adapter may not merge it');
RESET ROLE;
SELECT lora_grant('grimm', 'merge_maker', 'read'), lora_grant('shakespeare', 'merge_maker', 'read') \g /dev/null

-- whom it credits: parents of the same size by weight, hence twins
SELECT lora_adapter_import('twin', weights, config) > 0 AS made FROM openlora.adapters WHERE name = 'grimm' \gset
SELECT lora_grant('twin', 'merge_maker', 'read') \g /dev/null
INSERT INTO openlora.contributors (name) VALUES ('Jacob'), ('Wilhelm'), ('William');
INSERT INTO openlora.datasets (name) VALUES ('tales'), ('plays');
INSERT INTO openlora.adapter_datasets SELECT a.id, d.id, s.share FROM (VALUES ('grimm', 'tales', 1000000), ('twin', 'plays', 600000)) s (adapter, dataset, share)
  JOIN openlora.adapters a ON a.name = s.adapter JOIN openlora.datasets d ON d.name = s.dataset;
INSERT INTO openlora.adapter_contributors SELECT a.id, c.id, s.share FROM (VALUES ('grimm', 'Jacob', 333333), ('twin', 'William', 1000000)) s (adapter, contributor, share)
  JOIN openlora.adapters a ON a.name = s.adapter JOIN openlora.contributors c ON c.name = s.contributor;
SET LOCAL ROLE merge_maker;
SELECT lora_adapter_merge('theirs', '{grimm,twin}', '{2,-1}', 'cat') > 0 AS made \gset
SELECT lora_adapter_merge('empty', '{grimm}', '{0}', 'cat') > 0 AS made \gset
SELECT lora_adapter_merge('kept', '{twin,empty}', '{0.001,1000}', 'cat') > 0 AS made \gset
RESET ROLE;
SELECT is((SELECT string_agg(c.name || ' ' || s.share, ', ' ORDER BY c.name) FROM openlora.adapter_contributors s JOIN openlora.contributors c ON c.id = s.contributor
           JOIN openlora.adapters a ON a.id = s.adapter WHERE a.name = 'kept'), 'William 1000000', 'what changes nothing takes nothing, whatever its weight');
SELECT is((SELECT owner FROM openlora.adapters WHERE name = 'theirs'), 'merge_maker'::regrole, 'whoever merges owns it');
SELECT is((SELECT string_agg(c.name || ' ' || s.share, ', ' ORDER BY c.name) FROM openlora.adapter_contributors s JOIN openlora.contributors c ON c.id = s.contributor
           JOIN openlora.adapters a ON a.id = s.adapter WHERE a.name = 'theirs'),
    format('Jacob 222222, William 333333, %s 444445', current_user), 'authors by weight, and the parents'' owner for what they left');
SELECT is((SELECT sum(s.share) FROM openlora.adapter_datasets s JOIN openlora.adapters a ON a.id = s.adapter WHERE a.name = 'theirs'), 1000000::bigint, 'datasets are the whole');
SELECT is((SELECT string_agg(d.name || ' ' || s.share, ', ' ORDER BY d.name) FROM openlora.adapter_datasets s JOIN openlora.datasets d ON d.id = s.dataset
           JOIN openlora.adapters a ON a.id = s.adapter WHERE a.name = 'theirs' AND d.name IN ('tales', 'plays')), 'plays 200000, tales 666667', 'by weight');
SELECT * FROM finish();
ROLLBACK;
