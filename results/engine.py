"""How fast the data engine is on one core, and whether what it writes is valid and true.

    python results/engine.py [data/shapes/prepared]

Writes 20,000 dialogues to a temporary folder, then reads them again: each is judged by the checks
that replies of a language model pass, and every sentence that the grammar of minivlm/evaluation/scene.py can read
must hold of the annotated scene. Writes results/instruct/engine.json.
"""

import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
from data import instruct
from minivlm.engine.checks import faults
from minivlm.engine.phrasings import KINDS, patterns, spelled
from minivlm.engine.template import PRIVATE, REFUSE, UNKNOWN
from minivlm.evaluation.scene import claims, holds, things_of
from minivlm.loading.prepared import load_meta, load_records
from minivlm.running.machine import provenance

MANNERS = {PRIVATE, REFUSE, UNKNOWN, *(line.split(" => ")[1] for line in patterns("harmless"))}
# steps of an answer that state no fact of the picture by themselves
STEPS = re.compile(r"the .* is one of them|so \w+ objects are left|with one more there would be .*")


def main(data: str = "data/shapes/prepared") -> None:
    """Measure and write."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    began, counts = time.time(), Counter()
    records = {r["image"]: r for r in load_records(data, "train")}
    phrases = load_meta(data)["phrases"]
    names, asked = frozenset(phrases.values()), set()
    with tempfile.TemporaryDirectory() as folder:
        cfg = instruct.Config(data, out=f"{folder}/instruct.jsonl")
        started = time.time()
        made = instruct.main(cfg)
        seconds = time.time() - started
        dialogues = [json.loads(line) for line in Path(cfg.out).read_text().splitlines()]
    for d in dialogues:
        kind, record = d["id"].split("-")[-2], records[d["image"]]
        said = [turn["value"] for turn in d["conversations"]]
        rounds = list(zip(said[::2], said[1::2]))
        rounds[0] = (rounds[0][0].removeprefix("<image>\n"), rounds[0][1])
        asked |= {q for q, _ in rounds}
        counts["valid"] += not list(faults(kind, rounds, record, phrases, cfg.max_words))
        things = [t for t in things_of(record) if kind != "conversation" or not t.hidden]
        for _, answer in rounds:
            read, other = claims(answer)
            verdicts = [holds(c, things, names) for c in read]
            counts["claims"] += len(verdicts)
            counts["true"] += verdicts.count(True)
            short = len(answer.split()) == 1                         # its sentence is not written
            counts["one_word"] += short
            counts["manners"] += answer in MANNERS
            if not short and answer not in MANNERS:
                counts["unread"] += sum(not STEPS.fullmatch(s) for s in other)
        counts["rounds"] += len(rounds)
    figures = {
        "dialogues": len(dialogues), "seconds": round(seconds, 1), "rejected": made["rejected"],
        **counts, "questions_distinct": len(asked), "kinds": len(KINDS),
        "phrasings_of_a_kind_at_least": min(
            len({text for p in patterns(kind) for text in spelled(p)}) for kind in KINDS),
    }
    report = {**provenance(cfg, began), "config": asdict(cfg) | {"data": data, "out": ""},
              "cores": 1, "figures": figures}
    out = ROOT / "results" / "instruct" / "engine.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{out.relative_to(ROOT)}: {figures}")


if __name__ == "__main__":
    main(*sys.argv[1:])
