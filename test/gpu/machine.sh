# machine.sh: sourced by run.sh on a machine with a GPU. Sets `build`, where the programs are, and
# `loader`, what they are started with.
if ! nvidia-smi -L >/dev/null 2>&1; then
	echo "skipped: there is no GPU here" >&2
	return 77
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
loader=()
if [ ! -d build/gpu/lib ] && [ -f build/gpu.tar.xz ]; then
	tar -C build -xJf build/gpu.tar.xz || # without xz
		python3 -c 'import tarfile; tarfile.open("build/gpu.tar.xz").extractall("build")' || return 1
fi
if [ ! -d build/gpu/lib ]; then
	build=build
	arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
	[ "$arch" = 90 ] && arch=90a
	make -s -k -j"$(nproc)" CUDA_ARCHS="$arch" CUDA_PTX= engine gpu-tests build/churn build/test/test_golden \
		build/test/test_engine_same build/test/test_engine_sampling \
		build/test/test_engine_fp8 build/test/test_engine_int8 build/test/test_engine_copies || echo "not all of it could be built: what is not there fails below" >&2
else
	build=build/gpu
	echo "packed at commit $(cat build/gpu/commit 2>/dev/null || echo unknown)"
	export LD_LIBRARY_PATH=$PWD/build/gpu/lib:$PWD/build/gpu:${LD_LIBRARY_PATH:-}:/usr/local/cuda/lib64
	# With this machine's C library, or where it is too old with the packed one.
	if ! "$build/openlora-engine" --help >/dev/null 2>&1; then
		loader=("$PWD/$build/lib/libc/ld-linux-x86-64.so.2" --library-path
			"$PWD/$build/lib/libc:$LD_LIBRARY_PATH:/usr/lib/x86_64-linux-gnu:/usr/local/nvidia/lib64:/usr/lib64")
	fi
fi
# cuBLASLt is measured against; it may have come with Python's packages alone.
OL_CUBLASLT=$(ls /usr/local/cuda/lib64/libcublasLt.so.13 /usr/lib/x86_64-linux-gnu/libcublasLt.so.13 2>/dev/null | head -n 1)
if [ -z "$OL_CUBLASLT" ] && command -v python3 >/dev/null 2>&1; then
	OL_CUBLASLT=$(python3 -c 'import glob, site, sys
found = [f for d in site.getsitepackages() + sys.path if d for f in glob.glob(d + "/nvidia/**/libcublasLt.so.13", recursive=True)]
print(found[0] if found else "")' 2>/dev/null)
fi
export OL_CUBLASLT
