"""Print the README's result tables from results/*/*.json, or put them into the README.

    python results/tables.py            print
    python results/tables.py --write    replace the block between the two marker comments

A cell is the mean over the seeds that were run, with the standard deviation behind it.
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- results: python results/tables.py --write -->", "<!-- end of results -->"

MAIN = {
    "retrieval/image_to_text_r1": "picture to caption, recall@1 among 1,000 pictures",
    "retrieval/text_to_image_r1": "caption (partial ones too) to picture, recall@1",
    "zero_shot/seen": "zero-shot, 40 seen color-shape pairs",
    "zero_shot/held_out": "zero-shot, 8 pairs never seen",
    "answers/exist": "answers: is there a ...?",
    "answers/color": "answers: color",
    "answers/shape": "answers: shape",
    "answers/size": "answers: size",
    "answers/count": "answers: how many",
    "answers/position": "answers: where",
    "answers/relation": "answers: left of, above",
    "pope_random/f1": "POPE random, F1",
    "pope_popular/f1": "POPE popular, F1",
    "pope_adversarial/f1": "POPE adversarial, F1",
    "style/word": "obeys: one word",
    "style/sentence": "obeys: one sentence",
    "style/list": "obeys: a list",
    "chair/recall": "visible objects named in descriptions",
    "chair/chair_i": "named objects that cannot be seen (CHAIR_i)",
    "chair/chair_s": "descriptions with such an object (CHAIR_s)",
    "answers/hidden": "hardly visible objects affirmed when asked",
    "refused/due": "refuses what it should",
    "refused/harmless": "refuses harmless look-alikes",
}
WAYS = {"full": "stages 1, 3a, 3b", "no_3a": "without 3a", "no_1": "without 1", "neither": "3b alone"}


def load(folder: str) -> dict[str, list[dict]]:
    """Result files of a folder by their name without the seed."""
    out = defaultdict(list)
    for path in sorted((HERE / folder).glob("*-seed*.json")):
        out[path.name.rsplit("-seed", 1)[0]].append(json.loads(path.read_text()))
    return out


def cell(values: list[float]) -> str:
    """Mean, and standard deviation where there are several."""
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.3f}"


def main_table(folder: str) -> list[str]:
    """Every figure of a data set beside the blind baseline and chance."""
    runs = load(folder)
    if not runs:
        return []
    n = max(map(len, runs.values()))
    first = next(iter(runs.values()))[0]
    env = first["environment"]
    commits = sorted({r["environment"]["commit"] for rs in runs.values() for r in rs})
    lines = [
        f"Data: {first['data']}; {n} seed{'s' * (n > 1)}; {env['cpu']}; torch {env['torch']}; "
        f"commit {', '.join(commits)}.",
        "",
        "| held-out pictures | value | blind (gray picture) | chance |",
        "|---|---|---|---|",
    ]
    for key, label in MAIN.items():
        for rs in runs.values():
            if all(key in r["figures"] for r in rs):
                value, blind = (cell([r[side][key] for r in rs]) for side in ("figures", "blind"))
                chance = rs[0]["chance"].get(key)
                chance = "" if chance is None else f"{chance:.2f}"
                lines.append(f"| {label} | {value} | {blind} | {chance} |")
    return lines


def ablation_table() -> list[str]:
    """The four ways of the ablation, side by side."""
    runs = load("ablation")
    if set(runs) != set(WAYS):
        return []
    keys = (
        "answers/exist", "answers/color", "answers/shape", "answers/count", "answers/position",
        "chair/recall", "chair/chair_i",
    )
    lines = [f"SFT with and without the stages before it, at equal time ({len(runs['full'])} seeds):", "",
             "| | " + " | ".join(WAYS.values()) + " |", "|---" * (len(WAYS) + 1) + "|"]
    seconds = {w: [r["train_seconds"] / 60 for r in runs[w]] for w in WAYS}
    cells = [f"{statistics.fmean(seconds[w]):.1f}" for w in WAYS]
    lines.append("| minutes after language pretraining | " + " | ".join(cells) + " |")
    for key in keys:
        cells = [cell([r["figures"][key] for r in runs[w]]) for w in WAYS]
        lines.append(f"| {MAIN[key]} | " + " | ".join(cells) + " |")
    return lines


def block() -> str:
    """All tables, as they stand in the README."""
    parts = [main_table("shapes"), ablation_table(), main_table("nlvr")]
    return "\n\n".join("\n".join(p) for p in parts if p)


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        text = README.read_text()
        head, rest = text.split(BEGIN)
        README.write_text(f"{head}{BEGIN}\n{block()}\n{END}{rest.split(END)[1]}")
    elif sys.argv[1:]:
        sys.exit(f"tables.py: error: unknown arguments {' '.join(sys.argv[1:])}; only --write")
    else:
        print(block())
