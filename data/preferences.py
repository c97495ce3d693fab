"""Preferences: several answers of an SFT model to each question, rated and ranked.

    python data/preferences.py                                       a simulated human
    python data/preferences.py --rater file --ranked people.jsonl    rankings that people made
    python data/preferences.py --rater judge --model NAME            a vision model at an endpoint

Writes, in the data folder,

    preferences.jsonl   {"id", "image", "question", "kind", "responses": [K], "ratings": [K x {axis:
                        1 .. 5}], "ranking": [K ranks, 1 is best, equals alike], "rater",
                        "captions": true ones, for train_reward.py --facts}
    preferences_pairs.jsonl
                        {"id", "image", "conversations": [the question], "chosen", "rejected",
                        "gap", "rater"}, every ordered pair, ties left out

and for the last pictures preferences_val.jsonl, preferences_val_pairs.jsonl. With --trl,
preferences_pairs.trl.jsonl too, as TRL's DPO trainer takes pictures: {"images", "prompt", "chosen",
"rejected"} of messages.

A judge's replies are written down as they arrive (preferences.raw.jsonl), so that a killed run goes
on without asking twice; --fresh forgets them.

Source: K ranked answers: InstructGPT, arXiv:2203.02155, section 3.5; three axes: Silkie,
arXiv:2312.10665, section 3. Used by: train_reward.py.
"""

import hashlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

# the checkout, so that this runs as a script
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data import judge  # noqa: E402
from data.raters import AXES, Ratings, SimulatedHuman, ranks_of, true_ratings  # noqa: E402
from data.teachers import OpenAITeacher, ask, journal  # noqa: E402
from minivlm import checkpoint, run  # noqa: E402
from minivlm.conversation import IMAGE_MARK  # noqa: E402
from minivlm.data import load_meta, load_records  # noqa: E402
from minivlm.generate import generate  # noqa: E402
from minivlm.images import Pictures  # noqa: E402
from minivlm.measure import prompt_of  # noqa: E402
from minivlm.rankings import check_ranking, rating_of  # noqa: E402
from minivlm.tokenizer import Tokenizer  # noqa: E402
from minivlm.vlm import VLM  # noqa: E402


@dataclass
class Config:
    """Whose answers, to which questions, and who judges them."""

    run: str = "runs/sft"  # run folder whose answers are sampled
    data: str = "data/shapes/prepared"  # folder made by a prepare.py
    questions: str = "prompts"  # which file of it holds the questions
    split: str = "train"  # which file of it holds their pictures' records
    out: str = ""  # file to write; empty = preferences.jsonl in the data folder
    n: int = 12000  # questions; those that get one answer only are left out
    n_val: int = 600  # of them held out, by picture
    k: int = 4  # different answers to each
    temperature: float = 1.0  # of half of the draws; 1 = the model's own distribution
    hot: float = 1.5  # temperature of the other half: what the model hardly ever says
    max_new_tokens: int = 96  # longest answer
    batch_size: int = 100  # questions answered at a time, k answers each
    rater: str = "human-sim"  # human-sim (a simulation), file or judge
    noise: float = 0.3  # human-sim: temperature of the noise, in points of the scale
    tie: float = 0.1  # human-sim: answers closer than this are equal, in points
    n_annotators: int = 1  # human-sim: whose mean ranks are ranked again
    ranked: str = ""  # file: JSON lines with id, responses and ranking
    model: str = ""  # judge: the model's name
    base_url: str = ""  # judge: the endpoint; empty = the client's default
    rubric: str = "data/prompts/judge.txt"  # judge: what it is told to rate by
    concurrency: int = 4  # judge: requests under way at once
    retries: int = 5  # judge: further attempts at a request
    timeout: float = 60.0  # judge: seconds until an attempt counts as failed
    max_tokens: int = 600  # judge: longest reply
    fresh: bool = False  # judge: forget the replies that an earlier run has left
    trl: bool = False  # write the pairs for TRL too
    seed: int = 0  # which questions, which answers, whose noise
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    threads: int = 0  # CPU threads; 0 = torch's choice

    def __post_init__(self):
        if self.rater not in ("human-sim", "file", "judge"):
            raise ValueError(f"rater {self.rater!r} is not one of human-sim, file, judge")
        if self.rater == "judge" and not self.model:
            raise ValueError("rater judge needs --model, the name of a model")
        if self.rater == "file" and not self.ranked:
            raise ValueError("rater file needs --ranked, a file of rankings")
        if self.k < 2 or min(self.n, self.n_val, self.batch_size, self.concurrency) < 1:
            raise ValueError("expected k >= 2; n, n_val, batch_size and concurrency >= 1")
        if min(self.temperature, self.hot) <= 0 or min(self.noise, self.tie) < 0:
            raise ValueError("expected temperature > 0, hot > 0, noise >= 0 and tie >= 0")
        if self.n_annotators < 1:
            raise ValueError("expected n_annotators >= 1")


