-- Batching from plain SQL: every query gives, and writes, what plain calls would.
-- Run with the demo model.
CREATE TABLE task (id int PRIMARY KEY, adapter text, body text, parts int);
INSERT INTO task SELECT i, CASE i % 3 WHEN 1 THEN 'pipe_a' WHEN 2 THEN 'pipe_b' END,
  CASE WHEN i % 7 <> 0 THEN 'Once upon a time ' || i END, 0 FROM generate_series(1, 30) i;
CREATE TABLE word (id int, word text);
INSERT INTO word SELECT i, 'word ' || i FROM generate_series(1, 30) i;
CREATE SEQUENCE ticks;

-- Two adapters of rank 1 that differ.
CREATE FUNCTION pipe_adapter(name text, hex text) RETURNS bigint LANGUAGE sql AS $$
  SELECT lora_adapter_import(name, decode(lpad(to_hex(octet_length(header) & 255), 2, '0') || lpad(to_hex(octet_length(header) >> 8), 2, '0')
      || '000000000000', 'hex') || convert_to(header, 'UTF8') || decode(repeat(hex, 512), 'hex'),
    jsonb_build_object('peft_type', 'LORA', 'r', 1, 'lora_alpha', 1, 'target_modules', ARRAY['q_proj'], 'layers_to_transform', ARRAY[0]))
  FROM (SELECT jsonb_build_object(
      'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight', jsonb_build_object('dtype', 'F32', 'shape', ARRAY[1, 256], 'data_offsets', ARRAY[0, 1024]),
      'base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight', jsonb_build_object('dtype', 'F32', 'shape', ARRAY[256, 1], 'data_offsets', ARRAY[1024, 2048]))::text) h (header)
$$;
SELECT pipe_adapter('pipe_a', '0000003f') IS NOT NULL AS a, pipe_adapter('pipe_b', '0000803e') IS NOT NULL AS b;
-- by its schema: from 17 on a materialized view is made with a search_path of its own
CREATE FUNCTION ask(adapter text, prompt text) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT public.lora_generate(array_remove(ARRAY[adapter], NULL), prompt, max_tokens => 4)
$$;

