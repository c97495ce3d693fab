"""Questions that measure a chatbot, each with what a right answer contains.

What can be seen decides which answer is right. Questions that need two steps are asked only
about pictures without barely visible objects, because a teacher that was told boxes would
count these objects, too.
"""

import re
from dataclasses import dataclass, replace
from random import Random

from minivlm.conversation import Turn
from minivlm.engine import scenes
from minivlm.engine.phrasings import harmless, make_phraser
from minivlm.engine.questions import (
    Draft, Texts, assumed, attribute, position, values_of,
)
from minivlm.engine.talk import ANSWERS, say
from minivlm.engine.template import (
    DEEP, SIMPLE, STYLES, attempt, in_style, scene_of, worded,
)
from minivlm.engine.wording import PRIVATE, Scene, Things, World
from minivlm.evaluation.scene import NUMBERS, OPPOSITE, named_by, things_of


@dataclass
class Question:
    """A question whose phrasing is drawn later, and how to tell whether an answer is right.

    draft: the question, with what a right answer contains.
    style: "word", "sentence", "list" or "detail"; "" asks for no style.
    answer: a right answer.
    form: a regular expression; an answer, right or wrong, matches it if it is worded as the
        offline teacher words it.
    names: a right description names all of these objects.
    may: a right description names no other objects than these.
    before: the question that came before, if this one refers back to it.
    sight: how well the picture shows what the question is about: "clear", "hardly",
        "absent", or "" if that does not matter.
    """

    draft: Draft
    style: str
    answer: str
    form: str = ""
    names: Texts = ()
    may: Texts = ()
    before: Draft | None = None
    sight: str = ""


# --- what an answer looks like ---

# slot of a form -> regular expression of what may stand in it
SLOTS = {
    "yes": "(yes|no)",
    "n": f"({'|'.join(NUMBERS)})",
    "side": f"({'|'.join(OPPOSITE)})",
    "seen": "(.+[.,] )?",  # what was seen, before what follows from it
    "there": "((at|in) [^.,]+|not in the picture)",
}
# kind -> two regular expressions: of the answer in one word ("" if one word is not enough),
# and of the full answer. In braces stand SLOTS, the words of the question, and the values
# that an answer may name. A kind that is missing may be answered in any words.
FORMS = {
    "exist": ("{yes}", "an? {x} is {there}, so {yes}"),
    "negation": ("", "an? {x} is {there}"),
    "color": ("({color})", "the {x} is ({color})"),
    "kind": ("({kind})", "the {x} is an? ({kind})"),
    "size": ("({size})", "the {x} is ({size})"),
    "count": (
        "({n}|zero)", "(an? {x} is [^.]+[.,] )?there (is|are) {n} ({x}|{xs})",
    ),
    "position": ("", "the {x} is (at|in) the [^.,]+"),
    "relation": ("{yes}", "{seen}the {x} is (not )?{side} the {y}, so {yes}"),
    "compare_number": (
        "{yes}", "{seen}there are (more|fewer|as many) {xs} (than|as) {ys}, so {yes}",
    ),
    "compare_size": (
        "{yes}", "{seen}the {x} is (larger|smaller) than the {y}, so {yes}",
    ),
    "larger_of": ("", "{seen}the ({x}|{y}) is larger"),
    "nearer": ("", "{seen}the ({y}|{z}) is nearer to the {x}"),
    "same": (
        "{yes}", "{seen}the {x} and the {y} have (the same|different) {w}s?, so {yes}",
    ),
    "odd_one_out": ("", r"{seen}there (is|are) .+\. the only .+ is the .+"),
    "next_to": ("", r"{seen}the (?P<it>.+) is {r} the {x}\. the (?P=it) is ({color})"),
    "without": (
        "",
        r"{seen}there are {n} objects\. the {x} is one of them\. so {n} objects are left",
    ),
    "one_more": (
        "", r"{seen}there (is|are) {n} ({x}|{xs})\. with one more there would be {n}",
    ),
    "assumed": ("", "the {x} is not in the picture"),
    "strange": ("", "{seen}[^.]+, and [^.]+, so yes"),
    "usual": ("", "{seen}(nothing is unusual: )?everything is as usual(, so no)?"),
    "belongs": ("{yes}", "{seen}(?!and )[^.,]+ belongs? [^.]+, so {yes}"),
    "day_night": ("(day|night)", "it is (day|night)"),
    "setting": ("({place})", "the picture shows [^.]+"),
    "unknowable": ("", ".*not sure.*"),
    "sentence": ("", "there (is|are) .+"),
    "detail": ("", "(the picture shows|there is) .+"),
    "list": ("", r"- .+(\n- .+)*"),
}


def form_of(
    kind: str, words: dict[str, str], style: str, values: dict[str, set[str]]
) -> str:
    """The regular expression of an answer to a question of this kind, in its style.

    Args:
        words: slot of the question -> what stands in it.
        values: as `values_of` returns them.
    """
    if kind not in FORMS:
        return ""
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


# --- the questions about a picture ---


