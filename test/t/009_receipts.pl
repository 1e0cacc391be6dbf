# Receipts: usage is metered whatever becomes of the caller's transaction, nobody waits for
# the process that writes them, and what a stop or a crash leaves.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use FindBin;
use lib $FindBin::Bin;
use OpenLora;

my $node = PostgreSQL::Test::Cluster->new('metered');
$node->init;
$node->append_conf('postgresql.conf',
	"shared_preload_libraries = 'openlora'\nopenlora.model = '$ENV{OPENLORA_TEST_MODEL}'\nclient_connection_check_interval = 50ms");
$node->start;
$node->safe_psql('postgres', q{CREATE EXTENSION openlora; CREATE ROLE asker LOGIN; SELECT lora_grant_usage('asker'); CREATE ROLE other LOGIN; SELECT lora_grant_usage('other')});

my $ask = q{SELECT length(lora_generate(NULL, 'Once upon a time', max_tokens => 3, ignore_eos => true)) > 0};
my $endless = q{SELECT count(lora_generate(NULL, 'Once ' || i, max_tokens => 900, ignore_eos => true)) FROM generate_series(1, 1000) i};

sub sql { return $node->safe_psql('postgres', $_[0]) }
sub ready { $node->poll_query_until('postgres', q{SELECT state = 'ready' FROM lora_status()}) or die 'not ready' }
sub until_true { my ($query, $what) = @_; ok($node->poll_query_until('postgres', $query), $what) }
# Leaves are 0, 1, 2, ...
sub whole { is(sql('SELECT count(*) = max(leaf) + 1 AND min(leaf) = 0 FROM openlora.receipts'), 't', "$_[0]: no gap") }

# -- whatever the caller does
ready();
sql("SET ROLE asker; $ask");
until_true(q{SELECT count(*) = 1 FROM openlora.receipt_status WHERE committed AND role = 'asker' AND outcome = 'done' AND output_tokens = 3}, 'a commit');
is(sql(q{SELECT r.prompt_digest = sha256(i.salt || 'Once upon a time'::bytea) FROM openlora.receipts r JOIN openlora.inferences i ON i.id = r.inference}),
	't', 'the digest is that of salt and prompt');
sql("BEGIN; $ask; ROLLBACK");
until_true(q{SELECT count(*) = 1 FROM openlora.receipt_status WHERE NOT committed AND outcome = 'done'}, 'a rollback is metered');
sql(q{DO $$ BEGIN PERFORM lora_generate(NULL, 'Once', max_tokens => 3); RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN END $$});
until_true(q{SELECT count(*) = 2 FROM openlora.receipt_status WHERE NOT committed AND outcome = 'done'}, 'a subtransaction rolled back, too');

for my $how ('pg_cancel_backend', 'pg_terminate_backend')
{
	my $before = sql('SELECT count(*) FROM openlora.receipts');
	my $run = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres') . ' application_name=endless', '-c', $endless ],
		'>', \my $out, '2>', \my $err, IPC::Run::timeout(300));
	$node->poll_query_until('postgres', q{SELECT running > 0 FROM lora_status()}) or die 'nothing runs';
	sql(qq{SELECT $how(pid) FROM pg_stat_activity WHERE application_name = 'endless'});
	$run->finish;
	until_true(qq{SELECT count(*) > 0 AND bool_and(NOT committed) FROM openlora.receipt_status WHERE leaf >= $before}, "$how: metered, not committed");
	until_true(q{SELECT running = 0 FROM lora_status()}, "$how: nothing runs");
}
{
	my $before = sql('SELECT count(*) FROM openlora.receipts');
	my $run = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres') . ' application_name=leaving', '-c', $endless ],
		'>', \my $out, '2>', \my $err, IPC::Run::timeout(300));
	$node->poll_query_until('postgres', q{SELECT running > 0 FROM lora_status()}) or die 'nothing runs';
	$run->kill_kill(grace => 0);
	until_true(qq{SELECT count(*) > 0 AND bool_or(outcome = 'cancelled') AND NOT bool_or(committed) FROM openlora.receipt_status WHERE leaf >= $before}, 'a client that is gone: metered');
	until_true(q{SELECT running = 0 FROM lora_status()}, 'a client that is gone: nothing runs');

	# told by its length from those before, whose receipts may be on their way; it has its end if the session sleeps in between
	my $outcome = '';
	for my $tokens (901 .. 910)
	{
		last if $outcome eq 'cancelled';
		is(sql(qq{SELECT count(*) FROM (SELECT lora_stream(NULL, 'Once', max_tokens => $tokens, ignore_eos => true) LIMIT 2) s}), '2', 'a stream is closed early');
		until_true("SELECT count(*) = 1 AND bool_and(output_tokens >= 2) FROM openlora.receipts WHERE max_tokens = $tokens", 'and metered');
		$outcome = sql("SELECT outcome FROM openlora.receipts WHERE max_tokens = $tokens");
	}
	is($outcome, 'cancelled', 'as what was cancelled');
}
whole('after ends of all kinds');

