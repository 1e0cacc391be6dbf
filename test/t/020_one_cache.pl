# openlora.cache_size: one memory for keys, values and adapters, taken by reload. Answers are those of
# caches by themselves, though adapters and pages take each other's place; what can never fit is told.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use FindBin;
use lib $FindBin::Bin;
use OpenLora;

my $node = PostgreSQL::Test::Cluster->new('small');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'openlora'\nopenlora.model = '$ENV{OPENLORA_TEST_MODEL}'");
$node->start;
$node->safe_psql('postgres', qq{
	CREATE EXTENSION openlora;
	SELECT lora_adapter_import(name, pg_read_binary_file('$ENV{OPENLORA_DEMO}/adapters/' || name || '/adapter_model.safetensors'),
	  pg_read_file('$ENV{OPENLORA_DEMO}/adapters/' || name || '/adapter_config.json')::jsonb)
	FROM unnest(ARRAY['grimm', 'manual', 'shakespeare', 'sql']) AS name});

sub restart_with
{
	my ($setting) = @_;
	my $since = $node->safe_psql('postgres', 'SELECT since FROM lora_status()');
	$node->append_conf('postgresql.conf', $setting);
	$node->reload;
	$node->poll_query_until('postgres', "SELECT state = 'ready' AND since > '$since' FROM lora_status()") or die 'no restart';
}

my $answers = q{
	SELECT string_agg(lora_generate(ARRAY[(ARRAY['grimm', 'manual', 'shakespeare', 'sql'])[1 + i % 4]], 'The king ' || i,
	  max_tokens => 20 + i % 7, temperature => 0.7, seed => i), '|' ORDER BY i) FROM generate_series(1, 24) AS i};

$node->safe_psql('postgres', 'SELECT lora_count_tokens($$wait$$)');
my $want = $node->safe_psql('postgres', $answers);
my $apart = told($node, 'device_memory');

restart_with("openlora.cache_size = '3MB'");
is($node->safe_psql('postgres', $answers), $want, 'answers are the same in 3 MB for both');
is(told($node, 'adapters < 4 AND adapter_memory <= 3 * 1024 * 1024'), 't',
	'they do not hold all adapters');
cmp_ok(told($node, 'adapter_loads', 'openlora.stat_engine'), '>', 4, 'which took turns');
cmp_ok(told($node, 'device_memory'), '<', $apart, 'less memory is taken');

restart_with("openlora.adapter_cache_size = '1MB'");
is($node->safe_psql('postgres', q{SELECT lora_generate('{grimm}', 'The king', max_tokens => 3) IS NOT NULL}), 't',
	'adapters may take a part of it alone');
my (undef, undef, $stderr) = $node->psql('postgres', q{SELECT lora_generate('{manual}', 'The king', max_tokens => 3)});
like($stderr, qr/does not fit.*budget is 1048576 bytes/s, 'what never fits names the budget');
$node->stop;
done_testing();
