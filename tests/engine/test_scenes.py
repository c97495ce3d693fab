"""What the engine asks about a whole picture, about what is usual, and about "it".

Scenes and facts are made by hand, and so are the answers.
"""

import random
from collections import Counter
from dataclasses import replace

import pytest

from minivlm.engine import questions as ask
from minivlm.engine import scenes, talk, template
from minivlm.engine.checks import parse
from minivlm.engine.questions import Draft
from minivlm.engine.quiz import lines_of, questions_of
from minivlm.engine.wording import REFUSE, UNKNOWN, Scene, World, world_of
from minivlm.evaluation.scene import Thing
from minivlm.metrics import answer_ok
from test_instruct import book_scene, scene, worlds

ODD = "the fish is in the sky, and fish belong in the water"
FISH = Thing("fish", "red", "small", 0.5, 0.1, 0.04, "top", unusual=ODD, zone="in the sky")
BOAT = Thing("boat", "blue", "large", 0.5, 0.9, 0.09, "bottom", zone="in the water")
DUCK = Thing("duck", "white", "small", 0.1, 0.9, 0.04, "bottom left", zone="in the water")
SEA = Scene([FISH, BOAT, DUCK], "sea", "day")
CALM = Scene([BOAT, DUCK], "sea", "night")
CALMLY = "The boat is as usual. The duck is as usual."
META = {
    "phrases": {n: n for n in ("red fish", "blue boat", "white duck", "yellow sun", "gray cat")},
    "places": {"sea": {"is": "the sea", "at": "at sea", "do": "swim and sail"},
               "room": {"is": "a room", "at": "in a room", "do": "drink tea"}},
    "facts": {
        "fish": {"home": "in the water", "eats": "water plants", "says": "nothing at all"},
        "boat": {"home": "in the water", "says": "toot", "can": "carry a crew", "made": "wood"},
        "duck": {"home": "in the water", "eats": "grass", "says": "quack", "can": "swim"},
        "cat": {"home": "on land", "eats": "fish", "made": "wood and wool"},
        "sun": {"home": "in the sky", "is": "a star"},
    },
    "untold": [["duck", "eats"], ["boat", "can"]],
}
WORLD = world_of(META)
WORLD_WITHOUT_FACTS = World(names=("red car", "blue boat"))
UNTOLD = World(WORLD.names, {"duck": {"eats": "grass"}, "boat": {"can": "carry a crew"}},
               WORLD.places)


def drafts(make, shown: Scene = SEA, n: int = 400, **more) -> list[Draft]:
    """The different questions of a maker about a scene."""
    found = {}
    for i in range(n):
        draft = make(shown, random.Random(i), WORLD, **more)
        if draft:
            found[draft.answer, *sorted(draft.words.items()), draft.phrasing] = draft
    return list(found.values())


def answers(make, shown: Scene = SEA, **more) -> set[str]:
    """The answers of a maker to its questions about a scene."""
    return {d.answer for d in drafts(make, shown, **more)}


