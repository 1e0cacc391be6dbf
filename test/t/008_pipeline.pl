# Batching from plain SQL (P8) when things go wrong: the engine dies in the middle of a scan,
# a timeout, a cursor that is closed, a queue that is full, a quota; and its memory (P5).
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use FindBin;
use lib $FindBin::Bin;
use OpenLora;

my $node = PostgreSQL::Test::Cluster->new('scanner');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'openlora'\nopenlora.model = '$ENV{OPENLORA_TEST_MODEL}'");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION openlora');
wait_ready($node);
for my $name ('grimm', 'shakespeare')
{
	my $dir = "$ENV{OPENLORA_DEMO}/adapters/$name";
	$node->safe_psql('postgres', qq{SELECT lora_adapter_import('$name', pg_read_binary_file('$dir/adapter_model.safetensors'),
		pg_read_file('$dir/adapter_config.json')::jsonb)});
}
$node->safe_psql('postgres', q{
	CREATE TABLE prompt AS SELECT i AS id, 'Once upon a time ' || i AS body,
	  CASE i % 3 WHEN 0 THEN NULL WHEN 1 THEN '{grimm}'::text[] ELSE '{shakespeare,grimm}' END AS adapters
	FROM generate_series(1, 60) i});
my $scan = q{SELECT md5(string_agg(id || ' ' || a, E'\n')) FROM (
  SELECT id, lora_generate(adapters, body, max_tokens => 100 + id % 50, ignore_eos => true, temperature => 1, seed => id) AS a
  FROM prompt ORDER BY id OFFSET 0) s};

sub inferences { return $node->safe_psql('postgres', 'SELECT count(*) FROM openlora.inferences') }

sub until_is { my ($query, $what, $name) = @_; ok($node->poll_query_until('postgres', $query, $what), $name) }

sub all_free
{
	my ($what) = @_;
	ok($node->poll_query_until('postgres', q{SELECT running = 0 AND waiting = 0 FROM lora_status()}), "$what: nothing runs any more");
}

like($node->safe_psql('postgres', "EXPLAIN $scan"), qr/openlora pipeline/, 'the scan is pipelined');
my $expected = $node->safe_psql('postgres', $scan);
my $few = $scan =~ s/FROM prompt/FROM prompt WHERE id <= 12/r; # one after the other takes long
is($node->safe_psql('postgres', $few), $node->safe_psql('postgres', "SET openlora.pipeline_depth = 0; $few"), 'same answers as row by row');
is(inferences(), 60 + 12 + 12, 'one inference for each');

# The engine dies with many calls in flight, some of them half told.
my $scanning = q{(SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'scan' AND state = 'active' AND query LIKE '%lora_generate%'
	AND wait_event_type = 'Extension')};
