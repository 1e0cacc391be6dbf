# Requests that are answered later: nothing committed is lost, nothing is done twice, one bad
# request does not take the others with it.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use FindBin;
use lib $FindBin::Bin;
use OpenLora;

my $node = PostgreSQL::Test::Cluster->new('queue');
$node->init;
$node->append_conf('postgresql.conf',
	"shared_preload_libraries = 'openlora'\nopenlora.model = '$ENV{OPENLORA_TEST_MODEL}'\nopenlora.restart_backoff_max = 100ms\n");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION openlora');
sub sql { $node->safe_psql('postgres', $_[0]) }
sub setting { reload_settings($node, "SET $_[0]") }
wait_ready($node);

# A long request: it takes all of the context, if nobody ends it.
my $long = q{max_tokens => 100000, ignore_eos => true, temperature => 1};
sub none_runs { wait_until($node, 'SELECT running = 0 FROM lora_status()', 'an idle engine') }

# Submits one and stops the engine while it runs: (its number, the engine).
sub held_request
{
	my $id;
	my $engine = hold_engine($node, q{(SELECT state = 'running' FROM openlora.queue ORDER BY id DESC LIMIT 1)},
		sub { none_runs(); $id = sql("SELECT lora_submit(NULL, 'Once', $long)"); return "(SELECT state IN ('queued', 'running') FROM openlora.queue WHERE id = $id)" });
	return ($id, $engine);
}

# -- answers -------------------------------------------------------------------------------
my $id = sql(q{SELECT lora_submit(NULL, 'Once upon a time', max_tokens => 8)});
is(sql("SELECT state, result = lora_generate(NULL, 'Once upon a time', max_tokens => 8) FROM lora_result($id, '1 min')"),
	'done|t', 'a queued request has the answer of lora_generate');
is(sql("SELECT q.inference = i.id, i.function, i.role FROM openlora.queue q JOIN openlora.inferences i ON i.id = q.inference WHERE q.id = $id"),
	't|lora_submit|' . sql('SELECT current_user'), 'and is attributed to who submitted it');
my (undef, undef, $error) = $node->psql('postgres', q{SELECT lora_result(lora_submit(NULL, 'x'), '1 min')});
like($error, qr/cannot wait for request/, 'waiting for a request of the same transaction is an error, not a hang');
(undef, undef, $error) = $node->psql('postgres', q{SELECT lora_submit('{nobody}', 'x')});
like($error, qr/adapter "nobody" does not exist/, 'arguments are checked at once');
(undef, undef, $error) = $node->psql('postgres', q{SELECT lora_result(123456789)});
like($error, qr/request 123456789 does not exist/, 'an unknown request');
(undef, undef, $error) = $node->psql('postgres', q{BEGIN; SELECT lora_submit(NULL, 'x'); PREPARE TRANSACTION 'p'});
like($error, qr/cannot PREPARE/, 'a prepared transaction cannot submit');

# -- visible at commit, and not before --------------------------------------------------------
{
	my $one = $node->background_psql('postgres');
	$one->query_safe('BEGIN');
	my $mine = $one->query_safe(q{SELECT lora_submit(NULL, 'Once', max_tokens => 2)});
	my $other = sql(q{SELECT lora_submit(NULL, 'Twice', max_tokens => 2)});
	is(sql("SELECT state FROM lora_result($other, '1 min')"), 'done', 'a later request is answered');
	is(sql("SELECT count(*) FROM openlora.queue WHERE id = $mine"), '0', 'while an earlier one is not committed');
	is($one->query_safe("SELECT state FROM lora_result($mine)"), 'queued', 'which its own transaction sees waiting');
	$one->query_safe('COMMIT');
	is(sql("SELECT state FROM lora_result($mine, '1 min')"), 'done', 'and is answered after the commit');
	$one->query_safe('BEGIN');
	my $undone = $one->query_safe(q{SELECT lora_submit(NULL, 'Once', max_tokens => 2)});
	$one->query_safe('ROLLBACK');
	is(sql("SELECT count(*) FROM openlora.queue WHERE id = $undone"), '0', 'a rollback leaves nothing');
	$one->quit;
}

