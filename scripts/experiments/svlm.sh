#!/usr/bin/env bash
# Token selection on captions of which half are wrong: data, a reference model, three runs of as many steps, a table.
#   scripts/experiments/svlm.sh [WORK [STEPS]]
# WORK (default: .omchat/svlm) must not exist. The command `omchat` is taken from OMCHAT, else built.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:-.omchat/svlm} steps=${2:-400}
if [ -z "${OMCHAT:-}" ]; then
    cargo build
    OMCHAT=$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')/debug/omchat
fi
mkdir -p "$(dirname "$work")" && mkdir "$work"
work=$(cd "$work" && pwd)
draw() { "$OMCHAT" scenes --kind captions --frames 2 --ask what --ask colour --ask count --turns 3 "$@" >/dev/null; }
draw --seed 1 --count 2400 --out "$work/right"
draw --seed 2 --count 2400 --out "$work/source"
draw --seed 3 --count 4800 --out "$work/good"
draw --seed 4 --count 600 --held-out --out "$work/held"
python3 scripts/experiments/svlm.py spoil "$work/source" "$work/wrong" 5
"$OMCHAT" init --config models/needle --seed 7 --out "$work/start"

# recipe NAME STEPS MIX SELECT: a recipe from the first weights.
recipe() {
    sed -e "s|MODEL|$work/start|; s|NAME|$1|; s|STEPS|$2|; s|MIX|$3|; s|^SELECT|$4|" recipes/svlm/recipe.toml >"$work/$1.toml"
}
both='{ right = 50, wrong = 50 }'
losses="$work/losses"
recipe reference $((2 * steps)) '{ good = 100 }' ''
recipe all "$steps" "$both" ''
recipe plus "$steps" "$both" "select = { reference = \"$losses\", ratio = 0.6, score = \"train_minus_ref\" }"
recipe minus "$steps" "$both" "select = { reference = \"$losses\", ratio = 0.6, score = \"ref_minus_train\" }"
recipe held 1 '{ held = 100 }' ''
train() { "$OMCHAT" train --config "$work/$1.toml" --out "$work/run-$1" "${@:2}"; }
held() { "$OMCHAT" score --config "$work/held.toml" --stage held --model "$work/run-$1/stages/$1" --out "$work/held-$1" >"$work/$1.held"; }
train reference
held reference
"$OMCHAT" score --config "$work/plus.toml" --stage plus --model "$work/run-reference/stages/reference"
train all
held all
for arm in plus minus; do
    train $arm --kept "$work/$arm.kept"
    held $arm
done
python3 scripts/experiments/svlm.py table "$work" models/needle | tee "$work/table.md"