def questions_of(
    record: dict, rng: Random, world: World, phrases: dict[str, str] | None = None,
    untold: World | None = None,
) -> list[Question]:
    """One question of each kind that the picture allows, and sometimes a special request.

    A special request is unknowable, unsafe or harmless, or talk. If a picture has barely
    visible objects, only those kinds are asked that the offline teacher writes about
    visible objects alone, and no question is about a name that only barely visible objects
    have.

    Args:
        phrases: every way to name an object -> its canonical name, as in meta.json.
        untold: facts that no dialogue mentions; without them, nobody asks about these.
    """
    if record.get("border") == "private":
        kinds = ("list", "sentence", "detail")
        return [Question(Draft(kind, {}, "", PRIVATE), "", PRIVATE) for kind in kinds]
    every = things_of(record)
    scene = scene_of(record)
    visible = scene.things
    if not visible:
        return []
    all_visible = len(visible) == len(every)
    makers = []
    for make in SIMPLE:
        if all_visible or make not in DEEP:
            makers.append((make, rng.choice(STYLES)))
    if all_visible:
        makers += [(make, "") for make in DEEP if make not in SIMPLE]
    questions = []
    for make, style in makers:
        draft = attempt(make, scene, rng, world)
        if not draft or (not all_visible and speaks_of_hidden(draft, every, visible)):
            continue
        questions.append(asked(draft, style, scene, world))
        more = scenes.follow_up(draft, scene, rng, world) if rng.random() < 0.15 else None
        if more:
            questions.append(asked(more, "", scene, world, before=draft))
    if untold:
        draft = scenes.fact(scene, rng, world, untold)
        if draft:
            questions.append(asked(draft._replace(kind="untold"), "", scene, world))

    canonical = phrases or {}
    present = tuple(canonical.get(t.name, t.name) for t in visible)
    may = tuple(canonical.get(t.name, t.name) for t in every)
    values = values_of(visible, world)
    for style in ("list", "sentence", "detail"):
        draft = Draft(style, {}, "", "")
        form = form_of(style, {}, style, values)
        questions.append(Question(draft, style, "", form, present, may))
    if rng.random() < 0.4:
        kind = rng.choice(("unknowable", "unsafe", "harmless"))
        draft = Draft("harmless", {}, "", "") if kind == "harmless" else say(kind, rng)
        questions.append(asked(draft, "", scene, world))
    if world.facts:
        talk = [kind for kind in ANSWERS if kind not in ("unknowable", "unsafe")]
        questions.append(asked(say(rng.choice(talk), rng), "", scene, world))
    return questions


def sight_questions(record: dict, rng: Random, world: World) -> list[Question]:
    """Questions about what is clearly visible, hardly visible and absent.

    Of each picture: one question about a visible object, one about each barely visible
    object, if its kind tells it from all others, and, of every second picture, one about a
    kind that not even the annotation lists. The right answers are those of the annotation.
    None about a picture that is marked as private.
    """
    if record.get("border") == "private":
        return []
    every = things_of(record)
    scene = scene_of(record)
    makers = [attribute("color"), attribute("size"), position]
    questions = []

    def add(draft: Draft | None, sight: str) -> None:
        if draft:
            question = asked(draft, rng.choice(STYLES), scene, world)
            questions.append(replace(question, sight=sight))

    if scene.things:
        draft = attempt(rng.choice(makers), scene, rng, world)
        if draft and not speaks_of_hidden(draft, every, scene.things):
            add(draft, "clear")
    for t in every:
        if t.hidden and [other for other in every if other.kind == t.kind] == [t]:
            make = rng.choice(makers)
            draft = make(Scene([t], *scene[1:]), rng, world)
            # it may also be called "the object" or "the thing at the left"
            if draft and f" {t.kind} " in f" {draft.words['x']} ":
                add(draft, "hardly")
    if rng.random() < 0.5:
        add(attempt(assumed, scene._replace(things=every), rng, world), "absent")
    return questions


def speaks_of_hidden(draft: Draft, every: Things, visible: Things) -> bool:
    """Whether a phrase of a question fits barely visible objects, which count neither as
    present nor as absent.
    """
    phrases = [text for slot, text in draft.words.items() if slot not in ("a", "r", "w")]
    return any(named_by(p, every) != named_by(p, visible) for p in phrases)


def asked(
    draft: Draft, style: str, scene: Scene, world: World, before: Draft | None = None
) -> Question:
    """The question of a draft, in a style if the draft allows it."""
    style, answer = in_style(style, draft)
    form = form_of(draft.kind, draft.words, style, values_of(scene.things, world))
    return Question(draft, style, answer, form, before=before)


def lines_of(
    record: dict, questions: list[Question], rng: Random, use: str
) -> list[dict]:
    """Draw a phrasing for each question; return the lines of a question file.

    Args:
        record: of the picture.
        use: which phrasings to draw from: "taught", "asked" or "unseen".
    """
    # no openers: two files must differ only in the phrasings of their questions
    phrase_question = make_phraser(rng, use, openers=0)
    border = record.get("border", "")
    lines = []
    for i, q in enumerate(questions):
        before: list[Turn] = []
        if q.draft.kind == "harmless":
            text, answer = harmless(rng, use)
        else:
            # a question of kind "list" asks for that style by itself
            style = "" if q.style == q.draft.kind else q.style
            text = worded(q.draft, phrase_question, style)
            answer = q.answer
        if q.before:
            first = worded(q.before, phrase_question)
            before = [{"from": "human", "value": first},
                      {"from": "gpt", "value": q.before.answer}]
        kind = "private" if border == "private" else q.draft.kind
        line = {
            "id": f"{record['id']}-{i}", "image": record["image"], "kind": kind,
            "style": q.style, "question": text, "answer": answer,
            "expect": q.draft.expect, "wrong": q.draft.wrong, "form": q.form,
            "names": q.names, "may": q.may, "border": border,
        }
        more = {"before": before} if before else {}
        lines.append(line | more | ({"sight": q.sight} if q.sight else {}))
    return lines