# --- sampling ---


def sample(
    model: VLM, pictures: Pictures, tokenizer: Tokenizer, questions: list[dict], cfg: Config
) -> Iterator[tuple[dict, list[str]]]:
    """Each question with up to k different answers; of 2 k draws the first different ones are kept.

    Every other draw is a hot one. Where the model is sure, its own draws are all alike; but a
    reward model that has never seen a refusal left out, say, will not miss it either. A question
    that gets only one answer has nothing to rank. Questions whose known answers are equally long
    are asked together, since a batch takes as long as its longest answer.
    """
    questions = sorted(questions, key=lambda q: len(q.get("answer", "")))
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(cfg.seed)
    for start in tqdm(range(0, len(questions), cfg.batch_size), desc="sampling", disable=None):
        part = questions[start:start + cfg.batch_size]
        prompts = [prompt_of(q["question"], model, tokenizer) for q in part]
        images = pictures.get([q["image"] for q in part])
        many = [p for p in prompts for _ in range(cfg.k)]
        cool, hot = (
            generate(model, images.repeat_interleave(cfg.k, 0), many, stop=tokenizer.end,
                     max_new_tokens=cfg.max_new_tokens, temperature=t, generator=generator)
            for t in (cfg.temperature, cfg.hot)
        )
        texts = [tokenizer.decode(ids).strip() for pair in zip(cool, hot) for ids in pair]
        for i, q in enumerate(part):
            drawn = dict.fromkeys(t for t in texts[2 * cfg.k * i:2 * cfg.k * (i + 1)] if t)
            yield q, list(drawn)[: cfg.k]


# --- published layouts ---


