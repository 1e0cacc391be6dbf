# The ledger of receipts: signed checkpoints and proofs that outsiders can check, and whatever
# a superuser may do to its tables is found.
use strict;
use warnings;
use File::stat;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('ledger');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'openlora'\nopenlora.model = '$ENV{OPENLORA_TEST_MODEL}'");
$node->start;
$node->safe_psql('postgres', q{CREATE EXTENSION openlora; CREATE ROLE asker LOGIN; SELECT lora_grant_usage('asker')});

sub sql { return $node->safe_psql('postgres', $_[0]) }
sub fails { my ($query, $like, $what) = @_; my (undef, undef, $err) = $node->psql('postgres', $query); like($err, $like, $what) }
sub ask { sql("SELECT count(lora_generate(NULL, 'Once ' || i, max_tokens => 1, ignore_eos => true)) FROM generate_series(1, $_[0]) i") }
my $leaves = 0;
sub wait_for { $leaves += $_[0]; $node->poll_query_until('postgres', "SELECT count(*) = $leaves FROM openlora.receipts") or die "not $leaves receipts" }

my $temp = PostgreSQL::Test::Utils::tempdir;
sub file { my ($name, $text) = @_; open my $f, '>:raw', "$temp/$name" or die; print $f $text; close $f; return "$temp/$name" }
my $python = !system('python3 -c "" 2>/dev/null');
my $verifier = 'verify/verify.py';
# Runs the verifier; its line.
sub verify
{
	my $line = '';
	IPC::Run::run([ 'python3', $verifier, @_ ], '>', \$line, '2>&1');
	return $line;
}

$node->poll_query_until('postgres', q{SELECT state = 'ready' FROM lora_status()}) or die 'not ready';
ask(600);
wait_for(600);
sql(q{SET ROLE asker; SELECT lora_score(NULL, 'Once', ' upon'), length(lora_generate(NULL, 'Twice', max_tokens => 2, temperature => 0.7, seed => -5))});
wait_for(2);

# -- the key
fails('SELECT lora_checkpoint()', qr/openlora_keys.*does not exist.*lora_ledger_create_key/s, 'no checkpoint without a key');
fails(q{SELECT lora_ledger_create_key('two words')}, qr/an origin has printable/, 'an origin is one word');
my $key = sql(q{SELECT lora_ledger_create_key('example.com/receipts')});
like($key, qr/^example\.com\/receipts\+[0-9a-f]{8}\+/, 'a key');
fails(q{SELECT lora_ledger_create_key('example.com/other')}, qr/has a key already/, 'a second needs to be asked for');
fails(q{SET ROLE asker; SELECT lora_ledger_create_key('example.com/other')}, qr/permission denied/, 'not for users');
my ($secret) = glob $node->data_dir . '/openlora_keys/*.key';
is(sprintf('%o', stat($secret)->mode & 0777), '600', 'the key is for the server alone');
my ($seed) = slurp_file($secret) =~ /\n([0-9a-f]{64})/;
my $dump = `pg_dump -d '@{[$node->connstr('postgres')]}'`;
unlike($dump . sql('SELECT * FROM openlora.ledger_keys') . slurp_file($node->logfile), qr/$seed/, 'it is in no table, dump or log');

# -- checkpoints and proofs; what a crash may have left behind a step
sub lose { sql("BEGIN; ALTER TABLE openlora.$_[0] DISABLE TRIGGER unchanging; DELETE FROM openlora.$_[0]; ALTER TABLE openlora.$_[0] ENABLE ALWAYS TRIGGER unchanging; COMMIT") }
lose('ledger_keys');
my $one = sql('SELECT lora_checkpoint()');
like($one, qr/^example\.com\/receipts\n602\n\S+\n\n— example\.com\/receipts \S+\n$/, 'a checkpoint');
is(sql('SELECT key FROM openlora.ledger_keys'), $key, 'its key is entered, if a crash came between file and table');
is(sql('SELECT lora_checkpoint()'), $one, 'the same while nothing was added');
lose('checkpoints');
is(sql('SELECT lora_checkpoint()'), $one, 'and if a crash came between signing it and its row');
ask(200);
wait_for(200);
my $two = sql('SET ROLE asker; SELECT lora_checkpoint()');
like($two, qr/\n802\n/, 'another when something was');
is(sql('SELECT checked, bad IS NULL FROM lora_ledger_verify()'), '802|t', 'all is well');
is(sql('SELECT checked, bad IS NULL FROM lora_ledger_verify(10, 19)'), '10|t', 'and a part of it');
fails('SET ROLE asker; SELECT lora_receipt_proof(5)', qr/receipt 5 does not exist/, 'no proof of what one cannot see');
fails('SELECT lora_receipt_proof(802)', qr/receipt 802 does not exist/, 'nor of what is not there');
fails('SELECT lora_consistency_proof(1, 803)', qr/only 802 receipts/, 'nor between what is not there');

