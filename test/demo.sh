#!/usr/bin/env bash
# A session with the bundled model: several adapters answer from SQL, attribution
# beside each answer. In a throwaway cluster, which is removed afterwards.
# KEEP_WORK=1 keeps it.
set -eu
cd "$(dirname "$0")/.."
. test/lib/deps.sh
. test/lib/cluster.sh
need_packages build

echo "building ..."
make -s -j"$(nproc)" PG_CONFIG="$PG_CONFIG" all >build.log 2>&1 || { tail -n 30 build.log; exit 1; }
rm -f build.log
make_work
stage_postgres
stage_files test/data/demo "$WORK/demo"
start_cluster "openlora.model=$WORK/demo/model"
psql -X -q -v ON_ERROR_STOP=1 -v demo="$WORK/demo" -f test/demo.sql
