-- lora_stream in FROM: rows come as tokens do, and otherwise as from any function.
CREATE VIEW attributed AS SELECT count(*) FROM openlora.inferences WHERE function = 'lora_stream';
CREATE TABLE mark AS SELECT count AS n FROM attributed;
CREATE VIEW since AS SELECT count - n AS attributed FROM attributed, mark;
\set long 'NULL, ''Once upon a time'', max_tokens => 900, ignore_eos => true'
EXPLAIN (COSTS OFF) SELECT text FROM lora_stream(:long) LIMIT 3;
EXPLAIN (COSTS OFF, VERBOSE) SELECT s.text || ':' || s.seq AS t, s FROM lora_stream(NULL, 'Once') AS s (seq, token) WHERE s.token > 3;
-- a row is here while the request runs; closing ends it
BEGIN;
DECLARE c CURSOR FOR SELECT seq, token IS NOT NULL AS token, text <> '' AS text, logprob <= 0 AS logprob FROM lora_stream(:long);
FETCH 1 FROM c;
FETCH 2 FROM c;
SELECT attributed FROM since;
CLOSE c;
SELECT count(*) FROM openlora.stat_activity;
COMMIT;
-- begun again if it had its end before anybody looked
CREATE FUNCTION streams() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  c CURSOR FOR SELECT seq FROM lora_stream(NULL, 'Once upon a time', max_tokens => 900, ignore_eos => true);
  seen text;
BEGIN
  FOR try IN 1 .. 20 LOOP
    OPEN c;
    MOVE c;
    SELECT string_agg(format('mine: %s, %s', pid = pg_backend_pid(), state), ';') INTO seen FROM openlora.stat_activity;
    CLOSE c;
    EXIT WHEN seen IS NOT NULL;
  END LOOP;
  RETURN seen;
END $$;
SELECT streams();
DROP FUNCTION streams;
-- forward and back; to the end, which is attributed once
BEGIN;
DECLARE c SCROLL CURSOR FOR SELECT seq FROM lora_stream(NULL, 'Once upon a time', max_tokens => 4, ignore_eos => true) WHERE token IS NOT NULL;
FETCH 2 FROM c;
FETCH BACKWARD 1 FROM c;
FETCH 2 FROM c;
FETCH BACKWARD 2 FROM c;
FETCH ALL FROM c;
FETCH BACKWARD ALL FROM c;
FETCH FIRST FROM c;
FETCH LAST FROM c;
FETCH ABSOLUTE 2 FROM c;
SELECT attributed FROM since;
CLOSE c;
DECLARE c NO SCROLL CURSOR FOR SELECT seq FROM lora_stream(:long);
FETCH 1 FROM c;
FETCH 1 FROM c;
FETCH BACKWARD 1 FROM c;
ROLLBACK;
-- a LIMIT leaves the rest, and no attribution; without one there is
SELECT seq FROM lora_stream(:long) LIMIT 3;
SELECT count(*) FROM openlora.stat_activity;
SELECT attributed FROM since;
SELECT count(*) FROM lora_stream(NULL, 'Once upon a time', max_tokens => 5, ignore_eos => true) WHERE token IS NOT NULL;
SELECT attributed FROM since;
-- the text is the other ways' text
SELECT (SELECT string_agg(text, '' ORDER BY seq) FROM lora_stream(NULL, 'Once', max_tokens => 12))
     = lora_generate(NULL, 'Once', max_tokens => 12) AS generated,
       (SELECT string_agg(text, '' ORDER BY seq) FROM lora_stream(NULL, 'Once', max_tokens => 12))
     = (SELECT string_agg((s).text, '' ORDER BY (s).seq) FROM (SELECT lora_stream(NULL, 'Once', max_tokens => 12) AS s OFFSET 0) t) AS selected;
-- whole rows, columns by other names, ordinality, other functions beside it
SELECT pg_typeof(s), s.seq = (s).seq AS same, to_jsonb(s) ?& '{seq,token,text,logprob}' AS names FROM lora_stream(NULL, 'Once', max_tokens => 1) AS s;
SELECT row_to_json(s)::jsonb ?& '{a,b,text,logprob}' AS renamed, s.* IS NOT NULL AS whole FROM lora_stream(NULL, 'Once', max_tokens => 1) AS s (a, b);
SELECT seq, ordinality FROM lora_stream(NULL, 'Once', max_tokens => 2, ignore_eos => true) WITH ORDINALITY WHERE token IS NOT NULL;
SELECT seq, i FROM ROWS FROM (lora_stream(NULL, 'Once', max_tokens => 2, ignore_eos => true), generate_series(1, 2)) AS s (seq, token, text, logprob, i) WHERE token IS NOT NULL;
-- What EXPLAIN tells of a query that is run; rows of a loop as before PostgreSQL 18.
CREATE FUNCTION ran(query text) RETURNS TABLE (line text) LANGUAGE plpgsql AS $$
BEGIN
  FOR line IN EXECUTE 'EXPLAIN (ANALYZE, BUFFERS OFF, COSTS OFF, TIMING OFF, SUMMARY OFF) ' || query LOOP
    line := replace(line, '.00 ', ' ');
    RETURN NEXT;
  END LOOP;
