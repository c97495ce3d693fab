"""data/coco/prepare.py: files as COCO publishes them, made here, and all that can be wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.coco import prepare
from minivlm.loading.prepared import load_meta, load_records
from minivlm.metrics import mentions
from minivlm.tokenizer import Tokenizer


def publish(root: Path, n: int = 8, **changes) -> prepare.Config:
    """Write n pictures, two captions and a box each; `changes` replace parts of the annotations."""
    (root / "images").mkdir(parents=True)
    images, captions, boxes = [], [], []
    for i in range(1, n + 1):
        name = f"{i:012d}.jpg"
        Image.new("RGB", (100, 50), (i * 20, 80, 200 - i * 20)).save(root / "images" / name)
        images.append({"id": i, "file_name": name, "width": 100, "height": 50})
        captions += [
            {"id": 10 * i + k, "image_id": i, "caption": f"A  dog\n{i} {k}."} for k in range(2)
        ]
        boxes.append(
            {"id": i, "image_id": i, "category_id": 18, "bbox": [50, 0, 50, 25], "area": 1.0}
        )
    (root / "captions.json").write_text(json.dumps(
        {"images": images, "annotations": captions} | changes
    ))
    (root / "instances.json").write_text(json.dumps(
        {"images": images, "annotations": boxes, "categories": [{"id": 18, "name": "dog"}]}
        | changes
    ))
    return prepare.Config(
        captions=f"{root}/captions.json", instances=f"{root}/instances.json",
        images=f"{root}/images", out=f"{root}/prepared", val_every=4, image_size=16, fit="pad",
    )


def test_a_published_folder_becomes_a_data_set(tmp_path):
    """Catches: another picture's captions, boxes in pixels, a side showing the other's pictures."""
    cfg = publish(tmp_path)
    counts = prepare.main(cfg)
    train, val = (load_records(cfg.out, s, ("captions", "objects")) for s in ("train", "val"))
    assert (len(train), len(val), counts["skipped"]) == (6, 2, 0)
    assert load_meta(cfg.out)["records"] == {"text": 12, "train": 6, "val": 2}
    assert [r["id"] for r in val] == ["coco-1", "coco-5"]
    assert not {r["id"] for r in train} & {r["id"] for r in val}
    assert val[1]["captions"] == ["A dog 5 0.", "A dog 5 1."]
    assert val[0]["objects"] == [{"name": "dog", "attributes": {}, "box": [0.5, 0.25, 1.0, 0.5]}]
    assert np.load(f"{cfg.out}/train.npy").shape == (6, 16, 16, 3)
    assert load_meta(cfg.out)["image_size"] == 16
    assert Tokenizer.load(f"{cfg.out}/tokenizer.tiktoken").encode("A dog")


@pytest.mark.parametrize("mode, box, want", [
    ("stretch", [50, 0, 50, 25], [0.5, 0.0, 1.0, 0.5]),
    ("pad", [50, 0, 50, 25], [0.5, 0.25, 1.0, 0.5]),
    ("crop", [50, 0, 50, 25], [0.5, 0.0, 1.0, 0.5]),
    ("crop", [0, 0, 30, 50], [0.0, 0.0, 0.1, 1.0]),
])
def test_a_box_lies_where_the_picture_shows_it(mode, box, want):
    """Catches boxes of the published picture on a padded or cut one: red is found in the pixels."""
    from minivlm.loading.images import fit
    picture = Image.new("RGB", (100, 50), "white")
    x, y, w, h = box
    picture.paste((255, 0, 0), (x, y, x + w, y + h))
    square = np.asarray(fit(picture, 400, mode)).astype(int)
    rows, columns = np.nonzero((square[..., 0] > 200) & (square[..., 1] < 60))
    found = [
        columns.min() / 400, rows.min() / 400,
        (columns.max() + 1) / 400, (rows.max() + 1) / 400,
    ]
    assert prepare.square_box(box, 100, 50, mode) == want == pytest.approx(found, abs=0.02)


def test_meta_holds_the_words_that_name_a_class(tmp_path):
    """Catches synonyms and plurals that CHAIR does not see, a word stolen from another class."""
    cfg = publish(tmp_path, categories=[{"id": 18, "name": "dog"}, {"id": 58, "name": "hot dog"},
                                        {"id": 1, "name": "person"}])
    prepare.main(cfg)
    assert load_meta(cfg.out)["phrases"] == {
        "dog": "dog", "dogs": "dog", "hot dog": "hot dog", "hot dogs": "hot dog",
        "person": "person", "people": "person",
    }
    cfg.synonyms = f"{tmp_path}/synonyms.txt"
    Path(cfg.synonyms).write_text("person, fireman, child\ndog, puppy, person\n\nhot dog\n")
    prepare.main(cfg)
    phrases = load_meta(cfg.out)["phrases"]
    assert {p for p, c in phrases.items() if c == "person"} == {
        "person", "people", "fireman", "firemen", "child", "children"}
    assert mentions("Two puppies and firemen eat a hot dog.", phrases) == [
        "dog", "person", "hot dog"]
    Path(cfg.synonyms).write_text("dog, puppy\ncat, kitten\n")
    with pytest.raises(ValueError, match="synonyms.txt:2 begins with 'cat', no category"):
        prepare.main(cfg)
    cfg.synonyms = f"{tmp_path}/none.txt"
    with pytest.raises(FileNotFoundError, match="no synonyms at"):
        prepare.main(cfg)


def test_a_split_file_decides_what_is_held_out(tmp_path):
    """Catches restval left out of training, and a test picture learned from."""
    cfg = publish(tmp_path)
    split = ["train", "restval", "val", "test", "train", "val", "test"]  # picture 8 is in no split
    listed = [{"cocoid": i + 1, "split": side, "filename": "x"} for i, side in enumerate(split)]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": listed, "dataset": "coco"}))
    cfg.karpathy = f"{tmp_path}/dataset_coco.json"
    assert prepare.main(cfg)["skipped"] == 3
    assert [r["id"] for r in load_records(cfg.out, "train")] == ["coco-1", "coco-2", "coco-5"]
    assert [r["id"] for r in load_records(cfg.out, "val")] == ["coco-3", "coco-6"]
    cfg.held_out = "test"
    prepare.main(cfg)
    assert [r["id"] for r in load_records(cfg.out, "val")] == ["coco-4", "coco-7"]


def test_several_files_and_folders_are_read_as_one(tmp_path):
    """Catches the second file left out, and a split file whose other half is missing in silence."""
    one, two = publish(tmp_path / "a"), publish(tmp_path / "b")
    for file in (two.captions, two.instances):
        data = json.loads(Path(file).read_text())
        for kind in ("images", "annotations"):
            for d in data[kind]:
                d["id"] += 100
                if kind == "annotations":
                    d["image_id"] += 100
        Path(file).write_text(json.dumps(data))
    for picture in sorted((tmp_path / "b" / "images").iterdir()):
        picture.rename(picture.with_name(f"b{picture.name}"))
    data = json.loads(Path(two.captions).read_text())
    for d in data["images"]:
        d["file_name"] = "b" + d["file_name"]
    Path(two.captions).write_text(json.dumps(data))
    listed = [{"cocoid": i, "split": "val" if i in (3, 103, 900) else "train"}
              for i in (*range(1, 9), *range(101, 109), 900, 901)]
    (tmp_path / "split.json").write_text(json.dumps({"images": listed}))
    one.karpathy = str(tmp_path / "split.json")
    assert prepare.main(one)["train"] == 7
    assert load_meta(one.out)["skipped"] == {"in the split file, not in the captions": 10}
    one.captions, one.images = f"{one.captions},{two.captions}", f"{one.images},{two.images}"
    one.instances = f"{one.instances},{two.instances}"
    counts = prepare.main(one)
    assert (counts["train"], counts["val"], counts["skipped"]) == (14, 2, 2)
    assert all(r["objects"] for r in load_records(one.out, "train", ("captions",)))


def change(path: str, **lists) -> None:
    """Change the entries of a published file's lists: name of a list -> what an entry becomes."""
    data = json.loads(Path(path).read_text())
    for key, new in lists.items():
        data[key] = [new(entry) for entry in data[key]]
    Path(path).write_text(json.dumps(data))


