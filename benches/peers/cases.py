"""The rows of the table: what is run, at which sizes, and the bars of each ratio.

A case is a plain dict that crosses to the workers as JSON. `name` is the row's name in `omchat bench`, which is how the two
sides are joined; `amount` is FLOPs or items of one run and `unit` what a second's worth of them is called.
"""

import json
import os
import pathlib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SIZE = {"f32": 4, "bf16": 2, "f16": 2}


def matmul(m, n, k, dtype, what=None, model=None):
    return dict(group="matmul", suite="kernels", op="matmul", dtype=dtype, m=m, n=n, k=k, model=model,
                name=f"einsum/{dtype}/nt/m{m}n{n}k{k}", what=what or f"einsum {m}×{n}×{k}",
                amount=2 * m * n * k, unit="FLOP/s")


def attention(h, g, t, d, dtype, backward=False):
    """Causal, of as many queries as keys. Our backward is two launches, which are added."""
    shape, pairs = f"{dtype}/causal/h{h}g{g}t{t}s{t}d{d}", t * (t + 1) // 2
    rows = [f"attention_dq/{shape}", f"attention_dkv/{shape}"] if backward else [f"attention/{shape}"]
    return dict(group="attention", suite="kernels", op="attention_backward" if backward else "attention", dtype=dtype,
                h=h, g=g, t=t, d=d, name=f"attention_backward/{shape}" if backward else rows[0], rows=rows, tokens=t,
                config=dict(hidden_size=h * g * d, num_attention_heads=h * g, num_key_value_heads=h),
                what=f"attention {'backward' if backward else 'forward'}, causal, {h}×{g} heads of {d}, {t} tokens",
                amount=(10 if backward else 4) * h * g * pairs * d, unit="FLOP/s")


def loss(t, v, c, dtype):
    return dict(group="loss", suite="kernels", op="linear_cross_entropy", dtype=dtype, t=t, v=v, c=c, tokens=t,
                config=dict(hidden_size=c, vocab_size=v, num_attention_heads=c // 64, num_key_value_heads=c // 64),
                name=f"linear_cross_entropy/{dtype}/t{t}c{c}v{v}",
                what=f"linear and cross entropy, {t} tokens × {v} words of {c}", amount=2 * t * v * c, unit="FLOP/s")


def whole(suite, model, dtype, tokens):
    about = {"prefill": f"prefill of {tokens} tokens", "decode": f"decode at {tokens} tokens",
             "vision": f"{tokens} tiles through tower and projector"}[suite]
    amount = 1 if suite == "decode" else tokens
    return dict(group="model", suite=suite, op=suite, dtype=dtype, model=model, tokens=tokens, folder=folder(model),
                name=f"{suite}/{model}/{dtype}/{'n' if suite == 'vision' else 't'}{tokens}", what=f"`{model}` {about}",
                amount=amount, unit="tiles/s" if suite == "vision" else "tokens/s")


def folder(model):
    """Where a model's files are, or None: then the workers draw its weights."""
    if model == "tiny":
        return str(ROOT / "models/tiny")
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    home = os.environ.get("OMCHAT_HOME") or os.path.join(data, "omchat")
    path = os.path.join(home, model)
    return path if os.path.isfile(os.path.join(path, "model.safetensors")) else None


def config(model):
    """text_config and vision_config of a model, as its config.json has them."""
    where = folder(model)
    if where:
        return json.loads((pathlib.Path(where) / "config.json").read_text())
    presets = json.loads((HERE / "presets.json").read_text())
    if model not in presets:
        raise SystemExit(f"the files of {model} are not here: scripts/{model}.sh makes them")
    return presets[model]


def products(model, rows, dtype):
    """Products of a decoder: into and out of the MLP over a chunk and over one token, out of it for 64 tokens, logits."""
    c = config(model)["text_config"]
    wide, inner, words = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    shapes = [(f"{word}, {count} token{'s' * (count > 1)}", count, n, k) for count in (rows, 1)
              for word, n, k in [("into the MLP", inner, wide), ("out of it", wide, inner)]]
    shapes += [("out of it, 64 tokens", 64, wide, inner), ("logits, 1 token", 1, words, wide)]
    return [matmul(m, n, k, dtype, f"`{model}` {word}: {m}×{n}×{k}", model) for word, m, n, k in shapes]


def cpu():
    squares = [matmul(n, n, n, "f32") for n in (512, 1024, 2048)]
    seen = [attention(h, g, t, d, "f32", back) for h, g, d in [(3, 3, 64), (2, 2, 128)] for back in (False, True)
            for t in (1024, 4096, 8192)]
    models = [whole("prefill", "tiny", "f32", 1024), whole("decode", "tiny", "f32", 1024),
              whole("vision", "tiny", "f32", 4), whole("vision", "mini", "f32", 4)]
    models += [whole(s, "mini", d, 1024) for d in ("f32", "bf16") for s in ("prefill", "decode")]
    # As many words as OmChat has. 8K tokens of them take PyTorch 10 GB in f32 and minutes: a chunk here, and `mini`'s width.
    return squares + products("mini", 256, "f32") + seen + [loss(256, 152064, 576, "f32")] + models


def cuda():
    squares = [matmul(n, n, n, "bf16") for n in (2048, 4096, 8192)]
    seen = [attention(h, g, t, d, "bf16", back) for h, g, d in [(4, 7, 128), (4, 8, 64)] for back in (False, True)
            for t in (1024, 4096, 8192)]
    models = [whole("prefill", "omchat-13b", "bf16", 8192), whole("decode", "omchat-13b", "bf16", 1024),
              whole("vision", "omchat-13b", "bf16", 4), whole("vision", "omchat-8b", "bf16", 4)]
    return squares + products("omchat-13b", 2048, "bf16") + seen + [loss(2048, 152064, 3584, "bf16")] + models


def dry():
    """Something small of every kind, to see that all works."""
    return [matmul(512, 512, 512, "f32"), attention(1, 2, 64, 32, "f32"), attention(1, 2, 64, 32, "f32", True),
            loss(32, 480, 128, "f32"), whole("prefill", "tiny", "f32", 64), whole("decode", "tiny", "f32", 64),
            whole("vision", "tiny", "f32", 4)]


LISTS = {"cpu": cpu, "cuda": cuda, "dry": dry}

# (group, what must be in the row's text, device, peer): the least ratio to accept and the aim.
BARS = [
    ("matmul", "einsum", "cpu", "torch", 0.6, 1.0),
    ("model", "`mini` prefill", "cpu", "torch", 0.7, 1.3),
    ("model", "`mini` decode", "cpu", "torch", 1.5, 3.0),
    ("model", "`mini` decode", "cpu", "candle", 1.5, 3.0),
    ("matmul", "", "cuda", "torch", 0.5, 0.9),
    ("attention", "of 128, 8192 tokens", "cuda", "torch", 0.5, 0.9),
    ("model", "prefill", "cuda", "torch", 0.6, 1.1),
    ("model", "tiles", "cuda", "torch", 0.6, 1.1),
]


def bar(row, device, peer):
    """(least, aim) of a row's ratio, or None."""
    # On a CPU einsums of a model's shapes have none, and a prompt has one in f32: PyTorch has matrix units for bf16 there.
    bare = device == "cpu" and ("matmul" == row["group"] and "`" in row["what"] or
                                "prefill" in row["what"] and row["dtype"] != "f32")
    for group, text, on, whom, least, aim in BARS:
        if group == row["group"] and text in row["what"] and on == device and whom == peer and not bare:
            return least, aim
    return None
