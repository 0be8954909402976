#!/usr/bin/env bash
# The error of a training step's gradients against the number of ranks, as processes over TCP on this machine: a table to
# stdout, a picture to OUT. One step of models/tiny in f32 over one document of 256 positions; each gradient against one
# process's.
#   scripts/experiments/ring_error_processes.sh [OUT]      docs/ring/processes.png if not given
# The command `omchat` is taken from OMCHAT, else built.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=scripts/common.sh
. scripts/common.sh
out=${1:-docs/ring/processes.png}
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}"
venv scenes numpy==2.4.6 pillow==13.0.0
if [ -z "${OMCHAT:-}" ]; then
    cargo build -q --bin omchat
    OMCHAT="$CARGO_TARGET_DIR/debug/omchat"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$OMCHAT" scenes --kind haystack --seed 5 --sentences 200 --out "$work"
cat >"$work/recipe.toml" <<RECIPE
model = "$PWD/models/tiny"
seed = 3
[data.text]
path = "haystack.txt"
layout = "text"
labels = "pretrain"
[[stage]]
name = "all"
context = 256
mix = { text = 100 }
train = { decoder = 1e-3 }
batch_tokens = 256
steps = 1
checkpoint_every = 1
RECIPE
"$OMCHAT" train --config "$work/recipe.toml" --out "$work/1" --device cpu >&2
port=${MASTER_PORT:-29500}
for ranks in 2 4 8 16; do
    all=()
    for rank in $(seq 0 $((ranks - 1))); do
        RANK=$rank WORLD_SIZE=$ranks MASTER_ADDR=127.0.0.1 MASTER_PORT=$((port + ranks)) \
            "$OMCHAT" train --config "$work/recipe.toml" --ring "$ranks" --out "$work/$ranks" --device cpu >"$work/$ranks.$rank.log" 2>&1 &
        all+=($!)
    done
    for one in "${all[@]}"; do wait "$one" || { tail -n 3 "$work/$ranks".*.log >&2; exit 1; }; done
done
mkdir -p "$(dirname "$out")"
"$venv/bin/python" scripts/experiments/ring_error_processes.py "$work" "$out"
