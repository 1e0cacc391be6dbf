#!/usr/bin/env bash
# Receipts that `openlora ledger` writes in a second, with their leaves in the tree, from the
# first one put into shared memory to the last one committed. Goal: 5,000 on two cores.
#
#   N=20000 REPEATS=3 test/bench/receipts.sh
set -eu
cd "$(dirname "$0")/../.."
. test/bench/cluster.sh
N=${N:-20000} REPEATS=${REPEATS:-3}
start_cluster "openlora.model=$WORK/model" "shared_buffers=256MB" "jit=off" "fsync=on"
run -c 'CREATE EXTENSION openlora' -c "CREATE FUNCTION lora_test_receipts(int) RETURNS void AS 'openlora' LANGUAGE C"
for i in $(seq "$REPEATS"); do
	run <<SQL
SELECT count(*) + $N AS goal, clock_timestamp() AS start FROM openlora.receipts \gset
SELECT set_config('bench.goal', :'goal', false) \g /dev/null
SELECT lora_test_receipts($N) \g /dev/null
DO \$\$ BEGIN
  FOR i IN 1 .. 60000 LOOP
    EXIT WHEN (SELECT max(leaf) + 1 FROM openlora.receipts) >= current_setting('bench.goal')::int;
    PERFORM pg_sleep(0.01);
    COMMIT;
  END LOOP;
END \$\$;
SELECT round($N / extract(epoch FROM clock_timestamp() - :'start'::timestamptz)) || ' receipts/s';
SQL
done
run -c "SELECT checked, bad FROM lora_ledger_verify()"
