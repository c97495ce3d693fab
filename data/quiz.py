"""Questions about held-out pictures with what a right answer holds: was the lesson learned?

    python data/quiz.py
    python evaluate.py --questions quiz; python evaluate.py --questions quiz_held_out

Writes two files that ask the same of the same pictures: quiz.jsonl in phrasings that
data/instruct.py teaches, quiz_held_out.jsonl in those that it keeps back. What lies between the
two figures is what an unread phrasing costs. The truth is what can be seen; questions that take two
steps are asked only of pictures without hidden objects, for a teacher told by boxes would count
them.

Used by: evaluate.py reads what it writes.
"""

import json
import random
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from minivlm.engine.phrasings import asker, harmless
from minivlm.engine.template import DEEP, PRIVATE, REFUSE, SIMPLE, UNKNOWN, Answered
from minivlm.engine.template import in_style, names_of, world_of
from minivlm.evaluation.scene import NUMBERS, OPPOSITE, PLACES, SIZES, Thing, beside
from minivlm.evaluation.scene import named_by, things_of
from minivlm.loading.prepared import load_meta, load_records
from minivlm.running.options import cli


@dataclass
class Config:
    """Which pictures to ask about."""

    data: str = "data/shapes/prepared"  # folder made by a prepare.py; both files are written there
    split: str = "val"  # pictures that no dialogue is about
    seed: int = 0  # which questions, and in which phrasings


@dataclass
class Question:
    """A question whose words are chosen later: kind and `words` of a phrasing, style, judgment.

    expect: a right answer contains one of these; wrong: and none of these. form: what an answer to
    this question looks like, right or wrong, as a regular expression, worded as the offline teacher
    words it. names: a right description names all of these, may: and nothing but these besides.
    """

    kind: str
    words: dict[str, str]
    style: str
    answer: str
    expect: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    form: str = ""
    names: tuple[str, ...] = ()
    may: tuple[str, ...] = ()


YES, NUMBER, SIDE = "(yes|no)", f"({'|'.join(NUMBERS)})", "(left of|right of|above|below)"
FORMS = {                                                            # one word or "", full answer
    "exist": (YES, f"{YES}, there is (no {{x}}|an? {{x}}( (at|in) the .+)?)"),
    "negation": ("", f"({YES}, )?there is (no {{x}}|an? {{x}}( (at|in) the .+)?)"),
    "color": ("({color})", "the {x} is ({color})"), "kind": ("({kind})", "the {x} is an? ({kind})"),
    "size": ("({size})", "the {x} is ({size})"),
    "count": (f"({NUMBER}|zero)", f"there (is|are) {NUMBER} ({{x}}|{{xs}})"),
    "position": ("", "the {x} is (at|in) the .+"),
    "relation": (YES, f"{YES}, the {{x}} is {SIDE} the {{y}}"),
    "compare_number": (YES, f"{YES}, there are (more|fewer|as many) {{xs}} (than|as) {{ys}}"),
    "compare_size": (YES, f"{YES}, the {{x}} is (larger|smaller) than the {{y}}"),
    "same": (YES, f"{YES}, the {{x}} and the {{y}} have (the same|different) {{w}}s?"),
    "unusual": ("", r"there (is|are) .+\. the only .+ is the .+"),
    "next_to": ("", r"the (?P<it>.+) is {r} the {x}\. the (?P=it) is ({color})"),
    "without": (
        "", rf"there are {NUMBER} objects\. the {{x}} is one of them\. so {NUMBER} objects are "
        "left"),
    "one_more": (
        "", rf"there (is|are) {NUMBER} ({{x}}|{{xs}})\. with one more there would be {NUMBER}"),
    "unknowable": ("", ".*not sure.*"), "sentence": ("", "there (is|are) .+"),
    "detail": ("", r"there is an? .+"), "list": ("", r"- .+(\n- .+)*"),
}


CLAIMS = {
    "compare_number": ("more", "fewer", "as many"), "compare_size": ("larger", "smaller"),
    "same": ("the same", "different"),
}


def values_of(things: list[Thing], world: tuple[str, ...]) -> dict[str, set[str]]:
    """Colors, kinds and sizes that an answer may name; without colors a kind is a whole name."""
    colored = any(t.color for t in things)
    return {
        "color": {n.split()[0] for n in world} | {t.color for t in things} if colored else set(),
        "kind": {n.split()[-1] if colored else n for n in world} | {t.kind for t in things},
        "size": set(SIZES),
    }


def form_of(kind: str, words: dict[str, str], style: str, values: dict[str, set[str]]) -> str:
    """What an answer to a question of this kind about these things looks like, in its style."""
    word, full = FORMS[kind]
    ways = [word] * (style != "sentence") + [full] * (style != "word")
    slots = {k: re.escape(v) for k, v in words.items()}
    slots |= {k: "|".join(sorted(v)) for k, v in values.items()}
    return f"({'|'.join(filter(None, ways))})[.!]?".format(**slots)


