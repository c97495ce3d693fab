"""Preferences: several answers to each question, rated and ranked.

    python data/preferences.py                               a simulated human ranks
    python data/preferences.py --rater judge-sim             a simulated judge rates
    python data/preferences.py --rater judge --model NAME    a vision-language model rates
    python data/preferences.py --rater file --ranked FILE    people have ranked
    python data/preferences.py --run runs/sft,runs/ppo       several chatbots answer
    python data/preferences.py --answers OLD --out NEW       old answers are rated again

Writes into the data folder, with one JSON object a line,

    preferences.jsonl          "id", "image", "question", "kind",
                               "responses": [K], "ratings": [K x {axis: 1 .. 5}],
                               "ranking": [K ranks, 1 is best, answers may share a rank],
                               "captions": true ones, for train_reward.py --facts, "rater"
    preferences_pairs.jsonl    a pair of every two answers with different ranks:
                               "id", "image", "conversations": [the question],
                               "chosen", "rejected", "gap", "rater"

and preferences_val.jsonl, preferences_val_pairs.jsonl with the rankings that are held out.
--trl also writes preferences_pairs.trl.jsonl in the layout of TRL's DPO trainer: "images",
and "prompt", "chosen", "rejected" as messages. Packed pictures become files beside it.

Each reply of a judge is written to preferences.raw.jsonl as it arrives. A script that was
killed and is started again asks for missing replies only; --fresh asks for all again.

Source: K ranked answers: InstructGPT, arXiv:2203.02155, section 3.5; three axes and several
models that answer: Silkie, arXiv:2312.10665, section 3.
"""

import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from minivlm.engine.teachers import OpenAITeacher, ask, journal
from minivlm.evaluation.raters import (
    AXES, Ratings, SimulatedHuman, SimulatedJudge, ranks_of, rating_of, true_ratings,
)
from minivlm.loading.images import Pictures
from minivlm.loading.prepared import load_meta, load_records, write_records
from minivlm.preferences import judge
from minivlm.preferences.layouts import read_ranked, trl_of, unpack
from minivlm.preferences.pairs_from_rankings import pairs_of
from minivlm.preferences.pool import QuestionsWithAnswers, answered, ask_pool
from minivlm.preferences.rankings import check_ranking
from minivlm.running import machine, options
from minivlm.running.files import first_line, read_text

SIMULATIONS = ("human-sim", "judge-sim")
# points; the simulated human gives two answers the same rank if they seem closer than this.
# One point on one of three axes makes a difference of 1/3. The tie is smaller, so that even
# such a difference mostly counts.
TIE = 0.1
SAME = 1e-6  # points; if a judge's mean ratings differ by less, it is by rounding only

# --- config ---


@dataclass
class Config:
    """Options of the script; the comments are the help texts."""

    # data
    data: str = "data/book/prepared"  # data folder made by a prepare.py
    questions: str = "prompts"  # which file of the data folder holds the questions
    records: str = "train"  # which file of the data folder describes the pictures
    out: str = ""  # file to write; empty = preferences.jsonl in the data folder
    n: int = 8000  # >= 1; questions to draw; one that gets a single answer is left out
    n_val: int = 600  # >= 1; rankings to hold out, by picture
    trl: bool = False  # write the pairs in the layout of TRL too
    # answers
    run: str = "runs/sft"  # run folder of the chatbot; several with commas between
    answers: str = ""  # file of rankings whose answers to rate again; empty = draw answers
    k: int = 4  # >= 2; different answers to each question
    temperature: float = 1.0  # > 0; for half of the draws; higher = more varied answers
    hot: float = 1.5  # > 0; for the other half: answers that the chatbot rarely gives
    max_new_tokens: int = 96  # >= 1; longest answer
    batch_size: int = 100  # >= 1; questions answered at once; more take more memory
    # rater
    rater: str = "human-sim"  # human-sim | judge-sim | file | judge; -sim are simulations
    noise: float = 0.3  # >= 0; human-sim: size of random errors, in points; 0 = none
    error_rate: float = 0.2  # 0 .. 1; judge-sim: share of its ratings that are guesses
    ranked: str = ""  # file: rankings in our layout or a published one, as JSON
    model: str = ""  # judge: name of a vision-language model
    base_url: str = ""  # judge: endpoint; empty = the client's default
    rubric: str = "data/prompts/judge.txt"  # judge: text file that tells it how to rate
    concurrency: int = 4  # >= 1; judge: requests in flight at once
    retries: int = 5  # >= 0; judge: further attempts at a request that failed
    timeout: float = 60.0  # > 0; judge: seconds until an attempt counts as failed
    max_tokens: int = 600  # >= 1; judge: longest reply
    fresh: bool = False  # judge: delete the replies so far and ask for all again
    # machine
    seed: int = 0  # >= 0; decides the questions, the answers and the simulations' errors
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; auto = a GPU if there is one
    threads: int = 0  # >= 0; CPU threads; 0 = torch's choice

    def __post_init__(self):
        if self.rater == "judge" and not self.model:
            raise ValueError("rater judge needs --model, the name of a model")
        if self.answers and (self.rater == "file" or self.out in ("", self.answers)):
            raise ValueError(
                "answers from a file need a rater other than file, and --out, another file "
                "to write"
            )
        if self.rater == "file" and not self.ranked:
            raise ValueError("rater file needs --ranked, a file of rankings")


