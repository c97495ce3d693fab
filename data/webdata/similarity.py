"""LAION's last rule: a CLIP must find a picture and its text alike.

Any CLIP will do that train_clip.py has made, or the published ones, which LAION used.

Source: Schuhmann et al. 2021 (LAION-400M), arXiv:2111.02114, section 2.2. Used by: prepare.py.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minivlm.clip import CLIP
from minivlm.conversation import caption_rows
from minivlm.loading.batches import collate, shorten_rows
from minivlm.loading.images import fit, to_tensor
from minivlm.loading.models import clip_from
from minivlm.pretrained.tokenizers import ClipTokenizer
from minivlm.pretrained.weights import read_clip
from minivlm.running import checkpoint
from minivlm.tokenizer import Tokenizer

BATCH = 200  # pairs that CLIP looks at together


@torch.no_grad()
def by_similarity(
    pairs: Iterator[tuple], clip: str, least: float, skipped: Counter, named: list[str]
) -> Iterator[tuple]:
    """Pairs that a CLIP finds alike enough, cosine in info["similarity"]; all without a CLIP."""
    if not clip:
        yield from pairs
        return
    model, rows_of = load_clip(clip)
    size = model.vit.config.image_size

    def judge(part: list[tuple]) -> Iterator[tuple]:
        squares = [np.asarray(fit(picture, size)) for _, picture in part]
        img_z = model.encode_image(to_tensor(np.stack(squares)))     # (B, C)
        txt_z = model.encode_text(*rows_of([sample.text for sample, _ in part]))
        cosines = (img_z * txt_z).sum(-1).tolist()
        for (sample, picture), cosine in zip(part, cosines):
            if cosine < least:
                skipped[f"similarity under {least}"] += 1
                named.append(f"{sample.key}: similarity {cosine:.3f}")
            else:
                sample.info["similarity"] = round(cosine, 4)
                yield sample, picture

    part: list[tuple] = []
    for pair in pairs:
        part.append(pair)
        if len(part) == BATCH:
            yield from judge(part)
            part = []
    if part:
        yield from judge(part)


def load_clip(path: str) -> tuple[CLIP, Callable[[list[str]], tuple[Tensor, Tensor]]]:
    """A CLIP, and what makes its text tower's ids and lengths of texts, long ones cut."""
    if (Path(path) / "config.json").is_file() and not list(Path(path).glob("*.pt")):
        model, words = clip_from(read_clip(path)).eval(), ClipTokenizer.read(path)
        return model, partial(words.rows, block_size=model.text.block_size, cut=True)
    state = checkpoint.load(path, ("clip",))
    tokenizer, model = Tokenizer.from_text(state["tokenizer"]), clip_from(state).eval()
    longest = model.text.block_size

    def rows_of(texts: list[str]) -> tuple[Tensor, Tensor]:
        rows = shorten_rows(caption_rows(texts, tokenizer), longest, 1)
        batch = collate(rows, tokenizer.pad, longest)
        return batch.idx, batch.lengths

    return model, rows_of
