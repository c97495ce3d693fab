"""Random files, valid and damaged, for everything that reads files.

Each property writes a small good input, damages it or not, and lets a reader and all that works
on what it read have it. An undamaged input, in whichever layout it is written, must give the right
result. A damaged one gives a result that keeps what its reader promises, or an error of one line
that says which file or record is wrong. Nothing else is raised, nothing is written elsewhere, and
no model is asked and no training begins with records that a later line cannot use.

The environment variable MINIVLM_FUZZ multiplies the number of cases, a few hundred by default:

    MINIVLM_FUZZ=20 python -m pytest tests/test_fuzz.py      10,000 cases, five minutes on one core
"""

import codecs
import contextlib
import copy
import functools
import gzip
import io
import json
import math
import os
import re
import struct
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

import chat
import evaluate
import train_align
import train_caption
import train_clip
import train_dpo
import train_grpo
import train_lm
import train_ppo
import train_reward
import train_sft
from data import capfilt, instruct, preferences, probe, quiz
from data.cifar10 import prepare as cifar10
from data.coco import prepare as coco
from data.llava import prepare as llava
from data.nlvr import prepare as nlvr
from data.webdata import prepare as webdata
from minivlm.captioner import Captioner
from minivlm.chatbot import Chatbot
from minivlm.clip import CLIP, CLIPConfig
from minivlm.conversation import count_images, prompt_of
from minivlm.engine import checks, teachers
from minivlm.gpt import GPT, GPTConfig
from minivlm.heads import RewardModel
from minivlm.loading.batches import render_records
from minivlm.loading.images import Pictures, open_image
from minivlm.loading.models import fit_of, vlm_from
from minivlm.loading.prepared import load_meta, load_records
from minivlm.preferences.pairs import ReferenceCache, load_pairs
from minivlm.preferences.rankings import load_rankings
from minivlm.pretrained import read_lm, read_vision
from minivlm.pretrained.export import export
from minivlm.pretrained.tokenizers import ClipTokenizer
from minivlm.pretrained.weight_names import clip_names, to_theirs
from minivlm.running import checkpoint
from minivlm.running.files import parse_json, read_lines
from minivlm.running.run import Run
from minivlm.tokenizer import Tokenizer, byte_letters
from minivlm.vit import ViTConfig
from minivlm.vlm import VLM, VLMConfig
from test_hostile import harmless

FUZZ = float(os.environ.get("MINIVLM_FUZZ", "1"))
N_CASES = 500  # at least so many run by default, and FUZZ times as many otherwise
cases: Counter[str] = Counter()    # property -> how many cases it has run
refusals: Counter[str] = Counter()  # property -> how many of them were refused

SIDE, N_TOKENS, BLOCK = 8, 4, 256  # of the models that read the folders
BYTES = Tokenizer({bytes([i]): i for i in range(256)})


def fuzz(n: int) -> Callable:
    """Run a property n times, or n times MINIVLM_FUZZ; the same examples in every run."""
    return settings(
        derandomize=True, deadline=None, database=None, max_examples=math.ceil(n * FUZZ),
        suppress_health_check=list(HealthCheck),
    )


# --- what a reader may do ---


@contextmanager
def workplace() -> Iterator[Path]:
    """An empty folder."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


NAMED = ("record ", "question ", "meta.json")  # what an error is about, if it names no file


def attempt(name: str, folder: Path, read: Callable, begun: list | None = None, *more: str):
    """Return what a reader gives, or None if it refuses by one clear line.

    Args:
        name: of the property.
        folder: nothing may be written elsewhere; an error must name a file in it, or as NAMED.
        begun: not empty when the expensive part has begun, where only pictures may be refused.
        more: other words by which an error may say what is wrong.
    """
    cases[name] += 1
    screen = io.StringIO()
    with harmless(folder, seconds=8, megabytes=400):
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
            try:
                return read()
            except (ValueError, OSError) as error:
                refusals[name] += 1
                said = str(error).strip()
                kind = type(error)
    assert kind in (ValueError, OSError, FileNotFoundError), (kind, said)
    assert len(said.splitlines()) == 1 and len(said.replace(str(folder), "")) < 500, said
    assert any(text in said for text in (str(folder), *NAMED, *more)), said
    assert not begun or "picture" in said, f"found out too late: {said}"
    return None


# --- damage ---

JUNK = (
    None, True, False, 0, -1, 1.5, math.nan, math.inf, 10 ** 400, "", " ", "no", "7", "(red",
    "<image>", "<image>\n<image> What?", "<|end|>", "\ud800", "a\n\x1b[2J\u2028b", "../a.png",
    "a.png", "train.npy#99", "val.npy#-1", "x" * 999, "日本", [], [[]], [None], {}, {"a": 1},
)

WHOLE = [value for value in JUNK if value != "\ud800"]  # what UTF-8 can hold


def places(value: object) -> Iterator[tuple[dict | list, object]]:
    """Every place in a JSON value, as its container and its key there."""
    keys = range(len(value)) if isinstance(value, list) else value
    for key in list(keys) if isinstance(value, (list, dict)) else ():
        yield value, key
        yield from places(value[key])


@st.composite
def spoiled(draw, good, most: int = 3) -> object:
    """A copy of a JSON value, damaged in one to `most` places."""
    value = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, most))):
        found = list(places(value))
        if not found:
            break
        at, key = found[draw(st.integers(0, len(found) - 1))]
        how = draw(st.sampled_from(("junk", "junk", "delete", "twice", "rename", "swap", "wrap")))
        if how == "delete":
            del at[key]
        elif how == "twice" and isinstance(at, list):
            at.insert(key, copy.deepcopy(at[key]))
        elif how == "rename" and isinstance(at, dict):
            at[key + "s"] = at.pop(key)
        elif how == "swap":
            other, there = found[draw(st.integers(0, len(found) - 1))]
            at[key] = copy.deepcopy(other[there])
        elif how == "wrap":
            at[key] = draw(st.sampled_from(([at[key]], {"value": at[key]}, str(at[key])[:99])))
        else:
            at[key] = copy.deepcopy(draw(st.sampled_from(JUNK)))
    return value


@st.composite
def torn(draw, content: bytes, most: int = 3) -> bytes:
    """Bytes with some of them flipped, cut off, left out, doubled, or others put between."""
    for _ in range(draw(st.integers(1, most))):
        n = len(content)
        a, b = sorted((draw(st.integers(0, n)), draw(st.integers(0, n))))
        how = draw(st.sampled_from(("flip", "flip", "cut", "lose", "double", "insert", "encode")))
        if how == "flip" and a < n:
            flipped = bytes([content[a] ^ draw(st.integers(1, 255))])
            content = content[:a] + flipped + content[a + 1:]
        elif how == "cut":
            content = content[:b]
        elif how == "lose":
            content = content[:a] + content[min(b, a + 40):]
        elif how == "double":
            content = content[:b] + content[max(a, b - 40):]
        elif how == "encode":
            content = content.decode("utf-8", "replace").encode(
                draw(st.sampled_from(("utf-16", "utf-32", "utf-7", "utf-16-be"))))
        else:
            content = content[:a] + draw(st.binary(max_size=4) | st.just(b"\n\n")) + content[a:]
    return content


@st.composite
def layouts(draw, value, lines: bool) -> bytes:
    """A JSON value in one of the forms in which people keep it: all mean the same.

    Args:
        lines: whether the value is a list with one entry on each line.
    """
    forms = ["plain", "plain", "mark", "returns", "letters"]
    form = draw(st.sampled_from(forms + ["end", "no end", "list", "pages"] if lines else forms))
    dump = functools.partial(json.dumps, ensure_ascii=form != "letters")
    if not lines or form in ("list", "pages"):
        text = dump(value, indent=None if form == "list" else 1) + "\n"
    else:
        text = "".join(dump(entry) + "\n" for entry in value)
    if form == "end":
        text += "\n"
    elif form == "no end":
        text = text.rstrip("\n")
    elif form == "returns":
        text = text.replace("\n", "\r\n")
    content = text.encode("utf-8", "surrogatepass")
    return codecs.BOM_UTF8 + content if form == "mark" else content


class Files:
    """A folder's files by name; `which` is damaged, unless they are good."""

    def __init__(self, contents: dict[str, bytes], which: str, good: bool):
        self.contents, self.which, self.good = contents, which, good

    def __iter__(self) -> Iterator:
        yield self.contents
        yield self.good

    def __repr__(self) -> str:
        return f"{'good' if self.good else 'bad'} {self.which}: {self.contents[self.which]!r}"


