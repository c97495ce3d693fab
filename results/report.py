"""Write the report of a whole run: what each stage took and can do, curves, answers.

    python results/report.py [runs] [data/shapes/prepared] [report] [dpo] [seconds]

The arguments: the folder of the run folders lm, clip, caption, align, sft, reward, ppo
and dpo, of which the later ones may be missing; the data folder; the folder to write; the
last stage to report; how long everything took. evaluate.py must have measured the run
folders before.

Writes report.md, curves.png and answers.png. Nobody chose the pictures of answers.png:
they are the first ones of each kind of question.
"""

import json
import math
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from charts import FONT, Points, legend, panel
from minivlm.loading.images import Pictures, contact_sheet
from minivlm.loading.prepared import load_meta
from minivlm.running.machine import environment
from tables import DIALOGUES, MAIN, read_log

ROOT = Path(__file__).resolve().parents[1]
NAMES = {"lm": "LM", "clip": "CLIP", "caption": "captioner", "align": "connector",
         "sft": "SFT", "reward": "reward model", "ppo": "PPO", "dpo": "DPO"}
COLORS = {"lm": "#1f5fa8", "clip": "#1f5fa8", "caption": "#777777", "align": "#8a4fa0",
          "sft": "#5a9a3c", "reward": "#1f5fa8", "ppo": "#c2571a", "dpo": "#5a9a3c"}
FIGURES = ("chair/chair_i", "chair/recall", "chair/recall_hidden", "answers/exist",
           "answers/count", "answers/position", "pope_adversarial/f1", "refused/due")
KINDS = ("exist", "color", "hidden", "detail", "unknowable", "private")
CURVES = (  # stages, column of the evaluations, column of the training rows, title
    (("lm", "align", "sft"), "val_loss", "loss", "loss, nats a token"),
    (("clip",), "val_loss", "loss", "InfoNCE, nats (the held-out batch is larger)"),
    (("reward",), "accuracy/all", "", "pairs in the simulated human's order"),
    (("ppo", "dpo"), "val_true_score", "true_score", "true score, by the scene (1 .. 5)"),
    (("ppo", "dpo"), "val_kl_answer", "kl_answer", "KL to the reference, nats an answer"),
    (("dpo",), "val_accuracy", "accuracy", "pairs in the right order, by implicit rewards"),
)
PANEL, GAP, HEIGHT = 330, 110, 300  # pixels


def table(runs: Path, stages: list[str]) -> list[str]:
    """Time and memory of each stage; then what each chatbot can do."""
    lines = ["| stage | minutes | peak memory, GB |", "|---|---|---|"]
    for stage in stages:
        last = read_log(runs / stage / "metrics.csv")[-1]
        lines.append(f"| {NAMES[stage]} | {last['min']:.1f} | {last['gb']:.2f} |")
    figures = {}
    for stage in stages:
        path = runs / stage / "eval.json"
        if stage != "clip" and path.is_file():  # CLIP answers no questions
            figures[stage] = json.loads(path.read_text())["figures"]
    lines += [
        "",
        "| held-out pictures | " + " | ".join(NAMES[stage] for stage in figures) + " |",
        "|---" * (len(figures) + 1) + "|",
    ]
    labels = MAIN | DIALOGUES
    for key in FIGURES:
        cells = [f"{of_stage[key]:.3f}" if key in of_stage else "-"
                 for of_stage in figures.values()]
        lines.append(f"| {labels[key]} | " + " | ".join(cells) + " |")
    return lines


def points(log: list[dict[str, float]], key: str) -> Points:
    """(step, value) of each row of a log that has this column; a NaN is no value."""
    has_value = [row for row in log if not math.isnan(row.get(key, math.nan))]
    return [(row["step"], row[key]) for row in has_value]


