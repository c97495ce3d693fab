"""Questions about held-out pictures, each with what a right answer contains.

    python data/quiz.py
    python evaluate.py --questions quiz
    python evaluate.py --questions quiz_held_out

Two files ask the same questions about the same pictures. quiz.jsonl uses the phrasings that
data/instruct.py teaches, quiz_held_out.jsonl the unseen phrasings (--out other names them
other.jsonl and other_held_out.jsonl). The difference between
the two accuracies is what an unseen phrasing costs.

What can be seen decides which answer is right. Questions that need two steps are asked only
about pictures without barely visible objects, because a teacher that was told boxes would
count these objects, too.
"""

import time
from collections import Counter
from dataclasses import dataclass
from random import Random

from minivlm.engine.quiz import lines_of, questions_of
from minivlm.engine.wording import world_of
from minivlm.loading.prepared import load_meta, load_records, write_records
from minivlm.running.options import cli


@dataclass
class Config:
    """Options of the command; the comments are the help texts."""

    # data
    data: str = "data/book/prepared"  # data folder made by a prepare.py; gets both files
    split: str = "val"  # which file of the data folder to ask about; held-out records
    out: str = "quiz"  # name of the first file; that of the second begins with it
    seed: int = 0  # >= 0; decides which questions are asked, and in which phrasings


def main(cfg: Config) -> dict[str, float]:
    """Write both files; return how many questions of each kind each of them holds.

    Raises:
        ValueError: if no picture has objects.
    """
    began = time.time()
    meta = load_meta(cfg.data)
    records = load_records(cfg.data, cfg.split, need=("image",))
    records = [r for r in records if r.get("objects")]
    if not records:
        raise ValueError(f"no picture of {cfg.data}/{cfg.split}.jsonl has objects")
    world = world_of(meta)
    phrases = meta.get("phrases", {})
    for name, use in ((cfg.out, "taught"), (f"{cfg.out}_held_out", "unseen")):
        lines = []
        for r in records:
            # both files get the same questions; the phrasings have their own generator
            rng = Random(f"{cfg.seed} {r['id']} quiz")
            questions = questions_of(r, rng, world, phrases)
            rng = Random(f"{cfg.seed} {r['id']} phrasing {use}")
            lines += lines_of(r, questions, rng, use)
        write_records(cfg.data, name, lines)
    counts = Counter(line["kind"] for line in lines)
    print(f"{cfg.data}: {dict(counts)} in {cfg.out}.jsonl and in {cfg.out}_held_out.jsonl, "
          f"{time.time() - began:.0f} s")
    return dict(counts)


if __name__ == "__main__":
    cli(main, Config)
