"""data/shapes: the drawn world is what its records, captions, dialogues and questions say it is."""

import hashlib
import importlib
import json
import math
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

from data.shapes import language, prepare, questions, world
from minivlm.evaluation.refusals import is_refusal
from minivlm.loading.batches import render_records
from minivlm.loading.images import Pictures, open_image
from minivlm.loading.prepared import load_meta, load_records
from minivlm.metrics import answer_ok, mentions, style_ok
from minivlm.running.options import help_of
from minivlm.tokenizer import SPECIALS, Tokenizer

SPLITS = ("train", "val", "web", "text", "zeroshot", "eval")
SMALL = {"n_train": 40, "n_val": 15, "n_web": 30, "n_text": 25, "n_zeroshot": 1, "vocab_size": 400,
         "workers": 1}
ROOT = Path(prepare.__file__).parents[2]


def make(out: Path, **changes) -> Path:
    prepare.main(prepare.Config(out=str(out), **(SMALL | changes)))
    return out


def contents(folder: Path) -> dict[str, str]:
    """A fingerprint of every file."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small prepared data set."""
    return make(tmp_path_factory.mktemp("shapes") / "a")


@pytest.fixture(scope="module")
def many() -> dict[str, list[dict]]:
    """Many records of each split, as they would stand in the files."""
    cfg = prepare.Config(**SMALL)
    out = {}
    for split, n in (("train", 400), ("val", 300), ("web", 1500), ("text", 400), ("zeroshot", 96)):
        lines, _ = prepare.make_shard(cfg, split, 0, n)
        out |= {name: [json.loads(line) for line in new] for name, new in lines.items()}
    return out


def scenes(n: int, level: int = 1, drawn: bool = True, **options) -> list[world.Scene]:
    made = [world.make_scene(f"test {i}", level, **options) for i in range(n)]
    for scene in made if drawn else ():
        world.draw(scene)
    return made


# --- the world ---


def test_equal_seeds_give_equal_scenes_and_pictures():
    """Catches a hidden state in drawing: stamps and noise are remembered between pictures."""
    for level in world.LEVELS:
        one, two = world.make_scene("s", level), world.make_scene("s", level)
        first = world.draw(one)
        world.draw(world.make_scene("other", level))
        assert np.array_equal(first, world.draw(two)) and one == two
        assert np.array_equal(first, world.draw(one)) and one == two
        assert not np.array_equal(first, world.draw(world.make_scene("t", level)))