# --- rating ---

Rated = Iterator[tuple[dict, list[str], list[Ratings], list[int]]]
Rater = Callable[[QuestionsWithAnswers], Rated]


def make_rater(
    records: dict[str, dict], pictures: Pictures, phrases: dict[str, str], out: Path,
    cfg: Config, skipped: Counter,
) -> Rater:
    """Make the function that gives answers their ratings and ranks.

    Args:
        records: picture -> its record, for the simulations.
        pictures: for a judge.
        phrases: every way to name an object -> its canonical name, for the simulations.
        out: the file of rankings; a judge's replies are kept beside it.
        skipped: counts, by reason, the judge's replies that cannot be read.

    Raises:
        ValueError, OSError: if a judge's client or key is missing, or its rubric or the
            file of its replies cannot be read.
    """
    if cfg.rater in SIMULATIONS:
        return partial(simulate, records=records, phrases=phrases, cfg=cfg)
    rubric = read_text(cfg.rubric)
    teacher = OpenAITeacher(
        cfg.model, cfg.base_url, cfg.concurrency, cfg.retries, cfg.timeout,
        0.0,  # temperature: a judge must not rate at random
        cfg.max_tokens,
    )
    raw = out.with_suffix(".raw.jsonl")
    if cfg.fresh:
        raw.unlink(missing_ok=True)
    # replies by another model or under another rubric must not be mixed with these
    rubric_hash = hashlib.sha256(rubric.encode()).hexdigest()[:12]
    replies = journal(raw, {"judge": cfg.model, "rubric": rubric_hash})

    def ask_judge(sampled: QuestionsWithAnswers) -> Rated:
        keys = [judge.key_of(q, answers, pictures) for q, answers in sampled]
        to_ask = []
        for pair, key in zip(sampled, keys):
            # a reply that was cut off is asked for again: max_tokens may be larger now
            if key not in replies or replies[key]["cut"]:
                to_ask.append(pair)
        requests = judge.requests_of(to_ask, pictures, rubric)
        replies.update(ask(teacher, requests, len(to_ask), raw))
        for (q, answers), key in zip(sampled, keys):
            reply = replies.get(key, {"error": "no reply"})
            try:
                if reply["error"] or reply["cut"]:
                    raise ValueError(reply["error"] or "cut off")
                ratings = judge.parse(reply["raw"], len(answers))
            except ValueError as error:
                skipped[f"judge: {error}"] += 1
                continue
            yield q, answers, ratings, ranks_of([rating_of(r) for r in ratings], SAME)

    return ask_judge


