"""Measure a run on held-out records: retrieval, captions, answers, invented objects, style.

Each figure stands beside its chance level and beside its blind baseline, which is the same
model's figure on gray pictures. The table leaves out what a model cannot do (a CLIP writes
nothing, a chatbot has no text tower), and what the data folder does not hold
(zeroshot.jsonl with texts for its classes, eval.jsonl, phrases that name objects).

With --axes, a chatbot's figures are also summed up on the five axes that preference
training is meant to improve: hallucination, helpfulness, safety, preference (wins against
another run, as a simulated judge decides), honesty.

Reads: a run folder and a data folder.
Writes into the run folder: the figures (eval.json) and the answers (eval.answers.jsonl).
These names begin with quiz after --questions quiz, and with eval_best16 after --best_of 16.
Run: python evaluate.py --run runs/sft [--questions quiz]
     python evaluate.py --run runs/sft --best_of 16 --reward runs/reward
     python evaluate.py --run runs/dpo --axes --against runs/sft
"""

import csv
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from minivlm.clip import CLIP
from minivlm.evaluation import measure
from minivlm.evaluation.axes import axes, check_axes
from minivlm.evaluation.correctness import check_names
from minivlm.evaluation.measure import EvalData, Figures
from minivlm.evaluation.raters import SimulatedJudge
from minivlm.loading.images import Pictures
from minivlm.loading.models import clip_from, fit_of, place, reward_model_from, vlm_from
from minivlm.loading.prepared import load_meta, load_records
from minivlm.pretrained.weights import load_state
from minivlm.running import checkpoint, machine, options
from minivlm.running.files import read_lines, read_text
from minivlm.tokenizer import CHATBOTS, Tokenizer
from minivlm.vlm import VLM, VLMConfig

# --- config ---


@dataclass
class Config:
    """Options of the measurement; the comments are the help texts."""

    # files
    run: str = "runs/sft"  # run to measure: clip, align, caption, sft, ppo, dpo; or a LLaVA
    data: str = "data/book/prepared"  # data folder made by a prepare.py
    out: str = ""  # file for the figures; empty = <questions>.json in the run folder
    # how much is asked
    questions: str = "eval"  # split of the data folder to ask: eval, quiz, quiz_held_out
    n_images: int = 1000  # >= 1; most held-out pictures for retrieval; more makes it harder
    n_questions: int = 150  # >= 1; most questions of each kind
    n_describe: int = 300  # >= 1; most pictures for CHAIR, POPE and captions
    max_new_tokens: int = 96  # >= 1; longest answer, in tokens
    # what is measured
    ask: bool = True  # ask questions; --no-ask measures the captions of a captioner only
    describe: bool = True  # measure CHAIR and POPE; --no-describe leaves them out
    best_of: int = 1  # >= 1; draw so many answers; the one that --reward likes best counts
    reward: str = ""  # run folder of train_reward.py that chooses among them
    temperature: float = 1.0  # > 0; for drawing them
    rank: bool = False  # also answer one-word questions by choosing the likeliest candidate
    # axes
    axes: bool = False  # also sum up a chatbot's figures on five axes
    against: str = ""  # run folder to compare answers with, measured before; empty = none
    error_rate: float = 0.1  # 0 .. 1; share of random ratings by the simulated judge
    # captions
    clip_score: str = ""  # run folder of train_clip.py that gives CLIPScore; empty = none
    n_beams: int = 3  # >= 1; beams of a captioner's beam search; more is slower; BLIP has 3
    # measurement
    batch_size: int = 100  # >= 1; answers written at a time; fewer need less memory
    blind: bool = True  # also measure the model on gray pictures
    seed: int = 0  # >= 0; decides which objects POPE asks about
    train_seconds: int = 0  # >= 0; seconds of training, only noted in the file; 0 = unknown
    # machine
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; auto = a GPU if there is one
    dtype: str = "float32"  # auto | float32 | bfloat16; in which a VLM computes
    threads: int = 0  # >= 0; CPU threads; 0 = torch's choice


