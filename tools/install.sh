#!/usr/bin/env bash
# Builds .venv with everything the Makefile's targets use. Safe to run again: it adds only what is missing.
#
# Required: Python 3.11 or newer, PyTorch, the other dependencies, every extra of this system but FFCV, and the
# development tools. FFCV is compiled; where it cannot be, the script says what to type and goes on without it.
# System packages are left to you: no sudo, no apt-get.
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
        fail "$base lacks the venv module. Run: sudo apt-get install $version-venv"
    fi
    say "creating .venv with $("$base" --version)"
    "$base" -m venv --clear .venv
}

# All but FFCV, which is compiled, and those that exclude or repeat another.
extras() {
    "$python" - <<'EOF'
import tomllib
extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]
print(",".join(sorted(extras.keys() - {"all", "cuda", "dali-cuda12", "ffcv"})))
EOF
}

install_packages() {
    say "installing PyTorch, the other dependencies and the development tools (several GB on a first run)"
    # The pip of older distributions knows no dependency groups.
    "$python" -m pip install "${quiet[@]}" 'pip>=25.1'
    # PyTorch first, so that pip fits the other packages' CUDA libraries to it instead of an older PyTorch to them.
    "$python" -m pip install "${quiet[@]}" --editable .
    "$python" -m pip install "${quiet[@]}" --editable ".[$(extras)]" --group dev
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
    if [ ${#missing[@]} -gt 0 ]; then
        say "FFCV needs system packages: going on without the backend 'ffcv'."
        say "To add it: sudo apt-get install ${missing[*]} && make install"
        return
    fi
    say "installing FFCV"
    quietly "$python" -m pip install --quiet --editable '.[ffcv]' ||
        say "FFCV could not be built: going on without the backend 'ffcv'. To try again: make install"
}

# On a terminal pip shows its progress; in a log only what went wrong.
quiet=(-qq)
if [ -t 1 ]; then quiet=(); fi

if ! is_recent "$python"; then make_venv; fi
install_packages
install_ffcv
say "done"