def simulate(
    sampled: QuestionsWithAnswers, records: dict[str, dict], phrases: dict[str, str],
    cfg: Config,
) -> Rated:
    """Rate answers by the scene; a human then errs in the ranks, a judge in the ratings."""
    human = SimulatedHuman(cfg.noise, TIE, seed=cfg.seed)
    simulated_judge = SimulatedJudge(cfg.error_rate, cfg.seed)
    for q, answers in sampled:
        scene = records[q["image"]]
        ratings = [true_ratings(answer, q, scene, phrases) for answer in answers]
        if cfg.rater == "human-sim":
            ranks = human.rank(q["id"], [rating_of(r) for r in ratings])
        else:
            ratings = simulated_judge.rate(q["id"], ratings)
            ranks = ranks_of([rating_of(r) for r in ratings], SAME)
        yield q, answers, ratings, ranks


# --- rankings ---


def peoples_rankings(path: str, records: dict[str, dict], skipped: Counter) -> list[dict]:
    """Read rankings that people made; find the picture of each by its path or its id."""
    # people may have used other paths; a ranking may have the id of the picture's record
    image_of = {str(r["id"]): image for image, r in records.items()}
    rankings = []
    for r in read_ranked(path, skipped):
        image = r["image"] if r["image"] in records else image_of.get(r["id"])
        if image:
            rankings.append(r | {"image": image})
        else:
            skipped["unknown id"] += 1
    return rankings


def own_rankings(
    records: dict[str, dict], pictures: Pictures, meta: dict, out: Path, cfg: Config,
    skipped: Counter,
) -> list[dict]:
    """Draw questions, get answers to them, and have the answers rated and ranked.

    Raises:
        ValueError: if a question is about an unknown picture, if a simulation lacks scenes,
            or if two questions have the same id.
    """
    machine.seed_everything(cfg.seed, cfg.threads)
    # unique: the pool, and the file of a judge's replies, find answers by a question's id
    questions = load_records(
        cfg.data, cfg.questions, need=("image", "question", "kind"), unique=True
    )
    for q in questions:
        if q["image"] not in records:
            raise ValueError(
                f"question {q['id']} is about a picture that {cfg.records} lacks"
            )
    chooser = random.Random(f"{cfg.seed} questions")
    chosen = chooser.sample(questions, min(cfg.n, len(questions)))
    # before the answers are drawn: one damaged picture must not end a long run
    chosen = with_pictures(chosen, pictures, skipped)
    phrases = meta.get("phrases")
    has_scenes = phrases and all(records[q["image"]].get("objects") for q in chosen)
    if cfg.rater in SIMULATIONS and not has_scenes:
        raise ValueError(
            f"rater {cfg.rater} needs the objects of every picture, and phrases for them "
            "in meta.json: it adds errors to true ratings"
        )
    # before the answers are drawn, which takes minutes: a key or a rubric may be missing
    rate = make_rater(records, pictures, phrases, out, cfg, skipped)
    if cfg.answers:
        drawn = answered(chosen, Path(cfg.answers))
    else:
        drawn = ask_pool(
            chosen, cfg.run.split(","), cfg.data, cfg.k, (cfg.temperature, cfg.hot),
            cfg.max_new_tokens, cfg.batch_size, machine.pick_device(cfg.device), cfg.seed,
        )
    # a single answer cannot be ranked, so it is not rated, which may cost money
    sampled = [(q, answers) for q, answers in drawn if len(answers) > 1]
    skipped["one answer only"] = len(drawn) - len(sampled)
    skipped["no answers in the file"] = len(chosen) - len(drawn)
    rankings = []
    for q, answers, ratings, ranks in rate(sampled):
        rankings.append({
            "id": q["id"], "image": q["image"], "question": q["question"],
            "kind": q["kind"], "responses": answers, "ratings": ratings, "ranking": ranks,
        })
    return rankings


def with_pictures(rows: list[dict], pictures: Pictures, skipped: Counter) -> list[dict]:
    """The questions or rankings whose picture can be read; the others are counted.

    Raises:
        ValueError: if none of the pictures can be read.
    """
    readable = []
    faults = []
    for row in rows:
        try:
            pictures.pixels([row["image"]])
        except (ValueError, OSError) as error:
            faults.append(first_line(error))
        else:
            readable.append(row)
    if faults and not readable:
        raise ValueError(f"none of {len(faults)} pictures can be read; {faults[0]}")
    skipped["unreadable picture"] += len(faults)
    return readable


