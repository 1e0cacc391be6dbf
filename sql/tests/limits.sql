-- What is too large: one error each, which says what, how large, and the limit; and the session
-- goes on. Run with the demo model, whose context holds 1024 tokens.
SELECT lora_generate(NULL, repeat('x', 1024 * 1024 + 1));
SELECT lora_generate(NULL, repeat('word ', 5000));
SELECT lora_score(NULL, 'Once', repeat('x', 1024 * 1024 + 1));
SELECT lora_score(NULL, 'Once', repeat(' word', 5000));
SELECT lora_count_tokens(repeat('x', 1024 * 1024 + 1));
SELECT lora_detokenize(array_fill(1, ARRAY[1024 * 1024 + 1]));
SELECT length(lora_detokenize(array_fill(9, ARRAY[1024 * 1024]))) > 0 AS at_the_limit;
SELECT lora_stream(NULL, repeat('x', 1024 * 1024 + 1));
SELECT * FROM lora_stream(NULL, repeat('word ', 5000));
SELECT lora_submit(NULL, repeat('x', 1024 * 1024 + 1));
-- adapters and weights
SELECT lora_generate(array_fill('nobody'::text, ARRAY[17]), 'x');
SELECT lora_generate(array_fill('nobody'::text, ARRAY[1000000]), 'x');
SELECT lora_generate(ARRAY[['a', 'b'], ['c', 'd']], 'x');
SELECT lora_generate('{nobody}', 'x', weights => array_fill(1.0::float8, ARRAY[17]));
SELECT lora_generate(NULL, 'x', weights => array_fill(1.0::float8, ARRAY[1000000]));
SELECT lora_generate('{nobody}', 'x', weights => ARRAY['Infinity'::float8]);
SELECT lora_generate('{nobody}', 'x', weights => ARRAY[1e300]);
SELECT length(error) < 400 AS cut FROM lora_complete(ARRAY[repeat('x', 1000000)], 'x', on_error => 'null');
SELECT rtrim(error, 'é…') FROM lora_complete(ARRAY['a' || repeat('é', 500)], 'x', on_error => 'null');
-- stop strings, biases, figures
SELECT lora_generate(NULL, 'x', stop => array_fill('a'::text, ARRAY[17]));
SELECT lora_generate(NULL, 'x', stop => ARRAY['a', repeat('b', 1025)]);
SELECT lora_generate(NULL, 'x', stop => ARRAY['a', repeat('b', 5000000)]);
SELECT lora_generate(NULL, 'x', stop => ARRAY['a', '']);
SELECT lora_generate(NULL, 'Once', stop => array_fill(repeat('b', 1024), ARRAY[16]), max_tokens => 1) IS NOT NULL AS at_the_limit;
SELECT lora_generate(NULL, 'x', logit_bias => (SELECT jsonb_object_agg(i, 1) FROM generate_series(1, 1025) i));
SELECT lora_generate(NULL, 'Once', logit_bias => (SELECT jsonb_object_agg(i, 1) FROM generate_series(1, 1024) i), max_tokens => 1) IS NOT NULL AS at_the_limit;
SELECT lora_generate(NULL, 'x', logit_bias => '{"1": 1e300}');
SELECT lora_generate(NULL, 'x', logit_bias => '{"99999999999999999999": 1}');
SELECT lora_complete(NULL, 'x', logprobs => 21);
-- the context is the limit of an answer, however much is asked for
SELECT completion_tokens + prompt_tokens AS tokens, finish_reason
FROM lora_complete(NULL, 'Once', max_tokens => 2147483647, ignore_eos => true);
SELECT lora_generate(NULL, 'x', top_k => 2147483647, max_tokens => 1) IS NOT NULL AS answered;
-- adapters that come
\set SHOW_CONTEXT never
\getenv demo OPENLORA_DEMO
SELECT lora_adapter_import(repeat('x', 201), pg_read_binary_file(:'demo' || '/adapters/grimm/adapter_model.safetensors'),
  pg_read_file(:'demo' || '/adapters/grimm/adapter_config.json')::jsonb);
SELECT lora_adapter_import('large', pg_read_binary_file(:'demo' || '/adapters/grimm/adapter_model.safetensors'),
  pg_read_file(:'demo' || '/adapters/grimm/adapter_config.json')::jsonb || jsonb_build_object('x', repeat('y', 2000000)));
SELECT lora_adapter_import('large', decode(repeat('ff', 8) || repeat('20', 100), 'hex'), '{}'); -- a header of 2^64 bytes
SELECT lora_adapter_import('large', decode('ffffff7f00000000' || repeat('20', 100), 'hex'), '{}'); -- of 2 GB
SELECT lora_adapter_merge('large', array_fill('a'::text, ARRAY[65]));
SELECT lora_adapter_merge('large', '{a,b}', '{1,2,3}');
SELECT count(*) FROM openlora.adapters WHERE name = 'large';
-- results and waits
SELECT lora_result(1, '1000000 years');
SELECT lora_result(9223372036854775807);
SELECT lora_generate(NULL, 'Once upon a', max_tokens => 1) IS NOT NULL AS goes_on;
