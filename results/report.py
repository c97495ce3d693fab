"""Write the report of a whole run: what each stage took and can do, curves, answers.

    python results/report.py [runs] [data/book/prepared] [report] [dpo]

The arguments: the folder of the run folders lm, clip, caption, align, sft, reward, ppo
and dpo, of which the later ones may be missing; the data folder; the folder to write; the
last stage to report. evaluate.py must have measured the run folders before. When each part
of the whole began stands in times.csv, which speedrun.sh writes; without it the table has
the stages alone.

Writes report.md, curves.png, answers.png, and, if pictures of the data folder show
something unusual, captioner.png. Nobody chose the pictures of answers.png: they are the
first ones of each kind of question. Nor those of captioner.png: they are the first
held-out pictures that show something unusual.
"""

import csv
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from asking import load_answerer
from charts import FONT, Points, legend, panel, smooth
from minivlm.loading.images import Pictures, contact_sheet
from minivlm.loading.prepared import load_meta, load_records
from minivlm.metrics import answer_ok
from minivlm.running.machine import environment, matmul_rate
from tables import LABELS, read_log

NAMES = {"lm": "LM", "clip": "CLIP", "caption": "captioner", "align": "connector",
         "sft": "SFT", "reward": "reward model", "ppo": "PPO", "dpo": "DPO"}
COLORS = {"lm": "#1f5fa8", "clip": "#1f5fa8", "caption": "#777777", "align": "#8a4fa0",
          "sft": "#5a9a3c", "reward": "#1f5fa8", "ppo": "#c2571a", "dpo": "#5a9a3c"}
FIGURES = (
    "chair/chair_i", "chair/recall", "chair/recall_hidden", "answers/exist",
    "answers/count", "answers/position", "answers/relation", "answers/size",
    "answers/statement", "answers/strange", "answers/usual", "answers/assumed",
    "answers/offer", "pope_adversarial/f1", "refused/due", "followed/all",
)
# kinds of the questions on answers.png, the first ones of which some picture was asked
KINDS = ("position", "relation", "assumed", "what_strange", "detail", "private", "offer",
         "statement", "count")
N_SHOWN = 6  # pictures on answers.png
FUNNY, N_FUNNY = "What is funny about this picture?", 12
CURVES = (  # stages, column of evaluations, of training rows, title, logarithmic axis?
    (("lm", "align", "sft"), "val_loss", "loss", "loss, nats a token", True),
    (("clip",), "val_loss", "loss", "InfoNCE, nats (the held-out batch is larger)", True),
    (("reward",), "val_loss", "loss", "ranking loss, nats a pair", False),
    (("ppo", "dpo"), "val_true_score", "true_score", "true score, by the scene (1 .. 5)",
     False),
    (("ppo", "dpo"), "val_kl_answer", "kl_answer", "KL to the reference, nats an answer",
     False),
    (("dpo",), "val_accuracy", "accuracy", "pairs in the right order, by implicit rewards",
     False),
)
PANEL, GAP, HEIGHT = 330, 110, 300  # pixels


def seconds_of_parts(runs: Path, stages: list[str]) -> dict[str, float]:
    """How long each part of the whole took, in order: data, stages, measurements."""
    path = runs / "times.csv"
    if not path.is_file():
        return {s: 60 * read_log(runs / s / "metrics.csv")[-1]["min"] for s in stages}
    with path.open(newline="") as f:
        began = {row["part"]: float(row["began"]) for row in csv.DictReader(f)}
    # the last part is this report
    return {part: end - begin
            for (part, begin), end in zip(began.items(), list(began.values())[1:])}


def time_table(runs: Path, stages: list[str]) -> list[str]:
    """Where the time goes; how near to the machine's rate a stage comes; its memory."""
    seconds = seconds_of_parts(runs, stages)
    whole = sum(seconds.values())
    lines = [
        "| part | minutes | share | of the rate of large matrix products | peak memory, GB |",
        "|---|---|---|---|---|",
    ]
    for part, took in seconds.items():
        rate = memory = ""
        if part in stages:
            log = read_log(runs / part / "metrics.csv")
            memory = f"{log[-1]['gb']:.2f}"
            shares = [value for _, value in points(log, "mfu")]
            rate = f"{statistics.median(shares):.2f}" if shares else ""
        lines.append(
            f"| {NAMES.get(part, part)} | {took / 60:.1f} | {took / whole:.0%} | {rate} "
            f"| {memory} |"
        )
    return lines


def skill_table(runs: Path, stages: list[str]) -> list[str]:
    """What each chatbot can do."""
    figures = {}
    for stage in stages:
        path = runs / stage / "eval.json"
        if stage != "clip" and path.is_file():  # CLIP answers no questions
            figures[stage] = json.loads(path.read_text())["figures"]
    lines = [
        "| held-out pictures | " + " | ".join(NAMES[stage] for stage in figures) + " |",
        "|---" * (len(figures) + 1) + "|",
    ]
    for key in FIGURES:
        cells = [f"{of_stage[key]:.3f}" if key in of_stage else "-"
                 for of_stage in figures.values()]
        if set(cells) != {"-"}:  # the data set has it
            lines.append(f"| {LABELS[key]} | " + " | ".join(cells) + " |")
    return lines


def points(log: list[dict[str, float]], key: str) -> Points:
    """(step, value) of each row of a log that has this column; a NaN is no value."""
    has_value = [row for row in log if not math.isnan(row.get(key, math.nan))]
    return [(row["step"], row[key]) for row in has_value]


