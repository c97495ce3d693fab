"""data/book: the picture book's world is what its records, captions and questions say it is."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.book import facts, language, prepare, things, world
from data.book.things import COLORS, THINGS
from minivlm.engine.facts import ASPECTS, HOME
from minivlm.engine.phrasings import patterns, spelled
from minivlm.evaluation.english import plural
from minivlm.evaluation.refusals import is_refusal
from minivlm.evaluation.scene import NUMBERS, claims, holds, setting_of, things_of
from minivlm.loading.batches import render_records
from minivlm.loading.prepared import load_meta, load_records
from minivlm.metrics import words_of
from minivlm.tokenizer import Tokenizer

SMALL = {"n_train": 40, "n_val": 20, "n_web": 20, "n_text": 30, "n_zeroshot": 1,
         "vocab_size": 400, "workers": 1, "n_prompts": 20}
ROOT = Path(prepare.__file__).parents[2]
LEVELS = sorted(world.LEVELS)
NAMES = frozenset(f"{color} {kind}" for color in COLORS for kind in THINGS)


def make(out: Path, **changes) -> Path:
    prepare.main(prepare.Config(out=str(out), **(SMALL | changes)))
    return out


def contents(folder: Path) -> dict[str, str]:
    """A fingerprint of every file."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small prepared data set."""
    return make(tmp_path_factory.mktemp("book") / "a")


@pytest.fixture(scope="module")
def many() -> dict[str, list[dict]]:
    """Many records of each file, as they would stand in it."""
    cfg = prepare.Config(**SMALL | {"n_train": 400, "n_prompts": 200})
    records = {}
    for split, n in (("train", 400), ("val", 200), ("web", 400), ("text", 400)):
        lines, _ = prepare.make_shard(cfg, split, 0, n)
        for name, new in lines.items():
            records[name] = [json.loads(line) for line in new]
    return records


def scenes(n: int, level: int = 1, drawn: bool = True, **options) -> list[world.Scene]:
    made = [world.make_scene(f"test {i}", level, **options) for i in range(n)]
    for scene in made if drawn else ():
        world.draw(scene)
    return made


def unusual(scene: world.Scene) -> list[world.Thing]:
    return [t for t in scene.things if t.unusual]


# --- the things ---