def read_ranked(path: str | Path) -> list[dict]:
    """Rankings in any of three layouts, as records with question, responses and ranking.

    Ours; LLaVA-RLHF's ("conversations", "output_1", "output_2", "preference": 1 or 2); RLHF-V's
    ("text": JSON or dict of "question", "chosen", "rejected").

    Raises:
        ValueError: for a line that is none of them, with file and line.
    """
    out = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        try:
            r = json.loads(line)
            out.append(ranked_of(r, f"record {number}"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}:{number} is no ranking: {error}") from None
    return out


def ranked_of(r: dict, name: str) -> dict:
    """One published record as ours.

    Raises:
        KeyError, TypeError, ValueError: if it is in no known layout.
    """
    made = {"id": str(r.get("id", r.get("idx", name))), "image": r.get("image", "")}
    if "output_1" in r:
        if r["preference"] not in (1, 2):
            raise ValueError(f"preference {r['preference']!r} is neither 1 nor 2")
        asked = [t["value"] for t in r["conversations"] if t["from"] == "human"][-1]
        made["responses"] = [r["output_1"]["value"], r["output_2"]["value"]]
        made["ranking"] = [1, 2] if r["preference"] == 1 else [2, 1]
    elif "text" in r:
        text = json.loads(r["text"]) if isinstance(r["text"], str) else r["text"]
        asked, made["responses"] = text["question"], [text["chosen"], text["rejected"]]
        made["ranking"] = [1, 2]
    else:
        asked, made["responses"], made["ranking"] = r["question"], r["responses"], r["ranking"]
        made |= {k: r[k] for k in ("ratings", "kind") if k in r}
    made["question"] = asked.replace(IMAGE_MARK, "").strip()
    return made


# --- writing ---


def pairs_of(r: dict) -> list[dict]:
    """Every ordered pair of a ranked record; ties carry none."""
    out = []
    turns = [{"from": "human", "value": f"{IMAGE_MARK}\n{r['question']}"}]
    scores = [rating_of(x) for x in r["ratings"]] if r.get("ratings") else None
    for i, better in enumerate(r["ranking"]):
        for j, worse in enumerate(r["ranking"]):
            if better < worse:
                gap = scores[i] - scores[j] if scores else worse - better
                out.append({
                    "id": f"{r['id']}-{i}{j}", "image": r["image"], "conversations": turns,
                    "chosen": r["responses"][i], "rejected": r["responses"][j], "gap": gap,
                    "rater": r["rater"]})
    return out


def trl_of(pair: dict) -> dict:
    """A pair as TRL's trainers take pictures and messages."""
    asked = pair["conversations"][0]["value"].replace(IMAGE_MARK, "").strip()

    def said(text: str) -> list[dict]:
        return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]

    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}]
    return {"images": [pair["image"]], "prompt": prompt, "chosen": said(pair["chosen"]),
            "rejected": said(pair["rejected"])}


def rate(
    sampled: list[tuple[dict, list[str]]], records: dict[str, dict], pictures: Pictures, meta: dict,
    out: Path, cfg: Config, skipped: Counter,
) -> Iterator[tuple[dict, list[str], list[Ratings], list[int]]]:
    """Each question with its answers, their ratings and their ranks, by the rater of the options.

    A reply of the judge that cannot be read is counted in `skipped`, and kept in the raw file.
    """
    if cfg.rater == "human-sim":
        human = SimulatedHuman(cfg.noise, cfg.tie, cfg.n_annotators, cfg.seed)
        phrases = meta.get("phrases", {})
        for q, answers in sampled:
            ratings = [true_ratings(a, q, records[q["image"]], phrases) for a in answers]
            yield q, answers, ratings, human.rank(q["id"], [rating_of(r) for r in ratings])
        return
    rubric = Path(cfg.rubric).read_text("utf-8")
    teacher = OpenAITeacher(cfg.model, cfg.base_url, cfg.concurrency, cfg.retries, cfg.timeout, 0.0,
                            cfg.max_tokens)
    raw = out.with_suffix(".raw.jsonl")
    if cfg.fresh:
        raw.unlink(missing_ok=True)
    told = hashlib.sha256(rubric.encode()).hexdigest()[:12]
    done = journal(raw, {"judge": cfg.model, "rubric": told})
    left = [pair for pair in sampled if judge.key_of(*pair) not in done]
    done |= ask(teacher, judge.requests_of(left, pictures, rubric), len(left), raw)
    for q, answers in sampled:
        line = done.get(judge.key_of(q, answers), {"error": "no reply"})
        try:
            if line["error"] or line["cut"]:
                raise ValueError(line["error"] or "cut off")
            ratings = judge.parse(line["raw"], len(answers))
        except ValueError as error:
            skipped[f"judge: {error}"] += 1
            continue
        yield q, answers, ratings, ranks_of([rating_of(r) for r in ratings], 1e-6)