@pytest.mark.parametrize("make, shown, full", [
    (scenes.strange, SEA, {
        "The fish is in the sky, and fish belong in the water, so yes."}),
    (scenes.strange, Scene([DUCK, FISH, BOAT], "sea"), {
        "The duck is as usual. The fish is in the sky, and fish belong in the water, so yes."}),
    (scenes.strange, CALM, {f"{CALMLY} Everything is as usual, so no."}),
    (scenes.what_strange, SEA, {"The fish is in the sky, and fish belong in the water."}),
    (scenes.what_strange, CALM, {f"{CALMLY} Nothing is unusual: everything is as usual."}),
    (scenes.why_strange, SEA, {"The fish is in the sky, and fish belong in the water."}),
    (scenes.why_strange, CALM, set()),
    (scenes.belongs, Scene([FISH]), {
        f"{seen}The {x} is in the sky. Fish belong in the water, so no." for x, seen in (
            ("fish", ""), ("red fish", ""), ("small red fish", ""),
            ("red thing", "The red thing is a fish. "),
            ("red object", "The red object is a fish. "),
            ("thing at the top", "The thing at the top is a fish. "))}),
    (scenes.day_night, SEA, {"It is day."}), (scenes.day_night, CALM, {"It is night."}),
    (scenes.setting, SEA, {"The picture shows the sea."}),
    (scenes.activity, SEA, {"This is the sea. One could swim and sail here."}),
    (scenes.hear, SEA, {"One could hear the boat say toot and the duck say quack."}),
    (scenes.hear, Scene([DUCK, DUCK]), {"One could hear the ducks say quack."}),
    (scenes.hear, Scene([FISH]), set()),
    (scenes.happening, SEA, {
        "It is day at sea. There is a red fish, a blue boat and a white duck."}),
    (scenes.happening, Scene([DUCK, DUCK], "sea", "night"),
     {"It is night at sea. There are two white ducks."}),
    (scenes.left_without, CALM, {
        f"Without the {x}, {left} would be left." for left, names in (
            ("a white duck", ("blue boat", "boat", "blue object", "blue thing", "large blue boat",
                              "thing at the bottom")),
            ("a blue boat", ("white duck", "duck", "white object", "white thing",
                             "small white duck", "thing at the bottom left")))
        for x in names}),
    (scenes.left_without, Scene([FISH], "sea"), {
        f"Without the {x}, nothing would be left." for x in (
            "red fish", "fish", "red object", "red thing", "small red fish", "thing at the top")}),
    (scenes.story, Scene([FISH], "sea", "night"), {
        "One night a red fish was at sea. Everybody wondered, because fish belong in the water. "
        "Then it went home."}),
    (scenes.story, CALM, {
        "One night a blue boat was at sea. It met a white duck. Then they both went home.",
        "One night a white duck was at sea. It met a blue boat. It was glad because it could swim. "
        "Then they both went home."}),
    (scenes.story, Scene([DUCK, DUCK], "sea", "day"), {
        "One day a white duck was at sea. It met another white duck. It was glad because it could "
        "swim. Then they both went home."}),
])
def test_a_whole_picture_worked_by_hand(make, shown, full):
    """Catches a wrong oddity, time, place, sound or remainder, "fishes", and "a another"."""
    assert answers(make, shown) == full


def test_what_belongs_where_it_is_is_said_to():
    """Catches a no, and a phrase that does not say what the thing is taken as if it did."""
    found = answers(scenes.belongs, Scene([BOAT]), n=3000)
    assert {text.rpartition(". ")[2] for text in found} == {"Boats belong in the water, so yes."}
    assert {"The boat is in the water. Boats belong in the water, so yes.",
            "The blue thing is a boat. The blue thing is in the water. Boats belong in the water, "
            "so yes."} <= found


def test_a_sun_is_the_sun():
    """Catches "suns belong", and a sun at night asked whether it belongs there: who can tell?"""
    sun = Thing("sun", "yellow", "large", 0.5, 0.1, 0.09, "top")
    assert "The thing at the top is a sun. The sun belongs in the sky, so yes." in answers(
        scenes.belongs, Scene([sun]))
    late = "the sun is there at night, and it belongs to the day"
    assert answers(scenes.belongs, Scene([replace(sun, unusual=late)])) == set()
    assert "The yellow thing is a sun. The sun is a star." in answers(scenes.fact, Scene([sun]))


def test_where_a_data_set_knows_no_place_and_no_facts_nothing_is_asked_of_them():
    """Catches a question about the sea of any picture, and an oddity nobody knows."""
    bare = World(names=WORLD.names)
    plain = Scene([BOAT, DUCK])
    for make in (scenes.strange, scenes.what_strange, scenes.why_strange, scenes.belongs,
                 scenes.day_night, scenes.setting, scenes.activity, scenes.hear, scenes.happening,
                 scenes.story, scenes.fact, scenes.assumed_fact):
        assert not [i for i in range(50) if make(plain, random.Random(i), bare)]


