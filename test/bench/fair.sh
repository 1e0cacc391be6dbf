#!/usr/bin/env bash
# Does a tenant that sends many requests at once make another's first token late? One role
# asks for one token of PROMPT tokens again and again: alone, and while another role has FLOOD
# requests (of PROMPT and GENERATE tokens) at once, over and over. Medians of SAMPLES.
#
#   FLOOD=100 PROMPT=128 GENERATE=64 SAMPLES=20 [MODEL=file] test/bench/fair.sh
#
# The goal: no more than twice as long as alone, and one step of the engine.
set -eu
cd "$(dirname "$0")/../.."
. test/bench/cluster.sh
FLOOD=${FLOOD:-100} PROMPT=${PROMPT:-128} GENERATE=${GENERATE:-64} SAMPLES=${SAMPLES:-20} THREADS=${THREADS:-$(nproc)}
if [ -n "${MODEL:-}" ]; then
	cp "$MODEL" "$WORK/model.gguf" && chmod a+r "$WORK/model.gguf"
	MODEL=$WORK/model.gguf
else
	MODEL=$WORK/model
fi
start_cluster "openlora.model=$MODEL" "openlora.threads=$THREADS" "openlora.prefix_cache=off" "openlora.max_queued=10000" ${SETTINGS:-}
run -o /dev/null -c 'CREATE EXTENSION openlora' -c 'CREATE ROLE one' -c 'CREATE ROLE many' -c "SELECT lora_grant_usage('one'), lora_grant_usage('many')" \
	-c "CREATE TABLE prompt (body text)" -c "GRANT SELECT ON prompt TO one, many"
run -o /dev/null -c "SELECT lora_count_tokens('x')"
# PROMPT tokens, whatever the tokenizer
run -o /dev/null -c "INSERT INTO prompt SELECT lora_detokenize((lora_tokenize((SELECT string_agg((k * 7919 % 9973)::text, ' ') FROM generate_series(1, $PROMPT) k)))[1:$PROMPT])"
sample() {
	run -c "SET ROLE one" -c "CREATE TEMP TABLE t (ms float8)" -c "DO \$\$
		DECLARE
		    start timestamptz;
		BEGIN
		    FOR i IN 1 .. $SAMPLES LOOP
		        start := clock_timestamp();
		        PERFORM lora_generate(NULL, i || body, max_tokens => 1, ignore_eos => true) FROM prompt;
		        INSERT INTO t VALUES (extract(epoch FROM clock_timestamp() - start) * 1000);
		    END LOOP;
		END \$\$" -c "SELECT round((percentile_cont(0.5) WITHIN GROUP (ORDER BY ms))::numeric, 1) || ' ' || round(max(ms)::numeric, 1) FROM t"
}
step() { run -c "SELECT round(1000 * busy_seconds / NULLIF(steps, 0), 1) FROM openlora.stat_engine"; }
read -r alone alone_max <<<"$(sample)"
run -o /dev/null -c 'SELECT lora_stat_reset()'
(while :; do
	run -o /dev/null -c "SET ROLE many" -c "SELECT count(lora_generate(NULL, i || body, max_tokens => $GENERATE, ignore_eos => true)) FROM prompt, generate_series(1, $FLOOD) i"
done) 2>/dev/null &
flood=$!
trap 'kill $flood 2>/dev/null; cleanup_work' EXIT
until [ "$(run -c 'SELECT running > 5 FROM lora_status()')" = t ]; do :; done
read -r with with_max <<<"$(sample)"
echo "first token alone: median $alone ms, longest $alone_max; beside $FLOOD requests: median $with ms, longest $with_max; a step takes $(step) ms"
awk -v a="$alone" -v w="$with" -v s="$(step)" 'BEGIN { printf "ratio %.2f, beyond one step %.2f (goal 2)\n", w / a, (w - s) / a }'
