# The process that merges: a cancel ends it, its death is an error of one statement, and
# neither, nor the engine's death meanwhile, leaves a row or a file, or harms anybody else.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use FindBin;
use lib $FindBin::Bin;
use OpenLora;
use Time::HiRes qw(usleep);

my $node = PostgreSQL::Test::Cluster->new('merge');
$node->init;
$node->append_conf('postgresql.conf',
	"shared_preload_libraries = 'openlora'\nopenlora.model = '$ENV{OPENLORA_TEST_MODEL}'\nopenlora.restart_backoff_max = 100ms\n");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION openlora');
sub sql { $node->safe_psql('postgres', $_[0]) }
wait_ready($node);

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
	for (1 .. 20)
	{
		my ($run, $out, $err) = run_psql($node, 'merging', q{SELECT lora_adapter_merge('made', '{shakespeare,grimm}', '{1,1}', 'ties_svd', 0.5)});
		my $child = is_seen($node, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'merging'}, $run)
		  && stop_child(sql(q{SELECT pid FROM pg_stat_activity WHERE application_name = 'merging'}));
		return ($run, $err, sql(q{SELECT pid FROM pg_stat_activity WHERE application_name = 'merging'}), $child) if $child;
		$run->finish; # it was over before
		unlike($$err, qr/ERROR/, 'a merge that was not stopped');
		sql(q{SELECT lora_adapter_drop('made')});
	}
	die 'it always ends before it can be stopped';
}

# The program, not what is forked before it is run; it takes a second or more. 0 if the merge is over.
sub stop_child
{
	my ($backend) = @_;
	my $state = sub { return -r "/proc/$_[0]/stat" && eval { slurp_file("/proc/$_[0]/stat") } =~ /\) (\w) / ? $1 : 'Z' };
	while ($backend && kill 0, $backend)
	{
		my $child = `pgrep -P $backend -f openlora-merge.*--method` + 0;
		usleep(2000);
		next unless $child && kill 'STOP', $child;
		usleep(2000) until $state->($child) =~ /[TZ]/; # it stands still, or has ended
		return $child if $state->($child) eq 'T';
	}
	return 0;
}

sub nothing_left
{
	my ($what, $child) = @_;
	ok(!kill(0, $child), "$what: no process is left") if $child;
	is(sql(q{SELECT count(*) FROM openlora.adapters WHERE name = 'made'}), '0', "$what: no row");
	is(sql('SELECT count(*) FROM openlora.stat_progress_merge'), '0', "$what: no progress");
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

# Who looks at it while it stands still: its role, and who reads all statistics.
sql(q{CREATE ROLE stranger; CREATE ROLE monitor IN ROLE pg_read_all_stats; SELECT lora_grant_usage('stranger'), lora_grant_usage('monitor')});
is(sql('SELECT count(*) FROM openlora.stat_progress_merge'), '0', 'no merge, no progress');
($run, $err, $backend, $child) = start_merge();
my $progress = q{SELECT pid, role = current_user, method, adapters, phase, done <= total, started < now() FROM openlora.stat_progress_merge};
is(sql($progress), "$backend|t|ties_svd|2|merging modules|t|t", 'stat_progress_merge shows a merge');
is(sql("SET ROLE monitor; $progress"), "$backend|f|ties_svd|2|merging modules|t|t", 'to pg_read_all_stats');
is(sql("SET ROLE stranger; $progress"), '', 'and to no other role');

# The engine answers meanwhile, and may die: nothing that was committed is lost, nor the merge.
is(sql(q{SELECT lora_generate('{grimm}', 'Once', max_tokens => 3) IS NOT NULL}), 't', 'a merge blocks no step');
my $rows = q{SELECT (SELECT count(*) FROM openlora.inferences), (SELECT string_agg(name || digest::text, ',' ORDER BY name) FROM openlora.adapters WHERE name <> 'made')};
my $committed = sql($rows);
my $engine = engine_pid($node);
kill 'KILL', $engine;
wait_until($node, "SELECT state = 'ready' AND engine_pid <> $engine FROM lora_status()", 'a new engine');
kill 'CONT', $child;
$run->finish;
is(sql($rows), $committed, 'what was committed before the engine died is there');
is(sql('SELECT count(*) FROM openlora.stat_progress_merge'), '0', 'its progress has gone with it');
unlike($$err, qr/ERROR|FATAL/, 'the merge goes on when the engine has died'); # on a slow machine it tells how far it is
is(sql(q{SELECT count(*) FROM openlora.adapters WHERE name = 'made'}), '1', 'and its row is there');
is(sql(q{SELECT lora_generate('{made}', 'Once', max_tokens => 3) IS NOT NULL}), 't', 'and answers');
# A merge makes a row as any other: the limit holds for it, too.
reload_settings($node, q{SET openlora.max_adapter_size = '1MB'});
my (undef, undef, $said) = $node->psql('postgres', q{SELECT lora_adapter_merge('again', '{shakespeare,grimm}', '{1,1}', 'cat')});
like($said, qr/the adapter is too large: \d+ bytes.*limit.*Raise openlora\.max_adapter_size/s, 'an adapter beyond openlora.max_adapter_size');
is(sql(q{SELECT count(*) FROM openlora.adapters WHERE name = 'again'}), '0', 'which leaves no row');
$witness->quit;
$node->stop;
done_testing();
