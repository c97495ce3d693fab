"""What a sentence claims and whether it is true, against scenes small enough to see."""

import pytest

from minivlm.evaluation.scene import (
    Setting, Thing, beside, claims, has_scene, holds, named_by, setting_of, things_of,
)

RED = Thing("circle", "red", "large", 0.2, 0.2, 0.10, "top left")
BLUE = Thing("circle", "blue", "small", 0.8, 0.2, 0.02, "top right")
RING = Thing("ring", "red", "small", 0.2, 0.8, 0.02, "bottom left")
THREE = [RED, BLUE, RING]
NAMES = frozenset({"red circle", "blue circle", "red ring", "white cross"})


@pytest.mark.parametrize("phrase, want", [
    ("red circle", [RED]), ("circles", [RED, BLUE]), ("red objects", [RED, RING]),
    ("the small ring", [RING]), ("large ring", []), ("objects", THREE), ("a cross", []),
    ("small things", [BLUE, RING]), ("blue", []),
])
def test_a_phrase_fits_what_it_says(phrase, want):
    """Catches a plural that is lost, a size or color that is not asked for."""
    assert named_by(phrase, THREE) == want


@pytest.mark.parametrize("text, true", [
    ("There is a red circle at the top left.", True),
    ("There is a red circle at the top right.", False),
    ("Yes, there is a ring in the center.", False),
    ("No, there is no cross.", True), ("There is no ring.", False),
    ("There are two circles.", True), ("There is one circle.", False),
    ("There are no white objects.", True), ("There are three objects.", True),
    ("There is a red circle, a blue circle and a red ring.", True),
    ("There is a red circle and a white ring.", False),
    ("There is a red circle and a red circle.", False),
    ("I see a circle, another circle and a ring.", True),
    ("I see a ring and another ring.", False),
    ("There are two circles and a ring.", True), ("There is a ring and two circles.", True),
    ("There are two red circles and a red ring.", False),
    ("There are three circles and a ring.", False),
    ("- red circle\n- blue circle\n- red ring", True), ("- red circle\n- green ring", False),
    ("The ring is red.", True), ("The ring is blue.", False), ("The ring is small.", True),
    ("The circle is red.", False),  # one of them is not
    ("The blue object is a circle.", True), ("The blue object is a ring.", False),
    ("The ring is at the bottom left.", True), ("The ring is at the bottom.", False),
    ("The red circle is left of the blue circle.", True),
    ("The ring is above the red circle.", False), ("The ring is below the blue circle.", True),
    ("The red circle is not right of the blue circle, so no.", True),
    ("The red circle is not left of the blue circle.", False),
    ("The ring is not right of the circles.", True),
    ("The ring is not left of the circles.", False),
    ("The cross is not above the ring.", False),
    ("The red circle is larger than the ring.", True),
    ("The ring is larger than the blue circle.", False),
    ("There are more circles than rings.", True), ("There are fewer circles than rings.", False),
    ("There are as many rings as crosses.", False),
    ("There are as many rings as blue things.", True),
    ("The ring and the red circle have the same color.", True),
    ("The ring and the red circle have different colors.", False),
    ("The ring and the red circle have different shapes.", True),
    ("The only blue object is the blue circle.", True), ("The only red object is the ring.", False),
    ("The cross is white.", False),  # there is none
    ("There are two circles in the picture.", True), ("There are no rings here.", False),
    ("The ring and the red circle have different kinds.", True),
    ("The ring and the red circle have the same kind.", False),
    ("The red circle is larger.", True), ("The ring is larger.", False),
    ("The cross is larger.", False), ("The ring is smaller.", True),
    ("The red circle is smaller.", False),
    ("The red circle is nearer to the blue circle.", True),          # .6; the ring: .85
    ("The ring is nearer to the blue circle.", False),
    ("The cross is nearer to the ring.", False),
    ("Without the ring, a red circle and a blue circle would be left.", True),
    ("Without the ring, two circles would be left.", True),
    ("Without the ring, a red circle would be left.", False),
    ("Without the ring, a blue circle and a ring would be left.", False),
    ("Without the ring, nothing would be left.", False),
    ("Without the circles, a ring would be left.", True),
    ("Because a ring is at the bottom left.", True), ("Because a ring is at the top.", False),
    ("A circle is at the top left, another at the top right.", True),
    ("A circle is at the top left, another at the top left.", False),
    ("A circle is at the top left, another in the center.", False),
    ("A cross is not in the picture, so no.", True), ("The ring is not in the picture.", False),
    ("Yes, I am sure: the ring is red.", True), ("Yes, I am sure: there are no rings.", False),
    ("The ring is at the bottom left. The ring is below the red circle, so no.", True),
    ("The ring is at the bottom left. The ring is above the red circle, so yes.", False),
    ("There is a ring in the picture, so yes.", True),
    ("There are three shapes in total.", True), ("There is no red shape.", False),
    ("The ring is to the left of the blue circle.", True),
    ("The ring is in the bottom left corner.", True), ("- a red circle\n- red ring.", True),
])
def test_a_claim_is_true_or_not(text, true):
    """Catches a predicate turned round, a subject that is not there, a claim about some for all."""
    read, other = claims(text)
    assert read and not other
    assert all(holds(c, THREE, NAMES) for c in read) == true


