"""Preferences: several answers of one or more models to each question, rated and ranked.

    python data/preferences.py                                       a simulated human
    python data/preferences.py --rater file --ranked people.jsonl    rankings that people made
    python data/preferences.py --rater judge --model NAME            a vision model at an endpoint
    python data/preferences.py --rater judge-sim --error_rate 0.2    a simulated one, who may err
    python data/preferences.py --run runs/sft,runs/ppo               a pool of models, as Silkie has
    python data/preferences.py --answers OLD.jsonl --out NEW.jsonl   the same answers, rated anew

Writes, in the data folder,

    preferences.jsonl   {"id", "image", "question", "kind", "responses": [K], "ratings": [K x {axis:
                        1 .. 5}], "ranking": [K ranks, 1 is best, equals alike], "rater",
                        "captions": true ones, for train_reward.py --facts}
    preferences_pairs.jsonl
                        {"id", "image", "conversations": [the question], "chosen", "rejected",
                        "gap", "rater"}, every ordered pair, ties left out

and for the last pictures preferences_val.jsonl, preferences_val_pairs.jsonl. With --trl,
preferences_pairs.trl.jsonl too, as TRL's DPO trainer takes pictures: {"images", "prompt", "chosen",
"rejected"} of messages, packed pictures saved as files beside it.

A judge's replies are written down as they arrive (preferences.raw.jsonl), so that a killed run goes
on without asking twice; --fresh forgets them.

Source: K ranked answers: InstructGPT, arXiv:2203.02155, section 3.5; three axes: Silkie,
arXiv:2312.10665, section 3. Used by: train_reward.py, train_dpo.py.
"""

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from minivlm.engine.teachers import OpenAITeacher, ask, journal
from minivlm.evaluation.raters import AXES, Ratings, SimulatedHuman, SimulatedJudge
from minivlm.evaluation.raters import ranks_of, rating_of, true_ratings
from minivlm.loading.images import Pictures
from minivlm.loading.prepared import load_meta, load_records
from minivlm.preferences import judge
from minivlm.preferences.layouts import read_ranked, trl_of, unpack
from minivlm.preferences.pairs import pairs_of
from minivlm.preferences.pool import answered, ask_pool
from minivlm.preferences.rankings import check_ranking
from minivlm.running import machine, options
from minivlm.running.files import read_text


@dataclass
class Config:
    """Whose answers, to which questions, and who judges them."""

    run: str = "runs/sft"  # run folder whose answers are sampled; several, with commas between
    data: str = "data/shapes/prepared"  # folder made by a prepare.py
    answers: str = ""  # file of rankings whose answers are rated again, none drawn; or empty
    questions: str = "prompts"  # which file of it holds the questions
    records: str = "train"  # which file of it tells what is true of their pictures
    out: str = ""  # file to write; empty = preferences.jsonl in the data folder
    n: int = 12000  # questions; those that get one answer only are left out
    n_val: int = 600  # of them held out, by picture
    k: int = 4  # different answers to each
    temperature: float = 1.0  # of half of the draws; 1 = the model's own distribution
    hot: float = 1.5  # temperature of the other half: what the model hardly ever says
    max_new_tokens: int = 96  # longest answer
    batch_size: int = 100  # questions answered at a time, k answers each
    rater: str = "human-sim"  # human-sim, judge-sim (both simulations), file or judge
    noise: float = 0.3  # human-sim: temperature of the noise, in points of the scale
    tie: float = 0.1  # human-sim: answers closer than this are equal, in points
    n_annotators: int = 1  # human-sim: whose mean ranks are ranked again
    error_rate: float = 0.2  # judge-sim: share of its ratings that are guesses
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
        raters = ("human-sim", "judge-sim", "file", "judge")
        if self.rater not in raters:
            raise ValueError(f"rater {self.rater!r} is not one of {', '.join(raters)}")
        if self.rater == "judge" and not self.model:
            raise ValueError("rater judge needs --model, the name of a model")
        if self.answers and (self.rater == "file" or self.out in ("", self.answers)):
            raise ValueError("answers that are there already need a rater other than file, and "
                             "--out, another file to write to")
        if self.rater == "file" and not self.ranked:
            raise ValueError("rater file needs --ranked, a file of rankings")
        if self.k < 2 or min(self.n, self.n_val, self.batch_size, self.concurrency) < 1:
            raise ValueError("expected k >= 2; n, n_val, batch_size and concurrency >= 1")
        if min(self.temperature, self.hot) <= 0 or min(self.noise, self.tie) < 0:
            raise ValueError("expected temperature > 0, hot > 0, noise >= 0 and tie >= 0")
        if self.n_annotators < 1 or not 0 <= self.error_rate <= 1:
            raise ValueError("expected n_annotators >= 1 and 0 <= error_rate <= 1")


# --- rating ---

Rated = Iterator[tuple[dict, list[str], list[Ratings], list[int]]]