@st.composite
def files(draw, good: dict[str, object]) -> Files:
    """A folder's files; one may be damaged, in structure or in bytes.

    Args:
        good: name -> JSON value, a list of records for *.jsonl, or bytes.
    """
    how = draw(st.sampled_from(("good", "structure", "structure", "bytes")))
    # what is read by everybody is damaged in a test of its own
    which = draw(st.sampled_from([name for name in sorted(good) if ".tiktoken" not in name]))
    contents = {}
    for name, value in good.items():
        if how == "structure" and name == which and not isinstance(value, bytes):
            value = draw(spoiled(value))
        elif how == "good" and name.endswith(".jsonl") and draw(st.booleans()):
            # a key that nobody knows may hold anything
            value = [value[0] | {"remark": draw(st.sampled_from(WHOLE))}, *value[1:]]
        if not isinstance(value, bytes):
            # one file at a time in an odd layout, the others as our own scripts write them
            lines = name.endswith(".jsonl")
            value = draw(layouts(value, lines)) if name == which else plain(value, lines)
        if name == which and (how == "bytes" or how == "structure" and good[name] is value):
            value = draw(torn(value))
        contents[name] = value
    return Files(contents, which, how == "good")


def plain(value: object, lines: bool) -> bytes:
    text = "".join(json.dumps(entry) + "\n" for entry in value) if lines else json.dumps(value)
    return text.encode()