my $export = "$temp/export";
SKIP:
{
	skip 'python3 is not there', 11 unless $python;
	my $data = $ENV{OPENLORA_TEST_DATA} // '';
	my @proofs = (0, 255, 256, 511, 512, 601, 801);
	is(join('', map { verify('proof', file('p', sql("SELECT lora_receipt_proof($_)")), '--key', $key, '--entry', sql("SELECT encode(lora_receipt_entry($_), 'hex')")) } @proofs),
		join('', map { "good: receipt $_ is in the ledger of 802 of example.com/receipts\n" } @proofs), 'proofs');
	like(verify('proof', file('p', sql('SET ROLE asker; SELECT lora_receipt_proof(601)')), '--key', $key, '--entry', sql(q{SELECT encode(lora_receipt_entry(600), 'hex')})),
		qr/^BAD/, 'of another entry');
	my @whose = ('proof', file('p', sql('SET ROLE asker; SELECT lora_receipt_proof(601)')), '--key', $key, '--entry', sql(q{SELECT encode(lora_receipt_entry(601), 'hex')}),
		'--role-salt', sql(q{SELECT encode(role_salt, 'hex') FROM openlora.receipts WHERE leaf = 601}));
	is(verify(@whose, '--role', 'asker'), "good: receipt 601 of asker is in the ledger of 802 of example.com/receipts\n", 'whose it is, for who is told');
	file('p', sql('SELECT lora_receipt_proof(601)') . "\n\n");
	is(verify(@whose), "good: receipt 601 is in the ledger of 802 of example.com/receipts\n", 'as psql writes it');
	like(verify(@whose, '--role', 'other'), qr/^BAD: the receipt is of another role/, 'and that it is not somebody else\'s');
	like(verify('consistency', file('a', $one), file('b', $two), file('c', sql('SELECT lora_consistency_proof(602, 802)')), '--key', $key),
		qr/^good: 802 receipts begin with the 602/, 'consistency');
	like(verify('consistency', file('a', $one), file('b', $two), file('c', sql('SELECT lora_consistency_proof(601, 802)')), '--key', $key),
		qr/^BAD/, 'of another size');
	cmp_ok(sql("SELECT lora_ledger_export('$export')"), '>', 8, 'an export');
	like(verify('ledger', $export, '--key', $key), qr/^good: 802 receipts of \d+ tokens/, 'is good');
	like(verify('ledger', $export, '--key', $key =~ s/com/org/r), qr/^BAD/, 'not with another key');
	my $bytes = slurp_file("$export/tile/entries/001");
	substr($bytes, 300, 1) ^= "\1";
	open my $f, '>:raw', "$export/tile/entries/001" or die;
	print $f $bytes;
	close $f;
	like(verify('ledger', $export, '--key', $key), qr/^BAD/, 'a bit of it is changed');
}
fails(qq{SET ROLE asker; SELECT lora_ledger_export('$export')}, qr/permission denied/, 'not for users');
fails(q{SELECT lora_ledger_export('here')}, qr/must be absolute/, 'a relative path');

# -- what a superuser may do to the tables
my $free = 'BEGIN; ALTER TABLE openlora.receipts DISABLE TRIGGER ALL; ALTER TABLE openlora.ledger_hashes DISABLE TRIGGER ALL; ALTER TABLE openlora.checkpoints DISABLE TRIGGER ALL;';
# What lora_ledger_verify says after a change, and what the verifier says of an export of it.
sub tampered
{
	my ($change, $bad, $problem, $what, $inside) = @_;
	my $out = $node->safe_psql('postgres', "$free $change; SELECT bad || ' ' || problem FROM lora_ledger_verify(); ROLLBACK") =~ s/^.*\n(?=.)//sr;
	like($out, qr/^$bad .*$problem/, $what);
	return if $inside || !$python;
	my ($code, undef, $err) = $node->psql('postgres', "$free $change; SELECT lora_ledger_export('$temp/tampered'); ROLLBACK");
	ok($code || verify('ledger', "$temp/tampered", '--key', $key) =~ /^BAD/, "$what: seen from outside");
}
my %fields = (
	at => q{at + '1 us'}, database => '1', role => q{'other'}, inference => '1000000', attempt => '1', outcome => q{'failed'}, task => q{'score'},
	base_model => q{sha256('x')}, device => q{'abacus'}, input_tokens => 'input_tokens + 1', cached_tokens => '1', output_tokens => 'output_tokens + 1',
	temperature => '0.5', top_k => '1', top_p => '0.5', min_p => '0.5', repetition_penalty => '2', presence_penalty => '1', frequency_penalty => '1',
	max_tokens => '2', ignore_eos => 'NOT ignore_eos', seed => 'seed + 1', adapters => q{ARRAY[sha256('x')], weights = '{1}', shares = '{1000000}', adapter_ids = '{5}'}, role_salt => q{sha256('x')},
	prompt_digest => q{sha256('x')}, output_digest => q{sha256('x')});
