#!/usr/bin/env bash
# run.sh TARGET [SECONDS]: builds and runs one fuzzer; see README.md.
set -eu
cd "$(dirname "$0")/../.."
target=${1:?safetensors, gguf, config or adapter}
seconds=${2:-60}
out=build/fuzz
corpus=$out/corpus-$target
mkdir -p "$corpus"

clang -std=c11 -D_GNU_SOURCE -Isrc -O1 -g \
	-fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
	"test/fuzz/fuzz_$target.c" src/base/*.c src/engine/formats/*.c \
	-o "$out/fuzz_$target" -ljansson -lpcre2-8 -lcrypto -lm

# Small files of the right kind to begin with.
golden=test/data/golden
seed() { find "$golden" -name "$1" -size -40k 2>/dev/null || true; }
number=0
add() { number=$((number + 1)); cat "$@" >"$corpus/seed-$number"; }
case $target in
safetensors) for f in $(seed '*.safetensors'); do add "$f"; done ;;
gguf) for f in $(seed '*.gguf'); do add "$f"; done ;;
config) for f in $(seed config.json); do add "$f"; done ;;
adapter)
	for f in $(seed '*lora*.gguf'); do add "$f"; done
	for f in $(seed adapter_config.json); do
		weights=$(dirname "$f")/adapter_model.safetensors
		[ -f "$weights" ] && add "$f" <(printf '\0') "$weights"
	done
	;;
esac
exec "$out/fuzz_$target" -max_total_time="$seconds" -max_len=65536 -timeout=10 -rss_limit_mb=4096 \
	-print_final_stats=1 -artifact_prefix="$out/" "$corpus"