# -- cancelling, and telling ------------------------------------------------------------------
{
	my ($run, $engine) = held_request();
	is(sql("SELECT lora_cancel($run)"), 't', 'one that runs can be cancelled');
	is(sql("SELECT state FROM lora_result($run, '1 min')"), 'cancelled', 'and ends');
	my $cancelled = sql('SELECT cancelled FROM openlora.stat_engine'); # as it said last
	release_engine($engine);
	wait_until($node, "SELECT running = 0 AND cancelled > $cancelled FROM openlora.stat_engine", 'its end in the engine');
	pass('also in the engine');
	is(sql("SELECT lora_cancel($run)"), 'f', 'one that has ended cannot');
	my $session = $node->background_psql('postgres');
	my $told = $session->query_safe("LISTEN openlora_queue; SELECT lora_submit(NULL, 'Once', max_tokens => 2) \\gset\nSELECT state FROM lora_result(:lora_submit, '1 min')");
	for (1 .. 3000) { last if $told =~ /Asynchronous/; $told .= $session->query_safe('SELECT pg_sleep(0.01)') } # it is sent after the commit that lora_result waits for
	$session->quit;
	like($told, qr/Asynchronous notification "openlora_queue" with payload "\d+: done"/, 'those who LISTEN are told');

	# two that cancel, one of which changes its mind
	my ($one, $two) = map { $node->background_psql('postgres') } 1 .. 2;
	($run, $engine) = held_request();
	$one->query_safe('BEGIN');
	is($one->query_safe("SELECT lora_cancel($run)"), 't', 'somebody cancels, and has not committed');
	release_engine($engine);
	none_runs();
	my $other = sql(q{SELECT lora_submit(NULL, 'Twice', max_tokens => 2)});
	is(sql("SELECT state FROM lora_result($other, '1 min')"), 'done', 'a lock on one row holds up no other');
	$one->query_safe('ROLLBACK');
	is($two->query_safe("SELECT state FROM lora_result($run, '1 min')"), 'done', 'cancelling that is rolled back cancels nothing');
	$one->quit;
	$two->quit;
}

# -- rights -------------------------------------------------------------------------------------
setting('openlora.queue_workers = 0');
sql(q{CREATE ROLE u; CREATE ROLE other; SELECT lora_grant_usage('u'), lora_grant_usage('other')});
$id = sql(q{SET ROLE u; SELECT lora_submit(NULL, 'Once', max_tokens => 2)});
(undef, undef, $error) = $node->psql('postgres', "SET ROLE other; SELECT lora_result($id)");
like($error, qr/request $id does not exist/, 'not for other roles to read');
(undef, undef, $error) = $node->psql('postgres', "SET ROLE other; SELECT lora_cancel($id)");
like($error, qr/request $id does not exist/, 'nor to cancel');
is(sql('SET ROLE other; SELECT count(*) FROM openlora.queue'), '0', 'nor to see in the table');
is(sql("SELECT state FROM lora_result($id)"), 'queued', 'queue_workers = 0: it stands still');
sql(q{SELECT lora_revoke_usage('u')});
setting('openlora.queue_workers = 4');
is(sql("SELECT state, error FROM lora_result($id, '1 min')"),
	'failed|the role that submitted the request may not call lora_submit any more', 'a right that was taken back meanwhile');
sql(q{SELECT lora_grant_usage('u')});
is(sql(qq{SET ROLE u; SELECT lora_submit(NULL, 'Once', max_tokens => 2) \\gset\nSELECT state FROM lora_result(:lora_submit, '1 min');
  SELECT role FROM openlora.inferences ORDER BY id DESC LIMIT 1}), "done\nu", 'it runs as the role that submitted it');

