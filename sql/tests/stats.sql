-- What goes on inside, while something does: a cursor holds a request in mid-generation.
CREATE ROLE lora_watcher;
CREATE ROLE lora_monitor;
SELECT lora_grant_usage('lora_watcher');
SELECT lora_grant_usage('lora_monitor');
GRANT pg_read_all_stats TO lora_monitor;
\getenv demo OPENLORA_DEMO
SELECT lora_stat_reset();
SELECT requests, generated_tokens, steps, batch_size FROM openlora.stat_engine;
-- What who sees; begun again, with another adapter, if the request had its end before all had looked.
CREATE FUNCTION look(weights bytea, config jsonb) RETURNS TABLE (who text, line text) LANGUAGE plpgsql AS $$
DECLARE
  c CURSOR FOR SELECT lora_stream('{watched}', 'Once upon a time there was a king who had a daughter', max_tokens => 900, ignore_eos => true);
  looks CONSTANT text[] := ARRAY[
    'none', 'SELECT pid = pg_backend_pid() AS mine, role, task, state, priority, adapters, prompt_tokens > 8 AS prompt, output_tokens > 0 AS output,
       computed_tokens >= prompt_tokens AS computed, preemptions, age >= running_for AS times FROM openlora.stat_activity',
    'none', $q$SELECT name, tier, bytes > 0 AS bytes, requests, misses, loads, load_ms > 0 AS load_ms, last_used > now() - interval '1 hour' AS last_used
       FROM openlora.stat_adapters WHERE name = 'watched'$q$,
    -- others see that somebody asks, and no more
    'lora_watcher', 'SELECT pid = pg_backend_pid() AS mine, role, task, state, adapters, prompt_tokens, age FROM openlora.stat_activity',
    'lora_monitor', 'SELECT role, task, state, adapters FROM openlora.stat_activity'];
  lines text[];
  seen boolean := false;
BEGIN
  FOR try IN 1 .. 20 LOOP
    EXIT WHEN seen;
    PERFORM lora_adapter_import('watched', weights, config || jsonb_build_object('lora_alpha', 16 + try), shared => true, replace => true), lora_stat_reset();
    OPEN c;
    MOVE c;
    lines := '{}';
    FOR i IN 1 .. array_length(looks, 1) BY 2 LOOP
      PERFORM set_config('role', looks[i], true);
      EXECUTE format('SELECT string_agg(row_to_json(q)::text, $n$;$n$) FROM (%s) q', looks[i + 1]) INTO line;
      lines := lines || line;
    END LOOP;
    PERFORM set_config('role', 'none', true);
    seen := EXISTS (SELECT FROM openlora.stat_activity);
    CLOSE c;
  END LOOP;
  FOR i IN 1 .. array_length(lines, 1) LOOP
    who := looks[2 * i - 1];
    line := lines[i];
    RETURN NEXT;
  END LOOP;
END $$;
\pset format unaligned
SELECT * FROM look(pg_read_binary_file(:'demo' || '/adapters/grimm/adapter_model.safetensors'),
  pg_read_file(:'demo' || '/adapters/grimm/adapter_config.json')::jsonb);
\pset format aligned
SELECT count(*) FROM openlora.stat_activity;
DROP FUNCTION look;
SELECT requests, cancelled, generated_tokens > 0 AS generated, steps > 0 AS steps, batch_size, busy_seconds > 0 AS busy,
       tokens_per_second > 0 AS speed, kv_pages_used, adapter_loads, since > now() - interval '1 hour' AS since
FROM openlora.stat_engine;
-- a second request with the same beginning finds what the first has computed
SELECT lora_generate('{watched}', repeat('Once upon a time. ', 20), max_tokens => 1) IS NOT NULL AS first;
SELECT lora_stat_reset();
SELECT lora_generate('{watched}', repeat('Once upon a time. ', 20), max_tokens => 1) IS NOT NULL AS again;
SELECT requests, cached_tokens > 16 AND cached_tokens < prompt_tokens AS cached FROM openlora.stat_engine;
SELECT cached_tokens > 16 AS on_record FROM openlora.inferences ORDER BY id DESC LIMIT 1;
SELECT hits > 0 AS hits FROM openlora.stat_adapters WHERE name = 'watched';
SELECT lora_stat_reset();
SELECT hits, misses, loads FROM openlora.stat_adapters WHERE name = 'watched';
-- a digest tells who has the same file that it is used here: of what one sees, only
SELECT digest AS watched FROM openlora.adapters WHERE name = 'watched' \gset
SET ROLE lora_watcher;
SELECT count(*) FROM openlora.live_adapters() WHERE digest = :'watched';
RESET ROLE;
UPDATE openlora.adapters SET shared = false WHERE name = 'watched';
SET ROLE lora_watcher;
SELECT count(*) FROM openlora.live_adapters() WHERE digest = :'watched';
SELECT lora_stat_reset();
RESET ROLE;
SELECT lora_adapter_drop('watched');
DROP OWNED BY lora_watcher, lora_monitor;
DROP ROLE lora_watcher, lora_monitor;
