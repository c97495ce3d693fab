"""A VLM that writes captions and says whether a text fits: BLIP's three tasks on one network.

    contrast   img_z = normalize(vit(image) @ Wi),  txt_z = normalize(gpt(text)[end] @ Wt)
    match      yes or no = gpt(image, text)[end] @ Wm
    write      p(token | image, text before)

One GPT reads the text alone, reads it behind the picture, and writes it; BLIP's text encoder and
decoder share all weights but self-attention. The end token's output is free for matching: nothing
comes after it that it would have to predict.

Source: Li et al. 2022 (BLIP), arXiv:2201.12086, section 3. Left out: momentum encoders, queues and
soft targets. Used by: train_caption.py, evaluate.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivlm.clip import MAX_LOGIT_SCALE
from minivlm.loading.batches import Batch
from minivlm.losses import IGNORE_INDEX, clip_loss, equal_rows, match_loss, next_token_loss
from minivlm.masks import last_only
from minivlm.vlm import VLM, VLMConfig


class Captioner(nn.Module):
    """A VLM with a contrastive head and a matching head."""

    def __init__(self, config: VLMConfig):
        super().__init__()
        self.config = config
        Cv, C = config.vit.n_embd, config.gpt.n_embd
        self.vlm = VLM(config)
        self.img_proj = nn.Linear(Cv, C, bias=False)
        self.txt_proj = nn.Linear(C, C, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # BLIP's temperature .07
        self.match = nn.Linear(C, 2)
        nn.init.normal_(self.img_proj.weight, std=Cv ** -0.5)
        nn.init.normal_(self.txt_proj.weight, std=C ** -0.5)
        nn.init.normal_(self.match.weight, std=0.02)
        nn.init.zeros_(self.match.bias)

    @property
    def logit_scale(self) -> Tensor:
        """The multiplier of the cosine similarities, already exponentiated."""
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the multiplier in [1, 100]; call after every optimizer step."""
        self.log_scale.clamp_(0, MAX_LOGIT_SCALE)

    def prefix_of(self, batch: Batch) -> Tensor | None:
        """How much of each row sees itself both ways, (B,): all up to the first learned token.

        None for a causal model.
        """
        if not self.config.prefix_lm:
            return None
        return (batch.targets != IGNORE_INDEX).int().argmax(dim=1) + 1

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """One pass of the ViT for all tasks.

        (B, 3, S, S) -> img_z (B, C) of unit length, img_emb (B, N, C).
        """
        pooled, feats = self.vlm.vit.pool_and_features(images)       # (B, Cv), (B, N, Cv)
        return F.normalize(self.img_proj(pooled).float(), dim=-1), self.vlm.projector(feats)

    def read(self, idx: Tensor, lengths: Tensor) -> Tensor:
        """Texts without a picture: (B, T) ids, (B,) lengths -> txt_z (B, C) of unit length."""
        ends = self.vlm.gpt.hidden(idx, at=last_only(lengths, idx.shape[1]))     # (B, C)
        return F.normalize(self.txt_proj(ends).float(), dim=-1)

    def match_logits(self, idx: Tensor, lengths: Tensor, img_emb: Tensor) -> Tensor:
        """Does the text fit the picture before it?

        (B, T) ids with N placeholders a row, (B,) lengths, (B, N, C) -> (B, 2), no and yes.
        """
        at = last_only(lengths, idx.shape[1])                        # (B, T)
        return self.match(self.vlm.hidden(idx, img_emb=img_emb, at=at))

    def blip_losses(
        self, batch: Batch, skip: int, label_smoothing: float,
        generator: torch.Generator | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """BLIP's three losses of a batch; their plain sum is what it minimizes.

        Each pair meets its picture's hardest texts and its text's hardest pictures: B fitting
        pairs, 2 B that do not fit. Equal texts are never each other's negative; where all are
        equal, only the fitting pairs are judged.

        Args:
            batch: rows of N placeholders, the prompt, the caption and the end token as input; one
                picture a row.
            skip: how many tokens stand before the caption.
            label_smoothing: of the writing loss.

        Returns:
            {"itc", "itm", "lm"}: () in nats; and the share of the 3 B pairs judged rightly, ().
        """
        idx, lengths, at = batch.idx, batch.lengths, batch.targets != IGNORE_INDEX
        img_z, img_emb = self.look(batch.images)                     # (B, C), (B, N, C)
        txt_z = self.read(idx[:, skip:], lengths - skip)             # (B, C)
        same = equal_rows(idx)                                       # (B, B)
        with torch.autocast(idx.device.type, enabled=False):         # bfloat16 would be too coarse
            itc = clip_loss(img_z, txt_z, self.logit_scale)
            similarity = self.logit_scale * img_z @ txt_z.T          # (B, B)

        hidden = self.vlm.hidden(idx, img_emb=img_emb)               # (B, T, C)
        logits = self.match(hidden[last_only(lengths, idx.shape[1])])            # (B, 2)
        if not bool(same.all()):  # else there is nothing that does not fit
            texts = hard_negatives(similarity, same, generator)
            pictures = hard_negatives(similarity.T, same, generator)
            other_text = self.match_logits(idx[texts], lengths[texts], img_emb)
            other_picture = self.match_logits(idx, lengths, img_emb[pictures])
            logits = torch.cat([logits, other_text, other_picture])  # (3 B, 2)
        truth = (torch.arange(len(logits), device=logits.device) < len(idx)).long()

        lm = next_token_loss(self.vlm.gpt.head(hidden[at]), batch.targets[at], label_smoothing)
        right = (logits.argmax(1) == truth).float().mean()
        return {"itc": itc, "itm": match_loss(logits, truth), "lm": lm}, right


def hard_negatives(
    similarity: Tensor, same: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Draw for each row a column that is not its own, the likelier the more similar it looks.

        P(j | i) = (softmax(similarity[i])_j + 1e-4) / sum over j with another text

    Args:
        similarity: (B, B) logits, row i belongs to column i.
        same: (B, B) whether i and j have the same text; the diagonal is true.

    Returns:
        (B,) columns.

    Raises:
        ValueError: if a row has no negative, because all texts are the same or there is one only.

    Source: BLIP, section 3.2; the 1e-4, which keeps the draw possible where all mass lies on the
    diagonal, is salesforce/BLIP's, models/blip_pretrain.py.
    """
    if bool(same.all()):
        raise ValueError("all captions of a batch are the same, none has a negative")
    weights = similarity.detach().float().softmax(dim=1) + 1e-4      # (B, B)
    weights.masked_fill_(same, 0)
    return torch.multinomial(weights.cpu(), 1, generator=generator)[:, 0].to(similarity.device)
