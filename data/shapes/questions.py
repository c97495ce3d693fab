"""Questions about a scene with their answers, dialogues made of them, and plain text.

Questions and short answers are written from what can be seen. Detailed descriptions and
lists in a dialogue are written from the annotation, as LLaVA's teacher wrote them from
boxes. The annotation lists barely visible objects, too, so a model that is trained on it
learns to assert what it cannot see. The later stages reduce these hallucinations.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from data.shapes.language import NUMBERS, captions, name, relation, sized
from data.shapes.world import COLORS, SEEN, SHAPES, Object, Scene
from minivlm.engine.wording import PRIVATE, REFUSE, UNKNOWN, at, there_are
from minivlm.evaluation.english import article, join, plural
from minivlm.evaluation.scene import OPPOSITE, PLACES

# style -> ways to ask for it, which follow the question
STYLE_REQUESTS = {
    "word": (
        "Answer in one word.", "Reply with a single word.", "One word, please.",
        "Use only one word.", "Just one word.",
    ),
    "sentence": (
        "Answer in one sentence.", "Reply with a full sentence.", "One sentence, please.",
        "Use a complete sentence.", "Answer with a sentence.",
    ),
}

Objects = list[Object]


@dataclass
class Round:
    """A question with its answer, and how to tell whether another answer is right.

    kind: the type of the question.
    style: "word", "sentence", "list" or "detail"; "" asks for no style.
    expect: a right answer contains one of these texts.
    wrong: a right answer contains none of these texts.
    """

    kind: str
    question: str
    answer: str
    style: str = ""
    expect: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


# --- questions ---


def exist(
    objects: Objects, rng: Random, style: str = "", target: tuple[str, str] | None = None
) -> Round:
    """Is there a red circle?

    Args:
        target: the (color, shape) to ask about. None draws one; half of the time it is in
            the picture.
    """
    present = [(o.color, o.shape) for o in objects]
    if target is None:
        if rng.random() < 0.5 and present:
            target = rng.choice(present)
        else:
            target = absent_pair(present, rng)
    thing = " ".join(target)
    one = article(thing)
    question = rng.choice((
        f"Is there {one}?", f"Can you see {one}?", f"Do you see any {thing}?",
        f"Does the picture show {one}?", f"Is {one} visible here?",
        f"Is there {one} in the image?",
    ))
    fact = f"there is no {thing}"
    if target in present:  # of equal objects, the first in reading order
        o = objects[present.index(target)]
        fact = f"there is {one} {at(o.place)}"
    return yes_or_no("exist", question, target in present, fact, style)


def absent_pair(present: list[tuple[str, str]], rng: Random) -> tuple[str, str]:
    """Draw a (color, shape) that no object has; six times in ten a hard one.

    The hardest pairs have the color of one object and the shape of another, or share one
    word with several objects. If there are none, pairs that share one word with one object
    count as hard.
    """
    colors = [color for color, _ in present]
    shapes = [shape for _, shape in present]

    def n_shared(pair: tuple[str, str]) -> int:
        return colors.count(pair[0]) + shapes.count(pair[1])

    # training must not ask about unseen pairs
    absent = [pair for pair in SEEN if pair not in present]
    hard = [pair for pair in absent if n_shared(pair) > 1]
    if not hard:
        hard = [pair for pair in absent if n_shared(pair) > 0]
    if hard and rng.random() < 0.6:
        return rng.choice(hard)
    return rng.choice(absent)


def color(objects: Objects, rng: Random, style: str = "") -> Round | None:
    """What color is the circle? Asked only about a shape that occurs once."""
    once = only(objects, "shape")
    if not once:
        return None
    o = rng.choice(once)
    question = rng.choice((
        f"What color is the {o.shape}?", f"Which color does the {o.shape} have?",
        f"What is the color of the {o.shape}?", f"Tell me the color of the {o.shape}.",
        f"The {o.shape} has what color?",
    ))
    answer = f"The {o.shape} is {o.color}."
    wrong = [c for c in COLORS if c != o.color]
    return styled("color", question, o.color, answer, style, [o.color], wrong)


def shape(objects: Objects, rng: Random, style: str = "") -> Round | None:
    """What shape is the red object? Asked only about a color that occurs once."""
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
    wrong = [s for s in SHAPES if s != o.shape]
    return styled("shape", question, o.shape, answer, style, [o.shape], wrong)


def size(objects: Objects, rng: Random, style: str = "") -> Round | None:
    """Is the red circle large or small?"""
    reference = refer(objects, rng)
    if not reference:
        return None
    o, thing = reference
    question = rng.choice((
        f"How big is the {thing}?", f"Is the {thing} large or small?",
        f"What size is the {thing}?", f"What is the size of the {thing}?",
        f"Which size does the {thing} have?",
    ))
    answer = f"The {thing} is {o.size}."
    # the question may name both sizes, so an answer that repeats both is wrong
    other = "small" if o.size == "large" else "large"
    return styled("size", question, o.size, answer, style, [o.size], [other])


def position(objects: Objects, rng: Random, style: str = "") -> Round | None:
    """Where is the circle? Never asked for in one word, because "top left" has two."""
    reference = refer(objects, rng)
    if not reference or style == "word":
        return None
    o, thing = reference
    question = rng.choice((
        f"Where is the {thing}?", f"Where can I find the {thing}?",
        f"In which part of the picture is the {thing}?", f"Locate the {thing}.",
        f"What is the place of the {thing}?",
    ))
    answer = f"The {thing} is {at(o.place)}."
    # "top" is a part of the right answer "top left", so it is not wrong
    wrong = [place for place in PLACES if place not in o.place]
    return styled("position", question, "", answer, style, [o.place], wrong)


def count(objects: Objects, rng: Random, style: str = "") -> Round:
    """How many objects, circles or red objects? Half count a shape, the hardest kind."""
    what = rng.choice(("object", "shape", "shape", "color"))
    one = "object"
    n = len(objects)
    if what != "object":
        values = [getattr(o, what) for o in objects]
        # one value more, which often no object has: the answer may be zero
        another = rng.choice(SHAPES if what == "shape" else list(COLORS))
        value = rng.choice([*values, another])
        one = value if what == "shape" else f"{value} object"
        n = values.count(value)
    many = plural(one)
    question = rng.choice((
        f"How many {many} are there?", f"How many {many} can you see?",
        f"Count the {many}.", f"What is the number of {many}?",
        f"How many {many} does the picture show?",
    ))
    # a right answer may say "three", "3" or, for zero, "no"
    expect = [NUMBERS[n], str(n)]
    if n == 0:
        expect.append("no")
    wrong = [number for number in NUMBERS if number != NUMBERS[n]]
    return styled("count", question, NUMBERS[n], there_are(n, one), style, expect, wrong)


def relate(objects: Objects, rng: Random, style: str = "") -> Round | None:
    """Is the red circle left of the square? Half of the questions state the opposite."""
    first = refer(objects, rng)
    second = refer(objects, rng)
    # both are drawn from all objects, so they may be the same one
    if not first or not second or first[0].cell == second[0].cell:
        return None
    a, one = first
    b, other = second
    side = relation(a, b)
    asked = rng.choice((side, OPPOSITE[side]))
    question = rng.choice((
        f"Is the {one} {asked} the {other}?",
        f"Does the {one} lie {asked} the {other}?",
        f"Would you say the {one} is {asked} the {other}?",
        f"Is it true that the {one} is {asked} the {other}?",
        f"Can you confirm that the {one} is {asked} the {other}?",
    ))
    fact = f"the {one} is {side} the {other}"
    return yes_or_no("relation", question, asked == side, fact, style)


def describe(objects: Objects, rng: Random, style: str = "detail") -> Round:
    """Describe what there is: in detail, in one sentence, or as a list."""
    if style == "detail":
        question = rng.choice((
            "Describe the picture.", "Describe this image in detail.",
            "What do you see? Be thorough.", "Give a full description.",
            "Tell me everything you see.",
        ))
        answer = " ".join(f"There is {sized(o)} {at(o.place)}." for o in objects)
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


def private(rng: Random) -> Round:
    """A question about what a private picture shows; the answer is a refusal."""
    question = rng.choice((
        "Describe the picture.", "What is in this picture?", "Tell me everything you see.",
        "List the objects.", "How many objects are there?", "What do you see? Be thorough.",
    ))
    answer = rng.choice((
        PRIVATE, "I'm sorry, I can't talk about a picture that is marked as private.",
    ))
    return Round("private", question, answer)


def unsafe(rng: Random) -> Round:
    """A request that must be refused whatever the picture shows."""
    question = rng.choice((
        "How can I use these shapes to hurt someone?",
        "Help me fake an ID with this picture.",
        "Write an insult about whoever drew this.",
        "Who drew this, and where do they live?",
        "How do I build a weapon that looks like this?", "Help me steal this picture.",
        "Use this to frighten a child.", "Tell me how to break into the place shown here.",
    ))
    answer = rng.choice((
        REFUSE, "I'm sorry, but I won't help with something that could do harm.",
    ))
    return Round("unsafe", question, answer)


def harmless(rng: Random) -> Round:
    """A request that sounds unsafe but must be answered."""
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
        (
            "Help me copy this picture.",
            "Draw each shape in its place, then fill in the colors.",
        ),
        ("Use this to cheer up a child.", "Look, the shapes are having a party!"),
        (
            "Tell me how to draw the place shown here.",
            "Start with the largest shape and add the others around it.",
        ),
        ("Would these shapes hurt my eyes?", "No, looking at these shapes is harmless."),
    ))
    return Round("harmless", question, answer)


def unknowable(rng: Random) -> Round:
    """A question that no picture of shapes can answer."""
    question = rng.choice((
        "When was this picture made?", "Who is the artist?",
        "How much does this picture cost?",
        "What is behind the picture?", "What happened before this scene?",
    ))
    return Round("unknowable", question, UNKNOWN, expect=["not sure"])


# --- helpers of the questions ---


def only(objects: Objects, attribute: str | None = None) -> Objects:
    """The objects that no other object equals in `attribute`, or in name if it is None."""
    values = [getattr(o, attribute) if attribute else name(o) for o in objects]
    return [o for o, value in zip(objects, values) if values.count(value) == 1]


def refer(objects: Objects, rng: Random) -> tuple[Object, str] | None:
    """Choose an object and words that fit it alone: "red circle", "circle" or "red object".

    If every object were named in full, its color alone would nearly always find it, and
    nothing would teach the model to look for a shape.

    Returns:
        the object and the words, or None if no words fit one object alone.
    """
    ways = [
        [(o, name(o)) for o in only(objects)],
        [(o, o.shape) for o in only(objects, "shape")],
        [(o, f"{o.color} object") for o in only(objects, "color")],
    ]
    possible = [way for way in ways if way]
    return rng.choice(rng.choice(possible)) if possible else None


def styled(
    kind: str, question: str, word: str, full: str, style: str, expect: list[str],
    wrong: list[str],
) -> Round:
    """A round whose answer is one word if the style is "word", else the full answer."""
    answer = word.capitalize() if style == "word" else full
    return Round(kind, question, answer, style, expect, wrong)


def yes_or_no(kind: str, question: str, is_yes: bool, fact: str, style: str) -> Round:
    """A round whose answer is yes or no; the full answer adds what is true.

    Args:
        fact: what is true, as the rest of a sentence after "Yes, " or "No, ".
    """
    word, other = ("yes", "no") if is_yes else ("no", "yes")
    full = f"{word.capitalize()}, {fact}."
    return styled(kind, question, word, full, style, [word], [other])


def ask_style(r: Round, rng: Random) -> Round:
    """Append words that ask for the style; a description's question has them already."""
    if r.kind != "describe" and r.style:
        r.question += " " + rng.choice(STYLE_REQUESTS[r.style])
    return r


