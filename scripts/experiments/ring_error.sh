#!/usr/bin/env bash
# The error of ring attention against the number of ranks, from the interpreter: a table to stdout, a picture to OUT.
#   scripts/experiments/ring_error.sh [OUT]      docs/ring/error.png if not given
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=scripts/common.sh
. scripts/common.sh
out=${1:-docs/ring/error.png}
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}"
venv scenes numpy==2.4.6 pillow==13.0.0
mkdir -p "$(dirname "$out")"
for test in ring ring_backward; do
  cargo test -q -p omchat-ir --test $test error_against_ranks -- --nocapture
done | "$venv/bin/python" scripts/experiments/ring_error.py "$out"