def main(cfg: Config) -> dict[str, float]:
    """Sample or read, rate, write; return how many rankings and pairs, and what was left out.

    Raises:
        ValueError: if nothing can be ranked, or a question is about an unknown picture.
    """
    began, meta = time.time(), load_meta(cfg.data)
    records = {r["image"]: r for r in load_records(cfg.data, cfg.split, need=("image",))}
    out = Path(cfg.out or f"{cfg.data}/preferences.jsonl")
    made, skipped = [], Counter()
    if cfg.rater == "file":
        known = {r["id"]: r["image"] for r in records.values()}
        for r in read_ranked(cfg.ranked):
            image = r["image"] if r["image"] in records else known.get(r["id"])
            if image:
                made.append(r | {"image": image})
            else:
                skipped["unknown id"] += 1
    else:
        run.seed_everything(cfg.seed, cfg.threads)
        state = checkpoint.load(cfg.run, ("sft", "ppo"))
        tokenizer = Tokenizer.from_text(state["tokenizer"])
        model = VLM.from_checkpoint(state).to(run.pick_device(cfg.device)).eval()
        pictures = Pictures(cfg.data, model.vit.config.image_size)
        questions = load_records(cfg.data, cfg.questions, need=("image", "question", "kind"))
        strange = [q["id"] for q in questions if q["image"] not in records]
        if strange:
            raise ValueError(f"question {strange[0]} is about a picture that {cfg.split} lacks")
        chosen = random.Random(f"{cfg.seed} questions").sample(
            questions, min(cfg.n, len(questions)))
        place = {q["id"]: i for i, q in enumerate(chosen)}
        drawn = sorted(sample(model, pictures, tokenizer, chosen, cfg),
                       key=lambda pair: place[pair[0]["id"]])
        sampled = [(q, answers) for q, answers in drawn if len(answers) > 1]
        skipped["one answer only"] = len(drawn) - len(sampled)
        for q, answers, ratings, ranks in rate(
                sampled, records, pictures, meta, out, cfg, skipped):
            made.append({
                "id": q["id"], "image": q["image"], "question": q["question"], "kind": q["kind"],
                "responses": answers, "ratings": ratings, "ranking": ranks})
    ranked = []
    for r in made:
        reason = check_ranking(r)
        skipped[reason] += bool(reason)
        if not reason:
            captions = records[r["image"]].get("captions", [])
            ranked.append(r | {"rater": cfg.rater, "captions": captions})
    skipped = Counter({reason: n for reason, n in skipped.items() if n})
    if not ranked:
        raise ValueError(f"nothing can be ranked; left out: {dict(skipped)}")
    # held out by picture, so that no picture is on both sides
    held_out, n_held = set(), 0
    for image, n in reversed(Counter(r["image"] for r in ranked).items()):
        if n_held < cfg.n_val:
            held_out.add(image)
            n_held += n
    if n_held == len(ranked):
        raise ValueError(f"{len(ranked)} rankings, and {cfg.n_val} of them held out: none is left "
                         "to learn from; lower n_val")
    counts = {}
    for side, keep in (("", False), ("_val", True)):
        rows = [r for r in ranked if (r["image"] in held_out) == keep]
        pairs = [p for r in rows for p in pairs_of(r)]
        files = {f"{out.stem}{side}.jsonl": rows, f"{out.stem}{side}_pairs.jsonl": pairs}
        if cfg.trl:
            files[f"{out.stem}{side}_pairs.trl.jsonl"] = [trl_of(p) for p in pairs]
        for name, lines in files.items():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            out.with_name(name).write_text(text, encoding="utf-8")
        counts |= {f"rankings{side}": len(rows), f"pairs{side}": len(pairs)}
    means = {}
    if all(r.get("ratings") for r in ranked):
        every = [x for r in ranked for x in r["ratings"]]
        means = {axis: sum(x[axis] for x in every) / len(every) for axis in AXES}
    print(f"{out}: {counts}, left out {dict(skipped) or 'nothing'}; mean ratings "
          f"{ {k: round(v, 2) for k, v in means.items()} }; {time.time() - began:.0f} s")
    return {**counts, **means, "skipped": sum(skipped.values())}


if __name__ == "__main__":
    run.cli(main, Config)
