"""data/llava/prepare.py: LLaVA's JSON as it is published, and all that can be wrong with it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.llava import prepare
from minivlm.loading.prepared import load_meta, load_records
from minivlm.loading.records import images_of


def talk(*texts: str, first: str = "human") -> list[dict]:
    """Turns by human and gpt in alternation."""
    roles = ("human", "gpt") if first == "human" else ("gpt", "human")
    return [{"from": roles[i % 2], "value": v} for i, v in enumerate(texts)]


def publish(root: Path, records: list, pictures: tuple[str, ...] = ()) -> prepare.Config:
    """Write a published file, and gray pictures of 40 x 20 pixels, each another gray."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(pictures):
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20), (20 * i,) * 3).save(root / "images" / name)
    (root / "mix.json").write_text(json.dumps(records))
    return prepare.Config(
        f"{root}/mix.json", f"{root}/images", out=f"{root}/prepared", val_every=2, image_size=16)


PICTURES = ("coco/train2017/1.png", "gqa/images/2.png", "3.png")
RECORDS = [
    {"id": "000000033471", "image": PICTURES[0],
     "conversations": talk("<image>\nWhat is it?", "A bus.", "What color?", "Red.")},
    {"id": 7, "image": PICTURES[1], "conversations": talk("Describe it.\n<image>", "A cat.")},
    {"image": PICTURES[0], "conversations": talk("<image>\nHow many?", "One.")},
    {"id": "t", "conversations": talk("What is 2 + 2?", "4.")},
    {"id": "t", "image": PICTURES[2], "conversations": talk("What is this? <image>", "A dog.")},
]


def test_published_dialogues_become_a_data_set(tmp_path):
    """Catches a picture on both sides, another one's dialogue, an id lost, <image> left behind."""
    cfg = publish(tmp_path, RECORDS, PICTURES)
    counts = prepare.main(cfg)
    assert (counts["train"], counts["val"], counts["skipped"]) == (2, 3, 0)
    train, val = (load_records(cfg.out, s, ("conversations",)) for s in ("train", "val"))
    assert [r["id"] for r in val] == ["000000033471", "record 2", "t (2)"]
    assert [r["id"] for r in train] == ["7", "t"] and "image" not in train[1]
    assert train[0]["conversations"][0]["value"] == "<image>\nDescribe it."
    assert val[2]["conversations"][0]["value"] == "<image>\nWhat is this?"
    assert val[0]["image"] == val[1]["image"] == "val.npy#0" and val[2]["image"] == "val.npy#1"
    grays = [np.load(f"{cfg.out}/{s}.npy")[:, 8, 8, 0].tolist() for s in ("train", "val")]
    assert grays == [[20], [0, 40]]
    seen = load_meta(cfg.out)["seen"]
    assert seen == {".": 1, "coco/train2017": 2, "gqa/images": 1, "text only": 1, "turns": 12}
    assert json.loads((Path(cfg.out) / "llava.json").read_text()) == RECORDS


@pytest.mark.parametrize("record, reason", [
    ("text", "no conversation"), ({"id": "a"}, "no conversation"),
    ({"conversations": [["human", "x"]]}, "turn that is not {from, value}"),
    ({"conversations": []}, "no conversation"),
    ({"conversations": talk("x")}, "no answer"),
    ({"conversations": talk("x", first="gpt")}, "no answer"),
    ({"conversations": [*talk("x", "y"), *talk("z", "x", first="gpt")]}, "turns out of order"),
    ({"conversations": [*talk("x", "y"), {"from": "system", "value": "z"}]}, "turns out of order"),
    ({"conversations": [*talk("x", "y"), {"from": "tool", "value": "z"}]},
     "turn by somebody else than human, gpt and system"),
    ({"conversations": talk("x", "  ")}, "empty turn"),
    ({"conversations": talk("<image>\nx", "y")}, "<image> without a picture"),
    ({"image": "3.png", "conversations": talk("x", "y")}, "picture without <image>"),
    ({"image": "3.png", "conversations": talk("<image>", "y", "<image>", "z")},
     "<image> without a picture"),
    ({"image": "3.png", "conversations": talk("x", "<image> y")}, "<image> in an answer"),
    ({"image": "3.png", "conversations": talk("<image>", "x", "y", first="gpt")},
     "picture without <image>"),
    ({"image": ["3.png", "3.png"], "conversations": talk("<image>\nx", "y")},
     "picture without <image>"),
    ({"image": ["3.png", "3.png"], "conversations": talk("<image><image><image>\nx", "y")},
     "<image> without a picture"),
    ({"image": ["3.png", 7], "conversations": talk("<image><image>\nx", "y")},
     "picture that is no name of a file"),
    ({"image": ["3.png", "bad.png"], "conversations": talk("<image><image>\nx", "y")},
     "unreadable picture"),
    ({"image": ["gqa/images/2.png", "coco/train2017/1.png"],
      "conversations": talk("<image><image>\nx", "y")}, "pictures of both splits"),
    ({"image": {"path": "3.png"}, "conversations": talk("<image>\nx", "y")},
     "picture that is no name of a file"),
    ({"image": "4.png", "conversations": talk("<image>\nx", "y")}, "missing picture"),
    ({"image": "bad.png", "conversations": talk("<image>\nx", "y")}, "unreadable picture"),
    ({"image": "../mix.json", "conversations": talk("<image>\nx", "y")},
     "picture outside of the folder"),
])
def test_what_cannot_be_used_is_counted_by_reason(record, reason, tmp_path):
    """Catches a record dropped in silence, or taken half."""
    cfg = publish(tmp_path, [*RECORDS, record], PICTURES)
    (tmp_path / "images" / "bad.png").write_bytes(b"no picture")
    assert prepare.main(cfg)["skipped"] == 1
    assert load_meta(cfg.out)["skipped"] == {reason: 1}
    assert json.loads((Path(cfg.out) / "llava.json").read_text()) == RECORDS


