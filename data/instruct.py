"""LLaVA's data engine: a teacher reads captions and boxes and writes dialogues.

    python data/instruct.py                                          20,000, offline
    python data/instruct.py --teacher openai --model NAME --dry_run  only show what is sent
    python data/instruct.py --teacher openai --model NAME            ask an endpoint

The teacher sees no picture. It is told what is known: captions, and objects with boxes. It
writes as if it saw the picture: conversations (from the captions alone, as in LLaVA),
detailed descriptions, and questions that need reasoning.

Each reply of a language model is appended to instruct.raw.jsonl as it arrives. So a script
that was killed can be started again and asks for no reply twice. That file belongs to one
teacher with its messages; only --fresh deletes it. Dialogues that pass the checks go to
instruct.jsonl, ready for `train_sft.py --split instruct`, and to instruct.json in LLaVA's
format. Rejected replies go to instruct.rejects.jsonl, each with the reason.

Source: LLaVA, Liu et al. 2023, arXiv:2304.08485, section 3; conversation : detail :
reasoning = 58 : 23 : 77 thousand (haotian-liu/LLaVA, docs/Data.md); conversations without
boxes: its issue 87.
"""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from minivlm.engine.checks import faults, parse
from minivlm.engine.dialogues import turns_of
from minivlm.engine.teachers import (
    LocalTeacher, OpenAITeacher, Request, Teacher, TemplateTeacher, ask, journal,
)
from minivlm.engine.template import QA
from minivlm.engine.wording import world_of
from minivlm.evaluation.scene import things_of
from minivlm.loading.prepared import load_meta, load_records
from minivlm.running.files import read_text
from minivlm.running.options import check, cli, printable

TYPES = ("conversation", "detail", "reasoning")


@dataclass
class Config:
    """Options of the command; the comments are the help texts."""

    # data
    data: str = "data/book/prepared"  # data folder made by a prepare.py
    split: str = "train"  # which file of the data folder to write about
    n: int = 20000  # >= 1; dialogues to ask for
    proportions: str = "58:23:77"  # conversation : detail : reasoning; LLaVA's by default
    out: str = ""  # file to write; empty = instruct.jsonl in the data folder
    # teacher
    teacher: str = "template"  # template | openai | local; templates, an endpoint, our GPT
    model: str = ""  # openai: name of the model
    base_url: str = ""  # openai: address of the endpoint; empty = the client's default
    run: str = "runs/lm"  # local: run folder of train_lm.py
    temperature: float = 0.7  # >= 0; openai, local: higher gives more varied text
    max_tokens: int = 800  # >= 1; openai, local: longest reply in tokens
    concurrency: int = 4  # >= 1; openai: requests in flight at once
    retries: int = 5  # >= 0; openai: further attempts after a failed one
    timeout: float = 60.0  # > 0; openai: seconds until an attempt counts as failed
    fresh: bool = False  # delete the replies so far and ask for all again
    # what the teacher reads
    prompts: str = "data/prompts"  # folder with a system message and examples of each type
    n_shots: int = 2  # >= 0; examples that the teacher reads before each request
    boxes: bool = False  # tell boxes for conversations, too
    dry_run: bool = False  # print the first request of each type and stop
    # checks and costs
    max_words: int = 150  # >= 1; reject a dialogue with a longer answer
    usd_in: float = 0.0  # >= 0; price of a million tokens read, for the printed cost
    usd_out: float = 0.0  # >= 0; price of a million tokens written
    # machine
    device: str = "auto"  # local: auto, cpu, cuda, cuda:1, mps; auto = a GPU if any
    seed: int = 0  # >= 0; decides the type for each picture; template: also the questions

    def __post_init__(self):
        if not re.fullmatch(r"\d+:\d+:\d+", self.proportions) or not any(self.shares):
            raise ValueError(
                f"proportions {self.proportions!r} are not three numbers such as 58:23:77"
            )
        if self.teacher == "openai" and not self.model:
            raise ValueError("teacher openai needs --model, the name of a model")

    @property
    def shares(self) -> list[int]:
        """The three numbers of `proportions`."""
        return [int(share) for share in self.proportions.split(":")]


# --- what the teacher reads ---


