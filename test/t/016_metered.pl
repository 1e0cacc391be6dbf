# Settlement of metered usage: what only receipts tell of is paid to whom provenance named then.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('metered_usage');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'openlora'\nopenlora.model = '$ENV{OPENLORA_TEST_MODEL}'\nopenlora.prefix_cache = off\nmax_prepared_transactions = 2");
$node->start;
sub sql { return $node->safe_psql('postgres', $_[0]) }
sub fails { my ($query, $error, $what) = @_; my (undef, undef, $err) = $node->psql('postgres', $query); like($err, $error, $what) }

sql(q{CREATE EXTENSION openlora; CREATE ROLE asker LOGIN; SELECT lora_grant_usage('asker');
	CREATE ROLE ann LOGIN; SELECT lora_grant_usage('ann'); CREATE ROLE owner LOGIN; SELECT lora_grant_usage('owner', manage => true);
	INSERT INTO openlora.contributors (name, role) VALUES ('Ann', 'ann'), ('The owner', 'owner');
	INSERT INTO openlora.contributors (name) VALUES ('Bob'), ('Cid')});
$node->poll_query_until('postgres', q{SELECT state = 'ready' FROM lora_status()}) or die 'not ready';
for my $name ('grimm', 'shakespeare')
{
	my $dir = "$ENV{OPENLORA_DEMO}/adapters/$name";
	sql(qq{SELECT lora_adapter_import('$name', pg_read_binary_file('$dir/adapter_model.safetensors'), pg_read_file('$dir/adapter_config.json')::jsonb, shared => true);
		UPDATE openlora.adapters SET owner = 'owner' WHERE name = '$name'});
}
sql(q{SET ROLE owner; SELECT lora_adapter_provenance('grimm', '{"tales": 600000, "songs": 100000}', '{"Ann": 250000, "Bob": 333333}');
	INSERT INTO openlora.dataset_contributors SELECT d.id, c.id, 700000 FROM openlora.datasets d, openlora.contributors c WHERE d.name = 'tales' AND c.name = 'Cid';
	RESET ROLE; SELECT lora_adapter_provenance('shakespeare', NULL, '{"unattributed": 1000000}');
	INSERT INTO openlora.reward_units VALUES ('EUR', 'a millionth of a euro');
	INSERT INTO openlora.reward_policies (unit, valid_from, valid_to, usage, portion, platform_fee, input_rate, cached_rate, output_rate,
		model_share, compute_share, adapter_share, dataset_share, platform_share)
	VALUES ('EUR', '2020-01-01', NULL, 'committed', 'measured', 7, 1000000, 100000, 3000000, 300000, 200000, 300000, 150000, 50000)});

