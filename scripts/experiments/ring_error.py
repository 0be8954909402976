"""Rows `ring_error RESULT TENSORS PARTIAL DOCUMENTS LAYOUT ERROR...` of stdin as a table on stdout and as a picture.

python ring_error.py OUT        needs pillow
"""
import math, sys
from PIL import Image, ImageDraw, ImageFont

RANKS = [1, 2, 4, 8, 16]
INK, GRID = (30, 30, 30), (225, 225, 225)
COLORS = {"packed contiguous": (98, 182, 110), "packed zigzag": (40, 110, 60),
          "single contiguous": (232, 150, 70), "single zigzag": (200, 50, 50)}
WIDE, HIGH, LEFT, TOP = 470, 210, 74, 40


def figure(e):
    """A number as 2.24e-8."""
    return f"{e:.2e}".replace("e-0", "e-")


rows = []
for line in sys.stdin:
    at = line.find("ring_error ")
    if at >= 0:
        word = line[at:].split()
        rows.append((*word[1:6], [float(x) for x in word[6:]]))
assert rows and all(len(r[5]) == len(RANKS) for r in rows), "no rows on stdin"

print("| result | tensors | partial | documents | layout | " + " | ".join(f"R={r}" for r in RANKS) + " | 16 to 2 |")
print("|---|---|---|---|---|" + "---:|" * (len(RANKS) + 1))
for *words, errors in rows:
    print(f"| {' | '.join(words)} | {' | '.join(map(figure, errors))} | {errors[-1] / errors[1]:.2f} |")

big, small = ImageFont.load_default(15), ImageFont.load_default(12)
results = list(dict.fromkeys(r[0] for r in rows))
image = Image.new("RGB", (2 * (WIDE + LEFT) + 20, (HIGH + TOP + 50) * len(results) + 40), (255, 255, 255))
draw = ImageDraw.Draw(image)


def panel(x, y, title, lines):
    """A chart at (x, y): errors upward from 0, ranks along a logarithmic scale."""
    top = max(max(errors) for _, _, errors in lines)
    unit = 10 ** math.floor(math.log10(top))
    step = next(s * unit for s in (0.2, 0.5, 1, 2) if top <= s * unit * 7)
    ticks = math.ceil(top / step)
    px = lambda i: x + LEFT + 12 + i * (WIDE - 40) / (len(RANKS) - 1)
    py = lambda e: y + TOP + HIGH - e * HIGH / (ticks * step)
    draw.text((x + LEFT, y + 10), title, INK, big)
    for k in range(ticks + 1):
        draw.line([(x + LEFT, py(k * step)), (x + LEFT + WIDE - 16, py(k * step))], GRID)
        label = "0" if k == 0 else f"{k * step:.1e}".replace("e-0", "e-")
        draw.text((x + LEFT - 8, py(k * step)), label, INK, small, anchor="rm")
    for i, r in enumerate(RANKS):
        draw.text((px(i), y + TOP + HIGH + 6), f"R={r}", INK, small, anchor="mt")
    for name, dashed, errors in lines:
        for i in range(len(RANKS) - 1):
            pieces = 12 if dashed else 1
            for k in range(0, pieces, 2):
                ends = [(px(i + t), py(errors[i] + (errors[i + 1] - errors[i]) * t)) for t in (k / pieces, (k + 1) / pieces)]
                draw.line(ends, COLORS[name], 3)
        for i, e in enumerate(errors):
            draw.ellipse([px(i) - 4, py(e) - 4, px(i) + 4, py(e) + 4], COLORS[name])


for place, result in enumerate(results):
    y = place * (HIGH + TOP + 50)
    of = lambda tensors, partials: [(f"{d} {l}", p == "bf16", e) for r, t, p, d, l, e in rows
                                    if (r, t) == (result, tensors) and p in partials]
    panel(0, y, f"{result}: f32 tensors, f32 partial results", of("f32", ["f32"]))
    panel(WIDE + LEFT, y, f"{result}: bf16 tensors; dashed: partial results in bf16", of("bf16", ["bf16", "f32"]))
x, y = LEFT, image.height - 32
for name, color in COLORS.items():
    draw.line([(x, y + 8), (x + 30, y + 8)], color, 4)
    draw.text((x + 38, y), name, INK, big)
    x += 200
image.save(sys.argv[1], optimize=True)
