"""The offline teacher: it composes dialogues from what is known of a picture.

    write("reasoning", record, rng, world) -> "Question:\n...\n===\nAnswer:\n...\n===\n"

The offline teacher writes the same types of text, in the same grammar, as a language model.
A conversation is about the visible objects only, because LLaVA's teacher wrote
conversations from captions alone. Descriptions and reasoning may use every object that the
annotation lists.

Source: the three types of LLaVA, arXiv:2304.08485, section 3.
"""

from random import Random

from minivlm.engine import questions as ask
from minivlm.engine import scenes
from minivlm.engine.phrasings import Phraser, harmless, make_phraser
from minivlm.engine.questions import Draft, Maker
from minivlm.engine.talk import say
from minivlm.engine.wording import PRIVATE, Scene, World, at, sentence, summary
from minivlm.evaluation.english import article
from minivlm.evaluation.scene import things_of
from minivlm.metrics import style_ok

QA = tuple[str, str]  # a question and its answer

# kinds of questions with their weights in the draw: for conversations, and for reasoning
SIMPLE: dict[Maker, int] = {
    ask.exist: 12, ask.attribute("color"): 7, ask.attribute("kind"): 7,
    ask.attribute("size"): 8, ask.count: 12, ask.position: 7, ask.relation: 10,
    ask.negation: 2, ask.compare_number: 1, ask.compare_size: 2, ask.same: 1,
    ask.larger_of: 3, ask.assumed: 6, scenes.assumed_fact: 2, scenes.strange: 9,
    scenes.what_strange: 8, scenes.why_strange: 2, scenes.belongs: 12, scenes.day_night: 2,
    scenes.setting: 2, scenes.fact: 6, scenes.happening: 1,
}
DEEP: dict[Maker, int] = {
    ask.next_to: 4, ask.without: 2, ask.one_more: 2, ask.odd_one_out: 3,
    ask.compare_number: 2, ask.compare_size: 2, ask.same: 2, ask.relation: 2,
    ask.nearer: 3, scenes.strange: 2, scenes.what_strange: 2, scenes.activity: 2,
    scenes.hear: 2, scenes.left_without: 3, scenes.story: 3, scenes.fact: 3,
}
TALK = ("greeting", "thanks", "thanks", "bye", "who", "able", "offer", "offer", "offer")
# Most people ask for no style. A model learns answers in one word last. The loss is a mean
# over tokens, and an answer in one word has only two tokens.
STYLES = ("", "", "", "", "word", "word", "sentence")
FOLLOWED = 0.12  # share of the questions that are followed by one about "it"


# --- one question ---


def scene_of(record: dict, hidden: bool = False) -> Scene:
    """What questions about a picture may use.

    Args:
        hidden: whether barely visible objects count.

    Raises:
        ValueError: if an object's box is damaged.
    """
    things = [t for t in things_of(record) if hidden or not t.hidden]
    return Scene(things, record.get("place", ""), record.get("time", ""))


def attempt(make: Maker, scene: Scene, rng: Random, world: World) -> Draft | None:
    """Try several times to make a question of one kind: another object may allow it."""
    for _ in range(ask.TRIES):
        draft = make(scene, rng, world)
        if draft:
            return draft
    return None


def choose(
    makers: dict[Maker, int], scene: Scene, rng: Random, world: World
) -> Draft | None:
    """Draw a kind by its weight and make a question of it; None if no kind is possible."""
    left = dict(makers)
    while left:  # a kind that failed is not drawn again
        make = rng.choices(list(left), list(left.values()))[0]
        draft = attempt(make, scene, rng, world)
        if draft:
            return draft
        del left[make]
    return None


def topic(draft: Draft) -> str:
    """What a question is about; "is there a ring" and "is there no ring" are one topic."""
    kind = "exist" if draft.kind == "negation" else draft.kind
    return f"{kind} {sorted(draft.words.items())}"


def in_style(style: str, draft: Draft) -> tuple[str, str]:
    """The style, and the answer in it; the style becomes "" where no answer can have it."""
    if style == "word" and draft.word:
        return style, draft.word
    if style == "sentence" and style_ok(draft.sentence, style):
        return style, draft.sentence
    return "", draft.answer  # some answers take several sentences


def worded(draft: Draft, phrase_question: Phraser, style: str = "") -> str:
    """Put a question into words."""
    return phrase_question(draft.phrasing or draft.kind, draft.words, style)


# --- dialogues ---


