#!/bin/sh
# Installs what this host lacks to build, boot and test Skerry, and says what and why.
# Debian or Ubuntu, as root or with sudo. Everything else comes out of a Debian trixie tools root
# (image/tools.py) and a Python environment that `make` keeps in the cache, so the list stays short.
set -eu

say() { printf '%s\n' "$*" >&2; }

missing=""
need() { # need PACKAGE WHY COMMAND...
    package=$1 why=$2
    shift 2
    for probe in "$@"; do
        if ! sh -c "$probe" >/dev/null 2>&1; then
            say "  missing: $package ($why)"
            missing="$missing $package"
            return
        fi
    done
}

need python3 "runs the tools" 'python3 -c "import sys; sys.exit(sys.version_info < (3, 11))"'
need python3-venv "an environment with locked dependencies" 'python3 -c "import venv, ensurepip"'
need mmdebstrap "makes the Debian roots" 'command -v mmdebstrap'
need debian-archive-keyring "checks Debian's signatures" \
    'test -e /usr/share/keyrings/debian-archive-keyring.gpg -o -e /usr/share/keyrings/debian-archive-keyring.pgp'
need dbus-daemon "a private bus for the tests of updates" 'command -v dbus-daemon'
need iproute2 "network namespaces of the tests" 'command -v ip' 'command -v bridge'
need iputils-ping "pings of the tests" 'command -v ping'
need nftables "firewalls of the test networks" 'PATH=$PATH:/usr/sbin command -v nft'
need util-linux "mount namespaces" 'command -v unshare'

if [ -n "$missing" ]; then
    sudo=""
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { say "skerry: run this as root once: apt-get install$missing"; exit 1; }
        sudo=sudo
    fi
    command -v apt-get >/dev/null || { say "skerry: this host has no apt-get; install:$missing"; exit 1; }
    say "installing:$missing"
    $sudo apt-get update -qq
    # shellcheck disable=SC2086 # a list of package names
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "skerry: this host's Python is $(python3 --version); 3.11 or newer is needed (Debian 12, Ubuntu 24.04)"
    exit 1
}