def record_as_text(record: dict, boxes: bool) -> str:
    """What is known of a picture, as in LLaVA: captions, then "category: [x1, y1, x2, y2]".

    Corners of boxes are shares of the picture's sides, with three decimals. A category is
    the object's name, with its size and color before it where they are known.

    Args:
        boxes: whether to list objects with their boxes.
    """
    lines = [" ".join(caption.split()) for caption in record.get("captions", [])]
    if not boxes or not record.get("objects"):
        return "\n".join(lines)
    if lines:
        lines.append("")
    for o in record["objects"]:
        look = o.get("attributes") or {}
        words = [look.get("size"), look.get("color"), o["name"]]
        category = " ".join(word for word in words if word)
        box = ", ".join(f"{v:.3f}" for v in o["box"])
        lines.append(f"{category}: [{box}]")
    return "\n".join(lines)


def load_prompts(folder: str, n_shots: int) -> dict[str, list[dict[str, str]]]:
    """Read what comes before a request of each type: a system message, then examples.

    An example is two files: NNN_caps.txt is what the teacher reads, NNN_conv.txt is what it
    should write.

    Returns:
        type -> messages.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is not UTF-8, or an example does not follow the grammar.
    """
    prompts = {}
    for kind in TYPES:
        system = Path(folder) / kind / "system.txt"
        if not system.is_file():
            raise FileNotFoundError(f"no system message at {system}")
        messages = [{"role": "system", "content": read_text(system).strip()}]
        for question in sorted(system.parent.glob("*_caps.txt"))[:n_shots]:
            answer = question.with_name(question.name.replace("_caps", "_conv"))
            if not answer.is_file():
                raise FileNotFoundError(f"{question} has no {answer.name} beside it")
            text = read_text(answer).strip()
            try:
                parse(kind, text)
            except ValueError as error:
                raise ValueError(f"{answer} cannot be an example: {error}") from None
            messages.append({"role": "user", "content": read_text(question).strip()})
            messages.append({"role": "assistant", "content": text})
        prompts[kind] = messages
    return prompts


def requests_of(cfg: Config, records: list[dict]) -> list[Request]:
    """Decide which picture gets which type; `with_messages` fills in the messages later.

    All pictures are used once in a random order, then again in the same order, and so on.
    Types come in cycles, and each cycle has exactly the proportions that were asked for.
    Equal seeds give equal requests. A larger n begins with the requests of a smaller n, so
    that replies that were paid for can be used again.
    """
    # each draw has a generator of its own, so that no draw depends on the others
    order = Random(f"{cfg.seed} pictures").sample(range(len(records)), len(records))
    cycle = []
    for kind, share in zip(TYPES, cfg.shares):
        cycle += [kind] * share
    requests = []
    for i in range(cfg.n):
        n_cycles, place = divmod(i, len(cycle))
        if place == 0:
            kinds = Random(f"{cfg.seed} types {n_cycles}").sample(cycle, len(cycle))
        turn, nth = divmod(i, len(records))
        record = records[order[nth]]
        key = f"{record['id']}-{kinds[place]}-{turn}"
        requests.append(Request(key, kinds[place], record))
    return requests


def with_messages(
    requests: Iterable[Request], prompts: dict[str, list[dict]], cfg: Config
) -> Iterator[Request]:
    """Fill in what a language model reads, one request at a time to save memory.

    Args:
        prompts: as `load_prompts` returns them.
    """
    for r in requests:
        # LLaVA's conversations come from captions alone; boxes are told if there are none
        boxes = r.kind != "conversation" or cfg.boxes or not r.record.get("captions")
        user = {"role": "user", "content": record_as_text(r.record, boxes)}
        r.messages = [*prompts[r.kind], user]
        yield r


def show_prompts(
    requests: list[Request], prompts: dict[str, list[dict]], cfg: Config
) -> None:
    """Print the messages of the first request of each type."""
    for kind in TYPES:
        first = [r for r in requests if r.kind == kind][:1]
        for r in with_messages(first, prompts, cfg):
            print(f"=== {r.key}")
            for message in r.messages:
                print(printable(f"--- {message['role']}\n{message['content']}"))


# --- what the teacher writes ---


def make_teacher(cfg: Config, meta: dict) -> Teacher:
    """Make the teacher that the options name."""
    if cfg.teacher == "template":
        return TemplateTeacher(world_of(meta), cfg.seed)
    if cfg.teacher == "openai":
        return OpenAITeacher(
            cfg.model, cfg.base_url, cfg.concurrency, cfg.retries, cfg.timeout,
            cfg.temperature, cfg.max_tokens,
        )
    return LocalTeacher(cfg.run, cfg.temperature, cfg.max_tokens, cfg.seed, cfg.device)


