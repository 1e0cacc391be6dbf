# The engine that comes after a reload may keep weights otherwise and so make other tokens. No answer
# is made of two engines: what was not handed out begins anew, what was handed out is not gone on
# with. And what is recorded of an answer is the engine that made it.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use FindBin;
use lib $FindBin::Bin;
use OpenLora;

my $node = PostgreSQL::Test::Cluster->new('another');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'openlora'\nopenlora.model = '$ENV{OPENLORA_TEST_MODEL}'");
$node->start;
sub sql { $node->safe_psql('postgres', $_[0]) }
sql('CREATE EXTENSION openlora');
wait_ready($node);

# A reload, and the engine that comes of it.
sub change_engine
{
	my ($setting) = @_;
	my $engine = engine_pid($node);
	sql("ALTER SYSTEM SET $setting");
	sql('SELECT pg_reload_conf()');
	wait_until($node, "SELECT state = 'ready' AND engine_pid <> $engine FROM lora_status()", 'an engine with new settings');
}

my $long = q{lora_generate(NULL, 'Once', max_tokens => 1000, ignore_eos => true)};
my $complete = q{(SELECT text FROM lora_complete(NULL, 'Once', max_tokens => 1000, ignore_eos => true, logprobs => 1))};
my %answer = (auto => sql("SELECT md5($long)"));
change_engine('openlora.quantization = int4');
$answer{int4} = sql("SELECT md5($long)");
isnt($answer{int4}, $answer{auto}, 'weights of 4 bits make other tokens');

# -- an answer that nobody has seen a part of ---------------------------------------------------------
# The engine is held when it has told of some tokens.
my $setting = 'int4';
for my $call ($long, $complete)
{
	my $other = $setting eq 'int4' ? 'auto' : 'int4';
	my @run;
	my $begin = sub {
		$run[0]->finish if @run;
		@run = run_psql($node, 'asked', "SELECT md5($call)");
		is_seen($node, 'SELECT coalesce(max(output_tokens) > 100, false) FROM openlora.stat_activity', $run[0]);
		return $run[0];
	};
	hold_engine($node, q{EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'asked' AND state = 'active')}, $begin);
	change_engine("openlora.quantization = $other");
	$run[0]->finish;
	is(${ $run[2] }, '', "$setting to $other: no error");
	is(${ $run[1] }, "$answer{$other}\n", 'the answer is the new engine\'s from its first token');
	wait_until($node, 'SELECT count(*) = 2 FROM openlora.receipts WHERE inference = (SELECT max(id) FROM openlora.inferences)', 'receipts');
	is(sql(q{SELECT string_agg(outcome || ' ' || (r.device LIKE '%, int4 weights') || ' ' || (r.device = i.device), ', ' ORDER BY leaf)
			FROM openlora.receipts r JOIN openlora.inferences i ON i.id = r.inference WHERE i.id = (SELECT max(id) FROM openlora.inferences)}),
		$setting eq 'int4' ? 'lost true false, done false true' : 'lost false false, done true true', 'and attributed to it; the other is metered as it was');
	$setting = $other;
}

# -- a stream ------------------------------------------------------------------------------------------
# Nobody can take back what was handed out. (Were the stream at its end when the engine is held, it
# would end well: then another one is begun.)
{
	my ($inference, $lost, $rest, $session) = (0, 0);
	for my $try (1 .. 20)
	{
		my $engine = engine_pid($node);
		$session = $node->background_psql('postgres', on_error_stop => 0);
		$session->query('BEGIN');
		$session->query(q{DECLARE c CURSOR FOR SELECT text FROM lora_stream(NULL, 'Once', max_tokens => 1000, ignore_eos => true)});
		$session->query('FETCH 40 FROM c');
		kill('STOP', $engine) == 1 or die "there is no engine $engine";
		$inference = sql('SELECT last_value FROM openlora.inferences_id_seq');
		change_engine('openlora.quantization = ' . ($setting eq 'int4' ? 'auto' : 'int4'));
		$setting = $setting eq 'int4' ? 'auto' : 'int4';
		$rest = $session->query('FETCH ALL FROM c');
		wait_until($node, "SELECT count(*) > 0 FROM openlora.receipts WHERE inference = $inference", 'a receipt');
		$lost = sql("SELECT bool_or(outcome = 'lost') FROM openlora.receipts WHERE inference = $inference") eq 't' and last;
		$session->quit;
	}
	ok($lost, 'an engine was lost in the midst of a stream');
	like($session->{stderr}, qr/the openlora engine was lost, and what came computes otherwise/, 'the stream ends with an error');
	like($session->{stderr}, qr/DETAIL:  The answer began on ".*"; now there is ".*"/, 'which tells why');
	is($rest, '', 'and with no further row');
	$session->query('ROLLBACK');
	$session->quit;
	is(sql("SELECT count(*) FROM openlora.receipts WHERE inference = $inference"), '1', 'the new engine was not asked');
}

# -- answers that were there before ---------------------------------------------------------------------
# Rows ahead are answered while the client looks at the first; they are attributed when they are returned.
{
	my $session = $node->background_psql('postgres');
	$session->query_safe('BEGIN');
	$session->query_safe(q{DECLARE c CURSOR FOR SELECT lora_generate(NULL, 'Once ' || i, max_tokens => 5) FROM generate_series(1, 20) i});
	my $last = sql('SELECT max(id) FROM openlora.inferences');
	$session->query_safe('FETCH 1 FROM c');
	wait_until($node, 'SELECT running + waiting = 0 FROM lora_status()', 'all answers');
	my $device = sql('SELECT device_description FROM lora_status()');
	change_engine('openlora.quantization = ' . ($setting eq 'int4' ? 'auto' : 'int4'));
	$session->query_safe('FETCH ALL FROM c');
	$session->query_safe('COMMIT');
	$session->quit;
	is(sql("SELECT count(*), count(DISTINCT device), min(device) = \$\$$device\$\$ FROM openlora.inferences WHERE id > $last"), '20|1|t',
		'what the engine before has answered is recorded as its own');
}
$node->stop;
done_testing();
