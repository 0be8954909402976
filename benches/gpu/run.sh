#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and no network: checks every kernel and schedule, then times kernels and full-size steps beside PyTorch.
#
#   run.sh [check] [ranks] [kernels] [steps] [peers]      without a name: all five, in that order; each keeps what the others wrote
#     --device cuda|cpu    cpu: a dry run on small shapes
#     --out DIR            where the results go (results/ beside this script)
#     --rounds N           rounds of `peers` (5)
#     --group NAME         of `peers`: matmul, attention, loss or model alone
#
# It runs from the unpacked package of pack.sh, or from a checkout. OMCHAT names the command and PYTHON a Python with torch and
# transformers, where they are not the package's and `python3`. Code 2: the machine lacks something; 1: a kernel is wrong or a stage failed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
say() { printf 'omchat: %s\n' "$*"; }
die() { printf 'omchat: %s\n' "$*" >&2; exit 2; }

device=cuda out="$here/results" rounds=5 group=() stages=()
while [ $# -gt 0 ]; do
  case "$1" in
    check|ranks|kernels|steps|peers) stages+=("$1") ;;
    --device) device=${2:?--device needs cuda or cpu}; shift ;;
    --out) out=${2:?--out needs a folder}; shift ;;
    --rounds) rounds=${2:?--rounds needs a number}; shift ;;
    --group) group=(--group "${2:?--group needs a name}"); shift ;;
    *) die "unknown argument '$1'; there are check ranks kernels steps peers --device --out --rounds --group" ;;
  esac
  shift
