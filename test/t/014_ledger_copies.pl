# Copies of a server that signs: no two of them sign different logs under one origin.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $elsewhere = PostgreSQL::Test::Utils::tempdir . '/keys';
sub ready { $_[0]->poll_query_until('postgres', q{SELECT state = 'ready' FROM lora_status()}) or die 'not ready' }
sub ask { $_[0]->safe_psql('postgres', "SELECT count(lora_generate(NULL, '$_[2]' || i, max_tokens => 1, ignore_eos => true)) FROM generate_series(1, $_[1]) i") }
sub wait_for { $_[0]->poll_query_until('postgres', "SELECT count(*) = $_[1] FROM openlora.receipts") or die "not $_[1] receipts" }
sub fails { my ($node, $query, $like, $what) = @_; my ($code, undef, $err) = $node->psql('postgres', $query); like($err, $like, $what) }

# A server with five receipts and a key, and a backup of it.
sub primary
{
	my ($name, $settings) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	$node->init(allows_streaming => 1, has_archiving => 1);
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'openlora'\nopenlora.model = '$ENV{OPENLORA_TEST_MODEL}'\n$settings");
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION openlora');
	ready($node);
	ask($node, 5, 'One ');
	wait_for($node, 5);
	$node->safe_psql('postgres', q{SELECT lora_ledger_create_key('example.com/log')});
	$node->safe_psql('postgres', 'SELECT lora_checkpoint()') if $name ne 'unsigned';
	$node->backup('copy');
	return $node;
}

# The framework copies files without their modes; pg_basebackup and file systems keep them.
sub keep_modes
{
	my ($node) = @_;
	my $keys = $node->data_dir . '/openlora_keys';
	chmod(0700, $keys);
	chmod(0600, glob "$keys/*");
}

# Three receipts more that are signed, which the copy does not hear of, and the end.
sub go_on_and_be_lost
{
	my ($node) = @_;
	ask($node, 3, 'Two ');
	wait_for($node, 8);
	my $signed = $node->safe_psql('postgres', 'SELECT lora_checkpoint()');
	like($signed, qr/^example\.com\/log\n8\n/, 'the first goes on and signs');
	$node->stop;
	return $signed;
}

# -- failover to a standby that has not heard of the last checkpoint
for my $name ('signed', 'unsigned')
{
	my $node = primary($name, '');
	my $standby = PostgreSQL::Test::Cluster->new("standby_of_$name");
	$standby->init_from_backup($node, 'copy', has_streaming => 1);
	keep_modes($standby);
	$standby->start;
	$node->wait_for_catchup($standby, 'replay', $node->lsn('flush'));
	$standby->stop;
	go_on_and_be_lost($node);
	$standby->start;
	$standby->promote;
	ready($standby);
	ask($standby, 3, 'Three ');
	wait_for($standby, 8);
	fails($standby, 'SELECT lora_checkpoint()', qr/signed on timeline 1, and this is 2.*promoted or recovered.*another => true/s, "$name: a promoted copy does not sign");
	$standby->restart;
	fails($standby, 'SELECT lora_checkpoint()', qr/signed on timeline 1, and this is 2/, "$name: nor later");
	is($standby->safe_psql('postgres', 'SELECT checked, bad IS NULL FROM lora_ledger_verify()'), '8|t', "$name: what it has is good");
	$standby->safe_psql('postgres', q{SELECT lora_ledger_create_key('example.com/second', another => true)});
	like($standby->safe_psql('postgres', 'SELECT lora_checkpoint()'), qr/^example\.com\/second\n8\n/, "$name: a new origin");
	$standby->stop;
}

# -- recovery to a point in time before the last checkpoint
my $node = primary('recovered_from', '');
$node->safe_psql('postgres', q{SELECT pg_create_restore_point('here')});
go_on_and_be_lost($node);
my $old = PostgreSQL::Test::Cluster->new('recovered');
$old->init_from_backup($node, 'copy', has_restoring => 1, standby => 0);
$old->append_conf('postgresql.conf', "recovery_target_name = 'here'\nrecovery_target_action = promote");
keep_modes($old);
$old->start;
$old->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()') or die 'still in recovery';
ready($old);
wait_for($old, 5);
ask($old, 3, 'Three ');
wait_for($old, 8);
fails($old, 'SELECT lora_checkpoint()', qr/signed on timeline 1, and this is 2/, 'what was recovered does not sign');
$old->stop;

# -- with the memory elsewhere there is one for all copies, and it is up to date
$node = primary('elsewhere', "openlora.ledger_key_directory = '$elsewhere'");
my $standby = PostgreSQL::Test::Cluster->new('heir');
$standby->init_from_backup($node, 'copy', has_streaming => 1);
$standby->start;
ask($node, 3, 'Two ');
wait_for($node, 8);
$node->wait_for_catchup($standby, 'replay', $node->lsn('flush'));
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
ask($node, 1, 'Late ');
wait_for($node, 9);
my $nine = $node->safe_psql('postgres', 'SELECT lora_checkpoint()');
is($standby->safe_psql('postgres', 'SELECT checked, bad IS NULL FROM lora_ledger_verify()'), '8|t', 'elsewhere: a standby that lags is not wrong');
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
$node->wait_for_catchup($standby, 'replay', $node->lsn('flush'));
$node->stop;
$standby->promote;
ready($standby);
is($standby->safe_psql('postgres', 'SELECT lora_checkpoint()'), $nine, 'elsewhere: what was signed is there');
ask($standby, 1, 'Three ');
wait_for($standby, 10);
like($standby->safe_psql('postgres', 'SELECT lora_checkpoint()'), qr/^example\.com\/log\n10\n/, 'elsewhere: and goes on');

# -- a key without a memory
unlink(glob "$elsewhere/*.signed") == 1 or die 'no memory';
ask($standby, 1, 'Four ');
wait_for($standby, 11);
fails($standby, 'SELECT lora_checkpoint()', qr/\.signed" does not exist.*another => true/s, 'a key that has forgotten is not used');
$standby->stop;
done_testing();
