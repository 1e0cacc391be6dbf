# pg_dump and restore: adapters, provenance, receipts, checkpoints, settlements and claims arrive
# as they were, also from a copy of a copy, and settling goes on there.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $temp = PostgreSQL::Test::Utils::tempdir;

sub server
{
	my ($name) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	$node->init;
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'openlora'\nopenlora.model = '$ENV{OPENLORA_TEST_MODEL}'");
	$node->start;
	return $node;
}
sub ready { $_[0]->poll_query_until('postgres', q{SELECT state = 'ready' FROM lora_status()}) or die 'not ready' }
sub written { $_[0]->poll_query_until('postgres', "SELECT count(*) = $_[1] FROM openlora.receipts") or die "not $_[1] receipts" }

my $first = server('original');
sub sql { return $first->safe_psql('postgres', $_[0]) }
sql(q{CREATE EXTENSION openlora; CREATE ROLE asker LOGIN; SELECT lora_grant_usage('asker'); CREATE ROLE owner LOGIN; SELECT lora_grant_usage('owner', manage => true);
	INSERT INTO openlora.contributors (name, role, account) VALUES ('Ann', NULL, decode(repeat('01', 20), 'hex')), ('The owner', 'owner', decode(repeat('02', 20), 'hex'));
	INSERT INTO openlora.contributors (name) VALUES ('Bob')});
ready($first);
my $dir = "$ENV{OPENLORA_DEMO}/adapters/grimm";
sql(qq{SELECT lora_adapter_import('grimm', pg_read_binary_file('$dir/adapter_model.safetensors'), pg_read_file('$dir/adapter_config.json')::jsonb, shared => true);
	UPDATE openlora.adapters SET owner = 'owner'; UPDATE openlora.datasets SET owner = 'owner'});
sql(q{SET ROLE owner; SELECT lora_adapter_provenance('grimm', '{"tales": 600000}', '{"Ann": 250000, "Bob": 333333}')});
sql(q{SELECT lora_grant('grimm', 'asker', weight_cap => 2.0); SELECT lora_set_quota('asker', tokens => 100000);
	INSERT INTO openlora.reward_units VALUES ('TOK', 'the base unit of a token', decode(repeat('aa', 20), 'hex')), ('EUR', 'a millionth of a euro', NULL);
	INSERT INTO openlora.reward_policies (unit, valid_from, usage, portion, platform_fee, input_rate, cached_rate, output_rate,
		model_share, compute_share, adapter_share, dataset_share, platform_share)
	VALUES ('TOK', '2020-01-01', 'metered', 'measured', 7, 1000000, 100000, 3000000, 300000, 200000, 300000, 150000, 50000)});
my $ask = q{SELECT length(lora_generate('{grimm}', 'The king', max_tokens => 5, ignore_eos => true))};
sql("SET ROLE asker; $ask") for 1 .. 3;
sql("BEGIN; SET ROLE asker; $ask; ROLLBACK") for 1 .. 2;
written($first, 5);
my $up_to = sql('SELECT clock_timestamp()');
my $settled = sql("SELECT lora_settle('$up_to')");
sql(q{SELECT lora_correct('TOK', 'platform', 'contributor:1', 40, 'a test', 1)});
my $key = sql(q{SELECT lora_ledger_create_key('example.com/log')});
my $checkpoint = sql('SELECT lora_checkpoint()');
# used and not settled; and then provenance changes
sql("BEGIN; SET ROLE asker; $ask; ROLLBACK");
written($first, 6);
sql(q{SET ROLE owner; SELECT lora_adapter_provenance('grimm', '{"other": 1000000}', '{"Bob": 1000000}')});

# Every row of every table that is carried, but for versions of provenance that the restores themselves wrote.
my $system = sql('SELECT openlora.system_identifier()');
my $tables = sql(q{SELECT string_agg(c.oid::regclass::text, ' ' ORDER BY c.oid::regclass::text) FROM pg_extension e, unnest(e.extconfig) t, pg_class c
	WHERE e.extname = 'openlora' AND c.oid = t AND c.relkind = 'r'});
like($tables, qr/openlora.adapters .*openlora.claims .*openlora.ledger_hashes .*openlora.provenance_log .*openlora.receipts .*openlora.settlements/, 'what is carried');
sub contents
{
	my ($node) = @_;
	return join "\n", map {
		my $which = $_ eq 'openlora.provenance_log' ? "WHERE system = $system" : '';
		"$_ " . $node->safe_psql('postgres', "SELECT count(*) || ' ' || md5(string_agg(t::text, '|' ORDER BY t::text)) FROM $_ t $which")
	} split / /, $tables;
}
sub claims { return $_[0]->safe_psql('postgres', 'SELECT s.id, c.* FROM openlora.settlements s, lora_claims(s.id) c ORDER BY 1, 2; SELECT s.id, lora_claims_json(s.id) FROM openlora.settlements s ORDER BY 1') }
sub payouts { return $_[0]->safe_psql('postgres', 'SELECT p.id, p.party, p.amount, r.* FROM openlora.payouts p, lora_payout_receipts(p.id) r') }
my ($rows, $roots, $paid) = (contents($first), claims($first), payouts($first));
cmp_ok(scalar(split /\n/, $roots), '>=', 5, 'there are claims');

