-- Verbatim spans against brute force on random texts, and who holds them.
\set ON_ERROR_STOP on
\pset format unaligned
\pset tuples_only on
\pset pager off
SET client_min_messages = warning;
BEGIN;
SELECT plan(51);
INSERT INTO openlora.datasets (name) VALUES ('random'), ('books'), ('more'), ('empty');
INSERT INTO openlora.contributors (name, role) VALUES ('ann', NULL), ('bob', 'pg_monitor'), ('cid', NULL);

-- random documents of few different words, long enough for several chunks of the index
SELECT setseed(0.25) \g /dev/null
INSERT INTO openlora.dataset_documents (dataset, name, text)
SELECT d.id, 'random ' || g, string_agg(substr('abcd', 1 + floor(random() * 4)::int, 1), ' ')
FROM openlora.datasets d, generate_series(1, 60) g, generate_series(1, 30 + g % 7) WHERE d.name = 'random' GROUP BY 1, 2;
SELECT lora_trace_index('random') AS words, (SELECT sum(30 + g % 7) FROM generate_series(1, 60) g) AS expected \gset
SELECT is(:words, :expected, 'words are counted');
CREATE TEMP TABLE texts AS SELECT id, array_agg(substr('abcde', 1 + floor(random() * CASE WHEN id % 10 = 0 THEN 5 ELSE 4 END)::int, 1)) AS words
FROM generate_series(1, 40) AS id, generate_series(1, 25) GROUP BY id;
-- the longest beginning at each word, by trying all
CREATE FUNCTION pg_temp.occurrences(span text[]) RETURNS bigint LANGUAGE sql AS $$
    SELECT count(*) FROM openlora.dataset_documents o JOIN openlora.datasets d ON d.id = o.dataset,
        generate_series(0, length(o.text) / 2) p
    WHERE d.name = 'random' AND starts_with(substr(o.text || ' ', 1 + 2 * p), array_to_string(span, ' ') || ' ')
$$;
CREATE FUNCTION pg_temp.brute(words text[], fewest int, OUT first_word int, OUT length int, OUT occurrences bigint) RETURNS SETOF record
LANGUAGE plpgsql AS $$
DECLARE
    covered int := 0;
    n bigint;
BEGIN
    FOR i IN 1 .. cardinality(words) LOOP
        length := 0;
        occurrences := 0;
        LOOP
            EXIT WHEN i + length > cardinality(words);
            n := pg_temp.occurrences(words[i : i + length]);
            EXIT WHEN n = 0;
            length := length + 1;
            occurrences := n;
        END LOOP;
        first_word := i - 1;
        IF length >= fewest AND i + length > covered THEN
            RETURN NEXT;
        END IF;
        covered := greatest(covered, i + length);
    END LOOP;
END $$;
CREATE TEMP TABLE both_ways AS
SELECT t.id, ARRAY(SELECT (b.first_word, b.length, b.occurrences)::text FROM pg_temp.brute(t.words, 2) b ORDER BY 1) AS brute,
       ARRAY(SELECT (s.first_word, s.words, s.occurrences)::text FROM openlora.datasets d,
             openlora.trace_spans(d.id, array_to_string(t.words, ' '), 2, 1000) s WHERE d.name = 'random' ORDER BY 1) AS indexed
FROM texts t;
SELECT is((SELECT count(*) FROM both_ways WHERE brute <> indexed), 0::bigint, 'the same spans as by trying all');
SELECT ok((SELECT sum(cardinality(brute)) FROM both_ways) > 100, 'which are many');
SELECT is((SELECT count(*) FROM texts t, openlora.datasets d, openlora.trace_spans(d.id, array_to_string(t.words, ' '), 2, 1000) s,
    unnest(s.places) p, LATERAL (SELECT t2.start, t2.document FROM openlora.trace_documents t2 WHERE t2.dataset = d.id AND t2.start <= p
                                 ORDER BY t2.start DESC LIMIT 1) t2 JOIN openlora.dataset_documents o ON o.id = t2.document
    WHERE d.name = 'random' AND substr(o.text, (1 + 2 * (p - t2.start))::int, length(s.span)) IS DISTINCT FROM s.span), 0::bigint,
    'every place holds its span');

-- who holds what
INSERT INTO openlora.dataset_documents (dataset, name, contributor, text)
SELECT d.id, v.name, c.id, v.text FROM (VALUES
    ('books', 'one', 'ann', E'It was the best of times,\n it was the worst of times.'),
    ('books', 'two', 'ann', 'They said that it was the best of times, always.'),
    ('books', 'three', 'bob', 'And so it was the best of times, for some. A common phrase. A common phrase. A common phrase.'),
    ('more', 'four', 'cid', 'And so it was the best of times, too, über allem Zweifel erhaben.')) v (dataset, name, contributor, text)
JOIN openlora.datasets d ON d.name = v.dataset JOIN openlora.contributors c ON c.name = v.contributor;
SELECT is(lora_trace_index('books') + lora_trace_index('more'), 66::bigint, 'two indexes');
CREATE FUNCTION pg_temp.trace(content text, datasets text[], most int, uploader regrole DEFAULT NULL) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(concat_ws('|', rank, span, "position", occurrences, document, document_word, contributor, credit), '; ' ORDER BY rank, document, document_word)
    FROM lora_trace(content, datasets, 3, most, uploader)