def test_the_answer_of_an_oddity_says_which():
    """Catches a bare "yes" taken for right, a word asked for, and an oddity of another picture."""
    [strange] = drafts(scenes.strange)
    assert strange.word == "" and strange.about is FISH
    for said, is_right in (
        ("Yes, a fish is in the sky.", True), ("The fish is in the sky!", True), ("Yes.", False),
        ("No, everything is as usual.", False), ("Yes, a boat is in the sky.", False),
    ):
        assert answer_ok(said, strange.expect, strange.wrong) == is_right, said
    why = drafts(scenes.why_strange)[0]
    assert answer_ok("Because fish belong in the water.", why.expect, why.wrong)
    assert not answer_ok("A fish is in the sky.", why.expect, why.wrong)
    assert {d.words["x"] for d in drafts(scenes.why_strange)} == {
        "red fish", "fish", "red object", "red thing", "small red fish", "thing at the top"}


def test_what_is_seen_is_said_before_what_follows():
    """Catches "two ducks", which must be counted first, and an answer that only concludes."""
    ducks = Scene([DUCK, replace(DUCK, place="bottom right"), FISH])
    there = "A duck is at the bottom left"
    two = next(d for d in drafts(ask.count, ducks) if d.full == "There are two ducks.")
    assert two.answer == f"{there}, another at the bottom right. There are two ducks."
    assert two.sentence == f"{there}, another at the bottom right, there are two ducks."
    assert "A cat is not in the picture. There are no cats." in answers(ask.count, ducks, n=1000)
    assert {f"{there}, so yes.", "A cat is not in the picture, so no."} <= answers(ask.exist, ducks)
    assert {f"{there}.", "A cat is not in the picture."} <= answers(ask.negation, ducks)
    boat, duck = "The boat is at the bottom.", "The duck is at the bottom left."
    assert {f"{boat} {duck} The boat is not left of the duck, so no.",
            f"{boat} {duck} The boat is right of the duck, so yes."} <= (
        answers(ask.relation, CALM, n=1000))
    assert "The boat is large. The duck is small. The boat is larger than the duck, so yes." in (
        answers(ask.compare_size, CALM))
    usual = "A duck is as usual. The fish is in the sky, and fish belong in the water, so yes."
    assert answers(scenes.strange, ducks) == {usual}
    # what the question says itself is not said again
    assert "The thing at the top is small." in answers(ask.attribute("size"))
    # a question about a relation names no place, so the answer tells both places
    for d in drafts(ask.relation, CALM, n=2000):
        assert d.seen.count(".") == 2 and "thing at" not in d.words["x"] + d.words["y"]


# --- two and three objects ---


def test_which_is_larger_and_which_is_nearer():
    """Catches the smaller one, the farther one, two that are equally large, and near ties."""
    assert answers(ask.larger_of, Scene([FISH, DUCK])) == set()      # both are small
    for d in drafts(ask.larger_of, Scene([BOAT, DUCK])):
        boat = [x for x in d.words.values() if "duck" not in x and "white" not in x and (
            "left" not in x)]
        assert d.full == f"The {boat[0]} is larger." and d.about is BOAT
    # from the boat: the duck .4, the fish .8; from the duck: the boat .4, the fish .89
    three = drafts(ask.nearer, n=2000)
    for d in three:
        near = {"fish": "boat", "boat": "duck", "duck": "boat"}
        of = {x: next(t.kind for t in SEA.things if x in scenes.names_of(t, SEA.things))
              for x in d.words.values()}
        x, y, z = (d.words[slot] for slot in "xyz")
        right = y if of[y] == near[of[x]] else z
        assert of[x] != "fish" and d.full == f"The {right} is nearer to the {x}."
    assert len(three) > 50                                           # from the fish: .8 and .89