END $$;
-- one call for all rows of a join; with lateral arguments one for each
UPDATE mark SET n = (SELECT count FROM attributed);
SELECT * FROM ran($$SELECT i, seq FROM generate_series(1, 3) i LEFT JOIN lora_stream(NULL, 'Once', max_tokens => 2, ignore_eos => true) AS s ON seq <= i$$);
SELECT attributed FROM since;
SELECT * FROM ran($$SELECT i, seq FROM generate_series(1, 3) i, LATERAL lora_stream(NULL, 'Once ' || i, max_tokens => i, ignore_eos => true) WHERE token IS NOT NULL$$);
SELECT attributed FROM since;
SELECT i, array_agg(seq) FROM generate_series(1, 3) i, LATERAL lora_stream(NULL, 'Once ' || i, max_tokens => i, ignore_eos => true) WHERE token IS NOT NULL GROUP BY i ORDER BY i;
SELECT i, (SELECT count(seq) FROM lora_stream(NULL, (SELECT 'Once ' || i), max_tokens => 2, ignore_eos => true) s WHERE token IS NOT NULL) FROM generate_series(1, 2) i;
SELECT i, EXISTS (SELECT FROM lora_stream(NULL, 'Once ' || i, max_tokens => 900, ignore_eos => true)) FROM generate_series(1, 2) i;
SELECT * FROM ran('SELECT seq FROM lora_stream(' || :'long' || ') LIMIT 3');
-- calls over its rows
SELECT seq, lora_count_tokens(text) > 0 AS counted, lora_generate(NULL, text, max_tokens => 1) IS NOT NULL AS answered
FROM lora_stream(NULL, 'Once', max_tokens => 2, ignore_eos => true) WHERE token IS NOT NULL;
-- arguments that are NULL or wrong
SELECT * FROM lora_stream(NULL, NULL);
SELECT * FROM lora_stream('{nobody}', 'Once');
SELECT * FROM lora_stream('{nobody}', 'Once', on_error => 'null');
SELECT i, seq FROM (VALUES (1, NULL), (2, '{nobody}')) AS t (i, a), LATERAL lora_stream(a::text[], 'Once', max_tokens => 1, ignore_eos => true) WHERE token IS NOT NULL;
-- rights: of who executes
CREATE ROLE lora_streamer;
GRANT SELECT ON since, mark TO lora_streamer;
SET ROLE lora_streamer;
SELECT seq FROM lora_stream(NULL, 'Once', max_tokens => 1);
EXPLAIN (COSTS OFF) SELECT seq FROM lora_stream(NULL, 'Once', max_tokens => 1);
RESET ROLE;
SELECT lora_grant_usage('lora_streamer');
PREPARE streamed AS SELECT count(*) FROM lora_stream(NULL, 'Once', max_tokens => 1, ignore_eos => true) WHERE token IS NOT NULL;
SET ROLE lora_streamer;
EXECUTE streamed;
RESET ROLE;
DROP OWNED BY lora_streamer;
SET ROLE lora_streamer;
EXECUTE streamed;
RESET ROLE;
DROP ROLE lora_streamer;
-- rows that are written, or locked, in the same statement
CREATE TABLE target AS SELECT i AS seq, NULL::text AS t FROM generate_series(0, 1) i;
EXPLAIN (COSTS OFF) UPDATE target SET t = text FROM lora_stream(NULL, 'Once') AS s WHERE s.seq = target.seq;
UPDATE target SET t = 'x' || length(s.text) FROM lora_stream(NULL, 'Once', max_tokens => 2, ignore_eos => true) AS s WHERE s.seq = target.seq AND token IS NOT NULL;
INSERT INTO target SELECT 10 + seq, 'y' FROM lora_stream(NULL, 'Once', max_tokens => 2, ignore_eos => true) WHERE token IS NOT NULL;
SELECT seq, left(t, 1) FROM target ORDER BY 1;
SELECT target.seq FROM target, lora_stream(NULL, 'Once', max_tokens => 2, ignore_eos => true) AS s WHERE s.seq = target.seq AND token IS NOT NULL ORDER BY 1 FOR UPDATE;
-- in PL/pgSQL; and a cursor that outlives its transaction
DO $$ DECLARE r record; n int := 0; BEGIN
  FOR r IN SELECT seq FROM lora_stream(NULL, 'Once', max_tokens => 900, ignore_eos => true) LOOP n := n + 1; EXIT WHEN n = 3; END LOOP;
  RAISE NOTICE '% rows', n;
END $$;
SELECT count(*) FROM openlora.stat_activity;
DECLARE h CURSOR WITH HOLD FOR SELECT seq FROM lora_stream(NULL, 'Once', max_tokens => 3, ignore_eos => true) WHERE token IS NOT NULL;
FETCH 2 FROM h;
CLOSE h;
-- a savepoint that is undone takes the request along, not the cursor's rows
BEGIN;
DECLARE c CURSOR FOR SELECT seq FROM lora_stream(NULL, 'Once', max_tokens => 4, ignore_eos => true) WHERE token IS NOT NULL;
SAVEPOINT a;
FETCH 2 FROM c;
ROLLBACK TO a;
FETCH ALL FROM c;
COMMIT;
-- whatever the pipeline is set to
SET openlora.pipeline_depth = 0;
EXPLAIN (COSTS OFF) SELECT seq FROM lora_stream(NULL, 'Once');
RESET openlora.pipeline_depth;
DROP VIEW since, attributed;
DROP TABLE mark, target;
