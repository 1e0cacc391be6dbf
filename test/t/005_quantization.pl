# Quantising at load: chosen by a setting, taken by reload, within stated bounds of the
# perplexity that the bf16 weights give; and the portable path agrees with the fast one.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('small');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'openlora'\nopenlora.model = '$ENV{OPENLORA_TEST_MODEL}'");
$node->start;
$node->safe_psql('postgres', qq{
	CREATE EXTENSION openlora;
	SELECT lora_adapter_import('grimm', pg_read_binary_file('$ENV{OPENLORA_DEMO}/adapters/grimm/adapter_model.safetensors'),
	  pg_read_file('$ENV{OPENLORA_DEMO}/adapters/grimm/adapter_config.json')::jsonb);
	CREATE TABLE heldout AS SELECT line::jsonb ->> 'text' AS passage
	FROM unnest(ARRAY['stories', 'grimm']) AS voice,
	  regexp_split_to_table(pg_read_file('$ENV{OPENLORA_DEMO}/heldout/' || voice || '.jsonl'), E'\\n') AS line WHERE line <> ''});

sub perplexity
{
	my ($setting) = @_;
	$node->safe_psql('postgres', 'SELECT lora_count_tokens($$wait$$)');
	my $since = $node->safe_psql('postgres', 'SELECT since FROM lora_status()');
	if ($setting)
	{
		$node->append_conf('postgresql.conf', $setting);
		$node->reload;
		$node->poll_query_until('postgres', "SELECT state = 'ready' AND since > '$since' FROM lora_status()") or die 'no restart';
	}
	return $node->safe_psql('postgres', q{
		SELECT exp(-sum(s.logprob) / sum(s.tokens)) FROM (SELECT passage FROM heldout LIMIT 6) h,
		  LATERAL lora_score_detail('{grimm}', '', left(passage, 600)) s});
}

sub of_adapter
{
	return $node->safe_psql('postgres', q{
		SELECT bytes FROM openlora.stat_adapters WHERE name = 'grimm' AND tier = 'device'});
}

my $base = perplexity();
my $bytes = of_adapter();
my $asked = $node->safe_psql('postgres', q{
	SET openlora.keep_text = full;
	SELECT inference_id FROM lora_complete('{grimm}', 'Once', max_tokens => 12)});
my %bound = (int8 => 0.01, int4 => 0.20);
for my $kind ('int8', 'int4')
{
	my $change = perplexity("openlora.quantization = '$kind'") / $base - 1;
	cmp_ok(abs($change), '<', $bound{$kind}, sprintf('%s: perplexity changes by %.4f, bound %.2f', $kind, $change, $bound{$kind}));
}
my $portable = perplexity("openlora.quantization = 'auto'\nopenlora.isa = 'portable'");
cmp_ok(abs($portable / $base - 1), '<', 1e-4, 'the portable path agrees');

# Adapters in eight bits: nearly the same numbers in little more than half the memory; and what was
# computed with them is told from what was not.
{
	my $change = perplexity("openlora.isa = 'auto'\nopenlora.adapter_dtype = 'int8'") / $base - 1;
	isnt($change, 0, 'adapters of eight bits are not the adapters as they are');
	cmp_ok(abs($change), '<', 0.002, sprintf('int8 adapters: perplexity changes by %.5f', $change));
	cmp_ok(of_adapter() / $bytes, '<', 0.6, sprintf('they take %d bytes of %d', of_adapter(), $bytes));
	is($node->safe_psql('postgres', q{SELECT device_description LIKE '%, int8 adapters' FROM lora_status()}), 't', 'lora_status() tells');
	my ($status, $out, $err) = $node->psql('postgres', "SELECT output IS NOT NULL FROM lora_replay($asked)");
	is($out, 't', 'an answer is computed again');
	like($err, qr/NOTICE:  inference $asked was computed otherwise than its replay\nDETAIL:  .*; now .*, int8 adapters/, 'and it is said that not alike');
	($status, $out, $err) = $node->psql('postgres', q{ALTER SYSTEM SET openlora.adapter_dtype = 'int4'});
	like($err, qr/invalid value for parameter "openlora.adapter_dtype": "int4".*HINT:  Available values: auto, int8\./s, 'other types are refused');
	perplexity("openlora.adapter_dtype = 'auto'");
	is($node->safe_psql('postgres', "SELECT same FROM lora_replay($asked)"), 't', 'as they are, it is the same');
}

my $memory = $node->safe_psql('postgres', 'SELECT device_memory FROM lora_status()');
cmp_ok($memory, '>', 1000000, 'memory is reported');

# What a CPU has not it refuses, and says so.
for my $case (['quantization', 'no fp8 weights'], ['kv_cache_dtype', 'keys and values as F8_E4M3'])
{
	my ($setting, $says) = @$case;
	$node->append_conf('postgresql.conf', "openlora.quantization = 'auto'\nopenlora.$setting = 'fp8'");
	$node->reload;
	ok($node->poll_query_until('postgres', "SELECT state = 'broken' AND error LIKE '%$says%' FROM lora_status()"), "$setting = fp8 is refused");
}
$node->append_conf('postgresql.conf', "openlora.kv_cache_dtype = 'bf16'");
$node->reload;
ok($node->poll_query_until('postgres', "SELECT state = 'ready' FROM lora_status()"), 'bf16 keys and values are not');
$node->stop;
done_testing();