for my $round (1, 2)
{
	my ($run, $stdout, $stderr, $before);
	kill_engine($node, $scanning, sub {
		$run->finish if $run;
		$before = inferences();
		($run, $stdout, $stderr) = run_psql($node, 'scan', $scan);
		return $run;
	});
	$run->finish;
	is($$stderr, '', "engine killed, round $round: the caller sees no error");
	is($$stdout =~ s/\s+//gr, $expected, "engine killed, round $round: the same answers");
	is(inferences() - $before, 60, "engine killed, round $round: each attributed once");
	wait_ready($node);
}

# ... in a scan that writes: what was committed stays, and without retries nothing else comes.
$node->safe_psql('postgres', q{CREATE TABLE answer (id int PRIMARY KEY, text text);
	INSERT INTO answer SELECT 0, lora_generate(NULL, 'Once', max_tokens => 3)});
for my $retries (0, 2)
{
	my ($run, $stdout, $stderr, $before);
	kill_engine($node, $scanning, sub {
		$run->finish if $run;
		$node->safe_psql('postgres', 'DELETE FROM answer WHERE id > 0');
		$before = inferences();
		($run, $stdout, $stderr) = run_psql($node, 'scan', "SET openlora.max_retries = $retries",
			q{INSERT INTO answer SELECT id, lora_generate(adapters, body, max_tokens => 100 + id % 50, ignore_eos => true, temperature => 1, seed => id) FROM prompt});
		return $run;
	});
	$run->finish;
	if ($retries == 0) { like($$stderr, qr/08006: the openlora engine was lost/, 'without retries: an error with its SQLSTATE') }
	else { is($$stderr, '', 'with retries: none') }
	is($node->safe_psql('postgres', q{SELECT count(*), count(*) FILTER (WHERE id = 0) FROM answer}), $retries ? '61|1' : '1|1',
		"engine killed in INSERT ... SELECT, $retries retries: committed rows stay, and its own come whole or not at all");
	is(inferences() - $before, $retries ? 60 : 0, 'and so does what attributes them');
	wait_ready($node);
}
is($node->safe_psql('postgres', q{SELECT md5(string_agg(id || ' ' || text, E'\n' ORDER BY id)) FROM answer WHERE id > 0}), $expected, 'the same answers');
my $before = inferences(); # what follows writes no other than it says

# What can be seen while a scan runs.
{
	my ($run, $stdout, $stderr) = run_psql($node, 'load',
		'SELECT count(lora_generate(adapters, body, max_tokens => 900, ignore_eos => true)) FROM prompt, generate_series(1, 100)');
	# answers begin and end at the same time: each is true most of the time, not always
	until_is(q{
		SELECT count(*) FILTER (WHERE state = 'running') > 5, count(*) FILTER (WHERE state <> 'running') > 5, count(DISTINCT role),
		  bool_and(pid = (SELECT pid FROM pg_stat_activity WHERE application_name = 'load')), bool_and(task = 'generate'),
		  max(output_tokens) > 0, max(computed_tokens) > max(prompt_tokens), count(DISTINCT adapters) = (SELECT count(DISTINCT adapters) FROM prompt)
		FROM openlora.stat_activity}, 't|t|1|t|t|t|t|t', 'stat_activity during a scan: those that run, and those that wait');
	until_is(q{
		SELECT bool_and(tier = 'device' AND bytes > 0 AND requests > 0), count(*) = (SELECT count(DISTINCT unnest) FROM prompt, unnest(adapters))
		FROM openlora.stat_adapters}, 't|t', 'stat_adapters: all of its adapters are there, and in use');
	until_is(q{
		SELECT running > 5, waiting > 5, batch_size > 1, tokens_per_second > 0, kv_pages_used > 0 FROM openlora.stat_engine},
		't|t|t|t|t', 'stat_engine: full batches');
	$node->safe_psql('postgres', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'load'});
	$run->finish;
	like($$stderr, qr/canceling statement due to user request/, 'the scan was running until then');
	all_free('load');
	is(inferences(), $before, 'load: no attribution');
}