def curves(runs: Path, stages: list[str]) -> Image.Image:
    """A panel for each of CURVES whose stages are there.

    Thick lines are evaluations on held-out records, thin lines are means over training
    steps.
    """
    panels = []
    for shown, val_key, train_key, title in CURVES:
        lines, thin_lines = {}, {}
        for stage in shown:
            if stage not in stages:
                continue
            log = read_log(runs / stage / "metrics.csv")
            line = points(log, val_key)
            if len(line) > 1:  # a stage that has just begun makes no line
                lines[stage] = line
                thin_lines[stage] = points(log, train_key)
        if lines:
            panels.append((lines, thin_lines, title))
    n_rows = math.ceil(len(panels) / 3)  # three panels in a row
    sheet = Image.new("RGB", (3 * (PANEL + GAP), n_rows * (HEIGHT + 130) + 40), "white")
    draw = ImageDraw.Draw(sheet)
    key = "dots: evaluations on held-out records; thin lines: training steps"
    draw.text((70, sheet.height - 30), key, "black", ImageFont.load_default(FONT))
    for i, (lines, thin_lines, title) in enumerate(panels):
        left = 70 + i % 3 * (PANEL + GAP)
        top = 70 + i // 3 * (HEIGHT + 130)
        labels = {NAMES[stage]: COLORS[stage] for stage in lines}
        legend(draw, left, top - 42, labels, 115)
        panel(
            draw, (left, top, left + PANEL, top + HEIGHT), list(lines.values()), title,
            x_title="step", colors=list(labels.values()),
            thin_lines=list(thin_lines.values()),
        )
    return sheet


def read_answers(path: Path) -> dict[tuple[str, str], dict]:
    """The answers of an eval.answers.jsonl by picture and question; repeats are dropped."""
    answers: dict[tuple[str, str], dict] = {}
    for line in path.read_text("utf-8").splitlines():
        answer = json.loads(line)
        answers.setdefault((answer["image"], answer["question"]), answer)
    return answers


def answers(logs: dict[str, Path], data: Path) -> Image.Image:
    """Six pictures, a question each, and what each model answers.

    Args:
        logs: name of a model -> its eval.answers.jsonl.
        data: the data folder.
    """
    by_model = {name: read_answers(path) for name, path in logs.items()}
    # only questions that all models were asked can be compared
    first, *others = by_model.values()
    common = [a for key, a in first.items() if all(key in other for other in others)]
    shown: dict[str, str] = {}  # picture -> question
    for kind in KINDS:
        for answer in common:
            # each picture stands once on the sheet
            if answer["kind"] == kind and answer["image"] not in shown:
                shown[answer["image"]] = answer["question"]
                break
    texts = []
    for image, question in shown.items():
        paragraphs = [question]
        for name, by_question in by_model.items():
            answer = by_question[image, question]["answer"].replace("\n", " / ")
            paragraphs.append(f"{name}: {answer}")
        texts.append(paragraphs)
    pictures = Pictures(data, load_meta(data)["image_size"])
    pixels = pictures.pixels(list(shown))
    return contact_sheet(pixels, texts, columns=3, side=320, n_lines=25)


def main(
    runs: str = "runs", data: str = "data/shapes/prepared", out: str = "report",
    until: str = "dpo", seconds: str = "",
) -> None:
    """Write the report."""
    run_folder, report = Path(runs), Path(out)
    names = list(NAMES)
    if until not in names:
        sys.exit(f"report.py: error: no stage {until}, expected one of {', '.join(names)}")
    stages = [s for s in names[: names.index(until) + 1]
              if (run_folder / s / "metrics.csv").is_file()]
    if "sft" not in stages or not (run_folder / "sft" / "eval.answers.jsonl").is_file():
        sys.exit(f"report.py: error: no answers in {run_folder}/sft; run evaluate.py first")
    report.mkdir(parents=True, exist_ok=True)
    curves(run_folder, stages).save(report / "curves.png")
    logs = {}
    for stage in stages:
        path = run_folder / stage / "eval.answers.jsonl"
        if stage != "clip" and path.is_file():  # CLIP answers no questions
            logs[NAMES[stage]] = path
    answers(logs, Path(data)).save(report / "answers.png")
    env = environment()
    took = ""
    if seconds:
        took = f"Data, all stages and measurements: {int(seconds) / 60:.1f} minutes. "
    lines = [
        "# What each stage can do", "",
        f"{took}{env['cpu']}; torch {env['torch']}; commit {env['commit']}.", "",
        *table(run_folder, stages), "",
        "![six pictures, a question each, the answer of each stage](answers.png)", "",
        "![losses and scores over steps](curves.png)", "",
    ]
    (report / "report.md").write_text("\n".join(lines))
    print(f"wrote {report}/report.md")


if __name__ == "__main__":
    main(*sys.argv[1:])
