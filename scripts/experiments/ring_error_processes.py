"""Gradients of runs on 2 to 16 ranks against one rank's: a table on stdout and a picture.

python ring_error_processes.py RUNS OUT        RUNS/R is a run of one step on R ranks; needs numpy and pillow
"""
import json, sys
from pathlib import Path
import numpy as np
from PIL import Image, ImageDraw, ImageFont

RANKS = [2, 4, 8, 16]
INK, GRID, LINE = (30, 30, 30), (225, 225, 225), (200, 50, 50)


def moments(runs, ranks):
    """The first moments after one step, in f64: a tenth of the gradients, by name."""
    raw = (Path(runs) / str(ranks) / "checkpoints" / "00000001" / "state.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    head = json.loads(raw[8:8 + size])
    return {name: np.frombuffer(raw[8 + size + t["data_offsets"][0]:8 + size + t["data_offsets"][1]], "<f4").astype("f8")
            for name, t in head.items() if name.startswith("m.")}


one = moments(sys.argv[1], 1)
assert one and all(np.isfinite(x).all() for x in one.values())
norm = np.sqrt(sum((x**2).sum() for x in one.values()))
errors, worst = [], []
for ranks in RANKS:
    many = moments(sys.argv[1], ranks)
    assert many.keys() == one.keys()
    errors.append(np.sqrt(sum(((many[k] - x) ** 2).sum() for k, x in one.items())) / norm)
    worst.append(max(np.abs(many[k] - x).max() / np.abs(x).max() for k, x in one.items()))
print("| gradients against one process's | " + " | ".join(f"R={r}" for r in RANKS) + " | 16 to 2 |")
print("|---|" + "---:|" * (len(RANKS) + 1))
for name, row in (("root of the mean square, over their own", errors), ("the most of a tensor, over its largest", worst)):
    print(f"| {name} | " + " | ".join(f"{e:.2e}".replace("e-0", "e-") for e in row) + f" | {row[-1] / row[0]:.2f} |")

font = ImageFont.load_default(13)
image = Image.new("RGB", (520, 260), (255, 255, 255))
draw = ImageDraw.Draw(image)
top = 1.5 * max(errors)
x = lambda i: 90 + i * 125
y = lambda e: 215 - 170 * e / top
draw.text((90, 12), "gradients of R processes against one's, f32", INK, font)
for k in range(4):
    draw.line([(75, y(k * top / 3)), (500, y(k * top / 3))], GRID)
    draw.text((68, y(k * top / 3)), f"{k * top / 3:.1e}".replace("e-0", "e-").replace("0.0e+00", "0"), INK, font, anchor="rm")
draw.line([(x(i), y(e)) for i, e in enumerate(errors)], LINE, 3)
for i, (r, e) in enumerate(zip(RANKS, errors)):
    draw.ellipse([x(i) - 4, y(e) - 4, x(i) + 4, y(e) + 4], LINE)
    draw.text((x(i), 225), f"R={r}", INK, font, anchor="mt")
image.save(sys.argv[2], optimize=True)
