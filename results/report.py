"""Write a report of a whole run: the table after each stage, curves, pictures with each answer.

    python results/report.py [runs] [data/shapes/prepared] [report] [dpo] [seconds]

Reads the run folders lm, clip, caption, align, sft, reward, ppo, dpo, as far as they are there,
with what evaluate.py has left in them. Writes report.md, curves.png and answers.png. The pictures
are the first ones of each kind of question, not chosen by hand. The last arguments are the last
stage to report, and how long everything took.
"""

import json
import math
import sys
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
from charts import legend, panel
from minivlm.loading.images import Pictures, contact_sheet
from minivlm.loading.prepared import load_meta
from minivlm.running.machine import environment
from tables import DIALOGUES, MAIN, read_log

NAMES = {"lm": "LM", "clip": "CLIP", "caption": "captioner", "align": "connector", "sft": "SFT",
         "reward": "reward model", "ppo": "PPO", "dpo": "DPO"}
FIGURES = ("chair/chair_i", "chair/recall", "chair/recall_hidden", "answers/exist", "answers/count",
           "answers/position", "pope_adversarial/f1", "refused/due")
KINDS = ("exist", "color", "hidden", "detail", "unknowable", "private")
CURVES = (  # what of which stages, against what
    (("lm", "align", "sft"), "val_loss", "loss of held-out text, nats a token"),
    (("clip",), "val_loss", "InfoNCE of held-out pairs, nats"),
    (("reward",), "accuracy/all", "held-out pairs in the simulated human's order"),
    (("ppo", "dpo"), "val_true_score", "true score, by the scene (1 .. 5)"),
    (("ppo", "dpo"), "val_kl_answer", "KL to the chatbot, nats an answer"),
    (("dpo",), "val_accuracy", "held-out pairs, by implicit rewards"),
)
PANEL, GAP, HIGH = 330, 110, 300  # pixels
COLOR = dict(zip(NAMES, ("#1f5fa8", "#1f5fa8", "#777777", "#8a4fa0", "#5a9a3c", "#1f5fa8",
                         "#c2571a", "#5a9a3c")))


def table(runs: Path, stages: list[str]) -> list[str]:
    """Time and memory of each stage; then what each chatbot can do."""
    lines = ["| stage | minutes | peak memory, GB |", "|---|---|---|"]
    for stage in stages:
        last = read_log(runs / stage / "metrics.csv")[-1]
        lines.append(f"| {NAMES[stage]} | {last['min']:.1f} | {last['gb']:.2f} |")
    read = {s: json.loads((runs / s / "eval.json").read_text())["figures"] for s in stages
            if s != "clip" and (runs / s / "eval.json").is_file()}
    lines += ["", "| held-out pictures | " + " | ".join(NAMES[s] for s in read) + " |",
              "|---" * (len(read) + 1) + "|"]
    for key in FIGURES:
        cells = [f"{f[key]:.3f}" if key in f else "-" for f in read.values()]
        lines.append(f"| {(MAIN | DIALOGUES)[key]} | " + " | ".join(cells) + " |")
    return lines


def curves(runs: Path, stages: list[str]) -> Image.Image:
    """A panel for each of CURVES whose stages are there."""
    panels = []
    for who, key, title in CURVES:
        lines = {s: [(r["step"], r[key]) for r in read_log(runs / s / "metrics.csv")
                     if not math.isnan(r.get(key, math.nan))] for s in who if s in stages}
        lines = {s: line for s, line in lines.items() if len(line) > 1}
        if lines:
            panels.append((lines, title))
    rows = -(-len(panels) // 3)
    sheet = Image.new("RGB", (3 * (PANEL + GAP), rows * (HIGH + 130) + 10), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (lines, title) in enumerate(panels):
        left, top = 70 + i % 3 * (PANEL + GAP), 70 + i // 3 * (HIGH + 130)
        legend(draw, left, top - 42, {NAMES[s]: COLOR[s] for s in lines}, 115)
        panel(draw, (left, top, left + PANEL, top + HIGH), list(lines.values()), title, "step",
              colors=[COLOR[s] for s in lines])
    return sheet


def answers(logs: dict[str, Path], data: Path) -> Image.Image:
    """Six pictures, a question each, and what each model says: name -> eval.answers.jsonl."""
    said: dict[str, dict] = {name: {} for name in logs}
    for name, path in logs.items():
        for line in path.read_text("utf-8").splitlines():
            a = json.loads(line)
            said[name].setdefault((a["image"], a["question"]), a)
    first, *others = said.values()
    common = [a for key, a in first.items() if all(key in log for log in others)]
    shown: dict[str, dict] = {}
    for kind in KINDS:
        first = next((a for a in common if a["kind"] == kind and a["image"] not in shown), None)
        if first:
            shown[first["image"]] = first
    texts = [[a["question"]] + [
        f"{name}: " + log[a["image"], a["question"]]["answer"].replace("\n", " / ")
        for name, log in said.items()] for a in shown.values()]
    pictures = Pictures(data, load_meta(data)["image_size"])
    return contact_sheet(pictures.pixels(list(shown)), texts, columns=3, side=320, n_lines=25)


def main(
    runs: str = "runs", data: str = "data/shapes/prepared", out: str = "report", until: str = "dpo",
    seconds: str = "",
) -> None:
    """Write the report."""
    folder, where, names = Path(runs), Path(out), list(NAMES)
    if until not in names:
        sys.exit(f"report.py: error: no stage {until}, expected one of {', '.join(names)}")
    stages = [s for s in names[: names.index(until) + 1] if (folder / s / "metrics.csv").is_file()]
    if "sft" not in stages or not (folder / "sft" / "eval.answers.jsonl").is_file():
        sys.exit(f"report.py: error: no chatbot in {folder}/sft that evaluate.py has measured")
    where.mkdir(parents=True, exist_ok=True)
    curves(folder, stages).save(where / "curves.png")
    logs = {NAMES[s]: folder / s / "eval.answers.jsonl" for s in stages if s != "clip"}
    answers({name: path for name, path in logs.items() if path.is_file()}, Path(data)).save(
        where / "answers.png")
    env = environment()
    minutes = f"{int(seconds or 0) / 60:.1f}"
    took = f"Data, all stages and measurements: {minutes} minutes. " if seconds else ""
    lines = ["# What each stage can do", "",
             f"{took}{env['cpu']}; torch {env['torch']}; commit {env['commit']}.", "",
             *table(folder, stages), "",
             "![six pictures, a question each, the answer of each stage](answers.png)", "",
             "![losses and scores over steps](curves.png)", ""]
    (where / "report.md").write_text("\n".join(lines))
    print(f"wrote {where}/report.md")


if __name__ == "__main__":
    main(*sys.argv[1:])