@pytest.mark.parametrize("text", [
    "There is a fence.", "The sky is blue.", "There are no people.", "The background is dark.",
    "The ring is shiny.", "There is a red circle on the wall.", "The answer is three.",
    "There are two red circles and a tree.", "There is nothing unusual.",
    "There is only a red circle.", "There are more circles than trees.",
])
def test_what_nobody_has_listed_is_neither_true_nor_false(text):
    """Catches ordinary sentences of a language model called false, or let through as true."""
    read, other = claims(text)
    assert other or [holds(c, THREE, NAMES) for c in read] == [None]


FISH = Thing("fish", "red", "small", 0.5, 0.1, 0.02, "top",
             unusual="a fish is in the sky, and fish belong in the water")
AT_SEA = Setting("sea", "day", frozenset({"sea", "room"}))


@pytest.mark.parametrize("text, true", [
    ("It is day.", True), ("It is night.", False), ("It is day at sea.", True),
    ("It is day in a room.", False), ("It is night at sea.", False),
    ("The picture shows the sea.", True), ("This is a room.", False),
    ("The picture shows a beach.", None), ("This is a fish.", True), ("This is a ring.", False),
    ("A fish is in the sky, and fish belong in the water.", True),
    ("Yes, a fish is in the sky, and fish belong in the water.", True),
    ("A ring is in the sky, and rings belong in the water.", False),
    ("The fish is as usual.", False), ("No, everything is as usual.", False),
    ("Nothing is unusual: everything is as usual.", False),
])
def test_where_and_when_a_picture_is_decides_claims_about_it(text, true):
    """Catches night called day, another place, an oddity that nothing has, and one denied.

    Where nobody has recorded place and time, such claims stay undecided.
    """
    [claim] = claims(text)[0]
    assert holds(claim, [FISH], NAMES, AT_SEA) is true
    if claim[0] != "shows":
        assert holds(claim, [FISH], NAMES) is None


@pytest.mark.parametrize("text, read, unread", [
    ("The ring is red, the circle is small, so no.", ["is", "is"], []),
    ("A ring is at the top, another at the left, there are two rings.", ["several", "count"], []),
    ("A cross is not in the picture, there are no crosses.", ["none", "count"], []),
    ("The ring is a gift, a gift makes people glad.", ["kind"], ["a gift makes people glad"]),
    ("There are two circles, a ring and a cross.", ["there"], []),
    ("It is nice, the ring is red.", [], ["it is nice, the ring is red"]),
])
def test_a_sentence_may_make_several_claims(text, read, unread):
    """Catches a list cut in two, and claims lost because the sentence says something else too."""
    found, other = claims(text)
    assert ([claim[0] for claim in found], other) == (read, unread)


def test_nothing_unusual_is_as_usual():
    """Catches "everything is as usual" called false of a scene in which it is so."""
    assert holds(("usual",), THREE, NAMES, AT_SEA) is True
    assert holds(("as usual", "ring"), THREE, NAMES, AT_SEA) is True
    record = {"place": "sea", "time": "day"}
    assert setting_of(record, ["sea", "room"]) == AT_SEA and setting_of({}) == Setting()