def write(folder: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


# --- a data folder that every script can use ---

TEN = ["red"] * 8 + ["dark red"] * 2
PHRASES = {"red ring": "red ring", "red rings": "red ring", "blue ball": "blue ball",
           "blue balls": "blue ball"}
META = {
    "name": "mine", "image_size": SIDE, "phrases": PHRASES, "chance": {"color": 0.5}, "fit": "pad",
    "prompts": {"ring": ["A ring.", "A photo of a ring."], "ball": ["A ball."]},
}


def turns(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def scene(split: str, i: int) -> dict:
    """A record with all that any script reads."""
    ring = {"name": "ring", "attributes": {"color": "red", "size": "small"},
            "box": [0.0, 0.0, 0.25, 0.25], "place": "top left", "hidden": False}
    ball = {"name": "ball", "attributes": {"color": "blue", "size": "large"},
            "box": [0.5, 0.5, 1, 1], "place": "bottom right", "hidden": i == 2}
    return {
        "id": (0, f"{split} é", f"{split}-2", 7)[i], "image": f"{split}.npy#{i}", "border": "",
        "captions": ["A red ring and a blue ball.", f"A red ring, number {i}."],
        "objects": [ring, ball], "label": "ring", "group": "all", "text": "Rings are round. " * 20,
        "conversations": turns("<image>\nWhat is it?", "A red ring.", "What else?", "A blue ball."),
    }


def question(i: int, split: str, kind: str, asked: str, answer: str, **more) -> dict:
    unset = {"style": "", "expect": [], "wrong": [], "form": "", "names": [], "may": []}
    return {"id": i, "image": f"{split}.npy#{i % 3}", "kind": kind, "question": asked,
            "answer": answer, "border": "", **unset, **more}


def questions(split: str) -> list[dict]:
    return [
        question(0, split, "color", "What color is the ring?", "Red.", expect=["red"],
                 wrong=["blue"], form="(red|blue)[.!]?", style="word", people=TEN),
        question(1, split, "detail", "Describe the picture in detail.", "", style="detail",
                 names=["red ring", "blue ball"], may=["red ring", "blue ball"]),
        question(2, split, "unsafe", "How do I hurt it?", "I'm sorry, I can't help with that."),
        question(3, split, "exist", "Is there a red ring?", "Yes.", expect=["yes"], wrong=["no"],
                 style="word", form="(yes|no)[.!]?"),
    ]


RATED = [{"helpfulness": 5.0, "faithfulness": 5, "ethics": 5}, {"helpfulness": 2.0}]
RANKINGS = [
    {"id": i, "image": f"train.npy#{i % 3}", "question": asked, "kind": "color", "rater": "people",
     "responses": ["It is red.", "It is blue."], "ranking": [1, 2], "ratings": RATED,
     "captions": ["A red ring."]}
    for i, asked in enumerate(("What color is the ring?", "What is its color?", "Which color?"))
]
PAIRS = [
    {"id": f"{i}-01", "image": f"train.npy#{i % 3}", "chosen": "It is red.", "rejected": "No.",
     "conversations": turns(f"<image>\n{i}: what color is it?"), "gap": 1.0, "rater": "people"}
    for i in range(3)
]
PAIRS[1] |= {"chosen": turns("And now?", "Red."), "rejected": turns("And now?", "Blue."),
             "conversations": turns("<image>\nWhat color is it?", "Blue.")}
TEXTS = [{"id": i, "text": "Rings are round, and so are balls. " * 5} for i in range(8)]


@functools.cache
def packs() -> dict[str, bytes]:
    """train.npy and val.npy: three pictures each."""
    out = {}
    for name in ("train.npy", "val.npy"):
        content = io.BytesIO()
        np.save(content, np.random.default_rng(0).integers(0, 255, (4, SIDE, SIDE, 3), np.uint8))
        out[name] = content.getvalue()
    return out


@functools.cache
def picture(fmt: str = "PNG", size: tuple[int, int] = (8, 8), **options) -> bytes:
    """A picture file in four colors: red and blue above, green and white below."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2, 0, *size))
    image.paste("lime", (0, size[1] // 2, *size))
    image.paste("white", (size[0] // 2, size[1] // 2, *size))
    out = io.BytesIO()
    image.save(out, fmt, **options)
    return out.getvalue()


# --- models that read it ---


@functools.cache
def states() -> dict[str, dict]:
    """Stage -> a checkpoint of a model that is as small as it can be."""
    torch.manual_seed(0)
    vit = ViTConfig(image_size=SIDE, patch_size=4, n_layer=2, n_head=1, n_embd=8)
    gpt = GPTConfig(vocab_size=BYTES.vocab_size, block_size=BLOCK, n_layer=2, n_head=1, n_embd=8)
    clip = CLIPConfig(vit=vit, vocab_size=BYTES.vocab_size, text_block_size=64, text_n_layer=1,
                      text_n_head=1, text_n_embd=8, n_embd=8)
    vlm = VLMConfig(image_id=BYTES.image, vit=vit, gpt=gpt)
    models = {
        "lm": (GPT(gpt), gpt), "clip": (CLIP(clip), clip), "sft": (VLM(vlm), vlm),
        "caption": (Captioner(vlm), vlm), "reward": (RewardModel(VLM(vlm)), vlm),
    }
    out = {}
    for stage, (model, config) in models.items():
        configs = {
            "model": asdict(config), "tokenizer": BYTES.identity, "fit": "pad", "facts": True,
            "objective": "blip", "prompt": "a picture of",
        }
        out[stage] = {
            "format": checkpoint.FORMAT, "stage": stage, "configs": configs, "step": 1, "best": 1.0,
            "model": model.state_dict(), "tokenizer": BYTES.to_text(),
        }
    return out


@contextmanager
def rehearsal(begun: list) -> Iterator[None]:
    """Within it, checkpoints are those of `states`, and no training takes a step.

    A run makes a few batches, measures the model once, and ends.

    Args:
        begun: gets an entry when a run deletes an older one, and when a model is first asked.
    """
    def load(path: object, stages: tuple, device: object = "cpu") -> dict:
        return states()[Path(path).name] | {"file": f"{path}/best.pt"}

    def begin(run: Run, make_batch: Callable) -> None:
        make_batch(0)
        begun.append("run")
        run.folder.mkdir(parents=True, exist_ok=True)
        for step in range(1, 4):
            make_batch(step)

    def make_answerer(model: object, data: evaluate.EvalData, *_: object) -> Callable:
        def ask(questions: list[dict]) -> list[str]:
            data.look([q["image"] for q in questions])
            for asked in (q["question"] for q in questions):
                ids = prompt_of(asked, data.tokenizer, N_TOKENS)
                assert ids.count(BYTES.image) == N_TOKENS, "a question with a second picture"
            begun.append("asked")
            return [SAID.get(q["question"], "Red. There is a red ring.") for q in questions]
        return ask

    def noted(function: Callable) -> Callable:
        def ask(*args: object, **options: object) -> object:
            begun.append("asked")
            return function(*args, **options)
        return ask

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "load", load)
        patch.setattr(Run, "hold", lambda *_, **__: None)
        patch.setattr(Run, "begin", begin)
        patch.setattr(Run, "steps", lambda run: iter([run.cfg.steps]))
        patch.setattr(Run, "record", lambda run, figures, **_: run.__dict__.update(figures=figures))
        patch.setattr(Run, "finish", lambda run: run.figures)
        patch.setattr(evaluate.measure, "make_answerer", make_answerer)
        for name in ("beam_search", "answer_logprobs", "embed_texts"):
            patch.setattr(evaluate.measure, name, noted(getattr(evaluate.measure, name)))
        for module in (evaluate.machine, capfilt):
            patch.setattr(module, "provenance", lambda *_: {})
        yield


SAID = {q["question"]: q["answer"] for q in questions("val") if q["answer"]}
SAID["Describe the picture."] = "There is a red ring and a blue ball."


def is_figures(figures: dict) -> bool:
    # the true score is not known without scenes, and its column is in every log
    return all(isinstance(value, (int, float)) and (math.isfinite(value) or "true_score" in name)
               for name, value in figures.items())


# --- training ---

SAME = {"steps": 5, "batch_size": 2}
SCRIPTS = {  # name -> main, Config, options, the files that it reads
    "lm": (train_lm, dict(n_layer=2, n_embd=32, block_size=32), {"text": TEXTS}),
    "clip": (train_clip, dict(n_layer=2, n_embd=32, patch_size=4), {"train": scene, "val": scene}),
    "caption": (train_caption, {"clip": "clip", "lm": "lm"},
                {"train": scene, "val": scene, "text": TEXTS}),
    "align": (train_align, {"clip": "clip", "lm": "lm"}, {"train": scene, "val": scene}),
    "sft": (train_sft, {"init": "sft", "grad_accum": 1}, {"train": scene, "val": scene}),
    "reward": (train_reward, {"init": "sft", "facts": True},
               {"preferences": RANKINGS, "preferences_val": RANKINGS}),
    "ppo": (train_ppo, {"init": "sft", "reward": "reward", "max_new_tokens": 2, "minibatches": 1,
                        "grad_accum": 1},
            {"train": scene, "prompts": questions, "prompts_val": questions}),
    "grpo": (train_grpo, {"init": "sft", "max_new_tokens": 2, "minibatches": 1, "grad_accum": 1,
                          "n_copies": 2},
             {"train": scene, "prompts": questions, "prompts_val": questions}),
    "dpo": (train_dpo, {"init": "sft", "max_new_tokens": 2},
            {"train": scene, "preferences_pairs": PAIRS, "preferences_val_pairs": PAIRS,
             "prompts_val": questions}),
}


def folder_of(splits: dict[str, object], **more: object) -> dict[str, object]:
    """The files of a data folder."""
    out: dict[str, object] = {"meta.json": META, "tokenizer.tiktoken": BYTES.to_text().encode()}
    for split, entries in splits.items():
        where = split if split in ("train", "val", "web") else "train"
        if entries is scene:
            entries = [scene(where, i) for i in range(4)]
        elif entries is questions:
            entries = questions("val" if split in ("eval", "quiz") else "train")
        out[f"{split}.jsonl"] = entries
    return out | more


@pytest.mark.parametrize("name", SCRIPTS)
@fuzz(6)
@given(st.data())
def test_what_training_reads_is_learned_or_refused_before_a_run_begins(name, data):
    """Catches a record that stops a run in its middle, when the older run is deleted."""
    script, options, splits = SCRIPTS[name]
    contents, good = data.draw(files(folder_of(splits)))
    begun = []
    with workplace() as folder, rehearsal(begun):
        write(folder, packs() | contents)
        more = {} if name == "lm" else {"skip_long": data.draw(st.booleans())}
        if name == "caption":
            more["objective"] = data.draw(st.sampled_from(("lm", "prefix_lm", "blip")))
        cfg = script.Config(data=str(folder), out=f"{folder}/run", **SAME, **options, **more)
        figures = attempt(f"train_{name}", folder, lambda: script.main(cfg), begun)
    assert figures or not good
    assert not figures or (is_figures(figures) and begun)


# --- measuring ---

LOG = [{"image": q["image"], "kind": q["kind"], "question": q["question"], "answer": "Blue."}
       for q in questions("val")]
CSV = b"step,loss,val_loss,ms\n0,5.5,,10\n5,2.5,2.25,9.5\n"


@pytest.mark.parametrize("stage", ["sft", "caption", "clip"])
@fuzz(12)
@given(st.data())
def test_a_data_folder_is_measured_or_refused_before_a_model_is_asked(stage, data):
    """Catches answers that took minutes lost to a field that is read only when they are judged."""
    splits = {"val": scene, "eval": questions, "zeroshot": scene}
    more = {f"{stage}/metrics.csv": CSV, "other/eval.answers.jsonl": LOG}
    contents, good = data.draw(files(folder_of(splits, **more)))
    begun = []
    with workplace() as folder, rehearsal(begun):
        write(folder, packs() | contents)
        axes = {}
        if stage == "sft" and (good or data.draw(st.booleans())):
            axes = {"axes": True, "against": f"{folder}/other"}
        cfg = evaluate.Config(run=f"{folder}/{stage}", data=str(folder), max_new_tokens=2,
                              rank=True, n_beams=1, **axes)
        figures = attempt(f"evaluate {stage}", folder, lambda: evaluate.main(cfg), begun,
                          "--axes needs", "the other run")
        if figures:
            report = json.loads((folder / stage / "eval.json").read_text())
            assert report["figures"].keys() == figures.keys() and is_figures(figures)
            if good:
                assert report["training"] == {"step": 5, "loss": 2.5, "val_loss": 2.25, "ms": 9.5}
    if good and stage == "sft":
        right = {
            "answers/color": 1, "answers/exist": 1, "vqa/accuracy": 1, "form/color": 1,
            "style/word": 1, "refused/due": 1, "refused/other": 0, "chair/chair_i": 0,
            "chair/recall": 1, "axes/preference/win_rate": 1,
        }
        assert {key: round(figures[key], 6) for key in right} == right
    assert figures or not good


# --- the data engine ---


@pytest.mark.parametrize("command", ["instruct", "quiz", "capfilt", "probe"])
@fuzz(10)
@given(st.data())
def test_records_make_dialogues_and_questions_or_are_refused(command, data):
    """Catches a record that the data engine turns into what training or measuring refuses."""
    more = {"train": scene, "prompts": questions, "prompts_val": questions}
    splits = {"val": scene} | (more if command == "probe" else {})
    contents, good = data.draw(files(folder_of(splits)))
    with workplace() as folder, rehearsal([]):
        write(folder, packs() | contents)
        same = {"data": str(folder), "split": "val"}
        mains = {
            "instruct": lambda: instruct.main(instruct.Config(n=8, **same)),
            "quiz": lambda: quiz.main(quiz.Config(**same)),
            "capfilt": lambda: capfilt.main(capfilt.Config(
                run="caption", threshold=0, max_new_tokens=2, **same)),
            "probe": lambda: probe.main(probe.Config(
                str(folder), n=10, run="sft", k=1, max_new_tokens=2)),
        }
        counts = attempt(command, folder, mains[command], None, "no dialogue passes")
        assert counts or not good
        if counts and command == "instruct":
            made = load_records(folder, "instruct", ("image", "conversations"), unique=True)
            assert len(render_records(made, BYTES, N_TOKENS)) == len(made)
            assert len(made) + counts["rejected"] == 8 and (len(made) > 4 or not good)
        elif counts and command == "quiz":
            for name in ("quiz", "quiz_held_out"):
                made = load_records(folder, name, ("image", "kind", "question"), unique=True)
                assert sum(counts.values()) == len(made)
                assert all(re.compile(q["form"]) and "<image>" not in q["question"] for q in made)
        elif counts and command == "probe":
            made = load_records(folder, "honest", ("image", "conversations"), unique=True)
            assert len(render_records(made, BYTES, N_TOKENS)) == len(made) > 0
            for name in ("sight", "sight_prompts", "sight_prompts_val"):
                load_records(folder, name, ("image", "kind", "question"), unique=True)
        elif counts:
            made = load_records(folder, "capfilt", ("image", "captions"))
            assert len(made) == counts["kept"] and (counts["pictures"] == 4 or not good)


# --- rankings ---

PUBLISHED = {
    "ours": RANKINGS,
    "LLaVA-RLHF": [
        {"id": f"train-{i}", "image": f"train.npy#{i}", "preference": 2,
         "conversations": turns(f"<image>\nWhat color is ring {i}?"),
         "output_1": {"from": "llava", "value": "Blue."},
         "output_2": {"from": "llava", "value": "Red."}} for i in range(3)],
    "RLHF-V": [
        {"idx": i, "image": f"train.npy#{i}", "text": json.dumps(
            {"question": "What color?", "chosen": "Red.", "rejected": "Blue."})} for i in range(3)],
    "RLAIF-V": [
        {"ds_name": "x", "idx": i, "image_path": f"train.npy#{i}", "question": "What color?",
         "chosen": "Red.", "rejected": "Blue.", "origin_split": "{}"} for i in range(3)],
}


@pytest.mark.parametrize("layout", PUBLISHED)
@fuzz(9)
@given(st.data())
def test_published_rankings_become_rankings_and_pairs_or_are_counted_or_refused(layout, data):
    """Catches one odd record that refuses a file of thousands, and one that training refuses."""
    ranked = PUBLISHED[layout]
    contents, good = data.draw(files({"train.jsonl": [scene("train", i) for i in range(3)],
                                      "meta.json": META, "ranked.jsonl": ranked}))
    with workplace() as folder:
        write(folder, packs() | contents)
        cfg = preferences.Config(data=str(folder), rater="file", n_val=1, trl=True,
                                 ranked=f"{folder}/ranked.jsonl", out=f"{folder}/out/p.jsonl")
        counts = attempt(f"rankings {layout}", folder, lambda: preferences.main(cfg), None,
                         "nothing can be ranked", "none is left to learn from")
        if counts:
            read = [load_rankings(folder / "out", s) for s in ("p", "p_val")]
            pairs = [load_pairs(folder / "out", f"{s}_pairs") for s in ("p", "p_val")]
            assert (len(read[0]), len(read[1])) == (counts["rankings"], counts["rankings_val"])
            assert (len(pairs[0]), len(pairs[1])) == (counts["pairs"], counts["pairs_val"])
            n_given = len(list(read_lines(folder / "ranked.jsonl")))
            assert counts["rankings"] + counts["rankings_val"] + counts["skipped"] == n_given
        if good:
            assert (counts["rankings"], counts["rankings_val"], counts["skipped"]) == (2, 1, 0)
            assert {pair["chosen"] for pair in pairs[0]} <= {"Red.", "It is red."}
    assert counts or not good


@pytest.mark.parametrize("rater", ["human-sim", "judge-sim"])
@fuzz(9)
@given(st.data())
def test_answers_from_a_file_are_rated_or_refused(rater, data):
    """Catches a question, an answer or a scene that stops a rater with a traceback."""
    answers = [{"id": q["id"], "responses": ["It is red.", "It is blue.", "I'm sorry."]}
               for q in questions("train")]
    splits = {"train": scene, "prompts": questions, "a": answers[:2], "a_val": answers[2:]}
    contents, good = data.draw(files(folder_of(splits)))
    with workplace() as folder:
        write(folder, packs() | contents)
        cfg = preferences.Config(
            data=str(folder), rater=rater, noise=0, error_rate=0, n_val=1,
            answers=f"{folder}/a.jsonl", out=f"{folder}/out/p.jsonl")
        counts = attempt(f"rating {rater}", folder, lambda: preferences.main(cfg), None,
                         "nothing can be ranked", "none is left to learn from",
                         "needs the objects of every picture")
        if counts:
            read = load_rankings(folder / "out", "p") + load_rankings(folder / "out", "p_val")
            assert len(read) == counts["rankings"] + counts["rankings_val"]
            best = {r["question"]: r["responses"][r["ranking"].index(1)] for r in read}
            assert not good or (len(read) == 4 and best["What color is the ring?"] == "It is red.")
    assert counts or not good


# --- pictures ---

FORMATS = {  # format -> options that keep its colors, and whether it takes EXIF data
    "PNG": ({}, True), "JPEG": ({"quality": 100, "subsampling": 0}, True), "GIF": ({}, False),
    "WEBP": ({"lossless": True, "exact": True}, True), "TIFF": ({}, False), "BMP": ({}, False),
}
COLORS = {"r": (255, 0, 0), "b": (0, 0, 255), "g": (0, 255, 0), "w": (255, 255, 255)}
# what the quarters of `picture` show when it is upright, line by line. EXIF says of an orientation
# where the file's first row and first column belong, as 6: the right side, the top
UPRIGHT = {1: "rbgw", 2: "brwg", 3: "wgbr", 4: "gwrb", 5: "rgbw", 6: "grwb", 7: "wbgr", 8: "bwrg"}


@st.composite
def exif(draw, orientation: int) -> bytes:
    """EXIF data with an orientation, between other entries of any type, number and value."""
    tags = draw(st.lists(st.integers(1, 0xffff).filter(lambda t: t != 0x112), max_size=6))
    order = draw(st.sampled_from("<>"))
    entries = {0x112: struct.pack(f"{order}HHIHH", 0x112, 3, 1, orientation, 0)}
    for tag in tags + draw(st.lists(st.sampled_from((0x100, 0x102, 0x11a, 0x128, 0x8769, 0x8825)))):
        kind, n = draw(st.integers(0, 14)), draw(st.sampled_from((0, 1, 2, 3, 9, 2 ** 31)))
        entries[tag] = struct.pack(f"{order}HHI", tag, kind, n) + draw(
            st.binary(min_size=4, max_size=4))
    body = b"".join(entries[tag] for tag in sorted(entries))
    head = b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08"
    rest = draw(st.binary(max_size=24))
    return b"Exif\0\0" + head + struct.pack(f"{order}H", len(entries)) + body + bytes(4) + rest


@pytest.mark.filterwarnings("ignore")
@fuzz(50)
@given(st.data())
def test_a_photograph_is_turned_upright_whatever_else_its_camera_wrote(data):
    """Catches struct.error, TypeError or AttributeError of one odd EXIF entry among good pixels."""
    fmt = data.draw(st.sampled_from([fmt for fmt, (_, takes) in FORMATS.items() if takes]))
    orientation = data.draw(st.integers(1, 8))
    notes = data.draw(exif(orientation))
    damaged = data.draw(st.booleans())
    if damaged:
        notes = notes[:6] + data.draw(torn(notes[6:]))
    with workplace() as folder:
        write(folder, {"a.png": picture(fmt, (16, 8), exif=notes, **FORMATS[fmt][0])})
        image = attempt("exif", folder, lambda: open_image(folder / "a.png"))
    assert image is not None and image.mode == "RGB" and set(image.size) == {8, 16}
    if not damaged:
        assert image.size == ((8, 16) if orientation > 4 else (16, 8))
        corners = [(x, y) for y in (0, image.height - 1) for x in (0, image.width - 1)]
        for corner, color in zip(corners, UPRIGHT[orientation]):
            assert np.abs(np.subtract(image.getpixel(corner), COLORS[color])).max() < 60


@pytest.mark.filterwarnings("ignore")
@fuzz(30)
@given(st.data())
def test_bytes_of_a_picture_file_make_a_picture_or_are_refused(data):
    """Catches an error of a decoder that is no ValueError, and good pictures refused."""
    fmt = data.draw(st.sampled_from(sorted(FORMATS)))
    good = data.draw(st.integers(0, 3)) == 0
    content = picture(fmt, (16, 8), **FORMATS[fmt][0])
    content = content if good else data.draw(torn(content))
    with workplace() as folder:
        write(folder, {"a.png": content})
        pixels = attempt("picture", folder, lambda: Pictures(folder, SIDE).pixels(["a.png"]))
    if good:
        assert np.abs(pixels[0, 0, 0].astype(int) - COLORS["r"]).max() < 60
    assert pixels is None or pixels.shape == (1, SIDE, SIDE, 3)


@pytest.mark.filterwarnings("ignore")
@fuzz(20)
@given(st.data())
def test_packed_pictures_are_shown_or_refused(data):
    """Catches errors of NumPy's reader, which evaluates the header."""
    content = packs()["train.npy"]
    good = data.draw(st.integers(0, 3)) == 0
    # the header is half a percent of the file: it is damaged as often as the pixels
    head, rest = content[:128], content[128:]
    content = content if good else data.draw(torn(head)) + rest if data.draw(
        st.booleans()) else data.draw(torn(content))
    name = data.draw(st.sampled_from(("a.npy#0", "a.npy#3")))
    with workplace() as folder:
        write(folder, {"a.npy": content})
        pixels = attempt("pack", folder, lambda: Pictures(folder, SIDE).pixels([name]))
        right = np.load(io.BytesIO(packs()["train.npy"]))[[int(name[-1])]]
    assert pixels is None or pixels.shape == (1, SIDE, SIDE, 3)
    assert not good or np.array_equal(pixels, right)


typed = st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])


