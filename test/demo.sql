-- The demo: run by `make demo` with the variable `demo` naming the folder of the bundled
-- model, adapters and held-out texts.
\set ON_ERROR_STOP on
\pset footer off
\pset linestyle unicode
SET client_min_messages = warning;
\set ECHO queries

CREATE EXTENSION openlora;
SELECT lora_count_tokens('The first call waits until the model is loaded.');
SELECT state, model, architecture, format, parameters, device FROM lora_status();

-- Adapters are rows: the two files that PEFT saves.
SELECT lora_adapter_import(name,
         weights => pg_read_binary_file(:'demo' || '/adapters/' || name || '/adapter_model.safetensors'),
         config  => pg_read_file(:'demo' || '/adapters/' || name || '/adapter_config.json')::jsonb)
FROM unnest(ARRAY['shakespeare', 'grimm', 'manual', 'sql']) AS name;
SELECT name, format, max_rank, modules, parameters, bytes, left(encode(digest, 'hex'), 12) AS digest, checked
FROM openlora.adapters ORDER BY name;

-- Provenance is rows, too: who made an adapter, from which texts, in parts per million.
INSERT INTO openlora.contributors (name) VALUES ('William'), ('Jacob'), ('Wilhelm'), ('the documentation team');
INSERT INTO openlora.datasets (name, licence) VALUES ('plays', 'public domain'), ('tales', 'public domain');
INSERT INTO openlora.dataset_contributors SELECT d.id, c.id, s.share FROM
  (VALUES ('plays', 'William', 1000000), ('tales', 'Jacob', 500000), ('tales', 'Wilhelm', 500000)) s (dataset, contributor, share)
  JOIN openlora.datasets d ON d.name = s.dataset JOIN openlora.contributors c ON c.name = s.contributor;
INSERT INTO openlora.adapter_datasets SELECT a.id, d.id, 1000000 FROM
  (VALUES ('shakespeare', 'plays'), ('grimm', 'tales')) s (adapter, dataset)
  JOIN openlora.adapters a ON a.name = s.adapter JOIN openlora.datasets d ON d.name = s.dataset;
INSERT INTO openlora.adapter_contributors
  SELECT a.id, c.id, 1000000 FROM openlora.adapters a, openlora.contributors c
  WHERE (a.name, c.name) = ('manual', 'the documentation team');

-- One prompt, the base model and each adapter: one query.
SELECT coalesce(a.name, '(base)') AS adapter,
       lora_generate(CASE WHEN a.name IS NOT NULL THEN ARRAY[a.name] END, 'The king', max_tokens => 40,
                     temperature => 0.7, top_p => 0.95, seed => 1) AS answer
FROM (VALUES (NULL), ('shakespeare'), ('grimm'), ('manual')) AS a (name);

-- A question to a query.
SELECT lora_generate('{sql}', E'Question: Which courses are offered in Fall 2016?\nSQL:', max_tokens => 120) AS answer;

-- Two adapters in one request, by weight; their shares are measured, not typed.
SELECT text, finish_reason, completion_tokens AS tokens, shares, inference_id AS id
FROM lora_complete('{shakespeare,grimm}', 'Once upon a time', weights => '{0.4,0.8}', max_tokens => 30);

-- Attribution was written in the same transactions.
SELECT i.id, i.function, i.prompt_tokens + i.completion_tokens AS tokens, u.name AS adapter, u.weight, u.share
FROM openlora.inferences i LEFT JOIN openlora.inference_adapters u ON u.inference = i.id ORDER BY i.id, u.position;
SELECT kind, adapter, contributor, share FROM openlora.attributions
WHERE inference = (SELECT max(id) FROM openlora.inferences) ORDER BY kind, adapter, contributor;
SELECT depth, repeat('  ', depth) || kind AS kind, name, weight, share, tokens
FROM lora_explain_attribution((SELECT max(id) FROM openlora.inferences));
SELECT contributor, kind, inferences, tokens FROM openlora.contributor_usage ORDER BY tokens DESC, contributor, kind;

-- A rollback takes answer and attribution together.
SELECT count(*) FROM openlora.inferences;
BEGIN;
SELECT lora_generate('{grimm}', 'Once', max_tokens => 4);
ROLLBACK;
SELECT count(*) FROM openlora.inferences;

-- Perplexity of every held-out text under every adapter, through lora_score.
CREATE TEMP TABLE heldout AS
  SELECT voice, passage ->> 'text' AS passage
  FROM unnest(ARRAY['stories', 'shakespeare', 'grimm', 'manual', 'sql']) AS voice,
       regexp_split_to_table(pg_read_file(:'demo' || '/heldout/' || voice || '.jsonl'), E'\n') AS line,
       LATERAL (SELECT line::jsonb WHERE line <> '') AS parsed (passage);
SELECT coalesce(a.name, '(base)') AS adapter,
       round(exp(-sum(s.logprob) FILTER (WHERE voice = 'stories') / sum(s.tokens) FILTER (WHERE voice = 'stories'))::numeric, 2) AS stories,
       round(exp(-sum(s.logprob) FILTER (WHERE voice = 'shakespeare') / sum(s.tokens) FILTER (WHERE voice = 'shakespeare'))::numeric, 2) AS shakespeare,
       round(exp(-sum(s.logprob) FILTER (WHERE voice = 'grimm') / sum(s.tokens) FILTER (WHERE voice = 'grimm'))::numeric, 2) AS grimm,
       round(exp(-sum(s.logprob) FILTER (WHERE voice = 'manual') / sum(s.tokens) FILTER (WHERE voice = 'manual'))::numeric, 2) AS manual,
       round(exp(-sum(s.logprob) FILTER (WHERE voice = 'sql') / sum(s.tokens) FILTER (WHERE voice = 'sql'))::numeric, 2) AS sql
FROM (VALUES (NULL), ('shakespeare'), ('grimm'), ('manual'), ('sql')) AS a (name), heldout h,
     LATERAL lora_score_detail(CASE WHEN a.name IS NOT NULL THEN ARRAY[a.name] END, '', h.passage) AS s
GROUP BY a.name ORDER BY a.name NULLS FIRST;
