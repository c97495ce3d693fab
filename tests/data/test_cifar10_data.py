"""data/cifar10/prepare.py: photographs in class folders or a tar of them, and what can be wrong."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.cifar10 import prepare
from minivlm.loading.prepared import load_meta, load_records


def photographs(root: Path, n: int = 3) -> Path:
    """n pictures of each of two classes in both splits; a class is a color."""
    for split in ("train", "test"):
        for label, color in (("red_fox", (200, 30, 30)), ("apple", (30, 200, 30))):
            (root / split / label).mkdir(parents=True)
            for i in range(n):
                picture = Image.new("RGB", (40, 32), tuple(c + 5 * i for c in color))
                picture.save(root / split / label / f"{i:04d}.png")
    return root


def test_class_folders_become_a_data_set(tmp_path):
    """Catches: labels of another picture, splits mixed, a class name that is no words."""
    source = photographs(tmp_path / "photos")
    cfg = prepare.Config(str(source), str(tmp_path / "out"))
    counts = prepare.main(cfg)
    assert (counts["train"], counts["val"], counts["zeroshot"], counts["skipped"]) == (6, 6, 6, 0)
    train, zeroshot = (
        load_records(cfg.out, "train", ("captions",)),
        load_records(cfg.out, "zeroshot", ("label",)),
    )
    assert {r["label"]: r["captions"] for r in train} == {
        "red fox": ["A photo of a red fox."], "apple": ["A photo of an apple."]}
    for split, records in (("train", train), ("val", zeroshot)):
        pixels = np.load(f"{cfg.out}/{split}.npy")
        assert pixels.shape == (6, 32, 32, 3)
        for r in records:
            red, green, _ = pixels[int(r["image"].split("#")[1])].mean((0, 1))
            assert (red > green) == (r["label"] == "red fox") and r["id"].startswith(
                "train/" if split == "train" else "test/")
    assert load_meta(cfg.out)["prompts"] == {
        "red fox": ["A photo of a red fox."], "apple": ["A photo of an apple."]}
    assert len(load_records(cfg.out, "text")) == 14


def test_a_tar_gives_the_same_bytes_as_its_folder(tmp_path):
    """Catches an order that depends on the archive."""
    source = photographs(tmp_path / "photos")
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for file in sorted(source.rglob("*.png"), reverse=True):
            archive.add(file, file.relative_to(source))
    for name, path in (("a", source), ("b", tmp_path / "photos.tar")):
        prepare.main(prepare.Config(str(path), str(tmp_path / name)))
    files = sorted(
        p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()
    )
    assert len(files) > 8
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files
    )


def test_files_that_a_system_adds_are_no_pictures(tmp_path):
    """Catches a class .ipynb_checkpoints, and a Mac's ._0000.png counted as damaged pictures."""
    source = photographs(tmp_path / "photos")
    for split in ("train", "test"):
        odd = source / split / ".ipynb_checkpoints"
        odd.mkdir()
        (odd / "0.png").write_bytes((source / split / "apple" / "0000.png").read_bytes())
        (source / split / "apple" / "._0000.png").write_bytes(b"Mac OS X")
    (source / ".DS_Store").write_bytes(b"x")
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(source, ".")
    for path in (source, tmp_path / "photos.tar"):
        counts = prepare.main(prepare.Config(str(path), str(tmp_path / "out")))
        assert (counts["train"], counts["val"], counts["skipped"]) == (6, 6, 0)
        assert load_meta(tmp_path / "out")["prompts"].keys() == {"apple", "red fox"}


def test_what_cannot_be_used_is_counted(tmp_path):
    """Catches pictures dropped in silence: a truncated one, a text, a file outside the classes."""
    source = photographs(tmp_path / "photos")
    broken = source / "train" / "apple" / "0000.png"
    broken.write_bytes(broken.read_bytes()[:50])
    (source / "train" / "apple" / "notes.txt").write_text("x")
    (source / "batches.meta.txt").write_text("x")
    prepare.main(prepare.Config(str(source), str(tmp_path / "out")))
    assert load_meta(tmp_path / "out")["skipped"] == {
        "not a picture by its name": 1, "not in SPLIT/CLASS/": 1, "unreadable picture": 1}


def test_wrong_sources_are_named(tmp_path):
    """Catches tracebacks: a wrong path, no archive, an empty split, classes of one split only."""
    out = str(tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no photographs at nowhere"):
        prepare.main(prepare.Config("nowhere", out))
    (tmp_path / "x.tar").write_text("no archive")
    with pytest.raises(ValueError, match="is no readable tar archive"):
        prepare.main(prepare.Config(f"{tmp_path}/x.tar", out))
    source = photographs(tmp_path / "photos")
    (source / "test" / "apple").rename(source / "test" / "pear")
    with pytest.raises(ValueError, match="classes apple, pear stand in one of the splits only"):
        prepare.main(prepare.Config(str(source), out))
    with pytest.raises(ValueError, match=r"has no picture in dev/CLASS/"):
        prepare.main(prepare.Config(str(source), out, val_split="dev"))
    with pytest.raises(ValueError, match="both splits are train"):
        prepare.Config(val_split="train")
    assert not Path(out).exists()
