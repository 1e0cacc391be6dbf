-- Settlements: prices and shares to the last micro-unit, retries, late rows, corrections.
\set ON_ERROR_STOP on
\pset format unaligned
\pset tuples_only on
\pset pager off
BEGIN;
SELECT plan(48);
CREATE FUNCTION pg_temp.answer(at timestamptz, role text, input int, cached int, output int, adapters jsonb) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    made bigint;
BEGIN
    INSERT INTO openlora.inferences (at, role, role_id, function, base_model, prompt_tokens, cached_tokens, completion_tokens,
        finish_reason, temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, ignore_eos,
        max_tokens, seed, device, queue_ms, prefill_ms, decode_ms)
    VALUES (at, role, 10, 'test', '\x00', input, cached, output, 'eos', 0, 0, 1, 0, 1, 0, 0, false, 1, 1, 'cpu', 0, 0, 0)
    RETURNING id INTO made;
    INSERT INTO openlora.attributions (inference, kind, contributor, contributor_id, share, tokens)
    VALUES (made, 'model', 'meta', NULL, 1000000, 0), (made, 'compute', 'host', NULL, 1000000, 0);
    INSERT INTO openlora.inference_adapters (inference, position, adapter, name, digest, weight, share)
    SELECT made, n, (a ->> 'id')::bigint, a ->> 'name', '\x00', (a ->> 'weight')::float8, (a ->> 'share')::int
    FROM jsonb_array_elements(adapters) WITH ORDINALITY AS e (a, n);
    INSERT INTO openlora.attributions (inference, kind, adapter, dataset, contributor, contributor_id, share, tokens)
    SELECT made, c ->> 0, a ->> 'name', c ->> 1, k.name, k.id, (c ->> 3)::numeric * (a ->> 'share')::numeric / 1000000, 0
    FROM jsonb_array_elements(adapters) a, jsonb_array_elements(a -> 'credits') c, openlora.contributors k WHERE k.name = c ->> 2;
    RETURN made;
END $$;
INSERT INTO openlora.contributors (name) VALUES ('ann'), ('bob'), ('cid');
SELECT is(id, -1::bigint, 'a contributor stands for what is nobody''s') FROM openlora.contributors WHERE name = 'unattributed';
INSERT INTO openlora.reward_units VALUES ('EUR', 'a millionth of a euro');

-- policies
PREPARE policy AS INSERT INTO openlora.reward_policies (adapter, valid_from, valid_to, unit, portion, platform_fee, input_rate,
    cached_rate, output_rate, model_share, compute_share, adapter_share, dataset_share, platform_share, unattributed_share)
    VALUES ($1, $2, $3, 'EUR', $4, 10, 1000, 100, 3000, 200000, 100000, 300000, 200000, 100000, $5);
SELECT throws_ok($$EXECUTE policy(NULL, '2020-01-01', NULL, 'measured', 0)$$, '23514', NULL, 'shares of a policy are the whole');
SELECT throws_ok($$EXECUTE policy(1, '2020-01-01', NULL, 'measured', 100000)$$, '23514', NULL, 'an adapter''s policy has no unit of its own');
SELECT lives_ok($$EXECUTE policy(NULL, '2020-01-01', '2021-01-01', 'measured', 100000)$$, 'a policy for a year');
SELECT throws_ok($$EXECUTE policy(NULL, '2020-12-31', NULL, 'weight', 100000)$$, '23P01', NULL, 'two cannot be valid at the same time');
SELECT lives_ok($$EXECUTE policy(NULL, '2021-01-01', NULL, 'weight', 100000)$$, 'one after the other can');

-- one answer by hand: 100 new, 50 cached, 200 answered: 100 * 1 + 50 * 0.1 + 200 * 3 = 705, and the fee of 10
SELECT pg_temp.answer('2020-06-01', 'app', 150, 50, 200, '[
    {"id": 1, "name": "x", "weight": 1, "share": 250000, "credits": [["adapter", null, "ann", 1000000], ["dataset", "d", "bob", 600000],
        ["dataset", "d", "unattributed", 400000]]},
    {"id": 2, "name": "y", "weight": 1, "share": 750000, "credits": [["adapter", null, "cid", 1000000]]}]') AS first \gset