# Interrupted in the middle.
my ($code, $out, $err) = $node->psql('postgres', "SET statement_timeout = '200ms';
	SELECT count(lora_generate(adapters, body, max_tokens => 900, ignore_eos => true)) FROM prompt, generate_series(1, 100)");
like($err, qr/statement timeout/, 'statement_timeout ends a scan');
all_free('timeout');
is(inferences(), $before, 'timeout: no attribution');

# Rows that nobody asked for.
$node->safe_psql('postgres', q{
	BEGIN;
	DECLARE c CURSOR FOR SELECT id, lora_generate(adapters, body, max_tokens => 900, ignore_eos => true) FROM prompt WHERE id > 3
	  UNION ALL SELECT 0, NULL;
	DECLARE d CURSOR FOR SELECT id, lora_generate(adapters, body, max_tokens => CASE WHEN id = 1 THEN 1 ELSE 900 END, ignore_eos => true)
	  FROM prompt ORDER BY id;
	FETCH 1 FROM d;
	CLOSE d;
	COMMIT});
all_free('closed cursor');
is(inferences(), $before + 1, 'closed cursor: what was fetched is attributed, and nothing else');
$node->safe_psql('postgres', q{
	DO $$ DECLARE r record; BEGIN
	  FOR r IN SELECT lora_generate(adapters, body, max_tokens => CASE WHEN id < 3 THEN 1 ELSE 900 END, ignore_eos => true)
	    FROM prompt ORDER BY id LOOP EXIT; END LOOP;
	END $$});
all_free('loop that is left');
is(inferences(), $before + 2, 'loop that is left: one row');
($code, $out, $err) = $node->psql('postgres', q{SELECT id, lora_generate(CASE WHEN id = 2 THEN '{nobody}' ELSE adapters END, body,
	max_tokens => CASE WHEN id = 1 THEN 1 ELSE 900 END, ignore_eos => true) FROM prompt ORDER BY id});
like($err, qr/adapter "nobody" does not exist/, 'an error in the second row');
all_free('error');
is(inferences(), $before + 2, 'error: no attribution');

# Two cursors at once, with plain calls between: each frame finds its request.
is($node->safe_psql('postgres', q{
	CREATE FUNCTION mixed() RETURNS boolean LANGUAGE plpgsql AS $$
	DECLARE
	  a CURSOR FOR SELECT lora_generate(adapters, body, max_tokens => 5) FROM prompt ORDER BY id;
	  b CURSOR FOR SELECT lora_generate(adapters, body, max_tokens => 5) FROM prompt ORDER BY id DESC;
	  x text; y text; xs text[]; ys text[];
	BEGIN
	  OPEN a; OPEN b;
	  FOR i IN 1..60 LOOP
	    FETCH a INTO x; FETCH b INTO y;
	    PERFORM lora_count_tokens('Hello'), lora_generate(NULL, 'Hello', max_tokens => 2);
	    xs := xs || x; ys := y || ys;
	  END LOOP;
	  RETURN xs = ys;
	END $$;
	SELECT mixed()}), 't', 'two cursors, read in turns');

# A quota that would be reserved many times over.
$node->safe_psql('postgres', q{CREATE ROLE small; SELECT lora_grant_usage('small'); GRANT SELECT ON prompt TO small;
	UPDATE openlora.adapters SET shared = true});
$node->safe_psql('postgres', q{SELECT lora_set_quota('small', tokens => 1500)});
($code, $out, $err) = $node->psql('postgres', q{SET ROLE small;
	SELECT count(lora_generate(NULL, body, max_tokens => 3, ignore_eos => true)) FROM prompt});
is($out, '60', 'a scan whose calls in flight would reserve more than the quota has');
($code, $out, $err) = $node->psql('postgres', q{SET ROLE small;
	SELECT count(lora_generate(NULL, body, max_tokens => 300, ignore_eos => true)) FROM prompt});
like($err, qr/quota/, 'a quota that is used up is an error');
all_free('quota');

# Memory of a scan does not grow with its length.
is($node->safe_psql('postgres', q{
	BEGIN;
	SET LOCAL openlora.pipeline_depth = 64;
	CREATE TEMP TABLE measured (n int, bytes bigint);
	CREATE FUNCTION bytes() RETURNS bigint LANGUAGE sql VOLATILE AS $$ SELECT sum(total_bytes)::bigint FROM pg_backend_memory_contexts $$;
	INSERT INTO measured SELECT i, bytes() FROM (
	  SELECT i, lora_generate(NULL, 'Once ' || i, max_tokens => i % 2) AS a FROM generate_series(1, 5000) i OFFSET 0) s
	WHERE a IS NOT NULL AND i IN (1000, 5000);
	SELECT (SELECT bytes FROM measured WHERE n = 5000) - bytes < 500000 FROM measured WHERE n = 1000;
	ROLLBACK}) =~ /t$/, 1, 'four thousand rows later, no more memory');

# A queue that holds less than the scan would send.
$node->append_conf('postgresql.conf', "openlora.max_queued = 2\nopenlora.max_sequences = 2\nopenlora.pipeline_depth = 50");
$node->restart;
$node->poll_query_until('postgres', q{SELECT state = 'ready' FROM lora_status()}) or die 'not ready';
is($node->safe_psql('postgres', "SET openlora.pipeline_depth = 50; $scan"), $expected, 'a full queue: the scan waits for room');
# Every second row is ready at once, with the queue full of what was read ahead of it.
my $read_ahead = q{(SELECT i, lora_generate(NULL, CASE WHEN i % 2 = 0 THEN 'Once ' || i END, max_tokens => 40, ignore_eos => true) AS a
	FROM generate_series(1, 30) i OFFSET 0) s};
is($node->safe_psql('postgres', "SELECT count(b) FROM $read_ahead, LATERAL (SELECT lora_score(NULL, 'x' || s.i, ' y') AS b OFFSET 0) l"),
	'30', 'a call that the scan has left no room for waits, too');
is($node->safe_psql('postgres', "SELECT count(b + c) FROM $read_ahead,
	LATERAL (SELECT lora_score(NULL, 'x' || s.i, ' y') AS b, lora_score(NULL, 'x' || s.i, ' z') AS c OFFSET 0) l"), '30', 'and another scan');
$node->stop;
done_testing();
