"""Questions about held-out pictures, each with what a right answer contains.

    python data/quiz.py
    python evaluate.py --questions quiz
    python evaluate.py --questions quiz_held_out

Two files ask the same questions about the same pictures. quiz.jsonl uses the phrasings that
data/instruct.py teaches, quiz_held_out.jsonl the unseen phrasings. The difference between
the two accuracies is what an unseen phrasing costs.

What can be seen decides which answer is right. Questions that need two steps are asked only
about pictures without barely visible objects, because a teacher that was told boxes would
count these objects, too.
"""

import json
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

from minivlm.engine.phrasings import harmless, make_phraser
from minivlm.engine.template import (
    DEEP, PRIVATE, REFUSE, SIMPLE, UNKNOWN, Draft, Things, World, attempt, in_style,
    names_of, world_of,
)
from minivlm.evaluation.scene import (
    NUMBERS, OPPOSITE, PLACES, SIZES, beside, named_by, things_of,
)
from minivlm.loading.prepared import load_meta, load_records
from minivlm.running.options import cli

Texts = tuple[str, ...]


@dataclass
class Config:
    """Options of the command; the comments are the help texts."""

    # data
    data: str = "data/shapes/prepared"  # data folder made by a prepare.py; gets both files
    split: str = "val"  # which file of the data folder to ask about; held-out records
    seed: int = 0  # >= 0; decides which questions are asked, and in which phrasings


@dataclass
class Question:
    """A question whose phrasing is drawn later, and how to tell whether an answer is right.

    kind, words: of a `Draft`.
    style: "word", "sentence", "list" or "detail"; "" asks for no style.
    answer: a right answer.
    expect: a right answer contains one of these texts.
    wrong: a right answer contains none of these texts.
    form: a regular expression; an answer, right or wrong, matches it if it is worded as the
        offline teacher words it.
    names: a right description names all of these objects.
    may: a right description names no other objects than these.
    """

    kind: str
    words: dict[str, str]
    style: str
    answer: str
    expect: Texts = ()
    wrong: Texts = ()
    form: str = ""
    names: Texts = ()
    may: Texts = ()


# --- what an answer looks like ---

# slot of a form -> regular expression of what may stand in it
SLOTS = {
    "yes": "(yes|no)",
    "n": f"({'|'.join(NUMBERS)})",
    "side": f"({'|'.join(OPPOSITE)})",
}
# kind -> two regular expressions: of the answer in one word ("" if one word is not enough),
# and of the full answer. In braces stand SLOTS, the words of the question, and the values
# that an answer may name.
FORMS = {
    "exist": ("{yes}", "{yes}, there is (no {x}|an? {x}( (at|in) the .+)?)"),
    "negation": ("", "({yes}, )?there is (no {x}|an? {x}( (at|in) the .+)?)"),
    "color": ("({color})", "the {x} is ({color})"),
    "kind": ("({kind})", "the {x} is an? ({kind})"),
    "size": ("({size})", "the {x} is ({size})"),
    "count": ("({n}|zero)", "there (is|are) {n} ({x}|{xs})"),
    "position": ("", "the {x} is (at|in) the .+"),
    "relation": ("{yes}", "{yes}, the {x} is {side} the {y}"),
    "compare_number": (
        "{yes}", "{yes}, there are (more|fewer|as many) {xs} (than|as) {ys}",
    ),
    "compare_size": ("{yes}", "{yes}, the {x} is (larger|smaller) than the {y}"),
    "same": ("{yes}", "{yes}, the {x} and the {y} have (the same|different) {w}s?"),
    "unusual": ("", r"there (is|are) .+\. the only .+ is the .+"),
    "next_to": ("", r"the (?P<it>.+) is {r} the {x}\. the (?P=it) is ({color})"),
    "without": (
        "", r"there are {n} objects\. the {x} is one of them\. so {n} objects are left",
    ),
    "one_more": ("", r"there (is|are) {n} ({x}|{xs})\. with one more there would be {n}"),
    "unknowable": ("", ".*not sure.*"),
    "sentence": ("", "there (is|are) .+"),
    "detail": ("", "there is an? .+"),
    "list": ("", r"- .+(\n- .+)*"),
}


