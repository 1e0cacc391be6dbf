# What tests of the server share: waiting for events, and holding the engine where a test wants it.
#
# A stopped engine (SIGSTOP) says nothing more: what runs in it runs until the test lets it go on or
# kills it, however slow or fast the machine is. Whoever asks the engine something meanwhile waits;
# tables and pg_stat_activity do not.
package OpenLora;
use strict;
use warnings;
use Exporter 'import';
use PostgreSQL::Test::Utils;
use Time::HiRes qw(usleep);
our @EXPORT = qw(wait_until wait_ready engine_pid stop_engine hold_engine release_engine kill_engine has_gone run_psql is_seen reload_settings told);

# A statement that waits for what does not come fails by its name, and hangs nothing.
our $deadline = $ENV{OPENLORA_TEST_DEADLINE} || 300;
$ENV{PGOPTIONS} = "-c statement_timeout=${deadline}s";

# wait_until(NODE, SQL that becomes true, what is waited for)
sub wait_until
{
	my ($node, $sql, $what) = @_;
	$node->poll_query_until('postgres', $sql) or die "not in time: $what";
}

sub wait_ready { wait_until($_[0], q{SELECT state = 'ready' FROM lora_status()}, 'an engine') }

sub engine_pid { return $_[0]->safe_psql('postgres', 'SELECT engine_pid FROM lora_status()') + 0 }

# Has every process of the server heard of settings that were changed: a session that begins after
# the postmaster has read them knows, as others were told before it was begun.
sub reload_settings
{
	my ($node, @settings) = @_;
	my $before = $node->safe_psql('postgres', 'SELECT pg_conf_load_time()');
	$node->safe_psql('postgres', "ALTER SYSTEM $_") for @settings;
	$node->reload;
	wait_until($node, "SELECT pg_conf_load_time() > '$before'", 'new settings');
}

# What the engine says of itself now. lora_status() gives an older report if none comes within a
# second; whoever asks once needs one from after the question.
sub told
{
	my ($node, $what, $from) = @_;
	wait_until($node, 'SELECT reported_at >= statement_timestamp() FROM lora_status()', 'a report of the engine');
	return $node->safe_psql('postgres', "SELECT $what FROM " . ($from || 'lora_status()'));
}

sub stop_engine
{
	my $engine = engine_pid($_[0]);
	kill('STOP', $engine) == 1 or die "there is no engine $engine";
	return $engine;
}

# hold_engine(NODE, SQL that is true while what is to be met goes on): waits for that, stops the
# engine, and looks whether it goes on still; if it had ended just then, waits again. Returns the
# engine, which the caller releases or kills. SQL is asked once of a stopped engine: it may ask
# tables and pg_stat_activity alone. `$begin`, if given, begins it each time and returns what goes
# on until it ends, as is_seen takes it: when it has ended before it was seen, it begins again.
# `$seen`: what else is to be seen before, which may ask the engine.
sub hold_engine
{
	my ($node, $sql, $begin, $seen) = @_;
	$seen = 'running > 0' . ($seen ? " AND ($seen)" : '');
	for my $try (1 .. 20)
	{
		my @meanwhile = $begin ? $begin->() : ();
		is_seen($node, "SELECT $seen AND ($sql) FROM lora_status()", @meanwhile) or next;
		my $engine = stop_engine($node);
		return $engine if $node->safe_psql('postgres', "SELECT $sql") eq 't';
		kill 'CONT', $engine;
	}
	die "it always ends before the engine can be stopped: $sql";
}

# Whether it becomes true while something goes on: sessions, or what SQL tells; if there are none, it must.
sub is_seen
{
	my ($node, $sql, @meanwhile) = @_;
	for (1 .. 20 * $deadline)
	{
		my $goes_on = !@meanwhile || grep { goes_on($node, $_) } @meanwhile; # before it is asked for
		return 1 if $node->safe_psql('postgres', $sql) eq 't';
		return 0 unless $goes_on;
		usleep(50_000);
	}
	die "not in time: $sql";
}

sub goes_on
{
	my ($node, $what) = @_;
	return $node->safe_psql('postgres', "SELECT $what") eq 't' unless ref $what;
	$what->pump_nb;
	return $what->pumpable;
}

sub release_engine { kill('CONT', $_[0]) == 1 or die 'the engine has gone' }

# Kills it (SIGKILL unless told) while what SQL tells goes on: see hold_engine.
sub kill_engine
{
	my ($node, $sql, $begin, $signal, $seen) = @_;
	my $engine = hold_engine($node, $sql, $begin, $seen);
	kill $signal || 'KILL', $engine;
	kill 'CONT', $engine if $signal && $signal ne 'KILL'; # else it is not delivered
	return $engine;
}

# Whether a process ends; nobody else tells of one that is not our child.
sub has_gone
{
	my ($pid) = @_;
	for (1 .. 10 * $deadline)
	{
		return 1 if !kill(0, $pid) || (-r "/proc/$pid/stat" && slurp_file("/proc/$pid/stat") =~ /\) Z /);
		usleep(100_000);
	}
	return 0;
}

# A session of its own: (harness, \output, \errors). Its name is what pg_stat_activity calls it.
sub run_psql
{
	my ($node, $name, @statements) = @_;
	my ($stdout, $stderr) = ('', '');
	my $run = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d', $node->connstr('postgres') . " application_name=$name", map { ('-c', $_) } @statements ],
		'>', \$stdout, '2>', \$stderr, IPC::Run::timeout($deadline * 2, name => "session $name"));
	return ($run, \$stdout, \$stderr);
}

1;
