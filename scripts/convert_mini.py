"""Joins a real vision tower and a real language model into one OmChat folder.

python convert_mini.py TEXT.gguf VISION.onnx OUT_DIR [--dtype float16|float32]
Needs gguf, onnx, numpy, safetensors, tokenizers (scripts/mini.sh installs them).

Text: SmolLM2-135M-Instruct (Llama layout, tied embeddings), dequantized from Q4_1/Q8_0; its tokenizer and chat template.
Vision: a ViT-S/14 of the DINOv2 kind in InternViT-300M's layout (LayerNorm, no qk-norm, biased qkv, layer scale).
OmChat takes the last layer's output with no final norm, so DINOv2's final LayerNorm is left out.
Projector: RANDOM (normal, std 0.02, zero bias, seed 0) until somebody trains it.
"""
import argparse, hashlib, json
from pathlib import Path
import gguf, numpy as np, onnx
from onnx import numpy_helper
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

TILE = 224
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
GRID = [(2, 2), (1, 2), (2, 1), (1, 3), (3, 1), (3, 2), (2, 3), (3, 3)]      # OmChat-2.0's list, in tiles
CONTROL = 3                                                                  # GGUF's token type of special tokens


def text_tensors(reader, field):
    heads = {"attn_q": field("llama.attention.head_count"), "attn_k": field("llama.attention.head_count_kv")}
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    top = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
    out = {}
    for t in reader.tensors:
        w = gguf.dequantize(t.data, t.tensor_type).astype(np.float32).reshape([int(d) for d in reversed(t.shape)])
        if t.name in top:
            name = top[t.name]
        else:
            _, layer, part, _ = t.name.split(".")
            if part in heads:                          # GGUF pairs neighbours (2i, 2i+1); rotate-half pairs (i, i + d/2)
                w = w.reshape(heads[part], -1, 2, w.shape[-1]).swapaxes(1, 2).reshape(w.shape)
            name = f"layers.{layer}.{names[part]}.weight"
        out["language_model.model." + name] = np.ascontiguousarray(w)
    return out


def cubic(size, old):
    """[size, old] weights of bicubic interpolation, a = -0.75, half-pixel centres, edges repeated, no antialiasing."""
    def near(t): return (1.25 * t - 2.25) * t * t + 1                        # |t| <= 1
    def far(t): return ((-0.75 * t + 3.75) * t - 6) * t + 3                  # 1 < |t| < 2
    w = np.zeros((size, old))
    for i in range(size):
        x = (i + 0.5) * old / size - 0.5
        x0 = int(np.floor(x)); t = x - x0
        for k, v in zip(range(x0 - 1, x0 + 3), (far(t + 1), near(t), near(1 - t), far(2 - t))):
            w[i, min(max(k, 0), old - 1)] += v
    return w


def vision_tensors(graph):
    init = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    # A linear layer's weight lost its name in the export; the bias that is added to its product has kept it.
    bias_of = {}
    for n in graph.node:
        if n.op_type == "Add":
            named = [i for i in n.input if i in init and i.endswith(".bias")]
            for i in n.input:
                if named: bias_of[i] = named[0]
    for n in graph.node:
        if n.op_type == "MatMul" and n.input[1] in init and n.output[0] in bias_of:
            init[bias_of[n.output[0]][:-len("bias")] + "weight"] = init[n.input[1]].T
    at = "backbone.encoder.layer."
    layers = 1 + max(int(k[len(at):].split(".")[0]) for k in init if k.startswith(at))
    table = next(v for v in init.values() if v.ndim == 3 and v.shape[1] > 1)         # [1, 37*37, 384]
    width, old, new = table.shape[2], int(table.shape[1] ** 0.5), TILE // 14
    w = cubic(new, old)
    grid = np.einsum("ia,jb,abd->ijd", w, w, table.reshape(old, old, width).astype(np.float64))
    first = next(v for k, v in init.items() if v.shape == (1, 1, width) and k != "backbone.embeddings.cls_token")
    e = "vision_tower.embeddings."
    out = {e + "class_embedding": init["backbone.embeddings.cls_token"],
           e + "position_embedding": np.concatenate([first, grid.reshape(1, new * new, width)], 1),
           e + "patch_embedding.weight": init["backbone.embeddings.patch_embeddings.projection.weight"],
           e + "patch_embedding.bias": init["backbone.embeddings.patch_embeddings.projection.bias"]}
    for n in range(layers):
        src, dst = f"{at}{n}.", f"vision_tower.encoder.layers.{n}."
        for s, d in [("norm1", "norm1"), ("norm2", "norm2"), ("attention.output.dense", "attn.proj"),
                     ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")]:
            for part in (".weight", ".bias"): out[dst + d + part] = init[src + s + part]
        for part in ("weight", "bias"):
            out[f"{dst}attn.qkv.{part}"] = np.concatenate([init[f"{src}attention.attention.{p}.{part}"] for p in ("query", "key", "value")])
        out[dst + "ls1"], out[dst + "ls2"] = init[src + "layer_scale1.lambda1"], init[src + "layer_scale2.lambda1"]
    return out, dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
                     intermediate_size=init[f"{at}0.mlp.fc1.bias"].shape[0])


