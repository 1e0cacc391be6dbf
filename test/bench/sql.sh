#!/usr/bin/env bash
# Plain SQL against the engine alone, on the same requests: rows of a table, 8 adapters of
# rank 16 on all linear layers in turns, all other things equal. Four ways, alternating:
#
#   engine    openlora-engine bench --requests
#   scan      SELECT lora_generate(...) FROM prompts, one session
#   by row    the same with openlora.pipeline_depth = 0
#   queue     SELECT lora_submit(...) FROM prompts; from the first submitted to the last ended
#
# and what SQL adds to a request of one token: round trip minus the engine's own time.
#
#   test/bench/sql.sh                              the demo model
#   SHAPE=qwen2.5-0.5b TYPE=q8_0 ROWS=128 BY_ROW=16 test/bench/sql.sh
#
# ROWS=1000 PROMPT=16 GENERATE=32 REPEATS=3 are the defaults. BY_ROW rows are enough to tell
# the time of one.
#
# A request of one token wakes four processes, so that it depends on how fast a core wakes that has
# nothing to do: in a virtual machine, on guest_halt_poll_ns (Linux has 200000 unless told otherwise),
# which is shown. HALT_POLL_NS=0 (as root) sets it for this run.
set -eu
cd "$(dirname "$0")/../.."
. test/lib/deps.sh
. test/lib/cluster.sh
need_packages build
ROWS=${ROWS:-1000} BY_ROW=${BY_ROW:-100} PROMPT=${PROMPT:-16} GENERATE=${GENERATE:-32} REPEATS=${REPEATS:-3}
SHAPE=${SHAPE:-demo} TYPE=${TYPE:-q8_0} THREADS=${THREADS:-$(nproc)} ADAPTERS=8
make -s -j"$(nproc)" all
make_work
stage_postgres
if [ "$SHAPE" = demo ]; then
	stage_files test/data/demo/model "$WORK/model"
	MODEL=$WORK/model
else
	mkdir -p build/bench
	MODEL=build/bench/$SHAPE-$TYPE.gguf
	[ -s "$MODEL" ] || python3 test/bench/make_model.py "$SHAPE" "$TYPE" "$MODEL"
	cp "$MODEL" "$WORK/model.gguf" && chmod a+r "$WORK/model.gguf"
	MODEL=$WORK/model.gguf
fi
mkdir "$WORK/adapters"
engine_rate() {
	build/openlora-engine bench --model "$MODEL" --threads "$THREADS" --prompt "$PROMPT" --generate "$GENERATE" \
		--parallel 64 --requests "$ROWS" --adapters $ADAPTERS --repeats 1 --json "$@" |
		python3 -c 'import json, sys; print(json.load(sys.stdin)["load_tokens_per_second"])'
}
engine_rate --write-adapters "$WORK/adapters" >/dev/null
chmod -R a+rX "$WORK/adapters"

start_cluster "openlora.model=$MODEL" "openlora.threads=$THREADS" "shared_buffers=256MB" "jit=off"
run() { psql -X -q -A -t -v ON_ERROR_STOP=1 "$@"; }
run -c 'CREATE EXTENSION openlora' -c "CREATE TABLE prompts (id int, adapters text[], body text)"
for i in $(seq $ADAPTERS); do
	run -o /dev/null -c "SELECT lora_adapter_import('bench$i', pg_read_binary_file('$WORK/adapters/$i/adapter_model.safetensors'),
		pg_read_file('$WORK/adapters/$i/adapter_config.json')::jsonb)"
done
# texts of PROMPT tokens, with the one that begins where there is one: numbers, cut where the
# tokenizer says
TEXT=$((PROMPT - $(run -c "SELECT cardinality(lora_tokenize('x', add_bos => true)) - cardinality(lora_tokenize('x'))")))
run >/dev/null <<SQL
INSERT INTO prompts SELECT i, ARRAY['bench' || 1 + i % $ADAPTERS],
  lora_detokenize((lora_tokenize((SELECT string_agg(((i::bigint * 7919 * k) % 9973)::text, ' ') FROM generate_series(1, 40) k)))[1:$TEXT])
  FROM generate_series(1, $ROWS) i;
VACUUM ANALYZE prompts;
SELECT count(lora_generate(adapters, body, max_tokens => 1)) FROM (SELECT * FROM prompts LIMIT 64) p;
SQL

