#!/usr/bin/env bash
# Builds .venv with everything the Makefile's targets use. Safe to run again: it adds only what is missing.
#
# Required: Python 3.11 or newer, PyTorch, the other dependencies and the development tools.
# Optional: the engines DALI and FFCV. Where one cannot be installed, the script says so and goes on without it.
# System packages are installed where that needs no password: as root, or through sudo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=.venv/bin/python

say() { printf 'install: %s\n' "$*"; }

fail() {
    printf 'install: %s\n' "$*" >&2
    exit 1
}

# Runs a command, showing the end of its output only if it fails.
quietly() {
    local output
    output=$("$@" 2>&1) || { printf '%s\n' "$output" | tail -n 12 >&2 && return 1; }
}

apt_install() {
    local root=()
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || return 1
        root=(sudo -n)
    fi
    say "installing the system packages $*"
    # One unreachable source must not stop this: what is needed may come from another.
    quietly "${root[@]}" apt-get -q update || true
    quietly "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y -o DPkg::Lock::Timeout=120 install --no-install-recommends "$@"
}

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if is_recent "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "respipe needs Python 3.11 or newer, found $(python3 --version 2>/dev/null || echo none)." \
        "Install one with its venv module and run make again; PYTHON=/path/to/python3 names one off the PATH."
}

make_venv() {
    local base version
    base=$(find_python)
    version=$("$base" -c 'import sys; print("python{}.{}".format(*sys.version_info))')
    # Debian and Ubuntu ship Python without ensurepip, which the venv module needs.
    if ! "$base" -c 'import ensurepip, venv' 2>/dev/null; then
        apt_install "$version-venv" || fail "$base lacks the venv module. Run: sudo apt-get install $version-venv"
    fi
    say "creating .venv with $("$base" --version)"
    "$base" -m venv --clear .venv
}

install_packages() {
    say "installing PyTorch, the other dependencies and the development tools (several GB on a first run)"
    # The pip of older distributions knows no dependency groups.
    "$python" -m pip install "${quiet[@]}" 'pip>=25.1'
    "$python" -m pip install "${quiet[@]}" --editable '.[plots,train]' --group dev
}

install_dali() {
    say "installing DALI"
    quietly "$python" -m pip install --quiet --only-binary=nvidia-dali-cuda130 --editable '.[dali-cuda13]' ||
        say "DALI cannot be installed on this system: going on without the backend 'dali'"
}

has_header() { [ -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ]; }

# FFCV is compiled here, against OpenCV and libjpeg-turbo.
install_ffcv() {
    local missing=()
    command -v c++ >/dev/null || missing+=(g++)
    command -v pkg-config >/dev/null || missing+=(pkg-config)
    pkg-config --exists opencv4 2>/dev/null || missing+=(libopencv-dev)
    pkg-config --exists libturbojpeg 2>/dev/null || missing+=(libturbojpeg0-dev)
    has_header || missing+=("$("$python" -c 'import sys; print("python{}.{}-dev".format(*sys.version_info))')")
    if "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("ffcv") is None)'; then
        missing=()
    fi
    if [ ${#missing[@]} -gt 0 ] && ! apt_install "${missing[@]}"; then
        say "FFCV needs system packages that could not be installed: going on without the backend 'ffcv'."
        say "To add it: sudo apt-get install ${missing[*]} && make install"
        return
    fi
    say "installing FFCV"
    quietly "$python" -m pip install --quiet --editable '.[ffcv]' ||
        say "FFCV could not be built: going on without the backend 'ffcv'"
}

# On a terminal pip shows its progress; in a log only what went wrong.
quiet=(-qq)
if [ -t 1 ]; then quiet=(); fi

if ! is_recent "$python"; then make_venv; fi
install_packages
install_dali
install_ffcv
say "done"
