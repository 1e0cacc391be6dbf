-- Adapters as rows: a tiny valid one is made of zeros here, one rank, one module.
CREATE FUNCTION tiny(value real DEFAULT 0) RETURNS bytea LANGUAGE sql AS $$
  SELECT int8send_le || convert_to(header, 'UTF8') || repeat_bytes
  FROM (SELECT '{"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight":{"dtype":"F32","shape":[1,256],"data_offsets":[0,1024]},'
            || '"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight":{"dtype":"F32","shape":[256,1],"data_offsets":[1024,2048]}}' AS header) h,
  LATERAL (SELECT decode(string_agg(lpad(to_hex((octet_length(header)::bigint >> (8 * i)) & 255), 2, '0'), '' ORDER BY i), 'hex') AS int8send_le
           FROM generate_series(0, 7) i) l,
  LATERAL (SELECT decode(repeat(string_agg(lpad(to_hex(get_byte(float4send(value), 3 - i)), 2, '0'), '' ORDER BY i), 512), 'hex') AS repeat_bytes
           FROM generate_series(0, 3) i) r
$$;
CREATE FUNCTION config(extra jsonb DEFAULT '{}') RETURNS jsonb LANGUAGE sql AS $$
  SELECT '{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"], "layers_to_transform": [0], "bias": "none", "task_type": "CAUSAL_LM"}'::jsonb || extra
$$;
SELECT lora_adapter_import('zero', tiny(), config());
SELECT name, format, max_rank, modules, parameters, bytes, checked, shared FROM openlora.adapters;
-- The digest is what its documentation says.
SELECT digest = sha256(convert_to('openlora.adapter.1', 'UTF8') || '\x00'
  || decode(lpad(to_hex(octet_length(weights) & 255), 2, '0') || lpad(to_hex(octet_length(weights) >> 8), 2, '0') || '000000000000', 'hex')
  || weights || convert_to(config::text, 'UTF8')) AS as_documented FROM openlora.adapters;
-- An adapter of zeros changes nothing.
SELECT lora_generate('{zero}', 'Once upon a', max_tokens => 5) = lora_generate(NULL, 'Once upon a', max_tokens => 5) AS same;
-- What describes the bytes cannot be set by hand.
UPDATE openlora.adapters SET digest = sha256(''), bytes = 1, max_rank = 99, checked = false;
SELECT bytes, max_rank, checked, digest = sha256('') AS forged FROM openlora.adapters;
-- Renaming keeps the digest, other weights change it; the next call sees the new row.
SELECT digest AS before FROM openlora.adapters \gset
UPDATE openlora.adapters SET name = 'nought';
SELECT digest = :'before' AS same FROM openlora.adapters;
UPDATE openlora.adapters SET weights = tiny(0.5);
SELECT digest = :'before' AS same FROM openlora.adapters;
SELECT lora_score('{nought}', 'Once upon', ' a time') <> lora_score(NULL, 'Once upon', ' a time') AS differs;
-- Export gives back what went in.
SELECT weights = tiny(0.5) AS weights, config = config() AS config FROM lora_adapter_export('nought');
-- Refused, with a name.
\set VERBOSITY terse
SELECT lora_adapter_import('nought', tiny(), config());
SELECT lora_adapter_import('bad', tiny(), config('{"use_dora": true}'));
SELECT lora_adapter_import('bad', tiny(), config('{"r": 2}'));
SELECT lora_adapter_import('bad', tiny(), config('{"target_modules": ["q_proj", "v_proj"]}'));
SELECT lora_adapter_import('bad', tiny('NaN'), config());
SELECT lora_adapter_import('bad', tiny());
SELECT lora_adapter_import('bad', substr(tiny(), 1, 1000), config());
SELECT lora_adapter_import('', tiny(), config());
INSERT INTO openlora.adapters (name, weights) VALUES ('bad', '\x80024b2a2e');
SELECT lora_adapter_drop('bad');
SELECT lora_adapter_drop('bad', missing_ok => true);
\set VERBOSITY default
SELECT lora_adapter_import('nought', tiny(0.25), config(), replace => true) > 0 AS replaced;
-- Weights and duplicates.
SELECT lora_adapter_import('other', tiny(0.75), config()) > 0 AS made;
\set VERBOSITY terse
SELECT lora_generate('{nought,nought}', 'x');
SELECT lora_generate('{nought,other}', 'x', weights => '{1}');
SELECT lora_generate('{nought}', 'x', weights => '{NaN}');
SELECT lora_generate('{nought}', 'x', weights => '{Infinity}');
\set VERBOSITY default
SELECT array_length(shares, 1) AS n, round((SELECT sum(s) FROM unnest(shares) s)::numeric, 9) AS sum
FROM lora_complete('{nought,other}', 'Once upon', weights => '{1,0.5}', max_tokens => 4);
-- The exact weighted sum: half of one adapter twice as strong is the same.
SELECT lora_adapter_import('half', tiny(0.25), config('{"lora_alpha": 2}')) > 0 AS made;
SELECT abs(lora_score('{nought}', 'Once upon', ' a time')
         - lora_score('{half}', 'Once upon', ' a time', weights => '{0.5}')) < 1e-4 AS same;
DROP FUNCTION tiny, config;