$$;
SELECT is(pg_temp.trace('Indeed it  was the best of times,', '{books}', 10),
          '1|it  was the best of times,|8|2|three|2|bob|3.5; 1|it  was the best of times,|8|2|two|3|ann|3.5', 'a span''s credit is split among its holders');
SELECT is(pg_temp.trace('the best of times,', '{books}', 10),
          '1|the best of times,|1|3|one|2|ann|1.25; 1|the best of times,|1|3|three|4|bob|2.5; 1|the best of times,|1|3|two|5|ann|1.25',
          'copies give nobody more');
SELECT is((SELECT string_agg(DISTINCT contributor || ' ' || credit, ', ') FROM lora_trace('And so it was the best of times,', NULL, 3, 10)),
          'bob 4.5, cid 4.5', 'over all datasets');
SELECT is(pg_temp.trace('A common phrase.', '{books}', 2), NULL, 'a common phrase is nobody''s');
SELECT is(pg_temp.trace('the best of times,', '{books}', 10, 'pg_monitor'),
          '1|the best of times,|1|3|one|2|ann|2.5; 1|the best of times,|1|3|two|5|ann|2.5', 'nor is what the uploader holds its own');
SELECT is(pg_temp.trace('an über allem Zweifel', '{more}', 10), '1|über allem Zweifel|4|1|four|11|cid|3', 'positions are characters');
SELECT is(pg_temp.trace('always. And so it', '{books}', 10), '1|And so it|9|1|three|0|bob|3', 'no span goes from one document into the next');
SELECT is(pg_temp.trace('', '{books}', 10), NULL, 'nothing in nothing');
SELECT is((SELECT DISTINCT basis FROM lora_trace('the best of times,')), NULL, 'six words by default');
SELECT throws_ok($$SELECT lora_trace('x', NULL, 0)$$, '22023', NULL, 'spans have words');
SELECT throws_ok($$SELECT lora_trace_index('nowhere')$$, '42704', NULL, 'no such dataset');
SELECT throws_ok($$UPDATE openlora.dataset_documents SET text = 'x'$$, '55000', NULL, 'texts are not changed under an index');
SELECT is(lora_trace_index('empty'), 0::bigint, 'an index of nothing');
SELECT is(pg_temp.trace('a b c', '{empty}', 10), NULL, 'finds nothing');

