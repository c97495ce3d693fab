"""data/webdata: shards read and written, LAION's rules, and all that can be wrong with a tar."""

import dataclasses
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import stir
from data.webdata import prepare, similarity
from data.webdata.shards import Sample, read_shard, write_shards
from minivlm.clip import CLIP
from minivlm.loading.images import Pictures, fit, open_image, to_tensor
from minivlm.loading.prepared import load_meta, load_records
from minivlm.pretrained.export import export
from minivlm.running import checkpoint
from minivlm.tokenizer import Tokenizer, byte_letters


def jpeg(color=(200, 30, 30), side: int = 24) -> bytes:
    """A picture as bytes."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), color).save(out, "JPEG")
    return out.getvalue()


def tar(path: Path, *members: tuple[str, bytes]) -> Path:
    """A shard of these members, in this order."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


GOOD = (("0001.jpg", jpeg()), ("0001.txt", b"A red picture."), ("0001.json", b'{"url": "u"}'))


def read(path: Path) -> tuple[list[Sample], dict[str, int], list[str]]:
    skipped, named = Counter(), []
    return list(read_shard(path, skipped, named)), dict(skipped), named


def test_a_shard_gives_its_samples(tmp_path):
    """Catches a picture joined with the next text, a key cut at a dot in the folder's name."""
    path = tar(
        tmp_path / "0.tar", *GOOD,
        ("v1.5/b.png", jpeg((0, 0, 9))), ("v1.5/b.txt", "Blé ".encode()),
    )
    samples, skipped, _ = read(path)
    assert [(s.key, s.ending, s.text, s.info) for s in samples] == [
        ("0001", "jpg", "A red picture.", {"url": "u"}), ("v1.5/b", "png", "Blé", {})]
    assert samples[0].picture == GOOD[0][1] and not skipped


@pytest.mark.parametrize("members, reason", [
    ((("a.jpg", b"x"),), "no text"), ((("a.txt", b"x"),), "no picture"),
    ((("a.jpg", b"x"), ("a.txt", "é".encode("latin-1"))), "text is not UTF-8"),
    ((("a.jpg", b"x"), ("a.txt", b"x"), ("a.json", b"{")), "json is unreadable"),
    ((("a.jpg", b"x"), ("a.txt", b"x"), ("a.json", b"[1]")), "json is no object"),
    ((("a.jpg", b"x"), ("a.txt", b"x"), ("a.txt", b"y")), "key stands twice"),
    ((("0001.jpg", b"x"), ("0001.txt", b"x")), None),
])
def test_a_sample_that_cannot_be_used_is_named_and_counted(members, reason, tmp_path):
    """Catches a sample dropped in silence, and one that takes its neighbors along."""
    if reason is None:  # a key that comes back later in the shard
        members, reason = (("z.jpg", b"x"), ("z.txt", b"x"), *members), "key stands twice"
    samples, skipped, named = read(tar(tmp_path / "0.tar", *GOOD, *members))
    assert samples[0].key == "0001" and skipped == {reason: 1}
    assert len(named) == 1 and named[0].startswith("0.tar/") and named[0].endswith(reason)


def test_a_shard_that_breaks_off_gives_what_came_before(tmp_path):
    """Catches a traceback, or a half picture given as a whole one, from an interrupted download."""
    path = tar(tmp_path / "0.tar", *GOOD, ("b.txt", b"Another."), ("b.jpg", jpeg(side=900)))
    path.write_bytes(path.read_bytes()[:4200])
    samples, skipped, named = read(path)
    assert [s.key for s in samples] == ["0001"] and skipped == {"shard breaks off here": 1}
    (tmp_path / "1.tar").write_bytes(b"no archive at all")
    assert read(tmp_path / "1.tar")[1] == {"shard breaks off here": 1}
    with pytest.raises(FileNotFoundError, match="no shard at"):
        list(read_shard(tmp_path / "2.tar", Counter()))