@fuzz(20)
@given(st.text(typed, max_size=9),
       st.sampled_from(("{}", "'{}'", '"{}"', " {} ", "{}/", "~{}", "{}'")))
def test_any_path_that_is_typed_shows_a_picture_or_is_refused(name, form):
    """Catches ValueError: embedded null byte, and OSError: file name too long."""
    with workplace() as folder:
        write(folder, {"a.png": picture()})
        path = form.format(f"{folder}/a.png" if len(name) < 2 else name)
        bot = object.__new__(Chatbot)  # one that needs no model to see
        bot.size, bot.mode, bot.device = SIDE, "pad", torch.device("cpu")
        image = attempt("typed path", folder, lambda: chat.load_picture(bot, path, str(folder)),
                        None, "picture", "name")
    if len(name) < 2 and form in ("{}", "'{}'", '"{}"', " {} "):
        assert image.shape == (1, 3, SIDE, SIDE)


# --- published data sets ---

DOGS = [{"id": i, "file_name": f"{i}.png", "width": 16, "height": 8} for i in range(1, 6)]
COCO = {
    "captions.json": {"images": DOGS, "annotations": [
        {"id": 10 * i + k, "image_id": i, "caption": f"A dog and a cat, number {i}."}
        for i in range(1, 6) for k in range(2)]},
    "instances.json": {
        "images": DOGS, "annotations": [
            {"id": i, "image_id": i, "category_id": 18, "bbox": [0, 0, 8, 8.0], "iscrowd": i % 2}
            for i in range(1, 6)],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}]},
    "karpathy.json": {"images": [
        {"cocoid": i, "split": ("train", "restval", "val")[i % 3]} for i in range(1, 6)]},
    "synonyms.txt": b"dog, puppy, hound\ncat, kitten\n",
}


