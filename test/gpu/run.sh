#!/usr/bin/env bash
# run.sh check|bench: the CUDA device's tests, or its speed, on this machine's GPU. Takes what
# `make pack-gpu` packed into build/gpu when it is there, else builds. A short table comes last.
set -u
cd "$(dirname "$0")/../.."
what=${1:-check}

if ! nvidia-smi -L >/dev/null 2>&1; then
	echo "skipped: there is no GPU here" >&2
	exit 77
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
if [ -d build/gpu/lib ]; then
	build=build/gpu
	export LD_LIBRARY_PATH=$PWD/build/gpu/lib:${LD_LIBRARY_PATH:-}:/usr/local/cuda/lib64
else
	build=build
	arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
	[ "$arch" = 90 ] && arch=90a
	make -s -j"$(nproc)" CUDA_ARCHS="$arch" CUDA_PTX= engine gpu-tests build/test/test_golden \
		build/test/test_engine_same build/test/test_engine_sampling || exit 1
fi

# With this machine's C library, or where it is too old with the packed one.
loader=()
if ! "$build/openlora-engine" --help >/dev/null 2>&1; then
	loader=("$build/lib/libc/ld-linux-x86-64.so.2" --library-path
		"$PWD/$build/lib/libc:$LD_LIBRARY_PATH:/usr/lib/x86_64-linux-gnu:/usr/local/nvidia/lib64:/usr/lib64")
fi

export OL_DEVICE_DIR=$build OPENLORA_GOLDEN=$PWD/test/data/golden
table="" failed=0
step() {
	local name=$1 from=$SECONDS status=ok
	shift
	"$@" >"$build/$name.log" 2>&1 || status=FAILED
	table+=$(printf '%-6s %-28s %4ds' $status "$name" $((SECONDS - from)))$'\n'
	if [ $status = FAILED ]; then
		failed=1
		tail -n 30 "$build/$name.log"
	fi
	[ -z "${OUT:-}" ] || cp "$build/$name.log" "$OUT/"
}

if [ "$what" = bench ]; then
	exec "${loader[@]}" "$build/gpu_bench" "${@:2}"
fi
for program in "$build"/gpu_*; do
	case $program in
	*.log | */gpu_bench) ;;
	*) step "$(basename "$program")" "${loader[@]}" "$program" ;;
	esac
done
OL_TEST_DEVICE=cuda step golden "${loader[@]}" "$build/test/test_golden"
OL_TEST_DEVICE=cuda step same "${loader[@]}" "$build/test/test_engine_same"
OL_TEST_DEVICE=cuda step sampling "${loader[@]}" "$build/test/test_engine_sampling"
if command -v compute-sanitizer >/dev/null 2>&1 && [ ${#loader[@]} = 0 ]; then
	for program in element rope shrink linear attention; do
		step "memcheck-$program" compute-sanitizer --tool memcheck --error-exitcode 1 "$build/gpu_$program"
		step "racecheck-$program" compute-sanitizer --tool racecheck --error-exitcode 1 "$build/gpu_$program"
	done
else
	table+="skipped memcheck, racecheck: compute-sanitizer is not here, or not for packed programs"$'\n'
fi
printf '%s' "$table"
exit $failed