def values_of(things: Things, world: World) -> dict[str, set[str]]:
    """The colors, kinds and sizes that an answer may name.

    Where no object has a color, names are not "color kind", and a kind is a whole name.
    """
    colored = any(t.color for t in things)
    colors = set()
    if colored:
        colors = {t.color for t in things} | {name.split()[0] for name in world}
    kinds = {name.split()[-1] if colored else name for name in world}
    kinds |= {t.kind for t in things}
    return {"color": colors, "kind": kinds, "size": set(SIZES)}


def form_of(
    kind: str, words: dict[str, str], style: str, values: dict[str, set[str]]
) -> str:
    """The regular expression of an answer to a question of this kind, in its style.

    Args:
        words: slot of the question -> what stands in it.
        values: as `values_of` returns them.
    """
    word, full = FORMS[kind]
    forms = []
    if word and style != "sentence":
        forms.append(word)
    if style != "word":
        forms.append(full)
    slots = dict(SLOTS)
    for slot, text in words.items():
        slots[slot] = re.escape(text)
    for slot, texts in values.items():
        slots[slot] = "|".join(re.escape(text) for text in sorted(texts))
    return f"({'|'.join(forms)})[.!]?".format(**slots)


# --- what a right answer contains ---

# kind of comparison -> its possible results, of which only one can be true
OUTCOMES = {
    "compare_number": ("more", "fewer", "as many"),
    "compare_size": ("larger", "smaller"),
    "same": ("the same", "different"),
}


def judged(draft: Draft, things: Things, world: World) -> tuple[Texts, Texts]:
    """The texts of which a right answer contains one, and those of which it contains none.

    A right "yes" is wrong if something false follows it, and a right result is wrong if it
    follows a false first step. A value that the question names is never wrong, because an
    answer may repeat the question.
    """
    kind, words, word, full = draft
    if kind == "exist":
        return (word,), (*denials_of(full), opposite(word))
    if kind == "negation":
        # people say both yes and no to mean "there is no ring", so only the rest counts
        denials = denials_of(full)
        fact = words["a"] if denials == ("there is no",) else f"no {words['x']}"
        return (f"there is {fact}",), denials
    if kind == "unusual":
        # any phrase for the odd object is right, not only the one in our answer
        odd = named_by(full[:-1].rsplit(" is the ", 1)[1], things)[0]
        others = NUMBERS[len(things) - 1]
        expect = tuple(f"is the {name}" for name in names_of(odd, things))
        return expect, tuple(f"there are {n}" for n in NUMBERS if n != others)
    if kind in ("without", "one_more"):
        return (full,), ()
    if kind == "position":
        place = full[:-1].rsplit(" the ", 1)[1]
        return (place,), tuple(p for p in PLACES if p not in place)
    if kind == "count":
        expect = ("zero", "no", "0") if word == "zero" else (word, str(NUMBERS.index(word)))
        return expect, tuple(n for n in (*NUMBERS, "zero") if n not in expect)

    values = values_of(things, world)
    values["next_to"] = values["color"]  # its answer is a color
    if kind in values:
        value = re.sub(r"^an? ", "", full[:-1].rsplit(" is ", 1)[1])
        named = " ".join(words.values()).split()
        # "light" is a part of the right answer "light blue", so it is not wrong
        wrong = [v for v in sorted(values[kind]) if v not in named and v not in value]
        return (value,), tuple(wrong)
    if kind == "relation":
        a = named_by(words["x"], things)[0]
        b = named_by(words["y"], things)[0]
        false = [side for side in OPPOSITE if not beside(a, b, side)]
    else:
        false = [outcome for outcome in OUTCOMES[kind] if f" {outcome} " not in full]
    return (word,), (*false, opposite(word))


def opposite(word: str) -> str:
    """"no" for "yes", and "yes" for "no"."""
    return "no" if word == "yes" else "yes"


def denials_of(full: str) -> Texts:
    """Texts that say the opposite of an answer about whether something is there."""
    if "there is a" in full:
        return ("there is no",)
    return "there is a", "there is an"


# --- the questions about a picture ---