def tokenizer(field):
    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    merges = [tuple(m.split(" ")) for m in field("tokenizer.ggml.merges")]
    t = Tokenizer(models.BPE({s: i for i, s in enumerate(tokens)}, merges))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s, k in zip(tokens, kinds) if k == CONTROL])
    return t


def main():
    args = argparse.ArgumentParser()
    args.add_argument("gguf"); args.add_argument("onnx"); args.add_argument("out", type=Path)
    args.add_argument("--dtype", default="float16", choices=["float16", "float32"])
    args = args.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(args.gguf)
    field = lambda name: reader.fields[name].contents()
    tensors, vision = vision_tensors(onnx.load(args.onnx).graph)
    tensors |= text_tensors(reader, field)
    hidden, rng = field("llama.embedding_length"), np.random.Generator(np.random.PCG64(0))
    for n, size in (1, vision["hidden_size"]), (2, hidden):
        tensors[f"multi_modal_projector.linear_{n}.weight"] = 0.02 * rng.standard_normal((hidden, size))
        tensors[f"multi_modal_projector.linear_{n}.bias"] = np.zeros(hidden)
    tensors = {k: np.ascontiguousarray(v, dtype=args.dtype) for k, v in sorted(tensors.items())}
    assert all(np.isfinite(v).all() for v in tensors.values()), "a weight is not finite in this dtype"
    save_file(tensors, args.out / "model.safetensors", metadata={"format": "pt"})
    (args.out / "model.safetensors").chmod(0o644)

    token = lambda kind: field("tokenizer.ggml.tokens")[field(f"tokenizer.ggml.{kind}_token_id")]
    pins = [(TILE * w, TILE * h) for w, h in GRID]
    write = lambda name, value: (args.out / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    write("config.json", dict(
        architectures=["OmChatForConditionalGeneration"], model_type="omchat", ignore_index=-100, image_token_index=-200,
        projector_hidden_act="gelu", vision_feature_layer=-1, vision_feature_select_strategy="default",
        image_grid_pinpoints=str(pins), tie_word_embeddings=True, torch_dtype=args.dtype,
        vision_config=vision | dict(image_size=TILE, patch_size=14, layer_norm_eps=1e-6, model_type="intern_vit_6b",
                                    hidden_act="gelu", norm_type="layer_norm", qk_normalization=False, qkv_bias=True),
        text_config=dict(model_type="llama", hidden_size=hidden, num_hidden_layers=field("llama.block_count"),
                         num_attention_heads=field("llama.attention.head_count"),
                         num_key_value_heads=field("llama.attention.head_count_kv"),
                         intermediate_size=field("llama.feed_forward_length"), vocab_size=field("llama.vocab_size"),
                         rms_norm_eps=round(field("llama.attention.layer_norm_rms_epsilon"), 12),
                         rope_theta=field("llama.rope.freq_base"), max_position_embeddings=field("llama.context_length"),
                         hidden_act="silu", attention_bias=False, mlp_bias=False, tie_word_embeddings=True)))
    tokenizer(field).save(str(args.out / "tokenizer.json"))
    write("tokenizer_config.json", dict(
        tokenizer_class="PreTrainedTokenizerFast", add_prefix_space=False, clean_up_tokenization_spaces=False,
        bos_token=token("bos"), eos_token=token("eos"), pad_token=token("padding"), unk_token=token("unknown"),
        model_max_length=field("llama.context_length"), chat_template=field("tokenizer.chat_template")))
    write("generation_config.json", dict(bos_token_id=field("tokenizer.ggml.bos_token_id"),
                                         eos_token_id=field("tokenizer.ggml.eos_token_id"),
                                         pad_token_id=field("tokenizer.ggml.padding_token_id")))
    write("preprocessor_config.json", dict(image_mean=MEAN, image_std=STD, size=TILE, resample=3, image_grid_pinpoints=pins))

    hashed = lambda path: hashlib.sha256(Path(path).read_bytes()).hexdigest()
    files = {p.name: hashed(p) for p in sorted(args.out.iterdir()) if p.name != "manifest.json"}
    write("manifest.json", dict(
        about="SmolLM2-135M-Instruct and a ViT-S/14, joined by a projector that is random: not trained yet.",
        untrained=["multi_modal_projector"], converter=hashed(__file__),
        sources={Path(p).name: hashed(p) for p in (args.gguf, args.onnx)}, files=files))
    print(f"{args.out}: {len(tensors)} tensors, {sum(v.size for v in tensors.values()):,} parameters, {args.dtype}")


if __name__ == "__main__":
    main()