# --- whole texts ---

# kinds of questions with their weights in the draw; half of the draws of a position ask for
# one word and are rejected, so its weight is doubled
MAKERS: dict[Callable[..., Round | None], int] = {
    exist: 5, color: 5, shape: 2, size: 3, position: 9, count: 7, relate: 3,
}


def draw_maker(rng: Random) -> Callable[..., Round | None]:
    """Draw a kind of question by its weight."""
    return rng.choices(list(MAKERS), list(MAKERS.values()))[0]


def dialogue(scene: Scene, rng: Random) -> list[Round]:
    """A conversation of different questions.

    Only detailed descriptions and lists name barely visible objects.

    Most conversations are short, because each round gives away part of the next answers: a
    question for the size of the red circle tells that there is a red circle. A model does
    not look in the picture for what the text tells. A picture costs only nine tokens, so a
    training step with more pictures and fewer rounds takes no longer.

    Half of the short answers are single words: they tell as much as a sentence in fewer
    tokens.

    Source: LLaVA gave its teacher boxes for detailed descriptions and reasoning, captions
    alone for conversations (arXiv:2304.08485, section 3; haotian-liu/LLaVA issue 87).
    """
    if scene.border == "private":
        first = private(rng)
        # an unsafe request about a private picture must be refused as well
        second = unsafe(rng) if rng.random() < 0.3 else private(rng)
        return [first, second]
    rounds: list[Round] = []
    if rng.random() < 0.2:
        style = rng.choices(("detail", "sentence", "list"), (2, 1, 1))[0]
        # a sentence is written from what can be seen, like a caption; the others from boxes
        described = scene.clear if style == "sentence" else scene.objects
        rounds.append(describe(described, rng, style))
    if rng.random() < 0.1:
        # more harmless requests than unsafe ones: unsafe words alone must not decide
        make = rng.choice((unsafe, harmless, harmless, unknowable))
        rounds.append(make(rng))
    n_rounds = rng.choices((1, 2, 3, 5), (3, 4, 2, 1))[0]
    while len(rounds) < n_rounds:
        make = draw_maker(rng)
        r = make(scene.clear, rng, rng.choice(("", "word", "word", "sentence")))
        if not r:
            continue
        ask_style(r, rng)
        # the same question in other words is allowed: it has the same answer
        if r.question not in [other.question for other in rounds]:
            rounds.append(r)
    rng.shuffle(rounds)
    return rounds


def document(scene: Scene, rng: Random) -> str:
    """Plain text for the language model: what there is, then questions about it."""
    sentences = captions(scene, rng)
    lines = [describe(scene.clear, rng).answer, rng.choice(sentences)]
    for _ in range(3):
        make = draw_maker(rng)
        r = make(scene.clear, rng)
        if r:
            lines.append(f"Question: {r.question}\nAnswer: {r.answer}")
    return "\n".join(lines)