def test_a_place_in_another_place_is_not_asked_about_with_it():
    """Catches "the top" taken for right where "the top left" is said."""
    near = Thing("cup", "red", "large", 0.5, 0.1, 0.09, "top")
    far = Thing("cup", "red", "small", 0.1, 0.1, 0.04, "top left")
    for d in drafts(ask.larger_of, Scene([near, far])):
        assert {d.words["x"], d.words["y"]} != {"thing at the top", "thing at the top left"}
    d = next(d for d in drafts(ask.larger_of, Scene([near, DUCK]))
             if d.full == "The thing at the top is larger.")
    assert not answer_ok("The thing at the top left is larger.", d.expect, d.wrong)


def test_the_one_that_is_unlike_the_others():
    """Catches an object called the only one of its color, where another one differs, too."""
    cups = [Thing("cup", "red", "small", x, 0.5, 0.04, p)
            for x, p in ((0.1, "left"), (0.5, "center"))]
    blue = Thing("cup", "blue", "small", 0.9, 0.5, 0.04, "right")
    assert answers(ask.odd_one_out, Scene([*cups, blue])) == {
        "The thing at the left is red. The thing in the center is red. "
        "The thing at the right is blue. There are two red objects. "
        "The only blue object is the thing at the right."}
    ball = Thing("ball", "red", "small", 0.9, 0.5, 0.04, "right")
    big = replace(cups[0], size="large")
    assert answers(ask.odd_one_out, Scene([*cups, ball])) != set()
    assert answers(ask.odd_one_out, Scene([big, cups[1], ball])) == set()


def test_a_relation_that_habits_tell_is_not_asked():
    """Catches "is the sun above the boat?": a sun is above a boat in every picture."""
    sun = Thing("sun", "yellow", "large", 0.5, 0.1, 0.09, "top")
    assert answers(ask.relation, Scene([sun, BOAT])) == set()
    beside = Scene([sun, Thing("boat", "blue", "large", 0.9, 0.15, 0.09, "top right")])
    assert {d.words["r"] for d in drafts(ask.relation, beside)} == {"left of", "right of"}
    above = Scene([FISH, BOAT])                                      # of one home
    assert {d.words["r"] for d in drafts(ask.relation, above)} == {"above", "below"}


# --- what is not there, and what is not told ---


def test_what_is_absent_is_never_answered_as_if_it_were_there():
    """Catches "the cat is gray" where there is no cat."""
    for make in (ask.assumed, scenes.assumed_fact):
        found = drafts(make)
        assert {d.words["x"] for d in found} == {"cat", "sun"}
        for d in found:
            assert d.full == f"The {d.words['x']} is not in the picture."
            assert answer_ok(d.full, d.expect, d.wrong)
            assert answer_ok(f"There is no {d.words['x']}.", d.expect, d.wrong)
            assert not answer_ok(f"The {d.words['x']} is gray.", d.expect, d.wrong)
    assert {d.phrasing for d in drafts(ask.assumed)} == {"color", "position", "size"}
    assert {d.phrasing for d in drafts(scenes.assumed_fact)} == {
        "belongs", "why_strange", "left_without"}
    known = worlds(1)[0]
    for i in range(200):
        shown = template.scene_of(book_scene(i))
        for make in {**template.SIMPLE, **template.DEEP}:
            d = make(shown, random.Random(i), known)
            if d and d.kind not in ("exist", "negation", "count", "compare_number", "one_more"):
                for slot in {"x", "y", "z"} & set(d.words):
                    there = [t for t in shown.things
                             if d.words[slot] in scenes.names_of(t, shown.things)]
                    is_absent = f"The {d.words[slot]} is not in the picture." == d.full
                    assert bool(there) != is_absent, d


