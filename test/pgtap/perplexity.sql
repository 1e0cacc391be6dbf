-- The demo model's matrix: base and every adapter by every held-out text, through
-- lora_score, against the reference that transformers and peft computed.
\set ON_ERROR_STOP on
\pset format unaligned
\pset tuples_only on
\pset pager off
BEGIN;
SELECT plan(30);
\getenv demo OPENLORA_DEMO
SELECT count(lora_adapter_import(name,
         pg_read_binary_file(:'demo' || '/adapters/' || name || '/adapter_model.safetensors'),
         pg_read_file(:'demo' || '/adapters/' || name || '/adapter_config.json')::jsonb)) AS imported
FROM unnest(ARRAY['shakespeare', 'grimm', 'manual', 'sql']) AS name \gset
CREATE TEMP TABLE heldout AS
  SELECT voice, line::jsonb ->> 'text' AS passage
  FROM unnest(ARRAY['stories', 'shakespeare', 'grimm', 'manual', 'sql']) AS voice,
       regexp_split_to_table(pg_read_file(:'demo' || '/heldout/' || voice || '.jsonl'), E'\n') AS line WHERE line <> '';
CREATE TEMP TABLE matrix AS
  SELECT adapter, voice, sum(s.logprob) AS logprob, sum(s.tokens) AS tokens, exp(-sum(s.logprob) / sum(s.tokens)) AS perplexity
  FROM unnest(ARRAY['base', 'shakespeare', 'grimm', 'manual', 'sql']) AS adapter, heldout,
       LATERAL lora_score_detail(CASE WHEN adapter <> 'base' THEN ARRAY[adapter] END, '', passage) AS s
  GROUP BY adapter, voice;
CREATE TEMP TABLE reference AS SELECT pg_read_file(:'demo' || '/perplexity.json')::jsonb AS r;
-- 25 cells: the reference is computed with float32 activations on the same bf16 weights
SELECT ok(abs(m.perplexity / reference.perplexity - 1) < 0.002,
          format('%s on %s: %s, reference %s', adapter, voice, round(m.perplexity::numeric, 3), round(reference.perplexity::numeric, 3)))
FROM matrix m, reference r, LATERAL (SELECT (r.r #>> ARRAY['models', adapter, voice, 'perplexity'])::float8 AS perplexity) AS reference
ORDER BY adapter, voice;
-- each adapter lowers its own text's perplexity well below the base's ...
SELECT ok(own.perplexity < 0.85 * base.perplexity, format('%s lowers its own text: %s from %s', own.adapter,
          round(own.perplexity::numeric, 2), round(base.perplexity::numeric, 2)))
FROM matrix own JOIN matrix base ON base.adapter = 'base' AND base.voice = own.voice
WHERE own.adapter = own.voice ORDER BY own.adapter;
-- ... and does not lower the others'
SELECT ok(bool_and(other.perplexity > 0.98 * base.perplexity), 'adapters hold or raise the other texts')
FROM matrix other JOIN matrix base ON base.adapter = 'base' AND base.voice = other.voice
WHERE other.adapter NOT IN ('base', other.voice);
SELECT * FROM finish();
ROLLBACK;
