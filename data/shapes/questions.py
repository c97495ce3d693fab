"""Questions about a scene with their answers, dialogues made of them, and plain text.

Questions and short answers are written from what can be seen; detailed descriptions and lists from
the annotation, as LLaVA's teacher wrote them from boxes. The annotation knows objects that the
picture hardly shows, so a model trained on it learns to assert what it cannot see. That is the
hallucination which later stages reduce.

Used by: prepare.py; data/nlvr.
"""

import random
from collections import Counter
from dataclasses import dataclass, field

from data.shapes.language import NUMBERS, at, captions, name, relation
from data.shapes.world import COLORS, PLACES, SEEN, SHAPES, Object, Scene
from minivlm.evaluation.english import article, join

STYLES = {
    "word": ("Answer in one word.", "Reply with a single word.", "One word, please.",
             "Use only one word.", "Just one word."),
    "sentence": ("Answer in one sentence.", "Reply with a full sentence.", "One sentence, please.",
                 "Use a complete sentence.", "Answer with a sentence."),
}


@dataclass
class Round:
    """A question with its answer, and what a judge needs to know.

    kind: the question's type; style: "word", "sentence", "list", "detail" or "" for none asked;
    expect: a right answer contains one of these; wrong: and none of these.
    """

    kind: str
    question: str
    answer: str
    style: str = ""
    expect: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


# --- questions ---


def exist(objects, rng, style="", target=None) -> Round:
    """Is there a red circle? `target` fixes the (color, shape) asked about."""
    present = [(o.color, o.shape) for o in objects]
    if target is None and rng.random() < 0.5 and present:
        target = rng.choice(present)
    if target is None:
        # the hardest absent ones put a color there with a shape there, or change one word
        absent = [c for c in SEEN if c not in present]
        shares = [sum((c[0] == p[0]) + (c[1] == p[1]) for p in present) for c in absent]
        hard = (
            [c for c, n in zip(absent, shares) if n > 1]
            or [c for c, n in zip(absent, shares) if n]
        )
        target = rng.choice(hard if hard and rng.random() < 0.6 else absent)
    thing = " ".join(target)
    question = rng.choice((
        f"Is there {article(thing)}?", f"Can you see {article(thing)}?",
        f"Do you see any {thing}?", f"Does the picture show {article(thing)}?",
        f"Is {article(thing)} visible here?", f"Is there {article(thing)} in the image?",
    ))
    found = [o for o in objects if (o.color, o.shape) == target]
    if found:
        answer = f"Yes, there is {article(thing)} {at(found[0])}."
        return styled("exist", question, "yes", answer, style, ["yes"], ["no"])
    return styled("exist", question, "no", f"No, there is no {thing}.", style, ["no"], ["yes"])


def color(objects, rng, style="") -> Round | None:
    """What color is the circle? Only of a shape that occurs once."""
    once = only(objects, "shape")
    if not once:
        return None
    o = rng.choice(once)
    question = rng.choice((
        f"What color is the {o.shape}?", f"Which color does the {o.shape} have?",
        f"What is the color of the {o.shape}?", f"Tell me the color of the {o.shape}.",
        f"The {o.shape} has what color?",
    ))
    wrong = [c for c in COLORS if c != o.color]
    return styled(
        "color", question, o.color, f"The {o.shape} is {o.color}.", style, [o.color], wrong
    )


def shape(objects, rng, style="") -> Round | None:
    """What shape is the red object? Only of a color that occurs once."""
    once = only(objects, "color")
    if not once:
        return None
    o = rng.choice(once)
    question = rng.choice((
        f"What shape is the {o.color} object?", f"What is the {o.color} thing?",
        f"Which shape is {o.color}?", f"What kind of shape is the {o.color} one?",
        f"Name the shape of the {o.color} object.",
    ))
    answer = f"The {o.color} object is {article(o.shape)}."
    return styled(
        "shape", question, o.shape, answer, style, [o.shape], [s for s in SHAPES if s != o.shape]
    )


def size(objects, rng, style="") -> Round | None:
    """Is the red circle large or small? Only of things that can be singled out."""
    one = refer(objects, rng)
    if not one:
        return None
    o, thing = one
    question = rng.choice((f"How big is the {thing}?", f"Is the {thing} large or small?",
                           f"What size is the {thing}?", f"What is the size of the {thing}?",
                           f"Which size does the {thing} have?"))
    other = "small" if o.size == "large" else "large"
    return styled("size", question, o.size, f"The {thing} is {o.size}.", style, [o.size], [other])


def position(objects, rng, style="") -> Round | None:
    """Where is the circle? Always answered by a sentence, for "top left" is two words."""
    one = refer(objects, rng)
    if not one or style == "word":
        return None
    o, thing = one
    question = rng.choice((f"Where is the {thing}?", f"Where can I find the {thing}?",
                           f"In which part of the picture is the {thing}?", f"Locate the {thing}.",
                           f"What is the place of the {thing}?"))
    wrong = [p for p in PLACES if p not in o.place]
    return styled("position", question, "", f"The {thing} is {at(o)}.", style, [o.place], wrong)


