-- ---------------------------------------------------------------- what goes on inside
CREATE FUNCTION openlora.live_requests(OUT pid int, OUT role_id oid, OUT task text, OUT state text, OUT priority int,
    OUT adapters bytea[], OUT prompt_tokens int, OUT cached_tokens int, OUT output_tokens int, OUT computed_tokens int,
    OUT preemptions int, OUT age interval, OUT running_for interval)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'lora_stat_requests' LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 100;

CREATE FUNCTION openlora.live_adapters(OUT digest bytea, OUT tier text, OUT bytes bigint, OUT requests int, OUT hits bigint,
    OUT misses bigint, OUT loads bigint, OUT load_ms float8, OUT last_used timestamptz)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'lora_stat_adapters' LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 100;

CREATE FUNCTION openlora.engine_counters(OUT requests bigint, OUT failed bigint, OUT cancelled bigint, OUT rejected bigint,
    OUT prompt_tokens bigint, OUT cached_tokens bigint, OUT generated_tokens bigint, OUT steps bigint, OUT rows bigint,
    OUT sequences bigint, OUT busy_us bigint, OUT preemptions bigint, OUT adapter_loads bigint, OUT adapter_hits bigint,
    OUT adapter_evictions bigint, OUT host_loads bigint, OUT since timestamptz)
AS 'MODULE_PATHNAME', 'lora_stat_engine' LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION openlora.load_progress(OUT engine_pid int, OUT model text, OUT bytes_done bigint, OUT bytes_total bigint, OUT since timestamptz)
RETURNS SETOF record AS 'MODULE_PATHNAME', 'lora_load_progress' LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 1;

CREATE FUNCTION lora_stat_reset() RETURNS void
AS 'MODULE_PATHNAME', 'lora_stat_reset' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION lora_stat_reset() IS 'openlora.stat_engine and stat_adapters count from now on';

-- Names of adapters are those that the reader may see.
DO $do$
DECLARE
    options text := CASE WHEN current_setting('server_version_num')::int >= 150000 THEN 'WITH (security_invoker = true)' ELSE '' END;
BEGIN
    EXECUTE format($$
CREATE VIEW openlora.stat_activity %s AS
SELECT r.pid, pg_catalog.pg_get_userbyid(r.role_id) AS role, r.task, r.state, r.priority,
       (SELECT pg_catalog.array_agg(a.name ORDER BY d.n) FROM pg_catalog.unnest(r.adapters) WITH ORDINALITY AS d (digest, n)
        LEFT JOIN openlora.adapters a ON a.digest = d.digest) AS adapters,
       r.prompt_tokens, r.cached_tokens, r.output_tokens, r.computed_tokens, r.preemptions, r.age, r.running_for
FROM openlora.live_requests() r
$$, options);
    EXECUTE format($$
CREATE VIEW openlora.stat_adapters %s AS
SELECT a.name, l.digest, l.tier, l.bytes, l.requests, l.hits, l.misses, l.loads, l.load_ms, l.last_used
FROM openlora.live_adapters() l JOIN openlora.adapters a ON a.digest = l.digest
$$, options);
    EXECUTE format($$
CREATE VIEW openlora.stat_engine %s AS
SELECT s.state, s.model, s.device, s.device_description, s.device_memory, s.running, s.waiting, c.requests, c.failed, c.cancelled, c.rejected, c.prompt_tokens, c.cached_tokens,
       c.generated_tokens, c.steps,
       pg_catalog.round(c.sequences::numeric / NULLIF(c.steps, 0)::numeric, 2) AS batch_size,
       pg_catalog.round(c.busy_us::numeric / 1000000.0, 3) AS busy_seconds,
       pg_catalog.round(c.rows::numeric * 1000000.0 / NULLIF(c.busy_us, 0)::numeric, 1) AS tokens_per_second,
       s.kv_pages, s.kv_pages - s.kv_pages_free AS kv_pages_used, c.preemptions, s.adapters, s.adapter_memory, c.adapter_loads,
       c.adapter_hits, c.adapter_evictions, s.host_adapters, s.host_adapter_memory, c.host_loads, s.restarts, c.since
FROM lora_status() s, openlora.engine_counters() c
$$, options);
    EXECUTE format($$
CREATE VIEW openlora.stat_progress_load %s AS
SELECT l.engine_pid, l.model, l.bytes_done, l.bytes_total,
       pg_catalog.round(100.0 * l.bytes_done::numeric / NULLIF(l.bytes_total, 0)::numeric, 1) AS percent, l.since
FROM openlora.load_progress() l
$$, options);
END $do$;
COMMENT ON VIEW openlora.stat_progress_load IS 'a row while the engine reads, quantises and digests its base model; each byte counts twice, as it is placed and as it is digested';
COMMENT ON VIEW openlora.stat_activity IS 'requests in the engine; what another role asks is hidden from all but pg_read_all_stats';
COMMENT ON VIEW openlora.stat_adapters IS 'adapters that the engine holds (tier device, or host: in the host''s memory alone), that requests name, or (tier none) that it dropped of late: how they were used since its start or lora_stat_reset()';
COMMENT ON VIEW openlora.stat_engine IS 'counters of the engine since its start or lora_stat_reset(); tokens_per_second: computed rows in busy time';
