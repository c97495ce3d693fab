"""Preferences: several answers of an SFT model to each question, rated and ranked.

    python data/preferences.py                                       a simulated human
    python data/preferences.py --rater file --ranked people.jsonl    rankings that people made

Writes, in the data folder,

    preferences.jsonl   {"id", "image", "question", "kind", "responses": [K], "ratings": [K x {axis:
                        1 .. 5}], "ranking": [K ranks, 1 is best, equals alike], "rater"}
    pairs.jsonl         {"id", "image", "conversations": [the question], "chosen", "rejected",
                        "gap", "rater"}, every ordered pair, ties left out

and for the last records of both, *_val.jsonl. With --trl, pairs.trl.jsonl too, as TRL's DPO trainer
takes pictures: {"images", "prompt", "chosen", "rejected"} of messages.

Source: K ranked answers: InstructGPT, arXiv:2203.02155, section 3.5; three axes: Silkie,
arXiv:2312.10665, section 3. Used by: the stages after SFT, which come next.
"""

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

from data.raters import AXES, SimulatedHuman, overall, true_ratings  # noqa: E402
from minivlm import checkpoint, run  # noqa: E402
from minivlm.conversation import IMAGE_MARK  # noqa: E402
from minivlm.data import load_meta, load_records  # noqa: E402
from minivlm.generate import generate  # noqa: E402
from minivlm.images import Pictures  # noqa: E402
from minivlm.measure import prompt_of  # noqa: E402
from minivlm.tokenizer import Tokenizer  # noqa: E402
from minivlm.vlm import VLM  # noqa: E402


@dataclass
class Config:
    """Whose answers, to which questions, and who judges them."""

    run: str = "runs/sft"  # run folder whose answers are sampled
    data: str = "data/shapes/prepared"  # folder made by a prepare.py
    questions: str = "quiz"  # which file of it holds the questions, as data/quiz.py writes them
    split: str = "train"  # which file of it holds their pictures' records
    out: str = ""  # file to write; empty = preferences.jsonl in the data folder
    n: int = 4000  # questions
    n_val: int = 400  # of them held out, by picture
    k: int = 4  # different answers to each
    temperature: float = 1.0  # 1 = the model's own distribution
    max_new_tokens: int = 96  # longest answer
    batch_size: int = 50  # questions answered at a time, k answers each
    rater: str = "human-sim"  # human-sim (a simulation) or file
    noise: float = 0.3  # human-sim: temperature of the noise, in points of the scale
    tie: float = 0.1  # human-sim: answers closer than this are equal, in points
    n_annotators: int = 1  # human-sim: whose mean ranks are ranked again
    ranked: str = ""  # file: JSON lines with id, responses and ranking
    trl: bool = False  # write the pairs for TRL too
    seed: int = 0  # which questions, which answers, whose noise
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    threads: int = 0  # CPU threads; 0 = torch's choice

    def __post_init__(self):
        if self.rater not in ("human-sim", "file"):
            raise ValueError(f"rater {self.rater!r} is not one of human-sim, file")
        if self.rater == "file" and not self.ranked:
            raise ValueError("rater file needs --ranked, a file of rankings")
        if self.k < 2 or self.n < 1 or self.n_val < 1 or self.batch_size < 1:
            raise ValueError("expected k >= 2, n >= 1, n_val >= 1 and batch_size >= 1")
        if self.temperature <= 0 or self.noise < 0 or self.tie < 0 or self.n_annotators < 1:
            raise ValueError(
                "expected temperature > 0, noise >= 0, tie >= 0 and n_annotators >= 1")


# --- sampling ---