scan() {
	run -c "SET openlora.pipeline_depth = $1" -c '\timing on' \
		-c "SELECT sum(length(lora_generate(adapters, body, max_tokens => $GENERATE, ignore_eos => true))) FROM (SELECT * FROM prompts LIMIT $2) p" |
		sed -n 's/^Time: \([0-9.]*\) ms.*/\1/p' | tail -n 1 | awk -v n="$2" -v g="$GENERATE" '{print n * g * 1000 / $1}'
}
queue() {
	run >/dev/null -c 'DELETE FROM openlora.queue' \
		-c "SELECT count(lora_submit(adapters, body, max_tokens => $GENERATE, ignore_eos => true)) FROM (SELECT * FROM prompts LIMIT $ROWS) p"
	while [ "$(run -c "SELECT count(*) FROM (SELECT lora_result(id, wait => '1 h') FROM openlora.queue WHERE state IN ('queued', 'running') ORDER BY id DESC LIMIT 1) s")" != 0 ]; do :; done
	run -c "SELECT count(*) * $GENERATE / extract(epoch FROM max(ended_at) - min(submitted_at)) FROM openlora.queue WHERE state = 'done'"
}
for i in $(seq "$REPEATS"); do
	engine_rate >>"$WORK/engine.txt"
	scan -1 "$ROWS" >>"$WORK/scan.txt"
	scan 0 "$BY_ROW" >>"$WORK/row.txt"
	queue >>"$WORK/queue.txt"
done
paste "$WORK/engine.txt" "$WORK/scan.txt" "$WORK/row.txt" "$WORK/queue.txt" | python3 -c '
import statistics, sys
rows = [[float(x) for x in line.split()] for line in sys.stdin]
m = lambda values: statistics.median(values)
print("tokens of output per second, medians: engine %.1f, scan %.1f, by row %.1f, queue %.1f" % tuple(m(c) for c in zip(*rows)))
print("scan / engine: %.2f (goal 0.9)" % m([r[1] / r[0] for r in rows]))
print("scan / by row: %.1f (goal 4)" % m([r[1] / r[2] for r in rows]))
print("queue / scan: %.2f" % m([r[3] / r[1] for r in rows]))'
run -c "SELECT avg(prompt_tokens) || ' prompt tokens, ' || avg(completion_tokens) || ' of output' FROM openlora.inferences WHERE max_tokens = $GENERATE"

# -- one token ------------------------------------------------------------------------------
POLL=/sys/module/haltpoll/parameters/guest_halt_poll_ns
if [ -n "${HALT_POLL_NS:-}" ] && [ -w $POLL ]; then
	trap 'echo '"$(cat $POLL)"' >'$POLL'; cleanup_work' EXIT
	echo "$HALT_POLL_NS" >$POLL
fi
[ ! -r $POLL ] || echo "guest_halt_poll_ns: $(cat $POLL)"
[ "$SHAPE" = demo ] || exit 0 # what SQL adds would drown in the noise of a larger model
mkdir "$WORK/one" && chmod 777 "$WORK/one" && cd "$WORK/one"
one() {
	echo "$2;" >query.sql
	pgbench -n -M prepared -f query.sql -c 1 -t 50 >/dev/null 2>&1
	before=$(run -c 'SELECT max(id) FROM openlora.inferences')
	rm -f log.*
	pgbench -n -M prepared -f query.sql -c 1 -t 2000 -l --log-prefix=log >/dev/null 2>&1
	run -c 'SELECT round((queue_ms + prefill_ms + decode_ms) * 1000) FROM openlora.inferences WHERE id > '"$before"' ORDER BY id' >engine.txt
	awk '{print $3}' log.* | paste -d' ' - engine.txt | python3 -c '
import statistics, sys
rows = [[float(x) for x in line.split()] for line in sys.stdin]
print("one token, '"$1"': round trip %.0f us, engine %.0f us, SQL %.0f us (medians of %d; goal 150)"
      % (*(statistics.median(c) for c in zip(*rows)), statistics.median(a - b for a, b in rows), len(rows)))'
}
one 'no adapter' "SELECT lora_generate(NULL, 'Once', max_tokens => 1)"
one 'one adapter' "SELECT lora_generate('{bench1}', 'Once', max_tokens => 1)"
echo 'SELECT 1;' >query.sql
rm -f log.*
pgbench -n -M prepared -f query.sql -c 1 -t 2000 -l --log-prefix=log >/dev/null 2>&1
awk '{print $3}' log.* | sort -n | awk '{a[NR] = $1} END {print "SELECT 1: " a[int(NR / 2)] " us"}'