# -- restarts ------------------------------------------------------------------------------------
setting('openlora.queue_workers = 0');
my $before = sql('SELECT count(*) FROM openlora.inferences');
sql(q{SELECT lora_submit(NULL, 'Thrice upon ' || i, max_tokens => 400, ignore_eos => true) FROM generate_series(1, 40) i});
sql('ALTER SYSTEM RESET openlora.queue_workers');
$node->restart;
# some are answered, others run and stay in the middle of it until the server is gone
my $thrice = q{FROM openlora.queue WHERE prompt LIKE 'Thrice upon %' AND state};
my $stopped = hold_engine($node, "(SELECT count(*) > 0 $thrice = 'running')", sub { return "(SELECT count(*) < 40 $thrice = 'done')" });
pass('a restart goes on with what is queued, without anybody asking');
$node->stop('immediate');
ok(has_gone($stopped), 'no engine is left, not even one that stood still');
$node->start;
wait_until($node, "SELECT count(*) = 40 $thrice = 'done'", 'all answers');
is(sql('SELECT count(*) FROM openlora.inferences') - $before, 40, 'after an immediate shutdown each was answered, and attributed once');
is(sql(q{SELECT count(*), count(DISTINCT inference) FROM openlora.queue WHERE prompt LIKE 'Thrice upon %'}), '40|40', 'each by its own inference');

# -- the engine dies --------------------------------------------------------------------------------
wait_ready($node);
$before = sql('SELECT count(*), max(id) FROM openlora.inferences');
my ($n_before, $last_before) = split /\|/, $before;
my $twice = q{FROM openlora.queue WHERE prompt LIKE 'Twice upon %' AND state};
sql(q{SELECT lora_submit(NULL, 'Twice upon ' || i, max_tokens => 300, ignore_eos => true) FROM generate_series(1, 64) i});
kill_engine($node, "(SELECT count(*) > 0 $twice = 'running')", sub { return "(SELECT count(*) < 64 $twice = 'done')" });
wait_until($node, "SELECT count(*) = 64 $twice = 'done'", 'all answers');
pass('no submitted request is lost with the engine');
is(sql("SELECT count(*) FROM openlora.inferences WHERE id <= $last_before"), $n_before, 'nor a committed row');
cmp_ok(sql("SELECT count(*) $twice = 'done' AND attempts > 1"), '>', 0, 'though some were begun again');
is(sql("SELECT count(*), count(DISTINCT inference) $twice = 'done'"), '64|64', 'and each is attributed once');
is(sql('SELECT count(*) FROM openlora.inferences'), $n_before + 64, 'and no more');

# a request that kills it whenever it runs
my $innocent = q{FROM openlora.queue WHERE prompt LIKE 'innocent %' AND state};
my ($poison, $attempt);
sub poison # or nothing, if it had its answer before its attempts were over
{
	$poison = sql("SELECT lora_submit(NULL, repeat('poison ', 50), $long)"); # known by its length
	sql(q{SELECT lora_submit(NULL, 'innocent ' || i, max_tokens => 300, ignore_eos => true) FROM generate_series(1, 4) i});
	for $attempt (1 .. 3)
	{
		# it is in the engine, and not only about to be sent there
		wait_ready($node);
		my $running = "attempts = $attempt AND state = 'running'";
		is_seen($node, "SELECT $running AND EXISTS (SELECT FROM openlora.stat_activity a
			WHERE a.state = 'running' AND a.prompt_tokens > 50) FROM openlora.queue WHERE id = $poison",
			"(SELECT state IN ('queued', 'running') FROM openlora.queue WHERE id = $poison)") or return;
		my $engine = stop_engine($node);
		my $held = sql("SELECT $running FROM openlora.queue WHERE id = $poison") eq 't';
		is(sql(q{SELECT count(*) FROM openlora.queue WHERE state = 'running'}), 1, 'its last attempt is made alone') if $held && $attempt == 3;
		kill $held ? 'KILL' : 'CONT', $engine;
		return unless $held;
	}
	return 1;
}
for (1 .. 10)
{
	last if poison();
	wait_until($node, q{SELECT count(*) = 0 FROM openlora.queue WHERE state IN ('queued', 'running')}, 'an answer after all');
}
is(sql("SELECT r.state, attempts FROM lora_result($poison, '1 min') r, openlora.queue WHERE id = $poison"), 'failed|3',
	'a request that kills the engine is given up');
