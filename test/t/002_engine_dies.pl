# The database survives the engine: promise P3.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use FindBin;
use lib $FindBin::Bin;
use OpenLora;

my $node = PostgreSQL::Test::Cluster->new('mortal');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'openlora'\nopenlora.model = '$ENV{OPENLORA_TEST_MODEL}'");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION openlora');
wait_ready($node);

my $long = q{SELECT md5(string_agg(lora_generate(NULL, 'Once upon a time ' || i, max_tokens => 800, temperature => 1,
  seed => i, ignore_eos => true), '' ORDER BY i)) FROM generate_series(1, 8) i};
my $expected = $node->safe_psql('postgres', $long);

# A session that has nothing to do with it, with state that a crash restart would lose.
my ($in, $out) = ('', '');
my $other = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres') ], '<', \$in, '>', \$out, IPC::Run::timeout(600));
$in .= "CREATE TEMP TABLE keep AS SELECT 42 AS answer;\n\\echo made\n";
$other->pump until $out =~ /made/;

my $called = q{EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'caller' AND query LIKE '%lora_generate%' AND state = 'active' AND wait_event_type = 'Extension')};
my $restarts = 0;
for my $signal ('KILL', 'SEGV')
{
	my ($run, $stdout, $stderr);
	kill_engine($node, $called, sub {
		$run->finish if $run;
		($run, $stdout, $stderr) = run_psql($node, 'caller', 'SET openlora.max_retries = 5', $long);
		return $run;
	}, $signal);
	$run->finish;
	$restarts++;
	is($$stderr, '', "$signal: the caller sees no error");
	is($$stdout =~ s/\s+//gr, $expected, "$signal: and the same answer, by a retry with the same seed");
	wait_ready($node);
	cmp_ok($node->safe_psql('postgres', 'SELECT restarts FROM lora_status()'), '>=', $restarts, "$signal: counted");
}

# Without retries: a clean error, and the session goes on.
{
	my ($run, $stdout, $stderr);
	kill_engine($node, $called, sub {
		$run->finish if $run;
		($run, $stdout, $stderr) = run_psql($node, 'caller', 'SET openlora.max_retries = 0', $long, 'SELECT 1');
		return $run;
	});
	$run->finish;
	like($$stderr, qr/08006: the openlora engine was lost/, 'without retries: an error with its SQLSTATE');
	like($$stdout, qr/^1$/m, 'and the session goes on');
}

$in .= "SELECT 'answer ' || answer FROM keep;\n";
$other->pump until $out =~ /answer 42/;
like($out, qr/answer 42/, 'the other session never noticed');
$in .= "\\q\n";
$other->finish;
unlike(slurp_file($node->logfile), qr/terminating any other active server processes/, 'no crash restart');
$node->stop;
done_testing();
