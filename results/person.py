"""Rank answers on serve.py's page as a person would: a scripted one, who knows the scenes.

    python results/person.py runs/sft 200 scripted results/by_hand/person.json

Starts serve.py, and ranks answers to 200 questions by its own requests. The ranks are those of
raters.SimulatedHuman, as in data/preferences.py: the true ratings with noise. Writes
scripted.jsonl in the data folder, and how far they agree with the scenes.
"""

import base64
import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from data.preferences import TIE, Config
from minivlm.evaluation.raters import SimulatedHuman, rating_of, true_ratings
from minivlm.loading.prepared import load_meta, load_records
from serving import ROOT, Server, ask

DATA = ROOT / "data" / "book" / "prepared"


def main(run: str, n: str, name: str, out: str) -> None:
    """Rank the answers to n questions."""
    phrases = load_meta(DATA)["phrases"]
    records = {r["image"]: r for r in load_records(DATA, "train", need=("image",))}
    pictures = np.load(DATA / "train.npy", mmap_mode="r")
    known = {}  # pixels and question -> question with what a right answer contains
    for q in load_records(DATA, "prompts", need=("image", "question")):
        pixels = pictures[int(q["image"].split("#")[1])]
        known[pixels.tobytes(), q["question"]] = q
    human = SimulatedHuman(Config.noise, TIE, seed=0)
    server = Server("--runs", run, "--rankings", name)
    page = server.connect()
    try:
        done, number = 0, -1
        while done < int(n):
            [task] = ask(page, "task", person="scripted", after=number)
            number = task["number"]
            seen = Image.open(io.BytesIO(base64.b64decode(task["picture"])))
            q = known[np.asarray(seen).tobytes(), task["question"]]
            ratings = [true_ratings(answer, q, records[q["image"]], phrases)
                       for answer in task["answers"]]
            ranks = human.rank(q["id"], [rating_of(r) for r in ratings])
            if len(set(ranks)) > 1:  # else all are equally good to this person, who skips them
                ask(page, "rank", person="scripted", number=number, answers=task["answers"],
                    ranks=ranks)
                done += 1
        [found] = ask(page, "agreement")
    finally:
        server.kill()
    Path(out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
