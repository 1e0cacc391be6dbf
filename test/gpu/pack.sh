#!/usr/bin/env bash
# pack.sh FOLDER: puts beside the programs of a build the shared libraries that they were linked
# with, so that they run where these are not installed; the C library and its loader in a folder
# of their own, for machines with an older one. CUDA's stay behind: they are the machine's.
set -eu
build=$1
mkdir -p "$build/lib/libc"
rm -rf "$build/obj" "$build/cuda" "$build/simt" "$build"/*.a
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
# What machines are lent with takes so much along.
du -sm "$build" | awk '{ print "packed:", $2, $1, "MB"; exit $1 >= 60 }'
