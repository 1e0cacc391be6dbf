# Interruptible everywhere (P4): cancel, timeout, terminate and disconnect free the
# sequence; a failed transaction leaves no attribution; memory does not grow (P5).
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('patient');
$node->init;
$node->append_conf('postgresql.conf',
	"shared_preload_libraries = 'openlora'\nopenlora.model = '$ENV{OPENLORA_TEST_MODEL}'\nclient_connection_check_interval = 50ms");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION openlora');
$node->poll_query_until('postgres', q{SELECT state = 'ready' FROM lora_status()}) or die 'not ready';

my $endless = q{SELECT count(lora_generate(NULL, 'Once ' || i, max_tokens => 900, ignore_eos => true)) FROM generate_series(1, 1000) i};

sub all_free
{
	my ($what) = @_;
	ok($node->poll_query_until('postgres', q{SELECT running = 0 AND waiting = 0 AND kv_pages = kv_pages_free FROM lora_status()}),
		"$what: sequence and pages are free");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM openlora.inferences'), '0', "$what: no attribution");
}

sub start_endless
{
	my ($before) = @_;
	my ($stdout, $stderr) = ('', '');
	my $run = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres') . ' application_name=endless',
		'-c', $before, '-c', $endless ], '>', \$stdout, '2>', \$stderr, IPC::Run::timeout(600));
	$node->poll_query_until('postgres', q{SELECT running > 0 FROM lora_status()}) or die 'nothing runs'
	  unless $before =~ /timeout/; # it may be over before we look
	return ($run, \$stderr);
}

my ($run, $err) = start_endless(q{SET statement_timeout = '300ms'});
$run->finish;
like($$err, qr/statement timeout/, 'statement_timeout ends it');
all_free('timeout');

($run, $err) = start_endless('SELECT 1');
$node->safe_psql('postgres', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'endless'});
$run->finish;
like($$err, qr/canceling statement due to user request/, 'cancel ends it');
all_free('cancel');

($run, $err) = start_endless('SELECT 1');
$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'endless'});
$run->finish;
like($$err, qr/terminating connection/, 'terminate ends it');
all_free('terminate');

($run, $err) = start_endless('SELECT 1');
$run->kill_kill(grace => 0);
ok($node->poll_query_until('postgres', q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'endless'}),
	'a client that vanished takes its backend along');
all_free('disconnect');

# A cursor closed early cancels its stream.
$node->safe_psql('postgres', q{
	BEGIN;
	DECLARE c CURSOR FOR SELECT lora_stream(NULL, 'Once', max_tokens => 900, ignore_eos => true);
	FETCH 3 FROM c;
	CLOSE c;
	ROLLBACK;});
all_free('closed cursor');
$node->safe_psql('postgres', q{
	BEGIN;
	DECLARE c CURSOR FOR SELECT * FROM lora_stream(NULL, 'Once', max_tokens => 900, ignore_eos => true);
	FETCH 3 FROM c;
	CLOSE c;
	COMMIT;});
all_free('closed cursor over FROM');
{
	my $s = $node->background_psql('postgres');
	$s->query_safe(q{BEGIN});
	$s->query_safe(q{DECLARE c CURSOR FOR SELECT * FROM lora_stream(NULL, 'Once', max_tokens => 900, ignore_eos => true)});
	$s->query_safe(q{FETCH 1 FROM c});
	$s->quit;
}
all_free('client that leaves its cursor open');

# Subtransactions: the sequence of the one that failed is freed, the other goes on.
is($node->safe_psql('postgres', q{
	DO $$ BEGIN
	  BEGIN
	    PERFORM 1 / (length(lora_generate(NULL, 'a', max_tokens => 2)) * 0);
	  EXCEPTION WHEN division_by_zero THEN NULL;
	  END;
	END $$;
	SELECT count(*) FROM openlora.inferences}), '0', 'a failed subtransaction leaves no attribution');
all_free('subtransaction');

# Memory of a connection does not grow with use.
my $grown = $node->safe_psql('postgres', q{
	BEGIN;
	SELECT count(lora_generate(NULL, 'x' || i, max_tokens => 1)) FROM generate_series(1, 200) i;
	CREATE TEMP TABLE before AS SELECT sum(total_bytes) AS bytes FROM pg_backend_memory_contexts;
	SELECT count(lora_generate(NULL, 'x' || i, max_tokens => 1)) FROM generate_series(1, 2000) i;
	SELECT (SELECT sum(total_bytes) FROM pg_backend_memory_contexts) - bytes < 1000000 FROM before;
	ROLLBACK;});
like($grown, qr/t$/, 'two thousand calls, less than a megabyte more');
all_free('many calls');
$node->stop;
done_testing();
