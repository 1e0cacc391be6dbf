# openlora.adapter_host_cache_size: adapters that the device had to drop come back from the host's memory,
# without their rows; a row that is replaced meanwhile is what answers.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use FindBin;
use lib $FindBin::Bin;
use OpenLora;

my $node = PostgreSQL::Test::Cluster->new('host');
$node->init;
$node->append_conf('postgresql.conf', qq{
	shared_preload_libraries = 'openlora'
	openlora.model = '$ENV{OPENLORA_TEST_MODEL}'
	openlora.prefix_cache = off});
$node->start;
$node->safe_psql('postgres', qq{
	CREATE EXTENSION openlora;
	CREATE VIEW on_disk AS SELECT name, pg_read_binary_file('$ENV{OPENLORA_DEMO}/adapters/' || name || '/adapter_model.safetensors') AS weights,
	  pg_read_file('$ENV{OPENLORA_DEMO}/adapters/' || name || '/adapter_config.json')::jsonb AS config
	FROM unnest(ARRAY['grimm', 'manual', 'shakespeare', 'sql']) AS name;
	SELECT lora_adapter_import(name, weights, config) FROM on_disk});

my $answers = q{
	SELECT string_agg(lora_generate(ARRAY[(ARRAY['grimm', 'manual', 'shakespeare', 'sql'])[1 + i % 4]], 'The king ' || i,
	  max_tokens => 8, temperature => 0.7, seed => i), '|' ORDER BY i) FROM generate_series(1, 12) AS i};

sub status { return told($node, $_[0], 'openlora.stat_engine') }

my $want = $node->safe_psql('postgres', $answers);
is(status('adapters, host_adapters, host_adapter_memory, host_loads'), '4|0|0|0', 'a CPU device has one tier');
my $largest = $node->safe_psql('postgres', 'SELECT max(bytes) FROM openlora.stat_adapters');

# Room for one of them on the device, and for all in the host's memory.
my $since = $node->safe_psql('postgres', 'SELECT since FROM lora_status()');
my $room = int($largest / 1048576) + 1;
$node->append_conf('postgresql.conf',
	"openlora.adapter_host_cache_size = '64MB'\nopenlora.adapter_cache_size = '${room}MB'\nopenlora.pipeline_depth = 0");
$node->reload;
$node->poll_query_until('postgres', "SELECT state = 'ready' AND since > '$since' FROM lora_status()") or die 'no restart';

is($node->safe_psql('postgres', $answers), $want, 'answers are the same');
is(status('host_adapters, host_adapter_memory > 0, adapters < 4, adapter_loads > 4, adapter_loads - host_loads'), '4|t|t|t|4',
	'each row was read once');
is($node->safe_psql('postgres', q{SELECT string_agg(DISTINCT tier, ' ' ORDER BY tier) FROM openlora.stat_adapters}), 'device host',
	'the view tells where they are');

# The same name, other weights: a copy is of bytes, not of a name.
my $grimm = q{SELECT lora_generate('{grimm}', 'The king', max_tokens => 8)};
my $sql = q{SELECT lora_generate('{sql}', 'The king', max_tokens => 8)};
$node->safe_psql('postgres', q{SELECT lora_adapter_drop('grimm');
	SELECT lora_adapter_import('grimm', weights, config) FROM on_disk WHERE name = 'sql'});
is($node->safe_psql('postgres', $grimm), $node->safe_psql('postgres', $sql), 'a replaced row answers with its new weights');

my (undef, undef, $stderr) = $node->psql('postgres', q{ALTER SYSTEM SET openlora.adapter_host_cache_size = '-2'});
like($stderr, qr/outside the valid range/, 'a size has a range');
$node->stop;
done_testing();