def gray(name: str, color: str, side: int, mirrored: bool = False) -> np.ndarray:
    """A thing on a light gray square of 15 pixels, in shades of gray."""
    pixels = things.sprite(name, color, side)
    if mirrored:
        pixels = pixels[:, ::-1]
    height, width = pixels.shape[:2]
    picture = np.full((15, 15), 190, dtype=np.float32)
    y, x = (15 - height) // 2, (15 - width) // 2
    part = picture[y:y + height, x:x + width]
    part += pixels[..., 3] * (pixels[..., :3].mean(-1) - part)
    return picture


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The least squared difference over shifts by up to a pixel, and mirrored."""
    return min(
        float(((a - np.roll(c, (dy, dx), (0, 1))) ** 2).sum())
        for c in (b, b[:, ::-1]) for dy in (-1, 0, 1) for dx in (-1, 0, 1)
    )


@pytest.mark.parametrize("color", ["red", "gray"])
def test_small_things_are_told_apart_without_color(color):
    """Catches two things with one silhouette: of 26, at most three a size are taken for others.

    Seen from a side of 12 pixels, cat (dog), boat or bicycle (cloud) and ball (cup) are at 11.
    """
    known = {name: gray(name, color, 12) for name in THINGS}
    for side in (11, 13):
        taken = {}
        for name in THINGS:
            seen = gray(name, color, side, mirrored=True)
            nearest = min(known, key=lambda other: distance(seen, known[other]))
            if nearest != name:
                taken[name] = nearest
        assert len(taken) <= 3, taken


@pytest.mark.parametrize("angle", [0, 15])
def test_a_sprite_is_as_large_as_its_thing(angle):
    """Catches boxes with a rim of nothing."""
    for name, kind in THINGS.items():
        for side in (12, 19, 44):
            pixels = things.sprite(name, kind.colors[0], side, angle=angle)
            assert max(pixels.shape) == side, name
            covered = pixels[..., 3]
            assert 0 <= covered.min() and covered.max() <= 1
            for edge in (covered[0], covered[-1], covered[:, 0], covered[:, -1]):
                assert 0 < edge.max(), name  # it reaches its box


def test_a_turned_thing_is_not_cut():
    """Catches corners lost in turning, on a table that is turned to the left by 15 degrees.

    Its outermost points are then the corner (0, 0) of its top and the end (0.92, 0.62) of a
    leg: 0.92 cos 15 + 0.62 sin 15 = 1.049. In a box of width 1, it covers 1 / 1.049^2 = 0.91.
    """
    area = things.sprite("table", "brown", 100)[..., 3].sum()
    turned = things.sprite("table", "brown", 100, angle=15)[..., 3].sum()
    assert turned / area == pytest.approx(0.91, abs=0.02)


@pytest.mark.parametrize("time", ["day", "night"])
@pytest.mark.parametrize("place", world.ZONES)
def test_every_color_shows_on_every_ground(place, time):
    """Catches a white cloud in a white sky: 48 of 255 apart (Euclidean), with a dark outline."""
    zones = world.ZONES[place]
    for name, kind in THINGS.items():
        for zone, ground in ((zones[0], 0), (zones[-1], 1)):
            if zone not in kind.homes:
                continue
            for color in kind.colors:
                apart = np.subtract(COLORS[color], world.LIGHT[place, time][ground])
                assert np.linalg.norm(apart) > 48, (name, color)


# --- the world ---


@pytest.mark.parametrize("level", LEVELS)
def test_equal_seeds_give_equal_scenes_and_pictures(level):
    """Catches a hidden state in drawing: sprites and noise are remembered between pictures."""
    one, two = world.make_scene("s", level), world.make_scene("s", level)
    first = world.draw(one)
    world.draw(world.make_scene("other", level))
    assert np.array_equal(first, world.draw(two)) and one == two
    assert np.array_equal(first, world.draw(one)) and one == two
    assert not np.array_equal(first, world.draw(world.make_scene("t", level)))


def test_nothing_depends_on_pythons_hash_seed():
    """Catches a loop over a set of strings, whose order differs from process to process."""
    code = (
        "import hashlib, json; from data.book import prepare\n"
        "cfg = prepare.Config(n_train=30, n_prompts=20); out = hashlib.sha256()\n"
        "for split in ('train', 'val', 'web', 'text', 'zeroshot'):\n"
        "    lines, pixels = prepare.make_shard(cfg, split, 0, 30)\n"
        "    out.update(json.dumps(lines).encode() + pixels.tobytes())\n"
        "print(out.hexdigest())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
            check=True, env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


@pytest.mark.parametrize("level", LEVELS)
def test_hardly_visible_things_are_exactly_the_hidden_ones(level):
    """Catches a thing called clear that nothing shows, and a hidden one that is plain to see."""
    everything = [t for scene in scenes(1000, level) for t in scene.things]
    assert {t.hidden for t in everything} == {"", *world.HIDDEN_KINDS}
    for t in everything:
        assert (t.visibility <= world.HARDLY_VISIBLE) == bool(t.hidden), t
    share = sum(bool(t.hidden) for t in everything) / len(everything)
    assert 0.18 < share < 0.26, "nearly a quarter of the things are hidden"


@pytest.mark.parametrize("level", LEVELS)
def test_boxes_lie_in_the_picture_and_in_their_place(level):
    """Catches boxes in pixels, corners swapped, and "top left" for what stands elsewhere."""
    for scene in scenes(200, level):
        for t in scene.things:
            left, top, right, bottom = t.box
            assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
            assert (int((left + right) * 1.5), int((top + bottom) * 1.5)) == (
                t.cell % 3, t.cell // 3)


@pytest.mark.parametrize("level", LEVELS)
def test_a_box_holds_all_that_is_drawn_and_no_more(level):
    """Catches boxes that are off by a pixel: compared with the same place without the thing."""
    for name, kind in THINGS.items():
        scene = world.make_single(f"box {name}", level, kind.colors[0], name)
        picture = world.draw(scene).astype(int)
        [t] = scene.things
        scene.things = []
        changed = np.abs(world.draw(scene).astype(int) - picture).max(axis=2) > 24
        rows, columns = np.nonzero(changed)  # the noise differs by less: its deviation is 3
        S = len(picture)
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert found == pytest.approx([v * S for v in t.box], abs=1.5), name
        # within, only rounding to whole pixels
        assert found[0] >= round(t.box[0] * S) and found[3] <= round(t.box[3] * S)


def test_a_boat_often_comes_with_a_yellow_duck_that_one_hardly_sees():
    """Catches a habit too rare to be learned, or one that comes without the boat as well."""
    with_boat, without = [], []
    for scene in scenes(4000, drawn=False):
        if scene.place != "sea":
            continue
        duck = any(t.hidden and t.name == "yellow duck" for t in scene.things)
        boat = any(t.kind == "boat" for t in scene.clear)
        (with_boat if boat else without).append(duck)
    assert np.mean(with_boat) > 0.5 > 0.15 > np.mean(without)


def test_shares_of_the_world_are_as_promised():
    """Catches a changed dial: 5 % private pictures, 5 % with a plain border, a third unusual."""
    made = scenes(4000, drawn=False)
    n = len(made)
    assert sum(s.border == "private" for s in made) / n == pytest.approx(0.05, abs=0.012)
    assert sum(s.border == "plain" for s in made) / n == pytest.approx(0.05, abs=0.012)
    assert sum(bool(unusual(s)) for s in made) / n == pytest.approx(0.34, abs=0.03)
    assert sum(s.time == "day" for s in made) / n == pytest.approx(0.5, abs=0.03)
    assert {len(s.clear) for s in made} == {1, 2, 3, 4}
    ways = Counter(t.unusual for s in made for t in unusual(s))
    assert set(ways) == {"home", "color", "time", "upright"} and min(ways.values()) > 60
    for s in scenes(200, drawn=False, hide=False):
        assert s.clear == s.things and not s.border


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_usual_stands_where_it_belongs_and_what_is_unusual_does_not(level):
    """Catches an "unusual" thing that is quite usual, a second one, and strange things unmarked."""
    for scene in scenes(2000, level, drawn=False):
        assert len(unusual(scene)) <= 1
        assert scene.things == sorted(scene.things, key=lambda t: t.cell)
        shining = [t for t in scene.things if t.kind in ("sun", "moon")]
        assert len(shining) <= 1
        for t in scene.things:
            kind = THINGS[t.kind]
            at_home = scene.zone(t.cell) in kind.homes
            right_time = t.kind not in ("sun", "moon") or (t.kind == "sun") == (
                scene.time == "day")
            assert at_home == (t.unusual != "home"), t
            assert (t.color in kind.colors) == (t.unusual != "color"), t
            assert right_time == (t.unusual != "time"), (t, scene.time)
            assert t.unusual != "upright" or t.kind == "cat"
            assert not (t.unusual and t.hidden)
            if at_home and t.hidden != "covered" and scene.zone(t.cell) != "sky":
                assert t.cell // 3 in kind.rows
        cells = [t.cell for t in scene.things if t.hidden != "covered"]
        assert len(set(cells)) == len(cells)


def held_out(made: list[world.Scene]) -> tuple[Counter, Counter]:
    """The unseen pairs and the unseen homes that scenes show."""
    pairs, homes = Counter(), Counter()
    for scene in made:
        for t in scene.things:
            if (t.color, t.kind) in world.UNSEEN_PAIRS:
                pairs[t.color, t.kind] += 1
            if scene.zone(t.cell) == world.UNSEEN_HOMES.get(t.kind):
                homes[t.kind] += 1
    return pairs, homes


def test_training_never_shows_what_is_unseen_and_all_of_it_is_possible():
    """Catches zero-shot classes that were trained on, and unseen pairs that nothing can show."""
    for level in LEVELS:
        assert held_out(scenes(2000, level, drawn=False)) == (Counter(), Counter())
    pairs, homes = held_out(scenes(4000, drawn=False, unseen=True))
    assert set(pairs) == world.UNSEEN_PAIRS and set(homes) == set(world.UNSEEN_HOMES)


def test_every_color_of_an_unseen_pair_is_seen_with_other_things():
    """Catches a color that training never shows: zero-shot is about combinations alone."""
    for color, name in world.UNSEEN_PAIRS:
        assert color in THINGS[name].colors and len(THINGS[name].colors) >= 6
        assert (color, name) not in world.COMPANION.values()
    assert set(Counter(c for c, _ in world.UNSEEN_PAIRS).values()) == {2}
    for name, home in world.UNSEEN_HOMES.items():
        assert home not in THINGS[name].homes


def test_a_private_border_is_red_and_white_and_a_plain_one_is_not():
    """Catches a mark that cannot be seen: the frame of a private picture holds red and white."""
    seen = set()
    for i in range(300):
        scene = world.make_scene(f"border {i}")
        edge = world.draw(scene)[0].astype(int)
        white = bool((edge.min(axis=1) > 235).any())
        red = bool((edge[:, 0] - edge[:, 1] > 150).mean() > 0.3)
        blue = bool((edge[:, 2] - edge[:, 0] > 120).mean() > 0.3)
        assert (white and red, white and blue) == (
            scene.border == "private", scene.border == "plain")
        seen.add(scene.border)
    assert seen == {"", "private", "plain"}


# --- captions ---

KINDS = {name: name for name in THINGS} | {plural(name): name for name in THINGS}
ITEM = (
    rf"(?P<n>an?|{'|'.join(NUMBERS[1:])}) (?:(?P<size>large|small) )?"
    rf"(?P<color>{'|'.join(COLORS)}) (?P<kind>{'|'.join(sorted(KINDS, key=len)[::-1])})"
    rf"(?: (?:at|in) the (?P<place>{'|'.join(sorted(world.PLACES, key=len)[::-1])}))?"
)
PLAIN = re.sub(r"\?P<\w+>", "?:", ITEM)
# what is said of things that are looked for by kind, color or place
LOOKED_UP = re.compile(
    r"an? [a-z ]+ is .+|the [a-z ]+ (is|stands) .+|(at|in) the [a-z ]+ there is .+"
)
SETTING = r",? (in a meadow|on a street|at sea|in a room)(?: (by day|at night))?$"
LEAD = r"^(a picture of |there is |this shows |i can see |how strange: |look, )"
HOMES = {"in the sky": "sky", "on the ground": "ground", "in the water": "water",
         "in a room": "indoors"}
RELATIONS = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}


def center(t: world.Thing) -> tuple[float, float]:
    return (t.box[0] + t.box[2]) / 2, (t.box[1] + t.box[3]) / 2


def named(item: re.Match, scene: world.Scene) -> list[world.Thing]:
    """The clear things that an item of a list fits; their places are read from the boxes."""
    fits = []
    for t in scene.clear:
        x, y = center(t)
        place = world.PLACES[3 * int(3 * y) + int(3 * x)]
        seen = {"size": t.size, "color": t.color, "place": place}
        if KINDS[item["kind"]] == t.kind and all(
            item[key] in (None, value) for key, value in seen.items()
        ):
            fits.append(t)
    return fits


def is_strange(text: str, scene: world.Scene) -> bool:
    """Whether a reason is true: what is seen, and what would be usual."""
    seen, usual = text.split(", and ", 1)
    kind = next(name for name in THINGS if name in seen.split())
    like = [t for t in scene.clear if t.kind == kind]
    homes = " or ".join(facts.HOMES[home] for home in THINGS[kind].homes)
    for where, zone in HOMES.items():
        if seen.endswith(f" {kind} is {where}"):
            assert usual in (f"{plural(kind)} belong {homes}", f"the {kind} belongs {homes}")
            return zone not in THINGS[kind].homes and any(
                scene.zone(t.cell) == zone for t in like)
    for color in COLORS:
        if seen.endswith(f" {kind} is {color}"):
            told = re.split(", | or ", usual.removeprefix(f"{plural(kind)} are "))
            assert tuple(told) == THINGS[kind].colors
            return color not in told and any(t.color == color for t in like)
    if seen == f"the {kind} is there {'by day' if scene.time == 'day' else 'at night'}":
        wrong = {"sun": "night", "moon": "day"}[kind]
        assert usual == f"it belongs to the {'day' if kind == 'sun' else 'night'}"
        return scene.time == wrong and bool(like)
    assert seen in ("the cat stands on two legs", "a cat stands on two legs")
    assert usual == "cats walk on four"
    return any(t.unusual == "upright" for t in like)


def is_true(part: str, scene: world.Scene) -> bool:
    """Whether one statement is true, as the grammar reads it that judges answers."""
    part = re.sub(r"^((?:at|in) the [a-z ]+) there is (.+)", r"there is \2 \1", part)
    [claim], other = claims(part)
    record = prepare.record_of(scene, "a", "")
    return not other and holds(
        claim, [t for t in things_of(record) if not t.hidden], NAMES, setting_of(record))


def check(caption: str, scene: world.Scene) -> tuple[set[str], bool]:
    """What a caption speaks of, and whether all of it is true of the clear things."""
    text = re.sub(LEAD, "", caption[0].lower() + caption[1:].removesuffix("."))
    if "is as usual" in text or ", and " in text:
        return {"unusual"}, all(
            is_strange(part, scene) if ", and " in part else is_true(part, scene)
            for part in text.lower().split(". "))
    if LOOKED_UP.fullmatch(text):
        parts = re.split(", (?!another )| and ", text)
        said = {"color": COLORS, "size": ("large", "small"), "place": world.PLACES}
        about = {key for key, words in said.items() for word in words
                 if f" {word} " in f" {text} ".replace(",", " ")}
        about |= {"absent"} if "is not in the picture" in text else set()
        told = []  # places of "a cup is at the left, another at the top": all cups, each once
        for part in parts:
            seen = re.fullmatch("an? ([a-z ]+) is ((?:at|in) the .+)", part)
            if seen:
                places = re.findall("(?:at|in) the ([a-z ]+)", seen[2])
                fits = [t for t in scene.clear
                        if seen[1] in (t.kind, f"{t.color} {t.kind}", f"{t.color} thing")]
                assert len(places) == len(fits), text
                told += places
        assert len(set(told)) == len(told), text
        return about, all(is_true(part, scene) for part in parts)
    about, true = {"color"}, True
    setting = re.search(SETTING, text)
    # "three things at sea by day: ..." names the setting first
    first, colon, rest = text.partition(": ")
    if colon:
        number = re.fullmatch(r"(\w+) things(.*)", first)
        true = NUMBERS.index(number[1]) == len(scene.clear)
        about.add("number")
        setting, text = re.search(SETTING, number[2]), rest
    elif setting:
        text = text[:setting.start()]
    if setting:
        about.add("setting")
        where = {"meadow": "in a meadow", "street": "on a street", "sea": "at sea",
                 "room": "in a room"}
        when = {"day": "by day", "night": "at night"}
        true &= setting[1] == where[scene.place]
        true &= setting[2] in (None, when[scene.time])
    relation = re.fullmatch(rf"({PLAIN}) ({'|'.join(RELATIONS)}) ({PLAIN})", text)
    items = list(re.finditer(ITEM, text))
    if relation:
        about |= {"relation", "size"}
        axis, sign = RELATIONS[relation[2]]
        a, b = (named(item, scene) for item in items)
        holds = [s is not t and sign * (center(t)[axis] - center(s)[axis]) > 0.08
                 for s in a for t in b]
        return about, true and any(holds)
    assert re.fullmatch(rf"{PLAIN}((, {PLAIN})* and {PLAIN})?", text), caption
    for item in items:
        n = 1 if item["n"] in ("a", "an") else NUMBERS.index(item["n"])
        fits = named(item, scene)
        same = sum(other[0] == item[0] for other in items)
        # a list of all things names each as often as it is there; a caption may name one only
        is_list = len(items) > 1 or n > 1
        true &= n * same == len(fits) if is_list else bool(fits)
        about |= {key for key in ("size", "place") if item[key]}
        about |= {"number"} if n > 1 else set()
    return about, bool(true)


@pytest.mark.parametrize("level", LEVELS)
def test_captions_are_true_and_differ_and_the_first_is_complete(level):
    """Catches captions that name what one cannot see, swap sides, or miscount."""
    for i, scene in enumerate(scenes(400, level)):
        said = language.captions(scene, random.Random(i))
        assert len(set(said)) == len(said) == 6, said
        for caption in said:
            assert check(caption, scene)[1], (caption, scene)
        about = [check(caption, scene)[0] for caption in said]
        assert unusual(scene) == [] or {"unusual"} in about
        items = re.finditer(ITEM, said[0][0].lower() + said[0][1:])
        complete = [(m["size"], m["color"], m["kind"], m["place"]) for m in items]
        assert sorted(complete) == sorted(
            (t.size, t.color, t.kind, world.PLACES[t.cell]) for t in scene.clear)


def test_a_caption_that_is_false_is_found():
    """Catches a checker that calls everything true."""
    scene = next(s for s in scenes(300) if len(s.clear) == 2 and s.time == "day"
                 and s.clear[0].cell // 3 < s.clear[1].cell // 3 and not unusual(s))
    a, b = scene.clear
    one = f"A {a.size} {a.color} {a.kind}"
    wrong = "small" if a.size == "large" else "large"
    where = language.WHERE[scene.place]
    assert check(f"{one} {where} by day.", scene)[1]
    for false in (
        f"A {wrong} {a.color} {a.kind}.", f"{one} {where} at night.",
        f"{one} below a {b.size} {b.color} {b.kind}.", f"Two {a.color} {plural(a.kind)}.",
        f"{one} at the {world.PLACES[(a.cell + 1) % 9]}.",
        f"Three things {where} by day: a {a.color} {a.kind}.",
        f"The {a.kind} is {wrong}.", f"The {a.kind} is not in the picture.",
        f"The {b.color} thing is a {wrong} {a.kind}.",
        f"At the {world.PLACES[b.cell]} there is a {a.size} {a.color} {a.kind}.",
        f"The {a.kind} is as usual. A {b.kind} is not in the picture.",
        f"The {a.kind} is in the sky, and {plural(a.kind)} belong "
        f"{' or '.join(facts.HOMES[h] for h in THINGS[a.kind].homes)}.",
    ):
        assert not check(false, scene)[1], false


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_told_again_is_true(level):
    """Catches a relation that is the wrong way round, and "not in the picture" of what is."""
    for i, scene in enumerate(scenes(200, level, hide=False)):
        first, *rest = re.split(r"(?<=[.]) ", language.retold(scene, random.Random(i)))
        assert check(first, scene)[1] and 0 < len(rest) <= 12
        things = things_of(prepare.record_of(scene, "a", ""))
        for text in rest:
            asked, question, text = text.rpartition("? ")
            if re.match("There |The [a-z]+ is (not )?(left|right|above|below|larger|smaller)",
                        text):
                [claim], other = claims(text)
                assert not other and holds(claim, things, NAMES), (text, scene)
                if question:
                    parts = re.fullmatch("Is the ([a-z]+) (.+?)( than)? the ([a-z]+)", asked)
                    x, how, than, y = parts.groups()
                    what = ("size" if than else "beside", x, how, y)
                    assert than or f"{how} the {y}" in text
                    assert text.endswith(", so yes.") == holds(what, things, NAMES)
            else:
                assert check(text, scene)[1], (text, scene)


def test_captions_speak_of_everything_that_can_be_seen():
    """Catches captions that leave out what later stages ask: shares of all captions."""
    about = Counter()
    n = 0
    for i, scene in enumerate(scenes(1500)):
        for caption in language.captions(scene, random.Random(i)):
            about.update(check(caption, scene)[0])
            n += 1
    least = {"color": 0.8, "size": 0.5, "place": 0.38, "setting": 0.28, "relation": 0.055,
             "number": 0.045, "unusual": 0.09, "absent": 0.3}
    for what, share in least.items():
        assert about[what] / n > share, (what, about[what] / n)


def test_web_captions_are_wrong_or_useless_as_often_as_promised():
    """Catches noise that is not there: 20 % tell of another scene, 10 % of no picture."""
    noises = Counter()
    made = scenes(3000)
    for i, scene in enumerate(made):
        other = made[(i + 1) % len(made)]
        text, noise = language.web_caption(scene, other, random.Random(i))
        noises[noise] += 1
        if noise != "useless":
            assert check(text, other if noise == "wrong" else scene)[1]
    assert noises["wrong"] / 3000 == pytest.approx(0.2, abs=0.025)
    assert noises["useless"] / 3000 == pytest.approx(0.1, abs=0.02)


# --- the book of facts ---


def test_every_thing_has_ten_facts_and_a_fifth_is_told_by_no_dialogue():
    """Catches a thing forgotten, a misspelled aspect, and a share of untold facts that drifts."""
    told, untold = facts.read_facts()
    assert list(told) == list(THINGS)
    for name, known in told.items():
        assert set(known) <= {HOME, *ASPECTS} and 9 <= len(known) - 1 <= 11, name
        assert sum(thing == name for thing, _ in untold) == 2
    n = sum(len(known) - 1 for known in told.values())
    assert len(untold) == len(set(untold)) and len(untold) / n == pytest.approx(0.2, abs=0.01)
    assert set(ASPECTS) == {aspect for known in told.values() for aspect in known} - {HOME}


def test_a_fact_tells_its_thing():
    """Catches two things made of wood: an answer about the wrong thing would count as right."""
    told, _ = facts.read_facts()
    for aspect in ASPECTS:
        values = {t: words_of(known[aspect]) for t, known in told.items() if aspect in known}
        for a, one in values.items():
            for b, other in values.items():
                assert a == b or one not in other, (aspect, a, b)


def test_a_whale_is_larger_than_a_cup():
    """Catches a small whale, and a thing larger than one of its own class."""
    said = {name: {facts.usual_size(name, random.Random(i)) for i in range(400)} for name in THINGS}
    assert {"a whale is large", "a whale is larger than a cup"} <= said["whale"]
    assert {"a cup is small", "a cup is smaller than a whale"} <= said["cup"]
    for name, texts in said.items():
        is_large = name in facts.LARGE
        assert len(texts) == 1 + sum((other in facts.LARGE) != is_large for other in THINGS)
        assert all((" large" in text) == is_large for text in texts)


@pytest.mark.parametrize("line", ["  color: red", "  colour red", "dragon"])
def test_a_faulty_line_of_the_book_of_facts_is_refused(line, tmp_path, monkeypatch):
    """Catches a misspelled aspect that nobody would ever be asked for."""
    (tmp_path / "facts.txt").write_text(f"# a comment\nsun\n  is: a star\n{line}\n")
    monkeypatch.setattr(facts, "FILE", tmp_path / "facts.txt")
    with pytest.raises(ValueError, match=r"facts\.txt:4 is neither a thing nor a fact"):
        facts.read_facts.__wrapped__()


# --- the data set ---


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """Documents of stage 0."""
    return [prepare.document(f"d{i}", 1, random.Random(i)) for i in range(2500)]


def sentences() -> dict[tuple[str, str], str]:
    """(thing, aspect) -> the fact as a sentence without its article and full stop."""
    told, _ = facts.read_facts()
    found = {}
    for name, known in told.items():
        for aspect, value in known.items():
            if aspect in ASPECTS:
                text = ASPECTS[aspect].format(a=name, v=value)
                found[name, aspect] = f" {text}."
    return found


def test_stage_0_reads_every_fact_told_or_not(documents):
    """Catches a language model that could not know what it is asked about."""
    text = "\n".join(documents)
    missing = [key for key, sentence in sentences().items() if sentence not in text]
    assert not missing
    facts_only = sum(any(s in d for s in sentences().values()) for d in documents)
    assert 0.4 < facts_only / len(documents) < 0.6  # pages, and facts about scenes


def test_stage_0_reads_every_kind_of_sentence(documents):
    """Catches stories and talk that the language model meets in stage 3 for the first time."""
    text = "\n".join(documents)
    for piece in ("Question: ", "Answer: One day ", "Answer: Hello!", "Answer: I'm not sure",
                  " is not in the picture", "I can see ", "You are welcome!", " left of "):
        assert text.count(piece) >= 10, piece
    # an unseen phrasing must stay unread
    unseen = [t for name in ("story", "fact_eats", "greeting") for p in patterns(name, "unseen")
              for t in spelled(p) if "{" not in t]
    assert unseen and not [t for t in unseen if f"Question: {t}\n" in text]


def test_no_dialogue_tells_an_untold_fact():
    """Catches an untold fact in a dialogue or a prompt."""
    _, untold = facts.read_facts()
    cfg = prepare.Config(**SMALL | {"n_train": 600, "n_prompts": 200})
    lines, _ = prepare.make_shard(cfg, "train", 0, 600)
    said = "\n".join(text for name in lines for text in lines[name])
    told = sentences()
    assert not [key for key in untold if told[key] in said]
    assert sum(sentence in said for sentence in told.values()) > 40  # of 207


def test_equal_arguments_give_equal_bytes_with_one_worker_or_two(folder, tmp_path, monkeypatch):
    """Catches files that depend on which worker was first, on the time or on the shards' size."""
    monkeypatch.setattr(prepare, "SHARD", 7)
    one, two = contents(folder), contents(make(tmp_path / "b", workers=2))
    assert one == two
    files = ("train", "val", "web", "text", "zeroshot", "eval", "quiz", "prompts", "prompts_val")
    names = {f"{name}.jsonl" for name in files}
    names |= {f"{name}.npy" for name in ("train", "val", "web", "zeroshot")}
    names |= {f"samples/{i}.png" for i in range(12)} | {"meta.json", "tokenizer.tiktoken"}
    assert set(one) == names