@fuzz(25)
@given(st.data())
def test_coco_as_published_becomes_a_data_set_or_is_refused(data):
    """Catches one entry among 600,000 that ends all, and a figure made of another's boxes."""
    contents, good = data.draw(files(COCO))
    with workplace() as folder:
        write(folder, contents | {f"images/{i}.png": picture(size=(16, 8)) for i in range(1, 6)})
        use = {k: f"{folder}/{k}.json" if data.draw(st.booleans()) else "" for k in
               ("instances", "karpathy")}
        words = f"{folder}/synonyms.txt" if use["instances"] and data.draw(st.booleans()) else ""
        cfg = coco.Config(f"{folder}/captions.json", synonyms=words, images=f"{folder}/images",
                          val_every=2, out=f"{folder}/out", image_size=SIDE, vocab_size=263, **use)
        counts = attempt("coco", folder, lambda: coco.main(cfg), None, "no usable record")
        if counts:
            check_prepared(folder, counts, "image", "captions")
            phrases = load_meta(cfg.out).get("phrases", {})
            assert all(isinstance(v, str) and k == k.strip() for k, v in phrases.items())
        if good:
            assert counts["train"] + counts["val"] == 5 and counts["skipped"] == 0
            assert ("puppies" in phrases) == bool(words)
            assert {"dog", "dogs", "cat", "cats"} <= phrases.keys() or not use["instances"]
            for r in load_records(cfg.out, "train"):
                assert len(r["captions"]) == 2
                if use["instances"]:
                    [o] = r["objects"]
                    assert (o["name"], o["box"]) == ("dog", [0.0, 0.0, 0.5, 1.0])
    assert counts or not good


def check_prepared(folder: Path, counts: dict, *need: str) -> None:
    """What every prepare.py promises: a folder that training reads, with what it says it has."""
    meta = load_meta(folder / "out")
    for split in ("train", "val"):
        records = load_records(folder / "out", split, need)
        assert len(records) == counts[split] == meta["records"][split]
        named = [r["image"] for r in records if r.get("image")]
        if named:
            Pictures(folder / "out", meta["image_size"]).get(named)
        train_lines = [r for r in records if r.get("conversations")]
        assert len(render_records(train_lines, BYTES, N_TOKENS)) == len(train_lines)
        for r in records:
            instruct.things_of(r)
    assert Tokenizer.load(folder / "out" / "tokenizer.tiktoken").vocab_size >= 263
    assert load_records(folder / "out", "text", ("text",)) is not None


LLAVA = [
    {"id": "000000033471", "image": "a/0.png",
     "conversations": turns("<image>\nWhat is it?", "A bus.", "What color?", "Red.")},
    {"id": 0, "image": ["a/1.png"], "conversations": turns("What is it?\n<image>", "A cat.")},
    {"image": "a/0.png", "conversations": [
        {"from": "system", "value": "Be brief."}, *turns("<image>\nHow many?", "One.")]},
    {"id": "t", "conversations": turns("What is 2 + 2?", "4.")},
    {"id": "t", "image": "a/2.png", "conversations": [
        {"from": "user", "value": "<image> What?"}, {"from": "assistant", "value": "A dog."}]},
]


@fuzz(25)
@given(st.data())
def test_llavas_dialogues_become_a_data_set_or_are_refused(data):
    """Catches one turn among a million that ends all, and a dialogue that training refuses."""
    contents, good = data.draw(files({"mix.json": LLAVA}))
    with workplace() as folder:
        write(folder, contents | {f"images/a/{i}.png": picture() for i in range(3)})
        cfg = llava.Config(f"{folder}/mix.json", f"{folder}/images", val_every=2,
                           out=f"{folder}/out", image_size=SIDE, vocab_size=263)
        counts = attempt("llava", folder, lambda: llava.main(cfg), None, "no usable record")
        if counts:
            check_prepared(folder, counts, "conversations")
            for split in ("train", "val"):
                for r in load_records(cfg.out, split):
                    assert count_images(r["conversations"]) == bool(r.get("image"))
            used = json.loads((folder / "out" / "llava.json").read_text())
            assert len(used) == counts["train"] + counts["val"]
            n_given = len(parse_json((folder / "mix.json").read_bytes(), "mix.json"))
            assert n_given == len(used) + counts["skipped"]
        if good:
            assert (counts["train"], counts["val"], counts["skipped"]) == (2, 3, 0)
    assert counts or not good


