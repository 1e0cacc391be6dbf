# bench.sh: sourced by run.sh. The parts of `make bench-gpu`, in the order of what must not be
# skipped when time ends, and its closing table.

# Where a model of 16 GB fits, without a disk where memory suffices.
room_for_models() {
	local dir
	for dir in /dev/shm "${TMPDIR:-/tmp}" "$PWD/build"; do
		[ -w "$dir" ] && [ "$(df -k --output=avail "$dir" | tail -n 1)" -gt $((20 * 1024 * 1024)) ] || continue
		# a quarter of the memory stays for the engine and what is pinned
		[ "$dir" != /dev/shm ] || [ "$(awk '/MemAvailable/ { print int($2 / 1048576) }' /proc/meminfo)" -gt 48 ] || continue
		echo "$dir"
		return
	done
	echo "$PWD/build"
}

# engine NAME SHAPE OPTIONS...: openlora-engine bench; its figures as rows of the table.
engine() {
	local name=$1 shape=$2
	shift 2
	step "engine-$name" "${loader[@]}" "$build/openlora-engine" bench --model "$models/$shape.gguf" --device cuda \
		--device-dir "$device_dir" --json "$@" || return
	tail -n 1 "$out/engine-$name.log" >"$out/engine-$name.json"
}

# number NAME KEY: of what `engine NAME` has told.
number() {
	sed -n "s/.*\"$2\": *\([0-9.e+]*\).*/\1/p" "$out/engine-$1.json" 2>/dev/null
}

# row WHAT UNIT MEASURED [CEILING GOAL]
row() {
	[ -z "$3" ] || printf '%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "${4:-0}" "${5:-0}" >>"$out/rows"
}

# Half a model, when time has ended, is none, and is not begun again.
model() {
	local file=$models/$1
	[ ! -s "$file.gguf" ] || return 0
	[ ! -e "$file.part" ] || return 1
	step "model-$1" "${python[@]}" test/bench/make_model.py "$1" bf16 "$file.part" && mv "$file.part" "$file.gguf"
}

# Decoding of 8 requests, the same as peers.py asks of transformers and peft.
whole_engine() {
	local shape=$1 name=$2
	model "$shape" || return
	engine "$name" "$shape" "${engine_size[@]}" --adapters 8 --repeats 3
	row "engine, $name, 8 prompts of 128, no adapter" tokens/s "$(number "$name" base_prefill_tokens_per_second)"
	row "engine, $name, 8 requests, no adapter" tokens/s "$(number "$name" base_decode_tokens_per_second)"
	row "engine, $name, 8 requests, 8 adapters" tokens/s "$(number "$name" decode_tokens_per_second)"
	engine "$name-1" "$shape" "${engine_size[@]}" --adapters 1 --repeats 1
	row "engine, $name, 8 requests, 1 adapter" tokens/s "$(number "$name-1" decode_tokens_per_second)"
}

# 2,000 registered adapters, asked for by Zipf's law, of which the device holds some; and 5.
zipf() {
	local shape=$1 name=$2 few many
	model "$shape" || return
	step zipf env DEVICE=cuda DEVICE_DIR="$device_dir" "${zipf_size[@]}" "${loader[@]}" "$build/churn" \
		"$models/$shape.gguf" few=5:0:16:1 "many=2000:$zipf_slots:16:1" || return
	few=$(awk '$1 == "few" { print $2 }' "$out/zipf.log") many=$(awk '$1 == "many" { print $2 }' "$out/zipf.log")
	row "engine, $name, 2,000 adapters by Zipf, of 5" tokens/s "$many" "$few" 0.95
}

bench_all() {
	local part program=$build/${simt:-gpu}_bench size=()
	models=$(room_for_models)/openlora-models
	main=llama-3.1-8b main_name=8B small="llama-3.2-1b:1B qwen2.5-0.5b:0.5B"
	engine_size=(--parallel 8 --prompt 128 --generate 34 --rank 16 --kv-bytes $((4 << 30)) --adapter-bytes $((4 << 30)))
	zipf_size=(KV_MB=4096 PARALLEL=64 PROMPT=128 GENERATE=64 REQUESTS=400) zipf_slots=500
	if [ -n "$simt" ]; then
		size=(--tiny) main=mini main_name=mini small=""
		models=$out/models
		engine_size=(--parallel 8 --prompt 3 --generate 3 --rank 2 --threads 2 --kv-bytes $((1 << 20)) --adapter-bytes $((1 << 20)))
		zipf_size=(PARALLEL=4 PROMPT=3 GENERATE=2 REQUESTS=4) zipf_slots=3
	fi
	trap 'rm -rf "$models"' EXIT # 16 GB, perhaps of memory
	trap 'exit 143' TERM INT
	mkdir -p "$models"
	for part in ceilings decode adapters prefill loading attention prefill_ways; do
		step "$part" "${loader[@]}" "$program" "${size[@]}" --ceilings "$out/ceilings" --rows "$out/rows" $part
	done
	step sdpa "${python[@]}" test/gpu/sdpa.py "$out/peers"
	zipf $main $main_name
	whole_engine $main $main_name
	step "peers-$main" "${python[@]}" test/gpu/peers.py $main "$out/peers"
	rm -f "$models/llama-3.1-8b.gguf"
	for part in $small; do
		whole_engine "${part%:*}" "${part#*:}"
		step "peers-${part%:*}" "${python[@]}" test/gpu/peers.py "${part%:*}" "$out/peers"
	done
	rm -rf "$models"
}

# bench_table ROWS PEERS: what was measured of what could be, and whether that is the goal. A peer's
# figure for a row is its ceiling: SDPA's for attention (goal 0.8), peft's for the engine.
bench_table() {
	[ -s "$1" ] || { echo "nothing was measured"; return; }
	touch "$2"
	[ -z "$simt" ] || printf '\nsmall sizes, on the processor: the figures mean nothing\n'
	awk -F'\t' -v peers="$2" '
	BEGIN { while ((getline line <peers) > 0) { split(line, f, "\t"); peer[f[1]] = f[2] }
		printf "\n%-46s %12s %-9s %12s %7s  %s\n", "", "measured", "", "ceiling", "ratio", "goal" }
	{ ceiling = $4; goal = $5
	  if ($1 in peer) { ceiling = peer[$1]; if ($1 ~ /^attention/) goal = 0.8 }
	  printf "%-46s %12.1f %-9s", $1, $3, $2
	  if (ceiling > 0) {
		ratio = $3 / ceiling
		reached = (goal > 0 && ratio >= goal) || (goal < 0 && ratio <= -goal)
		printf " %12.1f %7.3f", ceiling, ratio
		if (goal != 0) printf "  %s %.2f %s", (goal > 0 ? ">=" : "<="), (goal > 0 ? goal : -goal), (reached ? "yes" : "NO") }
	  printf "\n" }' "$1"
}