# --- checks before the measurement, which takes minutes ---


def check_request(cfg: Config, stage: str, meta: dict) -> None:
    """Refuse options that do not fit the run, the data folder or each other.

    Raises:
        FileNotFoundError: if the data folder does not hold the questions.
        ValueError: if --axes or --clip_score does not fit the run or the other options.
    """
    file = Path(cfg.data) / f"{cfg.questions}.jsonl"
    if cfg.questions != "eval" and not file.is_file():
        raise FileNotFoundError(f"no questions at {file}; data/quiz.py writes a quiz")
    if (cfg.best_of > 1) != bool(cfg.reward):
        raise ValueError(f"--best_of {cfg.best_of} and --reward {cfg.reward!r}: the one "
                         "needs the other")
    if cfg.reward and stage not in CHATBOTS:
        raise ValueError(f"--best_of needs a chatbot, and {cfg.run} is none")
    if cfg.axes:
        if stage not in CHATBOTS or not meta.get("phrases"):
            raise ValueError("--axes needs a chatbot, and pictures whose objects are known")
        if not cfg.ask or not cfg.describe:
            raise ValueError(
                "--axes needs all answers; leave --no-ask and --no-describe out"
            )
    if cfg.clip_score and stage != "caption":
        raise ValueError(f"{cfg.run} is no captioner; --clip_score scores captions only")


def read_answers(cfg: Config) -> list[dict] | None:
    """Read the answers of the run --against, or return None without this option.

    Raises:
        FileNotFoundError: if that run has not been measured on the same questions.
        ValueError: if a line of its file is no answer; the message names file and line.
    """
    if not cfg.against:
        return None
    path = Path(cfg.against) / f"{cfg.questions}.answers.jsonl"
    if not path.is_file():
        raise FileNotFoundError(
            f"no answers at {path}; run evaluate.py --run {cfg.against} first"
        )
    log = []
    for name, entry in read_lines(path):
        for key in ("image", "kind", "question", "answer"):
            if not isinstance(entry.get(key), str):
                raise ValueError(f"{name} is no answer: it has no {key}, or no text there")
        log.append(entry)
    return log


def check_data(cfg: Config, stage: str, data: EvalData) -> list[dict]:
    """Read the records that a run will be measured on; refuse those that are unusable.

    Returns:
        the questions that a VLM will be asked; [] if it is asked none.

    Raises:
        FileNotFoundError: if val.jsonl is needed and missing.
        ValueError: if a record is faulty, if a picture shows an object that meta.json has
            no phrase for, or if no answer to a question could be right.
    """
    if stage == "clip":
        data.records("val", "image")
        measure.classified(data)
        return []
    phrases = data.meta.get("phrases", {})
    if cfg.ask and cfg.describe and phrases:
        for record in data.records("val", "image"):
            if record.get("objects"):
                data.object_names(record, (False, True))
    if stage == "caption":
        data.records("val", "image", "captions")
    if not cfg.ask or not data.has(cfg.questions):
        return []
    asked = measure.questions_of(data, cfg.n_questions, cfg.questions)
    for q in asked:
        fault = check_names(q, phrases) if phrases else ""
        if fault:
            raise ValueError(f"{cfg.questions}.jsonl, question {q['id']}: {fault}")
    return asked


def load_scorer(cfg: Config, tokenizer: Tokenizer, device: torch.device) -> CLIP | None:
    """Load the CLIP for CLIPScore, or return None without the option --clip_score.

    Raises:
        ValueError: if the CLIP and the captioner have different tokenizers.
    """
    if not cfg.clip_score:
        return None
    state = checkpoint.load(cfg.clip_score, ("clip",))
    # the captioner's tokenizer encodes the captions for the CLIP
    if state["configs"]["tokenizer"] != tokenizer.identity:
        raise ValueError(f"{cfg.clip_score} and {cfg.run} have different tokenizers")
    return clip_from(state).to(device).eval()