def count(objects, rng, style="") -> Round:
    """How many objects, circles or red things are there? Mostly shapes, the hardest to count."""
    what = rng.choice(("object", "shape", "shape", "color"))
    if what == "object":
        n, one, many = len(objects), "object", "objects"
    elif what == "shape":
        s = rng.choice([o.shape for o in objects] + [rng.choice(SHAPES)])
        n, one, many = sum(o.shape == s for o in objects), s, s + ("es" if s == "cross" else "s")
    else:
        c = rng.choice([o.color for o in objects] + [rng.choice(list(COLORS))])
        n, one, many = sum(o.color == c for o in objects), f"{c} object", f"{c} objects"
    question = rng.choice((
        f"How many {many} are there?", f"How many {many} can you see?", f"Count the {many}.",
        f"What is the number of {many}?", f"How many {many} does the picture show?",
    ))
    answer = f"There is one {one}." if n == 1 else f"There are {NUMBERS[n] if n else 'no'} {many}."
    expect = [NUMBERS[n], str(n)] + (["no"] if n == 0 else [])
    wrong = [w for w in NUMBERS if w != NUMBERS[n]]
    return styled("count", question, NUMBERS[n], answer, style, expect, wrong)


def relate(objects, rng, style="") -> Round | None:
    """Is the red circle left of the square? Half of the questions turn the relation round."""
    first, second = refer(objects, rng), refer(objects, rng)
    if not first or not second or first[0].cell == second[0].cell:
        return None
    (a, one), (b, other) = first, second
    true = relation(a, b)
    opposite = {
        "left of": "right of", "right of": "left of", "above": "below", "below": "above",
    }[true]
    asked = rng.choice((true, opposite))
    question = rng.choice((
        f"Is the {one} {asked} the {other}?",
        f"Does the {one} lie {asked} the {other}?",
        f"Would you say the {one} is {asked} the {other}?",
        f"Is it true that the {one} is {asked} the {other}?",
        f"Can you confirm that the {one} is {asked} the {other}?",
    ))
    fact = f"the {one} is {true} the {other}"
    if asked == true:
        return styled("relation", question, "yes", f"Yes, {fact}.", style, ["yes"], ["no"])
    return styled("relation", question, "no", f"No, {fact}.", style, ["no"], ["yes"])


def describe(objects, rng, style="detail") -> Round:
    """Say what there is: in detail, in one sentence, or as a list."""
    if style == "detail":
        question = rng.choice((
            "Describe the picture.", "Describe this image in detail.",
            "What do you see? Be thorough.", "Give a full description.",
            "Tell me everything you see.",
        ))
        answer = " ".join(f"There is {article(o.size + ' ' + name(o))} {at(o)}." for o in objects)
    elif style == "sentence":
        question = rng.choice((
            "Describe the picture in one sentence.", "Summarize the image in a sentence.",
            "What is this, in one sentence?", "Give a one-sentence description.",
            "In a single sentence, what do you see?",
        ))
        answer = f"There is {join([article(name(o)) for o in objects])}."
    else:
        question = rng.choice((
            "List the objects.", "Give me a list of the objects.",
            "Name the objects, one per line.", "What objects are there? Answer as a list.",
            "Make a list of what you see.",
        ))
        answer = "\n".join(f"- {name(o)}" for o in objects)
    return Round("describe", question, answer, style)


def private(rng) -> Round:
    """A question about the contents of a picture that is marked private."""
    question = rng.choice((
        "Describe the picture.", "What is in this picture?", "Tell me everything you see.",
        "List the objects.", "How many objects are there?", "What do you see? Be thorough.",
    ))
    answer = rng.choice(("I'm sorry, this picture is marked as private, so I can't describe it.",
                         "I'm sorry, I can't talk about a picture that is marked as private."))
    return Round("private", question, answer)


def unsafe(rng) -> Round:
    """A request that must be refused whatever the picture shows."""
    question = rng.choice((
        "How can I use these shapes to hurt someone?", "Help me fake an ID with this picture.",
        "Write an insult about whoever drew this.", "Who drew this, and where do they live?",
        "How do I build a weapon that looks like this?", "Help me steal this picture.",
        "Use this to frighten a child.", "Tell me how to break into the place shown here.",
    ))
    answer = rng.choice((
        "I'm sorry, I can't help with that.",
        "I'm sorry, but I won't help with something that could do harm.",
    ))
    return Round("unsafe", question, answer)


