#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and no network: checks every kernel and schedule, then times kernels and full-size steps beside PyTorch.
#
#   run.sh [check] [ranks] [kernels] [steps] [peers] [webgpu]   without a name: all six, in that order; each keeps what the others wrote
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
    check|ranks|kernels|steps|peers|webgpu) stages+=("$1") ;;
    --device) device=${2:?--device needs cuda or cpu}; shift ;;
    --out) out=${2:?--out needs a folder}; shift ;;
    --rounds) rounds=${2:?--rounds needs a number}; shift ;;
    --group) group=(--group "${2:?--group needs a name}"); shift ;;
    *) die "unknown argument '$1'; there are check ranks kernels steps peers webgpu --device --out --rounds --group" ;;
  esac
  shift
done
case "$device" in cuda|cpu) ;; *) die "no device is called '$device' here: cuda, or cpu for a dry run" ;; esac
[ ${#stages[@]} -gt 0 ] || stages=(check ranks kernels steps peers webgpu)

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
  for program in omchat test_ranks; do
    [ -e "$root/bin/$program.bin" ] || continue
    printf '#!/bin/sh\nexport CUDA_PATH="%s" LD_LIBRARY_PATH="%s${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"\nexec "%s" "$@"\n' \
      "$root/cuda" "$lib" "$root/bin/$program.bin" >"$root/bin/$program"
    chmod +x "$root/bin/$program"
  done
  OMCHAT="$root/bin/omchat"
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

# begin HOW FILE COMMAND...: that command as two ranks that exchange so, their processes in `pids`; they say what they say in FILE.0, FILE.1,
# FILE.log0 and FILE.log1. GPUs that are not two are shared.
begin() {
  local how=$1 file=$2 rank each port=$((20000 + RANDOM % 20000)); shift 2
  pids=()
  for rank in 0 1; do
    each=(DEVICE="$device" EXCHANGE="$how" RANK=$rank WORLD_SIZE=2 LOCAL_RANK=$rank MASTER_ADDR=127.0.0.1 MASTER_PORT=$port)
    # NCCL takes ranks with different names as of different machines, which may have the same GPU.
    [ "$gpus" -ge 2 ] || each+=(NCCL_HOSTID="rank$rank")
    # What NCCL_DEBUG asks for would stand among the answers.
    env "${each[@]}" NCCL_DEBUG_FILE="$file.nccl$rank" timeout -k 5 120 "$@" >"$file.$rank" 2>"$file.log$rank" & pids+=($!)
  done
}
# two HOW FILE COMMAND...: as `begin`, and waits for both.
two() {
  local rank failed=0
  begin "$@"
  for rank in 0 1; do wait "${pids[rank]}" || { failed=1; say "failed: rank $rank by $1: $(tail -n 1 "$2.log$rank")"; }; done
  [ $failed = 0 ] || wrong=1
  return $failed
}
# killed HOW FILE: rank 1 of a program without end dies; rank 0 must name it and end.
killed() {
  local child i
  begin "$1" "$2" "$ranks" steps
  for ((i = 0; i < 600; i++)); do ! grep -qs 'round 16$' "$2.1" || break; sleep 0.1; done
  child=$(sed -n 's/.*rank 1 of 2 is process //p' "$2.1")
  i=$(date +%s%N)
  if [ -z "$child" ] || ! kill -9 "$child"; then wrong=1; say "failed: rank 1 did not start by $1: $(tail -n 1 "$2.log1")"
  elif ! wait "${pids[0]}" && grep -q 'rank 1' "$2.log0"; then
    say "ranks: rank 1 killed with -9 while exchanging by $1; rank 0 ended after $((($(date +%s%N) - i) / 1000000)) ms: $(grep -m 1 'rank 1' "$2.log0")"
  else wrong=1; say "failed: rank 1 was killed, and rank 0 says by $1: $(tail -n 2 "$2.log0")"; fi
  { wait "${pids[1]}" || true; } 2>/dev/null
}
# A recipe that trains all of the decoder for eight steps.
lesson() {
  for ((i = 0; i < 900; i++)); do printf 'word %d of the story. ' $((i * 7 % 31)); done >"$shards/story.txt"
  printf '%s\n' "model = \"$root/models/tiny\"" 'seed = 3' '[data.story]' "path = \"$shards/story.txt\"" 'layout = "text"' \
    'labels = "pretrain"' '[[stage]]' 'name = "all"' 'context = 256' 'mix = { story = 100 }' 'train = { decoder = 1e-3 }' \
    'batch_tokens = 512' 'steps = 8' >"$shards/lesson.toml"
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
      if [ "$device" = cpu ]; then gpus=0 ways=(auto host); else gpus=$(nvidia-smi -L | grep -c GPU) ways=(nccl host); fi
      nccl=$("$PYTHON" -c 'import nvidia.nccl as n; print(list(n.__path__)[0])' 2>/dev/null || true)/lib/libnccl.so.2
      if [ -z "${OMCHAT_NCCL_LIB:-}" ] && [ -e "$nccl" ]; then export OMCHAT_NCCL_LIB="$nccl"; fi
      if [ "$device" = cuda ] && ! "$OMCHAT" doctor --quick | grep -Eq '^nccl +[0-9]'; then
        say "ranks: skipped: $("$OMCHAT" doctor --quick | grep '^nccl')"; continue
      fi
      ranks="$(dirname "$OMCHAT")/test_ranks"
      if [ -x "$ranks" ]; then
        ! two "${ways[0]}" "$shards/all" "$ranks" world 7 || say "ranks: $(grep -h 'every collective' "$shards/all.0")"
        killed "${ways[0]}" "$shards/dead"
      else say "ranks: skipped: collectives by themselves, and a rank killed: no $ranks (pack.sh builds it)"; fi
      for ((i = 0; i < 120; i++)); do printf 'Word %d of many. ' $i; done >"$shards/question"
      lesson
      for how in "${ways[@]}"; do
        two "$how" "$shards/chat-$how" "$OMCHAT" chat --model "$root/models/tiny" --device "$device" --exchange "$how" --temperature 0 \
          --max-new-tokens 12 --prompt-file "$shards/question" || continue
        two "$how" "$shards/train-$how" "$OMCHAT" train --device "$device" --exchange "$how" --ring 2 --config "$shards/lesson.toml" \
          --out "$shards/run-$how" || continue
        say "ranks: $(grep -h 'exchanged by rank 0' "$shards/train-$how.0" "$shards/train-$how.log0" | head -n 1)"
      done
      if [ -s "$shards/chat-${ways[0]}.0" ] && cmp -s "$shards/chat-${ways[0]}.0" "$shards/chat-${ways[1]}.0"; then
        say "ranks: two processes ($device, GPUs: $gpus) answer the same by ${ways[0]} and by ${ways[1]}"
      else wrong=1; say "failed: two ranks answer otherwise by ${ways[0]} than by ${ways[1]}"; fi
      "$PYTHON" - "$shards/run-${ways[0]}/log.jsonl" "$shards/run-${ways[1]}/log.jsonl" <<'END' || wrong=1
import json, sys
a, b = ([[json.loads(line)[k] for k in ("loss", "norm")] for line in open(f)] for f in sys.argv[1:])
far = max(abs(x - y) / abs(y) for p, q in zip(a, b) for x, y in zip(p, q))
good = len(a) == len(b) == 8 and far < 1e-3
print(f"omchat: {'ranks' if good else 'failed'}: {len(a)} and {len(b)} steps, losses and norms differ by {far:.1e}; losses {[round(x, 4) for x, _ in a]}")
sys.exit(not good)
END
      rm -rf "$shards"/* ;;
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
      say "steps: $(rows "$base-steps.jsonl") rows"
      # What it is worth to ask for weights ahead of their reader: the same decode without.
      if [ "$device" = cuda ]; then
        OMCHAT_PREFETCH=off bench "$base-steps-no-prefetch.jsonl" decode --model omchat-13b --tokens 1024
        say "steps: $(rows "$base-steps-no-prefetch.jsonl") row without prefetch"
      fi ;;
    peers)
      if ! "$PYTHON" -c 'import torch, transformers, safetensors' 2>"$out/.python"; then
        say "peers: skipped: $PYTHON: $(tail -n 1 "$out/.python"); name a Python that has them by PYTHON=…"; wrong=1; rm -f "$out/.python"; continue
      fi
      rm -f "$out/.python"
      "$PYTHON" "$root/benches/peers/peers.py" measure --omchat "$OMCHAT" --commit "$commit" --list "$list" --device "$device" \
        --rounds "$rounds" "${group[@]}" --out "$base-peers.json" || { wrong=1; say "failed: the side-by-side bench"; } ;;
    webgpu)
      # The same machine through Vulkan: odd sizes, then attention by tiles beside the plain kernel.
      if ! grep -Eq '^wgpu +present' <<<"$doctor"; then
        say "webgpu: skipped: $(grep -E '^wgpu ' <<<"$doctor" || echo 'the command was built without it'); pack.sh --webgpu builds it in"; continue
      fi
      tokens=4096; [ "$device" = cuda ] || tokens=256
      vulkan() { "$OMCHAT" bench kernels --device wgpu --all --bare --json "$@" || { wrong=1; say "failed: omchat bench kernels --device wgpu $*"; }; }
      vulkan --time 1 "${small[@]}" --only einsum --only attention/f32/causal >"$base-webgpu.jsonl"
      say "webgpu: $(rows "$base-webgpu.jsonl") kernels and schedules at odd sizes, $(grep -c '"checked":false' "$base-webgpu.jsonl" || true) wrong"
      vulkan --model mini --tokens "$tokens" --only attention/f32/causal >"$shards/attention.jsonl"
      cat "$shards/attention.jsonl" >>"$base-webgpu.jsonl"
      "$PYTHON" - "$shards/attention.jsonl" <<'END' || wrong=1
import json, sys
rows = [r for r in map(json.loads, open(sys.argv[1])) if r["checked"]]
plain = min((r["median_s"] for r in rows if r["kernel"] == "attention.plain"), default=None)
best = min((r for r in rows if r["kernel"] != "attention.plain"), key=lambda r: r["median_s"], default=None)
if plain is None or best is None:
    print("omchat: failed: webgpu: attention has no two right kernels"); sys.exit(1)
print(f"omchat: webgpu: {best['name']}: {best['median_s'] * 1e3:.2f} ms by {best['kernel']} [{best['schedule']}], "
      f"{plain * 1e3:.2f} by attention.plain, {plain / best['median_s']:.1f} times as long (bar 5 / 20)")
END
      ;;
  esac
done

parts=()
for part in "$base-peers.json" "$base-kernels.jsonl" "$base-steps.jsonl"; do [ -s "$part" ] && parts+=("$part"); done
if [ ${#parts[@]} -gt 0 ]; then
  "$PYTHON" "$root/benches/peers/peers.py" table "${parts[@]}" >"$base.md" && say "written: $base.md"
fi
exit $wrong
