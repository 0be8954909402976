#!/usr/bin/env bash
# Builds the command for CUDA, without the CPU's kernels, and packs it with NVRTC, its headers and the side-by-side bench into one file
# for a machine with an NVIDIA GPU and no network.
#
#   benches/gpu/pack.sh [--webgpu] [--no-nvrtc] [--out FILE.tar]
#
# OMCHAT names a command that is built already. --webgpu builds that in too, for a machine with a Vulkan driver. --no-nvrtc leaves the
# compiler out (30 MB packed): run.sh then takes the one that PyTorch brought or the one of CUDA_PATH; the headers travel always. The
# file must stay under $LIMIT bytes: if it does not, nothing is written.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=scripts/common.sh
. "$root/scripts/common.sh"
LIMIT=${LIMIT:-$((64 << 20))}

nvrtc=1 webgpu="" out="$cache/omchat-gpu.tar"
while [ $# -gt 0 ]; do
  case "$1" in
    --no-nvrtc) nvrtc=0 ;;
    --webgpu) webgpu=,omchat/wgpu ;;
    --out) out=${2:?--out needs a file}; shift ;;
    *) die "unknown argument '$1'; there are --webgpu --no-nvrtc and --out FILE.tar" ;;
  esac
  shift
done
case "$out" in /*) ;; *) out="$PWD/$out" ;; esac
command -v xz >/dev/null || debian xz-utils || die "xz is missing"

if [ -z "${OMCHAT:-}" ]; then
  say "building omchat for CUDA${webgpu:+ and WebGPU}; a first build takes five minutes of two cores"
  target="${CARGO_TARGET_DIR:-$cache/gpu}"
  # A copy of the sources, as the lock file changes: a stand-in takes the place of LLVM, which NVRTC does without.
  copy="$target/source"
  mkdir -p "$copy"
  (cd "$root" && git ls-files -z --cached --others --exclude-standard | tar -c --null -T -) | tar -x -C "$copy"
  # The driver's version: cudarc, with no toolkit to look at, would take its newest.
  (cd "$copy" && CUDARC_CUDA_VERSION=13000 cargo build -q --config "patch.crates-io.cubecl-llvm.path='$root/benches/gpu/llvm'" \
    --profile travel -p omchat -p omchat-runtime --no-default-features --features "omchat/cuda,omchat/nccl,omchat-runtime/nccl$webgpu" \
    --bin omchat --bin test_ranks --target-dir "$target")
  OMCHAT="$target/travel/omchat"
fi
[ -x "$OMCHAT" ] || die "OMCHAT=$OMCHAT is not a program"
"$root/scripts/setup.sh" nvrtc
site=$("$cache/venv-nvrtc/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
cuda="$site/nvidia/cu13"
[ -f "$cuda/include/cuda_bf16.h" ] || die "$cuda holds no CUDA headers"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
top="$work/omchat-gpu" load="$work/load"
mkdir -p "$top" "$load/bin" "$load/cuda/lib" "$load/benches/peers" "$load/models"
cp "$OMCHAT" "$load/bin/omchat.bin"
if [ -x "$(dirname "$OMCHAT")/test_ranks" ]; then cp "$(dirname "$OMCHAT")/test_ranks" "$load/bin/test_ranks.bin"; fi
strip "$load"/bin/* 2>/dev/null || true
cp -rL "$cuda/include" "$load/cuda/include"
if [ $nvrtc = 1 ]; then
  cp -L "$cuda"/lib/libnvrtc.so.13 "$cuda"/lib/libnvrtc-builtins.so.13.0 "$load/cuda/lib/"
  # The first name that is looked for: another one on the machine is not taken instead.
  ln -s libnvrtc.so.13 "$load/cuda/lib/libnvrtc.so"
fi
cp "$root"/benches/peers/*.py "$root"/benches/peers/presets.json "$load/benches/peers/"
cp -r "$root/models/tiny" "$load/models/tiny"
git -C "$root" describe --always --dirty >"$load/commit" 2>/dev/null || echo unknown >"$load/commit"
cp "$root/benches/gpu/run.sh" "$top/run.sh"

say "packing; this takes two minutes"
for part in bin cuda benches models; do
  printf '  %-8s %10d bytes\n' "$part" "$(du -sb "$load/$part" | cut -f1)"
done
tar -C "$load" -c --owner=0 --group=0 . | xz --x86 --lzma2=preset=9 -T1 >"$top/load.tar.xz"
tar -C "$work" -cf "$work/out.tar" --owner=0 --group=0 omchat-gpu
size=$(stat -c %s "$work/out.tar")
[ "$size" -lt "$LIMIT" ] || die "the package takes $size bytes, $LIMIT is the limit: leave the compiler out by --no-nvrtc"
mkdir -p "$(dirname "$out")"
mv "$work/out.tar" "$out"
say "written: $out, $size bytes of $LIMIT"
