"""data/nlvr/prepare.py on a tiny corpus drawn here, in the layout that NLVR is published in."""

import io
import json
import os
import random
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data.nlvr import prepare
from data.nlvr.language import NUMBERS
from minivlm.conversation import count_images
from minivlm.loading.batches import render_records
from minivlm.loading.images import Pictures
from minivlm.loading.prepared import load_meta, load_records
from minivlm.tokenizer import Tokenizer

RGB = {"yellow": (255, 255, 0), "black": (0, 0, 0), "blue": (0, 153, 255)}
WRITTEN = {"yellow": "Yellow", "black": "Black", "blue": "#0099ff"}  # as the corpus spells them
ORDERS = ("012", "021", "102", "120", "201", "210")  # boxes from left to right in pictures 0 .. 5


def make_boxes(rng: random.Random) -> list[list[dict]]:
    """Three boxes of one to four objects that do not overlap: one in a cell of a 3 x 3 grid."""
    boxes = []
    for _ in range(3):
        boxes.append([
            {
                "x_loc": 34 * (cell % 3), "y_loc": 34 * (cell // 3),
                "size": rng.choice((10, 20, 30)),
                "type": rng.choice(("circle", "square", "triangle")),
                "color": WRITTEN[rng.choice(list(RGB))],
            }
            for cell in rng.sample(range(9), rng.randint(1, 4))
        ])
    return boxes


def draw(boxes: list[list[dict]], order: str) -> Image.Image:
    """Draw a scene as the corpus does: 400 x 100, light boxes, darker gaps, opaque RGBA."""
    color_of = {v: RGB[k] for k, v in WRITTEN.items()}
    image = Image.new("RGBA", (400, 100), (128, 128, 128, 255))
    pen = ImageDraw.Draw(image)
    for left, b in zip((0, 150, 300), order):
        pen.rectangle((left, 0, left + 99, 99), fill=(211, 211, 211))
        for o in boxes[int(b)]:
            x, y, s = left + o["x_loc"], o["y_loc"], o["size"] - 1
            if o["type"] == "circle":
                pen.ellipse((x, y, x + s, y + s), fill=color_of[o["color"]])
            elif o["type"] == "square":
                pen.rectangle((x, y, x + s, y + s), fill=color_of[o["color"]])
            else:
                pen.polygon(
                    ((x, y + s), (x + s, y + s), (x + s // 2, y)), fill=color_of[o["color"]]
                )
    return image


def add_scene(
    root: Path, split: str, number: int, boxes: list[list[dict]], directory: str = "0", **changes
) -> None:
    """Append a line to a split and save its six pictures; `changes` overwrite the line's fields."""
    label = ("true", "false")[number % 2]
    line = {
        "sentence": f"There is box  number {number}.", "label": label,
        "identifier": f"{number}-0", "directory": directory,
        "structured_rep": boxes, "evals": {},
    } | changes
    folder = root / split / "images" / directory
    folder.mkdir(parents=True, exist_ok=True)
    with (root / split / f"{split}.json").open("a") as lines:
        lines.write(json.dumps(line) + "\n")
    for k, order in enumerate(ORDERS):
        draw(boxes, order).save(folder / f"{split}-{number}-0-{k}.png")


def make_corpus(root: Path) -> Path:
    """Ten scenes to learn from and ten to measure on, two directories each."""
    rng = random.Random(1)
    for number in range(10):
        add_scene(root, "test", number, make_boxes(rng), directory=str(number // 5))
        add_scene(root, "dev", 100 + number, make_boxes(rng), directory=str(number // 5))
    return root


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A corpus that a test may spoil."""
    return make_corpus(tmp_path / "nlvr")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A data folder to read only."""
    root = tmp_path_factory.mktemp("prepared")
    run(make_corpus(root / "nlvr"), root / "out")
    return root / "out"


def run(source: Path, out: Path, **options) -> dict[str, float]:
    return prepare.main(prepare.Config(source=str(source), out=str(out), **options))


def center_colors(records: list[dict], pixels: np.ndarray) -> list[bool]:
    """For each object: is the pixel in the middle of its box nearest to its color?"""
    palette = np.array([*RGB.values(), (211, 211, 211), (128, 128, 128)], dtype=int)
    hits = []
    for r in records:
        picture = pixels[int(r["image"].split("#")[1])].astype(int)
        for o in r["objects"]:
            x1, y1, x2, y2 = (v * len(picture) for v in o["box"])
            near = np.abs(picture[int((y1 + y2) / 2), int((x1 + x2) / 2)] - palette).sum(1).argmin()
            hits.append(near < 3 and list(RGB)[near] == o["attributes"]["color"])
    return hits


def test_objects_lie_where_the_picture_shows_them_in_all_six_orders(prepared):
    """Catches: boxes permuted the wrong way round, tiles swapped, x and y exchanged, scale off."""
    for split in ("train", "val"):
        records, pixels = load_records(prepared, split), np.load(prepared / f"{split}.npy")
        assert len(records) == len(pixels) == 60 and {r["id"][-1] for r in records} == set("012345")
        assert np.mean(center_colors(records, pixels)) > 0.98
        for o in (o for r in records for o in r["objects"]):
            x1, y1, x2, y2 = o["box"]
            tile = (
                ("top" if y1 + y2 < 1 else "bottom")
                + (" left" if x1 + x2 < 1 else " right") + " box"
            )
            assert o["place"] == tile and 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1
    assert pixels.shape[1:] == (64, 64, 3) and (pixels[:, 32:, 32:] == prepare.GAP).all()


def test_the_first_order_of_every_scene_comes_first(prepared):
    """Catches: an evaluation of the first n pictures that sees a few scenes six times."""
    assert {r["id"][-1] for r in load_records(prepared, "val")[:10]} == {"0"}
    assert all(re.match(r"dev-\d+-0-0-", q["id"]) for q in load_records(prepared, "eval"))


def test_what_cannot_be_used_is_counted_by_reason(corpus, tmp_path):
    """Catches: a scene or picture dropped in silence, or one bad line that ends the run."""
    boxes = make_boxes(random.Random(7))
    add_scene(
        corpus, "test", 20, boxes, structured_rep=[[boxes[0][0] | {"color": "Pink"}], *boxes[1:]]
    )
    add_scene(
        corpus, "test", 21, boxes, structured_rep=[[boxes[0][0] | {"type": "star"}], *boxes[1:]]
    )
    add_scene(corpus, "test", 22, boxes, label="maybe")
    add_scene(corpus, "test", 23, boxes, sentence=" . ")
    add_scene(corpus, "test", 24, boxes, identifier="../24")
    add_scene(corpus, "test", 25, boxes, structured_rep=boxes[:2])
    with (corpus / "test" / "test.json").open("a") as lines:
        lines.write('{"sentence": "There is\n[]\n')
        lines.write("\n \n")                                         # blank lines are none
    path = corpus / "test" / "test.json"
    path.write_text("\ufeff" + path.read_text(), encoding="utf-8")   # as Windows' editors save it
    images = corpus / "test" / "images" / "0"
    (images / "test-0-0-0.png").unlink()
    (images / "test-0-0-1.png").write_bytes(b"no picture")
    Image.new("RGB", (100, 100)).save(images / "test-0-0-2.png")
    counts = run(corpus, tmp_path / "out")
    assert load_meta(tmp_path / "out")["skipped"] == {
        "empty sentence": 1, "label neither true nor false": 1, "malformed line": 4,
        "missing picture": 1, "picture not 400 x 100": 1, "unknown shape, color or size": 2,
        "unreadable picture": 1,
    }
    assert counts["train"] == len(np.load(tmp_path / "out" / "train.npy")) == 57
    records = load_records(tmp_path / "out", "train")
    assert [r["image"] for r in records] == [f"train.npy#{i}" for i in range(57)]
    assert np.mean(center_colors(records, np.load(tmp_path / "out" / "train.npy"))) > 0.98


def test_a_sentence_is_a_caption_only_where_it_is_true(prepared):
    """Catches: training captions on sentences that people judged false."""
    for r in load_records(prepared, "train"):
        true = int(r["id"].split("-")[1]) % 2 == 0
        assert r["caption_source"] == ["human"] * true + ["boxes"] * 3
        assert len(set(r["captions"])) == len(r["caption_source"])
        assert (r["captions"][0] == f"There is box number {r['id'].split('-')[1]}.") == true


def test_answers_agree_with_the_objects(prepared):
    """Catches: yes and no swapped, a count of the wrong things, words that do not fit the label."""
    kinds = set()
    for record in load_records(prepared, "train"):
        things = [
            f"{o['attributes']['size']} {o['attributes']['color']} {o['name']} object"
            for o in record["objects"]
        ]
        turns = [t["value"].removeprefix("<image>\n") for t in record["conversations"]]
        assert len(turns) >= 8 and count_images(record["conversations"]) == 1
        for question, answer in zip(turns[::2], turns[1::2]):
            first = re.findall(r"\w+", answer.lower())
            if "box number" in question:
                kinds.add("statement")
                assert first[0] == ("yes", "no")[int(record["id"].split("-")[1]) % 2]
            elif m := re.search(
                r"(?:How many|Count the|number of) ([a-z ]+?)s(?: are| can| do|[.?])", question
            ):
                kinds.add("count")
                n = sum(set(m[1].split()) <= set(thing.split()) for thing in things)
                assert NUMBERS[n] in first or (n == 0 and "no" in first), (question, answer, things)
            elif m := re.search(
                r"((?:(?:small|medium|large) )?(?:yellow|black|blue) (?:circle|square|triangle))",
                question,
            ):
                kinds.add("exist")
                assert first[0] == (
                    "yes" if any(m[1] in thing for thing in things) else "no"
                ), (question, things)
    assert kinds == {"statement", "count", "exist"}


def test_existence_is_asked_in_pairs_of_equal_words(prepared):
    """Catches: an evaluation that a model can pass without looking at the picture."""
    asked = [q for q in load_records(prepared, "eval") if q["kind"] == "exist"]
    assert len(asked) > 10
    for yes, no in zip(asked[::2], asked[1::2]):
        assert (
            yes["question"] == no["question"] and yes["style"] == no["style"]
            and yes["image"] != no["image"]
        )
        assert (yes["expect"], yes["wrong"], no["expect"], no["wrong"]) == (
            ["yes"], ["no"], ["no"], ["yes"]
        )
    keys = {"id", "image", "kind", "style", "question", "answer", "expect", "wrong"}
    assert all(set(q) == keys for q in asked)


def test_the_folder_can_be_trained_on(corpus, tmp_path):
    """Catches: records that the loaders refuse, and a vocabulary that misses words of the data."""
    counts = run(corpus, tmp_path / "out", image_size=32)
    records, tokenizer = (
        load_records(tmp_path / "out", "train"),
        Tokenizer.load(tmp_path / "out" / "tokenizer.tiktoken"),
    )
    assert Pictures(tmp_path / "out", 32).get([r["image"] for r in records[:3]]).shape == (
        3, 3, 32, 32
    )
    rows = render_records(records, tokenizer, 4)
    assert len(rows) == counts["train"] == counts["text"] == 60
    assert max(len(row.ids) for row in rows) <= 257
    meta = load_meta(tmp_path / "out")
    assert (
        meta["name"] == "nlvr" and meta["phrases"]["black circles"] == "black circle"
        and len(meta["phrases"]) == 18
    )
    assert meta["records"] == {k: counts[k] for k in ("train", "val", "eval", "text")}


def test_an_archive_gives_the_same_bytes_as_its_folder_and_writes_nothing_else(corpus, tmp_path):
    """Catches: a run that is not deterministic, and an archive whose members escape the folder."""
    with tarfile.open(tmp_path / "nlvr.tar", "w") as archive:
        archive.add(corpus, "nlvr")
        for name in ("../escaped.txt", str(tmp_path / "absolute.txt")):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"evil"))
    run(corpus, tmp_path / "a")
    before = {p for p in tmp_path.rglob("*")}
    run(tmp_path / "nlvr.tar", tmp_path / "b")
    written = {p.relative_to(tmp_path) for p in set(tmp_path.rglob("*")) - before}
    names = {p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*")}
    assert (
        written == {Path("b")} | {Path("b") / n for n in names}
        and not (tmp_path.parent / "escaped.txt").exists()
    )
    files = [n for n in names if n != Path("samples")]
    assert all(
        (tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in files
    )


def test_a_held_out_scene_that_training_shows_in_another_order_is_left_out(corpus, tmp_path):
    """Catches: measuring on what was trained on; the published splits share some scenes."""
    line = json.loads((corpus / "test" / "test.json").read_text().splitlines()[0])
    add_scene(corpus, "dev", 300, line["structured_rep"][::-1])
    counts = run(corpus, tmp_path / "out")
    assert load_meta(tmp_path / "out")["skipped"] == {"held-out scene that training shows": 1}
    assert counts["val"] == 60


def test_one_split_is_divided_by_whole_directories(corpus, tmp_path):
    """Catches: orders of a scene, or pictures presented together, on both sides."""
    run(corpus, tmp_path / "out", val_split="test", val_directories="1")
    sides = [
        {r["id"].split("-")[1] for r in load_records(tmp_path / "out", s)} for s in ("train", "val")
    ]
    assert sides == [set("01234"), set("56789")]
    with pytest.raises(ValueError, match="both splits are test; hold directories out"):
        prepare.Config(val_split="test")
    with pytest.raises(ValueError, match="no usable scene in directory 7"):
        run(corpus, tmp_path / "out", val_split="test", val_directories="7")
    with pytest.raises(ValueError, match="0 scenes to learn from"):
        run(corpus, tmp_path / "out", val_split="test", val_directories="0,1")
    add_scene(corpus, "test", 0, make_boxes(random.Random(9)), directory="1")
    with pytest.raises(ValueError, match="presentation test 0 lies in several directories"):
        run(corpus, tmp_path / "out", val_split="test", val_directories="1")


def test_a_wrong_source_or_option_is_one_clear_line(corpus, tmp_path):
    """Catches: a traceback, or an error that does not say what to do."""
    with pytest.raises(FileNotFoundError, match="no NLVR corpus at .*pass --source FOLDER"):
        run(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(
        FileNotFoundError, match="has no train/train.json; name the corpus as published"
    ):
        run(corpus, tmp_path / "out", train_split="train")
    with pytest.raises(ValueError, match="is no readable tar archive"):
        run(corpus / "test" / "test.json", tmp_path / "out")
    with pytest.raises(ValueError, match="image_size 33 is not an even number"):
        prepare.Config(image_size=33)
    with pytest.raises(ValueError, match="val_directories 'a' is no list of numbers"):
        prepare.Config(val_directories="a")
    for picture in (corpus / "test" / "images").rglob("*.png"):
        picture.unlink()
    with pytest.raises(
        ValueError, match="no usable record for train; skipped {'missing picture': 60}"
    ):
        run(corpus, tmp_path / "out")


@pytest.mark.skipif(
    not os.environ.get("NLVR_SOURCE"),
    reason="set NLVR_SOURCE to the published corpus, folder or .tar",
)
def test_the_published_pictures_show_what_their_records_say(tmp_path):
    """Catches: a wrong idea of the real pictures that the ones drawn above would share."""
    counts = run(Path(os.environ["NLVR_SOURCE"]), tmp_path / "out")
    assert (counts["train"], counts["val"], counts["skipped"]) == (5940, 5718, 36)
    records, pixels = (
        load_records(tmp_path / "out", "val"),
        np.load(tmp_path / "out" / "val.npy", mmap_mode="r"),
    )
    for k in range(6):
        assert np.mean(
            center_colors([r for r in records if r["id"].endswith(f"-{k}")], pixels)
        ) > 0.99
