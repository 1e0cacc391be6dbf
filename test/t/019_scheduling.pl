# The scheduler as roles see it: a queue that is full, priorities and weights that a superuser gives
# to roles, a place for whoever has none running; and keys and values that a new version of an
# adapter must not find. What each is held to token by token: test/unit/test_scheduler.c.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use FindBin;
use lib $FindBin::Bin;
use OpenLora;

my $node = PostgreSQL::Test::Cluster->new('scheduling');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'openlora'\nopenlora.model = '$ENV{OPENLORA_TEST_MODEL}'\n");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION openlora');
sub sql { $node->safe_psql('postgres', $_[0]) }
sub limit_engine # its settings; a new engine comes
{
	my $engine = engine_pid($node);
	sql("ALTER SYSTEM SET $_") for @_;
	sql('SELECT pg_reload_conf()');
	wait_until($node, "SELECT state = 'ready' AND engine_pid <> $engine FROM lora_status()", 'an engine with new settings');
}
wait_ready($node);
sql(q{CREATE ROLE a; CREATE ROLE b; SELECT lora_grant_usage('a'), lora_grant_usage('b')});

# One answer of 1,000 tokens as a role.
my $long = q{lora_generate(NULL, 'Once', max_tokens => 1000, ignore_eos => true)};
sub ask { my ($role, $name) = @_; return run_psql($node, $name, "SET ROLE $role", "SELECT length($long) > 0") }
sub run_as { my ($who, @statements) = @_; local $ENV{PGUSER} = $who; return run_psql($node, "as_$who", @statements) } # with its settings
# Whether so many have sent theirs and wait for the answer.
sub active { return "(SELECT count(*) = $_[0] FROM pg_stat_activity WHERE state = 'active' AND wait_event_type = 'Extension' AND application_name LIKE 'ask%')" }

# Receipts are in the order in which the engine has ended requests, however late their sessions are told.
sub ended
{
	my ($n, @roles) = @_;
	wait_until($node, "SELECT count(*) = $n FROM openlora.receipts WHERE role IN (" . join(', ', map { "'$_'" } @roles) . ')', "$n receipts");
}

# -- a full queue ------------------------------------------------------------------------------
limit_engine('openlora.max_sequences = 1', 'openlora.max_queued = 1');
{
	my @asked;
	my $engine = hold_engine($node, active(2), sub {
		$_->[0]->finish for @asked;
		@asked = map { [ ask('a', "ask$_") ] } 1 .. 2; # at once: one can run, and one may wait
		return map { $_->[0] } @asked;
	});
	push @asked, [ ask('a', 'third') ]; # the engine reads it before the first has ended
	wait_until($node, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'third' AND wait_event_type = 'Extension'}, 'a third request');
	release_engine($engine);
	$_->[0]->finish for @asked;
	my @refused = grep { $_ ne '' } map { ${ $_->[2] } } @asked;
	is(scalar(@refused), 1, 'one more than may wait is refused');
	like($refused[0], qr/53400: too many requests are waiting.*At most 1 may, beside 1 that can run.*openlora\.max_queued/s, 'and told why');
	is(join('', map { ${ $_->[1] } } @asked), "t\nt\n", 'those who waited are answered');
	is(told($node, 'rejected > 0', 'openlora.stat_engine'), 't', 'and it is counted');
}

# -- priorities ----------------------------------------------------------------------------------
limit_engine('openlora.max_queued = 1000');
my (undef, undef, $error) = $node->psql('postgres', 'SET ROLE a; SET openlora.priority = 5');
like($error, qr/permission denied to set parameter "openlora.priority"/, 'nobody gives himself a priority');
(undef, undef, $error) = $node->psql('postgres', 'SET ROLE a; SET openlora.tenant_weight = 5');
like($error, qr/permission denied to set parameter "openlora.tenant_weight"/, 'nor a weight');
sql(q{CREATE ROLE urgent LOGIN; SELECT lora_grant_usage('urgent'); ALTER ROLE urgent SET openlora.priority = 5;
	CREATE ROLE calm LOGIN; SELECT lora_grant_usage('calm')});
{
	my @first;
	my $engine = hold_engine($node, active(1), sub { $_->[0]->finish for @first; @first = ([ ask('a', 'ask') ]); return $first[0][0] });
	my @runs = map {
		my $who = $_;
		my @run = run_as($who, "SELECT length($long) > 0");
		wait_until($node, "SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'as_$who' AND wait_event_type = 'Extension'", "a request of $who");
		\@run;
	} 'calm', 'urgent';
	release_engine($engine);
	for (@runs, @first) { $_->[0]->finish; is(${ $_->[2] }, '', 'no error') }
	ended(2, 'calm', 'urgent');
	is(sql(q{SELECT string_agg(role, ' ' ORDER BY leaf) FROM openlora.receipts WHERE role IN ('calm', 'urgent')}), 'urgent calm',
		'the one that came later with a priority is answered first');
	my $out;
	for (1 .. 20) # it has its end if the session sleeps in between
	{
		# one message: nothing comes between
		(my $run, $out) = run_as('urgent', q{BEGIN; DECLARE c CURSOR FOR SELECT lora_stream(NULL, 'Once', max_tokens => 1000, ignore_eos => true);
			FETCH 1 FROM c; SELECT 'priority ' || priority FROM openlora.stat_activity; CLOSE c; COMMIT});
		$run->finish;
		last if $$out =~ /priority/;
	}
	like($$out, qr/^priority 5$/m, 'and stat_activity says why');
}

