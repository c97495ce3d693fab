"""LAION's last rule: a picture and its text must be similar, as a CLIP measures it.

The CLIP is one that train_clip.py has trained, or a published one; LAION used OpenAI's.

Source: Schuhmann et al. 2021 (LAION-400M), arXiv:2111.02114, section 2.2.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.webdata.shards import refuse
from minivlm.clip import CLIP
from minivlm.conversation import caption_rows
from minivlm.loading.batches import collate, shorten_rows
from minivlm.loading.images import fit, to_tensor
from minivlm.loading.models import clip_from, fit_of
from minivlm.pretrained.tokenizers import ClipTokenizer
from minivlm.pretrained.weights import is_published, read_vision
from minivlm.running import checkpoint
from minivlm.running.files import expect, read_json

BATCH = 200  # samples that CLIP encodes together; more take more memory


@torch.no_grad()
def by_similarity(
    pairs: Iterator[tuple], clip: str, least: float, skipped: Counter, named: list[str]
) -> Iterator[tuple]:
    """Yield each sample and picture whose cosine is >= least; note it in sample.info.

    Args:
        pairs: samples, each with its opened picture.
        clip: run folder, or folder of a published CLIP; "" lets all samples pass.
        skipped, named: as for `shards.refuse`.
    """
    if not clip:
        yield from pairs
        return
    model, rows_of, mode = load_clip(clip)
    size = model.vit.config.image_size
    while True:
        part = list(islice(pairs, BATCH))
        if not part:
            return
        squares = [np.asarray(fit(picture, size, mode)) for _, picture in part]
        img_z = model.encode_image(to_tensor(np.stack(squares)))     # (B, C)
        ids, lengths = rows_of([sample.text for sample, _ in part])
        txt_z = model.encode_text(ids, lengths)                      # (B, C)
        cosines = (img_z * txt_z).sum(-1).tolist()
        for (sample, picture), cosine in zip(part, cosines):
            if cosine < least:
                # counted under one reason; the line in refused.txt tells the cosine
                reason = f"similarity under {least}"
                refuse(skipped, named, sample.key, reason, f"similarity {cosine:.3f}")
            else:
                sample.info["similarity"] = round(cosine, 4)
                yield sample, picture


def load_clip(
    path: str,
) -> tuple[CLIP, Callable[[list[str]], tuple[Tensor, Tensor]], str]:
    """Load a CLIP, and make the function that encodes texts for its text tower.

    Texts that are too long for the tower are cut.

    Returns:
        the model; the function: B texts -> ids (B, T) and lengths (B,); and how the model
        wants pictures to be made square, see `images.fit`.
    """
    if is_published(path):
        expect(read_json(Path(path) / "config.json"), Path(path), model_type="clip")
        state = read_vision(path)
        model = clip_from(state).eval()
        words = ClipTokenizer.read(path)
        rows_of = partial(words.rows, block_size=model.text.block_size, cut=True)
        return model, rows_of, fit_of(state)
    state = checkpoint.load(path, ("clip",))
    tokenizer = checkpoint.tokenizer_of(state)
    model = clip_from(state).eval()
    longest = model.text.block_size

    def rows_of(texts: list[str]) -> tuple[Tensor, Tensor]:
        rows = shorten_rows(caption_rows(texts, tokenizer), longest, 1)
        batch = collate(rows, tokenizer.pad, longest)
        return batch.idx, batch.lengths

    return model, rows_of, fit_of(state)
