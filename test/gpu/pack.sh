#!/usr/bin/env bash
# pack.sh FOLDER: puts beside the programs of a build the shared libraries that they were linked
# with, so that they run where these are not installed; the C library and its loader in a folder
# of their own, for machines with an older one. CUDA's stay behind: they are the machine's. All of it
# into FOLDER.tar.xz, which run.sh unpacks.
set -eu
build=$1
mkdir -p "$build/lib/libc"
rm -rf "$build/obj" "$build/cuda" "$build/simt" "$build"/*.a "$build"/openlora-merge "$build"/gpu-*
for file in "$build"/gpu_* "$build"/churn "$build"/openlora-engine "$build"/*.so "$build"/test/test_*; do
	strip --strip-debug "$file"
	ldd "$file" | awk '/=> \// { print $3 } $1 ~ /ld-linux/ { print $1 }'
done | sort -u | while read -r lib; do
	case $lib in
	*libcu* | *libnv*) ;;
	*/ld-linux* | */libc.so* | */libm.so* | */libdl.so* | */libpthread.so* | */librt.so* | */libstdc++* | */libgcc_s*)
		cp -L "$lib" "$build/lib/libc/" ;;
	*) cp -L "$lib" "$build/lib/" ;;
	esac
done
git describe --always --dirty >"$build/commit" 2>/dev/null || rm -f "$build/commit"
XZ_OPT='-6 --lzma2=dict=64MiB' tar -C "$(dirname "$build")" -cJf "$build.tar.xz" "$(basename "$build")"
# What machines are lent with takes so much along, the tree with its test data included.
tree=$({ git ls-files -z || find . -path ./build -prune -o -type f -print0; } | du -cb --files0-from=- | tail -n 1 | cut -f1)
packed=$(stat -c %s "$build.tar.xz")
echo "packed: $build.tar.xz $((packed >> 20)) MB, with the tree $(((packed + tree) >> 20)) MB of 64"
[ $((packed + tree)) -lt $((62 << 20)) ]
