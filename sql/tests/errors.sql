-- Arguments that make no sense, each with its SQLSTATE. Run with the demo model.
\set VERBOSITY sqlstate
SELECT lora_generate('{nobody}', 'x');
SELECT lora_generate(ARRAY['a', NULL], 'x');
SELECT lora_generate(NULL, 'x', max_tokens => -1);
SELECT lora_generate(NULL, 'x', temperature => 'NaN');
SELECT lora_generate(NULL, 'x', temperature => -1);
SELECT lora_generate(NULL, 'x', top_p => 1.5);
SELECT lora_generate(NULL, 'x', logit_bias => '[1]');
SELECT lora_generate(NULL, 'x', logit_bias => '{"a": 1}');
SELECT lora_generate(NULL, 'x', logit_bias => '{"999999": 1}');
SELECT lora_generate(NULL, 'x', stop => ARRAY['']);
SELECT lora_generate(NULL, 'x', on_error => 'maybe');
SELECT lora_generate(NULL, repeat('word ', 5000), max_tokens => 5);
SELECT lora_detokenize('{1,2,999999}');
\set VERBOSITY default
-- The message, its detail and its hint.
SELECT lora_generate('{nobody}', 'x');
SELECT lora_generate(NULL, 'x', max_tokens => -1);
-- Errors of a row as NULL.
SELECT i, lora_generate(CASE i WHEN 2 THEN '{nobody}'::text[] END, 'Once upon', max_tokens => 3, on_error => 'null') IS NULL AS failed
FROM generate_series(1, 3) i;
SELECT text, error FROM lora_complete('{nobody}', 'x', on_error => 'null');
-- Defined results.
SELECT lora_generate(NULL, NULL) IS NULL AS null_prompt;
SELECT lora_generate(NULL, 'Once upon', max_tokens => 0) AS nothing;
SELECT lora_generate('{}', 'Once upon a', max_tokens => 1) = lora_generate(NULL, 'Once upon a', max_tokens => 1) AS same;
SELECT length(lora_generate(NULL, '', max_tokens => 3)) > 0 AS empty_prompt;
SELECT prompt_tokens, completion_tokens, finish_reason, used_seed, token_logprobs, shares, error
FROM lora_complete(NULL, 'Once upon a', max_tokens => 2, seed => 7);
SELECT jsonb_array_length(token_logprobs), jsonb_array_length(token_logprobs -> 0 -> 'top')
FROM lora_complete(NULL, 'Once upon a', max_tokens => 2, logprobs => 3);
-- The same seed, the same answer; streamed or not.
SELECT (SELECT lora_generate(NULL, 'The', max_tokens => 20, temperature => 1, seed => 5))
     = (SELECT string_agg(text, '' ORDER BY seq) FROM lora_stream(NULL, 'The', max_tokens => 20, temperature => 1, seed => 5)) AS same;
-- Stop strings end the output before them.
SELECT strpos(lora_generate(NULL, 'Once upon a time', max_tokens => 60, stop => ARRAY['.']), '.') AS at;
-- Tokens there and back.
SELECT lora_detokenize(lora_tokenize('Grüße, 你好 🙂')) AS back, lora_count_tokens('') AS none,
       (lora_tokenize('x', add_bos => true))[1] AS bos;
-- A score is the sum of its tokens' log-probabilities.
SELECT abs(lora_score(NULL, 'Once upon', ' a time')
           - (SELECT sum(logprob) FROM lora_score_detail(NULL, 'Once upon', ' a time'))) < 1e-9 AS same,
       tokens FROM lora_score_detail(NULL, 'Once upon', ' a time');
-- a model may say NUL, which text cannot have
SELECT lora_detokenize('{188,188}') = repeat(chr(65533), 2) AS replaced;
SELECT t.text = repeat(chr(65533), 3) AS whole, jsonb_path_query_array(t.token_logprobs, '$[*].text') = to_jsonb(ARRAY[chr(65533), chr(65533), chr(65533)]) AS pieces
FROM lora_complete(NULL, 'x', max_tokens => 3, logit_bias => '{"188": 100}', logprobs => 0) t;
-- nothing to do, nowhere to keep
SELECT lora_replay(NULL) IS NULL AS nothing;
ALTER SYSTEM SET openlora.ledger_key_directory = '';
