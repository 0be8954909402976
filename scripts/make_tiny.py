"""Writes models/tiny: a small RANDOM OmChat and a small video, so that the whole computation runs with no download.

python make_tiny.py        needs numpy, safetensors, tokenizers, pillow; ffmpeg for ball.mp4
The layout is OmChat-2.0's (InternViT with qk-norm, projector, Qwen2-style decoder), stored as f16. Nothing is trained.
"""
import json, math, shutil, subprocess
from pathlib import Path
import numpy as np
from PIL import Image, ImageDraw
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

OUT = Path(__file__).resolve().parent.parent / "models" / "tiny"
TILE, PATCH = 56, 14
V = dict(hidden=96, layers=3, heads=3, mlp=192)
T = dict(hidden=128, layers=3, heads=4, kv=2, mlp=320, vocab=480, theta=1e6)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = """system user assistant patch: You are a helpful assistant. What is in this picture? What happens in this video?
Describe the image frame by frame: first, then, next, at last. A red ball falls, bounces and rolls over a green floor.
The blue sky is above the white house and the small dog runs to the left while the old man walks to the right.
I see two people, one car, three birds, a tree near the water, and a sign with the words open and closed.
It moves up, it moves down, it turns, it stops. The light is bright; the shadow is dark. There is nothing else to see here.
"""


