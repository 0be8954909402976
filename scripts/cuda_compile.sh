#!/usr/bin/env bash
# Generates the CUDA kernels of the models' programs, of the texts that say `test source cuda`, and every kernel of the list at every
# schedule that it offers; compiles them for sm_80 and sm_90a.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}"

out="$CARGO_TARGET_DIR/cuda"
rm -rf "$out"; mkdir -p "$out"
mapfile -t programs < <(grep -rlE 'test source cuda' tests/filetests --include='*.oir' 2>/dev/null | sort)
if [ "${#programs[@]}" = 0 ]; then echo "skipped: compiling the CUDA kernels with NVRTC (no program says 'test source cuda')"; exit 0; fi
cargo build -q --bin omchat
for program in "${programs[@]}"; do
  "$CARGO_TARGET_DIR/debug/omchat" ir source --target cuda "$program" >"$out/$(echo "${program#tests/filetests/}" | tr / -).cu"
done
# The programs of whole models, in the element types that a CUDA device runs.
for model in models/tiny tests/fixtures/tiny-c omchat-13b omchat-8b mini; do
  for dtype in bf16 f32; do
    "$CARGO_TARGET_DIR/debug/omchat" ir source --target cuda --model "$model" --dtype "$dtype" >"$out/model-$(basename "$model")-$dtype.cu"
  done
done
# Training steps of the small models: the kernels of the large ones' are the same but for their sizes.
for model in models/tiny tests/fixtures/tiny-c mini; do
  for dtype in bf16 f32; do
    "$CARGO_TARGET_DIR/debug/omchat" ir source --target cuda --model "$model" --function step --dtype "$dtype" \
      >"$out/step-$(basename "$model")-$dtype.cu"
  done
done
"$cache/venv-nvrtc/bin/python" scripts/nvrtc_compile.py --arch sm_80,sm_90a "$out"/*.cu
# Every kernel at every schedule that it offers there, with what each costs in registers and memory.
for sm in 80 90a; do
  "$CARGO_TARGET_DIR/debug/omchat" kernels dump --target cuda --tf32 --sm "$sm" >"$out/kernels-sm_$sm.txt"
  "$cache/venv-nvrtc/bin/python" scripts/nvrtc_compile.py --arch "sm_$sm" "$out/kernels-sm_$sm.txt"
done