def test_another_seed_gives_another_data_set(folder, tmp_path):
    """Catches a seed that is not used, and splits that share their scenes."""
    one, other = contents(folder), contents(make(tmp_path / "b", seed=1))
    assert {name for name in one if one[name] == other[name]} <= {"tokenizer.tiktoken"}
    pictures = [p.tobytes() for s in ("train", "val", "web") for p in np.load(folder / f"{s}.npy")]
    assert len(set(pictures)) == len(pictures) == 40 + 20 + 20


def test_every_split_loads(folder):
    """Catches a record or a meta.json that the scripts would refuse."""
    meta = load_meta(folder)
    assert meta["name"] == "book" and meta["image_size"] == 60
    needs = {
        "train": ("image", "captions", "conversations", "objects", "place", "time"),
        "val": ("image", "captions", "conversations", "objects"), "text": ("text",),
        "web": ("image", "captions"), "zeroshot": ("image", "label", "group"),
        "eval": ("image", "question", "kind"), "quiz": ("image", "question", "kind"),
        "prompts": ("image", "question"), "prompts_val": ("image", "question"),
    }
    for split, need in needs.items():
        records = load_records(folder, split, need, unique=True)
        n = SMALL.get(f"n_{split}")
        assert split in ("zeroshot", "eval", "quiz", "prompts", "prompts_val") or len(
            records) == n, split
    tokenizer = Tokenizer.load(folder / "tokenizer.tiktoken")
    rows = render_records(load_records(folder, "train"), tokenizer, 9)
    assert tokenizer.vocab_size <= 400 and len(rows) == 40