def test_facts_that_are_not_told_stand_in_no_dialogue():
    """Catches a dialogue that tells what only stage 0 reads, and a question about it elsewhere."""
    told = answers(scenes.fact, n=1000)
    assert "The white thing is a duck. A duck can swim." in told
    assert "The thing at the bottom is a boat. A boat is made of wood." in told
    assert not [s for s in told if "grass" in s or "crew" in s]
    asked = drafts(scenes.fact, n=1000, untold=UNTOLD)
    assert {d.full for d in asked} == {
        "A duck eats grass.", "A boat can carry a crew."}
    assert {d.phrasing for d in asked} == {"fact_eats", "fact_can"}
    record = {"id": "a", "image": "x", "place": "sea", "time": "day", "objects": [
        {"name": t.kind, "attributes": {"color": t.color, "size": t.size}, "place": t.place,
         "box": [max(0, t.x - 0.1), max(0, t.y - 0.1), min(1, t.x + 0.1), min(1, t.y + 0.1)]}
        for t in SEA.things]}
    for i in range(400):
        for kind in ("conversation", "detail", "reasoning"):
            text = template.write(kind, record, random.Random(i), WORLD)
            assert "eats grass" not in text and "crew" not in text
    kinds = [q.draft.kind for q in questions_of(record, random.Random(0), WORLD, untold=UNTOLD)]
    assert kinds.count("untold") == 1
    assert "untold" not in [q.draft.kind for q in questions_of(record, random.Random(0), WORLD)]


def test_a_fact_that_holds_another_is_right():
    """Catches "wood" counted against "wood and wool", and a cat's fish against a fish's food."""
    cat = Scene([Thing("cat", "gray", "small", 0.5, 0.5, 0.04, "center")])
    made = next(d for d in drafts(scenes.fact, cat) if d.phrasing == "fact_made")
    assert answer_ok("Wood and wool.", made.expect, made.wrong)
    assert not answer_ok("Wood.", made.expect, made.wrong)
    eats = next(d for d in drafts(scenes.fact, Scene([FISH])) if d.phrasing == "fact_eats")
    assert answer_ok("A fish eats water plants.", eats.expect, eats.wrong)
    eats = next(d for d in drafts(scenes.fact, cat) if d.phrasing == "fact_eats")
    assert not answer_ok("It eats fish and water plants.", eats.expect, eats.wrong)


# --- "it" ---


def follow_ups(draft: Draft, shown: Scene = SEA) -> dict[str, Draft]:
    """Every follow-up of a question, by its kind."""
    found = [scenes.follow_up(draft, shown, random.Random(i), WORLD) for i in range(200)]
    return {d.kind: d for d in found if d}


def test_questions_about_it_worked_by_hand():
    """Catches another object's color, what was said already, and "not sure" taken for "sure"."""
    there = "A blue boat is at the bottom, so yes."
    found = follow_ups(next(d for d in drafts(ask.exist) if d.answer == there))
    assert {kind: d.answer for kind, d in found.items()} == {
        "and_size": "The blue boat is large.",
        "sure": "Yes, I am sure: a blue boat is at the bottom.",
        "why": "Because a blue boat is at the bottom."}
    assert not answer_ok("I'm not sure.", found["sure"].expect, found["sure"].wrong)
    gone = "A gray cat is not in the picture, so no."
    no = next(d for d in drafts(ask.exist) if d.answer == gone)
    assert set(follow_ups(no)) == {"sure", "why"}
    color = next(d for d in drafts(ask.attribute("color")) if d.words == {"x": "duck"})
    found = follow_ups(color)
    assert {kind: d.full for kind, d in found.items()} == {
        "and_size": "The duck is small.", "and_where": "The duck is at the bottom left.",
        "sure": "Yes, I am sure: the duck is white."}
    assert answer_ok("It is at the bottom left.", found["and_where"].expect, ())
    assert not answer_ok("It is at the bottom.", found["and_where"].expect,
                         found["and_where"].wrong)
    smaller = next(d for d in drafts(ask.larger_of, CALM) if d.words == {"x": "duck", "y": "boat"})
    assert follow_ups(smaller)["and_color"].full == "The boat is blue."
    strange = follow_ups(drafts(scenes.strange)[0])
    assert {kind: d.full for kind, d in strange.items()} == {
        "and_color": "The fish is red.", "and_size": "The fish is small.",
        "and_where": "The fish is at the top."}
    assert not follow_ups(drafts(scenes.day_night)[0])


