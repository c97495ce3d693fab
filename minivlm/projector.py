"""The connector: maps each patch feature of the ViT to one token embedding of the GPT.

    linear:  img_emb = norm(feats @ W + b)                     LLaVA's map, and a norm
    mlp:     img_emb = norm(gelu(feats @ W1 + b1) @ W2 + b2)   LLaVA-1.5's, and a norm
    llava:   img_emb = gelu(feats @ W1 + b1) @ W2 + b2         LLaVA-1.5 as published
    placed:  img_emb = norm(gelu(feats @ W1 + b1) @ W2 + b2) + place
             place: a learned vector for each patch

Positions do not mix here, so every image token belongs to one patch. The features of a CLIP
tell little about where a patch is, since its captions seldom do; a GPT that rotates queries
and keys mostly knows distances. `placed` says it.

LLaVA needs no norm: its LLM only rotates queries and keys, which works whatever the size of
the embeddings. Our GPT adds position embeddings, as GPT-2 does. Without the norm, image
tokens grew to fifty times the size of the position embeddings. The GPT could then not tell
where a patch was. Use "llava" to exchange weights with other implementations.

Source: LLaVA, arXiv:2304.08485, eq. 1; LLaVA-1.5, arXiv:2310.03744.
"""

import torch
from torch import Tensor, nn

from minivlm.transformer import init_weights

# standard deviation of image tokens at the start. Token embeddings have about 0.5 after
# train_lm.py; larger image tokens are read sooner (docs/lessons.md).
IMAGE_SCALE = 1.0


class Projector(nn.Module):
    """Maps patch features to token embeddings, (B, N, Cv) -> (B, N, C).

    Args:
        n_in, n_out: Cv, C.
        kind: "mlp", "linear", "llava" or "placed", see above.
        n_tokens: N, which only "placed" needs.

    Raises:
        ValueError: if kind is none of these.
    """

    def __init__(self, n_in: int, n_out: int, kind: str = "mlp", n_tokens: int = 0):
        super().__init__()
        if kind not in ("mlp", "linear", "llava", "placed"):
            raise ValueError(
                f"projector {kind!r} is not one of mlp, linear, llava, placed"
            )
        layers = [nn.Linear(n_in, n_out)]
        if kind != "linear":
            layers += [nn.GELU(), nn.Linear(n_out, n_out)]
        self.net = nn.Sequential(*layers)
        init_weights(self)
        self.norm = nn.Identity()
        if kind != "llava":
            self.norm = nn.LayerNorm(n_out)
            nn.init.constant_(self.norm.weight, IMAGE_SCALE)
        self.place = None
        if kind == "placed":
            self.place = nn.Parameter(torch.empty(n_tokens, n_out))
            nn.init.normal_(self.place, std=IMAGE_SCALE / 2)

    def forward(self, feats: Tensor) -> Tensor:
        """Patch features (B, N, Cv) -> token embeddings (B, N, C)."""
        img_emb = self.norm(self.net(feats))                         # (B, N, C)
        return img_emb if self.place is None else img_emb + self.place