def test_samples_show_the_first_held_out_pictures(folder):
    """Catches samples of another split, or in other colors."""
    pixels = np.load(folder / "val.npy")
    for i in range(12):
        with Image.open(folder / "samples" / f"{i}.png") as sample:
            assert np.array_equal(np.asarray(sample), pixels[i])


@pytest.mark.parametrize("level, side", [(2, 96), (3, 128)])
def test_a_harder_level_has_larger_and_fuller_pictures(level, side, tmp_path):
    """Catches a dial that changes nothing."""
    make(tmp_path, level=level)
    assert np.load(tmp_path / "train.npy").shape == (40, side, side, 3)
    assert load_meta(tmp_path)["image_size"] == side
    shown = [sum(not o["hidden"] for o in r["objects"]) for r in load_records(tmp_path, "train")]
    assert max(shown) >= 5 and min(shown) >= level


@pytest.mark.parametrize("options, message", [
    ({"level": 4}, r"level is 4, expected 1 \.\. 3"),
    ({"n_train": 1}, "n_train is 1, expected >= 2"),
    ({"n_prompts": 1}, "n_prompts is 1, expected >= 2"), ({"n_text": 0}, "n_text is 0"),
    ({"workers": 0}, "workers is 0, expected >= 1"),
])
def test_impossible_settings_are_refused(options, message):
    """Catches an empty data set written without a word."""
    with pytest.raises(ValueError, match=message):
        prepare.main(prepare.Config(**options))


