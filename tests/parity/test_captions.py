"""Captions: the loss of writing beside BLIP's, masks beside those of transformers.

The draw of negatives, whose code is on no package index, is in test_metamorphic.py.
"""

import pytest
import torch
from torch import Tensor

from minivlm.losses import next_token_loss
from minivlm.attention_masks import prefix_mask, segment_mask
from parity.peers import whole


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_caption_loss_is_blips(agreement, label_smoothing):
    """Catches a shift by none or two, the prompt in the mean, smoothing that ignored tokens join.

    BLIP shifts inside, minivlm's targets come shifted. A prompt and pads are -100 in both.
    """
    peer = whole("transformers")
    small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1,
             "intermediate_size": 16}
    text = {"vocab_size": 19, "max_position_embeddings": 16, "encoder_hidden_size": 8,
            "label_smoothing": label_smoothing, **small}
    model = peer.BlipForConditionalGeneration(peer.BlipConfig(
        text_config=text, vision_config={"image_size": 8, "patch_size": 4, **small},
    )).double().eval()
    seen = agreement(f"caption loss, label smoothing {label_smoothing}: loss, gradients",
                     "transformers", "BlipForConditionalGeneration", 1e-12)
    for rng in seen.cases():
        B, T = rng.randint(1, 5), rng.randint(2, 16)
        idx = torch.randint(19, (B, T))
        labels, prompt = idx.clone(), rng.randrange(T - 1)
        labels[:, :prompt + 1] = -100
        for row in labels[1:]:
            row[rng.randint(prompt + 1, T):] = -100
        out = model(torch.randn(B, 3, 8, 8, dtype=torch.float64), idx, labels=labels)
        ours = next_token_loss(out.logits[:, :-1], labels[:, 1:], label_smoothing)
        seen.close_with_grads(ours, out.loss, [out.logits])


def grid(B: int, queries: Tensor, n_keys: int) -> tuple[Tensor, ...]:
    """Row, head, query and key of every entry of a mask, as transformers' functions take them."""
    return (torch.arange(B)[:, None, None, None], torch.zeros(1, 1, 1, 1, dtype=torch.long),
            queries[:, None, :, None], torch.arange(n_keys)[None, None, None])


def test_the_prefix_mask_is_paligemmas(agreement):
    """Catches a prefix that sees what follows, one token too long or short, an empty row.

    There the prefix is a block that sees itself both ways, laid over the causal mask.
    """
    masks = whole("transformers.masking_utils")
    seen = agreement("prefix mask: truth values, no empty row", "transformers",
                     "masking_utils.causal_mask_function, blockwise_overlay", 0)
    for rng in seen.cases():
        B, T = rng.randint(1, 5), rng.randint(1, 20)
        positions = torch.arange(T).expand(B, T)
        prefix = torch.randint(0, T + 1, (B,))
        block = torch.where(positions < prefix[:, None], 0, -1)
        allowed = masks.or_masks(masks.causal_mask_function, masks.blockwise_overlay(block))
        ours = prefix_mask(T, prefix)
        seen.same(ours, allowed(*grid(B, positions, T)))
        seen.same(bool(ours.any(-1).all()), True)


def test_the_mask_of_packed_answers_is_transformers(agreement):
    """Catches an answer that sees another one, or what comes after it in its own.

    transformers packs texts that share nothing; the prompt before the answers is added by hand.
    """
    masks = whole("transformers.masking_utils")
    seen = agreement("mask of packed answers: truth values, no empty row", "transformers",
                     "masking_utils.causal_mask_function, packed_sequence_mask_function", 0)
    for rng in seen.cases():
        rows = []
        for _ in range(rng.randint(1, 4)):
            lengths = [rng.randint(0, 4)] + [rng.randint(1, 4) for _ in range(rng.randint(1, 4))]
            row = [k for k, n in enumerate(lengths) for _ in range(n)]
            rows.append(row + [-1] * (20 - len(row)))
        segments = torch.tensor(rows)                                # (B, T)

        def prompt(b: Tensor, h: Tensor, q: Tensor, kv: Tensor, segments=segments) -> Tensor:
            return segments[b, kv] == 0

        allowed = masks.and_masks(masks.causal_mask_function, masks.or_masks(
            masks.packed_sequence_mask_function(segments), prompt))
        ours, B = segment_mask(segments), len(rows)
        seen.same(ours, allowed(*grid(B, torch.arange(20).expand(B, 20), 20)))
        seen.same(bool(ours.any(-1).all()), True)