def sample(
    model: VLM, pictures: Pictures, tokenizer: Tokenizer, questions: list[dict], cfg: Config
) -> Iterator[tuple[dict, list[str]]]:
    """Each question with up to k different answers; of 2 k draws the first different ones are kept.

    The likeliest answer is drawn most often, so its copies are spared; a question that gets only
    one answer has nothing to rank.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(cfg.seed)
    for start in tqdm(range(0, len(questions), cfg.batch_size), desc="sampling", disable=None):
        part = questions[start:start + cfg.batch_size]
        prompts = [prompt_of(q["question"], model, tokenizer) for q in part]
        images = pictures.get([q["image"] for q in part])
        copies = 2 * cfg.k
        made = generate(
            model, images.repeat_interleave(copies, 0), [p for p in prompts for _ in range(copies)],
            max_new_tokens=cfg.max_new_tokens, stop=tokenizer.end, temperature=cfg.temperature,
            generator=generator,
        )
        texts = [tokenizer.decode(ids).strip() for ids in made]
        for i, q in enumerate(part):
            drawn = dict.fromkeys(t for t in texts[i * copies:(i + 1) * copies] if t)
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


def check_ranking(r: dict) -> str:
    """Why a ranking cannot be used, or ""."""
    answers, ranks = r["responses"], r["ranking"]
    if len(answers) != len(ranks):
        return "as many ranks as answers are needed"
    if any(not isinstance(a, str) or not a.strip() for a in answers):
        return "empty answer"
    if len(set(answers)) < len(answers):
        return "answer equal to another"
    if any(not isinstance(rank, int) or rank < 1 for rank in ranks):
        return "rank that is no number from 1"
    if len(set(ranks)) < 2:
        return "all ties"
    return ""


# --- writing ---


def pairs_of(r: dict) -> list[dict]:
    """Every ordered pair of a ranked record; ties carry none."""
    out = []
    turns = [{"from": "human", "value": f"{IMAGE_MARK}\n{r['question']}"}]
    scores = [overall(x) for x in r["ratings"]] if r.get("ratings") else None
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


def main(cfg: Config) -> dict[str, float]:
    """Sample or read, rate, write; return how many rankings and pairs, and what was left out.

    Raises:
        ValueError: if nothing can be ranked.
    """
    began, meta = time.time(), load_meta(cfg.data)
    records = {r["image"]: r for r in load_records(cfg.data, cfg.split, need=("image",))}
    ranked, skipped = [], Counter()
    if cfg.rater == "file":
        known = {r["id"]: r["image"] for r in records.values()}
        for r in read_ranked(cfg.ranked):
            image = r["image"] if r["image"] in records else known.get(r["id"])
            reason = check_ranking(r) or ("" if image else "unknown id")
            if reason:
                skipped[reason] += 1
            else:
                ranked.append(r | {"image": image, "rater": "file"})
    else:
        run.seed_everything(cfg.seed, cfg.threads)
        state = checkpoint.load(cfg.run, ("sft", "ppo", "dpo"))
        tokenizer = Tokenizer.from_text(state["tokenizer"])
        model = VLM.from_checkpoint(state).to(run.pick_device(cfg.device)).eval()
        pictures = Pictures(cfg.data, model.vit.config.image_size)
        questions = load_records(cfg.data, cfg.questions, need=("image", "question", "kind"))
        order = random.Random(f"{cfg.seed} questions").sample(range(len(questions)), len(questions))
        chosen = [questions[i] for i in order[: cfg.n]]
        human = SimulatedHuman(cfg.noise, cfg.tie, cfg.n_annotators, cfg.seed)
        phrases = meta.get("phrases", {})
        for q, answers in sample(model, pictures, tokenizer, chosen, cfg):
            if len(answers) < 2:
                skipped["one answer only"] += 1
                continue
            ratings = [true_ratings(a, q, records[q["image"]], phrases) for a in answers]
            ranking = human.rank(q["id"], [overall(r) for r in ratings])
            r = {"id": q["id"], "image": q["image"], "question": q["question"], "kind": q["kind"],
                 "responses": answers, "ratings": ratings, "ranking": ranking, "rater": cfg.rater}
            reason = check_ranking(r)
            if reason:
                skipped[reason] += 1
            else:
                ranked.append(r)
    if not ranked:
        raise ValueError(f"nothing can be ranked; left out: {dict(skipped)}")
    out = Path(cfg.out or f"{cfg.data}/preferences.jsonl")
    # held out by picture, so that no picture is on both sides
    images = list(dict.fromkeys(r["image"] for r in ranked))
    held_out = set(images[-max(1, len(images) * cfg.n_val // max(1, len(ranked))):])
    counts = {}
    for side, keep in (("", False), ("_val", True)):
        rows = [r for r in ranked if (r["image"] in held_out) == keep]
        pairs = [p for r in rows for p in pairs_of(r)]
        files = {f"{out.stem}{side}.jsonl": rows, f"pairs{side}.jsonl": pairs}
        if cfg.trl:
            files[f"pairs{side}.trl.jsonl"] = [trl_of(p) for p in pairs]
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
