# deps.sh: sourced. Makes sure that the Debian packages for a purpose are there:
# installs them when run as root, otherwise prints the line to run and exits 2.
#
#   need_packages build          to compile
#   need_packages build test     to compile and test

PG_MAJOR=${PG_MAJOR:-15}
packages_build="gcc make pkg-config libc6-dev libpcre2-dev libjansson-dev libutf8proc-dev libssl-dev libdivsufsort-dev liblapacke-dev
	postgresql-$PG_MAJOR postgresql-server-dev-$PG_MAJOR"
packages_test="clang g++ libclang-rt-14-dev libcmocka-dev postgresql-$PG_MAJOR-pgtap libtap-parser-sourcehandler-pgtap-perl
	libipc-run-perl perl python3"

need_packages() {
	local missing="" set list p
	command -v dpkg-query >/dev/null 2>&1 || return 0 # not Debian: trust the builder
	for set in "$@"; do
		list=packages_$set
		for p in ${!list}; do
			dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
		done
	done
	[ -z "$missing" ] && return 0
	if [ "$(id -u)" != 0 ]; then
		echo "Missing Debian packages. Run as root:" >&2
		echo "    apt-get install -y$missing" >&2
		exit 2
	fi
	echo "Installing Debian packages:$missing"
	# A package that brings a server must not start one.
	export DEBIAN_FRONTEND=noninteractive
	mkdir -p /etc/postgresql-common
	[ -e /etc/postgresql-common/createcluster.conf ] ||
		echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
	{ apt-get update -q && apt-get install -y -q --no-install-recommends $missing; } >/tmp/openlora-apt.$$.log 2>&1 || {
		tail -n 20 /tmp/openlora-apt.$$.log >&2
		echo "apt-get failed; the packages needed are:$missing" >&2
		exit 2
	}
	rm -f /tmp/openlora-apt.$$.log
}
