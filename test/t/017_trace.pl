# How far the build of a trace index is, and that nothing of it stays when it ends early.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('traced');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'openlora'");
$node->start;
sub sql { return $node->safe_psql('postgres', $_[0]) }
sub until_true { my ($query, $what) = @_; ok($node->poll_query_until('postgres', $query), $what) }

# A build waits for us where we hold a lock: at the third document, and in the middle of the chunks.
sql(q{CREATE EXTENSION openlora; CREATE ROLE maker LOGIN; SELECT lora_grant_usage('maker', manage => true); CREATE ROLE other LOGIN; SELECT lora_grant_usage('other');
	CREATE ROLE reader LOGIN; SELECT lora_grant_usage('reader'); GRANT pg_read_all_stats TO reader;
	CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(TG_ARGV[0]::int); RETURN NEW; END $$;
	CREATE TRIGGER wait BEFORE INSERT ON openlora.trace_documents FOR EACH ROW WHEN (NEW.start = 20) EXECUTE FUNCTION wait(1);
	CREATE TRIGGER wait BEFORE INSERT ON openlora.trace_chunks FOR EACH ROW WHEN (NEW.part = 1 AND NEW.chunk = 1) EXECUTE FUNCTION wait(2)});
sql(q{SET ROLE maker; INSERT INTO openlora.datasets (name) VALUES ('words'); INSERT INTO openlora.dataset_documents (dataset, name, text)
	SELECT d.id, g, 'a b c d e f g h i' FROM openlora.datasets d, generate_series(1, 200) g});
my $build = q{SET client_min_messages = warning; SET ROLE maker; SELECT lora_trace_index('words')};
my $us = $node->background_psql('postgres');
my $progress = 'SELECT role, dataset, phase, done, total FROM openlora.stat_progress_trace';
my ($out, $err) = ('', '');
sub start_build { my ($sql) = @_; $out = $err = ''; return IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres') . ' application_name=builder', '-c', $sql ], '>', \$out, '2>', \$err, IPC::Run::timeout(600)) }
sub waits { my ($phase) = @_; until_true("SELECT count(*) = 1 FROM pg_locks l, openlora.stat_progress_trace p WHERE l.pid = p.pid AND NOT l.granted AND p.phase = '$phase'", "a build waits while $phase") }

$us->query_safe('SELECT pg_advisory_lock(1), pg_advisory_lock(2)');
my $run = start_build($build);
waits('reading documents');
is(sql($progress), 'maker|words|reading documents|2|200', 'two of its documents are read');
is(sql("SET ROLE maker; $progress"), 'maker|words|reading documents|2|200', 'as the role sees, too');
is(sql("SET ROLE reader; $progress"), 'maker|words|reading documents|2|200', 'and who reads all statistics');
is(sql("SET ROLE other; $progress"), '', 'and nobody else');
$us->query_safe('SELECT pg_advisory_unlock(1)');
waits('writing chunks');
is(sql($progress), 'maker|words|writing chunks|5|10', 'half of its chunks are written');
$us->query_safe('SELECT pg_advisory_unlock(2)');
$run->finish;
is($out, "1800\n", 'its words are counted');
is(sql($progress), '', 'it is over');

# -- ends of all kinds
for my $how ('pg_cancel_backend', 'pg_terminate_backend')
{
	$us->query_safe('SELECT pg_advisory_lock(1)');
	$run = start_build($build);
	waits('reading documents');
	sql("SELECT $how(pid) FROM pg_stat_activity WHERE application_name = 'builder'");
	$run->finish;
	like($err, qr/canceling|terminating/, $how);
	is(sql($progress), '', "$how: it is over");
	is(sql('SELECT n FROM openlora.trace_indexes'), '2000', "$how: the index of before is there");
	$us->query_safe('SELECT pg_advisory_unlock(1)');
}
sql('ALTER TABLE openlora.trace_chunks ADD CONSTRAINT broken CHECK (part = 0) NOT VALID');
is(sql(q{SET client_min_messages = warning; DO $$ BEGIN PERFORM lora_trace_index('words'); EXCEPTION WHEN check_violation THEN END $$;} . " $progress"), '', 'an error that is caught leaves nothing');
sql('ALTER TABLE openlora.trace_chunks DROP CONSTRAINT broken');

# -- two at a time: one after the other
$us->query_safe('SELECT pg_advisory_lock(1)');
$run = start_build($build);
waits('reading documents');
my ($first_out, $first) = (\$out, $run);
my $second = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', $build ], '>', \my $second_out, '2>', \my $second_err, IPC::Run::timeout(600));
until_true('SELECT count(*) = 2 FROM openlora.stat_progress_trace', 'two build the same');
$us->query_safe('SELECT pg_advisory_unlock(1)');
$_->finish for $first, $second;
is("$$first_out$second_out$second_err", "1800\n1800\n", 'and both have');
is(sql('SELECT count(*) FROM openlora.trace_documents'), '200', 'one index is there');
$us->quit;
$node->stop;
done_testing();