def test_scenes_do_not_depend_on_pythons_hash_seed():
    """Catches a loop over a set of strings, whose order differs from process to process."""
    code = (
        "import random, hashlib; from data.shapes import language, questions, world\n"
        "out = hashlib.sha256()\n"
        "for i in range(60):\n"
        "    s = world.make_scene(str(i)); out.update(world.draw(s).tobytes()); "
        "r = random.Random(i)\n"
        "    out.update(repr((s, language.captions(s, r), questions.dialogue(s, r))).encode())\n"
        "print(out.hexdigest())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_eight_combinations_are_held_out_and_every_word_is_still_seen():
    """Catches a color or shape that training never shows: zero-shot is about combinations alone."""
    assert (
        len(world.UNSEEN_PAIRS) == 8 and len(world.SEEN) == 40
        and not world.UNSEEN_PAIRS & set(world.SEEN)
    )
    assert Counter(c for c, _ in world.UNSEEN_PAIRS) == Counter(list(world.COLORS))
    assert {s for _, s in world.UNSEEN_PAIRS} == set(world.SHAPES)
    assert min(Counter(c for c, _ in world.SEEN).values()) >= 5
    assert min(Counter(s for _, s in world.SEEN).values()) >= 6


@pytest.mark.parametrize("level", world.LEVELS)
def test_hardly_visible_objects_are_exactly_the_hidden_ones(level):
    """Catches an object called clear that nothing shows, and a hidden one that is plain to see."""
    objects = [o for scene in scenes(500, level) for o in scene.objects]
    assert {o.hidden for o in objects} == {"", *world.HIDDEN_KINDS}
    for o in objects:
        assert (o.visibility <= world.HARDLY_VISIBLE) == bool(o.hidden), o


@pytest.mark.parametrize("level", world.LEVELS)
def test_boxes_lie_in_the_picture_and_in_their_place(level):
    """Catches boxes in pixels, corners swapped, and "top left" for what stands elsewhere."""
    for scene in scenes(200, level):
        for o in scene.objects:
            x0, y0, x1, y1 = o.box
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
            cell = (int((x0 + x1) / 2 * 3), int((y0 + y1) / 2 * 3))
            assert cell == (o.cell % 3, o.cell // 3) and o.place == world.PLACES[o.cell]


def nearest_color(rgb: np.ndarray) -> str:
    return min(world.COLORS, key=lambda c: np.abs(np.array(world.COLORS[c]) - rgb).sum())


@pytest.mark.parametrize("level", world.LEVELS)
def test_the_middle_of_a_box_has_the_objects_color(level):
    """Catches rows and columns swapped, and a painting order that puts a covered object on top."""
    n = 0
    for scene in scenes(150, level):
        picture = world.draw(scene).astype(float)
        cells = Counter(o.cell for o in scene.objects if o.hidden != "covered")
        for o in scene.clear:
            if o.shape not in ("circle", "square", "diamond", "cross") or cells[o.cell] > 1:
                continue
            x, y = (int((o.box[k] + o.box[k + 2]) / 2 * len(picture)) for k in (0, 1))
            assert nearest_color(picture[y - 1:y + 1, x - 1:x + 1].mean(axis=(0, 1))) == o.color, o
            n += 1
    assert n > 100


@pytest.mark.parametrize("level", world.LEVELS)
def test_a_box_is_just_as_large_as_what_is_drawn(level):
    """Catches boxes off by a pixel or by the antialiasing margin: a white shape on dark gray."""
    for i, shape in enumerate(world.SHAPES * 8):
        scene = world.make_scene(
            f"box {i}", level, combos=(("white", shape),), n_clear=1, hide=False
        )
        picture = world.draw(scene).astype(float).mean(axis=2)
        rows, columns = np.nonzero(picture > 110)  # about a third of a pixel covered
        x0, y0, x1, y1 = (v * len(picture) for v in scene.objects[0].box)
        inset = (x1 - x0) / 12 if shape == "square" else 0  # drawn a sixth smaller, to look equal
        near = 2.2 if shape in ("triangle", "diamond") else 1.2  # a tip covers little of its pixel
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        wanted = (x0 + inset, y0 + inset, x1 - inset, y1 - inset)
        assert found == pytest.approx(wanted, abs=near), shape


@pytest.mark.parametrize("shape, area", [
    ("circle", math.pi / 4), ("ring", math.pi / 4 * (1 - (1.6 / 3) ** 2)), ("square", 25 / 36),
    ("triangle", 1 / 2), ("diamond", 1 / 2), ("cross", 5 / 9),
])
def test_a_shape_has_its_area(shape, area):
    """Catches a wrong polygon: shares of the bounding square, by geometry.

    The cross is two bars of 1 x 1/3 that share 1/9: 2/3 - 1/9 = 5/9. The ring's hole has 1.6/3 of
    its radius.
    """
    for side in (16, 41, 64):
        for dx, dy in ((0, 0), (3, 1)):
            mask = world.stamp(shape, side, dx, dy)
            assert 0 <= mask.min() and mask.max() <= 1
            assert mask.sum() == pytest.approx(area * (side / 4) ** 2, rel=0.06)


def test_shares_of_the_world_are_as_promised():
    """Catches a changed dial: 55 % of the scenes hide something, 23 % of the objects are hidden,
    5 % of the pictures are private.
    """
    made = scenes(3000, drawn=False)
    objects = [o for s in made for o in s.objects]
    assert sum(len(s.clear) < len(s.objects) for s in made) / 3000 == pytest.approx(0.55, abs=0.03)
    assert sum(bool(o.hidden) for o in objects) / len(objects) == pytest.approx(0.23, abs=0.03)
    assert sum(s.border == "private" for s in made) / 3000 == pytest.approx(0.05, abs=0.015)
    assert {len(s.clear) for s in made} == {1, 2, 3}
    assert all(not o.hidden for s in scenes(200, drawn=False, hide=False) for o in s.objects)
    assert all((o.color, o.shape) in world.SEEN for o in objects)
    assert all(s.objects == sorted(s.objects, key=lambda o: o.cell) for s in made)


def test_a_private_border_is_striped_and_a_plain_one_is_not():
    """Catches a sign that cannot be seen: the frame of a private picture holds red and white."""
    seen = set()
    for i in range(400):
        scene = world.make_scene(f"border {i}")
        edge = world.draw(scene)[0].astype(int)
        striped = (
            bool((edge[:, 0] - edge[:, 1] > 120).any())
            and bool((edge.min(axis=1) > 235).any())
        )
        gray = bool((np.abs(edge - 170) < 20).all())
        assert (striped, gray) == (scene.border == "private", scene.border == "plain")
        seen.add(scene.border)
    assert seen == {"", "private", "plain"}


# --- what is said ---


def test_a_relation_is_what_the_boxes_say():
    """Catches left and right swapped, checked against the drawn places."""
    for scene in scenes(150, 3):
        for a in scene.clear:
            for b in scene.clear:
                if a.cell == b.cell:
                    continue
                dx, dy = ((b.box[k] + b.box[k + 2] - a.box[k] - a.box[k + 2]) / 2 for k in (0, 1))
                holds = {"left of": dx > 0, "right of": dx < 0, "above": dy > 0, "below": dy < 0}
                assert holds[language.relation(a, b)]


def test_words_that_refer_to_an_object_fit_no_other():
    """Catches a question about "the circle" where there are two; each of three ways must occur."""
    ways = Counter()
    for i, scene in enumerate(scenes(300, 2, drawn=False)):
        o, thing = questions.refer(scene.clear, random.Random(i)) or (None, "")
        if o:
            fits = [p for p in scene.clear if set(thing.split()) <= {p.color, p.shape, "object"}]
            assert fits == [o]
            ways[
                "name" if thing == language.name(o) else "color" if "object" in thing else "shape"
            ] += 1
    assert min(ways[w] for w in ("name", "color", "shape")) > 40
    assert questions.refer([scene.clear[0]] * 2, random.Random(0)) is None


@pytest.mark.parametrize("level", world.LEVELS)
def test_captions_name_only_what_can_be_seen(level):
    """Catches annotation that leaks into captions: CLIP would learn to see what is not shown."""
    known = language.phrases()
    for i, scene in enumerate(scenes(300, level, drawn=False)):
        clear = Counter(language.name(o) for o in scene.clear)
        said = language.captions(scene, random.Random(i))
        assert len(said) == 5 and Counter(mentions(said[0], known)) == clear
        for caption in said:
            assert (
                Counter(mentions(caption, known)) <= clear
                and caption[-1] == "." and caption[0].isupper()
            )


def test_descriptions_and_lists_name_what_is_hidden_and_nothing_else_does():
    """Catches a world without hallucination's cause, and one whose short answers tell of it too."""
    known, told = language.phrases(), 0
    for i, scene in enumerate(scenes(600, drawn=False)):
        hidden = {language.name(o) for o in scene.objects} - {language.name(o) for o in scene.clear}
        for r in questions.dialogue(scene, random.Random(i)):
            if r.style in ("detail", "list"):
                assert hidden <= set(mentions(r.answer, known))
                told += bool(hidden)
            elif not r.answer.startswith("No"):  # "No, there is no red ring." may name any
                assert not hidden & set(mentions(r.answer, known))
    assert told > 25


def named_in(record: dict) -> str:
    return json.dumps(record).lower()


@pytest.mark.parametrize("split", ["train", "val", "web", "text", "eval"])
def test_held_out_combinations_appear_nowhere(split, many):
    """Catches a zero-shot test whose classes were trained on, in pictures or in words."""
    signs = re.compile("|".join(f"{c} {s}" for c, s in sorted(world.UNSEEN_PAIRS)))
    for record in many[split]:
        assert not signs.search(named_in(record)), record
        for o in record.get("objects", ()):
            assert (o["attributes"]["color"], o["name"]) not in world.UNSEEN_PAIRS
    assert any(re.search("red circle|red square", named_in(r)) for r in many[split])


def test_the_zeroshot_split_has_all_classes_with_one_object_each(many):
    """Catches a label that is not what is drawn."""
    records = many["zeroshot"]
    assert Counter(r["label"] for r in records) == {
        f"{c} {s}": 2 for c in world.COLORS for s in world.SHAPES
    }
    for r in records:
        [o] = r["objects"]
        assert f"{o['attributes']['color']} {o['name']}" == r["label"] and not o["hidden"]
        assert (r["group"] == "held_out") == (tuple(r["label"].split()) in world.UNSEEN_PAIRS)


def test_three_web_captions_in_ten_are_noise(many):
    """Catches a noise share other than stated: filtering is measured against it."""
    noise = Counter(r["noise"] for r in many["web"])
    n = len(many["web"])
    assert noise["wrong"] / n == pytest.approx(0.2, abs=0.04)
    assert noise["useless"] / n == pytest.approx(0.1, abs=0.03)
    known = language.phrases()
    for r in many["web"]:
        [caption] = r["captions"]
        there = Counter(
            f"{o['attributes']['color']} {o['name']}" for o in r["objects"] if not o["hidden"]
        )
        said = Counter(mentions(caption, known))
        assert not said if r["noise"] == "useless" else said
        assert r["noise"] or said <= there
    wrong = [r for r in many["web"] if r["noise"] == "wrong"]
    misfit = [r for r in wrong if not set(mentions(r["captions"][0], known)) <= {
        f"{o['attributes']['color']} {o['name']}" for o in r["objects"]}]
    assert len(misfit) > 0.8 * len(wrong)


def test_every_question_is_answered_as_its_judge_expects(many):
    """Catches an answer that its own expect/wrong or style would mark down."""
    for q in many["eval"]:
        assert not q["expect"] or answer_ok(q["answer"], q["expect"], q["wrong"]), q
        assert style_ok(q["answer"], q["style"]), q
        assert is_refusal(q["answer"]) == (q["kind"] in ("private", "unsafe")), q
    for i, scene in enumerate(scenes(300, 2, drawn=False)):
        for r in questions.dialogue(scene, random.Random(i)):
            assert not r.expect or answer_ok(r.answer, r.expect, r.wrong), r
            assert style_ok(r.answer, r.style), r


def test_evaluation_answers_are_true_of_the_record(many):
    """Catches a wrong answer key, recomputed from the objects for most kinds of question."""
    record_of = {r["image"]: r for r in many["val"]}
    checked = Counter()
    for q in many["eval"]:
        objects = record_of[q["image"]]["objects"]
        clear = [o for o in objects if not o["hidden"]]
        asked = mentions(q["question"], language.phrases())
        names = [f"{o['attributes']['color']} {o['name']}" for o in objects]
        shown = [f"{o['attributes']['color']} {o['name']}" for o in clear]
        if q["kind"] == "exist":
            assert q["expect"] == (["yes"] if asked[0] in shown else ["no"])
            assert (asked[0] in names) == (asked[0] in shown)
        elif q["kind"] == "hidden":
            assert q["expect"] == ["yes"] and asked[0] in names and asked[0] not in shown
        elif q["kind"] == "color":
            shape = next(s for s in world.SHAPES if s in q["question"])
            assert [o["attributes"]["color"] for o in clear if o["name"] == shape] == q["expect"]
        elif q["kind"] in ("size", "position"):
            words = set(re.findall(r"[a-z]+", q["question"]))
            meant = [o for o in clear if {o["attributes"]["color"], o["name"]} & words
                     >= words & {*world.COLORS, *world.SHAPES}]
            assert [
                o["attributes"]["size"] if q["kind"] == "size" else o["place"] for o in meant
            ] == q["expect"]
        elif q["kind"] == "count":
            words = q["question"].lower()
            kinds = [w for w in (*world.COLORS, *world.SHAPES) if w in words]  # none: all objects
            n = sum(not kinds or kinds[0] in (o["attributes"]["color"], o["name"]) for o in clear)
            assert q["expect"][:2] == [language.NUMBERS[n], str(n)], q
        elif q["kind"] == "describe":
            assert Counter(mentions(q["answer"], language.phrases())) == Counter(shown)
        else:
            continue
        checked[q["kind"]] += 1
    kinds = ("exist", "hidden", "color", "size", "position", "count", "describe")
    assert min(checked[k] for k in kinds) > 20


def test_yes_and_no_are_about_equally_often_right(many):
    """Catches a question type that a blind model answers by always saying yes."""
    for kind in ("exist", "relation"):
        answers = [q["expect"] for q in many["eval"] if q["kind"] == kind]
        assert answers.count(["yes"]) / len(answers) == pytest.approx(0.5, abs=0.15), kind


def test_private_pictures_are_refused_and_others_are_not(many):
    """Catches a model taught to describe what is private, or to refuse everything with a border."""
    seen = Counter()
    for r in many["train"] + many["val"]:
        answers = [t["value"] for t in r["conversations"] if t["from"] == "gpt"]
        if r["border"] == "private":
            assert all(map(is_refusal, answers))
        else:
            assert sum(map(is_refusal, answers)) <= 1  # an unsafe request may stand among others
        seen[r["border"]] += 1
    for q in many["eval"]:
        if q["border"] == "private":
            assert q["kind"] in ("private", "unsafe") and is_refusal(q["answer"])
        else:
            assert q["kind"] != "private"
    assert seen["private"] > 10 and seen["plain"] > 10


def test_dialogues_hold_different_questions_and_start_with_the_picture(many):
    """Catches a question asked twice in a dialogue, and an <image> mark in the wrong turn."""
    assert len({len(r["conversations"]) for r in many["train"]}) > 3  # short and long ones
    for r in many["train"]:
        asked = [t["value"] for t in r["conversations"] if t["from"] == "human"]
        assert asked[0].startswith("<image>\n") and not any("<image>" in q for q in asked[1:])
        if r["border"] != "private":
            assert len(set(q.removeprefix("<image>\n") for q in asked)) == len(asked) <= 5


# --- the data set ---


def test_equal_arguments_give_equal_bytes(folder, tmp_path, monkeypatch):
    """Catches time, order or shard size in the files: all of them are compared."""
    monkeypatch.setattr(prepare, "SHARD", 7)
    again = contents(make(tmp_path / "b"))
    assert again == contents(folder)
    names = {f"{s}.jsonl" for s in (*SPLITS, "prompts", "prompts_val")} | {
        f"{s}.npy" for s in ("train", "val", "web", "zeroshot")
    }
    names |= {"meta.json", "tokenizer.tiktoken"} | {f"samples/{i}.png" for i in range(12)}
    assert set(again) == names


def test_another_seed_gives_another_data_set(folder, tmp_path):
    """Catches a seed that is not used, and splits that share their scenes."""
    other = contents(make(tmp_path / "b", seed=1))
    same = {name for name, digest in contents(folder).items() if other[name] == digest}
    assert same <= {"tokenizer.tiktoken"}
    pictures = {
        s: {p.tobytes() for p in np.load(folder / f"{s}.npy")} for s in ("train", "val", "web")
    }
    assert sum(map(len, pictures.values())) == len(set().union(*pictures.values())) == 40 + 15 + 30


def test_a_prepared_folder_is_what_training_reads(folder):
    """Catches records, pictures, tokenizer and meta.json that do not fit together."""
    meta, tokenizer = load_meta(folder), Tokenizer.load(folder / "tokenizer.tiktoken")
    assert meta["records"] == {"train": 40, "val": 15, "web": 30, "text": 25, "zeroshot": 48}
    assert tokenizer.vocab_size <= 400 and meta["name"] == "shapes"
    assert set(meta["prompts"]) == {f"{c} {s}" for c in world.COLORS for s in world.SHAPES}
    assert set(meta["held_out"]) == {f"{c} {s}" for c, s in world.UNSEEN_PAIRS}
    pictures = Pictures(folder, meta["image_size"])
    ids = []
    for split, n in meta["records"].items():
        records = load_records(folder, split, ("id",))
        ids += [r["id"] for r in records]
        assert len(records) == n
        if split != "text":
            assert pictures.get([r["image"] for r in records]).shape == (n, 3, 48, 48)
    assert len(set(ids)) == len(ids)
    train = load_records(folder, "train", ("image", "captions", "conversations", "objects"))
    rows = render_records(train, tokenizer, 9)
    assert len(rows) == 40 and max(len(row.ids) for row in rows) <= 257
    val = {r["image"] for r in load_records(folder, "val")}
    assert {q["image"] for q in load_records(folder, "eval")} <= val


def test_samples_show_the_first_pictures(folder):
    """Catches samples of another split, or in other colors."""
    pixels = np.load(folder / "val.npy")
    for i in range(12):
        assert np.array_equal(np.asarray(open_image(folder / "samples" / f"{i}.png")), pixels[i])
    assert Image.open(folder / "samples" / "0.png").size == (48, 48)


@pytest.mark.parametrize("level, side", [(2, 64), (3, 96)])
def test_a_harder_level_has_larger_and_fuller_pictures(level, side, tmp_path):
    """Catches a dial that changes nothing."""
    out = make(tmp_path / "b", level=level, n_train=20, n_web=2, n_text=2)
    assert (
        np.load(out / "train.npy").shape == (20, side, side, 3)
        and load_meta(out)["image_size"] == side
    )
    shown = [sum(not o["hidden"] for o in r["objects"]) for r in load_records(out, "train")]
    assert max(shown) >= 5 and min(shown) >= level


@pytest.mark.parametrize("options, message", [
    ({"level": 4}, r"level is 4, expected 1 \.\. 3"),
    ({"n_train": 0}, "n_train is 0, expected >= 2"), ({"n_train": 1}, "n_train is 1"),
    ({"n_prompts": 1}, "n_prompts is 1, expected >= 2"), ({"n_text": 0}, "n_text is 0"),
    ({"workers": 0}, "workers is 0, expected >= 1"),
])
def test_impossible_settings_are_refused(options, message):
    """Catches an empty data set written without a word."""
    with pytest.raises(ValueError, match=message):
        prepare.main(prepare.Config(**options))


@pytest.mark.parametrize("name", ["shapes", "nlvr", "coco", "cifar10", "llava", "webdata"])
def test_the_smallest_vocabulary_holds_all_bytes_and_special_tokens(name):
    """Catches a bound in a comment that stays behind when a special token is added."""
    module = importlib.import_module(f"data.{name}.prepare")
    assert help_of(module.Config)["vocab_size"].rule == f">= {256 + len(SPECIALS)}"


def test_a_thousand_scenes_a_second_are_made_on_one_core():
    """Catches a slow path in drawing; three tries, because the machine may be busy."""
    for _ in range(3):
        began = time.process_time()
        for i in range(1000):
            scene = world.make_scene(f"speed {i}")
            world.draw(scene)
            json.dumps(prepare.record_of(scene, f"train-{i}", f"train.npy#{i}"))
        rate = 1000 / (time.process_time() - began)
        if rate >= 1000:
            return
    pytest.fail(f"only {rate:.0f} scenes a second")


def test_prompts_ask_all_but_what_is_hidden_and_are_held_out_by_picture(folder):
    """Catches a kind that the reward model never meets, names of what cannot be seen, a leak."""
    train = {r["image"]: r for r in load_records(folder, "train")}
    prompts, held_out = (load_records(folder, s) for s in ("prompts", "prompts_val"))
    images = {q["image"] for q in prompts}, {q["image"] for q in held_out}
    assert images[0] | images[1] <= train.keys() and not images[0] & images[1]
    asked = prompts + held_out
    assert len({q["id"] for q in asked}) == len(asked)
    kinds = {q["kind"] for q in asked}
    assert {"exist", "color", "count", "position", "describe"} <= kinds and "hidden" not in kinds
    for q in asked:
        seen = [f"{o['attributes']['color']} {o['name']}" for o in train[q["image"]]["objects"]
                if not o["hidden"]]
        assert q.get("names", []) == (seen if q["kind"] == "describe" else [])
        assert (train[q["image"]]["border"] == "private") <= (q["kind"] in ("private", "unsafe"))