def test_a_follow_up_comes_with_what_was_said_before():
    """Catches "and what color is it?" asked of nothing."""
    known, n = worlds(1)[0], 0
    for i in range(100):
        record = book_scene(i)
        asked = questions_of(record, random.Random(i), known)
        for q, line in zip(asked, lines_of(record, asked, random.Random(i), "taught"), strict=True):
            is_follow_up = line["kind"] in ("and_color", "and_size", "and_where", "sure", "why")
            assert is_follow_up == ("before" in line)
            if is_follow_up:
                n += 1
                question, answer = line["before"]
                assert (question["from"], answer["from"]) == ("human", "gpt")
                assert answer["value"] == q.before.answer and question["value"] != line["question"]
    assert n > 50


# --- talk ---


@pytest.mark.parametrize("kind, good, bad", [
    ("greeting", "Hello! What would you like to know about the picture?", "Goodbye!"),
    ("thanks", "You are welcome!", "Hello!"), ("bye", "Goodbye!", "You are welcome!"),
    ("who", "I am a small chatbot that looks at pictures. Ask me what is in the picture, where "
     "things are and what is unusual.", "I'm sorry, I can't help with that."),
    ("able", "You can ask me what is in the picture, where things are and what is unusual.",
     "There is a dog."),
    ("offer", "That is not in my book. But you can ask me what is in the picture, where things are "
     "and what is unusual.", "I'm sorry, I can't help with that."),
    ("unknowable", UNKNOWN, "It is red."), ("unsafe", REFUSE, None),
])
def test_talk_worked_by_hand(kind, good, bad):
    """Catches a refusal for an offer, and one kind of talk taken for another."""
    draft = talk.say(kind, random.Random(0))
    assert draft.full == good
    if bad:
        assert answer_ok(good, draft.expect, draft.wrong)
        assert not answer_ok(bad, draft.expect, draft.wrong)


def test_greetings_mostly_come_first_and_thanks_last_but_not_always():
    """Catches greetings that are always first, thanks that are always last, and talk in a data set
    that knows no facts."""
    hello, thanks = (talk.ANSWERS[kind][0] for kind in ("greeting", "thanks"))
    first = Counter()
    last = Counter()
    for i in range(1500):
        record = book_scene(i % 100)
        text = template.write("conversation", record, random.Random(i), worlds(1)[0])
        said = [answer for _, answer in parse("conversation", text)]
        for answer in {hello, thanks} & set(said):
            first[answer, said[0] == answer] += 1
            last[answer, said[-1] == answer] += 1
        text = template.write("conversation", scene(i % 100), random.Random(i), WORLD_WITHOUT_FACTS)
        assert hello not in text and thanks not in text
    assert first[hello, True] > first[hello, False] > 5
    assert last[thanks, True] > last[thanks, False] > 10


# --- yes and no ---


@pytest.mark.parametrize("make, least", [
    (ask.exist, 0.42), (ask.relation, 0.4), (ask.compare_size, 0.4), (scenes.strange, 0.35),
    (scenes.belongs, 0.35),
])
def test_yes_and_no_are_about_equally_frequent(make, least):
    """Catches a kind that a chatbot gets right with one word, whatever it sees."""
    known = worlds(1)[0]
    yes = []
    for i in range(400):
        shown = template.scene_of(book_scene(i))
        draft = template.attempt(make, shown, random.Random(f"{i} balance"), known)
        if draft:
            yes.append("no" in draft.wrong)
    assert len(yes) > 60 and least <= sum(yes) / len(yes) <= 1 - least, sum(yes) / len(yes)
