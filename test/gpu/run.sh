#!/usr/bin/env bash
# run.sh check|bench: the CUDA device's tests, or its speed, on this machine's GPU. Takes what
# `make pack-gpu` packed when it is there (build/gpu.tar.xz, or what was unpacked from it), else
# builds. A short table comes last. Within LIMIT=470 seconds: what is left then is skipped, and said
# so; no step has more than MOST of them, as a kernel may hang. OL_GPU=simt runs the same over the
# device on the processor, with small sizes, however long it takes: a test of this script.
set -u
cd "$(dirname "$0")/../.."
. test/gpu/bench.sh
what=${1:-check}
simt=${OL_GPU:-}
limit=${LIMIT:-$([ -n "$simt" ] && echo 7000 || echo 470)}
most=${MOST:-$([ -n "$simt" ] && echo "$limit" || echo 120)}
python=(env LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}" python3) # without the packed libraries

if [ "$simt" = simt ]; then
	build=build tests=build/test/simt_ device_dir=build/simt
	loader=()
else
	. test/gpu/machine.sh || exit
	tests=$build/gpu_ device_dir=$build
fi
out=$build/gpu-$what
rm -rf "$out" && mkdir -p "$out" || exit

table="" failed=0
# step NAME COMMAND...: a line in the table; the whole output in a log. Leaves its status.
step() {
	local name=$1 from=$SECONDS left=$((limit - SECONDS))
	shift
	status=ok
	if [ $left -lt 5 ]; then
		status=skipped
		table+=$(printf '%-8s %-28s no time left' skipped "$name")$'\n'
		return 1
	fi
	[ $left -lt $most ] || left=$most
	timeout -k 5 $left "$@" >"$out/$name.log" 2>&1
	case $? in
	0) ;;
	77) status=skipped ;;
	124 | 137) status=late failed=1 ;;
	*) status=FAILED failed=1 ;;
	esac
	table+=$(printf '%-8s %-28s %4ds%s' $status "$name" $((SECONDS - from)) \
		"$([ $status = skipped ] && printf '  %s' "$(tail -n 1 "$out/$name.log")")")$'\n'
	if [ $status = FAILED ] || [ $status = late ]; then
		tail -n 30 "$out/$name.log"
	fi
	[ $status = ok ]
}
failed_now() {
	[ $status = FAILED ] || [ $status = late ]
}

# alone PROGRAM: a test that hangs, or after which the card answers no more, hides those behind it:
# each in a process of its own, and the names of those that fail there.
alone() {
	local program=$1 name=${1#"$tests"} bad="" until=$((SECONDS + 60)) test
	for test in $(grep -o 'cmocka_unit_test([a-z0-9_]*' "test/gpu/test_$name.c" | cut -d'(' -f2); do
		if [ $SECONDS -gt $until ] || [ $SECONDS -gt $((limit - 60)) ]; then
			bad+=" (no time left from $test on)"
			break
		fi
		OL_TEST=$test timeout -k 5 15 "${loader[@]}" "$program" >"$out/alone-$name-$test.log" 2>&1 || bad+=" $test"
	done
	table+="         alone fail of $name:${bad:- none}"$'\n'
}

# whole NAME COMMAND...: the engine over the device; where that fails, what heals it.
whole() {
	local name=$1 without
	shift
	step "$name" "${loader[@]}" "$@"
	failed_now && [ -z "$simt" ] || return
	for without in OL_CUDA_GRAPHS=0 OL_CUDA_EARLY=0 OL_CUDA_PRODUCT=mma; do
		step "$name-$without" env $without "${loader[@]}" "$@"
	done
}

# What watches kernels; on some virtual machines it does not work.
sanitize() {
	local sanitizer tool program why="not here, or not for packed programs"
	sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer /opt/nvidia/*/compute-sanitizer 2>/dev/null | head -n 1)
	[ -z "$simt" ] && [ ${#loader[@]} = 0 ] || sanitizer=
	if [ -n "$sanitizer" ]; then
		OL_SMALL=1 timeout -k 5 60 "$sanitizer" --tool memcheck "${tests}element" >"$out/sanitizer.log" 2>&1
		why=$(grep -im 1 'not supported' "$out/sanitizer.log") && sanitizer=
	fi
	if [ -z "$sanitizer" ]; then
		table+="skipped  memcheck, racecheck: compute-sanitizer is ${why:-not here}"$'\n'
		return
	fi
	for tool in memcheck racecheck; do
		for program in "${programs[@]}"; do # the proof of wgmma forks: it is not for them
			step "$tool-${program#"$tests"}" env OL_SMALL=1 OL_CUDA_PRODUCT=mma "$sanitizer" --tool $tool --error-exitcode 1 "$program"
		done
	done
}

if [ "$what" = bench ]; then
	bench_all
else
	export OPENLORA_GOLDEN=$PWD/test/data/golden OL_TEST_DEVICE=${simt:-cuda} OL_DEVICE_DIR=$build
	# First which card it is, and whether wgmma is used there. What was not built fails.
	programs=("${tests}device_proof") failing=()
	for name in test/gpu/test_*.c; do
		name=${name#*/test_} name=${name%.c}
		[ "$name" = device_proof ] || programs+=("$tests$name")
	done
	for program in "${programs[@]}"; do
		step "$(basename "$program")" "${loader[@]}" "$program"
		! failed_now || [ ! -x "$program" ] || failing+=("$program")
	done
	card=$(sed -n '/compute capability/{p;q};/wgmma: /p' "$out"/*_device_proof.log 2>/dev/null)
	table+="         ${card:-the card has not said what it is}"$'\n'
	whole golden "$build/test/test_golden"
	whole perplexity "$build/test/test_perplexity"
	whole same "$build/test/test_engine_same"
	whole sampling "$build/test/test_engine_sampling"
	whole fp8 "$build/test/test_engine_fp8"
	whole int8 "$build/test/test_engine_int8"
	whole copies "$build/test/test_engine_copies"
	for program in "${failing[@]}"; do
		alone "$program"
	done
	sanitize
fi
[ -z "${OUT:-}" ] || tar -czf "$OUT/gpu-$what.tar.gz" -C "$build" "gpu-$what"
printf '%s' "$table"
[ "$what" != bench ] || bench_table "$out/rows" "$out/peers"
exit $failed
