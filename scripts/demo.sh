#!/usr/bin/env bash
# `make demo`: answers about a video with the model in the repository, then with real weights where they can be had.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh

scripts/setup.sh build demo
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}"
if [ -z "${XDG_RUNTIME_DIR:-}" ]; then XDG_RUNTIME_DIR=$(mktemp -d); export XDG_RUNTIME_DIR; fi
say "building into $CARGO_TARGET_DIR; a first build takes some minutes"
cargo build --bin omchat
omchat="$CARGO_TARGET_DIR/debug/omchat"

say "needle, the small model in the repository: trained from nothing on rendered scenes"
"$omchat" demo

if scripts/mini.sh && scripts/media.sh bigbuckbunny; then
  say "real weights: SmolLM2-135M and a ViT-S/14"
  "$omchat" chat --model mini "The capital of France is"
  say "a real video through the whole graph (the projector between the two is untrained: the words do not describe it)"
  "$omchat" chat --model mini --video "$OMCHAT_HOME/media/bigbuckbunny.mp4" --frames 4 \
    --max-new-tokens 48 --repetition-penalty 1.3 "What is in this video?"
else
  say "without the mini model: its packages could not be fetched"
fi
