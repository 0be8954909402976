#!/usr/bin/env bash
# A chain of contexts on passkeys: data, a model from nothing, six stages, and each stage's model judged at every length.
#   scripts/experiments/passkey.sh [WORK [NEEDLES]]
# WORK (default: .omchat/passkey) is made; a run in it that was stopped goes on. NEEDLES (default: 20) are asked at each length
# and depth. The command `omchat` is taken from OMCHAT, else built. Tables and heat maps: WORK/eval/STAGE.
# One core is enough, and faster than two that are shared with other work: launches are small.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:-.omchat/passkey} needles=${2:-20}
if [ -z "${OMCHAT:-}" ]; then
    cargo build
    OMCHAT=$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')/debug/omchat
fi
mkdir -p "$work"
work=$(cd "$work" && pwd)
one=()
if command -v taskset >/dev/null; then one=(taskset -c "${CORE:-0}"); fi

# draw NAME SEED COUNT SENTENCES NEEDLES TURNS [DEPTH]
draw() {
    local depth=()
    if [ -n "${7:-}" ]; then depth=(--depth "$7"); fi
    [ -f "$work/data/$1/data.jsonl" ] || "$OMCHAT" scenes --kind passkeys --seed "$2" --count "$3" --sentences "$4" --needles "$5" --turns "$6" ${depth[@]+"${depth[@]}"} --out "$work/data/$1"
}
draw 128 1 4000 0-4 1 1
draw 256 2 20000 4-18 1 1
draw 1k 4 4000 40-82 1 1
draw 4k 5 1500 220-395 1 1
draw 16k 6 150 1400-1745 1 1
draw end 9 4000 20-200 1 1 1
draw any 8 600 1400-1850 1 1
draw start 10 300 1400-1850 1 1 0
draw any2 11 600 1400-1850 1 1
draw start2 12 600 1400-1850 1 1 0
"$OMCHAT" scenes --kind haystack --seed 7 --sentences 2000 --out "$work"
[ -f "$work/start/model.safetensors" ] || "$OMCHAT" init --config models/passkey --seed 7 --out "$work/start"

sed "s|\.\./\.omchat/passkey|$work|" recipes/passkey.toml >"$work/recipe.toml"
resume=()
if [ -d "$work/run/checkpoints" ]; then resume=(--resume); fi
[ -d "$work/run/stages/far" ] || "${one[@]}" "$OMCHAT" train --config "$work/recipe.toml" --out "$work/run" --device cpu ${resume[@]+"${resume[@]}"}

for stage in 256 1k 4k 16k ends far; do
    "${one[@]}" "$OMCHAT" eval needle --model "$work/run/stages/$stage" --device cpu --haystack "$work/haystack.txt" \
        --lengths 256,1K,4K,16K --depths 0,25,50,75,100 --seeds "$needles" --out "$work/eval/$stage"
done