def test_an_id_is_the_same_as_a_number_and_as_text(tmp_path):
    """Catches captions and boxes lost because one list writes 1, another one "1" or 1.0."""
    cfg = publish(tmp_path, n=12)                                    # as texts, "10" is before "2"
    listed = [{"cocoid": i, "split": "val" if i % 5 == 0 else "train"} for i in range(1, 13)]
    cfg.karpathy = f"{tmp_path}/split.json"
    Path(cfg.karpathy).write_text(json.dumps({"images": listed}))
    prepare.main(cfg)
    want = {path.name: path.read_bytes() for path in Path(cfg.out).glob("*.*")}
    change(
        cfg.captions, images=lambda d: d | {"id": str(d["id"]), "width": 100.0, "height": 50.0},
        annotations=lambda a: {"image_id": float(a["image_id"]), "caption": a["caption"]},
    )
    change(
        cfg.instances, images=lambda d: d | {"id": float(d["id"])},
        annotations=lambda a: a | {"image_id": str(a["image_id"]), "category_id": "18"},
        categories=lambda c: c | {"name": " Dog "},
    )
    change(cfg.karpathy, images=lambda d: d | {"cocoid": str(d["cocoid"])})
    prepare.main(cfg)
    assert {path.name: path.read_bytes() for path in Path(cfg.out).glob("*.*")} == want


