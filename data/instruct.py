"""LLaVA's data engine: captions and boxes in, dialogues about the picture out.

    python data/instruct.py                                          20,000 dialogues, offline
    python data/instruct.py --teacher openai --model NAME --dry_run  show the prompts, pay nothing
    python data/instruct.py --teacher openai --model NAME           ask an endpoint, go on if killed

A teacher that sees no picture is told what is known of it, sentences and objects with boxes, and
writes as if it saw: conversations (from the sentences alone, as LLaVA did), detailed descriptions,
and questions that need reasoning. Each reply of a language model is written down as it arrives
(instruct.raw.jsonl), so a killed run goes on without asking twice; that file belongs to one teacher
with its prompts and is never deleted but by --fresh. What passes the checks goes to instruct.jsonl,
ready for `train_sft.py --split instruct`, and to instruct.json in LLaVA's format; what does not
goes to instruct.rejects.jsonl with its reason and the raw text.

Source: LLaVA, Liu et al. 2023, arXiv:2304.08485, section 3; conversation : detail : reasoning =
58 : 23 : 77 thousand (haotian-liu/LLaVA, docs/Data.md); conversations without boxes: its issue 87.
"""

import hashlib
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from minivlm.engine import template
from minivlm.engine.checks import faults, parse
from minivlm.engine.phrasings import asker
from minivlm.engine.teachers import LocalTeacher, OpenAITeacher, Request, Teacher
from minivlm.engine.teachers import TemplateTeacher, ask, journal
from minivlm.evaluation.scene import things_of
from minivlm.loading.prepared import load_meta, load_records
from minivlm.running.files import read_text
from minivlm.running.options import cli, printable

TYPES = ("conversation", "detail", "reasoning")


@dataclass
class Config:
    """What to write about, who writes, and how much."""

    data: str = "data/shapes/prepared"  # folder made by a prepare.py
    split: str = "train"  # which file of it: its records need captions, boxes, or both
    n: int = 20000  # dialogues to ask for
    proportions: str = "58:23:77"  # conversation : detail : reasoning, as LLaVA has them
    teacher: str = "template"  # template, openai or local
    prompts: str = "data/prompts"  # folder with a system message and examples of each type
    n_shots: int = 2  # examples in a prompt
    boxes: bool = False  # tell boxes for conversations too
    out: str = ""  # file to write; empty = instruct.jsonl in the data folder
    fresh: bool = False  # forget the replies that an earlier run has left
    dry_run: bool = False  # print the first prompt of each type and stop
    model: str = ""  # openai: the model's name
    base_url: str = ""  # openai: the endpoint; empty = the client's default
    run: str = "runs/lm"  # local: run folder of train_lm.py
    concurrency: int = 4  # openai: requests under way at once
    retries: int = 5  # openai: further attempts at a request
    timeout: float = 60.0  # openai: seconds until an attempt counts as failed
    temperature: float = 0.7  # openai, local: 1 = the model's own distribution
    max_tokens: int = 800  # openai, local: longest reply
    usd_in: float = 0.0  # price of a million tokens read, for the cost line
    usd_out: float = 0.0  # price of a million tokens written
    max_words: int = 150  # longest answer
    device: str = "auto"  # local: auto, cpu, cuda, cuda:1, mps
    seed: int = 0  # which pictures get which type; template: which questions

    def __post_init__(self):
        if self.teacher not in ("template", "openai", "local"):
            raise ValueError(f"teacher {self.teacher!r} is not one of template, openai, local")
        if not re.fullmatch(r"\d+:\d+:\d+", self.proportions) or not any(self.shares):
            raise ValueError(
                f"proportions {self.proportions!r} are not three numbers such as 58:23:77"
            )
        if self.n < 1 or self.concurrency < 1 or self.retries < 0 or self.n_shots < 0:
            raise ValueError("expected n >= 1, concurrency >= 1, retries >= 0, n_shots >= 0")
        if self.teacher == "openai" and not self.model:
            raise ValueError("teacher openai needs --model, the name of a model")

    @property
    def shares(self) -> list[int]:
        """The three numbers of `proportions`."""
        return [int(share) for share in self.proportions.split(":")]


