#!/usr/bin/env bash
# Fetches small real pictures for rendered scenes into $OMCHAT_HOME/scenes, with checksums.
#
#   scripts/scenes.sh [faces] [digits]      without a name: faces
#
#   faces    100 faces and 100 pieces of background, 25x25, of the LFW data set (scikit-image's subset)
#   digits   makes recipe/data/digits.png again, which the repository holds already (scikit-learn, BSD)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/common.sh
. "$here/common.sh"

dir="$OMCHAT_HOME/scenes"
src="$cache/scenes"
mkdir -p "$dir" "$src"

# sheet KIND IN OUT: a grey PNG with a picture a row: its label, then its samples.
sheet() {
  venv scenes numpy==2.4.6 pillow==13.0.0 || return 1
  "$venv/bin/python" "$here/scenes_sheet.py" "$@"
}

faces() {
  local out="$dir/faces.png" sha=43db354c733e511c3b049b8c0768859e0bd22aef36c93b4bbc10224ae68b0c15
  if sha256 "$out" "$sha"; then say "found: $out"; return; fi
  venv fetch pip
  from_wheel scikit-image==0.26.0 74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af \
    skimage/data/lfw_subset.npy "$src/lfw_subset.npy"
  sheet faces "$src/lfw_subset.npy" "$out"
  say "made: $out"
}

digits() {
  local out="$here/../recipe/data/digits.png"
  venv fetch pip
  from_wheel scikit-learn==1.9.1 52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df \
    sklearn/datasets/data/digits.csv.gz "$src/digits.csv.gz"
  sheet digits "$src/digits.csv.gz" "$out"
  say "made: $out"
}

if [ $# = 0 ]; then set -- faces; fi
for name in "$@"; do
  case "$name" in
    faces) faces ;;
    digits) digits ;;
    *) die "unknown pictures '$name'; one of: faces digits" ;;
  esac
done
