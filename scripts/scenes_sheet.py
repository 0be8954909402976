"""Small grey pictures as one PNG: a row a picture, its label first, then its samples.

python scenes_sheet.py digits|faces IN OUT        needs numpy, pillow
"""
import gzip, sys
import numpy as np
from PIL import Image

kind, source, out = sys.argv[1:]
if kind == "digits":
    # 64 counts from 0 to 16, then the digit.
    table = np.loadtxt(gzip.open(source), delimiter=",").astype(np.uint8)
    rows = np.concatenate([table[:, 64:], table[:, :64]], axis=1)
else:
    # 100 faces, then 100 pieces of background; samples from 0 to 1.
    faces = np.load(source).reshape(200, 625)
    labels = np.repeat(np.array([[1], [0]], np.uint8), 100, axis=0)
    rows = np.concatenate([labels, np.rint(faces * 255).astype(np.uint8)], axis=1)
Image.fromarray(rows, "L").save(out, optimize=True)
