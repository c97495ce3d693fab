"""Questions about a whole picture, and about what is usual: makers as in questions.py.

They need more than objects: the place and the time of day, why an object is unusual, and
facts about things. Where a data set does not tell these, nothing is asked.
"""

from collections import Counter
from random import Random

from minivlm.engine.facts import ASPECTS, HOME
from minivlm.engine.questions import (
    FACT, TRIES, Draft, Texts, denials_of, no_such, others, tell, yes_or_no,
)
from minivlm.engine.references import absent_kind, names_of, refer
from minivlm.engine.wording import (
    Scene, World, at, is_at, named, sentence, small, summary, the_or_a,
)
from minivlm.evaluation.english import article, join, plural
from minivlm.evaluation.scene import PLACES, Thing, named_by
from minivlm.metrics import words_of

USUAL = "everything is as usual"
UNIQUE = ("sun", "moon")  # there is one of each in the world


def oddities(scene: Scene) -> list[Thing]:
    """The unusual objects."""
    return [t for t in scene.things if t.unusual]


def visible(scene: Scene) -> list[Thing]:
    """The things that can be seen: a description may use others, nobody sees them."""
    return [t for t in scene.things if not t.hidden]


def keep(share: float, rng: Random) -> bool:
    """Draw whether to ask, so that this share of the pictures is asked about after TRIES.

    Most pictures show nothing unusual. If all of them were asked about, nobody would have
    to look.
    """
    return rng.random() < 1 - (1 - share) ** (1 / TRIES)


def in_general(kind: str) -> str:
    """Name a kind in a fact: "a cat", but "the sun"."""
    return f"the {kind}" if kind in UNIQUE else article(kind)


def fact_of(kind: str, aspect: str, world: World) -> str:
    """A fact as a sentence without its full stop: "a cat eats fish"."""
    return ASPECTS[aspect].format(a=in_general(kind), v=world.facts[kind][aspect])


# --- what is unusual ---


def strange(scene: Scene, rng: Random, world: World) -> Draft | None:
    """Is anything unusual here? Where nothing is, the question is of kind "usual"."""
    if not world.facts:
        return None
    odd = oddities(scene)
    seen = looked_over(scene)
    if odd:
        draft = yes_or_no("strange", {}, True, odd[0].unusual, (USUAL,), odd[0], seen)
        draft = draft._replace(expect=reasons(odd))
    elif keep(0.7, rng):
        draft = yes_or_no("usual", {}, False, USUAL, seen=seen)
        draft = draft._replace(expect=("no", USUAL), phrasing="strange")
    else:
        return None
    # whoever says yes must say why: one word is not enough
    return draft._replace(word="")


def what_strange(scene: Scene, rng: Random, world: World) -> Draft | None:
    """What is unusual here? Where nothing is, the question is of kind "usual"."""
    odd = oddities(scene)
    if not world.facts or (not odd and not keep(0.5, rng)):
        return None
    seen = looked_over(scene)
    if not odd:
        full = f"Nothing is unusual: {USUAL}."
        return Draft(
            "usual", {}, "", full, ("nothing", USUAL), phrasing="what_strange", seen=seen
        )
    full = sentence(odd[0].unusual)
    return Draft(
        "what_strange", {}, "", full, reasons(odd), (USUAL,), about=odd[0], seen=seen
    )


def looked_over(scene: Scene) -> str:
    """Say of one thing after the other that it is as usual, up to the first unusual one."""
    things = visible(scene)
    kinds = [t.kind for t in things]
    texts = []
    for t in things:
        if t.unusual:
            break
        texts.append(sentence(f"{the_or_a(t.kind, kinds)} is as usual"))
    return " ".join(dict.fromkeys(texts))


def reasons(odd: list[Thing]) -> Texts:
    """The part of each reason that names what is seen: "fish is in the sky"."""
    return tuple(t.unusual.partition(", ")[0].partition(" ")[2] for t in odd)


def why_strange(scene: Scene, rng: Random, world: World) -> Draft | None:
    """What is odd about the fish?"""
    odd = oddities(scene)
    reference = refer(scene.things, rng, among=odd)
    if not reference:
        return None
    t, phrase = reference
    seen, _, usual = t.unusual.partition(", and ")
    full = sentence(t.unusual)
    return Draft("why_strange", {"x": phrase}, "", full, (usual or seen,), about=t)