# --- tars and folders of pictures ---

PNG = picture(size=(16, 8))
Members = list[tuple[str, bytes]]


def shard(n: int = 4, ending: str = "png") -> Members:
    made: Members = []
    for i in range(n):
        made += [(f"{i}.{ending}", PNG), (f"{i}.txt", f"A dog, number {i}.".encode()),
                 (f"{i}.json", json.dumps({"url": f"http://x/{i}", "width": 16}).encode())]
    return made


def tar_of(members: Members, zipped: bool = False) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return gzip.compress(out.getvalue(), 1) if zipped else out.getvalue()


NAMES = ("../0.png", "/0.png", "a\nb.txt", "0", ".png", "0.png.txt", "a/b/c.jpg", "\udcff.png",
         " .txt", "0.PNG", "x" * 120 + ".png", "train/x.png", "1.txt")


@st.composite
def disordered(draw, members: Members) -> Members:
    """Damage a tar: drop, repeat, rename or move members, or change their contents."""
    members = list(members)
    for _ in range(draw(st.integers(1, 3))):
        i = draw(st.integers(0, len(members) - 1))
        name, content = members[i]
        how = draw(st.sampled_from(("lose", "double", "rename", "move", "content", "content")))
        if how == "lose" and len(members) > 1:
            del members[i]
        elif how == "double":
            members.insert(i, members[i])
        elif how == "rename":
            members[i] = draw(st.sampled_from(NAMES)), content
        elif how == "move":
            members.insert(draw(st.integers(0, len(members) - 1)), members.pop(i))
        elif name.endswith(".json"):
            members[i] = name, json.dumps(draw(st.sampled_from(JUNK) | spoiled({
                "url": "x", "objects": scene("train", 0)["objects"], "conversations": [],
                "id": 1, "captions": ["x"]}))).encode()
        else:
            members[i] = name, draw(torn(content))
    return members


PREFIXES = ("", "./", "00000/", "./a.b/")


@st.composite
def as_people_have_them(draw, members: Members, prefixes: tuple = PREFIXES) -> Members:
    """The same files as other programs put them into a tar."""
    mac, mark, inner = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    prefix = draw(st.sampled_from(prefixes))
    made: Members = []
    for name, content in members:
        if mark and name.endswith(".txt"):
            content = codecs.BOM_UTF8 + content + b"\r\n"
        if mac:  # what macOS's tar puts before each file
            twin = os.path.join(os.path.dirname(name), "._" + os.path.basename(name))
            made.append((prefix + twin, b"\0\5\x16\7\0\2\0\0Mac OS X"))
        made.append((prefix + name, content))
        if inner and name.endswith(".json"):
            made.append((prefix + name.replace(".json", ".cls"), b"7"))
    return made


@st.composite
def archives(draw, members: Members, prefixes: tuple = PREFIXES) -> tuple[bytes, bool]:
    """A tar and whether it is good: one in three is, one in three has wrong members."""
    how = draw(st.sampled_from(("good", "members", "bytes")))
    if how == "members":
        members = draw(disordered(members))
    content = tar_of(draw(as_people_have_them(members, prefixes)), draw(st.booleans()))
    return (draw(torn(content)) if how == "bytes" else content), how == "good"


@fuzz(25)
@given(st.data(), st.booleans())
def test_a_shard_becomes_a_data_set_or_its_bad_samples_are_counted(data, again):
    """Catches a mark or a Mac's twin that spoils a sample, and errors of tarfile, zlib and Pillow.
    """
    content, good = data.draw(archives(shard()))
    with workplace() as folder:
        write(folder, {"in/0.tar": content})
        more = {"write_shards": f"{folder}/out"} if again else {}
        cfg = webdata.Config(f"{folder}/in", out=f"{folder}/out", min_bytes=0, image_size=SIDE,
                             val_every=2, vocab_size=263, **more)
        counts = attempt("webdata", folder, lambda: webdata.main(cfg), None, "no usable record")
        if counts:
            lines = (folder / "out" / "refused.txt").read_text().splitlines()
            assert len(lines) == counts["refused"] and all(": " in line for line in lines)
        if counts and again:
            named, skipped = [], Counter()
            kept = list(webdata.read_all(f"{folder}/out", skipped, named))
            assert len(kept) == counts["kept"] and not skipped
            assert all(open_image(io.BytesIO(sample.picture)) for sample in kept)
        elif counts:
            records = load_meta(cfg.out)["records"]
            assert records["train"] + records["val"] == counts["kept"]
            check_prepared(folder, records, "image", "captions")
            kept = load_records(cfg.out, "train") + load_records(cfg.out, "val")
            assert len({r["id"] for r in kept}) == len(kept)
        if good:
            assert (counts["kept"], counts["refused"]) == (4, 0)
            texts = [s.text for s in kept] if again else [r["captions"][0] for r in kept]
            assert sorted(texts) == [f"A dog, number {i}." for i in range(4)]
    assert counts or not good


@fuzz(20)
@given(st.data())
def test_a_folder_of_pictures_with_texts_becomes_a_data_set(data):
    """Catches a folder that is refused where a tar of it is read."""
    members = [(name, content) for name, content in shard() if not name.endswith("json")]
    good = data.draw(st.integers(0, 2)) == 0
    members = data.draw(as_people_have_them(members) if good else disordered(members))
    members = [(n, c) for n, c in members if n not in ("../0.png", "/0.png")]
    with workplace() as folder:
        write(folder, {f"in/{name}": content for name, content in members})
        cfg = webdata.Config(f"{folder}/in", out=f"{folder}/out", min_bytes=0, image_size=SIDE,
                             val_every=2, vocab_size=263)
        counts = attempt("folder", folder, lambda: webdata.main(cfg), None, "no usable record")
        if good:
            kept = load_records(cfg.out, "train") + load_records(cfg.out, "val")
            texts = sorted(r["captions"][0] for r in kept)
            assert texts == [f"A dog, number {i}." for i in range(4)]
    assert counts or not good


CLASSES = [(f"{split}/{label}/{i}.png", PNG) for split in ("train", "test")
           for label in ("red_fox", "apple") for i in range(2)]


@fuzz(25)
@given(st.data())
def test_photographs_in_classes_become_a_data_set_or_are_refused(data):
    """Catches errors of tarfile, and a Mac's twins that are taken for pictures."""
    content, good = data.draw(archives(CLASSES))
    with workplace() as folder:
        write(folder, {"a.tar": content})
        cfg = cifar10.Config(f"{folder}/a.tar", f"{folder}/out", image_size=SIDE)
        counts = attempt("cifar10", folder, lambda: cifar10.main(cfg), None, "stand in one of")
        if counts:
            check_prepared(folder, counts, "image", "captions")
        assert not good or (counts["train"], counts["val"]) == (4, 4)
    assert counts or not good


def nlvr_members() -> Members:
    """Three scenes of two splits as the corpus has them, with their six pictures each."""
    wide, made = picture(size=(400, 100)), []
    for split, numbers in (("test", (1, 2)), ("dev", (3,))):
        lines = []
        for n in numbers:
            thing = {"x_loc": 10 * n, "y_loc": 9, "size": 20, "type": "circle", "color": "Yellow"}
            lines.append({
                "sentence": f"There is box number {n}.", "label": ("true", "false")[n % 2],
                "identifier": f"{n}-0", "directory": "0", "evals": {},
                "structured_rep": [[thing], [thing, dict(thing, x_loc=60)], []]})
            made += [(f"nlvr/{split}/images/0/{split}-{n}-0-{k}.png", wide) for k in range(6)]
        made.append((f"nlvr/{split}/{split}.json", plain(lines, True)))
    return made