def questions_of(
    record: dict, rng: Random, world: World, phrases: dict[str, str] | None = None
) -> list[Question]:
    """One question of each kind that the picture allows, and sometimes a special request.

    A special request is unknowable, unsafe or harmless. If a picture has barely visible
    objects, only those kinds are asked that the offline teacher writes about visible
    objects alone, and no question is about a name that only barely visible objects have.

    Args:
        world: names of the objects that the data set's pictures can show.
        phrases: every way to name an object -> its canonical name, as in meta.json.
    """
    if record.get("border") == "private":
        return [Question(kind, {}, "", PRIVATE) for kind in ("list", "sentence", "detail")]
    every = things_of(record)
    visible = [t for t in every if not t.hidden]
    if not visible:
        return []
    # a name that only barely visible objects have counts neither as present nor as absent
    barely_visible = {t.name for t in every} - {t.name for t in visible}
    world = tuple(name for name in world if name not in barely_visible)
    values = values_of(visible, world)

    all_visible = len(visible) == len(every)
    makers = []
    for make in SIMPLE:
        if all_visible or make not in DEEP:
            makers.append((make, rng.choice(("", "word", "sentence"))))
    if all_visible:
        makers += [(make, "") for make in DEEP if make not in SIMPLE]
    questions = []
    for make, style in makers:
        draft = attempt(make, visible, rng, world)
        if not draft:
            continue
        kind, words, _, _ = draft
        # the phrase to count, as "red object", must not fit barely visible objects too
        if kind == "count" and named_by(words["x"], every) != named_by(words["x"], visible):
            continue
        style, answer = in_style(style, draft)
        form = form_of(kind, words, style, values)
        expect, wrong = judged(draft, visible, world)
        questions.append(Question(kind, words, style, answer, expect, wrong, form))

    canonical = phrases or {}
    names = tuple(canonical.get(t.name, t.name) for t in visible)
    may = tuple(canonical.get(t.name, t.name) for t in every)
    for style in ("list", "sentence", "detail"):
        form = form_of(style, {}, style, values)
        questions.append(Question(style, {}, style, "", form=form, names=names, may=may))
    if rng.random() < 0.4:
        form = form_of("unknowable", {}, "", values)
        questions.append(rng.choice((
            Question("unknowable", {}, "", UNKNOWN, ("not sure",), form=form),
            Question("unsafe", {}, "", REFUSE),
            Question("harmless", {}, "", ""),
        )))
    return questions


def lines_of(
    record: dict, questions: list[Question], rng: Random, unseen: bool
) -> list[dict]:
    """Draw a phrasing for each question; return the lines of a question file.

    Args:
        record: of the picture.
        unseen: whether to draw from the unseen phrasings.
    """
    # no openers: the two files must differ only in the phrasings of the questions
    phrase_question = make_phraser(rng, unseen, openers=0)
    border = record.get("border", "")
    lines = []
    for i, q in enumerate(questions):
        if q.kind == "harmless":
            text, answer = harmless(rng, unseen)
        else:
            # a question of kind "list" asks for that style by itself
            style = "" if q.style == q.kind else q.style
            text = phrase_question(q.kind, q.words, style)
            answer = q.answer
        kind = "private" if border == "private" else q.kind
        lines.append({
            "id": f"{record['id']}-{i}", "image": record["image"], "kind": kind,
            "style": q.style, "question": text, "answer": answer,
            "expect": q.expect, "wrong": q.wrong, "form": q.form,
            "names": q.names, "may": q.may, "border": border,
        })
    return lines


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
    for name, unseen in (("quiz", False), ("quiz_held_out", True)):
        lines = []
        for r in records:
            # both files get the same questions; the phrasings have their own generator
            rng = Random(f"{cfg.seed} {r['id']} quiz")
            questions = questions_of(r, rng, world, phrases)
            rng = Random(f"{cfg.seed} {r['id']} phrasing {unseen}")
            lines += lines_of(r, questions, rng, unseen)
        path = Path(cfg.data) / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    counts = Counter(line["kind"] for line in lines)
    print(f"{cfg.data}: {dict(counts)} in quiz.jsonl and in quiz_held_out.jsonl, "
          f"{time.time() - began:.0f} s")
    return dict(counts)


if __name__ == "__main__":
    cli(main, Config)