# -- an engine that dies: what it has reported is metered, and the request executed again
my ($run, $lost, $errors);
kill_engine($node, q{(SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'lost' AND state = 'active' AND wait_event_type = 'Extension')}, sub {
	$run->finish if $run;
	($run, $lost, $errors) = run_psql($node, 'lost', q{SELECT inference_id FROM lora_complete(NULL, 'Lost', max_tokens => 900, ignore_eos => true)});
	return $run;
}, undef, 'EXISTS (SELECT FROM openlora.stat_activity WHERE output_tokens > 60)');
$run->finish;
$lost = $$lost + 0;
until_true("SELECT count(*) = 1 FROM openlora.receipts WHERE inference = $lost AND outcome = 'done'", 'one receipt after a lost engine');
is(sql("SELECT attempt, count(*), bool_and(output_tokens >= 40 AND input_tokens > 0 AND r.output_digest <> d.output_digest) FROM openlora.receipts r,
	LATERAL (SELECT output_digest FROM openlora.receipts WHERE inference = $lost AND outcome = 'done') d WHERE inference = $lost AND outcome = 'lost' GROUP BY 1"), '0|1|t', 'one of what was lost, and no other');
is(sql("SELECT attempt FROM openlora.receipts WHERE inference = $lost AND outcome = 'done'"), '1', 'of the second attempt');

# -- who sees what, and that nothing is changed
is(sql('SET ROLE asker; SELECT count(*) > 0 AND bool_and(committed) FROM openlora.receipt_status'), 't', 'a role sees its own');
is(sql('SET ROLE other; SELECT count(*) FROM openlora.receipts'), '0', 'another sees none');
for my $change ('UPDATE openlora.receipts SET input_tokens = 0', 'DELETE FROM openlora.receipts', 'TRUNCATE openlora.receipts')
{
	for my $mode ('origin', 'replica')
	{
		my ($code, $out, $err) = $node->psql('postgres', "SET session_replication_role = $mode; $change");
		like($err, qr/of table "receipts" is not possible/, "$change as a superuser, $mode");
	}
	my ($code, $out, $err) = $node->psql('postgres', "SET ROLE asker; $change");
	like($err, qr/permission denied/, "$change as a user");
}
my ($code, $out, $err) = $node->psql('postgres', 'SET ROLE asker; INSERT INTO openlora.receipts SELECT * FROM openlora.receipts');
like($err, qr/permission denied/, 'nor does a user add any');

# -- a ledger that cannot write: nobody waits, what does not fit in memory goes to a file
my $blocker = $node->background_psql('postgres');
$blocker->query_safe('BEGIN; LOCK TABLE openlora.receipts IN EXCLUSIVE MODE');
my $before = sql('SELECT count(*) FROM openlora.receipts');
my $many = q{SELECT count(lora_generate(NULL, 'Many', max_tokens => 1, ignore_eos => true)) FROM generate_series(1, 400)};
is(sql($many), '400', 'nobody waits for the ledger');
my ($file) = glob $node->data_dir . '/pg_stat/openlora_receipts.*';
ok($file, 'what does not fit in memory is in a file');
open my $torn, '>>:raw', $file or die; # as a full disk leaves it
print $torn 'x' x 100;
close $torn;
sql($ask) for 1 .. 5;
$blocker->query_safe('COMMIT');
until_true("SELECT count(*) = $before + 405 FROM openlora.receipts", 'all are written when it can, also after half a one');
$before += 5;
whole('with a file');
$node->poll_query_until('postgres', 'SELECT pg_ls_dir IS NULL FROM (SELECT 1) o LEFT JOIN pg_ls_dir(\'pg_stat\') ON pg_ls_dir LIKE \'openlora_receipts%\'') or die 'the file stays';
is(sql("SELECT count(DISTINCT (inference, attempt)) = count(*) FROM openlora.receipts"), 't', 'none twice');

# -- a stop carries over what was not written
$blocker->query_safe('BEGIN; LOCK TABLE openlora.receipts IN EXCLUSIVE MODE');
sql($many);
$node->stop('fast');
open my $orphan, '>:raw', $node->data_dir . '/pg_stat/openlora_receipts.4000000000' or die; # of a database that was dropped
close $orphan;
$node->start;
$node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_ls_dir('pg_stat') d WHERE d LIKE '%.4000000000%'}) or die 'the file of a dropped database stays';
until_true("SELECT count(*) = $before + 800 FROM openlora.receipts", 'a stop loses none');
whole('after a stop');
is(sql('SELECT bool_and(committed) FROM openlora.receipt_status WHERE leaf >= ' . $before), 't', 'each with its inference');