def test_what_is_written_is_read_back(tmp_path):
    """Catches shards that lose a sample, and bytes that depend on the hour."""
    samples = [
        Sample(f"{i:03d}", jpeg((i, i, i)), "jpg", f"Text {i}.", {"noise": "é" * (i % 2)})
        for i in range(5)
    ]
    paths = write_shards(tmp_path / "a", samples, per_shard=2)
    assert [p.name for p in paths] == ["00000.tar", "00001.tar", "00002.tar"]
    assert [s for p in paths for s in read(p)[0]] == samples
    again = write_shards(tmp_path / "b", samples, per_shard=2)
    assert [p.read_bytes() for p in paths] == [p.read_bytes() for p in again]
    assert write_shards(tmp_path / "a", samples[:1]) and len(list((tmp_path / "a").iterdir())) == 1
    with pytest.raises(ValueError, match="two samples have the key '000'"):
        write_shards(tmp_path / "c", samples[:1] * 2)
    with pytest.raises(ValueError, match="per_shard 0"):
        write_shards(tmp_path / "c", samples, per_shard=0)
    with pytest.raises(ValueError, match="sample 'a.b' with a picture .jpg cannot be read back"):
        write_shards(tmp_path / "c", [Sample("a.b", b"", "jpg", "x")])


def test_a_member_of_webdatasets_own_making_is_ignored(tmp_path):
    """Catches members of other kinds taken for faults: folders, and endings nobody reads here."""
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as archive:
        folder = tarfile.TarInfo("part")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in (
            ("part/a.jpg", jpeg()), ("part/a.txt", b"x"),
            ("part/a.npy", json.dumps([1]).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert [s.key for s in read(path)[0]] == ["part/a"]


MARK = "\ufeff".encode()  # a byte order mark, as Windows' editors write it


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    """Catches a caption that begins with an invisible character."""
    path = tar(
        tmp_path / "0.tar", ("a.png", jpeg()), ("a.txt", MARK + b"A picture."),
        ("a.json", MARK + b'{"url": "u"}'),
    )
    [sample], _, _ = read(path)
    assert (sample.text, sample.info) == ("A picture.", {"url": "u"})
    (tmp_path / "a.png").write_bytes(jpeg())
    (tmp_path / "a.txt").write_bytes(MARK + b"A picture.")
    [sample] = prepare.read_folder(tmp_path, Counter(), [])
    assert sample.text == "A picture."


def test_files_that_a_system_adds_are_no_samples(tmp_path):
    """Catches a Mac's tars refused whole: ._0.png stands between 0.png and 0.txt."""
    path = tar(
        tmp_path / "0.tar", ("._0.png", b"x"), ("0.png", jpeg()), ("README", b"x"),
        ("._0.txt", b"x"), ("0.txt", b"First."), ("./._1.png", b"x"), ("./1.png", jpeg()),
        ("a/._1.txt", b"x"), ("__MACOSX/1.txt", b"x"), ("1.txt", b"Second."), (".DS_Store", b"x"),
    )
    samples, skipped, _ = read(path)
    assert [(s.key, s.text) for s in samples] == [("0", "First."), ("1", "Second.")]
    assert not skipped
    (tmp_path / "._0.tar").write_bytes(b"x")
    assert len(list(prepare.read_all(str(tmp_path), skipped, []))) == 2 and not skipped
    folder = tmp_path / "pairs"
    (folder / "__MACOSX").mkdir(parents=True)
    for name in ("0", "._0", ".1", "__MACOSX/0"):
        (folder / f"{name}.png").write_bytes(jpeg())
        (folder / f"{name}.txt").write_text("First.")
    assert [s.key for s in prepare.read_folder(folder, skipped, [])] == ["0"] and not skipped


# --- LAION's rules ---


def noisy(side: int = 64, seed: int = 0) -> bytes:
    """A picture of noise, which no format makes small: over 5,000 bytes."""
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def web(folder: Path) -> Path:
    """Two shards: six good pairs, and one for each rule."""
    folder.mkdir()
    pairs = [(f"good{i}", noisy(seed=i), f"Picture {i} of noise.") for i in range(6)]
    pairs[1:1] = [("short", noisy(), "abcd"), ("small", jpeg(side=8), "A small red one."),
                  ("broken", noisy()[:6000], "A broken picture.")]
    samples = [Sample(key, picture, "png", text) for key, picture, text in pairs]
    write_shards(folder, samples, per_shard=5)
    return folder


def test_every_rule_counts_what_it_refuses(tmp_path):
    """Catches a pair counted twice or not at all, and five characters refused: they are enough."""
    cfg = prepare.Config(
        str(web(tmp_path / "web")), out=str(tmp_path / "out"), vocab_size=300, val_every=3,
    )
    assert {k: v for k, v in prepare.main(cfg).items() if k != "seconds"} == {
        "kept": 6, "refused": 3,
    }
    meta = load_meta(cfg.out)
    assert meta["skipped"] == {
        "picture under 5000 bytes": 1, "picture unreadable": 1, "text under 5 characters": 1}
    assert meta["records"] == {"train": 4, "val": 2, "text": 4}
    refused = (tmp_path / "out" / "refused.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in refused] == ["short", "small", "broken"]
    train = load_records(cfg.out, "train", ("image", "captions"))
    assert Pictures(cfg.out, 48).get([r["image"] for r in train]).shape == (4, 3, 48, 48)
    cfg.min_text, cfg.min_bytes = 4, 0
    assert prepare.main(cfg)["kept"] == 8


def test_a_clip_refuses_pairs_that_are_not_alike(tmp_path, clip, monkeypatch):
    """Catches another pair's cosine, a limit on the wrong side: each pair judged alone by hand."""
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)})
    config = dataclasses.replace(clip.config, vocab_size=tokenizer.vocab_size, text_block_size=16)
    model = CLIP(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(0, 0.3)                                  # else all cosines are alike
    checkpoint.save(
        [tmp_path / "ckpt.pt"], stage="clip", configs={"model": dataclasses.asdict(config)},
        model=model, tokenizer=tokenizer, step=0, best=0.0,
    )
    monkeypatch.setattr(similarity, "BATCH", 4)
    source = web(tmp_path / "web")
    cosines = {}
    for shard in sorted(source.glob("*.tar")):
        for s in read_shard(shard, Counter()):
            if s.key.startswith("good"):
                picture = to_tensor(np.asarray(fit(open_image(io.BytesIO(s.picture)), 16)))[None]
                # 16 tokens fit, the end is no input
                ids = torch.tensor([tokenizer.encode(s.text)[:16]])
                with torch.no_grad():
                    z = model.encode_text(ids, torch.tensor([ids.shape[1]]))
                    cosines[s.key] = float((model.encode_image(picture) * z).sum())
    limit = sum(sorted(cosines.values())[2:4]) / 2
    cfg = prepare.Config(
        str(source), clip=str(tmp_path / "ckpt.pt"), write_shards=str(tmp_path / "kept"),
        min_similarity=limit,
    )
    assert prepare.main(cfg)["kept"] == 3
    kept = list(read_shard(tmp_path / "kept" / "00000.tar", Counter()))
    assert {s.key: s.info["similarity"] for s in kept} == {
        k: pytest.approx(v, abs=1e-3) for k, v in cosines.items() if v >= limit}
    refused = (tmp_path / "kept" / "refused.txt").read_text().splitlines()
    low = [f"{key}: similarity {cosine:.3f}" for key, cosine in cosines.items() if cosine < limit]
    assert low == [line for line in refused if "similarity" in line]


def test_a_published_clip_judges_with_its_own_words(tmp_path, clip, monkeypatch):
    """Catches our tokens given to CLIP's text tower, and a text that is too long for it."""
    letters = list(byte_letters().values())
    pieces = [*letters, *(x + "</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    model = CLIP(dataclasses.replace(clip.config, vocab_size=len(pieces), text_block_size=12))
    state = {"stage": "clip", "configs": {"model": dataclasses.asdict(model.config)},
             "model": stir(model).eval().state_dict()}
    export(state, tmp_path / "clip")
    vocab = {p: i for i, p in enumerate(pieces)}
    (tmp_path / "clip" / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "clip" / "merges.txt").write_text("#version: 0.2\n")
    read, rows_of, _ = similarity.load_clip(str(tmp_path / "clip"))
    idx, lengths = rows_of(["A  B", "a text that is far too long"])
    start, end = vocab["<|startoftext|>"], vocab["<|endoftext|>"]
    assert idx[0, :4].tolist() == [start, vocab["a</w>"], vocab["b</w>"], end]
    assert lengths.tolist() == [4, 12] and idx[1, -1] == end
    torch.testing.assert_close(read.encode_text(idx, lengths), model.encode_text(idx, lengths))
    cfg = prepare.Config(str(web(tmp_path / "web")), clip=str(tmp_path / "clip"),
                         min_similarity=-1.0, write_shards=str(tmp_path / "kept"))
    prepare.main(cfg)
    kept = list(read_shard(tmp_path / "kept" / "00000.tar", Counter()))
    assert kept and all(-1 <= s.info["similarity"] <= 1 for s in kept)


def test_two_shards_may_number_their_samples_alike(tmp_path):
    """Catches half of the pictures refused, and two records of one id."""
    source = tmp_path / "web"
    for shard in range(2):
        pairs = [Sample(f"{i}", noisy(seed=i + 3 * shard), "png", f"Text {i} of {shard}.")
                 for i in range(3)]
        pairs[2].key = "0 (2)"                                       # a name that is taken, too
        write_shards(tmp_path / "one", pairs)
        source.mkdir(exist_ok=True)
        (tmp_path / "one" / "00000.tar").rename(source / f"{shard}.tar")
    cfg = prepare.Config(str(source), out=str(tmp_path / "out"), vocab_size=300, val_every=6)
    assert prepare.main(cfg)["kept"] == 6
    keys = ["0", "1", "0 (2)", "0 (2) (2)", "1 (2)", "0 (2) (3)"]
    records = [r for split in ("val", "train") for r in load_records(cfg.out, split, unique=True)]
    assert [r["id"] for r in records] == keys
    assert records[3]["captions"] == ["Text 0 of 1."]
    cfg.write_shards = str(tmp_path / "kept")
    assert prepare.main(cfg)["kept"] == 6
    assert [s.key for s in read(tmp_path / "kept" / "00000.tar")[0]] == keys


def test_a_file_that_cannot_be_used_does_not_end_the_others(tmp_path):
    """Catches tars that end at a name which they cannot hold, and at a link into nowhere."""
    folder = tmp_path / "pairs"
    (folder / "d.png").mkdir(parents=True)
    for name in ("a", "two\nlines", "link"):
        (folder / f"{name}.png").write_bytes(noisy())
        (folder / f"{name}.txt").write_text("A text.")
    (folder / "link.png").unlink()
    (folder / "link.png").symlink_to("nowhere.png")
    (folder / "d.txt").write_text("A text.")
    cfg = prepare.Config(str(folder), write_shards=str(tmp_path / "kept"))
    assert prepare.main(cfg)["kept"] == 1
    refused = (tmp_path / "kept" / "refused.txt").read_text().splitlines()
    assert refused == ["link.png: picture unreadable", "two\\nlines.png: strange name"]


def test_a_folder_of_pictures_with_texts_will_do(tmp_path):
    """Catches pictures without a text taken along, and texts in another encoding."""
    folder = tmp_path / "pairs"
    (folder / "v1.5").mkdir(parents=True)
    for name, text in (
        ("a", b"The first one."), ("v1.5/b", b"The second one."),
        ("c", "caf\xe9s".encode("latin-1")),
    ):
        (folder / f"{name}.png").write_bytes(noisy())
        (folder / f"{name}.txt").write_bytes(text)
    (folder / "d.jpg").write_bytes(jpeg())
    cfg = prepare.Config(str(folder), out=str(tmp_path / "out"), vocab_size=300, val_every=2)
    prepare.main(cfg)
    assert [r["captions"] for s in ("val", "train") for r in load_records(cfg.out, s)] == [
        ["The first one."], ["The second one."]]
    assert load_meta(cfg.out)["skipped"] == {"no text": 1, "text is not UTF-8": 1}


def test_wrong_sources_and_options_are_named(tmp_path):
    """Catches tracebacks, and an old data set lost to a mistake."""
    (tmp_path / "empty").mkdir()
    out = str(tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="empty holds neither"):
        prepare.main(prepare.Config(str(tmp_path / "empty"), out=out))
    with pytest.raises(FileNotFoundError, match="no shard at nowhere.tar"):
        prepare.main(prepare.Config("nowhere.tar", out=out))
    with pytest.raises(ValueError, match="no usable record for train; skipped .*text under 500"):
        source = str(web(tmp_path / "web"))
        prepare.main(prepare.Config(source, min_text=500, max_text=500, out=out))
    assert not Path(out).exists()
    with pytest.raises(ValueError, match="is where the shards are read from"):
        prepare.main(prepare.Config(source, write_shards=source))
    assert len(list(Path(source).glob("*.tar"))) == 2
    kept = prepare.Config(source, min_text=500, max_text=500, write_shards=str(tmp_path / "kept"))
    with pytest.raises(ValueError, match="nothing is left; refused .*text under 500"):
        prepare.main(kept)
    with pytest.raises(ValueError, match="min_text 9 is more than max_text 8"):
        prepare.Config(min_text=9, max_text=8)
    with pytest.raises(ValueError, match="min_text is 0, expected >= 1"):
        prepare.main(prepare.Config(min_text=0))
    with pytest.raises(ValueError, match=r"min_similarity is 3, expected -1 \.\. 1"):
        prepare.main(prepare.Config(min_similarity=3))