@pytest.mark.parametrize("file, key, bad, reason", [
    ("captions", "annotations", {"image_id": 3, "caption": None}, "empty caption"),
    ("captions", "annotations", {"image_id": 3, "caption": 7},
     "entry of annotations with a part missing or wrong"),
    ("captions", "annotations", {"image_id": 99, "caption": "A cat."},
     "caption of an unknown picture"),
    ("captions", "images", {"id": 9}, "entry of images with a part missing or wrong"),
    ("captions", "images", None, "entry of images with a part missing or wrong"),
    ("instances", "annotations", {"image_id": 3, "category_id": 18, "bbox": None},
     "box that is not four numbers"),
    ("instances", "annotations", ["x"], "entry of annotations with a part missing or wrong"),
    ("instances", "categories", {"id": 5}, "entry of categories with a part missing or wrong"),
    ("karpathy", "images", {"split": "val"}, "entry of images with a part missing or wrong"),
])
def test_one_broken_entry_is_counted_and_all_are_refused(file, key, bad, reason, tmp_path):
    """Catches 600,000 captions refused for one, and a file of another kind taken as empty."""
    cfg = publish(tmp_path)
    listed = [{"cocoid": i, "split": "train" if i % 4 else "val"} for i in range(1, 9)]
    cfg.karpathy = f"{tmp_path}/split.json"
    Path(cfg.karpathy).write_text(json.dumps({"images": listed}))
    path = getattr(cfg, file)
    whole = json.loads(Path(path).read_text())
    Path(path).write_text(json.dumps(whole | {key: [bad, *whole[key]]}))
    counts = prepare.main(cfg)
    assert (counts["train"], counts["val"]) == (6, 2)
    assert load_meta(cfg.out)["skipped"] == {reason: 1}
    if "part missing" in reason:
        Path(path).write_text(json.dumps(whole | {key: [bad] * 3}))
        with pytest.raises(ValueError, match=f"{path}, {key}: none of 3 entries can be used; "):
            prepare.main(cfg)