def load_best_of(
    cfg: Config, tokenizer: Tokenizer, config: VLMConfig, fit: str, device: torch.device
) -> measure.BestOf:
    """Load the reward model that chooses among the answers of a chatbot.

    Args:
        config, fit: of the chatbot.

    Raises:
        ValueError: if chatbot and reward model have different tokenizers or see pictures
            differently, or if the reward model reads facts, of which nobody tells here.
    """
    state = checkpoint.load(cfg.reward, ("reward",))
    if state["configs"]["tokenizer"] != tokenizer.identity:
        raise ValueError(f"{cfg.reward} and {cfg.run} have different tokenizers")
    if state["configs"]["facts"]:
        raise ValueError(f"{cfg.reward} was trained with --facts, which no one knows here")
    if fit_of(state) != fit:
        raise ValueError(f"{cfg.reward} and {cfg.run} make pictures square in other ways")
    model = reward_model_from(state, take=True).requires_grad_(False).eval().to(device)
    if model.vlm.config.vit.image_size != config.vit.image_size:
        raise ValueError(f"{cfg.reward} and {cfg.run} see pictures of other sizes")
    return measure.BestOf(model, cfg.best_of, cfg.temperature, cfg.seed)


# --- figures ---


def vlm_figures(
    cfg: Config, model: VLM, state: dict, scorer: CLIP | None,
    best: measure.BestOf | None, data: EvalData, chance: Figures, log: list[dict],
) -> Figures:
    """Measure a VLM.

    Args:
        state: the model's checkpoint.
        scorer: the CLIP for CLIPScore, or None.
        best: chooses among drawn answers, or None.
        chance: gets chance levels.
        log: gets the answers.
    """
    stop = data.tokenizer.stop(state["stage"])
    ask = measure.make_answerer(
        model, data, stop, cfg.max_new_tokens, cfg.batch_size, best
    )
    figures: Figures = {}
    if cfg.ask and data.has(cfg.questions):
        figures |= measure.answers(ask, data, cfg.n_questions, log, cfg.questions)
        if cfg.rank:
            figures |= measure.ranked(
                model, data, stop, cfg.n_questions, cfg.batch_size, chance, cfg.questions
            )
    if cfg.ask and cfg.describe and data.meta.get("phrases"):
        figures |= measure.hallucination(ask, data, cfg.n_describe, cfg.seed, log)
    # only a captioner's checkpoint has "prompt", the words before every caption
    if state["stage"] == "caption":
        figures |= measure.captioning(
            model, data, state["configs"]["prompt"], cfg.n_describe, cfg.n_beams,
            cfg.max_new_tokens, cfg.batch_size, log, scorer,
        )
    return figures


def last_row(path: Path) -> Figures:
    """Read the last row of a run's metrics.csv; return {} if there is no such file.

    A finished run ends with an evaluation. So the row holds the final losses (of training
    and held-out), the ms per step and the peak memory. Empty columns are left out.

    Raises:
        ValueError: if the file is no table of numbers.
    """
    if not path.is_file():
        return {}
    try:
        # ValueError if there is no row, TypeError if a row has more cells than the header
        *_, row = csv.DictReader(read_text(path).splitlines())
        return {name: float(value) for name, value in row.items() if value}
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path} is no log of a run: {error}") from None


def table(figures: Figures, blind: Figures, chance: Figures) -> str:
    """Make the printed table, one line per figure: name, value, blind baseline, chance."""
    lines = [f"{'figure':40s} {'value':>7s} {'blind':>7s} {'chance':>7s}"]
    for name, value in figures.items():
        line = f"{name:40s} {value:7.3f}"
        for baseline in (blind, chance):
            line += f" {baseline[name]:7.3f}" if name in baseline else "       -"
        lines.append(line)
    return "\n".join(lines)