SELECT lora_settle('2020-07-01') AS one \gset
CREATE TEMP VIEW books AS SELECT settlement, account, kind, party, amount FROM openlora.ledger_entries;
SELECT is(amount, -715::bigint, 'the price') FROM books WHERE settlement = :one AND kind = 'price';
SELECT is(amount, 10::bigint, 'the fee is the platform''s') FROM books WHERE settlement = :one AND kind = 'fee';
-- exact: model 141, compute 70.5, platform 70.5, adapter 52.875 + 158.625, dataset 21.15 + 14.1 nobody's,
-- 70.5 the policy's nobody's, 105.75 y's datasets, whom nobody made
SELECT is((SELECT string_agg(party || ' ' || kind || ' ' || amount, ', ' ORDER BY party, kind) FROM books
           WHERE settlement = :one AND amount > 0 AND kind <> 'fee'),
          'ann adapter 53, bob dataset 21, cid adapter 159, host compute 70, meta model 141, platform platform 71, '
          || 'unattributed dataset 14, unattributed unattributed 176', 'largest remainder, once for the settlement');
SELECT is((SELECT sum(amount) FROM books WHERE settlement = :one), 0::numeric, 'the entries sum to zero');
SELECT is((SELECT sum(p.amount) FROM openlora.payouts p WHERE settlement = :one), 525::numeric, 'payouts: all but what is nobody''s');
SELECT is((SELECT string_agg(concat_ws(' ', i.inference = :first, i.kind, i.adapter, i.dataset, i.amount), ', ')
           FROM openlora.payouts p, lora_payout_receipts(p.id) i WHERE p.settlement = :one AND p.party = 'bob'),
          't dataset x d 21.15', 'what justifies a payout');

-- retries and order
SELECT is(lora_settle('2020-07-01'), :one::bigint, 'a retry is the same settlement');
SELECT throws_ok($$SELECT lora_settle('2020-06-30')$$, '55000', NULL, 'a closed period is not closed again');
SELECT throws_ok($$SELECT lora_settle(now() + interval '1 day')$$, '22023', NULL, 'nor one that is not over');
SELECT throws_ok($$SELECT lora_settle(NULL)$$, '22023', NULL, 'nor none');
SELECT is((SELECT count(*) FROM openlora.settlements), 1::bigint, 'these left nothing');

-- what was late is taken by the next; what has no policy waits for one
SELECT pg_temp.answer('2020-06-15', 'app', 1000, 0, 0, '[]') AS late, pg_temp.answer('2019-06-15', 'app', 1000, 0, 0, '[]') AS early,
       pg_temp.answer('2020-08-01', 'app', 0, 0, 0, '[]') AS later \gset
SELECT lora_settle('2020-08-01') AS two \gset
SELECT is((SELECT array_agg(inference) FROM openlora.settled_inferences WHERE settlement = :two), ARRAY[:late]::bigint[],
          'late for the first, so of the second; the end is not within');
SELECT is((SELECT amount FROM books WHERE settlement = :two AND account = 'unattributed'), 600::bigint,
          'without adapters their shares are nobody''s');
EXECUTE policy(NULL, '2019-01-01', '2020-01-01', 'measured', 100000);
SELECT lora_settle('2020-08-02') AS three \gset
SELECT is((SELECT array_agg(inference ORDER BY inference) FROM openlora.settled_inferences WHERE settlement = :three),
          ARRAY[:early, :later]::bigint[], 'a policy for earlier times lets earlier answers be settled');
SELECT throws_ok('UPDATE openlora.reward_policies SET input_rate = 1 WHERE valid_from < ''2020-02-01''', '55000', NULL,
                 'what was settled under does not change');
