"""Measure a run on held-out data: retrieval, zero-shot, captions, answers, POPE, CHAIR, style.

Every figure stands beside chance and a blind baseline: the same model looking at a gray picture.
What a run cannot do (a CLIP writes nothing, a chatbot has no text tower) is left out of its table,
and so is what a data folder does not hold (zeroshot.jsonl with prompts, eval.jsonl, phrases that
name objects).

With --axes, a chatbot's figures are summed up by what preferences are to change: hallucination,
helpfulness, safety, preference (against another run, as judged by a simulated judge), honesty.

Reads: a run folder and a prepared data folder.   Writes: eval.json (quiz.json) in the run folder.
Run: python evaluate.py --run runs/sft [--questions quiz]
     python evaluate.py --run runs/dpo --axes --against runs/sft
"""

import csv
import json
import time
from minivlm.loading.models import clip_from, vlm_from
from dataclasses import dataclass
from pathlib import Path

from minivlm.evaluation import measure
from minivlm.evaluation.axes import axes
from minivlm.evaluation.raters import SimulatedJudge
from minivlm.loading.images import Pictures
from minivlm.loading.prepared import load_meta, load_records
from minivlm.running import checkpoint, machine, options
from minivlm.running.files import check_entries, read_lines, read_text
from minivlm.tokenizer import Tokenizer

# --- config ---


@dataclass
class Config:
    """Options; the comments are the help texts."""

    run: str = "runs/sft"  # run folder of any stage behind the first
    data: str = "data/shapes/prepared"  # folder made by a prepare.py
    out: str = ""  # file for the figures; empty = <questions>.json in the run folder
    questions: str = "eval"  # which file of the data folder to ask: eval, quiz, quiz_held_out
    n_images: int = 1000  # held-out pictures for retrieval
    n_questions: int = 300  # at most so many questions of a kind
    n_describe: int = 300  # pictures to describe for CHAIR, and to ask about for POPE
    max_new_tokens: int = 96  # longest answer
    ask: bool = True  # ask the chatbot's questions; --no-ask leaves a captioner its captions
    describe: bool = True  # measure CHAIR and POPE; --no-describe leaves the other questions
    rank: bool = False  # answer in one word too by taking the likeliest of all candidates
    axes: bool = False  # sum a chatbot's figures up on five axes too
    against: str = ""  # axes: a run, evaluated before, whose answers are to be beaten; empty = none
    error_rate: float = 0.1  # axes: share of the simulated judge's ratings that are guesses
    judge: str = ""  # a run of train_clip.py that judges a captioner's captions: CLIPScore
    n_beams: int = 3  # texts followed at once when a captioner writes, as BLIP does
    batch_size: int = 100  # rows answered at a time
    blind: bool = True  # measure the same model on gray pictures too
    seed: int = 0  # which objects POPE asks about
    train_seconds: int = 0  # what all before it took, to be kept with the figures; 0 = not told
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    threads: int = 0  # CPU threads; 0 = torch's choice


# --- tables ---


def table(figures: dict[str, float], blind: dict[str, float], chance: dict[str, float]) -> str:
    """One line a figure: name, value, blind baseline, chance."""
    lines = [f"{'figure':40s} {'value':>7s} {'blind':>7s} {'chance':>7s}"]
    for name, value in figures.items():
        cells = [f"{d[name]:7.3f}" if name in d else "      -" for d in (blind, chance)]
        lines.append(f"{name:40s} {value:7.3f} {' '.join(cells)}")
    return "\n".join(lines)


def last_row(path: Path) -> dict[str, float]:
    """The last row of a run's log: final losses, ms a step, peak memory; {} if there is no log.

    Raises:
        ValueError: if it is no table of numbers.
    """
    if not path.is_file():
        return {}
    try:
        *_, row = csv.DictReader(read_text(path).splitlines())
        return {k: float(v) for k, v in row.items() if v}
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path} is no log of a run: {error}") from None


def read_answers(cfg: Config) -> list[dict] | None:
    """The answers of the run to be beaten, as its own evaluation has left them.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: for a line that is no answer.
    """
    if not cfg.against:
        return None
    path = Path(cfg.against) / f"{cfg.questions}.answers.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"no answers at {path}; run evaluate.py --run {cfg.against} first")
    log = [record for _, record in read_lines(path)]
    check_entries(log, str(path), image=str, kind=str, question=str, answer=str)
    return log


