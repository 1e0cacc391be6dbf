-- ---------------------------------------------------------------- status
CREATE FUNCTION lora_status(
    OUT state text, OUT error text, OUT progress float8, OUT engine_pid int, OUT restarts bigint,
    OUT since timestamptz, OUT model text, OUT model_digest text, OUT architecture text,
    OUT format text, OUT parameters bigint, OUT context_length int, OUT device text,
    OUT device_description text, OUT threads int, OUT device_memory bigint, OUT kv_pages int,
    OUT kv_pages_free int, OUT running int, OUT waiting int, OUT adapters int,
    OUT adapter_memory bigint, OUT host_adapters int, OUT host_adapter_memory bigint, OUT steps bigint, OUT prompt_tokens bigint,
    OUT generated_tokens bigint, OUT requests bigint, OUT reported_at timestamptz)
AS 'MODULE_PATHNAME', 'lora_status' LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000;
COMMENT ON FUNCTION lora_status() IS 'the engine: off, loading, ready, broken or restarting; what it serves and does';
