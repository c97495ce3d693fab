"""data/capfilt.py: what is kept, what is written, and how well noise is found."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from data import capfilt
from minivlm.captioner import Captioner
from minivlm.generate import beam_search
from minivlm.loading.images import Pictures
from minivlm.loading.prepared import load_records
from minivlm.running import checkpoint
from minivlm.tokenizer import Tokenizer
from minivlm.vlm import VLMConfig

TOKENIZER = Tokenizer({bytes([i]): i for i in range(256)})
PROMPT = TOKENIZER.encode("a ")


@pytest.fixture
def captioner(vlm) -> Captioner:
    """A stirred tiny captioner, whose judgments differ from caption to caption."""
    gpt = dataclasses.replace(vlm.config.gpt, vocab_size=TOKENIZER.vocab_size, block_size=48)
    model = Captioner(VLMConfig(TOKENIZER.image, vlm.config.vit, gpt)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3)
    return model


def saved(model: Captioner, folder: Path, objective: str = "blip") -> str:
    """The captioner as train_caption.py would leave it."""
    folder.mkdir()
    configs = {
        "model": dataclasses.asdict(model.config), "objective": objective, "prompt": "a ",
    }
    checkpoint.save(
        [folder / "ckpt.pt"], stage="caption", configs=configs, model=model, tokenizer=TOKENIZER,
        step=1, best=0.0,
    )
    return str(folder)


@pytest.fixture
def web(tmp_path) -> Path:
    """Twelve web pictures of noise, a third of their captions wrong."""
    folder = tmp_path / "web"
    folder.mkdir()
    rng = np.random.default_rng(0)
    np.save(folder / "web.npy", rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
    records = [
        {"id": f"w{i}", "image": f"web.npy#{i}", "captions": [f"Caption {i}."],
         "noise": "wrong" if i % 3 == 0 else ""} for i in range(12)
    ]
    (folder / "web.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def test_a_judgment_is_the_matching_heads_read_at_the_captions_end(captioner, web):
    """Catches a judgment read at a pad, of another picture, or of "no" for "yes"."""
    images = Pictures(web, 16).get(["web.npy#0", "web.npy#1", "web.npy#2"])
    captions = ["Red.", "A much longer one.", "x" * 60]
    _, img_emb = captioner.look(images)
    got = capfilt.fits(captioner, TOKENIZER, img_emb, captions, PROMPT)
    for i, caption in enumerate(captions):
        ids = [TOKENIZER.image] * 4 + PROMPT + TOKENIZER.encode(caption)
        ids = ids[:47] + [TOKENIZER.endoftext]  # what does not fit is judged by its beginning
        hidden = captioner.vlm.hidden(torch.tensor([ids]), images[i:i + 1])[:, -1]
        want = captioner.match(hidden).softmax(1)[0, 1].item()
        assert got[i] == pytest.approx(want, abs=1e-5)
    assert len({round(p, 4) for p in got}) == 3


def test_what_fits_is_kept_and_what_does_not_is_gone(captioner, web, tmp_path):
    """Catches captions kept below the threshold, a record that loses its picture, a count apart."""
    run = saved(captioner, tmp_path / "run")
    records = load_records(web, "web")
    _, img_emb = captioner.look(Pictures(web, 16).get([r["image"] for r in records]))
    web_captions = [r["captions"][0] for r in records]
    p = capfilt.fits(captioner, TOKENIZER, img_emb, web_captions, PROMPT)
    limit = sorted(p)[6]
    cfg = capfilt.Config(run, str(web), threshold=limit, max_new_tokens=6, batch_size=5,
                         correct_prior=False)
    figures = capfilt.main(cfg)
    kept = {r["id"]: r for r in load_records(web, "capfilt")}
    assert figures["web"] == 6 and figures["kept"] == len(kept) <= 12
    for record, probability in zip(records, p):
        mine = kept.get(record["id"], {"captions": [], "caption_source": []})
        assert ("web" in mine["caption_source"]) == (probability >= limit)
        assert (record["captions"][0] in mine["captions"]) == (probability >= limit)
        assert mine.get("image", record["image"]) == record["image"]
    report = json.loads((web / "capfilt.report.json").read_text())
    assert report["figures"] == figures and report["config"]["threshold"] == limit
    n_new = sum(r["caption_source"].count("synthetic") for r in kept.values())
    assert n_new == figures["synthetic"]
    assert capfilt.main(dataclasses.replace(cfg, synthetic=False))["synthetic"] == 0
    assert len(load_records(web, "capfilt")) == 6


def test_a_picture_that_cannot_be_read_is_counted(captioner, web, tmp_path):
    """Catches an hour's captions lost to one picture, and captions given to its neighbor."""
    cfg = capfilt.Config(saved(captioner, tmp_path / "run"), str(web), threshold=0.0,
                         max_new_tokens=4, batch_size=5, correct_prior=False)
    capfilt.main(cfg)
    want = [r["captions"][0] for r in load_records(web, "capfilt")]
    records = load_records(web, "web")
    lost = (0, 7)
    for i in lost:
        records[i]["image"] = "nowhere.png"
    (web / "web.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    figures = capfilt.main(cfg)
    assert (figures["pictures"], figures["unreadable"], figures["captions"]) == (10, 2, 10)
    left = [i for i in range(12) if i not in lost]
    kept = load_records(web, "capfilt")
    assert [r["id"] for r in kept] == [records[i]["id"] for i in left]
    assert [r["captions"][0] for r in kept] == [want[i] for i in left]
    (web / "web.npy").unlink()
    with pytest.raises(ValueError, match="none of 12 pictures can be read; no picture at"):
        capfilt.main(cfg)


def test_equal_seeds_write_equal_captions(captioner, web):
    """Catches sampling from the global generator, and a text that is nothing."""
    images, made = Pictures(web, 16).get([f"web.npy#{i}" for i in range(4)]), []
    cfg = capfilt.Config(max_new_tokens=6)
    for seed in (0, 0, 1):
        torch.randn(3)                                               # the global one goes on
        generator, state = torch.Generator().manual_seed(seed), torch.get_rng_state()
        made.append(capfilt.write_captions(captioner, TOKENIZER, images, PROMPT, cfg, generator))
        assert torch.equal(torch.get_rng_state(), state)
    assert made[0] == made[1] != made[2] and all(text.strip() for text in made[0])


def test_beam_search_writes_in_place_of_sampling(captioner, web):
    """Catches an option without effect, and text that is drawn all the same."""
    images = Pictures(web, 16).get(["web.npy#0", "web.npy#5"])
    prompt = [TOKENIZER.image] * captioner.config.vit.n_tokens + PROMPT
    want = beam_search(captioner.vlm, images, [prompt] * 2, n_beams=2, max_new_tokens=6,
                       stop=TOKENIZER.endoftext)
    for seed in (0, 1):
        got = capfilt.write_captions(
            captioner, TOKENIZER, images, PROMPT, capfilt.Config(n_beams=2, max_new_tokens=6),
            torch.Generator().manual_seed(seed))
        assert got == [TOKENIZER.decode(ids).strip() or "." for ids, _ in want]


def test_false_captions_are_counted_where_the_scene_is_known(captioner, web, tmp_path, monkeypatch):
    """Catches captions that are held against another picture's things."""
    rows = [json.loads(line) for line in (web / "web.jsonl").read_text().splitlines()]
    shown = [{"name": name, "attributes": {"color": "red", "size": "small"}, "place": "left",
              "box": [0.1, 0.1, 0.3, 0.3]} for name in ("cup", "cat")]
    rows = [r | {"objects": [shown[i % 2]]} for i, r in enumerate(rows)]
    (web / "web.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    names = {f"red {name}": f"red {name}" for name in ("cup", "cat")}
    (web / "meta.json").write_text(
        json.dumps({"name": "t", "image_size": 16, "phrases": names}))
    monkeypatch.setattr(capfilt, "write_captions", lambda _, __, images, *rest: [
        "A red cup."] * len(images))
    cfg = capfilt.Config(saved(captioner, tmp_path / "run"), str(web), threshold=0.0)
    figures = capfilt.main(cfg)
    assert figures["synthetic_false"] == 0.5 and figures["synthetic_kept"] == 1


def test_every_caption_of_a_picture_is_judged(captioner, web, tmp_path):
    """Catches all captions but the first lost, and judgments given to another picture's."""
    records = load_records(web, "web")
    for i, r in enumerate(records):
        r["captions"] = [f"Caption {i} {k}." for k in range(1 + i % 3)]
    (web / "web.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    _, img_emb = captioner.look(Pictures(web, 16).get([r["image"] for r in records]))
    want = [(i, c, capfilt.fits(captioner, TOKENIZER, img_emb[i:i + 1], [c], PROMPT)[0])
            for i, r in enumerate(records) for c in r["captions"]]
    limit = sorted(p for *_, p in want)[len(want) // 2]
    cfg = capfilt.Config(
        saved(captioner, tmp_path / "run"), str(web), threshold=limit - 1e-5, batch_size=5,
        synthetic=False, correct_prior=False, out=str(tmp_path / "new" / "kept.jsonl"),
    )
    figures = capfilt.main(cfg)
    assert (figures["captions"], figures["pictures"]) == (24, 12) and "precision" not in figures
    kept = {r["id"]: r["captions"] for r in load_records(tmp_path / "new", "kept")}
    for i, r in enumerate(records):
        assert kept.get(r["id"], []) == [c for j, c, p in want if j == i and p >= limit]
    with pytest.raises(ValueError, match="is the file that is read"):
        capfilt.main(dataclasses.replace(cfg, out=str(web / "web.jsonl")))


def test_precision_and_recall_are_the_numbers_worked_by_hand():
    """Catches the two mixed up: of four removed three are noise, of five noisy three are found."""
    noise = ["wrong"] * 4 + ["useless"] + [""] * 5
    kept = [False, False, False, True, True, False, True, True, True, True]
    records = [{"noise": n} for n in noise]
    assert capfilt.report_of(records, kept) == {"precision": 3 / 4, "recall": 3 / 5, "noisy": 0.5}
    assert capfilt.report_of([{}], [True]) == {}
    # nothing removed, nothing noisy: shares of nothing are left out
    assert capfilt.report_of([{"noise": ""}], [True]) == {"noisy": 0}


def test_a_calibrated_head_is_right_again_where_more_pairs_fit():
    """Catches the correction turned round, and a share that stays at a third.

    Each pair shows a number, N(1, 1) if it fits, N(-1, 1) if not; p is the posterior of a head
    that has seen one fitting pair in three. Of those judged, 80 % fit: the true log-odds are the
    head's plus ln 4 - ln(1/2), and deciding by them is right more often than by p.
    """
    truth = torch.rand(20_000) < 0.8
    x = torch.randn(20_000) + torch.where(truth, 1.0, -1.0)
    p = torch.sigmoid(2 * x + math.log(1 / 2))
    q, share = capfilt.correct_prior(p.tolist())
    want = torch.sigmoid(2 * x + math.log(4))
    assert share == pytest.approx(0.8, abs=0.01)
    assert (torch.tensor(q) - want).abs().max() < 0.02
    assert ((torch.tensor(q) > 0.5) == truth).float().mean() > ((p > 0.5) == truth).float().mean()


def test_judgments_without_doubt_stay_as_they_are():
    """Catches a NaN of an infinite logit, and a share that leaves 0 .. 1."""
    q, share = capfilt.correct_prior([1.0, 1.0, 0.0, 0.0])
    assert q == pytest.approx([1, 1, 0, 0], abs=1e-4) and share == pytest.approx(0.5, abs=1e-4)
    assert capfilt.correct_prior([1.0, 1.0])[1] == pytest.approx(1, abs=1e-4)
    assert capfilt.correct_prior([0.0])[1] == pytest.approx(0, abs=1e-4)


def test_wrong_runs_and_options_are_refused(captioner, web, tmp_path):
    """Catches a filter without a trained head, and an empty file."""
    lm = saved(captioner, tmp_path / "lm", "lm")
    with pytest.raises(ValueError, match="was trained by lm; only blip trains a matching head"):
        capfilt.main(capfilt.Config(lm, str(web)))
    blip = saved(captioner, tmp_path / "blip")
    with pytest.raises(ValueError, match="nothing of .*web.jsonl is kept"):
        capfilt.main(capfilt.Config(blip, str(web), threshold=1.0, max_new_tokens=4,
                                    correct_prior=False))
    assert not (web / "capfilt.jsonl").exists()
    for name, value in (("repetition_penalty", 0.5), ("threshold", 1.1), ("top_p", -0.1),
                        ("temperature", 0.0)):
        with pytest.raises(ValueError, match=f"{name} is {value}, expected "):
            capfilt.main(capfilt.Config(blip, str(web), **{name: value}))