def judged(
    made: Answered, things: list[Thing], world: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a right answer contains, one of the first, and what it must not contain.

    A yes with a false fact behind it is wrong, and so is a false step before a right end. Whether
    there is no ring is judged by the fact alone, since people use yes and no there both ways. A
    value that the question itself names is never held against an answer.
    """
    kind, words, word, full = made
    if kind in ("exist", "negation"):
        there = ("there is a", "there is an")
        wrong = ("there is no",) if any(phrase in full for phrase in there) else there
        if kind == "exist":
            return (word,), (*wrong, *{"yes", "no"} - {word})
        fact = words["a"] if wrong == ("there is no",) else f"no {words['x']}"
        return (f"there is {fact}",), wrong
    if kind == "unusual":
        odd = named_by(full[:-1].rsplit(" is the ", 1)[1], things)[0]
        counts = tuple(f"there are {n}" for n in NUMBERS if n != NUMBERS[len(things) - 1])
        return tuple(f"is the {name}" for name in names_of(odd, things)), counts
    if kind in ("without", "one_more"):
        return (full,), ()
    if kind == "position":
        place = full[:-1].rsplit(" the ", 1)[1]
        return (place,), tuple(p for p in PLACES if p not in place)
    if kind == "count":
        right = ("zero", "no", "0") if word == "zero" else (word, str(NUMBERS.index(word)))
        return right, tuple(n for n in (*NUMBERS, "zero") if n not in right)
    values = values_of(things, world)
    values["next_to"] = values["color"]
    if kind in values:
        value = re.sub(r"^an? ", "", full[:-1].rsplit(" is ", 1)[1])
        said = " ".join(words.values()).split()
        return (value,), tuple(sorted(v for v in values[kind] if v not in said and v not in value))
    a, b = (named_by(words.get(k, ""), things)[:1] for k in ("x", "y"))
    if kind == "relation":
        false = [r for r in OPPOSITE if not beside(a[0], b[0], r)]
    else:
        false = [fact for fact in CLAIMS[kind] if f" {fact} " not in full]
    return (word,), (*false, *{"yes", "no"} - {word})


def questions_of(
    record: dict, rng: random.Random, world: tuple[str, ...], phrases: dict[str, str] | None = None
) -> list[Question]:
    """One question of each kind that the picture allows, and now and then one about manners.

    Where something is hidden, only what the offline teacher too writes from sight is asked, and
    nothing about kinds that a hidden object is of.

    Args:
        phrases: names of objects -> the name that stands for all of them, as in meta.json.
    """
    if record.get("border") == "private":
        return [Question(kind, {}, "", PRIVATE) for kind in ("list", "sentence", "detail")]
    every = things_of(record)
    clear = [t for t in every if not t.hidden]
    if not clear:
        return []
    hidden = {t.name for t in every} - {t.name for t in clear}
    world = tuple(n for n in world if n not in hidden)               # neither there nor absent
    values, whole = values_of(clear, world), len(clear) == len(every)
    made = [(make, rng.choice(("", "word", "sentence"))) for make in SIMPLE
            if whole or make not in DEEP]
    made += [(make, "") for make in DEEP if whole and make not in SIMPLE]
    out = []
    for make, style in made:
        question = next(filter(None, (make(clear, rng, world) for _ in range(3))), None)
        if not question:
            continue
        kind, words, word, full = question
        if kind == "count" and named_by(words["x"], every) != named_by(words["x"], clear):
            continue
        style, answer = in_style(style, word, full)
        form = form_of(kind, words, style, values)
        out.append(Question(kind, words, style, answer, *judged(question, clear, world), form))
    names, may = ([(phrases or {}).get(t.name, t.name) for t in some] for some in (clear, every))
    for style in ("list", "sentence", "detail"):
        form = form_of(style, {}, style, values)
        out.append(Question(style, {}, style, "", (), (), form, tuple(names), tuple(may)))
    if rng.random() < 0.4:
        unknowable = form_of("unknowable", {}, "", values)
        out.append(rng.choice((
            Question("unknowable", {}, "", UNKNOWN, ("not sure",), form=unknowable),
            Question("unsafe", {}, "", REFUSE), Question("harmless", {}, "", ""))))
    return out


def main(cfg: Config) -> dict[str, float]:
    """Write both files; return how many questions of each kind one of them holds.

    Raises:
        ValueError: if no picture has objects.
    """
    began, meta = time.time(), load_meta(cfg.data)
    records = [r for r in load_records(cfg.data, cfg.split, need=("image",)) if r.get("objects")]
    if not records:
        raise ValueError(f"no picture of {cfg.data}/{cfg.split}.jsonl has objects to ask about")
    world, phrases = world_of(meta), meta.get("phrases", {})
    counts: Counter = Counter()
    for name, held_out in (("quiz", False), ("quiz_held_out", True)):
        lines = []
        for r in records:
            asked = questions_of(r, random.Random(f"{cfg.seed} {r['id']} quiz"), world, phrases)
            rng = random.Random(f"{cfg.seed} {r['id']} phrasing {held_out}")
            ask, private = asker(rng, held_out, openers=0), r.get("border") == "private"
            for i, q in enumerate(asked):
                wish = "" if q.style == q.kind else q.style          # "list" asks for one already
                if q.kind == "harmless":
                    text, answer = harmless(rng, held_out)
                else:
                    text, answer = ask(q.kind, q.words, wish), q.answer
                kind = "private" if private else q.kind
                lines.append({
                    "id": f"{r['id']}-{i}", "image": r["image"], "kind": kind, "style": q.style,
                    "question": text, "answer": answer, "expect": q.expect, "wrong": q.wrong,
                    "form": q.form, "names": q.names, "may": q.may, "border": r.get("border", "")})
        path = Path(cfg.data) / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        counts = Counter(line["kind"] for line in lines)
    print(f"{cfg.data}: {dict(counts)} in quiz.jsonl and in quiz_held_out.jsonl, "
          f"{time.time() - began:.0f} s")
    return dict(counts)


if __name__ == "__main__":
    cli(main, Config)
