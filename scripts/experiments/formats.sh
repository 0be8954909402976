#!/usr/bin/env bash
# F0 to F4 side by side: the same small model trained from the same first weights in each, judged by held-out scenes.
#   scripts/experiments/formats.sh [WORK [STEPS]]
# F0 to F3 see pictures and videos 80 to 20; F4 is F3's spelling with more videos, as OmChat's is; 50 to 50 is ours.
# WORK (default: .omchat/formats) must not exist. The command `omchat` is taken from OMCHAT, else built.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:-.omchat/formats} steps=${2:-600}
if [ -z "${OMCHAT:-}" ]; then
    cargo build
    OMCHAT=$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')/debug/omchat
fi
mkdir -p "$(dirname "$work")" && mkdir "$work"
work=$(cd "$work" && pwd)
"$OMCHAT" init --config models/needle --seed 7 --out "$work/start"

# recipe FORMAT NAME MIX
recipe() {
    sed -e "s|MODEL|$work/start|; s|FORMAT|$1|; s|NAME|$2|; s|MIX|$3|; s|STEPS|$steps|" recipes/formats/recipe.toml
}
{
    echo "| format | pictures: held-out loss | videos: held-out loss |"
    echo "|---|---|---|"
} >"$work/table.md"
for format in F0 F1 F2 F3 F4; do
    mix='{ pictures = 80, videos = 20 }'
    if [ $format = F4 ]; then mix='{ pictures = 50, videos = 50 }'; fi
    recipe $format train "$mix" >"$work/$format.toml"
    "$OMCHAT" train --config "$work/$format.toml" --out "$work/run-$format"
    row="| $format |"
    for set in pictures videos; do
        recipe $format held "{ held-$set = 100 }" >"$work/$format-$set.toml"
        told=$("$OMCHAT" score --config "$work/$format-$set.toml" --stage held --model "$work/run-$format/stages/train" --out "$work/held-$format-$set")
        row="$row $(echo "$told" | cut -d' ' -f3) |"
    done
    echo "$row" >>"$work/table.md"
done
cat "$work/table.md"
