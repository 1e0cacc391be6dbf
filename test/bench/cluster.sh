# cluster.sh: what benchmarks through SQL begin with: all is built and staged, and run() is psql in
# the cluster that they start. Sourced from the repository's root.
. test/lib/deps.sh
. test/lib/cluster.sh
need_packages build
make -s -j"$(nproc)" all
make_work
stage_postgres
stage_files test/data/demo/model "$WORK/model"
run() { psql -X -q -A -t -v ON_ERROR_STOP=1 "$@"; }