SELECT throws_ok('DELETE FROM openlora.reward_policies WHERE valid_from < ''2020-02-01''', '55000', NULL, 'nor go');
SELECT lives_ok('UPDATE openlora.reward_policies SET valid_to = ''2022-01-01'' WHERE valid_from = ''2021-01-01''', 'but it can end');

-- an adapter's own rates and shares, and parts by typed weight: 1:3 of 3000 becomes 750 at ten times the rate, and 2250
SELECT throws_ok($$INSERT INTO openlora.reward_policies (adapter, input_rate, cached_rate, output_rate, model_share, compute_share,
    adapter_share, dataset_share, platform_share) VALUES (1, -1, 0, 0, 0, 0, 1000000, 0, 0)$$, '23514', NULL, 'rates are not below zero');
INSERT INTO openlora.reward_policies (adapter, valid_from, input_rate, cached_rate, output_rate, model_share, compute_share,
    adapter_share, dataset_share, platform_share) VALUES (1, '2021-01-01', 0, 0, 30000, 0, 0, 1000000, 0, 0);
SELECT pg_temp.answer('2021-06-01', 'app', 0, 0, 1000, '[
    {"id": 1, "name": "x", "weight": -0.5, "share": 900000, "credits": [["adapter", null, "ann", 1000000]]},
    {"id": 2, "name": "y", "weight": 1.5, "share": 100000, "credits": [["adapter", null, "cid", 1000000]]}]') \g /dev/null
SELECT lora_settle('2021-07-01') AS four \gset
SELECT is((SELECT string_agg(party || ' ' || kind || ' ' || amount, ', ' ORDER BY party, kind) FROM books WHERE settlement = :four AND kind <> 'fee'),
          'ann adapter 7500, app price -9760, cid adapter 675, host compute 225, meta model 450, platform platform 225, '
          || 'unattributed unattributed 675', 'typed weights, and a policy for one adapter');

-- nobody is starved by rounding: a ten-thousandth of one micro-unit per answer, in 10,000 answers
SELECT count(pg_temp.answer('2021-08-01', 'app', 1, 0, 0, '[{"id": 9, "name": "z", "weight": 1, "share": 1000000, "credits":
    [["adapter", null, "ann", 999400], ["adapter", null, "bob", 600]]}]')) FROM generate_series(1, 10000) \g /dev/null
SELECT lora_settle('2021-09-01') AS five \gset
SELECT is((SELECT amount FROM books WHERE settlement = :five AND party = 'bob'), 2::bigint, 'small shares are not rounded away one by one');

-- corrections
SELECT id AS ann FROM openlora.contributors WHERE name = 'ann' \gset
SELECT throws_ok($$SELECT lora_correct('EUR', 'platform', 'contributor:99999', 5, 'why')$$, '42704', NULL, 'to nobody');
SELECT throws_ok($$SELECT lora_correct('EUR', 'platform', 'unattributed', 0, 'why')$$, '22023', NULL, 'of nothing');
SELECT throws_ok($$SELECT lora_correct('EUR', 'platform', 'unattributed', 1, '')$$, '22023', NULL, 'without a reason');
SELECT throws_ok($$SELECT lora_correct('EUR', 'platform', 'unattributed', 1, 'why', 99999)$$, '42704', 'settlement 99999 does not exist', 'of no settlement');
SELECT lora_correct('EUR', 'contributor:' || :ann, 'unattributed', 7000, 'the adapter was not hers', :four) AS six \gset
SELECT is((SELECT string_agg(account || ' ' || amount, ', ' ORDER BY amount) FROM books WHERE settlement = :six),
          format('contributor:%s -7000, unattributed 7000', :ann), 'an offsetting entry');