def curves(runs: Path, stages: list[str]) -> Image.Image:
    """A panel for each of CURVES whose stages are there.

    Dots are evaluations on held-out records. Lines are training steps, smoothed; behind
    them, thin, the rows of the log as they are.
    """
    panels = []
    for shown, val_key, train_key, title, is_log in CURVES:
        lines = {}
        for stage in shown:
            if stage not in stages:
                continue
            log = read_log(runs / stage / "metrics.csv")
            dots = points(log, val_key)
            rows = points(log, train_key)
            if len(dots) > 1:  # a stage that has just begun makes no line
                lines[stage] = (dots, rows, smooth(rows))
        if lines:
            panels.append((lines, title, is_log))
    n_rows = math.ceil(len(panels) / 3)  # three panels in a row
    sheet = Image.new("RGB", (3 * (PANEL + GAP), n_rows * (HEIGHT + 130) + 40), "white")
    draw = ImageDraw.Draw(sheet)
    key = "dots: held-out records; lines: training steps, smoothed; thin: as logged"
    draw.text((70, sheet.height - 30), key, "black", ImageFont.load_default(FONT))
    for i, (lines, title, is_log) in enumerate(panels):
        left = 70 + i % 3 * (PANEL + GAP)
        top = 70 + i // 3 * (HEIGHT + 130)
        labels = {NAMES[stage]: COLORS[stage] for stage in lines}
        legend(draw, left, top - 42, labels, 115)
        dots, rows, smoothed = zip(*lines.values())
        panel(
            draw, (left, top, left + PANEL, top + HEIGHT), smoothed, title,
            x_title="step", colors=list(labels.values()), thin_lines=rows, dots=dots,
            is_log=is_log,
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
        if len(shown) == N_SHOWN:
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


def oddities(record: dict) -> list[str]:
    """What is unusual about a picture's visible things, each with its reason."""
    things = [o for o in record.get("objects", []) if not o.get("hidden")]
    return [o["unusual"] for o in things if o.get("unusual")]


def find_unusual(data: Path) -> dict[str, list[str]]:
    """The first held-out pictures that show something unusual, and what it is.

    A private picture is none of them: nobody may speak about it.
    """
    found = {}
    for record in load_records(str(data), "val", ("image",)):
        odd = oddities(record)
        if odd and record.get("border") != "private":
            found[record["image"]] = odd
        if len(found) == N_FUNNY:
            break
    return found


def under_title(sheet: Image.Image, title: str) -> Image.Image:
    """A sheet with a line of text above it."""
    titled = Image.new("RGB", (sheet.width, sheet.height + 30), "white")
    titled.paste(sheet, (0, 30))
    draw = ImageDraw.Draw(titled)
    draw.text((16, 14), title, "black", ImageFont.load_default(18))
    return titled


def compare_captioner(
    runs: Path, stages: Sequence[str], data: Path, report: Path
) -> list[str]:
    """Ask captioner and chatbot what is funny about pictures; draw captioner.png.

    Returns:
        the lines of the report; none without a captioner or without such pictures.
    """
    unusual = find_unusual(data)
    if not unusual or "caption" not in stages:
        return []
    questions = [{"image": image, "question": FUNNY} for image in unusual]
    by_captioner = load_answerer(runs / "caption", data)(questions)
    by_chatbot = load_answerer(runs / "sft", data)(questions)
    texts = []
    n_right = {"captioner": 0, "SFT": 0}
    for odd, caption, reply in zip(unusual.values(), by_captioner, by_chatbot):
        # "the fish is in the sky, and fish belong in the water": the first half is seen
        seen = [text.partition(", and ")[0].partition(" ")[2] for text in odd]
        n_right["captioner"] += int(answer_ok(caption, seen, ()))
        n_right["SFT"] += int(answer_ok(reply, seen, ()))
        truth = f"({'; '.join(seen)})"
        texts.append([f"captioner: {caption.strip()}", f"SFT: {reply}", truth])
    pictures = Pictures(data, load_meta(str(data))["image_size"]).pixels(list(unusual))
    sheet = contact_sheet(pictures, texts, columns=4, n_lines=20)
    under_title(sheet, f"you: {FUNNY}").save(report / "captioner.png")
    n = len(unusual)
    return [
        "## A captioner is not a chatbot", "",
        f'"{FUNNY}" The captioner of stage 2 and the chatbot of stage 3b, asked about the '
        f"first {n} held-out pictures that show something unusual. What is unusual stands "
        f"in brackets. The captioner names it in {n_right['captioner']} of {n} answers, "
        f"the chatbot in {n_right['SFT']}.", "",
        "![the captioner's and the chatbot's answers](captioner.png)", "",
    ]


def main(
    runs: str = "runs", data: str = "data/book/prepared", out: str = "report",
    until: str = "dpo",
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
    rate = matmul_rate(torch.device("cpu"), torch.float32) / 1e9
    minutes = sum(seconds_of_parts(run_folder, stages).values()) / 60
    lines = [
        "# What each stage can do", "",
        f"All parts: {minutes:.1f} minutes. {env['cpu']}, {rate:.0f} GFLOP/s in a large "
        f"matrix product; torch {env['torch']}; commit {env['commit']}.", "",
        *time_table(run_folder, stages), "",
        "The rate counts the matrix products of a training step; it is the median over the "
        "log. Tokens that are generated one by one, as in PPO's rollouts, are not counted.",
        "",
        *skill_table(run_folder, stages), "",
        "![six pictures, a question each, the answer of each stage](answers.png)", "",
        "![losses and scores over steps](curves.png)", "",
        *compare_captioner(run_folder, stages, Path(data), report),
    ]
    (report / "report.md").write_text("\n".join(lines))
    print(f"wrote {report}/report.md")


if __name__ == "__main__":
    main(*sys.argv[1:])