def test_every_id_can_be_written_and_is_the_only_one(tmp_path):
    """Catches an id that later readers refuse, and one made of another that is taken already."""
    ids = ["t", "t", "t (2)", "half\ud800", "two\nlines", "two\\x0alines"]
    talks = [{"id": key, "conversations": talk("Hi.", "Ho.")} for key in ids]
    cfg = publish(tmp_path, [*talks, RECORDS[0]], PICTURES)
    cfg.val_every = 2
    prepare.main(cfg)
    assert [r["id"] for r in load_records(cfg.out, "train", unique=True)] == [
        "t", "t (2)", "t (2) (2)", "half\\ud800", "two\\nlines", "two\\x0alines"]


def test_answers_are_captions_as_in_llavas_first_stage(tmp_path):
    """Catches a dialogue of several turns, or of no picture, taken for a caption."""
    cfg = publish(tmp_path, RECORDS, PICTURES)
    cfg.captions = True
    counts = prepare.main(cfg)
    assert counts["skipped"] == 2
    assert load_meta(cfg.out)["skipped"] == {"no single answer about one picture": 2}
    records = [r for s in ("train", "val") for r in load_records(cfg.out, s, ("image", "captions"))]
    assert sorted(r["captions"] for r in records) == [["A cat."], ["A dog."], ["One."]]


SYSTEM = {"from": "system", "value": "Be brief."}


@pytest.mark.parametrize("image, turns, want", [
    ("3.png", [SYSTEM, *talk("What? <image>", "A dog.")],
     [SYSTEM, *talk("<image>\nWhat?", "A dog.")]),
    ("3.png", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<image>"},
               {"role": "assistant", "content": "A dog."}], [SYSTEM, *talk("<image>", "A dog.")]),
    (None, [{"from": "user", "value": "Hi."}, {"from": "assistant", "value": "Ho."}],
     talk("Hi.", "Ho.")),
    (["3.png"], talk("<image>\nWhat?", "A dog."), talk("<image>\nWhat?", "A dog.")),
    (["3.png", PICTURES[0]], talk("<image> and <image>?", "A dog."),
     talk("<image> and <image>?", "A dog.")),
    (["3.png", PICTURES[0], "3.png"],
     talk("<image><image> What?", "A dog.", "This: <image>", "Ho."),
     talk("<image><image> What?", "A dog.", "<image>\nThis:", "Ho.")),
    ([], talk("Hi.", "Ho."), talk("Hi.", "Ho.")),
    (None, talk("Welcome!", "Hi.", "Ho.", first="gpt"), talk("Hi.", "Ho.")),
    ("3.png", [SYSTEM, *talk("Welcome!", "What? <image>", "A dog.", first="gpt")],
     [SYSTEM, *talk("<image>\nWhat?", "A dog.")]),
    ("3.png", talk("Hi.", "Ho.", "And <image> this?", "A dog."),
     talk("Hi.", "Ho.", "<image>\nAnd  this?", "A dog.")),
    ("3.png", talk("<image>\n<image> What?", "A dog."), talk("<image>\nWhat?", "A dog.")),
])
def test_a_dialogue_is_read_as_llava_reads_it(image, turns, want, tmp_path):
    """Catches dialogues left out, or learned without their picture, for how they are written down.
    """
    record = {"id": "new", "image": image, "conversations": turns}
    cfg = publish(tmp_path, [*RECORDS, record], PICTURES)
    assert prepare.main(cfg)["skipped"] == 0
    records = load_records(cfg.out, "train") + load_records(cfg.out, "val")
    [got] = [r for r in records if r["id"] == "new"]
    assert got["conversations"] == want
    names = image if isinstance(image, list) else [image] * bool(image)
    where = {"3.png": "val.npy#1", PICTURES[0]: "val.npy#0"}
    assert images_of(got) == [where[name] for name in names]
    left_out = load_meta(cfg.out)["seen"].get("first turns by gpt, left out", 0)
    assert left_out == len(turns) - len(want)
    assert all(r["text"].strip() for r in load_records(cfg.out, "text", ("text",)))


def test_wrong_files_are_named(tmp_path):
    """Catches tracebacks: no file, no list, another encoding, no folder, nothing usable."""
    cfg = publish(tmp_path, RECORDS)
    with pytest.raises(ValueError, match="record for val; skipped {'missing picture': 4}"):
        prepare.main(cfg)
    for content, message in ((b'{"a": 1}', "is no list"), (b'["\xe9"]', "no JSON in UTF-8")):
        Path(cfg.source).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            prepare.main(cfg)
    with pytest.raises(FileNotFoundError, match="no dialogues at"):
        prepare.main(prepare.Config("nowhere.json", cfg.images))
    Path(cfg.source).write_text("[]")
    with pytest.raises(FileNotFoundError, match="no folder of pictures"):
        prepare.main(prepare.Config(cfg.source, "nowhere"))
    with pytest.raises(ValueError, match="fit 'zoom' is not one of"):
        prepare.main(prepare.Config(fit="zoom"))