# --- writing ---


def held_out_pictures(rankings: list[dict], n_val: int) -> set[str]:
    """Choose the last pictures, as many as are needed for n_val rankings.

    All rankings of a picture are held out together, so that no picture is in both files.

    Raises:
        ValueError: if no ranking is left to learn from.
    """
    held_out = set()
    n_held = 0
    # questions were drawn in random order, so the last pictures are a random sample
    for image, n in reversed(Counter(r["image"] for r in rankings).items()):
        if n_held >= n_val:
            break
        held_out.add(image)
        n_held += n
    if n_held == len(rankings):
        raise ValueError(
            f"{n_held} rankings, and {n_val} of them held out: none is left to learn from; "
            "lower n_val"
        )
    return held_out


def write_split(
    rankings: list[dict], name: str, out: Path, pictures: Pictures, trl: bool
) -> list[dict]:
    """Write rankings and their pairs beside `out`, in files whose names begin with `name`.

    Returns:
        the pairs.
    """
    pairs = []
    for r in rankings:
        pairs += pairs_of(r)
    files = {name: rankings, f"{name}_pairs": pairs}
    if trl:  # TRL opens files and knows nothing of packed pictures
        unpacked = unpack({r["image"] for r in rankings}, pictures, out)
        files[f"{name}_pairs.trl"] = [trl_of(pair, unpacked) for pair in pairs]
    for file, rows in files.items():
        write_records(out.parent, file, rows)
    return pairs


def main(cfg: Config) -> dict[str, float]:
    """Read or draw answers, rate them, write the files.

    Returns:
        numbers of rankings and of pairs, the mean rating on each axis, and how many
        rankings, questions and replies were left out.

    Raises:
        ValueError: if an option breaks its rule, if a question is about an unknown picture,
            or if nothing can be ranked.
    """
    options.check(cfg)
    began = time.time()
    meta = load_meta(cfg.data)
    records = {r["image"]: r for r in load_records(cfg.data, cfg.records) if r.get("image")}
    pictures = Pictures(cfg.data, meta["image_size"], meta["fit"])
    out = Path(cfg.out or f"{cfg.data}/preferences.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)

    skipped = Counter()
    if cfg.rater == "file":
        rankings = peoples_rankings(cfg.ranked, records, skipped)
        rankings = with_pictures(rankings, pictures, skipped)
    else:
        rankings = own_rankings(records, pictures, meta, out, cfg, skipped)
    usable = []
    for r in rankings:
        reason = check_ranking(r)
        if reason:
            skipped[reason] += 1
        else:
            # facts for the reward model, whose training never opens the records
            captions = records[r["image"]].get("captions", [])
            usable.append(r | {"rater": cfg.rater, "captions": captions})
    skipped = +skipped  # drops the reasons with a count of 0
    if not usable:
        raise ValueError(f"nothing can be ranked; left out: {dict(skipped)}")

    held_out = held_out_pictures(usable, cfg.n_val)
    counts = {}
    for side, is_held_out in (("", False), ("_val", True)):
        rows = [r for r in usable if (r["image"] in held_out) == is_held_out]
        pairs = write_split(rows, out.stem + side, out, pictures, cfg.trl)
        counts[f"rankings{side}"] = len(rows)
        counts[f"pairs{side}"] = len(pairs)

    means = {}
    # people's rankings may have no ratings, or ratings on other axes
    ratings = [rating for r in usable for rating in r.get("ratings") or []]
    for axis in AXES:
        points = [rating[axis] for rating in ratings if axis in rating]
        if points:
            means[axis] = sum(points) / len(points)
    rounded = {axis: round(mean, 2) for axis, mean in means.items()}
    print(
        f"{out}: {counts}, left out {dict(skipped) or 'nothing'}; mean ratings {rounded}; "
        f"{time.time() - began:.0f} s"
    )
    return {**counts, **means, "skipped": skipped.total()}


if __name__ == "__main__":
    options.cli(main, Config)