# --- what the teacher is told ---


def told(record: dict, boxes: bool) -> str:
    """What is known of a picture, as LLaVA writes it: sentences, then category: [x1, y1, x2, y2].

    Boxes are in shares of the picture's sides, with three decimals. A category is the object's name
    with what is known of its look before it.
    """
    lines = [" ".join(c.split()) for c in record.get("captions", [])]
    if boxes and record.get("objects"):
        lines += [""] * bool(lines)
        for o in record["objects"]:
            look = o.get("attributes") or {}
            words = " ".join(filter(None, (look.get("size"), look.get("color"), o["name"])))
            lines.append(f"{words}: [{', '.join(f'{v:.3f}' for v in o['box'])}]")
    return "\n".join(lines)


def load_prompts(folder: str, n_shots: int) -> dict[str, list[dict[str, str]]]:
    """The messages that come before a request of each type: system message, then the examples.

    An example is two files, NNN_caps.txt with what is told and NNN_conv.txt with what is written.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if it is not UTF-8, or an example does not keep to the grammar.
    """
    out = {}
    for kind in TYPES:
        here = Path(folder) / kind
        if not (here / "system.txt").is_file():
            raise FileNotFoundError(f"no system message at {here / 'system.txt'}")
        messages = [{"role": "system", "content": read_text(here / "system.txt").strip()}]
        for caps in sorted(here.glob("*_caps.txt"))[:n_shots]:
            answer = caps.with_name(caps.name.replace("_caps", "_conv"))
            if not answer.is_file():
                raise FileNotFoundError(f"{caps} has no {answer.name} beside it")
            try:
                parse(kind, read_text(answer).strip())
            except ValueError as error:
                raise ValueError(f"{answer} cannot be an example: {error}") from None
            messages += [{"role": "user", "content": read_text(caps).strip()},
                         {"role": "assistant", "content": read_text(answer).strip()}]
        out[kind] = messages
    return out


def requests_of(cfg: Config, records: list[dict]) -> list[Request]:
    """Which picture gets which type: shares as asked in every run of their sum, pictures in turn.

    Equal seeds give equal requests, and a larger n begins with those of a smaller one. Messages are
    put in by `with_messages`, one at a time.
    """
    order = random.Random(f"{cfg.seed} pictures").sample(range(len(records)), len(records))
    run = [kind for kind, share in zip(TYPES, cfg.shares) for _ in range(share)]
    out = []
    for i in range(cfg.n):
        lap, place = divmod(i, len(run))
        if place == 0:
            kinds = random.Random(f"{cfg.seed} types {lap}").sample(run, len(run))
        again, nth = divmod(i, len(records))
        record = records[order[nth]]
        out.append(Request(f"{record['id']}-{kinds[place]}-{again}", kinds[place], record))
    return out


def with_messages(requests: Iterable[Request], prompts: dict, cfg: Config) -> Iterator[Request]:
    """Fill in what a language model is to read."""
    for r in requests:
        boxes = r.kind != "conversation" or cfg.boxes or not r.record.get("captions")
        said = told(r.record, boxes)
        r.messages = [*prompts[r.kind], {"role": "user", "content": said}]
        yield r


# --- asking ---


def make_teacher(cfg: Config, meta: dict) -> Teacher:
    """The teacher that the options name."""
    if cfg.teacher == "template":
        return TemplateTeacher(template.world_of(meta), cfg.seed)
    if cfg.teacher == "openai":
        return OpenAITeacher(
            cfg.model, cfg.base_url, cfg.concurrency, cfg.retries, cfg.timeout, cfg.temperature,
            cfg.max_tokens,
        )
    return LocalTeacher(cfg.run, cfg.temperature, cfg.max_tokens, cfg.seed, cfg.device)