-- Runs a query with `depth` and says what came: how many inferences were written, and the
-- rows in order, or the error. What it wrote is undone.
CREATE FUNCTION outcome(query text, depth int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  result text;
  before bigint;
BEGIN
  PERFORM set_config('openlora.pipeline_depth', depth::text, true), setval('ticks', 1, false);
  SELECT count(*) INTO before FROM openlora.inferences;
  IF query ~* '^(WITH .* )?(INSERT|UPDATE|DELETE)' THEN
    EXECUTE query;
    SELECT string_agg(t::text, E'\n' ORDER BY id) INTO result FROM task t;
  ELSE
    EXECUTE 'SELECT string_agg(q::text, E''\n'') FROM (' || query || ') q' INTO result;
  END IF;
  SELECT count(*) - before || ' inferences' || E'\n' || coalesce(result, '') INTO result FROM openlora.inferences;
  RAISE SQLSTATE 'UNDO0';
EXCEPTION
  WHEN SQLSTATE 'UNDO0' THEN
    RETURN result;
  WHEN OTHERS THEN
    RETURN SQLSTATE || ' ' || SQLERRM;
END $$;
CREATE FUNCTION is_pipelined(query text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  line text;
BEGIN
  PERFORM set_config('openlora.pipeline_depth', '-1', true);
  FOR line IN EXECUTE 'EXPLAIN ' || query LOOP
    IF line LIKE '%openlora pipeline%' THEN
      RETURN true;
    END IF;
  END LOOP;
  RETURN false;
END $$;
CREATE TABLE shape (n int GENERATED ALWAYS AS IDENTITY, what text, pipelined boolean, query text);
INSERT INTO shape (what, pipelined, query) VALUES
('a scan', true, 'SELECT id, ask(adapter, body) FROM task'),
('all functions', true, $$SELECT id, lora_generate(NULL, body, max_tokens => 2), lora_score(NULL, body, ' and'),
   (lora_complete(NULL, body, max_tokens => 2)).text, lora_score_detail(NULL, body, ' or') FROM task$$),
('whole rows', true, $$SELECT id, (c).text, (c).finish_reason, (c).completion_tokens FROM (SELECT id, lora_complete(NULL, body, max_tokens => 2) AS c FROM task OFFSET 0) s$$),
('in an expression', true, $$SELECT upper(ask(adapter, body)) || '!' || length(ask(NULL, 'x' || id)) FROM task$$),
('ordered', true, 'SELECT id, ask(adapter, body) FROM task ORDER BY id DESC'),
('ordered by the answer', true, 'SELECT id, ask(adapter, body) AS a FROM task ORDER BY a, id'),
('limit', true, 'SELECT id, ask(adapter, body) FROM task ORDER BY id LIMIT 3 OFFSET 2'),
('limit 0', true, 'SELECT id, ask(adapter, body) FROM task LIMIT 0'),
('limit of a subquery', true, 'SELECT * FROM (SELECT id, ask(adapter, body) FROM task ORDER BY id) s LIMIT 4'),
('with ties', true, 'SELECT id, ask(adapter, body) FROM task ORDER BY id / 10 FETCH FIRST 3 ROWS WITH TIES'),
('index scan', true, 'SELECT ask(adapter, body) FROM task WHERE id = 5 OR id = 6'),
('filter', true, $$SELECT id FROM task WHERE lora_score(NULL, body, ' and') > -9$$),
('filter and targets', true, $$SELECT id, ask(adapter, body) FROM task WHERE lora_score(NULL, body, ' and') > -9 ORDER BY id LIMIT 2$$),
('two filters', true, $$SELECT id FROM task WHERE lora_score(NULL, body, ' and') > -9 AND lora_score(NULL, body, ' or') > -9$$),
('filter on a row', true, $$SELECT id, ask(NULL, body) FROM task WHERE (lora_complete(NULL, body, max_tokens => 2)).finish_reason = 'length'$$),
('nested', true, 'SELECT id, ask(adapter, ask(NULL, body)) FROM task'),
('nested three times', true, 'SELECT id, ask(adapter, ask(NULL, ask(adapter, body) || id)) FROM task'),
('nested, with a limit', true, 'SELECT id, ask(adapter, ask(NULL, body)) FROM task ORDER BY id LIMIT 4'),
('nested through a row', true, 'SELECT id, ask(adapter, (lora_complete(NULL, body, max_tokens => 2)).text) FROM task'),
('nested through the attribution', true, $$SELECT id, ask(adapter, left((lora_complete(NULL, body, max_tokens => 2)).inference_id::text, 0) || 'x') FROM task$$),
('case that leaves out', false, 'SELECT id, CASE WHEN id % 2 = 0 THEN ask(adapter, body) END FROM task'),
('case on a call', true, $$SELECT id, CASE WHEN lora_score(NULL, body, ' and') > -9 THEN 'likely' ELSE ask(adapter, body) END FROM task$$),
('coalesce', false, $$SELECT id, coalesce(body, ask(NULL, 'x')) FROM task$$),
('coalesce on a call', true, $$SELECT id, coalesce(ask(adapter, body), ask(NULL, 'x')) FROM task$$),
('and, or', false, $$SELECT id, id > 5 AND ask(adapter, body) > 'a', id > 9 OR lora_score(NULL, body, 'x') > -5 FROM task$$),
('case in an argument', false, $$SELECT id, lora_generate(NULL, CASE WHEN id > 5 THEN ask(adapter, body) ELSE 'x' END, max_tokens => 3) FROM task$$),
('aggregate', true, 'SELECT count(*), string_agg(ask(adapter, body), $x$ $x$ ORDER BY id) FROM task'),
('aggregate by group', true, 'SELECT adapter, string_agg(ask(adapter, body), $x$ $x$ ORDER BY id) FROM task GROUP BY adapter ORDER BY 1'),
('aggregate with a filter', false, 'SELECT string_agg(ask(adapter, body), $x$ $x$ ORDER BY id) FILTER (WHERE id > 20) FROM task'),
('call on an aggregate', true, 'SELECT adapter, ask(adapter, string_agg(body, $x$ $x$ ORDER BY id)) FROM task WHERE id < 9 GROUP BY adapter ORDER BY 1'),
('having', true, $$SELECT adapter FROM task GROUP BY adapter HAVING lora_score(NULL, min(body), ' and') < 0 ORDER BY 1$$),
('grouped by the answer', true, 'SELECT left(ask(adapter, body), 2) AS a, count(*) FROM task GROUP BY 1 ORDER BY 1'),
('distinct', true, 'SELECT DISTINCT left(ask(adapter, body), 2) FROM task ORDER BY 1'),
('grouping sets', true, 'SELECT adapter, id / 10, count(ask(adapter, body)) FROM task GROUP BY ROLLUP (adapter, id / 10) ORDER BY 1, 2'),
('window', true, 'SELECT id, row_number() OVER (ORDER BY id DESC), ask(adapter, body) FROM task ORDER BY id'),
('set-returning function of the answer', true, $$SELECT id, regexp_split_to_table(ask(adapter, body), ' ') FROM task$$),
('beside a set-returning function', false, $$SELECT id, generate_series(1, 2), ask(adapter, body) FROM task WHERE id < 5$$),
('join', true, 'SELECT id, ask(adapter, body || word) FROM task JOIN word USING (id) ORDER BY id'),
('outer join', true, 'SELECT t.id, ask(t.adapter, w.word) FROM task t LEFT JOIN word w ON w.id = t.id AND w.id < 9 ORDER BY 1'),
('subquery joined', true, 'SELECT w.word, s.a FROM word w JOIN (SELECT id, ask(adapter, body) AS a FROM task OFFSET 0) s USING (id) ORDER BY w.id'),
('subquery of a call, asked about', true, 'SELECT id, upper(a), ask(adapter, a) FROM (SELECT id, adapter, ask(NULL, body) AS a FROM task OFFSET 0) s'),
('subquery of a call, twice', true, 'SELECT ask(adapter, b) FROM (SELECT adapter, ask(NULL, a || id) AS b FROM (SELECT id, adapter, ask(NULL, body) AS a FROM task OFFSET 0) s OFFSET 0) s'),
('subquery of a call, filtered', true, $$SELECT ask(adapter, a) FROM (SELECT id, adapter, ask(NULL, body) AS a FROM task OFFSET 0) s WHERE a > 'a' AND id > 3$$),
('subquery of a call, with two filters', true, $$SELECT ask(adapter, a) FROM (SELECT id, adapter, ask(NULL, body) AS a FROM task OFFSET 0) s
   WHERE lora_score(NULL, a, ' or') > -8 AND lora_score(NULL, a, ' and') > -9$$),
('subquery of a filter, filtered', true, $$SELECT ask(adapter, a) FROM (SELECT id, adapter, ask(NULL, body) AS a FROM task WHERE lora_score(NULL, body, ' and') > -9 OFFSET 0) s WHERE lora_score(NULL, a, ' or') > -9$$),
('subquery of a volatile function', true, 'SELECT n, n, ask(adapter, n::text) FROM (SELECT adapter, nextval($x$ticks$x$) AS n, ask(NULL, body) AS a FROM task OFFSET 0) s'),
('subquery in the targets', true, 'SELECT id, (SELECT ask(t.adapter, w.word) FROM word w WHERE w.id = t.id) FROM task t'),
('subquery of its own, partly read', true, 'SELECT id, ask(NULL, (SELECT word FROM word LIMIT 1)) FROM task WHERE id < 6'),
('error in a subquery of its own', true, 'SELECT id, ask(NULL, (SELECT 1 / (count(*) - 30) FROM word)::text) FROM task WHERE id < 6'),
('scan in a correlated subquery', true, $$SELECT id, (SELECT string_agg(ask(t.adapter, w.word), ' ' ORDER BY w.id) FROM word w WHERE w.id < t.id) FROM task t WHERE id < 6$$),
('limit in a correlated subquery', true, $$SELECT id, (SELECT ask(t.adapter, w.word) FROM word w WHERE w.id > t.id ORDER BY w.id LIMIT 1) FROM task t WHERE id < 6$$),
('subquery as an argument', true, 'SELECT id, ask(adapter, (SELECT word FROM word w WHERE w.id = t.id)) FROM task t'),
('lateral', true, 'SELECT t.id, s.a FROM task t, LATERAL (SELECT ask(t.adapter, w.word) AS a FROM word w WHERE w.id <= t.id ORDER BY w.id LIMIT 2) s WHERE t.id < 5'),
('lateral row', true, $$SELECT t.id, c.text, c.completion_tokens FROM task t, LATERAL lora_complete(NULL, t.body, max_tokens => 2) c$$),
('lateral row, left join', true, $$SELECT t.id, upper(c.text) FROM task t LEFT JOIN LATERAL lora_complete(NULL, t.body, max_tokens => 2) c ON true ORDER BY t.id LIMIT 5$$),
('lateral row, left join with a condition', false, $$SELECT t.id, c.text FROM task t LEFT JOIN LATERAL lora_complete(NULL, t.body, max_tokens => 2) c ON c.finish_reason = 'stop'$$),
('lateral row with a filter', true, $$SELECT t.id, c.text, ask(t.adapter, c.text) FROM task t, LATERAL lora_complete(NULL, t.body, max_tokens => 2) c WHERE c.prompt_tokens > 6$$),
('lateral row with an argument that asks', true, $$SELECT t.id, c.text FROM task t, LATERAL lora_complete(NULL, ask(t.adapter, t.body), max_tokens => 2) c$$),
('lateral row, not selected', true, $$SELECT t.id FROM task t, LATERAL lora_complete(NULL, t.body, max_tokens => 2) c$$),
('lateral row, its inference', true, $$SELECT t.id, c.inference_id > 0, ask(NULL, left(c.inference_id::text, 0) || 'x') FROM task t, LATERAL lora_complete(NULL, t.body, max_tokens => 2) c$$),
('lateral row as a whole', false, $$SELECT t.id, c IS NULL FROM task t, LATERAL lora_complete(NULL, t.body, max_tokens => 2) c$$),
('lateral row of a call, compared', true, 'SELECT s.id, s.a, d.tokens FROM (SELECT id, ask(NULL, body) AS a FROM task) s JOIN LATERAL lora_score_detail(NULL, s.a, $x$ and$x$) d ON s.id > d.tokens + 4'),
('lateral in name alone', false, $$SELECT t.id, c.text FROM task t LEFT JOIN LATERAL lora_complete(NULL, 'x', max_tokens => 2) c ON true$$),
('lateral rows, two', true, $$SELECT t.id, c.text, d.tokens FROM task t, LATERAL lora_complete(NULL, t.body, max_tokens => 2) c, LATERAL lora_score_detail(NULL, t.body, c.text) d$$),
('lateral value', true, $$SELECT t.id, g FROM task t, LATERAL lora_generate(NULL, t.body, max_tokens => 2) g WHERE length(g) > 3$$),
('lateral row of a join', true, $$SELECT t.id, c.text FROM task t JOIN word w USING (id), LATERAL lora_complete(NULL, t.body || w.word, max_tokens => 2) c ORDER BY t.id$$),
('exists', true, $$SELECT id FROM task t WHERE EXISTS (SELECT FROM word w WHERE w.id < t.id AND lora_score(NULL, w.word, ' and') > -9) AND id < 6$$),
('in', true, $$SELECT id FROM word WHERE word IN (SELECT 'word' || ask(NULL, 'x') FROM task) OR id = 3$$),
('union all', true, 'SELECT ask(adapter, body) FROM task WHERE id < 5 UNION ALL SELECT ask(NULL, word) FROM word WHERE id < 5'),
('union', true, 'SELECT ask(adapter, body) AS a FROM task WHERE id < 5 UNION SELECT ask(NULL, body) FROM task WHERE id < 5 ORDER BY 1'),
('common table', true, 'WITH a AS MATERIALIZED (SELECT id, ask(adapter, body) AS a FROM task) SELECT x.a, y.a FROM a x JOIN a y ON x.id = y.id + 1 ORDER BY x.id'),
('common table, partly read', true, 'WITH a AS MATERIALIZED (SELECT id, ask(adapter, body) AS a FROM task WHERE id < 9) SELECT a FROM a LIMIT 9'),
('recursion', true, $$WITH RECURSIVE r(n, t) AS (SELECT 1, 'Once' UNION ALL SELECT n + 1, ask(NULL, t) FROM r WHERE n < 4) SELECT * FROM r$$),
('values', true, $$SELECT ask(a, b) FROM (VALUES (NULL, 'x'), ('pipe_a', 'y'), ('pipe_b', 'z')) v (a, b)$$),
('function scan', true, 'SELECT ask(NULL, i::text) FROM generate_series(1, 5) i'),
('two calls without a table', true, $$SELECT ask(NULL, 'x') AS a, ask('pipe_a', 'x') AS b$$),
('one call without a table', false, $$SELECT ask(NULL, 'x')$$),
('array and row', true, $$SELECT ARRAY[ask(NULL, body), ask(adapter, body)], ROW(id, ask(NULL, body)) FROM task WHERE id < 6$$),
('whole-row column', true, 'SELECT t, ask(adapter, body) FROM task t WHERE id < 6'),
('system columns', true, 'SELECT tableoid::regclass, ask(adapter, body) FROM task WHERE id < 6'),
('no columns', true, $$SELECT ask(NULL, 'x') FROM task WHERE id < 6$$),
('volatile argument', true, $$SELECT id, ask(NULL, 'x' || nextval('ticks')) FROM task$$),
('volatile beside', true, $$SELECT id, ask(adapter, body), nextval('ticks') FROM task$$),
('error in an argument', true, $$SELECT id, ask(adapter, (1 / (id - 20))::text) FROM task$$),
('error in an argument, not reached', true, $$SELECT id, ask(adapter, (1 / (id - 20))::text) FROM task ORDER BY id LIMIT 5$$),
('error in an argument, behind a filter', true, $$SELECT id, ask(adapter, (1 / (id - 20))::text) FROM task WHERE id < 18$$),
('error beside', true, $$SELECT id, ask(adapter, body), 1 / (id - 20) FROM task ORDER BY id LIMIT 12$$),
('error of the request', true, $$SELECT id, lora_generate(ARRAY['nobody' || id], 'x') FROM task WHERE id > 3$$),
('error of a later row', true, $$SELECT id, lora_generate(CASE WHEN id = 20 THEN '{nobody}'::text[] END, 'x', max_tokens => 2) FROM task ORDER BY id$$),
('error of a later row, not reached', true, $$SELECT id, lora_generate(CASE WHEN id = 20 THEN '{nobody}'::text[] END, 'x', max_tokens => 2) FROM task ORDER BY id LIMIT 9$$),
('error of the inner call', true, $$SELECT id, ask(NULL, lora_generate(CASE WHEN id = 5 THEN '{nobody}'::text[] END, 'x', max_tokens => 2)) FROM task$$),
('errors as null', true, $$SELECT id, lora_generate(CASE WHEN id % 5 = 0 THEN '{nobody}'::text[] END, 'x', max_tokens => 2, on_error => 'null') FROM task$$),
('errors as null, nested', true, $$SELECT id, coalesce(ask(NULL, lora_generate(CASE WHEN id % 5 = 0 THEN '{nobody}'::text[] END, 'x', max_tokens => 2, on_error => 'null')), '-') FROM task$$),
('errors as rows', true, $$SELECT id, (lora_complete(CASE WHEN id % 5 = 0 THEN '{nobody}'::text[] END, 'x', max_tokens => 2, on_error => 'null')).error FROM task$$),
('scores with errors as null', true, $$SELECT id, lora_score(CASE WHEN id % 5 = 0 THEN '{nobody}'::text[] END, 'x', ' y', on_error => 'null') IS NULL FROM task$$),
('a wrong on_error', true, $$SELECT id, lora_generate(NULL, body, on_error => CASE WHEN id = 9 THEN 'maybe' ELSE 'raise' END) FROM task$$),
('sampling', true, $$SELECT id, lora_generate(NULL, body, max_tokens => 5, temperature => 1, seed => id, stop => ARRAY['.'], logit_bias => '{"5": -5}') FROM task$$),
('insert', true, $$INSERT INTO task SELECT id + 100, adapter, ask(adapter, body), 1 FROM task WHERE id < 20$$),
('insert on conflict', true, $$INSERT INTO task SELECT id, adapter, ask(adapter, body), 1 FROM task WHERE id < 20 ON CONFLICT (id) DO UPDATE SET parts = length(excluded.body)$$),
('insert of values', false, $$INSERT INTO task VALUES (201, NULL, ask(NULL, 'x'), 1), (202, NULL, ask(NULL, 'y'), 1)$$),
('update', true, $$UPDATE task SET parts = length(ask(adapter, body)) WHERE id < 20$$),
('update from', true, $$UPDATE task t SET parts = length(ask(t.adapter, w.word)) FROM word w WHERE w.id = t.id AND t.id < 20$$),
('update where', true, $$UPDATE task SET parts = 7 WHERE lora_score(NULL, body, ' and') > -9$$),
('update from a subquery', true, $$UPDATE task t SET parts = s.n FROM (SELECT id, length(ask(adapter, body)) AS n FROM task WHERE id < 20) s WHERE s.id = t.id$$),
('delete', true, $$DELETE FROM task WHERE id > 20 AND lora_score(NULL, body, ' and') < 0$$),
('writing common table', true, $$WITH w AS (INSERT INTO task SELECT id + 300, NULL, ask(NULL, body), 1 FROM task WHERE id < 5 RETURNING id) UPDATE task SET parts = 2 WHERE id < 3$$),
('returning', false, $$UPDATE task SET parts = 3 WHERE id < 4 RETURNING ask(adapter, body)$$),
('locked', true, 'SELECT id, ask(adapter, body) FROM task WHERE id < 9 ORDER BY id FOR UPDATE'),
('locked below', false, 'SELECT s.id, ask(s.adapter, s.body) FROM (SELECT * FROM task WHERE id < 9 ORDER BY id FOR UPDATE) s'),
('locked in a part of a union', false, 'SELECT s.id, ask(s.adapter, s.body) FROM (SELECT * FROM (SELECT * FROM task WHERE id < 4 ORDER BY id FOR UPDATE) l UNION ALL SELECT * FROM task WHERE id > 28) s'),
('locked below a limit', true, 'SELECT s.id, ask(s.adapter, s.body) FROM (SELECT * FROM task ORDER BY id LIMIT 5 FOR UPDATE SKIP LOCKED) s');

SELECT what, is_pipelined(query) AS pipelined, first = second AND first = third AS same,
  CASE WHEN first <> second OR first <> third OR first ~ '^\w{5} ' THEN left(first, 60) ELSE split_part(first, E'\n', 1) END AS outcome
FROM shape, LATERAL (SELECT outcome(query, 0) AS first) a, LATERAL (SELECT outcome(query, -1) AS second) b, LATERAL (SELECT outcome(query, 3) AS third) c
ORDER BY n;
SELECT what, is_pipelined(query) FROM shape WHERE is_pipelined(query) <> pipelined;

-- ---------------------------------------------------------------- the node, in EXPLAIN
SET openlora.pipeline_depth = -1;
SELECT requests AS before FROM lora_status() \gset
EXPLAIN (COSTS OFF) SELECT id, ask(adapter, body) FROM task ORDER BY id LIMIT 3;
EXPLAIN (COSTS OFF) SELECT string_agg(ask(adapter, body), '') FROM task;
EXPLAIN (COSTS OFF) UPDATE task SET body = ask(adapter, ask(NULL, body)) WHERE lora_score(NULL, body, 'x') < -5;
SELECT requests - :before AS started FROM lora_status();
SELECT count(*) AS before FROM openlora.inferences \gset
CREATE FUNCTION figures(query text) RETURNS TABLE (line text) LANGUAGE plpgsql AS $$
BEGIN
  FOR line IN EXECUTE 'EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) ' || query LOOP
    IF line ~ 'Requests:|Tokens|Calls|pipeline' THEN
      line := replace(line, '.00 ', ' '); -- rows of a loop, as PostgreSQL 18 tells them
      RETURN NEXT;
    END IF;
  END LOOP;
END $$;
CREATE FUNCTION in_flight(query text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
  line text;
BEGIN
  FOR line IN EXECUTE 'EXPLAIN (ANALYZE) ' || query LOOP
    IF line LIKE '%Requests in Flight%' THEN
      RETURN split_part(line, ': ', 2);
    END IF;
  END LOOP;
END $$;
SET openlora.pipeline_depth = 4;
SELECT * FROM figures($$SELECT lora_generate(NULL, 'Once', max_tokens => 3, ignore_eos => true) FROM task WHERE id < 11$$);
SELECT count(*) - :before AS written FROM openlora.inferences;
SELECT in_flight($$SELECT lora_generate(NULL, 'Once', max_tokens => 50) FROM task$$) BETWEEN 2 AND 4 AS as_deep;
SET openlora.pipeline_depth = 0;
EXPLAIN (COSTS OFF) SELECT id, ask(adapter, body) FROM task;
SET openlora.pipeline_depth = -1;

-- ---------------------------------------------------------------- rows that nobody asked for
CREATE FUNCTION new_inferences() RETURNS bigint LANGUAGE sql AS $$
  SELECT count(*) - current_setting('test.seen')::bigint FROM openlora.inferences
$$;
SELECT set_config('test.seen', count(*)::text, false) IS NOT NULL AS seen FROM openlora.inferences;
BEGIN;
DECLARE c CURSOR FOR SELECT id, ask(adapter, body) IS NULL AS nothing FROM task ORDER BY id;
FETCH 3 FROM c;
SELECT new_inferences();
FETCH 2 FROM c;
CLOSE c;
SELECT new_inferences();
-- nor answers that answers were made from
DECLARE c CURSOR FOR SELECT s.id, ask(c.text, NULL) IS NULL AS nothing FROM (SELECT id, ask(NULL, body) AS a FROM task ORDER BY id) s,
  LATERAL lora_complete(NULL, a || id, max_tokens => 2) c WHERE c.completion_tokens = 2;
FETCH 2 FROM c;
CLOSE c;
SELECT new_inferences();
-- an error in the arguments of a row that was read ahead is that row's
DECLARE c CURSOR FOR SELECT id, ask(adapter, (1 / (id - 4))::text) IS NULL AS nothing FROM task ORDER BY id;
FETCH 3 FROM c;
SAVEPOINT s;
FETCH 1 FROM c;
ROLLBACK TO s;
CLOSE c;
SELECT new_inferences();
-- a cursor goes on behind a savepoint that was rolled back, its rows do not come again
DECLARE c CURSOR FOR SELECT id, ask(adapter, body) IS NULL AS nothing FROM task ORDER BY id;
SAVEPOINT s;
FETCH 2 FROM c;
ROLLBACK TO s;
SELECT new_inferences();
FETCH 2 FROM c;
SELECT new_inferences();
-- an error that is caught leaves the transaction in order
DO $$
BEGIN
  PERFORM lora_generate(CASE WHEN id = 9 THEN '{nobody}'::text[] END, 'x', max_tokens => 2) FROM task ORDER BY id;
EXCEPTION WHEN undefined_object THEN
  RAISE NOTICE 'caught: %', SQLERRM;
END $$;
SELECT new_inferences();
SELECT count(ask(adapter, body)) FROM task;
ROLLBACK;
SELECT new_inferences();

-- ---------------------------------------------------------------- cursors that scroll, that are kept
BEGIN;
DECLARE c SCROLL CURSOR FOR SELECT id, ask(adapter, body) AS a FROM task ORDER BY id;
MOVE 3 FROM c;
CREATE TEMP TABLE first_time (id int, a text);
DO $$
DECLARE
  c refcursor := 'c';
  r record;
BEGIN
  FETCH c INTO r;
  INSERT INTO first_time VALUES (r.id, r.a);
  FETCH PRIOR FROM c INTO r;
  FETCH NEXT FROM c INTO r;
  INSERT INTO first_time VALUES (r.id, r.a);
END $$;
SELECT count(*), count(DISTINCT a), min(id), max(id) FROM first_time;
DECLARE kept CURSOR WITH HOLD FOR SELECT id, ask(adapter, body) IS NULL AS nothing FROM task WHERE id < 9 ORDER BY id;
FETCH 1 FROM kept;
COMMIT;
FETCH 8 FROM kept;
CLOSE kept;
DROP TABLE first_time;

-- ---------------------------------------------------------------- other ways to run a query
PREPARE p (int) AS SELECT count(ask(adapter, body)) FROM task WHERE id <= $1;
EXECUTE p (3);
EXECUTE p (10);
SET plan_cache_mode = force_generic_plan;
EXECUTE p (4);
SET openlora.pipeline_depth = 0;
EXECUTE p (5);
SET openlora.pipeline_depth = -1;
PREPARE q (int) AS SELECT id, ask(adapter, body) IS NULL AS nothing FROM task ORDER BY id LIMIT $1;
EXECUTE q (2);
SELECT set_config('test.seen', count(*)::text, false) IS NOT NULL AS seen FROM openlora.inferences;
EXECUTE q (3);
SELECT new_inferences();
RESET plan_cache_mode;
CREATE TABLE answer AS SELECT id, ask(adapter, body) AS a FROM task;
CREATE MATERIALIZED VIEW answers AS SELECT id, ask(adapter, body) AS a FROM task;
SELECT count(*) FROM answer JOIN answers USING (id) WHERE answer.a IS NOT DISTINCT FROM answers.a;
\copy (SELECT id FROM task WHERE lora_score(NULL, body, ' and') > 0 OR id < 3) TO STDOUT
COPY (SELECT id, length(ask(adapter, body)) > 0 FROM task WHERE id < 4) TO STDOUT;
DO $$
DECLARE
  a text;
  n int := 0;
  r record;
BEGIN
  a := lora_generate(NULL, 'a', max_tokens => 1) || lora_generate(NULL, 'b', max_tokens => 1);
  ASSERT a = (SELECT lora_generate(NULL, 'a', max_tokens => 1)) || (SELECT lora_generate(NULL, 'b', max_tokens => 1));
  FOR r IN SELECT id, ask(adapter, body) AS a FROM task ORDER BY id LOOP
    n := n + 1;
    ASSERT r.id = n AND r.a IS NOT DISTINCT FROM (SELECT answer.a FROM answer WHERE answer.id = r.id);
    EXIT WHEN n = 12;
  END LOOP;
END $$;
DROP MATERIALIZED VIEW answers;

-- work_mem bounds what is read ahead
SET work_mem = '64kB';
SELECT in_flight($$SELECT wide, lora_generate(NULL, 'x', max_tokens => 100) FROM (SELECT id, repeat('x', 30000) AS wide FROM task OFFSET 0) t$$) < 8 AS few;
SELECT count(*) FROM answer JOIN (SELECT id, ask(adapter, body) AS a FROM task) s USING (id) WHERE answer.a IS NOT DISTINCT FROM s.a;
RESET work_mem;

-- ---------------------------------------------------------------- whose calls
-- A function that runs with other rights or settings stays a plain call, and the right to
-- execute is asked for.
CREATE FUNCTION wrapped(text[], text, float8[], int, float8, int, float8, float8, float8, float8, float8, jsonb, bigint, text[], boolean, text)
  RETURNS text LANGUAGE c SECURITY DEFINER AS '$libdir/openlora', 'lora_generate';
EXPLAIN (COSTS OFF) SELECT wrapped(NULL, body, NULL, 1, 0, 0, 1, 0, 1, 0, 0, NULL, 1, NULL, false, 'raise') FROM task;
CREATE ROLE pipe_reader;
GRANT SELECT ON task TO pipe_reader;
SET ROLE pipe_reader;
\set VERBOSITY terse
SELECT lora_generate(NULL, body) FROM task;
\set VERBOSITY default
RESET ROLE;
REVOKE SELECT ON task FROM pipe_reader;
DROP ROLE pipe_reader;

-- ---------------------------------------------------------------- tables that others have added to
-- Rows beside an answer are written without a plan, unless there is more to be done.
CREATE FUNCTION credited() RETURNS SETOF record LANGUAGE sql AS $$
  SELECT kind, contributor_id IS NULL AS is_role, share, tokens FROM openlora.attributions
  WHERE inference = (SELECT max(id) FROM openlora.inferences) ORDER BY kind
$$;
SELECT lora_generate('{pipe_a}', 'Once', max_tokens => 1) IS NOT NULL AS answered;
SELECT * FROM credited() AS c (kind text, is_role boolean, share numeric, tokens numeric);
BEGIN;
CREATE TABLE seen (kind text, share numeric, tokens numeric);
CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO seen VALUES (NEW.kind, NEW.share, NEW.tokens);
  RETURN NEW;
END $$;
CREATE TRIGGER see AFTER INSERT ON openlora.attributions FOR EACH ROW EXECUTE FUNCTION see();
ALTER TABLE openlora.inference_adapters ADD COLUMN note text DEFAULT 'noted';
SELECT lora_generate('{pipe_a,pipe_b}', 'Once', max_tokens => 1) IS NOT NULL AS answered;
SELECT kind, count(*), round(sum(share)) AS share, round(sum(tokens)) AS tokens FROM seen GROUP BY 1 ORDER BY 1;
SELECT name, note FROM openlora.inference_adapters WHERE inference = (SELECT max(id) FROM openlora.inferences) ORDER BY 1;
ROLLBACK;
BEGIN;
ALTER TABLE openlora.attributions ADD CONSTRAINT small CHECK (tokens < 2) NOT VALID;
\set VERBOSITY terse
SELECT lora_generate('{pipe_a}', 'Once upon', max_tokens => 1);
\set VERBOSITY default
ROLLBACK;
DROP FUNCTION credited;
DROP TABLE task, word, shape, answer;
DROP SEQUENCE ticks;
DROP FUNCTION pipe_adapter, ask, outcome, is_pipelined, figures, in_flight, new_inferences, wrapped;
DELETE FROM openlora.adapters WHERE name LIKE 'pipe\_%';
