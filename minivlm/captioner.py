"""A VLM with BLIP's three tasks: compare pictures and texts, match them, write captions.

    contrast   img_z = normalize(vit(image) @ Wi),  txt_z = normalize(gpt(text)[end] @ Wt)
    match      yes or no = gpt(image, text)[end] @ Wm
    write      p(token | image, text before)

One GPT reads the text alone, reads it behind the picture, and writes it. (BLIP has a text
encoder and a text decoder, which share all weights except those of self-attention.) The
matching head reads the GPT's output at the end token. Writing does not use that output,
because no token follows the end token.

Source: Li et al. 2022 (BLIP), arXiv:2201.12086, section 3. Left out: momentum encoders,
queues and soft targets.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivlm.clip import MAX_LOGIT_SCALE
from minivlm.loading.batches import Batch
from minivlm.losses import IGNORE_INDEX, clip_loss, equal_rows, match_loss, next_token_loss
from minivlm.attention_masks import last_only
from minivlm.vlm import VLM, VLMConfig


class Captioner(nn.Module):
    """A VLM with a contrastive head and a matching head."""

    def __init__(self, config: VLMConfig):
        super().__init__()
        self.config = config
        Cv = config.vit.n_embd
        C = config.gpt.n_embd
        self.vlm = VLM(config)
        self.img_proj = nn.Linear(Cv, C, bias=False)
        self.txt_proj = nn.Linear(C, C, bias=False)
        temperature = 0.07  # at the start, as in BLIP's code
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.match = nn.Linear(C, 2)
        nn.init.normal_(self.img_proj.weight, std=Cv ** -0.5)
        nn.init.normal_(self.txt_proj.weight, std=C ** -0.5)
        nn.init.normal_(self.match.weight, std=0.02)
        nn.init.zeros_(self.match.bias)

    @property
    def logit_scale(self) -> Tensor:
        """The multiplier of the cosine similarities, exp(log_scale)."""
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the multiplier in [1, 100]; call after every optimizer step."""
        self.log_scale.clamp_(0, MAX_LOGIT_SCALE)

    def prefix_of(self, batch: Batch) -> Tensor | None:
        """Count the leading tokens of each row that see each other both ways, (B,).

        These are all tokens before the first learned one. A causal model has no prefix, so
        it gets None.
        """
        if not self.config.prefix_lm:
            return None
        # targets are shifted: the first one, at position t, is token t + 1, so t + 1 tokens
        # stand before it
        return (batch.targets != IGNORE_INDEX).int().argmax(dim=1) + 1

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run the ViT once for all three tasks.

        (B, 3, S, S) -> img_z (B, C) of unit length, img_emb (B, N, C).
        """
        pooled, feats = self.vlm.vit.pool_and_features(images)       # (B, Cv), (B, N, Cv)
        return F.normalize(self.img_proj(pooled).float(), dim=-1), self.vlm.projector(feats)

    def read(self, idx: Tensor, lengths: Tensor) -> Tensor:
        """Read texts without pictures.

        Ids (B, T), lengths (B,) -> txt_z (B, C) of unit length.
        """
        ends = self.vlm.gpt.hidden(idx, at=last_only(lengths, idx.shape[1]))  # (B, C)
        return F.normalize(self.txt_proj(ends).float(), dim=-1)

    def match_logits(self, idx: Tensor, lengths: Tensor, img_emb: Tensor) -> Tensor:
        """Say whether each text fits the picture before it.

        Ids (B, T) with N placeholders in each row, lengths (B,), img_emb (B, N, C)
        -> logits (B, 2) of no and yes.
        """
        at = last_only(lengths, idx.shape[1])                        # (B, T)
        return self.match(self.vlm.hidden(idx, img_emb=img_emb, at=at))

    def blip_losses(
        self, batch: Batch, skip: int, label_smoothing: float,
        generator: torch.Generator | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Compute BLIP's three losses of a batch; training minimizes their sum.

        The matching loss reads B pairs that fit and 2 B that do not: each picture with
        another row's text, and each text with another row's picture. `hard_negatives` draws
        them, similar ones more often. Rows with equal texts are never each other's
        negatives. If all texts are equal, only the B pairs that fit are left.

        Args:
            batch: rows of N placeholders, the prompt, the caption and its end token, which
                must be an input (`conversation.append_unread`); one picture for each row.
            skip: how many tokens stand before the caption.
            label_smoothing: of the writing loss.
            generator: of the draw of negatives.

        Returns:
            {"itc", "itm", "lm"}: the losses of contrast, match and write, each () in nats;
            and the share of pairs that the matching head classifies right, ().
        """
        idx = batch.idx                                              # (B, T)
        lengths = batch.lengths                                      # (B,)
        at = batch.targets != IGNORE_INDEX                           # (B, T)

        # contrast: each picture finds its caption, each caption its picture
        img_z, img_emb = self.look(batch.images)                     # (B, C), (B, N, C)
        txt_z = self.read(idx[:, skip:], lengths - skip)             # (B, C)
        same = equal_rows(idx)                                       # (B, B)
        with torch.autocast(idx.device.type, enabled=False):        # bfloat16 is too coarse
            itc = clip_loss(img_z, txt_z, self.logit_scale)
            similarity = self.logit_scale * img_z @ txt_z.T          # (B, B)

        # match: the pairs that fit come first
        hidden = self.vlm.hidden(idx, img_emb=img_emb)               # (B, T, C)
        logits = self.match(hidden[last_only(lengths, idx.shape[1])])  # (B, 2)
        if not bool(same.all()):
            texts = hard_negatives(similarity, same, generator)      # (B,)
            pictures = hard_negatives(similarity.T, same, generator)  # (B,)
            other_text = self.match_logits(idx[texts], lengths[texts], img_emb)
            other_picture = self.match_logits(idx, lengths, img_emb[pictures])
            logits = torch.cat([logits, other_text, other_picture])  # (3 B, 2)
        fits = (torch.arange(len(logits), device=logits.device) < len(idx)).long()
        right = (logits.argmax(1) == fits).float().mean()

        # write: the hidden states of the pairs that fit are used a second time
        word_logits = self.vlm.gpt.head(hidden[at])                  # (M, V)
        lm = next_token_loss(word_logits, batch.targets[at], label_smoothing)
        return {"itc": itc, "itm": match_loss(logits, fits), "lm": lm}, right


def hard_negatives(
    similarity: Tensor, same: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Draw for each i a j with another text; the more similar j is to i, the likelier.

        w_ij = softmax(similarity[i])_j + 1e-4,  but 0 where i and j have the same text
        P(j | i) = w_ij / sum_k w_ik

    Args:
        similarity: (B, B) logits between B pictures and their B texts; i fits i.
        same: (B, B) bool, True where i and j have the same text, as on the diagonal.
        generator: a generator on the CPU, where the draw happens.

    Returns:
        (B,) the drawn j of each i.

    Raises:
        ValueError: if all texts are the same, so that none has a negative.

    Source: BLIP, section 3.2; the 1e-4 is from salesforce/BLIP, models/blip_pretrain.py. It
    keeps the draw possible where the softmax puts all probability on the same text.
    """
    if bool(same.all()):
        raise ValueError("all captions of a batch are the same, none has a negative")
    weights = similarity.detach().float().softmax(dim=1) + 1e-4      # (B, B)
    weights.masked_fill_(same, 0)
    columns = torch.multinomial(weights.cpu(), 1, generator=generator)[:, 0]
    return columns.to(similarity.device)
