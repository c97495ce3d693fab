"""minivlm/captioner.py: three tasks on one network, hard negatives, a prefix that sees itself."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minivlm.captioner import Captioner, hard_negatives
from minivlm.conversation import caption_rows
from minivlm.loading.batches import Batch, collate, cut_rows
from minivlm.losses import IGNORE_INDEX, clip_loss, next_token_loss
from minivlm.attention_masks import last_only, prefix_mask
from minivlm.tokenizer import Tokenizer
from minivlm.vlm import VLMConfig

TOKENIZER = Tokenizer({bytes([i]): i for i in range(256)})
PROMPT = TOKENIZER.encode("a ")
N = 4  # image tokens of the tiny models


@pytest.fixture
def captioner(vlm) -> Captioner:
    """A tiny captioner with the sizes of conftest's VLM and the byte tokenizer's vocabulary."""
    sizes = {
        "vocab_size": TOKENIZER.vocab_size, "block_size": 48, "n_layer": 2, "n_head": 2,
        "n_embd": 32,
    }
    config = VLMConfig(TOKENIZER.image, vlm.config.vit, type(vlm.config.gpt)(**sizes))
    return Captioner(config)


def batch_of(captions: list[str]) -> Batch:
    """Captions behind pictures of noise, as train_caption.py makes them."""
    rows = caption_rows(captions, TOKENIZER, N, PROMPT, end=True)
    images = torch.randn(len(captions), 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return collate(rows, TOKENIZER.pad, 48, None, images, [1] * len(captions))


CAPTIONS = ["red ring", "blue", "green cross", "x"]


# --- the three tasks ---


def test_the_losses_are_those_of_the_parts_done_one_by_one(captioner):
    """Catches: a text read at a pad, the prompt in the contrast, wrong labels, rows mixed up."""
    b, skip = batch_of(CAPTIONS), N + len(PROMPT)
    losses, right = captioner.blip_losses(b, skip, 0.1, torch.Generator().manual_seed(0))

    img_z = F.normalize(captioner.img_proj(captioner.vlm.vit.pool(b.images)), dim=-1)
    txt_z = []
    for caption in CAPTIONS:
        ids = torch.tensor([TOKENIZER.encode(caption) + [TOKENIZER.endoftext]])
        txt_z.append(F.normalize(captioner.txt_proj(captioner.vlm.gpt.hidden(ids)[0, -1]), dim=-1))
    txt_z = torch.stack(txt_z)
    itc = clip_loss(img_z, txt_z, captioner.logit_scale)
    torch.testing.assert_close(losses["itc"], itc, rtol=1e-4, atol=1e-5)

    at = b.targets != IGNORE_INDEX
    lm = next_token_loss(captioner.vlm(b.idx, b.images, at=at), b.targets[at], 0.1)
    torch.testing.assert_close(losses["lm"], lm, rtol=1e-4, atol=1e-5)

    generator = torch.Generator().manual_seed(0)
    similarity = captioner.logit_scale * img_z @ txt_z.T
    eye = torch.eye(4, dtype=torch.bool)
    texts = hard_negatives(similarity, eye, generator)
    pictures = hard_negatives(similarity.T, eye, generator)
    pairs = [(i, i, 1) for i in range(4)] + [(i, int(texts[i]), 0) for i in range(4)]
    pairs += [(int(pictures[i]), i, 0) for i in range(4)]
    total, hits = 0.0, 0
    for i, j, fits in pairs:
        ids = [TOKENIZER.image] * N + PROMPT + TOKENIZER.encode(CAPTIONS[j]) + [TOKENIZER.endoftext]
        logits = captioner.match(
            captioner.vlm.hidden(torch.tensor([ids]), b.images[i:i + 1])[:, -1]
        )
        total += F.cross_entropy(logits, torch.tensor([fits])).item() / len(pairs)
        hits += int(logits.argmax()) == fits
    assert losses["itm"].item() == pytest.approx(total, abs=1e-4)
    assert float(right) == pytest.approx(hits / len(pairs))


def test_the_first_losses_are_what_theory_says(captioner):
    """Catches a head that is not near zero at first: ln B, ln 2 and ln V."""
    losses, _ = captioner.blip_losses(batch_of(CAPTIONS), N + len(PROMPT), 0.0)
    assert losses["itm"].item() == pytest.approx(math.log(2), abs=0.1)
    assert losses["lm"].item() == pytest.approx(math.log(TOKENIZER.vocab_size), abs=0.1)


def test_every_task_trains_what_it_should(captioner):
    """Catches a detached tower.

    Contrast reaches ViT and GPT, matching the projector too, writing no head.
    """
    b, skip = batch_of(CAPTIONS), N + len(PROMPT)
    reached = {}
    for task in ("itc", "itm", "lm"):
        captioner.zero_grad()
        captioner.blip_losses(b, skip, 0.0, torch.Generator().manual_seed(0))[0][task].backward()
        reached[task] = {".".join(name.split(".")[:2]) for name, p in captioner.named_parameters()
                         if p.grad is not None and float(p.grad.abs().sum()) > 0}
    assert {"vlm.vit", "vlm.gpt", "img_proj.weight", "txt_proj.weight"} <= reached["itc"]
    assert "vlm.projector" not in reached["itc"] and "match.weight" not in reached["itc"]
    assert reached["itm"] == {"vlm.vit", "vlm.projector", "vlm.gpt", "match.weight", "match.bias"}
    assert reached["lm"] == {"vlm.vit", "vlm.projector", "vlm.gpt"}


def test_a_tiny_captioner_learns_a_batch_by_heart(captioner):
    """Catches a task that does not learn: all matched, each caption written, each pair found."""
    b, skip = batch_of(CAPTIONS), N + len(PROMPT)
    optimizer = torch.optim.AdamW(captioner.parameters(), lr=3e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        optimizer.zero_grad()
        losses, right = captioner.blip_losses(b, skip, 0.0, generator)
        sum(losses.values()).backward()
        optimizer.step()
        captioner.clamp_scale()
    assert right.item() == 1 and all(v.item() < 0.1 for v in losses.values())


# --- hard negatives ---


def test_hard_negatives_are_drawn_by_similarity_and_never_the_pair_itself():
    """Catches the diagonal drawn, a uniform draw, and softmax over the wrong axis.

    Row 0 of softmax, without its own 0.5: 0.3 and 0.2, so 60 % and 40 % of its draws.
    """
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.05, 0.9, 0.05]])
    generator = torch.Generator().manual_seed(0)
    eye = torch.eye(3, dtype=torch.bool)
    drawn = torch.stack([hard_negatives(p.log() + 7, eye, generator) for _ in range(4000)])
    assert all(not (drawn[:, i] == i).any() for i in range(3))
    assert (drawn[:, 0] == 1).float().mean().item() == pytest.approx(0.6, abs=0.03)
    assert (drawn[:, 1] == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert (drawn[:, 2] == 1).float().mean().item() == pytest.approx(0.9 / 0.95, abs=0.02)


def test_a_pair_that_is_sure_of_itself_still_gets_a_negative():
    """Catches a draw from weights that are all zero, where the softmax is one on the diagonal."""
    eye = torch.eye(4, dtype=torch.bool)
    drawn = hard_negatives(torch.eye(4) * 1000, eye).tolist()
    assert all(i != j for i, j in enumerate(drawn))


def test_an_equal_text_is_no_negative():
    """Catches a right pair learned as a wrong one: rows 0 and 2 say the same."""
    same = torch.eye(3, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([hard_negatives(torch.zeros(3, 3), same, generator) for _ in range(50)])
    assert set(drawn[:, 0].tolist()) == set(drawn[:, 2].tolist()) == {1}
    assert set(drawn[:, 1].tolist()) == {0, 2}
    with pytest.raises(ValueError, match="none has a negative"):
        hard_negatives(torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool))


def test_a_batch_of_one_caption_has_no_negatives_and_is_judged_all_the_same(captioner):
    """Catches a run that stops at a last batch of one row: fitting pairs alone are judged."""
    for captions in (["red ring"], ["blue", "blue"]):
        b = batch_of(captions)
        losses, right = captioner.blip_losses(b, N + len(PROMPT), 0.0)
        fits = captioner.match_logits(b.idx, b.lengths, captioner.look(b.images)[1])
        want = F.cross_entropy(fits, torch.ones(len(b.idx), dtype=torch.long))
        torch.testing.assert_close(losses["itm"], want, rtol=1e-4, atol=1e-5)
        assert losses["itc"].item() == pytest.approx(math.log(len(captions)), abs=1e-4)
        assert float(right) in (0, 0.5, 1)


def test_the_contrast_is_computed_in_full_precision(captioner):
    """Catches similarities times 100 rounded to bfloat16 inside autocast."""
    b, skip = batch_of(CAPTIONS), N + len(PROMPT)
    captioner.log_scale.data.fill_(math.log(100))
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = captioner.blip_losses(b, skip, 0.0, torch.Generator().manual_seed(0))
        img_z, _ = captioner.look(b.images)
        txt_z = captioner.read(b.idx[:, skip:], b.lengths - skip)
    want = clip_loss(img_z, txt_z, captioner.logit_scale)
    assert losses["itc"].dtype == torch.float32
    torch.testing.assert_close(losses["itc"], want, rtol=1e-5, atol=1e-6)


def test_the_last_token_is_found_by_length():
    """Catches an index from the end, which is a pad in shorter rows."""
    assert last_only(torch.tensor([2, 1, 3]), 3).nonzero().tolist() == [[0, 1], [1, 0], [2, 2]]


# --- the prefix ---


def test_a_cut_leaves_the_suffix_to_be_learned():
    """Catches a trained prefix (it sees its own answer), an empty suffix, a cut in the picture."""
    rows = caption_rows(["red ring", "x"], TOKENIZER, N, PROMPT, end=True)
    cuts = set()
    for seed in range(60):
        made = cut_rows(rows, N + len(PROMPT), torch.Generator().manual_seed(seed))
        for (ids, wanted), (old, answer) in zip(made, rows):
            assert ids == old
            cut = wanted.index(True)
            assert wanted == [i >= cut and a for i, a in enumerate(answer)]
            assert N + len(PROMPT) <= cut < len(ids) - 1 and any(wanted)
            cuts.add((len(ids), cut))
    # every cut occurs
    assert len([c for c in cuts if c[0] == len(rows[0][0])]) == len("red ring") + 1


def test_prefix_and_suffix_see_what_they_should(captioner):
    """Catches: an image position seeing the suffix, a suffix seeing the future, an empty row."""
    captioner.config = replace(captioner.config, prefix_lm=True)
    rows = cut_rows(caption_rows(CAPTIONS, TOKENIZER, N, PROMPT, end=True), N + len(PROMPT),
                    torch.Generator().manual_seed(3))
    b = collate(rows, TOKENIZER.pad, 48, None, torch.randn(4, 3, 16, 16), [1] * 4)
    prefix = captioner.prefix_of(b)                                  # (B,)
    T = b.idx.shape[1]
    mask = prefix_mask(T, prefix)[:, 0]                              # (B, T, T)
    assert mask.any(-1).all()
    for i, p in enumerate(prefix.tolist()):
        first = (b.targets[i] != IGNORE_INDEX).nonzero()[0].item()
        assert p == first + 1 and p >= N + len(PROMPT)
        assert mask[i, :p, :p].all() and not mask[i, :p, p:].any()
        assert torch.equal(mask[i, p:], torch.ones(T, T).tril().bool()[p:])
        assert (b.targets[i, :first] == IGNORE_INDEX).all()


def test_a_causal_captioner_has_no_prefix(captioner):
    """Catches a bidirectional mask in lm and blip, whose prefix is trained nowhere."""
    assert captioner.prefix_of(batch_of(CAPTIONS)) is None