def weights(rng):
    draw = lambda *shape: rng.standard_normal(shape) * (1.2 / math.sqrt(max(shape[-1] if len(shape) > 1 else 16, 16)))
    scale = lambda n: 0.4 + 0.8 * rng.random(n)
    h, m, n = V["hidden"], V["mlp"], (TILE // PATCH) ** 2
    e = "vision_tower.embeddings."
    w = {e + "class_embedding": draw(1, 1, h), e + "position_embedding": draw(1, n + 1, h),
         e + "patch_embedding.weight": draw(h, 3 * PATCH * PATCH).reshape(h, 3, PATCH, PATCH), e + "patch_embedding.bias": draw(h)}
    for i in range(V["layers"]):
        p = f"vision_tower.encoder.layers.{i}."
        for name in ("norm1.weight", "norm2.weight", "ls1", "ls2", "attn.q_norm.weight", "attn.k_norm.weight"): w[p + name] = scale(h)
        w |= {p + "attn.qkv.weight": draw(3 * h, h), p + "attn.proj.weight": draw(h, h), p + "attn.proj.bias": draw(h),
              p + "mlp.fc1.weight": draw(m, h), p + "mlp.fc1.bias": draw(m), p + "mlp.fc2.weight": draw(h, m), p + "mlp.fc2.bias": draw(h)}
    d, m, size = T["hidden"], T["mlp"], T["hidden"] // T["heads"]
    for i, width in (1, h), (2, d):
        w |= {f"multi_modal_projector.linear_{i}.weight": draw(d, width), f"multi_modal_projector.linear_{i}.bias": draw(d)}
    w["language_model.model.embed_tokens.weight"] = draw(T["vocab"], d)
    for i in range(T["layers"]):
        p = f"language_model.model.layers.{i}."
        w |= {p + "input_layernorm.weight": scale(d), p + "post_attention_layernorm.weight": scale(d), p + "self_attn.o_proj.weight": draw(d, d)}
        for name, rows in ("q", d), ("k", T["kv"] * size), ("v", T["kv"] * size):
            w |= {f"{p}self_attn.{name}_proj.weight": draw(rows, d), f"{p}self_attn.{name}_proj.bias": draw(rows)}
        w |= {p + "mlp.gate_proj.weight": draw(m, d), p + "mlp.up_proj.weight": draw(m, d), p + "mlp.down_proj.weight": draw(d, m)}
    w |= {"language_model.model.norm.weight": scale(d), "language_model.lm_head.weight": draw(T["vocab"], d)}
    return w


def tokenizer():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    t.train_from_iterator(TEXT.splitlines(keepends=True) * 4, trainers.BpeTrainer(
        vocab_size=T["vocab"], special_tokens=SPECIAL, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return t


def readable(t, i):
    """Whether token i is a word or a piece of one, alone: half a UTF-8 character or a control code is not."""
    s = t.decode([i], skip_special_tokens=False)
    return i == t.token_to_id("<|im_end|>") or (i >= len(SPECIAL) and len(s) > 1 and s.isascii() and s.isprintable())


def ball():
    """24 frames: a red ball falls from the left, bounces twice and leaves to the right."""
    frames = []
    for i in range(24):
        im = Image.new("RGB", (128, 96), (150, 190, 235))
        d = ImageDraw.Draw(im)
        d.rectangle((0, 76, 127, 95), fill=(70, 140, 70))
        t = i / 23
        x = 8 + 112 * t
        y = 66 - 56 * abs(math.cos(2.5 * math.pi * t)) * (1 - 0.5 * t)
        d.ellipse((x - 14 + 6 * (y / 66), 78, x + 14 - 6 * (y / 66), 83), fill=(50, 105, 50))
        d.ellipse((x - 9, y - 9, x + 9, y + 9), fill=(205, 40, 40))
        d.ellipse((x - 5, y - 6, x - 1, y - 2), fill=(245, 170, 160))
        frames.append(im.quantize(32, dither=Image.Dither.NONE))
    frames[0].save(OUT / "ball.gif", save_all=True, append_images=frames[1:], duration=80, loop=0)
    if shutil.which("ffmpeg"):
        subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", OUT / "ball.gif", "-vf", "fps=12.5", "-c:v", "libx264", "-profile:v", "baseline",
                        "-pix_fmt", "yuv420p", "-threads", "1", "-bitexact", "-movflags", "+faststart", OUT / "ball.mp4"], check=True)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    t = tokenizer()
    assert t.get_vocab_size() == T["vocab"], t.get_vocab_size()
    w = weights(np.random.Generator(np.random.PCG64(7)))
    # A token that is no readable text gets a zero row, so its logit is 0 and one of the others always beats it.
    w["language_model.lm_head.weight"][[i for i in range(T["vocab"]) if not readable(t, i)]] = 0
    save_file({k: np.ascontiguousarray(v, np.float16) for k, v in sorted(w.items())}, OUT / "model.safetensors", metadata={"format": "pt"})
    (OUT / "model.safetensors").chmod(0o644)
    t.save(str(OUT / "tokenizer.json"))
    pins = [(TILE * x, TILE * y) for x, y in [(2, 2), (1, 2), (2, 1), (1, 3), (3, 1)]]
    write = lambda name, value: (OUT / name).write_text(json.dumps(value, indent=2) + "\n")
    end, pad = t.token_to_id("<|im_end|>"), t.token_to_id("<|endoftext|>")
    write("config.json", dict(
        architectures=["OmChatForConditionalGeneration"], model_type="omchat", ignore_index=-100, image_token_index=-200,
        projector_hidden_act="gelu", vision_feature_layer=-1, vision_feature_select_strategy="default",
        image_grid_pinpoints=str(pins), tie_word_embeddings=False, torch_dtype="float16",
        vision_config=dict(model_type="intern_vit_6b", hidden_size=V["hidden"], num_hidden_layers=V["layers"],
                           num_attention_heads=V["heads"], intermediate_size=V["mlp"], image_size=TILE, patch_size=PATCH,
                           layer_norm_eps=1e-6, hidden_act="gelu", norm_type="rms_norm", qk_normalization=True, qkv_bias=False),
        text_config=dict(model_type="qwen2", hidden_size=T["hidden"], num_hidden_layers=T["layers"], num_attention_heads=T["heads"],
                         num_key_value_heads=T["kv"], intermediate_size=T["mlp"], vocab_size=T["vocab"], rms_norm_eps=1e-6,
                         rope_theta=T["theta"], max_position_embeddings=131072, hidden_act="silu", tie_word_embeddings=False)))
    write("tokenizer_config.json", dict(eos_token="<|im_end|>", pad_token="<|endoftext|>"))
    write("generation_config.json", dict(bos_token_id=end, eos_token_id=end, pad_token_id=pad))
    write("preprocessor_config.json", dict(image_mean=[.485, .456, .406], image_std=[.229, .224, .225], size=TILE, resample=3))
    ball()
    print(f"{OUT}: {sum(v.size for v in w.values()):,} parameters,", {p.name: p.stat().st_size for p in sorted(OUT.iterdir())})


if __name__ == "__main__":
    main()