# -- weights -------------------------------------------------------------------------------------
# Twenty equal requests of each role wait when the engine goes on, one runs at a time.
sql(q{CREATE ROLE light LOGIN; CREATE ROLE heavy LOGIN; SELECT lora_grant_usage('light'), lora_grant_usage('heavy');
	ALTER ROLE heavy SET openlora.tenant_weight = 4});
{
	my @first;
	my $engine = hold_engine($node, active(1), sub { $_->[0]->finish for @first; @first = ([ ask('a', 'ask') ]); return $first[0][0] });
	my @runs = map {
		my $who = $_;
		my @run = run_as($who, 'SET openlora.pipeline_depth = 20', q{SELECT count(lora_generate(NULL, 'Once ' || i, max_tokens => 40, ignore_eos => true)) FROM generate_series(1, 20) i});
		wait_until($node, "SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'as_$who' AND wait_event_type = 'Extension'", "requests of $who");
		\@run;
	} 'light', 'heavy';
	release_engine($engine);
	for (@runs, @first) { $_->[0]->finish; is(${ $_->[2] }, '', 'no error') }
	ended(40, 'light', 'heavy');
	cmp_ok(sql(q{SELECT count(*) FROM openlora.receipts WHERE role = 'light' AND leaf < (SELECT max(leaf) FROM openlora.receipts WHERE role = 'heavy')}), '<=', 10,
		'while a role of weight 4 had twenty answers, one of weight 1 had a quarter or so');
}

# -- a place for newcomers -----------------------------------------------------------------------
limit_engine('openlora.max_sequences = 16');
{
	my ($run, $out, $err) = run_psql($node, 'crowd', 'SET ROLE a', "SELECT count(lora_generate(NULL, 'Once ' || i, max_tokens => 1000, ignore_eos => true)) FROM generate_series(1, 1000) i");
	wait_until($node, 'SELECT running = 15 AND waiting > 10 FROM lora_status()', 'a role that has all it may');
	is(sql(q{SET ROLE b; SELECT length(lora_generate(NULL, 'Twice', max_tokens => 2, ignore_eos => true)) > 0}), 't', 'another role is answered meanwhile');
	is(sql(q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'crowd' AND state = 'active'}), '1', 'that is, while the others run');
	sql(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'crowd'});
	$run->finish;
}

# -- adapters of rows ahead --------------------------------------------------------------------------
# One request runs at a time, and a session that holds a cursor brings nothing: what is there when
# the first row is, was brought while that was computed.
limit_engine('openlora.max_sequences = 1');
{
	my $dir = "$ENV{OPENLORA_DEMO}/adapters/grimm";
	sql(qq{SELECT lora_adapter_import('ahead' || i, pg_read_binary_file('$dir/adapter_model.safetensors'),
		pg_read_file('$dir/adapter_config.json')::jsonb || jsonb_build_object('lora_alpha', 100 + i)) FROM generate_series(1, 8) i});
	my $session = $node->background_psql('postgres');
	$session->query_safe('SET openlora.pipeline_depth = 20'); # it would be 2
	$session->query_safe('BEGIN');
	$session->query_safe(q{DECLARE c CURSOR FOR SELECT i, lora_generate(CASE WHEN i > 0 THEN ARRAY['ahead' || i] END, 'Once',
		max_tokens => CASE i WHEN 0 THEN 1000 ELSE 1 END, ignore_eos => true) IS NOT NULL FROM generate_series(0, 8) i});
	is($session->query_safe('FETCH 1 FROM c'), '0|t', 'the first row of a scan, which needs no adapter');
	ok($node->poll_query_until('postgres', q{SELECT count(*), sum(loads), bool_and(tier = 'device') FROM openlora.stat_adapters WHERE name LIKE 'ahead%'}, '8|8|t'),
		'the adapters of those behind it are loaded by then');
	$session->query_safe('ROLLBACK');
	$session->quit;
}

# -- the same name, other weights ------------------------------------------------------------------
# Prompts are long enough to be found again.
{
	my $dir = "$ENV{OPENLORA_DEMO}/adapters/grimm";
	my $import = sub { my ($name, $alpha) = @_; sql(qq{SELECT lora_adapter_import('$name', pg_read_binary_file('$dir/adapter_model.safetensors'),
		pg_read_file('$dir/adapter_config.json')::jsonb || '{"lora_alpha": $alpha}', replace => true)}) };
	my $answer = sub { my ($name) = @_; return sql(qq{SELECT lora_generate('{$name}', repeat('Once upon a time there was a king. ', 8), max_tokens => 30, ignore_eos => true);
		SELECT cached_tokens > 0 FROM openlora.inferences ORDER BY id DESC LIMIT 1}) };
	$import->('tales', 64);
	my ($first, $again) = map { $answer->('tales') } 1 .. 2;
	like($first, qr/\nf$/, 'nothing is found for the first request');
	like($again, qr/\nt$/, 'the next finds what it has computed');
	$import->('tales', 8);
	my $other = $answer->('tales');
	like($other, qr/\nf$/, 'nothing is found after the row was replaced');
	isnt($other, $first, 'and the answer is another one');
	$import->('tales', 64);
	is($answer->('tales'), $again, 'the old weights find their own again');
	$node->restart; # nothing is computed yet
	wait_ready($node);
	$import->('fresh', 8);
	is($answer->('fresh'), $other, 'the answer after the change is that of an engine that never saw the old weights');
}
$node->stop;
done_testing();