-- who may trace what: a user and another, and somebody with a dataset of his own
CREATE ROLE trace_user; CREATE ROLE trace_other; CREATE ROLE trace_maker;
SELECT lora_grant_usage('trace_user'), lora_grant_usage('trace_other'), lora_grant_usage('trace_maker', true) \g /dev/null
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO PUBLIC; -- what pgTAP needs
REVOKE EXECUTE ON FUNCTION lora_trace_index(text) FROM PUBLIC;
GRANT ALL ON ALL TABLES IN SCHEMA pg_temp TO PUBLIC;
GRANT ALL ON ALL SEQUENCES IN SCHEMA pg_temp TO PUBLIC;
CREATE FUNCTION pg_temp.kept(role text, output text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    made bigint;
BEGIN
    INSERT INTO openlora.inferences (role, role_id, function, base_model, prompt_tokens, cached_tokens, completion_tokens,
        finish_reason, temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, ignore_eos,
        max_tokens, seed, device, queue_ms, prefill_ms, decode_ms)
    VALUES (role, role::regrole, 'test', '\x00', 1, 0, 1, 'eos', 0, 0, 1, 0, 1, 0, 0, false, 1, 1, 'cpu', 0, 0, 0) RETURNING id INTO made;
    INSERT INTO openlora.inference_texts (inference, prompt, output) VALUES (made, 'x', output);
    RETURN made;
END $$;
SELECT pg_temp.kept('trace_user', 'And so it was the best of times, for some. It was the worst of times') AS answer \gset
SELECT set_config('trace.answer', :'answer', true) \g /dev/null
SET LOCAL ROLE trace_maker;
INSERT INTO openlora.datasets (name) VALUES ('his');
INSERT INTO openlora.dataset_documents (dataset, name, text) SELECT id, 'own', 'the worst of times came later' FROM openlora.datasets WHERE name = 'his';
SELECT is(lora_trace_index('his'), 6::bigint, 'whoever has a dataset indexes it');
SELECT throws_ok($$SELECT lora_trace_index('books')$$, '42501', NULL, 'and no other');
SELECT throws_ok($$SELECT lora_trace_index('nowhere')$$, '42704', NULL, 'nor one that is not there');
SELECT is(pg_temp.trace('It was the worst of times', NULL, 10), '1|the worst of times|8|1|own|0|trace_maker|4', 'it is compared with any text');
SELECT is(pg_temp.trace('It was the worst of times', '{books,more}', 10), NULL, 'those of others are not');
SELECT is((SELECT string_agg(name, ',') FROM openlora.dataset_documents), 'own', 'nor are they read');
SELECT throws_like(format('SELECT * FROM lora_trace(%s::bigint)', current_setting('trace.answer')), '%was not kept', 'nor another''s answer');
UPDATE openlora.datasets SET traceable = true WHERE name <> 'his';
SELECT is((SELECT count(*) FROM openlora.datasets WHERE traceable), 0::bigint, 'nor made traceable');
RESET ROLE;
UPDATE openlora.datasets SET traceable = true WHERE name = 'books';

SET LOCAL ROLE trace_user;
SELECT is((SELECT string_agg(concat_ws('|', span, dataset, document, contributor), '; ' ORDER BY rank, document) FROM lora_trace(:answer::bigint)),
          'And so it was the best of times, for some.|books|three|bob', 'a user traces an answer of its own, where that is allowed');
SELECT is((SELECT min(words) FROM lora_trace(:answer::bigint, min_words => 1, max_occurrences => 1000000)), 12, 'no short spans: by these texts are guessed');
SELECT is((SELECT count(*) FROM lora_trace(:answer::bigint, '{his,more,random}', 1, 1000)), 0::bigint, 'nothing of datasets that are not traceable');
SELECT is((SELECT count(*) FROM lora_trace('And so it was the best of times, for some. It was the worst of times', NULL, 1, 1000)), 0::bigint, 'nothing of what is no answer');
SELECT is((SELECT count(*) FROM lora_trace(NULL::text)) + (SELECT count(*) FROM lora_trace(NULL::bigint)), 0::bigint, 'nothing of nothing');
SELECT throws_ok($$SELECT lora_trace_index('books')$$, '42501', NULL, 'it indexes nothing');
SELECT throws_ok($$SELECT text FROM openlora.dataset_documents$$, '42501', NULL, 'reads no document');
SELECT throws_ok($$SELECT numbers FROM openlora.trace_chunks$$, '42501', NULL, 'nor the index');
SELECT throws_ok($$SELECT document FROM openlora.trace_documents$$, '42501', NULL, 'nor where they are');
SELECT throws_ok($$SELECT seed FROM openlora.trace_indexes$$, '42501', NULL, 'nor the seed');
SELECT throws_ok($$SELECT openlora.trace_spans(1, 'x', 1, 1)$$, '42501', NULL, 'nor goes around');
SELECT throws_ok($$SELECT openlora.trace_rows('x', '{1}', '{1}', 1, NULL)$$, '42501', NULL, 'in another way');
SELECT throws_ok($$INSERT INTO openlora.inference_texts VALUES (1, 'x', NULL, 'a guess')$$, '42501', NULL, 'it makes up no answers');
SELECT throws_ok($$UPDATE openlora.inference_texts SET output = 'a guess'$$, '42501', NULL, 'nor changes any');
SELECT throws_ok($$UPDATE openlora.datasets SET traceable = true$$, '42501', NULL, 'nor what is traceable');
-- names of its own in front of the built-in ones
CREATE FUNCTION pg_temp.pg_has_role(oid, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE FUNCTION pg_temp.always(text, text[]) RETURNS boolean LANGUAGE sql AS 'SELECT true';
SET LOCAL search_path = pg_temp, pg_catalog, public;
SELECT is((SELECT count(*) FROM lora_trace(:answer::bigint, '{his,more,random}', 1, 1000)), 0::bigint, 'whatever its search path');
RESET search_path;
RESET ROLE;
SET LOCAL ROLE trace_other;
SELECT throws_like(format('SELECT * FROM lora_trace(%s::bigint)', current_setting('trace.answer')), '%was not kept', 'another''s answer is as if it had not been kept');
SELECT throws_like('SELECT * FROM lora_trace(9000000000::bigint)', '%was not kept', 'just as one that never was');
RESET ROLE;
-- as the owner of a function
CREATE FUNCTION pg_temp.of_maker(content text) RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM lora_trace($1, NULL, 3, 10)';
ALTER FUNCTION pg_temp.of_maker(text) OWNER TO trace_maker;
SET LOCAL ROLE trace_user;
SELECT is(pg_temp.of_maker('It was the worst of times'), 1::bigint, 'in a SECURITY DEFINER function its owner asks');
RESET ROLE;
SELECT is((SELECT count(*) FROM lora_trace('it was the worst of times.', NULL, 3, 10)), 3::bigint, 'a superuser traces all');
SELECT ok((SELECT min(words) FROM lora_trace(:answer::bigint, '{books}', 1, 1000)) < 6, 'short spans, too');
SELECT is((SELECT string_agg(DISTINCT dataset, ',') FROM lora_trace(:answer::bigint, NULL, 3)), 'books,his,more', 'answers, too');
SELECT is((SELECT count(*) FROM openlora.stat_progress_trace), 0::bigint, 'nothing is being built');
SET LOCAL ROLE trace_user;
SELECT is((SELECT count(*) FROM openlora.stat_progress_trace), 0::bigint, 'whoever asks');
RESET ROLE;
SELECT * FROM finish();
ROLLBACK;
