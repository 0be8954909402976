#!/usr/bin/env bash
# Trains `needle` from nothing by recipes/needle.toml: weights drawn from a seed, faces fetched, all stages.
#
#   scripts/needle.sh [DIR]      the run's folder; runs/needle if not given. A run that was stopped goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

run="${1:-runs/needle}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}"
if [ -z "${XDG_RUNTIME_DIR:-}" ]; then XDG_RUNTIME_DIR=$(mktemp -d); export XDG_RUNTIME_DIR; fi
scripts/scenes.sh faces
mkdir -p .omchat
ln -sfn "$OMCHAT_HOME/scenes/faces.png" .omchat/faces.png
say "building into $CARGO_TARGET_DIR"
cargo build --bin omchat
omchat="$CARGO_TARGET_DIR/debug/omchat"
[ -f .omchat/needle-0/model.safetensors ] || "$omchat" init --config models/needle --seed 7 --out .omchat/needle-0
resume=()
if [ -d "$run/checkpoints" ]; then resume=(--resume); fi
"$omchat" train --config recipes/needle.toml --out "$run" --device cpu "${resume[@]}"
