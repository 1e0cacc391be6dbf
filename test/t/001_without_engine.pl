# A server without the preload, without a model, and with a broken model starts, and
# says from SQL what is missing.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('plain');
$node->init;
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION openlora');

sub fails_with
{
	my ($sql, $pattern, $what) = @_;
	my ($code, $out, $err) = $node->psql('postgres', $sql);
	isnt($code, 0, "$what: fails");
	like($err, $pattern, "$what: says why");
}

fails_with(q{SELECT lora_generate(NULL, 'x')}, qr/not loaded at server start.*shared_preload_libraries/s, 'no preload');
fails_with(q{SELECT * FROM lora_status()}, qr/shared_preload_libraries/, 'no preload, status');
# Rows can be stored without an engine; what can be seen from outside is checked.
fails_with(q{SELECT lora_adapter_import('x', 'PK\x03\x04aaaaaaaaaaaa')}, qr/invalid input syntax|pickle/, 'pickle');
fails_with(q{SELECT lora_adapter_import('x', '\x504b0304616161616161616161')}, qr/pickle.*safetensors/s, 'zip pickle');
fails_with(q{SELECT lora_adapter_import('x', '\x0011223344')}, qr/neither safetensors nor GGUF/, 'other bytes');

# What an error quotes is in the database's encoding.
$node->safe_psql('postgres', q{CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0});
$node->safe_psql('latin', 'CREATE EXTENSION openlora');
my (undef, undef, $latin) = $node->psql('latin', qq{SET client_encoding = 'UTF8'; SELECT lora_generate(NULL, 'x', logit_bias => '{"\xc3\xa9": 1}')});
like($latin, qr/logit_bias has the key "\xc3\xa9"/, 'a key that is no token id, in another encoding');

$node->append_conf('postgresql.conf', "shared_preload_libraries = 'openlora'");
$node->restart;
fails_with(q{SELECT lora_generate(NULL, 'x')}, qr/no model to serve.*openlora\.model/s, 'no model');
is($node->safe_psql('postgres', 'SELECT state FROM lora_status()'), 'off', 'state without a model');

$node->append_conf('postgresql.conf', "openlora.model = '/nonexistent/model'");
$node->reload;
$node->poll_query_until('postgres', q{SELECT state = 'broken' FROM lora_status()}) or die 'not broken';
fails_with(q{SELECT lora_generate(NULL, 'x')}, qr{/nonexistent/model}, 'missing model');

my $folder = $node->basedir . '/broken';
mkdir $folder;
append_to_file("$folder/config.json", '{"model_type": "mamba", "architectures": ["MambaForCausalLM"]}');
$node->append_conf('postgresql.conf', "openlora.model = '$folder'");
$node->reload;
$node->poll_query_until('postgres', q{SELECT state = 'broken' AND error LIKE '%mamba%' FROM lora_status()})
  or die 'not broken by architecture';
fails_with(q{SELECT lora_generate(NULL, 'x')}, qr/mamba/i, 'unknown architecture');

# A good model, by reload alone.
$node->append_conf('postgresql.conf', "openlora.model = '$ENV{OPENLORA_TEST_MODEL}'");
$node->reload;
$node->poll_query_until('postgres', q{SELECT state = 'ready' FROM lora_status()}) or die 'not ready';
isnt($node->safe_psql('postgres', q{SELECT lora_generate(NULL, 'Once upon', max_tokens => 5)}), '', 'answers after reload');
$node->stop;
done_testing();