my $from = $first;
# By name: how it is dumped, and restored. Several jobs need foreign keys not to be looked at: pg_dump
# does not note which data of an extension's tables refers to which.
for ([ 'restored', ['-Fc'], [] ], [ 'restored_again', ['-Fp'], undef ], [ 'restored_by_jobs', [ '-Fd', '-j', '3' ], [ '-j', '3' ] ])
{
	my ($name, $dump, $restore) = @$_;
	my $to = server($name);
	$to->safe_psql('postgres', "CREATE ROLE other_$_") for 1 .. 3; # so that roles have other oids
	$from->command_ok([ 'pg_dumpall', '--roles-only', '-f', "$temp/roles" ], "$name: roles are dumped");
	$from->command_checks_all([ 'pg_dump', @$dump, '-f', "$temp/$name", 'postgres' ], 0, [qr/^$/], [qr/^$/], "$name: the database is dumped");
	$to->psql('postgres', "\\i $temp/roles", on_error_stop => 0); # all but those that every cluster has
	if ($restore)
	{
		local $ENV{PGOPTIONS} = @$restore ? '-c session_replication_role=replica' : '';
		$to->command_ok([ 'pg_restore', '--exit-on-error', @$restore, '-d', 'postgres', "$temp/$name" ], "$name: and restored");
	}
	else
	{
		my (undef, undef, $err) = $to->psql('postgres', "\\i $temp/$name");
		is($err, '', "$name: and restored, from a script");
	}
	isnt($to->safe_psql('postgres', 'SELECT openlora.system_identifier()'), $system, "$name: another cluster");
	is(contents($to), $rows, "$name: every row is as it was");
	is($to->safe_psql('postgres', 'SELECT checked, bad IS NULL FROM lora_ledger_verify()'), '6|t', "$name: the ledger is verified");
	is(claims($to), $roots, "$name: the same claims, the same roots");
	is(payouts($to), $paid, "$name: payouts, and the receipts that justify them");
	is($to->safe_psql('postgres', "SELECT lora_settle('$up_to')"), $settled, "$name: what was closed is closed");
	is($to->safe_psql('postgres', 'SELECT count(*) FROM openlora.provenance_history WHERE valid_to IS NULL AND kind = \'adapter_dataset\''), '1', "$name: one provenance is valid now");
	my (undef, undef, $err) = $to->psql('postgres', 'UPDATE openlora.ledger_entries SET amount = 0');
	like($err, qr/are not changed/, "$name: nor can it be changed there");
	$from->stop;
	$from = $to;
}

# -- and goes on
ready($from);
my $sixth = $from->safe_psql('postgres', q{SELECT lora_settle(now()) \gset
	SELECT kind, dataset, contributor, trim_scale(share) FROM openlora.receipt_attributions WHERE leaf = 5 AND kind IN ('adapter', 'dataset') ORDER BY 1, 2, 3});
is($sixth, "adapter||Ann|250000\nadapter||Bob|333333\nadapter||The owner|416667\ndataset|tales|The owner|600000\ndataset||The owner|400000",
	'what was used before is settled by provenance as it was then');
$from->safe_psql('postgres', "BEGIN; $ask; ROLLBACK");
written($from, 7);
is($from->safe_psql('postgres', q{SELECT lora_settle(now()) \gset
	SELECT kind, dataset, contributor FROM openlora.receipt_attributions WHERE leaf = 6 AND kind IN ('adapter', 'dataset') ORDER BY 1, 2, 3}),
	"adapter||Bob\ndataset|other|The owner", 'what is used now, as it is now');
$from->safe_psql('postgres', q{SELECT lora_adapter_provenance('grimm', NULL, '{"Ann": 1000000}')});
$from->safe_psql('postgres', "BEGIN; $ask; ROLLBACK");
written($from, 8);
is($from->safe_psql('postgres', q{SELECT lora_settle(now()) \gset
	SELECT kind, dataset, contributor FROM openlora.receipt_attributions WHERE leaf = 7 AND kind IN ('adapter', 'dataset') ORDER BY 1, 2, 3}),
	"adapter||Ann\ndataset|other|The owner", 'and an edit counts');
is($from->safe_psql('postgres', 'SELECT checked, bad IS NULL FROM lora_ledger_verify()'), '8|t', 'receipts are added to those that came');
is($from->safe_psql('postgres', 'SELECT count(*) FROM (SELECT FROM openlora.ledger_entries GROUP BY settlement, unit HAVING sum(amount) <> 0) x'), '0', 'the books sum to zero');
is($from->safe_psql('postgres', 'SELECT lora_receipt_proof(0)') =~ s/.*(example\.com\/log\n\d+\n).*/$1/sr, "example.com/log\n5\n", 'the old checkpoint proves what was under it');
(undef, undef, my $err) = $from->psql('postgres', 'SELECT lora_checkpoint()');
like($err, qr/key/, 'no key came with a dump');
$from->stop;
done_testing();