def main(cfg: Config) -> dict[str, float]:
    """Ask, check, write; return how many of each type were written, and how many were rejected.

    Raises:
        ValueError: if no dialogue is good.
    """
    began = time.time()
    records = load_records(cfg.data, cfg.split, need=("image",), unique=True)
    meta = load_meta(cfg.data)
    offline, n_all = cfg.teacher == "template", len(records)
    records = [r for r in records if r.get("captions") or r.get("objects")]
    if not offline:  # a private picture's contents are nobody's business
        records = [r for r in records if r.get("border") != "private"]
    if not records:
        raise ValueError(f"{cfg.data}/{cfg.split}.jsonl has neither captions nor objects")
    for r in records:
        things_of(r)  # a box that cannot be told must not stop a paid run in its middle
    out = Path(cfg.out or f"{cfg.data}/instruct.jsonl")
    requests = requests_of(cfg, records)
    prompts = {} if offline and not cfg.dry_run else load_prompts(cfg.prompts, cfg.n_shots)
    if cfg.dry_run:
        for kind in TYPES:
            first = [r for r in requests if r.kind == kind][:1]
            for r in with_messages(first, prompts, cfg):
                print(f"=== {r.key}")
                said = "\n".join(f"--- {m['role']}\n{m['content']}" for m in r.messages)
                print(printable(said))
        return {}
    teacher = make_teacher(cfg, meta)
    out.parent.mkdir(parents=True, exist_ok=True)
    if offline:
        done = ask(teacher, requests, len(requests), None)
    else:
        raw = out.with_suffix(".raw.jsonl")
        if cfg.fresh:
            raw.unlink(missing_ok=True)
        told_hash = hashlib.sha256(json.dumps([prompts, cfg.boxes]).encode()).hexdigest()[:12]
        header = {"teacher": cfg.teacher, "model": cfg.model or cfg.run, "prompts": told_hash,
                  "temperature": cfg.temperature, "seed": cfg.seed}
        done = journal(raw, header)
        left = [r for r in requests if r.key not in done]
        done |= ask(teacher, with_messages(left, prompts, cfg), len(left), raw)

    written, counts, reasons = [], Counter(), Counter()
    phrases = meta.get("phrases", {})
    with out.with_suffix(".rejects.jsonl").open("w", encoding="utf-8") as rejects:
        for r in requests:
            line = done.get(r.key)
            if line is None:
                reasons["no reply"] += 1
                continue
            try:
                if line["error"]:
                    raise ValueError(line["error"])
                if line["cut"]:
                    raise ValueError("cut off")
                rounds = parse(r.kind, line["raw"])
                for reason in faults(r.kind, rounds, r.record, phrases, cfg.max_words):
                    raise ValueError(reason)
            except ValueError as reason:
                reasons[str(reason)] += 1
                rejects.write(json.dumps({**line, "reason": str(reason)}) + "\n")
                continue
            rng = random.Random(f"{cfg.seed} {r.key} detail")
            turns = [t for q, a in rounds for t in (
                {"from": "human", "value": q or asker(rng)("detail", {})},
                {"from": "gpt", "value": a})]
            turns[0]["value"] = "<image>\n" + turns[0]["value"]
            written.append({"id": r.key, "image": r.record["image"], "conversations": turns})
            counts[r.kind] += 1
    if not written:
        raise ValueError(f"no dialogue is good; rejected: {dict(reasons)}")
    for path, text in ((out, "".join(json.dumps(d) + "\n" for d in written)),
                       (out.with_suffix(".json"), json.dumps(written, indent=1))):
        half = path.with_name(path.name + ".half")
        half.write_text(text, encoding="utf-8")
        half.replace(path)
    spent = [sum(line["tokens"][i] for line in done.values()) for i in (0, 1)]
    cost = (spent[0] * cfg.usd_in + spent[1] * cfg.usd_out) / 1e6
    print(f"{out}: {dict(counts)}, rejected {dict(reasons) or 'nothing'}, "
          f"{n_all - len(records)} pictures left out; tokens {spent[0]:,} in, "
          f"{spent[1]:,} out, {cost:.2f} USD; {time.time() - began:.0f} s")
    return {**counts, "rejected": sum(reasons.values()), "seconds": time.time() - began}


if __name__ == "__main__":
    cli(main, Config)