# -- a crash loses what was not written, never an attribution, and leaves no gap
ready();
sql($ask);
until_true("SELECT count(*) = $before + 801 FROM openlora.receipts", 'written');
$blocker = $node->background_psql('postgres');
$blocker->query_safe('BEGIN; LOCK TABLE openlora.receipts IN EXCLUSIVE MODE');
my $inferences = sql('SELECT count(*) FROM openlora.inferences');
sql($ask) for 1 .. 3;
$node->stop('immediate');
$node->start;
ready();
is(sql('SELECT count(*) FROM openlora.inferences'), $inferences + 3, 'a crash loses no attribution');
cmp_ok(sql('SELECT count(*) FROM openlora.receipts'), '>=', $before + 801, 'nor what was written');
sql($ask);
until_true('SELECT count(*) = 1 FROM openlora.receipt_status WHERE inference = (SELECT max(id) FROM openlora.inferences)', 'and it goes on');
whole('after a crash');

# -- kill -9 of the postmaster
sub start_again
{
	for (1 .. 100) { $node->{_pid} = undef; last if $node->start(fail_ok => 1); select undef, undef, undef, 0.1 } # others are leaving
	ready();
}
{
	my $written = sql('SELECT count(*) FROM openlora.receipts');
	my $answered = sql('SELECT count(*) FROM openlora.inferences');
	my $run = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', $endless ], '>', \my $out, '2>', \my $err, IPC::Run::timeout(300));
	$node->poll_query_until('postgres', q{SELECT running > 0 FROM lora_status()}) or die 'nothing runs';
	$node->kill9;
	$run->finish;
	start_again();
	is(sql('SELECT count(*) FROM openlora.inferences'), $answered, 'killed while it runs: no half of an attribution');
	cmp_ok(sql('SELECT count(*) FROM openlora.receipts'), '>=', $written, 'nor is a receipt missing that was there');

	# answered, and the receipts are in memory and in the file
	$blocker = $node->background_psql('postgres');
	$blocker->query_safe('BEGIN; LOCK TABLE openlora.receipts IN EXCLUSIVE MODE');
	$written = sql('SELECT count(*) FROM openlora.receipts');
	sql($many);
	$node->kill9;
	start_again();
	is(sql('SELECT count(*) FROM openlora.inferences'), $answered + 400, 'killed after answers: no attribution is lost');
	until_true("SELECT count(*) >= $written + 400 - 256 FROM openlora.receipts", 'nor what was in the file');
	is(sql('SELECT count(*) FROM openlora.attributions a FULL JOIN openlora.inferences i ON i.id = a.inference WHERE a IS NULL OR i IS NULL'), '0', 'each with its attributions');
	sql($ask);
	until_true('SELECT count(*) = 1 FROM openlora.receipt_status WHERE inference = (SELECT max(id) FROM openlora.inferences)', 'and it goes on');
	whole('after kill -9');
	is(sql('SELECT checked > 0 AND bad IS NULL FROM lora_ledger_verify()'), 't', 'the tree is whole');
}