def read_reply(
    reply: dict, request: Request, meta: dict, max_words: int
) -> list[QA]:
    """Read and check a reply.

    Args:
        reply: its line of the journal.
        meta: the data folder's meta.json; its phrases and places are what is known.

    Raises:
        ValueError: if the reply is rejected; the error is the reason.
    """
    if reply["error"]:
        raise ValueError(reply["error"])
    if reply["cut"]:
        raise ValueError("cut off")
    dialogue = parse(request.kind, reply["raw"])
    phrases = meta.get("phrases", {})
    places = meta.get("places", {})
    for fault in faults(
        request.kind, dialogue, request.record, phrases, max_words, places
    ):
        raise ValueError(fault)
    return dialogue


def write_file(path: Path, text: str) -> None:
    """Write a file under another name, then rename it: it is never there half written."""
    half = path.with_name(path.name + ".half")
    half.write_text(text, encoding="utf-8")
    half.replace(path)


def main(cfg: Config) -> dict[str, float]:
    """Ask, check, write; return the number of dialogues of each type, and of rejections.

    Raises:
        ValueError: if no dialogue passes the checks, if the records have neither captions
            nor objects, or if a box is damaged.
    """
    check(cfg)
    began = time.time()
    all_records = load_records(cfg.data, cfg.split, need=("image",), unique=True)
    meta = load_meta(cfg.data)
    records = [r for r in all_records if r.get("captions") or r.get("objects")]
    is_offline = cfg.teacher == "template"
    if not is_offline:
        # templates refuse to describe a private picture; a language model would not refuse,
        # so it is never told what such a picture shows
        records = [r for r in records if r.get("border") != "private"]
    if not records:
        raise ValueError(f"{cfg.data}/{cfg.split}.jsonl has neither captions nor objects")
    for r in records:
        things_of(r)  # a damaged box must raise before anything is paid for
    requests = requests_of(cfg, records)
    prompts = {}
    if cfg.dry_run or not is_offline:
        prompts = load_prompts(cfg.prompts, cfg.n_shots)
    if cfg.dry_run:
        show_prompts(requests, prompts, cfg)
        return {}

    teacher = make_teacher(cfg, meta)
    out = Path(cfg.out or f"{cfg.data}/instruct.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    if is_offline:
        replies = ask(teacher, requests, len(requests), None)
    else:
        raw = out.with_suffix(".raw.jsonl")
        if cfg.fresh:
            raw.unlink(missing_ok=True)
        # a journal must not mix replies to different prompts
        hashed = hashlib.sha256(json.dumps([prompts, cfg.boxes]).encode()).hexdigest()[:12]
        header = {"teacher": cfg.teacher, "model": cfg.model or cfg.run, "prompts": hashed,
                  "temperature": cfg.temperature, "seed": cfg.seed}
        replies = journal(raw, header)
        left = [r for r in requests if r.key not in replies]  # the others are paid for
        replies |= ask(teacher, with_messages(left, prompts, cfg), len(left), raw)

    written = []
    counts, reasons = Counter(), Counter()
    with out.with_suffix(".rejects.jsonl").open("w", encoding="utf-8") as rejects:
        for r in requests:
            if r.key not in replies:
                reasons["no reply"] += 1
                continue
            try:
                dialogue = read_reply(replies[r.key], r, meta, cfg.max_words)
            except ValueError as error:  # a rejected reply is counted and kept, not fatal
                reasons[str(error)] += 1
                rejects.write(json.dumps({**replies[r.key], "reason": str(error)}) + "\n")
                continue
            turns = turns_of(dialogue, Random(f"{cfg.seed} {r.key} detail"))
            image = r.record["image"]
            written.append({"id": r.key, "image": image, "conversations": turns})
            counts[r.kind] += 1
    if not written:
        raise ValueError(f"no dialogue passes the checks; rejected: {dict(reasons)}")
    write_file(out, "".join(json.dumps(record) + "\n" for record in written))
    write_file(out.with_suffix(".json"), json.dumps(written, indent=1))

    n_read = sum(reply["tokens"][0] for reply in replies.values())
    n_written = sum(reply["tokens"][1] for reply in replies.values())
    cost = (n_read * cfg.usd_in + n_written * cfg.usd_out) / 1e6
    seconds = time.time() - began
    print(f"{out}: {dict(counts)}, rejected {dict(reasons) or 'nothing'}, "
          f"{len(all_records) - len(records)} pictures left out; tokens {n_read:,} in, "
          f"{n_written:,} out, {cost:.2f} USD; {seconds:.0f} s")
    return {**counts, "rejected": sum(reasons.values()), "seconds": seconds}


if __name__ == "__main__":
    cli(main, Config)
