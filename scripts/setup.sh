#!/usr/bin/env bash
# Brings what a Debian machine with Rust lacks, and says what it found or did. Run it as often as you like.
#
#   scripts/setup.sh [build] [test] [demo] [mpi] [nvrtc]      without a name: build test demo
#
#   build   a C++ toolchain, and LLVM for CubeCL's CPU and CUDA compilers
#   test    a software Vulkan driver for the WGPU tests, ffmpeg for video, iproute2 for ranks on two hosts
#   demo    ffmpeg
#   mpi     Open MPI and libclang, for builds with `--features mpi`: ranks of one run as processes
#   nvrtc   NVIDIA's run-time compiler and disassemblers, to compile CUDA kernels with no GPU
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/common.sh
. "$here/common.sh"

toolchain() {
  command -v cargo >/dev/null || die "no cargo on PATH: install Rust (rust-version in Cargo.toml) first"
  local missing=()
  command -v make >/dev/null || missing+=(make)
  command -v c++ >/dev/null && command -v cc >/dev/null || missing+=(gcc g++ libc6-dev)
  command -v pkg-config >/dev/null || missing+=(pkg-config)
  command -v python3 >/dev/null || missing+=(python3)
  if [ ${#missing[@]} -gt 0 ]; then debian "${missing[@]}" || exit 1; else say "found: $(cargo --version), $(c++ --version | head -n 1)"; fi
}

# CubeCL's build looks for LLVM in this folder and, where the sentinel is missing, fetches its own from the internet.
llvm() {
  local dir="$data/tracel/tracel-llvm-23.1.0-4" prefix
  if [ -e "$dir/.tracel-llvm-installed" ]; then say "found: LLVM for CubeCL in $dir"; return; fi
  venv llvm 'mlc-llvm-static[all]==23.1.1.post0' || { say "no LLVM wheel: CubeCL's build will try to fetch its own"; return; }
  prefix=$("$venv/bin/python" -m mlc_llvm_static.config --prefix)
  mkdir -p "$(dirname "$dir")"
  rm -rf "$dir"
  ln -sfn "$prefix" "$dir"
  touch "$prefix/.tracel-llvm-installed"
  say "installed: LLVM for CubeCL, $dir -> $prefix"
}

ffmpeg_binary() {
  if command -v ffmpeg >/dev/null; then say "found: $(ffmpeg -version | head -n 1 | cut -d' ' -f1-3)"; return; fi
  debian ffmpeg || say "without ffmpeg: video files cannot be read; folders of frames and animated GIF can"
}

vulkan() {
  if ldconfig -p 2>/dev/null | grep -q 'libvulkan\.so\.1' && compgen -G '/usr/share/vulkan/icd.d/*.json' >/dev/null; then
    say "found: a Vulkan driver"; return
  fi
  debian libvulkan1 mesa-vulkan-drivers || say "without a Vulkan driver: the WGPU tests are skipped"
}

# Only root makes hosts of network namespaces.
hosts() {
  if command -v ip >/dev/null; then say "found: $(ip -V)"; return; fi
  debian iproute2 || say "without iproute2: the tests of ranks on two hosts are skipped"
}

# libclang reads mpi.h for the crate `mpi`; any version from 9 will do.
mpi() {
  local missing=()
  command -v mpicc >/dev/null || missing+=(libopenmpi-dev)
  command -v mpirun >/dev/null || missing+=(openmpi-bin)
  if [ -z "${LIBCLANG_PATH:-}" ] && ! compgen -G '/usr/lib/llvm-*/lib/libclang.so*' >/dev/null &&
    ! ldconfig -p 2>/dev/null | grep -q 'libclang[-.0-9]*\.so'; then missing+=(libclang-dev); fi
  if [ ${#missing[@]} -gt 0 ]; then
    debian "${missing[@]}" || { say "without MPI: ranks are threads of one process, not processes"; return 1; }
  else
    say "found: $(mpirun --version | head -n 1)"
  fi
}

nvrtc() {
  venv nvrtc nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85 \
    nvidia-cuda-cuobjdump==13.2.51 nvidia-cuda-nvdisasm==13.2.51 || { say "without NVRTC: the CUDA kernels are not compiled"; return 1; }
  say "found: NVRTC in $venv"
}

if [ $# = 0 ]; then set -- build test demo; fi
for part in "$@"; do
  case "$part" in
    build) toolchain; llvm ;;
    test) vulkan; ffmpeg_binary; hosts ;;
    demo) ffmpeg_binary ;;
    mpi) mpi ;;
    nvrtc) nvrtc ;;
    *) die "unknown part '$part'; one of: build test demo mpi nvrtc" ;;
  esac
done