# -- openlora.receipt_durability = sync: no token leaves before its request is on disk
{
	my $sync = q{SET openlora.receipt_durability = sync};
	sql("$sync; $ask");
	is(sql('SELECT count(*) FROM openlora.announcements a JOIN openlora.inferences i ON i.id = a.inference'), '1', 'announced');
	until_true('SELECT count(*) = 0 FROM openlora.unmetered', 'and metered');
	sql("$sync; SELECT count(lora_generate(NULL, 'Many ' || i, max_tokens => 1, ignore_eos => true)) FROM generate_series(1, 300) i");
	is(sql('SELECT count(*) FROM openlora.announcements'), '301', 'more than there is room for');
	is(sql("$sync; SET openlora.attribution = off; $ask"), 't', 'what is not metered is not announced');
	is(sql('SELECT count(*) FROM openlora.announcements'), '301', 'so it is');
	is(sql("$sync; SELECT count(*) FROM lora_stream(NULL, 'Once', max_tokens => 3, ignore_eos => true) WHERE token IS NOT NULL"), '3', 'a stream');
	until_true('SELECT count(*) = 0 FROM openlora.unmetered', 'all metered');
	for my $change ('UPDATE openlora.announcements SET max_tokens = 0', 'DELETE FROM openlora.announcements')
	{
		my ($code, $out, $err) = $node->psql('postgres', "SET session_replication_role = replica; $change");
		like($err, qr/of table "receipts" is not possible/, $change);
	}
	whole('with announcements, which are leaves');
	is(sql('SELECT checked > 0 AND bad IS NULL FROM lora_ledger_verify()'), 't', 'and verified');
	# what is announced has a receipt in the end, even if nothing was computed
	($code, $out, $err) = $node->psql('postgres', "$sync; SELECT lora_generate(NULL, repeat('too long ', 5000))");
	like($err, qr/context/, 'a request that is refused');
	is(sql('SELECT count(*) FROM openlora.announcements'), '303', 'was announced');
	until_true(q{SELECT outcome = 'failed' AND input_tokens = 0 FROM openlora.receipts ORDER BY leaf DESC LIMIT 1}, 'and has a receipt of nothing');
	{
		my $run = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres') . ' application_name=endless', '-c', $sync, '-c', $endless ],
			'>', \my $out, '2>', \my $err, IPC::Run::timeout(300));
		until_true(q{SELECT count(*) > 0 AND bool_and(state = 'running') FROM openlora.unmetered}, 'what runs is told from what is lost');
		sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'endless'});
		$run->finish;
		until_true('SELECT count(*) = 0 FROM openlora.unmetered', 'a backend that ends leaves nothing unmetered');
	}
	{
		my $run = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', $sync, '-c', $endless ],
			'>', \my $out, '2>', \my $err, IPC::Run::timeout(300));
		$node->poll_query_until('postgres', q{SELECT count(*) > 0 FROM openlora.stat_activity WHERE output_tokens > 0}) or die 'nothing runs';
		my $leaf = sql('SELECT max(leaf) FROM openlora.receipts');
		$node->stop('fast');
		$run->finish;
		$node->start;
		until_true('SELECT count(*) = 0 FROM openlora.unmetered', 'a stop leaves nothing unmetered');
		ready();
	}
	($code, $out, $err) = $node->psql('postgres', "SET ROLE asker; $sync");
	like($err, qr/permission denied/, 'not for everybody to set');

	# a ledger that cannot write: no token leaves
	$blocker = $node->background_psql('postgres');
	$blocker->query_safe('BEGIN; LOCK TABLE openlora.receipts IN EXCLUSIVE MODE');
	my $run = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres') . ' application_name=waiting', '-c', $sync, '-c', $ask ],
		'>', \my $told, '2>', \my $err2, IPC::Run::timeout(300));
	$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'waiting' AND state = 'active' AND query ~ 'Once'}) or die 'it does not wait';
	sql($ask) for 1 .. 3; # others have their answers
	is(sql(q{SELECT state FROM pg_stat_activity WHERE application_name = 'waiting'}), 'active', 'it waits for the ledger');
	$node->kill9;
	$run->finish;
	is($told, '', 'and nothing was told when the server dies');
	start_again();
	is(sql('SELECT count(*) FROM openlora.unmetered'), '0', 'nothing told, nothing missing');

	# announced, and the receipt is lost
	$run = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', $sync, '-c', $endless ], '>', \$told, '2>', \$err2, IPC::Run::timeout(300));
	my $announced = sql('SELECT count(*) FROM openlora.announcements');
	$node->poll_query_until('postgres', "SELECT count(*) > $announced FROM openlora.announcements") or die 'nothing is announced';
	$node->kill9;
	$run->finish;
	start_again();
	cmp_ok(sql(q{SELECT count(*) FROM openlora.unmetered WHERE state = 'lost'}), '>', 0, 'what a crash has lost of receipts shows');
	is(sql(q{SELECT count(*) FROM openlora.unmetered WHERE state = 'running'}), '0', 'and does not seem to run');
}

# -- a dump carries them
$node->safe_psql('postgres', 'CREATE DATABASE restored');
command_ok([ 'bash', '-c', 'pg_dump -d "$1" | psql -Xq -v ON_ERROR_STOP=1 -d "$2"', '-', $node->connstr('postgres'), $node->connstr('restored') ], 'dump and restore');
is($node->safe_psql('restored', 'SELECT count(*) FROM openlora.announcements'), sql('SELECT count(*) FROM openlora.announcements'), 'and announcements');
my $sum = q{SELECT count(*), md5(string_agg(r::text, '' ORDER BY leaf)) FROM openlora.receipts r};
is($node->safe_psql('restored', $sum), sql($sum), 'the same receipts');
$node->safe_psql('restored', $ask);
ok($node->poll_query_until('restored', 'SELECT (SELECT count(*) = max(leaf) + 1 FROM openlora.receipts) AND bool_or(committed AND leaf = (SELECT max(leaf) FROM openlora.receipts)) FROM openlora.receipt_status'),
	'and the restored database goes on');
ok($node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'openlora ledger'}), 'an idle ledger ends');
$node->safe_psql('postgres', 'DROP DATABASE restored');
$node->stop;
done_testing();