def belongs(scene: Scene, rng: Random, world: World) -> Draft | None:
    """Does the fish belong there?"""
    strays = []
    at_home = []
    for t in scene.things:
        home = world.facts.get(t.kind, {}).get(HOME)
        if home and home in t.unusual:
            strays.append(t)
        elif home and not t.unusual:  # does a green cat belong there? who can tell
            at_home.append(t)
    if strays and rng.random() < 0.7:
        reference = refer(scene.things, rng, among=strays)
    else:
        reference = refer(scene.things, rng, among=at_home) if keep(0.12, rng) else None
    if not reference:
        return None
    t, phrase = reference
    subject = f"the {t.kind} belongs" if t.kind in UNIQUE else f"{plural(t.kind)} belong"
    fact = f"{subject} {world.facts[t.kind][HOME]}"
    seen = f"{tell('kind', reference)} {tell('zone', reference)}".strip()
    return yes_or_no("belongs", {"x": phrase}, t in at_home, fact, about=t, seen=seen)


# --- place and time ---


def day_night(scene: Scene, rng: Random, world: World) -> Draft | None:
    """Is it day or night?"""
    if not scene.time:
        return None
    wrong = ("night",) if scene.time == "day" else ("day",)
    return Draft("day_night", {}, scene.time, f"It is {scene.time}.", (scene.time,), wrong)


def setting(scene: Scene, rng: Random, world: World) -> Draft | None:
    """What place is this?"""
    if scene.place not in world.places:
        return None
    wrong = tuple(place for place in world.places if place != scene.place)
    full = f"The picture shows {world.places[scene.place]['is']}."
    return Draft("setting", {}, scene.place, full, (scene.place,), wrong)


def activity(scene: Scene, rng: Random, world: World) -> Draft | None:
    """What could one do here?"""
    if scene.place not in world.places:
        return None
    can = world.places[scene.place]["do"]
    full = f"This is {world.places[scene.place]['is']}. One could {can} here."
    return Draft("activity", {}, "", full, (can,))


def hear(scene: Scene, rng: Random, world: World) -> Draft | None:
    """What could one hear here?"""
    counts = Counter(t.kind for t in scene.things)
    sounds = {}
    for kind, n in counts.items():
        sound = world.facts.get(kind, {}).get("says", "")
        if sound and not sound.startswith("nothing"):  # a fish
            sounds[f"the {kind if n == 1 else plural(kind)} say {sound}"] = sound
    if not sounds:
        return None
    full = f"One could hear {join(list(sounds)[:2])}."
    return Draft("hear", {}, "", full, tuple(sounds.values()))


# --- what is there ---


def ways_to_name(scene: Scene) -> Texts:
    """The names of what is there, each as one and as several."""
    names = dict.fromkeys(t.name for t in scene.things)
    return (*names, *map(plural, names))


def happening(scene: Scene, rng: Random, world: World) -> Draft | None:
    """What is going on in the picture?"""
    if scene.place not in world.places:
        return None
    place = world.places[scene.place]["at"]
    full = f"It is {scene.time} {place}. {summary(scene.things)}"
    wrong = ("night",) if scene.time == "day" else ("day",)
    return Draft("happening", {}, "", full, ways_to_name(scene), wrong)


def left_without(scene: Scene, rng: Random, world: World) -> Draft | None:
    """What would be left without the red car?"""
    reference = refer(scene.things, rng)
    if not reference or any(t.crowd for t in scene.things):
        return None
    t, phrase = reference
    rest = [other for other in scene.things if other is not t]
    left = named(rest) if rest else "nothing"
    full = f"Without the {phrase}, {left} would be left."
    expect = (full[:-1].partition(", ")[2],)
    return Draft("left_without", {"x": phrase}, "", full, expect, about=t)