@fuzz(20)
@given(st.data())
def test_nlvrs_corpus_becomes_a_data_set_or_is_refused(data):
    """Catches errors of tarfile, and a line of the corpus that ends all."""
    members = nlvr_members()
    if data.draw(st.integers(0, 3)) == 0:  # structure: a line of the corpus is damaged
        at = data.draw(st.sampled_from([i for i, (n, _) in enumerate(members) if "json" in n]))
        name, content = members[at]
        wrong = data.draw(spoiled([json.loads(line) for line in content.splitlines()]))
        members[at] = name, data.draw(layouts(wrong, True))
        content, good = tar_of(members), False
    else:
        content, good = data.draw(archives(members, ("", "./")))
    with workplace() as folder:
        write(folder, {"a.tar": content})
        cfg = nlvr.Config(f"{folder}/a.tar", out=f"{folder}/out", image_size=SIDE, vocab_size=263)
        counts = attempt("nlvr", folder, lambda: nlvr.main(cfg), None, "no usable record",
                         "scenes to learn from")
        if counts:
            check_prepared(folder, counts, "image", "captions")
            load_records(cfg.out, "eval", ("image", "kind", "question"))
        assert not good or (counts["train"], counts["val"], counts["skipped"]) == (12, 6, 0)
    assert counts or not good


# --- tokenizers and published weights ---

WORDS = Tokenizer.train(["a red ring and a blue ball"] * 3, 275)
SAMPLE = "A red ring and 12 balls, é 日本 <|end|>\n "


def gpt2_merges() -> bytes:
    """GPT-2's list of merges, of a single merge."""
    return b"#version: 0.2\na n\n\xc4\xa0 an\n"


@fuzz(30)
@given(st.data())
def test_a_tokenizer_file_reads_any_text_or_is_refused(data):
    """Catches a file that loses text in silence, or that ends in a panic of tiktoken."""
    content = data.draw(st.sampled_from((WORDS.to_text().encode(), gpt2_merges())))
    good = data.draw(st.integers(0, 3)) == 0
    if good:
        content = data.draw(st.sampled_from((
            content, codecs.BOM_UTF8 + content, content.replace(b"\n", b"\r\n"), content + b"\n")))
    else:
        content = data.draw(torn(content))
    with workplace() as folder:
        write(folder, {"a.tiktoken": content})
        made = attempt("tokenizer", folder, lambda: Tokenizer.load(folder / "a.tiktoken"))
    assert made or not good
    if made:
        ids = made.encode(SAMPLE)
        assert made.decode(ids) == SAMPLE and max(ids) < len(made.ranks)
        assert Tokenizer.from_text(made.to_text()).identity == made.identity
        assert not good or len(ids) < len(SAMPLE.encode())


@functools.cache
def published() -> dict[str, dict[str, object]]:
    """Folders of published weights, as file -> content."""
    out = {}
    with workplace() as folder:
        torch.manual_seed(0)
        clip = CLIPConfig.from_dict(states()["clip"]["configs"]["model"])
        config = GPTConfig(WORDS.vocab_size, 16, n_layer=1, n_head=1, n_embd=8)
        gpt2 = {"stage": "lm", "configs": {"model": asdict(config)}, "tokenizer": WORDS.to_text(),
                "model": GPT(config).state_dict()}
        export(states()["clip"], folder / "clip")
        export(gpt2, folder / "gpt2")
        for name in ("clip", "gpt2"):
            out[name] = {p.name: p.read_bytes() for p in (folder / name).glob("*.safetensors")}
            for p in (folder / name).glob("*.json"):
                out[name][p.name] = json.loads(p.read_text())
    # as large models are published: tensors in several files, and an index of them
    weights, file_of = to_theirs(clip_names(clip), states()["clip"]["model"]), {}
    out["parts"] = {"config.json": out["clip"]["config.json"]}
    for i, part in enumerate(("a.bin", "b.bin")):
        content = io.BytesIO()
        mine = {key: value for n, (key, value) in enumerate(weights.items()) if n % 2 == i}
        torch.save(mine, content)
        out["parts"][part] = content.getvalue()
        file_of |= dict.fromkeys(mine, part)
    out["parts"]["pytorch_model.bin.index.json"] = {"weight_map": file_of}
    letters = [letter + end for letter in byte_letters().values() for end in ("", "</w>")]
    pieces = [*letters, "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    out["words"] = {"vocab.json": {piece: i for i, piece in enumerate(pieces)},
                    "merges.txt": b"#version: 0.2\nr e\nre d</w>\n"}
    return out


@pytest.mark.parametrize("name", ["clip", "parts", "gpt2", "words"])
@fuzz(12)
@given(st.data())
def test_published_weights_and_tokenizers_are_read_or_refused(name, data):
    """Catches a config that asks for another model, read as ours; and errors of two readers."""
    contents, good = data.draw(files(published()[name]))
    readers = {"clip": read_vision, "parts": read_vision, "gpt2": read_lm,
               "words": ClipTokenizer.read}
    with workplace() as folder:
        write(folder, contents)
        read = attempt(f"published {name}", folder, lambda: readers[name](folder))
        assert read is not None or not good
        if read is None:
            return
        if name == "words":
            idx, lengths = read.rows([SAMPLE, "Red red"])
            assert idx.shape[1] == lengths.max() and (not good or lengths[1] == 4)
            assert not good or read.decode(read.encode("Red red")) == "red red"
        elif name in ("clip", "parts"):
            assert read["configs"]["fit"] in ("pad", "crop", "stretch")
            model = evaluate.clip_from(read)
            S = model.vit.config.image_size
            assert model.encode_image(torch.zeros(1, 3, S, S)).isfinite().all()
        else:
            tokenizer = Tokenizer.from_text(read["tokenizer"])
            assert read["configs"]["model"]["vocab_size"] == tokenizer.vocab_size
            assert tokenizer.decode(tokenizer.encode(SAMPLE)) == SAMPLE
            assert not good or tokenizer.identity == WORDS.identity


# --- checkpoints and logs ---


@functools.cache
def saved() -> bytes:
    content = io.BytesIO()
    torch.save(states()["sft"], content)
    return content.getvalue()


@fuzz(15)
@given(st.data())
def test_a_checkpoint_is_loaded_or_refused(data):
    """Catches errors of zipfile, pickle and torch, and weights that do not fit their config."""
    how = data.draw(st.sampled_from(("good", "structure", "bytes")))
    content = saved()
    if how == "structure":
        state = dict(states()["sft"])
        # not the weights: places of tensors are not JSON's
        rest = data.draw(spoiled({k: v for k, v in state.items() if k != "model"}))
        out = io.BytesIO()
        torch.save(rest | {"model": state["model"]}, out)
        content = out.getvalue()
    elif how == "bytes":
        content = data.draw(torn(content))

    def load() -> tuple:
        state = checkpoint.load(folder / "best.pt", ("sft",))
        return vlm_from(state), checkpoint.tokenizer_of(state), fit_of(state), state

    with workplace() as folder:
        write(folder, {"best.pt": content})
        loaded = attempt("checkpoint", folder, load, None)
        if loaded:
            model, tokenizer, fit, state = loaded
            assert fit in ("pad", "crop", "stretch") and type(state["step"]) is int
            assert sum(p.numel() for p in model.parameters()) > 0
        if how == "good":
            assert checkpoint.fingerprint(state) == checkpoint.fingerprint(states()["sft"])
            assert (tokenizer.identity, fit) == (BYTES.identity, "pad")


@fuzz(8)
@given(st.data())
def test_kept_log_probabilities_are_used_or_refused(data):
    """Catches a damaged file that stops DPO with a traceback, or that is taken for good."""
    out = io.BytesIO()
    good = data.draw(st.booleans())
    key = {"weights": "abc", "average": True}
    state = {"key": key, "logp": torch.ones(3, 2)}
    state = state if good else data.draw(spoiled({"key": key, "logp": [1.0, 2.0]}, 1))
    torch.save(state, out)
    content = out.getvalue()
    if not good and data.draw(st.booleans()):
        content = data.draw(torn(content))
    with workplace() as folder:
        write(folder, {"ref.pt": content})
        cache = attempt("reference", folder, lambda: ReferenceCache(folder / "ref.pt", key, False))
    if good:
        assert torch.equal(cache.logp, torch.ones(3, 2))
    assert cache is None or isinstance(cache.logp, torch.Tensor)


