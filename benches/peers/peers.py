"""Runs each case by ours and by the peers, round by round, and writes the ratios.

    peers.py measure --omchat BIN [--rust BIN] --list cpu --device cpu --out FILE.json [--group G] [--only TEXT]
    peers.py table FILE.json... [FILE.jsonl...] > FILE.md      .jsonl: rows of `omchat bench --json`

A round runs a case once by everyone, in an order that turns; a ratio is the median over the rounds of (the peer's seconds /
our seconds), so above 1 we are faster. Several runs of `measure` may go into one file: rows that are there are replaced.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

import cases
import table


class Worker:
    """A peer's process that is asked a JSON line and answers one: {"seconds": [...]} or {"refused": "why"}."""

    def __init__(self, command, env, **fixed):
        self.fixed, self.versions = fixed, {}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, **env})

    def greet(self, spec):
        self.versions = self.send(spec)
        return self

    def send(self, what):
        try:
            self.process.stdin.write(json.dumps(what) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        return json.loads(answer) if answer else dict(refused=f"its process ended ({self.process.poll()})")

    def ask(self, case, args):
        return self.send(dict(self.fixed, case=case, time_s=args.time, least=args.least, cache_bytes=last_cache()))


class Ours:
    """`omchat bench`, a process a question: the medians of its rows, added where the work is several rows."""

    def __init__(self, binary):
        self.binary, self.versions, self.folder = binary, {}, tempfile.TemporaryDirectory()

    def ask(self, case, args):
        answers = [self.row(case, name, args) for name in case.get("rows", [case["name"]])]
        refused = next((a for a in answers if "refused" in a), None)
        if refused:
            return refused
        words = lambda key: "; ".join(dict.fromkeys(a[key] for a in answers if a[key])) or None
        return dict(seconds=[sum(a["median_s"] for a in answers)], kernel=words("kernel"), schedule=words("schedule"),
                    note=words("note"), checked=all(a["checked"] is not None for a in answers) or None,
                    bytes=answers[0].get("bytes"))

    def row(self, case, name, args):
        command = [self.binary, "bench", case["suite"], "--device", args.device, "--json", "--bare", "--only", name,
                   "--time", str(max(1, round(args.time * 1000)))] + self.model(case)
        if "tokens" in case and case["suite"] != "vision":
            command += ["--tokens", str(case["tokens"])]
        if case["suite"] != "kernels":
            command += ["--dtype", case["dtype"]]
        done = subprocess.run(command, capture_output=True, text=True)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        row = next((r for r in rows if r["name"] == name), None)
        if row is None:
            why = [l for l in done.stderr.splitlines() if l.strip()]
            return dict(refused=why[0][:200] if why else f"omchat bench has no row {name}")
        if row["checked"] is False:
            return dict(refused=f"wrong numbers by {row['kernel']}")
        return row

    def model(self, case):
        """The model whose shapes are asked for: named, or a configuration of the case's own sizes in a folder."""
        if case.get("config") is None:
            model = case.get("folder") or case.get("model")
            return ["--model", model] if model else []
        path = pathlib.Path(self.folder.name) / case["name"].replace("/", "-")
        path.mkdir(exist_ok=True)
        config = cases.config("tiny")
        config["text_config"].update(case["config"])
        (path / "config.json").write_text(json.dumps(config))
        return ["--model", str(path)]


def last_cache():
    """Bytes of the CPU's last cache."""
    sizes = [0]
    for path in pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]])
    return max(sizes) or 32 << 20


def processor():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def everyone(args):
    """Ours first, then the peers that are here, by name."""
    here = pathlib.Path(__file__).resolve().parent
    out = {"omchat": Ours(args.omchat)} if args.omchat else {}
    torch = "cuda" if args.device == "cuda" else "cpu"
    out["torch"] = Worker([sys.executable, str(here / "torch_peer.py")], {}).greet(dict(threads=args.threads, device=torch))
    if args.rust and args.device != "cuda":
        env = {"RAYON_NUM_THREADS": str(args.threads)}
        out.update({name: Worker([args.rust], env, peer=name) for name in ("candle", "gemm")})
    return out


def asked(peer, case):
    """Whether that peer is asked for that work at all."""
    return peer in ("omchat", "torch") or (case["op"], peer) in {
        ("matmul", "gemm"), ("matmul", "candle"), ("prefill", "candle"), ("decode", "candle")}


def row_of(case, workers, args):
    peers = {name: dict(seconds=[]) for name in workers if asked(name, case)}
    for number in range(args.rounds):
        names = list(peers)
        for name in names[number % len(names):] + names[:number % len(names)]:
            held = peers[name]
            if "refused" in held:
                continue
            answer = workers[name].ask(case, args)
            if "refused" in answer:
                peers[name] = dict(refused=answer["refused"])
                continue
            held["seconds"].append(statistics.median(answer.pop("seconds")))
            held.update({k: v for k, v in answer.items() if v is not None})
    row = {k: case[k] for k in ("group", "name", "what", "dtype", "amount", "unit")}
    return dict(row, load=os.getloadavg()[0], peers=peers, ratios=ratios(peers))


def ratios(peers):
    mine = peers.get("omchat", {}).get("seconds")
    out = {}
    for name, peer in peers.items():
        if name != "omchat" and mine and peer.get("seconds"):
            each = [theirs / ours for theirs, ours in zip(peer["seconds"], mine)]
            out[name] = dict(median=statistics.median(each), least=min(each), most=max(each))
    return out


def measure(args):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:args.threads])
    out = pathlib.Path(args.out)
    held = json.loads(out.read_text()) if out.is_file() else dict(rows=[])
    wanted = [c for c in cases.LISTS[args.list]()
              if (not args.group or c["group"] == args.group) and args.only in c["name"] + " " + c["what"]]
    if not wanted:
        sys.exit(f"no case of the list `{args.list}` has `{args.only}` in it; groups: "
                 + ", ".join(sorted({c["group"] for c in cases.LISTS[args.list]()})))
    workers = everyone(args)
    versions = dict(workers["torch"].versions)
    if "refused" in versions:
        sys.exit(f"PyTorch: {versions['refused']}")
    held.update(date=datetime.date.today().isoformat(), device=args.device, device_name=versions.pop("device"),
                processor=processor(), threads=args.threads, rounds=args.rounds,
                versions=dict(versions, omchat=args.commit or "unknown"))
    if held["device_name"] == "CPU":
        held["device_name"] = held["processor"]
    for case in wanted:
        row = row_of(case, workers, args)
        held["rows"] = [r for r in held["rows"] if r["name"] != row["name"]] + [row]
        out.write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n")
        print(table.line(row, args.device), file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(required=True)
    m = sub.add_parser("measure")
    m.add_argument("--omchat")
    m.add_argument("--rust")
    m.add_argument("--commit")
    m.add_argument("--list", choices=cases.LISTS, required=True)
    m.add_argument("--device", default="cpu")
    m.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    m.add_argument("--rounds", type=int, default=5)
    m.add_argument("--time", type=float, default=0.4, help="seconds of samples a round, of each peer")
    m.add_argument("--least", type=int, default=3, help="samples a round at the least")
    m.add_argument("--group")
    m.add_argument("--only", default="")
    m.add_argument("--out", required=True)
    m.set_defaults(run=measure)
    t = sub.add_parser("table")
    t.add_argument("files", nargs="+")
    t.set_defaults(run=lambda args: print("\n".join(table.file(f) for f in args.files), end=""))
    args = parser.parse_args()
    args.run(args)


main()
