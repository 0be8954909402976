#!/usr/bin/env bash
# Runs the same work by ours and by PyTorch, transformers, candle and the gemm crate in one run, and writes one table of ratios.
#
#   benches/peers/run.sh [measure] [--list cpu|cuda|dry] [--group matmul|attention|loss|model] [--only TEXT] [--rounds N] [--out FILE]
#   benches/peers/run.sh table FILE.json...       the page of what was measured, to stdout
#
# It makes its own Python environment (6 GB: PyTorch as PyPI has it), builds the Rust peers in release, and takes our command from
# $OMCHAT, or builds it. Where nothing can be installed, PYTHON names a Python that has torch, transformers and safetensors.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=scripts/common.sh
. "$root/scripts/common.sh"
here="$root/benches/peers"

python() {
  if [ -n "${PYTHON:-}" ]; then return; fi
  # Downloads would be kept twice.
  PIP_NO_CACHE_DIR=1 venv peers torch==2.15.0 transformers==5.24.0 numpy==2.4.6 safetensors==0.8.0 ||
    die "the peers' environment could not be made; name a Python that has torch and transformers by PYTHON=…"
  PYTHON="$venv/bin/python"
}

ours() {
  if [ -n "${OMCHAT:-}" ]; then [ -x "$OMCHAT" ] || die "OMCHAT=$OMCHAT is not a program"; return; fi
  say "building omchat; set OMCHAT to one that is built"
  (cd "$root" && cargo build -q --locked --bin omchat)
  OMCHAT="${CARGO_TARGET_DIR:-$root/target}/debug/omchat"
}

# The gemm crate and candle; a first build takes some minutes.
rust_peers() {
  if [ -n "${OMCHAT_PEERS:-}" ]; then return; fi
  say "building the Rust peers into $cache/peers"
  cargo build -q --locked --release --manifest-path "$here/rust/Cargo.toml" --target-dir "$cache/peers"
  OMCHAT_PEERS="$cache/peers/release/omchat-peers"
}

mode=measure
case "${1:-}" in measure|table) mode=$1; shift ;; esac
python
if [ "$mode" = table ]; then exec "$PYTHON" "$here/peers.py" table "$@"; fi

list=cpu out=
args=("$@")
for ((i = 0; i < ${#args[@]}; i++)); do
  case "${args[i]}" in --list) list="${args[i+1]:-}" ;; --out) out="${args[i+1]:-}" ;; esac
done
ours
rust=()
if [ "$list" != cuda ] && command -v cargo >/dev/null; then rust_peers; rust=(--rust "$OMCHAT_PEERS"); fi
extra=()
if [ -z "$out" ]; then
  out="$root/benches/results/$(date +%F)-$list.json"
  mkdir -p "$(dirname "$out")"
  extra=(--out "$out")
fi
case " $* " in *" --list "*) ;; *) extra+=(--list "$list") ;; esac
case " $* " in *" --device "*) ;; *) extra+=(--device "$([ "$list" = cuda ] && echo cuda || echo cpu)") ;; esac
commit=$(git -C "$root" describe --always --dirty 2>/dev/null || echo unknown)
"$PYTHON" "$here/peers.py" measure --omchat "$OMCHAT" "${rust[@]}" --commit "$commit" "${extra[@]}" "$@"
"$PYTHON" "$here/peers.py" table "$out" >"${out%.json}.md"
say "written: $out and ${out%.json}.md"
