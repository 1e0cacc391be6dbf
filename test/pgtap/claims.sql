-- Claims: OpenZeppelin's own tree dumps, proofs, and amounts that never fall.
\set ON_ERROR_STOP on
\pset format unaligned
\pset tuples_only on
\pset pager off
BEGIN;
SELECT plan(24);
SELECT is(openlora.keccak256(''), '\xc5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470', 'Keccak-256 of nothing');

-- dumps of the library; a standard leaf is abi.encode(string) hashed twice, a simple one the value
\set dumps `for f in "$OPENLORA_TEST_DATA"/merkle-openzeppelin/test/dumps/*.json; do printf '%s\t' "$(basename "$f")"; tr -d '\n' <"$f"; echo; done`
CREATE TEMP TABLE dumps AS
SELECT split_part(line, E'\t', 1) AS name, split_part(line, E'\t', 2)::jsonb AS j FROM regexp_split_to_table(:'dumps', E'\n') AS line WHERE line <> '';
CREATE FUNCTION pg_temp.bytes(hex text) RETURNS bytea LANGUAGE sql AS $$ SELECT decode(substr(hex, 3), 'hex') $$;
CREATE FUNCTION pg_temp.leaf(value jsonb) RETURNS bytea LANGUAGE sql AS $$
    SELECT CASE jsonb_typeof(value) WHEN 'string' THEN pg_temp.bytes(value #>> '{}') ELSE
        openlora.keccak256(openlora.keccak256(decode(lpad('20', 64, '0') || lpad(to_hex(octet_length(value ->> 0)), 64, '0')
        || rpad(encode(convert_to(value ->> 0, 'UTF8'), 'hex'), 64, '0'), 'hex'))) END
$$;
CREATE TEMP TABLE trees AS
SELECT name, j, (SELECT array_agg(pg_temp.bytes(n) ORDER BY o) FROM jsonb_array_elements_text(j -> 'tree') WITH ORDINALITY AS t (n, o)) AS nodes,
       (SELECT array_agg(leaf ORDER BY CASE WHEN name LIKE '%.sorted.%' THEN leaf END, o)
        FROM jsonb_array_elements(j -> 'values') WITH ORDINALITY AS v (v, o), pg_temp.leaf(v -> 'value') AS leaf) AS leaves
FROM dumps;
SELECT is((SELECT count(*) FROM trees), 4::bigint, 'four dumps');
SELECT is(openlora.merkle_tree(leaves), nodes, 'the tree of ' || name) FROM trees ORDER BY name;
SELECT ok(bool_and(openlora.merkle_verify(nodes[1], nodes[1 + (v ->> 'treeIndex')::int], openlora.merkle_proof(nodes, (v ->> 'treeIndex')::int))),
          'every leaf is proven in ' || name)
FROM trees, jsonb_array_elements(j -> 'values') v GROUP BY name ORDER BY name;
SELECT ok(NOT bool_or(openlora.merkle_verify(nodes[1], set_byte(nodes[1 + (v ->> 'treeIndex')::int], b, 0),
                                             openlora.merkle_proof(nodes, (v ->> 'treeIndex')::int))), 'and no other leaf')
FROM trees, jsonb_array_elements(j -> 'values') v, generate_series(0, 31) b
WHERE get_byte(nodes[1 + (v ->> 'treeIndex')::int], b) <> 0;
SELECT throws_ok($$SELECT openlora.merkle_tree('{}')$$, '22023', NULL, 'no tree of nothing');
SELECT throws_ok($$SELECT openlora.merkle_tree(ARRAY['\x00'::bytea])$$, '22023', NULL, 'leaves are hashes');
SELECT is(openlora.merkle_proof(openlora.merkle_tree(ARRAY[openlora.keccak256('')]), 0), '{}', 'one leaf is its own root');

-- what is claimable only grows
INSERT INTO openlora.reward_units VALUES ('TOK', 'the base unit of a token', decode(repeat('aa', 20), 'hex')),
                                         ('EUR', 'a millionth of a euro', NULL);
INSERT INTO openlora.contributors (name) VALUES ('ann'), ('bob');
SELECT max(id) FILTER (WHERE name = 'ann') AS ann, max(id) FILTER (WHERE name = 'bob') AS bob FROM openlora.contributors \gset
SELECT throws_ok('UPDATE openlora.contributors SET account = ''\x00'' WHERE name = ''ann''', '23514', NULL, 'an address has 20 bytes');
UPDATE openlora.contributors SET account = decode(repeat('01', 20), 'hex') WHERE id = :ann;
CREATE FUNCTION pg_temp.pay(unit text, whom bigint, amount bigint) RETURNS bigint LANGUAGE sql AS $$
    SELECT CASE WHEN amount > 0 THEN lora_correct(unit, 'platform', 'contributor:' || whom, amount, 'test')
                ELSE lora_correct(unit, 'contributor:' || whom, 'platform', - amount, 'test') END
$$;
CREATE FUNCTION pg_temp.claims(settlement bigint) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(left(encode(account, 'hex'), 2) || ' ' || claimable, ', ' ORDER BY account) FROM lora_claims(settlement)
$$;
SELECT pg_temp.pay('TOK', :ann, 100) AS one, pg_temp.pay('TOK', :bob, 50) AS two, pg_temp.pay('EUR', :ann, 7) AS three \gset
SELECT is(pg_temp.claims(:three), '01 100', 'no address, no claim; no token, no claim');
UPDATE openlora.contributors SET account = decode(repeat('02', 20), 'hex') WHERE id = :bob;
SELECT pg_temp.pay('TOK', :ann, -30) AS four \gset
SELECT is(pg_temp.claims(:four), '01 100, 02 50', 'a correction lowers no claim; what accrued is claimable once there is an address');
SELECT pg_temp.pay('TOK', :ann, 20) AS five, pg_temp.pay('TOK', :ann, 15) AS six \gset
SELECT is(pg_temp.claims(:five), '01 100, 02 50', 'what is earned later makes it up first');
SELECT is(pg_temp.claims(:six), '01 105, 02 50', 'and then adds');
UPDATE openlora.contributors SET account = decode(repeat('03', 20), 'hex') WHERE id = :ann;
SELECT pg_temp.pay('TOK', :ann, 9) AS seven \gset
SELECT is(pg_temp.claims(:seven), '01 105, 02 50, 03 9', 'a new address is owed what is earned from then on: nothing twice');
SELECT is(pg_temp.claims(:four), '01 100, 02 50', 'earlier claims stay as they were published');
SELECT ok(bool_and(openlora.merkle_verify(root, leaf, proof) AND leaf = openlora.keccak256(openlora.keccak256(decode(
          repeat('00', 12) || encode(account, 'hex') || repeat('00', 12) || repeat('aa', 20) || lpad(to_hex(claimable), 64, '0'), 'hex')))),
          'leaves as the distributor hashes them, with proofs') FROM lora_claims(:seven);
SELECT is((SELECT string_agg(v #>> '{value,2}', ',' ORDER BY v #>> '{value,0}') FROM jsonb_array_elements(lora_claims_json(:seven) -> 'values') v
           WHERE lora_claims_json(:seven) -> 'tree' ->> (v ->> 'treeIndex')::int IN (SELECT '0x' || encode(leaf, 'hex') FROM lora_claims(:seven))),
          '105,50,9', 'the dump, as the library reads it');
SELECT is(lora_claims_json(0), NULL, 'nothing claimable, no tree');
SELECT * FROM finish();
ROLLBACK;
