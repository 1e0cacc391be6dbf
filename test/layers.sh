#!/usr/bin/env bash
# Fails on an include that a layer may not have: see src/README.md.
#
#   base <- device/device.h <- cpu, kernels
#   base <- device <- engine <- wire <- engine/main, pg (plain headers only)
#   base <- ledger <- pg
set -u
cd "$(dirname "$0")/.."
bad=0

# forbid WHERE PATTERN WHY: no #include in files of WHERE may match PATTERN.
forbid() {
	local found
	found=$(grep -rnE "^[[:space:]]*#[[:space:]]*include[[:space:]]*[<\"]($2)" $1 2>/dev/null)
	[ -z "$found" ] && return
	printf '%s\n%s\n' "$3:" "$found"
	bad=1
}

PG='postgres\.h|postgres_fe\.h|fmgr\.h|utils/|storage/|miscadmin\.h|catalog/'
GPU='cuda|cublas|kernels/'
forbid src/base 'device/|cpu/|engine/|wire/|pg/' 'base includes nothing of ours'
forbid src/device 'cpu/|engine/|wire/|pg/' 'the device seam knows base alone'
forbid src/cpu 'engine/|wire/|pg/' 'a device knows base and device.h alone'
forbid "$(ls -d src/engine/*.c src/engine/*.h src/engine/formats src/engine/tokenizer | grep -v -E 'cmd_|main' | tr '\n' ' ')" \
	'wire/|cpu/|pg/' 'the engine is below the wire and above devices'
forbid src/engine/tokenizer 'engine/(engine|model|formats)|device/' 'the tokenizer knows base alone'
forbid src/engine/formats 'engine/(engine|model|scheduler|adapters|sampler)' 'formats know base and the device seam'
forbid kernels 'cpu/|engine/|wire/|pg/|ledger/' 'a device knows base and device.h alone'
forbid 'kernels/launch.h kernels/gpu.cuh kernels/*.cu kernels/*.cuh' 'base/(arena|buf|file|keccak|log|status|tensor)|device/|kernels/core' 'kernels know launch.h and choice.h alone'
forbid src/wire 'cpu/|pg/|engine/(formats|tokenizer|model|scheduler|adapters|kvpages)' 'the wire knows engine.h alone'
forbid src/merge 'cpu/|wire/|pg/|engine/(engine|model|scheduler|adapters)' 'merging knows formats alone'
forbid src/ledger 'device/|cpu/|engine/|wire/|pg/' 'the ledger knows base alone'
forbid src/pg 'cpu/|engine/(formats|tokenizer|model|scheduler|adapters|kvpages|sampler|stops)' \
	'the extension knows plain headers alone'
forbid 'src/base src/device src/cpu src/engine src/wire src/ledger' "$PG" 'PostgreSQL is known in src/pg alone'
forbid 'src/base src/device src/cpu src/engine src/wire src/pg' "$GPU" 'CUDA is known in kernels alone'
[ $bad = 0 ] && echo "layers hold"
exit $bad