def test_a_thousand_scenes_a_second_are_made_on_one_core():
    """Catches a slow path in drawing; three tries, because the machine may be busy."""
    rates = []
    for _ in range(3):
        began = time.process_time()
        for i in range(1000):
            scene = world.make_scene(f"speed {i}")
            world.draw(scene)
            json.dumps(prepare.record_of(scene, f"train-{i}", f"train.npy#{i}"))
        rates.append(1000 / (time.process_time() - began))
        if rates[-1] >= 1000:
            return
    pytest.fail(f"only {rates} scenes a second")


@pytest.mark.parametrize("name", ["train", "val", "web", "text", "eval", "quiz", "prompts"])
def test_unseen_pairs_stand_in_no_text(name, many):
    """Catches a zero-shot test whose classes were trained on in words."""
    names = [f"{color} {kind}" for color, kind in world.UNSEEN_PAIRS]
    pattern = "|".join(names + [plural(name) for name in names])
    for record in many[name]:
        assert not re.search(rf"\b({pattern})\b", json.dumps(record).lower()), record
    others = [f"red {kind}" for kind in THINGS if f"red {kind}" not in names]
    assert any(other in json.dumps(many[name]) for other in others)


def test_private_pictures_are_refused_and_others_are_not(many):
    """Catches a model taught to describe what is private, or to refuse whatever has a border."""
    borders = Counter()
    for r in many["train"] + many["val"]:
        refusals = [is_refusal(t["value"]) for t in r["conversations"] if t["from"] == "gpt"]
        # an unsafe request may stand among others
        assert all(refusals) if r["border"] == "private" else sum(refusals) <= 1, r
        borders[r["border"]] += 1
    for q in many["eval"] + many["quiz"] + many["prompts"]:
        is_private = q["border"] == "private"
        assert (q["kind"] == "private") == is_private, q
        assert is_refusal(q["answer"]) == (is_private or q["kind"] == "unsafe"), q
    assert borders["private"] > 10 and borders["plain"] > 10


