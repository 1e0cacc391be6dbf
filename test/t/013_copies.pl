# Copies of a database: a hot standby, and logical replication of adapters and provenance.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $settings = "shared_preload_libraries = 'openlora'\nopenlora.model = '$ENV{OPENLORA_TEST_MODEL}'\nwal_level = logical\n";
my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 'logical');
$primary->append_conf('postgresql.conf', $settings);
$primary->start;
sub ready { $_[0]->poll_query_until('postgres', q{SELECT state = 'ready' FROM lora_status()}) or die 'not ready' }
$primary->safe_psql('postgres', 'CREATE EXTENSION openlora; CREATE ROLE asker LOGIN; SELECT lora_grant_usage(\'asker\')');
ready($primary);
my $dir = "$ENV{OPENLORA_DEMO}/adapters/grimm";
$primary->safe_psql('postgres', qq{SELECT lora_adapter_import('grimm', pg_read_binary_file('$dir/adapter_model.safetensors'),
	pg_read_file('$dir/adapter_config.json')::jsonb, shared => true);
	INSERT INTO openlora.contributors (name) VALUES ('Jacob');
	INSERT INTO openlora.adapter_contributors SELECT a.id, c.id, 400000 FROM openlora.adapters a, openlora.contributors c WHERE c.name = 'Jacob'});
my $ask = q{SELECT lora_generate('{grimm}', 'The king', max_tokens => 12)};
my $answer = $primary->safe_psql('postgres', $ask);
$primary->poll_query_until('postgres', 'SELECT count(*) = 1 FROM openlora.receipts') or die;
$primary->safe_psql('postgres', q{SELECT lora_ledger_create_key('example.com/log'), lora_checkpoint()});

# -- a hot standby
$primary->backup('copy');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'copy', has_streaming => 1);
$standby->start;
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('flush'));
ready($standby);
my (undef, undef, $err) = $standby->psql('postgres', $ask);
like($err, qr/cannot execute an inference, which is attributed, /, 'a standby does not answer what it could not attribute');
(undef, undef, $err) = $standby->psql('postgres', 'SET ROLE asker; SET openlora.attribution = off');
like($err, qr/permission denied/, 'nor may a user have it do so');
is($standby->safe_psql('postgres', "SET openlora.attribution = off; $ask"), $answer, 'a superuser may: the same answer');
is($standby->safe_psql('postgres', "SET openlora.attribution = off; SELECT inference_id IS NULL FROM lora_complete(NULL, 'x', max_tokens => 1)"), 't', 'without an inference');
is($standby->safe_psql('postgres', 'SELECT checked, bad IS NULL FROM lora_ledger_verify()'), '1|t', 'receipts can be verified there');
like($standby->safe_psql('postgres', 'SELECT lora_checkpoint()'), qr/^example.com\/log\n1\n/, 'and what was signed can be had');
like($standby->safe_psql('postgres', 'SELECT lora_receipt_proof(0)'), qr/^c2sp.org\/tlog-proof/, 'and proofs');
(undef, undef, $err) = $standby->psql('postgres', q{SELECT lora_submit(NULL, 'x')});
like($err, qr/cannot execute/, 'nothing is queued there');
(undef, undef, $err) = $standby->psql('postgres', q{SELECT lora_ledger_create_key('example.com/own', another => true)});
like($err, qr/cannot execute lora_ledger_create_key\(\) in a read-only transaction/, 'nor is a key made');
(undef, undef, $err) = $standby->psql('postgres', q{SELECT lora_adapter_merge('two', '{grimm}', '{0.5}', 'linear')});
like($err, qr/cannot execute lora_adapter_merge\(\) in a read-only transaction/, 'nor are adapters merged');
is($standby->safe_psql('postgres', 'SELECT lora_count_tokens(\'Once upon\') > 0'), 't', 'tokens can be counted');
$standby->stop;

# -- logical replication
my $other = PostgreSQL::Test::Cluster->new('other');
$other->init;
$other->append_conf('postgresql.conf', $settings);
$other->start;
$other->safe_psql('postgres', 'CREATE EXTENSION openlora');
ready($other);
$primary->safe_psql('postgres', 'CREATE PUBLICATION p FOR TABLE openlora.contributors, openlora.datasets, openlora.adapters, openlora.adapter_datasets,
	openlora.dataset_contributors, openlora.adapter_contributors');
$other->safe_psql('postgres', 'DELETE FROM openlora.contributors'); # those that the extension brings come from the other side
$other->safe_psql('postgres', "CREATE SUBSCRIPTION s CONNECTION '" . $primary->connstr . " dbname=postgres' PUBLICATION p");
$other->wait_for_subscription_sync($primary, 's') if $other->can('wait_for_subscription_sync');
$other->poll_query_until('postgres', q{SELECT count(*) = 1 FROM openlora.adapter_contributors}) or die 'nothing came';
is($other->safe_psql('postgres', 'SELECT encode(digest, \'hex\') FROM openlora.adapters'), $primary->safe_psql('postgres', 'SELECT encode(digest, \'hex\') FROM openlora.adapters'), 'an adapter arrives');
is($other->safe_psql('postgres', $ask), $answer, 'and answers');
is($other->safe_psql('postgres', q{SELECT share FROM openlora.attributions WHERE kind = 'adapter' AND contributor = 'Jacob'}), '400000', 'whom it credits has come with it');
$primary->safe_psql('postgres', q{UPDATE openlora.adapters SET config = config || '{"lora_alpha": 32}' WHERE name = 'grimm'});
$other->poll_query_until('postgres', q{SELECT (config ->> 'lora_alpha')::int = 32 FROM openlora.adapters}) or die 'no change came';
is($other->safe_psql('postgres', $ask), $primary->safe_psql('postgres', $ask), 'a change arrives, too');
isnt($other->safe_psql('postgres', $ask), $answer, 'and is one');
$other->stop;
$primary->stop;
done_testing();