wait_until($node, "SELECT count(*) = 0 $innocent IN ('queued', 'running')", 'the innocent');
is(sql("SELECT count(*) $innocent <> 'done'"), 0, 'and takes no other with it');

# one with its last attempt left, that somebody holds
{
	my $one = $node->background_psql('postgres');
	setting('openlora.queue_workers = 0');
	my $held = sql(q{SELECT lora_submit(NULL, 'Once', max_tokens => 2)});
	sql("UPDATE openlora.queue SET attempts = 2 WHERE id = $held");
	$one->query_safe('BEGIN');
	$one->query_safe("SELECT lora_cancel($held)");
	reload_settings($node, 'RESET openlora.queue_workers');
	my $other = sql(q{SELECT lora_submit(NULL, 'Twice', max_tokens => 2)});
	is(sql("SELECT state FROM lora_result($other, '1 min')"), 'done', 'and a lock on a suspect holds up no other');
	$one->query_safe('ROLLBACK');
	is(sql("SELECT state FROM lora_result($held, '1 min')"), 'done', 'which is answered when it is let go');
	$one->quit;
}

# -- the worker is not in the way -------------------------------------------------------------------
sql('CREATE DATABASE d');
$node->safe_psql('d', 'CREATE EXTENSION openlora');
is($node->safe_psql('d', qq{SELECT lora_submit(NULL, 'Once', max_tokens => 2) \\gset\nSELECT state FROM lora_result(:lora_submit, '1 min')}),
	'done', 'another database has a worker of its own');
sql('CREATE DATABASE e TEMPLATE d');
sql('DROP DATABASE d');
pass('its idle worker keeps neither a copy nor DROP DATABASE from happening');

# -- old rows ----------------------------------------------------------------------------------------
# nobody wakes a worker for them: it has gone when they are old enough, and comes again by itself
sub gone { wait_until($node, q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'openlora queue worker'}, 'the end of idle workers') }
sub expired { wait_until($node, 'SELECT count(*) = 0 FROM openlora.queue', 'the end of old rows') }
setting('openlora.worker_idle_time = 1');
is(sql(q{SELECT count(*) > 0 FROM openlora.queue}), 't', 'there are ended rows');
gone();
setting('openlora.queue_retention = 1');
expired();
pass('a shorter retention holds for rows that are there');
setting('openlora.queue_retention = 5');
$node->safe_psql('postgres', qq{SELECT lora_submit(NULL, 'Once', max_tokens => 2) \\gset\nSELECT state FROM lora_result(:lora_submit, '1 min')});
gone();
expired();
pass('a worker that has gone comes again for old rows');
setting('openlora.queue_retention = 0');
sql(q{SELECT lora_submit(NULL, 'Once', max_tokens => 2)});
expired();
pass('ended rows expire');

# -- a stream's first token, and its end ---------------------------------------------------------------
{
	my $s = $node->background_psql('postgres');
	my ($first, $cancelled);
	for (1 .. 20) # it has its end if the session sleeps in between
	{
		my $before = told($node, 'cancelled', 'openlora.stat_engine');
		$s->query_safe('BEGIN');
		$s->query_safe("DECLARE c CURSOR FOR SELECT lora_stream(NULL, 'Once', $long)");
		# one message: nothing comes between
		$first = $s->query_safe('FETCH 1 FROM c \\; CLOSE c');
		$s->query_safe('COMMIT');
		wait_until($node, 'SELECT running = 0 FROM openlora.stat_engine', 'the end of the request');
		$cancelled = told($node, 'cancelled', 'openlora.stat_engine') - $before;
		last if $cancelled;
	}
	like($first, qr/^\(0,/m, 'a cursor has the first token while the answer is being made');
	is($cancelled, 1, 'closing the cursor cancels it');
	$s->quit;
}
unlike(slurp_file($node->logfile), qr/TRAP|PANIC/, 'no assertion failed');
$node->stop;
done_testing();
