#!/usr/bin/env bash
# What ptxas said of every kernel and architecture while nvcc built the CUDA device: fails where
# registers spill more than a few bytes, or where an array of a thread's own is in local memory and
# is not meant to be.
#
#   test/spills.sh [-v] [FOLDER]      -v: every kernel's registers and local memory, too
set -u
cd "$(dirname "$0")/.."
verbose=0
[ "${1:-}" = -v ] && verbose=1 && shift
logs=${1:-build/cuda}
# Bytes that a thread may store and load again: what is there is read once or twice a kernel, outside
# of its loops, or a loop's few values that do not change.
MOST=32
# attention_prefill.cu keeps what the splits before came to in local memory on purpose; sincosf reduces
# large angles there (rope.cu).
MEANT='prefill_kernel|rope_kernel'

ls "$logs"/*.o.log >/dev/null 2>&1 || { echo "skipped: there is no nvcc, and nothing that it compiled"; exit 77; }
awk -v most=$MOST -v meant="$MEANT" -v verbose=$verbose '
	/Compiling entry function/ { split($0, part, "\047"); kernel = part[2]; arch = part[4] }
	/Function properties for/ { of = $NF }
	/bytes stack frame/ && of == kernel {
		stack = $1; stores = $5; loads = $9; n++
		bad = stores > most || loads > most || (stack > most && stores == 0 && kernel !~ meant)
	}
	/Used [0-9]+ registers/ {
		if (bad || verbose)
			printf "%s%-6s %3d registers, %3d bytes of stack, spills: %3d stored, %3d loaded  %s\n",
				bad ? "TOO MUCH " : "", arch, $5, stack, stores, loads, kernel
		failed += bad
		bad = 0
	}
	END {
		printf "%d kernels of all architectures, %d with spills above %d bytes or local memory\n", n, failed, most
		exit n == 0 || failed > 0
	}' "$logs"/*.o.log
