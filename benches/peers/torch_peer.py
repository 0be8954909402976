"""PyTorch and transformers, asked one case a line: see `worker` in peers.py for what crosses.

A case is prepared when its first request comes and kept until another case does. Operands are random and rotate through copies
that together exceed the last cache, as ours do.
"""

import inspect
import json
import math
import sys
import time

import cases

SAMPLE = 0.002


def main():
    import torch
    spec = json.loads(sys.stdin.readline())
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(1)
    device = torch.device(spec["device"])
    print(json.dumps(versions(torch, device)), flush=True)
    kept, name = None, None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if name != request["case"]["name"]:
                kept, name = None, None
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                kept = prepare(torch, device, request["case"], cache_bytes(torch, device, request))
                name = request["case"]["name"]
            answer = dict(seconds=samples(torch, device, kept[0], request["time_s"], request["least"]), note=kept[1])
        except Exception as fault:  # whatever goes wrong is said to whoever asked
            kept, name = None, None
            answer = dict(refused=f"{type(fault).__name__}: {fault}".splitlines()[0][:200])
        print(json.dumps(answer), flush=True)


def versions(torch, device):
    import transformers
    out = dict(torch=torch.__version__, transformers=transformers.__version__, device="CPU")
    if device.type == "cuda":
        out["device"] = torch.cuda.get_device_name(device)
        out["cuda"] = torch.version.cuda
    return out


def cache_bytes(torch, device, request):
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    return request["cache_bytes"]


