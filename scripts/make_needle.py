"""Writes the files of models/needle that are not trained: configuration and tokenizer.

python make_needle.py        needs tokenizers
The layout is OmChat-2.0's. The tokenizer is a byte-level BPE whose words are those of the rendered scenes, so that most are one token.
"""
import json
from pathlib import Path
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

OUT = Path(__file__).resolve().parent.parent / "models" / "needle"
TILE, PATCH = 28, 14
V = dict(hidden=128, layers=2, heads=4, mlp=256)
T = dict(hidden=128, layers=3, heads=4, kv=2, mlp=320, vocab=720, theta=1e4)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
COLOURS = "red green blue yellow purple white".split()
SHAPES = "circle square triangle cross circles squares triangles crosses".split()
LINES = """system user assistant You are a helpful assistant. patch:
What is in this picture? What colour is it? How many shapes are there? Is it on the left or on the right? Is it at the top or at the bottom?
What happens in this video? What comes first? What comes last? What comes after the face? What comes before the noise?
Which digit is shown? Which digit comes first? Which digit comes last? Which digit comes after the 7? Which digit comes before the 3?
How many digits are there? What colour is the 5? Is there a 4? Is there a face? Which shape moves?
it is red left right top bottom noise yes no none one two three four a face, a 7, noise""".splitlines()


def text():
    for line in LINES: yield from [line + "\n"] * 8
    for c in COLOURS:
        for s in SHAPES: yield from [f"two {c} {s}, the {c} {s}?\n"] * 2
    for d in range(10): yield from [f"the {d}? a {d}, a {d}\n"] * 8
    for word in "system user assistant yes no none one two three four left right top bottom it a noise".split(): yield from [word] * 8


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    t.train_from_iterator(text(), trainers.BpeTrainer(vocab_size=T["vocab"], special_tokens=SPECIAL, show_progress=False,
                                                     initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    size = t.get_vocab_size()
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
                         num_key_value_heads=T["kv"], intermediate_size=T["mlp"], vocab_size=size, rms_norm_eps=1e-6,
                         rope_theta=T["theta"], max_position_embeddings=131072, hidden_act="silu", tie_word_embeddings=False)))
    write("tokenizer_config.json", dict(eos_token="<|im_end|>", pad_token="<|endoftext|>"))
    write("generation_config.json", dict(bos_token_id=end, eos_token_id=end, pad_token_id=pad))
    write("preprocessor_config.json", dict(image_mean=[.14, .14, .14], image_std=[.25, .25, .25], size=TILE, resample=3))
    print(f"{OUT}: {size} tokens")


if __name__ == "__main__":
    main()