def main(cfg: Config) -> dict[str, float]:
    """Measure, print the table, write the file; return the figures."""
    began = time.time()
    machine.seed_everything(cfg.seed, cfg.threads)
    device, meta = machine.pick_device(cfg.device), load_meta(cfg.data)
    state = checkpoint.load(cfg.run, ("clip", "align", "caption", "sft", "ppo", "dpo"))
    tokenizer = Tokenizer.from_text(state["tokenizer"])
    model = (clip_from if state["stage"] == "clip" else vlm_from)(state).to(device).eval()
    file = Path(cfg.data) / f"{cfg.questions}.jsonl"
    if cfg.questions != "eval" and not file.is_file():
        raise FileNotFoundError(f"no questions at {file}; data/quiz.py writes a quiz")
    if cfg.axes:  # what is missing is better known now than after the measurement
        if state["stage"] not in ("sft", "ppo", "dpo") or not meta.get("phrases"):
            raise ValueError("--axes needs a chatbot, and pictures whose objects are known")
        if not cfg.ask or not cfg.describe:
            raise ValueError("--axes needs all answers; leave --no-ask and --no-describe out")
        their_log, questions = read_answers(cfg), load_records(cfg.data, cfg.questions)
    judge = None
    if cfg.judge:
        if state["stage"] != "caption":
            raise ValueError(f"{cfg.run} writes no captions that {cfg.judge} could judge")
        judged_by = checkpoint.load(cfg.judge, ("clip",))
        if judged_by["configs"]["tokenizer"] != tokenizer.identity:
            raise ValueError(f"{cfg.judge} and {cfg.run} have different tokenizers")
        judge = clip_from(judged_by).to(device).eval()
    pictures = Pictures(cfg.data, model.vit.config.image_size)
    folder = Path(cfg.run).parent if Path(cfg.run).is_file() else Path(cfg.run)
    out = Path(cfg.out or folder / f"{cfg.questions}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    log, training = [], last_row(folder / "metrics.csv")
    chance = {f"answers/{kind}": p for kind, p in meta.get("chance", {}).items()}
    sides: list[dict[str, float]] = []
    for blind in (False, True)[: 1 + cfg.blind]:
        data = measure.HeldOut(cfg.data, meta, tokenizer, pictures, blind)
        kept = [] if blind else log
        if state["stage"] == "clip":
            figures = measure.retrieval(model, data, cfg.n_images, chance)
            if "prompts" in meta and data.has("zeroshot"):
                figures |= measure.zero_shot(model, data, kept)
        else:
            stop = tokenizer.stop(state["stage"])
            ask = measure.make_answerer(model, data, stop, cfg.max_new_tokens, cfg.batch_size)
            figures = {}
            if cfg.ask and data.has(cfg.questions):
                figures |= measure.answers(ask, data, cfg.n_questions, kept, cfg.questions)
                if cfg.rank:
                    figures |= measure.ranked(
                        model, data, stop, cfg.n_questions, chance, cfg.questions
                    )
            if cfg.ask and cfg.describe and "phrases" in meta:
                figures |= measure.hallucination(ask, data, cfg.n_describe, cfg.seed, kept)
            if state["stage"] == "caption":
                figures |= measure.captioning(
                    model, data, state["configs"]["prompt"], cfg.n_describe, cfg.n_beams,
                    cfg.max_new_tokens, cfg.batch_size, kept, judge,
                )
            if not figures:
                raise ValueError(
                    f"{cfg.data} has no {cfg.questions}.jsonl and its meta.json no phrases: "
                    "nothing to measure"
                )
        sides.append(figures)
    figures, blind = sides[0], sides[1] if cfg.blind else {}
    if cfg.axes:
        summed = axes(figures, log, their_log, questions, load_records(cfg.data, "val"),
                      meta["phrases"], SimulatedJudge(cfg.error_rate, cfg.seed))
        figures |= {f"axes/{k}": v for k, v in summed.items()}
    chance |= {k: 1 / len(meta["prompts"]) for k in figures if k.startswith("zero_shot")}
    # a coin's accuracy, precision, recall, ...
    chance |= {k: 0.5 for k in figures if k.startswith("pope")}
    chance = {k: p for k, p in chance.items() if k in figures}
    print(options.printable(table(figures, blind, chance)))
    report = {
        "run": cfg.run,
        "data": meta["name"],
        "train_seconds": cfg.train_seconds,
        **machine.provenance(cfg, began),
        "training": training,
        "figures": figures,
        "blind": blind,
        "chance": chance,
    }
    out.write_text(json.dumps(report, indent=1) + "\n")
    if log:
        out.with_suffix(".answers.jsonl").write_text("\n".join(map(json.dumps, log)) + "\n")
    print(f"wrote {out}")
    return figures


if __name__ == "__main__":
    options.cli(main, Config)
