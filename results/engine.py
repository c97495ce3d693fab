"""Measure the data engine: its speed on one core, and whether what it writes is true.

    python results/engine.py [data/book/prepared]

Writes 20,000 dialogues to a temporary folder and reads them again. Each dialogue goes
through the checks that a language model's reply must pass. Each sentence that
minivlm/evaluation/scene.py can read is compared with the annotated scene. Writes
results/instruct/engine.json.
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

from data import instruct
from minivlm.engine import talk
from minivlm.engine.checks import faults
from minivlm.engine.facts import ASPECTS
from minivlm.engine.phrasings import KINDS, patterns, spelled
from minivlm.engine.scenes import fact_of
from minivlm.engine.wording import PRIVATE, world_of
from minivlm.evaluation.scene import claims, holds, setting_of, things_of
from minivlm.loading.prepared import load_meta, load_records
from minivlm.running.machine import provenance

ROOT = Path(__file__).resolve().parents[1]
# answers that claim nothing: refusals, talk, replies to harmless questions
HARMLESS = [pattern.split(" => ")[1] for pattern in patterns("harmless")]
WITHOUT_CLAIMS = {PRIVATE, *HARMLESS}
for answers in talk.ANSWERS.values():
    WITHOUT_CLAIMS.update(answers)
# sentences that the scene can neither confirm nor deny: of a calculation, of a story, about
# "it", about what one could do here, and about what belongs where
OF_NO_SCENE = re.compile(
    r"the .* is one of them|so \w+ objects are left|with one more there would be .*"
    "|one (day|night) .*|it met .*|everybody wondered.*|it was glad.*|then .* went home"
    r"|it is (\w+|(at|in) the .*)|one could .*|.* belongs? .*"
)


def rounds_of(dialogue: dict) -> list[tuple[str, str]]:
    """The questions of a dialogue with their answers, without the picture's mark."""
    texts = [turn["value"] for turn in dialogue["conversations"]]
    texts[0] = texts[0].removeprefix("<image>\n")
    return list(zip(texts[::2], texts[1::2]))


def facts_of(meta: dict) -> set[str]:
    """Every fact that a dialogue may tell, as a sentence in lower case."""
    world = world_of(meta)
    sentences = set()
    for kind, known in world.facts.items():
        sentences.update(fact_of(kind, a, world).lower() for a in known if a in ASPECTS)
    return sentences


def without_facts(answer: str, facts: set[str]) -> str:
    """An answer without its sentences that tell a fact: no scene decides whether it holds.

    "The moon is a round rock in the sky." would be read as a claim about a moon in sight.
    """
    sentences = re.split(r"(?<=\.) ", answer)
    return " ".join(s for s in sentences if s.lower().rstrip(".") not in facts)


def write_dialogues(data: str) -> tuple[instruct.Config, list[dict], int, float]:
    """Run the engine; return its options, dialogues, number of rejects, and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = instruct.Config(data, out=f"{folder}/instruct.jsonl")
        started = time.time()
        rejected = instruct.main(cfg)["rejected"]
        seconds = time.time() - started
        lines = Path(cfg.out).read_text().splitlines()
    return cfg, [json.loads(line) for line in lines], rejected, seconds


def main(data: str = "data/book/prepared") -> None:
    """Measure and write."""
    if hasattr(os, "sched_setaffinity"):  # one core, so that speeds can be compared
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    began = time.time()
    records = {r["image"]: r for r in load_records(data, "train")}
    meta = load_meta(data)
    phrases = meta["phrases"]
    places = meta.get("places", {})
    facts = facts_of(meta)
    names = frozenset(phrases.values())
    cfg, dialogues, rejected, seconds = write_dialogues(data)
    counts: Counter[str] = Counter()
    questions = set()
    for dialogue in dialogues:
        kind = dialogue["id"].split("-")[-2]  # an id ends with type and repeat
        record = records[dialogue["image"]]
        rounds = rounds_of(dialogue)
        questions.update(question for question, _ in rounds)
        found_faults = list(faults(kind, rounds, record, phrases, cfg.max_words, places))
        counts["valid"] += int(not found_faults)
        things = things_of(record)
        setting = setting_of(record, places)
        if kind == "conversation":  # its teacher knows visible objects alone
            things = [thing for thing in things if not thing.hidden]
        for _, answer in rounds:
            found, unread = claims(without_facts(answer, facts))
            verdicts = [holds(claim, things, names, setting) for claim in found]
            counts["claims"] += len(verdicts)
            counts["true"] += verdicts.count(True)
            is_one_word = len(answer.split()) == 1
            counts["one_word"] += int(is_one_word)
            counts["manners"] += int(answer in WITHOUT_CLAIMS)
            # one word is no sentence that the grammar could read
            if not is_one_word and answer not in WITHOUT_CLAIMS:
                for sentence in unread:
                    counts["unread"] += int(not OF_NO_SCENE.fullmatch(sentence))
        counts["rounds"] += len(rounds)
    n_phrasings = []
    for kind in KINDS:
        n_phrasings.append(len({text for p in patterns(kind) for text in spelled(p)}))
    figures = {
        "dialogues": len(dialogues), "seconds": round(seconds, 1), "rejected": rejected,
        **counts, "questions_distinct": len(questions), "kinds": len(KINDS),
        "phrasings_of_a_kind_at_least": min(n_phrasings),
    }
    config = asdict(cfg) | {"data": data, "out": ""}  # the temporary folder says nothing
    report = {**provenance(cfg, began), "config": config, "cores": 1, "figures": figures}
    out = ROOT / "results" / "instruct" / "engine.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{out.relative_to(ROOT)}: {figures}")


if __name__ == "__main__":
    main(*sys.argv[1:])
