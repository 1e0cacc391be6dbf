# Quotas: what is counted survives a restart, a request that is cancelled is charged what it
# took, and a connection that dies gives back what it reserved.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('frugal');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'openlora'\nopenlora.model = '$ENV{OPENLORA_TEST_MODEL}'");
$node->start;
$node->safe_psql('postgres', q{CREATE EXTENSION openlora; CREATE ROLE asker LOGIN; SELECT lora_grant_usage('asker');
  SELECT lora_set_quota('asker', tokens => 1000000, period => '10000 days', concurrent => 2)});
$node->poll_query_until('postgres', q{SELECT state = 'ready' FROM lora_status()}) or die 'not ready';
my $used = q{SELECT coalesce(sum(tokens), 0) FROM openlora.quota_usage};
my $ask = q{SELECT length(lora_generate(NULL, 'Once upon a time', max_tokens => 900, ignore_eos => true))};
my $ask_on = q{DO $$ BEGIN FOR i IN 1 .. 1000 LOOP PERFORM lora_generate(NULL, 'Once upon a time', max_tokens => 900, ignore_eos => true); END LOOP; END $$};

$node->safe_psql('postgres', "SET ROLE asker; $ask");
my $before = $node->safe_psql('postgres', $used);
cmp_ok($before, '>=', 900, 'counted');
$node->restart;
is($node->safe_psql('postgres', $used), $before, 'a restart forgets nothing');
$node->poll_query_until('postgres', q{SELECT state = 'ready' FROM lora_status()}) or die 'not ready';

# The worker writes counters while they change: a crash loses seconds at most.
$node->safe_psql('postgres', "SET ROLE asker; $ask");
my $now = $node->safe_psql('postgres', $used);
my $file = $node->data_dir . '/pg_stat/openlora_quotas';
my $old = (stat $file)[1];
for (1 .. 3000) { last if ((stat $file)[1] // 0) != $old; select undef, undef, undef, 0.01 }
$node->stop('immediate');
$node->start;
is($node->safe_psql('postgres', $used), $now, 'after a crash: as it was written last');
$node->poll_query_until('postgres', q{SELECT state = 'ready' FROM lora_status()}) or die 'not ready';

# Two run, a third is refused; one is cancelled, one dies with its connection.
my @sessions = map { $node->background_psql('postgres') } 1 .. 2;
for my $session (@sessions)
{
	$session->query_safe(q{SET ROLE asker});
	$session->query_until(qr/sent/, "\\echo sent\n$ask_on;\n");
}
$node->poll_query_until('postgres', q{SELECT sum(concurrent) = 2 FROM openlora.quota_usage}) or die 'not two';
my ($stdout, $stderr) = ('', '');
for (1 .. 100) # between two of its answers a session does not count
{
	$node->psql('postgres', "SET ROLE asker; $ask", stdout => \$stdout, stderr => \$stderr);
	last if $stderr;
}
like($stderr, qr/too many sessions of role "asker" ask at the same time/, 'the third is refused');
my $running = $node->safe_psql('postgres', $used);
$node->poll_query_until('postgres', "SELECT sum(tokens) > $running FROM openlora.quota_usage") or die 'not charged';
pass('tokens are charged as they come');
$node->safe_psql('postgres', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'DO %' AND pid <> pg_backend_pid() ORDER BY pid LIMIT 1});
$node->poll_query_until('postgres', q{SELECT sum(concurrent) = 1 FROM openlora.quota_usage}) or die 'not one';
pass('one is cancelled');
$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'DO %' AND pid <> pg_backend_pid()});
$node->poll_query_until('postgres', q{SELECT sum(concurrent) = 0 AND sum(reserved) = 0 FROM openlora.quota_usage}) or die 'not none';
pass('one is terminated, and nothing stays reserved');
cmp_ok($node->safe_psql('postgres', $used), '>', $running, 'what they took is charged');
$_->{run}->finish for @sessions;

# A disk that is full (of more than one buffer's counters): it is said, the file is closed, and
# what was counted is written as soon as that can be.
$node->safe_psql('postgres', q{DO $$ BEGIN FOR i IN 1 .. 120 LOOP
  EXECUTE format('CREATE ROLE r%s', i);
  PERFORM lora_grant_usage(to_regrole('r' || i)), lora_set_quota('r' || i, tokens => 1000); END LOOP; END $$});
my $little = q{SELECT count(lora_generate(NULL, 'a', max_tokens => 1))};
$node->safe_psql('postgres', join('', map { "SET ROLE r$_; $little; RESET ROLE;" } 1 .. 120));
my $engine = $node->safe_psql('postgres', q{SELECT engine_pid FROM lora_status()});
my $worker = (split ' ', slurp_file("/proc/$engine/stat"))[3];
my $log = -s $node->logfile;
for (1 .. 3000) { last if symlink('/dev/full', "$file.tmp"); select undef, undef, undef, 0.01 }
$node->safe_psql('postgres', "SET ROLE r1; $little");
$node->wait_for_log(qr/could not write file "pg_stat\/openlora_quotas.tmp": No space left on device/, $log);
sub full { return scalar grep { (readlink($_) // '') eq '/dev/full' } glob "/proc/$worker/fd/*" }
for (1 .. 3000) { last if full() == 0; select undef, undef, undef, 0.01 } # it may be trying again
is(full(), 0, 'a file that could not be written is closed');
$old = (stat $file)[1];
unlink("$file.tmp") or die "could not remove the link: $!";
for (1 .. 3000) { last if ((stat $file)[1] // 0) != $old; select undef, undef, undef, 0.01 }
isnt((stat $file)[1], $old, 'and it is written when there is room');
$node->stop;
done_testing();