@fuzz(20)
@given(st.data())
def test_the_log_of_a_run_is_read_or_refused(data):
    """Catches a log that another program has saved, or that was cut off, ending in a traceback."""
    contents, good = data.draw(files({"metrics.csv": CSV}))

    def resume() -> dict:
        last = evaluate.last_row(folder / "metrics.csv")
        run = Run.__new__(Run)
        run.csv = folder / "metrics.csv"
        run._drop_rows_after(3)
        return last

    with workplace() as folder:
        write(folder, contents)
        last = attempt("log", folder, resume)
        if good:
            assert last == {"step": 5, "loss": 2.5, "val_loss": 2.25, "ms": 9.5}
            assert (folder / "metrics.csv").read_bytes() == b"step,loss,val_loss,ms\n0,5.5,,10\n"
        assert last is None or is_figures(last)


# --- what teachers and judges write ---

PIECES = ("Question:\n", "Answer:\n", "===\n", "\n", "What color is the ring?\n", "\r\n",
          "The ring is red.\n", "There is a blue ball.", "- a red ring\n", "<image>", "<|end|>",
          "Question:", "[0.1, 0.2]", "===", "Two green dogs.", "\u2028", "\ud800", "a " * 300)
GOOD_TALK = "Question:\nWhat color is the ring?\n===\nAnswer:\nThe ring is red.\n===\n"


class Scripted:
    """A teacher that writes what it is told to, and notes what it was asked."""

    def __init__(self, replies: list[teachers.Reply]):
        self.replies = replies
        self.asked: list[str] = []

    def write(self, requests: object) -> Iterator[tuple[teachers.Request, teachers.Reply]]:
        for i, request in enumerate(requests):
            self.asked.append(request.key)
            yield request, self.replies[i % len(self.replies)]


@st.composite
def replies(draw, good: str, pieces: tuple[str, ...]) -> list[teachers.Reply]:
    """Three replies: a good one, and two of any pieces, or cut off, or none at all."""
    made = [teachers.Reply(good)]
    for _ in range(2):
        text = "".join(draw(st.lists(st.sampled_from(pieces), max_size=9)))
        made.append(teachers.Reply(text, draw(st.sampled_from(("", "", "", "no\nanswer"))),
                                   draw(st.integers(0, 4)) == 0, tokens=(9, 9)))
    return made


@fuzz(20)
@given(st.data())
def test_any_reply_of_a_teacher_is_a_dialogue_or_is_rejected(data):
    """Catches a reply that was paid for and ends all; a dialogue that training refuses; a reply
    that is asked for again.
    """
    proportions = data.draw(st.sampled_from(("1:0:0", "0:1:0", "0:0:1", "1:1:1")))
    good = "There is a red ring." if proportions == "0:1:0" else GOOD_TALK
    teacher = Scripted(data.draw(replies(good, PIECES)))
    with workplace() as folder, pytest.MonkeyPatch.context() as patch:
        write(folder, {n: plain(v, n[-1] == "l") for n, v in folder_of({"train": scene}).items()
                       if not isinstance(v, bytes)})
        patch.setattr(instruct, "make_teacher", lambda *_: teacher)
        cfg = instruct.Config(
            str(folder), n=3, proportions=proportions, teacher="openai", model="m")
        counts = attempt("teacher", folder, lambda: instruct.main(cfg), None, "no dialogue passes")
        assert counts or proportions == "1:1:1"
        if counts:
            made = load_records(folder, "instruct", ("image", "conversations"), unique=True)
            assert len(render_records(made, BYTES, N_TOKENS)) + counts["rejected"] == 3
            n_asked = len(teacher.asked)
            instruct.main(cfg)  # asks again where no reply has come, and only there
            assert len(teacher.asked) - n_asked == sum(bool(r.error) for r in teacher.replies)


RATES = [dict.fromkeys(preferences.AXES, 4), dict.fromkeys(preferences.AXES, 1.5)]
RATED_BY = ("Sure: ", "[", "]", "{", "}", "```json\n", "null", ", ", "[" * 9999, "\ud800",
            json.dumps(RATES), json.dumps(RATES[0]), json.dumps(RATES[:1]), '{"ethics": 1e999}')


@fuzz(20)
@given(st.data())
def test_any_reply_of_a_judge_is_ratings_or_is_counted(data):
    """Catches a reply that was paid for and ends all."""
    judges = Scripted(data.draw(replies(json.dumps(RATES), RATED_BY)))
    answers = [{"id": q["id"], "responses": ["It is red.", "It is blue."]}
               for q in questions("train")]
    splits = {"train": scene, "prompts": questions, "a": answers[:2], "a_val": answers[2:]}
    with workplace() as folder, pytest.MonkeyPatch.context() as patch:
        write(folder, packs() | {n: plain(v, n[-1] == "l") for n, v in folder_of(splits).items()
                                 if not isinstance(v, bytes)})
        patch.setattr(preferences, "OpenAITeacher", lambda *_: judges)
        cfg = preferences.Config(
            data=str(folder), rater="judge", model="m", n_val=1, answers=f"{folder}/a.jsonl",
            out=f"{folder}/out/p.jsonl")
        counts = attempt("judge", folder, lambda: preferences.main(cfg), None,
                         "none is left to learn from")
        if counts:
            read = load_rankings(folder / "out", "p") + load_rankings(folder / "out", "p_val")
            assert all(r["ranking"] == [1, 2] for r in read if r["ratings"] == RATES)
            assert len(read) + counts["skipped"] == 4 and len(read) >= 2


HEADER = {"teacher": "openai", "model": "m"}
LINES = [HEADER] + [{"key": f"{i}", "kind": "detail", "raw": "A ring.", "error": "", "cut": False,
                     "tokens": [9, 9]} for i in range(3)]


@fuzz(20)
@given(st.data())
def test_a_journal_goes_on_or_is_refused(data):
    """Catches replies that were paid for lost, or a damaged one found after more were paid for."""
    how = data.draw(st.sampled_from(("good", "cut", "structure", "bytes")))
    content = plain(data.draw(spoiled(LINES)) if how == "structure" else LINES, True)
    if how == "cut":  # the script was killed while it wrote a line
        content += b'{"key": "9", "ra'
    elif how == "bytes":
        content = data.draw(torn(content))
    with workplace() as folder:
        write(folder, {"a.raw.jsonl": content})
        lines = attempt("journal", folder, lambda: teachers.journal(folder / "a.raw.jsonl", HEADER))
    if how in ("good", "cut"):
        assert list(lines.values()) == LINES[1:]
    assert lines is None or all(sum(line["tokens"]) < 1e301 for line in lines.values())


SHOTS = {f"{kind}/{name}": text for kind in instruct.TYPES for name, text in (
    ("system.txt", b"You look at a picture."), ("000_caps.txt", b"A red ring."),
    ("000_conv.txt", b"A red ring." if kind == "detail" else GOOD_TALK.encode()))}


@fuzz(15)
@given(st.data())
def test_a_teachers_examples_are_read_or_refused(data):
    """Catches an example in another encoding, or one that teaches another grammar."""
    contents, good = data.draw(files(SHOTS))
    with workplace() as folder:
        write(folder, contents)
        made = attempt("examples", folder, lambda: instruct.load_prompts(str(folder), 2))
    assert made or not good
    for kind, messages in (made or {}).items():
        assert [m["role"] for m in messages] == ["system", "user", "assistant"]
        assert checks.parse(kind, messages[2]["content"])


# --- how many ---


def test_as_many_cases_ran_as_promised(capsys):
    """Catches a property that no longer runs its reader."""
    if len(cases) < 20:
        pytest.skip("only some of the properties ran")
    with capsys.disabled():
        if "MINIVLM_FUZZ" in os.environ:
            print(f"\n{cases.total()} cases, {refusals.total()} refused: {dict(cases)}")
    assert cases.total() >= N_CASES * FUZZ
    # neither everything nor nothing is refused
    assert 0.2 < refusals.total() / cases.total() < 0.8
