"""Writes the files of models/passkey that are not trained: configuration and tokenizer.

python make_passkey.py       needs tokenizers
A small Qwen2 that reads words only. The tokenizer is a byte-level BPE in which each word of the passkey documents
(recipe/src/passkeys.rs) and of their chat is one token, and each digit by itself and by its place in its number: a normalizer
writes 3025 as 3₁0₂2₃5, a digit and the mark before it are one token, and the decoder drops the marks. So a digit says where it
stands, and which one follows is found by its token alone, at any distance, with no need to count.
"""
import json
import re
from pathlib import Path
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "models" / "passkey"
T = dict(hidden=96, layers=2, heads=3, kv=3, mlp=192, vocab=1000, theta=1.9e7)  # the base of the last stage, whose weights lie beside it
MARKS = "₁₂₃₄₅₆"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LINES = """system user assistant You are a helpful assistant.
What is the special magic number? Answer with the number alone. The special magic number is:""".splitlines()


def words():
    """The words between quotes in the generator and in the text needle: filler and places."""
    for name in ("passkeys.rs", "judge/needle.rs"):
        source = (ROOT / "recipe" / "src" / name).read_text()
        for table in re.findall(r"const [A-Z]+: \[&str; \d+\] =\s*\[(.*?)\];", source, re.S):
            yield from (w for text in re.findall(r'"([^"]+)"', table) for w in text.split())


def text():
    for line in LINES: yield from [line + "\n", *re.findall(r"\w+", line)] * 8
    for w in sorted(set(words())):
        yield from [f"a {w} {w}.\n", f"{w} {w}, the {w}\n"] * 8
        yield from [f"{w.capitalize()}\n"] * 4
    for d in "0123456789": yield from [f" {d * 7}\n"] * 8


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    t = Tokenizer(models.BPE())
    # The last place goes first: what stands before it must still be digits only.
    places = reversed(list(enumerate(MARKS, 1)))
    t.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(f"(?<=[^0-9][0-9]{{{place}}})(?=[0-9])"), mark) for place, mark in places])
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(f"[{MARKS}]?[0-9]"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.Sequence([decoders.ByteLevel(), *(decoders.Replace(mark, "") for mark in MARKS)])
    t.train_from_iterator(text(), trainers.BpeTrainer(vocab_size=T["vocab"], special_tokens=SPECIAL, show_progress=False, min_frequency=4,
                                                     initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    size = t.get_vocab_size()
    t.save(str(OUT / "tokenizer.json"))
    write = lambda name, value: (OUT / name).write_text(json.dumps(value, indent=2) + "\n")
    end, pad = t.token_to_id("<|im_end|>"), t.token_to_id("<|endoftext|>")
    write("config.json", dict(
        architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_size=T["hidden"], num_hidden_layers=T["layers"],
        num_attention_heads=T["heads"], num_key_value_heads=T["kv"], intermediate_size=T["mlp"], vocab_size=size, rms_norm_eps=1e-6,
        rope_theta=T["theta"], max_position_embeddings=131072, hidden_act="silu", tie_word_embeddings=True, torch_dtype="float32"))
    write("tokenizer_config.json", dict(eos_token="<|im_end|>", pad_token="<|endoftext|>"))
    write("generation_config.json", dict(bos_token_id=end, eos_token_id=end, pad_token_id=pad))
    print(f"{OUT}: {size} tokens")


if __name__ == "__main__":
    main()