def write_answers(log: list[dict], path: Path) -> None:
    """Write the answers of a run, if there are any, and say so."""
    if log:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in log))
        print(f"wrote {path}")


def main(cfg: Config) -> Figures:
    """Measure, print the table, write the files; return the figures."""
    began = time.time()
    options.check(cfg)

    # --- model and data ---
    machine.seed_everything(cfg.seed, cfg.threads)
    device = machine.pick_device(cfg.device)
    meta = load_meta(cfg.data)
    state = load_state(cfg.run, ("clip", "align", "caption", *CHATBOTS))
    tokenizer = checkpoint.tokenizer_of(state)
    if state["stage"] == "clip":
        model = clip_from(state).to(device).eval()
    else:
        half = machine.is_bfloat16(device, cfg.dtype)
        model = vlm_from(state, take=True, half=half).requires_grad_(False).eval()
        place(model, device, half)
    check_request(cfg, state["stage"], meta)
    scorer = load_scorer(cfg, tokenizer, device)
    best = None
    if cfg.reward:
        best = load_best_of(cfg, tokenizer, model.config, fit_of(state), device)
    pictures = Pictures(cfg.data, model.vit.config.image_size, fit_of(state))
    sees = EvalData(cfg.data, meta, tokenizer, pictures)
    # what may be missing or wrong is read before the measurement
    asked = check_data(cfg, state["stage"], sees)
    if cfg.axes:
        their_log = read_answers(cfg)
        records = load_records(cfg.data, "val")
        check_axes(asked, records, their_log)
    file = Path(state["file"])
    folder = file if file.is_dir() else file.parent  # a published model is a folder
    name = cfg.questions if cfg.best_of == 1 else f"{cfg.questions}_best{cfg.best_of}"
    out = Path(cfg.out or folder / f"{name}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    training = last_row(folder / "metrics.csv")

    # --- measure ---
    chance = {f"answers/{kind}": p for kind, p in meta.get("chance", {}).items()}

    def measured(data: EvalData, log: list[dict]) -> Figures:
        if state["stage"] == "clip":
            figures = measure.retrieval(model, data, cfg.n_images, chance)
            return figures | measure.zero_shot(model, data, log)
        with machine.autocast(device, cfg.dtype):
            return vlm_figures(cfg, model, state, scorer, best, data, chance, log)

    log: list[dict] = []
    try:
        figures = measured(sees, log)
    finally:  # the answers took minutes: they are kept, whatever else fails or is stopped
        write_answers(log, out.with_suffix(".answers.jsonl"))
    if not figures:
        missing = f"it has no {cfg.questions}.jsonl, or its meta.json no phrases or prompts"
        reasons = "; ".join(sees.left_out.values()) or missing
        raise ValueError(f"{cfg.data} holds nothing to measure: {reasons}")
    blind: Figures = {}
    if cfg.blind:  # answers to gray pictures are not kept
        blind = measured(EvalData(cfg.data, meta, tokenizer, pictures, blind=True), [])
    if cfg.axes:
        judge = SimulatedJudge(cfg.error_rate, cfg.seed)
        summary = axes(figures, log, their_log, asked, records, meta["phrases"], judge)
        figures |= measure.under("axes", summary)
    chance |= {k: 1 / len(meta["prompts"]) for k in figures if k.startswith("zero_shot")}
    # POPE asks about as many absent as present objects: random answers are half right
    chance |= {k: 0.5 for k in figures if k.startswith("pope")}
    chance = {k: p for k, p in chance.items() if k in figures}

    # --- write ---
    print(options.printable(table(figures, blind, chance)))
    for group, reason in sees.left_out.items():
        print(options.printable(f"left out: {group}, for {reason}"))
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
    print(f"wrote {out}")
    return figures


if __name__ == "__main__":
    options.cli(main, Config)
