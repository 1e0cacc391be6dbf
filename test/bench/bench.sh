#!/usr/bin/env bash
# Speed, and ratios against a peer in the same run on the same cores.
#
#   make bench                              ours alone
#   PEER=/path/to/llama.cpp/build/bin make bench   with llama.cpp's own benchmarks
#
# SHAPE=qwen2.5-0.5b TYPE=q8_0 THREADS=2 REPEATS=3 are the defaults. Ours and the
# peer's runs alternate, so that a drift of the machine meets both.
set -eu
cd "$(dirname "$0")/../.."
. test/lib/deps.sh
need_packages build
SHAPE=${SHAPE:-qwen2.5-0.5b} TYPE=${TYPE:-q8_0} THREADS=${THREADS:-2} REPEATS=${REPEATS:-3}
make -s -j"$(nproc)" engine
mkdir -p build/bench
MODEL=build/bench/$SHAPE-$TYPE.gguf
[ -s "$MODEL" ] || python3 test/bench/make_model.py "$SHAPE" "$TYPE" "$MODEL"
exec python3 test/bench/compare.py --engine build/openlora-engine --model "$MODEL" \
	--threads "$THREADS" --repeats "$REPEATS" ${PEER:+--peer "$PEER"}