def story(scene: Scene, rng: Random, world: World) -> Draft | None:
    """Tell me a story about the picture."""
    if scene.place not in world.places:
        return None
    hero, *met = rng.sample(scene.things, min(2, len(scene.things)))
    time = "One day" if scene.time == "day" else "One night"
    place = world.places[scene.place]["at"]
    lines = [f"{time} {article(hero.name)} was {place}."]
    facts = world.facts.get(hero.kind, {})
    if met:
        other = "another" if met[0].name == hero.name else article(met[0].name).split()[0]
        lines.append(f"It met {other} {met[0].name}.")
    if hero.unusual:
        lines.append(f"Everybody wondered, because {hero.unusual.partition(', and ')[2]}.")
    elif "can" in facts:
        lines.append(f"It was glad because it could {facts['can']}.")
    lines.append("Then they both went home." if met else "Then it went home.")
    return Draft("story", {}, "", " ".join(lines), ways_to_name(scene))


# --- facts ---


def fact(
    scene: Scene, rng: Random, world: World, untold: World | None = None
) -> Draft | None:
    """What does the thing at the left eat? Two steps: see what it is, know what it eats.

    Args:
        untold: the facts to ask about instead of those of `world`.
    """
    known = (untold or world).facts
    choices = []
    for t in scene.things:
        for aspect in known.get(t.kind, {}):
            if aspect in ASPECTS:
                choices.append((t, aspect))
    if not choices:
        return None
    t, aspect = rng.choice(choices)
    names = names_of(t, scene.things)
    if not names:
        return None
    # if some phrases do not name the kind, one of these is asked: then one has to look
    blind = [name for name in names if t.kind not in name.split()]
    phrase = rng.choice(blind or names)
    full = sentence(fact_of(t.kind, aspect, untold or world))
    seen = tell("kind", (t, phrase))
    value = known[t.kind][aspect]
    all_values = {facts[aspect] for facts in known.values() if aspect in facts}
    # "wood" is a part of the right answer "wood and cloth", so it is not wrong; nor is
    # "fish", which a cat eats, in "A fish eats water plants."
    wrong = {v for v in all_values if words_of(v) not in words_of(full)}
    return Draft(
        "fact", {"x": phrase}, "", full, (value,), tuple(sorted(wrong)), f"fact_{aspect}",
        about=t, seen=seen,
    )


def assumed_fact(scene: Scene, rng: Random, world: World) -> Draft | None:
    """Does the cat belong there? There is none: the question assumes what is not there."""
    x = absent_kind(scene.things, rng, world)
    if not x or not world.facts:
        return None
    phrasing = rng.choice(("belongs", "why_strange", "left_without"))
    return no_such(x, phrasing)


# --- follow-ups: questions about "it" ---


def follow_up(draft: Draft, scene: Scene, rng: Random, world: World) -> Draft | None:
    """A question that refers back to what the last question was about.

    Args:
        draft: the last question, with its answer.
    """
    choices = about_it(draft, scene, world)
    if draft.kind in ("exist", "color", "position", "count", "size"):
        reason = FACT.search(draft.full)
        again = f"{reason[1].strip()}." if reason else draft.full
        again = small(again)
        full = f"Yes, I am sure: {again}"
        choices.append(Draft("sure", {}, "", full, ("sure",), ("not sure",)))
        if draft.kind == "exist":
            x = draft.words["x"]
            there = [is_at(x, [t.place]) for t in named_by(x, scene.things)]
            expect = tuple(there) or denials_of(x)
            choices.append(Draft("why", {}, "", f"Because {again}", expect))
    return rng.choice(choices) if choices else None


def about_it(draft: Draft, scene: Scene, world: World) -> list[Draft]:
    """Questions about what "it" is like, of which question and answer tell nothing yet."""
    t = draft.about
    if t is None:
        return []
    # an answer that names "it" has found out first what is meant
    names = names_of(t, scene.things)
    it = next((f"The {n}" for n in (draft.words.get("x"), t.kind) if n in names), "It")
    said = words_of(" ".join([*draft.words.values(), draft.answer]))
    found = []
    for kind, what in (("and_color", "color"), ("and_size", "size")):
        value = getattr(t, what)
        if value and words_of(value) not in said:
            wrong = others(what, value, {}, scene, world)
            found.append(Draft(kind, {}, value, f"{it} is {value}.", (value,), wrong))
    if words_of(t.place) not in said:
        wrong = tuple(p for p in PLACES if p not in t.place)
        found.append(
            Draft("and_where", {}, "", f"{it} is {at(t.place)}.", (t.place,), wrong)
        )
    return found