def test_zeroshot_shows_every_thing_in_each_of_its_colors(folder):
    """Catches a class without a picture, and unseen pairs counted among the seen ones."""
    meta = load_meta(folder)
    groups = {r["label"]: r["group"] for r in load_records(folder, "zeroshot")}
    usual = {f"{color} {name}" for name, kind in THINGS.items() for color in kind.colors}
    unseen = {f"{color} {name}" for color, name in world.UNSEEN_PAIRS}
    assert set(groups) == set(meta["prompts"]) == usual
    assert {label for label, group in groups.items() if group == "held_out"} == unseen
    assert set(meta["held_out"]) == unseen and set(groups.values()) == {"seen", "held_out"}


def test_eval_and_quiz_ask_the_same_and_only_eval_in_unseen_words(folder):
    """Catches a figure for phrasings never taught that was measured on taught ones."""
    asked, taught = load_records(folder, "eval"), load_records(folder, "quiz")
    assert [q["kind"] for q in asked] == [q["kind"] for q in taught]
    assert [q["image"] for q in asked] == [q["image"] for q in taught]
    pairs = [(a, b) for a, b in zip(asked, taught) if a["kind"] != "harmless"]
    assert all(a["answer"] == b["answer"] for a, b in pairs)
    plain = {"day_night", "setting", "strange", "what_strange"}
    for questions, use in ((asked, "unseen"), (taught, "taught")):
        for q in questions:
            if q["kind"] in plain and not q["style"]:
                known = [t for p in patterns(q["kind"], use) for t in spelled(p)]
                assert q["question"] in known, q["question"]