def special(rng: Random, phrase_question: Phraser) -> QA:
    """A question that no picture answers, an unsafe request, or one that seems unsafe."""
    kind = rng.choice(("unknowable", "unsafe", "harmless"))
    if kind == "harmless":
        return harmless(rng)
    draft = say(kind, rng)
    return worded(draft, phrase_question), draft.full


def overview(scene: Scene, rng: Random, phrase_question: Phraser) -> QA:
    """A list of what is there, or a summary."""
    if rng.random() < 0.5:
        return phrase_question("list", {}), "\n".join(f"- {t.name}" for t in scene.things)
    return phrase_question("sentence", {}), summary(scene.things)


def conversation(
    scene: Scene, rng: Random, world: World, phrase_question: Phraser
) -> list[QA]:
    """One to three questions on different topics, with answers, in random order.

    A picture with few objects may allow fewer questions. One question in eight is
    followed by one that refers back to it. Some conversations contain more:

        1 in 7    a list or a summary
        1 in 5    a question that no picture answers, a request that must be refused, or a
                  request that only sounds unsafe
        1 in 4    talk, if the data set knows facts
    """
    blocks: list[list[QA]] = []
    first: list[list[QA]] = []
    last: list[list[QA]] = []
    if rng.random() < 0.15:
        blocks.append([overview(scene, rng, phrase_question)])
    if rng.random() < 0.2:
        blocks.append([special(rng, phrase_question)])
    if world.facts and rng.random() < 0.25:
        draft = say(rng.choice(TALK), rng)
        place = {"greeting": first, "thanks": last, "bye": last}.get(draft.kind, blocks)
        # people also say thanks before they ask, and greet late
        if rng.random() < 0.5:
            place = blocks
        talk = (worded(draft, phrase_question), draft.full)
        place.append([talk])
    n_questions = rng.choice((1, 2, 2, 3))
    topics = set()
    for _ in range(10):  # a picture with few objects may not have enough topics
        if sum(map(len, blocks)) >= n_questions:
            break
        draft = choose(SIMPLE, scene, rng, world)
        if not draft or topic(draft) in topics:
            continue
        topics.add(topic(draft))
        style, answer = in_style(rng.choice(STYLES), draft)
        blocks.append([(worded(draft, phrase_question, style), answer)])
        if rng.random() < FOLLOWED:
            more = scenes.follow_up(draft, scene, rng, world)
            if more:
                blocks[-1].append((worded(more, phrase_question), more.answer))
    # lists and refusals, which are made first, must not always stand first
    rng.shuffle(blocks)
    return [qa for block in first + blocks + last for qa in block]


def description(record: dict, world: World) -> str:
    """Describe a picture from its annotation, the barely visible objects included."""
    scene = scene_of(record, hidden=True)
    sentences = []
    if scene.place in world.places:
        sentences.append(f"The picture shows {world.places[scene.place]['is']}.")
        sentences.append(f"It is {scene.time}.")
    for t in scene.things[:10]:  # a longer answer would not pass the checks
        phrase = f"{t.size} {t.name}".strip()
        sentences.append(f"There is {article(phrase)} {at(t.place)}.")
    for t in scenes.oddities(scene):
        sentences.append(sentence(t.unusual))
    return " ".join(sentences)


def write(kind: str, record: dict, rng: Random, world: World) -> str:
    """Write a dialogue about a picture, in the grammar that `checks.parse` reads.

    If the picture is marked as private, the answer is a refusal.

    Args:
        kind: conversation, detail or reasoning.
        record: of the picture. Its objects have names and boxes; colors and sizes may be
            unknown.
        world: what pictures of this data set can show, and what is usual there.

    Raises:
        ValueError: if no visible object is known, if no question has exactly one answer, or
            if an object's box is damaged.
    """
    visible = scene_of(record)
    if not visible.things:
        raise ValueError("no visible object is known")
    is_private = record.get("border") == "private"
    if kind == "detail":
        return PRIVATE if is_private else description(record, world)
    phrase_question = make_phraser(rng)
    if is_private:
        dialogue = [(phrase_question(rng.choice(("list", "sentence")), {}), PRIVATE)]
    elif kind == "conversation":
        dialogue = conversation(visible, rng, world, phrase_question)
    else:
        draft = choose(DEEP, scene_of(record, hidden=True), rng, world)
        dialogue = [(worded(draft, phrase_question), draft.answer)] if draft else []
    if not dialogue:
        raise ValueError("nothing can be asked that has one answer")
    return "".join(f"Question:\n{q}\n===\nAnswer:\n{a}\n===\n" for q, a in dialogue)
