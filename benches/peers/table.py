"""The measured rows as a page of markdown."""

import json
import pathlib
import statistics

import cases

PEERS = ("torch", "candle", "gemm")
NAMES = dict(torch="PyTorch", candle="candle", gemm="`gemm`")


def speed(row, peer):
    """What a peer reached, with its unit; `—` if it was not asked, `none` if it refused."""
    held = row["peers"].get(peer)
    if held is None:
        return "—"
    if not held.get("seconds"):
        return "none"
    value = row["amount"] / statistics.median(held["seconds"])
    if row["unit"] == "FLOP/s":
        return f"{value / 1e12:.1f} TFLOP/s" if value >= 1e13 else f"{value / 1e9:.3g} GFLOP/s"
    return f"{value:.3g} {row['unit']}" if value < 100 else f"{value:.0f} {row['unit']}"


def ratio(row, peer, device):
    """A ratio with its range, in bold where it is below the least of its bar."""
    held = row["ratios"].get(peer)
    if held is None:
        return "—" if peer not in row["peers"] else "none"
    text = f"{held['median']:.2f} ({held['least']:.2f}–{held['most']:.2f})"
    limit = cases.bar(row, device, peer)
    if limit and held["median"] < limit[0]:
        text = f"**{text}**"
    return text + (f", bar {limit[0]:g} / {limit[1]:g}" if limit else "")


def line(row, device):
    """A row for the terminal."""
    parts = [f"{NAMES[p]} {speed(row, p)}, ratio {ratio(row, p, device)}" for p in PEERS if p in row["peers"]]
    return f"{row['what']} ({row['dtype']}): ours {speed(row, 'omchat')}; " + "; ".join(parts)


def file(path):
    """A file as a page: rounds and ratios of peers.py, or the rows of `omchat bench --json`."""
    with open(path) as text:
        if path.endswith(".jsonl"):
            return ours([json.loads(line) for line in text if line.startswith("{")], pathlib.Path(path).stem)
        return page([json.load(text)])


def time(s):
    return f"{s * 1e6:.4g} us" if s < 1e-3 else f"{s * 1e3:.4g} ms" if s < 1 else f"{s:.4g} s"


def ours(rows, title):
    share = lambda x: "" if x is None else f" ({100 * x:.0f}%)"
    number = lambda x, digits: "—" if x is None else f"{x:.{digits}g}"
    out = [f"# {title}", "", "Shares in brackets are of the copy and of the best einsum that the device reached in the same run.", "",
           "| row | kernel | time | spread | GB/s | TFLOP/s | rate | right |", "|---|---|---|---|---|---|---|---|"]
    for r in rows:
        took = "—" if r["median_s"] is None else time(r["median_s"])
        spread = "—" if r["spread"] is None else f"{100 * r['spread']:.0f}%"
        rate = "—" if r["rate"] is None else f"{r['rate']:.4g} {r['unit']}"
        right = {True: "yes", False: "**WRONG**", None: "—"}[r["checked"]]
        kernel = r["kernel"] + (f" [{r['schedule']}]" if r["schedule"] else "")
        out.append(f"| `{r['name']}` | {kernel} | {took} | {spread} | {number(r['gb_s'], 4)}{share(r['share_of_copy'])} "
                   f"| {number(r['tflop_s'], 4)}{share(r['share_of_einsum'])} | {rate} | {right} |")
    return "\n".join(out) + "\n"


def page(runs):
    out = []
    for run in runs:
        peers = [p for p in PEERS if any(p in r["peers"] for r in run["rows"])]
        versions = ", ".join(f"{k} {v}" for k, v in run["versions"].items())
        out += [f"# Side by side, {run['date']}: {run['device_name']}", "",
                f"Device `{run['device']}`, {run['threads']} threads, {run['rounds']} rounds. {versions}.", "",
                "A ratio is the peer's time over ours in the same round: the median of the rounds, and the least and the most in "
                "brackets; above 1 we are faster. \"Bar\" is the least to accept and the aim; bold is below the least. "
                "\"None\": it gave no figure, and the notes say why.", "",
                "| work | dtype | ours | " + " | ".join(f"{NAMES[p]} | ratio" for p in peers) + " |",
                "|---|---|---|" + "---|---|" * len(peers)]
        for row in run["rows"]:
            cells = [row["what"], row["dtype"], speed(row, "omchat")]
            for p in peers:
                cells += [speed(row, p), ratio(row, p, run["device"])]
            out.append("| " + " | ".join(cells) + " |")
        out += ["", "Notes:", ""] + notes(run) + [""]
    return "\n".join(out).rstrip() + "\n"


def notes(run):
    """Kernels that we ran, how the peers were run, and why there is no figure where there is none."""
    said = {}
    for row in run["rows"]:
        for peer, held in row["peers"].items():
            name = "ours" if peer == "omchat" else NAMES[peer]
            if "refused" in held:
                said.setdefault(f"{name}: {held['refused']}", []).append(row["name"])
            elif held.get("note"):
                said.setdefault(f"{name}: {held['note']}", []).append(row["name"])
            if held.get("kernel") and row["group"] != "model":
                said.setdefault(f"ours by {held['kernel']} [{held.get('schedule')}]", []).append(row["name"])
    return [f"- {text}" for text in run.get("remarks", [])] + [f"- {text} ({', '.join(f'`{n}`' for n in names)})" for text, names in said.items()]
