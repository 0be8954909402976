#!/usr/bin/env bash
# `make test`: brings what the tests need, runs them all, compiles the CUDA kernels, and says what was skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

scripts/setup.sh build test
features=()
if scripts/setup.sh mpi; then features=(--features omchat/mpi,omchat-runtime/mpi); fi
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}"
# What another checkout built into the same folder names that one's files, and cargo does not see it.
if [ -d "$CARGO_TARGET_DIR" ] && [ "$(cat "$CARGO_TARGET_DIR/checkout" 2>/dev/null)" != "$PWD" ]; then
  cargo clean -q --workspace
fi
mkdir -p "$CARGO_TARGET_DIR"
echo "$PWD" >"$CARGO_TARGET_DIR/checkout"
# Vulkan's loader complains on every probe where this is unset.
if [ -z "${XDG_RUNTIME_DIR:-}" ]; then XDG_RUNTIME_DIR=$(mktemp -d); export XDG_RUNTIME_DIR; fi
log="$cache/test.log"
say "building into $CARGO_TARGET_DIR; a first build takes some minutes"

status=0
cargo test --workspace "${features[@]}" --no-fail-fast -- --show-output 2>&1 | tee "$log" || status=$?
if [ ${#features[@]} = 0 ]; then echo "skipped: ranks as processes (Open MPI and libclang could not be installed)" | tee -a "$log"; fi

# Built together, crates lend each other the features of what they share; whoever embeds the runtime builds it alone.
cargo check -q --locked -p omchat-runtime --features cpu 2>&1 | tee -a "$log" || status=1

# Candle takes half a minute to build: only where mini was made.
if [ -d "$cache/convert" ]; then
  cargo test -q --locked --manifest-path tools/convert/Cargo.toml --target-dir "$cache/convert" 2>&1 | tee -a "$log" || status=1
else
  echo "skipped: the converter's own tests (scripts/mini.sh, which builds it, was not run)" | tee -a "$log"
fi

if scripts/setup.sh nvrtc; then
  scripts/cuda_compile.sh 2>&1 | tee -a "$log" || status=1
else
  echo "skipped: compiling the CUDA kernels with NVRTC (its packages could not be installed)" | tee -a "$log"
fi

say "what was skipped, and why:"
grep -aoE '(^|[[:space:]])skipped: .*' "$log" | sed 's/^[[:space:]]*/  /' | sort | uniq -c || echo "  nothing"
awk '/^test result: / { for (i = 2; i <= NF; i++) { if ($i == "passed;") p += $(i-1); if ($i == "failed;") f += $(i-1) } }
  END { printf "%d passed, %d failed\n", p, f }' "$log"
exit "$status"