def make_rater(
    records: dict[str, dict], pictures: Pictures, meta: dict, out: Path, cfg: Config,
    skipped: Counter,
) -> Callable[[list[tuple[dict, list[str]]]], Rated]:
    """A function from questions with their answers to the same with ratings and ranks.

    A reply of the judge that cannot be read is counted in `skipped`, and kept in the raw file.

    Raises:
        ValueError, OSError: if the judge's client, key, rubric or raw file is not as it must be.
    """
    def human_sim(sampled: list[tuple[dict, list[str]]]) -> Rated:
        human = SimulatedHuman(cfg.noise, cfg.tie, cfg.n_annotators, cfg.seed)
        for q, answers in sampled:
            scene = records[q["image"]]
            ratings = [true_ratings(a, q, scene, meta["phrases"]) for a in answers]
            yield q, answers, ratings, human.rank(q["id"], [rating_of(r) for r in ratings])

    def judge_sim(sampled: list[tuple[dict, list[str]]]) -> Rated:
        simulated = SimulatedJudge(cfg.error_rate, cfg.seed)
        for q, answers in sampled:
            scene = records[q["image"]]
            truth = [true_ratings(a, q, scene, meta["phrases"]) for a in answers]
            ratings = simulated.rate(q["id"], truth)
            yield q, answers, ratings, ranks_of([rating_of(r) for r in ratings], 1e-6)

    if cfg.rater in ("human-sim", "judge-sim"):
        return human_sim if cfg.rater == "human-sim" else judge_sim
    rubric, raw = read_text(cfg.rubric), out.with_suffix(".raw.jsonl")
    teacher = OpenAITeacher(cfg.model, cfg.base_url, cfg.concurrency, cfg.retries, cfg.timeout, 0.0,
                            cfg.max_tokens)
    if cfg.fresh:
        raw.unlink(missing_ok=True)
    told = hashlib.sha256(rubric.encode()).hexdigest()[:12]
    done = journal(raw, {"judge": cfg.model, "rubric": told})

    def judged(sampled: list[tuple[dict, list[str]]]) -> Rated:
        keys = [judge.key_of(*pair, pictures) for pair in sampled]
        # what was cut off may fit now
        left = [pair for pair, key in zip(sampled, keys) if done.get(key, {"cut": True})["cut"]]
        done.update(ask(teacher, judge.requests_of(left, pictures, rubric), len(left), raw))
        for (q, answers), key in zip(sampled, keys):
            line = done.get(key, {"error": "no reply"})
            try:
                if line["error"] or line["cut"]:
                    raise ValueError(line["error"] or "cut off")
                ratings = judge.parse(line["raw"], len(answers))
            except ValueError as error:
                skipped[f"judge: {error}"] += 1
                continue
            yield q, answers, ratings, ranks_of([rating_of(r) for r in ratings], 1e-6)

    return judged


# --- writing ---


def main(cfg: Config) -> dict[str, float]:
    """Sample or read, rate, write; return how many rankings and pairs, and what was left out.

    Raises:
        ValueError: if nothing can be ranked, or a question is about an unknown picture.
    """
    began, meta = time.time(), load_meta(cfg.data)
    records = {r["image"]: r for r in load_records(cfg.data, cfg.records) if r.get("image")}
    out = Path(cfg.out or f"{cfg.data}/preferences.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    made, skipped = [], Counter()
    if cfg.rater == "file":
        known = {str(r["id"]): r["image"] for r in records.values()}
        for r in read_ranked(cfg.ranked):
            image = r["image"] if r["image"] in records else known.get(r["id"])
            if image:
                made.append(r | {"image": image})
            else:
                skipped["unknown id"] += 1
    else:
        machine.seed_everything(cfg.seed, cfg.threads)
        pictures = Pictures(cfg.data, meta["image_size"])
        need = ("image", "question", "kind")
        questions = load_records(cfg.data, cfg.questions, need, unique=True)
        strange = [q["id"] for q in questions if q["image"] not in records]
        if strange:
            raise ValueError(f"question {strange[0]} is about a picture that {cfg.records} lacks")
        chosen = random.Random(f"{cfg.seed} questions").sample(
            questions, min(cfg.n, len(questions)))
        if cfg.rater in ("human-sim", "judge-sim") and not all(
                meta.get("phrases") and records[q["image"]].get("objects") for q in chosen):
            raise ValueError(f"rater {cfg.rater} needs objects of every picture and meta.json's "
                             "phrases for them: without the truth there is nothing to simulate")
        rate = make_rater(records, pictures, meta, out, cfg, skipped)  # before the long part
        drawn = answered(chosen, Path(cfg.answers)) if cfg.answers else ask_pool(
            chosen, cfg.run.split(","), cfg.data, cfg.k, (cfg.temperature, cfg.hot),
            cfg.max_new_tokens, cfg.batch_size, machine.pick_device(cfg.device), cfg.seed)
        sampled = [(q, answers) for q, answers in drawn if len(answers) > 1]
        skipped["one answer only"] = len(drawn) - len(sampled)
        skipped["no answers in the file"] = len(chosen) - len(drawn)
        for q, answers, ratings, ranks in rate(sampled):
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
            packed = Pictures(cfg.data, meta["image_size"])
            unpacked = unpack({r["image"] for r in rows}, packed, out)
            files[f"{out.stem}{side}_pairs.trl.jsonl"] = [trl_of(p, unpacked) for p in pairs]
        for name, lines in files.items():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            out.with_name(name).write_text(text, encoding="utf-8")
        counts |= {f"rankings{side}": len(rows), f"pairs{side}": len(pairs)}
    means = {}
    if all(r.get("ratings") for r in ranked):
        every = [x for r in ranked for x in r["ratings"]]
        means = {axis: sum(x.get(axis, 0) for x in every) / len(every) for axis in AXES}
    print(f"{out}: {counts}, left out {dict(skipped) or 'nothing'}; mean ratings "
          f"{ {k: round(v, 2) for k, v in means.items()} }; {time.time() - began:.0f} s")
    return {**counts, **means, "skipped": sum(skipped.values())}


if __name__ == "__main__":
    options.cli(main, Config)
