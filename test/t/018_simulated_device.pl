# The CUDA device behind the whole service: its kernels run on the processor (test/simt), all else
# is as on a GPU. Its answers, its faults, and who takes its place. A small model of random numbers:
# a step takes milliseconds.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use POSIX ();
use Test::More;

plan skip_all => 'OPENLORA_SIMT names no engine beside a simulated device' unless -x ($ENV{OPENLORA_SIMT} // '');

my $golden = "$ENV{OPENLORA_DEMO}/../golden/llama";

# What goes wrong with the device: see test/simt/fault.cpp.
my $fault = PostgreSQL::Test::Utils::tempdir() . '/fault';
$ENV{OL_SIMT_FAULT} = "\@$fault";
sub fault
{
	my ($what) = @_;
	unlink $fault;
	return unless $what;
	append_to_file("$fault.new", $what);
	rename "$fault.new", $fault or die $!;
}

my $node = PostgreSQL::Test::Cluster->new('gpu');
$node->init;
$node->append_conf('postgresql.conf', qq{
	shared_preload_libraries = 'openlora'
	openlora.model = '$golden'
	openlora.engine_path = '$ENV{OPENLORA_SIMT}'
	openlora.device = 'cpu'
	openlora.threads = 2
});
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION openlora');
for my $name ('a', 'b')
{
	$node->safe_psql('postgres', qq{
		SELECT lora_adapter_import('$name', pg_read_binary_file('$golden/adapters/$name/adapter_model.safetensors'),
		  pg_read_file('$golden/adapters/$name/adapter_config.json')::jsonb)});
}

# With other settings, or the same ones once more; until the engine is ready, or broken.
sub reload
{
	my ($settings, $state) = @_;
	my $since = $node->safe_psql('postgres', 'SELECT since FROM lora_status()');
	$node->append_conf('postgresql.conf', $settings);
	$node->reload;
	$node->poll_query_until('postgres', "SELECT state = '$state' AND since > '$since' FROM lora_status()") or die "not $state";
}

sub log_since
{
	my ($offset) = @_;
	return substr(slurp_file($node->logfile), $offset);
}

# -- its answers ------------------------------------------------------------------------------
my $answers = q{SELECT string_agg(lora_generate(ids, 'some words to begin with', max_tokens => 6), '|' ORDER BY n)
	FROM (VALUES (1, NULL), (2, '{a}'::text[]), (3, '{a,b}')) v (n, ids)};
my $score = q{SELECT logprob / tokens FROM lora_score_detail('{a}', 'one thing', ' and then another, which is longer')};
# Of the answer with two adapters.
my $shares = q{SELECT string_agg(share::text, ' ' ORDER BY position) FROM openlora.inference_adapters
	WHERE inference = (SELECT inference FROM openlora.inference_adapters GROUP BY inference HAVING count(*) = 2
	  ORDER BY inference DESC LIMIT 1)};

my $on_cpu = $node->safe_psql('postgres', $answers);
my @shares_on_cpu = split ' ', $node->safe_psql('postgres', $shares);
my $base = $node->safe_psql('postgres', $score);
reload("openlora.device = 'cuda:0'", 'ready');
is($node->safe_psql('postgres', 'SELECT device, device_description FROM lora_status()'),
	'cuda|threads of a processor, compute capability 8.0', 'lora_status() names the device');
my $on_gpu = $node->safe_psql('postgres', $answers);
is($on_gpu, $on_cpu, 'the same greedy answers as on the CPU: none, one and two adapters');
my @shares_on_gpu = split ' ', $node->safe_psql('postgres', $shares);
is($shares_on_gpu[0] + $shares_on_gpu[1], 1000000, 'shares sum to the whole');
cmp_ok(abs($shares_on_gpu[0] - $shares_on_cpu[0]), '<', 10000, "and are the CPU's: @shares_on_gpu, @shares_on_cpu");
my $change = $node->safe_psql('postgres', $score) - $base;
cmp_ok(abs($change), '<', 0.05, sprintf('log-probabilities differ from the CPU by %.4f', $change));
is($node->safe_psql('postgres', 'SELECT device FROM openlora.stat_engine'), 'cuda', 'stat_engine names it, too');

# -- a kernel fails: the engine ends, the worker starts another, callers are retried or told -------
my $restarts = 0;
my $log = -s $node->logfile;
my $long = q{SELECT md5(lora_generate('{a}', 'some words', max_tokens => 60, ignore_eos => true))};
my $expected = $node->safe_psql('postgres', $long);

# In the middle of an answer.
{
	fault('after:700');
	my ($status, $out, $err) = $node->psql('postgres', $long);
	is($err, '', 'a kernel fails: the caller sees no error');
	is($out, $expected, 'and the same answer');
	ok(!-e $fault, 'it did fail');
	is($node->safe_psql('postgres', 'SELECT restarts FROM lora_status()'), ++$restarts, 'the engine was started again');
	like(log_since($log), qr/the GPU failed.*an illegal memory access/s, 'the log says why');
}

# While an adapter is placed: the new engine has none yet. It is no fault of the adapter's.
{
	fault('after:0');
	is($node->safe_psql('postgres', $answers), $on_gpu, 'a kernel fails that places an adapter, or computes: the same answers');
	is($node->safe_psql('postgres', 'SELECT restarts FROM lora_status()'), ++$restarts, 'from another engine');
}

{
	fault('after:0');
	my ($status, $out, $err) = $node->psql('postgres', "SET openlora.max_retries = 0; $long");
	like($err, qr/the openlora engine was lost/, 'without retries the caller is told');
	$restarts++;
	is($node->safe_psql('postgres', $long), $expected, 'and the next one is served');
}

# -- quantised at load, with progress: seen while a launch waits --------------------------------
POSIX::mkfifo("$fault.go", 0600) or die $!;
fault('hold:9');
$node->append_conf('postgresql.conf', "openlora.quantization = 'int8'");
$node->reload;
$node->poll_query_until('postgres', 'SELECT bytes_done > 0 FROM openlora.stat_progress_load') or die 'does not load';
is($node->safe_psql('postgres', q{SELECT state, bytes_done < bytes_total, percent < 100 FROM openlora.stat_progress_load, lora_status()}),
	'loading|t|t', 'progress of a load that quantises is seen');
fault();
open my $go, '>', "$fault.go" or die $!;
close $go;
$node->poll_query_until('postgres', q{SELECT state = 'ready' FROM lora_status()}) or die 'not ready';
my $int8 = $node->safe_psql('postgres', $score) - $base;
ok($int8 != $change && abs($int8) < 0.05, sprintf('and what was quantised is served: %.4f', $int8));

# -- adapters in eight bits ------------------------------------------------------------------------
{
	my $bytes = q{SELECT sum(bytes) FROM openlora.stat_adapters WHERE tier = 'device'};
	reload("openlora.quantization = 'auto'", 'ready');
	$node->safe_psql('postgres', $answers);
	my $before = $node->safe_psql('postgres', $bytes);
	reload("openlora.adapter_dtype = 'int8'", 'ready');
	is($node->safe_psql('postgres', $answers), $on_cpu, 'adapters in eight bits: the same greedy answers');
	my @shares = split ' ', $node->safe_psql('postgres', $shares);
	cmp_ok(abs($shares[0] - $shares_on_cpu[0]), '<', 10000, "and nearly the same shares: @shares");
	cmp_ok($node->safe_psql('postgres', $bytes), '<', $before, 'in less memory');
	is($node->safe_psql('postgres', q{SELECT device_description LIKE '%, int8 adapters' FROM lora_status()}), 't', 'lora_status() tells');
	reload("openlora.adapter_dtype = 'auto'", 'ready');
}

# -- no memory: which budget it is --------------------------------------------------------------
my ($status, $out, $err);
reload("openlora.quantization = 'auto'\nopenlora.memory_limit = '2MB'", 'broken');
($status, $out, $err) = $node->psql('postgres', 'SELECT lora_generate(NULL, $$x$$)');
like($err, qr/the device's memory limit does not admit.*of 2097152 are in use.*openlora\.memory_limit/s, 'a limit that is too low is named');
fault('memory:36000000');
reload("openlora.memory_limit = 0", 'broken');
($status, $out, $err) = $node->psql('postgres', 'SELECT lora_generate(NULL, $$x$$)');
like($err, qr/the GPU has no memory for.*of the card's 36000000.*openlora\.kv_cache_size/s, 'a card that is full, too');
fault();
reload('', 'ready');
is($node->safe_psql('postgres', $long), $expected, 'a reload tries again when there is room');

# -- no device: an error where it was asked for by name, else the CPU ----------------------------
my %without = (
	'no-device' => qr/there is no GPU that CUDA can use/,
	'driver' => qr/the NVIDIA driver is too old.*for CUDA 12\.0; CUDA 13\.0 is needed/s,
	'busy' => qr/GPU 0 is busy/);
my $name = 'cuda';
for my $what (sort keys %without)
{
	fault($what);
	reload("openlora.device = '$name'", 'broken');
	$name = 'cuda:0';
	($status, $out, $err) = $node->psql('postgres', 'SELECT lora_generate(NULL, $$x$$)');
	like($err, $without{$what}, "$what: no answer where the GPU was named");
	$log = -s $node->logfile;
	reload("openlora.device = 'auto'", 'ready');
	is($node->safe_psql('postgres', 'SELECT device FROM lora_status()'), 'cpu', "$what: auto takes the CPU");
	like(log_since($log), qr/the CPU computes, as no GPU can: $without{$what}/, 'and the log says why');
}
fault();
$node->stop;
done_testing();