def test_a_picture_that_the_boxes_leave_out_has_no_list_of_objects(tmp_path):
    """Catches CHAIR of val2014 by the boxes of train2014: whatever a caption says is invented."""
    cfg = publish(tmp_path)
    change(cfg.captions, images=lambda d: d | {"width": 0} if d["id"] == 4 else d)
    data = json.loads(Path(cfg.instances).read_text())
    data["images"] = data["images"][:6]                              # 7 and 8 are not listed
    data["annotations"] = data["annotations"][1:6]                   # 1 has no box
    data["annotations"][0]["category_id"] = 99                       # of picture 2
    Path(cfg.instances).write_text(json.dumps(data))
    prepare.main(cfg)
    records = load_records(cfg.out, "train") + load_records(cfg.out, "val")
    objects = {r["id"]: r.get("objects") for r in records}
    some = [{"name": "dog", "attributes": {}, "box": [0.5, 0.25, 1.0, 0.5]}]
    assert objects == {
        "coco-1": [], "coco-2": None, "coco-3": some, "coco-4": None, "coco-5": some,
        "coco-6": some, "coco-7": None, "coco-8": None,
    }


def test_what_cannot_be_used_is_counted_by_reason(tmp_path):
    """Catches records dropped in silence."""
    cfg = publish(tmp_path)
    images = sorted((tmp_path / "images").iterdir())
    images[1].unlink()
    images[2].write_bytes(images[2].read_bytes()[:200])
    data = json.loads(Path(cfg.captions).read_text())
    data["annotations"] = [
        a | {"caption": " ."} if a["image_id"] == 4 else a for a in data["annotations"]
    ]
    Path(cfg.captions).write_text(json.dumps(data))
    boxes = json.loads(Path(cfg.instances).read_text())
    boxes["annotations"] += [{"id": 90, "image_id": 77, "category_id": 18, "bbox": [0, 0, 1, 1]},
                             {"id": 91, "image_id": 6, "category_id": 99, "bbox": [0, 0, 1, 1]},
                             {"id": 92, "image_id": 6, "category_id": 18, "bbox": [5, 5, 0, 9]}]
    Path(cfg.instances).write_text(json.dumps(boxes))
    prepare.main(cfg)
    assert load_meta(cfg.out)["skipped"] == {
        "box of an unknown picture or category": 2, "box outside of the square picture": 1,
        "empty caption": 2, "missing picture": 1, "picture without captions": 1,
        "unreadable picture": 1,
    }
    assert all(r["captions"] for r in load_records(cfg.out, "train"))


def test_wrong_files_are_named(tmp_path):
    """Catches tracebacks for a wrong path, a wrong file, another encoding, no picture on disk."""
    cfg = publish(tmp_path)
    with pytest.raises(FileNotFoundError, match="no annotations at nowhere.json"):
        prepare.main(prepare.Config(captions="nowhere.json"))
    with pytest.raises(
        ValueError, match="dataset_coco.json has no annotations: is it the right file"
    ):
        (tmp_path / "dataset_coco.json").write_text('{"images": []}')
        prepare.main(prepare.Config(captions=f"{tmp_path}/dataset_coco.json"))
    (tmp_path / "latin.json").write_bytes('{"images": [], "annotations": ["é"]}'.encode("latin-1"))
    with pytest.raises(ValueError, match="latin.json is no JSON in UTF-8"):
        prepare.main(prepare.Config(captions=f"{tmp_path}/latin.json"))
    with pytest.raises(FileNotFoundError, match="no folder of pictures at nowhere"):
        prepare.main(prepare.Config(captions=cfg.captions, images="nowhere"))
    for picture in (tmp_path / "images").iterdir():
        picture.unlink()
    with pytest.raises(
        ValueError, match="no usable record for train; skipped {'missing picture': 8}"
    ):
        prepare.main(cfg)
    assert not Path(cfg.out).exists()


@pytest.mark.parametrize("changes, message", [
    ({"held_out": "dev"}, "held_out 'dev'"), ({"val_every": 1}, "val_every is 1, expected >= 2"),
    ({"fit": "zoom"}, "fit 'zoom'"), ({"vocab_size": 262}, "vocab_size is 262, expected >= 263"),
    ({"limit": -1}, "limit is -1, expected >= 0"), ({"image_size": 0}, "image_size is 0"),
])
def test_options_out_of_range_are_refused(changes, message):
    """Catches a wrong option found out after an hour of reading."""
    with pytest.raises(ValueError, match=message):
        prepare.main(prepare.Config(**changes))
