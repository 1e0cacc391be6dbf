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
my ($ret, undef, $latin) = $node->psql('latin', qq{SET client_encoding = 'UTF8'; SELECT lora_generate(NULL, 'x', logit_bias => '{"\xc3\xa9": 1}')});
like($latin, qr/logit_bias has the key "\xc3\xa9"/, 'a key that is no token id, in another encoding');

$node->append_conf('postgresql.conf', "shared_preload_libraries = 'openlora'");
$node->restart;
fails_with(q{SELECT lora_generate(NULL, 'x')}, qr/no model to serve.*openlora\.model/s, 'no model');
ok($node->poll_query_until('postgres', q{SELECT state = 'off' FROM lora_status()}), 'state without a model'); # when there is a worker

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
# Texts that an encoding lacks, or that are none. Token 249 is a byte that begins no character.
my $odd = q{logit_bias => '{"249": 100}'};
($ret, undef, $latin) = $node->psql('latin', "SELECT lora_generate(NULL, 'x', max_tokens => 1, $odd)");
like($latin, qr/the answer has a character that encoding LATIN1 lacks/, 'an answer that the database cannot hold');
is($node->safe_psql('latin', "SELECT error FROM lora_complete(NULL, 'x', max_tokens => 1, on_error => 'null', $odd)"),
	'the answer has a character that encoding LATIN1 lacks', '... as a value');
is($node->safe_psql('latin', "SELECT count(*) FROM lora_stream(NULL, 'x', max_tokens => 1, on_error => 'null', $odd)"), '0', '... as a stream');
is($node->safe_psql('latin', <<'SQL'), "1\n2", '... of a later row, that nobody has asked for yet');
BEGIN;
DECLARE c CURSOR FOR SELECT id, lora_generate(NULL, lora_generate(NULL, 'x', max_tokens => 1,
  logit_bias => CASE WHEN id = 3 THEN '{"249": 100}' ELSE '{}' END::jsonb), max_tokens => 0) FROM generate_series(1, 5) id;
\pset tuples_only on
\pset format csv
\pset null ''
FETCH 2 FROM c \g |cut -d, -f1
SQL
$node->safe_psql('postgres', q{CREATE DATABASE bytes ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0});
$node->safe_psql('bytes', 'CREATE EXTENSION openlora');
is($node->safe_psql('bytes', q{SELECT error FROM lora_complete(NULL, E'caf\xe9', max_tokens => 1, on_error => 'null')}),
	'the prompt is not valid UTF-8', 'a prompt of no characters');
is($node->safe_psql('bytes', q{SELECT error FROM lora_complete(ARRAY[E'caf\xe9'], 'x', max_tokens => 1, on_error => 'null')}),
	'adapter "caf?" does not exist', 'a name of no characters');

$node->append_conf('postgresql.conf', 'max_worker_processes = 0');
$node->restart;
fails_with(q{SET openlora.engine_timeout = 0; SELECT lora_generate(NULL, 'x')}, qr/worker is not running.*max_worker_processes/s, 'no room for the worker');
$node->stop;
done_testing();
