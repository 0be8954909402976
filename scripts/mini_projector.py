#!/usr/bin/env python3
"""A projector by itself, and a model with it in place of its own.

mini_projector.py take MODEL FILE         the projector of MODEL's model.safetensors as FILE, in f16
mini_projector.py put MODEL FILE OUT      MODEL's folder as OUT, with the projector of FILE
"""

import json
import pathlib
import shutil
import struct
import sys

PREFIX = "multi_modal_projector."


def read(path):
    """Header and bytes of a safetensors file."""
    data = pathlib.Path(path).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write(path, header, data):
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


def numbers(entry, data):
    """A tensor's numbers; f32 or f16."""
    start, end = entry["data_offsets"]
    kind = {"F32": "f", "F16": "e"}[entry["dtype"]]
    return struct.unpack(f"<{(end - start) // struct.calcsize(kind)}{kind}", data[start:end])


def take(model, file):
    header, data = read(pathlib.Path(model) / "model.safetensors")
    out, body = {}, b""
    for name in sorted(n for n in header if n.startswith(PREFIX)):
        values = numbers(header[name], data)
        packed = struct.pack(f"<{len(values)}e", *values)
        out[name] = {"dtype": "F16", "shape": header[name]["shape"], "data_offsets": [len(body), len(body) + len(packed)]}
        body += packed
    write(file, out, body)


def put(model, file, out):
    header, data = read(pathlib.Path(model) / "model.safetensors")
    given, body = read(file)
    data = bytearray(data)
    own = {n for n in header if n.startswith(PREFIX)}
    if own != set(given) or any(header[n]["shape"] != given[n]["shape"] for n in own):
        raise SystemExit(f"{file} holds {sorted(given)}, the model wants {sorted(own)}, in other shapes or names")
    for name in own:
        start, end = header[name]["data_offsets"]
        kind = {"F32": "f", "F16": "e"}[header[name]["dtype"]]
        values = numbers(given[name], body)
        data[start:end] = struct.pack(f"<{len(values)}{kind}", *values)
    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors"))
    write(pathlib.Path(out) / "model.safetensors", header, bytes(data))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["take", model, file]:
            take(model, file)
        case ["put", model, file, out]:
            put(model, file, out)
        case _:
            raise SystemExit(__doc__)
