# An engine that breaks the protocol: promises P3 and P7. What it sends is not taken on
# trust, and a session that meets it gets one error and goes on.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('hostile');
$node->init;
$node->append_conf('postgresql.conf', <<"END");
shared_preload_libraries = 'openlora'
openlora.engine_path = '$ENV{OPENLORA_FAKE_ENGINE}'
openlora.model = '/fake/good'
openlora.restart_backoff_max = 100ms
openlora.max_retries = 1
END
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION openlora');

# Until an engine that behaves so was started: one of before may have ended and come again meanwhile.
sub behave
{
	my ($how) = @_;
	my $log = -s $node->logfile;
	$node->safe_psql('postgres', "ALTER SYSTEM SET openlora.model = '/fake/$how'");
	$node->reload;
	$node->wait_for_log(qr/^fake_engine: $how$/m, $log);
}

my $ask = q{SELECT lora_generate(NULL, 'x')};

is($node->safe_psql('postgres', $ask), 'good', 'a good one answers');

# What a session sees, and that it goes on: the error and the answer to another question, with settings
# that hold for the first alone.
sub meets
{
	my ($how, $error, $settings) = @_;
	my $question = $settings ? "BEGIN; SET LOCAL $settings; $ask; ROLLBACK" : $ask;
	behave($how);
	my ($stdout, $stderr);
	$node->psql('postgres', "$question; SELECT 'goes on'", stdout => \$stdout, stderr => \$stderr, on_error_stop => 0);
	like($stderr, $error, "$how: one clear error");
	like($stdout, qr/goes on/, "$how: the session goes on");
}

meets('malformed-event', qr/ERROR:  the openlora engine sent a malformed event/);
meets('broken-text', qr/ERROR:  invalid byte sequence for encoding "UTF8"/);
meets('other-version', qr/ERROR:  the openlora engine was lost/);
meets('no-session', qr/ERROR:  the openlora engine was lost/);
meets('corrupt-rings', qr/ERROR:  the openlora engine was lost/);
meets('hang-up', qr/ERROR:  the openlora engine was lost/);
meets('leave', qr/ERROR:  the openlora engine was lost/);
meets('silent', qr/ERROR:  canceling statement due to statement timeout/, q{statement_timeout = '300ms'});
meets('no-info', qr/ERROR:  /, q{openlora.engine_timeout = '500ms'});

# -- what it says that was used
is($node->safe_psql('postgres', 'SELECT count(*) FROM openlora.receipts'), '0', 'what is not reported is not metered');
meets('too-much', qr/ERROR:  the openlora engine was lost/);
meets('not-asked', qr/ERROR:  the openlora engine was lost/);
is($node->safe_psql('postgres', 'SELECT count(*) FROM openlora.receipts'), '0', 'what cannot be is not metered');
meets('twice', qr/ERROR:  the openlora engine was lost/);
$node->poll_query_until('postgres', 'SELECT count(*) = 2 FROM openlora.receipts') or die 'no receipts';
is($node->safe_psql('postgres', 'SELECT count(DISTINCT attempt) FROM openlora.receipts'), '2', 'each attempt once');
behave('leave');
$node->psql('postgres', "SET openlora.receipt_durability = sync; $ask");
is($node->safe_psql('postgres', q{SELECT string_agg(outcome, ',' ORDER BY leaf) FROM openlora.receipts WHERE leaf > 1}), 'announced,lost,lost', 'announced, and lost twice')
	if $node->poll_query_until('postgres', 'SELECT count(*) = 5 FROM openlora.receipts');
is($node->safe_psql('postgres', 'SELECT count(*) FROM openlora.unmetered'), '0', 'so that nothing is unmetered');

behave('strangers');
is($node->safe_psql('postgres', $ask), 'mine', 'what is meant for others is dropped');

behave('foreign-facts');
is($node->safe_psql('postgres', $ask), 'taken', 'an adapter that nobody named is not brought');
is($node->safe_psql('postgres', 'SELECT count(*) FROM openlora.inference_adapters'), '0', 'and shares of no adapter are not recorded');

behave('wrong-frames');
is($node->safe_psql('postgres', $ask), 'at last', 'frames that answer nothing are dropped');
{
	my ($stdout, $stderr);
	$node->psql('postgres', q{SELECT lora_tokenize('x'); SELECT 'goes on'}, stdout => \$stdout, stderr => \$stderr, on_error_stop => 0);
	like($stderr, qr/the openlora engine sent an unexpected frame/, 'an answer of the wrong kind: an error');
	like($stdout, qr/goes on/, 'and the session goes on');
}

# -- while it loads its model
behave('loading');
$node->poll_query_until('postgres', 'SELECT count(*) = 1 FROM openlora.stat_progress_load WHERE bytes_total > 0') or die 'does not load';
is($node->safe_psql('postgres', q{SELECT p.model, bytes_done, bytes_total, percent, p.engine_pid = s.engine_pid, p.since <= now() FROM openlora.stat_progress_load p, lora_status() s}),
	'loading|30|120|25.0|t|t', 'a view shows how far it is');
$node->safe_psql('postgres', q{CREATE ROLE looks; SELECT lora_grant_usage('looks')});
is($node->safe_psql('postgres', 'SET ROLE looks; SELECT count(*) FROM openlora.stat_progress_load'), '1', 'to whoever uses it');
meets('short-progress', qr/ERROR:  /, q{openlora.engine_timeout = '500ms'});

behave('good');
is($node->safe_psql('postgres', $ask), 'good', 'service is back');
is($node->safe_psql('postgres', 'SELECT count(*) FROM openlora.stat_progress_load'), '0', 'and nothing is loaded any more');
my $log = slurp_file($node->logfile);
like($log, qr/openlora engine broke the protocol and is ended/, 'the log tells');
unlike($log, qr/PANIC|terminating any other active server processes/, 'no crash restart');
$node->stop;
done_testing();