def test_a_size_in_words_and_an_area_do_not_say_what_is_larger():
    """Catches two things compared in size although the size of one is not recorded."""
    dog = Thing("dog", "red", "", 0.8, 0.8, 0.9, "bottom right")
    assert holds(("larger", "red circle", "larger"), [RED, dog], NAMES) is None
    crowd = Thing("dog", "red", "small", 0.8, 0.8, 0.9, "bottom right", crowd=True)
    assert holds(("without", "red circle", "a dog"), [RED, crowd], NAMES) is None


def test_things_without_color_or_size_are_not_judged_by_them():
    """Catches a photograph's cat and dog called alike, because neither has a color."""
    cat = Thing("cat", "", "", 0.2, 0.2, 0.1, "top left")
    pets = [cat, Thing("dog", "", "", 0.8, 0.2, 0.1, "top right", crowd=True)]
    for text in ("The cat and the dog have the same color.", "The cat is brown.",
                 "There is one dog."):
        assert [holds(c, pets, frozenset({"cat", "dog"})) for c in claims(text)[0]] == [None]
    assert holds(claims("There are no dogs.")[0][0], pets) is False


@pytest.mark.parametrize("text", [
    "The red circle is larger than the dog.", "The dog is smaller than the red circle.",
    "The dog is large.", "There is a large dog.", "There is one small dog.",
    "The red circle is left of the small dog.", "The red circle and the dog have the same size.",
])
def test_a_size_that_nobody_has_recorded_decides_nothing(text):
    """Catches the word "large" compared with the area of a box, and an unknown size called wrong.
    """
    dog = Thing("dog", "red", "", 0.8, 0.8, 0.9, "bottom right")
    [claim] = claims(text)[0]
    assert holds(claim, [RED, dog], NAMES) is None
    assert holds(("is", "dog", "red"), [RED, dog], NAMES) is True    # its color is known
    assert holds(("count", "no", "large ring"), [RED, dog], NAMES) is True


def test_sentences_that_are_not_understood_are_given_back():
    """Catches a claim read into words that make none."""
    assert claims("It looks cheerful. Yes. The ring seems to float over water!") == (
        [], ["it looks cheerful", "the ring seems to float over water"])


def test_a_record_gives_its_things_with_places_by_their_boxes():
    """Catches rows and columns mixed up, and an own word for the place that is not heeded."""
    record = {"objects": [
        {"name": "Dog", "box": [0.0, 0.7, 0.2, 0.9]},
        {"name": "ring", "attributes": {"color": "red", "size": "small"}, "place": "middle tile",
         "box": [0.4, 0.4, 0.6, 0.6], "hidden": "tiny"},
    ]}
    dog, ring = things_of(record)
    assert (dog.name, dog.place, dog.hidden) == ("dog", "bottom left", False)
    assert dog.area == pytest.approx(0.04)
    assert (ring.name, ring.place, ring.hidden) == ("red ring", "middle tile", True)
    big = {"name": "Ring", "attributes": {"color": "Red", "size": "LARGE"}, "place": "Sky",
           "box": [0, 0, 1, 1]}
    [thing] = things_of({"objects": [big]})                          # as claims are read
    assert (thing.name, thing.size, thing.place) == ("red ring", "large", "sky")
    assert has_scene(record) and not has_scene({}) and not has_scene({"objects": []})
    assert not has_scene({"objects": [big, {"name": "dog"}]})
    for wrong in ({"name": "dog"}, {"name": "dog", "box": [0, 0, 70, 90]}, {"box": [0, 0, 1, 1]}):
        with pytest.raises(ValueError, match="an object without a name, or without a box"):
            things_of({"objects": [wrong]})


def test_a_relation_needs_a_visible_distance():
    """Catches things in one row called above each other."""
    near = Thing("ring", "", "", 0.5, 0.25, 0.1, "top")
    assert beside(RED, near, "left of") and not beside(RED, near, "above")