my $receipts = 0;
sub written { $receipts += shift // 1; $node->poll_query_until('postgres', "SELECT count(*) = $receipts FROM openlora.receipts") or die 'no receipt' }
my $ask = q{SELECT length(lora_generate('{grimm,shakespeare}', 'The king', weights => '{1,0.5}', max_tokens => 5, ignore_eos => true)) > 0};
my $credits = q{SELECT kind, adapter, dataset, contributor, contributor_id, trim_scale(share) FROM openlora.%s WHERE %s = %s ORDER BY 1, 2, 3, 4};
sub of_inference { return sql(sprintf $credits, 'attributions', 'inference', $_[0]) }
sub of_leaf { return sql(sprintf $credits, 'receipt_attributions', 'leaf', $_[0]) }
sub settled { my $made = sql('SELECT lora_settle(clock_timestamp())'); return sql("SELECT count(*) FROM openlora.settled_receipts WHERE settlement = $made") }
sub last_leaf { return sql('SELECT max(leaf) FROM openlora.receipts') }
sub in_balance { is(sql('SELECT count(*) FROM (SELECT FROM openlora.ledger_entries GROUP BY settlement, unit HAVING sum(amount) <> 0) x'), '0', 'the books sum to zero') }

# -- a policy that pays for what was committed
sql("SET ROLE asker; $ask");
sql("BEGIN; SET ROLE asker; $ask; ROLLBACK");
written(2);
is(settled(), '0', 'committed: a rollback is free');
my $asked = of_inference(1);
is(sql('SELECT count(*) FROM openlora.settled_inferences'), '1', 'the other is not');

# -- one that pays for what was metered: the same request, rolled back, credits the same
sql(q{UPDATE openlora.reward_policies SET valid_to = now(); INSERT INTO openlora.reward_policies (unit, valid_from, usage, portion,
	platform_fee, input_rate, cached_rate, output_rate, model_share, compute_share, adapter_share, dataset_share, platform_share)
	VALUES ('EUR', (SELECT valid_to FROM openlora.reward_policies), 'metered', 'measured', 7, 1000000, 100000, 3000000, 300000, 200000, 300000, 150000, 50000)});
sql("BEGIN; SET ROLE asker; $ask; ROLLBACK");
written();
my $leaf = last_leaf();
is(settled(), '1', 'metered: a rollback is settled, one of an earlier policy is not');
is(of_leaf($leaf), $asked, 'it credits whom the committed one credits');
is(sql(q{SELECT string_agg(DISTINCT total::text, ',') FROM (SELECT settlement, string_agg(account || kind || amount, ' ' ORDER BY account, kind) AS total
	FROM openlora.ledger_entries GROUP BY settlement) x}) =~ tr/,//, 0, 'and costs and pays the same');
is(settled(), '0', 'once');
in_balance();

# -- provenance that is edited afterwards
sub edit { return qq{SET ROLE owner; SELECT lora_adapter_provenance('grimm', '{"$_[0]": 1000000}', '{"Bob": 1000000}');} }
sql("BEGIN; $ask; ROLLBACK");
written();
sql(edit('other'));
settled();
is(of_leaf(last_leaf()), $asked, 'edited after the request: as it was');
sql("BEGIN; $ask; ROLLBACK");
written();
settled();
like(of_leaf(last_leaf()), qr/^adapter\|grimm\|\|Bob.*^dataset\|grimm\|other\|The owner/ms, 'edited before it: as it is now');
isnt(my $edited = of_leaf(last_leaf()), $asked, 'which is something else');

# -- one that waits in an open transaction to look older than it is
my $waiting = $node->background_psql('postgres');
$waiting->query_safe('BEGIN');
$waiting->query_safe(edit('old'));
sql("BEGIN; $ask; ROLLBACK");
written();
$waiting->query_safe('COMMIT');
settled();
is(of_leaf(last_leaf()), $edited, 'uncommitted when the receipt was written: does not count');
$waiting->query_safe('RESET ROLE; BEGIN; SELECT now()');
sql("BEGIN; $ask; ROLLBACK");
written();
$waiting->query_safe(edit('older') . 'COMMIT; RESET ROLE');
settled();
like(of_leaf(last_leaf()), qr/\|old\|/, 'made after it, in a transaction from before');
$waiting->query_safe('BEGIN');
$waiting->query_safe(edit('prepared') . q{RESET ROLE; PREPARE TRANSACTION 'later'});
sql("BEGIN; $ask; ROLLBACK");
written();
sql(q{COMMIT PREPARED 'later'});
settled();
like(of_leaf(last_leaf()), qr/\|older\|/, 'prepared before it');

# -- adapters that go, and that never came
sql("BEGIN; $ask; ROLLBACK");
written();
sql(q{DELETE FROM openlora.contributors WHERE name = 'Cid' AND NOT EXISTS (SELECT FROM openlora.dataset_contributors WHERE contributor = openlora.contributors.id);
	UPDATE openlora.contributors SET role = NULL WHERE name = 'The owner'; SELECT lora_adapter_drop('grimm')});
settled();
like(of_leaf(last_leaf()), qr/^adapter\|grimm\|\|Bob.*^dataset\|grimm\|prepared\|The owner/ms, 'of an adapter that is gone, and of whom it was named after');
my $dir = "$ENV{OPENLORA_DEMO}/adapters/grimm";
sql(qq{BEGIN; SELECT lora_adapter_import('mine', pg_read_binary_file('$dir/adapter_model.safetensors'), pg_read_file('$dir/adapter_config.json')::jsonb);
	SELECT length(lora_generate('{mine}', 'The king', max_tokens => 5, ignore_eos => true)); ROLLBACK});
written();
settled();
is(sql('SELECT string_agg(kind, \',\' ORDER BY kind) FROM openlora.receipt_attributions WHERE leaf = ' . last_leaf()), 'compute,model', 'an adapter that nobody committed is nobody\'s');
is(sql('SELECT length(name) FROM openlora.receipt_adapters WHERE leaf = ' . last_leaf()), '64', 'and has its digest for a name');
cmp_ok(sql(q{SELECT amount FROM openlora.ledger_entries WHERE account = 'unattributed' ORDER BY settlement DESC LIMIT 1}), '>', 0, 'its part is unattributed');

# -- a transaction that commits after its usage was settled
my $late = $node->background_psql('postgres');
$late->query_safe('BEGIN');
$late->query_safe(q{SELECT length(lora_generate('{shakespeare}', 'The queen', max_tokens => 5, ignore_eos => true))});
written();
is(settled(), '1', 'not committed when the period is closed: settled by its receipt');
$late->query_safe('COMMIT');
is(settled(), '0', 'not again');
is(sql('SELECT committed FROM openlora.receipt_status ORDER BY leaf DESC LIMIT 1'), 't', 'though it committed');
is(sql('SELECT count(*) FROM openlora.settled_inferences'), '1', 'nor by its inference');

# -- what is left early is paid for, too
for (1 .. 10)
{
	is(sql(q{SELECT count(*) FROM (SELECT lora_stream(NULL, 'Once', max_tokens => 900, ignore_eos => true) LIMIT 2) s}), '2', 'a stream is closed early');
	written();
	last if sql('SELECT outcome FROM openlora.receipts ORDER BY leaf DESC LIMIT 1') eq 'cancelled';
	settled(); # it has its end if the session sleeps in between
}
is(settled(), '1', 'and settled');
is(sql(q{SELECT (SELECT sum(amount) FROM openlora.payouts p WHERE p.settlement = s.id) >= (r.input_tokens - r.cached_tokens) * 1000 + r.output_tokens * 3000
	FROM openlora.receipts r, openlora.settlements s WHERE r.outcome = 'cancelled' ORDER BY s.id DESC LIMIT 1}), 'f', 'without adapters their shares are nobody\'s');
is(sql(q{SELECT -e.amount = (r.input_tokens - r.cached_tokens) * 1000 + r.cached_tokens * 100 + r.output_tokens * 3000 + 7
	FROM openlora.receipts r, openlora.ledger_entries e WHERE r.outcome = 'cancelled' AND e.kind = 'price' ORDER BY e.settlement DESC LIMIT 1}), 't', 'for the tokens of its receipt');
in_balance();

# -- what justifies a payout, and who sees it
is(sql(q{SELECT count(*) FROM openlora.payouts p WHERE abs(p.amount - (SELECT sum(r.amount) FROM lora_payout_receipts(p.id) r)) >= 3}), '0', 'receipts sum to their payout, but for its rounding');
is(sql(q{SELECT bool_and(r.leaf_hash = sha256('\x00' || lora_receipt_entry(r.leaf)) AND committed = (i.id IS NOT NULL OR r.inference IS NULL))
	FROM openlora.payouts p, lora_payout_receipts(p.id) r LEFT JOIN openlora.settled_inferences s ON s.inference = r.inference
	LEFT JOIN openlora.inferences i ON i.id = s.inference}), 't', 'each with its leaf');
sql(q{SELECT lora_ledger_create_key('example.com/log')});
like(sql(q{SELECT lora_receipt_proof(r.leaf) FROM openlora.payouts p, lora_payout_receipts(p.id) r ORDER BY r.leaf DESC LIMIT 1}), qr/^c2sp.org\/tlog-proof/, 'and a proof');
is(sql(q{SET ROLE ann; SELECT count(*) > 0 AND bool_and(party = 'Ann') FROM openlora.payouts}), 't', 'a contributor sees her payouts');
is(sql(q{SET ROLE ann; SELECT count(*) > 0 AND bool_and(r.leaf IS NOT NULL AND r.kind = 'adapter') FROM openlora.payouts p, lora_payout_receipts(p.id) r}), 't', 'and their receipts');
is(sql(q{SET ROLE ann; SELECT count(*) FROM openlora.receipts}), '0', 'which does not let her see who asked');
is(sql(q{SET ROLE ann; SELECT count(*) FROM generate_series(1, 200) p, lora_payout_receipts(p) r WHERE p NOT IN (SELECT id FROM openlora.payouts)}), '0', 'others\' payouts have none for her');
is(sql(q{SET ROLE asker; SELECT count(*) FROM generate_series(1, 200) p, lora_payout_receipts(p) r}), '0', 'nor for who asked');
fails('SET ROLE ann; SELECT * FROM openlora.payout_receipts(1)', qr/permission denied/, 'the function below is the owner\'s');
for my $table ('provenance_log', 'receipt_snapshots', 'receipt_attributions', 'receipt_adapters', 'settled_receipts', 'provenance_history')
{
	fails("SET ROLE owner; SELECT FROM openlora.$table", qr/permission denied/, "$table is the owner's to read");
}
for my $table ('provenance_log', 'receipt_snapshots', 'receipt_attributions', 'receipt_adapters', 'settled_receipts')
{
	fails("SET session_replication_role = replica; DELETE FROM openlora.$table", qr/not possible|are not changed/, "nobody changes $table");
}
$waiting->quit;
$late->quit;
$node->stop;
done_testing();
