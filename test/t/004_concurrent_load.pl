# Same request, same answer, whatever shares the batch (P6), under concurrent load; and
# adapters that change meanwhile (P1).
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use FindBin;
use lib $FindBin::Bin;
use OpenLora;

my $node = PostgreSQL::Test::Cluster->new('busy');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'openlora'\nopenlora.model = '$ENV{OPENLORA_TEST_MODEL}'");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION openlora');
$node->safe_psql('postgres', qq{
	SELECT lora_adapter_import(name, pg_read_binary_file('$ENV{OPENLORA_DEMO}/adapters/' || name || '/adapter_model.safetensors'),
	  pg_read_file('$ENV{OPENLORA_DEMO}/adapters/' || name || '/adapter_config.json')::jsonb)
	FROM unnest(ARRAY['shakespeare', 'grimm', 'manual', 'sql']) AS name;
	CREATE TABLE request AS
	  SELECT i, CASE i % 5 WHEN 0 THEN NULL WHEN 1 THEN '{shakespeare}'::text[] WHEN 2 THEN '{grimm}' WHEN 3 THEN '{manual,sql}'
	    ELSE '{grimm,shakespeare}' END AS adapters, repeat('Once upon a time ', i % 7 + 1) || i AS prompt
	  FROM generate_series(1, 40) i;});
my $answer = q{md5(lora_generate(adapters, prompt, max_tokens => 20 + i, temperature => (i % 3) / 2.0, top_p => 0.9, seed => i, ignore_eos => true))};
$node->safe_psql('postgres', "CREATE TABLE alone AS SELECT i, $answer AS answer FROM request");
is($node->safe_psql('postgres', 'SELECT count(DISTINCT answer) FROM alone'), '40', 'forty different answers');

# Eight sessions, each in its own order, all at once: each has two calls in flight, and all wait when the engine begins.
my @runs;
$node->safe_psql('postgres', 'SELECT lora_stat_reset()');
my $engine = stop_engine($node);
for my $session (1 .. 8)
{
	push @runs, [ run_psql($node, "session$session", 'SET openlora.pipeline_depth = 2', qq{
		SELECT count(*) FROM (SELECT i, $answer AS answer FROM (SELECT * FROM request ORDER BY md5(i || 'x$session')) r OFFSET 0) now
		JOIN alone USING (i) WHERE now.answer <> alone.answer}) ];
}
wait_until($node, q{SELECT count(*) = 8 FROM pg_stat_activity WHERE application_name LIKE 'session%' AND wait_event_type = 'Extension'}, 'eight sessions');
release_engine($engine);
for my $run (@runs)
{
	$run->[0]->finish;
	is(${ $run->[2] }, '', 'no error');
	is(${ $run->[1] } =~ s/\s//gr, '0', 'every answer is the one it had alone');
}
is(told($node, 'batch_size > 2', 'openlora.stat_engine'), 't', 'sessions share steps');
is($node->safe_psql('postgres', 'SELECT count(*) FROM openlora.inferences'), 9 * 40, 'each answer has its row');
is($node->safe_psql('postgres', q{
	SELECT count(*) FROM (SELECT inference, kind, sum(share) FROM openlora.attributions GROUP BY inference, kind HAVING sum(share) <> 1000000) wrong}),
	'0', 'the shares of each kind sum to the whole');
is(told($node, 'running + waiting + kv_pages - kv_pages_free'), '0', 'nothing is left behind');

# A reader that is slow: more answers than its ring holds wait for it, in order and whole.
{
	my ($streams, $long) = (10, q{NULL, 'Once ' || %s, max_tokens => 900, ignore_eos => true});
	my $plain = $node->safe_psql('postgres', 'SELECT i, md5(lora_generate(' . sprintf($long, 'i') . ")) FROM generate_series(1, $streams) i");
	my $slow = $node->background_psql('postgres');
	$slow->query_safe('BEGIN');
	for my $i (1 .. $streams)
	{
		$slow->query_safe("DECLARE c$i CURSOR FOR SELECT text FROM lora_stream(" . sprintf($long, $i) . ')');
		$slow->query_safe("FETCH 1 FROM c$i"); # starts it
		$slow->query_safe("MOVE BACKWARD ALL IN c$i");
	}
	wait_until($node, 'SELECT running = 0 FROM lora_status()', 'the end of all streams');
	$slow->query_safe(q{CREATE FUNCTION whole(c refcursor) RETURNS text LANGUAGE plpgsql AS $$ DECLARE t text; a text := ''; BEGIN
		MOVE BACKWARD ALL IN c; LOOP FETCH c INTO t; EXIT WHEN NOT FOUND; a := a || t; END LOOP; RETURN md5(a); END $$});
	is(join("\n", map { "$_|" . $slow->query_safe("SELECT whole('c$_')") } 1 .. $streams), $plain, 'a slow reader gets all of its answers');
	$slow->query_safe('COMMIT');
	$slow->quit;
}

# Dump and restore: rows, identities and attribution survive, without an engine too.
my $dump = $node->backup_dir . '/dump.sql';
mkdir $node->backup_dir;
$node->command_ok([ 'pg_dump', '-f', $dump, $node->connstr('postgres') ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE copy');
$node->command_ok([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $node->connstr('copy') ], 'restore');
for my $table (qw(adapters inferences inference_adapters attributions base_models))
{
	my $sql = "SELECT count(*), md5(string_agg(t::text, '|' ORDER BY t::text)) FROM openlora.$table t";
	is($node->safe_psql('copy', $sql), $node->safe_psql('postgres', $sql), "$table came back as it was");
}
isnt($node->safe_psql('copy', q{SELECT lora_generate('{grimm}', 'Once', max_tokens => 3)}), '', 'and answers');
$node->stop;
done_testing();
