#!/usr/bin/env bash
# Requests at the same time with different adapters, against llama.cpp's server: the same
# model, adapters (rank 16, all linear modules) and prompts, on the same cores, in turns.
# Ours is the whole way from SQL: a session for each request.
#
#   PEER=.../build/bin test/bench/server.sh
#
# REQUESTS=8 PROMPT=128 GENERATE=64 REPEATS=3 THREADS SHAPE=qwen2.5-0.5b TYPE=q8_0
set -eu
cd "$(dirname "$0")/../.."
. test/lib/deps.sh
. test/lib/cluster.sh
: "${PEER:?the folder of llama-server}"
N=${REQUESTS:-8} PROMPT=${PROMPT:-128} GENERATE=${GENERATE:-64} REPEATS=${REPEATS:-3} THREADS=${THREADS:-$(nproc)}
SHAPE=${SHAPE:-qwen2.5-0.5b} TYPE=${TYPE:-q8_0} PORT=${PORT:-18080}
make -s -j"$(nproc)" all
make_work
stage_postgres
mkdir -p build/bench "$WORK/adapters"
MODEL=build/bench/$SHAPE-$TYPE.gguf
[ -s "$MODEL" ] || python3 test/bench/make_model.py "$SHAPE" "$TYPE" "$MODEL"
cp "$MODEL" "$WORK/model.gguf"
python3 test/bench/server.py adapters "$SHAPE" 16 "$N" "$WORK/adapters"
chmod -R a+rX "$WORK/adapters" "$WORK/model.gguf"
start_cluster "openlora.model=$WORK/model.gguf" "openlora.threads=$THREADS" "openlora.prefix_cache=off"
run() { psql -X -q -A -t -v ON_ERROR_STOP=1 "$@"; }
run -c 'CREATE EXTENSION openlora'
for i in $(seq 0 $((N - 1))); do
	run -o /dev/null -c "SELECT lora_adapter_import('a$i', pg_read_binary_file('$WORK/adapters/$i.gguf'))"
done
python3 test/bench/server.py prompts "$N" "$PROMPT" >"$WORK/prompts"
list=$(seq -s, -f "$WORK/adapters/%g.gguf" 0 $((N - 1)))
LD_LIBRARY_PATH=$PEER "$PEER/llama-server" -m "$WORK/model.gguf" --lora "$list" --lora-init-without-apply -t "$THREADS" -np "$N" \
	-c $((N * (PROMPT + GENERATE + 32))) --port "$PORT" --no-webui >"$WORK/peer.log" 2>&1 &
peer=$!
trap 'kill $peer 2>/dev/null; cleanup_work' EXIT
until python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$PORT/health')" 2>/dev/null; do
	kill -0 $peer || { tail -20 "$WORK/peer.log"; exit 1; }
	sleep 0.5
done

ours() { # MODE
	local i=0 start adapter
	rm -f "$WORK"/end.*
	start=$(date +%s.%N)
	while read -r prompt; do
		case $1 in none) adapter=NULL ;; shared) adapter="'{a0}'" ;; distinct) adapter="'{a$i}'" ;; esac
		(
			got=$(run -c "SELECT completion_tokens FROM lora_complete($adapter, '$prompt', max_tokens => $GENERATE, ignore_eos => true)")
			[ "$got" = "$GENERATE" ] && date +%s.%N >"$WORK/end.$i"
		) &
		i=$((i + 1))
	done <"$WORK/prompts"
	wait $(jobs -p | grep -v "^$peer$")
	[ "$(ls "$WORK"/end.* | wc -l)" = "$N" ] || { echo "not all answered" >&2; exit 1; }
	sort -g "$WORK"/end.* | awk -v s="$start" 'NR == 1 { first = $1 } { last = $1 } END { printf "%.3f %.3f\n", first - s, last - s }'
}
theirs() { python3 test/bench/server.py ask "http://127.0.0.1:$PORT" "$1" "$N" "$PROMPT" "$GENERATE"; }

for mode in none shared distinct; do
	ours $mode >/dev/null # adapters are there, pages are mapped
	theirs $mode >/dev/null
	for _ in $(seq "$REPEATS"); do
		echo "$mode $(ours $mode) $(theirs $mode)"
	done
done | tee "$WORK/times"
python3 - "$WORK/times" "$N" "$GENERATE" <<'PY'
import statistics, sys
rows, n, generate = [l.split() for l in open(sys.argv[1])], int(sys.argv[2]), int(sys.argv[3])
m = statistics.median
for mode in ("none", "shared", "distinct"):
    r = [list(map(float, x[1:])) for x in rows if x[0] == mode]
    print(f"{mode:9} openlora {n * generate / m([x[1] for x in r]):7.1f} tokens/s, last / first reply {m([x[1] / x[0] for x in r]):5.2f};"
          f"  peer {n * generate / m([x[3] for x in r]):7.1f}, {m([x[3] / x[2] for x in r]):5.2f};  ratio {m([x[3] / x[1] for x in r]):5.2f}")
PY
