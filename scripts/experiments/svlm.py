#!/usr/bin/env python3
"""Captions with wrong answers, and the table of what selections kept of them.

svlm.py spoil RIGHT OUT SEED    the records of RIGHT/data.jsonl with every answer put in place by another record's to the
                                same question, of as many words and not the same
svlm.py table WORK MODEL        the table of the runs in WORK, as Markdown
"""

import collections
import json
import pathlib
import random
import shutil
import sys


def records(path):
    return [json.loads(line) for line in (pathlib.Path(path) / "data.jsonl").read_text().splitlines()]


def questions(record):
    """The question of each answer, without its marks of pictures."""
    turns = record["messages"]
    for ask, answer in zip(turns[::2], turns[1::2]):
        yield ask["content"].replace("<image>", ""), answer


def spoil(right, out, seed):
    rng = random.Random(seed)
    told = collections.defaultdict(list)
    for record in records(right):
        for question, answer in questions(record):
            told[question, len(answer["content"].split())].append(answer["content"])
    lines = []
    for record in records(right):
        for question, answer in questions(record):
            others = [a for a in told[question, len(answer["content"].split())] if a != answer["content"]]
            if others:
                answer["content"] = rng.choice(others)
        lines.append(json.dumps(record))
    out = pathlib.Path(out)
    shutil.copytree(right, out)
    (out / "data.jsonl").write_text("\n".join(lines) + "\n")


def words(model):
    """Text of each id."""
    tokenizer = json.loads((pathlib.Path(model) / "tokenizer.json").read_text())
    ids = {i: t for t, i in tokenizer["model"]["vocab"].items()}
    ids |= {t["id"]: t["content"] for t in tokenizer["added_tokens"]}
    return {i: t.replace("Ġ", " ") for i, t in ids.items()}


def false_places(labels, ids, right, wrong):
    """Which labels are words that contradict the picture: those in which the wrong record differs from the right one."""
    text = "".join(ids[i] for i in labels)
    spoken = [part.split() for part in text.split("<|im_end|>")[:-1]]
    answers = [a["content"].split() for _, a in questions(wrong)]
    truths = [a["content"].split() for _, a in questions(right)]
    if spoken != answers or len(labels) != sum(len(a) + 1 for a in answers):
        raise SystemExit(f"labels {spoken} are not the answers {answers}")
    out = []
    for answer, truth in zip(answers, truths):
        out += [a != t for a, t in zip(answer, truth)] + [False]
    return out


def share(path, ids, right, wrong):
    """Of all labels and of the kept ones the share that contradict a picture; over the second half of the steps."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    half = max(line["step"] for line in lines) // 2
    count = collections.Counter()
    for line in (line for line in lines if line["step"] > half):
        record = line["record"]
        if line["dataset"] == "wrong":
            places = false_places(line["labels"], ids, right[record], wrong[record])
        else:
            places = [False] * len(line["labels"])
        for bad, kept in zip(places, line["kept"]):
            count["all"] += 1
            count["bad"] += bad
            count["kept"] += kept
            count["kept bad"] += bad and kept
    return count["bad"] / count["all"], count["kept bad"] / count["kept"]


def table(work, model):
    work = pathlib.Path(work)
    ids, right, wrong = words(model), records(work / "source"), records(work / "wrong")
    print("| trained on | words at odds with their picture: of all labels | of the kept ones | held-out loss |")
    print("|---|---|---|---|")
    for name, told in [("all", "every label"), ("plus", "the top 60 % by `train_minus_ref`"), ("minus", "the top 60 % by `ref_minus_train`"), ("reference", "the reference model itself")]:
        loss = (work / f"{name}.held").read_text().split()[2]
        kept = work / f"{name}.kept"
        shares = [f"{100 * x:.1f} %" for x in share(kept, ids, right, wrong)] if kept.exists() else ["", ""]
        print(f"| {told} | {shares[0]} | {shares[1]} | {loss} |")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["spoil", right, out, seed]:
            spoil(right, out, int(seed))
        case ["table", work, model]:
            table(work, model)
        case _:
            raise SystemExit(__doc__)
