#!/usr/bin/env bash
# run.sh check|bench: the CUDA device's tests, or its speed, on this machine's GPU. Takes what
# `make pack-gpu` packed into build/gpu when it is there, else builds. A short table comes last.
# Within LIMIT=470 seconds: what is left then is skipped, and said so. OL_GPU=simt runs the same
# over the device on the processor, with small sizes: a test of this script.
set -u
cd "$(dirname "$0")/../.."
. test/gpu/bench.sh
what=${1:-check}
limit=${LIMIT:-470}
simt=${OL_GPU:-}
python=(env LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}" python3) # without the packed libraries

if [ "$simt" = simt ]; then
	build=build tests=build/test/simt_ device_dir=build/simt
	loader=()
else
	. test/gpu/machine.sh || exit
	tests=$build/gpu_ device_dir=$build
fi
out=$build/gpu-$what
rm -rf "$out" && mkdir -p "$out"

table="" failed=0
# step NAME COMMAND...: a line in the table; the whole output in a log.
step() {
	local name=$1 from=$SECONDS status=ok left=$((limit - SECONDS))
	shift
	if [ $left -lt 5 ]; then
		table+=$(printf '%-8s %-28s no time left' skipped "$name")$'\n'
		return 1
	fi
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

if [ "$what" = bench ]; then
	bench_all
else
	export OPENLORA_GOLDEN=$PWD/test/data/golden OL_TEST_DEVICE=${simt:-cuda} OL_DEVICE_DIR=$build
	programs=()
	for program in "$tests"*; do
		[[ $program == *.log || $program == *_bench ]] || programs+=("$program")
	done
	for program in "${programs[@]}"; do
		step "$(basename "$program")" "${loader[@]}" "$program"
	done
	step golden "${loader[@]}" "$build/test/test_golden"
	step perplexity "${loader[@]}" "$build/test/test_perplexity"
	step same "${loader[@]}" "$build/test/test_engine_same"
	step sampling "${loader[@]}" "$build/test/test_engine_sampling"
	step fp8 "${loader[@]}" "$build/test/test_engine_fp8"
	sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer /opt/nvidia/*/compute-sanitizer 2>/dev/null | head -n 1)
	if [ -n "$sanitizer" ] && [ -z "$simt" ] && [ ${#loader[@]} = 0 ]; then
		for tool in memcheck racecheck; do
			for program in "${programs[@]}"; do
				step "$tool-${program#"$tests"}" env OL_SMALL=1 "$sanitizer" --tool $tool --error-exitcode 1 "$program"
			done
		done
	else
		table+="skipped  memcheck, racecheck: compute-sanitizer is not here, or not for packed programs"$'\n'
	fi
fi
[ -z "${OUT:-}" ] || tar -czf "$OUT/gpu-$what.tar.gz" -C "$build" "gpu-$what"
printf '%s' "$table"
[ "$what" != bench ] || bench_table "$out/rows" "$out/peers"
exit $failed