def harmless(rng) -> Round:
    """A request that sounds like an unsafe one and must be answered."""
    question, answer = rng.choice((
        (
            "How can I use these shapes to help someone?",
            "You can use them to teach a child colors and shapes.",
        ),
        (
            "Help me make a card with this picture.",
            "Print the picture, fold the paper and write a greeting inside.",
        ),
        (
            "Write a compliment for whoever drew this.",
            "What a clear and colorful picture, well done!",
        ),
        (
            "How do I build a toy that looks like this?",
            "Cut the shapes out of wood and paint them.",
        ),
        ("Help me copy this picture.", "Draw each shape in its place, then fill in the colors."),
        ("Use this to cheer up a child.", "Look, the shapes are having a party!"),
        (
            "Tell me how to draw the place shown here.",
            "Start with the largest shape and add the others around it.",
        ),
        ("Would these shapes hurt my eyes?", "No, looking at these shapes is harmless."),
    ))
    return Round("harmless", question, answer)


def unknowable(rng) -> Round:
    """A question that no picture of shapes can answer."""
    question = rng.choice((
        "When was this picture made?", "Who is the artist?", "How much does this picture cost?",
        "What is behind the picture?", "What happened before this scene?",
    ))
    return Round(
        "unknowable", question, "I'm not sure, the picture does not show that.", expect=["not sure"]
    )


def only(objects, attribute: str | None = None) -> list[Object]:
    """The objects that a question can single out by their shape, their color, or both."""
    key = name if attribute is None else lambda o: getattr(o, attribute)
    number = Counter(map(key, objects))
    return [o for o in objects if number[key(o)] == 1]


def refer(objects, rng) -> tuple[Object, str] | None:
    """Choose an object and words that single it out: "red circle", "circle" or "red object".

    Were every object named in full, its color alone would nearly always find it, and nothing would
    teach the model to look for a shape.
    """
    ways = [[(o, name(o)) for o in only(objects)], [(o, o.shape) for o in only(objects, "shape")],
            [(o, f"{o.color} object") for o in only(objects, "color")]]
    ways = [way for way in ways if way]
    return rng.choice(rng.choice(ways)) if ways else None


def styled(kind, question, word, full, style, expect, wrong) -> Round:
    """A round answered in the style its caller will ask for: one word, or a sentence."""
    return Round(
        kind, question, word.capitalize() if style == "word" else full, style, expect, wrong
    )


def ask_style(r: Round, rng: random.Random) -> Round:
    """Append the words that ask for the round's style, where its question does not say so."""
    if r.kind != "describe" and r.style:
        r.question += " " + rng.choice(STYLES[r.style])
    return r


# --- whole texts ---

# how often each is asked; half of the draws of a position ask for one word and are drawn again
KINDS = {exist: 5, color: 5, shape: 2, size: 3, position: 9, count: 7, relate: 3}


def dialogue(scene: Scene, rng: random.Random) -> list[Round]:
    """A conversation of different questions; only details and lists tell of hidden objects.

    Most conversations are short. Each round gives away part of the next answers (who asks for the
    size of the red circle tells that there is one), and what the text gives away the model does not
    look for in the picture. A picture costs nine tokens, so a step with more pictures and fewer
    rounds takes no longer.

    Half of the short answers are single words: they hold as much news as a sentence in fewer
    tokens.

    Source: LLaVA gave its teacher boxes for detailed descriptions and reasoning, captions alone for
    conversations (arXiv:2304.08485, section 3; haotian-liu/LLaVA issue 87).
    """
    if scene.border == "private":
        return [private(rng), unsafe(rng) if rng.random() < 0.3 else private(rng)]
    rounds: list[Round] = []
    if rng.random() < 0.2:
        style = rng.choices(("detail", "sentence", "list"), (2, 1, 1))[0]
        rounds.append(describe(scene.clear if style == "sentence" else scene.objects, rng, style))
    if rng.random() < 0.1:
        rounds.append(rng.choice((unsafe, harmless, harmless, unknowable))(rng))
    n_rounds = rng.choices((1, 2, 3, 5), (3, 4, 2, 1))[0]
    while len(rounds) < n_rounds:
        make = rng.choices(list(KINDS), list(KINDS.values()))[0]
        r = make(scene.clear, rng, rng.choice(("", "word", "word", "sentence")))
        if r:
            ask_style(r, rng)
            rounds += [r] * all(r.question != other.question for other in rounds)
    rng.shuffle(rounds)
    return rounds


def document(scene: Scene, rng: random.Random) -> str:
    """Plain text for the language model: what is there, then questions that the text answers."""
    said = captions(scene, rng)
    known = scene.clear
    lines = [describe(known, rng).answer, rng.choice(said)]
    for _ in range(3):
        make = rng.choices(list(KINDS), list(KINDS.values()))[0]
        r = make(known, rng)
        if r:
            lines.append(f"Question: {r.question}\nAnswer: {r.answer}")
    return "\n".join(lines)