# role_id is for row-level security here, an oid that another server has otherwise: no part of an entry
is(join(',', sort keys %fields, 'adapter_ids', 'leaf', 'role_id', 'shares', 'weights'),
	sql(q{SELECT string_agg(attname, ',' ORDER BY attname COLLATE "C") FROM pg_attribute WHERE attrelid = 'openlora.receipts'::regclass AND attnum > 0}), 'every column');
for my $field (sort keys %fields)
{
	my $out = sql("$free UPDATE openlora.receipts SET $field = $fields{$field} WHERE leaf = 300; SELECT bad FROM lora_ledger_verify(); ROLLBACK");
	is($out =~ s/.*\n//sr, '300', "$field is changed");
}
my @entries = split /\n/, sql(join('; ', $free, (map { "UPDATE openlora.receipts SET adapters = ARRAY[sha256('x')], weights = '{1}', shares = '{1000000}', adapter_ids = '{$_}' WHERE leaf = 300; SELECT encode(sha256(lora_receipt_entry(300)), 'hex')" } 5, 6), 'ROLLBACK'));
ok(@entries == 2 && $entries[0] ne $entries[1], 'an adapter with the same bytes is another one');
# What is no receipt any more is not read as the one that it was.
my %forms = (
	'more weights' => q{UPDATE openlora.receipts SET weights = weights || 7.0::float8 WHERE leaf = 300},
	'an id without an adapter' => q{UPDATE openlora.receipts SET adapter_ids = '{5}' WHERE leaf = 300},
	'more shares' => q{UPDATE openlora.receipts SET shares = shares || 7 WHERE leaf = 300},
	'more adapters' => q{UPDATE openlora.receipts SET adapters = adapters || sha256('x') WHERE leaf = 300},
	'a NULL in a list' => q{UPDATE openlora.receipts SET weights = ARRAY[NULL]::float8[] WHERE leaf = 300},
	'a list that begins elsewhere' => q{UPDATE openlora.receipts SET adapters = '{}', weights = '{}', shares = '[5:5]={1}' WHERE leaf = 300},
	'a longer digest' => q{ALTER TABLE openlora.receipts DROP CONSTRAINT receipts_base_model_check; UPDATE openlora.receipts SET base_model = base_model || '\x00' WHERE leaf = 300},
	'a longer digest of a prompt' => q{ALTER TABLE openlora.receipts DROP CONSTRAINT receipts_prompt_digest_check; UPDATE openlora.receipts SET prompt_digest = prompt_digest || '\x00' WHERE leaf = 300},
	'a device without end' => q{UPDATE openlora.receipts SET device = repeat('x', 70000) WHERE leaf = 300},
	'a NULL' => q{ALTER TABLE openlora.receipts ALTER seed DROP NOT NULL; UPDATE openlora.receipts SET seed = NULL WHERE leaf = 300},
	'an unknown outcome' => q{ALTER TABLE openlora.receipts DROP CONSTRAINT receipts_outcome_check; UPDATE openlora.receipts SET outcome = 'lost' WHERE leaf = 300},
	'a database of 33 bits' => q{ALTER TABLE openlora.receipts ALTER database TYPE bigint; UPDATE openlora.receipts SET database = database + 4294967296 WHERE leaf = 300});
for my $form (sort keys %forms)
{
	my $out = sql("$free $forms{$form}; SELECT bad FROM lora_ledger_verify(); ROLLBACK");
	is($out =~ s/.*\n//sr, '300', $form);
}
fails("$free $forms{'more shares'}; SELECT lora_receipt_entry(300)", qr/receipt 300 is not as it was written/, 'nor is it shown as one');

tampered('UPDATE openlora.receipts SET output_tokens = 0 WHERE leaf = 300', 300, 'not what was entered', 'less usage');
tampered('DELETE FROM openlora.receipts WHERE leaf = 17', 17, 'missing', 'a receipt is dropped');
tampered('DELETE FROM openlora.receipts WHERE leaf = 17; UPDATE openlora.receipts SET leaf = leaf - 1 WHERE leaf > 17', 17, 'not what', 'and the others close ranks');
tampered('UPDATE openlora.receipts SET leaf = -leaf - 1 + 2000 WHERE leaf IN (20, 21); UPDATE openlora.receipts SET leaf = CASE leaf WHEN 1979 THEN 21 ELSE 20 END WHERE leaf IN (1978, 1979)',
	20, 'not what', 'two are exchanged');
tampered('INSERT INTO openlora.receipts SELECT (jsonb_populate_record(r, \'{"leaf": 802}\')).* FROM openlora.receipts r WHERE leaf = 5', 802, 'not in the tree', 'one is added', 'what was signed is still so');
tampered('DELETE FROM openlora.receipts WHERE leaf >= 790; DELETE FROM openlora.ledger_hashes WHERE level = 0 AND at >= 790', 790, 'shorter than checkpoint', 'the end is cut off');
tampered(q{UPDATE openlora.receipts SET output_tokens = 0 WHERE leaf = 800; UPDATE openlora.ledger_hashes SET hash = sha256('\x00' || lora_receipt_entry(800)) WHERE level = 0 AND at = 800},
	801, 'not the one of checkpoint', 'one is changed together with its hash');
tampered(q{UPDATE openlora.receipts SET output_tokens = 0 WHERE leaf = 300; UPDATE openlora.ledger_hashes SET hash = sha256('\x00' || lora_receipt_entry(300)) WHERE level = 0 AND at = 300},
	256, 'of level 1 is not that', 'and not the hashes above it');
tampered(q{UPDATE openlora.ledger_hashes SET hash = sha256('x') WHERE level = 1 AND at = 2}, 512, 'of level 1 is not that', 'a hash of a subtree');
tampered(q{UPDATE openlora.checkpoints SET note = replace(note, '802', '801'), size = 801 WHERE size = 802}, 801, 'signature', 'a checkpoint');
tampered(q{UPDATE openlora.checkpoints SET root = sha256('x') WHERE size = 602}, 601, 'not the one of checkpoint 602', 'the root beside a checkpoint', 'it is not exported');
tampered(q{INSERT INTO openlora.ledger_hashes VALUES (1, 3, sha256('x'))}, 802, 'hash 3 of level 1 is none', 'a hash too many', 'it is not exported');
tampered(q{INSERT INTO openlora.ledger_hashes VALUES (9, 0, sha256('x'))}, 802, 'hash 0 of level 9 is none', 'a level too many', 'it is not exported');
tampered(q{ALTER TABLE openlora.receipts DROP CONSTRAINT receipts_leaf_check; INSERT INTO openlora.receipts SELECT (jsonb_populate_record(r, '{"leaf": -5}')).* FROM openlora.receipts r WHERE leaf = 5},
	-5, 'not in the tree', 'a receipt before the first', 'it is not exported');
tampered('DELETE FROM openlora.receipts; DELETE FROM openlora.ledger_hashes; DELETE FROM openlora.checkpoints', 0, 'shorter than what was signed last', 'everything is gone');
is(sql('SELECT checked, bad IS NULL FROM lora_ledger_verify()'), '802|t', 'all is well again');

# -- a fork: somebody rewrites the log so that it is consistent with itself
sql(q{BEGIN; ALTER TABLE openlora.receipts DISABLE TRIGGER ALL; ALTER TABLE openlora.ledger_hashes DISABLE TRIGGER ALL; ALTER TABLE openlora.checkpoints DISABLE TRIGGER ALL;
  UPDATE openlora.receipts SET output_tokens = 0 WHERE leaf = 800; UPDATE openlora.ledger_hashes SET hash = sha256('\x00' || lora_receipt_entry(800)) WHERE level = 0 AND at = 800;
  DELETE FROM openlora.checkpoints; COMMIT});
is(sql('SELECT bad, problem FROM lora_ledger_verify()'), '801|the tree is not what was signed last, 802 receipts of "example.com/receipts"',
	'rewritten, and no checkpoint in the tables to compare with: the signer remembers');
ask(1);
wait_for(1);
fails('SELECT lora_checkpoint()', qr/differs from what was signed.*new origin/s, 'the signer remembers, and does not sign');
$node->restart;
fails('SELECT lora_checkpoint()', qr/differs from what was signed/, 'also after a restart');
like(sql(q{SELECT lora_ledger_create_key('example.com/second', another => true)}), qr/^example\.com\/second\+/, 'a new origin');
like(sql('SELECT lora_checkpoint()'), qr/^example\.com\/second\n803\n/, 'is signed');
fails(q{SELECT lora_ledger_create_key('example.com/receipts', another => true)}, qr/was used before/, 'an origin is used once');

# -- a dump carries receipts, tree and checkpoints
sql('CREATE DATABASE restored');
command_ok([ 'bash', '-c', 'pg_dump -d "$1" | psql -Xq -v ON_ERROR_STOP=1 -d "$2"', '-', $node->connstr('postgres'), $node->connstr('restored') ], 'dump and restore');
is($node->safe_psql('restored', 'SELECT checked, bad IS NULL FROM lora_ledger_verify()'), '803|t', 'what was restored is good');
my (undef, undef, $err) = $node->psql('restored', 'SELECT lora_checkpoint()');
ok($err eq '' || $err =~ /does not exist/, 'and it has no key');
$node->stop;
done_testing();
