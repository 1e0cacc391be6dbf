\set SHOW_CONTEXT never
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
UPDATE openlora.adapters SET digest = sha256(''), bytes = 1, max_rank = 99, base_model = '\x00', parameters = 0;
SELECT bytes, max_rank, checked, parameters, digest = sha256('') AS forged, base_model = '\x00' AS forged FROM openlora.adapters;
-- The engine's verdict can be taken away, not given; it is asked for by NULL, or by name.
UPDATE openlora.adapters SET checked = false RETURNING checked, base_model;
UPDATE openlora.adapters SET checked = true RETURNING checked, base_model;
UPDATE openlora.adapters SET checked = NULL RETURNING checked, encode(base_model, 'hex') = (SELECT model_digest FROM lora_status()) AS of_this_model;
SELECT * FROM lora_adapter_check('zero');
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
SELECT lora_adapter_import('bad', tiny(), '[1]');
SELECT lora_adapter_import('bad', NULL, config());
SELECT lora_adapter_import('', tiny(), config());
SELECT lora_adapter_import(repeat('x', 201), tiny(), config());
INSERT INTO openlora.adapters (name, weights) VALUES ('bad', '\x80024b2a2e');
INSERT INTO openlora.adapters (name, weights) VALUES ('bad', '\x504b03040a0b0c0d');
INSERT INTO openlora.adapters (name, weights) VALUES ('bad', '');
INSERT INTO openlora.adapters (name, weights) VALUES ('bad', '\x47475546');
INSERT INTO openlora.adapters (name, weights, config, digest) SELECT 'bad', tiny(), config(), sha256('');
SELECT lora_adapter_check('bad');
SELECT lora_adapter_export('bad');
SELECT lora_adapter_drop('bad');
SELECT lora_adapter_drop('bad', missing_ok => true);
\set VERBOSITY default
-- The outer form is looked at without the engine.
SELECT lora_adapter_import('bad', substr(tiny(), 1, 1000), config());
SELECT lora_adapter_import('bad', overlay(tiny() PLACING '\xff' FROM 8), config());
SELECT lora_adapter_import('bad', overlay(tiny() PLACING '\xff' FROM 20), config());
SELECT lora_adapter_import('bad', overlay(tiny() PLACING '\x00' FROM 20), config());
SELECT lora_adapter_import('bad', overlay(tiny() PLACING convert_to('!', 'UTF8') FROM 20), config());
SELECT lora_adapter_import('bad', decode('0700000000000000', 'hex') || convert_to('{"a":1}', 'UTF8'), config());
SELECT lora_adapter_import('bad', decode('0800000000000000', 'hex') || convert_to('{"a":1}}', 'UTF8'), config());
SELECT lora_adapter_import('bad', decode('2900000000000000', 'hex') || convert_to('{"a":{"data_offsets":[0,1e30]},"b":"cde"}', 'UTF8'), config());
SELECT lora_adapter_import('nought', tiny(0.25), config(), replace => true) > 0 AS replaced;
SELECT count(*), bool_and(checked) AS checked FROM openlora.adapters WHERE name = 'nought';
-- Weights that come compressed from elsewhere are stored as they should be.
CREATE TEMP TABLE staged AS SELECT tiny(0.625) AS weights;
INSERT INTO staged SELECT weights FROM staged;
SELECT pg_column_compression(weights) IS NOT NULL AS compressed FROM staged LIMIT 1;
INSERT INTO openlora.adapters (name, weights, config) SELECT 'packed', weights, config() FROM staged LIMIT 1 RETURNING bytes, checked;
SELECT pg_column_compression(weights) IS NULL AS plain, digest = (SELECT digest FROM openlora.adapters WHERE name = 'packed') AS same
FROM openlora.adapters WHERE name = 'packed';
SELECT lora_score('{packed}', 'Once upon', ' a time') < 0 AS scored;
SELECT lora_adapter_drop('packed');
-- A slip of the pen, and weights and duplicates.
SELECT lora_generate('{nougt}', 'x');
SELECT lora_adapter_import('other', tiny(0.75), config()) > 0 AS made;
\set VERBOSITY terse
SELECT lora_generate('{nought,nought}', 'x');
SELECT lora_generate('{nought,nought}', 'x', weights => NULL, on_error => 'null') IS NULL AS failed;
SELECT lora_generate('{{nought},{other}}', 'x');
SELECT lora_generate(NULL, 'x', weights => '{1}');
SELECT lora_generate(array_agg('n' || i), 'x') FROM generate_series(1, 17) i;
SELECT lora_generate('{nought}', 'x', weights => '{NULL}');
SELECT lora_generate('{nought}', 'x', weights => '{1e7}');
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