SELECT lora_correct('EUR', 'payer:a:b', 'platform', 1, 'a name with a colon') AS colon \gset
SELECT is((SELECT party FROM books WHERE settlement = :colon AND amount < 0), 'a:b', 'whatever a role is called');
SELECT throws_ok('UPDATE openlora.ledger_entries SET amount = amount + 1', '55000', NULL, 'entries are not changed');
SET LOCAL session_replication_role = replica;
SELECT throws_ok('DELETE FROM openlora.ledger_entries', '55000', NULL, 'nor without the triggers of an ordinary session');
SET LOCAL session_replication_role = origin;
SELECT throws_ok('DELETE FROM openlora.payouts', '55000', NULL, 'nor payouts dropped');
SELECT throws_ok('TRUNCATE openlora.claims', '55000', NULL, 'nor claims truncated');
SELECT throws_matching(format('DELETE FROM openlora.inferences WHERE id = %s', :first), 'constraint "settled_inferences_inference_fkey"', 'what was settled keeps its reason');
SELECT throws_ok(format($$INSERT INTO openlora.ledger_entries VALUES (%s, 'EUR', 'platform', 'correction', NULL, 'platform', 5);
    SET CONSTRAINTS ALL IMMEDIATE$$, :six), '23514', NULL, 'nothing is added that does not sum to zero');
SELECT throws_ok(format($$SET CONSTRAINTS ALL IMMEDIATE;
    INSERT INTO openlora.ledger_entries VALUES (%s, 'EUR', 'platform', 'correction', NULL, 'platform', 5)$$, :six), '23514', NULL,
    'nor after a check that was right');

-- millions of random splits: of int64, and of numeric, which must make the same of the same
CREATE FUNCTION pg_temp.wrong_splits(n bigint, seed bigint, by_numeric boolean) RETURNS bigint AS 'openlora', 'lora_test_splits' LANGUAGE C;
SELECT is(pg_temp.wrong_splits(2000000, 1, false), 0::bigint, 'two million splits sum to what was split, every part its exact share, rounded down or up');
SELECT is(pg_temp.wrong_splits(200000, 2, true), 0::bigint, 'as do those of exact decimals, in the same way');
-- and with weights that no integer holds: SPLITS says how many
\set splits 5000
\getenv splits SPLITS
SELECT setseed(0.5) \g /dev/null
CREATE TEMP TABLE random_splits AS
SELECT total, weights, openlora.split_units(total, weights) AS parts
FROM (SELECT s, (random() * 10 ^ (1 + s % 15))::bigint AS total, array_agg(CASE WHEN random() < 0.2 THEN 0 ELSE
             (random() * 10 ^ (random() * 20))::numeric + 0.000000001 END) || 0.5 AS weights
      FROM generate_series(1, :splits) AS s, generate_series(1, 1 + s % 9) AS n GROUP BY s) r;
SELECT is((SELECT count(*) FROM random_splits WHERE total <> (SELECT sum(p) FROM unnest(parts) p)), 0::bigint,
          'splits lose and create nothing');
SELECT is((SELECT count(*) FROM random_splits r, LATERAL (SELECT sum(w) AS sum FROM unnest(r.weights) w) t, unnest(r.weights, r.parts) AS u (w, p)
           WHERE p < floor(total * w / sum) OR p > floor(total * w / sum) + 1 OR w = 0 AND p <> 0), 0::bigint,
          'every part is its exact share, rounded down or up');
SELECT is(openlora.split_units(10, '{1,1,1}'), '{4,3,3}', 'the first of equals first');
SELECT is(openlora.split_units(9223372036854775807, '{0.1,0.2,0.7}'), '{922337203685477581,1844674407370955161,6456360425798343065}', 'to the limit');
SELECT throws_ok($$SELECT openlora.split_units(1, '{0,0}')$$, '22023', NULL, 'somebody must have a share');
SELECT throws_ok($$SELECT openlora.split_units(1, '{NaN}')$$, '22023', NULL, 'no number');
SELECT throws_ok($$SELECT openlora.split_units(-1, '{1}')$$, '22023', NULL, 'no amount');
SELECT * FROM finish();
ROLLBACK;