def wait(torch, device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def samples(torch, device, run, time_s, least):
    """Seconds a run, sample by sample, after one run that does not count. `run(n)` runs n times and may say its own seconds."""
    def once(n):
        wait(torch, device)
        start = time.perf_counter()
        own = run(n)
        wait(torch, device)
        return (time.perf_counter() - start if own is None else own) / n
    once(1)
    n = max(1, math.ceil(SAMPLE / max(once(1), 1e-9)))
    out, start = [], time.perf_counter()
    while len(out) < least or time.perf_counter() - start < time_s:
        out.append(once(n))
    return out


def rotating(make, bytes_each, cache):
    """A function that yields the next of as many copies as exceed the cache."""
    count = min(64, max(1, -(-2 * cache // max(1, bytes_each))))
    copies = [make() for _ in range(count)]
    at = [0]
    def following():
        at[0] = (at[0] + 1) % count
        return copies[at[0]]
    return following


def prepare(torch, device, case, cache):
    """(run, note) of a case."""
    dtype = dict(f32=torch.float32, bf16=torch.bfloat16, f16=torch.float16)[case["dtype"]]
    draw = lambda *shape: torch.randn(*shape, device=device, dtype=dtype)
    if case["op"] == "matmul":
        return matmul(torch, case, draw, cache)
    if case["op"] in ("attention", "attention_backward"):
        return attention(torch, device, case, draw, cache)
    if case["op"] == "linear_cross_entropy":
        return linear_cross_entropy(torch, device, case, draw)
    if case["op"] in ("prefill", "decode"):
        return decoder(torch, device, dtype, case)
    if case["op"] == "vision":
        return vision(torch, device, dtype, case)
    raise ValueError(f"PyTorch is not asked for {case['op']}")


def matmul(torch, case, draw, cache):
    m, n, k = case["m"], case["n"], case["k"]
    size = cases.SIZE[case["dtype"]] * (m * k + n * k + m * n)
    following = rotating(lambda: (draw(m, k), draw(n, k), draw(m, n)), size, cache)
    def run(times):
        for _ in range(times):
            a, b, out = following()
            torch.matmul(a, b.t(), out=out)
    return run, None


def attention(torch, device, case, draw, cache):
    """The fastest of SDPA's ways: each backend, with grouped heads or with keys copied for each query head beforehand."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as sdpa
    h, g, t, d = (case[k] for k in "hgtd")
    backward = case["op"] == "attention_backward"

    def make(wide):
        q, k, v = draw(1, h * g, t, d), draw(1, h, t, d), draw(1, h, t, d)
        if wide:
            k, v = (x.repeat_interleave(g, dim=1) for x in (k, v))
        leaves = [x.requires_grad_(backward) for x in (q, k, v)]
        if not backward:
            return leaves
        out = sdpa(*leaves, is_causal=True, enable_gqa=not wide)
        return leaves + [out, torch.randn_like(out)]

    def way(backend, wide):
        with sdpa_kernel(backend):
            size = cases.SIZE[case["dtype"]] * d * t * h * (2 * g + 2) * (2 if backward else 1)
            following = rotating(lambda: make(wide), size, cache)
        def run(times):
            with sdpa_kernel(backend):
                for _ in range(times):
                    if backward:
                        q, k, v, out, cotangent = following()
                        torch.autograd.grad(out, (q, k, v), cotangent, retain_graph=True)
                    else:
                        q, k, v = following()
                        sdpa(q, k, v, is_causal=True, enable_gqa=not wide)
        return run

    best, said = None, []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        for wide in (False, True):
            try:
                run = way(backend, wide)
                took = min(samples(torch, device, run, 0.02, 2))
            except RuntimeError:
                continue
            said.append(f"{backend.name.split('_')[0].lower()} {'copied keys' if wide else 'grouped'} {took * 1e3:.1f} ms")
            if best is None or took < best[0]:
                best = (took, run, said[-1])
    if best is None:  # without a fused one
        run = way(SDPBackend.MATH, True)
        return run, "math"
    return best[1], f"{best[2].rsplit(' ', 2)[0]}; tried: {', '.join(said)}"


def linear_cross_entropy(torch, device, case, draw):
    t, v, c = case["t"], case["v"], case["c"]
    x, w, y = draw(t, c), draw(v, c), torch.randint(0, v, (t,), device=device)
    def run(times):
        for _ in range(times):
            torch.nn.functional.cross_entropy((x @ w.t()).float(), y, reduction="none")
    return run, f"logits whole in memory: {t * v * (4 + (case['dtype'] != 'f32') * 2) / 1e6:.0f} MB"


def decoder(torch, device, dtype, case):
    import transformers
    from transformers import AutoModelForCausalLM, DynamicCache
    text = dict(cases.config(case["model"])["text_config"])
    config = transformers.AutoConfig.for_model(text.pop("model_type"), **text)
    config.rope_parameters = dict(rope_type="default", rope_theta=text["rope_theta"])
    model = filled(torch, device, dtype, lambda: AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"))
    note = "random weights"
    if case["folder"]:
        load(torch, model, case["folder"], "language_model.")
        note = None
    ids = (torch.arange(case["tokens"], device=device) * 7919 + 13) % config.vocab_size
    ids = ids[None]
    # Its name differs between versions.
    slot = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"

    @torch.inference_mode()
    def prefill(times):
        for _ in range(times):
            model(input_ids=ids, use_cache=True, logits_to_keep=1)
    if case["op"] == "prefill":
        return prefill, note

    with torch.inference_mode():
        cache = DynamicCache(config=config)
        model(input_ids=ids, **{slot: cache}, use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def decode(times):
        total = 0.0
        for _ in range(times):
            wait(torch, device)
            start = time.perf_counter()
            model(input_ids=ids[:, :1], **{slot: cache}, use_cache=True, logits_to_keep=1)
            wait(torch, device)
            total += time.perf_counter() - start
            cache.crop(-1)  # each step has the same context
        return total
    return decode, note


def vision(torch, device, dtype, case):
    import transformers
    whole = cases.config(case["model"])
    c, wide = whole["vision_config"], whole["text_config"]["hidden_size"]
    common = dict(hidden_size=c["hidden_size"], num_hidden_layers=c["num_hidden_layers"], image_size=c["image_size"],
                  num_attention_heads=c["num_attention_heads"], intermediate_size=c["intermediate_size"],
                  patch_size=c["patch_size"], layer_norm_eps=c["layer_norm_eps"], hidden_act=c["hidden_act"],
                  attn_implementation="sdpa")
    if c["model_type"] == "intern_vit_6b":
        pair = [c["image_size"]] * 2, [c["patch_size"]] * 2
        common.update(image_size=pair[0], patch_size=pair[1], norm_type=c["norm_type"],
                      use_qk_norm=c["qk_normalization"], attention_bias=c["qkv_bias"])
        make = lambda: transformers.InternVLVisionModel(transformers.InternVLVisionConfig(**common))
    else:
        make = lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**common))
    joined = c["hidden_size"] * c.get("feature_layers", 1)
    n = torch.nn
    tower = filled(torch, device, dtype, make)
    projector = filled(torch, device, dtype, lambda: n.Sequential(n.Linear(joined, wide), n.GELU(), n.Linear(wide, wide)))
    pixels = torch.randn(case["tokens"], 3, c["image_size"], c["image_size"], device=device, dtype=dtype)
    several = c.get("feature_layers", 1) > 1

    @torch.inference_mode()
    def run(times):
        for _ in range(times):
            out = tower(pixel_values=pixels, output_hidden_states=several)
            rows = out.last_hidden_state
            if several:
                rows = torch.cat(out.hidden_states[-c["feature_layers"]:], dim=-1)
            projector(rows)
    return run, "random weights"


def filled(torch, device, dtype, make):
    """A model made on the device in its dtype, with random weights; nothing of it is ever whole on the host."""
    from transformers.initialization import no_init_weights
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), no_init_weights():
            model = make()
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.02)
    return model.eval()


def load(torch, model, folder, prefix):
    from safetensors.torch import load_file
    held = load_file(f"{folder}/model.safetensors")
    named = {k.removeprefix(prefix): v for k, v in held.items() if k.startswith(prefix)}
    lacking, unknown = model.load_state_dict(named, strict=False)
    lacking = [k for k in lacking if not (model.config.tie_word_embeddings and k == "lm_head.weight")]
    if lacking or unknown:
        raise ValueError(f"{folder} and transformers disagree: lacks {lacking[:3]}, unknown {unknown[:3]}")


main()
