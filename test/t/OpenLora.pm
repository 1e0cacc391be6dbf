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
our @EXPORT = qw(wait_until wait_ready engine_pid hold_engine release_engine kill_engine has_gone run_psql is_seen);

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

# hold_engine(NODE, SQL that is true while what is to be met goes on): waits for that, stops the
# engine, and looks whether it goes on still; if it had ended just then, waits again. Returns the
# engine, which the caller releases or kills. SQL is asked once of a stopped engine: it may ask
# tables and pg_stat_activity alone. `$begin`, if given, begins it each time and returns its
# sessions: when all of them have ended before it was seen, it begins again.
sub hold_engine
{
	my ($node, $sql, $begin) = @_;
	for my $try (1 .. 20)
	{
		my @sessions = $begin ? $begin->() : ();
		is_seen($node, "SELECT running > 0 AND ($sql) FROM lora_status()", @sessions) or next;
		my $engine = engine_pid($node);
		kill('STOP', $engine) == 1 or die "there is no engine $engine";
		return $engine if $node->safe_psql('postgres', "SELECT $sql") eq 't';
		kill 'CONT', $engine;
	}
	die "it always ends before the engine can be stopped: $sql";
}

# Whether it becomes true before sessions end, where there are any.
sub is_seen
{
	my ($node, $sql, @sessions) = @_;
	for (1 .. 20 * $deadline)
	{
		my $goes_on = !@sessions || grep { $_->pump_nb; $_->pumpable } @sessions; # before it is asked for
		return 1 if $node->safe_psql('postgres', $sql) eq 't';
		return 0 unless $goes_on;
		usleep(50_000);
	}
	die "not in time: $sql";
}

sub release_engine { kill('CONT', $_[0]) == 1 or die 'the engine has gone' }

# Kills it (SIGKILL unless told) while what SQL tells goes on.
sub kill_engine
{
	my ($node, $sql, $signal) = @_;
	my $engine = hold_engine($node, $sql);
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
