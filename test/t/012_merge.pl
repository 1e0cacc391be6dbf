# The process that merges: a cancel ends it, its death is an error of one statement, and
# neither, nor the engine's death meanwhile, leaves a row or a file, or harms anybody else.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = PostgreSQL::Test::Cluster->new('merge');
$node->init;
$node->append_conf('postgresql.conf',
	"shared_preload_libraries = 'openlora'\nopenlora.model = '$ENV{OPENLORA_TEST_MODEL}'\nopenlora.restart_backoff_max = 100ms\n");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION openlora');
sub sql { $node->safe_psql('postgres', $_[0]) }
sub ready { $node->poll_query_until('postgres', q{SELECT state = 'ready' FROM lora_status()}) or die 'not ready' }
ready();

my $demo = $ENV{OPENLORA_DEMO} || die 'OPENLORA_DEMO';
sql(qq{SELECT lora_adapter_import(name, pg_read_binary_file('$demo/adapters/' || name || '/adapter_model.safetensors'),
	pg_read_file('$demo/adapters/' || name || '/adapter_config.json')::jsonb) FROM unnest('{shakespeare,grimm}'::text[]) name});
my $postmaster = sql('SELECT pg_postmaster_start_time()');
# Backends of a crash restart are told from the first ones by this one.
my $witness = $node->background_psql('postgres');
$witness->query_safe('SELECT 1');

# A merge that is on its way, whose process stands still: (session, its error, backend, child).
sub start_merge
{
	my ($err, $child) = ('', '');
	my $run = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres') . ' application_name=merging', '-c',
		q{SELECT lora_adapter_merge('made', '{shakespeare,grimm}', '{1,1}', 'ties_svd', 0.5)} ],
		'>', \my $out, '2>', \$err, IPC::Run::timeout(180));
	$node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'merging'}) or die 'no session';
	my $backend = sql(q{SELECT pid FROM pg_stat_activity WHERE application_name = 'merging'});
	# the program, not what is forked before it is run; it takes a second or more
	until ($child = `pgrep -P $backend -f openlora-merge.*--method` + 0) { die "over: $err" unless kill 0, $backend; usleep(2000) }
	kill('STOP', $child) == 1 or die 'gone';
	return ($run, \$err, $backend, $child);
}

sub nothing_left
{
	my ($what, $child) = @_;
	ok(!kill(0, $child), "$what: no process is left") if $child;
	is(sql(q{SELECT count(*) FROM openlora.adapters WHERE name = 'made'}), '0', "$what: no row");
	is(sql(q{SELECT count(*) FROM pg_ls_dir('base/pgsql_tmp', true, false) f WHERE f LIKE '%openlora_merge%'}), '0', "$what: no file");
	is($witness->query_safe('SELECT pg_postmaster_start_time()'), $postmaster, "$what: other sessions live on");
}

my ($run, $err, $backend, $child) = start_merge();
sql("SELECT pg_cancel_backend($backend)");
$run->finish;
like($$err, qr/canceling statement due to user request/, 'a cancel ends a merge');
nothing_left('cancel', $child);

($run, $err, $backend, $child) = start_merge();
sql("SELECT pg_terminate_backend($backend)");
$run->finish;
like($$err, qr/terminating connection/, 'so does a termination');
$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $backend") or die 'still there';
nothing_left('termination', $child);

($run, $err, $backend, $child) = start_merge();
kill 'KILL', $child;
$run->finish;
like($$err, qr/openlora-merge was terminated by a signal.*Signal 9/s, 'its death is an error');
nothing_left('death', $child);

# The engine answers while a merge stands still, and may die meanwhile.
($run, $err, $backend, $child) = start_merge();
is(sql(q{SELECT lora_generate('{grimm}', 'Once', max_tokens => 3) IS NOT NULL}), 't', 'a merge blocks no step');
my $engine = sql('SELECT engine_pid FROM lora_status()');
kill 'KILL', $engine;
$node->poll_query_until('postgres', "SELECT state = 'ready' AND engine_pid <> $engine FROM lora_status()") or die 'no new engine';
kill 'CONT', $child;
$run->finish;
unlike($$err, qr/ERROR|FATAL/, 'the merge goes on when the engine has died'); # on a slow machine it tells how far it is
is(sql(q{SELECT count(*) FROM openlora.adapters WHERE name = 'made'}), '1', 'and its row is there');
is(sql(q{SELECT lora_generate('{made}', 'Once', max_tokens => 3) IS NOT NULL}), 't', 'and answers');
$witness->quit;
$node->stop;
done_testing();
