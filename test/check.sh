#!/usr/bin/env bash
# All tests. `check.sh asan` runs the engine's under AddressSanitizer and UBSan.
# CHECK_ONLY="unit regress ..." runs some groups alone.
set -u
cd "$(dirname "$0")/.."
. test/lib/deps.sh
. test/lib/cluster.sh
need_packages build test

export OPENLORA_TEST_DATA=${OPENLORA_TEST_DATA:-$PWD/../shared/data}
export OPENLORA_GOLDEN=$PWD/test/data/golden
# Random numbers of the kernels' tests: others for each commit, the same for one. (check-gpu takes others each time.)
commit=$(git rev-parse --short=8 HEAD 2>/dev/null)
export OL_SEED=${OL_SEED:-$((16#${commit:-1}))}
JOBS=$(nproc)
LOGS=$PWD/build/check
mkdir -p "$LOGS"
passed=0 failed=0 skipped=0

wanted() {
	[ -z "${CHECK_ONLY:-}" ] || case " $CHECK_ONLY " in *" $1 "*) ;; *) return 1 ;; esac
}

# step NAME COMMAND...: one line in the report, the whole output in a log.
step() {
	local name=$1 start=$SECONDS status
	shift
	"$@" >"$LOGS/$name.log" 2>&1 </dev/null
	status=$?
	if [ $status = 0 ]; then
		passed=$((passed + 1))
		printf 'ok      %-28s %4ds%s\n' "$name" $((SECONDS - start)) "$(summary "$LOGS/$name.log")"
	elif [ $status = 77 ]; then
		skipped=$((skipped + 1))
		printf 'skipped %-28s       %s\n' "$name" "$(tail -n 1 "$LOGS/$name.log")"
	else
		failed=$((failed + 1))
		printf 'FAILED  %-28s %4ds  (exit %d)\n' "$name" $((SECONDS - start)) $status
		tail -n "${CHECK_TAIL:-60}" "$LOGS/$name.log" | sed 's/^/        | /'
	fi
}

# What a log says of itself: how many tests, and what was skipped for want of data.
summary() {
	sed -n -e 's/^\[  PASSED  \] \([0-9]* test(s)\)\..*/  \1/p' -e 's/^Files=.*Tests=\([0-9]*\),.*/  \1 tests/p' \
		-e 's/^ All \([0-9]* tests\) passed.*/  \1/p' "$1" | tail -n 1
	grep -h -i -m 3 '^skipped:' "$1" | sed 's/^/\n          /'
}

finish() {
	printf '%d passed, %d failed, %d skipped\n' $passed $failed $skipped
	[ $failed = 0 ]
	exit
}

# What hangs fails, with what it was doing in its log. Nothing takes as long, under sanitizers neither.
bounded="timeout --foreground -k 10 7200"
unit_programs() {
	local dir=$1 program
	for program in "$dir"/test/*; do
		[ -x "$program" ] && [ -f "$program" ] && step "$2$(basename "$program")" $bounded "$program"
	done
}

if [ "${1:-}" = asan ]; then
	step build-asan make -s -j"$JOBS" SANITIZE=1 WERROR=-Werror unit-tests
	export ASAN_OPTIONS=detect_leaks=1:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1
	unit_programs build/asan asan-
	finish
fi

# -- build, warnings, layers -----------------------------------------------------------
warnings_with_clang() {
	local f status=0 include
	for f in src/base/*.c src/wire/*.c src/device/*.c src/cpu/*.c kernels/*.c $(find src/engine -name '*.c'); do
		clang -std=c11 -D_GNU_SOURCE -Isrc -I. -Itest/simt -Wall -Wextra -Wshadow -Wstrict-prototypes -Werror -fsyntax-only "$f" || status=1
	done
	for f in kernels/*.cu; do
		clang++ -x c++ -std=c++17 -DOL_SIMT -Isrc -I. -Itest/simt -Wall -Wextra -Wno-unknown-pragmas -Werror -fsyntax-only "$f" || status=1
	done
	include=$($PG_CONFIG --includedir-server)
	for f in src/pg/*.c; do
		clang -std=gnu11 -D_GNU_SOURCE -Isrc -isystem "$include" -Wall -Wextra -Wno-unused-parameter \
			-Wno-sign-compare -Wno-missing-field-initializers -Werror -fsyntax-only "$f" || status=1
	done
	return $status
}

build_all() {
	make -s -j"$JOBS" WERROR=-Werror PG_CONFIG="$PG_CONFIG" all unit-tests
}

step build build_all
[ $failed = 0 ] || finish
if wanted lint; then
	step clang-warnings warnings_with_clang
	step layers bash test/layers.sh
	step spills bash test/spills.sh
fi

# -- the engine ------------------------------------------------------------------------
wanted unit && unit_programs build ""
# With keys, values and adapters in one pool.
if wanted unit; then
	for part in adapters crowd eviction prefix queue requests scores; do
		step "pool-$part" $bounded env OL_TEST_POOL=1 "build/test/test_engine_$part"
	done
fi
# The CUDA device on the processor: the whole engine over it.
if wanted unit; then
	step simt-golden $bounded env OL_TEST_DEVICE=simt build/test/test_golden
	step simt-same $bounded env OL_TEST_DEVICE=simt OL_SIMT_STREAMS=mixed build/test/test_engine_same
	step simt-requests $bounded env OL_TEST_DEVICE=simt OL_SIMT_STREAMS=early build/test/test_engine_requests
	step simt-sampling $bounded env OL_TEST_DEVICE=simt build/test/test_engine_sampling
	step simt-fp8 $bounded env OL_TEST_DEVICE=simt build/test/test_engine_fp8
	step simt-int8 $bounded env OL_TEST_DEVICE=simt build/test/test_engine_int8
	step simt-bench $bounded env OL_GPU=simt bash test/gpu/run.sh bench
	step simt-copies $bounded env OL_TEST_DEVICE=simt build/test/test_engine_copies
	step simt-perplexity $bounded env OL_TEST_DEVICE=simt build/test/test_perplexity
fi

# -- the extension, in a throwaway cluster ------------------------------------------------
make_work
stage_postgres
PGXS_TEST=$(dirname "$($PG_CONFIG --pgxs)")/../test
MODEL=$WORK/model
stage_files test/data/demo/model "$MODEL"
stage_files test "$WORK/test" 2>/dev/null
stage_files expected "$WORK/regress/expected"
mkdir -p "$WORK/regress/sql" && cp sql/tests/*.sql "$WORK/regress/sql/"
[ "$(id -u)" = 0 ] && chown -R "$RUN_USER" "$WORK/regress" "$WORK/test"
install -m 755 build/fake_engine "$STAGED_LIB/fake_engine"
export OPENLORA_FAKE_ENGINE=$STAGED_LIB/fake_engine
# The engine beside the CUDA device on the processor: devices are found beside the program.
mkdir -p "$STAGED_LIB/simt"
install -m 755 build/openlora-engine build/openlora_cpu.so build/simt/openlora_cuda.so "$STAGED_LIB/simt"
export OPENLORA_SIMT=$STAGED_LIB/simt/openlora-engine
export OPENLORA_TEST_MODEL=$MODEL OPENLORA_DEMO=$WORK/test/data/demo OPENLORA_ENGINE=$STAGED_LIB/openlora-engine

regress() {
	# in this order: later ones use what earlier ones made
	local tests="errors adapters attribution privileges access pipeline stream stats limits"
	createdb regress && psql -X -q -d regress -c 'CREATE EXTENSION openlora'
	(cd "$WORK/regress" && as_user "$PGXS_TEST/regress/pg_regress" --use-existing --dbname=regress --bindir="$STAGED_BIN" \
		--inputdir=. --outputdir=. --host="$PGHOST" --user=postgres $tests)
	local status=$?
	[ $status = 0 ] || cat "$WORK/regress/regression.diffs"
	return $status
}

isolation() {
	local specs
	specs=$(cd test/isolation/specs && ls *.spec | sed 's/\.spec$//')
	createdb isolation && psql -X -q -d isolation -c 'CREATE EXTENSION openlora'
	(cd "$WORK/test/isolation" && as_user "$PGXS_TEST/isolation/pg_isolation_regress" --use-existing --dbname=isolation \
		--bindir="$STAGED_BIN" --inputdir=. --outputdir=. --host="$PGHOST" --user=postgres $specs)
	local status=$?
	[ $status = 0 ] || cat "$WORK/test/isolation/regression.diffs" "$WORK/test/isolation/output_iso/regression.diffs" 2>/dev/null
	return $status
}

pgtap() {
	createdb pgtap
	psql -X -q -d pgtap -c 'CREATE EXTENSION pgtap' -c 'CREATE EXTENSION openlora' || return
	(cd "$WORK/test/pgtap" && pg_prove -d pgtap ./*.sql)
}

tap() {
	local perl=$PGXS_TEST/perl
	(cd "$WORK/test" && as_user env PATH="$PATH" PERL5LIB="$perl" PG_REGRESS="$PGXS_TEST/regress/pg_regress" \
		PGCTLTIMEOUT="${PGCTLTIMEOUT:-300}" PG_TEST_TIMEOUT_DEFAULT="${PG_TEST_TIMEOUT_DEFAULT:-600}" TESTDATADIR="$WORK/tap" TESTLOGDIR="$WORK/tap/log" TESTDIR="$WORK/tap" PG_TEST_INITDB_EXTRA_OPTS= \
		prove --failures -I "$perl" -I t t/*.pl)
}

if wanted regress || wanted isolation || wanted pgtap || wanted readme; then
	# plans are those without statistics, however long it takes
	start_cluster "openlora.model=$MODEL" "client_connection_check_interval=100ms" "autovacuum=off"
	wanted regress && step regress regress
	wanted isolation && step isolation isolation
	wanted pgtap && step pgtap pgtap
	wanted readme && step readme bash test/readme.sh
	grep -E 'PANIC|terminated by signal|Assert' "$WORK/server.log" && failed=$((failed + 1))
	stop_cluster
fi
if wanted tap; then
	as_user mkdir -p "$WORK/tap"
	step tap tap
fi
wanted demo && step demo bash test/demo.sh
finish