done
case "$device" in cuda|cpu) ;; *) die "no device is called '$device' here: cuda, or cpu for a dry run" ;; esac
[ ${#stages[@]} -gt 0 ] || stages=(check ranks kernels steps peers)

# The GPU first: without one nothing is worth unpacking.
if [ "$device" = cuda ]; then
  command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU ||
    die "no NVIDIA GPU on this machine (nvidia-smi -L lists none); run.sh --device cpu is a dry run"
fi

# Unpacks once; in a checkout the files are there already.
if [ -f "$here/load.tar.xz" ]; then
  root="$here/load"
  if [ ! -f "$root/.whole" ]; then
    say "unpacking into $root"
    mkdir -p "$root"
    tar -C "$root" -xJf "$here/load.tar.xz" 2>/dev/null ||
      python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$here/load.tar.xz" "$root" ||
      die "neither tar nor python3 could unpack $here/load.tar.xz: xz is missing"
    touch "$root/.whole"
  fi
else
  root=$(cd "$here/../.." && pwd)
  [ -d "$root/benches/peers" ] || die "$here/load.tar.xz is missing: unpack the whole package"
fi

PYTHON=${PYTHON:-python3}
torch_lib() { "$PYTHON" -c 'import nvidia.cu13 as n; print(list(n.__path__)[0])' 2>/dev/null || true; }

# The command, with NVRTC and its headers: the package's, PyTorch's, or those of CUDA_PATH. PyTorch's own process sees none of it.
if [ -z "${OMCHAT:-}" ]; then
  [ -x "$root/bin/omchat.bin" ] || die "there is no command: name one by OMCHAT=…"
  lib="$root/cuda/lib"
  [ -e "$lib/libnvrtc.so.13" ] || lib="$(torch_lib)/lib"
  [ -e "$lib/libnvrtc.so.13" ] || lib="${CUDA_PATH:-/usr/local/cuda}/lib64"
  if [ "$device" = cuda ] && ! compgen -G "$lib/libnvrtc.so*" >/dev/null; then
    die "no NVRTC: not in the package, not in PyTorch's Python, not in $lib; pack without --no-nvrtc"
  fi
  OMCHAT="$root/bin/omchat"
  printf '#!/bin/sh\nexport CUDA_PATH="%s" LD_LIBRARY_PATH="%s${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"\nexec "%s" "$@"\n' \
    "$root/cuda" "$lib" "$root/bin/omchat.bin" >"$OMCHAT"
  chmod +x "$OMCHAT"
fi
version=$("$OMCHAT" --version 2>&1) || die "$OMCHAT does not start: $version"
doctor=$("$OMCHAT" doctor 2>&1) || die "$OMCHAT doctor: $doctor"
grep -Eq "^$device +present" <<<"$doctor" ||
  die "$version finds no device \`$device\`: $(grep -E "^$device " <<<"$doctor" || echo 'it was built without it')"

mkdir -p "$out"
out=$(cd "$out" && pwd)
name=$device
if [ "$device" = cuda ]; then name=$(nvidia-smi --query-gpu=name --format=csv,noheader -i 0 | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9-'); fi
base="$out/$(date +%F)-$name"
commit=$(cat "$root/commit" 2>/dev/null || git -C "$root" describe --always --dirty 2>/dev/null || echo unknown)
printf '%s\n' "$doctor" >"$base-doctor.txt"
if [ "$device" = cuda ]; then nvidia-smi >>"$base-doctor.txt"; list=cuda; sizes=() small=(--model "$root/models/tiny" --tokens 97)
else list=dry; sizes=(--model "$root/models/tiny" --tokens 64) small=(--model "$root/models/tiny" --tokens 17); fi

wrong=0
# bench FILE ARGUMENT...: rows of `omchat bench` into a file; a failure is told and remembered, the rest goes on.
bench() {
  local file=$1; shift
  "$OMCHAT" bench "$@" --device "$device" --json >"$file.part" 2>"$file.log" || { wrong=1; say "failed: omchat bench $*: $(tail -n 1 "$file.log")"; }
  mv "$file.part" "$file"
  [ -s "$file.log" ] || rm -f "$file.log"
}
rows() { grep -c '^{' "$1" || true; }
shards=$(mktemp -d)
trap 'rm -rf "$shards"' EXIT
# check ARGUMENT...: every kernel and schedule at those sizes, into files of `shards`.
check() {
  local names jobs i name only
  mapfile -t names < <("$OMCHAT" bench kernels --device "$device" --list "$@")
  jobs=$(nproc); [ "$jobs" -le 12 ] || jobs=12
  for ((i = 0; i < jobs && i < ${#names[@]}; i++)); do
    only=()
    for ((name = i; name < ${#names[@]}; name += jobs)); do only+=(--only "${names[name]}"); done
    part "$i-$RANDOM" "${@:1:4}" "${only[@]}" &
  done
  wait
  for i in "$shards"/*.failed; do
    if [ -e "$i" ]; then wrong=1; say "failed: $(cat "$i")"; rm "$i"; fi
  done
}
part() {
  local to="$shards/$1"; shift
  "$OMCHAT" bench kernels --all --time 1 --bare --device "$device" --json "$@" >"$to.jsonl" 2>"$to.log" ||
    echo "omchat bench kernels --all $*: $(tail -n 1 "$to.log")" >"$to.failed"
}

# ranked HOW FILE: what rank 0 of two answers to a long question, exchanging so; GPUs that are not two are shared.
ranked() {
  local rank pids=() failed=0 shared=() port=$((20000 + RANDOM % 20000))
  for rank in 0 1; do
    # NCCL takes ranks with different names as of different machines, which may have the same GPU.
    [ "$gpus" -ge 2 ] || shared=(NCCL_HOSTID="rank$rank")
    env "${shared[@]}" RANK=$rank WORLD_SIZE=2 LOCAL_RANK=$rank MASTER_ADDR=127.0.0.1 MASTER_PORT=$port timeout 240 \
      "$OMCHAT" chat --model "$root/models/tiny" --device "$device" --exchange "$1" --temperature 0 --max-new-tokens 12 \
      --prompt-file "$shards/question" >"$2.$rank" 2>"$2.log$rank" & pids+=($!)
  done
  for rank in 0 1; do wait "${pids[rank]}" || { failed=1; say "failed: rank $rank by $1: $(tail -n 1 "$2.log$rank")"; }; done
  return $failed
}

for stage in "${stages[@]}"; do
  case "$stage" in
    check)
      # At odd sizes, which leave no tile full; then, of the real model, heads and rows. Most of it is compiling, so as many processes as
      # there are cores share the rows; one whose device fails takes no other's rows along.
      check "${small[@]}"
      if [ "$device" = cuda ]; then check --model omchat-13b --tokens 333 --only attention --only norm --only rope --only swiglu; fi
      cat "$shards"/*.jsonl >"$base-check.jsonl"
      bad=$(grep -c '"checked":false' "$base-check.jsonl" || true)
      say "check: $(rows "$base-check.jsonl") kernels and schedules at odd sizes, $bad wrong"
      if [ "$bad" != 0 ]; then
        wrong=1
        grep '"checked":false' "$base-check.jsonl" | "$PYTHON" -c '
import json, sys
for line in sys.stdin:
    r = json.loads(line); print("  WRONG", r["name"], r["kernel"], r["schedule"])'
      fi ;;
    ranks)
      # Two processes, by NCCL and through the host: the same answer.
      if [ "$device" = cpu ]; then gpus=0 ways=(host host); else gpus=$(nvidia-smi -L | grep -c GPU) ways=(nccl host); fi
      nccl=$("$PYTHON" -c 'import nvidia.nccl as n; print(list(n.__path__)[0])' 2>/dev/null || true)/lib/libnccl.so.2
      if [ -z "${OMCHAT_NCCL_LIB:-}" ] && [ -e "$nccl" ]; then export OMCHAT_NCCL_LIB="$nccl"; fi
      if [ "$device" = cuda ] && ! "$OMCHAT" doctor --quick | grep -Eq '^nccl +[0-9]'; then
        say "ranks: skipped: $("$OMCHAT" doctor --quick | grep '^nccl')"; continue
      fi
      for ((i = 0; i < 120; i++)); do printf 'Word %d of many. ' $i; done >"$shards/question"
      if ranked "${ways[0]}" "$shards/first" && ranked "${ways[1]}" "$shards/second"; then
        if [ -s "$shards/first.0" ] && cmp -s "$shards/first.0" "$shards/second.0"; then say "ranks: two processes on $gpus GPUs answer the same by ${ways[0]} and by ${ways[1]}"
        else wrong=1; say "failed: two ranks answer otherwise by ${ways[0]} than by ${ways[1]}"; fi
      else wrong=1; fi
      rm -f "$shards"/first* "$shards"/second* "$shards/question" ;;
    kernels)
      bench "$base-kernels.jsonl" kernels --all --time 100 "${sizes[@]}"
      say "kernels: $(rows "$base-kernels.jsonl") rows" ;;
    steps)
      : >"$base-steps.jsonl"
      runs=("prefill tiny 64" "decode tiny 64" "vision tiny 4")
      if [ "$device" = cuda ]; then runs=("prefill omchat-13b 8192" "decode omchat-13b 1024" "vision omchat-13b 4" "vision omchat-8b 4"); fi
      for run in "${runs[@]}"; do
        read -r suite model tokens <<<"$run"
        [ -d "$root/models/$model" ] && model="$root/models/$model"
        more=(); [ "$suite" = vision ] || more=(--tokens "$tokens")
        bench "$base-step.jsonl" "$suite" --model "$model" "${more[@]}"
        cat "$base-step.jsonl" >>"$base-steps.jsonl"; rm -f "$base-step.jsonl"
      done
      say "steps: $(rows "$base-steps.jsonl") rows" ;;
    peers)
      if ! "$PYTHON" -c 'import torch, transformers, safetensors' 2>"$out/.python"; then
        say "peers: skipped: $PYTHON: $(tail -n 1 "$out/.python"); name a Python that has them by PYTHON=…"; wrong=1; rm -f "$out/.python"; continue
      fi
      rm -f "$out/.python"
      "$PYTHON" "$root/benches/peers/peers.py" measure --omchat "$OMCHAT" --commit "$commit" --list "$list" --device "$device" \
        --rounds "$rounds" "${group[@]}" --out "$base-peers.json" || { wrong=1; say "failed: the side-by-side bench"; } ;;
  esac
done

parts=()
for part in "$base-peers.json" "$base-kernels.jsonl" "$base-steps.jsonl"; do [ -s "$part" ] && parts+=("$part"); done
if [ ${#parts[@]} -gt 0 ]; then
  "$PYTHON" "$root/benches/peers/peers.py" table "${parts[@]}" >"$base.md" && say "written: $base.md"
fi
exit $wrong
