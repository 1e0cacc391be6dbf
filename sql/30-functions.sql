-- ---------------------------------------------------------------- generation
CREATE FUNCTION lora_generate(
    adapter_ids text[], prompt text, weights float8[] DEFAULT NULL, max_tokens int DEFAULT NULL,
    temperature float8 DEFAULT 0, top_k int DEFAULT 0, top_p float8 DEFAULT 1, min_p float8 DEFAULT 0,
    repetition_penalty float8 DEFAULT 1, presence_penalty float8 DEFAULT 0,
    frequency_penalty float8 DEFAULT 0, logit_bias jsonb DEFAULT NULL, seed bigint DEFAULT NULL,
    stop text[] DEFAULT NULL, ignore_eos boolean DEFAULT false, on_error text DEFAULT 'raise')
RETURNS text
AS 'MODULE_PATHNAME', 'lora_generate' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100000;
COMMENT ON FUNCTION lora_generate(text[], text, float8[], int, float8, int, float8, float8, float8,
    float8, float8, jsonb, bigint, text[], boolean, text) IS
    'answers a prompt with the base model and the given adapters';

CREATE FUNCTION lora_complete(
    adapter_ids text[], prompt text, weights float8[] DEFAULT NULL, max_tokens int DEFAULT NULL,
    temperature float8 DEFAULT 0, top_k int DEFAULT 0, top_p float8 DEFAULT 1, min_p float8 DEFAULT 0,
    repetition_penalty float8 DEFAULT 1, presence_penalty float8 DEFAULT 0,
    frequency_penalty float8 DEFAULT 0, logit_bias jsonb DEFAULT NULL, seed bigint DEFAULT NULL,
    stop text[] DEFAULT NULL, ignore_eos boolean DEFAULT false, on_error text DEFAULT 'raise',
    logprobs int DEFAULT NULL,
    OUT text text, OUT finish_reason text, OUT prompt_tokens int, OUT completion_tokens int,
    OUT used_seed bigint, OUT token_logprobs jsonb, OUT shares float8[], OUT inference_id bigint,
    OUT error text)
AS 'MODULE_PATHNAME', 'lora_complete' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100000;

CREATE FUNCTION lora_stream(
    adapter_ids text[], prompt text, weights float8[] DEFAULT NULL, max_tokens int DEFAULT NULL,
    temperature float8 DEFAULT 0, top_k int DEFAULT 0, top_p float8 DEFAULT 1, min_p float8 DEFAULT 0,
    repetition_penalty float8 DEFAULT 1, presence_penalty float8 DEFAULT 0,
    frequency_penalty float8 DEFAULT 0, logit_bias jsonb DEFAULT NULL, seed bigint DEFAULT NULL,
    stop text[] DEFAULT NULL, ignore_eos boolean DEFAULT false, on_error text DEFAULT 'raise',
    OUT seq int, OUT token int, OUT text text, OUT logprob real)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'lora_stream' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100000 ROWS 100;
COMMENT ON FUNCTION lora_stream(text[], text, float8[], int, float8, int, float8, float8, float8,
    float8, float8, jsonb, bigint, text[], boolean, text) IS
    'answers a prompt in rows that arrive as tokens do';

CREATE FUNCTION lora_score(adapter_ids text[], prompt text, completion text,
    weights float8[] DEFAULT NULL, on_error text DEFAULT 'raise') RETURNS float8
AS 'MODULE_PATHNAME', 'lora_score' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100000;
COMMENT ON FUNCTION lora_score(text[], text, text, float8[], text) IS
    'log-probability (natural) of a completion after a prompt';

CREATE FUNCTION lora_score_detail(adapter_ids text[], prompt text, completion text,
    weights float8[] DEFAULT NULL, on_error text DEFAULT 'raise', OUT logprob float8, OUT tokens int)
AS 'MODULE_PATHNAME', 'lora_score_detail' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100000;

-- ---------------------------------------------------------------- tokens
CREATE FUNCTION lora_tokenize(input text, add_bos boolean DEFAULT false, parse_special boolean DEFAULT false)
RETURNS int[]
AS 'MODULE_PATHNAME', 'lora_tokenize' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE COST 1000;

CREATE FUNCTION lora_detokenize(tokens int[], skip_special boolean DEFAULT false) RETURNS text
AS 'MODULE_PATHNAME', 'lora_detokenize' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE COST 1000;

CREATE FUNCTION lora_count_tokens(input text) RETURNS int
AS 'MODULE_PATHNAME', 'lora_count_tokens' LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE COST 1000;