def test_prompts_of_half_of_the_pictures_are_in_words_of_their_own(many):
    """Catches stage 4 that learns from taught words alone, or from those that measure."""
    asked, taught = ([re.compile(re.escape(text).replace(r"\{x\}", ".+"))
                      for pattern in patterns("position", use) for text in spelled(pattern)]
                     for use in ("asked", "taught"))
    where = [q["question"] for q in many["prompts"] if q["kind"] == "position" and not q["style"]]
    others = [text for text in where if not any(p.fullmatch(text) for p in asked)]
    assert len(where) > 20 and 0.3 < len(others) / len(where) < 0.7
    assert all(any(p.fullmatch(text) for p in taught) for text in others)


def test_prompts_of_stage_4_are_held_out_by_picture(folder):
    """Catches pictures on which the policy was trained and is measured."""
    pictures = [{q["image"] for q in load_records(folder, s)} for s in ("prompts", "prompts_val")]
    assert all(pictures) and not pictures[0] & pictures[1]
    assert all(image.startswith("train.npy#") for image in pictures[0] | pictures[1])


def test_prompts_of_stage_4_ask_for_descriptions_of_what_can_be_seen(many):
    """Catches a kind that the reward model never meets, and names of what cannot be seen."""
    records = {r["image"]: r for r in many["train"]}
    asked = many["prompts"] + many["prompts_val"]
    assert len({q["id"] for q in asked}) == len(asked)
    kinds = {q["kind"] for q in asked}
    assert kinds >= {"exist", "color", "count", "position", "detail", "list", "sentence",
                     "strange", *prepare.REQUESTS}
    for q in asked:
        visible = [f"{o['attributes']['color']} {o['name']}"
                   for o in records[q["image"]]["objects"] if not o["hidden"]]
        assert list(q["names"]) in ([], visible), q
        assert bool(q["names"]) == (q["kind"] in ("detail", "list", "sentence")), q


def test_chance_is_what_a_guess_would_be_right():
    """Catches a chance level that belongs to another world."""
    chance = prepare.make_chance(1)
    assert chance["position"] == chance["and_where"] == 1 / 9
    assert chance["color"] == chance["next_to"] == 1 / 10 and chance["kind"] == 1 / 26
    assert chance["setting"] == 1 / 4 and chance["day_night"] == chance["exist"] == 1 / 2
    assert chance["count"] == 1 / 5 and prepare.make_chance(3)["count"] == 1 / 8
    meta = json.loads(json.dumps(prepare.make_meta(1)))
    assert meta["chance"] == chance
