#!/usr/bin/env bash
# Proofs in a ledger of N receipts: a real receipt's row N times, with its leaves and tree as
# the ledger process writes them. Goal: an inclusion proof of a million in less than 5 ms.
#
#   N=1000000 PROOFS=200 test/bench/proofs.sh
set -eu
cd "$(dirname "$0")/../.."
. test/bench/cluster.sh
N=${N:-1000000} PROOFS=${PROOFS:-200}
start_cluster "openlora.model=$WORK/model" "shared_buffers=256MB" "jit=off" "max_wal_size=4GB"
run -v n="$N" <<'SQL'
CREATE EXTENSION openlora;
DO $$ BEGIN
  WHILE (SELECT state FROM lora_status()) <> 'ready' LOOP PERFORM pg_sleep(0.01); END LOOP;
  PERFORM lora_generate(NULL, 'Once', max_tokens => 1);
  WHILE NOT EXISTS (SELECT FROM openlora.receipts) LOOP PERFORM pg_sleep(0.01); COMMIT; END LOOP;
END $$;
INSERT INTO openlora.receipts SELECT (jsonb_populate_record(r, jsonb_build_object('leaf', i))).*
  FROM openlora.receipts r, generate_series(1, :n - 1) i WHERE r.leaf = 0;
INSERT INTO openlora.ledger_hashes SELECT 0, leaf, sha256('\x00' || lora_receipt_entry(leaf)) FROM openlora.receipts WHERE leaf > 0;
CREATE TEMP TABLE halves AS SELECT at, hash FROM openlora.ledger_hashes WHERE level = 0;
DO $$ BEGIN
  FOR level IN 1 .. 7 LOOP
    FOR i IN 1 .. 8 LOOP
      CREATE TEMP TABLE next AS SELECT at / 2 AS at, sha256('\x01' || string_agg(hash, ''::bytea ORDER BY at)) AS hash
        FROM halves GROUP BY at / 2 HAVING count(*) = 2;
      DROP TABLE halves;
      ALTER TABLE next RENAME TO halves;
    END LOOP;
    INSERT INTO openlora.ledger_hashes SELECT level, at, hash FROM halves;
  END LOOP;
END $$;
ANALYZE openlora.receipts, openlora.ledger_hashes;
SQL
run -c "SELECT lora_ledger_create_key('example.com/bench')" >"$WORK/key"
time_of() { run -c '\timing on' -f "$1" | sed -n 's/^Time: \([0-9.]*\) ms.*/\1/p' | sort -n >"$WORK/times"; }
say() { awk -v what="$1" '{ t[NR] = $1 } END { printf "%s: median %.2f ms, 99 of 100 %.2f, worst %.2f (%d)\n", what, t[int((NR + 1) / 2)], t[int(NR * 0.99 + 0.5)], t[NR], NR }' "$WORK/times"; }
echo 'SELECT lora_checkpoint() \g /dev/null' >"$WORK/sign"
time_of "$WORK/sign"; say "signing $N"
awk -v n="$N" -v k="$PROOFS" 'BEGIN { srand(1); for (i = 0; i < k; i++) printf "SELECT lora_receipt_proof(%d) \\g /dev/null\n", int(rand() * n) }' >"$WORK/proofs"
time_of "$WORK/proofs"; say "lora_receipt_proof, one session"
awk -v n="$N" -v k="$PROOFS" 'BEGIN { srand(2); for (i = 0; i < k; i++) printf "SELECT lora_consistency_proof(%d, %d) \\g /dev/null\n", 1 + int(rand() * (n - 1)), n }' >"$WORK/proofs"
time_of "$WORK/proofs"; say "lora_consistency_proof, one session"
: >"$WORK/all"
for i in $(seq 20); do
	echo "SELECT lora_receipt_proof($((N / 20 * i - 1))) \\g /dev/null" >"$WORK/one"
	time_of "$WORK/one"; cat "$WORK/times" >>"$WORK/all"
done
sort -n "$WORK/all" >"$WORK/times"; say "lora_receipt_proof, a new session each"
leaf=$((N / 3))
run -c "SELECT lora_receipt_proof($leaf)" >"$WORK/proof"
python3 test/verify/verify.py proof "$WORK/proof" --key "$(cat "$WORK/key")" --entry "$(run -c "SELECT encode(lora_receipt_entry($leaf), 'hex')")"
run -c '\timing on' -c 'SELECT checked, bad FROM lora_ledger_verify()'
