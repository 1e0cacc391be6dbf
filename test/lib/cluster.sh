# cluster.sh: sourced. A throwaway PostgreSQL in a temporary folder.
#
# The system's own PostgreSQL is left alone: stage_postgres makes a private tree of
# links to its files and installs openlora there (PostgreSQL finds its folders
# relative to its binary). Everything lives under $WORK, which is removed on exit,
# and runs as an ordinary user, since PostgreSQL refuses to run as root.

PG_CONFIG=${PG_CONFIG:-/usr/lib/postgresql/${PG_MAJOR:-15}/bin/pg_config}
[ -x "$PG_CONFIG" ] || PG_CONFIG=$(command -v pg_config) || {
	echo "pg_config not found" >&2
	exit 2
}

# Who runs the server.
if [ "$(id -u)" = 0 ]; then
	RUN_USER=$(id -un postgres 2>/dev/null || id -un nobody)
	as_user() { setpriv --reuid "$RUN_USER" --regid "$(id -gn "$RUN_USER")" --init-groups env HOME="$WORK" "$@"; }
else
	RUN_USER=$(id -un)
	as_user() { env HOME="$WORK" "$@"; }
fi

make_work() {
	WORK=$(mktemp -d "${TMPDIR:-/tmp}/openlora.XXXXXX") || exit 2
	chmod 755 "$WORK"
	[ "$(id -u)" = 0 ] && chown "$RUN_USER" "$WORK"
	trap cleanup_work EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
}

cleanup_work() {
	local status=$?
	[ -n "${PGDATA_DIR:-}" ] && stop_cluster
	if [ -n "${KEEP_WORK:-}" ]; then
		echo "kept: $WORK" >&2
	else
		rm -rf "$WORK"
	fi
	exit $status
}

# Sets STAGED_BIN. The programs are copied (links would lead back to the system's
# folders), all else is linked.
stage_postgres() {
	local bindir sharedir pkglibdir root=$WORK/root
	bindir=$($PG_CONFIG --bindir) sharedir=$($PG_CONFIG --sharedir) pkglibdir=$($PG_CONFIG --pkglibdir)
	mkdir -p "$root$bindir" "$root$sharedir" "$root$pkglibdir"
	cp -L "$bindir"/{postgres,initdb,pg_ctl,psql,pg_config,pg_dump,pg_dumpall,pg_restore,createdb,dropdb,pgbench,pg_isready,pg_basebackup,pg_controldata,pg_resetwal,pg_waldump,createuser,pg_rewind,pg_verifybackup} \
		"$root$bindir/" 2>/dev/null
	[ -x "$root$bindir/postgres" ] || { echo "PostgreSQL's server programs are not in $bindir" >&2; exit 2; }
	cp -as "$sharedir/." "$root$sharedir/"
	cp -as "$pkglibdir/." "$root$pkglibdir/"
	make -s install DESTDIR="$root" PG_CONFIG="$PG_CONFIG" >"$WORK/install.log" 2>&1 || {
		tail -n 30 "$WORK/install.log" >&2
		exit 1
	}
	STAGED_BIN=$root$bindir STAGED_LIB=$root$pkglibdir
	export PATH="$STAGED_BIN:$PATH"
}

# start_cluster [SETTING=VALUE ...]
start_cluster() {
	PGDATA_DIR=$WORK/data
	export PGHOST=$WORK/socket PGUSER=postgres PGDATABASE=postgres PGPORT=5432
	unset PGPASSWORD PGSERVICE PGOPTIONS
	as_user mkdir -p "$PGHOST"
	as_user "$STAGED_BIN/initdb" -D "$PGDATA_DIR" -A trust -U postgres -E UTF8 --locale=C.UTF-8 --no-sync >"$WORK/initdb.log" 2>&1 || {
		cat "$WORK/initdb.log" >&2
		exit 1
	}
	{
		echo "listen_addresses = ''"
		echo "unix_socket_directories = '$PGHOST'"
		echo "shared_preload_libraries = 'openlora'"
		echo "fsync = off"
		echo "timezone = 'UTC'"
		echo "log_line_prefix = '%m [%p] %b '"
		local setting
		for setting in "$@"; do
			echo "${setting%%=*} = '${setting#*=}'"
		done
	} | as_user tee -a "$PGDATA_DIR/postgresql.conf" >/dev/null
	as_user "$STAGED_BIN/pg_ctl" -D "$PGDATA_DIR" -l "$WORK/server.log" -w -t 300 -s start || {
		tail -n 30 "$WORK/server.log" >&2
		exit 1
	}
}

stop_cluster() {
	as_user "$STAGED_BIN/pg_ctl" -D "$PGDATA_DIR" -m immediate -s stop >/dev/null 2>&1
	PGDATA_DIR=
}

# The folders that the server's user must read may lie where only we can.
stage_files() {
	local from to
	from=$1 to=$2
	mkdir -p "$to" && cp -r "$from/." "$to/" && chmod -R a+rX "$to"
}
